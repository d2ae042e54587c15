//! Who lacks what a host was shown can do nothing to any host, and is not tried again.

use std::time::Duration;

use tallybook::engine::{Error, Outcome};
use tallybook::log::recover::{Away, Recovery};
use tallybook::log::retention::Archiving;
use tallybook::log::{Condition, Draft};
use tallybook_agent::fence::{self, Standing, Verdict};
use tallybook_agent::protocol::Shown;
use tallybook_events::event::{Event, LogFenced, OperationResumed};
use tallybook_events::ids::{Blob, Epoch, Seq};
use tallybook_events::name::HostName;
use tallybook_events::step::Mark;
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{OperationStatus, StepStatus};
use tallybook_testkit::samples;

use crate::deed::Deed;
use crate::stage::{Stage, step, within};

/// What a host was shown of the log.
async fn seen(stage: &Stage, host: &str) -> Mark {
    let log = stage.log.head().await.unwrap().log.unwrap();
    let layout = &stage.world.host(host).layout;
    let seen = fence::read(&fence::path(layout, log), log).unwrap();
    seen.unwrap().mark
}

/// Somebody else shows a host an event of another line of history.
async fn show(stage: &Stage, host: &str, epoch: Epoch) {
    let log = stage.log.head().await.unwrap().log.unwrap();
    let mut header = samples::header(&Event::from(OperationResumed {}), 1000);
    header.log = log;
    header.epoch = epoch;
    let shown = Shown {
        newest: Blob(header.encode().unwrap()),
        proof: None,
    };
    let standing = Standing::of(log, &shown).unwrap();
    let passed = standing.pass(&stage.world.host(host).layout).unwrap();
    assert_eq!(passed, Verdict::Passed);
}

fn note(host: &str) -> Vec<tallybook_events::step::PlannedStep> {
    vec![step(0, host, &[], Deed::Note)]
}

