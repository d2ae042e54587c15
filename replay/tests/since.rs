//! Taking back everything since a point: what is taken back, what stays, and in which order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Blob, Hash, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::pace::Pace;
use tallybook_events::step::{Action, PlannedStep, Reversal, StepDone};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{Evidence, Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::since::{self, Error, Since, Stays};
use tallybook_replay::state::State;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

fn subject(host: &str, container: &str) -> Subject {
    Subject::Container(samples::host(host), samples::container(container))
}

/// A step that changed something, on a host, about a container.
fn step(index: u32, host: &str, container: &str, after: &[u32]) -> Step {
    Step {
        plan: PlannedStep {
            host: samples::host(host),
            subject: subject(host, container),
            reversal: Reversal::Undo,
            peer: None,
            ..samples::planned(index, after)
        },
        status: StepStatus::Succeeded {
            evidence: Evidence::Reported,
            done: StepDone {
                changed: true,
                output: Blob(vec![0x80]),
                facts: vec![],
                captured: vec![],
            },
        },
        attempts: Attempt(1),
        unstarted: 0,
        journal: None,
        forced: false,
        set_aside: false,
        last: Seq(0),
    }
}

/// The `number`th operation: its events are from ten times that on.
fn operation(number: u8, mut steps: Vec<Step>) -> Operation {
    let first = u64::from(number) * 10;
    for step in &mut steps {
        step.last = Seq(first + 5);
    }
    let claims: BTreeSet<Subject> = steps.iter().map(|it| it.plan.subject.clone()).collect();
    Operation {
        id: samples::operation(number),
        intent: samples::intents()[3].clone(),
        actor: samples::actor(),
        claim: ClaimRef {
            seq: Seq(first),
            hash: Hash::ZERO,
        },
        claims: claims.into_iter().collect(),
        inventory: Seq(2),
        started_unix_us: 0,
        last_unix_us: 0,
        status: OperationStatus::Succeeded,
        reason: None,
        pace: Pace::default(),
        lacked: BTreeMap::new(),
        is_planned: true,
        steps,
        sessions: vec![],
        events: 6,
        last: Seq(first + 6),
    }
}

fn one(number: u8, host: &str, container: &str) -> Operation {
    operation(number, vec![step(0, host, container, &[])])
}

/// Which step of which operation each undo is about, and what it waits for.
fn order(since: &Since) -> Vec<(OperationId, u32, Vec<u32>)> {
    let steps = since.undo.steps.iter().map(|step| {
        let Action::Undo {
            operation,
            step: of,
            ..
        } = &step.action
        else {
            panic!("{step:?} is no undo");
        };
        let after = step.after.iter().map(|index| index.0).collect();
        (*operation, of.0, after)
    });
    steps.collect()
}

#[test]
fn the_newest_goes_first_and_what_is_apart_does_not_wait() {
    let operations = [
        one(1, "cn1", "web"),
        one(2, "cn1", "web"),
        one(3, "cn2", "db"),
        one(4, "cn1", "db"),
    ];
    let since = since::plan(Seq(15), &operations).unwrap();
    let id = samples::operation;
    assert_eq!(since.operations, [id(4), id(3), id(2)]);
    assert_eq!(
        order(&since),
        [
            (id(4), 0, vec![]),
            // Another host, another container.
            (id(3), 0, vec![]),
            // The same host.
            (id(2), 0, vec![0]),
        ]
    );
    assert_eq!(
        since.claims,
        [
            subject("cn1", "db"),
            subject("cn2", "db"),
            subject("cn1", "web")
        ]
    );
    assert_eq!(since.stays, []);
    let all = since::plan(Seq(0), &operations).unwrap();
    assert_eq!(
        order(&all)[3],
        (id(1), 0, vec![2]),
        "only the last one of its host is waited for"
    );
}

#[test]
fn an_undo_waits_for_a_later_operation_about_the_same_on_another_host() {
    let template = Subject::Template(samples::template("base"));
    let mut made = one(1, "cn1", "web");
    let mut sent = one(2, "cn2", "web");
    made.steps[0].plan.subject = template.clone();
    sent.steps[0].plan.subject = template;
    let since = since::plan(Seq(1), &[made, sent]).unwrap();
    assert_eq!(order(&since)[1].2, [0]);
}

#[test]
fn what_stays_is_said_with_why() {
    let id = samples::operation;
    let mut older = one(1, "cn1", "a");
    older.status = OperationStatus::RolledBack;
    let mut went_on = one(2, "cn1", "b");
    went_on.steps[0].last = Seq(77);
    let mut session = one(4, "cn1", "c");
    session.intent = Intent::ContainerShell {
        container: samples::container("c"),
        host: samples::host("cn1"),
    };
    let mut destroyed = one(5, "cn1", "d");
    destroyed.steps[0].plan.reversal = Reversal::Irreversible {
        why: "it is gone".to_owned(),
    };
    let mut back = one(6, "cn1", "a");
    back.intent = Intent::Rollback { operation: id(1) };
    let mut done_already = one(7, "cn1", "e");
    done_already.status = OperationStatus::RolledBack;
    let mut its_undo = one(8, "cn1", "e");
    its_undo.intent = Intent::Rollback { operation: id(7) };
    let mut closing = operation(9, vec![]);
    closing.intent = Intent::Rollback { operation: id(1) };
    let operations = [
        older,
        went_on,
        session,
        destroyed.clone(),
        back,
        done_already,
        its_undo,
        closing,
    ];
    let since = since::plan(Seq(35), &operations).unwrap();
    assert_eq!(since.operations, []);
    assert_eq!(since.undo.steps, []);
    let stays: BTreeMap<OperationId, &Stays> =
        since.stays.iter().map(|(id, why)| (*id, why)).collect();
    assert_eq!(stays[&id(2)], &Stays::BegunBefore);
    assert_eq!(stays[&id(4)], &Stays::Session);
    assert!(matches!(stays[&id(5)], Stays::Irreversible(steps) if steps[0].why == "it is gone"));
    assert_eq!(stays[&id(6)], &Stays::Rollback(vec![id(1)]));
    assert_eq!(
        stays.len(),
        4,
        "what took back what is younger, or nothing, is no matter: {stays:?}"
    );

    destroyed.status = OperationStatus::Failed;
    let refused = since::plan(Seq(35), &[destroyed]);
    assert!(matches!(refused, Err(Error::Irreversible { id: of, .. }) if of == id(5)));
}

#[test]
fn what_somebody_else_takes_back_is_not_touched() {
    let mut taken = one(2, "cn1", "web");
    taken.status = OperationStatus::RollingBack;
    let refused = since::plan(Seq(15), &[taken.clone()]);
    assert_eq!(refused, Err(Error::RollingBack(samples::operation(2))));
    assert!(
        since::plan(Seq(25), &[taken]).is_ok(),
        "an older one is no matter"
    );
}

#[test]
fn what_is_not_done_is_taken_back_as_it_stands() {
    for status in [
        OperationStatus::Intended,
        OperationStatus::Running,
        OperationStatus::Interrupted,
        OperationStatus::Failed,
        OperationStatus::Stuck,
        OperationStatus::Abandoned,
    ] {
        let mut open = one(2, "cn1", "web");
        open.status = status;
        open.steps[0].status = StepStatus::Started;
        let since = since::plan(Seq(15), &[open]).unwrap();
        assert_eq!(since.undo.steps.len(), 1, "{status:?}");
        assert!(matches!(
            &since.undo.steps[0].action,
            Action::Undo { output: None, .. }
        ));
    }
}

/// Operations of a few steps each, on two hosts, about two containers.
fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let step_shape = (0..2_usize, 0..2_usize, any::<bool>(), any::<u8>());
    let one = prop::collection::vec(step_shape, 0..5);
    prop::collection::vec(one, 0..8).prop_map(|shapes| {
        let made =
            shapes.into_iter().enumerate().map(|(number, shape)| {
                let steps = shape.into_iter().enumerate().map(
                    |(index, (host, container, changed, after))| {
                        let index = index as u32;
                        let after: Vec<u32> = (0..index)
                            .filter(|earlier| after >> earlier & 1 == 1)
                            .collect();
                        let mut step = step(
                            index,
                            ["cn1", "cn2"][host],
                            ["web", "db"][container],
                            &after,
                        );
                        if let StepStatus::Succeeded { done, .. } = &mut step.status {
                            done.changed = changed;
                        }
                        step
                    },
                );
                operation(number as u8 + 1, steps.collect())
            });
        made.collect()
    })
}

