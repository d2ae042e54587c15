//! From what a command wants to an operation that is carried out: planned anew as long as others come first.
//!
//! What can be refused is refused before anything is written.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::pace::{MaxFail, Pace};
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;
use tokio::time::Instant;

use super::super::{Context, Error, Exit, Loaded};
use super::aftermath::aftermath;
use super::dry_run::{Plan, dry_run};
use super::ending::conclude;
use super::{declared, engine, fleet, hand};
use crate::cloud::Selection;
use crate::cloud::inventory::Inventory;
use crate::cloud_log;
use crate::daemon::protocol::Purpose;
use crate::engine::watch::Notice;
use crate::engine::{self, Engine, Proposal};
use crate::log::{self, Open, Refusal};
use crate::plan;
use crate::render::progress::Progress;
use crate::render::{Format, Output};

/// How often a plan is made anew when something changed meanwhile.
const PLANS_MAX: u32 = 20;
/// How long to wait before that, times the number of the attempt.
const PLAN_DELAY: Duration = Duration::from_millis(5);
/// How long to wait before a claim that was refused is asked for again, once something happened.
const CLAIM_DELAY: Duration = Duration::from_millis(20);

/// What every acting command takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct ActOptions {
    /// Show the plan and what of it can't be undone; change nothing
    #[arg(long)]
    dry_run: bool,
    /// When a step fails, leave things as they are for `op resume` or `op rollback`
    #[arg(long)]
    keep_failed: bool,
    /// While another operation holds what this one needs, wait for that instead of being refused; at most for so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = humantime::parse_duration)]
    wait: Option<Option<Duration>>,
    /// Have the daemon carry it out, and end here as soon as it has it; `op attach` follows it
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    #[arg(skip)]
    pace: Pace,
}

impl ActOptions {
    /// The same, over several hosts at this pace.
    #[must_use]
    pub(in crate::cli) fn paced(mut self, pace: &PaceOptions) -> Self {
        self.pace = pace.given();
        self
    }
}

/// What every command takes that acts on several hosts.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct PaceOptions {
    /// Have at most so many hosts begun and not done; a further one begins when one is done
    #[arg(long, value_name = "N")]
    serial: Option<NonZeroU32>,
    /// Begin no further host once more than so many failed or could not be reached: a number, or a percentage of all
    #[arg(long, value_name = "N|P%")]
    max_fail: Option<MaxFail>,
}

impl PaceOptions {
    /// What was asked for.
    pub(in crate::cli) fn given(&self) -> Pace {
        Pace {
            serial: self.serial,
            max_fail: self.max_fail,
        }
    }
}

/// What an acting command wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Wish {
    /// What was asked.
    pub(in crate::cli) intent: Intent,
    /// What nobody else may change meanwhile.
    pub(in crate::cli) claims: Vec<Subject>,
    /// Its steps.
    pub(in crate::cli) steps: Vec<PlannedStep>,
}

/// What a plan needs to have been allocated: from this inventory, for these containers.
pub(in crate::cli) struct Needs<'a> {
    /// The inventory, as it is or with what the command adds to it.
    pub(in crate::cli) inventory: &'a Inventory,
    /// The containers.
    pub(in crate::cli) selection: Selection,
}

