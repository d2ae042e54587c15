//! Transfers between hosts: many from one, one that is stuck, one that is stopped.

use std::sync::atomic::Ordering;

use tallybook::engine::{Engine, Outcome};
use tallybook_events::ids::OperationId;
use tallybook_replay::operation::StepStatus;
use tokio::task::JoinHandle;

use crate::deed::{Deed, FLOODED};
use crate::stage::{Stage, receive, with_peer, within};

fn spawn(engine: Engine, id: OperationId) -> JoinHandle<Outcome> {
    tokio::spawn(async move { engine.run(id).await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_sends_to_many_and_is_never_taken_for_gone() {
    let receivers: Vec<String> = (0..12).map(|number| format!("b{number}")).collect();
    let mut names: Vec<&str> = receivers.iter().map(String::as_str).collect();
    names.push("a");
    // As many as a session has room for, and fewer than are sent at once: others may have taken the rest.
    for slots in [8, 2] {
        let stage = Stage::new(&names).await;
        stage.world.host("a").set_slots(slots);
        let plan = (0..12).map(|index| receive(index, &receivers[index as usize], "a", &[]));
        let (_, outcome) = stage.perform(plan.collect()).await;
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        for (index, host) in receivers.iter().enumerate() {
            assert_eq!(stage.notes(host), [format!("s{index}")]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_heard_while_neither_end_of_a_transfer_takes_anything() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.world.host("a").signal("deaf");
    let engine = stage.engine();
    let plan = vec![with_peer(0, "b", "a", &[], Deed::Flood)];
    let id = stage.begin(&engine, plan).await;
    let run = spawn(engine, id);
    let mut seen = (0, 0);
    within(async {
        // Until it is full from end to end.
        while seen.1 < 50 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            let now = FLOODED.load(Ordering::SeqCst);
            seen = if now > 0 && now == seen.0 {
                (now, seen.1 + 1)
            } else {
                (now, 0)
            };
        }
    })
    .await;
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap();
    assert!(matches!(outcome, Outcome::Interrupted(_)), "{outcome:?}");
    let operation = stage.operation(id).await;
    assert!(
        matches!(operation.steps[0].status, StepStatus::Failed(_)),
        "told by its host: {:?}",
        operation.steps[0].status
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_was_stopped_halfway_is_gone_on_with() {
    let stage = Stage::new(&["a", "b"]).await;
    let host = stage.world.host("a");
    host.signal("held");
    let engine = stage.engine();
    let id = stage.begin(&engine, vec![receive(0, "b", "a", &[])]).await;
    let run = spawn(engine, id);
    stage.until(|stage| stage.notes("a") == ["held"]).await;
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap();
    assert!(matches!(outcome, Outcome::Interrupted(_)), "{outcome:?}");
    assert!(stage.notes("b").is_empty());
    stage.stop.send_replace(false);
    host.signal("go");
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("b"), ["s0"]);
}
