//! How an operation ended: what is said, the exit code, and whether it is taken back at once.
//!
//! It says what the log says; nothing is judged that is not recorded.

use std::collections::BTreeSet;

use serde::Serialize;
use tallybook_events::ids::OperationId;
use tallybook_events::intent::Intent;
use tallybook_events::step::{FailureClass, PlannedStep, StepFailure};
use tallybook_replay::operation::{Operation, Step, StepStatus};

use super::super::{Error, Exit};
use super::resume::load;
use super::rollback::{take_back, undo_wish};
use crate::engine::{Engine, Outcome};
use crate::render::progress::Progress;
use crate::render::{Format, Ink, Output, count};

/// How an operation ended, as JSON.
#[derive(Debug, Serialize)]
struct Ended {
    operation: OperationId,
    outcome: &'static str,
    exit: Exit,
    steps: usize,
    changed: usize,
    duration_ms: u64,
    reasons: Vec<String>,
    hints: Vec<String>,
    /// The operation that took it back, when one did.
    rolled_back_by: Option<OperationId>,
}

/// Says how an operation ended; takes it back when it failed and that is wanted.
pub(super) async fn conclude(
    engine: &Engine,
    out: &mut Output,
    progress: &Progress,
    id: OperationId,
    outcome: Outcome,
    undo_failed: bool,
) -> Result<Exit, Error> {
    progress.finish();
    let operation = load(engine.log(), id).await?;
    let mut ended = judge(&operation, &outcome);
    let worth_undoing = match &outcome {
        Outcome::Failed { .. } => undo_failed && builds_something(&operation.intent),
        Outcome::Unreachable(_) => untouched(&operation),
        // An undo would act under the fence that was just refused.
        Outcome::Fenced(_) => false,
        Outcome::Succeeded | Outcome::Interrupted(_) | Outcome::Stuck(_) => false,
    };
    let mut undo_report = None;
    if worth_undoing {
        let taken_back = async { take_back(engine, &operation, undo_wish(&operation)?).await };
        let (undo, outcome) = match taken_back.await {
            Ok(taken_back) => taken_back,
            Err(error) => {
                // Why it failed must not be lost behind why it can't be taken back.
                say(out, &operation, &ended)?;
                return Err(error);
            }
        };
        progress.finish();
        match outcome {
            Outcome::Succeeded => ended.rolled_back_by = Some(undo),
            Outcome::Failed { .. }
            | Outcome::Interrupted(_)
            | Outcome::Unreachable(_)
            | Outcome::Stuck(_)
            | Outcome::Fenced(_) => {
                let undone = load(engine.log(), undo).await?;
                undo_report = Some(judge(&undone, &outcome));
            }
        }
    }
    say(out, &operation, &ended)?;
    let Some(report) = undo_report else {
        return Ok(ended.exit);
    };
    let undone = load(engine.log(), report.operation).await?;
    say(out, &undone, &report)?;
    Ok(Exit::Interrupted)
}

/// Whether no step of it was ever started.
fn untouched(operation: &Operation) -> bool {
    operation.steps.iter().all(|step| step.attempts.0 == 0)
}

const fn is_rollback(intent: &Intent) -> bool {
    matches!(intent, Intent::Rollback { .. })
}

/// Whether a failed operation of this kind leaves something half made, which its undo removes.
fn builds_something(intent: &Intent) -> bool {
    match intent {
        Intent::ContainerCreate { .. }
        | Intent::ContainerCopy { .. }
        | Intent::TemplateSnapshot { .. } => true,
        Intent::HostInstall { .. }
        | Intent::HostPrepare { .. }
        | Intent::ContainerStart { .. }
        | Intent::ContainerStop { .. }
        | Intent::ContainerRestart { .. }
        | Intent::ContainerDestroy { .. }
        | Intent::ContainerExec { .. }
        | Intent::ContainerShell { .. }
        | Intent::TemplateSync { .. }
        | Intent::TemplateRemove { .. }
        | Intent::Rollback { .. } => false,
    }
}

