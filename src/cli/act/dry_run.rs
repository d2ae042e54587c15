//! `--dry-run`: a plan as it would be recorded, and what of it could be undone.
//!
//! Nothing is written and no host is reached.

use serde::Serialize;
use serde_json::Value;
use tallybook_events::ids::StepIndex;
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep, Reversal};

use super::super::{Error, Exit};
use super::Wish;
use super::ending::Kept;
use crate::render::{Column, Format, Output, Table, count, packed, plain, summary};

/// A plan, as JSON.
#[derive(Debug, Serialize)]
struct PlanView<'a> {
    dry_run: bool,
    intent: String,
    steps: Vec<StepPlan<'a>>,
    kept: &'a [Kept],
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

pub(super) fn show_plan(out: &mut Output, wish: &Wish, kept: &[Kept]) -> Result<Exit, Error> {
    if out.format() == Format::Json {
        out.json(&PlanView {
            dry_run: true,
            intent: wish.intent.summary(),
            steps: wish.steps.iter().map(StepPlan::from).collect(),
            kept,
        })?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new([
        Column::right("STEP"),
        Column::left("HOST"),
        Column::left("WHAT"),
        Column::left("UNDO"),
    ]);
    for step in &wish.steps {
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
    for kept in kept {
        out.line(plain(&kept.to_string()))?;
    }
    out.line(format!(
        "dry run: {} would be {}; nothing was done",
        wish.intent.summary(),
        count(wish.steps.len(), "step")
    ))?;
    Ok(Exit::Ok)
}
