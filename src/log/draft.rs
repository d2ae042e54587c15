//! What a submitter hands in: events without a place yet, and the condition under which they may have one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tallybook_events::event::{self, Event, SeqRange};
use tallybook_events::header::{ClaimRef, Outcome};
use tallybook_events::ids::{Attempt, Blob, EventId, Hash, OperationId, Seq, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::Mark;
use tallybook_events::subject::Subject;

use crate::clock;

/// An event without a place in the log yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// Its id: a draft that comes twice is appended once.
    pub event: EventId,
    /// What it is about.
    pub subject: Subject,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// The version of its payload.
    pub kind_version: u16,
    /// Its payload.
    pub payload: Blob,
    /// The outcome it reports.
    pub outcome: Outcome,
    /// The operation it belongs to.
    pub operation: Option<OperationId>,
    /// The claim it is written under.
    pub claim: Option<ClaimRef>,
    /// The step it belongs to.
    pub step: Option<StepIndex>,
    /// Which start of that step.
    pub attempt: Attempt,
    /// The event that caused it.
    pub cause: Seq,
}

impl Draft {
    /// An event about a subject.
    ///
    /// # Errors
    /// When its payload has no encoding.
    pub fn new(subject: Subject, event: impl Into<Event>) -> Result<Self, event::Error> {
        let event = event.into();
        let (kind, kind_version) = event.kind().unwrap_or(("unknown", 0));
        Ok(Draft {
            event: clock::event_id(),
            subject,
            kind: kind.into(),
            kind_version,
            payload: Blob(event.encode()?),
            outcome: event.outcome(),
            operation: None,
            claim: None,
            step: None,
            attempt: Attempt(0),
            cause: Seq::NONE,
        })
    }

    /// Of this operation, under its claim.
    #[must_use]
    pub fn operation(mut self, id: OperationId, claim: Option<ClaimRef>) -> Self {
        self.operation = Some(id);
        self.claim = claim;
        self.cause = claim.map_or(Seq::NONE, |claim| claim.seq);
        self
    }

    /// Of this start of this step.
    #[must_use]
    pub fn step(mut self, step: StepIndex, attempt: Attempt) -> Self {
        self.step = Some(step);
        self.attempt = attempt;
        self
    }
}

/// What must hold for drafts to be appended. The single writer decides it; so the log is the lock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Condition {
    /// None of these subjects has an event behind this position.
    pub unchanged: Option<(Vec<Subject>, Seq)>,
    /// Nobody holds these subjects, except the operations named with them.
    pub unclaimed: Option<(Vec<Subject>, Vec<OperationId>)>,
    /// This operation still holds its claim, made by this event.
    pub held: Option<(OperationId, Seq)>,
    /// No unfinished operation needs an inventory that is among these.
    pub unneeded: Option<Vec<SeqRange>>,
}

impl Condition {
    /// Always holds.
    pub fn none() -> Self {
        Condition::default()
    }

    /// Holds while this operation has its claim.
    pub fn held(operation: OperationId, claim: ClaimRef) -> Self {
        Condition {
            held: Some((operation, claim.seq)),
            ..Condition::default()
        }
    }
}

/// Why drafts were not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Somebody else has it.
    #[error("{subject} is held by operation {} ({summary}), which is {status}", holder.short())]
    Claimed {
        /// What is held.
        subject: Subject,
        /// By which operation.
        holder: OperationId,
        /// What that one was asked to do.
        summary: String,
        /// Where it stands.
        status: String,
    },
    /// Something happened in between.
    #[error("{subject} changed at event {seq} while this was being prepared")]
    Changed {
        /// What changed.
        subject: Subject,
        /// The newest event about it.
        seq: Seq,
    },
    /// The operation does not hold its claim any more: somebody else finished it or took it back.
    #[error("operation {} does not hold its claim any more", .0.short())]
    ClaimLost(OperationId),
    /// What is to be erased is an inventory that an operation goes on with, or is taken back with.
    #[error("event {inventory} is the inventory of operation {} ({summary}), which is {status} and needs it", operation.short())]
    Needed {
        /// The inventory.
        inventory: Seq,
        /// The operation.
        operation: OperationId,
        /// What that one was asked to do.
        summary: String,
        /// Where it stands.
        status: String,
    },
    /// A host was shown an event that this log does not have: nothing more is begun with it.
    #[error("this log is not the newest line of its history: {host} was shown event {} of epoch {}, which it does not have", seen.seq, seen.epoch)]
    Fenced {
        /// The host.
        host: HostName,
        /// What it was shown.
        seen: Mark,
    },
    /// A draft is not an event that this program may write.
    #[error("{0}")]
    Malformed(String),
}

/// Where a draft is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// Its position.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
}
