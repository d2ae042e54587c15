//! Two processes and one operation: one of them carries it out, and a dead one stops nobody.

use tallybook::engine::{Error, Outcome, runner_lock};
use tallybook_replay::operation::OperationStatus;

use crate::deed::Deed;
use crate::stage::{Stage, step, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_neither_resumes_nor_takes_back_until_the_first_is_gone() {
    let stage = Stage::new(&["a"]).await;
    let engine = stage.engine();
    let plan = vec![
        step(0, "a", &[], Deed::Await("end".to_owned())),
        step(1, "a", &[0], Deed::Note),
    ];
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| stage.notes("a") == ["begin s0"]).await;
    let before = stage.log.head().await.unwrap().seq;
    let held =
        |error: &Error| matches!(error, Error::Runner(runner_lock::Error::Held(of)) if *of == id);
    assert!(held(&stage.resume(id).await.unwrap_err()));
    assert!(held(&stage.roll_back(id).await.unwrap_err()));
    assert!(held(&stage.engine().run(id).await.unwrap_err()));
    assert_eq!(
        stage.log.head().await.unwrap().seq,
        before,
        "nothing was recorded"
    );
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    stage.world.host("a").signal("end");
    // Two at once: one goes on at once where the dead one was, the other is refused or finds it done.
    let (one, other) = within(async { tokio::join!(stage.resume(id), stage.resume(id)) }).await;
    let (won, lost): (Vec<_>, Vec<_>) = [one, other].into_iter().partition(Result::is_ok);
    assert!(matches!(won[..], [Ok(Outcome::Succeeded)]), "{won:?}");
    let refused = |error: &Error| held(error) || matches!(error, Error::Final { .. });
    assert!(
        matches!(&lost[..], [Err(error)] if refused(error)),
        "{lost:?}"
    );
    assert_eq!(stage.notes("a"), ["begin s0", "s0", "s1"]);
    assert_eq!(stage.status(id).await, OperationStatus::Succeeded);
}
