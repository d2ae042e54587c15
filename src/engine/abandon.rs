//! Giving an operation up. Only the log is changed: no host is asked, for that may be why it is given up.

use tallybook_agent::mask::Mask;
use tallybook_events::event::OperationAbandoned;
use tallybook_events::ids::OperationId;
use tallybook_events::step::Action;
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, Step};

use super::{Error, Holds, check_not_taken_back, draft, hold};
use crate::log::{Condition, Draft, Log};

/// Gives an unfinished operation up: nobody goes on with it, and what it claims is free. Operations that it was to take
/// back stand where they stood before; those of which some was undone are given up as well.
///
/// # Errors
/// When there is none, it is finished, another process carries it out, another operation takes it back, or the log fails.
pub async fn abandon(
    log: &Log,
    id: OperationId,
    reason: String,
    holds: Holds,
) -> Result<Operation, Error> {
    let _hold = match holds {
        Holds::Here => Some(hold(log, id)?),
        Holds::Daemon => None,
    };
    // Loaded once it is held: what another process did before is in it.
    let load = async || log.operation(id).await?.ok_or(Error::Missing(id));
    let operation = load().await?;
    check_not_taken_back(log, id).await?;
    if operation.status.is_final() {
        return Err(Error::Final {
            id,
            status: operation.status.label(),
        });
    }
    if operation.intent.is_session() {
        return Err(Error::Session(id));
    }
    let mut drafts = Vec::new();
    for original in operation.intent.takes_back() {
        let undoes = |step: &&Step| matches!(&step.plan.action, Action::Undo { operation, .. } if operation == original);
        if !operation
            .steps
            .iter()
            .filter(undoes)
            .any(Step::may_have_acted)
        {
            continue;
        }
        // Some of it is undone, so what its steps recorded is not so any more: nobody may go on with it.
        let undone = log.operation(*original).await?;
        let undone = undone.ok_or(Error::Missing(*original))?;
        let reason = format!(
            "operation {} began to take it back, and was given up: {reason}",
            id.short()
        );
        drafts.push(abandoned(&undone, reason)?);
    }
    drafts.push(abandoned(&operation, reason)?);
    let held = Condition::held(id, operation.claim);
    log.append(drafts, held).await?;
    load().await
}

fn abandoned(operation: &Operation, reason: String) -> Result<Draft, Error> {
    let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
    let abandoned = draft(&Mask::default(), &subject, OperationAbandoned { reason })?;
    Ok(abandoned.operation(operation.id, Some(operation.claim)))
}
