//! Reaching hosts: one session a host, kept for as long as it is sound and there is room, and a conversation with the agent
//! on it. A session that somebody talks over is never closed for another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use tallybook_events::ids::LogId;
use tallybook_events::name::HostName;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use super::conversation::{self, Conversation};
use crate::causes;
use crate::host::{
    self, Command, HEAD_LEN, Session, Settings, Target, attach, connect_keeping, push_agent,
};
use crate::log;

/// Why there is no conversation with a host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The inventory has no such host.
    #[error("the inventory has no host {0}")]
    Unknown(HostName),
    /// The host can't be reached, or does not take us in.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The agent on it does not talk as it must.
    #[error(transparent)]
    Conversation(#[from] conversation::Error),
    /// There is no agent to send.
    #[error("the agent {} can't be used", path.display())]
    Agent {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What the host was shown last can't be read in the log here, so nobody can show it that again.
    #[error("what {host} was shown last can't be read in the log here")]
    Unshown {
        /// The host.
        host: HostName,
        /// Why not.
        source: Box<log::Error>,
    },
    /// The agent is not the one this program was built with.
    #[error("the agent {} is not the one that this tallybook was built with", .0.display())]
    AgentChanged(PathBuf),
}

impl Error {
    /// Whether the host is not there: as opposed to there and not taking us in.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Error::Host(error) => error.is_unreachable(),
            Error::Conversation(conversation::Error::Lost { .. }) => true,
            Error::Conversation(_)
            | Error::Unknown(_)
            | Error::Unshown { .. }
            | Error::Agent { .. }
            | Error::AgentChanged(_) => false,
        }
    }

    /// Whether a host key or our own identity is what stands in the way.
    pub fn is_identity(&self) -> bool {
        matches!(self, Error::Host(error) if error.is_identity())
    }

    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Host(error) => error.hint(),
            Error::Unknown(_) => Some("add it under [hosts] in cloud.toml".to_owned()),
            Error::Agent { .. } | Error::AgentChanged(_) => Some(
                "build both with scripts/build.sh, which puts tallybook-agent beside tallybook"
                    .to_owned(),
            ),
            Error::Unshown { .. } => {
                Some("bring the archive back that holds it, or see `tallybook verify`".to_owned())
            }
            Error::Conversation(_) => None,
        }
    }
}

/// That a host could not be had, for whoever was not there: what is left of an [`enum@Error`] once it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Why, with its causes.
    pub why: String,
    /// What to do next, where that is known.
    pub hint: Option<String>,
    /// Whether the host is not there: as opposed to there and not taking us in.
    pub is_unreachable: bool,
    /// Whether a host key or our own identity is what stands in the way.
    pub is_identity: bool,
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Gone {
            why: causes::in_line(&error),
            hint: error.hint(),
            is_unreachable: error.is_unreachable(),
            is_identity: error.is_identity(),
        }
    }
}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// A conversation being opened.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Conversation, Error>> + Send + 'a>>;

/// Opens conversations with agents on hosts: over SSH, or in a test's own process.
pub trait Reach: Send + Sync {
    /// A new conversation, past its hello.
    fn open<'a>(&'a self, host: &'a HostName, log: LogId) -> Opening<'a>;
}

/// The agent's program: by its hash where a host has it, and by its bytes for one that has not.
#[derive(Debug, Clone)]
pub struct AgentProgram {
    path: PathBuf,
    /// The file of now: another version of both programs may be put in their place while this one runs.
    file: Arc<File>,
    hash: blake3::Hash,
    /// Its first bytes.
    head: Vec<u8>,
    bytes: Arc<OnceLock<Vec<u8>>>,
}

