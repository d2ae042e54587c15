//! What follows for the cloud when every step of an operation succeeded, recorded with that as one.
//!
//! No host is asked: it is all known by then.

use std::collections::BTreeSet;

use tallybook_agent::mask::Mask;
use tallybook_events::allocation::Allocation;
use tallybook_events::event::{AllocationReleased, OperationRolledBack, OperationSucceeded};
use tallybook_events::intent::Intent;
use tallybook_events::subject::Subject;
use tallybook_replay::operation::Operation;

use super::{Engine, Error, draft};
use crate::cloud::allocate::Key;
use crate::cloud_log;
use crate::log::{Condition, Draft};

impl Engine {
    /// Every step succeeded: says so, and what follows from it for the cloud.
    pub(super) async fn succeed(&self, operation: &Operation) -> Result<(), Error> {
        let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
        let claim = Some(operation.claim);
        let mut drafts = Vec::new();
        let mut given_up: BTreeSet<Key> = BTreeSet::new();
        for taken_back in operation.intent.takes_back() {
            let by = operation.id;
            drafts.push(
                self.draft(&subject, OperationRolledBack { by })?
                    .operation(*taken_back, claim),
            );
            given_up.extend(made_container(&self.load(*taken_back).await?.intent));
        }
        // What was given to containers that are not made after all.
        for key in given_up {
            let allocation = cloud_log::left_over(&self.log, &key).await?;
            drafts.extend(released(operation, &key, allocation)?);
        }
        match &operation.intent {
            Intent::ContainerDestroy { container, host } => {
                let key = (host.clone(), container.clone());
                let state = self.log.state().await?;
                let allocation = state.allocations.get(&key).cloned();
                drafts.extend(released(operation, &key, allocation)?);
            }
            Intent::HostInstall { .. }
            | Intent::HostPrepare { .. }
            | Intent::DnsApply { .. }
            | Intent::ContainerCreate { .. }
            | Intent::ContainerStart { .. }
            | Intent::ContainerStop { .. }
            | Intent::ContainerRestart { .. }
            | Intent::ContainerExec { .. }
            | Intent::ContainerShell { .. }
            | Intent::ContainerCopy { .. }
            | Intent::TemplateSnapshot { .. }
            | Intent::TemplateSync { .. }
            | Intent::TemplateRemove { .. }
            | Intent::Rollback { .. }
            | Intent::RollbackTo { .. } => {}
        }
        let events = operation.events + 1;
        let succeeded = self.draft(&subject, OperationSucceeded { events })?;
        drafts.push(succeeded.operation(operation.id, claim));
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }
}

/// The container that an operation was to make.
fn made_container(intent: &Intent) -> Option<Key> {
    match intent {
        Intent::ContainerCreate {
            container, host, ..
        } => Some((host.clone(), container.clone())),
        Intent::ContainerCopy { to, copy, .. } => Some((to.clone(), copy.clone())),
        Intent::HostInstall { .. }
        | Intent::HostPrepare { .. }
        | Intent::DnsApply { .. }
        | Intent::ContainerStart { .. }
        | Intent::ContainerStop { .. }
        | Intent::ContainerRestart { .. }
        | Intent::ContainerDestroy { .. }
        | Intent::ContainerExec { .. }
        | Intent::ContainerShell { .. }
        | Intent::TemplateSnapshot { .. }
        | Intent::TemplateSync { .. }
        | Intent::TemplateRemove { .. }
        | Intent::Rollback { .. }
        | Intent::RollbackTo { .. } => None,
    }
}

/// The end of an allocation. Not an event of the operation's own steps, so it is caused by it and not counted in it.
fn released(
    operation: &Operation,
    (host, container): &Key,
    allocation: Option<Allocation>,
) -> Result<Option<Draft>, Error> {
    let Some(allocation) = allocation else {
        return Ok(None);
    };
    let subject = Subject::Container(host.clone(), container.clone());
    let mut released = draft(
        &Mask::default(),
        &subject,
        AllocationReleased { allocation },
    )?;
    released.cause = operation.claim.seq;
    released.claim = Some(operation.claim);
    Ok(Some(released))
}
