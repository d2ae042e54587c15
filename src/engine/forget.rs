//! Has hosts leave out of their receipts what nobody will ask for any more.
//!
//! Only operations whose every outcome is in the log, and only behind their ends: what of them is still under way to the
//! host is older than what the host is shown here, and refused. Nothing depends on it: where it can't be done now, it is
//! done after a later operation.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use tallybook_agent::protocol::{Reply, Request};
use tallybook_events::ids::OperationId;
use tallybook_events::name::HostName;
use tallybook_replay::operation::OperationStatus;

use super::chain::{self, Crew, Cut, asked_to_stop};
use super::standing;
use crate::log;

/// Does it on the hosts that were met with a long journal, unless somebody wants an end.
pub(super) async fn on_long_hosts(crew: &Crew) {
    let hosts = std::mem::take(&mut *crew.long.lock().unwrap_or_else(PoisonError::into_inner));
    let mut stop = crew.stop.clone();
    for host in &hosts {
        let forgotten = tokio::select! {
            biased;
            () = asked_to_stop(&mut stop) => return,
            forgotten = on_host(crew, host) => forgotten,
        };
        match forgotten {
            Ok(receipts) => tracing::info!(%host, receipts, "left out of the receipts journal"),
            Err(cut) => tracing::warn!(%host, ?cut, "the receipts journal stays long"),
        }
    }
}

/// How many receipts were left out.
async fn on_host(crew: &Crew, host: &HostName) -> Result<u64, Cut> {
    let mut conversation = chain::open(crew, host).await?;
    let operations = Request::Operations;
    conversation
        .speaker
        .say(&operations)
        .await
        .map_err(Cut::Lost)?;
    let over = loop {
        match conversation.listener.hear().await.map_err(Cut::Lost)? {
            Reply::Operations(known) => break over(crew, known).await?,
            Reply::Refused(failure) => return Err(Cut::Refused(failure)),
            _ => {}
        }
    };
    if over.is_empty() {
        return Ok(0);
    }
    // Read once it is known what is over: it is behind all of that.
    let newest = crew.log.head().await?.seq;
    let (shown, _) = standing::shown(&crew.log, newest, conversation.proof.take()).await?;
    let forget = Request::Forget {
        shown,
        operations: over,
    };
    conversation.speaker.say(&forget).await.map_err(Cut::Lost)?;
    loop {
        match conversation.listener.hear().await.map_err(Cut::Lost)? {
            Reply::Forgotten(receipts) => return Ok(receipts),
            Reply::Prove(seen) => {
                let proof = crew.prove(host, seen).await?;
                let proof = Request::Proof(proof.unwrap_or_default());
                conversation.speaker.say(&proof).await.map_err(Cut::Lost)?;
            }
            Reply::Refused(failure) => return Err(Cut::Refused(failure)),
            _ => {}
        }
    }
}

/// Those of which nobody can ask anything any more. What this log does not know is another line's, and kept; so is what was
/// abandoned: steps of it may be in doubt still.
async fn over(
    crew: &Crew,
    operations: BTreeSet<OperationId>,
) -> Result<BTreeSet<OperationId>, log::Error> {
    let mut over = BTreeSet::new();
    for id in operations {
        let Some(known) = crew.log.summary(id).await? else {
            continue;
        };
        let is_over = match known.status {
            OperationStatus::Succeeded | OperationStatus::RolledBack => true,
            OperationStatus::Intended
            | OperationStatus::Running
            | OperationStatus::Interrupted
            | OperationStatus::Failed
            | OperationStatus::Stuck
            | OperationStatus::RollingBack
            | OperationStatus::Abandoned => false,
        };
        if is_over {
            over.insert(id);
        }
    }
    Ok(over)
}
