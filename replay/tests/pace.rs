//! Which hosts an operation may begin: given where it stands and what its run knows, when asked, then these chains.

use std::num::NonZeroU32;

use tallybook_events::ids::{Attempt, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::pace::{MaxFail, Pace};
use tallybook_events::step::{FailureClass, PlannedStep, StepFailure};
use tallybook_replay::operation::{Evidence, Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::pace::Enough;
use tallybook_replay::resume::{Next, Running, next};
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

/// An operation with two steps, one behind the other, on each of these hosts.
struct Given {
    operation: Operation,
    running: Running,
}

fn host(name: &str) -> HostName {
    samples::host(name)
}

fn given(hosts: &[&str], pace: Pace) -> Given {
    let records = Story::new(1).paced().records;
    let entries: Vec<_> = records
        .iter()
        .map(|record| tallybook_replay::entry::Entry::from_record(record).unwrap())
        .collect();
    let id = entries.iter().rev().find_map(|it| it.header.operation);
    let mut operation = Operation::fold(id.unwrap(), &entries).unwrap().unwrap();
    operation.pace = pace;
    operation.status = OperationStatus::Running;
    operation.steps = hosts
        .iter()
        .enumerate()
        .flat_map(|(at, name)| {
            let first = 2 * at as u32;
            [(first, vec![]), (first + 1, vec![StepIndex(first)])].map(|(index, after)| Step {
                plan: PlannedStep {
                    host: host(name),
                    index: StepIndex(index),
                    after,
                    peer: None,
                    ..samples::planned(index, &[])
                },
                status: StepStatus::Pending,
                attempts: Attempt(0),
                unstarted: 0,
                journal: None,
                forced: false,
                set_aside: false,
                last: operation.last,
            })
        })
        .collect();
    Given {
        operation,
        running: Running::default(),
    }
}

fn serial(most: u32) -> Pace {
    Pace {
        serial: NonZeroU32::new(most),
        max_fail: None,
    }
}

fn max_fail(text: &str) -> Pace {
    Pace {
        serial: None,
        max_fail: Some(text.parse::<MaxFail>().unwrap()),
    }
}

impl Given {
    fn steps_of(&mut self, name: &str) -> impl Iterator<Item = &mut Step> {
        let name = host(name);
        let steps = self.operation.steps.iter_mut();
        steps.filter(move |step| step.plan.host == name)
    }

    /// The chain of this host runs.
    fn runs(mut self, name: &str) -> Self {
        let indices: Vec<_> = self.steps_of(name).map(|step| step.plan.index).collect();
        self.running.in_flight.extend(indices);
        self.running.begun.insert(host(name));
        self
    }

    /// It has ended, with the first step like this and the second like that.
    fn ended(mut self, name: &str, first: StepStatus, second: StepStatus) -> Self {
        let mut statuses = vec![second, first];
        let mut indices = Vec::new();
        for step in self.steps_of(name) {
            step.status = statuses.pop().unwrap();
            step.attempts = Attempt(1);
            indices.push(step.plan.index);
        }
        for index in indices {
            self.running.in_flight.remove(&index);
        }
        self.running.begun.insert(host(name));
        self
    }

    fn done(self, name: &str) -> Self {
        self.ended(name, succeeded(), succeeded())
    }

    fn failed(self, name: &str) -> Self {
        self.ended(name, failure(), StepStatus::Pending)
    }

    fn unreachable(mut self, name: &str) -> Self {
        self.running.unreachable.insert(host(name));
        self
    }

    /// Another run comes, which tries again what failed.
    fn resumed(mut self) -> Self {
        self.running = Running::default();
        for step in &self.operation.steps {
            if matches!(step.status, StepStatus::Failed(_)) {
                self.running.retry.insert(step.plan.index);
            }
        }
        self
    }

    /// The hosts of which chains start.
    fn starts(&self, hosts: &[&str]) {
        let Next::Start(chains) = self.next() else {
            panic!("{:?}", self.next());
        };
        let of = |chain: &Vec<StepIndex>| {
            let step = &self.operation.steps[chain[0].0 as usize];
            step.plan.host.to_string()
        };
        assert_eq!(chains.iter().map(of).collect::<Vec<_>>(), hosts);
    }

    fn next(&self) -> Next {
        next(&self.operation, &self.running)
    }

    fn enough(&self, failed: usize, most: &str, left: &[&str]) {
        let enough = Enough {
            failed,
            most: most.parse().unwrap(),
            left: left.iter().map(|name| host(name)).collect(),
        };
        assert_eq!(self.next(), Next::Enough(enough));
    }
}

fn succeeded() -> StepStatus {
    StepStatus::Succeeded {
        evidence: Evidence::Reported,
        done: samples::done(),
    }
}

fn failure() -> StepStatus {
    StepStatus::Failed(StepFailure {
        class: FailureClass::Command,
        message: "it said no".to_owned(),
        hint: None,
        captured: Vec::new(),
    })
}

const FOUR: &[&str] = &["cn1", "cn2", "cn3", "cn4"];

#[test]
fn without_a_pace_every_host_begins() {
    given(FOUR, Pace::default()).starts(FOUR);
}

#[test]
fn so_many_hosts_begin_and_a_further_one_when_one_is_done() {
    let given = given(FOUR, serial(2));
    given.starts(&["cn1", "cn2"]);
    let both = given.runs("cn1").runs("cn2");
    assert_eq!(both.next(), Next::Wait);
    let one = both.done("cn2");
    one.starts(&["cn3"]);
    // One that failed has come to its end as well.
    let two = one.runs("cn3").failed("cn1");
    two.starts(&["cn4"]);
}

#[test]
fn a_host_that_is_between_two_steps_keeps_its_place() {
    let between = given(FOUR, serial(1)).ended("cn1", succeeded(), StepStatus::Pending);
    between.starts(&["cn1"]);
}

#[test]
fn a_host_that_cant_be_reached_gives_its_place_up() {
    let away = given(FOUR, serial(1)).runs("cn1");
    let mut away = away.ended("cn1", StepStatus::Pending, StepStatus::Pending);
    away.running.in_flight.clear();
    away.unreachable("cn1").starts(&["cn2"]);
}

#[test]
fn what_was_half_done_comes_before_what_is_untouched() {
    let half = given(FOUR, serial(1))
        .ended("cn3", succeeded(), StepStatus::Pending)
        .resumed();
    half.starts(&["cn3"]);
}

/// Three hosts failed; who takes that up again one by one does not have all three at once.
#[test]
fn a_resumption_begins_hosts_anew() {
    let failed = given(FOUR, serial(1)).failed("cn1").failed("cn2");
    failed.resumed().starts(&["cn1"]);
}

/// The second step of `cn1` is behind one of `cn2`.
#[test]
fn one_that_is_waited_for_begins_above_the_number() {
    let mut waits = given(&["cn1", "cn2", "cn3"], serial(1));
    waits.operation.steps[1].plan.after = vec![StepIndex(0), StepIndex(3)];
    let waits = waits.ended("cn1", succeeded(), StepStatus::Pending);
    waits.starts(&["cn2"]);
    let begun = waits.runs("cn2");
    assert_eq!(begun.next(), Next::Wait);
    begun.done("cn2").starts(&["cn1"]);
}

#[test]
fn one_that_only_sends_is_not_counted() {
    let mut sync = given(&["cn1", "cn2"], serial(1));
    sync.operation
        .steps
        .retain(|step| step.plan.after.is_empty());
    for (index, step) in (0..).zip(&mut sync.operation.steps) {
        step.plan.index = StepIndex(index);
        step.plan.peer = samples::planned_all()
            .into_iter()
            .find_map(|step| step.peer);
        assert!(step.plan.peer.is_some());
    }
    sync.starts(&["cn1"]);
    sync.runs("cn1")
        .ended("cn1", succeeded(), succeeded())
        .starts(&["cn2"]);
}

#[test]
fn with_more_failures_no_further_host_begins() {
    let one = given(
        FOUR,
        Pace {
            serial: NonZeroU32::new(1),
            ..max_fail("1")
        },
    )
    .failed("cn1");
    one.starts(&["cn2"]);
    one.failed("cn2").enough(2, "1", &["cn3", "cn4"]);
}

#[test]
fn what_was_begun_goes_on_when_too_many_failed() {
    let going = given(FOUR, max_fail("0")).runs("cn2").failed("cn1");
    assert_eq!(going.next(), Next::Wait);
    let between = going.ended("cn2", succeeded(), StepStatus::Pending);
    between.starts(&["cn2"]);
    between.done("cn2").enough(1, "0", &["cn3", "cn4"]);
}

/// Begun before there is a place for it, a host would be past holding back when others fail.
#[test]
fn where_failures_are_counted_no_host_begins_before_its_place() {
    let mut given = given(FOUR, max_fail("0"));
    given.running.at_once = Some(2);
    given.starts(&["cn1", "cn2"]);
    let going = given.runs("cn1").runs("cn2");
    assert_eq!(going.next(), Next::Wait);
    let going = going.failed("cn1");
    assert_eq!(going.next(), Next::Wait);
    going.done("cn2").enough(1, "0", &["cn3", "cn4"]);
}

#[test]
fn a_host_that_cant_be_reached_counts_as_failed() {
    let away = given(FOUR, max_fail("0")).unreachable("cn4");
    away.enough(1, "0", &["cn1", "cn2", "cn3"]);
}

#[test]
fn a_percentage_is_of_the_hosts_with_steps() {
    let half = given(FOUR, max_fail("50%")).failed("cn1").failed("cn2");
    half.starts(&["cn3", "cn4"]);
    let more = given(FOUR, max_fail("50%")).failed("cn1").failed("cn2");
    more.failed("cn3").enough(3, "50%", &["cn4"]);
}

/// Nothing is held back any more, so what failed says how it ends.
#[test]
fn when_all_hosts_were_begun_failures_are_failures() {
    let all = given(&["cn1", "cn2"], max_fail("0"))
        .failed("cn1")
        .failed("cn2");
    assert!(matches!(all.next(), Next::Failed(_)), "{:?}", all.next());
}

/// What failed before is tried again, and counts when it fails again.
#[test]
fn failures_of_an_earlier_run_do_not_count() {
    let again = given(FOUR, max_fail("0")).failed("cn1").resumed();
    again.starts(&["cn1", "cn2", "cn3", "cn4"]);
}
