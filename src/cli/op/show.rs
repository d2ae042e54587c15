//! `tallybook op show`.

use serde::Serialize;
use tallybook_events::pace::Pace;
use tallybook_replay::fleet::{self, OnHost};
use tallybook_replay::operation::{Operation, StepStatus};

use super::super::{Context, Error, Exit, OperationArgument, resolve};
use super::ways::{self, Way};
use crate::log::{self, Filter, Open};
use crate::render::json::OperationWhole;
use crate::render::{
    Cell, Column, Format, Ink, Output, Table, Written, plain, plain_lines, summary, time,
};

/// Show an operation: its steps, what failed, and what to do next
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op show 4c0c2a55")]
pub(super) struct Args {
    /// The operation: its short id, or how that begins
    operation: OperationArgument,
    /// Also show what programs printed
    #[arg(long)]
    output: bool,
}

/// An operation and the ways out of it, as JSON.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    whole: OperationWhole,
    /// Where it stands on each host, where it has steps on several.
    hosts: Vec<OnHost>,
    next: Vec<Way>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        let entries = log.entries(&Filter::of_operation(id)).await?;
        let folded =
            Operation::fold(id, &entries).map_err(|source| log::Error::Operation { id, source })?;
        let (Some(folded), Some(known)) = (folded, log.summary(id).await?) else {
            return Err(Error::Unknown {
                what: "operation",
                name: id.to_string(),
                place: Some("in the index, although the state knows it".to_owned()),
                nearest: None,
                hint: Some("`tallybook verify` says what is wrong"),
            });
        };
        let whole = OperationWhole::new(&folded, &known, &entries);
        // That another operation takes it back is said by that one's events.
        let standing = Operation {
            status: known.status,
            ..folded
        };
        let next = ways::out_of(&standing, log.taken_back_by(id).await?);
        match out.format() {
            Format::Json => out.json(&Shown {
                whole,
                hosts: fleet::several(&standing),
                next,
            })?,
            Format::Table => {
                show(&standing, &whole, out)?;
                if self.output {
                    captured(&whole, out)?;
                }
                if !next.is_empty() {
                    out.line("")?;
                    out.inked(Ink::Head, "next")?;
                }
                for way in &next {
                    out.line(format!("  {way}"))?;
                }
            }
        }
        Ok(Exit::Ok)
    }
}

fn show(operation: &Operation, whole: &OperationWhole, out: &mut Output) -> Written {
    let view = &whole.operation;
    let mut about = Table::new([Column::left("OPERATION"), Column::left("")]);
    let mut row = |name: &str, cell: Cell| about.row([name.into(), cell]);
    row("id", Cell::from(&view.id));
    row("intent", Cell::from(&view.intent));
    let ink = summary::operation_ink(view.status);
    row("status", Cell::inked(ink, view.status.label()));
    if let Some(reason) = &view.reason {
        row("reason", reason.into());
    }
    row("by", Cell::from(&view.by));
    row("started", Cell::from(&view.first.time));
    let took = time::took(operation.started_unix_us, operation.last_unix_us);
    row(
        "last event",
        format!("{} (after {took})", view.last.time).into(),
    );
    let events = format!(
        "{} to {}, {} of them",
        view.first.seq, view.last.seq, view.events
    );
    row("events", events.into());
    row(
        "inventory",
        Cell::or_dash(whole.inventory.map(|seq| format!("event {seq}"))),
    );
    if operation.pace != Pace::default() {
        row("pace", operation.pace.to_string().into());
    }
    for claim in &view.claims {
        let held = if view.status.is_final() {
            "held"
        } else {
            "holds"
        };
        row(held, claim.into());
    }
    out.table(&about)?;
    if operation.steps.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut steps = Table::new([
        Column::right("STEP"),
        Column::left("STATUS"),
        Column::right("STARTS"),
        Column::left("HOST"),
        Column::left("KIND"),
        Column::left("WHAT"),
    ]);
    for step in &operation.steps {
        steps.row([
            step.plan.index.into(),
            Cell::inked(summary::step_ink(&step.status), step.status.label()),
            step.attempts.into(),
            Cell::from(&step.plan.host),
            Cell::from(&step.plan.kind),
            Cell::from(&step.plan.summary),
        ]);
    }
    out.table(&steps)?;
    let hosts = fleet::several(operation);
    if !hosts.is_empty() {
        out.line("")?;
        out.table(&summary::hosts(&hosts))?;
    }
    for step in &operation.steps {
        let (ink, what, hint) = match &step.status {
            StepStatus::Failed(failure) => (
                Ink::Bad,
                format!(
                    "step {} failed: {}: {}",
                    step.plan.index,
                    summary::class(failure.class),
                    failure.message
                ),
                failure.hint.as_deref(),
            ),
            StepStatus::Doubted { why } => (
                Ink::Open,
                format!("step {} is in doubt: {why}", step.plan.index),
                None,
            ),
            StepStatus::Drifted { what } => (
                Ink::Bad,
                format!("step {} drifted: {what}", step.plan.index),
                None,
            ),
            StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => continue,
        };
        out.inked(ink, &plain(&what))?;
        if let Some(hint) = hint {
            out.line(format!("  hint: {}", plain(hint)))?;
        }
    }
    Ok(())
}

fn captured(whole: &OperationWhole, out: &mut Output) -> Written {
    for captured in &whole.captured {
        let step = captured.step.map(|step| format!("step {step}: "));
        let exit = captured.exit.map_or_else(
            || "ended by a signal".to_owned(),
            |exit| format!("exit {exit}"),
        );
        out.line("")?;
        out.inked(
            Ink::Head,
            &format!(
                "{}{} ({exit}, event {})",
                step.unwrap_or_default(),
                plain(&captured.command),
                captured.seq
            ),
        )?;
        for line in plain_lines(captured.text.trim_end()) {
            out.line(format!("  {line}"))?;
        }
        if captured.dropped_bytes > 0 {
            out.line(format!(
                "  ({} bytes were dropped from the middle)",
                captured.dropped_bytes
            ))?;
        }
    }
    Ok(())
}
