//! `tallybook diff`: what changed between two points of the log.

use serde::Serialize;
use tallybook_events::ids::Seq;

use super::argument::Point;
use super::history::{self, Until};
use super::{Context, Error, Exit};
use crate::log;
use crate::render::difference::{self, Change, EntityDifference};
use crate::render::{Cell, Column, Format, Ink, Output, Table};

/// Show what differs between two points of the log
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook diff 2026-11-27 2026-11-28\n  tallybook diff 120")]
pub(super) struct Args {
    /// The earlier point: an event's number, or a time
    before: Point,
    /// The later point; the newest event without one
    after: Option<Point>,
}

#[derive(Debug, Serialize)]
struct Shown {
    /// The last event of each point.
    before: Seq,
    after: Seq,
    differences: Vec<EntityDifference>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        if !context.has_log()? {
            return Err(log::Error::Missing(context.store()?.to_owned()).into());
        }
        let journal = context.journal()?;
        let before = history::fold(&journal, Until::from(self.before))?;
        let after = history::fold(&journal, self.after.map_or(Until::Newest, Until::from))?;
        let shown = Shown {
            before: before.head.seq,
            after: after.head.seq,
            differences: difference::states(&before, &after)?,
        };
        match out.format() {
            Format::Json => out.json(&shown)?,
            Format::Table if shown.differences.is_empty() => out.line(format!(
                "nothing differs between events {} and {}",
                shown.before, shown.after
            ))?,
            Format::Table => out.table(&table(&shown.differences))?,
        }
        Ok(Exit::Ok)
    }
}

/// Differences as a table, a row a field; of what is gone only that it is.
pub(super) fn table(differences: &[EntityDifference]) -> Table {
    let mut table = Table::new([
        Column::left("WHAT"),
        Column::left("CHANGE"),
        Column::left("FIELD"),
        Column::left("BEFORE"),
        Column::left("AFTER"),
    ]);
    for difference in differences {
        let ink = match difference.change {
            Change::Added => Ink::Good,
            Change::Removed => Ink::Bad,
            Change::Changed => Ink::Open,
        };
        let change = || Cell::inked(ink, difference.change.label());
        if difference.change == Change::Removed || difference.fields.is_empty() {
            let what = Cell::from(&difference.what);
            table.row([what, change(), "".into(), "".into(), "".into()]);
            continue;
        }
        for (position, field) in difference.fields.iter().enumerate() {
            let (what, change) = match position {
                0 => (Cell::from(&difference.what), change()),
                _ => ("".into(), "".into()),
            };
            table.row([
                what,
                change,
                Cell::from(&field.field),
                difference::shown(&field.before).into(),
                difference::shown(&field.after).into(),
            ]);
        }
    }
    table
}
