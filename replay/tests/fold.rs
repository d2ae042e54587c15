//! Folds of random but legal histories: any prefix folds, and one event at a time gives what all at once gives.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tallybook_events::event::{
    ErasureAnnounced, ErasureCause, ErasureCompleted, Resolution, StepSucceeded,
};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::{Attempt, Blob, Generation, Hash, Seq};
use tallybook_events::record::{Frame, Record};
use tallybook_events::step::{StepDone, StepFailure};
use tallybook_replay::entry::Entry;
use tallybook_replay::folding::Folding;
use tallybook_replay::operation::{Evidence, Operation, OperationStatus, StepStatus};
use tallybook_replay::resume::{self, Running};
use tallybook_replay::state::State;
use tallybook_replay::undo;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

fn entries(choices: u64, events: usize) -> Vec<Entry> {
    let story = Story::of(choices, events);
    story
        .records
        .iter()
        .map(|record| Entry::from_record(record).unwrap())
        .collect()
}

fn fold(entries: &[Entry]) -> State {
    let mut state = State::default();
    for entry in entries {
        state.apply(entry);
    }
    state
}

/// How many entities differ.
fn differing(before: &State, after: &State) -> usize {
    fn maps<K: Ord, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> usize {
        let changed = after
            .iter()
            .filter(|(key, value)| before.get(key) != Some(value));
        let gone = before.keys().filter(|key| !after.contains_key(key));
        changed.count() + gone.count()
    }
    maps(&before.hosts, &after.hosts)
        + maps(&before.containers, &after.containers)
        + maps(&before.templates, &after.templates)
        + maps(&before.allocations, &after.allocations)
        + maps(&before.operations, &after.operations)
        + maps(&before.claims, &after.claims)
        + maps(&before.erasures, &after.erasures)
        + usize::from(before.inventory != after.inventory)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_prefix_folds_and_going_on_gives_the_whole(choices in any::<u64>(), cut in any::<prop::sample::Index>()) {
        let entries = entries(choices, 60);
        let whole = fold(&entries);
        let cut = cut.index(entries.len());
        let mut state = fold(&entries[..cut]);
        for entry in &entries[cut..] {
            state.apply(entry);
        }
        prop_assert_eq!(&state, &whole);
        prop_assert_eq!(whole.head.seq, Seq(entries.len() as u64));
        for id in whole.operations.keys() {
            let prefix = Operation::fold(*id, &entries[..cut]).unwrap();
            if let Some(operation) = prefix {
                let _decided = resume::next(&operation, &Running::default());
                let _planned = undo::plan(&operation);
            }
            let folded = Operation::fold(*id, &entries).unwrap().unwrap();
            let summary = &whole.operations[id];
            prop_assert_eq!(folded.events, summary.events);
            prop_assert_eq!(folded.last, summary.last);
            prop_assert_eq!(folded.status, summary.status);
        }
    }

    #[test]
    fn what_an_event_changed_is_what_it_says_it_changed(choices in any::<u64>()) {
        let mut state = State::default();
        for entry in entries(choices, 40) {
            let before = state.clone();
            let touched = state.apply(&entry);
            let differences = differing(&before, &state);
            prop_assert!(differences <= touched.len(), "{differences} differ, {touched:?} were named");
        }
    }

    #[test]
    fn what_is_not_decoded_does_not_count(choices in any::<u64>()) {
        folds_as_it_is_stored(&Story::of(choices, 60));
    }

    #[test]
    fn nobody_holds_what_a_final_operation_claimed(choices in any::<u64>()) {
        let state = fold(&entries(choices, 80));
        for (subject, holder) in &state.claims {
            prop_assert!(!state.operations[holder].status.is_final(), "{subject}");
        }
    }
}

fn folds_as_it_is_stored(story: &Story) {
    let (mut whole, mut quick) = (State::default(), State::default());
    for record in &story.records {
        whole.apply(&Entry::from_record(record).unwrap());
        let mut bytes = Vec::new();
        record.write_frame(&mut bytes);
        let frame = Frame::read(&bytes).unwrap();
        quick.take(Folding::of(&frame, &frame.header().unwrap()).unwrap());
        assert_eq!(quick, whole, "behind event {}", record.header.seq);
    }
}

