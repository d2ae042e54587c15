//! Taking everything back that was begun since a point of the log, as one operation.
//!
//! It is shown before it is done, with what stays and why; what was not shown is not done.

use std::collections::BTreeSet;
use std::time::Duration;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_replay::operation::Operation;
use tallybook_replay::since::{self, Since, Stays};

use super::super::confirmation::is_wanted;
use super::super::{Context, Error, Exit};
use super::aftermath::aftermath;
use super::dry_run::{Left, Plan, TakenBack, dry_run, show};
use super::ending::{Kept, conclude};
use super::operate::{Patience, Waited, claimed, nothing_to_do, stopped, wait};
use super::resume::{load, recorded_inventory};
use super::{Wish, declared_by, engine, fleet};
use crate::cloud::inventory::Inventory;
use crate::engine::{self, Engine, Proposal};
use crate::log::{self, Filter, Log, Open, Refusal};
use crate::render::progress::Progress;
use crate::render::{Format, Output, count};

/// How often it is planned anew when something changed meanwhile.
const ATTEMPTS_MAX: u32 = 20;

/// How it is wanted.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Wanted {
    /// Shown only.
    pub(in crate::cli) dry_run: bool,
    /// Without being asked.
    pub(in crate::cli) yes: bool,
    /// Whether claims of others are waited for, and how long.
    pub(in crate::cli) wait: Option<Option<Duration>>,
}

/// What was begun since, as it stood when it was looked at.
struct Survey {
    since: Since,
    /// The newest event by then.
    head: Seq,
    /// All that was looked at.
    operations: Vec<Operation>,
}

impl Survey {
    async fn make(log: &Log, to: Seq) -> Result<Self, Error> {
        let head = log.head().await?.seq;
        let mut ids: BTreeSet<OperationId> = BTreeSet::new();
        for kind in ["operation", "step"] {
            let behind = Filter {
                kind: Some(kind.to_owned()),
                from: Some(to.next()),
                ..Filter::default()
            };
            let records = log.records(&behind).await?;
            ids.extend(records.iter().filter_map(|record| record.header.operation));
        }
        let mut operations = Vec::with_capacity(ids.len());
        for id in ids {
            operations.push(load(log, id).await?);
        }
        let since = match since::plan(to, &operations) {
            Ok(since) => since,
            Err(since::Error::RollingBack(id)) => {
                let by = log.taken_back_by(id).await?.unwrap_or(id);
                return Err(engine::Error::RollingBack { id, by }.into());
            }
            Err(since::Error::Irreversible { id, summary, why }) => {
                return Err(Error::Irreversible { id, summary, why });
            }
        };
        Ok(Survey {
            since,
            head,
            operations,
        })
    }

    fn taken_back(&self) -> impl Iterator<Item = &Operation> {
        let ids = self.since.operations.iter();
        ids.filter_map(|id| self.operations.iter().find(|known| known.id == *id))
    }

    fn left(&self) -> Vec<Left> {
        let left = |(id, stays): &(OperationId, Stays)| {
            let known = self.operations.iter().find(|known| known.id == *id);
            Left {
                operation: *id,
                intent: known.map_or_else(String::new, |known| known.intent.summary()),
                why: why(stays),
            }
        };
        self.since.stays.iter().map(left).collect()
    }

    fn wish(&self, to: Seq) -> Wish {
        Wish {
            intent: Intent::RollbackTo {
                to,
                operations: self.since.operations.clone(),
            },
            claims: self.since.claims.clone(),
            steps: self.since.undo.steps.clone(),
        }
    }

    fn plan(&self, to: Seq) -> Plan {
        Plan {
            wish: self.wish(to),
            takes_back: self.taken_back().map(TakenBack::of).collect(),
            kept: Kept::all(self.since.undo.kept.clone()),
            stays: self.left(),
        }
    }

    /// The newest inventory that one of the operations ran with and that has all hosts: they are reached as it says.
    async fn inventory(&self, log: &Log) -> Result<(Seq, Inventory), Error> {
        let seqs: BTreeSet<Seq> = self.taken_back().map(|known| known.inventory).collect();
        let mut lacking = None;
        for seq in seqs.into_iter().rev() {
            let inventory = recorded_inventory(log, seq).await?;
            match self.missing_in(&inventory) {
                None => return Ok((seq, inventory)),
                Some(host) => lacking = Some(host),
            }
        }
        match lacking {
            Some(host) => Err(Error::NoInventoryOfAll(host)),
            None => Err(Error::InventoryLost(Seq::NONE)),
        }
    }

    /// A host that it acts on and that an inventory does not have.
    fn missing_in(&self, inventory: &Inventory) -> Option<HostName> {
        let hosts = self.since.undo.steps.iter().map(|step| &step.host);
        hosts
            .into_iter()
            .find(|host| !inventory.hosts.contains_key(*host))
            .cloned()
    }
}

