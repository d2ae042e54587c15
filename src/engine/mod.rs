//! The one execution loop: a run is the resume of a fresh operation.
//!
//! What to do next is decided by `tallybook-replay` from the events; this carries it out, and records before and
//! after. It never acts before the intention is durable, and never invents an outcome.

mod chain;
pub mod conversation;
pub mod crash;
pub mod reach;
mod resolve;
pub mod session;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tallybook_events::event::{
    AllocationReleased, Event, OperationFailed, OperationIntended, OperationInterrupted,
    OperationPlanned, OperationResumed, OperationRolledBack, OperationStuck, OperationSucceeded,
};
use tallybook_events::ids::{Attempt, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::step::{FailureClass, Fence, PlannedStep, StepFailure};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, StepStatus};
use tallybook_replay::resume::{self, Next, Running};
use tokio::sync::{Semaphore, watch as stop_channel};
use tokio::task::JoinSet;

use crate::clock;
use crate::log::{self, Condition, Draft, Log};
use chain::{Chain, Crew, Cut};
use crash::Moment;
use reach::Reach;
use watch::{Notice, Watch};

/// How often a step is started again within one run after the line was lost.
const RESTARTS_MAX: u32 = 3;
/// How long to wait before a host is tried again, the first, second, … time.
const RECONNECT_WAITS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How much may go on at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Chains of steps, over all hosts.
    pub chains: usize,
    /// Chains of steps on one host.
    pub chains_a_host: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            chains: 32,
            chains_a_host: 4,
        }
    }
}

/// How a run of an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every step succeeded.
    Succeeded,
    /// Steps failed; it can be resumed or rolled back.
    Failed(Vec<(PlannedStep, StepFailure)>),
    /// It was left unfinished on purpose, or because a line was lost; it can be resumed.
    Interrupted(String),
    /// Nothing more can be done without these hosts; it can be resumed.
    Unreachable(BTreeMap<HostName, reach::Error>),
    /// Somebody has to decide.
    Stuck(String),
}

/// Why an operation can't be carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed, or refused.
    #[error(transparent)]
    Log(#[from] log::Error),
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
    /// A session can't be taken up again.
    #[error("operation {} was a session in a container, which can't be resumed", .0.short())]
    Session(OperationId),
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
    /// The event up to which the state was known when it was planned.
    pub planned_at: Seq,
    /// The operation whose claims it takes over, when it takes that one back.
    pub instead_of: Option<OperationId>,
}

