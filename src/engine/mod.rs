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
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tallybook_agent::mask::Mask;
use tallybook_agent::secret::SecretName;
use tallybook_events::allocation::Allocation;
use tallybook_events::event::{
    AllocationReleased, Event, LogFenced, OperationIntended, OperationPlanned, OperationResumed,
    OperationRolledBack, OperationSucceeded, StepForced,
};
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, Fence, Mark, PlannedStep, StepFailure};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::resume::Running;
use tokio::sync::watch as stop_channel;

use crate::cloud::allocate::Key;
use crate::log::{self, Condition, Draft, Log, Refusal};
use crate::secrets::Declared;
use crate::{clock, cloud_log};
use chain::Crew;
use crash::Moment;
use reach::Reach;
use run::Run;
use runner_lock::Hold;
use watch::{Notice, Watch};

pub use abandon::abandon;

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
#[derive(Debug)]
pub enum Outcome {
    /// Every step succeeded.
    Succeeded,
    /// Steps failed; it can be resumed or rolled back.
    Failed {
        /// What failed, and how.
        failures: Vec<(PlannedStep, StepFailure)>,
        /// Hosts that could not be reached besides.
        unreachable: BTreeMap<HostName, reach::Error>,
    },
    /// It was left unfinished on purpose, or because a line was lost; it can be resumed.
    Interrupted(String),
    /// Nothing more can be done without these hosts; it can be resumed.
    Unreachable(BTreeMap<HostName, reach::Error>),
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
}