fn why(stays: &Stays) -> String {
    match stays {
        Stays::Session => "a session in a container is not undone".to_owned(),
        Stays::Irreversible(steps) => {
            let steps = steps
                .iter()
                .map(|left| format!("{}: {}", left.summary, left.why));
            steps.collect::<Vec<_>>().join("; ")
        }
        Stays::Rollback(older) => {
            let older: Vec<String> = older.iter().map(OperationId::short).collect();
            format!(
                "it took back what is older than that: {}; an undo is not undone",
                older.join(", ")
            )
        }
        Stays::BegunBefore => "it was begun before that, and acted since as well".to_owned(),
    }
}

/// Takes back what was begun behind an event.
///
/// # Errors
/// When something of it is being taken back by somebody else, is held, or can't be carried out.
pub(in crate::cli) async fn rollback_to(
    context: &Context,
    out: &mut Output,
    to: Seq,
    wanted: Wanted,
) -> Result<Exit, Error> {
    let log = context.open_log(Open::Existing).await?;
    let survey = Survey::make(log, to).await?;
    let shown = survey.plan(to);
    if wanted.dry_run {
        return dry_run(out, &shown);
    }
    if shown.takes_back.is_empty() {
        return nothing_is_left(out, &shown);
    }
    let (seq, inventory) = survey.inventory(log).await?;
    if !is_agreed(out, &shown, wanted)? {
        return refused(out);
    }
    let progress = Progress::new(out.format());
    let secrets = declared_by(&inventory);
    let engine = engine(log, fleet(&inventory)?, &progress, secrets);
    let mut beginning = Beginning {
        engine: &engine,
        to,
        inventory: (seq, &inventory),
        shown,
        wanted,
    };
    let mut patience = wanted.wait.map(Patience::of);
    let mut attempts = 0;
    let id = loop {
        let seen = log.head().await?.seq;
        match beginning.attempt(out).await {
            Ok(Begun::Operation(id)) => break id,
            Ok(Begun::Nothing) => return nothing_is_left(out, &beginning.shown),
            Ok(Begun::Refused) => return refused(out),
            Err(Error::Engine(engine::Error::Log(log::Error::Refused(Refusal::Changed {
                ..
            }))))
                if attempts < ATTEMPTS_MAX =>
            {
                attempts += 1;
            }
            Err(error) if claimed(&error).is_some() => {
                match wait(&engine, patience.as_mut(), seen, error).await? {
                    Waited::Further => {}
                    Waited::Stopped => return stopped(out),
                }
            }
            Err(error) => return Err(error),
        }
    };
    let ending = aftermath(&engine, id, engine.run(id).await, false).await;
    conclude(log, out, &progress, id, ending).await
}

/// What is needed to begin, and what was shown last.
struct Beginning<'a> {
    engine: &'a Engine,
    to: Seq,
    inventory: (Seq, &'a Inventory),
    shown: Plan,
    wanted: Wanted,
}

/// What came of it.
enum Begun {
    /// It is in the log.
    Operation(OperationId),
    /// Nothing is left to be taken back.
    Nothing,
    /// It changed since it was shown, and is not wanted any more.
    Refused,
}

impl Beginning<'_> {
    async fn attempt(&mut self, out: &mut Output) -> Result<Begun, Error> {
        // Nobody else acts for them from here on, so what is planned now is all that there is to undo.
        for taken in &self.shown.takes_back {
            self.engine.hold(taken.operation)?;
        }
        let survey = Survey::make(self.engine.log(), self.to).await?;
        let plan = survey.plan(self.to);
        if plan.takes_back.is_empty() {
            self.shown = plan;
            return Ok(Begun::Nothing);
        }
        if plan != self.shown {
            self.shown = plan;
            if !is_agreed(out, &self.shown, self.wanted)? {
                return Ok(Begun::Refused);
            }
        }
        let (inventory, of) = self.inventory;
        if let Some(host) = survey.missing_in(of) {
            return Err(Error::NoInventoryOfAll(host));
        }
        let Wish {
            intent,
            claims,
            steps,
        } = survey.wish(self.to);
        let taken_back = survey.taken_back();
        let proposal = Proposal {
            id: engine::new_operation(),
            intent,
            inventory,
            claims,
            steps,
            planned_at: Some(survey.head),
            alongside: None,
            instead_of: taken_back.map(|known| (known.id, known.last)).collect(),
            pace: Pace::default(),
        };
        Ok(Begun::Operation(self.engine.begin(proposal).await?))
    }
}

/// Shows it, and asks unless that was answered before.
fn is_agreed(out: &mut Output, plan: &Plan, wanted: Wanted) -> Result<bool, Error> {
    if out.format() == Format::Table {
        show(out, plan)?;
    }
    if wanted.yes {
        return Ok(true);
    }
    let operations = count(plan.takes_back.len(), "operation");
    is_wanted(out, &format!("take back {operations}?"))
}

fn refused(out: &mut Output) -> Result<Exit, Error> {
    out.line("nothing was changed")?;
    Ok(Exit::Failed)
}

fn nothing_is_left(out: &mut Output, plan: &Plan) -> Result<Exit, Error> {
    if out.format() == Format::Table {
        show(out, plan)?;
    }
    nothing_to_do(out, &plan.wish.intent)
}
