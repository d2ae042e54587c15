//! One SSH connection: dialled directly or through another one, its key verified, authenticated, and carrying
//! many commands at once.
//!
//! Must never outlive a dead line unnoticed: keepalives, a limit on stuck writes, and a limit on every step of
//! setting up.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{Config, Handle, Msg};
use russh::keys::Algorithm;
use russh::{
    AlgorithmKind, Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf,
    Disconnect, Preferred, Sig, SshId, cipher,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use super::Settings;
use super::auth::{self, Identity};
use super::error::Error;
use super::known_hosts::{Algorithms, KnownHosts, every_algorithm};
use super::stream::{
    Exit, Process, Status, Stdin, StdinPipe, Stdout, StdoutPipe, Stream, Tail, Wish, given_up,
};
use super::transport::{Acknowledging, Keep, Transport};
use super::verify::{Ended, Ending, Verifier};

/// The most bytes handed to the SSH library at once.
const WRITE_MAX: usize = 256 * 1024;
/// What may wait between the library and a reader of ours, besides the library's own buffer.
const READ_AHEAD: usize = 1024 * 1024;
/// Packets may not be larger than this.
const PACKET_MAX: u32 = 65535;
/// Messages the library keeps for a channel; with sshd's packets of 32 KiB this is the window of 16 MiB.
const CHANNEL_MESSAGES: usize = 512;
/// Pauses between attempts to open a channel that the host refuses.
const REFUSAL_PAUSES: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(160),
    Duration::from_millis(640),
];
/// How long a command that was given up may take to end before its channel is closed.
const GIVE_UP_GRACE: Duration = Duration::from_secs(3);

/// One machine on the way, the last being the host itself.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    /// What messages call it.
    pub(super) label: String,
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) identity: Identity,
    /// The name in known_hosts.
    pub(super) lookup: String,
    /// The name a certificate must be for.
    pub(super) principal: String,
    pub(super) known_hosts: Vec<PathBuf>,
    /// What is given back when the line to it is closed.
    pub(super) keep: Keep,
}

impl Hop {
    fn place(&self) -> String {
        if self.address.contains(':') {
            format!("[{}]:{}", self.address, self.port)
        } else {
            format!("{}:{}", self.address, self.port)
        }
    }
}

/// A connection that is ready for commands.
pub(super) struct Connection {
    host: String,
    handle: Handle<Verifier>,
    slots: Arc<Semaphore>,
    slots_max: usize,
    slot_wait: Duration,
    ending: Ending,
    /// Keeps the connection to the jump host open as long as ours.
    via: Option<Arc<Connection>>,
}

/// Dials a hop, through `via` if there is one, and authenticates.
pub(super) async fn establish(
    hop: &Hop,
    via: Option<Arc<Connection>>,
    settings: &Settings,
) -> Result<Connection, Error> {
    let known = KnownHosts::load(&hop.known_hosts).map_err(|source| Error::KnownHosts {
        host: hop.label.clone(),
        source,
    })?;
    let known = Arc::new(known);
    let algorithms = known.algorithms(&hop.lookup);
    let restricted = algorithms.restricted;
    let ending = Ending::default();
    let once = |algorithms| async {
        let verifier = Verifier {
            host: hop.label.clone(),
            lookup: hop.lookup.clone(),
            principal: hop.principal.clone(),
            known: known.clone(),
            file: hop.known_hosts.first().cloned().unwrap_or_default(),
            ending: ending.clone(),
        };
        handshake(hop, via.as_deref(), settings, algorithms, verifier).await
    };
    let mut handle = match once(algorithms).await {
        // The host has none of the recorded kinds of key: look at what it has, so that the refusal can show it.
        Err(Error::Handshake { source, .. }) if restricted && lacks_key_kind(&source) => {
            let every = Algorithms {
                plain: every_algorithm(),
                certificates: Vec::new(),
                restricted: false,
            };
            once(every).await?
        }
        result => result?,
    };
    let authenticating = auth::authenticate(&mut handle, &hop.label, &hop.identity);
    within(
        &hop.label,
        "authenticating",
        settings.auth_timeout,
        authenticating,
    )
    .await??;
    Ok(Connection {
        host: hop.label.clone(),
        handle,
        slots: Arc::new(Semaphore::new(settings.sessions_max)),
        slots_max: settings.sessions_max,
        slot_wait: settings.channel_wait,
        ending,
        via,
    })
}

