//! How to take an operation back: its steps in reverse order of dependency, with what they reported.

use tallybook_events::event::Resolution;
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{Action, PlannedStep, Reversal};

use crate::operation::{Operation, StepStatus};

/// The steps that undo an operation, and what can't be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoPlan {
    /// The steps, ready to be a plan.
    pub steps: Vec<PlannedStep>,
    /// Steps whose effect stays: their summary and why.
    pub kept: Vec<(String, String)>,
    /// Steps whose effect can't be taken back: their summary and why.
    pub irreversible: Vec<(String, String)>,
}

/// Plans the undo of an operation.
///
/// A step that never acted needs none. One that reported at its first start that nothing changed needs none
/// either; after a second start that report can't be trusted, because the first may have done it, and neither can
/// what a probe saw, because it can't tell who made it. A step whose last start is known never to have acted is
/// undone all the same where an earlier start may have.
pub fn plan(operation: &Operation) -> UndoPlan {
    let mut undone: Vec<(StepIndex, StepIndex)> = Vec::new();
    let mut result = UndoPlan {
        steps: Vec::new(),
        kept: Vec::new(),
        irreversible: Vec::new(),
    };
    for step in operation.steps.iter().rev() {
        if !step.may_have_acted() {
            continue;
        }
        let output = match &step.status {
            StepStatus::Succeeded { resolution, done }
                if !done.changed && step.attempts.0 <= 1 && *resolution != Resolution::Probe =>
            {
                continue;
            }
            StepStatus::Succeeded { done, .. } => Some(done.output.clone()),
            StepStatus::Pending
            | StepStatus::Started
            | StepStatus::Failed(_)
            | StepStatus::Doubted { .. } => None,
        };
        match &step.plan.reversal {
            Reversal::Keep { why } => {
                result.kept.push((step.plan.summary.clone(), why.clone()));
                continue;
            }
            Reversal::Irreversible { why } => {
                result
                    .irreversible
                    .push((step.plan.summary.clone(), why.clone()));
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
    result
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
