//! Operations that are given up: nothing is done on any host, and what they claimed is free.

use std::sync::atomic::Ordering;

use tallybook::engine::{self, Error, Holds, Outcome};
use tallybook::log::verify;
use tallybook_events::ids::OperationId;
use tallybook_replay::operation::OperationStatus;

use crate::deed::Deed;
use crate::stage::{Stage, step};

/// An operation of which one step failed behind one that was done.
async fn failed(stage: &Stage) -> OperationId {
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "a", &[0], Deed::FailWithout("key".to_owned())),
    ];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    id
}

async fn abandon(stage: &Stage, id: OperationId) -> Result<OperationStatus, Error> {
    let operation = engine::abandon(
        &stage.log,
        id,
        "the host is scrapped".to_owned(),
        Holds::Here,
    )
    .await?;
    Ok(operation.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_claims_nothing_and_can_still_be_taken_back() {
    let stage = Stage::new(&["a"]).await;
    let id = failed(&stage).await;
    assert!(stage.claimed().await);
    let opened = stage.world.host("a").opened.load(Ordering::SeqCst);
    assert_eq!(
        abandon(&stage, id).await.unwrap(),
        OperationStatus::Abandoned
    );
    assert!(!stage.claimed().await);
    assert_eq!(stage.status(id).await, OperationStatus::Abandoned);
    let reason = stage.operation(id).await.reason.unwrap();
    assert_eq!(reason, "the host is scrapped");
    let since = stage.world.host("a").opened.load(Ordering::SeqCst);
    assert_eq!(since, opened, "no host was asked");
    assert!(matches!(stage.resume(id).await, Err(Error::Final { .. })));
    assert!(matches!(
        abandon(&stage, id).await,
        Err(Error::Final { .. })
    ));
    // Others go on where it stood, and it can be taken back all the same.
    let (_, outcome) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    stage.world.host("a").signal("key");
    let (_, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_is_given_up_leaves_the_operation_as_it_was() {
    let stage = Stage::new(&["a"]).await;
    let id = failed(&stage).await;
    stage.world.host("a").set_down(true);
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Unreachable(_)), "{outcome:?}");
    assert_eq!(stage.status(id).await, OperationStatus::RollingBack);
    let refused = abandon(&stage, id).await;
    assert!(matches!(refused, Err(Error::RollingBack { by, .. }) if by == undo));
    assert_eq!(stage.log.taken_back_by(id).await.unwrap(), Some(undo));
    abandon(&stage, undo).await.unwrap();
    assert_eq!(stage.log.taken_back_by(id).await.unwrap(), None);
    assert_eq!(stage.status(id).await, OperationStatus::Failed);
    assert_eq!(stage.operation(id).await.status, OperationStatus::Failed);
    assert!(stage.claimed().await, "by the first one again");
    stage.world.host("a").set_down(false);
    let resumed = stage.resume(id).await.unwrap();
    assert!(matches!(resumed, Outcome::Failed { .. }), "{resumed:?}");
    stage.world.host("a").signal("key");
    let (_, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert!(!stage.claimed().await);
}

/// One that had succeeded is done again, and not open.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_of_what_had_succeeded_is_given_up() {
    let stage = Stage::new(&["a"]).await;
    let (id, _) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    stage.world.host("a").set_down(true);
    let (undo, _) = stage.roll_back(id).await.unwrap();
    assert_eq!(stage.status(id).await, OperationStatus::RollingBack);
    abandon(&stage, undo).await.unwrap();
    assert_eq!(stage.status(id).await, OperationStatus::Succeeded);
    assert!(!stage.claimed().await);
    let state = stage.log.state().await.unwrap();
    assert!(!state.operations.contains_key(&id), "it is over");
    // What the projections keep is the same.
    let copy = stage.beside(stage.copied()).await;
    assert_eq!(copy.log.state().await.unwrap().operations, state.operations);
    assert_eq!(copy.status(id).await, OperationStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_carries_out_is_not_given_up() {
    let stage = Stage::new(&["a"]).await;
    let id = failed(&stage).await;
    let engine = stage.engine();
    engine.hold(id).unwrap();
    assert!(matches!(abandon(&stage, id).await, Err(Error::Runner(_))));
    drop(engine);
    abandon(&stage, id).await.unwrap();
}

/// What its steps recorded is not so any more: to go on would count as done what was undone.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_is_given_up_half_way_gives_the_operation_up_too() {
    let stage = Stage::new(&["a", "b"]).await;
    let a = stage.world.host("a");
    a.signal("key");
    let plan = vec![
        step(0, "a", &[], Deed::FailWithout("key".to_owned())),
        step(1, "b", &[0], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    std::fs::remove_file(a.layout.state.join("key")).unwrap();
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert_eq!(stage.notes("b"), ["s1", "undo s1: made s1"]);
    abandon(&stage, undo).await.unwrap();
    let copy = stage.beside(stage.copied()).await;
    for stage in [&stage, &copy] {
        assert_eq!(stage.status(id).await, OperationStatus::Abandoned);
        assert_eq!(stage.status(undo).await, OperationStatus::Abandoned);
        let operation = stage.operation(id).await;
        assert_eq!(operation.status, OperationStatus::Abandoned);
        let reason = operation.reason.unwrap();
        assert!(reason.contains("began to take it back"), "{reason}");
        assert!(!stage.claimed().await);
    }
    assert!(matches!(stage.resume(id).await, Err(Error::Final { .. })));
    a.signal("key");
    let (_, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
    assert_sound(&stage).await;
}

/// The state that is kept is the one that all events fold to.
async fn assert_sound(stage: &Stage) {
    let copy = stage.copied();
    let (report, mut state) = verify::journal(copy.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    state.forget_past();
    assert_eq!(stage.log.state().await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stood_before_is_the_same_however_it_is_folded() {
    let stage = Stage::new(&["a"]).await;
    let (id, _) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    stage.world.host("a").set_down(true);
    let (undo, _) = stage.roll_back(id).await.unwrap();
    assert_sound(&stage).await;
    abandon(&stage, undo).await.unwrap();
    assert_sound(&stage).await;
    // Nobody remembers by now what it was before.
    let later = stage.beside(stage.copied()).await;
    later.roll_back(id).await.unwrap();
    assert_eq!(later.status(id).await, OperationStatus::RollingBack);
    assert_sound(&later).await;
}

/// A host that took nothing of an undo has undone nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_was_refused_as_a_whole_has_undone_nothing() {
    let stage = Stage::new(&["a"]).await;
    let (id, _) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    let layout = &stage.world.host("a").layout;
    let log = stage.log.head().await.unwrap().log.unwrap();
    // Its fence can't be read, so it refuses every batch.
    std::fs::write(tallybook_agent::fence::path(layout, log), "damaged").unwrap();
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert_eq!(stage.operation(undo).await.steps[0].attempts.0, 1);
    abandon(&stage, undo).await.unwrap();
    assert_eq!(stage.status(id).await, OperationStatus::Succeeded);
    assert_sound(&stage).await;
}
