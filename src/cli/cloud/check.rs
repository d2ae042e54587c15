//! `tallybook cloud check`: every mistake of the inventory, and whether what it says can be given out.

use serde::Serialize;

use super::super::{Context, Error, Exit};
use crate::cloud::{Diagnostic, Inventory, Selection, parse};
use crate::cloud_log;
use crate::render::{Format, Ink, Output, Written, count, plain};

/// Check the inventory and list every mistake
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook cloud check\n  tallybook cloud check --inventory other.toml"
)]
pub(super) struct Args {}

/// What a check found, as JSON.
#[derive(Debug, Serialize)]
struct Checked {
    ok: bool,
    file: String,
    diagnostics: Vec<Diagnostic>,
    /// What two would share, or nobody can have.
    conflicts: Vec<String>,
    hosts: usize,
    containers: usize,
    templates: usize,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let (path, text) = context.read_inventory()?;
        let file = path.display().to_string();
        let (inventory, diagnostics) = match parse(&file, &text) {
            Ok(inventory) => (Some(inventory), Vec::new()),
            Err(diagnostics) => (None, diagnostics.as_slice().to_vec()),
        };
        let conflicts = match &inventory {
            Some(inventory) => conflicts(context, inventory).await?,
            None => Vec::new(),
        };
        let counted = |number: fn(&Inventory) -> usize| inventory.as_ref().map_or(0, number);
        let checked = Checked {
            ok: diagnostics.is_empty() && conflicts.is_empty(),
            file,
            diagnostics,
            conflicts,
            hosts: counted(|inventory| inventory.hosts.len()),
            containers: counted(|inventory| inventory.containers.len()),
            templates: counted(|inventory| inventory.templates.len()),
        };
        match out.format() {
            Format::Json => out.json(&checked)?,
            Format::Table => show(&checked, out)?,
        }
        Ok(if checked.ok { Exit::Ok } else { Exit::Usage })
    }
}

/// What could not be given out, held against what the log has given out already.
async fn conflicts(context: &Context, inventory: &Inventory) -> Result<Vec<String>, Error> {
    let state = context.state_or_empty().await?;
    let everything = Selection::everything(inventory);
    Ok(match cloud_log::plan(&state, inventory, &everything) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    })
}

fn show(checked: &Checked, out: &mut Output) -> Written {
    for diagnostic in &checked.diagnostics {
        for line in diagnostic.to_string().lines() {
            out.line(plain(line))?;
        }
    }
    for conflict in &checked.conflicts {
        out.line(plain(conflict))?;
    }
    let file = plain(&checked.file);
    let mistakes = checked.diagnostics.len() + checked.conflicts.len();
    if !checked.ok {
        return out.inked(Ink::Bad, &format!("{file}: {}", count(mistakes, "mistake")));
    }
    out.inked(
        Ink::Good,
        &format!(
            "{file}: ok: {}, {}, {}",
            count(checked.hosts, "host"),
            count(checked.containers, "container"),
            count(checked.templates, "template")
        ),
    )
}
