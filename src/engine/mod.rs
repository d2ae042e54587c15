//! The one execution loop: a run is the resume of a fresh operation.
//!
//! What to do next is decided by `tallybook-replay` from the events; this carries it out, and records before and
//! after. It never acts before the intention is durable, and never invents an outcome.

mod abandon;
pub mod adopt;
mod chain;
pub mod check;
pub mod conversation;
pub mod crash;
mod forget;
mod net;
pub mod reach;
mod resolve;
mod run;
pub mod runner_lock;
pub mod session;
mod standing;
mod success;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tallybook_agent::mask::Mask;
use tallybook_agent::secret::SecretName;
use tallybook_events::event::{
    Event, LogFenced, OperationIntended, OperationPaced, OperationPlanned, OperationResumed,
    StepForced,
};
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::step::{Action, Fence, Mark, PlannedStep, StepFailure};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::resume::Running;
use tokio::sync::watch as stop_channel;

use crate::clock;
use crate::log::{self, Condition, Draft, Log, Refusal};
use crate::secrets::Declared;
use chain::Crew;
use crash::Moment;
use reach::Reach;
use run::Run;
use runner_lock::Hold;
use watch::{Notice, Watch};

pub use abandon::abandon;
pub use reach::Gone;

/// How much may go on at once. On one host it is one chain of an operation at a time: a second one would only wait
/// there for the operation's lock, and say so to people as if it were an earlier run's.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Chains of steps, over all hosts.
    pub chains: usize,
    /// How many bytes a host's receipts journal may have before what is over is left out of it.
    pub journal_len_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            chains: 32,
            journal_len_max: 4 * 1024 * 1024,
        }
    }
}

/// How a run of an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every step succeeded.
    Succeeded,
    /// Steps failed; it can be resumed or rolled back.
    Failed {
        /// What failed, and how.
        failures: Vec<(PlannedStep, StepFailure)>,
        /// Hosts that could not be reached besides.
        unreachable: BTreeMap<HostName, Gone>,
        /// Why no further host was begun, where too many failed.
        enough: Option<String>,
    },
    /// It was left unfinished on purpose, or because a line was lost; it can be resumed.
    Interrupted(String),
    /// Nothing more can be done without these hosts; it can be resumed.
    Unreachable(BTreeMap<HostName, Gone>),
    /// Somebody has to decide.
    Stuck(String),
    /// A host has seen a newer line of this log's history, and refuses this one. Nothing more may be begun with it
    /// anywhere, not even an undo.
    Fenced(String),
}

/// Why an operation can't be carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed, or refused.
    #[error(transparent)]
    Log(log::Error),
    /// There is no such operation.
    #[error("there is no operation {0}")]
    Missing(OperationId),
    /// The operation is finished.
    #[error("operation {} is {status}; there is nothing to resume", id.short())]
    Final {
        /// The operation.
        id: OperationId,
        /// Where it stands.
        status: &'static str,
    },
    /// The operation was asked for, and its plan never became durable.
    #[error("operation {} was never planned, so nothing of it was done", .0.short())]
    Unplanned(OperationId),
    /// Another operation is taking it back.
    #[error("operation {} is being taken back by operation {}", id.short(), by.short())]
    RollingBack {
        /// The operation.
        id: OperationId,
        /// The one that takes it back.
        by: OperationId,
    },
    /// Another process carries it out.
    #[error(transparent)]
    Runner(#[from] runner_lock::Error),
    /// Only the daemon can hold it: the store is not there for us.
    #[error("operation {} can only be carried out by the daemon: its store is not in reach", .0.short())]
    NoStore(OperationId),
    /// What was asked for, or a step of its plan, shows a secret: it would be recorded.
    #[error("the value of secret {0} is in what is asked for, and that is recorded")]
    Exposed(SecretName),
    /// A host was shown an event of this log that it does not have: it is not the newest line of its history.
    #[error("{}", lacking(host, *seen))]
    Fenced {
        /// The host.
        host: HostName,
        /// What it was shown.
        seen: Mark,
    },
    /// What is there can't be taken over as what a step was to make.
    #[error(transparent)]
    Unfit(#[from] adopt::Unfit),
    /// Nothing is known to be in the way of a step.
    #[error("nothing is known to be in the way of a step of operation {}", .0.short())]
    Unblocked(OperationId),
    /// A session can't be taken up again.
    #[error("operation {} was a session in a container, which can't be resumed", .0.short())]
    Session(OperationId),
}

impl From<log::Error> for Error {
    fn from(error: log::Error) -> Self {
        match error {
            log::Error::Refused(Refusal::Fenced { host, seen }) => Error::Fenced { host, seen },
            other => Error::Log(other),
        }
    }
}

/// What may be done about a step that is in doubt and can be started only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// Nothing: somebody has to decide.
    Ask,
    /// It is started again: an operator has looked, and says so.
    Again,
}

