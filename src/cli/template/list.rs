//! `tallybook template list`.

use super::super::{Context, Error, Exit};
use crate::log::Open;
use crate::render::json::{self, TemplateView};
use crate::render::{Cell, Column, Format, Output, Table, bytes};

/// List templates and their generations
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook template list")]
pub(super) struct Args {}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        let templates = json::templates(&state);
        match out.format() {
            Format::Json => out.json(&templates)?,
            Format::Table => out.table(&table(&templates))?,
        }
        Ok(Exit::Ok)
    }
}

/// Generations as a table.
pub(in crate::cli) fn table(templates: &[TemplateView]) -> Table {
    let mut table = Table::new([
        Column::left("TEMPLATE"),
        Column::right("GENERATION"),
        Column::right("SIZE"),
        Column::right("ENTRIES"),
        Column::left("MANIFEST"),
        Column::left("CREATED"),
        Column::left("ON"),
    ]);
    for template in templates {
        let mut hosts: Vec<String> = template.hosts.iter().map(ToString::to_string).collect();
        hosts.extend(template.differing.iter().map(|other| {
            let manifest = other.manifest.short();
            format!("{} (another tree: {manifest})", other.host)
        }));
        table.row([
            Cell::from(&template.name),
            template.generation.into(),
            bytes(template.size_bytes).into(),
            template.entries.into(),
            template.manifest.short().into(),
            Cell::from(&template.created.time),
            hosts.join(" ").into(),
        ]);
    }
    table
}