fn lacks_key_kind(error: &russh::Error) -> bool {
    matches!(
        error,
        russh::Error::NoCommonAlgo {
            kind: AlgorithmKind::Key,
            ..
        }
    )
}

async fn within<T>(
    host: &str,
    doing: &'static str,
    after: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout(after, work)
        .await
        .map_err(|_elapsed| Error::Timeout {
            host: host.to_owned(),
            doing,
            after,
        })
}

async fn handshake(
    hop: &Hop,
    via: Option<&Connection>,
    settings: &Settings,
    algorithms: Algorithms,
    verifier: Verifier,
) -> Result<Handle<Verifier>, Error> {
    match via {
        None => {
            let stream = Acknowledging(dial(hop, settings.connect_timeout).await?);
            greet(hop, stream, settings, algorithms, verifier).await
        }
        Some(jump) => {
            let opening = jump.forward(hop);
            let channel = within(
                &hop.label,
                "the jump host connects",
                settings.connect_timeout,
                opening,
            )
            .await??;
            greet(hop, channel.into_stream(), settings, algorithms, verifier).await
        }
    }
}

async fn greet<S>(
    hop: &Hop,
    stream: S,
    settings: &Settings,
    algorithms: Algorithms,
    verifier: Verifier,
) -> Result<Handle<Verifier>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = Arc::new(config(settings, algorithms.plain, algorithms.certificates));
    let stream = Transport::new(stream, settings.line_dead_after(), hop.keep.clone());
    let greeting = russh::client::connect_stream(config, stream, verifier);
    let result = within(&hop.label, "greeting", settings.connect_timeout, greeting).await?;
    result.map_err(|ended| match ended {
        Ended::Refused(error) => *error,
        Ended::Ssh(source) => Error::Handshake {
            host: hop.label.clone(),
            address: hop.place(),
            source: Box::new(source),
        },
    })
}

fn config(settings: &Settings, plain: Vec<Algorithm>, certificates: Vec<Algorithm>) -> Config {
    Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-tallybook_",
            env!("CARGO_PKG_VERSION")
        ))),
        window_size: settings.window_bytes,
        maximum_packet_size: PACKET_MAX,
        channel_buffer_size: CHANNEL_MESSAGES,
        keepalive_interval: Some(settings.keepalive_interval),
        keepalive_max: settings.keepalive_max,
        nodelay: true,
        preferred: Preferred {
            key: Cow::Owned(plain),
            host_key_certificates: Cow::Owned(certificates),
            cipher: Cow::Borrowed(&[
                cipher::AES_256_GCM,
                cipher::AES_128_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}

/// Connects to the first address that answers; the time is shared between the addresses.
async fn dial(hop: &Hop, limit: Duration) -> Result<TcpStream, Error> {
    let host = || hop.label.clone();
    let lookup = tokio::net::lookup_host((hop.address.as_str(), hop.port));
    let addresses: Vec<SocketAddr> = within(&hop.label, "resolving its name", limit, lookup)
        .await?
        .map_err(|source| Error::Resolve {
            host: host(),
            address: hop.address.clone(),
            source,
        })?
        .collect();
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = Error::Resolve {
        host: host(),
        address: hop.address.clone(),
        source: io::Error::other("the name has no address"),
    };
    for address in addresses {
        failure = match within(&hop.label, "connecting", share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY can't be set");
                }
                return Ok(stream);
            }
            Ok(Err(source)) if source.kind() == io::ErrorKind::ConnectionRefused => {
                Error::ConnectionRefused {
                    host: host(),
                    address: address.to_string(),
                    source,
                }
            }
            Ok(Err(source)) => Error::Unreachable {
                host: host(),
                address: address.to_string(),
                source,
            },
            Err(timeout) => timeout,
        };
    }
    Err(failure)
}

