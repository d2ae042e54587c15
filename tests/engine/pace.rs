//! Operations that go over their hosts so many at once, and end when too many failed.

use std::collections::BTreeSet;

use tallybook::engine::{Failed, Once, Outcome};
use tallybook::log::Filter;
use tallybook_events::event::Event;
use tallybook_events::ids::OperationId;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::step::PlannedStep;
use tallybook_replay::fleet::{self, HostStatus};
use tallybook_replay::operation::{OperationStatus, StepStatus};

use crate::deed::Deed;
use crate::stage::{Stage, receive, step, within};

const HOSTS: &[&str] = &["a", "b", "c", "d", "e"];

fn pace(serial: Option<u32>, max_fail: Option<&str>) -> Pace {
    Pace {
        serial: serial.map(|most| most.try_into().unwrap()),
        max_fail: max_fail.map(|most| most.parse().unwrap()),
    }
}

/// Two steps on each host, of which the first does this.
fn plan(first: impl Fn(&str) -> Deed) -> Vec<PlannedStep> {
    let two = |(index, host): (u32, &&str)| {
        [
            step(index, host, &[], first(host)),
            step(index + 1, host, &[index], Deed::Note),
        ]
    };
    (0..).step_by(2).zip(HOSTS).flat_map(two).collect()
}

/// The most hosts that had begun and not ended their steps, at any time that the log has.
async fn open_at_once(stage: &Stage, id: OperationId) -> usize {
    let operation = stage.operation(id).await;
    let host = |index: u32| operation.steps[index as usize].plan.host.clone();
    let (mut open, mut most) = (BTreeSet::<HostName>::new(), 0);
    let mut left: Vec<u32> = Vec::new();
    for entry in stage.log.entries(&Filter::of_operation(id)).await.unwrap() {
        let Some(index) = entry.header.step.map(|index| index.0) else {
            continue;
        };
        match &entry.event {
            Event::StepStarted(_) => {
                left.push(index);
                open.insert(host(index));
                most = most.max(open.len());
            }
            Event::StepSucceeded(_) | Event::StepFailed(_) | Event::StepUnstarted(_) => {
                left.retain(|it| *it != index);
                if !left.iter().any(|it| host(*it) == host(index)) {
                    open.remove(&host(index));
                }
            }
            _ => {}
        }
    }
    most
}

