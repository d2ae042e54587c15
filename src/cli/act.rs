//! What every acting command does: plan, show or make durable, carry out, and say how it ended.
//!
//! Nothing acts before its operation is in the log; a failure leaves either nothing or something that `op` lists.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tallybook_events::event::Event;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::step::{Action, FailureClass, PlannedStep, Reversal, StepFailure};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::state::State;
use tallybook_replay::undo;
use tokio::sync::watch;

use super::{Context, Error, Exit, Loaded};
use crate::cloud::inventory::{Become, Inventory};
use crate::cloud::{Selection, parse};
use crate::cloud_log;
use crate::engine::reach::{AgentProgram, Fleet};
use crate::engine::{self, Engine, Limits, Once, Outcome, Proposal};
use crate::host::{Settings, Target};
use crate::log::{self, Filter, Log, Open, Refusal};
use crate::render::progress::Progress;
use crate::render::{Column, Format, Ink, Output, Table, count};

/// How often a plan is made anew when something changed meanwhile.
const PLANS_MAX: u32 = 8;

/// What every acting command takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ActOptions {
    /// Show the plan and what of it can't be undone; change nothing
    #[arg(long)]
    dry_run: bool,
    /// When a step fails, leave things as they are for `op resume` or `op rollback`
    #[arg(long)]
    keep_failed: bool,
}

/// What an acting command wants.
pub(super) struct Wish {
    /// What was asked.
    pub(super) intent: Intent,
    /// What nobody else may change meanwhile.
    pub(super) claims: Vec<Subject>,
    /// Its steps.
    pub(super) steps: Vec<PlannedStep>,
}

/// What a plan needs to have been allocated: from this inventory, for these containers.
pub(super) struct Needs<'a> {
    /// The inventory, as it is or with what the command adds to it.
    pub(super) inventory: &'a Inventory,
    /// The containers.
    pub(super) selection: Selection,
}