impl AgentProgram {
    /// The agent beside this program. It is read once it is needed; its hash was recorded when both were built.
    ///
    /// # Errors
    /// When it is not there.
    pub fn beside_this_program() -> Result<Self, Error> {
        let here = std::env::current_exe().map_err(|source| Error::Agent {
            path: PathBuf::from("tallybook-agent"),
            source,
        })?;
        let path = here.with_file_name("tallybook-agent");
        let unusable = |source| Error::Agent {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(unusable)?;
        let bytes = OnceLock::new();
        let recorded = option_env!("TALLYBOOK_AGENT_BLAKE3");
        let hash = match recorded.and_then(|hash| blake3::Hash::from_hex(hash).ok()) {
            Some(hash) => hash,
            None => {
                tracing::warn!("this tallybook was built without its agent's hash; not checked");
                let read = read_up_to(&file, usize::MAX).map_err(unusable)?;
                blake3::hash(bytes.get_or_init(|| read))
            }
        };
        Ok(AgentProgram {
            head: read_up_to(&file, HEAD_LEN).map_err(unusable)?,
            file: Arc::new(file),
            path,
            hash,
            bytes: Arc::new(bytes),
        })
    }

    /// Its bytes, which are kept from then on.
    ///
    /// # Errors
    /// When it can't be read, or is another one than was recorded.
    pub fn load(&self) -> Result<&[u8], Error> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        let read = read_up_to(&self.file, usize::MAX).map_err(|source| Error::Agent {
            path: self.path.clone(),
            source,
        })?;
        if blake3::hash(&read) != self.hash {
            return Err(Error::AgentChanged(self.path.clone()));
        }
        Ok(self.bytes.get_or_init(|| read))
    }
}

/// The first bytes of a file, wherever others have read to.
fn read_up_to(file: &File, len_max: usize) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len.min(len_max)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// How many sessions one operation has at once. A chain of a transfer needs two, its own host's and the sender's: with room for
/// both of all chains that run at once ([`super::Limits`]), none waits for another that waits for it.
pub const SESSIONS_MAX: usize = 64;

struct Connected {
    session: Session,
    /// What becomes the agent.
    serve: Command,
    /// Had by each conversation over it, and by this.
    users: Arc<()>,
    /// When a conversation over it was last begun, in turns.
    last: u64,
}

/// A conversation's use of a session.
struct Use {
    users: Option<Arc<()>>,
    ended: watch::Sender<()>,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.users = None;
        self.ended.send_replace(());
    }
}

/// The inventory's hosts over SSH, and the controller itself without.
pub struct Fleet {
    targets: BTreeMap<HostName, Target>,
    settings: Settings,
    agent: AgentProgram,
    sessions: BTreeMap<HostName, Mutex<Option<Connected>>>,
    /// The right to have a session: one goes with each line, until that is closed.
    room: Arc<Semaphore>,
    turns: AtomicU64,
    /// Changes whenever a conversation ends.
    ended: watch::Sender<()>,
}

impl Fleet {
    /// These hosts.
    pub fn new(targets: Vec<Target>, settings: Settings, agent: AgentProgram) -> Self {
        Fleet {
            sessions: targets
                .iter()
                .map(|target| (target.name.clone(), Mutex::new(None)))
                .collect(),
            targets: targets
                .into_iter()
                .map(|target| (target.name.clone(), target))
                .collect(),
            settings,
            agent,
            room: Arc::new(Semaphore::new(SESSIONS_MAX)),
            turns: AtomicU64::new(0),
            ended: watch::channel(()).0,
        }
    }

