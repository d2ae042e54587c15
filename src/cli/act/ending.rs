//! How an operation ended: what is said, the exit code, and whether it is taken back at once.
//!
//! It says what the log says; nothing is judged that is not recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tallybook_events::event::Event;
use tallybook_events::ids::OperationId;
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, FailureClass, PlannedStep, StepFailure};
use tallybook_replay::fleet::{self, OnHost};
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::undo::{self, Left};

use super::super::error::FENCED;
use super::super::{Error, Exit, Report};
use super::resume::load;
use crate::daemon::ending::{Ending, Ran, Undone};
use crate::engine::{self, Gone, Outcome};
use crate::log::{self, Filter, Log};
use crate::render::progress::Progress;
use crate::render::{Format, Ink, Output, Written, count, plain, plain_lines, summary};

/// How an operation ended, as JSON.
#[derive(Debug, Serialize)]
struct Ended {
    operation: OperationId,
    outcome: &'static str,
    exit: Exit,
    code: u8,
    steps: usize,
    changed: usize,
    duration_ms: u64,
    reasons: Vec<String>,
    hints: Vec<String>,
    /// The operation that took it back, when one did.
    rolled_back_by: Option<OperationId>,
    /// What taking it back leaves as it is.
    kept: Vec<Kept>,
    /// Where it stands on each host, where it has steps on several.
    hosts: Vec<OnHost>,
}

impl Ended {
    fn exits(mut self, exit: Exit) -> Self {
        (self.exit, self.code) = (exit, exit.code());
        self
    }
}

/// A step whose effect an undo leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Kept {
    operation: OperationId,
    what: String,
    why: String,
}

impl Kept {
    /// What taking an operation back leaves.
    pub(super) fn of(operation: &Operation) -> Vec<Self> {
        Kept::all(undo::plan(operation).kept)
    }

    /// What an undo leaves.
    pub(super) fn all(kept: Vec<Left>) -> Vec<Self> {
        let kept = kept.into_iter().map(|left| Kept {
            operation: left.operation,
            what: left.summary,
            why: left.why,
        });
        kept.collect()
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kept: {}: {}", self.what, self.why)
    }
}

/// Says how an operation ended, and what was done about it.
///
/// # Errors
/// When it could not be carried out, or the log can't be read: then the operation is named, because something may have been
/// done.
pub(super) async fn conclude(
    log: &Log,
    out: &mut Output,
    progress: &Progress,
    id: OperationId,
    ending: Ending,
) -> Result<Exit, Error> {
    progress.finish();
    let Ending { ran, undone, again } = ending;
    let outcome = match ran {
        Ran::Ended(outcome) => outcome,
        Ran::Left(report) => return Err(left(out, id, report)),
        Ran::Refused(report) => return Err(Error::Told(Box::new(report))),
    };
    let told = tell(log, out, id, &outcome, undone, again).await;
    told.map_err(|error| match error {
        Error::Log(source) => Error::left(id, source),
        other => other,
    })
}

/// Says how an operation that nobody carries out any more ended, as far as the log has it.
///
/// # Errors
/// When somebody else carries it out, or the log can't be read.
pub(in crate::cli) async fn told(
    log: &Log,
    out: &mut Output,
    id: OperationId,
) -> Result<Exit, Error> {
    let run = Run::load(log, id).await?;
    let status = load(log, id).await?.status;
    let outcome = recorded(&run.operation, status).ok_or(Error::NotCarriedOut(id))?;
    let mut ended = judge(&run, &outcome);
    if status == OperationStatus::Abandoned {
        ended = ended.exits(Exit::Failed);
        ended.outcome = status.label();
    }
    ended.rolled_back_by = run.undone_by;
    if status != OperationStatus::RolledBack {
        ended.hints.extend(next(&run.operation, &outcome));
    }
    say(out, &run.operation, &ended)?;
    Ok(ended.exit)
}

