//! `--dry-run`: a plan as it would be recorded, and what of it could be undone.
//!
//! Nothing is written and no host is reached.

use serde::Serialize;
use serde_json::Value;
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep, Reversal};
use tallybook_replay::operation::{Operation, OperationStatus};

use super::super::{Error, Exit};
use super::Wish;
use super::ending::Kept;
use crate::render::{Cell, Column, Format, Output, Table, Written, count, packed, plain, summary};

/// All that is shown of what would be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) wish: Wish,
    /// The operations that it takes back, the newest first.
    pub(super) takes_back: Vec<TakenBack>,
    /// What steps of those did and stays.
    pub(super) kept: Vec<Kept>,
    /// Operations that it leaves as they are.
    pub(super) stays: Vec<Left>,
}

impl Plan {
    /// Of what takes nothing back.
    pub(super) fn of(wish: Wish) -> Self {
        Plan {
            wish,
            takes_back: Vec::new(),
            kept: Vec::new(),
            stays: Vec::new(),
        }
    }
}

/// An operation that is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct TakenBack {
    pub(super) operation: OperationId,
    pub(super) intent: String,
    pub(super) status: OperationStatus,
}

impl TakenBack {
    pub(super) fn of(operation: &Operation) -> Self {
        TakenBack {
            operation: operation.id,
            intent: operation.intent.summary(),
            status: operation.status,
        }
    }
}

/// An operation that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Left {
    pub(super) operation: OperationId,
    pub(super) intent: String,
    pub(super) why: String,
}

/// A plan, as JSON.
#[derive(Debug, Serialize)]
struct PlanView<'a> {
    dry_run: bool,
    intent: String,
    steps: Vec<StepPlan<'a>>,
    takes_back: &'a [TakenBack],
    kept: &'a [Kept],
    stays: &'a [Left],
}

/// A step of it, with its parameters as they are read by people.
#[derive(Debug, Serialize)]
struct StepPlan<'a> {
    index: StepIndex,
    host: &'a HostName,
    subject: String,
    kind: &'a str,
    params: Value,
    summary: &'a str,
    /// `forward`, or `undo`.
    action: &'static str,
    /// `undo`, `keep` or `irreversible`: what a rollback can do about it.
    reversal: &'static str,
    /// Why it is kept or can't be undone.
    reversal_why: Option<&'a str>,
    once: bool,
    after: &'a [StepIndex],
    /// The host that sends, where the step takes part in a transfer.
    peer: Option<&'a HostName>,
}

impl<'a> From<&'a PlannedStep> for StepPlan<'a> {
    fn from(step: &'a PlannedStep) -> Self {
        StepPlan {
            index: step.index,
            host: &step.host,
            subject: step.subject.to_string(),
            kind: &step.kind,
            params: packed::value(&step.params),
            summary: &step.summary,
            action: match step.action {
                Action::Forward => "forward",
                Action::Undo { .. } => "undo",
            },
            reversal: summary::reversal(&step.reversal),
            reversal_why: match &step.reversal {
                Reversal::Undo => None,
                Reversal::Keep { why } | Reversal::Irreversible { why } => Some(why),
            },
            once: step.once,
            after: &step.after,
            peer: step.peer.as_ref().map(|peer| &peer.host),
        }
    }
}

/// Shows what would be done, and that nothing was.
pub(super) fn dry_run(out: &mut Output, plan: &Plan) -> Result<Exit, Error> {
    let wish = &plan.wish;
    if out.format() == Format::Json {
        out.json(&PlanView {
            dry_run: true,
            intent: wish.intent.summary(),
            steps: wish.steps.iter().map(StepPlan::from).collect(),
            takes_back: &plan.takes_back,
            kept: &plan.kept,
            stays: &plan.stays,
        })?;
        return Ok(Exit::Ok);
    }
    show(out, plan)?;
    out.line(format!(
        "dry run: {} would be {}; nothing was done",
        wish.intent.summary(),
        count(wish.steps.len(), "step")
    ))?;
    Ok(Exit::Ok)
}

/// Shows a plan, for people.
pub(super) fn show(out: &mut Output, plan: &Plan) -> Written {
    // Of one that takes back a single operation it is known which.
    if let [_, _, ..] = plan.takes_back.as_slice() {
        let mut table = Table::new(["TAKES BACK", "STATUS", "INTENT"].map(Column::left));
        for taken in &plan.takes_back {
            table.row([
                taken.operation.short().into(),
                Cell::inked(summary::operation_ink(taken.status), taken.status.label()),
                Cell::from(&taken.intent),
            ]);
        }
        out.table(&table)?;
        out.line("")?;
    }
    let mut table = Table::new([
        Column::right("STEP"),
        Column::left("HOST"),
        Column::left("WHAT"),
        Column::left("UNDO"),
    ]);
    for step in &plan.wish.steps {
        let undo = match &step.reversal {
            // An undo is the way back; it has none of its own.
            _ if matches!(step.action, Action::Undo { .. }) => "-".to_owned(),
            Reversal::Undo => "yes".to_owned(),
            Reversal::Keep { why } => format!("kept: {why}"),
            Reversal::Irreversible { why } => format!("NO: {why}"),
        };
        table.row([
            step.index.0.to_string().into(),
            step.host.to_string().into(),
            step.summary.clone().into(),
            undo.into(),
        ]);
    }
    out.table(&table)?;
    for kept in &plan.kept {
        out.line(plain(&kept.to_string()))?;
    }
    for left in &plan.stays {
        let text = format!(
            "stays: operation {} ({}): {}",
            left.operation.short(),
            left.intent,
            left.why
        );
        out.line(plain(&text))?;
    }
    Ok(())
}
