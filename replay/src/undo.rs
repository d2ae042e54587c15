//! How to take operations back: their steps in reverse order of dependency, with what they reported.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_events::ids::{Blob, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep, Reversal};
use tallybook_events::subject::Subject;

use crate::operation::{Evidence, Operation, Step, StepStatus};

/// The steps that undo operations, and what can't be undone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UndoPlan {
    /// The steps, ready to be a plan.
    pub steps: Vec<PlannedStep>,
    /// Steps whose effect stays.
    pub kept: Vec<Left>,
    /// Steps whose effect can't be taken back.
    pub irreversible: Vec<Left>,
}

/// A step that no undo takes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The operation that it is of.
    pub operation: OperationId,
    /// What it did.
    pub summary: String,
    /// Why that stays.
    pub why: String,
}

/// Why what was adopted stays.
const ADOPTED: &str = "what is there was taken over, and is not the step's to remove";

/// Plans the undo of an operation.
///
/// A step that never acted needs none. One that reported at its first start that nothing changed needs none
/// either; after a second start that may have acted that report can't be trusted, because the first may have done it, and neither can
/// what a probe saw, because it can't tell who made it. A step whose last start is known never to have acted is
/// undone all the same where an earlier start may have: a start counts unless it is known that it never did.
pub fn plan(operation: &Operation) -> UndoPlan {
    plan_all([operation])
}

/// Plans the undo of several operations as one, the newest first. An undo waits for those of later operations on the same
/// host or about the same subject: what they did was built on it, for all that is known.
pub fn plan_all<'a>(operations: impl IntoIterator<Item = &'a Operation>) -> UndoPlan {
    let mut result = UndoPlan::default();
    let mut later = Frontier::default();
    for operation in operations {
        let begin = result.steps.len();
        plan_one(operation, &mut result);
        later.join(&mut result.steps[begin..]);
    }
    result
}

fn plan_one(operation: &Operation, result: &mut UndoPlan) {
    let mut undone: Vec<(StepIndex, StepIndex)> = Vec::new();
    for step in operation.steps.iter().rev() {
        let left = |why: &str| Left {
            operation: operation.id,
            summary: step.plan.summary.clone(),
            why: why.to_owned(),
        };
        if step.is_adopted() {
            result.kept.push(left(ADOPTED));
            continue;
        }
        let Some(output) = to_undo(step) else {
            continue;
        };
        match &step.plan.reversal {
            Reversal::Keep { why } => {
                result.kept.push(left(why));
                continue;
            }
            Reversal::Irreversible { why } => {
                result.irreversible.push(left(why));
                continue;
            }
            Reversal::Undo => {}
        }
        let index = StepIndex(u32::try_from(result.steps.len()).unwrap_or(u32::MAX));
        // An undo waits for the undo of everything that was built on it, directly or through kept steps.
        let after = undone
            .iter()
            .filter(|(forward, _)| depends_on(operation, *forward, step.plan.index))
            .map(|(_, undo)| *undo)
            .collect();
        result.steps.push(PlannedStep {
            index,
            host: step.plan.host.clone(),
            subject: step.plan.subject.clone(),
            kind: step.plan.kind.clone(),
            params: step.plan.params.clone(),
            summary: format!("undo: {}", step.plan.summary),
            action: Action::Undo {
                operation: operation.id,
                step: step.plan.index,
                output,
            },
            reversal: Reversal::Irreversible {
                why: "an undo is not undone; ask for the operation again".to_owned(),
            },
            once: false,
            after,
            peer: None,
        });
        undone.push((step.plan.index, index));
    }
}

/// What the undo of a step is given of what it reported; `None` where it needs no undo.
fn to_undo(step: &Step) -> Option<Option<Blob>> {
    if !step.may_have_acted() {
        return None;
    }
    match &step.status {
        StepStatus::Succeeded { evidence, done }
            if !done.changed && step.starts() <= 1 && *evidence != Evidence::Probe =>
        {
            None
        }
        StepStatus::Succeeded { done, .. } => Some(Some(done.output.clone())),
        StepStatus::Pending
        | StepStatus::Started
        | StepStatus::Failed(_)
        | StepStatus::Doubted { .. }
        | StepStatus::Drifted { .. } => Some(None),
    }
}

/// The undos of later operations that those of an earlier one wait for, host by host and subject by subject: only the last
/// ones of each, for they wait for the others.
#[derive(Default)]
struct Frontier {
    hosts: BTreeMap<HostName, BTreeSet<StepIndex>>,
    subjects: BTreeMap<Subject, BTreeSet<StepIndex>>,
}

impl Frontier {
    /// Has the undos of an operation wait, and those of earlier ones wait for them.
    fn join(&mut self, steps: &mut [PlannedStep]) {
        let mut hosts: BTreeMap<HostName, BTreeSet<StepIndex>> = BTreeMap::new();
        let mut subjects: BTreeMap<Subject, BTreeSet<StepIndex>> = BTreeMap::new();
        for step in steps {
            // What it waits for within its operation is replaced by it, where that has waited for all that it has to.
            let within: BTreeSet<StepIndex> = step.after.iter().copied().collect();
            let on_host = hosts.entry(step.host.clone()).or_default();
            let on_subject = subjects.entry(step.subject.clone()).or_default();
            let mut waits = within.clone();
            if on_host.is_disjoint(&within) {
                waits.extend(self.hosts.get(&step.host).into_iter().flatten());
            }
            if on_subject.is_disjoint(&within) {
                waits.extend(self.subjects.get(&step.subject).into_iter().flatten());
            }
            on_host.retain(|index| !within.contains(index));
            on_host.insert(step.index);
            on_subject.retain(|index| !within.contains(index));
            on_subject.insert(step.index);
            step.after = waits.into_iter().collect();
        }
        self.hosts.extend(hosts);
        self.subjects.extend(subjects);
    }
}

/// Whether `later` has `earlier` among its predecessors, at any distance.
fn depends_on(operation: &Operation, later: StepIndex, earlier: StepIndex) -> bool {
    let mut open = vec![later];
    let mut seen = vec![false; operation.steps.len()];
    while let Some(index) = open.pop() {
        let Some(step) = operation.steps.get(index.0 as usize) else {
            continue;
        };
        if std::mem::replace(&mut seen[index.0 as usize], true) {
            continue;
        }
        if step.plan.after.contains(&earlier) {
            return true;
        }
        open.extend(&step.plan.after);
    }
    false
}
