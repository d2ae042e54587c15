//! An SSH server in this process that runs commands for real with `sh`, and a wire in front of it that can be cut
//! or fall silent.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream,
};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::world::new_key;

/// What the server is like.
pub(crate) struct Fake {
    pub(crate) keys: Vec<PrivateKey>,
    pub(crate) certificates: Vec<Certificate>,
    /// Who may log in.
    pub(crate) friend: PublicKey,
    pub(crate) sessions_max: usize,
    pub(crate) forwards: bool,
}

/// A running server.
pub(crate) struct Running {
    pub(crate) port: u16,
    /// How many sessions it opened in all.
    pub(crate) opened: Arc<AtomicUsize>,
}

impl Fake {
    pub(crate) fn new(friend: &PrivateKey) -> Self {
        Self {
            keys: vec![new_key(Algorithm::Ed25519)],
            certificates: Vec::new(),
            friend: friend.public_key().clone(),
            sessions_max: 10,
            forwards: true,
        }
    }

    pub(crate) fn key(&self) -> PrivateKey {
        self.keys[0].clone()
    }

    pub(crate) async fn run(self) -> Running {
        let config = Arc::new(Config {
            keys: self.keys,
            certificates: self.certificates,
            auth_rejection_time: Duration::from_millis(10),
            max_auth_attempts: 4,
            window_size: 16 * 1024 * 1024,
            nodelay: true,
            ..Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let line = FakeLine {
                    friend: self.friend.clone(),
                    sessions_max: self.sessions_max,
                    forwards: self.forwards,
                    sessions: Arc::default(),
                    opened: count.clone(),
                    waiting: HashMap::new(),
                };
                let config = config.clone();
                tokio::spawn(async move {
                    if let Ok(session) = run_stream(config, socket, line).await {
                        let _ = session.await;
                    }
                });
            }
        });
        Running { port, opened }
    }
}

struct FakeLine {
    friend: PublicKey,
    sessions_max: usize,
    forwards: bool,
    sessions: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
    waiting: HashMap<ChannelId, Channel<Msg>>,
}

impl Handler for FakeLine {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(if key.public_key.key_data() == self.friend.key_data() {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if self.sessions.load(Ordering::SeqCst) >= self.sessions_max {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        }
        self.sessions.fetch_add(1, Ordering::SeqCst);
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.waiting.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let channel = self.waiting.remove(&id).unwrap();
        session.channel_success(id)?;
        let line = String::from_utf8(line.to_vec()).unwrap();
        let sessions = self.sessions.clone();
        tokio::spawn(async move {
            serve(channel, line).await;
            sessions.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if !self.forwards {
            reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
            return Ok(());
        }
        let port = u16::try_from(port).unwrap();
        let Ok(mut onward) = TcpStream::connect((host, port)).await else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        reply.accept().await;
        tokio::spawn(async move {
            let mut stream = channel.into_stream();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
        });
        Ok(())
    }
}

/// Runs one command as sshd does.
async fn serve(channel: Channel<Msg>, line: String) {
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", &line])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let (mut read, write) = channel.split();
    let input = async {
        loop {
            match read.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(ChannelMsg::Eof) => stdin = None,
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            }
        }
    };
    let output = async {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
            if write.data(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let errors = async {
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said).await;
        let _ = write.extended_data(1, &said[..]).await;
    };
    let output = async {
        tokio::join!(output, errors);
        let _ = write.eof().await;
        if let Some(code) = child.wait().await.unwrap().code() {
            let _ = write.exit_status(code.cast_unsigned()).await;
        }
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
    let _ = write.close().await;
}

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Whole,
    /// Both ends see the connection closed.
    Cut,
    /// Nothing passes any more and nobody is told.
    Silent,
}

/// A wire to a port: its own port and its state.
pub(crate) async fn wire(to: u16) -> (u16, watch::Sender<Wire>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, state) = watch::channel(Wire::Whole);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut state = state.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    _ = state.wait_for(|wire| *wire != Wire::Whole) => {}
                }
                // Silent: the sockets stay open and unread until the test ends or cuts them.
                let _ = state.wait_for(|wire| *wire == Wire::Cut).await;
            });
        }
    });
    (port, sender)
}