/// What becomes of steps that failed when an operation is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// They are tried again: somebody wants that.
    Again,
    /// They stay failed: only what was cut short is gone on with.
    Stay,
}

/// What is needed to begin an operation.
#[derive(Debug)]
pub struct Proposal {
    /// Its id: steps may carry it in their parameters.
    pub id: OperationId,
    /// What was asked.
    pub intent: Intent,
    /// The inventory it runs with.
    pub inventory: Seq,
    /// What nobody else may change meanwhile.
    pub claims: Vec<Subject>,
    /// Its steps.
    pub steps: Vec<PlannedStep>,
    /// The event up to which the state was known when it was planned: nothing that it claims may have changed since. `None`
    /// where it is known without the state what is to be done.
    pub planned_at: Option<Seq>,
    /// What becomes true with it, in the same append: what it was given, and on which condition.
    pub alongside: Option<(Vec<Draft>, Condition)>,
    /// The operations whose claims it takes over, when it takes those back, each with the newest event of it that the
    /// plan knows.
    pub instead_of: Vec<(OperationId, Seq)>,
    /// How it goes over its hosts.
    pub pace: Pace,
}

/// Who sees to it that no other process carries an operation out meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// This process, with a lock in the store.
    Here,
    /// The daemon, which was asked for it before and holds it as long as the line to it stands.
    Daemon,
}

/// What a daemon does with a run besides: it has it end without a word when it ends itself, and says who stopped it.
#[derive(Debug, Clone)]
pub struct Service {
    /// Turns true when what runs shall be finished and all else left, for the next start of the daemon.
    pub drain: stop_channel::Receiver<bool>,
    /// Who asked to stop.
    pub stopped_by: Arc<OnceLock<String>>,
}

/// Carries operations out. As long as it lives no other process can carry out those that it began or took up.
pub struct Engine {
    log: Log,
    reach: Arc<dyn Reach>,
    watch: Watch,
    stop: stop_channel::Receiver<bool>,
    limits: Limits,
    secrets: Arc<Declared>,
    keeps: Holds,
    holds: Mutex<BTreeMap<OperationId, Hold>>,
    service: Option<Service>,
}

impl Engine {
    /// An engine. `stop` turns true when it shall finish what runs and begin nothing else.
    pub fn new(
        log: Log,
        reach: Arc<dyn Reach>,
        watch: Watch,
        stop: stop_channel::Receiver<bool>,
        limits: Limits,
    ) -> Self {
        Engine {
            log,
            reach,
            watch,
            stop,
            limits,
            secrets: Arc::default(),
            keeps: Holds::Here,
            holds: Mutex::new(BTreeMap::new()),
            service: None,
        }
    }

    /// With operations held by whom these say.
    #[must_use]
    pub fn kept(mut self, keeps: Holds) -> Self {
        self.keeps = keeps;
        self
    }

    /// As a daemon's, with operations that it holds already.
    #[must_use]
    pub fn serving(mut self, service: Service, held: Vec<Hold>) -> Self {
        self.service = Some(service);
        let held = held.into_iter().map(|hold| (hold.operation(), hold));
        self.holds = Mutex::new(held.collect());
        self
    }

    /// With these secrets: hosts are told what they need, and none is recorded.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Arc<Declared>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Makes sure that no other process carries this operation out as long as this engine lives.
    ///
    /// # Errors
    /// When another one does.
    pub fn hold(&self, id: OperationId) -> Result<(), Error> {
        if self.keeps == Holds::Daemon {
            return Ok(());
        }
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::btree_map::Entry::Vacant(place) = holds.entry(id) {
            place.insert(hold(&self.log, id)?);
        }
        Ok(())
    }

