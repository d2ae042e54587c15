//! From what a command wants to an operation that is carried out: planned anew as long as others come first.
//!
//! What can be refused is refused before anything is written.

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::super::{Context, Error, Exit, Loaded};
use super::dry_run::show_plan;
use super::ending::conclude;
use super::{engine, fleet};
use crate::cloud::Selection;
use crate::cloud::inventory::Inventory;
use crate::cloud_log;
use crate::engine::{self, Proposal};
use crate::log::{self, Log, Open, Refusal};
use crate::render::Output;
use crate::render::progress::Progress;

/// How often a plan is made anew when something changed meanwhile.
const PLANS_MAX: u32 = 8;

/// What every acting command takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct ActOptions {
    /// Show the plan and what of it can't be undone; change nothing
    #[arg(long)]
    dry_run: bool,
    /// When a step fails, leave things as they are for `op resume` or `op rollback`
    #[arg(long)]
    keep_failed: bool,
}

/// What an acting command wants.
pub(in crate::cli) struct Wish {
    /// What was asked.
    pub(in crate::cli) intent: Intent,
    /// What nobody else may change meanwhile.
    pub(in crate::cli) claims: Vec<Subject>,
    /// Its steps.
    pub(in crate::cli) steps: Vec<PlannedStep>,
}

/// What a plan needs to have been allocated: from this inventory, for these containers.
pub(in crate::cli) struct Needs<'a> {
    /// The inventory, as it is or with what the command adds to it.
    pub(in crate::cli) inventory: &'a Inventory,
    /// The containers.
    pub(in crate::cli) selection: Selection,
}

/// Plans, and carries the plan out as an operation.
///
/// # Errors
/// When there is no plan, the log refuses, or hosts can't be reached.
pub(in crate::cli) async fn operate(
    context: &Context,
    out: &mut Output,
    options: &ActOptions,
    loaded: &Loaded,
    needs: Option<Needs<'_>>,
    wish: impl Fn(&State, OperationId) -> Result<Wish, Error>,
) -> Result<Exit, Error> {
    let id = engine::new_operation();
    if options.dry_run {
        let mut state = context.state_or_empty().await?;
        if let Some(needs) = &needs {
            let outcome = cloud_log::plan(&state, needs.inventory, &needs.selection)?;
            state.allocations.extend(outcome.allocations());
        }
        return show_plan(out, &wish(&state, id)?);
    }
    // What can be refused without a log is refused before there is one.
    let known = context.state_or_empty().await?;
    if needs.is_none() {
        wish(&known, id)?;
    }
    let fleet = fleet(&loaded.inventory)?;
    let log = context.open_log(Open::Create).await?;
    let inventory = record(log, loaded, needs.as_ref()).await?;
    let progress = Progress::new(out.format());
    let engine = engine(log, fleet, &progress);
    let mut attempt = 0;
    loop {
        let state = log.state().await?;
        let Wish {
            intent,
            claims,
            steps,
        } = wish(&state, id)?;
        if steps.is_empty() {
            out.line("nothing to do")?;
            return Ok(Exit::Ok);
        }
        let proposal = Proposal {
            id,
            intent,
            inventory,
            claims,
            steps,
            planned_at: state.head.seq,
            instead_of: None,
        };
        match engine.begin(proposal).await {
            Ok(_) => break,
            Err(engine::Error::Log(log::Error::Refused(Refusal::Changed { .. })))
                if attempt < PLANS_MAX =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let outcome = engine.run(id).await?;
    conclude(&engine, out, &progress, id, outcome, !options.keep_failed).await
}

async fn record(log: &Log, loaded: &Loaded, needs: Option<&Needs<'_>>) -> Result<Seq, Error> {
    Ok(match needs {
        Some(needs) => {
            let (seq, _) = cloud_log::refresh(
                log,
                &loaded.path,
                &loaded.text,
                needs.inventory,
                &needs.selection,
            )
            .await?;
            seq
        }
        None => cloud_log::record_inventory(log, &loaded.path, &loaded.text).await?,
    })
}
