//! Where an operation stands on each of its hosts: what its end shows a row of.
//!
//! It says what the events say and nothing of how it came to be so.

use serde::Serialize;
use tallybook_events::event::LackKind;
use tallybook_events::name::HostName;

use crate::operation::{Operation, OperationStatus, Step, StepStatus};
use crate::pace::hosts;

/// Where an operation stands on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostStatus {
    /// Every step of it succeeded, and nothing is different.
    Ok,
    /// Every step of it succeeded, and something is different.
    Changed,
    /// A step failed, or the host took none.
    Failed,
    /// It could not be reached, or did not let us in.
    Unreachable,
    /// What became of a step is not known.
    InDoubt,
    /// Some steps are done, and nothing stands in the way of the others.
    Unfinished,
    /// No step of it was ever started.
    NotBegun,
}

impl HostStatus {
    /// As tables show it.
    pub const fn label(self) -> &'static str {
        match self {
            HostStatus::Ok => "ok",
            HostStatus::Changed => "changed",
            HostStatus::Failed => "failed",
            HostStatus::Unreachable => "unreachable",
            HostStatus::InDoubt => "in doubt",
            HostStatus::Unfinished => "unfinished",
            HostStatus::NotBegun => "not begun",
        }
    }
}

/// An operation on one of its hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OnHost {
    /// The host.
    pub host: HostName,
    /// Where it stands there.
    pub status: HostStatus,
    /// How many steps succeeded.
    pub ok: usize,
    /// In how many of these something is different.
    pub changed: usize,
    /// How many steps failed.
    pub failed: usize,
    /// How many steps have no known outcome.
    pub in_doubt: usize,
    /// How many steps are still to be started.
    pub not_begun: usize,
    /// Why it did not come to its end there, where something said so.
    pub why: Option<String>,
}

/// An operation host by host, in the order of its plan.
pub fn rows(operation: &Operation) -> Vec<OnHost> {
    let hosts = hosts(operation).into_iter();
    hosts.map(|host| on_host(operation, host)).collect()
}

/// The rows of an operation with steps on several hosts; none of another one, which its steps show as well.
pub fn several(operation: &Operation) -> Vec<OnHost> {
    let rows = rows(operation);
    match rows.len() {
        0 | 1 => Vec::new(),
        _ => rows,
    }
}

fn on_host(operation: &Operation, host: &HostName) -> OnHost {
    let steps = || {
        let steps = operation.steps.iter();
        steps.filter(|step| step.plan.host == *host)
    };
    let (mut ok, mut changed, mut failed, mut in_doubt, mut not_begun) = (0, 0, 0, 0, 0);
    let (mut not_ended, mut said) = (0, None);
    for step in steps() {
        match &step.status {
            StepStatus::Pending => not_begun += 1,
            // As long as it is carried out, nothing is wrong with that.
            StepStatus::Started if operation.status == OperationStatus::Running => not_ended += 1,
            StepStatus::Started => in_doubt += 1,
            StepStatus::Succeeded { done, .. } => {
                ok += 1;
                changed += usize::from(done.changed);
            }
            StepStatus::Failed(failure) => {
                failed += 1;
                said.get_or_insert_with(|| told(step, &failure.message));
            }
            StepStatus::Doubted { why } | StepStatus::Drifted { what: why } => {
                in_doubt += 1;
                said.get_or_insert_with(|| told(step, why));
            }
        }
    }
    let left = failed + in_doubt + not_begun + not_ended;
    let lack = operation.lacked.get(host).filter(|_| left > 0);
    let status = match lack.map(|lack| lack.kind) {
        None if left == 0 && changed == 0 => HostStatus::Ok,
        None if left == 0 => HostStatus::Changed,
        Some(LackKind::Unreachable) => HostStatus::Unreachable,
        None | Some(LackKind::Refused) if in_doubt > 0 => HostStatus::InDoubt,
        Some(LackKind::Refused) => HostStatus::Failed,
        None if failed > 0 => HostStatus::Failed,
        None if steps().all(|step| step.attempts.0 == 0) => HostStatus::NotBegun,
        None => HostStatus::Unfinished,
    };
    let lacks = lack.map(|lack| lack.why.clone());
    OnHost {
        host: host.clone(),
        status,
        ok,
        changed,
        failed,
        in_doubt,
        not_begun,
        why: lacks.or(said).or_else(|| sender_lacks(operation, steps())),
    }
}

fn told(step: &Step, why: &str) -> String {
    format!("{}: {why}", step.plan.summary)
}

/// Why the host that steps are to get something from could not be had.
fn sender_lacks<'a>(
    operation: &Operation,
    steps: impl Iterator<Item = &'a Step>,
) -> Option<String> {
    let left = |step: &&Step| !matches!(step.status, StepStatus::Succeeded { .. });
    let mut senders = steps
        .filter(left)
        .filter_map(|step| step.plan.peer.as_ref());
    senders.find_map(|peer| {
        let lack = operation.lacked.get(&peer.host)?;
        Some(format!("{}, which sends: {}", peer.host, lack.why))
    })
}
