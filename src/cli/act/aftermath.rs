//! What is done about how a run ended, by whoever carried it out: what failed half made is taken back at once.
//!
//! Nothing is shown here.

use tallybook_events::ids::OperationId;
use tallybook_events::intent::Intent;
use tallybook_replay::operation::Operation;

use super::super::Error;
use super::ending::untouched;
use super::resume::load;
use super::rollback::{take_back, undo_wish};
use crate::daemon::ending::{Ending, Ran, Undone};
use crate::engine::{self, Engine, Outcome};

/// How a run ended, once what failed is taken back where that is wanted and its kind is.
pub(super) async fn aftermath(
    engine: &Engine,
    id: OperationId,
    carried_out: Result<Outcome, engine::Error>,
    undo_failed: bool,
) -> Ending {
    let outcome = match carried_out {
        Ok(outcome) => outcome,
        Err(engine::Error::Log(source)) => {
            return Ran::Left(Error::left(id, source).report()).into();
        }
        Err(error) => return Ran::Refused(Error::from(error).report()).into(),
    };
    let undone = match undo(engine, id, &outcome, undo_failed).await {
        Ok(undone) => undone,
        Err(Error::Log(source)) => Some(Undone::Failed(Error::left(id, source).report())),
        Err(error) => Some(Undone::Failed(error.report())),
    };
    Ending {
        ran: Ran::Ended(outcome),
        undone,
        again: None,
    }
}

async fn undo(
    engine: &Engine,
    id: OperationId,
    outcome: &Outcome,
    undo_failed: bool,
) -> Result<Option<Undone>, Error> {
    if !undo_failed {
        return Ok(None);
    }
    let operation = load(engine.log(), id).await?;
    if !is_taken_back(&operation, outcome) {
        return Ok(None);
    }
    let (undo, outcome) = take_back(engine, &operation, undo_wish(&operation)?).await?;
    Ok(Some(Undone::By(undo, outcome)))
}

/// Whether an operation that ended like this is taken back at once.
fn is_taken_back(operation: &Operation, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed { .. } => builds_something(&operation.intent),
        // An undo is never undone: it stays for `op resume`.
        Outcome::Unreachable(_) => !operation.intent.is_rollback() && untouched(operation),
        // An undo would act under the fence that was just refused.
        Outcome::Fenced(_) => false,
        Outcome::Succeeded | Outcome::Interrupted(_) | Outcome::Stuck(_) => false,
    }
}

/// Whether a failed operation of this kind leaves something half made, which its undo removes.
fn builds_something(intent: &Intent) -> bool {
    match intent {
        Intent::ContainerCreate { .. }
        | Intent::ContainerCopy { .. }
        | Intent::DnsApply { .. }
        | Intent::TemplateSnapshot { .. } => true,
        Intent::HostInstall { .. }
        | Intent::HostPrepare { .. }
        | Intent::ContainerStart { .. }
        | Intent::ContainerStop { .. }
        | Intent::ContainerRestart { .. }
        | Intent::ContainerDestroy { .. }
        | Intent::ContainerExec { .. }
        | Intent::ContainerShell { .. }
        | Intent::TemplateSync { .. }
        | Intent::TemplateRemove { .. }
        | Intent::Rollback { .. }
        | Intent::RollbackTo { .. } => false,
    }
}
