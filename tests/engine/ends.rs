//! How operations end: well, with failures, stopped, unplanned.

use tallybook::engine::{Error, Outcome};
use tallybook::log::{Condition, Draft};
use tallybook_events::event::OperationIntended;
use tallybook_events::ids::{Attempt, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::step::FailureClass;
use tallybook_replay::operation::{OperationStatus, StepStatus};

use crate::deed::Deed;
use crate::stage::{Stage, once, receive, step, subject, within};
use crate::world::{Fault, Line};

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_carried_out_once_and_in_order() {
    let stage = Stage::new(&["a", "b"]).await;
    let (id, outcome) = stage
        .perform(vec![
            step(0, "a", &[], Deed::Note),
            step(1, "a", &[0], Deed::Repeat(StepIndex(0))),
            step(2, "b", &[1], Deed::Repeat(StepIndex(1))),
            once(3, "a", &[2], Deed::Note),
        ])
        .await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("a"), ["s0", "s1 after made s0", "s3"]);
    assert_eq!(stage.notes("b"), ["s2 after made s1"]);
    let operation = stage.operation(id).await;
    assert_eq!(operation.status, OperationStatus::Succeeded);
    assert!(operation.steps.iter().all(|it| it.attempts == Attempt(1)));
    assert!(!stage.claimed().await);
    let again = stage.resume(id).await;
    assert!(matches!(again, Err(Error::Final { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_stops_what_depends_on_it_and_nothing_else() {
    let stage = Stage::new(&["a", "b"]).await;
    let plan = vec![
        step(0, "a", &[], Deed::FailWithout("disk".to_owned())),
        step(1, "a", &[0], Deed::Note),
        step(2, "a", &[], Deed::Note),
        step(3, "b", &[], Deed::Note),
        step(4, "b", &[3], Deed::Panic),
        step(5, "b", &[3], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Failed { failures, .. } = outcome else {
        panic!("{outcome:?}");
    };
    let failed: Vec<u32> = failures.iter().map(|(plan, _)| plan.index.0).collect();
    assert_eq!(failed, [0, 4]);
    assert!(failures[1].1.message.contains("panicked"), "{failures:?}");
    assert_eq!(stage.notes("a"), ["s2"]);
    assert_eq!(stage.notes("b"), ["s3", "s5"]);
    assert_eq!(stage.status(id).await, OperationStatus::Failed);
    // What was in the way is gone: only what is left is done.
    stage.world.host("a").signal("disk");
    let outcome = stage.resume(id).await.unwrap();
    assert!(
        matches!(outcome, Outcome::Failed { .. }),
        "4 still panics: {outcome:?}"
    );
    assert_eq!(stage.notes("a"), ["s2", "s0", "s1"]);
    assert_eq!(stage.notes("b"), ["s3", "s5"]);
    assert!(stage.claimed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_what_can_end_and_begins_nothing() {
    let stage = Stage::new(&["a", "b"]).await;
    // A host carries out one chain at a time: the others wait when the stop comes.
    let mut plan: Vec<_> = (0..6)
        .map(|index| step(index, "a", &[], Deed::Obey("go".to_owned())))
        .collect();
    plan.push(step(6, "b", &[], Deed::Note));
    plan.push(step(7, "b", &[0, 6], Deed::Note));
    let engine = stage.engine();
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| stage.notes("b") == ["s6"]).await;
    let begun = |stage: &Stage| {
        let notices = stage.notices.lock().unwrap();
        let started = |it: &&tallybook::engine::watch::Notice| {
            matches!(it, tallybook::engine::watch::Notice::Started { .. })
        };
        notices.iter().filter(started).count()
    };
    stage.until(|stage| begun(stage) >= 2).await;
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Interrupted(_)), "{outcome:?}");
    let operation = stage.operation(id).await;
    assert_eq!(operation.status, OperationStatus::Interrupted);
    let started: u32 = operation.steps.iter().map(|it| it.attempts.0).sum();
    assert_eq!(started, 2, "one step on each");
    assert!(
        !operation
            .steps
            .iter()
            .any(|it| it.status == StepStatus::Started)
    );
    stage.stop.send_replace(false);
    stage.world.host("a").signal("go");
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("a").len(), 6);
    assert_eq!(stage.notes("b"), ["s6", "s7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_told_at_once_and_does_not_wait_for_a_host_that_does_not_answer() {
    let stage = Stage::new(&["a"]).await;
    stage.world.host("a").set_slow(true);
    let engine = stage.engine();
    let id = stage
        .begin(&engine, vec![step(0, "a", &[], Deed::Note)])
        .await;
    let run = tokio::spawn(async move { engine.run(id).await });
    let opened = |stage: &Stage| {
        stage
            .world
            .host("a")
            .opened
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    stage.until(|stage| opened(stage) == 1).await;
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Interrupted(_)), "{outcome:?}");
    assert_eq!(stage.operation(id).await.steps[0].attempts, Attempt(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_without_a_plan_never_succeeds_and_can_be_closed() {
    let stage = Stage::new(&["a"]).await;
    let id = tallybook::engine::new_operation();
    let intended = OperationIntended {
        intent: Intent::HostPrepare { hosts: Vec::new() },
        inventory: Seq::NONE,
        claims: vec![subject()],
    };
    let draft = Draft::new(subject(), intended).unwrap().operation(id, None);
    stage
        .log
        .append(vec![draft], Condition::none())
        .await
        .unwrap();
    let run = stage.engine().run(id).await;
    assert!(matches!(run, Err(Error::Unplanned(_))), "{run:?}");
    let resumed = stage.resume(id).await;
    assert!(matches!(resumed, Err(Error::Unplanned(_))), "{resumed:?}");
    assert_eq!(stage.status(id).await, OperationStatus::Intended);
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
    assert_eq!(stage.status(undo).await, OperationStatus::Succeeded);
    assert!(!stage.claimed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_takes_back_nothing_that_was_told_before() {
    let stage = Stage::new(&["a", "b"]).await;
    stage
        .world
        .host("a")
        .befall(Fault::RefuseAfterFinished, Line::Breaks);
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "a", &[0], Deed::Note),
        step(2, "b", &[], Deed::Note),
        step(3, "b", &[2], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Failed { failures, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(failures.len(), 1);
    assert_eq!(
        failures[0].0.host.as_str(),
        "a",
        "the host that refused is named"
    );
    assert_eq!(failures[0].1.class, FailureClass::DiskFull);
    assert_eq!(stage.notes("b"), ["s2", "s3"], "another host goes on");
    let operation = stage.operation(id).await;
    assert!(matches!(
        operation.steps[0].status,
        StepStatus::Succeeded { .. }
    ));
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(
        stage.notes("a").len(),
        2,
        "each once: {:?}",
        stage.notes("a")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_through_and_its_dead_sender_leaves_it_resumable() {
    let stage = Stage::new(&["a", "b"]).await;
    let plan = || vec![step(0, "a", &[], Deed::Note), receive(1, "b", "a", &[0])];
    let (_, outcome) = stage.perform(plan()).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    stage
        .world
        .host("a")
        .befall(Fault::SenderDies, Line::Breaks);
    let (id, outcome) = stage.perform(plan()).await;
    let Outcome::Interrupted(reason) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(
        reason.contains("on b: ") && reason.contains("line to a"),
        "{reason}"
    );
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("b"), ["s1", "s1"]);
}
