//! A host: an SSH server in this process with an agent behind it, whose steps are played.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream,
};
use russh::{Channel, ChannelId, ChannelOpenFailure};
use tallybook_agent::layout::Layout;
use tallybook_agent::protocol::{Reply, Request, read_frame, write_frame};
use tallybook_agent::serve::{Deeds, serve};
use tallybook_events::event::SessionRecorded;
use tallybook_events::ids::Blob;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::played;

pub(crate) fn new_key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

/// A host that a test can switch off, and look into.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) port: u16,
    key: Arc<Mutex<PrivateKey>>,
    friend: Arc<Mutex<PublicKey>>,
    down: Arc<AtomicBool>,
    state: PathBuf,
    said: Arc<Mutex<Option<String>>>,
}

impl Host {
    /// A host below this directory that lets this key in.
    pub(crate) async fn new(directory: &Path, friend: &PrivateKey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let layout = Layout::below(directory);
        let host = Host {
            port: listener.local_addr().unwrap().port(),
            key: Arc::new(Mutex::new(new_key())),
            friend: Arc::new(Mutex::new(friend.public_key().clone())),
            down: Arc::default(),
            state: layout.state.clone(),
            said: Arc::default(),
        };
        let running = host.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // One that is down hangs up; nothing is said before.
                if running.down.load(Ordering::SeqCst) {
                    continue;
                }
                let config = Arc::new(Config {
                    keys: vec![running.key()],
                    auth_rejection_time: Duration::from_millis(10),
                    nodelay: true,
                    ..Config::default()
                });
                let line = Line {
                    friend: running.friend.lock().unwrap().clone(),
                    layout: layout.clone(),
                    said: running.said.clone(),
                    waiting: HashMap::new(),
                };
                tokio::spawn(async move {
                    if let Ok(session) = run_stream(config, socket, line).await {
                        let _gone = session.await;
                    }
                });
            }
        });
        host
    }

    pub(crate) fn key(&self) -> PrivateKey {
        self.key.lock().unwrap().clone()
    }

    /// From now on it shows another key, as one that was installed anew.
    pub(crate) fn change_key(&self) {
        *self.key.lock().unwrap() = new_key();
    }

    /// From now on it lets nobody in whom it let in before.
    pub(crate) fn refuse(&self) {
        *self.friend.lock().unwrap() = new_key().public_key().clone();
    }

    pub(crate) fn let_in(&self, friend: &PrivateKey) {
        *self.friend.lock().unwrap() = friend.public_key().clone();
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// From now on its agent says this on standard error and dies before it says hello.
    pub(crate) fn die_saying(&self, text: &str) {
        *self.said.lock().unwrap() = Some(text.to_owned());
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        played::notes(&self.state)
    }

    /// Makes steps of a kind fail, or an undo: `undo-KIND`.
    pub(crate) fn fail(&self, kind: &str, class: &str) {
        std::fs::create_dir_all(&self.state).unwrap();
        std::fs::write(self.state.join(format!("fail-{kind}")), class).unwrap();
    }

    /// Puts something of others where steps of a kind act: `foreign-KIND`, with this text.
    pub(crate) fn intrude(&self, kind: &str, text: &str) {
        std::fs::create_dir_all(&self.state).unwrap();
        std::fs::write(self.state.join(format!("foreign-{kind}")), text).unwrap();
    }

    /// What others have where steps of a kind act.
    pub(crate) fn intruder(&self, kind: &str) -> Option<String> {
        std::fs::read_to_string(self.state.join(format!("foreign-{kind}"))).ok()
    }

    /// Makes steps of a kind wait until this is mended: `wait-KIND`.
    pub(crate) fn hold(&self, kind: &str) {
        std::fs::create_dir_all(&self.state).unwrap();
        std::fs::write(self.state.join(format!("wait-{kind}")), "").unwrap();
    }

    /// Lets steps of a kind go on that wait.
    pub(crate) fn release(&self, kind: &str) {
        std::fs::remove_file(self.state.join(format!("wait-{kind}"))).unwrap();
    }

    /// Waits until something is noted that begins like this.
    pub(crate) fn until_noted(&self, text: &str) {
        for _ in 0..5000 {
            if self.notes().iter().any(|line| line.starts_with(text)) {
                return;
            }
            thread::sleep(Duration::from_millis(4));
        }
        panic!("{text:?} is not in {:?}", self.notes());
    }

    pub(crate) fn mend(&self, kind: &str) {
        std::fs::remove_file(self.state.join(format!("fail-{kind}"))).unwrap();
    }
}

