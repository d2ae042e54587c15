//! An agent for tests that holds every kind of step to its word: what acts acts twice, what is undone is undone twice, and each
//! step is probed at every stage. What differs fails the step.
//!
//! | stage | must be |
//! |---|---|
//! | probed, before | anything but `Conflict` |
//! | forward | |
//! | probed | whole, and reporting what forward reported |
//! | forward again | reporting the same, without a change |
//! | probed | whole |
//! | undone | |
//! | probed | as before |
//! | undone again | without a change |
//! | probed | as before |
//! | forward once more | (what it draws by lot is drawn anew) |
//! | probed | whole |
//!
//! A step that only looks may see nothing of itself. A step that is declared `once` is carried out once, and not probed: nothing can
//! be told of it. What a rollback keeps or can't take back is not undone. The receiving end of a transfer has another one that does
//! its part once.

#[macro_use]
mod every_kind;

use std::process::ExitCode;

use tallybook_agent::step::{Context, StepKind, fail};
use tallybook_agent::{process, steps};
use tallybook_events::ids::Blob;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepDone, StepFailure};

/// Kinds whose undo does not give back what they were made of, where their summary has this: they are undone only when their
/// operation is.
const USES_UP: [(&str, &str); 2] = [
    ("container.build", "from the copied tree"),
    ("template.publish", ""),
];
/// Kinds whose report is about what one start of them did. Nothing is undone from it, and no other step is given it.
const OF_ONE_START: [&str; 4] = [
    "container.await_address",
    "container.provision_until",
    "container.provision_until.2",
    "host.packages",
];

fn main() -> ExitCode {
    process::main(&TABLE)
}

/// What is done to a step, and how it is told.
struct Trial<'a, 'b> {
    row: &'static StepKind,
    params: &'a Blob,
    context: &'a mut Context<'b>,
}

impl Trial<'_, '_> {
    fn probe(&mut self, stage: &str) -> Result<Seen, StepFailure> {
        let seen = (self.row.probe)(self.params, self.context)?;
        match seen {
            Seen::Conflict { what } => Err(self.wrong(format!("{stage}, a probe sees {what}"))),
            seen => Ok(seen),
        }
    }

    /// Probed whole, and what it then would report.
    fn probe_whole(&mut self, stage: &str, output: &Blob) -> Result<(), StepFailure> {
        match self.probe(stage)? {
            Seen::Done(done) if self.is_as(output, &done.output) => Ok(()),
            Seen::Done(done) => {
                let told = self.both(output, &done.output);
                Err(self.wrong(format!("{stage}, a probe reports something else: {told}")))
            }
            seen => Err(self.wrong(format!("{stage}, a probe sees {seen:?}"))),
        }
    }

    fn forward(&mut self) -> Result<StepDone, StepFailure> {
        (self.row.forward)(self.params, self.context)
    }

    fn forward_again(&mut self, stage: &str, output: &Blob) -> Result<StepDone, StepFailure> {
        let done = self.forward().map_err(|failure| StepFailure {
            message: format!("{stage}: {}", failure.message),
            ..failure
        })?;
        if !self.is_as(output, &done.output) {
            let told = self.both(output, &done.output);
            return Err(self.wrong(format!("{stage}, it reports something else: {told}")));
        }
        Ok(done)
    }

    fn undo(&mut self, stage: &str, output: &Blob) -> Result<StepDone, StepFailure> {
        (self.row.undo)(self.params, self.context, Some(output)).map_err(|failure| StepFailure {
            message: format!("{stage}: {}", failure.message),
            ..failure
        })
    }

    /// Probed as it was before it acted.
    fn probe_as(&mut self, stage: &str, before: &Seen) -> Result<(), StepFailure> {
        let seen = self.probe(stage)?;
        if std::mem::discriminant(&seen) == std::mem::discriminant(before) {
            return Ok(());
        }
        Err(self.wrong(format!(
            "{stage}, a probe sees {seen:?}, and before {before:?}"
        )))
    }

    fn is_as(&self, one: &Blob, other: &Blob) -> bool {
        one == other || OF_ONE_START.contains(&self.row.kind)
    }

    fn both(&self, one: &Blob, other: &Blob) -> String {
        let text = |blob: &Blob| String::from_utf8_lossy(&blob.0).into_owned();
        format!("{:?} and {:?}", text(one), text(other))
    }

    fn wrong(&self, what: String) -> StepFailure {
        fail(
            FailureClass::Other,
            format!("twice: {}: {what}", self.row.kind),
        )
    }
}

/// A step goes forward, as the table above says.
fn forward(
    row: &'static StepKind,
    params: &Blob,
    context: &mut Context<'_>,
) -> Result<StepDone, StepFailure> {
    let mut trial = Trial {
        row,
        params,
        context,
    };
    if row.once {
        return trial.forward();
    }
    let before = trial.probe("before it acts")?;
    let is_undone = (row.reversal)(params)? == Reversal::Undo;
    let first = trial.forward()?;
    if !is_undone && !first.changed && trial.probe("once it looked")? == Seen::Absent {
        // It leaves nothing, so it may be carried out as often as anybody likes.
        return match trial.forward()?.changed {
            true => Err(trial.wrong("the second time, it changes something".to_owned())),
            false => Ok(first),
        };
    }
    trial.probe_whole("once it acted", &first.output)?;
    if row.kind == "tree.receive" {
        return Ok(first);
    }
    let second = trial.forward_again("the second time", &first.output)?;
    if second.changed {
        return Err(trial.wrong("the second time, it changes something".to_owned()));
    }
    trial.probe_whole("once it acted twice", &first.output)?;
    let summary = (row.summary)(params)?;
    let uses_up = |(kind, of): &(&str, &str)| *kind == row.kind && summary.contains(of);
    if !is_undone || USES_UP.iter().any(uses_up) {
        return Ok(first);
    }
    trial.undo("its undo", &first.output)?;
    trial.probe_as("once it was undone", &before)?;
    let undone = trial.undo("its second undo", &first.output)?;
    if undone.changed {
        return Err(trial.wrong("the second time, its undo changes something".to_owned()));
    }
    trial.probe_as("once it was undone twice", &before)?;
    let last = trial.forward()?;
    trial.probe_whole("at last", &last.output)?;
    Ok(StepDone {
        changed: first.changed,
        ..last
    })
}

/// A step that an operation took back is undone.
fn undo(
    row: &'static StepKind,
    params: &Blob,
    context: &mut Context<'_>,
    output: Option<&Blob>,
) -> Result<StepDone, StepFailure> {
    let mut trial = Trial {
        row,
        params,
        context,
    };
    let first = (row.undo)(params, trial.context, output)?;
    let after = trial.probe("once it was taken back")?;
    let second = (row.undo)(params, trial.context, output)?;
    if second.changed {
        return Err(trial.wrong("taken back twice, it changes something".to_owned()));
    }
    trial.probe_as("once it was taken back twice", &after)?;
    Ok(first)
}

/// Every kind of step, each tried.
static TABLE: [StepKind; steps::TABLE.len()] = every_kind!(forward, undo);
