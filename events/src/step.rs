//! Steps: how a plan records them, what the agent reports of them, and the receipts it keeps.

use serde::{Deserialize, Serialize};

use crate::fact::Fact;
use crate::header::ClaimRef;
use crate::ids::{
    Attempt, Blob, BootId, Epoch, Generation, Hash, LogId, OperationId, Seq, StepIndex,
};
use crate::name::{HostName, TemplateName};
use crate::subject::Subject;

/// Which way a step is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Make it so.
    Forward,
    /// Take back what a step of an earlier operation did.
    Undo {
        /// That operation.
        operation: OperationId,
        /// That step.
        step: StepIndex,
        /// What the step reported; `None` where its outcome was never known.
        output: Option<Blob>,
    },
}

/// What a rollback can do about a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reversal {
    /// It can be undone.
    Undo,
    /// There is nothing to undo: it changed nothing, or what it left is shared and kept on purpose.
    Keep {
        /// Why.
        why: String,
    },
    /// It can't be undone.
    Irreversible {
        /// Why.
        why: String,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its position.
    pub index: StepIndex,
    /// The host it acts on.
    pub host: HostName,
    /// What it is about.
    pub subject: Subject,
    /// Its kind, a row of the agent's table, for example `container.start`.
    pub kind: String,
    /// Its parameters: the kind's own named map.
    pub params: Blob,
    /// One line for people.
    pub summary: String,
    /// Which way it is carried out.
    pub action: Action,
    /// What a rollback can do about it.
    pub reversal: Reversal,
    /// Whether it can be started only once: neither a receipt nor a probe could tell whether it happened.
    pub once: bool,
    /// The steps that must have succeeded before.
    pub after: Vec<StepIndex>,
    /// The other end of this step's transfer, where it has one.
    pub peer: Option<Peer>,
}

/// The sending end of a step's transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The host that sends.
    pub host: HostName,
    /// What it sends.
    pub source: SendSource,
}

/// A tree that can be sent: read-only, nothing is changed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SendSource {
    /// A generation of a template.
    Template {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
    },
    /// What a step of the running operation staged on this host.
    Staged {
        /// The operation.
        operation: OperationId,
        /// The step.
        step: StepIndex,
    },
}

/// Output of a program that a step ran, bounded and scrubbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// What ran, for people: its argument vector joined by spaces.
    pub command: String,
    /// Exit status; `None` when a signal ended it.
    pub exit: Option<i32>,
    /// Standard output and standard error as they came, up to the bound.
    pub text: Blob,
    /// How many bytes beyond the bound were dropped from the middle.
    pub dropped_bytes: u64,
}

/// How a step ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    /// Whether anything on the host is different now.
    pub changed: bool,
    /// What undo and later steps need to know: the kind's own named map.
    pub output: Blob,
    /// What became true.
    pub facts: Vec<Fact>,
    /// What the programs it ran printed.
    pub captured: Vec<Captured>,
}

/// What sort of failure it was: decides the exit code and the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureClass {
    /// Something is already there that this step did not make.
    Exists,
    /// Something that must be there is missing.
    Missing,
    /// No space, quota or inodes left.
    DiskFull,
    /// Not allowed.
    Permission,
    /// Content is not what its hash says.
    Verification,
    /// A program ended with an error.
    Command,
    /// It took longer than it may.
    Timeout,
    /// The host is not as it must be.
    Host,
    /// The other end of a transfer failed.
    Peer,
    /// The step was asked to stop.
    Interrupted,
    /// A claim newer than ours was seen on the host.
    Fenced,
    /// Parameters, or a step kind, that this agent does not understand.
    Unknown,
    /// Anything else; the message says what.
    Other,
}

/// How a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// What sort of failure.
    pub class: FailureClass,
    /// What happened and where, with the chain of causes.
    pub message: String,
    /// What to do next, where that is known.
    pub hint: Option<String>,
    /// What the programs it ran printed.
    pub captured: Vec<Captured>,
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// The step's effect is whole; this is what the step would have reported.
    Done(StepDone),
    /// Nothing of it is there.
    Absent,
    /// Some of it is there, and it is ours; carrying the step out again completes it.
    Partial {
        /// What was seen.
        what: String,
    },
    /// Something else is there that the step did not make.
    Conflict {
        /// What was seen.
        what: String,
    },
    /// It can't be told.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// Names one start of one step, on every host and for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    /// The log that ordered it.
    pub log: LogId,
    /// The operation.
    pub operation: OperationId,
    /// The step.
    pub step: StepIndex,
    /// Which start.
    pub attempt: Attempt,
}

/// What an agent is shown before it acts: whose claim this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The log.
    pub log: LogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The event that made the claim.
    pub claim: ClaimRef,
}

/// The newest event of a log that a host was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its position.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
}

/// The host's own durable record of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Which start of which step.
    pub key: StepKey,
    /// The claim it was carried out under.
    pub fence: Fence,
    /// The kind of step.
    pub kind: String,
    /// The boot it was written in.
    pub boot: BootId,
    /// Microseconds since 1970-01-01 UTC by the host's clock.
    pub time_unix_us: u64,
    /// Where it stands.
    pub phase: Phase,
}

/// Where a step stands by its receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Written before the first effect.
    Started,
    /// It ended well.
    Succeeded(StepDone),
    /// It failed.
    Failed(StepFailure),
    /// It was not begun when a controller asked for it, and never is from then on.
    GivenUp,
}
