//! What `verify` would condemn for ever is refused before it is written, and the refusal says why.

use tallybook::log::{Appended, Condition, Draft, Error, Log, Open, Refusal, verify};
use tallybook_events::event::{
    Event, LogCreated, OperationFailed, OperationIntended, OperationPlanned, OperationResumed,
    OperationRolledBack, OperationSucceeded, StepStarted, StepUnstarted,
};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Hash, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;

fn draft(event: impl Into<Event>) -> Draft {
    Draft::new(Subject::Cloud, event).unwrap()
}

fn intended(id: OperationId) -> Draft {
    let intended = OperationIntended {
        intent: Intent::HostPrepare { hosts: vec![] },
        inventory: Seq::NONE,
        claims: vec![],
    };
    draft(intended).operation(id, None)
}

async fn append(log: &Log, drafts: Vec<Draft>) -> Result<Vec<Appended>, Error> {
    log.append(drafts, Condition::none()).await
}

fn started() -> StepStarted {
    StepStarted {
        kind: "container.start".to_owned(),
        journal: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_verify_would_condemn_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let log = Log::open(store.path(), Open::Create, |_| {}).await.unwrap();
    let id = samples::operation(1);
    let planned = OperationPlanned {
        steps: vec![samples::planned(0, &[])],
    };
    let begun = vec![intended(id), draft(planned.clone()).operation(id, None)];
    let at = append(&log, begun).await.unwrap()[0];
    let claim = ClaimRef {
        seq: at.seq,
        hash: at.hash,
    };
    let of = |event: Event| draft(event).operation(id, Some(claim));
    let step = |event: Event, attempt| of(event).step(StepIndex(0), Attempt(attempt));
    let why = || "said so".to_owned();
    let mut caused = of(OperationResumed {}.into());
    caused.cause = Seq(99);
    let other_hash = ClaimRef {
        hash: Hash([1; 32]),
        ..claim
    };
    let refused: Vec<(&str, Vec<Draft>)> = vec![
        (
            "log.created",
            vec![draft(LogCreated {
                tool_version: why(),
            })],
        ),
        ("caused it", vec![caused]),
        (
            "claim",
            vec![draft(OperationResumed {}).operation(id, Some(other_hash))],
        ),
        (
            "claim",
            vec![draft(OperationResumed {}).operation(id, None)],
        ),
        ("twice", vec![intended(id)]),
        ("twice", vec![of(planned.into())]),
        (
            "never intended",
            vec![draft(OperationResumed {}).operation(samples::operation(9), Some(claim))],
        ),
        (
            "pending",
            vec![step(StepUnstarted { why: why() }.into(), 1)],
        ),
        ("start 2", vec![step(started().into(), 2)]),
        (
            "started",
            vec![step(started().into(), 1), step(started().into(), 2)],
        ),
        (
            "it has 3",
            vec![of(OperationSucceeded { events: 9 }.into())],
        ),
        ("claim", vec![of(OperationRolledBack { by: id }.into())]),
        ("of which operation", vec![draft(started())]),
    ];
    for (said, drafts) in refused {
        let error = append(&log, drafts).await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused(Refusal::Malformed(what)) if what.contains(said)),
            "{said}: {error:?}"
        );
    }
    // A refusal in the middle of an append leaves nothing of it behind.
    append(&log, vec![step(started().into(), 1)]).await.unwrap();
    log.close().await;
    // Nor does it depend on what this process saw of the operation before.
    let log = Log::open(store.path(), Open::Existing, |_| {})
        .await
        .unwrap();
    assert!(append(&log, vec![step(started().into(), 2)]).await.is_err());
    append(&log, vec![step(StepUnstarted { why: why() }.into(), 1)])
        .await
        .unwrap();
    append(&log, vec![step(started().into(), 2)]).await.unwrap();
    append(&log, vec![of(OperationFailed { reason: why() }.into())])
        .await
        .unwrap();
    log.close().await;
    let (report, _) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!(report.head.seq, Seq(7));
}

/// An operation that goes on over many openings: every event names the one before it of its subject, and an operation that
/// ended long ago can be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_is_known_at_every_opening() {
    let store = tempfile::tempdir().unwrap();
    let id = samples::operation(1);
    let mut claim = None;
    for opening in 0..4 {
        let log = Log::open(store.path(), Open::Create, |_| {}).await.unwrap();
        let drafts = match opening {
            0 => vec![intended(id)],
            1 => vec![draft(OperationPlanned { steps: vec![] }).operation(id, claim)],
            2 => vec![draft(OperationSucceeded { events: 3 }).operation(id, claim)],
            _ => {
                // Far behind what the index sealed by then.
                for _ in 0..1100 {
                    let failed = vec![draft(tallybook_events::event::InventoryRecorded {
                        path: "cloud.toml".to_owned(),
                        hash: Hash::ZERO,
                        text: tallybook_events::ids::Blob(Vec::new()),
                    })];
                    append(&log, failed).await.unwrap();
                }
                log.settle().await.unwrap();
                let back = OperationIntended {
                    intent: Intent::Rollback { operation: id },
                    inventory: Seq::NONE,
                    claims: vec![],
                };
                vec![draft(back).operation(samples::operation(2), None)]
            }
        };
        let at = append(&log, drafts).await.unwrap()[0];
        claim = claim.or(Some(ClaimRef {
            seq: at.seq,
            hash: at.hash,
        }));
        log.close().await;
    }
    let log = Log::open(store.path(), Open::Existing, |_| {})
        .await
        .unwrap();
    let known = log.summary(id).await.unwrap().unwrap();
    assert_eq!(known.status.label(), "rolling back");
    log.close().await;
    let (report, mut state) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    // What the projections hold is what a fold gives.
    state.forget_past();
    let log = Log::open(store.path(), Open::Existing, |_| {})
        .await
        .unwrap();
    assert_eq!(log.state().await.unwrap(), state);
    log.close().await;
}
