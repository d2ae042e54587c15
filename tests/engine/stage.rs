//! A log, hosts and engines: what every scene begins with.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tallybook::engine::watch::Notice;
use tallybook::engine::{self, Engine, Error, Limits, Once, Outcome, Proposal};
use tallybook::log::{Log, Open};
use tallybook_agent::step::Step;
use tallybook_events::ids::{Generation, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::step::{Action, Peer, PlannedStep, Reversal, SendSource};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus};
use tallybook_replay::{since, undo};
use tallybook_testkit::files::copy_tree;
use tallybook_testkit::samples;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::deed::{self, Act, Deed};
use crate::world::World;

/// Nothing in these scenes may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Stage {
    store: TempDir,
    pub(crate) log: Log,
    pub(crate) world: Arc<World>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) notices: Arc<Mutex<Vec<Notice>>>,
    /// How the operations that begin go over their hosts.
    pub(crate) pace: Pace,
}

impl Stage {
    pub(crate) async fn new(hosts: &[&str]) -> Self {
        let store = tempfile::tempdir().unwrap();
        Stage::over(store, Open::Create, World::new(hosts)).await
    }

    async fn over(store: TempDir, open: Open, world: Arc<World>) -> Self {
        // Short segments: some of them are closed soon.
        let limits = tallybook::log::Limits { segment_len: 4096 };
        let log = Log::open_within(store.path(), open, limits, |_| {})
            .await
            .unwrap();
        Stage {
            store,
            log,
            world,
            stop: watch::channel(false).0,
            notices: Arc::default(),
            pace: Pace::default(),
        }
    }

    /// The store's directory.
    pub(crate) fn place(&self) -> &std::path::Path {
        self.store.path()
    }

    /// A copy of the store as it is now, which nobody has opened.
    pub(crate) fn copied(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(self.store.path(), copy.path());
        copy
    }

    /// Another controller, with this copy of the store and the same hosts.
    pub(crate) async fn beside(&self, copy: TempDir) -> Self {
        Stage::over(copy, Open::Existing, Arc::clone(&self.world)).await
    }

    /// What another process that is started now would have.
    pub(crate) fn engine(&self) -> Engine {
        self.engine_watched(|_| {})
    }

    /// The same, with somebody who hears what it tells.
    pub(crate) fn engine_watched(&self, watch: impl Fn(&Notice) + Send + Sync + 'static) -> Engine {
        let notices = Arc::clone(&self.notices);
        let told = move |notice: &Notice| {
            notices.lock().unwrap().push(notice.clone());
            watch(notice);
        };
        Engine::new(
            self.log.clone(),
            self.world.clone(),
            Arc::new(told),
            self.stop.subscribe(),
            Limits::default(),
        )
    }

    pub(crate) async fn begin(&self, engine: &Engine, steps: Vec<PlannedStep>) -> OperationId {
        self.try_begin(engine, steps).await.unwrap()
    }

    pub(crate) async fn try_begin(
        &self,
        engine: &Engine,
        steps: Vec<PlannedStep>,
    ) -> Result<OperationId, Error> {
        let id = engine::new_operation();
        let proposal = Proposal {
            id,
            intent: Intent::HostPrepare { hosts: Vec::new() },
            inventory: Seq::NONE,
            claims: vec![subject()],
            steps,
            planned_at: Some(self.log.head().await.unwrap().seq),
            alongside: None,
            instead_of: Vec::new(),
            pace: self.pace,
        };
        engine.begin(proposal).await
    }

    /// Begins an operation and carries it out.
    pub(crate) async fn perform(&self, steps: Vec<PlannedStep>) -> (OperationId, Outcome) {
        let engine = self.engine();
        let id = self.begin(&engine, steps).await;
        (id, within(engine.run(id)).await.unwrap())
    }

    pub(crate) async fn resume(&self, id: OperationId) -> Result<Outcome, Error> {
        within(self.engine().resume(id, Once::Ask)).await
    }

    /// Takes an operation back, as `op rollback` does.
    pub(crate) async fn roll_back(&self, id: OperationId) -> Result<(OperationId, Outcome), Error> {
        let engine = self.engine();
        engine.hold(id)?;
        engine.check_not_taken_back(id).await?;
        let operation = self.operation(id).await;
        let undo = engine::new_operation();
        let proposal = Proposal {
            id: undo,
            intent: Intent::Rollback { operation: id },
            inventory: Seq::NONE,
            claims: operation.claims.clone(),
            steps: undo::plan(&operation).steps,
            planned_at: None,
            alongside: None,
            instead_of: vec![(id, operation.last)],
            pace: Pace::default(),
        };
        engine.begin(proposal).await?;
        Ok((undo, within(engine.run(undo)).await?))
    }

