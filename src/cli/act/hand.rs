//! Handing an operation over to the daemon, and following what it carries out.
//!
//! Nothing is carried out here: how it ended is what the daemon says and the log has.

use serde::Serialize;
use tallybook_events::ids::OperationId;

use super::super::{Error, Exit};
use super::ending::conclude;
use crate::daemon::client::{self, Event, Following, Held};
use crate::daemon::ending::Ending;
use crate::daemon::protocol::Purpose;
use crate::engine::watch::Notice;
use crate::engine::{Engine, Holds};
use crate::log::Log;
use crate::render::progress::Progress;
use crate::render::{Format, Output};

/// That an operation was handed over, as JSON.
#[derive(Debug, Serialize)]
struct Detached {
    operation: OperationId,
    outcome: &'static str,
    exit: Exit,
    code: u8,
    attach: String,
}

/// Has the daemon hold an operation that is about to be begun or taken up. `None` where there is no daemon.
///
/// # Errors
/// When others have it, or there is no daemon and there has to be one.
pub(super) async fn hold(
    log: &Log,
    id: OperationId,
    besides: Option<OperationId>,
    purpose: Purpose,
    detach: bool,
) -> Result<Option<Held>, Error> {
    let held = client::hold(log, id, besides, purpose).await?;
    if held.is_none() && detach {
        return Err(Error::NoDaemonToDetach);
    }
    Ok(held)
}

/// Who holds what is begun.
pub(super) const fn holds(held: &Option<Held>) -> Holds {
    match held {
        Some(_) => Holds::Daemon,
        None => Holds::Here,
    }
}

/// Has an operation held, as long as what is returned is kept, by whoever can: this process, or the daemon for one whose
/// store is out of reach.
///
/// # Errors
/// When others have it.
pub(in crate::cli) async fn kept(
    log: &Log,
    id: OperationId,
) -> Result<(Holds, Option<Held>), Error> {
    if log.store().is_some() {
        return Ok((Holds::Here, None));
    }
    let held = client::hold(log, id, None, Purpose::Own).await?;
    Ok((holds(&held), held))
}

/// Hands over what the log has by now; follows it, unless it is left to the daemon.
///
/// # Errors
/// When the daemon does not take it, or is gone before it ended.
pub(super) async fn over(
    engine: &Engine,
    out: &mut Output,
    progress: &Progress,
    id: OperationId,
    held: Held,
    detach: bool,
) -> Result<Exit, Error> {
    let following = held.go().await;
    let mut following = following.map_err(|source| Error::unfollowed(id, source))?;
    if detach {
        return detached(out, id);
    }
    join(progress, &mut following);
    let mut asked = false;
    let ending = loop {
        tokio::select! {
            biased;
            () = engine.stopped(), if !asked => {
                asked = true;
                let told = following.stop().await;
                told.map_err(|source| Error::unfollowed(id, source))?;
            }
            ended = next(&mut following, progress, id) => if let Some(ending) = ended? {
                break ending;
            },
        }
    };
    conclude(engine.log(), out, progress, id, ending).await
}

/// Follows an operation that the daemon carries out, until it ended or whoever follows leaves.
///
/// # Errors
/// When the daemon is gone before it ended.
pub(in crate::cli) async fn follow(
    log: &Log,
    out: &mut Output,
    id: OperationId,
    mut following: Following,
    leave: impl Future<Output = ()>,
) -> Result<Exit, Error> {
    let progress = Progress::new(out.format());
    join(&progress, &mut following);
    tokio::pin!(leave);
    let ending = loop {
        tokio::select! {
            () = &mut leave => {
                progress.finish();
                return detached(out, id).map(|_| Exit::Interrupted);
            }
            ended = next(&mut following, &progress, id) => if let Some(ending) = ended? {
                break ending;
            },
        }
    };
    conclude(log, out, &progress, id, ending).await
}

/// Shows how far it is.
fn join(progress: &Progress, following: &mut Following) {
    let picture = std::mem::take(&mut following.picture);
    progress.resume(picture.steps, picture.ended);
    for text in picture.running.values() {
        show(progress, text);
    }
}

/// Shows what happened next; `Some` when it ended.
async fn next(
    following: &mut Following,
    progress: &Progress,
    id: OperationId,
) -> Result<Option<Ending>, Error> {
    let event = following.next().await;
    match event.map_err(|source| Error::unfollowed(id, source))? {
        Event::Told(text) => show(progress, &text),
        Event::Missed(count) => {
            tracing::warn!("{count} notices were left out: they were not read in time");
        }
        // Whoever asked was told.
        Event::Stopping => {}
        Event::Ended(ending) => return Ok(Some(*ending)),
    }
    Ok(None)
}

fn show(progress: &Progress, text: &str) {
    match serde_json::from_str::<Notice>(text) {
        Ok(notice) => (progress.watch())(&notice),
        Err(error) => tracing::debug!("a notice that can't be read: {error}"),
    }
}

fn detached(out: &mut Output, id: OperationId) -> Result<Exit, Error> {
    let short = id.short();
    let attach = format!("tallybook op attach {short}");
    match out.format() {
        Format::Json => out.json_line(&Detached {
            operation: id,
            outcome: "detached",
            exit: Exit::Ok,
            code: Exit::Ok.code(),
            attach,
        })?,
        Format::Table => out.line(format!(
            "the daemon carries operation {short} out; `{attach}` follows it"
        ))?,
    }
    Ok(Exit::Ok)
}