/// Plans, and carries the plan out as an operation.
///
/// # Errors
/// When there is no plan, the log refuses, or hosts can't be reached.
pub(super) async fn operate(
    context: &Context,
    out: &mut Output,
    options: &ActOptions,
    loaded: &Loaded,
    needs: Option<Needs<'_>>,
    wish: impl Fn(&State, OperationId) -> Result<Wish, Error>,
) -> Result<Exit, Error> {
    let id = engine::new_operation();
    if options.dry_run {
        let mut state = context.state_or_empty().await?;
        if let Some(needs) = &needs {
            let outcome = cloud_log::plan(&state, needs.inventory, &needs.selection)?;
            state.allocations.extend(outcome.allocations());
        }
        return show_plan(out, &wish(&state, id)?);
    }
    // What can be refused without a log is refused before there is one.
    let known = context.state_or_empty().await?;
    if needs.is_none() {
        wish(&known, id)?;
    }
    let fleet = fleet(&loaded.inventory)?;
    let log = context.open_log(Open::Create).await?;
    let inventory = record(log, loaded, needs.as_ref()).await?;
    let progress = Progress::new(out.format());
    let engine = engine(log, fleet, &progress);
    let mut attempt = 0;
    loop {
        let state = log.state().await?;
        let Wish {
            intent,
            claims,
            steps,
        } = wish(&state, id)?;
        if steps.is_empty() {
            out.line("nothing to do")?;
            return Ok(Exit::Ok);
        }
        let proposal = Proposal {
            id,
            intent,
            inventory,
            claims,
            steps,
            planned_at: state.head.seq,
            instead_of: None,
        };
        match engine.begin(proposal).await {
            Ok(_) => break,
            Err(engine::Error::Log(log::Error::Refused(Refusal::Changed { .. })))
                if attempt < PLANS_MAX =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let outcome = engine.run(id).await?;
    conclude(&engine, out, &progress, id, outcome, !options.keep_failed).await
}

async fn record(log: &Log, loaded: &Loaded, needs: Option<&Needs<'_>>) -> Result<Seq, Error> {
    Ok(match needs {
        Some(needs) => {
            let (seq, _) = cloud_log::refresh(
                log,
                &loaded.path,
                &loaded.text,
                needs.inventory,
                &needs.selection,
            )
            .await?;
            seq
        }
        None => cloud_log::record_inventory(log, &loaded.path, &loaded.text).await?,
    })
}

/// Takes an unfinished operation up again.
///
/// # Errors
/// When it is finished, or can't be carried out.
pub(super) async fn resume(
    context: &Context,
    out: &mut Output,
    id: OperationId,
    once: Once,
) -> Result<Exit, Error> {
    let log = context.open_log(Open::Existing).await?;
    let operation = load(log, id).await?;
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let progress = Progress::new(out.format());
    let engine = engine(log, fleet(&inventory)?, &progress);
    let outcome = engine.resume(id, once).await?;
    conclude(&engine, out, &progress, id, outcome, false).await
}

/// Takes an operation back.
///
/// # Errors
/// When it was taken back already, or the undo can't be carried out.
pub(super) async fn rollback(
    context: &Context,
    out: &mut Output,
    id: OperationId,
    dry_run: bool,
) -> Result<Exit, Error> {
    let log = context.open_log(Open::Existing).await?;
    let operation = load(log, id).await?;
    let wish = undo_wish(&operation)?;
    if dry_run {
        return show_plan(out, &wish);
    }
    let inventory = recorded_inventory(log, operation.inventory).await?;
    let progress = Progress::new(out.format());
    let engine = engine(log, fleet(&inventory)?, &progress);
    // Nobody else acts for it from here on, so what is planned now is all that there is to undo.
    engine.hold(id)?;
    engine.check_not_taken_back(id).await?;
    let operation = load(log, id).await?;
    let wish = undo_wish(&operation)?;
    let (undo, outcome) = take_back(&engine, &operation, wish).await?;
    conclude(&engine, out, &progress, undo, outcome, false).await
}

async fn load(log: &Log, id: OperationId) -> Result<Operation, Error> {
    Ok(log.operation(id).await?.ok_or(engine::Error::Missing(id))?)
}

fn undo_wish(operation: &Operation) -> Result<Wish, Error> {
    if let Intent::Rollback { .. } = operation.intent {
        return Err(Error::RollbackOfRollback(operation.id));
    }
    if operation.status == OperationStatus::RolledBack {
        return Err(engine::Error::Final {
            id: operation.id,
            status: operation.status.label(),
        }
        .into());
    }
    let plan = undo::plan(operation);
    if let Some((summary, why)) = plan.irreversible.first() {
        return Err(Error::Irreversible {
            id: operation.id,
            summary: summary.clone(),
            why: why.clone(),
        });
    }
    let subject = operation
        .steps
        .first()
        .map(|step| step.plan.subject.clone());
    let claims = match operation.claims.as_slice() {
        [] => subject.into_iter().collect(),
        claims => claims.to_vec(),
    };
    Ok(Wish {
        intent: Intent::Rollback {
            operation: operation.id,
        },
        claims,
        steps: plan.steps,
    })
}

async fn take_back(
    engine: &Engine,
    operation: &Operation,
    wish: Wish,
) -> Result<(OperationId, Outcome), Error> {
    let id = engine::new_operation();
    let proposal = Proposal {
        id,
        intent: wish.intent,
        inventory: operation.inventory,
        claims: wish.claims,
        steps: wish.steps,
        planned_at: operation.last,
        instead_of: Some(operation.id),
    };
    engine.begin(proposal).await?;
    Ok((id, engine.run(id).await?))
}

/// The inventory that an operation ran with, from the log.
async fn recorded_inventory(log: &Log, seq: Seq) -> Result<Inventory, Error> {
    let entries = log.entries(&Filter::at(seq)).await?;
    let recorded = entries.into_iter().find_map(|entry| match entry.event {
        Event::InventoryRecorded(recorded) => Some(recorded),
        _ => None,
    });
    let Some(recorded) = recorded else {
        return Err(Error::InventoryLost(seq));
    };
    parse(&recorded.path, &recorded.text.to_string()).map_err(|diagnostics| Error::Inventory {
        path: PathBuf::from(recorded.path),
        diagnostics,
    })
}

/// The inventory's hosts, and how each is reached.
pub(super) fn fleet(inventory: &Inventory) -> Result<Fleet, Error> {
    let agent = AgentProgram::beside_this_program()?;
    let settings = settings();
    let targets = inventory
        .hosts
        .keys()
        .map(|name| target(inventory, name, &settings))
        .collect::<Result<_, _>>()?;
    Ok(Fleet::new(targets, settings, agent))
}

/// How hosts are reached from here.
pub(super) fn settings() -> Settings {
    Settings::with_environment(|name| std::env::var_os(name))
}

/// One host of the inventory, and how it is reached.
///
/// # Errors
/// When the inventory does not have it.
pub(super) fn target(
    inventory: &Inventory,
    name: &tallybook_events::name::HostName,
    settings: &Settings,
) -> Result<Target, Error> {
    let host = inventory
        .hosts
        .get(name)
        .ok_or_else(|| crate::plan::Error::HostUnknown(name.clone()))?;
    let mut jumps = Vec::new();
    let mut next = host.jump.as_ref();
    // The inventory has refused cycles.
    while let Some(jump) = next.and_then(|name| inventory.hosts.get(name)) {
        let user = jump.user.as_ref().map(|user| format!("{user}@"));
        let port = jump.port.map(|port| format!(":{port}"));
        let address = [user, Some(jump.address.clone()), port];
        jumps.insert(0, address.into_iter().flatten().collect::<String>());
        next = jump.jump.as_ref();
    }
    let identity = host
        .identity
        .as_ref()
        .map(|path| match path.strip_prefix("~/") {
            Some(rest) => settings.home.clone().unwrap_or_default().join(rest),
            None => PathBuf::from(path),
        });
    Ok(Target {
        name: name.clone(),
        address: host.address.clone(),
        port: host.port,
        user: host.user.clone(),
        identity_files: identity.into_iter().collect(),
        jump: (!jumps.is_empty()).then(|| jumps.join(",")),
        become_root: host.become_root == Become::Sudo,
        local: host.local,
    })
}

/// An engine that stops at the first Ctrl-C; the second ends the process at once.
pub(super) fn engine(log: &Log, fleet: Fleet, progress: &Progress) -> Engine {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            // Keeps the sender: without signals nobody asks to stop.
            std::future::pending::<()>().await;
            return;
        };
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if std::mem::replace(&mut asked, true) {
                eprintln!(
                    "left at once; `tallybook op list --unfinished` shows what can be resumed"
                );
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
            stop.send_replace(true);
        }
    });
    Engine::new(
        log.clone(),
        Arc::new(fleet),
        progress.watch(),
        stopped,
        Limits::default(),
    )
}

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
async fn conclude(
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
        Outcome::Failed(_) => undo_failed && builds_something(&operation.intent),
        Outcome::Unreachable(_) => untouched(&operation),
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
            Outcome::Failed(_)
            | Outcome::Interrupted(_)
            | Outcome::Unreachable(_)
            | Outcome::Stuck(_) => {
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
        Outcome::Failed(failures) => {
            for (plan, failure) in failures {
                reasons.push(format!(
                    "{} on {}: {}",
                    plan.summary, plan.host, failure.message
                ));
                hints.extend(failure.hint.clone());
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

/// A plan, as JSON.
#[derive(Debug, Serialize)]
struct PlanView<'a> {
    dry_run: bool,
    intent: String,
    steps: &'a [PlannedStep],
}

fn show_plan(out: &mut Output, wish: &Wish) -> Result<Exit, Error> {
    if out.format() == Format::Json {
        out.json(&PlanView {
            dry_run: true,
            intent: wish.intent.summary(),
            steps: &wish.steps,
        })?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new([
        Column::right("STEP"),
        Column::left("HOST"),
        Column::left("WHAT"),
        Column::left("UNDO"),
    ]);
    for step in &wish.steps {
        let undo = match &step.reversal {
            // An undo is the way back; it has none of its own.
            _ if matches!(step.action, Action::Undo { .. }) => "-".to_owned(),
            Reversal::Undo => "yes".to_owned(),
            Reversal::Keep { why } => format!("kept: {why}"),
            Reversal::Irreversible { why } => format!("NO: {why}"),
        };
        table.row([
            step.index.0.to_string().into(),
            step.host.to_string().into(),
            step.summary.clone().into(),
            undo.into(),
        ]);
    }
    out.table(&table)?;
    out.line(format!(
        "dry run: {} would be {}; nothing was done",
        wish.intent.summary(),
        count(wish.steps.len(), "step")
    ))?;
    Ok(Exit::Ok)
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
