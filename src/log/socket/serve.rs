//! The answering end: what may be asked on each socket, and by whom.
//!
//! It waits for nobody who does not read, and keeps no line to whom it has nothing to say.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tallybook_events::actor::ActorClaim;
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::Record;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::holder::Desk;
use super::super::retention::Ask;
use super::super::{Condition, Draft, Error, Filter, Limit, chain};
use super::wire::{FRAME_LEN_MAX, ReadError, encode, greeting, read_greeting, read_within, write};
use super::{Address, Answer, PROTOCOL, RECORDS_LEN, Request, Right, SOCKET};
use crate::identity::{self, Peer};

/// How many requests may be served at once on a socket; more wait.
const CONNECTIONS_MAX: usize = 128;
/// How many of them may wait for the next event; the others are told to ask again later.
const FOLLOWERS_MAX: usize = 96;
/// The longest request of those who may only read.
const QUESTION_LEN_MAX: u32 = 64 * 1024;
/// How many records are read at once for an answer: a log is never in memory as a whole for one.
const PAGE_LEN: usize = 4096;
/// How many of the newest records may be asked for: they are read together.
const NEWEST_MAX: usize = 65_536;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one frame of an answer may take to be read at the other end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Who asks for the daemon, and what they may.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Who it is.
    pub peer: Peer,
    /// What may be asked on that socket.
    pub right: Right,
}

/// Takes the rest of a line on which somebody asks for the daemon. Must not block.
pub type Attendant = Arc<dyn Fn(UnixStream, Caller) + Send + Sync>;

/// Listens in the store. Its lock is held, so a socket that is already there is a dead one.
pub(in crate::log) fn listen(directory: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let address = Address::of(directory, SOCKET)?;
    let listener = UnixListener::bind(&address.path)?;
    std::fs::set_permissions(
        directory.join(SOCKET),
        std::fs::Permissions::from_mode(0o600),
    )?;
    Ok(listener)
}

/// Answers on a socket what may be asked there. Each socket has its own limits: who fills one stands in the way of no other.
pub(in crate::log) fn serve(
    listener: UnixListener,
    right: Right,
    desk: Desk,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
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
                    Ok((stream, _)) if right == Right::Own && !may_ask(&stream) => drop(stream),
                    Ok((stream, _)) => {
                        tasks.spawn(answer(stream, right, desk.clone(), Arc::clone(&followers)));
                    }
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
    })
}