#[test]
fn every_kind_folds_as_it_is_stored() {
    folds_as_it_is_stored(&Story::of_all_kinds());
}

/// What a fold says once payloads are erased is what was said while they were there, events that are not known here
/// counted in both.
#[test]
fn a_fold_behind_an_erasure_is_the_state_that_was_there() {
    let mut records = Story::of(5, 60).records;
    let output = records
        .iter()
        .find(|one| one.header.kind == "output.captured");
    for seq in [Seq(2), output.unwrap().header.seq] {
        let mut story = Story::of(5, 60);
        story.upkeep(ErasureAnnounced {
            cause: ErasureCause::Redaction,
            reason: String::new(),
            events: vec![samples::range(seq.0, seq.0)],
        });
        let announced = story.records.last().unwrap().header.seq;
        story.upkeep(ErasureCompleted {
            announced,
            payloads: 1,
        });
        records = story.records;
        let entry = |record: &Record| Entry::from_record(record).unwrap();
        let live = fold(&records.iter().map(entry).collect::<Vec<_>>());
        assert_eq!(live.inventory.is_none(), seq == Seq(2));
        records[seq.0 as usize - 1].erase();
        let folded = fold(&records.iter().map(entry).collect::<Vec<_>>());
        assert_eq!(folded, live, "event {seq}");
        assert_eq!(folded.head.unknown, 0);
        let mut quick = State::default();
        for record in &records {
            let mut bytes = Vec::new();
            record.write_frame(&mut bytes);
            let frame = Frame::read(&bytes).unwrap();
            quick.take(Folding::of(&frame, &frame.header().unwrap()).unwrap());
        }
        assert_eq!(quick, live, "event {seq}");
    }
}

/// An operation of one step that stands like this, after so many starts, of which so many are known never to have acted.
fn standing(status: StepStatus, attempts: u32, unstarted: u32) -> Operation {
    let entries = entries(1, 40);
    let id = entries
        .iter()
        .find_map(|entry| entry.header.operation)
        .unwrap();
    let mut operation = Operation::fold(id, &entries).unwrap().unwrap();
    operation.status = OperationStatus::Failed;
    operation.steps = vec![tallybook_replay::operation::Step {
        plan: samples::planned(0, &[]),
        status,
        attempts: Attempt(attempts),
        unstarted,
        journal: None,
        forced: false,
        set_aside: false,
        last: Seq(9),
    }];
    operation
}

fn unchanged(evidence: Evidence) -> StepStatus {
    StepStatus::Succeeded {
        evidence,
        done: StepDone {
            changed: false,
            output: Blob(vec![0x80]),
            facts: vec![],
            captured: vec![],
        },
    }
}

#[test]
fn an_earlier_start_that_may_have_acted_is_undone() {
    let undone = |status, attempts, unstarted| {
        undo::plan(&standing(status, attempts, unstarted))
            .steps
            .len()
    };
    let pending = || StepStatus::Pending;
    assert_eq!(undone(pending(), 0, 0), 0);
    assert_eq!(undone(pending(), 1, 1), 0, "its only start never acted");
    assert_eq!(undone(pending(), 2, 2), 0, "none of them did");
    assert_eq!(undone(pending(), 2, 1), 1, "its first start may have");
    let reported = || unchanged(Evidence::Reported);
    assert_eq!(undone(reported(), 1, 0), 0);
    assert_eq!(undone(reported(), 2, 1), 0, "it is about the only one");
    assert_eq!(undone(reported(), 2, 0), 1);
    assert_eq!(
        undone(unchanged(Evidence::Probe), 1, 0),
        1,
        "a probe can't tell who made it"
    );
    let failed = StepFailure {
        class: tallybook_events::step::FailureClass::Command,
        message: String::new(),
        hint: None,
        captured: vec![],
    };
    assert_eq!(undone(StepStatus::Failed(failed), 1, 0), 1);
}

