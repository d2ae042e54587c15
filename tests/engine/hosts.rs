//! Hosts that can't be reached, or answer slowly: the others go on, and the right one is named.

use tallybook::engine::Outcome;
use tallybook_events::ids::Attempt;
use tallybook_replay::operation::OperationStatus;

use crate::deed::Deed;
use crate::stage::{Stage, receive, step, within};
use crate::world::{Fault, Line};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_is_gone_on_with() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.world.host("a").set_down(true);
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "b", &[], Deed::Note),
        step(2, "b", &[0], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Unreachable(hosts) = outcome else {
        panic!("{outcome:?}");
    };
    let names: Vec<&str> = hosts.keys().map(|host| host.as_str()).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(stage.notes("b"), ["s1"]);
    assert_eq!(stage.operation(id).await.steps[0].attempts, Attempt(0));
    assert_eq!(stage.status(id).await, OperationStatus::Interrupted);
    stage.world.host("a").set_down(false);
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("b"), ["s1", "s2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sending_end_is_named_when_it_is_the_one_that_is_gone() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.world.host("a").set_down(true);
    let plan = vec![receive(0, "b", "a", &[]), step(1, "b", &[], Deed::Note)];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Unreachable(hosts) = outcome else {
        panic!("{outcome:?}");
    };
    let names: Vec<&str> = hosts.keys().map(|host| host.as_str()).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(stage.notes("b"), ["s1"]);
    assert_eq!(stage.operation(id).await.steps[0].attempts, Attempt(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_takes_long_holds_up_no_other_host() {
    let stage = Stage::new(&["a", "b"]).await;
    let host = stage.world.host("a");
    host.befall(Fault::RunLost, Line::FallsSilent);
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "b", &[], Deed::Note),
        step(2, "b", &[1], Deed::Note),
    ];
    let engine = stage.engine();
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    within(async { host.hits.lock().await.recv().await })
        .await
        .unwrap();
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    // The next run has to look at step 0, and the host takes for ever to answer.
    host.set_slow(true);
    stage.world.host("b").signal("any");
    let engine = stage.engine();
    let run = tokio::spawn(async move { engine.resume(id, tallybook::engine::Once::Ask).await });
    stage
        .until(|stage| stage.notes("b").contains(&"s2".to_owned()))
        .await;
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Interrupted(_)), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_elsewhere_hides_no_host_that_can_not_be_reached() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.world.host("a").set_down(true);
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "b", &[], Deed::FailWithout("disk".to_owned())),
    ];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Failed {
        failures,
        unreachable,
        enough: None,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(failures.len(), 1);
    let names: Vec<&str> = unreachable.keys().map(|host| host.as_str()).collect();
    assert_eq!(names, ["a"]);
    let reason = stage.operation(id).await.reason.unwrap();
    assert!(reason.contains("can't reach a"), "{reason}");
}