/// Whether it is the store's owner who asks, or root.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn answer(mut stream: UnixStream, right: Right, desk: Desk, followers: Arc<Semaphore>) {
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, async {
        write(&mut stream, &greeting()).await?;
        match read_greeting(&mut stream).await? {
            PROTOCOL => read_within::<Request>(&mut stream, len_max(right)).await,
            // The other end knows by now, and has to say so.
            _ => Err(ReadError::Line(io::ErrorKind::Unsupported.into())),
        }
    });
    let Ok(Ok(request)) = asked.await else {
        return;
    };
    if let Some(what) = forbidden(&request, right) {
        let _gone = send(&mut stream, Answer::Forbidden(what)).await;
        return;
    }
    let body = match request {
        Request::Append {
            drafts,
            condition,
            asserted,
        } => append_for(&stream, &desk, drafts, condition, asserted).await,
        Request::Head => Answer::Head(desk.head()),
        Request::State => Answer::State(Box::new(desk.state())),
        Request::Records(filter) => {
            let _gone = answer_records(&mut stream, &desk, filter).await;
            return;
        }
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
        Request::Daemon => {
            let (attendant, caller) = (desk.attendant(), caller(&stream));
            drop(desk);
            match (attendant, caller) {
                (Some(attendant), Ok(caller)) => {
                    if send(&mut stream, Answer::Daemon).await.is_ok() {
                        attendant(stream, Caller { right, ..caller });
                    }
                    return;
                }
                (None, _) => Answer::NoDaemon,
                (Some(_), Err(error)) => Answer::Failed(unknown(&error)),
            }
        }
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

/// Answers with the records that a filter takes, as they were when it was asked: so many are read at once, and no more
/// before these are sent.
async fn answer_records(stream: &mut UnixStream, desk: &Desk, filter: Filter) -> Result<(), Gone> {
    let mut left = match filter.limit {
        None => usize::MAX,
        Some(Limit::Oldest(most)) => most,
        Some(Limit::Newest(most)) if most <= NEWEST_MAX => {
            return match desk.records(&filter).await {
                Ok(records) => send_records(stream, &records, false).await,
                Err(error) => send(stream, Answer::Failed(chain(&error))).await,
            };
        }
        Some(Limit::Newest(_)) => {
            let many = format!("the newest {NEWEST_MAX} events can be asked for at once, not more");
            return send(stream, Answer::Failed(many)).await;
        }
    };
    let newest = desk.head().seq;
    let mut page = Filter {
        to: Some(filter.to.map_or(newest, |to| to.min(newest))),
        ..filter
    };
    loop {
        let wanted = left.min(PAGE_LEN);
        page.limit = Some(Limit::Oldest(wanted));
        let records = match desk.records(&page).await {
            Ok(records) => records,
            Err(error) => return send(stream, Answer::Failed(chain(&error))).await,
        };
        left -= records.len().min(left);
        let last = records.last().map(|record| record.header.seq);
        let more = last.filter(|_| records.len() >= wanted && left > 0);
        send_records(stream, &records, more.is_some()).await?;
        match more {
            Some(last) => page.from = Some(Seq(last.0 + 1)),
            None => return Ok(()),
        }
    }
}

/// How long a request may be: who only asks has nothing long to say, and shall not fill the memory.
const fn len_max(right: Right) -> u32 {
    match right {
        Right::Read => QUESTION_LEN_MAX,
        Right::Act | Right::Own => FRAME_LEN_MAX,
    }
}

/// Why this may not be asked there, if so.
fn forbidden(request: &Request, right: Right) -> Option<String> {
    let (needed, what) = match request {
        Request::Head
        | Request::State
        | Request::Records(_)
        | Request::Faults
        | Request::Summary(_)
        | Request::OperationsLike(_)
        | Request::WaitBeyond(_)
        // The daemon looks at the right itself.
        | Request::Daemon => (Right::Read, "read the log"),
        Request::Append { .. } => (Right::Act, "append to the log"),
        Request::Erase(_) => (Right::Act, "erase anything"),
        // About the store's files: it reads all of them.
        Request::CheckIndex(_) => (Right::Own, "check the index"),
        // It says where to: that is a path, and the holder may be root.
        Request::Retain { .. } => (Right::Own, "move segments"),
    };
    (right < needed).then(|| match needed {
        Right::Read | Right::Act => format!("you may read here, but not {what}"),
        Right::Own => format!("only the owner of the store may {what}"),
    })
}

/// Whoever is at the other end, as the kernel has it since the connection was made.
fn caller(stream: &UnixStream) -> io::Result<Caller> {
    let found = stream.peer_cred()?;
    let peer = Peer {
        uid: found.uid(),
        gid: found.gid(),
        pid: found.pid(),
    };
    Ok(Caller {
        peer,
        right: Right::Read,
    })
}

fn unknown(error: &io::Error) -> String {
    format!("who asks can't be told: {error}")
}

async fn append_for(
    stream: &UnixStream,
    desk: &Desk,
    drafts: Vec<Draft>,
    condition: Condition,
    asserted: Vec<ActorClaim>,
) -> Answer {
    let actor = match caller(stream) {
        Ok(caller) => Arc::new(identity::actor_of_peer(caller.peer, asserted)),
        Err(error) => return Answer::Failed(unknown(&error)),
    };
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
    let actor = match caller(stream) {
        Ok(caller) => Arc::new(identity::actor_of_peer(caller.peer, asserted)),
        Err(error) => return Answer::Failed(unknown(&error)),
    };
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
/// Sends records; `follows` says whether others come behind them.
async fn send_records(
    stream: &mut UnixStream,
    records: &[Record],
    follows: bool,
) -> Result<(), Gone> {
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
    let more = follows;
    send(stream, Answer::Records { frames, more }).await
}

fn frame(record: &Record) -> Blob {
    let mut bytes = Vec::with_capacity(record.frame_len());
    record.write_frame(&mut bytes);
    Blob(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_follows_an_answer_that_was_not_read() {
        let (mut stream, other) = UnixStream::pair().unwrap();
        assert!(send_records(&mut stream, &[], false).await.is_ok());
        drop(other);
        assert!(send_records(&mut stream, &[], false).await.is_err());
    }
}