    /// The right to have one more session: where there are as many as may be, the one is closed that nobody has talked over
    /// for the longest time; where all are talked over, one of these is waited for.
    async fn right(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let mut ended = self.ended.subscribe();
            if let Ok(right) = Arc::clone(&self.room).try_acquire_owned() {
                return Some(right);
            }
            self.close_idle().await;
            tokio::select! {
                // It is never closed.
                right = Arc::clone(&self.room).acquire_owned() => return right.ok(),
                _ = ended.changed() => {}
            }
        }
    }

    async fn close_idle(&self) {
        let is_idle = |known: &Connected| Arc::strong_count(&known.users) == 1;
        let mut idlest = None;
        for slot in self.sessions.values() {
            // One that is being opened or taken is not idle.
            if let Ok(known) = slot.try_lock()
                && let Some(known) = known.as_ref().filter(|known| is_idle(known))
                && idlest.is_none_or(|(last, _)| known.last < last)
            {
                idlest = Some((known.last, slot));
            }
        }
        let Some((_, slot)) = idlest else { return };
        let closed = slot
            .try_lock()
            .ok()
            .and_then(|mut slot| slot.as_ref().is_some_and(is_idle).then(|| slot.take())?);
        if let Some(closed) = closed {
            tracing::debug!(
                host = closed.session.host(),
                "closed: others need its place"
            );
            closed.session.close().await;
        }
    }

    async fn open_conversation(&self, name: &HostName, log: LogId) -> Result<Conversation, Error> {
        let unknown = || Error::Unknown(name.clone());
        let target = self.targets.get(name).ok_or_else(unknown)?;
        let slot = self.sessions.get(name).ok_or_else(unknown)?;
        let (session, serve, in_use) = {
            let mut slot = slot.lock().await;
            if slot.as_ref().is_some_and(|known| known.session.is_closed()) {
                *slot = None;
            }
            let connected = match slot.take() {
                Some(connected) => connected,
                None => {
                    let right = match target.local {
                        true => None,
                        false => self.right().await,
                    };
                    let session = connect_keeping(target, &self.settings, right).await?;
                    let users = Arc::default();
                    // The agent is nearly always there, and says best itself whether it is sound.
                    let serve = attach(self.agent.hash, &self.agent.head);
                    let in_use = self.in_use(&users);
                    match self.converse(name, log, &session, &serve, in_use).await {
                        Ok(conversation)
                            if conversation.program == Some(self.agent.hash.into()) =>
                        {
                            *slot = Some(self.connected(session, serve, users));
                            return Ok(conversation);
                        }
                        Ok(another) => {
                            tracing::debug!("the agent on {name} is {:?}", another.program);
                            drop(another);
                        }
                        // Nothing is there that could talk.
                        Err(Error::Conversation(
                            error @ (conversation::Error::Lost { .. }
                            | conversation::Error::Frame { .. }),
                        )) if !session.is_closed() => {
                            tracing::debug!("no agent answers: {error}");
                        }
                        Err(error) => return Err(error),
                    }
                    let arch = std::env::consts::ARCH;
                    let bytes = self.agent.load()?;
                    let path = push_agent(&session, bytes, self.agent.hash, arch).await?;
                    self.connected(session, path.serve(), users)
                }
            };
            let in_use = self.in_use(&connected.users);
            let serve = connected.serve.clone();
            let session = connected.session.clone();
            *slot = Some(self.connected(connected.session, connected.serve, connected.users));
            (session, serve, in_use)
        };
        let conversation = self.converse(name, log, &session, &serve, in_use).await;
        if conversation.is_err() {
            // The session may be half dead: whoever comes next makes a new one. Who uses this one keeps it.
            *slot.lock().await = None;
        }
        conversation
    }

    /// A session that a conversation is begun over now.
    fn connected(&self, session: Session, serve: Command, users: Arc<()>) -> Connected {
        Connected {
            session,
            serve,
            users,
            last: self.turns.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn in_use(&self, users: &Arc<()>) -> Use {
        Use {
            users: Some(Arc::clone(users)),
            ended: self.ended.clone(),
        }
    }

    async fn converse(
        &self,
        name: &HostName,
        log: LogId,
        session: &Session,
        serve: &Command,
        in_use: Use,
    ) -> Result<Conversation, Error> {
        let stream = session.open(serve).await?;
        let process = stream.process;
        // The line is closed with the session's last clone: a conversation keeps it, whatever becomes of the slot.
        let session = session.clone();
        let end = Box::pin(async move {
            let _kept = (session, in_use);
            match process.wait().await {
                Ok(exit) => {
                    let stderr = String::from_utf8_lossy(&exit.stderr);
                    format!("the agent ended with {} {}", exit.status, stderr.trim_end())
                }
                Err(error) => error.to_string(),
            }
        });
        let mut conversation = Conversation::new(
            name,
            stream.stdin,
            stream.stdout,
            end,
            conversation::SILENCE_MAX,
        );
        conversation.hello(log).await?;
        Ok(conversation)
    }
}

impl Reach for Fleet {
    fn open<'a>(&'a self, host: &'a HostName, log: LogId) -> Opening<'a> {
        Box::pin(self.open_conversation(host, log))
    }
}
