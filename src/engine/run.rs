//! One run of one operation: asks what is next, lets chains and looks go on side by side, and says how it ended.
//!
//! It holds nothing that the log does not: killed at any point, the next run finds the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tallybook_events::event::{
    Event, Lack, LackKind, OperationFailed, OperationInterrupted, OperationLacked, OperationStuck,
};
use tallybook_events::ids::{Attempt, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{FailureClass, PlannedStep, StepFailure};
use tallybook_replay::operation::{Operation, Step, StepStatus};
use tallybook_replay::pace::Enough;
use tallybook_replay::resume::{self, Next, Running};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::chain::{self, Chain, Crew, Cut, asked_to_stop};
use super::resolve::{self, Resolved};
use super::watch::Notice;
use super::{Engine, Error, Gone, Outcome, conversation, reach};
use crate::causes;

/// How often a step that was looked at is started again within one run.
const RESTARTS_MAX: u32 = 3;
/// How often in a row the line to a host may be lost, without a step ended in between, before it is given up.
const LOSSES_MAX: u32 = 3;
/// How many transfers one host sends at once: its session has room for these, a chain of its own and a look, and some
/// to spare.
const SENDERS_MAX: usize = 4;
/// Why an operation is left that a daemon will go on with.
const RESTS: &str = "the daemon ends; its next start goes on with this";
/// How long to wait before a host is tried again, the first, second, … time.
const RECONNECT_WAITS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Something that went on by itself, and how it ended.
enum Ended {
    Chain {
        chain: Chain,
        finished: BTreeSet<StepIndex>,
        result: Result<(), Cut>,
    },
    Look {
        host: HostName,
        steps: Vec<(PlannedStep, Attempt)>,
        result: Result<Resolved, Cut>,
    },
}

/// One run of one operation.
pub(super) struct Run<'a> {
    engine: &'a Engine,
    crew: Crew,
    running: Running,
    jobs: JoinSet<Ended>,
    slots: Arc<Semaphore>,
    host_slots: BTreeMap<HostName, Arc<Semaphore>>,
    sender_slots: BTreeMap<HostName, Arc<Semaphore>>,
    restarts: BTreeMap<StepIndex, u32>,
    losses: BTreeMap<HostName, u32>,
    unreachable: BTreeMap<HostName, Gone>,
    /// What was lost last, for people.
    lost: Option<String>,
    /// What hosts refused as a whole.
    refused: Vec<(PlannedStep, StepFailure)>,
    /// Why each stuck step is.
    stuck: BTreeMap<StepIndex, String>,
    /// Whether a host has seen a newer line of history: nothing more may be begun anywhere.
    fenced: bool,
    /// Has what goes on by itself begin nothing more.
    halt: watch::Sender<bool>,
}

impl<'a> Run<'a> {
    pub(super) fn new(engine: &'a Engine, mut crew: Crew, mut running: Running) -> Self {
        running.at_once = Some(engine.limits.chains);
        let (halt, halted) = watch::channel(false);
        crew.stop = halted;
        Run {
            halt,
            slots: Arc::new(Semaphore::new(engine.limits.chains)),
            engine,
            crew,
            running,
            jobs: JoinSet::new(),
            host_slots: BTreeMap::new(),
            sender_slots: BTreeMap::new(),
            restarts: BTreeMap::new(),
            losses: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            lost: None,
            refused: Vec::new(),
            stuck: BTreeMap::new(),
            fenced: false,
        }
    }

