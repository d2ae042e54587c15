//! `op abandon`: an unfinished operation is given up, and what it may have left is named.

use serde::Serialize;
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_replay::operation::{Operation, Step, StepStatus};

use super::super::{Context, Error, Exit, OperationArgument, act, resolve};
use super::ways;
use crate::engine;
use crate::log::Open;
use crate::render::{Format, Output, plain};

/// Give an unfinished operation up: nobody goes on with it, and what it claims is free; hosts stay as they are
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook op abandon 4c0c2a55 --reason 'cn1 is gone for good'"
)]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
    /// Why, for whoever reads the log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// An operation that was given up, as JSON.
#[derive(Debug, Serialize)]
struct Abandoned<'a> {
    operation: OperationId,
    outcome: &'static str,
    left: Vec<Left<'a>>,
}

/// A step that may have left something on its host.
#[derive(Debug, Serialize)]
struct Left<'a> {
    step: StepIndex,
    host: &'a HostName,
    what: &'a str,
    status: &'static str,
}

impl<'a> Left<'a> {
    /// Of an undo, what it may not have taken away; else, what a step may have made.
    fn of(operation: &'a Operation) -> Vec<Self> {
        let is_undo = operation.intent.is_rollback();
        let leaves = |step: &&Step| match &step.status {
            StepStatus::Pending => is_undo || step.may_have_acted(),
            StepStatus::Started
            | StepStatus::Failed(_)
            | StepStatus::Doubted { .. }
            | StepStatus::Drifted { .. } => true,
            StepStatus::Succeeded { done, .. } => !is_undo && done.changed,
        };
        let left = operation.steps.iter().filter(leaves).map(|step| Left {
            step: step.plan.index,
            host: &step.plan.host,
            what: &step.plan.summary,
            status: match step.status {
                StepStatus::Started => "started, and may still run",
                _ => step.status.label(),
            },
        });
        left.collect()
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        let (holds, held) = act::kept(log, id).await?;
        let operation = engine::abandon(log, id, self.reason, holds).await?;
        drop(held);
        let left = Left::of(&operation);
        if out.format() == Format::Json {
            out.json(&Abandoned {
                operation: id,
                outcome: "abandoned",
                left,
            })?;
            return Ok(Exit::Ok);
        }
        let short = id.short();
        out.line(format!(
            "operation {short} is abandoned: nobody goes on with it, and it claims nothing any more"
        ))?;
        for left in &left {
            let (step, host, status) = (left.step, left.host, left.status);
            let what = plain(left.what);
            out.line(format!("  left: step {step} on {host}, {status}: {what}"))?;
        }
        let hint = match operation.intent.takes_back() {
            [taken_back] => format!(
                "`tallybook op show {}` shows where the one stands that it was to take back",
                taken_back.short()
            ),
            [_, ..] => {
                "`tallybook op list` shows where those stand that it was to take back".to_owned()
            }
            [] => format!(
                "`tallybook op rollback {short}` {}",
                ways::taken_back(&operation)
            ),
        };
        out.line(format!("  hint: {hint}"))?;
        Ok(Exit::Ok)
    }
}
