//! What others have in a step's place: told as drift, left alone, set aside where that is wanted and put back, or taken over.

use std::collections::BTreeSet;

use tallybook::engine::adopt::Unfit;
use tallybook::engine::{Error, Once, Outcome};
use tallybook::log::{Filter, verify};
use tallybook_events::event::Event;
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_replay::operation::{OperationStatus, StepStatus};
use tallybook_replay::undo;

use crate::deed::{Deed, put, says};
use crate::stage::{Stage, step, within};
use crate::world::{Fault, Line};

fn make() -> Deed {
    Deed::Make("place".to_owned())
}

/// An operation whose second step finds something of others in its place when it starts.
async fn blocked(stage: &Stage, text: &str) -> OperationId {
    put(&stage.world.host("a").layout, "place", text);
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "a", &[0], make()),
        step(2, "a", &[1], Deed::Repeat(StepIndex(1))),
    ];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    id
}

async fn force(stage: &Stage, id: OperationId) -> Result<Outcome, Error> {
    within(stage.engine().force(id, Once::Ask, "it is old")).await
}

async fn adopt(stage: &Stage, id: OperationId) -> Result<usize, Error> {
    let none = BTreeSet::new();
    let adopted = within(stage.engine().adopt(id, &none, "it is as wanted")).await?;
    Ok(adopted.len())
}

async fn events(stage: &Stage, id: OperationId) -> Vec<Event> {
    let entries = stage.log.entries(&Filter::of_operation(id)).await.unwrap();
    entries.into_iter().map(|entry| entry.event).collect()
}

