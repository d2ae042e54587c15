//! One run of a simulation, from nothing to the verdict.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::begun;
use crate::controller::{Controller, Recovery};
use crate::fault::{Misfortune, Moment};
use crate::observer;
use crate::operations::{Asked, Cloud, HOSTS, Wish};
use crate::world::World;

/// Nothing may take longer, by the clock of the simulation.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is to be simulated.
pub(crate) struct Scene {
    pub(crate) seed: u64,
    pub(crate) asked: Vec<Asked>,
    pub(crate) misfortune: Misfortune,
    pub(crate) recovery: Recovery,
    /// Whether somebody else meddles with the hosts.
    pub(crate) meddled: bool,
    /// Whether somebody asks to stop now and then.
    pub(crate) stopped: bool,
}

/// How it went.
pub(crate) struct Verdict {
    pub(crate) wrong: Vec<String>,
    pub(crate) moments: Vec<Moment>,
    pub(crate) story: String,
}

/// In memory, where this machine has such a place.
pub(crate) fn place() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => TempDir::new_in(memory).unwrap(),
        false => TempDir::new().unwrap(),
    }
}

impl Scene {
    pub(crate) fn play(self) -> Verdict {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let place = place();
        begun::put(&runtime, &place.path().join("store"));
        let world = runtime.block_on(async {
            World::new(place.path(), &HOSTS, self.seed, self.misfortune.clone())
        });
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let played = self.play_in(Arc::clone(&world), &place);
                tokio::time::timeout(LONGEST, played)
                    .await
                    .expect("it is never over")
            })
        }));
        let state = world.state_left();
        Verdict {
            wrong: played.unwrap_or_else(|panic| {
                let what = panic.downcast_ref::<String>().cloned();
                let what = what.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
                vec![format!("panic: {}", what.unwrap_or_default())]
            }),
            moments: state.moments.clone(),
            story: state.story.clone(),
        }
    }

    async fn play_in(&self, world: Arc<World>, place: &TempDir) -> Vec<String> {
        let cloud = Arc::new(Cloud::new(place.path()));
        let wish = |asked: &Asked| cloud.wish(*asked, world.fresh_id());
        let wishes: Vec<Wish> = self.asked.iter().map(wish).collect();
        let controller = Controller::new(Arc::clone(&world), cloud, place.path(), self.stopped);
        let meddler = self.meddled.then(|| {
            let places = wishes
                .iter()
                .flat_map(|wish| wish.steps.iter().map(|step| (wish.id, step.index)));
            tokio::spawn(meddle(Arc::clone(&world), places.collect()))
        });
        controller.drive(&wishes, self.recovery).await;
        if let Some(meddler) = meddler {
            meddler.abort();
        }
        // What was under way comes to rest.
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let log = controller.open().await;
        observer::judge(&world, log, controller.store(), &wishes).await
    }
}

/// Somebody who knows nothing of the log, at work now and then.
async fn meddle(world: Arc<World>, places: Vec<crate::host::Origin>) {
    loop {
        let pause = world.state().dice.between_ms(1_000, 60_000);
        tokio::time::sleep(pause).await;
        if world.is_calm() {
            return;
        }
        let at = *world.state().dice.pick(&places);
        world.tell("somebody else meddles");
        world.meddle(at);
    }
}