struct Line {
    friend: PublicKey,
    layout: Layout,
    said: Arc<Mutex<Option<String>>>,
    waiting: HashMap<ChannelId, Channel<Msg>>,
}

impl Handler for Line {
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
        let said = self.said.lock().unwrap().clone();
        match said {
            _ if line.contains("\"$file\" serve") => drop(tokio::spawn(end(channel))),
            _ if !line.contains("\"$1\" serve") => drop(tokio::spawn(look(channel))),
            Some(said) => drop(tokio::spawn(die(channel, said))),
            None => drop(tokio::spawn(talk(channel, self.layout.clone()))),
        }
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
        let port = u16::try_from(port).unwrap();
        let Ok(mut onward) = TcpStream::connect((host, port)).await else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        reply.accept().await;
        tokio::spawn(async move {
            let mut stream = channel.into_stream();
            let _gone = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
        });
        Ok(())
    }
}

/// Has no agent for whoever would be one at once.
async fn end(channel: Channel<Msg>) {
    let _gone = channel.exit_status(0).await;
    let _gone = channel.eof().await;
    let _gone = channel.close().await;
}

/// Answers whoever looks for the agent that it is there.
async fn look(channel: Channel<Msg>) {
    let machine = std::env::consts::ARCH;
    let said = format!("tallybook 1\nmachine {machine}\nid 0\nfound /var/lib/tallybook/agent\n");
    let _gone = channel.data(said.as_bytes()).await;
    let _gone = channel.exit_status(0).await;
    let _gone = channel.eof().await;
    let _gone = channel.close().await;
}

async fn die(channel: Channel<Msg>, said: String) {
    let _gone = channel.extended_data(1, said.as_bytes()).await;
    let _gone = channel.exit_status(101).await;
    let _gone = channel.eof().await;
    let _gone = channel.close().await;
}

/// Is the agent.
async fn talk(channel: Channel<Msg>, layout: Layout) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || agent(theirs, layout));
    ours.set_nonblocking(true).unwrap();
    let mut agent = tokio::net::UnixStream::from_std(ours).unwrap();
    let mut stream = channel.into_stream();
    let _gone = tokio::io::copy_bidirectional(&mut stream, &mut agent).await;
    let _gone = stream.shutdown().await;
}

/// The agent; a session in a container is answered here, because there is no container.
fn agent(controller: UnixStream, layout: Layout) {
    let (near, far) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let deeds = Deeds {
            table: played::TABLE,
            send: Some(played::send),
            program: None,
        };
        let input = far.try_clone().unwrap();
        let output = far.try_clone().unwrap();
        serve(input, output, &layout, deeds);
        let _gone = far.shutdown(Shutdown::Both);
    });
    let (from_controller, to_controller) = (
        controller.try_clone().unwrap(),
        controller.try_clone().unwrap(),
    );
    let to_agent = near.try_clone().unwrap();
    thread::spawn(move || {
        while let Ok(Some(reply)) = read_frame::<Reply>(&near) {
            if write_frame(&controller, &reply).is_err() {
                return;
            }
        }
        let _gone = controller.shutdown(Shutdown::Both);
    });
    while let Ok(Some(request)) = read_frame::<Request>(&from_controller) {
        let sent = match request {
            // A shell waits for ever, and obeys nobody.
            Request::Session { request, .. } if request.argv.is_empty() => {
                while let Ok(Some(_)) = read_frame::<Request>(&from_controller) {}
                false
            }
            Request::Session { request, .. } => hold(&to_controller, request.argv),
            request => write_frame(&to_agent, &request).is_ok(),
        };
        if !sent {
            break;
        }
    }
    let _gone = to_agent.shutdown(Shutdown::Write);
}

/// A command that prints its arguments and ends with 3.
fn hold(controller: &UnixStream, argv: Vec<String>) -> bool {
    let printed = format!("{}\n", argv.join(" "));
    let output = Reply::Output {
        bytes: Blob(printed.clone().into_bytes()),
        stderr: false,
    };
    let recorded = SessionRecorded {
        argv,
        terminal: false,
        started_unix_us: 1,
        ended_unix_us: 2,
        exit: Some(3),
        output: Blob(printed.into_bytes()),
        dropped_bytes: 0,
        changes: Vec::new(),
        changes_dropped: 0,
    };
    write_frame(controller, &output).is_ok()
        && write_frame(controller, &Reply::SessionEnded(recorded)).is_ok()
}
