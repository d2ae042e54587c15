//! The journal: append-only segment files that carry the log's durability. Everything else is derived from it.
//!
//! It never changes a byte once written, and never acknowledges one before fdatasync said so. It knows records
//! and their chain; it does not know what they mean.

pub mod archive;
pub mod away;
mod candidate;
mod erase;
mod fetch;
mod follow;
mod keep;
mod kept;
mod mend;
mod read;
pub mod recover;
mod scan;
mod source;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::header::{Header, HeaderView};
use tallybook_events::ids::{Epoch, Hash, LogId, Seq};
use tallybook_events::{header, record, segment};

pub use erase::erase;
pub use fetch::Fetch;
pub use follow::Depth;
pub use kept::remove_unfinished;
pub use mend::{Move, Step, Work};
pub use read::{Reader, Tail, holds, link_at, log_of};
pub use scan::{At, Found, Inspect, Progress, scan};
pub use write::{Journal, Torn, settle};

/// What a journal may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A segment is closed once it has this many bytes; the append that reaches it is still written to it.
    pub segment_len: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            segment_len: 64 * 1024 * 1024,
        }
    }
}

/// Where a record begins, or where the next one will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The first seq of the segment, which names its file.
    pub segment: Seq,
    /// The byte in that file.
    pub offset: u64,
}

/// The last record of a stretch of the journal: what the next one must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The log.
    pub log: LogId,
    /// The epoch.
    pub epoch: Epoch,
    /// The position of the last record; 0 before the first.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
    /// How many more events its append has.
    pub more: u16,
    /// The first event of its write.
    pub write: Seq,
}

impl Link {
    /// The link that the record behind this one must carry.
    pub fn of(record: &record::Record) -> Self {
        Link::behind(&record.header, record.hash)
    }

    /// The link that the record behind one with this header must carry.
    pub fn behind(header: &Header, hash: Hash) -> Self {
        Link {
            log: header.log,
            epoch: header.epoch,
            seq: header.seq,
            hash,
            more: header.more,
            write: header.write,
        }
    }

    /// The link behind a record that is read in place.
    pub(crate) const fn of_view(header: &HeaderView<'_>, hash: Hash) -> Self {
        Link {
            log: header.log,
            epoch: header.epoch,
            seq: header.seq,
            hash,
            more: header.more,
            write: header.write,
        }
    }

    /// The end of a write, where nothing else is known of its last event.
    pub fn end(log: LogId, epoch: Epoch, seq: Seq, hash: Hash) -> Self {
        Link {
            log,
            epoch,
            seq,
            hash,
            more: 0,
            write: seq,
        }
    }
}

/// What is wrong at a place of the journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The record's own bytes.
    #[error("the record can't be read")]
    Record(#[from] record::Error),
    /// The record has another position than its place says.
    #[error("event {found} stands where event {expected} must be")]
    Seq {
        /// What must be here.
        expected: Seq,
        /// What is here.
        found: Seq,
    },
    /// The record does not follow the one before it.
    #[error("it does not carry the hash of the event before it")]
    Chain,
    /// The record is of another log, or of an earlier epoch.
    #[error("it belongs to another log or epoch")]
    Foreign,
    /// The record does not go on with the append that the one before it began.
    #[error("it is not the next event of the append that the event before it belongs to")]
    Append,
    /// The record says of its write what can't be.
    #[error("it does not say where the write began that it is part of")]
    Write,
    /// What an archived segment is in.
    #[error("the archived segment: {0}")]
    Archive(String),
    /// What an archived segment is in has a layout that this program does not know.
    #[error("the archived segment has format {0}; this program knows format {known}", known = tallybook_events::archive::FORMAT)]
    ArchiveFormat(u16),
    /// The system does not give its bytes.
    #[error("its segment can't be read: {0}")]
    Unreadable(String),
    /// Zeros stand where a segment that others follow must end.
    #[error("there are zeros where the next record must be, or its segment end")]
    Room,
    /// The segment's head can't be read, or does not fit what is before and behind it.
    #[error("the head of its segment is damaged, or does not fit the events before and behind it")]
    SegmentHead,
    /// The frame has a layout that this program does not know.
    #[error("its frame has format {0}; this program knows format 1")]
    FrameFormat(char),
    /// The segment has a layout that this program does not know.
    #[error("its segment has format {0}; this program knows format {known}", known = segment::FORMAT)]
    SegmentFormat(u16),
}

