//! `tallybook op list`.

use super::super::{Context, Error, Exit};
use crate::log::Open;
use crate::render::json::{self, OperationView};
use crate::render::{Cell, Column, Format, Output, Table, summary};

/// How many are listed when not all are asked for.
const NEWEST: usize = 20;

/// List operations: every unfinished one, and the newest
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op list --unfinished")]
pub(super) struct Args {
    /// All of them
    #[arg(long, conflicts_with = "unfinished")]
    all: bool,
    /// Only those that are not done: unfinished, interrupted, failed, stuck
    #[arg(long)]
    unfinished: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let log = context.open_log(Open::Existing).await?;
        let mut known = match (self.all, self.unfinished) {
            (true, _) => log.operations(None).await?,
            (false, true) => log.state().await?.operations,
            (false, false) => log.operations(Some(NEWEST)).await?,
        };
        if self.unfinished {
            known.retain(|_, operation| operation.is_open());
        }
        let operations = json::operations(&known);
        match out.format() {
            Format::Json => out.json(&operations)?,
            Format::Table => out.table(&table(&operations))?,
        }
        Ok(Exit::Ok)
    }
}

/// Operations as a table.
pub(in crate::cli) fn table(operations: &[OperationView]) -> Table {
    let mut table = Table::new([
        Column::left("OPERATION"),
        Column::left("STARTED"),
        Column::left("STATUS"),
        Column::left("BY"),
        Column::right("EVENTS"),
        Column::left("INTENT"),
        Column::left("REASON"),
    ]);
    for operation in operations {
        table.row([
            Cell::from(&operation.short),
            Cell::from(&operation.first.time),
            Cell::inked(
                summary::operation_ink(operation.status),
                operation.status.label(),
            ),
            Cell::from(&operation.by),
            operation.events.into(),
            Cell::from(&operation.intent),
            Cell::or_dash(operation.reason.as_ref()),
        ]);
    }
    table
}
