//! What must be true once all is over: the log holds, and the hosts are as it says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tallybook::engine::{self, Engine, Limits, Once};
use tallybook::log::{Filter, Log, verify};
use tallybook_events::event::Event;
use tallybook_events::ids::Seq;
use tallybook_events::step::{Reversal, StepKey};
use tallybook_replay::operation::OperationStatus;
use tokio::sync::watch;

use crate::agent::Deed;
use crate::host::Effect;
use crate::line::Lines;
use crate::operations::Wish;
use crate::world::{Meddling, World};

/// Judges. What it says is wrong.
pub(crate) async fn judge(
    world: &std::sync::Arc<World>,
    log: Log,
    store: &Path,
    wishes: &[Wish],
) -> Vec<String> {
    let mut wrong = Vec::new();
    acts_were_announced(world, &log, &mut wrong).await;
    order_was_kept(world, &mut wrong);
    for wish in wishes {
        let status = log.summary(wish.id).await.unwrap().unwrap().status;
        hosts_agree(world, wish, status, &mut wrong);
        nothing_is_resumed(world, &log, wish, &mut wrong).await;
    }
    foreign_things_are_left(world, &mut wrong);
    let state = log.state().await.unwrap();
    if !state.claims.is_empty() {
        wrong.push(format!("claims are left: {:?}", state.claims));
    }
    log.close().await;
    let (report, folded) = verify::journal(store).unwrap();
    if !report.findings.is_empty() {
        wrong.push(format!("verify: {:?}", report.findings));
    }
    let mut folded = folded;
    folded.forget_past();
    if folded != state {
        wrong.push("the journal folds to another state".to_owned());
    }
    wrong
}

/// No step acted before the log said that it would, by the event that its host had been shown; and none of which the log
/// says that it never began.
async fn acts_were_announced(world: &World, log: &Log, wrong: &mut Vec<String>) {
    let mut announced: BTreeMap<StepKey, Seq> = BTreeMap::new();
    let mut never_begun: BTreeSet<StepKey> = BTreeSet::new();
    for entry in log.entries(&Filter::default()).await.unwrap() {
        let is_start = matches!(entry.event, Event::StepStarted(_));
        if !is_start && !matches!(entry.event, Event::StepUnstarted(_)) {
            continue;
        }
        let header = &entry.header;
        let (Some(operation), Some(step)) = (header.operation, header.step) else {
            wrong.push(format!("event {} is of no step", header.seq));
            continue;
        };
        let key = StepKey {
            log: header.log,
            operation,
            step,
            attempt: header.attempt,
        };
        match is_start {
            true => drop(announced.insert(key, header.seq)),
            false => drop(never_begun.insert(key)),
        }
    }
    for host in world.state().hosts.values() {
        for act in &host.acts {
            if never_begun.contains(&act.key) {
                wrong.push(format!(
                    "{:?} acted, and the log says that it never began",
                    act.key
                ));
            }
            match announced.get(&act.key) {
                Some(seq) if *seq <= act.shown => {}
                Some(_) => wrong.push(format!(
                    "{:?} acted before its host was shown that",
                    act.key
                )),
                None => wrong.push(format!("{:?} acted and was never announced", act.key)),
            }
        }
    }
}

/// A step for once acted once for each start that the log has, none acted again in a start that had ended, each
/// acted after those that it depends on, and each was undone after those that depend on it.
fn order_was_kept(world: &World, wrong: &mut Vec<String>) {
    let state = world.state();
    for host in state.hosts.values() {
        if host.unwaited > 0 {
            wrong.push(format!("{} agents waited for nobody", host.unwaited));
        }
        for key in &host.repeated {
            wrong.push(format!("{key:?} had ended, and was carried out again"));
        }
        let mut seen: BTreeSet<StepKey> = BTreeSet::new();
        for act in host.acts.iter().filter(|act| act.deed != Deed::Undo) {
            let step = &state.plans[&act.origin];
            if !seen.insert(act.key) && step.once {
                wrong.push(format!("{} acted twice in one start", step.summary));
            }
        }
    }
    wrong.extend(state.disorder.iter().cloned());
}

/// What is on the hosts is what the end of an operation says.
fn hosts_agree(world: &World, wish: &Wish, status: OperationStatus, wrong: &mut Vec<String>) {
    let state = world.state();
    for step in &wish.steps {
        let ours = (wish.id, step.index);
        let there = state.hosts[&step.host].things.get(&ours);
        if state.meddled.contains_key(&ours) {
            continue;
        }
        let is_kept = !matches!(step.reversal, Reversal::Undo);
        match (status, there) {
            (OperationStatus::Succeeded, Some(Effect::Whole)) => {}
            (OperationStatus::Succeeded, _) => wrong.push(format!(
                "{} succeeded, and there is {there:?} of {}",
                wish.intent.summary(),
                step.summary
            )),
            (OperationStatus::RolledBack, Some(Effect::Whole | Effect::Half)) if !is_kept => {
                wrong.push(format!("{} was taken back, and is there", step.summary));
            }
            (OperationStatus::RolledBack, _) => {}
            (
                OperationStatus::Intended
                | OperationStatus::Running
                | OperationStatus::Interrupted
                | OperationStatus::Failed
                | OperationStatus::Stuck
                | OperationStatus::RollingBack
                | OperationStatus::Abandoned,
                _,
            ) => wrong.push(format!("{} is {status:?}", wish.intent.summary())),
        }
    }
}

/// What is over is over: asked to go on with it, nobody does anything.
async fn nothing_is_resumed(
    world: &std::sync::Arc<World>,
    log: &Log,
    wish: &Wish,
    wrong: &mut Vec<String>,
) {
    let before = (log.head().await.unwrap(), world.state().moments.len());
    let engine = Engine::new(
        log.clone(),
        std::sync::Arc::new(Lines(std::sync::Arc::clone(world))),
        std::sync::Arc::new(|_: &engine::watch::Notice| {}),
        watch::channel(false).1,
        Limits::default(),
    );
    let resumed = engine.resume(wish.id, Once::Again).await;
    if !matches!(resumed, Err(engine::Error::Final { .. })) {
        wrong.push(format!(
            "{} was resumed: {resumed:?}",
            wish.intent.summary()
        ));
    }
    let after = (log.head().await.unwrap(), world.state().moments.len());
    if before != after {
        wrong.push(format!("{} was touched", wish.intent.summary()));
    }
}

/// What somebody else put there is there.
fn foreign_things_are_left(world: &World, wrong: &mut Vec<String>) {
    let state = world.state();
    for (origin, meddling) in &state.meddled {
        let step = &state.plans[origin];
        let there = state.hosts[&step.host].things.get(origin);
        if *meddling == Meddling::Put && there != Some(&Effect::Foreign) {
            let step = &step.summary;
            wrong.push(format!("somebody else's in the way of {step} is {there:?}"));
        }
    }
}
