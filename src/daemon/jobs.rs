//! The operations that the daemon carries out: each in a task of its own, so many at once, followed by whoever wants to.
//!
//! None waits for another one but for its turn, and none for a follower: who does not keep up misses notices.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_replay::operation::{OperationStatus, Step, StepStatus};
use tallybook_replay::state::OperationSummary;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::Instant;

use super::ending::{Ending, Ran};
use super::protocol::Picture;
use crate::cli::{Exit, Report};
use crate::engine::runner_lock::Hold;
use crate::engine::watch::{Notice, Watch};
use crate::engine::{Outcome, Service};
use crate::identity::Peer;
use crate::log::Log;

/// How many operations may be carried out or wait for that.
const JOBS_MAX: usize = 1024;
/// How many notices a follower may be behind.
const NOTICES_MAX: usize = 1024;
/// How much longer the longest pause is than the first, before an operation is tried again.
const PAUSE_GROWTH_MAX: u32 = 32;
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often an operation is tried again by itself.
const TRIES_MAX: u32 = 50;
/// How many operations it is remembered of when they are tried again.
const PAUSES_MAX: usize = 4096;

/// How an operation is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is fresh.
    Run {
        /// Whether it is taken back when it fails, where its kind is.
        undo_failed: bool,
    },
    /// Somebody took it up.
    GoOn {
        /// Whether steps in doubt are started again that are started once only.
        once_again: bool,
    },
    /// It was left: the daemon takes it up.
    TakeUp {
        /// Whether it is taken back when it fails, where its kind is.
        undo_failed: bool,
    },
}

impl How {
    /// Whether it is taken back when it fails.
    const fn undoes(self) -> bool {
        match self {
            How::Run { undo_failed } | How::TakeUp { undo_failed } => undo_failed,
            How::GoOn { .. } => false,
        }
    }
}

/// An operation to carry out.
pub struct Task {
    /// The operation.
    pub operation: OperationId,
    /// How.
    pub how: How,
    /// The right to, and to what else it needs.
    pub holds: Vec<Hold>,
    /// Whom to tell.
    pub watch: Watch,
    /// Turns true when it shall end in good order.
    pub stop: watch::Receiver<bool>,
    /// What else ends it.
    pub service: Service,
}

/// An operation being carried out.
pub type Working = Pin<Box<dyn Future<Output = Ending> + Send>>;
/// Carries operations out: with hosts, as the log says of them.
pub type Work = Arc<dyn Fn(Task) -> Working + Send + Sync>;

/// Why an operation is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The daemon ends.
    #[error("the daemon is ending, and takes nothing more")]
    Ending,
    /// There are too many.
    #[error("the daemon has {JOBS_MAX} operations already")]
    Full,
    /// It has it already.
    #[error("the daemon carries it out already")]
    Running,
}

impl Error {
    pub(super) fn report(self) -> Report {
        let hint = match self {
            Error::Ending => "once it runs again, the same command does it",
            Error::Full => "try again when some of them are done",
            Error::Running => "`tallybook op attach` follows it",
        };
        Report {
            error: self.to_string(),
            details: Vec::new(),
            because: Vec::new(),
            hint: Some(hint.to_owned()),
            exit: Exit::Locked,
            code: Exit::Locked.code(),
        }
    }
}

/// When an operation may be tried again that the daemon had.
#[derive(Debug, Clone, Copy)]
struct Pause {
    /// `None` for one that is not touched again.
    until: Option<Instant>,
    tries: u32,
    /// Whether it is taken back when it fails then.
    undo_failed: bool,
    /// Where its events ended: who went on with it meanwhile has taken it from the daemon.
    last: Seq,
}

/// What is to be done with an operation that nobody carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing is known of it here.
    Unknown,
    /// It is tried again now.
    Now {
        /// Whether it is taken back when it fails.
        undo_failed: bool,
    },
    /// It is tried again then.
    Later(Instant),
    /// It is left to people.
    Never,
}

