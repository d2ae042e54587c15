//! `tallybook host show`.

use tallybook_events::name::HostName;

use super::super::{Context, Error, Exit, container, resolve};
use super::list::status;
use crate::log::Open;
use crate::render::json::{self, ContainerView, HostView};
use crate::render::{Cell, Column, Format, Output, Table};
use serde::Serialize;

/// Show a host and its containers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook host show cn1")]
pub(super) struct Args {
    /// The host
    host: HostName,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    host: &'a HostView,
    on_it: Vec<ContainerView>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        let host = &resolve::host(&state, &self.host)?;
        let mut on_it = json::containers(&state);
        on_it.retain(|container| container.host == self.host);
        match out.format() {
            Format::Json => out.json(&Shown { host, on_it })?,
            Format::Table => {
                out.table(&table(host))?;
                if !on_it.is_empty() {
                    out.line("")?;
                    out.table(&container::table(&on_it))?;
                }
            }
        }
        Ok(Exit::Ok)
    }
}

fn table(host: &HostView) -> Table {
    let mut table = Table::new([Column::left("HOST"), Column::left("")]);
    table.row(["name".into(), Cell::from(&host.name)]);
    table.row(["status".into(), status(host)]);
    let bridge = host.bridge.iter().zip(&host.gateway).next();
    let bridge = bridge.map(|(bridge, gateway)| format!("{bridge} {gateway}"));
    table.row(["bridge".into(), Cell::or_dash(bridge)]);
    for (name, value) in &host.properties {
        table.row([name.into(), value.into()]);
    }
    table.row(["last event".into(), host.last.into()]);
    table
}