/// Carries operations out. As long as it lives no other process can carry out those that it began or took up.
pub struct Engine {
    log: Log,
    reach: Arc<dyn Reach>,
    watch: Watch,
    stop: stop_channel::Receiver<bool>,
    limits: Limits,
    secrets: Arc<Declared>,
    holds: Mutex<BTreeMap<OperationId, Hold>>,
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
            holds: Mutex::new(BTreeMap::new()),
        }
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
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::btree_map::Entry::Vacant(place) = holds.entry(id) {
            place.insert(Hold::take(self.log.directory(), id)?);
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
        let operation = self.take_up(id).await?;
        self.append(&operation, OperationResumed {}).await?;
        self.go_on(&operation, once).await
    }

    /// The same; and what others have in the place of steps that they are known to block is set aside when those are started.
    ///
    /// # Errors
    /// As [`Engine::resume`], and when nothing is known to be in the way of a step.
    pub async fn force(&self, id: OperationId, once: Once, reason: &str) -> Result<Outcome, Error> {
        let operation = self.take_up(id).await?;
        let is_forced =
            |step: &&Step| step.is_blocked() && matches!(step.plan.action, Action::Forward);
        let mut drafts = Vec::new();
        let resumed = self.draft(claimed(&operation), OperationResumed {})?;
        drafts.push(resumed.operation(id, Some(operation.claim)));
        for step in operation.steps.iter().filter(is_forced) {
            let reason = reason.to_owned();
            let forced = self.draft(&step.plan.subject, StepForced { reason })?;
            let forced = forced.operation(id, Some(operation.claim));
            drafts.push(forced.step(step.plan.index, step.attempts));
        }
        if drafts.len() == 1 {
            return Err(Error::Unblocked(id));
        }
        // Crash boundary: from here on whoever resumes it sets aside what is in the way.
        let held = Condition::held(id, operation.claim);
        self.log.append(drafts, held).await?;
        self.go_on(&operation, once).await
    }

    /// An unfinished operation that nobody else carries out or takes back, so that something may be done about it.
    async fn take_up(&self, id: OperationId) -> Result<Operation, Error> {
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

    async fn go_on(&self, operation: &Operation, once: Once) -> Result<Outcome, Error> {
        let id = operation.id;
        let mut running = Running::default();
        for step in &operation.steps {
            let again = match step.status {
                StepStatus::Failed(_) => true,
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
            forget::on_long_hosts(&crew).await;
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

    async fn append(&self, operation: &Operation, event: impl Into<Event>) -> Result<(), Error> {
        let draft = self.draft(claimed(operation), event)?;
        let draft = draft.operation(operation.id, Some(operation.claim));
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(vec![draft], held).await?;
        Ok(())
    }

    /// Every step succeeded: says so, and what follows from it for the cloud.
    async fn succeed(&self, operation: &Operation) -> Result<(), Error> {
        let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
        let claim = Some(operation.claim);
        let mut drafts = Vec::new();
        let mut given_up: BTreeSet<Key> = BTreeSet::new();
        for taken_back in operation.intent.takes_back() {
            let by = operation.id;
            drafts.push(
                self.draft(&subject, OperationRolledBack { by })?
                    .operation(*taken_back, claim),
            );
            given_up.extend(made_container(&self.load(*taken_back).await?.intent));
        }
        // What was given to containers that are not made after all.
        for key in given_up {
            let allocation = cloud_log::left_over(&self.log, &key).await?;
            drafts.extend(released(operation, &key, allocation)?);
        }
        match &operation.intent {
            Intent::ContainerDestroy { container, host } => {
                let key = (host.clone(), container.clone());
                let state = self.log.state().await?;
                let allocation = state.allocations.get(&key).cloned();
                drafts.extend(released(operation, &key, allocation)?);
            }
            Intent::HostInstall { .. }
            | Intent::HostPrepare { .. }
            | Intent::ContainerCreate { .. }
            | Intent::ContainerStart { .. }
            | Intent::ContainerStop { .. }
            | Intent::ContainerRestart { .. }
            | Intent::ContainerExec { .. }
            | Intent::ContainerShell { .. }
            | Intent::ContainerCopy { .. }
            | Intent::TemplateSnapshot { .. }
            | Intent::TemplateSync { .. }
            | Intent::TemplateRemove { .. }
            | Intent::Rollback { .. }
            | Intent::RollbackTo { .. } => {}
        }
        let events = operation.events + 1;
        let succeeded = self.draft(&subject, OperationSucceeded { events })?;
        drafts.push(succeeded.operation(operation.id, claim));
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }
}

/// What events of an operation as a whole are about.
fn claimed(operation: &Operation) -> &Subject {
    operation.claims.first().unwrap_or(&Subject::Cloud)
}

/// The container that an operation was to make.
fn made_container(intent: &Intent) -> Option<Key> {
    match intent {
        Intent::ContainerCreate {
            container, host, ..
        } => Some((host.clone(), container.clone())),
        Intent::ContainerCopy { to, copy, .. } => Some((to.clone(), copy.clone())),
        Intent::HostInstall { .. }
        | Intent::HostPrepare { .. }
        | Intent::ContainerStart { .. }
        | Intent::ContainerStop { .. }
        | Intent::ContainerRestart { .. }
        | Intent::ContainerDestroy { .. }
        | Intent::ContainerExec { .. }
        | Intent::ContainerShell { .. }
        | Intent::TemplateSnapshot { .. }
        | Intent::TemplateSync { .. }
        | Intent::TemplateRemove { .. }
        | Intent::Rollback { .. }
        | Intent::RollbackTo { .. } => None,
    }
}

/// The end of an allocation. Not an event of the operation's own steps, so it is caused by it and not counted in it.
fn released(
    operation: &Operation,
    (host, container): &Key,
    allocation: Option<Allocation>,
) -> Result<Option<Draft>, Error> {
    let Some(allocation) = allocation else {
        return Ok(None);
    };
    let subject = Subject::Container(host.clone(), container.clone());
    let mut released = draft(
        &Mask::default(),
        &subject,
        AllocationReleased { allocation },
    )?;
    released.cause = operation.claim.seq;
    released.claim = Some(operation.claim);
    Ok(Some(released))
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
