//! The holder's sockets: how other processes on this machine read, follow and submit while one holds the store.
//!
//! A connection a request. Both ends begin with the version they speak, in a form that never changes, and neither
//! reads anything of another version. Who is at the other end is what the kernel says; what that end asserts of itself is
//! recorded as asserted. What may be asked is a matter of the socket on which it is asked, never of what is said there.

mod ask;
mod serve;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::actor::ActorClaim;
use tallybook_events::codec;
use tallybook_events::ids::{Blob, OperationId, Seq};
use tallybook_replay::state::{Head, OperationSummary, State};

use super::retention::{Ask, Failure, Moved};
use super::verify::IndexReport;
use super::{Appended, Condition, Draft, Filter, Refusal};

pub(super) use ask::{
    append, check_index, daemon, erase, faults, head, operations_like, records, retain, state,
    summary, wait_beyond,
};
pub use serve::{Attendant, Caller};
pub(super) use serve::{listen, serve};

const SOCKET: &str = "socket";
/// Rises when requests or answers change shape, the daemon's too.
const PROTOCOL: u16 = 7;
/// How long a holder may take for an answer, before it counts as one that hangs (stopped, for example).
const HANG_TIMEOUT: Duration = Duration::from_secs(60);
/// Records are answered in frames of about so many bytes.
const RECORDS_LEN: usize = 4 * 1024 * 1024;

/// What may be asked on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Questions.
    Read,
    /// Questions, appends, and what they make erasable; and what the daemon does.
    Act,
    /// All there is: it is the owner's, and root's.
    Own,
}

/// Where a holder is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In its store.
    Store(PathBuf),
    /// At a socket that a daemon serves besides.
    Socket(PathBuf),
}

impl Place {
    /// The store, or the socket, for people.
    pub(super) fn path(&self) -> &Path {
        match self {
            Place::Store(path) | Place::Socket(path) => path,
        }
    }

    fn address(&self) -> io::Result<Address> {
        match self {
            Place::Store(directory) => Address::of(directory, SOCKET),
            Place::Socket(path) => {
                let name = path.file_name().and_then(|name| name.to_str());
                let (Some(directory), Some(name)) = (path.parent(), name) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                Address::of(directory, name)
            }
        }
    }
}

/// A path of a socket that is short enough for the kernel (108 bytes), however deep it is.
struct Address {
    path: PathBuf,
    _directory: std::fs::File,
}

impl Address {
    fn of(directory: &Path, name: &str) -> io::Result<Self> {
        let directory = match directory == Path::new("") {
            true => Path::new("."),
            false => directory,
        };
        let directory = std::fs::File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
        Ok(Address {
            path,
            _directory: directory,
        })
    }
}

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
    /// The rest of the line is for the daemon.
    Daemon,
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
    /// Whoever asks on this socket may not have that done.
    Forbidden(String),
    /// What follows on the line is the daemon's.
    Daemon,
    /// Whoever holds the store is none.
    NoDaemon,
}

/// For the fuzz targets: a request, or an answer, that is decoded and encoded again.
pub(super) fn reread(bytes: &[u8], is_request: bool) -> Option<Vec<u8>> {
    match is_request {
        true => codec::encode(&codec::decode::<Request>(bytes).ok()?).ok(),
        false => codec::encode(&codec::decode::<Answer>(bytes).ok()?).ok(),
    }
}