    pub(super) async fn drive(&mut self, id: OperationId) -> Result<Outcome, Error> {
        let mut stop = self.engine.stop.clone();
        let mut drain = self.engine.drain();
        let mut stopping = false;
        let mut folded = None;
        let mut is_first = true;
        loop {
            // Shared by all that goes on: a copy each would grow with the square of the hosts.
            let operation = self.engine.log.operation_since(id, &mut folded).await?;
            let operation = Arc::new(operation.ok_or(Error::Missing(id))?);
            if std::mem::take(&mut is_first) {
                self.refuse_unread(&operation);
            }
            if !stopping && (*stop.borrow() || *drain.borrow()) {
                stopping = true;
                self.halt.send_replace(true);
                (self.crew.watch)(&Notice::Stopping);
            }
            if stopping || self.fenced {
                if self.jobs.is_empty() {
                    return self.leave(&operation).await;
                }
            } else {
                match resume::next(&operation, &self.running) {
                    Next::Resolve(steps) => {
                        self.look(&operation, &steps);
                        continue;
                    }
                    Next::Start(chains) => self.start(&operation, chains),
                    Next::Wait => {}
                    Next::Unplanned => return Err(Error::Unplanned(id)),
                    Next::Finished => {
                        self.engine.succeed(&operation).await?;
                        return Ok(Outcome::Succeeded);
                    }
                    Next::Enough(enough) => return self.enough(&operation, &enough).await,
                    Next::Stuck(_) => return self.end_stuck(&operation).await,
                    Next::Failed(_) => return self.failed(&operation).await,
                    Next::Unreachable(_) => return self.unreachable(&operation).await,
                }
            }
            tokio::select! {
                biased;
                Some(joined) = self.jobs.join_next() => match joined {
                    Ok(ended) => self.ended(ended).await?,
                    // A panic is a broken invariant: loud here too. The operation can be resumed.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = asked_to_stop(&mut stop), if !stopping => {}
                () = asked_to_stop(&mut drain), if !stopping => {}
            }
        }
    }

    /// A host is not had of which a step needs a secret that can't be read: nothing is begun there that could not be
    /// ended.
    fn refuse_unread(&mut self, operation: &Operation) {
        for step in &operation.steps {
            if matches!(step.status, StepStatus::Succeeded { .. }) {
                continue;
            }
            let Err(error) = self.crew.secrets.check(&step.plan) else {
                continue;
            };
            let failure = StepFailure {
                class: FailureClass::Other,
                message: causes::in_line(&error),
                hint: Some(error.hint()),
                captured: Vec::new(),
            };
            self.running.unreachable.insert(step.plan.host.clone());
            self.refused.push((step.plan.clone(), failure));
        }
    }

    fn start(&mut self, operation: &Arc<Operation>, chains: Vec<Vec<StepIndex>>) {
        for indices in chains {
            let next = |step: &Step| (step.plan.clone(), Attempt(step.attempts.0 + 1));
            let steps: Vec<_> = these(operation, &indices).map(next).collect();
            let Some(host) = steps.first().map(|(plan, _)| plan.host.clone()) else {
                continue;
            };
            self.running.in_flight.extend(&indices);
            self.running.begun.insert(host.clone());
            for index in &indices {
                self.running.retry.remove(index);
            }
            let slots = Arc::clone(&self.slots);
            let host_slot = self.host_slot(&host);
            let peer = steps.first().and_then(|(plan, _)| plan.peer.clone());
            let sender_slot = peer.map(|peer| self.sender_slot(&peer.host));
            let chain = Chain { host, steps };
            let crew = self.crew.clone();
            let operation = Arc::clone(operation);
            self.jobs.spawn(async move {
                // None is ever closed. Taken in this order everywhere, so nobody waits in a circle; the hosts' come
                // first, so that a busy host holds up no other.
                let _host_slot = host_slot.acquire_owned().await;
                let _sender_slot = match sender_slot {
                    Some(slot) => slot.acquire_owned().await.ok(),
                    None => None,
                };
                let _slot = slots.acquire_owned().await;
                let mut finished = BTreeSet::new();
                let result = chain::carry_out(&crew, &operation, &chain, &mut finished).await;
                Ended::Chain {
                    chain,
                    finished,
                    result,
                }
            });
        }
    }

    /// What a host is had with: its agents carry out one batch of an operation at a time.
    fn host_slot(&mut self, host: &HostName) -> Arc<Semaphore> {
        let slot = self.host_slots.entry(host.clone());
        Arc::clone(slot.or_insert_with(|| Arc::new(Semaphore::new(1))))
    }

    /// What a host is had with to send something.
    fn sender_slot(&mut self, host: &HostName) -> Arc<Semaphore> {
        let slot = self.sender_slots.entry(host.clone());
        Arc::clone(slot.or_insert_with(|| Arc::new(Semaphore::new(SENDERS_MAX))))
    }

    /// Looks at the steps in doubt, each host by itself.
    fn look(&mut self, operation: &Arc<Operation>, steps: &[StepIndex]) {
        let mut hosts: BTreeMap<HostName, Vec<(PlannedStep, Attempt)>> = BTreeMap::new();
        for step in these(operation, steps) {
            self.running.in_flight.insert(step.plan.index);
            hosts
                .entry(step.plan.host.clone())
                .or_default()
                .push((step.plan.clone(), step.attempts));
        }
        for (host, steps) in hosts {
            let crew = self.crew.clone();
            let operation = Arc::clone(operation);
            let host_slot = self.host_slot(&host);
            self.jobs.spawn(async move {
                let _host_slot = host_slot.acquire_owned().await;
                let result = look_at(&crew, &operation, &host, &steps).await;
                Ended::Look {
                    host,
                    steps,
                    result,
                }
            });
        }
    }

    async fn ended(&mut self, ended: Ended) -> Result<(), Error> {
        let (host, steps, result) = match ended {
            Ended::Chain {
                chain,
                finished,
                result,
            } => {
                if !finished.is_empty() {
                    self.losses.remove(&chain.host);
                }
                let left = |(plan, _): &(PlannedStep, Attempt)| !finished.contains(&plan.index);
                let first = chain.steps.iter().find(|step| left(step));
                let first = first.or(chain.steps.first());
                let first = first.map(|(plan, _)| plan.clone());
                self.landed(&chain.steps);
                (chain.host, first, result)
            }
            Ended::Look {
                host,
                steps,
                result,
            } => {
                self.landed(&steps);
                let first = steps.first().map(|(plan, _)| plan.clone());
                let result = result.map(|resolved| self.resolved(resolved));
                (host, first, result)
            }
        };
        match result {
            Ok(()) | Err(Cut::Stopped) => {}
            Err(Cut::Log(error)) => return Err(error.into()),
            Err(Cut::Refused(failure)) => {
                if failure.class == FailureClass::Fenced {
                    self.fence();
                }
                self.refused
                    .extend(steps.into_iter().map(|step| (step, failure.clone())));
                // Its other steps stay as they are: it would refuse them too.
                self.running.unreachable.insert(host);
            }
            Err(Cut::Fenced(at, seen)) => {
                self.fence();
                self.lost = Some(super::lacking(&at, seen));
                self.engine.freeze(&at, seen).await?;
            }
            Err(Cut::Unreachable(at, error)) => self.give_up(at, error),
            Err(Cut::Lost(error)) => self.lose(host, error),
        }
        Ok(())
    }

    /// Nothing more is begun, and what runs ends in good order.
    fn fence(&mut self) {
        self.fenced = true;
        self.halt.send_replace(true);
    }

    fn landed(&mut self, steps: &[(PlannedStep, Attempt)]) {
        for (plan, _) in steps {
            self.running.in_flight.remove(&plan.index);
        }
    }

    /// What was started is in doubt now: the next look at the operation resolves it, a limited number of times.
    fn lose(&mut self, host: HostName, error: conversation::Error) {
        tracing::warn!("{error}");
        self.lost = Some(error.to_string());
        let losses = self.losses.entry(host.clone()).or_default();
        *losses += 1;
        if *losses > LOSSES_MAX {
            self.give_up(host, reach::Error::Conversation(error));
        }
    }

    fn give_up(&mut self, host: HostName, error: reach::Error) {
        (self.crew.watch)(&Notice::Unreachable {
            host: host.clone(),
            why: error.to_string(),
        });
        self.running.unreachable.insert(host.clone());
        self.unreachable.insert(host, error.into());
    }

    /// Lets steps be started again, each only so many times in one run.
    fn resolved(&mut self, resolved: Resolved) {
        for (step, why) in resolved.stuck {
            self.running.stuck.insert(step);
            self.stuck.insert(step, why);
        }
        for (step, why) in resolved.again {
            let count = self.restarts.entry(step).or_default();
            *count += 1;
            if *count <= RESTARTS_MAX {
                self.running.retry.insert(step);
            } else {
                let why = format!("it was started again {RESTARTS_MAX} times, and still: {why}");
                self.running.stuck.insert(step);
                self.stuck.insert(step, why);
            }
        }
    }

    /// Nothing more is begun, because we were asked to stop or a host fenced us off.
    async fn leave(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        if self.fenced {
            return self.end_fenced(operation).await;
        }
        let is_done = |step: &Step| matches!(step.status, StepStatus::Succeeded { .. });
        if operation.steps.iter().all(is_done) {
            self.engine.succeed(operation).await?;
            return Ok(Outcome::Succeeded);
        }
        if !*self.engine.stop.borrow() {
            return self.rest(operation).await;
        }
        let by = self.engine.stopped_by();
        let mut reason = format!("stopped by {by}");
        for what in told(&self.failures(operation))
            .into_iter()
            .chain(self.cant_reach())
        {
            reason.push_str("; ");
            reason.push_str(&what);
        }
        self.interrupt(operation, reason).await
    }

    /// The daemon ends. What has come to an end is recorded; all else stays as it is, so that its next start goes on with it.
    async fn rest(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        match resume::next(operation, &self.running) {
            Next::Failed(_) => self.failed(operation).await,
            Next::Enough(enough) => self.enough(operation, &enough).await,
            Next::Stuck(_) => self.end_stuck(operation).await,
            Next::Unreachable(_) => self.unreachable(operation).await,
            Next::Resolve(_) | Next::Start(_) | Next::Wait | Next::Unplanned | Next::Finished => {
                Ok(Outcome::Interrupted(RESTS.to_owned()))
            }
        }
    }

    async fn interrupt(&self, operation: &Operation, reason: String) -> Result<Outcome, Error> {
        let event = OperationInterrupted {
            reason: reason.clone(),
        };
        self.end(operation, event).await?;
        Ok(Outcome::Interrupted(reason))
    }

    async fn end_stuck(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        let mut reasons: Vec<String> = these(operation, self.stuck.keys())
            .map(|step| {
                let why = self.stuck.get(&step.plan.index);
                let why = why.map_or("nobody can tell", String::as_str);
                format!("step {} on {}: {why}", step.plan.index, step.plan.host)
            })
            .collect();
        reasons.extend(told(&self.failures(operation)));
        reasons.extend(self.cant_reach());
        let reason = self.stick(operation, &reasons).await?;
        Ok(Outcome::Stuck(reason))
    }

    /// Recorded as stuck and not as failed: trying again, or taking back, is just what must not be done from here.
    async fn end_fenced(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        let mut reasons: Vec<String> = self.lost.take().into_iter().collect();
        reasons.extend(told(&self.failures(operation)));
        reasons.extend(self.cant_reach());
        let reason = self.stick(operation, &reasons).await?;
        Ok(Outcome::Fenced(reason))
    }

    async fn stick(&self, operation: &Operation, reasons: &[String]) -> Result<String, Error> {
        let reason = reasons.join("; ");
        let event = OperationStuck {
            reason: reason.clone(),
        };
        self.end(operation, event).await?;
        Ok(reason)
    }

    /// What failed, and what was refused.
    fn failures(&self, operation: &Operation) -> Vec<(PlannedStep, StepFailure)> {
        let failed = operation
            .steps
            .iter()
            .filter_map(|step| match &step.status {
                StepStatus::Failed(failure) => Some((step.plan.clone(), failure.clone())),
                StepStatus::Pending
                | StepStatus::Started
                | StepStatus::Succeeded { .. }
                | StepStatus::Doubted { .. }
                | StepStatus::Drifted { .. } => None,
            });
        failed.chain(self.refused.iter().cloned()).collect()
    }

    async fn failed(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        let failures = self.failures(operation);
        let is_transient = |(_, failure): &(PlannedStep, StepFailure)| match failure.class {
            FailureClass::Peer | FailureClass::Interrupted => true,
            FailureClass::Exists
            | FailureClass::Missing
            | FailureClass::DiskFull
            | FailureClass::Permission
            | FailureClass::Verification
            | FailureClass::Command
            | FailureClass::Timeout
            | FailureClass::Host
            | FailureClass::Fenced
            | FailureClass::Unknown
            | FailureClass::Other => false,
        };
        let mut reasons = told(&failures);
        reasons.extend(self.cant_reach());
        let reason = reasons.join("; ");
        if failures.iter().all(is_transient) {
            return self.interrupt(operation, reason).await;
        }
        self.end(operation, OperationFailed { reason }).await?;
        Ok(Outcome::Failed {
            failures,
            unreachable: std::mem::take(&mut self.unreachable),
            enough: None,
        })
    }

    /// Too many hosts failed. Recorded as failed whatever it was that failed: nobody goes on with it unasked.
    async fn enough(&mut self, operation: &Operation, enough: &Enough) -> Result<Outcome, Error> {
        let failures = self.failures(operation);
        let enough = enough.to_string();
        let mut reasons = vec![enough.clone()];
        reasons.extend(told(&failures));
        reasons.extend(self.cant_reach());
        let reason = reasons.join("; ");
        self.end(operation, OperationFailed { reason }).await?;
        Ok(Outcome::Failed {
            failures,
            unreachable: std::mem::take(&mut self.unreachable),
            enough: Some(enough),
        })
    }

    /// Records how it ended, and with it which hosts could not be had: no event of a step says that.
    async fn end(&self, operation: &Operation, event: impl Into<Event>) -> Result<(), Error> {
        let lacks = self.lacks();
        let mut events = Vec::new();
        if !lacks.is_empty() {
            events.push(OperationLacked { hosts: lacks }.into());
        }
        events.push(event.into());
        self.engine.append(operation, events).await
    }

    fn lacks(&self) -> Vec<Lack> {
        let refused = self.refused.iter().map(|(plan, failure)| {
            let what = format!("{}: {}", plan.summary, failure.message);
            (plan.host.clone(), (LackKind::Refused, what))
        });
        let unreachable = self
            .unreachable
            .iter()
            .map(|(host, gone)| (host.clone(), (LackKind::Unreachable, gone.why.clone())));
        let lacks: BTreeMap<_, _> = refused.chain(unreachable).collect();
        let lacks = lacks.into_iter();
        lacks
            .map(|(host, (kind, why))| Lack { host, kind, why })
            .collect()
    }

    async fn unreachable(&mut self, operation: &Operation) -> Result<Outcome, Error> {
        if !self.refused.is_empty() {
            return self.failed(operation).await;
        }
        let reasons: Vec<String> = self
            .lost
            .take()
            .into_iter()
            .chain(self.cant_reach())
            .collect();
        self.interrupt(operation, reasons.join("; ")).await?;
        Ok(Outcome::Unreachable(std::mem::take(&mut self.unreachable)))
    }

    fn cant_reach(&self) -> Option<String> {
        let hosts: Vec<&str> = self.unreachable.keys().map(HostName::as_str).collect();
        (!hosts.is_empty()).then(|| format!("can't reach {}", hosts.join(", ")))
    }
}

fn these<'a>(
    operation: &'a Operation,
    indices: impl IntoIterator<Item = &'a StepIndex>,
) -> impl Iterator<Item = &'a Step> {
    indices
        .into_iter()
        .filter_map(|index| operation.steps.get(index.0 as usize))
}

