//! `tallybook host list`.

use super::super::{Context, Error, Exit};
use crate::log::Open;
use crate::render::json::{self, HostView};
use crate::render::{Cell, Column, Format, Ink, Output, Table};

/// List hosts
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook host list")]
pub(super) struct Args {}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        let hosts = json::hosts(&state);
        match out.format() {
            Format::Json => out.json(&hosts)?,
            Format::Table => out.table(&table(&hosts))?,
        }
        Ok(Exit::Ok)
    }
}

/// Where a host stands.
pub(in crate::cli) fn status(host: &HostView) -> Cell {
    match (host.installed, &host.bridge) {
        (_, Some(_)) => Cell::inked(Ink::Good, "prepared"),
        (true, None) => Cell::inked(Ink::Open, "installed"),
        (false, None) => Cell::inked(Ink::Faint, "not installed"),
    }
}

/// Hosts as a table.
pub(in crate::cli) fn table(hosts: &[HostView]) -> Table {
    let mut table = Table::new([
        Column::left("HOST"),
        Column::left("STATUS"),
        Column::left("BRIDGE"),
        Column::right("CONTAINERS"),
        Column::right("RUNNING"),
        Column::left("OS"),
        Column::left("KERNEL"),
    ]);
    for host in hosts {
        table.row([
            Cell::from(&host.name),
            status(host),
            Cell::or_dash(host.bridge.as_ref()),
            host.containers.into(),
            host.running.into(),
            Cell::or_dash(host.properties.get("os")),
            Cell::or_dash(host.properties.get("kernel")),
        ]);
    }
    table
}