/// The outcome that the log has of an operation; `None` while it has none.
fn recorded(operation: &Operation, status: OperationStatus) -> Option<Outcome> {
    let failures: Vec<_> = operation
        .steps
        .iter()
        .filter_map(|step| match &step.status {
            StepStatus::Failed(failure) => Some((step.plan.clone(), failure.clone())),
            StepStatus::Pending
            | StepStatus::Started
            | StepStatus::Succeeded { .. }
            | StepStatus::Doubted { .. }
            | StepStatus::Drifted { .. } => None,
        })
        .collect();
    let reason = operation.reason.clone().unwrap_or_default();
    let done = |step: &Step| matches!(step.status, StepStatus::Succeeded { .. });
    Some(match status {
        OperationStatus::Intended | OperationStatus::Running | OperationStatus::RollingBack => {
            return None;
        }
        OperationStatus::Succeeded => Outcome::Succeeded,
        OperationStatus::RolledBack if operation.steps.iter().all(done) => Outcome::Succeeded,
        OperationStatus::Failed | OperationStatus::RolledBack if !failures.is_empty() => {
            Outcome::Failed {
                failures,
                unreachable: BTreeMap::new(),
                enough: None,
            }
        }
        // Too many hosts were away; of a step's failure nothing is recorded.
        OperationStatus::Failed => Outcome::Failed {
            failures,
            unreachable: BTreeMap::new(),
            enough: Some(reason),
        },
        OperationStatus::Stuck => Outcome::Stuck(reason),
        OperationStatus::RolledBack | OperationStatus::Interrupted | OperationStatus::Abandoned => {
            Outcome::Interrupted(reason)
        }
    })
}

/// The log failed while the operation was carried out: nobody can say how it ended, but which one it is.
fn left(out: &mut Output, id: OperationId, report: Report) -> Error {
    if out.format() == Format::Json {
        let ended = Ended {
            operation: id,
            outcome: "interrupted",
            exit: report.exit,
            code: report.code,
            steps: 0,
            changed: 0,
            duration_ms: 0,
            reasons: [vec![report.error.clone()], report.because.clone()].concat(),
            hints: report.hint.clone().into_iter().collect(),
            rolled_back_by: None,
            kept: Vec::new(),
            hosts: Vec::new(),
        };
        // The error itself follows on standard error.
        let _closed = out.json_line(&ended);
    }
    Error::Told(Box::new(report))
}

async fn tell(
    log: &Log,
    out: &mut Output,
    id: OperationId,
    outcome: &Outcome,
    undone: Option<Undone>,
    again: Option<Duration>,
) -> Result<Exit, Error> {
    let run = Run::load(log, id).await?;
    let operation = &run.operation;
    let mut ended = judge(&run, outcome);
    let (undo, outcome) = match undone {
        Some(Undone::By(undo, outcome)) => (undo, outcome),
        Some(Undone::Failed(report)) => {
            // Why it failed must not be lost behind why it can't be taken back.
            say(out, operation, &ended.exits(report.exit))?;
            return Err(Error::Told(Box::new(report)));
        }
        None => {
            ended.hints.extend(again.map(|again| {
                let again = humantime::format_duration(again);
                format!("the daemon tries again in {again}")
            }));
            ended.hints.extend(next(operation, outcome));
            ended.hints.extend(past_others(operation));
            for undone in operation.intent.takes_back() {
                ended.kept.extend(Kept::of(&load(log, *undone).await?));
            }
            say(out, operation, &ended)?;
            return Ok(ended.exit);
        }
    };
    ended.kept = Kept::of(operation);
    match outcome {
        Outcome::Succeeded => {
            ended.rolled_back_by = Some(undo);
            say(out, operation, &ended)?;
            Ok(ended.exit)
        }
        Outcome::Failed { .. }
        | Outcome::Interrupted(_)
        | Outcome::Unreachable(_)
        | Outcome::Stuck(_)
        | Outcome::Fenced(_) => {
            say(out, operation, &ended)?;
            let undone = Run::load(log, undo).await?;
            let mut report = judge(&undone, &outcome).exits(Exit::Interrupted);
            report.hints.extend(next(&undone.operation, &outcome));
            say(out, &undone.operation, &report)?;
            Ok(Exit::Interrupted)
        }
    }
}

