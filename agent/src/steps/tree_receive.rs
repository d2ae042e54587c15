//! `tree.receive`: the receiving end of a transfer, into this step's staging directory.
//!
//! An interrupted transfer stays where it is and is gone on with by the next start of the same step. It never
//! puts anything where containers or templates are looked for: publishing is a step of its own.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::step::{Context, Done, OutputOf, Step, fail, io_failure};
use crate::transfer::receive::{self, Order, Received, Reuse};
use crate::tree::beneath::Root;

/// Receives a tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeReceive {
    /// The id its manifest must have.
    pub expect: Expect,
    /// What of this host may be looked at, so that it need not be sent.
    pub reuse: Reuse,
    /// What it is, for people, for example `generation 3 of template web`.
    pub what: String,
}

/// Where the expected id is known from.
#[derive(Debug, Serialize, Deserialize)]
pub enum Expect {
    /// The log.
    Id(Hash),
    /// A step of the same operation, whose output has a field `manifest`.
    Output(OutputOf<Identified>),
}

/// The one field of an output that is needed here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Identified {
    /// The id of the tree's manifest.
    pub manifest: Hash,
}

const MADE_BY: &str = "made-by";

impl TreeReceive {
    fn expected(&self, context: &Context<'_>) -> Result<Hash, StepFailure> {
        match &self.expect {
            Expect::Id(id) => Ok(*id),
            Expect::Output(of) => Ok(context.output(of)?.manifest),
        }
    }
}

fn made_by(context: &Context<'_>) -> String {
    format!("{} {}\n", context.origin.0, context.origin.1)
}

/// Who made what is in the staging directory: `None` when nobody could say so yet.
fn maker(staging: &Path) -> Result<Option<String>, StepFailure> {
    let path = staging.join(MADE_BY);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failure("reading", &path, &error)),
    }
}

/// The staging directory, made and marked as ours.
fn prepare(context: &Context<'_>) -> Result<(), StepFailure> {
    let staging = context.staging();
    let own = context.layout.own();
    std::fs::create_dir_all(&own).map_err(|e| io_failure("making", &own, &e))?;
    let root = Root::open(&own).map_err(|e| e.failure(&own))?;
    let relative = staging.strip_prefix(&own).unwrap_or(&staging);
    root.create_dir_all(relative, 0o700)
        .map_err(|e| e.failure(&own))?;
    match maker(&staging)? {
        Some(maker) if maker == made_by(context) => return Ok(()),
        Some(maker) => {
            let mut failure = fail(
                FailureClass::Exists,
                format!("{} was made by {}", staging.display(), maker.trim_end()),
            );
            failure.hint = Some(format!("look at it, then remove {}", staging.display()));
            return Err(failure);
        }
        None => {}
    }
    Root::open(&staging)
        .and_then(|root| {
            let text = made_by(context);
            root.write_atomic(Path::new(MADE_BY), text.as_bytes(), 0o600, (0, 0))
        })
        .map_err(|e| e.failure(&staging))
}

impl Step for TreeReceive {
    const KIND: &'static str = "tree.receive";
    type Output = Received;

    fn summary(&self) -> String {
        format!("receive {}", self.what)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let staging = context.staging();
        match std::fs::symlink_metadata(&staging) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::Absent),
            Err(error) => return Err(io_failure("looking at", &staging, &error)),
        }
        if let Some(maker) = maker(&staging)?
            && maker != made_by(context)
        {
            let what = format!("{} was made by {}", staging.display(), maker.trim_end());
            return Ok(Seen::Conflict { what });
        }
        match receive::completed(&staging, self.expected(context)?)? {
            Some(output) => done(output).seen(),
            None => Ok(Seen::Partial {
                what: format!("{} is not whole yet", staging.display()),
            }),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Received>, StepFailure> {
        let expect = self.expected(context)?;
        prepare(context)?;
        let order = Order {
            expect,
            reuse: &self.reuse,
            what: &self.what,
            staging: &context.staging(),
        };
        receive::receive(context.link, context.layout, &order).map(done)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Received>,
    ) -> Result<Done<()>, StepFailure> {
        // The directory's name holds the operation and the step: it is ours by that.
        let staging = context.staging();
        let (Some(parent), Some(name)) = (staging.parent(), staging.file_name()) else {
            return Err(fail(
                FailureClass::Unknown,
                "the staging directory has no name",
            ));
        };
        let removed = match Root::open(parent) {
            Err(error) if error.is_missing() => false,
            opened => opened
                .and_then(|root| root.remove_dir_all(Path::new(name)))
                .map_err(|e| e.failure(parent))?,
        };
        Ok(Done {
            changed: removed,
            output: (),
            facts: Vec::new(),
        })
    }
}

fn done(output: Received) -> Done<Received> {
    Done {
        changed: true,
        output,
        facts: Vec::new(),
    }
}
