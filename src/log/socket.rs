//! The holder's socket: how other processes on this machine read, follow and submit while one holds the store.
//!
//! A connection a request. Both ends begin with the version they speak, in a form that never changes, and neither
//! reads anything of another version. Who is at the other end is what the kernel says; what that end asserts of itself is
//! recorded as asserted.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::actor::ActorClaim;
use tallybook_events::codec;
use tallybook_events::ids::{Blob, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Head, OperationSummary, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::holder::Desk;
use super::retention::{Ask, Failure, Moved};
use super::verify::IndexReport;
use super::{Appended, Condition, Draft, Error, Filter, Refusal, chain};
use crate::identity;

const SOCKET: &str = "socket";
/// Rises when requests or answers change shape.
const PROTOCOL: u16 = 7;
/// What both ends say first, before the version in two bytes, little-endian.
const GREETING: [u8; 4] = *b"TBSK";
const FRAME_LEN_MAX: u32 = 256 * 1024 * 1024;
/// How many requests may be served at once; more wait.
const CONNECTIONS_MAX: usize = 128;
/// How many of them may wait for the next event; the others are told to ask again later.
const FOLLOWERS_MAX: usize = 96;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one frame of an answer may take to be read at the other end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a holder may take for an answer, before it counts as one that hangs (stopped, for example).
const HANG_TIMEOUT: Duration = Duration::from_secs(60);
/// Records are answered in frames of about so many bytes.
const RECORDS_LEN: usize = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
enum Request {
    Append {
        drafts: Vec<Draft>,
        condition: Condition,
        asserted: Vec<ActorClaim>,
    },
    Head,
    State,
    Records(Filter),
    /// Hold the index against the journal, up to an event.
    CheckIndex(Seq),
    /// Overwrite what the erasure is about that this event announced.
    Erase(Seq),
    Faults,
    Summary(OperationId),
    OperationsLike(String),
    WaitBeyond(Seq),
    /// Move segments.
    Retain {
        ask: Ask,
        asserted: Vec<ActorClaim>,
    },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Appended(Vec<Appended>),
    Refused(Refusal),
    Head(Head),
    State(Box<State>),
    Records {
        frames: Vec<Blob>,
        /// Whether another answer follows.
        more: bool,
    },
    IndexChecked(IndexReport),
    Erased(Option<u64>),
    Faults(Vec<String>),
    Summary(Option<Box<OperationSummary>>),
    OperationsLike(BTreeSet<OperationId>),
    Beyond,
    Retained(Result<Vec<Moved>, Failure>),
    NotWritten {
        what: String,
        disk_full: bool,
        in_doubt: bool,
    },
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
    std::fs::set_permissions(
        directory.join(SOCKET),
        std::fs::Permissions::from_mode(0o600),
    )?;
    Ok(tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        let mut newest = desk.newest();
        loop {
            tokio::select! {
                // The writer is gone: who asks has to find the next holder.
                changed = newest.changed() => if changed.is_err() { break },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = listener.accept(), if tasks.len() < CONNECTIONS_MAX => match accepted {
                    // Whoever came before the socket's mode was set.
                    Ok((stream, _)) if !may_ask(&stream) => drop(stream),
                    Ok((stream, _)) => drop(tasks.spawn(answer(stream, desk.clone(), Arc::clone(&followers)))),
                    Err(error) => {
                        tracing::warn!("the store's socket: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(listener);
        // Who asked before is told how that ended.
        while tasks.join_next().await.is_some() {}
    }))
}

/// Whether it is the store's owner who asks, or root.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn answer(mut stream: UnixStream, desk: Desk, followers: Arc<Semaphore>) {
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, async {
        write(&mut stream, &greeting()).await?;
        match read_greeting(&mut stream).await? {
            PROTOCOL => read::<Request>(&mut stream).await,
            // The other end knows by now, and has to say so.
            _ => Err(ReadError::Line(io::ErrorKind::Unsupported.into())),
        }
    });
    let Ok(Ok(request)) = asked.await else {
        return;
    };
    let body = match request {
        Request::Append {
            drafts,
            condition,
            asserted,
        } => append_for(&stream, &desk, drafts, condition, asserted).await,
        Request::Head => Answer::Head(desk.head()),
        Request::State => Answer::State(Box::new(desk.state())),
        Request::Records(filter) => match desk.records(&filter).await {
            Ok(records) => {
                drop(desk);
                let _gone = send_records(&mut stream, &records).await;
                return;
            }
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::CheckIndex(to) => match desk.check_index(to).await {
            Ok(report) => Answer::IndexChecked(report),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::Erase(announced) => match desk.erase(announced).await {
            Ok(payloads) => Answer::Erased(payloads),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::Faults => match desk.faults().await {
            Ok(faults) => Answer::Faults(faults),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::Summary(id) => match desk.summary(id).await {
            Ok(known) => Answer::Summary(known.map(Box::new)),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::OperationsLike(start) => match desk.operations_like(start).await {
            Ok(found) => Answer::OperationsLike(found),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Request::Retain { ask, asserted } => retain_for(&stream, &desk, ask, asserted).await,
        Request::WaitBeyond(seq) => {
            let mut newest = desk.newest();
            // A waiting connection must not keep the writer alive.
            drop(desk);
            let Ok(_place) = followers.try_acquire() else {
                let many = format!(
                    "{FOLLOWERS_MAX} others already wait for the next event; try again later"
                );
                let _gone = send(&mut stream, Answer::Failed(many)).await;
                return;
            };
            let mut end = [0; 1];
            tokio::select! {
                newer = newest.wait_for(|newest| *newest > seq) => match newer {
                    Ok(_) => Answer::Beyond,
                    // The writer is gone: so is this holder.
                    Err(_) => return,
                },
                // Whoever asked is gone: nobody else writes on this line.
                _gone = stream.read(&mut end) => return,
            }
        }
    };
    let _gone = send(&mut stream, body).await;
}

async fn append_for(
    stream: &UnixStream,
    desk: &Desk,
    drafts: Vec<Draft>,
    condition: Condition,
    asserted: Vec<ActorClaim>,
) -> Answer {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => return Answer::Failed(format!("who asks can't be told: {error}")),
    };
    let actor = Arc::new(identity::actor_of_peer(peer.uid(), asserted));
    match desk.append(drafts, condition, actor).await {
        Ok(appended) => Answer::Appended(appended),
        Err(error) => not_appended(error),
    }
}

/// Moves segments for somebody else.
async fn retain_for(
    stream: &UnixStream,
    desk: &Desk,
    ask: Ask,
    asserted: Vec<ActorClaim>,
) -> Answer {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => return Answer::Failed(format!("who asks can't be told: {error}")),
    };
    let actor = Arc::new(identity::actor_of_peer(peer.uid(), asserted));
    match desk.retain(ask, actor).await {
        Ok(moved) => Answer::Retained(Ok(moved)),
        Err(Error::Retention(failure)) => Answer::Retained(Err(failure)),
        Err(error) => not_appended(error),
    }
}

fn not_appended(error: Error) -> Answer {
    match error {
        Error::Refused(refusal) => Answer::Refused(refusal),
        error @ (Error::Journal(_) | Error::NotWritten { .. } | Error::NoReserve { .. }) => {
            Answer::NotWritten {
                disk_full: error.is_disk_full(),
                in_doubt: error.is_in_doubt(),
                what: match error {
                    Error::NotWritten { what, .. } => what,
                    Error::Journal(error) => chain(&error),
                    other => chain(&other),
                },
            }
        }
        error => Answer::Failed(chain(&error)),
    }
}

/// The other end is gone, or did not read an answer in time: part of it may be on the line, so nothing may follow.
struct Gone;

/// Sends an answer. Whoever does not read it in time is gone.
async fn send(stream: &mut UnixStream, answer: Answer) -> Result<(), Gone> {
    let bytes = encode(&answer)
        .or_else(|_| encode(&Answer::Failed("the answer is too large".to_owned())))
        .map_err(|_| Gone)?;
    match tokio::time::timeout(ANSWER_TIMEOUT, write(stream, &bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

/// Sends records, in as many answers as they need, as long as they are read.
async fn send_records(stream: &mut UnixStream, records: &[Record]) -> Result<(), Gone> {
    let mut frames = Vec::new();
    let mut len = 0;
    for record in records {
        if len >= RECORDS_LEN {
            let frames = std::mem::take(&mut frames);
            send(stream, Answer::Records { frames, more: true }).await?;
            len = 0;
        }
        len += record.frame_len();
        frames.push(frame(record));
    }
    let more = false;
    send(stream, Answer::Records { frames, more }).await
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
        asserted: identity::asserted_to_holder(),
    };
    let Some(mut line) = Line::open(directory, request).await? else {
        return Ok(None);
    };
    let answer = match line.answer(directory, Some(HANG_TIMEOUT)).await {
        // It has the request, and may get to it yet.
        Err(Error::NoHolder(_)) => {
            return Ok(Some(Err(Error::NotWritten {
                what: "the process that holds the store does not answer".to_owned(),
                disk_full: false,
                in_doubt: true,
            })));
        }
        answer => answer?,
    };
    Ok(match answer {
        None => None,
        Some(Answer::Appended(appended)) => Some(Ok(appended)),
        Some(Answer::Refused(refusal)) => Some(Err(refusal.into())),
        Some(Answer::NotWritten {
            what,
            disk_full,
            in_doubt,
        }) => Some(Err(Error::NotWritten {
            what,
            disk_full,
            in_doubt,
        })),
        Some(other) => Some(Err(unexpected(other))),
    })
}

/// Asks the holder where the log ends.
pub(super) async fn head(directory: &Path) -> Result<Option<Head>, Error> {
    match ask(directory, Request::Head, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Head(head)) => Ok(Some(head)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for the state.
pub(super) async fn state(directory: &Path) -> Result<Option<State>, Error> {
    match ask(directory, Request::State, Some(HANG_TIMEOUT)).await? {
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
    let Some(mut line) = Line::open(directory, Request::Records(filter.clone())).await? else {
        return Ok(None);
    };
    let mut records = Vec::new();
    loop {
        let (frames, more) = match line.answer(directory, Some(HANG_TIMEOUT)).await? {
            None => return Ok(None),
            Some(Answer::Records { frames, more }) => (frames, more),
            Some(other) => return Err(unexpected(other)),
        };
        for frame in frames {
            let (record, _) = Record::read_frame(&frame.0)
                .map_err(|error| Error::Holder(format!("a record that can't be read: {error}")))?;
            records.push(record);
        }
        if !more {
            return Ok(Some(records));
        }
    }
}

/// Has the holder hold its index against the journal. That takes as long as it takes.
pub(super) async fn check_index(directory: &Path, to: Seq) -> Result<Option<IndexReport>, Error> {
    match ask(directory, Request::CheckIndex(to), None).await? {
        None => Ok(None),
        Some(Answer::IndexChecked(report)) => Ok(Some(report)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Has the holder overwrite what the erasure is about that this event announced.
pub(super) async fn erase(directory: &Path, announced: Seq) -> Result<Option<Option<u64>>, Error> {
    match ask(directory, Request::Erase(announced), None).await? {
        None => Ok(None),
        Some(Answer::Erased(payloads)) => Ok(Some(payloads)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for the operations whose short ids begin so.
pub(super) async fn operations_like(
    directory: &Path,
    start: &str,
) -> Result<Option<BTreeSet<OperationId>>, Error> {
    let request = Request::OperationsLike(start.to_owned());
    match ask(directory, request, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::OperationsLike(found)) => Ok(Some(found)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder what is wrong with its databases.
pub(super) async fn faults(directory: &Path) -> Result<Option<Vec<String>>, Error> {
    match ask(directory, Request::Faults, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Faults(faults)) => Ok(Some(faults)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder how an operation stands.
pub(super) async fn summary(
    directory: &Path,
    id: OperationId,
) -> Result<Option<Option<OperationSummary>>, Error> {
    match ask(directory, Request::Summary(id), Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Summary(known)) => Ok(Some(known.map(|known| *known))),
        Some(other) => Err(unexpected(other)),
    }
}

/// Has the holder move segments. That takes as long as it takes.
pub(super) async fn retain(
    directory: &Path,
    ask_for: &Ask,
) -> Result<Option<Result<Vec<Moved>, Error>>, Error> {
    let request = Request::Retain {
        ask: ask_for.clone(),
        asserted: identity::asserted_to_holder(),
    };
    Ok(match ask(directory, request, None).await? {
        None => None,
        Some(Answer::Retained(moved)) => Some(moved.map_err(Error::from)),
        Some(Answer::NotWritten {
            what,
            disk_full,
            in_doubt,
        }) => Some(Err(Error::NotWritten {
            what,
            disk_full,
            in_doubt,
        })),
        Some(other) => Some(Err(unexpected(other))),
    })
}

/// Waits at the holder until there is a newer event.
pub(super) async fn wait_beyond(directory: &Path, seq: Seq) -> Result<Option<()>, Error> {
    match ask(directory, Request::WaitBeyond(seq), None).await? {
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
        | Answer::Head(_)
        | Answer::State(_)
        | Answer::Records { .. }
        | Answer::IndexChecked(_)
        | Answer::Erased(_)
        | Answer::Faults(_)
        | Answer::Summary(_)
        | Answer::OperationsLike(_)
        | Answer::Retained(_)
        | Answer::NotWritten { .. }
        | Answer::Beyond => Error::Holder("an answer to another question".to_owned()),
    }
}

/// One question. `None` when nobody listens, or the line ends before the answer.
async fn ask(
    directory: &Path,
    body: Request,
    timeout: Option<Duration>,
) -> Result<Option<Answer>, Error> {
    match Line::open(directory, body).await? {
        Some(mut line) => line.answer(directory, timeout).await,
        None => Ok(None),
    }
}

/// A connection on which a question was asked.
struct Line(UnixStream);

impl Line {
    /// Asks. `None` when nobody listens.
    async fn open(directory: &Path, request: Request) -> Result<Option<Self>, Error> {
        let request = encode(&request)?;
        let Ok(address) = address(directory) else {
            return Ok(None);
        };
        let Ok(mut stream) = UnixStream::connect(&address.path).await else {
            return Ok(None);
        };
        let ask = async {
            write(&mut stream, &greeting()).await?;
            let theirs = read_greeting(&mut stream).await?;
            if theirs == PROTOCOL {
                write(&mut stream, &request).await?;
            }
            Ok::<u16, ReadError>(theirs)
        };
        match tokio::time::timeout(HANG_TIMEOUT, ask).await {
            Ok(Ok(PROTOCOL)) => Ok(Some(Line(stream))),
            Ok(Ok(theirs)) => Err(Error::OtherProtocol {
                ours: PROTOCOL,
                theirs,
            }),
            Ok(Err(ReadError::Strange)) => Err(Error::Holder("no greeting".to_owned())),
            Ok(Err(ReadError::Line(_) | ReadError::Codec(_))) => Ok(None),
            Err(_) => Err(Error::NoHolder(directory.to_owned())),
        }
    }

    /// The next answer. `None` when the line ends before it.
    async fn answer(
        &mut self,
        directory: &Path,
        timeout: Option<Duration>,
    ) -> Result<Option<Answer>, Error> {
        let read = read::<Answer>(&mut self.0);
        let answer = match timeout {
            None => read.await,
            Some(timeout) => match tokio::time::timeout(timeout, read).await {
                Ok(answer) => answer,
                Err(_) => return Err(Error::NoHolder(directory.to_owned())),
            },
        };
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(ReadError::Line(_) | ReadError::Strange) => Ok(None),
            Err(ReadError::Codec(error)) => Err(Error::Protocol(error)),
        }
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
    /// Something else than a greeting.
    Strange,
    Codec(codec::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Line(error)
    }
}

fn greeting() -> [u8; 6] {
    let [low, high] = PROTOCOL.to_le_bytes();
    let [a, b, c, d] = GREETING;
    [a, b, c, d, low, high]
}

/// The version that the other end speaks.
async fn read_greeting(stream: &mut UnixStream) -> Result<u16, ReadError> {
    let mut said = [0; 6];
    stream.read_exact(&mut said).await?;
    match said.split_first_chunk() {
        Some((&GREETING, &[low, high])) => Ok(u16::from_le_bytes([low, high])),
        _ => Err(ReadError::Strange),
    }
}

async fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, ReadError> {
    let len = stream.read_u32_le().await.map_err(ReadError::Line)?;
    if len > FRAME_LEN_MAX {
        return Err(ReadError::Line(io::ErrorKind::InvalidData.into()));
    }
    // As it comes: a length that is only claimed takes no memory.
    let mut bytes = Vec::new();
    let mut body = stream.take(u64::from(len));
    body.read_to_end(&mut bytes)
        .await
        .map_err(ReadError::Line)?;
    if bytes.len() < len as usize {
        return Err(ReadError::Line(io::ErrorKind::UnexpectedEof.into()));
    }
    codec::decode(&bytes).map_err(ReadError::Codec)
}

/// A message with its length before it.
fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let body = codec::encode(message).map_err(Error::Protocol)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|len| *len <= FRAME_LEN_MAX)
        .ok_or(Error::TooLarge(body.len()))?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

async fn write(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// For the fuzz targets: a request, or an answer, that is decoded and encoded again.
pub(super) fn reread(bytes: &[u8], is_request: bool) -> Option<Vec<u8>> {
    match is_request {
        true => codec::encode(&codec::decode::<Request>(bytes).ok()?).ok(),
        false => codec::encode(&codec::decode::<Answer>(bytes).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_follows_an_answer_that_was_not_read() {
        let (mut stream, other) = UnixStream::pair().unwrap();
        assert!(send_records(&mut stream, &[]).await.is_ok());
        drop(other);
        assert!(send_records(&mut stream, &[]).await.is_err());
    }
}
