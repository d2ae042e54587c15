//! The fence: the newest event of a log that this host was shown, kept so that an older line of history can't act.
//!
//! `receipts/LOG/fence` is magic `TBF2`, the BLAKE3 hash of the rest, and the rest: a named MessagePack map. It is
//! replaced whole and synced before whoever showed the newer event acts. A fence file that can't be read refuses
//! everything: without it nobody could say what was seen.
//!
//! Who acts shows the header of the newest event that its log has. A higher epoch is let in: a recovery began it.
//! Within an epoch the log must have the event that this host was shown last, which is shown by that event's header: its
//! hash alone was told by this host. A log that was restored from an older copy, or that went another way since, lacks it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::header::{self, HeaderView};
use tallybook_events::ids::{Epoch, LogId};
use tallybook_events::record::header_hash;
use tallybook_events::step::Mark;

use crate::durable;
use crate::layout::Layout;
use crate::lock;
use crate::protocol::Shown;

mod claims;

const MAGIC: [u8; 4] = *b"TBF2";
const HASH_LEN: usize = 32;
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A fence that refuses, or that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A newer line of history was seen.
    #[error(
        "this host was shown event {} of epoch {} of log {log}; this controller's log {}",
        seen.seq,
        seen.epoch,
        lacks(seen, shown)
    )]
    Older {
        /// The log.
        log: LogId,
        /// What was seen.
        seen: Mark,
        /// What is shown.
        shown: Mark,
    },
    /// What is shown is no event of the log.
    #[error("what this controller shows of log {log} is no event of it")]
    Foreign {
        /// The log.
        log: LogId,
        /// Why not, where it is no header at all.
        source: Option<header::Error>,
    },
    /// The file is not one.
    #[error("the fence file {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("can't read the fence file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file could not be kept.
    #[error("can't keep the fence file")]
    Keep(#[from] durable::Error),
    /// What it holds has no encoding.
    #[error("the fence can't be encoded")]
    Codec(#[from] codec::Error),
    /// Another agent has it.
    #[error("can't lock the fence file")]
    Lock(#[from] lock::Error),
}

fn lacks(seen: &Mark, shown: &Mark) -> String {
    match shown.epoch < seen.epoch {
        true => format!("is in epoch {}", shown.epoch),
        false => "does not have that event".to_owned(),
    }
}

/// What was seen of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The log.
    pub log: LogId,
    /// The newest of its events that was shown here.
    pub mark: Mark,
}

/// What a controller shows of its log.
#[derive(Debug, Clone)]
pub struct Standing {
    log: LogId,
    newest: Mark,
    /// What its log was shown to have.
    proven: Option<Mark>,
}

/// Whether who stands before the fence may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may, and what it showed is kept.
    Passed,
    /// Only once it showed that its log has this event.
    Unproven(Mark),
}

impl Standing {
    /// Reads what is shown.
    ///
    /// # Errors
    /// When it is not of this log.
    pub fn of(log: LogId, shown: &Shown) -> Result<Self, Error> {
        let mut standing = Standing {
            log,
            newest: mark(log, &shown.newest.0)?,
            proven: None,
        };
        if let Some(proof) = &shown.proof {
            standing.prove(&proof.0)?;
        }
        Ok(standing)
    }

    /// Takes the header of an event that the log has.
    ///
    /// # Errors
    /// When it is not of this log.
    pub fn prove(&mut self, header: &[u8]) -> Result<(), Error> {
        self.proven = Some(mark(self.log, header)?);
        Ok(())
    }

    /// The epoch under which it acts.
    pub const fn epoch(&self) -> Epoch {
        self.newest.epoch
    }

    /// That an event was asked for and not shown.
    pub const fn refused(&self, seen: Mark) -> Error {
        Error::Older {
            log: self.log,
            seen,
            shown: self.newest,
        }
    }

    /// Passes the fence; makes durable what is newer than what was seen.
    ///
    /// # Errors
    /// When the file can't be read or kept.
    pub fn pass(&self, layout: &Layout) -> Result<Verdict, Error> {
        let _lock = lock::resource(layout, "fence", LOCK_WAIT)?;
        let path = path(layout, self.log);
        let newest = self.newest;
        if let Some(Seen { mark: seen, .. }) = read(&path, self.log)? {
            // The hash is of a header that says position and epoch.
            let shows = |it: Mark| it.hash == seen.hash;
            let is_had =
                shows(newest) || self.proven.is_some_and(shows) || newest.epoch > seen.epoch;
            if !is_had {
                return Ok(Verdict::Unproven(seen));
            }
            if (newest.epoch, newest.seq) <= (seen.epoch, seen.seq) {
                return Ok(Verdict::Passed);
            }
        }
        let body = codec::encode(&Seen {
            log: self.log,
            mark: newest,
        })?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        bytes.extend_from_slice(&body);
        durable::create_dirs(&layout.receipts(self.log))?;
        durable::write(&path, 0o600, &bytes)?;
        Ok(Verdict::Passed)
    }
}

/// The event that a header is of.
fn mark(log: LogId, bytes: &[u8]) -> Result<Mark, Error> {
    let foreign = |source| Error::Foreign { log, source };
    let header = HeaderView::decode(bytes).map_err(|error| foreign(Some(error)))?;
    if header.log != log {
        return Err(foreign(None));
    }
    Ok(Mark {
        epoch: header.epoch,
        seq: header.seq,
        hash: header_hash(bytes),
    })
}

/// Where the fence of a log is.
pub fn path(layout: &Layout, log: LogId) -> PathBuf {
    layout.receipts(log).join("fence")
}

/// What was seen of a log; `None` where nothing was.
///
/// # Errors
/// When the file is there and can't be read.
pub fn read(path: &Path, log: LogId) -> Result<Option<Seen>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let whole = || {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (hash, body) = rest.split_first_chunk::<HASH_LEN>()?;
        let seen: Seen = match (hash == blake3::hash(body).as_bytes(), *magic) {
            (true, MAGIC) => codec::decode(body).ok()?,
            (true, claims::MAGIC) => claims::seen(body)?,
            _ => return None,
        };
        (seen.log == log).then_some(seen)
    };
    whole().map(Some).ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests;
