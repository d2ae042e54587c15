//! The log's journal.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tallybook::journal::{self, Error, Journal, Limits, Reader, Tail, segment_path};
use tallybook_events::record::Record;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

use crate::calls::{driven, say};
use crate::judge::{Failure, Judge, Said, Subject, calls_before, failures, unsynced_at};
use crate::ops::{Op, What};

/// Several segments, and some writes that fill one at once.
const LIMITS: Limits = Limits { segment_len: 6_000 };

/// The writes that the driver makes, each of one append, and one that spans pages.
fn writes() -> Vec<Vec<Record>> {
    let mut story = Story::of(11, 40);
    story.capture(&[b'x'; 11_000]);
    story.operate();
    let by_write = |a: &Record, b: &Record| a.header.write == b.header.write;
    story
        .records
        .chunk_by(by_write)
        .map(<[Record]>::to_vec)
        .collect()
}

fn directory(root: &Path) -> PathBuf {
    root.join("journal")
}

/// Reads all there is and opens behind it, as a start does.
fn open(directory: &Path) -> Result<(Journal, Vec<Record>, Tail), Error> {
    journal::settle(directory)?;
    let mut reader = Reader::from_start(directory)?;
    let mut records = Vec::new();
    while let Some((_, record)) = reader.next()? {
        records.push(record);
    }
    let tail = reader.tail();
    let (journal, _) = Journal::open(directory, &reader, LIMITS)?;
    Ok((journal, records, tail))
}

/// What a process that dies amid a write leaves: so much of it in memory, and none of it synced.
fn die_amid(journal: Journal, directory: &Path, write: &[Record], of: impl Fn(usize) -> usize) {
    let place = journal.position();
    let mut bytes = Vec::new();
    write
        .iter()
        .for_each(|record| record.write_frame(&mut bytes));
    bytes.truncate(of(bytes.len()));
    let path = segment_path(directory, place.segment);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    say("begun", write.last().unwrap().header.seq.0);
    say("dying", 1);
    file.write_all_at(&bytes, place.offset).unwrap();
}

#[test]
fn drive() {
    let Some(root) = driven() else {
        return;
    };
    let directory = directory(&root);
    let writes = writes();
    say("creating", 1);
    let mut journal = match Journal::create(&directory, samples::log(), LIMITS) {
        Ok(journal) => journal,
        Err(error) => return refused(&error),
    };
    say("acked", 0);
    let third = writes.len() / 3;
    // At which write the process dies, once each, and how much of it is written then.
    let mut deaths = vec![(2 * third, (1, 1)), (third, (2, 3))];
    let mut at = 0;
    while let Some(write) = writes.get(at) {
        let outcome = match deaths.pop_if(|death| death.0 == at) {
            Some((_, (part, of))) => {
                die_amid(journal, &directory, write, |len| len * part / of);
                reopen(&directory)
            }
            None => append(&mut journal, write).map(|()| (journal, None)),
        };
        let (opened, events) = outcome.unwrap_or_else(|error| {
            refused(&error);
            // As a new process does.
            reopen(&directory).unwrap()
        });
        journal = opened;
        let is_there = |events| move |it: &&Vec<Record>| it[0].header.seq.0 <= events;
        at = events.map_or(at + 1, |events| {
            writes.iter().take_while(is_there(events)).count()
        });
    }
    say("ended", 1);
}

/// Opens, and says what it found; how many events there are.
fn reopen(directory: &Path) -> Result<(Journal, Option<u64>), Error> {
    say("settling", 1);
    journal::settle(directory)?;
    let mut reader = Reader::from_start(directory)?;
    let mut events = 0;
    while reader.next()?.is_some() {
        events += 1;
    }
    if let Tail::Torn { bytes: 1.., .. } = reader.tail() {
        // Durable by now, and not to be lost any more.
        say("aside", 1);
    }
    say("opening", 1);
    let (journal, _) = Journal::open(directory, &reader, LIMITS)?;
    say("acked", events);
    Ok((journal, Some(events)))
}

fn append(journal: &mut Journal, write: &[Record]) -> Result<(), Error> {
    let last = write.last().unwrap().header.seq.0;
    say("begun", last);
    let Err(error) = journal.append(write) else {
        say("acked", last);
        return Ok(());
    };
    if journal.is_stopped() {
        // Whoever goes on all the same is refused.
        let again = journal.append(write).unwrap_err();
        assert!(matches!(again, Error::Stopped), "{again:?}");
        say("stopped", 1);
    }
    Err(error)
}

/// Nothing was acknowledged: it is told why instead.
fn refused(error: &Error) {
    use std::error::Error as _;
    let cause = error.source().map_or_else(String::new, ToString::to_string);
    println!("why: {error}: {cause}");
    say("refused", 1);
}

struct Log {
    writes: Vec<Vec<Record>>,
}

#[derive(Debug, Clone)]
struct Shown {
    /// How many events there are; `None` where there is no journal.
    events: Option<u64>,
    /// How many torn tails were put aside that hold something.
    aside: u64,
}

impl Log {
    fn new() -> Self {
        Log { writes: writes() }
    }

    /// The write that begins behind so many events.
    fn next(&self, events: usize) -> Option<&Vec<Record>> {
        let first = |write: &&Vec<Record>| write[0].header.seq.0 == events as u64 + 1;
        self.writes.iter().find(first)
    }
}

impl Subject for Log {
    type Shown = Shown;
    const STATES_MAX: usize = 400;

