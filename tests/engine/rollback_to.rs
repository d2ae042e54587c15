//! Taking everything back since a point: one operation, each undone once, resumable, given up, and never half said.

use tallybook::engine::{self, Error, Outcome};
use tallybook::log::{self, Refusal, verify};
use tallybook_events::ids::{OperationId, Seq, StepIndex};
use tallybook_events::step::PlannedStep;
use tallybook_replay::operation::OperationStatus;

use crate::deed::Deed;
use crate::stage::{Stage, step};

async fn head(stage: &Stage) -> Seq {
    stage.log.head().await.unwrap().seq
}

/// The state that is kept is the one that all events fold to, and nothing is wrong with those.
async fn assert_sound(stage: &Stage) {
    let copy = stage.copied();
    let (report, mut state) = verify::journal(copy.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    state.forget_past();
    assert_eq!(stage.log.state().await.unwrap(), state);
}

/// A step that notes `sNAME`, each behind the one before it.
fn named(name: u32, index: u32, host: &str, deed: Deed) -> PlannedStep {
    let after: Vec<StepIndex> = index.checked_sub(1).map(StepIndex).into_iter().collect();
    PlannedStep {
        index: StepIndex(index),
        after,
        ..step(name, host, &[], deed)
    }
}

/// Three that are done one after the other: on `a`, on `b` and `a`, on `b`. The undo of the second one's step on `a` needs a key.
async fn three(stage: &Stage) -> [OperationId; 3] {
    stage.world.host("a").signal("key");
    let mut ids = Vec::new();
    let keyed = Deed::FailWithout("key".to_owned());
    for plan in [
        vec![named(0, 0, "a", Deed::Note)],
        vec![named(1, 0, "b", Deed::Note), named(2, 1, "a", keyed)],
        vec![named(3, 0, "b", Deed::Note)],
    ] {
        let (id, outcome) = stage.perform(plan).await;
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        ids.push(id);
    }
    ids.try_into().unwrap()
}

fn lose_key(stage: &Stage) {
    let key = stage.world.host("a").layout.state.join("key");
    std::fs::remove_file(key).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_one_operation_and_goes_from_the_newest_to_the_oldest() {
    let stage = Stage::new(&["a", "b"]).await;
    let (before, _) = stage.perform(vec![named(9, 0, "a", Deed::Note)]).await;
    let to = head(&stage).await;
    let ids = three(&stage).await;
    let (undo, outcome) = stage.back_to(to).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(
        stage.notes("a")[3..],
        ["undo s2: made s2", "undo s0: made s0"]
    );
    assert_eq!(
        stage.notes("b")[2..],
        ["undo s3: made s3", "undo s1: made s1"]
    );
    for id in ids {
        assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
        let reason = stage.operation(id).await.reason.unwrap();
        assert_eq!(reason, format!("rolled back by {}", undo.short()));
    }
    assert_eq!(stage.status(before).await, OperationStatus::Succeeded);
    assert_eq!(stage.status(undo).await, OperationStatus::Succeeded);
    assert!(!stage.claimed().await);
    assert_sound(&stage).await;
    // Once more there is nothing to do.
    let (again, outcome) = stage.back_to(to).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.operation(again).await.steps.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_way_it_is_resumed_and_nobody_else_takes_any_of_it_back() {
    let stage = Stage::new(&["a", "b"]).await;
    let to = head(&stage).await;
    let ids = three(&stage).await;
    lose_key(&stage);
    let (undo, outcome) = stage.back_to(to).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    for id in ids {
        assert_eq!(stage.status(id).await, OperationStatus::RollingBack);
        assert_eq!(stage.log.taken_back_by(id).await.unwrap(), Some(undo));
        let single = stage.roll_back(id).await;
        assert!(
            matches!(&single, Err(Error::RollingBack { by, .. }) if *by == undo),
            "{single:?}"
        );
        let resumed = stage.resume(id).await;
        assert!(
            matches!(&resumed, Err(Error::RollingBack { by, .. }) if *by == undo),
            "{resumed:?}"
        );
    }
    assert!(stage.claimed().await);
    assert_sound(&stage).await;
    stage.world.host("a").signal("key");
    let outcome = stage.resume(undo).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let undone = |notes: Vec<String>| notes.iter().filter(|note| note.starts_with("undo")).count();
    assert_eq!(undone(stage.notes("a")), 2);
    assert_eq!(undone(stage.notes("b")), 2);
    for id in ids {
        assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
    }
    assert_sound(&stage).await;
}

/// Of each it is said what became of it: what was not touched stands as before, what was undone in part is given up as well.
#[tokio::test(flavor = "multi_thread")]
async fn given_up_half_way_each_stands_where_that_left_it() {
    let stage = Stage::new(&["a", "b"]).await;
    let to = head(&stage).await;
    let [first, second, third] = three(&stage).await;
    lose_key(&stage);
    let (undo, _) = stage.back_to(to).await.unwrap();
    engine::abandon(&stage.log, undo, "not now".to_owned(), engine::Holds::Here)
        .await
        .unwrap();
    let copy = stage.beside(stage.copied()).await;
    for stage in [&stage, &copy] {
        assert_eq!(
            stage.status(first).await,
            OperationStatus::Succeeded,
            "it was not touched"
        );
        assert_eq!(stage.status(second).await, OperationStatus::Abandoned);
        assert_eq!(stage.status(third).await, OperationStatus::Abandoned);
        assert_eq!(stage.status(undo).await, OperationStatus::Abandoned);
        assert!(!stage.claimed().await);
    }
    assert_sound(&stage).await;
    stage.world.host("a").signal("key");
    let (_, outcome) = stage.back_to(to).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    for id in [first, second, third] {
        assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
    }
    assert_sound(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_is_taken_over_and_what_runs_is_not() {
    let stage = Stage::new(&["a"]).await;
    let to = head(&stage).await;
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "a", &[0], Deed::FailWithout("key".to_owned())),
    ];
    let (failed, _) = stage.perform(plan).await;
    let holder = stage.engine();
    holder.hold(failed).unwrap();
    let refused = stage.back_to(to).await;
    assert!(matches!(refused, Err(Error::Runner(_))), "{refused:?}");
    drop(holder);
    stage.world.host("a").signal("key");
    let (_, outcome) = stage.back_to(to).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.status(failed).await, OperationStatus::RolledBack);
    assert_sound(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_holds_is_not_taken_from_them() {
    let stage = Stage::new(&["a"]).await;
    stage.world.host("a").signal("key");
    let older = step(0, "a", &[], Deed::FailWithout("key".to_owned()));
    let (older, _) = stage.perform(vec![older]).await;
    let to = head(&stage).await;
    let (newer, _) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    lose_key(&stage);
    let (undo, outcome) = stage.roll_back(older).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    let refused = stage.back_to(to).await;
    let claimed = matches!(
        &refused,
        Err(Error::Log(log::Error::Refused(Refusal::Claimed { holder, .. }))) if *holder == undo
    );
    assert!(claimed, "{refused:?}");
    assert_eq!(stage.status(newer).await, OperationStatus::Succeeded);
}

/// What is planned knows all that was done; what was done since then is not left standing on what is taken away.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_since_it_was_planned_is_noticed() {
    let stage = Stage::new(&["a"]).await;
    let to = head(&stage).await;
    stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    let planned_at = head(&stage).await;
    stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
    let engine = stage.engine();
    let refused = stage.begin_back_to_planned(&engine, to, planned_at).await;
    let changed = matches!(
        &refused,
        Err(Error::Log(log::Error::Refused(Refusal::Changed { .. })))
    );
    assert!(changed, "{refused:?}");
}