fn judge(operation: &Operation, outcome: &Outcome) -> Ended {
    let short = operation.id.short();
    let changed = operation
        .steps
        .iter()
        .filter(|step| matches!(&step.status, StepStatus::Succeeded { done, .. } if done.changed));
    let changed = changed.count();
    let mut reasons = Vec::new();
    let mut hints = Vec::new();
    let (label, exit) = match outcome {
        Outcome::Succeeded => ("succeeded", Exit::Ok),
        Outcome::Failed {
            failures,
            unreachable,
        } => {
            for (plan, failure) in failures {
                reasons.push(format!(
                    "{} on {}: {}",
                    plan.summary, plan.host, failure.message
                ));
                hints.extend(failure.hint.clone());
            }
            for (host, error) in unreachable {
                reasons.push(format!("{host}: {}", chain(error)));
                hints.extend(error.hint());
            }
            ("failed", failed_exit(operation, failures))
        }
        Outcome::Interrupted(reason) => {
            reasons.push(reason.clone());
            // What failed while the rest was being left is not to be learnt from `op show` alone.
            for step in &operation.steps {
                if let StepStatus::Failed(failure) = &step.status {
                    let plan = &step.plan;
                    let message = &failure.message;
                    reasons.push(format!("{} on {}: {message}", plan.summary, plan.host));
                    hints.extend(failure.hint.clone());
                }
            }
            hints.push(format!("`tallybook op resume {short}` goes on from here"));
            ("interrupted", Exit::Interrupted)
        }
        Outcome::Unreachable(hosts) => {
            for (host, error) in hosts {
                reasons.push(format!("{host}: {}", chain(error)));
                hints.extend(error.hint());
            }
            let started = operation.steps.iter().any(|step| step.attempts.0 > 0);
            if started {
                hints.push(format!(
                    "once reachable, `tallybook op resume {short}` goes on from here"
                ));
            }
            let exit = if started {
                Exit::Interrupted
            } else if hosts.values().any(|error| error.is_identity()) {
                Exit::Identity
            } else if hosts.values().any(|error| error.is_unreachable()) {
                Exit::Unreachable
            } else {
                Exit::Failed
            };
            ("unreachable", exit)
        }
        Outcome::Stuck(reason) => {
            reasons.push(reason.clone());
            hints.push(format!(
                "`tallybook op show {short}` shows what is known; look at the host, then `op resume {short}` or `op rollback {short}`"
            ));
            let once =
                |step: &Step| step.plan.once && matches!(step.status, StepStatus::Doubted { .. });
            if operation.steps.iter().any(once) {
                hints.push(format!(
                    "`op resume --once-again {short}` starts again what is meant to be started only once"
                ));
            }
            ("stuck", Exit::Failed)
        }
        Outcome::Fenced(reason) => {
            reasons.push(reason.clone());
            hints.push(
                "this store is an older copy of the log than a host has seen: act from the newest one, and with this one no more".to_owned(),
            );
            ("fenced", Exit::Locked)
        }
    };
    hints.dedup();
    Ended {
        operation: operation.id,
        outcome: label,
        exit,
        steps: operation.steps.len(),
        changed,
        duration_ms: operation
            .last_unix_us
            .saturating_sub(operation.started_unix_us)
            / 1000,
        reasons,
        hints,
        rolled_back_by: None,
    }
}

fn failed_exit(operation: &Operation, failures: &[(PlannedStep, StepFailure)]) -> Exit {
    let failed: BTreeSet<_> = failures.iter().map(|(plan, _)| &plan.host).collect();
    let hosts: BTreeSet<_> = operation.steps.iter().map(|step| &step.plan.host).collect();
    let whole = hosts
        .iter()
        .filter(|host| !failed.contains(*host))
        .any(|host| {
            let mut steps = operation
                .steps
                .iter()
                .filter(|step| step.plan.host == **host);
            steps.all(|step| matches!(step.status, StepStatus::Succeeded { .. }))
        });
    let several = matches!(
        operation.intent,
        Intent::HostInstall { .. } | Intent::HostPrepare { .. } | Intent::TemplateSync { .. }
    );
    if several && whole {
        return Exit::SomeHosts;
    }
    match failures.first().map(|(_, failure)| failure.class) {
        Some(FailureClass::Exists) => Exit::Exists,
        Some(FailureClass::Missing) => Exit::Missing,
        Some(FailureClass::DiskFull) => Exit::DiskFull,
        Some(FailureClass::Verification) => Exit::Verification,
        Some(FailureClass::Fenced) => Exit::Locked,
        Some(
            FailureClass::Permission
            | FailureClass::Command
            | FailureClass::Timeout
            | FailureClass::Host
            | FailureClass::Peer
            | FailureClass::Interrupted
            | FailureClass::Unknown
            | FailureClass::Other,
        )
        | None => Exit::Failed,
    }
}

fn say(out: &mut Output, operation: &Operation, ended: &Ended) -> std::io::Result<()> {
    if out.format() == Format::Json {
        return out.json_line(ended);
    }
    let short = operation.id.short();
    let seconds = ended.duration_ms as f64 / 1000.0;
    let ink = if ended.exit == Exit::Ok {
        Ink::Good
    } else {
        Ink::Bad
    };
    out.inked(
        ink,
        &format!(
            "{} {}: {}, {} changed, {seconds:.1} s (operation {short})",
            operation.intent.summary(),
            ended.outcome,
            count(ended.steps, "step"),
            ended.changed,
        ),
    )?;
    for reason in &ended.reasons {
        out.line(format!("  because: {reason}"))?;
    }
    for hint in &ended.hints {
        out.line(format!("  hint: {hint}"))?;
    }
    match ended.rolled_back_by {
        Some(by) if untouched(operation) => out.line(format!(
            "  nothing was done, and operation {} closed it",
            by.short()
        )),
        Some(by) if ended.steps > 0 => out.line(format!(
            "  all of it was taken back by operation {}; --keep-failed would have left it",
            by.short()
        )),
        Some(_) => Ok(()),
        None if ended.outcome == "failed" && is_rollback(&operation.intent) => out.line(format!(
            "  hint: `tallybook op resume {short}` tries again"
        )),
        None if ended.outcome == "failed" => out.line(format!(
            "  hint: `tallybook op resume {short}` tries again, `tallybook op rollback {short}` takes it back"
        )),
        None => Ok(()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