/// Whether the undo at `later` comes only when the one at `earlier` is done.
fn waits(steps: &[PlannedStep], later: usize, earlier: usize) -> bool {
    steps[later].after.iter().any(|index| {
        let index = index.0 as usize;
        index == earlier || waits(steps, index, earlier)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn each_changed_step_is_undone_once_and_behind_what_was_built_on_it(
        operations in operations(),
        to in 0..80_u64,
    ) {
        let since = since::plan(Seq(to), &operations).unwrap();
        let mut undone: Vec<(OperationId, u32)> = order(&since).into_iter().map(|(id, step, _)| (id, step)).collect();
        let steps = &since.undo.steps;
        for (place, step) in steps.iter().enumerate() {
            prop_assert_eq!(step.index, StepIndex(place as u32));
            prop_assert!(step.after.iter().all(|index| index.0 < place as u32), "only on what comes before");
        }
        let forward = |place: usize| {
            let (id, index) = undone[place];
            let of = operations.iter().find(|known| known.id == id).unwrap();
            (of, &of.steps[index as usize])
        };
        for later in 0..steps.len() {
            for earlier in 0..later {
                let ((newer, first), (older, second)) = (forward(earlier), forward(later));
                let meets = first.plan.host == second.plan.host || first.plan.subject == second.plan.subject;
                if newer.id != older.id && meets {
                    prop_assert!(newer.claim.seq > older.claim.seq);
                    prop_assert!(waits(steps, later, earlier), "{} does not wait for {}", later, earlier);
                }
                if newer.id != older.id && !meets && steps[later].after.contains(&StepIndex(earlier as u32)) {
                    prop_assert!(false, "{} waits for {} for nothing", later, earlier);
                }
                if newer.id == older.id && first.plan.after.contains(&second.plan.index) {
                    prop_assert!(waits(steps, later, earlier), "{} was built on {}", earlier, later);
                }
            }
        }
        undone.sort();
        let mut expected: Vec<(OperationId, u32)> = Vec::new();
        for known in operations.iter().filter(|known| known.claim.seq > Seq(to)) {
            for step in &known.steps {
                if matches!(&step.status, StepStatus::Succeeded { done, .. } if done.changed) {
                    expected.push((known.id, step.plan.index.0));
                }
            }
        }
        expected.sort();
        prop_assert_eq!(undone, expected);
    }

    #[test]
    fn once_it_is_done_nothing_is_left_to_undo(choices in any::<u64>(), to in 0..60_u64) {
        let mut story = Story::of(choices, 60);
        let before = since::plan(Seq(to), &folded(&story)).unwrap();
        story.take_back(Seq(to), before.operations.clone(), before.undo.steps.clone());
        let operations = folded(&story);
        let after = since::plan(Seq(to), &operations).unwrap();
        prop_assert_eq!(&after.operations, &[]);
        prop_assert_eq!(&after.undo.steps, &[]);
        prop_assert_eq!(&after.stays, &before.stays);
        for id in &before.operations {
            let known = operations.iter().find(|known| known.id == *id).unwrap();
            prop_assert_eq!(known.status, OperationStatus::RolledBack);
        }
    }
}

/// All operations of a story, as they stand.
fn folded(story: &Story) -> Vec<Operation> {
    let entries: Vec<Entry> = story
        .records
        .iter()
        .map(|record| Entry::from_record(record).unwrap())
        .collect();
    let mut state = State::default();
    for entry in &entries {
        state.apply(entry);
    }
    let operations = state.operations.iter().map(|(id, known)| Operation {
        status: known.status,
        ..Operation::fold(*id, &entries).unwrap().unwrap()
    });
    operations.collect()
}

/// What a rollback of several that is given up leaves: each stands where it stood.
#[test]
fn what_is_given_up_gives_each_back() {
    let story = Story::of(7, 60);
    let operations = folded(&story);
    let since = since::plan(Seq(2), &operations).unwrap();
    assert!(since.operations.len() > 1, "{:?}", since.operations);
    let mut given_up = story.clone();
    given_up.give_up_taking_back(Seq(2), since.operations.clone());
    assert_eq!(
        folded(&given_up)
            .into_iter()
            .map(|it| (it.id, it.status))
            .filter(|(id, _)| since.operations.contains(id))
            .collect::<BTreeMap<_, _>>(),
        operations
            .into_iter()
            .map(|it| (it.id, it.status))
            .filter(|(id, _)| since.operations.contains(id))
            .collect(),
    );
}
