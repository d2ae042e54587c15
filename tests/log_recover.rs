//! Going on with a damaged log: every event that is whole stays, what is lost is named exactly, and the recovery may
//! stop at any moment and be done again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tallybook::journal::{self, Journal, Limits, Reader, segment_path};
use tallybook::log::recover::{Away, Recovered, Recovery};
use tallybook::log::{Condition, Draft, Error, Filter, HEAD, JOURNAL, Log, Open, verify};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, Epoch};
use tallybook_events::record::Record;
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::files::{copy_tree, position};
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

const SMALL: Limits = Limits { segment_len: 4096 };

fn store_of(records: &[Record]) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(&store.path().join(JOURNAL), samples::log(), SMALL).unwrap();
    for write in records.chunk_by(|earlier, later| earlier.header.write == later.header.write) {
        journal.append(write).unwrap();
    }
    store
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    frame
}

/// The segments of a store, in order.
fn files(store: &Path) -> Vec<PathBuf> {
    let journal = store.join(JOURNAL);
    let all = journal::segments(&journal).unwrap();
    all.into_iter()
        .map(|first| segment_path(&journal, first))
        .collect()
}

/// Where the frame of an event begins.
fn place(store: &Path, record: &Record) -> (PathBuf, usize) {
    let frame = bytes_of(record);
    let found = files(store).into_iter().find_map(|path| {
        let bytes = std::fs::read(&path).unwrap();
        let at = position(&bytes, &frame)?;
        Some((path, at))
    });
    found.unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn recover(store: &Path) -> Result<(BTreeSet<u64>, Recovered), Error> {
    recover_by(store, &mut |_| Ok(()))
}

fn recover_by(
    store: &Path,
    step: &mut dyn FnMut(&'static str) -> std::io::Result<()>,
) -> Result<(BTreeSet<u64>, Recovered), Error> {
    let recovery = Recovery::plan(store, Away::Awaited)?;
    let ranges = recovery.losses.iter().map(|loss| loss.events);
    let lost = ranges.flat_map(|range| range.first.0..=range.last.0);
    let lost = lost.collect();
    let recovered = recovery.carry_out_by("a test", SMALL, step)?;
    Ok((lost, recovered))
}

/// The events of a store by what its journal says.
fn events(store: &Path) -> BTreeMap<u64, Vec<u8>> {
    let mut reader = Reader::from_start(&store.join(JOURNAL)).unwrap();
    let mut found = BTreeMap::new();
    while let Some((_, record)) = reader.next().unwrap() {
        found.insert(record.header.seq.0, bytes_of(&record));
    }
    found
}

/// What is there is what there was, without what is lost, and the recovery behind it.
fn holds(store: &Path, records: &[Record], lost: &BTreeSet<u64>, recovered: Recovered) {
    let (report, _) = verify::journal(store).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!(report.head.epoch, recovered.epoch);
    let mut found = events(store);
    found.retain(|seq, _| *seq <= records.len() as u64);
    let mut wanted = BTreeMap::new();
    for record in records {
        wanted.insert(record.header.seq.0, bytes_of(record));
    }
    wanted.retain(|seq, _| !lost.contains(seq));
    let (found_seqs, wanted_seqs): (Vec<_>, Vec<_>) =
        (found.keys().collect(), wanted.keys().collect());
    assert_eq!(found_seqs, wanted_seqs);
    assert!(found == wanted, "an event has other bytes");
}

type Harm = Box<dyn Fn(&Path, &[Record])>;

/// Each harm with the events that it costs.
fn harms(records: &[Record]) -> Vec<(&'static str, Harm, BTreeSet<u64>)> {
    let store = store_of(records);
    let names = journal::segments(&store.path().join(JOURNAL)).unwrap();
    assert!(names.len() > 4, "{names:?}");
    let (second, third) = (names[1].0, names[2].0);
    let at = second + 2;
    let one = |seq: u64| BTreeSet::from([seq]);
    let of = move |records: &[Record], seq: u64| records[seq as usize - 1].clone();
    let flip = move |store: &Path, records: &[Record], seq: u64, from_end: bool| {
        let record = of(records, seq);
        let (path, start) = place(store, &record);
        let at = match from_end {
            true => start + record.frame_len() - 33,
            false => start + 40,
        };
        change(&path, |bytes| bytes[at] ^= 1);
    };
    let splice =
        move |store: &Path, records: &[Record], seq: u64, with: Vec<Vec<u8>>, of_len: u64| {
            let (path, start) = place(store, &of(records, seq));
            let len: usize = (seq..seq + of_len)
                .map(|seq| of(records, seq).frame_len())
                .sum();
            change(&path, |bytes| {
                drop(bytes.splice(start..start + len, with.concat()))
            });
        };
    let mut harms: Vec<(&'static str, Harm, BTreeSet<u64>)> = Vec::new();
    harms.push(("nothing", Box::new(|_, _| {}), BTreeSet::new()));
    for seq in [1, at, second, third - 1] {
        let harm = move |store: &Path, records: &[Record]| flip(store, records, seq, false);
        harms.push(("a flipped header byte", Box::new(harm), one(seq)));
        let harm = move |store: &Path, records: &[Record]| flip(store, records, seq, true);
        harms.push(("a flipped payload byte", Box::new(harm), one(seq)));
        let harm = move |store: &Path, records: &[Record]| splice(store, records, seq, vec![], 1);
        harms.push(("removed", Box::new(harm), one(seq)));
    }
    let harm = move |store: &Path, records: &[Record]| {
        let twice = vec![bytes_of(&of(records, at)), bytes_of(&of(records, at))];
        splice(store, records, at, twice, 1);
    };
    harms.push(("doubled", Box::new(harm), BTreeSet::new()));
    let harm = move |store: &Path, records: &[Record]| {
        let turned = vec![bytes_of(&of(records, at + 1)), bytes_of(&of(records, at))];
        splice(store, records, at, turned, 2);
    };
    harms.push(("swapped", Box::new(harm), BTreeSet::new()));
    let harm = move |store: &Path, records: &[Record]| {
        let record = of(records, at);
        let mut header = record.header.clone();
        header.time_unix_us += 1;
        let other = Record::seal(header, record.salt, record.payload).unwrap();
        splice(store, records, at, vec![bytes_of(&other)], 1);
    };
    harms.push(("another, sealed again", Box::new(harm), one(at)));
    let harm = move |store: &Path, records: &[Record]| {
        let (path, start) = place(store, &of(records, at));
        change(&path, |bytes| bytes.truncate(start + 7));
    };
    harms.push(("cut in the middle", Box::new(harm), (at..third).collect()));
    let harm = |store: &Path, _: &[Record]| std::fs::remove_file(&files(store)[1]).unwrap();
    harms.push(("a segment gone", Box::new(harm), (second..third).collect()));
    let harm = |store: &Path, _: &[Record]| std::fs::remove_file(&files(store)[0]).unwrap();
    harms.push((
        "the first segment gone",
        Box::new(harm),
        (1..second).collect(),
    ));
    for number in [0, 2] {
        let harm = move |store: &Path, _: &[Record]| {
            change(&files(store)[number], |bytes| bytes[20] ^= 1);
        };
        harms.push(("a damaged head", Box::new(harm), BTreeSet::new()));
    }
    let harm = |store: &Path, _: &[Record]| {
        let files = files(store);
        let aside = store.join("aside");
        std::fs::rename(&files[1], &aside).unwrap();
        std::fs::rename(&files[2], &files[1]).unwrap();
        std::fs::rename(&aside, &files[2]).unwrap();
    };
    harms.push(("segments swapped", Box::new(harm), BTreeSet::new()));
    let last = names.last().unwrap().0;
    let harm = |store: &Path, _: &[Record]| {
        change(files(store).last().unwrap(), |bytes| {
            bytes.truncate(segment::LEN)
        });
    };
    harms.push((
        "the end cut",
        Box::new(harm),
        (last..=records.len() as u64).collect(),
    ));
    harms
}

/// A store that was used, so that something beside the journal knows how far it goes.
fn used(records: &[Record]) -> TempDir {
    let store = store_of(records);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let log = Log::open_within(store.path(), Open::Existing, SMALL, |_| {}).await;
        log.unwrap().close().await;
    });
    assert!(store.path().join(HEAD).exists());
    store
}

#[test]
fn what_is_lost_is_named_and_all_else_stays() {
    let records = Story::of(5, 120).records;
    let sound = used(&records);
    for (what, harm, costs) in harms(&records) {
        println!("{what}: {costs:?}");
        let store = tempfile::tempdir().unwrap();
        copy_tree(sound.path(), store.path());
        harm(store.path(), &records);
        let (lost, recovered) = recover(store.path()).unwrap();
        assert_eq!(lost, costs, "{what}");
        assert_eq!(recovered.epoch, Epoch(2), "{what}");
        holds(store.path(), &records, &lost, recovered);
        let (again, recovered) = recover(store.path()).unwrap();
        assert_eq!(again, BTreeSet::new(), "{what}");
        assert_eq!(recovered.epoch, Epoch(3), "{what}");
        holds(store.path(), &records, &lost, recovered);
    }
}

#[test]
fn it_may_stop_at_every_step() {
    let records = Story::of(5, 120).records;
    let sound = used(&records);
    for (what, harm, costs) in harms(&records) {
        for stop in 0.. {
            let store = tempfile::tempdir().unwrap();
            copy_tree(sound.path(), store.path());
            harm(store.path(), &records);
            let mut steps = 0;
            let stopped = recover_by(store.path(), &mut |_| {
                steps += 1;
                match steps > stop {
                    true => Err(std::io::Error::other("stopped")),
                    false => Ok(()),
                }
            });
            if stopped.is_ok() {
                assert!(stop > 2, "{what}");
                break;
            }
            // Once all is in place, nothing tells whether its epoch was begun: it is not begun again.
            let kept = store.path().join("damaged-2");
            let is_finished = kept.exists() && !kept.join("unfinished").exists();
            let epoch = Epoch(if is_finished { 3 } else { 2 });
            let (lost, recovered) = recover(store.path()).unwrap();
            assert_eq!(lost, costs, "{what}, stopped at step {stop}");
            assert_eq!(recovered.epoch, epoch, "{what}, stopped at step {stop}");
            holds(store.path(), &records, &lost, recovered);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_used_as_before() {
    let records = Story::of(5, 120).records;
    for (what, harm, costs) in harms(&records) {
        let store = store_of(&records);
        // Nothing beside the journal knows its end here.
        if what == "the end cut" {
            continue;
        }
        harm(store.path(), &records);
        recover(store.path()).unwrap();
        let log = Log::open_within(store.path(), Open::Existing, SMALL, |_| {})
            .await
            .unwrap();
        let found = log.records(&Filter::default()).await.unwrap();
        assert_eq!(found.len(), records.len() + 1 - costs.len(), "{what}");
        log.operations(None).await.unwrap();
        let draft = Draft::new(
            Subject::Cloud,
            OutputCaptured {
                captured: Captured {
                    command: "true".to_owned(),
                    exit: Some(0),
                    text: Blob(b"more".to_vec()),
                    dropped_bytes: 0,
                },
            },
        );
        let drafts = draft.into_iter().collect();
        log.append(drafts, Condition::none()).await.unwrap();
        let report = log
            .check_index(log.head().await.unwrap().seq)
            .await
            .unwrap();
        println!("{what}: {report:?}");
        log.close().await;
        assert_eq!(verify::journal(store.path()).unwrap().0.findings, vec![]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_have_the_store() {
    let store = store_of(&Story::of(5, 40).records);
    let log = Log::open(store.path(), Open::Existing, |_| {})
        .await
        .unwrap();
    let refused = Recovery::plan(store.path(), Away::Awaited).map(|_| ());
    assert!(matches!(refused, Err(Error::InUse(_))), "{refused:?}");
    log.close().await;
    Recovery::plan(store.path(), Away::Awaited).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to the bytes: what is left is sound, and what is there is what there was.
    #[test]
    fn random_damage_costs_only_what_it_hit(
        hits in prop::collection::vec((any::<u32>(), 0_u8..4, 1_usize..400), 1..6)
    ) {
        let records = Story::of(9, 80).records;
        let store = used(&records);
        let mut touched: BTreeSet<u64> = BTreeSet::new();
        for (at, how, len) in hits {
            let files = files(store.path());
            let path = &files[at as usize % files.len()];
            change(path, |bytes| {
                let at = (at as usize / 7) % bytes.len().max(1);
                let end = (at + len).min(bytes.len());
                match how {
                    0 if at < bytes.len() => bytes[at] ^= 0x11,
                    1 => bytes[at..end].fill(0),
                    2 => drop(bytes.drain(at..end)),
                    _ => {
                        let again = bytes[at..end].to_vec();
                        drop(bytes.splice(at..at, again));
                    }
                }
            });
        }
        // What is still there, byte for byte, must not be lost.
        let all: Vec<Vec<u8>> = files(store.path()).iter().map(|path| std::fs::read(path).unwrap()).collect();
        for record in &records {
            let frame = bytes_of(record);
            if !all.iter().any(|bytes| position(bytes, &frame).is_some()) {
                touched.insert(record.header.seq.0);
            }
        }
        let recovered = recover(store.path());
        // Where more than its number was hit, what is left can't be told from a later layout: then nothing is done.
        if let Err(Error::Undecidable(journal::Error::Newer { .. })) = &recovered {
            return Ok(());
        }
        let (lost, recovered) = recovered.unwrap();
        prop_assert_eq!(&lost, &touched);
        holds(store.path(), &records, &lost, recovered);
    }
}

/// The hash that a frame ends with is also in the header of the next one, 46 bytes behind its beginning: with 78 bytes less in
/// front of that, the one frame reads as whole, over the beginning of the other.
#[test]
fn what_begins_within_a_changed_record_is_kept() {
    let records = Story::of(9, 80).records;
    let store = used(&records);
    let hit = &records[26];
    let (path, start) = place(store.path(), hit);
    let end = start + hit.frame_len();
    change(&path, |bytes| drop(bytes.drain(end - 139..end - 61)));
    let (lost, recovered) = recover(store.path()).unwrap();
    assert_eq!(lost, BTreeSet::from([27]));
    holds(store.path(), &records, &lost, recovered);
}