#[test]
fn a_second_intent_or_plan_and_a_step_event_without_a_step_are_contradictions() {
    let entries = entries(1, 40);
    let id = entries
        .iter()
        .find_map(|entry| entry.header.operation)
        .unwrap();
    let own: Vec<Entry> = entries
        .iter()
        .filter(|entry| entry.header.operation == Some(id))
        .cloned()
        .collect();
    let refused = |extra: Entry| {
        let mut operation = Operation::fold(id, &own).unwrap().unwrap();
        operation.apply(&extra).is_err()
    };
    assert!(refused(own[0].clone()), "a second intent");
    let planned = own
        .iter()
        .find(|entry| entry.header.kind == "operation.planned")
        .unwrap();
    let mut with_steps = Operation::fold(id, &own[..1]).unwrap().unwrap();
    let mut plan = planned.clone();
    plan.event = samples::events()[5].clone();
    with_steps.apply(&plan).unwrap();
    assert!(with_steps.apply(&plan).is_err(), "a second plan");
    let mut started = planned.clone();
    started.event = samples::events()[12].clone();
    assert!(refused(started), "a step's event without a step");
    let mut misnumbered = planned.clone();
    misnumbered.event = tallybook_events::event::OperationPlanned {
        steps: vec![samples::planned(1, &[])],
    }
    .into();
    let mut fresh = Operation::fold(id, &own[..1]).unwrap().unwrap();
    assert!(
        fresh.apply(&misnumbered).is_err(),
        "a plan that is not numbered by its places"
    );
}

/// A state after these facts, each reported by a step of its own.
fn after(facts: Vec<Fact>) -> State {
    let entries = entries(1, 40);
    let mut entry = entries.last().unwrap().clone();
    entry.header.operation = None;
    let mut state = State::default();
    for fact in facts {
        entry.header.seq = entry.header.seq.next();
        entry.event = StepSucceeded {
            resolution: Resolution::Reported,
            done: StepDone {
                changed: true,
                output: Blob(vec![0x80]),
                facts: vec![fact],
                captured: vec![],
            },
        }
        .into();
        state.apply(&entry);
    }
    state
}

#[test]
fn a_new_container_has_nothing_of_an_earlier_namesake() {
    let (host, container) = (samples::host("cn1"), samples::container("web"));
    let created = Fact::ContainerCreated {
        host: host.clone(),
        container: container.clone(),
        origin: Origin::Container {
            host: host.clone(),
            container: samples::container("db"),
        },
        backing: Backing::Dir,
    };
    let lived = vec![
        created.clone(),
        Fact::ContainerStarted {
            host: host.clone(),
            container: container.clone(),
        },
        Fact::ContainerAddressed {
            host: host.clone(),
            container: container.clone(),
            address: "10.5.0.2".to_owned(),
        },
        Fact::KeysAuthorized {
            host: host.clone(),
            container: container.clone(),
            keys: vec!["ada".to_owned()],
        },
        // Nobody reported that it went.
        created,
    ];
    let state = after(lived);
    let known = &state.containers[&(host, container)];
    assert!(!known.running && known.address.is_none() && known.keys.is_empty());
}

#[test]
fn another_tree_in_the_place_of_a_generation_is_not_that_generation() {
    let present = |on: &str, byte: u8| Fact::TemplatePresent {
        host: samples::host(on),
        template: samples::template("base"),
        generation: Generation(1),
        manifest: Hash([byte; 32]),
        entries: 3,
        size_bytes: 9,
    };
    let absent = |on: &str| Fact::TemplateAbsent {
        host: samples::host(on),
        template: samples::template("base"),
        generation: Generation(1),
    };
    let key = (samples::template("base"), Generation(1));
    let state = after(vec![
        present("cn1", 1),
        present("cn2", 2),
        present("cn3", 1),
    ]);
    let known = &state.templates[&key];
    assert_eq!(known.manifest, Hash([1; 32]));
    let on = [samples::host("cn1"), samples::host("cn3")];
    assert_eq!(known.hosts, on.into());
    assert_eq!(
        known.differing,
        [(samples::host("cn2"), Hash([2; 32]))].into()
    );
    let state = after(vec![
        present("cn1", 1),
        present("cn2", 2),
        present("cn2", 1),
    ]);
    assert!(state.templates[&key].differing.is_empty());
    let state = after(vec![present("cn1", 1), present("cn2", 2), absent("cn1")]);
    assert!(
        state.templates.contains_key(&key),
        "cn2 still has something"
    );
    let state = after(vec![
        present("cn1", 1),
        present("cn2", 2),
        absent("cn1"),
        absent("cn2"),
    ]);
    assert!(state.templates.is_empty());
}
