//! What was begun since a point of the log, and how to take all of it back as one.
//!
//! It says of everything whether it is taken back or stays, and why; nothing is left out in silence.

use std::collections::BTreeMap;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::subject::Subject;

use crate::operation::{Operation, OperationStatus};
use crate::undo::{self, Left, UndoPlan};

/// How everything since a point is taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since {
    /// The operations that are taken back, the newest first.
    pub operations: Vec<OperationId>,
    /// What undoes them. Nothing of it is irreversible.
    pub undo: UndoPlan,
    /// What they claimed: the undo claims the same.
    pub claims: Vec<Subject>,
    /// The operations that stay as they are, the newest first, and why.
    pub stays: Vec<(OperationId, Stays)>,
}

/// Why an operation is not taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stays {
    /// It was a session in a container: nobody knows how to undo what somebody did there.
    Session,
    /// Something of it can't be undone, and without that the rest would be half of it.
    Irreversible(Vec<Left>),
    /// It took back, or began to, these operations, which are older than the point; an undo is not undone.
    Rollback(Vec<OperationId>),
    /// It was begun before the point, and acted behind it as well.
    BegunBefore,
}

/// Why not everything since a point can be taken back as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Somebody else takes an operation back already.
    #[error("operation {} is being taken back by another", .0.short())]
    RollingBack(OperationId),
    /// An unfinished operation holds what it claims, and can't be taken back.
    #[error("operation {} is not done, and can't be rolled back: {summary}: {why}", id.short())]
    Irreversible {
        /// The operation.
        id: OperationId,
        /// The step.
        summary: String,
        /// Why not.
        why: String,
    },
}

/// Plans to take back what was begun behind event `to`. `operations` are all that have an event behind it.
///
/// # Errors
/// When one of them is being taken back by another, or is not done and can't be taken back.
pub fn plan(to: Seq, operations: &[Operation]) -> Result<Since, Error> {
    let is_since = |operation: &Operation| operation.claim.seq > to;
    let by_id: BTreeMap<OperationId, &Operation> =
        operations.iter().map(|known| (known.id, known)).collect();
    let mut newest_first: Vec<&Operation> = operations.iter().collect();
    newest_first.sort_by_key(|operation| std::cmp::Reverse(operation.claim.seq));
    let mut since = Since::default();
    let mut taken: Vec<&Operation> = Vec::new();
    for operation in newest_first {
        let stays = if operation.intent.is_rollback() {
            let older = operation.intent.takes_back().iter().copied();
            let older = older.filter(|id| !by_id.get(id).is_some_and(|known| is_since(known)));
            let older: Vec<OperationId> = older.collect();
            // One that undid nothing, or only what is younger than the point, changed nothing that was there then.
            let matters = acted_behind(operation, to) && !older.is_empty();
            matters.then_some(Stays::Rollback(older))
        } else if !is_since(operation) {
            acted_behind(operation, to).then_some(Stays::BegunBefore)
        } else if operation.intent.is_session() {
            Some(Stays::Session)
        } else {
            match operation.status {
                OperationStatus::RolledBack => None,
                OperationStatus::RollingBack => return Err(Error::RollingBack(operation.id)),
                OperationStatus::Intended
                | OperationStatus::Running
                | OperationStatus::Interrupted
                | OperationStatus::Failed
                | OperationStatus::Stuck
                | OperationStatus::Succeeded
                | OperationStatus::Abandoned => {
                    let stays = irreversible(operation)?;
                    if stays.is_none() {
                        taken.push(operation);
                    }
                    stays
                }
            }
        };
        since.stays.extend(stays.map(|stays| (operation.id, stays)));
    }
    since.operations = taken.iter().map(|operation| operation.id).collect();
    since.undo = undo::plan_all(taken.iter().copied());
    for operation in taken {
        for subject in claims(operation) {
            if !since.claims.contains(&subject) {
                since.claims.push(subject);
            }
        }
    }
    Ok(since)
}

/// What an undo of the operation has to claim.
pub fn claims(operation: &Operation) -> Vec<Subject> {
    let planned = operation.steps.first();
    match operation.claims.as_slice() {
        [] => planned
            .map(|step| step.plan.subject.clone())
            .into_iter()
            .collect(),
        claims => claims.to_vec(),
    }
}

/// Whether a step of it may have acted behind a point.
fn acted_behind(operation: &Operation, to: Seq) -> bool {
    let mut steps = operation.steps.iter();
    steps.any(|step| step.last > to && step.may_have_acted())
}

fn irreversible(operation: &Operation) -> Result<Option<Stays>, Error> {
    let irreversible = undo::plan(operation).irreversible;
    match irreversible.first() {
        None => Ok(None),
        Some(_) if operation.status.is_final() => Ok(Some(Stays::Irreversible(irreversible))),
        Some(Left { summary, why, .. }) => Err(Error::Irreversible {
            id: operation.id,
            summary: summary.clone(),
            why: why.clone(),
        }),
    }
}