#[track_caller]
fn assert_fenced(outcome: &Outcome, host: &str) {
    let Outcome::Fenced(reason) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(
        reason.contains(&format!("{host} was shown event")),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_ends_everything_and_is_no_failure() {
    let stage = Stage::new(&["a", "b"]).await;
    let (_, outcome) = stage.perform(note("a")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    show(&stage, "a", Epoch(2)).await;
    let plan = vec![
        step(0, "b", &[], Deed::Note),
        step(1, "a", &[0], Deed::Note),
        step(2, "b", &[1], Deed::Note),
    ];
    let (id, outcome) = stage.perform(plan).await;
    assert_fenced(&outcome, "a");
    assert_eq!(stage.status(id).await, OperationStatus::Stuck);
    assert_eq!(stage.notes("a"), ["s0"], "of the first operation");
    assert_eq!(stage.notes("b"), ["s0"]);
    // The log says so, once, and from now on nothing is begun anywhere, nor taken back.
    let is_fenced =
        |error: &Error| matches!(error, Error::Fenced { host, .. } if host.as_str() == "a");
    let refused = stage.try_begin(&stage.engine(), note("b")).await;
    assert!(refused.as_ref().is_err_and(is_fenced), "{refused:?}");
    let refused = stage.resume(id).await;
    assert!(refused.as_ref().is_err_and(is_fenced), "{refused:?}");
    let refused = stage.roll_back(id).await;
    assert!(refused.as_ref().is_err_and(is_fenced), "{refused:?}");
    assert_eq!(stage.notes("b"), ["s0"]);
    let state = stage.log.state().await.unwrap();
    let (host, mark) = state.fenced.clone().unwrap();
    assert_eq!((host.as_str(), mark), ("a", seen(&stage, "a").await));
    let said = stage.log.entries(&Default::default()).await.unwrap();
    let said = said
        .iter()
        .filter(|entry| matches!(entry.event, Event::LogFenced(LogFenced { .. })));
    assert_eq!(said.count(), 1);
}

/// A store that is restored from a backup, or copied to another machine, is some operations behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_log_can_do_nothing() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.perform(note("a")).await;
    let copy = stage.copied();
    let (_, outcome) = stage.perform(note("a")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let copy = stage.beside(copy).await;
    let (_, outcome) = copy.perform(note("a")).await;
    assert_fenced(&outcome, "a");
    let refused = copy.try_begin(&copy.engine(), note("b")).await;
    assert!(
        matches!(refused, Err(Error::Fenced { .. })),
        "also where no host would notice: {refused:?}"
    );
    assert_eq!(stage.notes("a"), ["s0", "s0"]);
    assert!(stage.notes("b").is_empty());
    // The newest goes on.
    let (_, outcome) = stage.perform(note("a")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
}

/// A copy is not known to be one until either acts; from then on the other one is shut out.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_the_first_that_acts_goes_on() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.perform(note("a")).await;
    let copy = stage.beside(stage.copied()).await;
    let (_, outcome) = copy.perform(note("a")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let (_, outcome) = stage.perform(note("a")).await;
    assert_fenced(&outcome, "a");
    let (_, outcome) = copy.perform(note("b")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.notes("a"), ["s0", "s0"]);
}

/// The backup is all that is left: a recovery says so, and shuts the lost line out everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_goes_on_in_an_epoch_of_its_own() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.perform(note("a")).await;
    let backup = stage.copied();
    stage.perform(note("a")).await;
    let copy = stage.beside(backup).await;
    let (stuck, outcome) = copy.perform(note("a")).await;
    assert_fenced(&outcome, "a");
    let store = copy.copied();
    copy.log.close().await;
    let recovery = Recovery::plan(store.path(), Away::Awaited).unwrap();
    assert_eq!(recovery.epoch(), Epoch(2));
    recovery.carry_out("the machine burned down").unwrap();
    let recovered = stage.beside(store).await;
    let resumed = recovered.resume(stuck).await;
    assert!(matches!(resumed, Ok(Outcome::Succeeded)), "{resumed:?}");
    assert_eq!(seen(&stage, "a").await.epoch, Epoch(2));
    let (_, outcome) = stage.perform(note("a")).await;
    assert_fenced(&outcome, "a");
    assert_eq!(stage.notes("a"), ["s0", "s0", "s0"]);
}

/// Where the other line was recovered, too, its epoch is passed by.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_begins_an_epoch_that_no_host_has_seen() {
    let stage = Stage::new(&["a"]).await;
    show(&stage, "a", Epoch(7)).await;
    let (stuck, outcome) = stage.perform(note("a")).await;
    assert_fenced(&outcome, "a");
    let store = stage.copied();
    let recovery = Recovery::plan(store.path(), Away::Awaited).unwrap();
    assert_eq!(recovery.epoch(), Epoch(8));
    recovery.carry_out("the other one is lost").unwrap();
    let recovered = stage.beside(store).await;
    let resumed = recovered.resume(stuck).await;
    assert!(matches!(resumed, Ok(Outcome::Succeeded)), "{resumed:?}");
    let (_, outcome) = recovered.perform(note("a")).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
}

/// No word to go by: it would have a recovery begin an epoch behind which there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_says_what_can_not_be_freezes_nothing() {
    let stage = Stage::new(&["a", "b"]).await;
    show(&stage, "a", Epoch(u32::MAX)).await;
    let (_, outcome) = stage.perform(note("a")).await;
    let Outcome::Unreachable(hosts) = outcome else {
        panic!("{outcome:?}");
    };
    let why = hosts[&HostName::new("a").unwrap()].to_string();
    assert!(why.contains("epoch 4294967295"), "{why}");
    assert!(stage.log.state().await.unwrap().fenced.is_none());
    assert!(stage.notes("a").is_empty());
    assert_eq!(seen(&stage, "a").await.seq, Seq(1000));
}

/// What waits for its turn, in the same operation or another, is not begun any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_elsewhere_begins_nothing_more() {
    let stage = Stage::new(&["a", "b", "c"]).await;
    let engine = stage.engine();
    let gate = || Deed::Await("gate".to_owned());
    let plan = vec![
        // Each a chain of its own: two of them wait for the host's turn.
        step(0, "b", &[], gate()),
        step(1, "b", &[], gate()),
        step(2, "b", &[], gate()),
        step(3, "c", &[], gate()),
        step(4, "a", &[3], Deed::Note),
    ];
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| stage.notes("b").len() == 1).await;
    show(&stage, "a", Epoch(2)).await;
    stage.world.host("c").signal("gate");
    within(async {
        while stage.log.state().await.unwrap().fenced.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stage.world.host("b").signal("gate");
    let outcome = within(run).await.unwrap().unwrap();
    assert_fenced(&outcome, "a");
    let notes = stage.notes("b");
    assert_eq!(notes.len(), 2, "one began, and ended: {notes:?}");
    let steps = stage.operation(id).await.steps;
    let done = steps[..3]
        .iter()
        .filter(|step| matches!(step.status, StepStatus::Succeeded { .. }));
    assert_eq!(done.count(), 1, "what ran is recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_of_the_same_store_begins_nothing_more() {
    let stage = Stage::new(&["a", "b"]).await;
    let engine = stage.engine();
    let plan = vec![
        step(0, "a", &[], Deed::Await("gate".to_owned())),
        step(1, "b", &[0], Deed::Note),
    ];
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage.until(|stage| stage.notes("a") == ["begin s0"]).await;
    let fenced = LogFenced {
        host: HostName::new("c").unwrap(),
        seen: samples::mark(),
    };
    let fenced = Draft::new(Subject::Cloud, fenced).unwrap();
    let condition = Condition::default();
    stage.log.append(vec![fenced], condition).await.unwrap();
    stage.world.host("a").signal("gate");
    let outcome = within(run).await.unwrap().unwrap();
    assert_fenced(&outcome, "c");
    assert!(stage.notes("b").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_last_shown_event_can_not_be_read_holds_up_no_other() {
    let stage = Stage::new(&["a", "b"]).await;
    stage.perform(note("a")).await;
    for _ in 0..4 {
        stage.perform(note("b")).await;
    }
    let archiving = Archiving {
        before: None,
        keep: 0,
        to: None,
        dry_run: false,
    };
    assert!(!stage.log.archive(archiving).await.unwrap().is_empty());
    let archive = stage.place().join("archive");
    let away = stage.place().join("away");
    std::fs::rename(&archive, &away).unwrap();
    let plan = vec![step(0, "a", &[], Deed::Note), step(1, "b", &[], Deed::Note)];
    let (id, outcome) = stage.perform(plan).await;
    let Outcome::Unreachable(hosts) = &outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        hosts.keys().map(HostName::as_str).collect::<Vec<_>>(),
        ["a"]
    );
    let operation = stage.operation(id).await;
    assert!(matches!(
        operation.steps[1].status,
        StepStatus::Succeeded { .. }
    ));
    std::fs::rename(&away, &archive).unwrap();
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
}
