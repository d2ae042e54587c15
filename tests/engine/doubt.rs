//! Steps in doubt: every place where a line is lost or a controller dies, and what the next look makes of it.

use std::time::Duration;

use tallybook::engine::watch::Notice;
use tallybook::engine::{Once, Outcome};
use tallybook_agent::protocol::Reply;
use tallybook_agent::receipts::Journal;
use tallybook_events::ids::{Attempt, StepIndex};
use tallybook_replay::operation::{OperationStatus, StepStatus};

use crate::deed::Deed;
use crate::stage::{Stage, once, step, within};
use crate::world::{Fault, Line};

const FAULTS: [Fault; 6] = [
    Fault::RunLost,
    Fault::RunLate,
    Fault::AgentDies { effect: false },
    Fault::AgentDies { effect: true },
    Fault::CutAtStarted,
    Fault::CutAtFinished,
];

/// How often the first step had to be started: again only where its effect was lost.
fn starts(fault: &Fault) -> u32 {
    match fault {
        Fault::RunLost | Fault::RunLate | Fault::AgentDies { effect: false } => 2,
        Fault::AgentDies { effect: true } | Fault::CutAtStarted | Fault::CutAtFinished => 1,
        Fault::RefuseAfterFinished | Fault::EndAtOnce | Fault::SenderDies => unreachable!(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_lost_anywhere_is_mended_in_the_same_run() {
    for fault in FAULTS {
        let stage = Stage::new(&["a"]).await;
        stage.world.host("a").befall(fault.clone(), Line::Breaks);
        let plan = vec![
            step(0, "a", &[], Deed::Note),
            step(1, "a", &[0], Deed::Note),
        ];
        let (id, outcome) = stage.perform(plan).await;
        assert!(
            matches!(outcome, Outcome::Succeeded),
            "{fault:?}: {outcome:?}"
        );
        assert_eq!(stage.notes("a"), ["s0", "s1"], "{fault:?}");
        let operation = stage.operation(id).await;
        assert_eq!(operation.steps[0].attempts.0, starts(&fault), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_anywhere_is_resumed_or_rolled_back() {
    for fault in FAULTS {
        for roll_back in [false, true] {
            let stage = Stage::new(&["a"]).await;
            let host = stage.world.host("a");
            host.befall(fault.clone(), Line::FallsSilent);
            let plan = vec![
                step(0, "a", &[], Deed::Note),
                step(1, "a", &[0], Deed::Note),
            ];
            let engine = stage.engine();
            let id = stage.begin(&engine, plan).await;
            let run = tokio::spawn(async move { engine.run(id).await });
            within(async { host.hits.lock().await.recv().await })
                .await
                .unwrap();
            run.abort();
            assert!(run.await.unwrap_err().is_cancelled());
            assert_eq!(stage.status(id).await, OperationStatus::Running);
            host.befall_always(None);
            if !roll_back {
                let outcome = stage.resume(id).await.unwrap();
                assert!(
                    matches!(outcome, Outcome::Succeeded),
                    "{fault:?}: {outcome:?}"
                );
                assert_eq!(stage.notes("a"), ["s0", "s1"], "{fault:?}");
                continue;
            }
            let (_, outcome) = stage.roll_back(id).await.unwrap();
            assert!(
                matches!(outcome, Outcome::Succeeded),
                "{fault:?}: {outcome:?}"
            );
            let notes = stage.notes("a");
            let undone = notes
                .iter()
                .filter(|note| note.starts_with("undo s0"))
                .count();
            assert_eq!(undone, 1, "{fault:?}: {notes:?}");
            assert_eq!(
                notes.last().map(|note| &note[..7]),
                Some("undo s0"),
                "{notes:?}"
            );
            assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_arrives_once_all_is_taken_back_does_nothing() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    host.befall(Fault::RunLate, Line::Breaks);
    let plan = vec![step(0, "a", &[], Deed::Note)];
    // Stopped between the look, which finds that it was never begun, and the next start.
    let stop = stage.stop.clone();
    let engine = stage.engine_watched(move |notice| {
        if matches!(notice, Notice::Resolved { .. }) {
            stop.send_replace(true);
        }
    });
    let id = stage.begin(&engine, plan).await;
    let outcome = within(engine.run(id)).await.unwrap();
    assert!(matches!(outcome, Outcome::Interrupted(_)), "{outcome:?}");
    drop(engine);
    stage.stop.send_replace(false);
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert!(
        stage.operation(undo).await.steps.is_empty(),
        "it never began"
    );
    let Reply::Refused(refused) = host.arrive() else {
        panic!()
    };
    assert!(refused.message.contains("given up"), "{refused:?}");
    assert_eq!(stage.notes("a"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_waits_for_what_a_dead_controller_left_running() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    let plan = vec![step(0, "a", &[], Deed::Await("end".to_owned()))];
    let engine = stage.engine();
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| stage.notes("a") == ["begin s0"]).await;
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    let roll_back = stage.roll_back(id);
    let let_it_end = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert_eq!(
            stage.notes("a"),
            ["begin s0"],
            "not undone while it is being done"
        );
        host.signal("end");
    };
    let (rolled_back, ()) = tokio::join!(roll_back, let_it_end);
    let (_, outcome) = rolled_back.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(
        stage.notes("a"),
        ["begin s0", "s0", "undo s0: nobody knows what"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_for_once_asks_and_there_are_ways_out() {
    for way_out in ["again", "roll back"] {
        let stage = Stage::new(&["a", "b"]).await;
        let host = stage.world.host("a");
        host.befall(Fault::AgentDies { effect: true }, Line::Breaks);
        let plan = vec![
            once(0, "a", &[], Deed::Blind),
            step(1, "a", &[0], Deed::Note),
            step(2, "b", &[], Deed::Note),
            step(3, "b", &[2], Deed::Note),
        ];
        let (id, outcome) = stage.perform(plan).await;
        let Outcome::Stuck(reason) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(
            reason.contains("step 0 on a") && reason.contains("no trace"),
            "{reason}"
        );
        assert_eq!(stage.notes("b"), ["s2", "s3"], "another host goes on");
        assert_eq!(stage.status(id).await, OperationStatus::Stuck);
        let outcome = stage.resume(id).await.unwrap();
        assert!(
            matches!(outcome, Outcome::Stuck(_)),
            "it is not guessed: {outcome:?}"
        );
        assert_eq!(stage.notes("a"), ["s0"]);
        if way_out == "again" {
            let outcome = within(stage.engine().resume(id, Once::Again))
                .await
                .unwrap();
            assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
            assert_eq!(stage.notes("a"), ["s0", "s0", "s1"]);
            assert_eq!(stage.operation(id).await.steps[0].attempts, Attempt(2));
        } else {
            let (_, outcome) = stage.roll_back(id).await.unwrap();
            assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
            assert_eq!(stage.notes("a"), ["s0", "undo s0: nobody knows what"]);
            assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_foreign_in_the_way_is_left_alone_until_it_is_gone() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    host.befall(Fault::AgentDies { effect: false }, Line::Breaks);
    let plan = vec![step(0, "a", &[], Deed::Foreign("gone".to_owned()))];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Stuck(_)), "{outcome:?}");
    assert!(stage.notes("a").is_empty());
    host.signal("gone");
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("a"), ["s0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_lets_a_step_end_is_given_up() {
    for fault in [
        Fault::RunLost,
        Fault::AgentDies { effect: false },
        Fault::EndAtOnce,
    ] {
        let stage = Stage::new(&["a", "b"]).await;
        stage.world.host("a").befall_always(Some(fault.clone()));
        let plan = vec![step(0, "a", &[], Deed::Note), step(1, "b", &[], Deed::Note)];
        let (id, outcome) = stage.perform(plan).await;
        let Outcome::Unreachable(hosts) = outcome else {
            panic!("{fault:?}: {outcome:?}");
        };
        assert!(hosts.keys().any(|host| host.as_str() == "a"), "{hosts:?}");
        assert_eq!(stage.notes("b"), ["s1"]);
        assert_eq!(stage.status(id).await, OperationStatus::Interrupted);
        let operation = stage.operation(id).await;
        assert!(
            operation.steps[0].attempts.0 <= 5,
            "{fault:?}: {operation:?}"
        );
        assert!(!matches!(
            operation.steps[0].status,
            StepStatus::Succeeded { .. }
        ));
        stage.world.host("a").befall_always(None);
        let outcome = stage.resume(id).await.unwrap();
        assert!(
            matches!(outcome, Outcome::Succeeded),
            "{fault:?}: {outcome:?}"
        );
        assert_eq!(stage.notes("a"), ["s0"]);
    }
}

fn waits_for(stage: &Stage, wanted: u32) -> bool {
    let notices = stage.notices.lock().unwrap();
    notices.iter().any(|notice| {
        matches!(notice, Notice::Waiting { step: Some(step), since_unix_us, .. }
            if *step == StepIndex(wanted) && *since_unix_us > 0)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_still_runs_behind_a_lost_line_is_waited_for_and_adopted() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    host.befall(Fault::CutAtStarted, Line::Breaks);
    let plan = vec![
        step(0, "a", &[], Deed::Await("end".to_owned())),
        step(1, "a", &[0], Deed::Note),
    ];
    let engine = stage.engine();
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| waits_for(stage, 0)).await;
    // Left, and taken up again while it still runs.
    stage.stop.send_replace(true);
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Interrupted(_)), "{outcome:?}");
    stage.stop.send_replace(false);
    stage.notices.lock().unwrap().clear();
    let engine = stage.engine();
    let run = tokio::spawn(async move { engine.resume(id, Once::Ask).await });
    stage.until(|stage| waits_for(stage, 0)).await;
    host.signal("end");
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("a"), ["begin s0", "s0", "s1"]);
    assert_eq!(stage.operation(id).await.steps[0].attempts, Attempt(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_stands_and_is_silent_is_a_lost_one() {
    for fault in [Fault::RunLost, Fault::CutAtStarted, Fault::CutAtFinished] {
        let stage = Stage::new(&["a"]).await;
        let host = stage.world.host("a");
        host.set_silence(Duration::from_millis(500));
        host.befall(fault.clone(), Line::FallsSilent);
        let (id, outcome) = stage.perform(vec![step(0, "a", &[], Deed::Note)]).await;
        assert!(
            matches!(outcome, Outcome::Succeeded),
            "{fault:?}: {outcome:?}"
        );
        assert_eq!(stage.notes("a"), ["s0"], "{fault:?}");
        let operation = stage.operation(id).await;
        assert_eq!(operation.steps[0].attempts.0, starts(&fault), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipts_journal_made_since_proves_nothing() {
    for is_once in [true, false] {
        let stage = Stage::new(&["a"]).await;
        let host = stage.world.host("a");
        host.befall(Fault::AgentDies { effect: true }, Line::FallsSilent);
        let plan = match is_once {
            true => once(0, "a", &[], Deed::Blind),
            false => step(0, "a", &[], Deed::Note),
        };
        let engine = stage.engine();
        let id = stage.begin(&engine, vec![plan]).await;
        let run = tokio::spawn(async move { engine.run(id).await });
        within(async { host.hits.lock().await.recv().await })
            .await
            .unwrap();
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        // The host loses its receipts, and another operation makes new ones.
        let log = stage.log.head().await.unwrap().log.unwrap();
        std::fs::remove_dir_all(host.layout.receipts(log)).unwrap();
        drop(Journal::open(&host.layout, log, &mut |_| {}).unwrap());
        let outcome = stage.resume(id).await.unwrap();
        match is_once {
            true => assert!(matches!(outcome, Outcome::Stuck(_)), "{outcome:?}"),
            false => assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}"),
        }
        assert_eq!(stage.notes("a"), ["s0"], "done once");
    }
}