/// Plans, and carries the plan out as an operation.
///
/// # Errors
/// When there is no plan, the log refuses, or hosts can't be reached.
pub(in crate::cli) async fn operate(
    context: &Context,
    out: &mut Output,
    options: &ActOptions,
    loaded: &Loaded,
    needs: Option<Needs<'_>>,
    wish: impl Fn(&State, OperationId) -> Result<Wish, Error>,
) -> Result<Exit, Error> {
    let id = engine::new_operation();
    let mut known = context.state_or_empty().await?;
    if let Some(needs) = &needs {
        let given = cloud_log::plan(&known, needs.inventory, &needs.selection)?;
        known.allocations.extend(given.allocations());
    }
    // What can be refused is refused before anything is written, but for what is waited for.
    let wanted = match wish(&known, id).map_err(|error| held(&known, error)) {
        Err(error) if options.wait.is_some() && !options.dry_run && claimed(&error).is_some() => {
            None
        }
        wanted => Some(wanted?),
    };
    let fleet = fleet(&loaded.inventory)?;
    let secrets = declared(loaded)?;
    if let Some(wanted) = wanted {
        if options.dry_run {
            return dry_run(out, &Plan::of(wanted));
        }
        if wanted.steps.is_empty() {
            return nothing_to_do(out, &wanted.intent);
        }
    }
    if options.detach && !context.has_log()? {
        return Err(Error::NoDaemonToDetach);
    }
    let log = context.open_log(Open::Create).await?;
    let progress = Progress::new(out.format());
    let purpose = Purpose::Run {
        undo_failed: !options.keep_failed,
    };
    let held = hand::hold(log, id, None, purpose, options.detach).await?;
    let engine = engine(log, fleet, &progress, Arc::clone(&secrets)).kept(hand::holds(&held));
    let mut attempt = 0;
    let mut patience = options.wait.map(Patience::of);
    loop {
        let inventory = cloud_log::record_inventory(log, &loaded.path, &loaded.text).await?;
        let state = log.state().await?;
        let seen = state.head.seq;
        let proposal = match propose(state, id, inventory, needs.as_ref(), options.pace, &wish) {
            Ok(proposal) => proposal,
            Err(error) if patience.is_some() && claimed(&error).is_some() => {
                match wait(&engine, patience.as_mut(), seen, error).await? {
                    Waited::Further => {
                        attempt = 0;
                        continue;
                    }
                    Waited::Stopped => return stopped(out),
                }
            }
            Err(Error::CloudLog(cloud_log::Error::InventoryReplaced { .. }))
                if attempt < PLANS_MAX =>
            {
                attempt += 1;
                tokio::time::sleep(PLAN_DELAY * attempt).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if proposal.steps.is_empty() {
            return nothing_to_do(out, &proposal.intent);
        }
        // Who carries it out has to have them: the daemon reads its own.
        for step in proposal.steps.iter().filter(|_| held.is_none()) {
            secrets.check(step)?;
        }
        match engine.begin(proposal).await {
            Ok(_) => break,
            Err(engine::Error::Log(log::Error::Refused(Refusal::Changed { .. })))
                if attempt < PLANS_MAX =>
            {
                attempt += 1;
                tokio::time::sleep(PLAN_DELAY * attempt).await;
            }
            Err(error) => {
                let error = Error::from(error);
                if claimed(&error).is_none() {
                    return Err(error);
                }
                match wait(&engine, patience.as_mut(), seen, error).await? {
                    Waited::Further => attempt = 0,
                    Waited::Stopped => return stopped(out),
                }
            }
        }
    }
    if let Some(held) = held {
        return hand::over(&engine, out, &progress, id, held, options.detach).await;
    }
    let carried_out = engine.run(id).await;
    let ending = aftermath(&engine, id, carried_out, !options.keep_failed).await;
    conclude(log, out, &progress, id, ending).await
}

/// What is asked of the log at this point: the plan, and with it what the plan was given.
fn propose(
    mut state: State,
    id: OperationId,
    inventory: Seq,
    needs: Option<&Needs<'_>>,
    pace: Pace,
    wish: impl Fn(&State, OperationId) -> Result<Wish, Error>,
) -> Result<Proposal, Error> {
    let mut alongside = None;
    if let Some(needs) = needs {
        let made = cloud_log::make(&state, needs.inventory, &needs.selection, inventory)?;
        state.allocations.extend(made.outcome.allocations());
        alongside = Some((made.drafts, made.condition));
    }
    let Wish {
        intent,
        claims,
        steps,
    } = wish(&state, id).map_err(|error| held(&state, error))?;
    Ok(Proposal {
        id,
        intent,
        inventory,
        claims,
        steps,
        planned_at: Some(state.head.seq),
        alongside,
        instead_of: Vec::new(),
        pace,
    })
}

/// How long claims of others are waited for.
pub(super) struct Patience {
    until: Option<Instant>,
    /// Whom it was told of last, and where that one stood.
    told: Option<(OperationId, String)>,
}

impl Patience {
    pub(super) fn of(most: Option<Duration>) -> Self {
        Patience {
            until: most.map(|most| Instant::now() + most),
            told: None,
        }
    }
}

pub(super) enum Waited {
    /// It may be tried again.
    Further,
    /// Somebody asked to stop.
    Stopped,
}

/// That another operation holds something.
pub(super) fn claimed(error: &Error) -> Option<&Refusal> {
    let (Error::Log(log::Error::Refused(refusal))
    | Error::Engine(engine::Error::Log(log::Error::Refused(refusal)))) = error
    else {
        return None;
    };
    matches!(refusal, Refusal::Claimed { .. }).then_some(refusal)
}

/// Waits until the operation that a refusal names holds its claim no more, and tells for whom; the refusal itself where that
/// is not wanted, or not for so long. `seen` is the newest event that was there when it was refused.
pub(super) async fn wait(
    engine: &Engine,
    patience: Option<&mut Patience>,
    mut seen: Seq,
    error: Error,
) -> Result<Waited, Error> {
    let (
        Some(patience),
        Some(Refusal::Claimed {
            subject,
            holder,
            summary,
            status,
        }),
    ) = (patience, claimed(&error))
    else {
        return Err(error);
    };
    let mut status = status.clone();
    let lasts = async {
        match patience.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(lasts);
    loop {
        let standing = Some((*holder, status.clone()));
        if patience.told != standing {
            patience.told = standing;
            engine.tell(&Notice::Claimed {
                subject: subject.clone(),
                holder: *holder,
                summary: summary.clone(),
                status: status.clone(),
            });
        }
        tokio::select! {
            biased;
            () = engine.stopped() => return Ok(Waited::Stopped),
            () = &mut lasts => return Err(error),
            waited = engine.log().wait_beyond(seen) => waited?,
        }
        // A log in which much happens is not asked for each of it.
        tokio::time::sleep(CLAIM_DELAY).await;
        let state = engine.log().state().await?;
        // What is refused for good is said by who asks again.
        if state.fenced.is_some() || state.claims.get(subject) != Some(holder) {
            return Ok(Waited::Further);
        }
        seen = state.head.seq;
        if let Some(known) = state.operations.get(holder) {
            known.status.label().clone_into(&mut status);
        }
    }
}

/// Nothing was begun.
pub(super) fn stopped(out: &mut Output) -> Result<Exit, Error> {
    if out.format() == Format::Table {
        out.line("stopped before anything was begun")?;
    }
    Ok(Exit::Interrupted)
}

/// What is there may be what an operation left half made: then that is what stands in the way.
fn held(state: &State, error: Error) -> Error {
    let Error::Plan(plan::Error::ContainerExists { host, container }) = &error else {
        return error;
    };
    let subject = Subject::Container(host.clone(), container.clone());
    let holder = state.claims.get(&subject);
    let Some((holder, known)) = holder.and_then(|holder| state.operations.get_key_value(holder))
    else {
        return error;
    };
    Error::Log(log::Error::Refused(Refusal::Claimed {
        subject,
        holder: *holder,
        summary: known.intent.summary(),
        status: known.status.label().to_owned(),
    }))
}

/// That there was nothing to do, as JSON.
#[derive(Debug, Serialize)]
struct Nothing {
    outcome: &'static str,
    intent: String,
    exit: Exit,
    code: u8,
}

pub(super) fn nothing_to_do(out: &mut Output, intent: &Intent) -> Result<Exit, Error> {
    match out.format() {
        Format::Json => out.json_line(&Nothing {
            outcome: "nothing_to_do",
            intent: intent.summary(),
            exit: Exit::Ok,
            code: Exit::Ok.code(),
        })?,
        Format::Table => out.line("nothing to do")?,
    }
    Ok(Exit::Ok)
}
