//! Giving an operation up. Only the log is changed: no host is asked, for that may be why it is given up.

use tallybook_agent::mask::Mask;
use tallybook_events::event::OperationAbandoned;
use tallybook_events::ids::OperationId;
use tallybook_events::subject::Subject;
use tallybook_replay::operation::Operation;

use super::runner_lock::Hold;
use super::{Error, check_not_taken_back, draft, session};
use crate::log::{Condition, Log};

/// Gives an unfinished operation up: nobody goes on with it, and what it claims is free. An operation that it was
/// taking back stands where it stood before.
///
/// # Errors
/// When there is none, it is finished, another process carries it out, another operation takes it back, or the log fails.
pub async fn abandon(log: &Log, id: OperationId, reason: String) -> Result<Operation, Error> {
    let _hold = Hold::take(log.directory(), id)?;
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
    if session::is_session(&operation.intent) {
        return Err(Error::Session(id));
    }
    let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
    let abandoned = draft(&Mask::default(), &subject, OperationAbandoned { reason })?;
    let abandoned = abandoned.operation(id, Some(operation.claim));
    let held = Condition::held(id, operation.claim);
    log.append(vec![abandoned], held).await?;
    load().await
}
