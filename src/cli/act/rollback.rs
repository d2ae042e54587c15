//! Taking an operation back: by `op rollback`, and at once where a failure leaves something half made.
//!
//! An undo is an operation of its own and is never undone itself.

use tallybook_events::ids::OperationId;
use tallybook_events::intent::Intent;
use tallybook_events::pace::Pace;
use tallybook_replay::operation::{Operation, OperationStatus};
use tallybook_replay::{since, undo};

use super::super::{Context, Error, Exit};
use super::aftermath::aftermath;
use super::dry_run::{Plan, TakenBack, dry_run as show_dry_run};
use super::ending::{Kept, conclude};
use super::resume::{load, recorded_inventory};
use super::{Wish, declared_by, engine, fleet, hand};
use crate::daemon::protocol::Purpose;
use crate::engine::{self, Engine, Outcome, Proposal};
use crate::log::Open;
use crate::render::Output;
use crate::render::progress::Progress;

/// Takes an operation back.
///
/// # Errors
/// When it was taken back already, or the undo can't be carried out.
pub(in crate::cli) async fn rollback(
    context: &Context,
    out: &mut Output,
    id: OperationId,
    dry_run: bool,
    detach: bool,
) -> Result<Exit, Error> {
    let log = context.open_log(Open::Existing).await?;
    let operation = load(log, id).await?;
    let wish = undo_wish(&operation)?;
    if dry_run {
        return show_dry_run(
            out,
            &Plan {
                takes_back: vec![TakenBack::of(&operation)],
                kept: Kept::of(&operation),
                ..Plan::of(wish)
            },
        );
    }
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let progress = Progress::new(out.format());
    let secrets = declared_by(&inventory);
    let undo = engine::new_operation();
    let purpose = Purpose::Run { undo_failed: false };
    let held = hand::hold(log, undo, Some(id), purpose, detach).await?;
    let engine = engine(log, fleet(&inventory)?, &progress, secrets).kept(hand::holds(&held));
    // Nobody else acts for it from here on, so what is planned now is all that there is to undo.
    engine.hold(id)?;
    engine.check_not_taken_back(id).await?;
    let operation = load(log, id).await?;
    let wish = undo_wish(&operation)?;
    begin(&engine, undo, &operation, wish).await?;
    if let Some(held) = held {
        return hand::over(&engine, out, &progress, undo, held, detach).await;
    }
    let ending = aftermath(&engine, undo, engine.run(undo).await, false).await;
    conclude(log, out, &progress, undo, ending).await
}

pub(super) fn undo_wish(operation: &Operation) -> Result<Wish, Error> {
    if operation.intent.is_rollback() {
        return Err(Error::RollbackOfRollback(operation.id));
    }
    if operation.intent.is_session() {
        return Err(Error::RollbackOfSession(operation.id));
    }
    if operation.status == OperationStatus::RolledBack {
        return Err(engine::Error::Final {
            id: operation.id,
            status: operation.status.label(),
        }
        .into());
    }
    let plan = undo::plan(operation);
    if let Some(left) = plan.irreversible.into_iter().next() {
        return Err(Error::Irreversible {
            id: operation.id,
            summary: left.summary,
            why: left.why,
        });
    }
    Ok(Wish {
        intent: Intent::Rollback {
            operation: operation.id,
        },
        claims: since::claims(operation),
        steps: plan.steps,
    })
}

/// Takes an operation back, and says which operation did and how that ended.
pub(super) async fn take_back(
    engine: &Engine,
    operation: &Operation,
    wish: Wish,
) -> Result<(OperationId, Outcome), Error> {
    let id = engine::new_operation();
    begin(engine, id, operation, wish).await?;
    match engine.run(id).await {
        Ok(outcome) => Ok((id, outcome)),
        Err(engine::Error::Log(source)) => Err(Error::left(id, source)),
        Err(error) => Err(error.into()),
    }
}

async fn begin(
    engine: &Engine,
    id: OperationId,
    operation: &Operation,
    wish: Wish,
) -> Result<(), Error> {
    let proposal = Proposal {
        id,
        intent: wish.intent,
        inventory: operation.inventory,
        claims: wish.claims,
        steps: wish.steps,
        planned_at: None,
        alongside: None,
        instead_of: vec![(operation.id, operation.last)],
        pace: Pace::default(),
    };
    engine.begin(proposal).await?;
    Ok(())
}
