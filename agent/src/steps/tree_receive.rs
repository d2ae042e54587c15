//! `tree.receive`: the receiving end of a transfer, into this step's staging directory.
//!
//! An interrupted transfer stays where it is and is gone on with by the next start of the same step. It never
//! puts anything where containers or templates are looked for: publishing is a step of its own.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::step::{Context, Done, OutputOf, Step, fail, io_failure};
use crate::transfer::receive::{self, Order, Received};
use crate::{durable, mark, staging};

/// Receives a tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeReceive {
    /// The id its manifest must have.
    pub expect: Expect,
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

impl TreeReceive {
    fn expected(&self, context: &Context<'_>) -> Result<Hash, StepFailure> {
        match &self.expect {
            Expect::Id(id) => Ok(*id),
            Expect::Output(of) => Ok(context.output(of)?.manifest),
        }
    }
}

/// The staging directory, made and marked as ours.
fn prepare(context: &Context<'_>) -> Result<(), StepFailure> {
    let staging = context.staging();
    durable::create_dirs(&staging)?;
    match mark::read(&staging)? {
        Some(maker) if maker == context.origin => Ok(()),
        Some(maker) => {
            let by = mark::text(maker);
            let message = format!("{} was made by {}", staging.display(), by.trim_end());
            Err(StepFailure {
                hint: Some(format!("look at it, then remove {}", staging.display())),
                ..fail(FailureClass::Exists, message)
            })
        }
        None => mark::write(&staging, context.origin),
    }
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
        if let Some(maker) = mark::read(&staging)?
            && maker != context.origin
        {
            let by = mark::text(maker);
            let what = format!("{} was made by {}", staging.display(), by.trim_end());
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
            what: &self.what,
            staging: &context.staging(),
        };
        receive::receive(context.link, context.layout, &order).map(done)
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let staging = context.staging();
        let is_others = mark::read(&staging)?.is_some_and(|maker| maker != context.origin);
        Ok(is_others.then_some(staging).into_iter().collect())
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Received>,
    ) -> Result<Done<()>, StepFailure> {
        // The directory's name holds the operation and the step: it is ours by that.
        let removed = staging::remove(context)?;
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
