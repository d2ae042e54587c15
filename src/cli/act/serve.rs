//! How the daemon carries an operation out: with the inventory that the log has for it, and what this process can reach and read.
//!
//! The same engine, and the same aftermath, as where a command does so itself.

use std::sync::Arc;

use tallybook_events::ids::OperationId;
use tallybook_events::pace::Pace;

use super::super::Error;
use super::aftermath::aftermath;
use super::declared_by;
use super::fleet::fleet_with;
use super::resume::{load, recorded_inventory};
use crate::daemon::ending::{Ending, Ran};
use crate::daemon::jobs::{How, Task, Work};
use crate::engine::reach::AgentProgram;
use crate::engine::{Engine, Failed, Limits, Once};
use crate::log::Log;

/// What the daemon does with an operation. The agent is read now: by the time of an operation another version of both
/// programs may have been put in their place.
///
/// # Errors
/// When there is no agent to send, or another one than this program was built with.
pub(in crate::cli) fn work(log: &Log) -> Result<Work, Error> {
    let log = log.clone();
    let agent = AgentProgram::beside_this_program()?;
    agent.load()?;
    Ok(Arc::new(move |task| {
        let (log, agent) = (log.clone(), agent.clone());
        Box::pin(async move {
            match prepared(&log, agent, task).await {
                Ok((engine, id, how)) => carry_out(&engine, id, how).await,
                Err(error) => Ran::Refused(error.report()).into(),
            }
        })
    }))
}

type Prepared = (Engine, OperationId, How);

async fn prepared(log: &Log, agent: AgentProgram, task: Task) -> Result<Prepared, Error> {
    let Task {
        operation: id,
        how,
        holds,
        watch,
        stop,
        service,
    } = task;
    let operation = load(log, id).await?;
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let fleet = Arc::new(fleet_with(&inventory, agent)?);
    let engine = Engine::new(log.clone(), fleet, watch, stop, Limits::default())
        .with_secrets(declared_by(&inventory))
        .serving(service, holds);
    Ok((engine, id, how))
}

async fn carry_out(engine: &Engine, id: OperationId, how: How) -> Ending {
    let mut wants_undo = false;
    let carried_out = match how {
        How::Run { undo_failed } => {
            wants_undo = undo_failed;
            engine.run(id).await
        }
        How::GoOn { once_again } => {
            let once = match once_again {
                true => Once::Again,
                false => Once::Ask,
            };
            engine.go_on(id, once, Failed::Again).await
        }
        How::TakeUp { undo_failed } => {
            wants_undo = undo_failed;
            match engine.take_up(id, None, Pace::default()).await {
                Ok(()) => engine.go_on(id, Once::Ask, Failed::Stay).await,
                Err(error) => Err(error),
            }
        }
    };
    aftermath(engine, id, carried_out, wants_undo).await
}
