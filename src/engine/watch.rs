//! What the engine tells whoever watches: for people and programs looking on, never a second source of truth.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::subject::Subject;

/// Something that just happened while an operation is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// The plan is durable.
    Planned {
        /// The operation.
        operation: OperationId,
        /// How many steps it has.
        steps: usize,
    },
    /// A step began on its host.
    Started {
        /// The step.
        step: StepIndex,
        /// Its host.
        host: HostName,
        /// What it does.
        summary: String,
    },
    /// How far a step is.
    Progress {
        /// The step.
        step: StepIndex,
        /// Its host.
        host: HostName,
        /// What it is doing.
        what: String,
        /// How much is done.
        done: u64,
        /// How much there is; 0 when that is not known.
        total: u64,
    },
    /// A step's good end is durable.
    Succeeded {
        /// The step.
        step: StepIndex,
        /// Its host.
        host: HostName,
        /// What it did.
        summary: String,
        /// Whether anything is different now.
        changed: bool,
    },
    /// A step's failure is durable.
    Failed {
        /// The step.
        step: StepIndex,
        /// Its host.
        host: HostName,
        /// What it was to do.
        summary: String,
        /// What happened.
        message: String,
    },
    /// Another agent on the host still carries out a step of the operation, which is waited for: ours, whose line was
    /// lost, or one of a controller that died.
    Waiting {
        /// The host.
        host: HostName,
        /// The step; `None` where it is between two.
        step: Option<StepIndex>,
        /// The operation that the step is of.
        operation: OperationId,
        /// Since when the step runs, in microseconds since 1970-01-01 UTC by the host's clock; 0 without a step.
        since_unix_us: u64,
    },
    /// Another operation holds what this one claims, and is waited for.
    Claimed {
        /// What it holds.
        subject: Subject,
        /// That operation.
        holder: OperationId,
        /// What it does.
        summary: String,
        /// Where it stands.
        status: String,
    },
    /// The outcome of a step that was in doubt is known now.
    Resolved {
        /// The step.
        step: StepIndex,
        /// Its host.
        host: HostName,
        /// How.
        how: String,
    },
    /// A host can't be reached.
    Unreachable {
        /// The host.
        host: HostName,
        /// Why not.
        why: String,
    },
    /// The daemon carries as many others out as it does at once: it waits for its turn.
    Queued {
        /// The operation.
        operation: OperationId,
    },
    /// Asked to stop: what runs is finished, nothing else is begun.
    Stopping,
}

/// Takes notices. Must not block for long.
pub type Watch = Arc<dyn Fn(&Notice) + Send + Sync>;
