//! The agent's receipts.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use tallybook_agent::layout::Layout;
use tallybook_agent::receipts::{self, Error, Journal};
use tallybook_events::ids::{Attempt, Blob, StepIndex};
use tallybook_events::step::{Phase, Receipt, StepDone};
use tallybook_testkit::samples;

use crate::calls::{driven, say};
use crate::judge::{Failure, Judge, Said, Subject, calls_before, failures, unsynced_at};
use crate::ops::{Op, What};

/// The receipts that the driver appends: each step's start and its end, some ends longer than a page.
fn written() -> Vec<Receipt> {
    let of = |step: u32, phase| {
        let mut receipt = samples::receipts().swap_remove(0);
        receipt.key.step = StepIndex(step / 2);
        // Each is of a start of its own, so that a report shows all of them.
        receipt.key.attempt = Attempt(step % 2 + 1);
        receipt.phase = phase;
        receipt
    };
    let ended = |output: Vec<u8>| {
        Phase::Succeeded(StepDone {
            changed: true,
            output: Blob(output),
            facts: Vec::new(),
            captured: Vec::new(),
        })
    };
    (0..18)
        .map(|number| match number {
            _ if number % 2 == 0 => of(number, Phase::Started),
            5 => of(number, ended(noise(9_000))),
            // A whole page of zeros in a sound receipt.
            11 => of(
                number,
                ended([noise(3_000), vec![0; 9_000], noise(3_000)].concat()),
            ),
            15 => of(number, ended(noise(30_000))),
            _ => of(number, ended(vec![0xc0])),
        })
        .collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn layout(root: &Path) -> Layout {
    Layout::below(root)
}

/// What a process that dies amid an append leaves: so much of it in memory, and none of it synced.
fn die_amid(journal: Journal, layout: &Layout, receipt: &Receipt, of: impl Fn(usize) -> usize) {
    drop(journal);
    let mut bytes = receipts::encode(receipt).unwrap();
    bytes.truncate(of(bytes.len()));
    let path = receipts::path(layout, samples::log());
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
}

#[test]
fn drive() {
    let Some(root) = driven() else {
        return;
    };
    let layout = layout(&root);
    let written = written();
    say("creating", 1);
    let (mut journal, _) = reopen(&layout).unwrap_or_else(|error| {
        refused(&error);
        reopen(&layout).unwrap()
    });
    // At which receipt the process dies, once each, and how much of it is written then.
    let mut deaths = vec![(12, (1, 1)), (5, (2, 3))];
    let mut at = 0;
    while let Some(receipt) = written.get(at) {
        say("begun", at as u64 + 1);
        let outcome = match deaths.pop_if(|death| death.0 == at) {
            Some((_, (part, of))) => {
                say("dying", 1);
                die_amid(journal, &layout, receipt, |len| len * part / of);
                asked(&layout).and_then(|()| reopen(&layout))
            }
            None => append(&mut journal, receipt, at + 1).map(|()| (journal, at + 1)),
        };
        (journal, at) = outcome.unwrap_or_else(|error| {
            refused(&error);
            // As the next agent does.
            reopen(&layout).unwrap()
        });
    }
    say("ended", 1);
}

/// The controller asks what became of the steps; what it is told must not change any more.
fn asked(layout: &Layout) -> Result<(), Error> {
    say("asking", 1);
    let operation = samples::operation(1);
    let report = receipts::report(layout, samples::log(), operation)?;
    say("acked", report.receipts.len() as u64);
    Ok(())
}

/// Opens, and says what it found; how many receipts there are.
fn reopen(layout: &Layout) -> Result<(Journal, usize), Error> {
    say("opening", 1);
    let mut found = 0;
    let journal = Journal::open(layout, samples::log(), &mut |_| found += 1)?;
    let id = journal.live().expect("it is live");
    say("journal", short(id.as_bytes()));
    if !receipts::torn(layout, samples::log()).unwrap().is_empty() {
        say("aside", 1);
    }
    say("acked", found as u64);
    Ok((journal, found))
}

fn short(id: &[u8; 16]) -> u64 {
    u64::from_le_bytes(*id.first_chunk().unwrap())
}

fn append(journal: &mut Journal, receipt: &Receipt, number: usize) -> Result<(), Error> {
    if receipt.phase == Phase::Started {
        journal.reserve()?;
    }
    let Err(error) = journal.append(receipt) else {
        say("acked", number as u64);
        return Ok(());
    };
    if let Err(again @ Error::Stopped(_)) = journal.append(receipt) {
        say("stopped", 1);
        println!("{again}");
    }
    Err(error)
}

fn refused(error: &Error) {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    println!("why: {text}");
    say("refused", 1);
}

struct Receipts {
    written: Vec<Receipt>,
}

#[derive(Debug, Clone)]
struct Shown {
    /// Which journal it is, and how many receipts it has; `None` where there is none.
    found: Option<(u64, u64)>,
    /// How many torn tails were put aside that hold something.
    aside: u64,
}

impl Receipts {
    fn new() -> Self {
        Receipts { written: written() }
    }

    fn open(&self, layout: &Layout) -> Result<(Journal, Vec<Receipt>), String> {
        let mut found = Vec::new();
        let journal = Journal::open(layout, samples::log(), &mut |receipt| found.push(receipt))
            .map_err(|error| format!("opening: {error:?}"))?;
        match self.written.starts_with(&found) {
            true => Ok((journal, found)),
            false => Err(format!("{} receipts, other than were written", found.len())),
        }
    }
}

impl Subject for Receipts {
    type Shown = Shown;
    const STATES_MAX: usize = 400;

    fn driver(&self) -> &'static str {
        "receipts::drive"
    }

    fn recover(&self, root: &Path) -> Result<Shown, String> {
        let layout = layout(root);
        let (log, operation) = (samples::log(), samples::operation(1));
        let is_there = receipts::path(&layout, log).exists();
        let asked = receipts::report(&layout, log, operation)
            .map_err(|error| format!("asking: {error:?}"))?;
        let (mut journal, mut found) = self.open(&layout)?;
        let count = found.len() as u64;
        let Some(id) = journal.live() else {
            return Err("a loss of power is taken for damage".to_owned());
        };
        if is_there && asked.journal != Some(id) || asked.receipts.len() != found.len() {
            return Err(format!("asked: {asked:?}, opened: {count} of {id}"));
        }
        if let Some(next) = self.written.get(found.len()) {
            journal
                .append(next)
                .map_err(|error| format!("going on: {error:?}"))?;
            found.push(next.clone());
        }
        drop(journal);
        let (journal, again) = self.open(&layout)?;
        if again != found || journal.live() != Some(id) {
            return Err(format!("{} receipts after the recovery", again.len()));
        }
        let mut aside = 0;
        for path in receipts::torn(&layout, log).unwrap() {
            aside += u64::from(std::fs::read(&path).unwrap().iter().any(|byte| *byte != 0));
        }
        Ok(Shown {
            found: is_there.then_some((short(id.as_bytes()), count)),
            aside,
        })
    }

    fn judge(&self, shown: &Shown, said: &Said) -> Result<(), String> {
        let Some((id, count)) = shown.found else {
            return match said.has("journal") {
                true => Err("the journal is gone".to_owned()),
                false => Ok(()),
            };
        };
        if said.has("journal") && said.of("journal") != id {
            return Err("it is another journal".to_owned());
        }
        let (acked, begun) = (said.of("acked"), said.of("begun"));
        if count < acked || count > begun.max(acked) {
            return Err(format!(
                "{count} receipts; {acked} were acknowledged, {begun} begun"
            ));
        }
        match shown.aside < said.of("aside") {
            true => Err("what was put aside is gone".to_owned()),
            false => Ok(()),
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
        "of the new journal's name: opening syncs it once more, since another process may have given it",
    ),
    (
        "fsync reserve after \"begun\"",
        "of the room for a full disk: where a loss of power takes it, it is set aside anew",
    ),
    (
        "fsync LOG after \"begun\"",
        "of the name of that room, likewise",
    ),
    (
        "fsync journal after \"asking\"",
        "of a tail that a dead process left torn: it was never acknowledged, and opening puts it aside",
    ),
    (
        "fsync journal after \"opening\"",
        "of the tail that was cut off: where it comes back it is put aside again, and an append syncs the cut, too",
    ),
];

#[test]
fn a_loss_of_power_takes_nothing_that_was_acknowledged() {
    let mut judge = Judge::new(Receipts::new());
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    assert!(!traced.printed.contains("refused"), "{}", traced.printed);
    let (violations, count) = judge.hold(&ops, None, 10);
    println!("{count:?}, {} recoveries", judge.recoveries);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(count.states > 300, "{count:?}");
    let syncs = judge.syncs(&ops);
    syncs.print();
    let log = samples::log().to_string();
    let redundant = syncs.redundant.iter().map(|call| call.replace(&log, "LOG"));
    let named = REDUNDANT.iter().map(|(call, _)| call.to_string());
    assert_eq!(redundant.collect::<Vec<_>>(), named.collect::<Vec<_>>());
    assert!(syncs.red.len() > 20, "{}", syncs.red.len());
}

/// A step begins, and is told to have ended, only behind the sync of its receipt.
#[test]
fn what_is_acknowledged_was_synced_before() {
    let (_, ops) = Judge::new(Receipts::new()).drive(None);
    assert_eq!(unsynced_at(&ops, "acked"), Vec::<String>::new());
    let mut appended = 0;
    for (line, calls) in calls_before(&ops, "acked") {
        println!("{line}: {}", calls.join(", "));
        if line != "acked 0" && calls.iter().any(|call| call.starts_with("write ")) {
            appended += 1;
        }
        let written = calls.iter().rposition(|call| call.starts_with("write "));
        let synced = calls.iter().rposition(|call| call.contains("sync "));
        assert!(written < synced || written.is_none(), "{line}: {calls:?}");
    }
    assert!(appended > 14, "{appended}");
}

#[test]
fn a_failed_call_is_told_and_nothing_is_acknowledged_that_is_not_there() {
    let mut judge = Judge::new(Receipts::new());
    let count = judge.fail_each(&["dying"], |Failure { inject, doing }, traced| {
        // What an earlier process did not get written is told to the next one's first sync, which counts on it.
        let is_told =
            traced.printed.contains("why: ") || ["opening", "asking"].contains(&doing.as_str());
        assert!(is_told, "{inject}: {}", traced.printed);
        if inject.starts_with("fdatasync") {
            for word in ["stopped 1", "is not known: syncing it failed"] {
                assert!(
                    traced.printed.contains(word),
                    "{inject}: {}",
                    traced.printed
                );
            }
        }
    });
    assert!(count["fdatasync"] > 14 && count["write"] > 30, "{count:?}");
}

/// After a failed sync, what is in memory and not on the disk is dropped before it is believed.
#[test]
fn what_a_failed_sync_left_in_memory_is_not_believed() {
    let mut judge = Judge::new(Receipts::new());
    let (_, ops) = judge.drive(None);
    let failures = failures(&ops, &["dying"]);
    let mut failed = 0;
    let of_append = |it: &&Failure| it.inject.starts_with("fdatasync");
    for failure in failures.iter().filter(of_append).step_by(4) {
        let (_, ops) = judge.drive(Some(&failure.inject));
        let at = ops.iter().position(|op| op.injected).unwrap();
        let dropped = |op: &Op| matches!(op.what, What::Dropped(_));
        let dropped = at + ops[at..].iter().position(dropped).unwrap();
        let (violations, _) = judge.hold(&ops, Some(dropped), 1);
        println!("without {}: {violations:#?}", ops[dropped].call);
        assert_eq!(violations.len(), 1, "{failure:?}");
        failed += 1;
    }
    assert!(failed > 3);
}
