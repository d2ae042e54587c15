//! A conversation with an agent: frames out, frames in, and why the line ended.
//!
//! It knows the frames, not what they mean. Reading goes on in a task of its own, so that waiting for a reply can
//! be given up without losing half a frame. An agent gives signs of life, so a long silence is a lost line.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tallybook_agent::protocol::{self, PROTOCOL, Reply, Request};
use tallybook_agent::secret::SecretName;
use tallybook_events::codec;
use tallybook_events::ids::{Blob, Hash, JournalId, LogId};
use tallybook_events::name::HostName;
use tallybook_events::step::Mark;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::net;
use crate::secrets::Declared;

/// How many frames may wait in each direction.
const QUEUE_LEN: usize = 8;
/// How long an agent may take to answer the first question.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// After such a silence a line counts as lost, although it stands: the agent is stopped, or its host hangs.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why a conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The line is gone.
    #[error("the line to {host} was lost: {why}")]
    Lost {
        /// The host.
        host: HostName,
        /// What is known of it.
        why: String,
    },
    /// The agent said something that can't be understood.
    #[error("the agent on {host} can't be understood")]
    Frame {
        /// The host.
        host: HostName,
        /// Why not.
        source: protocol::Error,
    },
    /// The agent did not answer as it must.
    #[error("the agent on {host} {what}")]
    Unexpected {
        /// The host.
        host: HostName,
        /// What it did.
        what: String,
    },
}

/// Waits for the end of the agent's process and says, for people, how it ended.
pub type End = Pin<Box<dyn Future<Output = String> + Send>>;

/// Speaks to an agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Speaker {
    host: HostName,
    frames: mpsc::Sender<Vec<u8>>,
}

/// Hears an agent.
#[derive(Debug)]
pub struct Listener {
    host: HostName,
    /// What is taken out of all that is heard.
    secrets: Arc<Declared>,
    replies: mpsc::Receiver<Result<Reply, Error>>,
}

/// Both ends of a conversation.
#[derive(Debug)]
pub struct Conversation {
    /// Speaks.
    pub speaker: Speaker,
    /// Hears.
    pub listener: Listener,
    /// The BLAKE3 of the agent's program, where it could read that.
    pub program: Option<Hash>,
    /// The receipts journal that the host has; `None` where it has none, or a damaged one.
    pub journal: Option<JournalId>,
    /// How many bytes that journal has.
    pub journal_len: u64,
    /// The newest event of the log that the host was shown.
    pub seen: Option<Mark>,
    /// What shows it that the log has that event.
    pub(super) proof: Option<Blob>,
}

impl Conversation {
    /// A conversation over a process's input and output. It is over once nothing was heard for as long as `silence`.
    pub fn new(
        host: &HostName,
        mut stdin: impl AsyncWrite + Unpin + Send + 'static,
        stdout: impl AsyncRead + Unpin + Send + 'static,
        end: End,
        silence: Duration,
    ) -> Self {
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE_LEN);
        tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if stdin.write_all(&frame).await.is_err() || stdin.flush().await.is_err() {
                    return;
                }
            }
            let _closed = stdin.shutdown().await;
        });
        let (sender, replies) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(read_replies(host.clone(), stdout, end, silence, sender));
        Conversation {
            speaker: Speaker {
                host: host.clone(),
                frames,
            },
            listener: Listener {
                host: host.clone(),
                secrets: Arc::default(),
                replies,
            },
            program: None,
            journal: None,
            journal_len: 0,
            seen: None,
            proof: None,
        }
    }

    /// Says hello, and checks that the agent speaks our protocol.
    ///
    /// # Errors
    /// When it does not, or does not answer in time.
    pub async fn hello(&mut self, log: LogId) -> Result<(), Error> {
        let host = self.speaker.host.clone();
        self.speaker
            .say(&Request::Hello {
                protocol: PROTOCOL,
                log,
                host: host.clone(),
            })
            .await?;
        let reply = tokio::time::timeout(HELLO_TIMEOUT, self.listener.hear()).await;
        let what = match reply {
            Ok(Ok(Reply::Hello {
                protocol,
                program,
                journal,
                journal_len,
                seen,
                ..
            })) if protocol == PROTOCOL => {
                self.program = program;
                self.journal = journal;
                self.journal_len = journal_len;
                self.seen = seen;
                return Ok(());
            }
            Ok(Ok(Reply::Hello { protocol, .. })) => {
                format!("speaks protocol {protocol}, not {PROTOCOL}")
            }
            Ok(Ok(Reply::Refused(failure))) => format!("refuses to talk: {}", failure.message),
            Ok(Ok(_)) => "does not say hello".to_owned(),
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => format!("says nothing for {} s", HELLO_TIMEOUT.as_secs()),
        };
        Err(Error::Unexpected { host, what })
    }

    /// Has the agent know these secrets, and takes all that are known out of what it says from now on.
    ///
    /// # Errors
    /// When the line is lost.
    pub async fn guard(
        &mut self,
        secrets: &Arc<Declared>,
        names: &BTreeSet<SecretName>,
    ) -> Result<(), Error> {
        self.listener.secrets = Arc::clone(secrets);
        let told = secrets.told(names);
        if told.values.is_empty() {
            return Ok(());
        }
        self.speaker.say(&Request::Secrets(told)).await
    }

    /// Makes sure that the host has a receipts journal, before it is asked to do anything.
    ///
    /// # Errors
    /// When the line is lost, or the agent refuses.
    pub async fn make_journal(&mut self) -> Result<(), Error> {
        if self.journal.is_some() {
            return Ok(());
        }
        self.speaker.say(&Request::MakeJournal).await?;
        let what = match self.listener.hear().await? {
            Reply::Journal(journal) => {
                self.journal = journal;
                return Ok(());
            }
            Reply::Refused(failure) => format!("can't keep receipts: {}", failure.message),
            _ => "does not say where it keeps receipts".to_owned(),
        };
        let host = self.speaker.host.clone();
        Err(Error::Unexpected { host, what })
    }
}