/// What can be done with one that is not finished.
fn next(operation: &Operation, outcome: &Outcome) -> Option<String> {
    let short = operation.id.short();
    let back = if operation.intent.is_rollback() {
        String::new()
    } else {
        format!(", `tallybook op rollback {short}` takes it back")
    };
    match outcome {
        Outcome::Failed { .. } => Some(format!("`tallybook op resume {short}` tries again{back}")),
        Outcome::Unreachable(_) => Some(format!(
            "once that is settled, `tallybook op resume {short}` goes on from here{back}"
        )),
        Outcome::Interrupted(_) => Some(format!("`tallybook op resume {short}` goes on from here")),
        Outcome::Stuck(_) => Some(format!(
            "`tallybook op show {short}` shows what is known; look at the host, then `tallybook op resume {short}` goes on{back}"
        )),
        Outcome::Succeeded | Outcome::Fenced(_) => None,
    }
}

/// What can be done where something of others is in the way of a step.
fn past_others(operation: &Operation) -> Option<String> {
    let is_blocked = |step: &Step| step.is_blocked() && matches!(step.plan.action, Action::Forward);
    let short = operation.id.short();
    operation.steps.iter().any(is_blocked).then(|| {
        format!(
            "`tallybook op show {short}` shows the ways past what is in the way: set aside, or taken over"
        )
    })
}

/// An operation, and when it was begun or taken up again.
struct Run {
    operation: Operation,
    began_unix_us: u64,
    /// The operation that took it back.
    undone_by: Option<OperationId>,
}

impl Run {
    async fn load(log: &Log, id: OperationId) -> Result<Self, Error> {
        let entries = log.entries(&Filter::of_operation(id)).await?;
        let folded = Operation::fold(id, &entries);
        let operation = folded
            .map_err(|source| log::Error::Operation { id, source })?
            .ok_or(engine::Error::Missing(id))?;
        let resumed = entries
            .iter()
            .rfind(|entry| matches!(entry.event, Event::OperationResumed(_)));
        // What lies between an interruption and its resumption is nobody's work.
        let began_unix_us =
            resumed.map_or(operation.started_unix_us, |entry| entry.header.time_unix_us);
        let undone_by = entries.iter().find_map(|entry| match &entry.event {
            Event::OperationRolledBack(rolled_back) => Some(rolled_back.by),
            _ => None,
        });
        Ok(Run {
            operation,
            began_unix_us,
            undone_by,
        })
    }
}

/// Whether no step of it was ever started.
pub(super) fn untouched(operation: &Operation) -> bool {
    operation.steps.iter().all(|step| step.attempts.0 == 0)
}

