//! `op resume` and `op adopt`: an unfinished operation is gone on with, with the inventory that it began with.
//!
//! What was begun before is looked at, never assumed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tallybook_events::event::Event;
use tallybook_events::ids::{OperationId, Seq, StepIndex};
use tallybook_events::pace::Pace;
use tallybook_replay::operation::{Operation, Step, StepStatus};

use super::super::{Context, Error, Exit};
use super::aftermath::aftermath;
use super::ending::conclude;
use super::{declared_by, engine, fleet, hand};
use crate::cloud::inventory::Inventory;
use crate::cloud::parse;
use crate::daemon::protocol::Purpose;
use crate::engine::adopt::Adopted;
use crate::engine::{self, Failed, Once};
use crate::log::{Filter, Log, Open};
use crate::render::Output;
use crate::render::progress::Progress;

/// Takes an unfinished operation up again; `forced` is why what is in the way of its steps is set aside.
///
/// # Errors
/// When it is finished, or can't be carried out.
pub(in crate::cli) async fn resume(
    context: &Context,
    out: &mut Output,
    id: OperationId,
    once: Once,
    forced: Option<&str>,
    pace: Pace,
    detach: bool,
) -> Result<Exit, Error> {
    let log = context.open_log(Open::Existing).await?;
    let operation = load(log, id).await?;
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let progress = Progress::new(out.format());
    let is_done = |step: &&Step| matches!(step.status, StepStatus::Succeeded { .. });
    progress.resume(
        operation.steps.len(),
        operation.steps.iter().filter(is_done).count(),
    );
    let secrets = declared_by(&inventory);
    let purpose = Purpose::GoOn {
        once_again: once == Once::Again,
    };
    let held = hand::hold(log, id, None, purpose, detach).await?;
    let engine = engine(log, fleet(&inventory)?, &progress, secrets).kept(hand::holds(&held));
    if let Some(held) = held {
        engine.take_up(id, forced, pace).await?;
        return hand::over(&engine, out, &progress, id, held, detach).await;
    }
    let carried_out = match engine.take_up(id, forced, pace).await {
        Ok(()) => engine.go_on(id, once, Failed::Again).await,
        Err(error) => Err(error),
    };
    let ending = aftermath(&engine, id, carried_out, false).await;
    conclude(log, out, &progress, id, ending).await
}

/// Takes over what is there as what steps of an operation were to make.
///
/// # Errors
/// When the operation is finished, or a host has no words for what is there.
pub(in crate::cli) async fn adopt(
    context: &Context,
    out: &Output,
    id: OperationId,
    steps: &BTreeSet<StepIndex>,
    reason: &str,
) -> Result<Adopted, Error> {
    let log = context.open_log(Open::Existing).await?;
    let operation = load(log, id).await?;
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let progress = Progress::new(out.format());
    let secrets = declared_by(&inventory);
    let engine = engine(log, fleet(&inventory)?, &progress, secrets);
    let adopted = engine.adopt(id, steps, reason).await;
    progress.finish();
    Ok(adopted?)
}

pub(super) async fn load(log: &Log, id: OperationId) -> Result<Operation, Error> {
    Ok(log.operation(id).await?.ok_or(engine::Error::Missing(id))?)
}

/// The inventory that an operation ran with, from the log.
pub(super) async fn recorded_inventory(log: &Log, seq: Seq) -> Result<Inventory, Error> {
    let entries = log.entries(&Filter::at(seq)).await?;
    let recorded = entries.into_iter().find_map(|entry| match entry.event {
        Event::InventoryRecorded(recorded) => Some(recorded),
        _ => None,
    });
    let Some(recorded) = recorded else {
        return Err(Error::InventoryLost(seq));
    };
    parse(&recorded.path, &recorded.text.to_string()).map_err(|diagnostics| Error::Inventory {
        path: PathBuf::from(recorded.path),
        diagnostics,
    })
}
