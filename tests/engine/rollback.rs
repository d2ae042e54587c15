//! Taking operations back: in reverse, with what was reported, resumable, and only once.

use tallybook::engine::{Error, Outcome};
use tallybook_replay::operation::OperationStatus;

use crate::deed::Deed;
use crate::stage::{Stage, step};

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_in_reverse_with_what_was_reported() {
    let stage = Stage::new(&["a", "b"]).await;
    let plan = vec![
        step(0, "a", &[], Deed::Note),
        step(1, "a", &[0], Deed::Note),
        step(2, "b", &[1], Deed::Note),
        step(3, "a", &[2], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let (undo, outcome) = stage.roll_back(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let undone = ["undo s3: made s3", "undo s1: made s1", "undo s0: made s0"];
    assert_eq!(stage.notes("a")[3..], undone);
    assert_eq!(stage.notes("b"), ["s2", "undo s2: made s2"]);
    assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
    assert_eq!(stage.status(undo).await, OperationStatus::Succeeded);
    assert!(!stage.claimed().await);
    let resumed = stage.resume(id).await;
    assert!(matches!(resumed, Err(Error::Final { .. })), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_or_is_cut_short_is_resumed_and_no_second_one_is_begun() {
    for host_is_down in [false, true] {
        let stage = Stage::new(&["a", "b"]).await;
        let a = stage.world.host("a");
        a.signal("key");
        let plan = vec![
            step(0, "a", &[], Deed::FailWithout("key".to_owned())),
            step(1, "b", &[0], Deed::Note),
        ];
        let (id, outcome) = stage.perform(plan).await;
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        let key = a.layout.state.join("key");
        if host_is_down {
            a.set_down(true);
        } else {
            std::fs::remove_file(&key).unwrap();
        }
        let (undo, outcome) = stage.roll_back(id).await.unwrap();
        let expected = if host_is_down {
            OperationStatus::Interrupted
        } else {
            OperationStatus::Failed
        };
        assert_eq!(stage.status(undo).await, expected, "{outcome:?}");
        assert_eq!(stage.status(id).await, OperationStatus::RollingBack);
        assert!(stage.claimed().await);
        let second = stage.roll_back(id).await;
        assert!(
            matches!(&second, Err(Error::RollingBack { by, .. }) if *by == undo),
            "{second:?}"
        );
        let resumed = stage.resume(id).await;
        assert!(matches!(&resumed, Err(Error::RollingBack { by, .. }) if *by == undo));
        a.set_down(false);
        a.signal("key");
        let outcome = stage.resume(undo).await.unwrap();
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        assert_eq!(stage.notes("a"), ["s0", "undo s0: made s0"]);
        assert_eq!(stage.notes("b"), ["s1", "undo s1: made s1"]);
        assert_eq!(stage.status(id).await, OperationStatus::RolledBack);
        assert!(!stage.claimed().await);
    }
}
