//! `tallybook redact`: payloads that nobody must read, overwritten in every copy.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::Serialize;
use tallybook_events::event::ErasureCause;
use tallybook_events::ids::Seq;
use tallybook_events::record::{Body, Record};

use super::{Context, Error, Exit};
use crate::log::{Log, Open};
use crate::render::{Cell, Column, Format, Output, Table, count};

/// Overwrite the payloads of events for good: what a program printed, a session, an inventory
///
/// Header, hashes and every other event stay and can be verified; what was in the payload can't be had again, from this
/// store and what recoveries put aside in it. Copies of the store elsewhere are not reached, nor are the receipts on hosts:
/// what a step printed, or that is like it, stays there. That it was done, by whom and why, is an event.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook redact 204 --reason 'a password was typed' --dry-run"
)]
pub(super) struct Args {
    /// Which events: 17, or 17-21
    #[arg(required = true, value_name = "SEQ|FROM-TO")]
    events: Vec<Span>,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Show what would be erased, and erase nothing
    #[arg(long)]
    dry_run: bool,
    /// Erase it: that can't be undone
    #[arg(long, required_unless_present = "dry_run")]
    yes: bool,
}

/// Events from one to another.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

/// No command names more events than these at once.
const EVENTS_MAX: u64 = 100_000;

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        match first >= 1 && first <= last && last - first < EVENTS_MAX {
            true => Ok(Span { first, last }),
            false => Err(format!(
                "{first} to {last} are no events, or too many at once"
            )),
        }
    }
}

/// What was erased, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Redacted {
    dry_run: bool,
    events: Vec<Seq>,
    bytes: u64,
    announced: Option<Seq>,
    completed: Option<Seq>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let spans = self.events.iter();
        let seqs: BTreeSet<Seq> = spans
            .flat_map(|span| (span.first..=span.last).map(Seq))
            .collect();
        let mut records = Vec::new();
        for seq in &seqs {
            records.push(log.erasable(*seq).await?);
        }
        let cause = ErasureCause::Redaction;
        erase(log, records, cause, &self.reason, self.dry_run, out).await
    }
}

/// Erases payloads, or shows what would be erased.
pub(super) async fn erase(
    log: &Log,
    records: Vec<Record>,
    cause: ErasureCause,
    reason: &str,
    dry_run: bool,
    out: &mut Output,
) -> Result<Exit, Error> {
    let seqs: BTreeSet<Seq> = records.iter().map(|record| record.header.seq).collect();
    let mut redacted = Redacted {
        dry_run,
        events: seqs.iter().copied().collect(),
        bytes: records
            .iter()
            .map(|record| record.payload.len() as u64)
            .sum(),
        announced: None,
        completed: None,
    };
    if out.format() == Format::Table {
        out.table(&table(&records))?;
    }
    let mut payloads = seqs.len();
    if !dry_run && !seqs.is_empty() {
        let erased = log.erase(&seqs, cause, reason).await?;
        payloads = usize::try_from(erased.payloads).unwrap_or(usize::MAX);
        redacted.announced = Some(erased.announced);
        redacted.completed = Some(erased.completed);
    }
    let payloads = count(payloads, "payload");
    match (out.format(), redacted.completed) {
        (Format::Json, _) => out.json(&redacted)?,
        (Format::Table, Some(completed)) => {
            out.line(format!(
                "erased {payloads}: events {} and {completed} say so",
                redacted.announced.unwrap_or(Seq::NONE)
            ))?;
        }
        (Format::Table, None) => {
            out.line(format!("{payloads} would be erased; nothing was done"))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new([
        Column::right("SEQ"),
        Column::left("KIND"),
        Column::left("SUBJECT"),
        Column::right("BYTES"),
        Column::left("NOW"),
    ]);
    for record in records {
        let now = match record.body() {
            Body::Erased => "erased",
            Body::Intact => "readable",
            Body::Changed => "damaged",
        };
        table.row([
            record.header.seq.0.into(),
            Cell::from(&record.header.kind),
            Cell::from(&record.header.subject.to_string()),
            (record.payload.len() as u64).into(),
            now.into(),
        ]);
    }
    table
}