impl Damage {
    /// Whether it is no damage, but something that a newer program wrote.
    pub const fn is_newer(&self) -> bool {
        matches!(
            self,
            Damage::SegmentFormat(_)
                | Damage::FrameFormat(_)
                | Damage::ArchiveFormat(_)
                | Damage::Record(record::Error::Header(header::Error::Format(_)))
        )
    }
}

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A segment's head can't be read.
    #[error("segment {} can't be read", path.display())]
    Head {
        /// The segment.
        path: PathBuf,
        /// What is wrong with it.
        source: segment::Error,
    },
    /// A record is damaged or out of its chain.
    #[error("the journal is damaged at event {seq} ({} byte {offset}); `tallybook verify` lists all of it", path.display())]
    Damaged {
        /// The first damaged position.
        seq: Seq,
        /// The segment.
        path: PathBuf,
        /// The byte where the record begins.
        offset: u64,
        /// What is wrong with it.
        source: Damage,
    },
    /// An append was written, or a part of it, and the sync behind it failed: it may or may not be on disk.
    #[error("whether the last events are in {} is not known: syncing it failed", path.display())]
    Unsynced {
        /// The segment.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A write or a sync failed before; what is on disk is not known to be whole.
    #[error("the journal stopped after a failed write; start again to recover its tail")]
    Stopped,
    /// A segment is in neither place. It is a matter of the archive in most cases: it is not mounted.
    #[error("event {seq} is in no file: neither {} nor {} is there", path.display(), archived.display())]
    Absent {
        /// The first event that is in no file.
        seq: Seq,
        /// Where it has to be,
        path: PathBuf,
        /// or else.
        archived: PathBuf,
    },
    /// A payload that is to be erased is somewhere where it can't be.
    #[error("the payload of event {seq} is not erased ({}): {what}", path.display())]
    Unreached {
        /// The event.
        seq: Seq,
        /// The file that has it, or has to have it.
        path: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// The log says that segments are in the archive, and it is not there.
    #[error("the archive {} is not there: {what}; mount it first", path.display())]
    Away {
        /// The archive.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Something that a newer program wrote: for this one to judge it would be to destroy it.
    #[error("{} byte {offset} was written by a newer program", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What it is.
        source: Damage,
    },
    /// There is no journal where one was expected.
    #[error("there is no log in {}", .0.display())]
    Missing(PathBuf),
}

impl Error {
    /// Whether it is about something that a newer program wrote.
    pub const fn is_newer(&self) -> bool {
        match self {
            Error::Newer { .. }
            | Error::Head {
                source: segment::Error::Format(_),
                ..
            } => true,
            Error::Damaged { source, .. } => source.is_newer(),
            Error::Head { .. }
            | Error::Io { .. }
            | Error::Unsynced { .. }
            | Error::Stopped
            | Error::Absent { .. }
            | Error::Away { .. }
            | Error::Unreached { .. }
            | Error::Missing(_) => false,
        }
    }

    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } | Error::Unsynced { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

fn absent(directory: &Path, first: Seq) -> Error {
    Error::Absent {
        seq: first,
        path: segment_path(directory, first),
        archived: archive::path(directory, first),
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// The file of the segment that begins with this seq.
pub fn segment_path(directory: &Path, first: Seq) -> PathBuf {
    directory.join(format!("{:020}.seg", first.0))
}

/// The first seqs of all segments, in order, wherever they are.
///
/// # Errors
/// When a directory can't be read.
pub fn segments(directory: &Path) -> Result<Vec<Seq>, Error> {
    let mut found: BTreeSet<Seq> = own_segments(directory)?.into_iter().collect();
    found.extend(archived_segments(directory)?);
    Ok(found.into_iter().collect())
}

/// The first seqs of the segments in the journal itself, in order.
///
/// # Errors
/// When the directory can't be read.
pub fn own_segments(directory: &Path) -> Result<Vec<Seq>, Error> {
    list(directory, |path| {
        let digits = path.file_name()?.to_str()?.strip_suffix(".seg")?;
        let first = Seq(digits.parse().ok()?);
        // Another spelling of a number is not a name that we gave.
        (segment_path(directory, first) == path).then_some(first)
    })
}

/// The first seqs of the segments in the archive, in order.
///
/// # Errors
/// When the directory can't be read.
pub fn archived_segments(directory: &Path) -> Result<Vec<Seq>, Error> {
    list(&archive::directory(directory), |path| {
        archive::named(directory, path)
    })
}

fn list(directory: &Path, named: impl Fn(&Path) -> Option<Seq>) -> Result<Vec<Seq>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("reading", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("reading", directory))?;
        found.extend(named(&entry.path()));
    }
    found.sort_unstable();
    Ok(found)
}

/// The least bytes a record's frame has.
pub const FRAME_LEN_MIN: usize =
    record::PREFIX_LEN + header::LEN_MIN + record::SALT_LEN + record::TRAILER_LEN;
