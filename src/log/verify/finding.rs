//! What can be wrong: each class with what it means and what to do about it.

use serde::{Deserialize, Serialize};
use tallybook_events::ids::Seq;
use tallybook_events::{header, record};

use crate::journal::Damage;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Bytes that are not what was written.
    Altered,
    /// Events, or a whole segment, that are not there.
    Missing,
    /// A record or a segment that is somewhere else, or twice.
    Misplaced,
    /// A record that the one behind it does not know: one of them was put in later.
    Chain,
    /// Of another log, or of an epoch that can't be here.
    Foreign,
    /// A sound record that no sound program would have written there.
    Contradiction,
    /// A payload that is gone, and nothing says who erased it.
    Unannounced,
    /// A payload that was to be erased and is still there.
    Unerased,
    /// A gap that no recovery speaks of.
    Gap,
    /// Something that a newer program wrote.
    Newer,
    /// A segment that the system does not give.
    Unreadable,
    /// A segment in the archive.
    Archive,
    /// The end of the log is not where it was.
    End,
    /// The index.
    Index,
    /// The projections.
    Projection,
}

impl Class {
    /// The class of damage that the journal's reader found.
    pub(super) const fn of(damage: &Damage) -> Self {
        match damage {
            Damage::Record(record::Error::Header(header::Error::Format(_)))
            | Damage::SegmentFormat(_)
            | Damage::FrameFormat(_)
            | Damage::ArchiveFormat(_) => Class::Newer,
            Damage::Unreadable(_) => Class::Unreadable,
            Damage::Record(
                record::Error::Short { .. }
                | record::Error::Prefix
                | record::Error::HeaderHash
                | record::Error::Header(_)
                | record::Error::Length { .. }
                | record::Error::Commitment,
            )
            | Damage::SegmentHead
            | Damage::Room => Class::Altered,
            Damage::Seq { .. } => Class::Misplaced,
            Damage::Chain => Class::Chain,
            Damage::Foreign => Class::Foreign,
            Damage::Append | Damage::Write => Class::Contradiction,
            Damage::Archive(_) => Class::Archive,
        }
    }

    /// What it means.
    pub const fn means(self) -> &'static str {
        match self {
            Class::Altered => {
                "bytes are not those that were written: a failing disk, or somebody changed the file"
            }
            Class::Missing => "events that were in the log are not there any more",
            Class::Misplaced => "a record or a segment is not at its place, or is there twice",
            Class::Chain => {
                "a record is not the one that the next one was written behind: it was replaced by another"
            }
            Class::Foreign => "something of another log or of another epoch is in this one",
            Class::Contradiction => {
                "a record is whole, but what it says can't be so at its place: a defect of the program that wrote it, or a forgery"
            }
            Class::Unannounced => "a payload was overwritten, and no event says who did it and why",
            Class::Unerased => "a payload that an event says was erased can still be read",
            Class::Gap => "events were cut out, and no recovery says so",
            Class::Newer => "something that a newer program wrote: this one can't tell what it is",
            Class::Unreadable => "the system does not give the bytes of a segment",
            Class::Archive => "a segment in the archive is not what was put there",
            Class::End => "the log once went further, or said something else there",
            Class::Index => {
                "the index is not what the journal says; answers that it gave may be wrong"
            }
            Class::Projection => {
                "the live state is not what the journal says; what was shown and decided by it may be wrong"
            }
        }
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Class::Altered
            | Class::Missing
            | Class::Misplaced
            | Class::Chain
            | Class::Foreign
            | Class::Gap
            | Class::End => {
                "keep the store as it is and bring back a good copy; without one, `tallybook log recover` goes on with what is whole, in a new epoch, and records what is lost"
            }
            Class::Contradiction | Class::Unannounced => {
                "keep the store as it is, and compare with a copy of it; nothing here can tell what was there before"
            }
            Class::Unerased => "`tallybook redact` the event again",
            Class::Newer => "use the program that wrote it, or a newer one",
            Class::Unreadable => {
                "find out why the system can't read it: the kernel log, permissions, a mount; nothing is known to be lost"
            }
            Class::Archive => "bring that file back from a copy of the archive",
            Class::Index | Class::Projection => {
                "the journal is whole: remove the store's `index` and `projection`, and the next command builds them again"
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The event, as far as its place tells.
    pub seq: Seq,
    /// Where its bytes are: file and byte.
    pub place: String,
    /// What kind of thing is wrong.
    pub class: Class,
    /// What is wrong.
    pub what: String,
}