async fn assert_sound(stage: &Stage) {
    let copy = stage.copied();
    let (report, mut state) = verify::journal(copy.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    state.forget_past();
    assert_eq!(stage.log.state().await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_set_aside_where_that_is_wanted_and_put_back_by_the_undo() {
    let stage = Stage::new(&["a"]).await;
    let layout = stage.world.host("a").layout.clone();
    let id = blocked(&stage, "of others").await;
    // Never without being asked to.
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert_eq!(says(&layout, "place").unwrap(), "of others");
    let outcome = force(&stage, id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(says(&layout, "place").unwrap(), "made by s1");
    let aside = format!(".place.set-aside-{id}-1-1");
    assert_eq!(says(&layout, &aside).unwrap(), "of others");
    let events = events(&stage, id).await;
    let forced = events.iter().filter_map(|event| match event {
        Event::StepForced(forced) => Some(forced.reason.as_str()),
        _ => None,
    });
    assert_eq!(forced.collect::<Vec<_>>(), ["it is old"]);
    let told = events.iter().find_map(|event| match event {
        Event::OutputCaptured(output) => Some(output.captured.text.to_string()),
        _ => None,
    });
    assert!(
        told.unwrap().contains(&aside),
        "the outcome names where it is"
    );
    assert_sound(&stage).await;
    let (_, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(says(&layout, "place").unwrap(), "of others");
    assert_eq!(says(&layout, &aside), None);
    assert!(
        !layout.state.join("set-aside").exists(),
        "nothing is left of it"
    );
}

/// The agent dies with the place cleared: what was set aside is found again, whichever way it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_is_not_lost_by_a_cut() {
    for (effect, back) in [(false, false), (true, false), (false, true), (true, true)] {
        let stage = Stage::new(&["a"]).await;
        let layout = stage.world.host("a").layout.clone();
        let id = blocked(&stage, "of others").await;
        let dies = Fault::AgentDies { effect };
        stage.world.host("a").befall(dies, Line::Breaks);
        let outcome = force(&stage, id).await.unwrap();
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        assert_eq!(says(&layout, "place").unwrap(), "made by s1");
        if back {
            stage
                .world
                .host("a")
                .befall(Fault::AgentDies { effect }, Line::Breaks);
        }
        let (_, outcome) = stage.roll_back(id).await.unwrap();
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        assert_eq!(says(&layout, "place").unwrap(), "of others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_into_the_place_since_is_not_overwritten_either() {
    let stage = Stage::new(&["a"]).await;
    let layout = stage.world.host("a").layout.clone();
    let id = blocked(&stage, "of others").await;
    force(&stage, id).await.unwrap();
    put(&layout, "place", "of somebody else again");
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(says(&layout, "place").unwrap(), "of somebody else again");
    let aside = format!(".place.set-aside-{id}-1-1");
    assert_eq!(says(&layout, &aside).unwrap(), "of others");
    let told = events(&stage, undo)
        .await
        .into_iter()
        .any(|event| match event {
            Event::OutputCaptured(output) => {
                output.captured.text.to_string().contains("stays set aside")
            }
            _ => false,
        });
    assert!(told);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_known_to_be_blocked_is_forced_and_only_by_kinds_that_can() {
    let stage = Stage::new(&["a"]).await;
    let missing = step(0, "a", &[], Deed::FailWithout("key".to_owned()));
    let (id, _) = stage.perform(vec![missing]).await;
    let refused = force(&stage, id).await;
    assert!(
        matches!(refused, Err(Error::Unblocked(of)) if of == id),
        "{refused:?}"
    );
    stage.world.host("a").signal("key");
    stage.resume(id).await.unwrap();
    // A kind that sets nothing aside says so, and nothing else is done.
    stage
        .world
        .host("a")
        .befall(Fault::AgentDies { effect: false }, Line::Breaks);
    let foreign = step(0, "a", &[], Deed::Foreign("gone".to_owned()));
    let (id, outcome) = stage.perform(vec![foreign]).await;
    assert!(matches!(outcome, Outcome::Stuck(_)), "{outcome:?}");
    let Outcome::Failed { failures, .. } = force(&stage, id).await.unwrap() else {
        panic!("it was forced");
    };
    assert_eq!(failures[0].1.message, "it sets nothing aside");
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_told_from_what_was_cut() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    put(&host.layout, "place", "of others");
    host.befall(Fault::AgentDies { effect: false }, Line::Breaks);
    let (id, outcome) = stage.perform(vec![step(0, "a", &[], make())]).await;
    let Outcome::Stuck(reason) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reason, "step 0 on a: drift: place says of others");
    let operation = stage.operation(id).await;
    let drifted = matches!(&operation.steps[0].status, StepStatus::Drifted { what } if what == "place says of others");
    assert!(drifted, "{:?}", operation.steps[0].status);
    // Looked at again, it is the same; gone, it goes on.
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Stuck(_)), "{outcome:?}");
    let outcome = force(&stage, id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(says(&host.layout, "place").unwrap(), "made by s0");
    assert_sound(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_taken_over_and_never_undone() {
    let stage = Stage::new(&["a"]).await;
    let layout = stage.world.host("a").layout.clone();
    let id = blocked(&stage, "of others").await;
    let before = stage.log.head().await.unwrap().seq;
    let refused = adopt(&stage, id).await;
    let why = matches!(
        &refused,
        Err(Error::Unfit(Unfit::Refused(plan, failure)))
            if plan.index == StepIndex(1) && failure.message.contains("is not wanted (place says of others)")
    );
    assert!(why, "{refused:?}");
    assert_eq!(
        stage.log.head().await.unwrap().seq,
        before,
        "nothing was recorded"
    );
    put(&layout, "place", "wanted");
    assert_eq!(adopt(&stage, id).await.unwrap(), 1);
    let operation = stage.operation(id).await;
    assert_eq!(operation.steps[1].status.label(), "adopted");
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(
        stage.notes("a").last().unwrap(),
        "s2 after wanted",
        "later steps have its output"
    );
    let operation = stage.operation(id).await;
    let StepStatus::Succeeded { done, .. } = &operation.steps[1].status else {
        panic!();
    };
    assert!(!done.changed);
    let plan = undo::plan(&operation);
    assert_eq!(plan.steps.len(), 2);
    assert_eq!(plan.kept.len(), 1);
    let (_, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(says(&layout, "place").unwrap(), "wanted");
    assert_sound(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_failed_or_is_in_doubt_is_taken_over() {
    let stage = Stage::new(&["a"]).await;
    let id = blocked(&stage, "wanted").await;
    let engine = stage.engine();
    let wanted = |index: u32| BTreeSet::from([StepIndex(index)]);
    for (index, status) in [(0, "succeeded"), (2, "pending")] {
        let refused = engine.adopt(id, &wanted(index), "").await;
        let standing = matches!(&refused, Err(Error::Unfit(Unfit::Standing { status: found, .. })) if *found == status);
        assert!(standing, "{refused:?}");
    }
    let refused = engine.adopt(id, &wanted(9), "").await;
    assert!(
        matches!(refused, Err(Error::Unfit(Unfit::Missing(_)))),
        "{refused:?}"
    );
    stage.world.host("a").set_down(true);
    let refused = engine.adopt(id, &wanted(1), "").await;
    assert!(
        matches!(refused, Err(Error::Unfit(Unfit::Host { .. }))),
        "{refused:?}"
    );
    assert_eq!(stage.status(id).await, OperationStatus::Failed);
    stage.world.host("a").set_down(false);
    engine.adopt(id, &wanted(1), "").await.unwrap();
    let refused = engine.adopt(id, &BTreeSet::new(), "").await;
    assert!(
        matches!(refused, Err(Error::Unfit(Unfit::None))),
        "{refused:?}"
    );
}
