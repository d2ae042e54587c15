//! The journal's files: a torn end is cut and kept aside, damage is named by its event, and nothing that was flipped,
//! swapped, spliced, removed or doubled goes unseen.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tallybook::journal::{self, Journal, Limits, Reader, segment_path};
use tallybook::log::{Error, Filter, JOURNAL, Log, Open, verify};
use tallybook_events::header::HeaderView;
use tallybook_events::ids::Seq;
use tallybook_events::record::{Body, Frame, Record};
use tallybook_events::segment;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

const ONE_SEGMENT: Limits = Limits {
    segment_len: 1 << 30,
};

/// Writes records as a store's journal, a write at a time.
fn store_of(records: &[Record], limits: Limits) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(&store.path().join(JOURNAL), samples::log(), limits).unwrap();
    for write in records.chunk_by(|earlier, later| earlier.header.write == later.header.write) {
        journal.append(write).unwrap();
    }
    store
}

fn first_segment(store: &Path) -> PathBuf {
    segment_path(&store.join(JOURNAL), Seq(1))
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    frame
}

fn findings(store: &Path) -> Vec<verify::Finding> {
    verify::journal(store).unwrap().0.findings
}

async fn open(store: &Path) -> Result<(Log, Vec<String>), Error> {
    let (sender, notices) = std::sync::mpsc::channel();
    let log = Log::open(store, Open::Existing, move |what| drop(sender.send(what))).await?;
    Ok((log, notices.try_iter().collect()))
}

#[test]
fn a_sound_journal_has_no_findings() {
    let story = Story::of_all_kinds();
    let store = store_of(&story.records, ONE_SEGMENT);
    let (report, state) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!(report.head.seq, Seq(story.records.len() as u64));
    let erased = story
        .records
        .iter()
        .filter(|record| record.body() == Body::Erased);
    assert_eq!(report.erased, erased.clone().count() as u64);
    assert_eq!(
        report.checks.commitments + report.erased,
        story.records.len() as u64
    );
    assert_eq!(state.head, report.head);
}

/// Every byte of a segment with every kind of event, flipped one after the other.
#[test]
fn every_flipped_byte_is_named() {
    let story = Story::of_all_kinds();
    let store = store_of(&story.records, ONE_SEGMENT);
    let path = first_segment(store.path());
    let sound = std::fs::read(&path).unwrap();
    // Which event each byte is part of; the segment's head counts as the first.
    let mut owner = vec![1; segment::LEN];
    for record in &story.records {
        owner.resize(owner.len() + record.frame_len(), record.header.seq.0);
    }
    assert_eq!(owner.len(), sound.len());
    let last_write = story.records.last().unwrap().header.write.0;
    // Half of the places a thread, each on a copy of its own.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (sound, owner) = (&sound, &owner);
            scope.spawn(move || {
                let copy = tempfile::tempdir().unwrap();
                let path = first_segment(copy.path());
                std::fs::create_dir(path.parent().unwrap()).unwrap();
                let mut bytes = sound.clone();
                for at in (half..sound.len()).step_by(2) {
                    bytes[at] ^= 0x20;
                    std::fs::write(&path, &bytes).unwrap();
                    let report = verify::journal(copy.path()).unwrap().0;
                    let found = report.findings;
                    // The last write may never have been acknowledged: then it is no damage, but said all the same.
                    let named = match owner[at] < last_write {
                        true => found.iter().any(|finding| finding.seq.0 == owner[at]),
                        false => report.torn_bytes > 0,
                    };
                    assert!(named, "byte {at} of event {}: {found:?}", owner[at]);
                    bytes[at] = sound[at];
                }
            });
        }
    });
}

