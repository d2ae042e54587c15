//! Operations that were left: those that the log has running and nobody carries out are taken up, at the start and whenever
//! something happened.
//!
//! What an operator stopped or gave up, what failed, and what is stuck is not touched.

use std::sync::Arc;
use std::time::Duration;

use tallybook_events::ids::Seq;
use tallybook_replay::operation::OperationStatus;
use tokio::time::Instant;

use super::jobs::{How, Jobs, Turn};
use super::notify::Manager;
use crate::causes;
use crate::engine::runner_lock::{self, Hold};
use crate::log::{self, Condition, Log};

/// How long nothing may happen before it is looked all the same.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long to wait after something happened: much else may happen at once.
const SETTLE: Duration = Duration::from_millis(100);

/// Looks for operations that were left, for as long as the log can be used. Each turn that came to its end is a sign of life.
///
/// # Errors
/// When the log can't be used any more.
pub(super) async fn run(log: &Log, jobs: &Arc<Jobs>, manager: &Manager) -> Result<(), log::Error> {
    let every = manager.watchdog().map_or(LOOK_EVERY, |watchdog| {
        LOOK_EVERY.min(watchdog / 3).max(Duration::from_millis(10))
    });
    loop {
        let (seen, next) = turn(log, jobs, manager).await?;
        // Nothing is appended: it is answered by who appends, so that one lives.
        log.append(Vec::new(), Condition::none()).await?;
        manager.alive();
        let wake = (Instant::now() + every).min(next.unwrap_or(Instant::now() + every));
        tokio::select! {
            beyond = log.wait_beyond(seen) => beyond?,
            () = jobs.one_ended() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
        tokio::time::sleep(SETTLE.min(every / 2)).await;
    }
}

/// Takes up what was left. Returns how far the log was, and when it is to be looked again.
async fn turn(
    log: &Log,
    jobs: &Arc<Jobs>,
    manager: &Manager,
) -> Result<(Seq, Option<Instant>), log::Error> {
    let state = log.state().await?;
    let mut next: Option<Instant> = None;
    if let Some((host, _)) = &state.fenced {
        manager.status(&format!(
            "{host} fenced this log off: nothing is carried out"
        ));
        return Ok((state.head.seq, None));
    }
    for (id, known) in &state.operations {
        if jobs.find(*id).is_some() {
            continue;
        }
        let turn = jobs.turn(*id, known.last);
        if let Turn::Later(when) = turn {
            next = Some(next.map_or(when, |next| next.min(when)));
        }
        let undo_failed = turn == Turn::Now { undo_failed: true };
        let is_left = match known.status {
            OperationStatus::Running => matches!(turn, Turn::Unknown | Turn::Now { .. }),
            // One that the daemon had, and that a host was away for.
            OperationStatus::Interrupted => matches!(turn, Turn::Now { .. }),
            OperationStatus::Intended
            | OperationStatus::Failed
            | OperationStatus::Stuck
            | OperationStatus::RollingBack
            | OperationStatus::Succeeded
            | OperationStatus::RolledBack
            | OperationStatus::Abandoned => false,
        };
        let Some(store) = log.store().filter(|_| is_left) else {
            continue;
        };
        let hold = match Hold::take(store, *id) {
            Ok(hold) => hold,
            // Somebody carries it out; or is about to, and then the log says more by now.
            Err(runner_lock::Error::Held(_)) => continue,
            Err(error @ runner_lock::Error::File { .. }) => {
                tracing::warn!(
                    "operation {} was left, and can't be taken up: {}",
                    id.short(),
                    causes::in_line(&error)
                );
                continue;
            }
        };
        let now = log.summary(*id).await?;
        if now.is_none_or(|now| now.last != known.last || now.status != known.status) {
            continue;
        }
        match jobs.submit(*id, How::TakeUp { undo_failed }, vec![hold]) {
            Ok(_) => tracing::info!("operation {} was left, and is taken up", id.short()),
            // It ends, or has enough: the next look finds it again.
            Err(error) => {
                tracing::debug!("operation {} was left: {error}", id.short());
                break;
            }
        }
    }
    manager.status(&match jobs.count() {
        0 => "nothing to carry out".to_owned(),
        count => format!("operations that run or wait: {count}"),
    });
    Ok((state.head.seq, next))
}