/// Carries operations out.
pub struct Engine {
    log: Log,
    reach: Arc<dyn Reach>,
    watch: Watch,
    stop: stop_channel::Receiver<bool>,
    limits: Limits,
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
        }
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
            instead_of,
        } = proposal;
        let planned = steps.first().map(|step| step.subject.clone());
        let subject = claims
            .first()
            .cloned()
            .or(planned)
            .unwrap_or(Subject::Cloud);
        let count = steps.len();
        let condition = Condition {
            unchanged: instead_of.is_none().then(|| (claims.clone(), planned_at)),
            unclaimed: Some((claims.clone(), instead_of)),
            held: None,
        };
        let intended = OperationIntended {
            intent,
            inventory,
            claims,
        };
        let drafts = vec![
            draft(&subject, intended)?.operation(id, None),
            draft(&subject, OperationPlanned { steps })?.operation(id, None),
        ];
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
    /// When there is none, it is finished, or the log fails.
    pub async fn resume(&self, id: OperationId) -> Result<Outcome, Error> {
        let operation = self.load(id).await?;
        if operation.status.is_final() || operation.status == OperationStatus::RollingBack {
            return Err(Error::Final {
                id,
                status: operation.status.label(),
            });
        }
        if operation.status == OperationStatus::Intended {
            return Err(Error::Unplanned(id));
        }
        if session::is_session(&operation.intent) {
            return Err(Error::Session(id));
        }
        self.append(&operation, OperationResumed {}).await?;
        let mut running = Running::default();
        for step in &operation.steps {
            if matches!(step.status, StepStatus::Failed(_)) {
                running.retry.insert(step.plan.index);
            }
        }
        self.carry_out(id, running).await
    }

    /// Carries a fresh operation out.
    ///
    /// # Errors
    /// When there is none of this id, or the log fails.
    pub async fn run(&self, id: OperationId) -> Result<Outcome, Error> {
        self.carry_out(id, Running::default()).await
    }

    async fn carry_out(&self, id: OperationId, running: Running) -> Result<Outcome, Error> {
        let operation = self.load(id).await?;
        let head = self.log.head().await?;
        let crew = Crew {
            log: self.log.clone(),
            reach: Arc::clone(&self.reach),
            watch: Arc::clone(&self.watch),
            fence: Fence {
                log: head
                    .log
                    .unwrap_or(tallybook_events::ids::LogId::from_bytes([0; 16])),
                epoch: head.epoch,
                claim: operation.claim,
            },
            stop: self.stop.clone(),
        };
        let mut work = Run {
            engine: self,
            crew,
            running,
            chains: JoinSet::new(),
            slots: Arc::new(Semaphore::new(self.limits.chains)),
            host_slots: BTreeMap::new(),
            restarts: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            lost: None,
            refused: None,
        };
        work.drive(id).await
    }

    async fn load(&self, id: OperationId) -> Result<Operation, Error> {
        self.log.operation(id).await?.ok_or(Error::Missing(id))
    }

    async fn append(&self, operation: &Operation, event: impl Into<Event>) -> Result<(), Error> {
        let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
        let draft = draft(&subject, event)?.operation(operation.id, Some(operation.claim));
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(vec![draft], held).await?;
        Ok(())
    }

    /// Every step succeeded: says so, and what follows from it for the cloud.
    async fn succeed(&self, operation: &Operation) -> Result<(), Error> {
        let subject = operation.claims.first().cloned().unwrap_or(Subject::Cloud);
        let claim = Some(operation.claim);
        let mut drafts = Vec::new();
        match &operation.intent {
            Intent::Rollback {
                operation: taken_back,
            } => {
                let by = operation.id;
                drafts.push(
                    draft(&subject, OperationRolledBack { by })?.operation(*taken_back, claim),
                );
            }
            Intent::ContainerDestroy { container, host } => {
                let state = self.log.state().await?;
                let key = (host.clone(), container.clone());
                if let Some(allocation) = state.allocations.get(&key) {
                    let released = AllocationReleased {
                        allocation: allocation.clone(),
                    };
                    let of = Subject::Container(host.clone(), container.clone());
                    // Not an event of the operation's own steps, so it is caused by it and not counted in it.
                    let mut released = draft(&of, released)?;
                    released.cause = operation.claim.seq;
                    released.claim = claim;
                    drafts.push(released);
                }
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
            | Intent::TemplateRemove { .. } => {}
        }
        let events = operation.events + 1;
        drafts.push(draft(&subject, OperationSucceeded { events })?.operation(operation.id, claim));
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }
}

fn draft(subject: &Subject, event: impl Into<Event>) -> Result<Draft, Error> {
    Draft::new(subject.clone(), event)
        .map_err(|source| log::Error::Payload {
            seq: Seq::NONE,
            source,
        })
        .map_err(Error::Log)
}

/// A fresh id for an operation.
pub fn new_operation() -> OperationId {
    clock::operation_id()
}

/// One run of one operation.
struct Run<'a> {
    engine: &'a Engine,
    crew: Crew,
    running: Running,
    chains: JoinSet<(Chain, Result<(), Cut>)>,
    slots: Arc<Semaphore>,
    host_slots: BTreeMap<HostName, Arc<Semaphore>>,
    restarts: BTreeMap<StepIndex, u32>,
    unreachable: BTreeMap<HostName, reach::Error>,
    lost: Option<String>,
    refused: Option<StepFailure>,
}

