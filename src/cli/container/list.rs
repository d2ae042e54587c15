//! `tallybook container list`.

use tallybook_events::name::HostName;

use super::super::{Context, Error, Exit, resolve};
use crate::log::Open;
use crate::render::json::{self, ContainerView, OriginView};
use crate::render::{Cell, Column, Format, Ink, Output, Table};

/// List containers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook container list\n  tallybook container list --on cn1 --format json"
)]
pub(super) struct Args {
    /// Only those on this host
    #[arg(long, value_name = "HOST")]
    on: Option<HostName>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        if let Some(host) = &self.on {
            resolve::host(&state, host)?;
        }
        let mut containers = json::containers(&state);
        containers.retain(|container| self.on.as_ref().is_none_or(|host| container.host == *host));
        match out.format() {
            Format::Json => out.json(&containers)?,
            Format::Table => out.table(&table(&containers))?,
        }
        Ok(Exit::Ok)
    }
}

/// What a container was made from, in a few words.
pub(in crate::cli) fn origin(origin: &OriginView) -> String {
    match origin {
        OriginView::Scratch {
            distribution,
            release,
        } => format!("{distribution} {release}").trim_end().to_owned(),
        OriginView::Template {
            template,
            generation,
            manifest: _,
        } => format!("template {template} {generation}"),
        OriginView::Container { host, container } => format!("container {host}/{container}"),
    }
}

/// Whether a container runs.
pub(in crate::cli) fn running(container: &ContainerView) -> Cell {
    match container.running {
        true => Cell::inked(Ink::Good, "running"),
        false => Cell::inked(Ink::Faint, "stopped"),
    }
}

/// Containers as a table.
pub(in crate::cli) fn table(containers: &[ContainerView]) -> Table {
    let mut table = Table::new([
        Column::left("CONTAINER"),
        Column::left("STATUS"),
        Column::left("ADDRESS"),
        Column::left("FROM"),
        Column::left("BACKING"),
        Column::left("CREATED"),
    ]);
    for container in containers {
        let allocated = container.allocation.as_ref();
        let address = container
            .address
            .clone()
            .or_else(|| allocated.map(|allocation| allocation.address.clone()));
        table.row([
            format!("{}/{}", container.host, container.name).into(),
            running(container),
            Cell::or_dash(address),
            origin(&container.origin).into(),
            container.backing.into(),
            Cell::from(&container.created.time),
        ]);
    }
    table
}
