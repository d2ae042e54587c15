//! Segments on their way to the archive and back.
//!
//! The driver's second run finds what the first one left that was killed between giving a file its name and making that
//! durable: it must not take the other copy away before that is.

use std::path::{Path, PathBuf};

use tallybook::journal::{Journal, Limits, Reader, archive, own_segments, segment_path};
use tallybook_events::ids::Seq;
use tallybook_events::record::Record;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

use crate::calls::{driven, say};
use crate::judge::{Judge, Said, Subject};
use crate::ops::What;

const LIMITS: Limits = Limits { segment_len: 6_000 };

fn records() -> Vec<Record> {
    Story::of(11, 40).records
}

fn journal(root: &Path) -> PathBuf {
    root.join("journal")
}

/// What a run leaves that is killed behind its rename: the bytes are durable, and their name is not.
fn die_behind_the_rename(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::File::open(&new).unwrap().sync_all().unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// What the archive has of a segment, made elsewhere.
fn packed(first: Seq, bytes: &[u8]) -> Vec<u8> {
    let aside = tempfile::tempdir().unwrap();
    let journal = journal(aside.path());
    std::fs::create_dir(&journal).unwrap();
    std::fs::create_dir(archive::directory(&journal)).unwrap();
    archive::put(&journal, first, bytes).unwrap();
    std::fs::read(archive::path(&journal, first)).unwrap()
}

#[test]
fn drive() {
    let Some(root) = driven() else {
        return;
    };
    let journal = journal(&root);
    let all = records();
    let mut writer = Journal::create(&journal, samples::log(), LIMITS).unwrap();
    for write in all.chunk_by(|one, other| one.header.write == other.header.write) {
        writer.append(write).unwrap();
    }
    drop(writer);
    std::fs::create_dir(archive::directory(&journal)).unwrap();
    std::fs::File::open(&root).unwrap().sync_all().unwrap();
    say("acked", all.len() as u64);
    let firsts = own_segments(&journal).unwrap();
    for (number, first) in firsts[..2].iter().enumerate() {
        let own = segment_path(&journal, *first);
        let bytes = std::fs::read(&own).unwrap();
        if number == 0 {
            say("dying", first.0);
            die_behind_the_rename(&archive::path(&journal, *first), &packed(*first, &bytes));
        }
        say("archiving", first.0);
        archive::put(&journal, *first, &bytes).unwrap();
        say("removing", first.0);
        archive::remove(&own).unwrap();
    }
    for (number, first) in firsts[..2].iter().enumerate() {
        let loaded = archive::load_archived(&journal, *first).unwrap().unwrap();
        if number == 0 {
            say("dying", first.0);
            die_behind_the_rename(&segment_path(&journal, *first), &loaded.bytes);
        }
        say("restoring", first.0);
        archive::put_back(&journal, *first, &loaded.bytes).unwrap();
        say("removing", first.0);
        archive::remove(&loaded.path).unwrap();
    }
    say("ended", 1);
}

struct Moved {
    records: Vec<Record>,
}

impl Subject for Moved {
    type Shown = usize;
    const STATES_MAX: usize = 100;

    fn driver(&self) -> &'static str {
        "archive::drive"
    }

    fn recover(&self, root: &Path) -> Result<usize, String> {
        let Ok(mut reader) = Reader::from_start(&journal(root)) else {
            return Ok(0);
        };
        let mut events = 0;
        let failed = |error| format!("{error}: {error:?}");
        while let Some((_, record)) = reader.next().map_err(failed)? {
            if self.records.get(events) != Some(&record) {
                return Err(format!("event {} is another", events + 1));
            }
            events += 1;
        }
        Ok(events)
    }

    fn judge(&self, shown: &usize, said: &Said) -> Result<(), String> {
        let acked = said.of("acked");
        match *shown as u64 >= acked {
            true => Ok(()),
            false => Err(format!("{shown} events; {acked} were acknowledged")),
        }
    }
}

#[test]
fn a_loss_of_power_takes_no_segment() {
    let mut judge = Judge::new(Moved { records: records() });
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    let (violations, count) = judge.hold(&ops, None, 10);
    println!("{count:?}, {} recoveries", judge.recoveries);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(count.states > 100, "{count:?}");
    for (doing, directory) in [("archiving 1", "archive"), ("restoring 1", "journal")] {
        let said = |what: &What| matches!(what, What::Said(line) if line == doing);
        let from = ops.iter().position(|op| said(&op.what)).unwrap() + 1;
        // What is there is held against its other copy only by what the disk gives back.
        assert!(matches!(ops[from].what, What::Synced { .. }), "{ops:?}");
        assert!(matches!(ops[from + 1].what, What::Dropped(_)), "{ops:?}");
        let named = from + 2;
        assert_eq!(ops[named].call, format!("fsync {directory}"));
        let (violations, _) = judge.hold(&ops, Some(named), 1);
        println!("without {}: {violations:#?}", ops[named].call);
        assert_eq!(violations.len(), 1, "{doing}");
    }
}
