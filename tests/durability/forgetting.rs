//! The agent's receipts while some of them are left out.

use std::path::Path;

use tallybook_agent::layout::Layout;
use tallybook_agent::receipts::{self, Journal};
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::step::Receipt;
use tallybook_testkit::samples;

use crate::calls::{driven, say};
use crate::judge::{Judge, Said, Subject};

/// The operation that is over, and the one that is not.
fn operation(is_over: bool) -> OperationId {
    samples::operation(if is_over { 1 } else { 2 })
}

fn receipt(is_over: bool, step: u32) -> Receipt {
    let mut receipt = samples::receipts().swap_remove(0);
    receipt.key.operation = operation(is_over);
    receipt.key.step = StepIndex(step);
    receipt
}

fn open(layout: &Layout, visit: &mut dyn FnMut(Receipt)) -> Journal {
    Journal::open(layout, samples::log(), visit).unwrap()
}

#[test]
fn drive() {
    let Some(root) = driven() else {
        return;
    };
    let layout = Layout::below(&root);
    say("opening", 1);
    let mut journal = open(&layout, &mut |_| {});
    say("journal", 1);
    let append = |journal: &mut Journal, is_over: bool, step: u32| {
        say(
            if is_over { "begun" } else { "begun-kept" },
            u64::from(step) + 1,
        );
        journal.append(&receipt(is_over, step)).unwrap();
        say(
            if is_over { "acked" } else { "acked-kept" },
            u64::from(step) + 1,
        );
    };
    for step in 0..4 {
        append(&mut journal, true, step);
        append(&mut journal, false, step);
    }
    say("forgetting", 1);
    journal.forget(&[operation(true)].into()).unwrap();
    say("forgotten", 1);
    for step in 4..7 {
        append(&mut journal, false, step);
    }
    say("ended", 1);
}

struct Forgetting;

#[derive(Debug, Clone)]
struct Shown {
    is_there: bool,
    over: u64,
    kept: u64,
}

impl Subject for Forgetting {
    type Shown = Shown;
    const STATES_MAX: usize = 400;

    fn driver(&self) -> &'static str {
        "forgetting::drive"
    }

    fn recover(&self, root: &Path) -> Result<Shown, String> {
        let layout = Layout::below(root);
        let is_there = receipts::path(&layout, samples::log()).exists();
        let (mut over, mut kept) = (0, 0);
        let mut journal = open(&layout, &mut |receipt| {
            let count = match receipt.key.operation == operation(true) {
                true => &mut over,
                false => &mut kept,
            };
            assert_eq!(
                u64::from(receipt.key.step.0),
                *count,
                "a receipt is missing"
            );
            *count += 1;
        });
        if journal.live().is_none() {
            return Err("a loss of power is taken for damage".to_owned());
        }
        journal
            .forget(&[operation(true)].into())
            .map_err(|error| format!("once more: {error:?}"))?;
        let known = receipts::operations(&layout, samples::log()).unwrap();
        match known.contains(&operation(true)) {
            true => Err("it can't be left out after a loss of power".to_owned()),
            false => Ok(Shown {
                is_there,
                over,
                kept,
            }),
        }
    }

    fn judge(&self, shown: &Shown, said: &Said) -> Result<(), String> {
        if said.has("journal") && !shown.is_there {
            return Err("the journal is gone".to_owned());
        }
        if shown.kept < said.of("acked-kept") || shown.kept > said.of("begun-kept") {
            return Err(format!("{shown:?} after {said:?}"));
        }
        let all = shown.over >= said.of("acked") && shown.over <= said.of("begun");
        let is_right = match (said.has("forgetting"), said.has("forgotten")) {
            (false, _) => all,
            (true, false) => all || shown.over == 0,
            (true, true) => shown.over == 0,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!("{shown:?} after {said:?}")),
        }
    }
}

/// Syncs that this driver can't show to be needed, and why they are there.
const REDUNDANT: &[(&str, &str)] = &[
    (
        "fsync LOG after \"opening\"",
        "of the name that a new journal has until it is renamed: its own name is synced afterwards",
    ),
    (
        "fsync LOG after \"opening\"",
        "of the new journal's name: opening syncs it once more",
    ),
];

#[test]
fn a_loss_of_power_takes_nothing_that_is_kept() {
    let mut judge = Judge::new(Forgetting);
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    let (violations, count) = judge.hold(&ops, None, 10);
    println!("{count:?}, {} recoveries", judge.recoveries);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(count.states > 50, "{count:?}");
    let syncs = judge.syncs(&ops);
    syncs.print();
    let log = samples::log().to_string();
    let redundant = syncs.redundant.iter().map(|call| call.replace(&log, "LOG"));
    let named = REDUNDANT.iter().map(|(call, _)| call.to_string());
    assert_eq!(redundant.collect::<Vec<_>>(), named.collect::<Vec<_>>());
}
