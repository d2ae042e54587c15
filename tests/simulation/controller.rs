//! The controller: the real engine and the real log, started again whenever it was killed, until all is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tallybook::engine::{self, Engine, Limits, Once, Outcome, Proposal};
use tallybook::log::{self, Log, Open};
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::pace::Pace;
use tallybook_replay::operation::OperationStatus;
use tallybook_replay::undo;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::line::Lines;
use crate::operations::{Cloud, Wish};
use crate::world::World;

/// How often somebody looks at an operation while things go wrong.
const ROUNDS: u32 = 12;
/// How often it may be looked at once nothing goes wrong any more.
const CALM_ROUNDS: u32 = 30;

/// What is done about an operation that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    Resume,
    RollBack,
    /// As the dice say, each time anew; also of what succeeded.
    Drawn,
}

/// One controller.
pub(crate) struct Controller {
    pub(crate) world: Arc<World>,
    pub(crate) cloud: Arc<Cloud>,
    store: PathBuf,
    /// Whether somebody asks to stop now and then.
    stops: bool,
}

/// What a process of it has.
#[derive(Clone)]
struct Process {
    world: Arc<World>,
    cloud: Arc<Cloud>,
    log: Log,
    stop: watch::Sender<bool>,
}

impl Controller {
    pub(crate) fn new(world: Arc<World>, cloud: Arc<Cloud>, place: &Path, stops: bool) -> Self {
        Controller {
            world,
            cloud,
            store: place.join("store"),
            stops,
        }
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Opens the log as its only process.
    pub(crate) async fn open(&self) -> Log {
        loop {
            let log = Log::open(&self.store, Open::Create, |_| {}).await.unwrap();
            if log.is_holder().await {
                return log;
            }
            // The threads of the process that was killed are not all gone.
            drop(log);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Carries all of them to an end, whatever happens.
    pub(crate) async fn drive(&self, wishes: &[Wish], recovery: Recovery) {
        for wish in wishes {
            self.world.know(wish.id, &wish.steps);
        }
        let mut is_new = true;
        loop {
            let mut deaths = self.world.deaths.subscribe();
            let log = self.open().await;
            if std::mem::take(&mut is_new) {
                let id = log.head().await.unwrap().log.unwrap();
                self.world.set_nothing_aside(id, &self.store);
            }
            let process = Process {
                world: Arc::clone(&self.world),
                cloud: Arc::clone(&self.cloud),
                log: log.gated(self.world.gate()),
                stop: watch::channel(false).0,
            };
            let mut works = tokio::task::JoinSet::new();
            let stopper = self.stops.then(|| {
                let (world, stop) = (Arc::clone(&self.world), process.stop.clone());
                tokio::spawn(ask_to_stop(world, stop))
            });
            for wish in wishes.iter().cloned() {
                works.spawn(process.clone().drive(wish, recovery));
            }
            drop(process);
            let died = loop {
                tokio::select! {
                    biased;
                    died = deaths.changed() => {
                        died.unwrap();
                        break true;
                    }
                    done = works.join_next() => match done {
                        Some(done) => done.unwrap(),
                        None => break false,
                    },
                }
            };
            works.shutdown().await;
            if let Some(stopper) = stopper {
                stopper.abort();
            }
            if !died {
                return;
            }
            self.world.tell("the controller is started again");
            let pause = self.world.state().dice.between_ms(10, 20_000);
            sleep(pause).await;
        }
    }
}

impl Process {
    async fn drive(self, wish: Wish, recovery: Recovery) {
        let mut calm_rounds = 0;
        loop {
            let rounds = self.world.round(wish.id);
            if rounds >= ROUNDS {
                self.world.calm();
                calm_rounds += 1;
                assert!(
                    calm_rounds <= CALM_ROUNDS,
                    "operation {} is never over: {:?}",
                    wish.intent.summary(),
                    self.log.summary(wish.id).await
                );
            }
            match self.look(&wish, recovery).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.world.tell(format_args!("{error:?}")),
            }
            let pause = self.world.state().dice.between_ms(1, 40_000);
            sleep(pause).await;
        }
    }

    /// Does about an operation what is to be done next; whether it is over.
    async fn look(&self, wish: &Wish, recovery: Recovery) -> Result<bool, engine::Error> {
        let known = self.log.summary(wish.id).await?;
        let Some(known) = known else {
            let engine = self.engine();
            engine.begin(self.proposal(wish).await?).await?;
            self.tell(wish.id, engine.run(wish.id).await);
            return Ok(false);
        };
        let is_calm = self.world.is_calm();
        let rolls_back = match recovery {
            Recovery::Resume => false,
            Recovery::RollBack => true,
            Recovery::Drawn => self.world.state().dice.once_in(2),
        };
        match known.status {
            OperationStatus::RolledBack | OperationStatus::Abandoned => return Ok(true),
            OperationStatus::Succeeded => {
                let may = recovery == Recovery::Drawn && !is_calm;
                let wanted = may && self.world.state().dice.once_in(3);
                if !wanted {
                    return Ok(true);
                }
                self.roll_back(wish.id).await?;
            }
            OperationStatus::Intended
            | OperationStatus::Running
            | OperationStatus::Interrupted
            | OperationStatus::Failed
            | OperationStatus::Stuck
            | OperationStatus::RollingBack => {
                let once = match is_calm || self.world.state().dice.once_in(2) {
                    true => Once::Again,
                    false => Once::Ask,
                };
                if let Some(undo) = self.log.taken_back_by(wish.id).await? {
                    self.tell(undo, self.engine().resume(undo, once).await);
                } else if rolls_back {
                    self.roll_back(wish.id).await?;
                } else {
                    self.tell(wish.id, self.engine().resume(wish.id, once).await);
                }
            }
        }
        Ok(false)
    }

    fn tell(&self, id: OperationId, outcome: Result<Outcome, engine::Error>) {
        self.world.tell(format_args!("{}: {outcome:?}", id.short()));
    }

    fn engine(&self) -> Engine {
        let reach = Arc::new(Lines(Arc::clone(&self.world)));
        let watch = Arc::new(|_: &engine::watch::Notice| {});
        let engine = Engine::new(
            self.log.clone(),
            reach,
            watch,
            self.stop.subscribe(),
            Limits {
                // Every journal is long.
                journal_len_max: 0,
                ..Limits::default()
            },
        );
        engine.with_secrets(Arc::clone(&self.cloud.secrets))
    }

    async fn proposal(&self, wish: &Wish) -> Result<Proposal, log::Error> {
        Ok(Proposal {
            id: wish.id,
            intent: wish.intent.clone(),
            inventory: Seq::NONE,
            claims: wish.claims.clone(),
            steps: wish.steps.clone(),
            planned_at: Some(self.log.head().await?.seq),
            alongside: None,
            instead_of: Vec::new(),
            pace: Pace::default(),
        })
    }

    async fn roll_back(&self, id: OperationId) -> Result<(), engine::Error> {
        let engine = self.engine();
        engine.hold(id)?;
        engine.check_not_taken_back(id).await?;
        let operation = self.log.operation(id).await?;
        let operation = operation.ok_or(engine::Error::Missing(id))?;
        let undo = self.world.fresh_id();
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
        self.tell(undo, engine.run(undo).await);
        Ok(())
    }
}

/// Somebody presses Ctrl-C now and then; what is begun later is another process.
async fn ask_to_stop(world: Arc<World>, stop: watch::Sender<bool>) {
    loop {
        let pause = world.state().dice.between_ms(100, 60_000);
        sleep(pause).await;
        if world.is_calm() {
            return;
        }
        world.tell("somebody asks to stop");
        stop.send_replace(true);
        let pause = world.state().dice.between_ms(10, 20_000);
        sleep(pause).await;
        stop.send_replace(false);
    }
}