/// What is to be said next, where waiting for room must not keep anybody from hearing.
#[derive(Debug)]
pub struct Outbox {
    speaker: Speaker,
    frames: VecDeque<Vec<u8>>,
}

impl Outbox {
    /// Nothing yet.
    pub fn new(speaker: Speaker) -> Self {
        Outbox {
            speaker,
            frames: VecDeque::new(),
        }
    }

    /// Whether all was handed over. Nothing more is to be taken in before it was.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Says something after all else.
    ///
    /// # Errors
    /// When it has no encoding, or is too long.
    pub fn put(&mut self, request: &Request) -> Result<(), Error> {
        self.frames.push_back(self.speaker.frame(request)?);
        Ok(())
    }

    /// Says this, and nothing that was not handed over yet.
    ///
    /// # Errors
    /// When it has no encoding, or is too long.
    pub fn put_instead(&mut self, request: &Request) -> Result<(), Error> {
        self.frames.clear();
        self.put(request)
    }

    /// Hands the next one over as soon as there is room; never resolves when there is none. Can be given up at any
    /// point without losing or repeating one.
    ///
    /// # Errors
    /// When the line is gone. The listener hears why.
    pub async fn hand_over(&mut self) -> Result<(), Error> {
        if self.frames.is_empty() {
            return std::future::pending().await;
        }
        let room = self.speaker.frames.reserve().await;
        match (room, self.frames.pop_front()) {
            (Ok(room), Some(frame)) => room.send(frame),
            (Ok(_), None) => {}
            (Err(_), _) => {
                self.frames.clear();
                return Err(self.speaker.deaf());
            }
        }
        Ok(())
    }
}

impl Speaker {
    /// Whom it speaks to.
    pub(super) const fn host(&self) -> &HostName {
        &self.host
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When the line is gone. The listener hears why.
    pub async fn say(&self, request: &Request) -> Result<(), Error> {
        let frame = self.frame(request)?;
        self.frames.send(frame).await.map_err(|_| self.deaf())
    }

    fn frame(&self, request: &Request) -> Result<Vec<u8>, Error> {
        protocol::encode_frame(request).map_err(|source| Error::Frame {
            host: self.host.clone(),
            source,
        })
    }

    fn deaf(&self) -> Error {
        self.given_up("it takes no more input")
    }

    /// The line is gone, or taken for it; why.
    pub(super) fn given_up(&self, why: &str) -> Error {
        Error::Lost {
            host: self.host.clone(),
            why: why.to_owned(),
        }
    }
}

impl Listener {
    /// The next reply. Can be given up at any point without losing one.
    ///
    /// # Errors
    /// When the line is gone, or the reply can't be understood.
    pub async fn hear(&mut self) -> Result<Reply, Error> {
        let mask = self.secrets.mask();
        match self.replies.recv().await {
            Some(Ok(said)) => Ok(net::reply(mask, said)),
            Some(Err(Error::Lost { host, why })) => {
                let why = mask.apply_text(&why);
                Err(Error::Lost { host, why })
            }
            Some(Err(Error::Unexpected { host, what })) => {
                let what = mask.apply_text(&what);
                Err(Error::Unexpected { host, what })
            }
            Some(Err(error @ Error::Frame { .. })) => Err(error),
            None => Err(Error::Lost {
                host: self.host.clone(),
                why: "it is closed".to_owned(),
            }),
        }
    }
}

async fn read_replies(
    host: HostName,
    mut stdout: impl AsyncRead + Unpin,
    end: End,
    silence: Duration,
    replies: mpsc::Sender<Result<Reply, Error>>,
) {
    loop {
        let read = tokio::select! {
            biased;
            // Nobody listens any more: the process is given up, and not kept for what it may still say.
            () = replies.closed() => return,
            read = tokio::time::timeout(silence, read_reply(&mut stdout)) => read,
        };
        let Ok(read) = read else {
            let why = format!("it said nothing for {} s", silence.as_secs());
            let _gone = replies.send(Err(Error::Lost { host, why })).await;
            return;
        };
        match read {
            Ok(Some(Reply::Alive)) => {}
            Ok(Some(reply)) => {
                if replies.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
            Ok(None) | Err(protocol::Error::Io(_)) => {
                drop(stdout);
                let why = tokio::time::timeout(Duration::from_secs(5), end)
                    .await
                    .unwrap_or_else(|_| "no answer".to_owned());
                let _gone = replies.send(Err(Error::Lost { host, why })).await;
                return;
            }
            Err(source) => {
                let _gone = replies.send(Err(Error::Frame { host, source })).await;
                return;
            }
        }
    }
}

async fn read_reply(
    stdout: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Reply>, protocol::Error> {
    let mut head = [0; 4];
    match stdout.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let len = protocol::frame_len(head)?;
    // Not reserved at once: a length is only a claim until the bytes are here.
    let mut body = Vec::new();
    stdout.take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(codec::decode(&body)?))
}