    /// Refuses an operation that another one is taking back.
    ///
    /// # Errors
    /// When one is, whether it runs or was left behind.
    pub async fn check_not_taken_back(&self, id: OperationId) -> Result<(), Error> {
        check_not_taken_back(&self.log, id).await
    }

    /// Refuses to act with a log that a host has seen a newer line of.
    ///
    /// # Errors
    /// When one has, and no recovery came since.
    async fn check_not_fenced(&self) -> Result<(), Error> {
        match self.log.state().await?.fenced {
            Some((host, seen)) => Err(Error::Fenced { host, seen }),
            None => Ok(()),
        }
    }

    /// Has nobody act any more with this log, until a recovery.
    async fn freeze(&self, host: &HostName, seen: Mark) -> Result<(), Error> {
        if self.log.state().await?.fenced.is_some() {
            return Ok(());
        }
        let host = host.clone();
        let fenced = self.draft(&Subject::Host(host.clone()), LogFenced { host, seen })?;
        self.log.append(vec![fenced], Condition::default()).await?;
        Ok(())
    }

    /// Tells whoever watches.
    pub fn tell(&self, notice: &Notice) {
        (self.watch)(notice);
    }

    /// Resolves when it is asked to begin nothing more.
    pub async fn stopped(&self) {
        chain::asked_to_stop(&mut self.stop.clone()).await;
    }

    /// Turns true when a daemon ends; never in another process.
    fn drain(&self) -> stop_channel::Receiver<bool> {
        match &self.service {
            Some(service) => service.drain.clone(),
            None => stop_channel::channel(false).1,
        }
    }

    /// Who asked to stop, for people.
    fn stopped_by(&self) -> &str {
        let by = self.service.as_ref().and_then(|it| it.stopped_by.get());
        by.map_or("the operator", String::as_str)
    }

    /// The log it writes to.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Makes an operation durable: what was asked, what it claims, and its plan.
    ///
    /// # Errors
    /// When the log refuses: somebody else holds one of its claims, or something changed since it was planned.
    pub async fn begin(&self, proposal: Proposal) -> Result<OperationId, Error> {
        let Proposal {
            id,
            intent,
            inventory,
            claims,
            steps,
            planned_at,
            alongside,
            instead_of,
            pace,
        } = proposal;
        self.check_not_fenced().await?;
        self.hold(id)?;
        for (original, last) in &instead_of {
            // Nobody else acts for it from here on; and the plan must know all that was done before.
            self.hold(*original)?;
            let known = self.load(*original).await?;
            if known.last != *last {
                let subject = known.claims.first().cloned().unwrap_or(Subject::Cloud);
                let seq = known.last;
                return Err(log::Error::Refused(Refusal::Changed { subject, seq }).into());
            }
        }
        let planned = steps.first().map(|step| step.subject.clone());
        let subject = claims
            .first()
            .cloned()
            .or(planned)
            .unwrap_or(Subject::Cloud);
        let count = steps.len();
        let mut condition = Condition {
            unchanged: planned_at.map(|seq| (claims.clone(), seq)),
            unclaimed: Some((
                claims.clone(),
                instead_of.iter().map(|(original, _)| *original).collect(),
            )),
            ..Condition::default()
        };
        let intended = OperationIntended {
            intent,
            inventory,
            claims,
        };
        let (mut drafts, besides) = alongside.unwrap_or_default();
        if let (Some((subjects, _)), Some((others, _))) =
            (&mut condition.unchanged, besides.unchanged)
        {
            subjects.extend(others);
        }
        if let (Some((subjects, _)), Some((others, _))) =
            (&mut condition.unclaimed, besides.unclaimed)
        {
            subjects.extend(others);
        }
        drafts.push(self.draft(&subject, intended)?.operation(id, None));
        drafts.push(
            self.draft(&subject, OperationPlanned { steps })?
                .operation(id, None),
        );
        if pace != Pace::default() {
            let paced = self.draft(&subject, OperationPaced { pace })?;
            drafts.push(paced.operation(id, None));
        }
        // What is taken back was recorded long ago, and must be taken back.
        let fresh = drafts.iter().filter(|_| instead_of.is_empty());
        let mut shown = fresh.filter_map(|draft| self.secrets.mask().find(&draft.payload.0));
        if let Some(name) = shown.next() {
            return Err(Error::Exposed(name.clone()));
        }
        self.log.append(drafts, condition).await?;
        crash::pass(Moment::Planned);
        (self.watch)(&Notice::Planned {
            operation: id,
            steps: count,
        });
        Ok(id)
    }

