//! `tallybook cloud refresh`: records the inventory and gives containers what it says.

use serde::Serialize;
use tallybook_events::ids::Seq;

use super::super::context::select;
use super::super::{Context, Error, Exit, act};
use super::show::{PlannedContainer, containers, planned};
use crate::cloud_log;
use crate::log::Open;
use crate::render::{Format, Output, Written, count};

/// Record the inventory, and allocate addresses, MACs and ports for its containers
///
/// What was allocated stays as it is. What belongs to a container that is neither in the inventory nor on its host
/// any more is released.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook cloud refresh --dry-run\n  tallybook cloud refresh --limit 'cn1,!shop'"
)]
pub(super) struct Args {
    /// Only these: names, groups and globs, `!` takes away
    #[arg(long)]
    limit: Option<String>,
    /// Show what would be recorded, and record nothing
    #[arg(long)]
    dry_run: bool,
}

/// What a refresh did, as JSON.
#[derive(Debug, Serialize)]
struct Refreshed {
    dry_run: bool,
    /// The event that holds the inventory; `null` in a dry run.
    inventory: Option<Seq>,
    new: usize,
    changed: usize,
    moved: usize,
    unchanged: usize,
    containers: Vec<PlannedContainer>,
    /// `HOST/NAME` of each.
    released: Vec<String>,
    /// `HOST/NAME` of each that is not in the inventory and still there.
    held: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        // Its text is going to be recorded.
        act::declared(&loaded)?;
        let selection = select(&loaded.inventory, self.limit.as_deref())?;
        let (inventory, outcome, state) = if self.dry_run {
            let state = context.state_or_empty().await?;
            let outcome = cloud_log::plan(&state, &loaded.inventory, &selection)?;
            (None, outcome, state)
        } else {
            // Before anything is written: what can't be given out at all is not worth an event.
            let state = context.state_or_empty().await?;
            cloud_log::plan(&state, &loaded.inventory, &selection)?;
            let log = context.open_log(Open::Create).await?;
            let (seq, outcome) = cloud_log::refresh(
                log,
                &loaded.path,
                &loaded.text,
                &loaded.inventory,
                &selection,
            )
            .await?;
            (Some(seq), outcome, log.state().await?)
        };
        let containers = planned(&loaded.inventory, &state, &outcome);
        let counted = |status: &str| {
            let containers = containers.iter();
            containers.filter(|one| one.status == status).count()
        };
        let name = |(host, name): &crate::cloud::allocate::Key| format!("{host}/{name}");
        let refreshed = Refreshed {
            dry_run: self.dry_run,
            inventory,
            new: counted("new"),
            changed: counted("changed"),
            moved: counted("moved"),
            unchanged: counted("unchanged"),
            released: outcome.released.keys().map(name).collect(),
            held: outcome.held.iter().map(name).collect(),
            containers,
        };
        match out.format() {
            Format::Json => out.json(&refreshed)?,
            Format::Table => show(&refreshed, out)?,
        }
        Ok(Exit::Ok)
    }
}

fn show(refreshed: &Refreshed, out: &mut Output) -> Written {
    let news: Vec<PlannedContainer> = refreshed
        .containers
        .iter()
        .filter(|container| container.status != "unchanged")
        .cloned()
        .collect();
    containers(&news, out)?;
    let would = if refreshed.dry_run { "would be " } else { "" };
    for name in &refreshed.released {
        out.line(format!(
            "{name}: {would}released; it is not in the inventory"
        ))?;
    }
    for name in &refreshed.held {
        out.line(format!(
            "{name}: kept, although it is not in the inventory: the container is still there"
        ))?;
    }
    let Refreshed {
        new,
        changed,
        moved,
        unchanged,
        ..
    } = refreshed;
    let released = refreshed.released.len();
    out.line(format!(
        "{new} new, {changed} changed, {moved} moved, {released} released, {unchanged} unchanged"
    ))?;
    match refreshed.inventory {
        Some(seq) => out.line(format!("the inventory is event {seq}")),
        None => out.line(format!(
            "dry run: nothing was recorded of {}",
            count(refreshed.containers.len(), "container")
        )),
    }
}
