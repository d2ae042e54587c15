//! Lets a controller act or not: asks it to show what the fence wants to see.

use std::time::{Duration, Instant};

use tallybook_events::ids::LogId;
use tallybook_events::step::{FailureClass, Mark, StepFailure};

use crate::batch::{io_class, lock_failure};
use crate::fence::{Error, Standing, Verdict};
use crate::line::{Incoming, Line};
use crate::protocol::{Reply, Request, Shown};
use crate::queue::Got;
use crate::receipts;
use crate::serve::Site;
use crate::step::{fail, failure};

/// How long a controller may take to show an event: a paused one keeps nobody else waiting for longer.
const PROOF_WAIT: Duration = Duration::from_secs(60);
/// How often the line is looked at meanwhile.
const SLICE: Duration = Duration::from_millis(200);

/// What a controller shows.
///
/// # Errors
/// When it is not of this log.
pub(crate) fn standing(log: LogId, shown: &Shown) -> Result<Standing, StepFailure> {
    Standing::of(log, shown).map_err(|error| fence_failure(&error))
}

/// Passes the fence, or fails and nothing may be done.
///
/// # Errors
/// When this is not the newest line of the log's history, it does not show that it is, or the fence can't be kept.
pub(crate) fn pass(
    site: &Site<'_>,
    line: &Line,
    standing: &mut Standing,
) -> Result<(), StepFailure> {
    let layout = site.layout;
    let mut asked = None;
    loop {
        let verdict = standing
            .pass(layout)
            .map_err(|error| fence_failure(&error))?;
        let Verdict::Unproven(seen) = verdict else {
            return Ok(());
        };
        if asked == Some(seen) {
            return Err(fence_failure(&standing.refused(seen)));
        }
        asked = Some(seen);
        // Not under the fence's lock: who is asked may be paused.
        match prove(line, seen)? {
            Some(header) => standing
                .prove(&header)
                .map_err(|error| fence_failure(&error))?,
            None => return Err(fence_failure(&standing.refused(seen))),
        }
    }
}

/// The same where what is done needs no room, or may make some: what is set aside for a full disk is given up for the fence.
///
/// # Errors
/// As [`pass`].
pub(crate) fn pass_on_full_disk(
    site: &Site<'_>,
    line: &Line,
    standing: &mut Standing,
) -> Result<(), StepFailure> {
    loop {
        match pass(site, line, standing) {
            Err(failure) if failure.class == FailureClass::DiskFull => {
                if !receipts::give_up_reserve(site.layout, site.log) {
                    return Err(failure);
                }
            }
            passed => return passed,
        }
    }
}

/// Asks for the header of an event; `None` where the controller has none.
fn prove(line: &Line, seen: Mark) -> Result<Option<Vec<u8>>, StepFailure> {
    line.say(&Reply::Prove(seen));
    let deadline = Instant::now() + PROOF_WAIT;
    loop {
        if line.is_stopped() {
            return Err(fail(FailureClass::Interrupted, "it was asked to stop"));
        }
        match line.next(SLICE) {
            Got::Item(Incoming::Request(Request::Proof(header))) => {
                return Ok(Some(header.0).filter(|header| !header.is_empty()));
            }
            Got::Item(Incoming::Request(_)) => {
                let message = "the controller was to show an event, and asked for something else";
                return Err(fail(FailureClass::Unknown, message));
            }
            Got::Item(Incoming::Broken(why)) => {
                let message = format!("what the controller sent can't be understood: {why}");
                return Err(fail(FailureClass::Unknown, message));
            }
            Got::Nothing if line.is_gone() => {
                let message = "the line to the controller is gone";
                return Err(fail(FailureClass::Interrupted, message));
            }
            Got::Closed => {
                let message = "the line to the controller is gone";
                return Err(fail(FailureClass::Interrupted, message));
            }
            Got::Nothing if Instant::now() >= deadline => {
                let message = format!(
                    "the controller did not show event {} of its log within {} s",
                    seen.seq,
                    PROOF_WAIT.as_secs()
                );
                return Err(fail(FailureClass::Interrupted, message));
            }
            Got::Nothing => {}
        }
    }
}

fn fence_failure(error: &Error) -> StepFailure {
    let (class, hint) = match error {
        Error::Older { .. } => (
            FailureClass::Fenced,
            Some(
                "this controller's log is an older line of history: act from the newest".to_owned(),
            ),
        ),
        Error::Damaged { .. } => (
            FailureClass::Host,
            Some(
                "find out what happened to it; move it away only when no other controller acts"
                    .to_owned(),
            ),
        ),
        Error::Lock(error) => return lock_failure(error),
        Error::Foreign { .. } => (FailureClass::Unknown, None),
        Error::Read { .. } | Error::Keep(_) | Error::Codec(_) => (io_class(error), None),
    };
    StepFailure {
        hint,
        ..failure(class, error)
    }
}