    /// Takes an unfinished operation up again, and carries it out.
    ///
    /// # Errors
    /// When there is none, it is finished, another process carries it out, or the log fails.
    pub async fn resume(&self, id: OperationId, once: Once) -> Result<Outcome, Error> {
        self.take_up(id, None, Pace::default()).await?;
        self.go_on(id, once, Failed::Again).await
    }

    /// The same; and what others have in the place of steps that they are known to block is set aside when those are started.
    ///
    /// # Errors
    /// As [`Engine::resume`], and when nothing is known to be in the way of a step.
    pub async fn force(&self, id: OperationId, once: Once, reason: &str) -> Result<Outcome, Error> {
        self.take_up(id, Some(reason), Pace::default()).await?;
        self.go_on(id, once, Failed::Again).await
    }

    /// Records that an unfinished operation is taken up again, and what of its pace is another from here on; and, for a reason, that what others have in the place of its
    /// steps is set aside when those are started. Nothing is carried out.
    ///
    /// # Errors
    /// When there is none, it is finished, another process carries it out, or the log fails; and when nothing is known to be
    /// in the way that is to be set aside.
    pub async fn take_up(
        &self,
        id: OperationId,
        forced: Option<&str>,
        given: Pace,
    ) -> Result<(), Error> {
        let operation = self.unfinished(id).await?;
        let claim = Some(operation.claim);
        let resumed = self.draft(claimed(&operation), OperationResumed {})?;
        let mut drafts = vec![resumed.operation(id, claim)];
        let is_blocked =
            |step: &&Step| step.is_blocked() && matches!(step.plan.action, Action::Forward);
        if let Some(reason) = forced {
            for step in operation.steps.iter().filter(is_blocked) {
                let reason = reason.to_owned();
                let forced = self.draft(&step.plan.subject, StepForced { reason })?;
                let forced = forced.operation(id, claim);
                drafts.push(forced.step(step.plan.index, step.attempts));
            }
            if drafts.len() == 1 {
                return Err(Error::Unblocked(id));
            }
        }
        let pace = Pace {
            serial: given.serial.or(operation.pace.serial),
            max_fail: given.max_fail.or(operation.pace.max_fail),
        };
        if pace != operation.pace {
            let paced = self.draft(claimed(&operation), OperationPaced { pace })?;
            drafts.push(paced.operation(id, claim));
        }
        // Crash boundary: from here on whoever goes on with it sets aside what is in the way.
        let held = Condition::held(id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }

    /// An unfinished operation that nobody else carries out or takes back, so that something may be done about it.
    async fn unfinished(&self, id: OperationId) -> Result<Operation, Error> {
        self.check_not_fenced().await?;
        self.hold(id)?;
        // Loaded once it is held: what another process did before is in it.
        let operation = self.load(id).await?;
        self.check_not_taken_back(id).await?;
        if operation.status.is_final() {
            return Err(Error::Final {
                id,
                status: operation.status.label(),
            });
        }
        if operation.intent.is_session() {
            self.settle_session(&operation).await?;
            return Err(Error::Session(id));
        }
        if operation.status == OperationStatus::Intended {
            return Err(Error::Unplanned(id));
        }
        Ok(operation)
    }

    /// Carries an operation out that was taken up.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub async fn go_on(
        &self,
        id: OperationId,
        once: Once,
        failed: Failed,
    ) -> Result<Outcome, Error> {
        self.hold(id)?;
        let mut running = Running::default();
        for step in &self.load(id).await?.steps {
            let again = match step.status {
                StepStatus::Failed(_) => failed == Failed::Again,
                StepStatus::Doubted { .. } => once == Once::Again && step.plan.once,
                // One that drifted is looked at first: it may be as it was again.
                StepStatus::Pending
                | StepStatus::Started
                | StepStatus::Succeeded { .. }
                | StepStatus::Drifted { .. } => false,
            };
            if again {
                running.retry.insert(step.plan.index);
            }
        }
        self.carry_out(id, running, once).await
    }