impl Connection {
    /// A connection from this host on to another.
    async fn forward(&self, hop: &Hop) -> Result<Channel<Msg>, Error> {
        let port = u32::from(hop.port);
        let opened = self
            .handle
            .channel_open_direct_tcpip(&hop.address, port, "127.0.0.1", 0)
            .await;
        opened.map_err(|error| match error {
            russh::Error::ChannelOpenFailure(reason) => Error::JumpRefused {
                host: hop.label.clone(),
                jump: self.host.clone(),
                address: hop.place(),
                why: match reason {
                    ChannelOpenFailure::AdministrativelyProhibited => {
                        "it forbids forwarding there".to_owned()
                    }
                    ChannelOpenFailure::ConnectFailed => "it could not connect".to_owned(),
                    ChannelOpenFailure::UnknownChannelType
                    | ChannelOpenFailure::ResourceShortage
                    | ChannelOpenFailure::Other { .. } => reason.description().to_owned(),
                },
            },
            _ => self.lost(),
        })
    }

    fn lost(&self) -> Error {
        Error::LineLost {
            host: self.host.clone(),
            why: self.ending.why(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Starts a command.
    pub(super) async fn open(&self, line: String) -> Result<Stream, Error> {
        let acquiring = self.slots.clone().acquire_owned();
        let permit = match tokio::time::timeout(self.slot_wait, acquiring).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(self.lost()),
            Err(_elapsed) if self.is_closed() => return Err(self.lost()),
            Err(_elapsed) => {
                return Err(Error::ChannelLimit {
                    host: self.host.clone(),
                    max: self.slots_max,
                    waited: self.slot_wait,
                });
            }
        };
        let channel = self.open_channel().await?;
        if channel.exec(true, line).await.is_err() {
            return Err(self.lost());
        }
        Ok(self.attach(channel, permit))
    }

    /// Opens a channel; sshd frees a session a moment after it said that it ended, so a refusal is tried again.
    async fn open_channel(&self) -> Result<Channel<Msg>, Error> {
        let mut pauses = REFUSAL_PAUSES.iter();
        loop {
            match self.handle.channel_open_session().await {
                Ok(channel) => return Ok(channel),
                Err(source @ russh::Error::ChannelOpenFailure(_)) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => {
                        return Err(Error::ChannelRefused {
                            host: self.host.clone(),
                            source: Box::new(source),
                        });
                    }
                },
                Err(_) => return Err(self.lost()),
            }
        }
    }

    fn attach(&self, channel: Channel<Msg>, permit: OwnedSemaphorePermit) -> Stream {
        let (read, write) = channel.split();
        let (stdin, from_stdin) = tokio::io::duplex(WRITE_MAX);
        let (to_stdout, stdout) = tokio::io::duplex(READ_AHEAD);
        let (wish, wishes) = watch::channel(Wish::Run);
        let (ended, end) = oneshot::channel();
        let mut sender = tokio::spawn(send(write, from_stdin, wishes.clone()));
        let (host, ending) = (self.host.clone(), self.ending.clone());
        tokio::spawn(async move {
            let exit = receive(read, to_stdout, wishes, &mut sender).await;
            // Ends a writer that waits for a window that will never open, and so breaks the command's stdin.
            sender.abort();
            drop(permit);
            let result = exit.map_err(|broken| match broken {
                Broken::Line => Error::LineLost {
                    host,
                    why: ending.why(),
                },
                Broken::Command(why) => Error::LineLost {
                    host,
                    why: why.to_owned(),
                },
            });
            // Nobody may be waiting any more.
            let _ = ended.send(result);
        });
        Stream {
            stdin: Stdin(StdinPipe::Ssh(stdin)),
            stdout: Stdout(StdoutPipe::Ssh(stdout)),
            process: Process {
                host: self.host.clone(),
                wish,
                end,
            },
        }
    }

    /// Says goodbye; commands still running lose their line.
    pub(super) async fn close(&self) {
        let bye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        if let Err(error) = bye.await {
            tracing::debug!(host = self.host, %error, "the line was already closed");
        }
        if let Some(via) = &self.via {
            Box::pin(via.close()).await;
        }
    }
}

enum Broken {
    Line,
    Command(&'static str),
}

/// Carries standard input to the host, then waits until the process is given up. Returns true after it closed
/// the channel: the library forgets a channel that we close, and reports nothing more about it.
async fn send(
    write: ChannelWriteHalf<Msg>,
    mut stdin: DuplexStream,
    mut wishes: watch::Receiver<Wish>,
) -> bool {
    let copy = async {
        let mut buffer = vec![0; WRITE_MAX];
        loop {
            match stdin.read(&mut buffer).await {
                Ok(0) | Err(_) => return write.eof().await,
                Ok(length) => write.data_bytes(buffer[..length].to_vec()).await?,
            }
        }
    };
    let (wish, fed) = tokio::select! {
        wish = given_up(&mut wishes) => (wish, false),
        copied = copy => {
            if copied.is_err() {
                return false;
            }
            (given_up(&mut wishes).await, true)
        }
    };
    // Errors below mean that the line is gone, which the receiver reports.
    if wish == Some(Wish::Terminate) {
        let _ = write.signal(Sig::TERM).await;
    }
    if !fed {
        let _ = write.eof().await;
    }
    // sshd counts a session until its command ends: let it end before the slot is free again.
    tokio::time::sleep(GIVE_UP_GRACE).await;
    write.close().await.is_ok()
}

/// Carries what the host sends to its readers, until the channel ends.
async fn receive(
    mut read: ChannelReadHalf,
    stdout: DuplexStream,
    mut wishes: watch::Receiver<Wish>,
    sender: &mut JoinHandle<bool>,
) -> Result<Exit, Broken> {
    let mut sending = true;
    let mut stdout = Some(stdout);
    let mut stderr = Tail::default();
    let mut status = None;
    loop {
        let message = tokio::select! {
            message = read.wait() => message,
            closed = &mut *sender, if sending => {
                sending = false;
                if matches!(closed, Ok(true)) {
                    return Err(Broken::Command("it was given up and did not end by itself"));
                }
                continue;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                if let Some(pipe) = &mut stdout {
                    let written = tokio::select! {
                        written = pipe.write_all(&data) => written.is_ok(),
                        _ = given_up(&mut wishes) => false,
                    };
                    if !written {
                        stdout = None;
                    }
                }
            }
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => stderr.push(&data),
            Some(ChannelMsg::Eof) => stdout = None,
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                status = Some(Status::Code(exit_status));
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                status = Some(Status::Signal(match signal_name {
                    Sig::Custom(name) => name,
                    named => format!("{named:?}"),
                }));
            }
            Some(ChannelMsg::Failure) => {
                return Err(Broken::Command("the host refuses to run commands"));
            }
            Some(ChannelMsg::Close) => {
                return match status {
                    Some(status) => Ok(stderr.exit(status)),
                    None => Err(Broken::Command(
                        "the host closed the channel without saying how the command ended",
                    )),
                };
            }
            // Other messages say nothing about a command.
            Some(_) => {}
            None => {
                return match status {
                    Some(status) => Ok(stderr.exit(status)),
                    None => Err(Broken::Line),
                };
            }
        }
    }
}