    /// Begins to take back everything behind an event, as `rollback --to` does.
    pub(crate) async fn begin_back_to(
        &self,
        engine: &Engine,
        to: Seq,
    ) -> Result<OperationId, Error> {
        let head = self.log.head().await?.seq;
        self.begin_back_to_planned(engine, to, head).await
    }

    /// The same, planned when the log ended with this event.
    pub(crate) async fn begin_back_to_planned(
        &self,
        engine: &Engine,
        to: Seq,
        planned_at: Seq,
    ) -> Result<OperationId, Error> {
        let ids: Vec<OperationId> = self.log.operations(None).await?.into_keys().collect();
        let mut operations = Vec::new();
        for id in ids {
            operations.push(self.operation(id).await);
        }
        operations.retain(|known| known.last > to && known.claim.seq <= planned_at);
        let since = since::plan(to, &operations).unwrap();
        let last = |id: &OperationId| {
            operations
                .iter()
                .find(|known| known.id == *id)
                .unwrap()
                .last
        };
        let proposal = Proposal {
            id: engine::new_operation(),
            intent: Intent::RollbackTo {
                to,
                operations: since.operations.clone(),
            },
            inventory: Seq::NONE,
            claims: since.claims,
            steps: since.undo.steps,
            planned_at: Some(planned_at),
            alongside: None,
            instead_of: since.operations.iter().map(|id| (*id, last(id))).collect(),
            pace: Pace::default(),
        };
        engine.begin(proposal).await
    }

    pub(crate) async fn back_to(&self, to: Seq) -> Result<(OperationId, Outcome), Error> {
        let engine = self.engine();
        let undo = self.begin_back_to(&engine, to).await?;
        Ok((undo, within(engine.run(undo)).await?))
    }

    pub(crate) async fn operation(&self, id: OperationId) -> Operation {
        self.log.operation(id).await.unwrap().unwrap()
    }

    /// Where an operation stands for everybody.
    pub(crate) async fn status(&self, id: OperationId) -> OperationStatus {
        self.log.summary(id).await.unwrap().unwrap().status
    }

    pub(crate) async fn claimed(&self) -> bool {
        !self.log.state().await.unwrap().claims.is_empty()
    }

    pub(crate) fn notes(&self, host: &str) -> Vec<String> {
        self.world.host(host).notes()
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Stage) -> bool) {
        within(async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.expect("it hangs")
}

pub(crate) fn subject() -> Subject {
    Subject::Host(samples::host("cn1"))
}

/// A step of kind `S`.
fn planned<S: Step + Serialize>(index: u32, host: &str, after: &[u32], step: &S) -> PlannedStep {
    PlannedStep {
        index: StepIndex(index),
        host: HostName::new(host).unwrap(),
        subject: subject(),
        kind: S::KIND.to_owned(),
        params: tallybook_agent::step::params(step).unwrap(),
        summary: step.summary(),
        action: Action::Forward,
        reversal: Reversal::Undo,
        once: S::ONCE,
        after: after.iter().copied().map(StepIndex).collect(),
        peer: None,
    }
}

fn act(index: u32, deed: Deed) -> Act {
    Act {
        text: format!("s{index}"),
        deed,
    }
}

/// Step `index` on a host: it notes `sINDEX`, and does its deed.
pub(crate) fn step(index: u32, host: &str, after: &[u32], deed: Deed) -> PlannedStep {
    planned(index, host, after, &act(index, deed))
}

/// The same, to be started only once.
pub(crate) fn once(index: u32, host: &str, after: &[u32], deed: Deed) -> PlannedStep {
    planned(index, host, after, &deed::Once(act(index, deed)))
}

/// A step that takes pieces from another host.
pub(crate) fn receive(index: u32, host: &str, from: &str, after: &[u32]) -> PlannedStep {
    with_peer(index, host, from, after, Deed::Receive)
}

/// A step with another host at the other end of its transfer.
pub(crate) fn with_peer(
    index: u32,
    host: &str,
    from: &str,
    after: &[u32],
    deed: Deed,
) -> PlannedStep {
    let source = SendSource::Template {
        template: samples::template("base"),
        generation: Generation(1),
    };
    PlannedStep {
        peer: Some(Peer {
            host: HostName::new(from).unwrap(),
            source,
        }),
        ..step(index, host, after, deed)
    }
}