impl Run<'_> {
    async fn drive(&mut self, id: OperationId) -> Result<Outcome, Error> {
        let mut stopping = false;
        let mut stop = self.crew.stop.clone();
        loop {
            let operation = self.engine.load(id).await?;
            if !stopping && *self.crew.stop.borrow() {
                stopping = true;
                (self.crew.watch)(&Notice::Stopping);
            }
            if (stopping || self.refused.is_some()) && self.chains.is_empty() {
                return self.leave(&operation, stopping).await;
            }
            if !stopping && self.refused.is_none() {
                match resume::next(&operation, &self.running) {
                    Next::Resolve(steps) => {
                        if let Some(stuck) = self.resolve(&operation, &steps).await? {
                            return self.stuck(&operation, stuck).await;
                        }
                        continue;
                    }
                    Next::Start(chains) => self.start(&operation, chains),
                    Next::Wait => {}
                    Next::Finished => {
                        self.engine.succeed(&operation).await?;
                        return Ok(Outcome::Succeeded);
                    }
                    Next::Failed(steps) => return self.failed(&operation, &steps).await,
                    Next::Unreachable(_) => return self.unreachable(&operation).await,
                }
            }
            // An operator who asks to stop is answered at once, not when the running step has ended.
            let joined = tokio::select! {
                joined = self.chains.join_next() => joined,
                () = chain::asked_to_stop(&mut stop), if !stopping => continue,
            };
            if let Some(joined) = joined {
                match joined {
                    Ok((chain, result)) => self.ended(&chain, result)?,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        }
    }

    fn start(&mut self, operation: &Operation, chains: Vec<Vec<StepIndex>>) {
        for indices in chains {
            let steps: Vec<(PlannedStep, Attempt)> = indices
                .iter()
                .filter_map(|index| operation.steps.get(index.0 as usize))
                .map(|step| (step.plan.clone(), Attempt(step.attempts.0 + 1)))
                .collect();
            let Some(host) = steps.first().map(|(plan, _)| plan.host.clone()) else {
                continue;
            };
            self.running.in_flight.extend(&indices);
            for index in &indices {
                self.running.retry.remove(index);
            }
            let slots = Arc::clone(&self.slots);
            let host_slots = self
                .host_slots
                .entry(host.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.engine.limits.chains_a_host)));
            let host_slots = Arc::clone(host_slots);
            let chain = Chain { host, steps };
            let crew = self.crew.clone();
            let operation = operation.clone();
            self.chains.spawn(async move {
                // Neither is ever closed; the host's comes first, so that a busy host holds up no other.
                let _host_slot = host_slots.acquire_owned().await;
                let _slot = slots.acquire_owned().await;
                let result = if *crew.stop.borrow() {
                    Ok(())
                } else {
                    chain::carry_out(&crew, &operation, &chain).await
                };
                (chain, result)
            });
        }
    }

    fn ended(&mut self, chain: &Chain, result: Result<(), Cut>) -> Result<(), Error> {
        for (plan, _) in &chain.steps {
            self.running.in_flight.remove(&plan.index);
        }
        match result {
            Ok(()) => {}
            Err(Cut::Log(error)) => return Err(error.into()),
            Err(Cut::Refused(failure)) => self.refused = Some(failure),
            Err(Cut::Unreachable(error)) => self.give_up(&chain.host, error),
            // What was started is in doubt now: the next look at the operation resolves it.
            Err(Cut::Lost(error)) => {
                tracing::warn!("{error}");
                self.lost = Some(error.to_string());
            }
        }
        Ok(())
    }

    fn give_up(&mut self, host: &HostName, error: reach::Error) {
        (self.crew.watch)(&Notice::Unreachable {
            host: host.clone(),
            why: error.to_string(),
        });
        self.running.unreachable.insert(host.clone());
        self.unreachable.insert(host.clone(), error);
    }

    /// Looks at the steps in doubt, host by host. Returns what nobody but an operator can decide.
    async fn resolve(
        &mut self,
        operation: &Operation,
        steps: &[StepIndex],
    ) -> Result<Option<String>, Error> {
        let mut hosts: BTreeMap<HostName, Vec<(PlannedStep, Attempt)>> = BTreeMap::new();
        for step in steps
            .iter()
            .filter_map(|index| operation.steps.get(index.0 as usize))
        {
            hosts
                .entry(step.plan.host.clone())
                .or_default()
                .push((step.plan.clone(), step.attempts));
        }
        for (host, steps) in hosts {
            match self.resolve_host(operation, &host, &steps).await? {
                None => {}
                Some(stuck) => return Ok(Some(stuck)),
            }
        }
        Ok(None)
    }

    async fn resolve_host(
        &mut self,
        operation: &Operation,
        host: &HostName,
        steps: &[(PlannedStep, Attempt)],
    ) -> Result<Option<String>, Error> {
        let mut waits = RECONNECT_WAITS.into_iter();
        loop {
            let error = match resolve::host(&self.crew, operation, host, steps).await {
                Ok(resolved) => {
                    self.restart(resolved.again);
                    let stuck = resolved.stuck.into_iter().next();
                    return Ok(stuck.map(|(step, why)| format!("step {step} on {host}: {why}")));
                }
                Err(Cut::Log(error)) => return Err(error.into()),
                Err(Cut::Refused(failure)) => {
                    self.refused = Some(failure);
                    return Ok(None);
                }
                Err(Cut::Lost(error)) => reach::Error::Conversation(error),
                Err(Cut::Unreachable(error)) => error,
            };
            let wait = waits.next().filter(|_| error.is_unreachable());
            let Some(wait) = wait.filter(|_| !*self.crew.stop.borrow()) else {
                self.give_up(host, error);
                return Ok(None);
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Lets steps be started again, each only so many times in one run.
    fn restart(&mut self, steps: Vec<StepIndex>) {
        for step in steps {
            let count = self.restarts.entry(step).or_default();
            *count += 1;
            if *count <= RESTARTS_MAX {
                self.running.retry.insert(step);
            }
        }
    }

    async fn leave(&mut self, operation: &Operation, stopping: bool) -> Result<Outcome, Error> {
        if let Some(failure) = self.refused.take() {
            let reason = format!("refused by the host: {}", failure.message);
            self.engine
                .append(operation, OperationFailed { reason })
                .await?;
            let step = operation.steps.first().map(|step| step.plan.clone());
            return Ok(Outcome::Failed(
                step.map(|step| (step, failure)).into_iter().collect(),
            ));
        }
        let finished = operation
            .steps
            .iter()
            .all(|step| matches!(step.status, StepStatus::Succeeded { .. }));
        if stopping && finished {
            self.engine.succeed(operation).await?;
            return Ok(Outcome::Succeeded);
        }
        let reason = "stopped by the operator".to_owned();
        self.interrupt(operation, reason).await
    }

    async fn interrupt(&self, operation: &Operation, reason: String) -> Result<Outcome, Error> {
        let event = OperationInterrupted {
            reason: reason.clone(),
        };
        self.engine.append(operation, event).await?;
        Ok(Outcome::Interrupted(reason))
    }

    async fn stuck(&mut self, operation: &Operation, reason: String) -> Result<Outcome, Error> {
        while self.chains.join_next().await.is_some() {}
        let event = OperationStuck {
            reason: reason.clone(),
        };
        self.engine.append(operation, event).await?;
        Ok(Outcome::Stuck(reason))
    }

    async fn failed(
        &mut self,
        operation: &Operation,
        steps: &[StepIndex],
    ) -> Result<Outcome, Error> {
        let failures: Vec<(PlannedStep, StepFailure)> = steps
            .iter()
            .filter_map(|index| operation.steps.get(index.0 as usize))
            .filter_map(|step| match &step.status {
                StepStatus::Failed(failure) => Some((step.plan.clone(), failure.clone())),
                StepStatus::Pending
                | StepStatus::Started
                | StepStatus::Succeeded { .. }
                | StepStatus::Doubted { .. } => None,
            })
            .collect();
        let transient = |failure: &StepFailure| {
            matches!(
                failure.class,
                FailureClass::Peer | FailureClass::Interrupted
            )
        };
        let reasons: BTreeSet<String> = failures
            .iter()
            .map(|(plan, failure)| {
                format!("{} on {}: {}", plan.summary, plan.host, failure.message)
            })
            .collect();
        let reason = reasons.into_iter().collect::<Vec<_>>().join("; ");
        if failures.iter().all(|(_, failure)| transient(failure)) {
            return self.interrupt(operation, reason).await;
        }
        self.engine
            .append(operation, OperationFailed { reason })
            .await?;
        Ok(Outcome::Failed(failures))
    }

    async fn unreachable(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        let hosts: Vec<String> = self.unreachable.keys().map(HostName::to_string).collect();
        let reason = match self.lost.take() {
            Some(lost) => format!("{lost}; can't reach {}", hosts.join(", ")),
            None => format!("can't reach {}", hosts.join(", ")),
        };
        self.interrupt(operation, reason).await?;
        Ok(Outcome::Unreachable(std::mem::take(&mut self.unreachable)))
    }
}