#[test]
fn swaps_splices_removals_and_doubles_are_named() {
    let records = Story::of(5, 40).records;
    let other = Story::of(7, 40).records;
    let store = store_of(&records[..2], ONE_SEGMENT);
    let head = std::fs::read(first_segment(store.path())).unwrap()[..segment::LEN].to_vec();
    let check = |what: &str, changed: Vec<&Record>, seq: u64| {
        let mut bytes = head.clone();
        changed
            .iter()
            .for_each(|record| bytes.extend(bytes_of(record)));
        std::fs::write(first_segment(store.path()), bytes).unwrap();
        let found = findings(store.path());
        assert!(
            found.iter().any(|finding| finding.seq == Seq(seq)),
            "{what}: event {seq} is not among {found:?}"
        );
    };
    let last_write = records.last().unwrap().header.write.0 as usize;
    for at in 1..last_write - 1 {
        let seq = at as u64 + 1;
        let mut removed: Vec<&Record> = records.iter().collect();
        removed.remove(at);
        check("removed", removed, seq);
        let mut doubled: Vec<&Record> = records.iter().collect();
        doubled.insert(at, &records[at]);
        check("doubled", doubled, seq + 1);
        let mut swapped: Vec<&Record> = records.iter().collect();
        swapped.swap(at, at + 1);
        check("swapped", swapped, seq);
        if at < other.len() && records[at].hash != other[at].hash {
            let mut spliced: Vec<&Record> = records.iter().collect();
            spliced[at] = &other[at];
            let next = &records[at + 1];
            let seq = if next.header.previous == other[at].hash {
                seq
            } else {
                seq + 1
            };
            check("spliced", spliced, seq);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_cut_and_kept_aside() {
    let records = Story::of(3, 30).records;
    // Behind a whole append, so that what is torn is exactly the next one.
    let from = (10..).find(|at| records[at - 1].header.more == 0).unwrap();
    let next = bytes_of(&records[from]);
    for cut in [1, 15, 16, 60, next.len() - 33, next.len() - 1] {
        for zeros in [0, 40, 5000] {
            let store = store_of(&records[..from], ONE_SEGMENT);
            let path = first_segment(store.path());
            let sound = std::fs::read(&path).unwrap();
            let mut torn = next[..cut].to_vec();
            torn.resize(cut + zeros, 0);
            std::fs::write(&path, [sound.clone(), torn.clone()].concat()).unwrap();
            let (report, _) = verify::journal(store.path()).unwrap();
            // Zeros at the end are room that was made for what did not come any more.
            while torn.ends_with(&[0]) {
                torn.pop();
            }
            assert_eq!(
                (report.findings, report.torn_bytes),
                (vec![], torn.len() as u64)
            );
            let (log, notices) = open(store.path()).await.unwrap();
            assert!(
                notices
                    .iter()
                    .any(|notice| notice.contains("was not whole")),
                "{notices:?}"
            );
            assert_eq!(log.head().await.unwrap().seq, Seq(from as u64));
            log.close().await;
            assert_eq!(std::fs::read(&path).unwrap(), sound);
            let mut kept = path.as_os_str().to_owned();
            kept.push(format!(".torn-{}-1", sound.len()));
            assert_eq!(std::fs::read(kept).unwrap(), torn);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_is_there_in_part_is_not_there() {
    let records = Story::of_all_kinds().records;
    let from = (2..records.len())
        .find(|at| records[*at].header.more > 0 && records[at - 1].header.more == 0)
        .unwrap();
    let store = store_of(&records[..from], ONE_SEGMENT);
    let path = first_segment(store.path());
    let sound = std::fs::read(&path).unwrap();
    // The first of several events is whole; the next one never arrived.
    std::fs::write(&path, [sound.clone(), bytes_of(&records[from])].concat()).unwrap();
    let (report, _) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!(report.torn_bytes, records[from].frame_len() as u64);
    let (log, _) = open(store.path()).await.unwrap();
    assert_eq!(log.head().await.unwrap().seq, Seq(from as u64));
    log.close().await;
    assert_eq!(std::fs::read(&path).unwrap(), sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_middle_is_refused_with_its_event() {
    let records = Story::of(11, 100).records;
    let store = store_of(&records, ONE_SEGMENT);
    let path = first_segment(store.path());
    let sound = std::fs::read(&path).unwrap();
    for damaged in [1_usize, 20, 70, records.len() - 4] {
        let start: usize = segment::LEN
            + records[..damaged]
                .iter()
                .map(Record::frame_len)
                .sum::<usize>();
        // In its header, and in its payload, which the chain does not cover.
        for at in [start + 30, start + records[damaged].frame_len() - 34] {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            match open(store.path()).await.map(|_| ()).unwrap_err() {
                Error::Journal(journal::Error::Damaged { seq, .. }) => {
                    assert_eq!(seq, Seq(damaged as u64 + 1));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_roll_over_and_none_may_be_missing() {
    let records = Story::of(13, 200).records;
    let store = store_of(
        &records,
        Limits {
            segment_len: 20_000,
        },
    );
    let all = journal::segments(&store.path().join(JOURNAL)).unwrap();
    assert!(all.len() > 3, "{all:?}");
    assert_eq!(findings(store.path()), vec![]);
    let (log, _) = open(store.path()).await.unwrap();
    let read = log.records(&Filter::default()).await.unwrap();
    assert_eq!(read, records);
    log.close().await;

    let mut reader = Reader::from_start(&store.path().join(JOURNAL)).unwrap();
    let mut count = 0;
    while reader.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, records.len());

    for missing in &all[..all.len() - 1] {
        let path = segment_path(&store.path().join(JOURNAL), *missing);
        let aside = store.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        assert!(!findings(store.path()).is_empty(), "segment {missing}");
        for name in ["index", "projection"] {
            let _absent = std::fs::remove_dir_all(store.path().join(name));
        }
        assert!(open(store.path()).await.is_err(), "segment {missing}");
        std::fs::rename(&aside, &path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_end_is_noticed_before_anything_is_written() {
    let records = Story::of(17, 150).records;
    let store = store_of(&records, ONE_SEGMENT);
    open(store.path()).await.unwrap().0.close().await;
    let path = first_segment(store.path());
    let sound = std::fs::read(&path).unwrap();
    let whole = (1..=120)
        .rev()
        .find(|at| records[at - 1].header.more == 0)
        .unwrap();
    // With and without the projections.
    for (keep, projection) in [(whole, true), (whole, false), (records.len() - 1, true)] {
        if !projection {
            std::fs::remove_dir_all(store.path().join("projection")).unwrap();
        }
        let len: usize =
            segment::LEN + records[..keep].iter().map(Record::frame_len).sum::<usize>();
        std::fs::write(&path, &sound[..len]).unwrap();
        let error = open(store.path()).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::TailLost { .. }), "{error:?}");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            &sound[..len],
            "nothing was written"
        );
        std::fs::write(&path, &sound).unwrap();
        open(store.path()).await.unwrap().0.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_copy_of_the_same_log_is_noticed() {
    let store = store_of(&Story::of(17, 150).records, ONE_SEGMENT);
    open(store.path()).await.unwrap().0.close().await;
    let other = store_of(&Story::of(19, 200).records, ONE_SEGMENT);
    std::fs::copy(first_segment(other.path()), first_segment(store.path())).unwrap();
    let error = open(store.path()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Rewritten { .. }), "{error:?}");
}

#[test]
fn files_with_other_names_are_left_alone() {
    let store = store_of(&Story::of(3, 10).records, ONE_SEGMENT);
    let directory = store.path().join(JOURNAL);
    for name in [
        "1.seg",
        "+0000000000000000002.seg",
        "copy.seg",
        "00000000000000000001.seg.bak",
    ] {
        std::fs::write(directory.join(name), "not ours").unwrap();
    }
    assert_eq!(journal::segments(&directory).unwrap(), vec![Seq(1)]);
    assert_eq!(findings(store.path()), vec![]);
}

/// Whoever reads beside the one who writes sees some of a write, and more of the next: that is no damage.
#[test]
fn what_is_wrong_with_the_last_segment_is_read_twice() {
    let records = Story::of(11, 60).records;
    let store = store_of(&records, Limits::default());
    let directory = store.path().join("journal");
    let last = journal::segments(&directory).unwrap().pop().unwrap();
    let path = segment_path(&directory, last);
    let whole = std::fs::read(&path).unwrap();
    for at in [whole.len() - 40, whole.len() - 400] {
        let mut seen = whole.clone();
        seen[at] ^= 1;
        std::fs::write(&path, seen).unwrap();
        // What was read is looked at; by then the file is as it is to be.
        let settle = || |_: &Frame<'_>, _: &HeaderView<'_>| std::fs::write(&path, &whole).unwrap();
        let mut wrong = Vec::new();
        let found = |at: journal::At<'_>, found| {
            let is_sound = matches!(
                found,
                journal::Found::Head | journal::Found::Record { wrong: None, .. }
            );
            if !is_sound {
                wrong.push(format!("byte {}: {found:?}", at.offset));
            }
            ControlFlow::Continue(())
        };
        let how = journal::Inspect::default();
        let tail = journal::scan(&directory, how, settle, found, |_| {}).unwrap();
        assert_eq!((wrong, tail), (Vec::<String>::new(), journal::Tail::Whole));
    }
}