/// The operations that the daemon carries out.
pub(super) struct Jobs {
    log: Log,
    work: Work,
    slots: Arc<Semaphore>,
    pause: Duration,
    table: Mutex<BTreeMap<OperationId, Arc<Job>>>,
    pauses: Mutex<BTreeMap<OperationId, Pause>>,
    drain: watch::Sender<bool>,
    /// Had by each line on which one is followed.
    telling: Arc<()>,
    /// One of them ended.
    ended: Notify,
    /// The same, for the one who looks for what is left: it is not lost while that one looks.
    look: Notify,
}

/// One of them.
pub(super) struct Job {
    picture: Mutex<Picture>,
    notices: broadcast::Sender<Arc<str>>,
    stop: watch::Sender<bool>,
    stopped_by: Arc<OnceLock<String>>,
    ending: watch::Sender<Option<Ending>>,
}

/// What a follower of one has.
pub(super) struct Followed {
    pub(super) picture: Picture,
    pub(super) notices: broadcast::Receiver<Arc<str>>,
    pub(super) ending: watch::Receiver<Option<Ending>>,
}

impl Job {
    fn new() -> Self {
        Job {
            picture: Mutex::default(),
            notices: broadcast::channel(NOTICES_MAX).0,
            stop: watch::channel(false).0,
            stopped_by: Arc::default(),
            ending: watch::channel(None).0,
        }
    }

    /// Where it is, and from here on all that happens.
    pub(super) fn follow(&self) -> Followed {
        let picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        Followed {
            picture: picture.clone(),
            notices: self.notices.subscribe(),
            ending: self.ending.subscribe(),
        }
    }

    /// Has it end in good order.
    pub(super) fn stop(&self, by: Peer) {
        let _first = self.stopped_by.set(by.to_string());
        self.stop.send_replace(true);
    }

    fn tell(&self, notice: &Notice) {
        let Ok(text) = serde_json::to_string(notice) else {
            return;
        };
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        match notice {
            Notice::Planned { steps, .. } => (picture.steps, picture.ended) = (*steps, 0),
            Notice::Started { step, .. } => {
                picture.running.insert(Some(*step), text.clone());
            }
            Notice::Succeeded { step, .. } | Notice::Failed { step, .. } => {
                picture.running.remove(&Some(*step));
                picture.ended += 1;
            }
            Notice::Queued { .. } | Notice::Stopping => {
                picture.running.insert(None, text.clone());
            }
            Notice::Progress { .. }
            | Notice::Waiting { .. }
            | Notice::Claimed { .. }
            | Notice::Resolved { .. }
            | Notice::Unreachable { .. } => {}
        }
        // While it is held: who follows from here on has either the picture with it, or the notice.
        let _nobody = self.notices.send(text.into());
    }
}

impl Jobs {
    pub(super) fn new(log: Log, work: Work, at_once: usize, pause: Duration) -> Arc<Self> {
        Arc::new(Jobs {
            log,
            work,
            slots: Arc::new(Semaphore::new(at_once)),
            pause,
            table: Mutex::default(),
            pauses: Mutex::default(),
            drain: watch::channel(false).0,
            telling: Arc::default(),
            ended: Notify::new(),
            look: Notify::new(),
        })
    }

    /// The one of this id.
    pub(super) fn find(&self, id: OperationId) -> Option<Arc<Job>> {
        self.table().get(&id).cloned()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.table().len()
    }

    /// Takes an operation, to be carried out when it is its turn.
    ///
    /// # Errors
    /// When the daemon ends, or has too many.
    pub(super) fn submit(
        self: &Arc<Self>,
        id: OperationId,
        how: How,
        holds: Vec<Hold>,
    ) -> Result<Arc<Job>, Error> {
        let job = Arc::new(Job::new());
        {
            let mut table = self.table();
            // Asked under the table's lock: who drains waits for all that were taken before.
            if *self.drain.borrow() {
                return Err(Error::Ending);
            }
            if table.contains_key(&id) {
                return Err(Error::Running);
            }
            if table.len() >= JOBS_MAX {
                return Err(Error::Full);
            }
            table.insert(id, Arc::clone(&job));
        }
        tokio::spawn(Arc::clone(self).carry_out(id, how, holds, Arc::clone(&job)));
        Ok(job)
    }

    /// Takes nothing more, and has what runs end: what is left is for the next start.
    pub(super) fn drain(&self) {
        let _table = self.table();
        self.drain.send_replace(true);
    }

