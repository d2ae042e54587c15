//! The holder's socket: how other processes on this machine read, follow and submit while one holds the store.
//!
//! A connection a request. Who is at the other end is what the kernel says; what that end asserts of itself is
//! recorded as asserted.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::actor::ActorClaim;
use tallybook_events::codec;
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::book::{Desk, chain};
use super::{Appended, Condition, Draft, Error, Filter, Refusal};
use crate::identity;

const SOCKET: &str = "socket";
/// Rises when requests or answers change shape.
const PROTOCOL: u16 = 1;
const FRAME_LEN_MAX: u32 = 256 * 1024 * 1024;
/// How many requests may be served at once; more wait.
const CONNECTIONS_MAX: usize = 128;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
enum Request {
    Append {
        drafts: Vec<Draft>,
        condition: Condition,
        asserted: Vec<ActorClaim>,
    },
    State,
    Records(Filter),
    WaitBeyond(Seq),
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    protocol: u16,
    body: T,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Appended(Vec<Appended>),
    Refused(Refusal),
    State(Box<State>),
    Records(Vec<Blob>),
    Beyond,
    Failed(String),
}

/// A path of the socket that is short enough for the kernel (108 bytes), however deep the store is.
struct Address {
    path: PathBuf,
    _directory: std::fs::File,
}

fn address(directory: &Path) -> io::Result<Address> {
    let directory = std::fs::File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    Ok(Address {
        path,
        _directory: directory,
    })
}

/// Listens. The store's lock is held, so a socket that is already there is a dead one.
pub(super) fn serve(directory: &Path, desk: Desk) -> io::Result<tokio::task::JoinHandle<()>> {
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let address = address(directory)?;
    let listener = UnixListener::bind(&address.path)?;
    Ok(tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = listener.accept(), if tasks.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => drop(tasks.spawn(answer(stream, desk.clone()))),
                    Err(error) => {
                        tracing::warn!("the store's socket: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }))
}

async fn answer(mut stream: UnixStream, desk: Desk) {
    let Ok(Ok(request)) =
        tokio::time::timeout(REQUEST_TIMEOUT, read::<Versioned<Request>>(&mut stream)).await
    else {
        return;
    };
    let body = if request.protocol == PROTOCOL {
        carry_out(&stream, request.body, &desk).await
    } else {
        Answer::Failed(format!(
            "it speaks protocol {PROTOCOL}, not {}",
            request.protocol
        ))
    };
    let versioned = Versioned {
        protocol: PROTOCOL,
        body,
    };
    let _gone = write(&mut stream, &versioned).await;
}

async fn carry_out(stream: &UnixStream, request: Request, desk: &Desk) -> Answer {
    match request {
        Request::Append {
            drafts,
            condition,
            asserted,
        } => {
            let peer = match stream.peer_cred() {
                Ok(peer) => peer,
                Err(error) => return Answer::Failed(format!("who asks can't be told: {error}")),
            };
            let actor = identity::actor_of_peer(peer.uid(), peer.pid(), asserted);
            match desk.append(drafts, condition, actor).await {
                Ok(appended) => Answer::Appended(appended),
                Err(Error::Refused(refusal)) => Answer::Refused(refusal),
                Err(error) => Answer::Failed(chain(&error)),
            }
        }
        Request::State => Answer::State(Box::new(desk.state())),
        Request::Records(filter) => match desk.records(&filter) {
            Ok(records) => Answer::Records(records.iter().map(frame).collect()),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::WaitBeyond(seq) => {
            desk.wait_beyond(seq).await;
            Answer::Beyond
        }
    }
}

fn frame(record: &Record) -> Blob {
    let mut bytes = Vec::with_capacity(record.frame_len());
    record.write_frame(&mut bytes);
    Blob(bytes)
}

/// Asks the holder to append. `None` when there is no holder any more: what became of it is then not known, and
/// asking again with the same drafts is safe.
pub(super) async fn append(
    directory: &Path,
    drafts: &[Draft],
    condition: &Condition,
) -> Result<Option<Result<Vec<Appended>, Error>>, Error> {
    let request = Request::Append {
        drafts: drafts.to_vec(),
        condition: condition.clone(),
        asserted: identity::asserted(),
    };
    Ok(match ask(directory, request).await? {
        None => None,
        Some(Answer::Appended(appended)) => Some(Ok(appended)),
        Some(Answer::Refused(refusal)) => Some(Err(refusal.into())),
        Some(other) => Some(Err(unexpected(other))),
    })
}

/// Asks the holder for the state.
pub(super) async fn state(directory: &Path) -> Result<Option<State>, Error> {
    match ask(directory, Request::State).await? {
        None => Ok(None),
        Some(Answer::State(state)) => Ok(Some(*state)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for records.
pub(super) async fn records(
    directory: &Path,
    filter: &Filter,
) -> Result<Option<Vec<Record>>, Error> {
    let frames = match ask(directory, Request::Records(filter.clone())).await? {
        None => return Ok(None),
        Some(Answer::Records(frames)) => frames,
        Some(other) => return Err(unexpected(other)),
    };
    let records = frames.iter().map(|frame| {
        Record::read_frame(&frame.0)
            .map(|(record, _)| record)
            .map_err(|error| Error::Holder(format!("a record that can't be read: {error}")))
    });
    records.collect::<Result<_, _>>().map(Some)
}

/// Waits at the holder until there is a newer event.
pub(super) async fn wait_beyond(directory: &Path, seq: Seq) -> Result<Option<()>, Error> {
    match ask(directory, Request::WaitBeyond(seq)).await? {
        None => Ok(None),
        Some(Answer::Beyond) => Ok(Some(())),
        Some(other) => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Failed(what) => Error::Holder(what),
        Answer::Appended(_)
        | Answer::Refused(_)
        | Answer::State(_)
        | Answer::Records(_)
        | Answer::Beyond => Error::Holder("an answer to another question".to_owned()),
    }
}

/// One question. `None` when nobody listens, or the line ends before the answer.
async fn ask(directory: &Path, body: Request) -> Result<Option<Answer>, Error> {
    let Ok(address) = address(directory) else {
        return Ok(None);
    };
    let Ok(mut stream) = UnixStream::connect(&address.path).await else {
        return Ok(None);
    };
    let request = Versioned {
        protocol: PROTOCOL,
        body,
    };
    if write(&mut stream, &request).await.is_err() {
        return Ok(None);
    }
    match read::<Versioned<Answer>>(&mut stream).await {
        Ok(answer) => Ok(Some(answer.body)),
        Err(ReadError::Line(_)) => Ok(None),
        Err(ReadError::Codec(error)) => Err(Error::Protocol(error)),
    }
}

enum ReadError {
    Line(
        #[expect(
            dead_code,
            reason = "a lost line is answered by asking again, whatever its cause"
        )]
        io::Error,
    ),
    Codec(codec::Error),
}

async fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, ReadError> {
    let len = stream.read_u32_le().await.map_err(ReadError::Line)?;
    if len > FRAME_LEN_MAX {
        return Err(ReadError::Line(io::ErrorKind::InvalidData.into()));
    }
    let mut bytes = vec![0; len as usize];
    stream
        .read_exact(&mut bytes)
        .await
        .map_err(ReadError::Line)?;
    codec::decode(&bytes).map_err(ReadError::Codec)
}

async fn write<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let bytes = codec::encode(message).map_err(io::Error::other)?;
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    if len > FRAME_LEN_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.write_u32_le(len).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}