async fn statuses(stage: &Stage, id: OperationId) -> Vec<(String, HostStatus)> {
    let rows = fleet::rows(&stage.operation(id).await);
    let rows = rows.into_iter();
    rows.map(|row| (row.host.to_string(), row.status)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_so_many_hosts_have_begun_and_not_ended() {
    for most in [1, 2] {
        let mut stage = Stage::new(HOSTS).await;
        stage.pace = pace(Some(most), None);
        let (id, outcome) = stage.perform(plan(|_| Deed::Note)).await;
        assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
        assert!(open_at_once(&stage, id).await <= most as usize);
        assert_eq!(stage.notes("e"), ["s8", "s9"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_host_begins_when_one_is_done() {
    let mut stage = Stage::new(HOSTS).await;
    stage.pace = pace(Some(2), None);
    let engine = stage.engine();
    let id = stage
        .begin(&engine, plan(|_| Deed::Await("go".to_owned())))
        .await;
    let run = tokio::spawn(async move { engine.run(id).await });
    let begun = |stage: &Stage, host: &str| !stage.notes(host).is_empty();
    stage.until(|it| begun(it, "a") && begun(it, "b")).await;
    stage.world.host("b").signal("go");
    stage.until(|it| begun(it, "c")).await;
    assert!(!begun(&stage, "d") && !begun(&stage, "e"));
    for host in HOSTS {
        stage.world.host(host).signal("go");
    }
    let outcome = within(run).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert!(open_at_once(&stage, id).await <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_only_sends_takes_no_place() {
    let mut stage = Stage::new(&["a", "b", "c"]).await;
    stage.pace = pace(Some(1), None);
    let plan = vec![receive(0, "b", "a", &[]), receive(1, "c", "a", &[])];
    let (id, outcome) = stage.perform(plan).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(open_at_once(&stage, id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failures_end_it_as_failed_and_it_can_be_resumed() {
    let mut stage = Stage::new(HOSTS).await;
    stage.pace = pace(Some(1), Some("1"));
    stage.world.host("c").set_down(true);
    let fails = |host: &str| match host {
        "a" => Deed::FailWithout("disk".to_owned()),
        _ => Deed::Note,
    };
    let (id, outcome) = stage.perform(plan(fails)).await;
    let Outcome::Failed {
        failures,
        unreachable,
        enough: Some(enough),
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((failures.len(), unreachable.len()), (1, 1));
    assert!(enough.contains("--max-fail 1"), "{enough}");
    assert!(enough.ends_with("not begun: d, e"), "{enough}");
    assert_eq!(stage.status(id).await, OperationStatus::Failed);
    let operation = stage.operation(id).await;
    assert!(operation.reason.unwrap().starts_with(&enough));
    let expected = [
        ("a", HostStatus::Failed),
        ("b", HostStatus::Changed),
        ("c", HostStatus::Unreachable),
        ("d", HostStatus::NotBegun),
        ("e", HostStatus::NotBegun),
    ];
    let expected = expected.map(|(host, status)| (host.to_owned(), status));
    assert_eq!(statuses(&stage, id).await, expected);
    // The pace is the operation's: who takes it up has it as well.
    stage.world.host("c").set_down(false);
    let outcome = stage.resume(id).await.unwrap();
    assert!(
        matches!(outcome, Outcome::Failed { enough: None, .. }),
        "{outcome:?}"
    );
    assert_eq!(open_at_once(&stage, id).await, 1);
    assert_eq!(stage.notes("e"), ["s8", "s9"]);
    stage.world.host("a").signal("disk");
    let outcome = stage.resume(id).await.unwrap();
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    assert_eq!(stage.operation(id).await.lacked.len(), 0);
}

/// With everything away nothing was done, and still it is a failure: nobody goes on with it unasked.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_away_are_failures_where_there_is_a_limit() {
    let mut stage = Stage::new(HOSTS).await;
    stage.pace = pace(Some(2), Some("20%"));
    for host in HOSTS {
        stage.world.host(host).set_down(true);
    }
    let (id, outcome) = stage.perform(plan(|_| Deed::Note)).await;
    let Outcome::Failed {
        failures,
        unreachable,
        enough: Some(_),
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(failures.is_empty());
    assert!((2..=3).contains(&unreachable.len()), "{unreachable:?}");
    assert_eq!(stage.status(id).await, OperationStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumption_can_have_another_pace() {
    let stage = Stage::new(HOSTS).await;
    let fails = |_: &str| Deed::FailWithout("disk".to_owned());
    let (id, _) = stage.perform(plan(fails)).await;
    let engine = stage.engine();
    engine
        .take_up(id, None, pace(Some(1), Some("0")))
        .await
        .unwrap();
    let outcome = within(engine.go_on(id, Once::Ask, Failed::Again)).await;
    let Ok(Outcome::Failed {
        enough: Some(enough),
        ..
    }) = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(enough.ends_with("not begun: b, c, d, e"), "{enough}");
    let operation = stage.operation(id).await;
    assert_eq!(operation.pace, pace(Some(1), Some("0")));
    let again = |it: &tallybook_replay::operation::Step| {
        matches!(it.status, StepStatus::Failed(_)) && it.attempts.0 == 2
    };
    assert_eq!(operation.steps.iter().filter(|it| again(it)).count(), 1);
}

/// There are places for so many hosts; no further one is begun before one of these is free, and by then one failed.
#[tokio::test(flavor = "multi_thread")]
async fn failures_count_without_a_number_at_once_too() {
    let names: Vec<String> = (0..36).map(|number| format!("h{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut stage = Stage::new(&names).await;
    stage.pace = pace(None, Some("0"));
    let one = |(index, host): (u32, &&str)| match index {
        0 => step(index, host, &[], Deed::FailWithout("disk".to_owned())),
        _ => step(index, host, &[], Deed::Await("end".to_owned())),
    };
    let plan = (0..).zip(&names).map(one).collect();
    let engine = stage.engine();
    let id = stage.begin(&engine, plan).await;
    let run = tokio::spawn(async move { engine.run(id).await });
    stage
        .until(|stage| stage.notes("h31") == ["begin s31"])
        .await;
    let has_failed = async || {
        let first = &stage.operation(id).await.steps[0].status;
        matches!(first, StepStatus::Failed(_))
    };
    while !within(has_failed()).await {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    for name in &names {
        stage.world.host(name).signal("end");
    }
    let outcome = within(run).await.unwrap().unwrap();
    let Outcome::Failed {
        enough: Some(enough),
        ..
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(
        enough.ends_with("not begun: h32, h33, h34, h35"),
        "{enough}"
    );
    assert_eq!(stage.notes("h32"), Vec::<String>::new());
}
