//! Folds of random but legal histories: any prefix folds, and one event at a time gives what all at once gives.

use proptest::prelude::*;
use tallybook_events::event::Resolution;
use tallybook_events::ids::{Attempt, Blob, Seq};
use tallybook_events::step::{StepDone, StepFailure};
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{Operation, OperationStatus, StepStatus};
use tallybook_replay::resume::{self, Running};
use tallybook_replay::state::State;
use tallybook_replay::{diff, undo};
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
        prop_assert!(diff::states(&state, &whole).is_empty());
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
            let differences = diff::states(&before, &state).len();
            prop_assert!(differences <= touched.len(), "{differences} differ, {touched:?} were named");
        }
    }

    #[test]
    fn nobody_holds_what_a_final_operation_claimed(choices in any::<u64>()) {
        let state = fold(&entries(choices, 80));
        for (subject, holder) in &state.claims {
            prop_assert!(!state.operations[holder].status.is_final(), "{subject}");
        }
    }
}

/// An operation of one step that stands like this.
fn standing(status: StepStatus, attempts: u32) -> Operation {
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
        journal: None,
        last: Seq(9),
    }];
    operation
}

fn unchanged(resolution: Resolution) -> StepStatus {
    StepStatus::Succeeded {
        resolution,
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
    let undone = |status, attempts| undo::plan(&standing(status, attempts)).steps.len();
    assert_eq!(undone(StepStatus::Pending, 0), 0);
    assert_eq!(
        undone(StepStatus::Pending, 1),
        0,
        "its only start is known never to have acted"
    );
    assert_eq!(
        undone(StepStatus::Pending, 2),
        1,
        "its first start may have"
    );
    assert_eq!(undone(unchanged(Resolution::Reported), 1), 0);
    assert_eq!(undone(unchanged(Resolution::Reported), 2), 1);
    assert_eq!(
        undone(unchanged(Resolution::Probe), 1),
        1,
        "a probe can't tell who made it"
    );
    let failed = StepFailure {
        class: tallybook_events::step::FailureClass::Command,
        message: String::new(),
        hint: None,
        captured: vec![],
    };
    assert_eq!(undone(StepStatus::Failed(failed), 1), 1);
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
