//! The header of an event: small, fixed in shape, and the only thing that the chain covers.
//!
//! Its bytes are written once and hashed as they stand; nothing is re-encoded to verify. `docs/FORMAT.md`
//! describes every byte. A change of layout is a new `FORMAT` and a second decoder beside this one.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::ids::{Attempt, BootId, Epoch, EventId, Hash, LogId, OperationId, Seq, StepIndex};
use crate::subject::Subject;

mod view;

pub use view::{ActorSeen, Common, HeaderView};

/// The layout that this module writes.
pub const FORMAT: u16 = 1;
/// The least bytes a header has: that of an event about the cloud with every other text empty.
pub const LEN_MIN: usize = 276;
/// The most bytes a header may have; more is damage, not data.
pub const LEN_MAX: usize = 16 * 1024;
/// Stands for "no step" in the bytes.
const STEP_NONE: u32 = u32::MAX;

/// How what the event reports ended, where it reports an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The event reports no end.
    None,
    /// It ended well.
    Succeeded,
    /// It failed, and that is known.
    Failed,
    /// Whether it happened is not known.
    InDoubt,
}

impl Outcome {
    const fn code(self) -> u8 {
        match self {
            Outcome::None => 0,
            Outcome::Succeeded => 1,
            Outcome::Failed => 2,
            Outcome::InDoubt => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Outcome::None),
            1 => Some(Outcome::Succeeded),
            2 => Some(Outcome::Failed),
            3 => Some(Outcome::InDoubt),
            _ => None,
        }
    }
}

/// Which process wrote the event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Writer {
    /// The host name of the controller.
    pub controller: String,
    /// The boot it ran in.
    pub boot: BootId,
}

/// The event that gave an operation its claims: half of the fence that hosts check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimRef {
    /// Its position.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
}

/// The header of one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// The log it belongs to.
    pub log: LogId,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// Its position, gapless from 1.
    pub seq: Seq,
    /// The header hash of `seq - 1`; zero for the first.
    pub previous: Hash,
    /// What it is about.
    pub subject: Subject,
    /// The position of the previous event of this subject; 0 when there is none.
    pub subject_previous_seq: Seq,
    /// The header hash of that event; zero when there is none.
    pub subject_previous: Hash,
    /// Chosen by the submitter.
    pub event: EventId,
    /// What happened, for example `step.started`. Known kinds are not copied.
    pub kind: Cow<'static, str>,
    /// The version of that kind's payload.
    pub kind_version: u16,
    /// Microseconds since 1970-01-01 UTC by the writer's clock. Information only: order is `seq`.
    pub time_unix_us: u64,
    /// Who made it happen.
    pub actor: Arc<Actor>,
    /// Which process wrote it.
    pub writer: Arc<Writer>,
    /// The claim it was written under.
    pub claim: Option<ClaimRef>,
    /// The operation it belongs to.
    pub operation: Option<OperationId>,
    /// The step of that operation.
    pub step: Option<StepIndex>,
    /// Which start of that step; 0 when there is no step.
    pub attempt: Attempt,
    /// How many events of the same append follow directly behind it: an append is in the log whole or not at all.
    pub more: u16,
    /// The first event of the write that this one is part of. One sync makes a write durable, and the next one begins
    /// only then: every event before `write` was durable before a byte of this one was on disk.
    pub write: Seq,
    /// The event that caused it; 0 when none did.
    pub cause: Seq,
    /// How what it reports ended.
    pub outcome: Outcome,
    /// Whether salt and payload may be overwritten with zeros. Fixed by the kind, and here so that a reader which does
    /// not know the kind can tell an erased payload from a damaged one.
    pub erasable: bool,
    /// The payload's length in bytes: what is left of an erased one.
    pub payload_len: u32,
    /// The salted keyed commitment to the payload.
    pub commitment: Hash,
}

