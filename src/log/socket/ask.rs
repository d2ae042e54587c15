//! The asking end: each question on a connection of its own.
//!
//! That nobody answers is no error here: whoever asks finds the next holder.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Head, OperationSummary, State};
use tokio::net::UnixStream;

use super::super::retention::{Ask, Moved};
use super::super::verify::IndexReport;
use super::super::{Appended, Condition, Draft, Error, Filter};
use super::wire::{ReadError, encode, greeting, read, read_greeting, write};
use super::{Answer, HANG_TIMEOUT, PROTOCOL, Place, Request};
use crate::identity;

/// Asks the holder to append. `None` when there is no holder any more: what became of it is then not known, and
/// asking again with the same drafts is safe.
pub(in crate::log) async fn append(
    place: &Place,
    drafts: &[Draft],
    condition: &Condition,
) -> Result<Option<Result<Vec<Appended>, Error>>, Error> {
    let request = Request::Append {
        drafts: drafts.to_vec(),
        condition: condition.clone(),
        asserted: identity::asserted_to_holder(),
    };
    let Some(mut line) = Line::open(place, request).await? else {
        return Ok(None);
    };
    let answer = match line.answer(place, Some(HANG_TIMEOUT)).await {
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
pub(in crate::log) async fn head(place: &Place) -> Result<Option<Head>, Error> {
    match ask(place, Request::Head, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Head(head)) => Ok(Some(head)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for the state.
pub(in crate::log) async fn state(place: &Place) -> Result<Option<State>, Error> {
    match ask(place, Request::State, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::State(state)) => Ok(Some(*state)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for records.
pub(in crate::log) async fn records(
    place: &Place,
    filter: &Filter,
) -> Result<Option<Vec<Record>>, Error> {
    let Some(mut line) = Line::open(place, Request::Records(filter.clone())).await? else {
        return Ok(None);
    };
    let mut records = Vec::new();
    loop {
        let (frames, more) = match line.answer(place, Some(HANG_TIMEOUT)).await? {
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
pub(in crate::log) async fn check_index(
    place: &Place,
    to: Seq,
) -> Result<Option<IndexReport>, Error> {
    match ask(place, Request::CheckIndex(to), None).await? {
        None => Ok(None),
        Some(Answer::IndexChecked(report)) => Ok(Some(report)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Has the holder overwrite what the erasure is about that this event announced.
pub(in crate::log) async fn erase(
    place: &Place,
    announced: Seq,
) -> Result<Option<Option<u64>>, Error> {
    match ask(place, Request::Erase(announced), None).await? {
        None => Ok(None),
        Some(Answer::Erased(payloads)) => Ok(Some(payloads)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder for the operations whose short ids begin so.
pub(in crate::log) async fn operations_like(
    place: &Place,
    start: &str,
) -> Result<Option<BTreeSet<OperationId>>, Error> {
    let request = Request::OperationsLike(start.to_owned());
    match ask(place, request, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::OperationsLike(found)) => Ok(Some(found)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder what is wrong with its databases.
pub(in crate::log) async fn faults(place: &Place) -> Result<Option<Vec<String>>, Error> {
    match ask(place, Request::Faults, Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Faults(faults)) => Ok(Some(faults)),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks the holder how an operation stands.
pub(in crate::log) async fn summary(
    place: &Place,
    id: OperationId,
) -> Result<Option<Option<OperationSummary>>, Error> {
    match ask(place, Request::Summary(id), Some(HANG_TIMEOUT)).await? {
        None => Ok(None),
        Some(Answer::Summary(known)) => Ok(Some(known.map(|known| *known))),
        Some(other) => Err(unexpected(other)),
    }
}

/// Has the holder move segments. That takes as long as it takes.
pub(in crate::log) async fn retain(
    place: &Place,
    ask_for: &Ask,
) -> Result<Option<Result<Vec<Moved>, Error>>, Error> {
    let request = Request::Retain {
        ask: ask_for.clone(),
        asserted: identity::asserted_to_holder(),
    };
    Ok(match ask(place, request, None).await? {
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
pub(in crate::log) async fn wait_beyond(place: &Place, seq: Seq) -> Result<Option<()>, Error> {
    match ask(place, Request::WaitBeyond(seq), None).await? {
        None => Ok(None),
        Some(Answer::Beyond) => Ok(Some(())),
        Some(other) => Err(unexpected(other)),
    }
}

/// Asks for the daemon. What follows on the line is between it and whoever asks; `None` when whoever holds the store is none.
pub(in crate::log) async fn daemon(place: &Place) -> Result<Option<UnixStream>, Error> {
    let Some(mut line) = Line::open(place, Request::Daemon).await? else {
        return Ok(None);
    };
    match line.answer(place, Some(HANG_TIMEOUT)).await? {
        Some(Answer::Daemon) => Ok(Some(line.0)),
        None | Some(Answer::NoDaemon) => Ok(None),
        Some(other) => Err(unexpected(other)),
    }
}

/// What is said of a socket that is not for whoever asks.
pub(in crate::log) fn closed(path: &Path) -> String {
    format!("the daemon's socket {} is closed to you", path.display())
}

fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Failed(what) => Error::Holder(what),
        Answer::Forbidden(what) => Error::Forbidden(what),
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
        | Answer::Daemon
        | Answer::NoDaemon
        | Answer::Beyond => Error::Holder("an answer to another question".to_owned()),
    }
}

/// One question. `None` when nobody listens, or the line ends before the answer.
async fn ask(
    place: &Place,
    body: Request,
    timeout: Option<Duration>,
) -> Result<Option<Answer>, Error> {
    match Line::open(place, body).await? {
        Some(mut line) => line.answer(place, timeout).await,
        None => Ok(None),
    }
}

/// A connection on which a question was asked.
struct Line(UnixStream);

impl Line {
    /// Asks. `None` when nobody listens.
    async fn open(place: &Place, request: Request) -> Result<Option<Self>, Error> {
        let request = encode(&request)?;
        let Ok(address) = place.address() else {
            return Ok(None);
        };
        let mut stream = match (UnixStream::connect(&address.path).await, place) {
            (Ok(stream), _) => stream,
            (Err(error), Place::Socket(path))
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(Error::Forbidden(closed(path)));
            }
            (Err(_), Place::Socket(_) | Place::Store(_)) => return Ok(None),
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
            Err(_) => Err(Error::NoHolder(place.path().to_owned())),
        }
    }

    /// The next answer. `None` when the line ends before it.
    async fn answer(
        &mut self,
        place: &Place,
        timeout: Option<Duration>,
    ) -> Result<Option<Answer>, Error> {
        let read = read::<Answer>(&mut self.0);
        let answer = match timeout {
            None => read.await,
            Some(timeout) => match tokio::time::timeout(timeout, read).await {
                Ok(answer) => answer,
                Err(_) => return Err(Error::NoHolder(place.path().to_owned())),
            },
        };
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(ReadError::Line(_) | ReadError::Strange) => Ok(None),
            Err(ReadError::Codec(error)) => Err(Error::Protocol(error)),
        }
    }
}