    fn driver(&self) -> &'static str {
        "journal::drive"
    }

    fn recover(&self, root: &Path) -> Result<Shown, String> {
        let directory = directory(root);
        let (mut journal, mut records, _) = match open(&directory) {
            Ok(opened) => opened,
            Err(Error::Missing(_)) => {
                return Ok(Shown {
                    events: None,
                    aside: 0,
                });
            }
            Err(error) => return Err(format!("{error}: {error:?}")),
        };
        let events = records.len();
        let written = self.writes.iter().flatten();
        if !written.take(events).eq(records.iter()) {
            return Err("other events than were written".to_owned());
        }
        if let Some(next) = self.next(events) {
            journal
                .append(next)
                .map_err(|error| format!("going on: {error:?}"))?;
            records.extend_from_slice(next);
        }
        drop(journal);
        let (_, again, tail) = open(&directory).map_err(|error| format!("again: {error:?}"))?;
        if again != records || tail != Tail::Whole {
            return Err(format!(
                "{tail:?} after the recovery, {} events",
                again.len()
            ));
        }
        let mut aside = 0;
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let is_torn = path.to_string_lossy().contains(".torn-");
            aside += u64::from(is_torn && std::fs::read(&path).unwrap().iter().any(|b| *b != 0));
        }
        Ok(Shown {
            events: Some(events as u64),
            aside,
        })
    }

    fn judge(&self, shown: &Shown, said: &Said) -> Result<(), String> {
        let Some(events) = shown.events else {
            return match said.has("acked") {
                true => Err("the journal is gone".to_owned()),
                false => Ok(()),
            };
        };
        let (acked, begun) = (said.of("acked"), said.of("begun"));
        if events < acked || events > begun.max(acked) {
            return Err(format!(
                "{events} events; {acked} were acknowledged, {begun} begun"
            ));
        }
        let ends = |write: &Vec<Record>| write.last().unwrap().header.seq.0 == events;
        if events > 0 && !self.writes.iter().any(ends) {
            return Err(format!("{events} events are a part of an append"));
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
        "fsync 00000000000000000014.seg after \"settling\"",
        "as the next: the process that died wrote over room",
    ),
    (
        "fsync 00000000000000000039.seg after \"settling\"",
        "of what a process wrote that died before its sync: opening syncs it again; this one is for what is read \
         in between, and for a sync that failed before",
    ),
];

#[test]
fn a_loss_of_power_takes_nothing_that_was_acknowledged() {
    let mut judge = Judge::new(Log::new());
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    assert!(!traced.printed.contains("refused"), "{}", traced.printed);
    let (violations, count) = judge.hold(&ops, None, 10);
    println!("{count:?}, {} recoveries", judge.recoveries);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(count.states > 500, "{count:?}");
    let syncs = judge.syncs(&ops);
    syncs.print();
    let named: Vec<&str> = REDUNDANT.iter().map(|(call, _)| *call).collect();
    assert_eq!(syncs.redundant, named);
    assert!(syncs.red.len() > 50, "{}", syncs.red.len());
}

/// No acknowledgement before the sync of the file, and of the directory when a segment is born.
#[test]
fn what_is_acknowledged_was_synced_before() {
    let (_, ops) = Judge::new(Log::new()).drive(None);
    assert_eq!(unsynced_at(&ops, "acked"), Vec::<String>::new());
    let mut born = 0;
    for (line, calls) in calls_before(&ops, "acked") {
        println!("{line}: {}", calls.join(", "));
        let last = calls.last().unwrap();
        let is_opened = last == "fsync journal";
        assert!(
            is_opened || last.starts_with("fdatasync journal/"),
            "{line}: {calls:?}"
        );
        let Some(renamed) = calls.iter().position(|call| call == "rename journal") else {
            continue;
        };
        let segment = calls[renamed - 1].strip_prefix("fsync journal/").unwrap();
        assert!(segment.ends_with(".new"), "{line}: {calls:?}");
        assert_eq!(calls[renamed + 1], "fsync journal", "{line}: {calls:?}");
        born += 1;
    }
    assert!(born > 3);
}

#[test]
fn a_failed_call_is_told_and_nothing_is_acknowledged_that_is_not_there() {
    let mut judge = Judge::new(Log::new());
    let count = judge.fail_each(&["dying"], |Failure { inject, doing }, traced| {
        // What an earlier process did not get written is told to the next one's first sync, which counts on it.
        // Room that can't be made is done without, and room that can't be given back at the end stays; then nothing
        // else is missing.
        let is_of_room = inject.starts_with("pwrite64") || inject.starts_with("ftruncate");
        let of_room = is_of_room && traced.printed.contains("ended 1");
        let is_told = traced.printed.contains("why: ") || doing == "settling" || of_room;
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
    assert!(count["fdatasync"] > 20 && count["fsync"] > 10);
    assert!(count["pwrite64"] > 40 && count["write"] > 4, "{count:?}");
}

/// After a failed sync, what is in memory and not on the disk is dropped before it is believed: without that, what
/// the next start shows may be gone after a loss of power.
#[test]
fn what_a_failed_sync_left_in_memory_is_not_believed() {
    let mut judge = Judge::new(Log::new());
    let (_, ops) = judge.drive(None);
    let failures = failures(&ops, &["dying"]);
    let mut failed = 0;
    for failure in failures
        .iter()
        .filter(|it| it.inject.starts_with("fdatasync"))
        .step_by(8)
    {
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