    /// Whether it ends.
    pub(super) fn drains(&self) -> bool {
        *self.drain.borrow()
    }

    /// Resolves once it ends.
    pub(super) async fn drained(&self) {
        let mut drain = self.drain.subscribe();
        let _gone = drain.wait_for(|drain| *drain).await;
    }

    /// Resolves once there is none.
    pub(super) async fn done(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.table().is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// What a line keeps until whoever follows was told how it ended.
    pub(super) fn telling(&self) -> Arc<()> {
        Arc::clone(&self.telling)
    }

    /// Resolves once nobody is left to be told anything.
    pub(super) async fn told(&self) {
        while Arc::strong_count(&self.telling) > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resolves when one ended since it was asked last.
    pub(super) async fn one_ended(&self) {
        self.look.notified().await;
    }

    /// Whether an operation that nobody carries out is tried again, where its events end here.
    pub(super) fn turn(&self, id: OperationId, last: Seq) -> Turn {
        let mut pauses = self.pauses();
        match pauses.get(&id) {
            None => Turn::Unknown,
            Some(pause) if pause.last < last => {
                pauses.remove(&id);
                Turn::Unknown
            }
            // More is known here than whoever asks knows: it is asked again.
            Some(pause) if pause.last > last => Turn::Never,
            Some(Pause { until: None, .. }) => Turn::Never,
            Some(Pause {
                until: Some(until),
                undo_failed,
                ..
            }) => match *until <= Instant::now() {
                true => Turn::Now {
                    undo_failed: *undo_failed,
                },
                false => Turn::Later(*until),
            },
        }
    }

    /// Has one not be tried again by itself; whether it would have been.
    pub(super) fn stop_trying(&self, id: OperationId) -> bool {
        let mut pauses = self.pauses();
        let pause = pauses.get_mut(&id);
        pause.is_some_and(|pause| pause.until.take().is_some())
    }

    async fn carry_out(
        self: Arc<Self>,
        id: OperationId,
        how: How,
        holds: Vec<Hold>,
        job: Arc<Job>,
    ) {
        tracing::info!("operation {} is taken: {how:?}", id.short());
        let worked = self.work(id, how, holds, &job).await;
        let again = self.pause(id, how, &job, worked.as_ref().ok()).await;
        let mut ending = worked.unwrap_or_else(|Broken(report)| Ran::Left(report).into());
        ending.again = again;
        tracing::info!("operation {} ended: {}", id.short(), label(&ending));
        self.table().remove(&id);
        job.ending.send_replace(Some(ending));
        self.ended.notify_waiters();
        self.look.notify_one();
    }

    async fn work(
        &self,
        id: OperationId,
        how: How,
        holds: Vec<Hold>,
        job: &Arc<Job>,
    ) -> Result<Ending, Broken> {
        if let Ok(Some(operation)) = self.log.operation(id).await {
            let done = |step: &&Step| matches!(step.status, StepStatus::Succeeded { .. });
            let ended = operation.steps.iter().filter(done);
            let mut picture = job.picture.lock().unwrap_or_else(PoisonError::into_inner);
            (picture.steps, picture.ended) = (operation.steps.len(), ended.count());
        }
        let Ok(_slot) = self.slot(id, job).await else {
            let why = "the daemon ends; its next start begins with this";
            return Ok(Ran::Ended(Outcome::Interrupted(why.to_owned())).into());
        };
        let told = Arc::clone(job);
        let task = Task {
            operation: id,
            how,
            holds,
            watch: Arc::new(move |notice| told.tell(notice)),
            stop: job.stop.subscribe(),
            service: Service {
                drain: self.drain.subscribe(),
                stopped_by: Arc::clone(&job.stopped_by),
            },
        };
        // A task of its own: a broken invariant of one operation ends that one.
        tokio::spawn((self.work)(task)).await.map_err(|error| {
            tracing::error!("operation {}: {error}", id.short());
            Broken::of(id, error)
        })
    }

    /// Waits for its turn, and tells that it does. Who was asked to stop has it at once: that is soon done.
    async fn slot(
        &self,
        id: OperationId,
        job: &Job,
    ) -> Result<Option<OwnedSemaphorePermit>, Error> {
        if self.drains() {
            return Err(Error::Ending);
        }
        let slots = Arc::clone(&self.slots);
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            return Ok(Some(slot));
        }
        job.tell(&Notice::Queued { operation: id });
        let mut stop = job.stop.subscribe();
        let slot = tokio::select! {
            biased;
            () = self.drained() => return Err(Error::Ending),
            _ = stop.wait_for(|stop| *stop) => None,
            slot = slots.acquire_owned() => slot.ok(),
        };
        let mut picture = job.picture.lock().unwrap_or_else(PoisonError::into_inner);
        picture.running.remove(&None);
        Ok(slot)
    }

    /// When this one is tried again by itself, if it is: where a host was away, or it could not even be tried. One that
    /// broke an invariant would do so again.
    async fn pause(
        &self,
        id: OperationId,
        how: How,
        job: &Job,
        ending: Option<&Ending>,
    ) -> Option<Duration> {
        let known = self.log.summary(id).await.ok().flatten();
        let mut pauses = self.pauses();
        let tries = pauses.remove(&id).map_or(0, |pause| pause.tries);
        let again = match ending.map(|ending| (&ending.ran, &ending.undone)) {
            None => false,
            Some((Ran::Ended(Outcome::Unreachable(hosts)), None)) => {
                hosts.values().all(|gone| gone.is_unreachable)
            }
            Some((Ran::Left(_) | Ran::Refused(_), _)) => known.as_ref().is_some_and(is_running),
            Some((
                Ran::Ended(
                    Outcome::Succeeded
                    | Outcome::Failed { .. }
                    | Outcome::Interrupted(_)
                    | Outcome::Unreachable(_)
                    | Outcome::Stuck(_)
                    | Outcome::Fenced(_),
                ),
                _,
            )) => return None,
        };
        let growth = 2_u32.saturating_pow(tries).min(PAUSE_GROWTH_MAX);
        let pause = self.pause.saturating_mul(growth).min(PAUSE_MAX);
        // Who was stopped too late to end sooner is not begun again all the same.
        let is_wanted = !self.drains() && !*job.stop.borrow();
        let again = (again && tries < TRIES_MAX && is_wanted).then_some(pause);
        let pause = Pause {
            until: again.map(|pause| Instant::now() + pause),
            tries: tries + 1,
            undo_failed: how.undoes(),
            last: known?.last,
        };
        pauses.insert(id, pause);
        if pauses.len() > PAUSES_MAX {
            // Ids are in the order in which they were made.
            pauses.pop_first();
        }
        again
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<OperationId, Arc<Job>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pauses(&self) -> std::sync::MutexGuard<'_, BTreeMap<OperationId, Pause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it ended, in a word.
const fn label(ending: &Ending) -> &'static str {
    match ending.ran {
        Ran::Ended(Outcome::Succeeded) => "succeeded",
        Ran::Ended(Outcome::Failed { .. }) => "failed",
        Ran::Ended(Outcome::Interrupted(_)) => "interrupted",
        Ran::Ended(Outcome::Unreachable(_)) => "unreachable",
        Ran::Ended(Outcome::Stuck(_)) => "stuck",
        Ran::Ended(Outcome::Fenced(_)) => "fenced",
        Ran::Left(_) => "left",
        Ran::Refused(_) => "refused",
    }
}

fn is_running(known: &OperationSummary) -> bool {
    known.status == OperationStatus::Running
}

/// A broken invariant, told to whoever follows.
struct Broken(Report);

impl Broken {
    fn of(id: OperationId, error: tokio::task::JoinError) -> Self {
        let short = id.short();
        let because = match error.try_into_panic() {
            Ok(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                text.unwrap_or_else(|| "a panic".to_owned())
            }
            Err(error) => error.to_string(),
        };
        Broken(Report {
            error: format!("operation {short} was left where it is: the daemon broke on it"),
            details: Vec::new(),
            because: vec![because],
            hint: Some(format!(
                "`tallybook op show {short}` shows what is known; the daemon does not take it up again before it is started anew"
            )),
            exit: Exit::Interrupted,
            code: Exit::Interrupted.code(),
        })
    }
}

#[cfg(test)]
mod tests;
