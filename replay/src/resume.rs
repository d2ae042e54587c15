//! What to do next with an operation. A run is the resume of a fresh operation, so this decides both.

use std::collections::BTreeSet;

use tallybook_events::ids::StepIndex;
use tallybook_events::name::HostName;

use crate::operation::{Operation, OperationStatus, Step, StepStatus};
use crate::pace::{self, Enough};

/// What an operation needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It has no durable plan, so nothing of it was done and nothing can be.
    Unplanned,
    /// These steps were started and their outcome is not known: look before anything else.
    Resolve(Vec<StepIndex>),
    /// These chains of steps can be started now; each chain is on one host, in order, and independent of the
    /// others.
    Start(Vec<Vec<StepIndex>>),
    /// Too many hosts failed: no further one is begun, and nothing is left on those that were.
    Enough(Enough),
    /// Nothing can be started until a step that runs has ended.
    Wait,
    /// What is left is on hosts that can't be reached.
    Unreachable(Vec<StepIndex>),
    /// Nobody but an operator can tell what became of these steps, and nothing that does not depend on them is left.
    Stuck(Vec<StepIndex>),
    /// A step failed and nothing that does not depend on it is left.
    Failed(Vec<StepIndex>),
    /// Every step succeeded.
    Finished,
}

/// What whoever carries an operation out knows besides its events.
#[derive(Debug, Clone, Default)]
pub struct Running {
    /// Steps that somebody is waiting for right now: neither in doubt nor to be started.
    pub in_flight: BTreeSet<StepIndex>,
    /// Steps that failed, or were in doubt and were looked at, and are to be started again.
    pub retry: BTreeSet<StepIndex>,
    /// Hosts that can't be reached: their steps are left as they are, and so are transfers from them.
    pub unreachable: BTreeSet<HostName>,
    /// Hosts that this run has begun steps on.
    pub begun: BTreeSet<HostName>,
    /// How many hosts there are places for at once; `None` for any number.
    pub at_once: Option<usize>,
    /// Steps in doubt that were looked at, and that nobody but an operator can decide.
    pub stuck: BTreeSet<StepIndex>,
}

/// Decides.
pub fn next(operation: &Operation, running: &Running) -> Next {
    if operation.status == OperationStatus::Intended {
        return Next::Unplanned;
    }
    let with = |wanted: &dyn Fn(&Step) -> bool| -> Vec<StepIndex> {
        operation
            .steps
            .iter()
            .filter(|step| wanted(step))
            .map(|step| step.plan.index)
            .collect()
    };
    let doubtful = with(&|step| {
        let left = !running.in_flight.contains(&step.plan.index)
            && !running.stuck.contains(&step.plan.index)
            && !running.unreachable.contains(&step.plan.host);
        left && match &step.status {
            StepStatus::Started => true,
            StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                !running.retry.contains(&step.plan.index)
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => false,
        }
    });
    if !doubtful.is_empty() {
        return Next::Resolve(doubtful);
    }
    let admission = pace::admit(operation, running, chains(operation, running));
    if !admission.chains.is_empty() {
        return Next::Start(admission.chains);
    }
    if !running.in_flight.is_empty() {
        return Next::Wait;
    }
    let failed = with(&|step| matches!(step.status, StepStatus::Failed(_)));
    let unfinished = with(&|step| !matches!(step.status, StepStatus::Succeeded { .. }));
    let stuck = with(&|step| {
        running.stuck.contains(&step.plan.index)
            && !matches!(step.status, StepStatus::Succeeded { .. })
    });
    if unfinished.is_empty() {
        Next::Finished
    } else if !stuck.is_empty() {
        Next::Stuck(stuck)
    } else if let Some(enough) = admission.enough {
        Next::Enough(enough)
    } else if failed.is_empty() {
        Next::Unreachable(unfinished)
    } else {
        Next::Failed(failed)
    }
}

/// The steps that can be started now, in chains: a chain begins with a step whose predecessors all succeeded and
/// goes on with steps of the same host and without a peer whose predecessors are in the chain or succeeded.
///
/// A step with a peer (a transfer) is a chain of its own: its batch needs a second connection.
fn chains(operation: &Operation, running: &Running) -> Vec<Vec<StepIndex>> {
    let reachable = |step: &Step| {
        let sender = step.plan.peer.as_ref().map(|peer| &peer.host);
        !running.unreachable.contains(&step.plan.host)
            && !sender.is_some_and(|host| running.unreachable.contains(host))
    };
    let startable = |step: &Step| {
        !running.in_flight.contains(&step.plan.index)
            && !running.stuck.contains(&step.plan.index)
            && reachable(step)
            && match &step.status {
                StepStatus::Pending => true,
                StepStatus::Failed(_) | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                    running.retry.contains(&step.plan.index)
                }
                StepStatus::Started | StepStatus::Succeeded { .. } => false,
            }
    };
    let succeeded = |index: &StepIndex| {
        operation
            .steps
            .get(index.0 as usize)
            .is_some_and(|step| matches!(step.status, StepStatus::Succeeded { .. }))
    };
    let mut chains: Vec<Vec<StepIndex>> = Vec::new();
    let mut taken: Vec<bool> = vec![false; operation.steps.len()];
    for (position, step) in operation.steps.iter().enumerate() {
        if taken[position] || !startable(step) || !step.plan.after.iter().all(succeeded) {
            continue;
        }
        let mut chain = vec![step.plan.index];
        taken[position] = true;
        if step.plan.peer.is_none() {
            for (later, candidate) in operation.steps.iter().enumerate().skip(position + 1) {
                let follows = !taken[later]
                    && startable(candidate)
                    && candidate.plan.host == step.plan.host
                    && candidate.plan.peer.is_none()
                    && !candidate.plan.after.is_empty()
                    && candidate
                        .plan
                        .after
                        .iter()
                        .all(|index| chain.contains(index) || succeeded(index))
                    && candidate
                        .plan
                        .after
                        .iter()
                        .any(|index| chain.contains(index));
                if follows {
                    chain.push(candidate.plan.index);
                    taken[later] = true;
                }
            }
        }
        chains.push(chain);
    }
    chains
}