/// Bytes that are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end inside a field.
    #[error("the header ends inside {field} (byte {at})")]
    Short {
        /// The field.
        field: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// Bytes follow the last field.
    #[error("{extra} bytes follow the header's last field")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A field holds a value that it can't have.
    #[error("the header's {field} (byte {at}) holds no valid value")]
    Value {
        /// The field.
        field: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// A layout that this program does not know.
    #[error("the header has format {0}; this program knows format {FORMAT}")]
    Format(u16),
    /// A text field is longer than its length prefix can say.
    #[error("{field} has {len} bytes, too many for a header")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
    },
}

impl Header {
    /// The bytes to store and to hash.
    ///
    /// # Errors
    /// [`Error::TooLong`] when a text has more than 65535 bytes, there are more than 255 actor claims, or all
    /// together exceed [`LEN_MAX`]; [`Error::Value`] when an optional field holds what stands for its absence.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(self.log.as_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.previous.0);
        put_text(&mut out, "subject", &self.subject.to_string())?;
        out.extend_from_slice(&self.subject_previous_seq.0.to_le_bytes());
        out.extend_from_slice(&self.subject_previous.0);
        out.extend_from_slice(self.event.as_bytes());
        put_text(&mut out, "kind", &self.kind)?;
        out.extend_from_slice(&self.kind_version.to_le_bytes());
        out.extend_from_slice(&self.time_unix_us.to_le_bytes());
        put_actor(&mut out, &self.actor)?;
        put_text(&mut out, "writer controller", &self.writer.controller)?;
        out.extend_from_slice(self.writer.boot.as_bytes());
        let absent = |field, at| Err(Error::Value { field, at });
        if self.claim.is_some_and(|claim| claim.seq == Seq::NONE) {
            return absent("claim", out.len());
        }
        if self.operation == Some(OperationId::from_bytes([0; 16])) {
            return absent("operation", out.len());
        }
        if self.step == Some(StepIndex(STEP_NONE)) {
            return absent("step", out.len());
        }
        let claim = self.claim.unwrap_or(ClaimRef {
            seq: Seq::NONE,
            hash: Hash::ZERO,
        });
        out.extend_from_slice(&claim.seq.0.to_le_bytes());
        out.extend_from_slice(&claim.hash.0);
        out.extend_from_slice(&self.operation.map_or([0; 16], |id| *id.as_bytes()));
        out.extend_from_slice(&self.step.map_or(STEP_NONE, |step| step.0).to_le_bytes());
        out.extend_from_slice(&self.attempt.0.to_le_bytes());
        out.extend_from_slice(&self.more.to_le_bytes());
        out.extend_from_slice(&self.write.0.to_le_bytes());
        out.extend_from_slice(&self.cause.0.to_le_bytes());
        out.push(self.outcome.code());
        out.push(u8::from(self.erasable));
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.commitment.0);
        if out.len() > LEN_MAX {
            return Err(Error::TooLong {
                field: "header",
                len: out.len(),
            });
        }
        Ok(out)
    }

    /// Reads a header back; every byte must be accounted for.
    ///
    /// # Errors
    /// When the bytes are not exactly one header of a known format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        HeaderView::decode(bytes)?.to_header()
    }
}

fn put_text(out: &mut Vec<u8>, field: &'static str, text: &str) -> Result<(), Error> {
    let len = u16::try_from(text.len()).map_err(|_| Error::TooLong {
        field,
        len: text.len(),
    })?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn put_actor(out: &mut Vec<u8>, actor: &Actor) -> Result<(), Error> {
    let count = u8::try_from(actor.0.len()).map_err(|_| Error::TooLong {
        field: "actor",
        len: actor.0.len(),
    })?;
    out.push(count);
    for claim in &actor.0 {
        put_text(out, "actor claim", &claim.name)?;
        put_text(out, "actor claim", &claim.value)?;
        out.push(claim.source.code());
    }
    Ok(())
}
