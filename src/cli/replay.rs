//! `tallybook replay`: the journal folded from nothing, held against the live projections.

use serde::Serialize;
use tallybook_events::ids::Seq;
use tallybook_replay::state::State;

use super::diff;
use super::history::{self, Until};
use super::{Context, Error, Exit};
use crate::log::Open;
use crate::render::difference::{self, EntityDifference};
use crate::render::{Format, Ink, Output, Written, count};

/// Fold all events from nothing and compare with the live state
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook replay")]
pub(super) struct Args {}

/// What a replay found, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Replayed {
    pub(super) same: bool,
    /// The newest event that was folded.
    pub(super) head: Seq,
    pub(super) counts: Counts,
    /// From the fold to the live state.
    pub(super) differences: Vec<EntityDifference>,
    /// Further differences, in what only the program itself uses: `head`, `links`, and the like.
    pub(super) internal: Vec<String>,
}

/// What the fold holds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Counts {
    events: u64,
    hosts: usize,
    containers: usize,
    templates: usize,
    allocations: usize,
    operations: usize,
    claims: usize,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let log = context.open_log(Open::AsItIs).await?;
        let live = match log.altered().await {
            Some(stored) => stored,
            None => log.state().await?,
        };
        let mut folded = history::fold(&context.journal()?, Until::Seq(live.head.seq))?;
        let operations = folded.operations.len();
        folded.forget_past();
        let mut replayed = compare(&folded, &live)?;
        // All that were folded, also those that the live state has no use for.
        replayed.counts.operations = operations;
        match out.format() {
            Format::Json => out.json(&replayed)?,
            Format::Table => show(&replayed, out)?,
        }
        Ok(match replayed.same {
            true => Exit::Ok,
            false => Exit::Verification,
        })
    }
}

/// Holds a fold against the live state of the same head.
pub(super) fn compare(folded: &State, live: &State) -> Result<Replayed, Error> {
    let differences = difference::states(folded, live)?;
    let mut internal = Vec::new();
    let mut note = |differs: bool, what: &str| {
        if differs {
            internal.push(what.to_owned());
        }
    };
    note(folded.head != live.head, "head");
    // Whatever the views leave out still has to be the same.
    note(
        differences.is_empty() && folded.head == live.head && folded != live,
        "a field that is not shown",
    );
    Ok(Replayed {
        same: folded == live,
        head: folded.head.seq,
        counts: Counts {
            events: folded.head.seq.0,
            hosts: folded.hosts.len(),
            containers: folded.containers.len(),
            templates: folded.templates.len(),
            allocations: folded.allocations.len(),
            operations: folded.operations.len(),
            claims: folded.claims.len(),
        },
        differences,
        internal,
    })
}

fn show(replayed: &Replayed, out: &mut Output) -> Written {
    let counts = &replayed.counts;
    let parts = [
        count(counts.hosts, "host"),
        count(counts.containers, "container"),
        count(counts.templates, "template generation"),
        count(counts.allocations, "allocation"),
        count(counts.operations, "operation"),
        count(counts.claims, "claim"),
    ];
    out.line(format!(
        "folded {} events: {}",
        counts.events,
        parts.join(", ")
    ))?;
    out.table(&diff::table(&replayed.differences))?;
    for what in &replayed.internal {
        out.line(format!("the live state differs in: {what}"))?;
    }
    match replayed.same {
        true => out.inked(Ink::Good, "replay: the same"),
        false => {
            out.line("  hint: remove the store's `index` and `projection`; the next command builds them from the journal")?;
            out.inked(
                Ink::Bad,
                "replay: the live state is not what the events say",
            )
        }
    }
}