    /// Carries a fresh operation out.
    ///
    /// # Errors
    /// When there is none of this id, another process carries it out, or the log fails.
    pub async fn run(&self, id: OperationId) -> Result<Outcome, Error> {
        self.hold(id)?;
        self.carry_out(id, Running::default(), Once::Ask).await
    }

    async fn carry_out(
        &self,
        id: OperationId,
        running: Running,
        once: Once,
    ) -> Result<Outcome, Error> {
        let operation = self.load(id).await?;
        let crew = self.crew(&operation, once).await?;
        let outcome = Run::new(self, crew.clone(), running).drive(id).await;
        if matches!(outcome, Ok(Outcome::Succeeded)) {
            let mut drain = self.drain();
            tokio::select! {
                biased;
                () = chain::asked_to_stop(&mut drain) => {}
                () = forget::on_long_hosts(&crew) => {}
            }
        }
        outcome
    }

    async fn crew(&self, operation: &Operation, once: Once) -> Result<Crew, Error> {
        let head = self.log.head().await?;
        Ok(Crew {
            log: self.log.clone(),
            reach: Arc::clone(&self.reach),
            watch: Arc::clone(&self.watch),
            fence: Fence {
                log: head.log.ok_or(Error::Missing(operation.id))?,
                epoch: head.epoch,
                claim: operation.claim,
            },
            stop: self.stop.clone(),
            once,
            needs: Arc::new(
                self.secrets
                    .needs(operation.steps.iter().map(|it| &it.plan)),
            ),
            secrets: Arc::clone(&self.secrets),
            long: Arc::default(),
            journal_len_max: self.limits.journal_len_max,
        })
    }

    fn draft(&self, subject: &Subject, event: impl Into<Event>) -> Result<Draft, Error> {
        draft(self.secrets.mask(), subject, event)
    }

    async fn load(&self, id: OperationId) -> Result<Operation, Error> {
        self.log.operation(id).await?.ok_or(Error::Missing(id))
    }

    /// Appends these of an operation as one.
    async fn append(&self, operation: &Operation, events: Vec<Event>) -> Result<(), Error> {
        let mut drafts = Vec::with_capacity(events.len());
        for event in events {
            let draft = self.draft(claimed(operation), event)?;
            drafts.push(draft.operation(operation.id, Some(operation.claim)));
        }
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }
}

/// What events of an operation as a whole are about.
fn claimed(operation: &Operation) -> &Subject {
    operation.claims.first().unwrap_or(&Subject::Cloud)
}

/// The right to carry an operation out, from the store of this log.
fn hold(log: &Log, id: OperationId) -> Result<Hold, Error> {
    match log.store() {
        Some(store) => Ok(Hold::take(store, id)?),
        None => Err(Error::NoStore(id)),
    }
}

async fn check_not_taken_back(log: &Log, id: OperationId) -> Result<(), Error> {
    match log.taken_back_by(id).await? {
        Some(by) => Err(Error::RollingBack { id, by }),
        None => Ok(()),
    }
}

/// An event without a place yet, and without secrets.
fn draft(mask: &Mask, subject: &Subject, event: impl Into<Event>) -> Result<Draft, Error> {
    Draft::new(subject.clone(), net::event(mask, event.into()))
        .map_err(|source| log::Error::Payload {
            seq: Seq::NONE,
            source,
        })
        .map_err(Error::Log)
}

/// What a host was shown that a log lacks, for people.
fn lacking(host: &HostName, seen: Mark) -> String {
    format!(
        "{host} was shown event {} of epoch {}, which this log does not have: it is not the newest line of its history",
        seen.seq, seen.epoch
    )
}

/// A fresh id for an operation.
pub fn new_operation() -> OperationId {
    clock::operation_id()
}