fn told(failures: &[(PlannedStep, StepFailure)]) -> Vec<String> {
    let distinct: BTreeSet<String> = failures
        .iter()
        .map(|(plan, failure)| format!("{} on {}: {}", plan.summary, plan.host, failure.message))
        .collect();
    distinct.into_iter().collect()
}

/// Resolves the doubtful steps of a host; tries again for a while where it can't be reached.
async fn look_at(
    crew: &Crew,
    operation: &Operation,
    host: &HostName,
    steps: &[(PlannedStep, Attempt)],
) -> Result<Resolved, Cut> {
    let mut stop = crew.stop.clone();
    let mut waits = RECONNECT_WAITS.into_iter();
    loop {
        let looked = tokio::select! {
            biased;
            // A look does nothing that can't be given up at once: what was never begun may be given up for good by then.
            () = asked_to_stop(&mut stop) => return Err(Cut::Stopped),
            looked = resolve::host(crew, operation, host, steps) => looked,
        };
        let (at, error) = match looked {
            Err(Cut::Lost(error)) => (host.clone(), reach::Error::Conversation(error)),
            Err(Cut::Unreachable(at, error)) => (at, error),
            Ok(_) | Err(Cut::Refused(_) | Cut::Fenced(..) | Cut::Stopped | Cut::Log(_)) => {
                return looked;
            }
        };
        let Some(wait) = waits.next().filter(|_| error.is_unreachable()) else {
            return Err(Cut::Unreachable(at, error));
        };
        tokio::select! {
            biased;
            () = asked_to_stop(&mut stop) => return Err(Cut::Stopped),
            () = tokio::time::sleep(wait) => {}
        }
    }
}
