//! `--dry-run`: a plan as it would be recorded, and what of it could be undone.
//!
//! Nothing is written and no host is reached.

use serde::Serialize;
use tallybook_events::step::{Action, PlannedStep, Reversal};

use super::super::{Error, Exit};
use super::Wish;
use crate::render::{Column, Format, Output, Table, count};

/// A plan, as JSON.
#[derive(Debug, Serialize)]
struct PlanView<'a> {
    dry_run: bool,
    intent: String,
    steps: &'a [PlannedStep],
}

pub(super) fn show_plan(out: &mut Output, wish: &Wish) -> Result<Exit, Error> {
    if out.format() == Format::Json {
        out.json(&PlanView {
            dry_run: true,
            intent: wish.intent.summary(),
            steps: &wish.steps,
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
    out.line(format!(
        "dry run: {} would be {}; nothing was done",
        wish.intent.summary(),
        count(wish.steps.len(), "step")
    ))?;
    Ok(Exit::Ok)
}
