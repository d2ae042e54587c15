//! How events of operations can contradict each other.

use tallybook_events::event::SeqRange;
use tallybook_events::ids::{Attempt, Seq};

/// Events that contradict each other: a defect of whoever wrote them, never of the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An event of an operation before the one that begins it.
    #[error("event {seq} ({kind}) belongs to an operation that was never intended")]
    NotIntended {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// An event of a step that the plan does not have.
    #[error("event {seq} ({kind}) names a step that the plan does not have")]
    NoSuchStep {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// An event that begins or plans an operation which was begun or planned before.
    #[error("event {seq} ({kind}) comes twice in its operation")]
    Twice {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// A plan whose steps are not numbered from 0, or wait for steps that it does not have.
    #[error(
        "event {seq} is a plan whose step {index} is not numbered by its place, or waits for itself or a step that is not there"
    )]
    Plan {
        /// Its position.
        seq: Seq,
        /// The place of the step.
        index: usize,
    },
    /// An event that belongs to no operation or no step, and must, or the other way round.
    #[error("event {seq} ({kind}) does not say of which operation, step and start it is")]
    Place {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// A log that begins with something else, or begins twice.
    #[error("event {seq} is {kind}; the first event of a log, and no other, is log.created")]
    Beginning {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// An event that was caused by a later one.
    #[error("event {seq} ({kind}) says that event {cause} caused it, which is not before it")]
    Cause {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
        /// What it says.
        cause: Seq,
    },
    /// An event that names events which can't all be before it.
    #[error("event {seq} ({kind}) names events {} to {}, which are not events before it", range.first, range.last)]
    Range {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
        /// What it names.
        range: SeqRange,
    },
    /// An event that was not written under its operation's claim.
    #[error("event {seq} ({kind}) was not written under the claim of its operation")]
    Claim {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// An event of another start of its step than the newest.
    #[error("event {seq} ({kind}) is of start {found} of its step, not of {expected}")]
    Attempt {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
        /// What it must be.
        expected: Attempt,
        /// What it says.
        found: Attempt,
    },
    /// An operation that has another number of events than it says.
    #[error("event {seq} says that its operation has {says} events, but it has {counted}")]
    Count {
        /// Its position.
        seq: Seq,
        /// What it says.
        says: u64,
        /// How many there are.
        counted: u64,
    },
    /// An event behind the end of its operation.
    #[error("event {seq} ({kind}) can't follow an operation that is {status}")]
    Ended {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
        /// How the operation ended.
        status: &'static str,
    },
    /// An event that can't follow where the step stood.
    #[error("event {seq} ({kind}) can't follow a step that is {status}")]
    Transition {
        /// Its position.
        seq: Seq,
        /// Its kind.
        kind: String,
        /// Where the step stood.
        status: &'static str,
    },
}
