//! What can go wrong with the log.

use std::path::PathBuf;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::{codec, event};
use tallybook_replay::operation;

use super::{Refusal, retention};
use crate::{journal, store};

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no log.
    #[error("there is no log in {}", .0.display())]
    Missing(PathBuf),
    /// The store's directory can't be used.
    #[error("can't use the store in {}", path.display())]
    Directory {
        /// The store.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The journal failed.
    #[error("the log can't be read or written")]
    Journal(#[from] journal::Error),
    /// What is lost can't be told without something that is not here.
    #[error("what is lost of the log can't be told here; nothing was changed")]
    Undecidable(#[source] journal::Error),
    /// The store failed, and building it again did not help.
    #[error("the store can't be used")]
    Store(#[from] store::Error),
    /// The condition of an append did not hold; nothing was appended.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The holder could not be reached, and the store could not be taken over.
    #[error("another process holds the store in {} and does not answer", .0.display())]
    NoHolder(PathBuf),
    /// What is to be done needs the store alone.
    #[error("another process holds the store in {}", .0.display())]
    InUse(PathBuf),
    /// Nobody holds the store, and yet somebody has its databases open.
    #[error("another process has {} open, although nobody holds the store", .0.display())]
    Held(PathBuf),
    /// The holder answered with an error.
    #[error("the process that holds the store says: {0}")]
    Holder(String),
    /// Whoever asks may not have that done there.
    #[error("{0}")]
    Forbidden(String),
    /// No daemon answers at its sockets.
    #[error("no daemon answers in {}", .0.display())]
    NoDaemon(PathBuf),
    /// The holder is of another version of the program.
    #[error("the process that holds the store speaks version {theirs} of the protocol, not {ours}")]
    OtherProtocol {
        /// What this program speaks.
        ours: u16,
        /// What the holder speaks.
        theirs: u16,
    },
    /// The holder said something that can't be understood.
    #[error("the process that holds the store says something that can't be understood")]
    Protocol(#[source] codec::Error),
    /// A payload can't be understood.
    #[error("event {seq} can't be understood")]
    Payload {
        /// Its position.
        seq: Seq,
        /// Why not.
        source: event::Error,
    },
    /// An operation's events contradict each other.
    #[error("the events of operation {id} contradict each other")]
    Operation {
        /// The operation.
        id: OperationId,
        /// How.
        source: operation::Error,
    },
    /// The events of an append could not be written. Where that is in doubt, it is known once the log is opened again.
    #[error("the log can't be written: {what}")]
    NotWritten {
        /// Why.
        what: String,
        /// Whether the disk is full.
        disk_full: bool,
        /// Whether they may be in the log all the same.
        in_doubt: bool,
    },
    /// There is no room for what must be set aside for a full disk: nothing new is begun.
    #[error("can't set room aside in {}; nothing new is begun without it", path.display())]
    NoReserve {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An event whose payload can't be erased.
    #[error("{}", match kind {
        Some(kind) => format!("the payload of event {seq} can't be erased: what may be done follows from events of kind {kind}"),
        None => format!("there is no event {seq}, or it is lost"),
    })]
    NotErasable {
        /// The event.
        seq: Seq,
        /// Its kind, where it is there.
        kind: Option<String>,
    },
    /// Segments could not be moved to the archive, or back.
    #[error(transparent)]
    Retention(#[from] retention::Failure),
    /// The index can't be used, and the journal could not be read in its place: whether something is there is not known.
    #[error("what the log in {} has can't be looked up: {why}", path.display())]
    Unknowable {
        /// The store.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// An event that can't be folded.
    #[error("event {seq} can't be folded: {what}")]
    Fold {
        /// The event.
        seq: Seq,
        /// Why not.
        what: String,
    },
    /// An append or a question with more bytes than the holder's socket takes.
    #[error("{0} bytes are too many for one append")]
    TooLarge(usize),
    /// An event that was acknowledged here is another one in the journal: it was replaced by another copy.
    #[error(
        "event {seq} in the journal of {} is not the one that was recorded here before",
        path.display()
    )]
    Rewritten {
        /// The store.
        path: PathBuf,
        /// The event.
        seq: Seq,
    },
    /// The projections know more events than the journal has: its end was cut off, or it is an old copy.
    #[error(
        "the journal in {} ends at event {journal}, but event {projection} was recorded here before",
        path.display()
    )]
    TailLost {
        /// The store.
        path: PathBuf,
        /// The journal's last event.
        journal: Seq,
        /// The newest event that was acknowledged here.
        projection: Seq,
    },
}

impl Error {
    /// Whether events may be in the log although their append was not acknowledged.
    pub const fn is_in_doubt(&self) -> bool {
        matches!(
            self,
            Error::Journal(journal::Error::Unsynced { .. })
                | Error::NotWritten { in_doubt: true, .. }
        )
    }

    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Error::Journal(error) => error.is_disk_full(),
            Error::NotWritten { disk_full, .. } => *disk_full,
            Error::NoReserve { source, .. } => is_full(source),
            Error::Retention(failure) => failure.class == retention::FailureClass::DiskFull,
            Error::Missing(_)
            | Error::Directory { .. }
            | Error::Undecidable(_)
            | Error::Store(_)
            | Error::Refused(_)
            | Error::NoHolder(_)
            | Error::InUse(_)
            | Error::Held(_)
            | Error::Holder(_)
            | Error::Forbidden(_)
            | Error::NoDaemon(_)
            | Error::OtherProtocol { .. }
            | Error::Protocol(_)
            | Error::Payload { .. }
            | Error::Operation { .. }
            | Error::Fold { .. }
            | Error::Unknowable { .. }
            | Error::NotErasable { .. }
            | Error::TooLarge(_)
            | Error::Rewritten { .. }
            | Error::TailLost { .. } => false,
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