fn judge(run: &Run, outcome: &Outcome) -> Ended {
    let operation = &run.operation;
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
            enough,
        } => {
            reasons.extend(enough.clone());
            for (plan, failure) in failures {
                reasons.push(format!(
                    "{} on {}: {}",
                    plan.summary, plan.host, failure.message
                ));
                hints.extend(failure.hint.clone());
            }
            for (host, gone) in unreachable {
                reasons.push(format!("{host}: {gone}"));
                hints.extend(gone.hint.clone());
            }
            ("failed", failed_exit(operation, failures, unreachable))
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
            ("interrupted", Exit::Interrupted)
        }
        Outcome::Unreachable(hosts) => {
            for (host, gone) in hosts {
                reasons.push(format!("{host}: {gone}"));
                hints.extend(gone.hint.clone());
            }
            ("unreachable", unreachable_exit(operation, hosts))
        }
        Outcome::Stuck(reason) => {
            reasons.push(reason.clone());
            let once =
                |step: &Step| step.plan.once && matches!(step.status, StepStatus::Doubted { .. });
            if operation.steps.iter().any(once) {
                hints.push(format!(
                    "`tallybook op resume --once-again {short}` starts again what is meant to be started only once"
                ));
            }
            let drifted = |step: &Step| matches!(step.status, StepStatus::Drifted { .. });
            match operation.steps.iter().any(drifted) {
                true => ("stuck", Exit::Drift),
                false => ("stuck", Exit::Failed),
            }
        }
        Outcome::Fenced(reason) => {
            reasons.push(reason.clone());
            hints.push(FENCED.to_owned());
            ("fenced", Exit::Locked)
        }
    };
    hints.dedup();
    Ended {
        operation: operation.id,
        outcome: label,
        exit,
        code: exit.code(),
        steps: operation.steps.len(),
        changed,
        duration_ms: operation.last_unix_us.saturating_sub(run.began_unix_us) / 1000,
        reasons,
        hints,
        rolled_back_by: None,
        kept: Vec::new(),
        hosts: fleet::several(operation),
    }
}

/// Whether it does the same on several hosts, and is done on one of them.
fn succeeded_on_some(operation: &Operation) -> bool {
    let several = matches!(
        operation.intent,
        Intent::HostInstall { .. } | Intent::HostPrepare { .. } | Intent::TemplateSync { .. }
    );
    let done = |step: &Step| matches!(step.status, StepStatus::Succeeded { .. });
    let hosts: BTreeSet<_> = operation.steps.iter().map(|step| &step.plan.host).collect();
    several
        && hosts.into_iter().any(|host| {
            let mut steps = operation.steps.iter();
            steps.all(|step| step.plan.host != *host || done(step))
        })
}

fn unreachable_exit(operation: &Operation, hosts: &BTreeMap<HostName, Gone>) -> Exit {
    // One for whom nobody can vouch must not pass as one who is merely away: going on would not help.
    if hosts.values().any(|gone| gone.is_identity) {
        return match succeeded_on_some(operation) {
            true => Exit::SomeHosts,
            false => Exit::Identity,
        };
    }
    if !untouched(operation) {
        return Exit::Interrupted;
    }
    match hosts.values().any(|gone| gone.is_unreachable) {
        true => Exit::Unreachable,
        false => Exit::Failed,
    }
}

fn failed_exit(
    operation: &Operation,
    failures: &[(PlannedStep, StepFailure)],
    unreachable: &BTreeMap<HostName, Gone>,
) -> Exit {
    if succeeded_on_some(operation) {
        return Exit::SomeHosts;
    }
    if unreachable.values().any(|gone| gone.is_identity) {
        return Exit::Identity;
    }
    if failures.is_empty() && unreachable.values().any(|gone| gone.is_unreachable) {
        return Exit::Unreachable;
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

fn say(out: &mut Output, operation: &Operation, ended: &Ended) -> Written {
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
    if !ended.hosts.is_empty() {
        out.table(&summary::hosts(&ended.hosts))?;
    }
    for reason in &ended.reasons {
        out.line(format!("  because: {}", plain_lines(reason).join("\n    ")))?;
    }
    for hint in &ended.hints {
        out.line(format!("  hint: {}", plain_lines(hint).join("\n    ")))?;
    }
    match ended.rolled_back_by {
        Some(by) if untouched(operation) => out.line(format!(
            "  nothing was done, and operation {} closed it",
            by.short()
        )),
        Some(by) if ended.steps > 0 => out.line(format!(
            "  it was taken back by operation {}; --keep-failed would have left it",
            by.short()
        )),
        Some(_) | None => Ok(()),
    }?;
    for kept in &ended.kept {
        out.line(format!("  {}", plain(&kept.to_string())))?;
    }
    Ok(())
}
