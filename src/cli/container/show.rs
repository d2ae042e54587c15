//! `tallybook container show`.

use super::super::context::resolve_container;
use super::super::{ContainerArgument, Context, Error, Exit};
use super::list::{origin, running};
use crate::log::Open;
use crate::render::json::{self, ContainerView};
use crate::render::{Cell, Column, Format, Output, Table};

/// Show a container
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container show cn1/shop")]
pub(super) struct Args {
    /// NAME, or HOST/NAME
    container: ContainerArgument,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        let key = resolve_container(&state, &self.container)?;
        let containers = json::containers(&state);
        let found = containers
            .iter()
            .find(|container| (&container.host, &container.name) == (&key.0, &key.1));
        if let Some(container) = found {
            match out.format() {
                Format::Json => out.json(container)?,
                Format::Table => out.table(&table(container))?,
            }
        }
        Ok(Exit::Ok)
    }
}

fn table(container: &ContainerView) -> Table {
    let mut table = Table::new([Column::left("CONTAINER"), Column::left("")]);
    let mut row = |name: &str, cell: Cell| table.row([name.into(), cell]);
    row(
        "name",
        format!("{}/{}", container.host, container.name).into(),
    );
    row("status", running(container));
    row("answers at", Cell::or_dash(container.address.as_ref()));
    let allocation = container.allocation.as_ref();
    row("address", Cell::or_dash(allocation.map(|one| &one.address)));
    row(
        "mac",
        Cell::or_dash(allocation.and_then(|one| one.mac.as_ref())),
    );
    for forward in allocation.iter().flat_map(|one| &one.forwards) {
        let lead = format!(
            "{}/{} of {} leads to {} ({})",
            forward.host_port,
            forward.protocol,
            container.host,
            forward.container_port,
            forward.name
        );
        row("port", lead.into());
    }
    row("made from", origin(&container.origin).into());
    row("backing", container.backing.into());
    let machine_id = Some(&container.machine_id).filter(|id| !id.is_empty());
    row("machine id", Cell::or_dash(machine_id));
    for key in &container.host_keys {
        row("host key", key.into());
    }
    for key in &container.keys {
        row("lets in", key.into());
    }
    let created = &container.created;
    row(
        "created",
        format!("{} (event {})", created.time, created.seq).into(),
    );
    row("last event", container.last.into());
    table
}
