//! Which of an operation's chains its pace lets start: so many hosts at once, and no further one when too many failed.
//!
//! It holds hosts back and never lets a chain start that could not.

use std::collections::BTreeSet;
use std::fmt;

use tallybook_events::ids::StepIndex;
use tallybook_events::name::HostName;
use tallybook_events::pace::MaxFail;

use crate::operation::{Operation, Step, StepStatus};
use crate::resume::Running;

/// That so many hosts failed that no further one is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enough {
    /// How many failed, or could not be reached.
    pub failed: usize,
    /// How many may.
    pub most: MaxFail,
    /// The hosts that are not begun although they could be, in the order of the plan.
    pub left: Vec<HostName>,
}

impl fmt::Display for Enough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Enough { failed, most, left } = self;
        let names: Vec<&str> = left.iter().map(HostName::as_str).collect();
        let hosts = if *failed == 1 { "host" } else { "hosts" };
        write!(
            f,
            "{failed} {hosts} failed or could not be reached, more than --max-fail {most} lets: not begun: {}",
            names.join(", ")
        )
    }
}

/// What the pace lets happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Admission {
    /// The chains that may start now.
    pub(crate) chains: Vec<Vec<StepIndex>>,
    /// Why no further host is begun, when one could be.
    pub(crate) enough: Option<Enough>,
}

/// Decides which of the chains that could start may. A host that this run has begun goes on. Where a host that was begun
/// waits for one that was not, and nothing else goes on, that one is begun above the number: the operation would stand still.
pub(crate) fn admit(
    operation: &Operation,
    running: &Running,
    chains: Vec<Vec<StepIndex>>,
) -> Admission {
    let pace = operation.pace;
    if pace.serial.is_none() && pace.max_fail.is_none() {
        let enough = None;
        return Admission { chains, enough };
    }
    let mut further: Vec<&HostName> = Vec::new();
    for host in chains.iter().filter_map(|chain| host_of(operation, chain)) {
        if !running.begun.contains(host) && !further.contains(&host) {
            further.push(host);
        }
    }
    let failed = failed_hosts(operation, running).len();
    let most = pace.max_fail;
    let exceeded = most.filter(|most| most.is_exceeded_by(failed, hosts(operation).len()));
    let enough = exceeded.map(|most| Enough {
        failed,
        most,
        left: further.iter().map(|host| (*host).clone()).collect(),
    });
    let enough = enough.filter(|enough| !enough.left.is_empty());
    let begins: BTreeSet<&HostName> = if enough.is_some() {
        BTreeSet::new()
    } else {
        // What an earlier run left half done comes before what is untouched; else in the order of the plan.
        further.sort_by_key(|host| !is_touched(operation, host));
        // Where hosts that fail are counted, none is begun before there is a place to carry it out: it would be past holding
        // back by the time it fails.
        let places = running.at_once.filter(|_| most.is_some());
        let serial = pace.serial.map(|most| most.get() as usize);
        let at_once = places
            .unwrap_or(usize::MAX)
            .min(serial.unwrap_or(usize::MAX));
        let room = at_once.saturating_sub(open_hosts(operation, running));
        let goes_on = !running.in_flight.is_empty() || further.len() < hosts_of(operation, &chains);
        let room = if goes_on { room } else { room.max(1) };
        further.into_iter().take(room).collect()
    };
    let may_start = |chain: &Vec<StepIndex>| {
        host_of(operation, chain)
            .is_none_or(|host| running.begun.contains(host) || begins.contains(host))
    };
    let chains = chains
        .iter()
        .filter(|chain| may_start(chain))
        .cloned()
        .collect();
    Admission { chains, enough }
}

/// The hosts that an operation has steps on, in the order of the plan. One that only sends is none of them.
pub(crate) fn hosts(operation: &Operation) -> Vec<&HostName> {
    let mut seen = BTreeSet::new();
    let hosts = operation.steps.iter().map(|step| &step.plan.host);
    hosts.filter(|host| seen.insert(*host)).collect()
}

fn host_of<'a>(operation: &'a Operation, chain: &[StepIndex]) -> Option<&'a HostName> {
    let first = chain.first()?;
    let step = operation.steps.get(first.0 as usize)?;
    Some(&step.plan.host)
}

fn hosts_of(operation: &Operation, chains: &[Vec<StepIndex>]) -> usize {
    let hosts = chains.iter().filter_map(|chain| host_of(operation, chain));
    hosts.collect::<BTreeSet<_>>().len()
}

fn is_touched(operation: &Operation, host: &HostName) -> bool {
    let mut steps = operation.steps.iter();
    steps.any(|step| step.plan.host == *host && step.attempts.0 > 0)
}

/// Whether a step will not be started in this run, by what is known of it alone.
fn is_given_up(step: &Step, running: &Running) -> bool {
    let failed = match step.status {
        StepStatus::Failed(_) => !running.retry.contains(&step.plan.index),
        StepStatus::Pending
        | StepStatus::Started
        | StepStatus::Succeeded { .. }
        | StepStatus::Doubted { .. }
        | StepStatus::Drifted { .. } => false,
    };
    let is_done = matches!(step.status, StepStatus::Succeeded { .. });
    failed
        || running.stuck.contains(&step.plan.index)
        || (!is_done && running.unreachable.contains(&step.plan.host))
}

/// The hosts that failed in this run, or could not be had.
fn failed_hosts<'a>(operation: &'a Operation, running: &Running) -> BTreeSet<&'a HostName> {
    let given_up = operation.steps.iter();
    let given_up = given_up.filter(|step| is_given_up(step, running));
    given_up.map(|step| &step.plan.host).collect()
}

/// How many hosts this run has begun, and has not come to the end with: a step of theirs runs, or can still be started.
fn open_hosts(operation: &Operation, running: &Running) -> usize {
    let steps = &operation.steps;
    let sends = |step: &Step| {
        let sender = step.plan.peer.as_ref();
        sender.is_some_and(|peer| running.unreachable.contains(&peer.host))
    };
    let mut lost: Vec<bool> = steps
        .iter()
        .map(|step| is_given_up(step, running) || sends(step))
        .collect();
    // A step behind one that is given up is so too.
    loop {
        let behind = |index: &StepIndex| lost.get(index.0 as usize).copied().unwrap_or_default();
        let more: Vec<usize> = (0..steps.len())
            .filter(|at| !lost[*at] && steps[*at].plan.after.iter().any(behind))
            .collect();
        if more.is_empty() {
            break;
        }
        for at in more {
            lost[at] = true;
        }
    }
    let goes_on = |(step, lost): (&Step, &bool)| {
        let is_done = matches!(step.status, StepStatus::Succeeded { .. });
        running.in_flight.contains(&step.plan.index) || !(is_done || *lost)
    };
    let open: BTreeSet<&HostName> = steps
        .iter()
        .zip(&lost)
        .filter(|(step, lost)| goes_on((step, lost)))
        .map(|(step, _)| &step.plan.host)
        .filter(|host| running.begun.contains(*host))
        .collect();
    open.len()
}
