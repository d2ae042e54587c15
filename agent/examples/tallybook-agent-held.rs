//! An agent for tests that waits on both sides of a step's effect, so that a lab can have its fault happen just there.
//!
//! While `/run/tallybook-hold` says `KIND before` or `KIND after`, a step of that kind waits before it acts, or after it acted and
//! before its receipt says so. It tells that it waits by making `/run/tallybook-held`. An undo does not wait.

#[macro_use]
mod every_kind;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use tallybook_agent::step::{Context, StepKind, fail};
use tallybook_agent::{process, steps};
use tallybook_events::ids::Blob;
use tallybook_events::step::{FailureClass, StepDone, StepFailure};

const HOLD: &str = "/run/tallybook-hold";
const HELD: &str = "/run/tallybook-held";
/// How often it is looked whether it is to go on.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    process::main(&TABLE)
}

/// Whether a step of this kind shall wait here.
fn is_held(kind: &str, stage: &str) -> bool {
    fs::read_to_string(HOLD).is_ok_and(|asked| asked.trim() == format!("{kind} {stage}"))
}

fn hold(kind: &str, stage: &str) -> Result<(), StepFailure> {
    if !is_held(kind, stage) {
        return Ok(());
    }
    let told = fs::write(HELD, "");
    told.map_err(|error| fail(FailureClass::Other, format!("can't write {HELD}: {error}")))?;
    while is_held(kind, stage) {
        sleep(PAUSE);
    }
    // Who took the one away wants to see the other gone as well.
    let path = Path::new(HELD);
    match path.exists().then(|| fs::remove_file(path)) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(fail(
            FailureClass::Other,
            format!("can't remove {HELD}: {error}"),
        )),
    }
}

fn forward(
    row: &'static StepKind,
    params: &Blob,
    context: &mut Context<'_>,
) -> Result<StepDone, StepFailure> {
    hold(row.kind, "before")?;
    let done = (row.forward)(params, context)?;
    hold(row.kind, "after")?;
    Ok(done)
}

fn undo(
    row: &'static StepKind,
    params: &Blob,
    context: &mut Context<'_>,
    output: Option<&Blob>,
) -> Result<StepDone, StepFailure> {
    (row.undo)(params, context, output)
}

/// Every kind of step, each held where it is asked for.
static TABLE: [StepKind; steps::TABLE.len()] = every_kind!(forward, undo);
