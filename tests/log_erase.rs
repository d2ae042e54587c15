//! Erasing payloads: gone from every file of a store, told by events, and gone on with after a crash at any point.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tallybook::journal::{Journal, own_segments, segment_path};
use tallybook::log::retention::Archiving;
use tallybook::log::{Condition, Draft, Error, Filter, JOURNAL, Limits, Log, Open, verify};
use tallybook_events::event::{ErasureAnnounced, ErasureCause, Event, OutputCaptured, SeqRange};
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::{Body, Frame, Record};
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_testkit::files::position;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

const SECRET: &[u8] = b"correct horse battery staple";

fn output(text: &[u8]) -> Draft {
    let captured = Captured {
        command: "cat".to_owned(),
        exit: Some(0),
        text: Blob(text.to_vec()),
        dropped_bytes: 0,
    };
    Draft::new(Subject::Cloud, OutputCaptured { captured }).unwrap()
}

async fn open(store: &Path) -> Log {
    // Small segments: what is erased is in one that others follow.
    let limits = Limits { segment_len: 2000 };
    Log::open_within(store, Open::Create, limits, |_| {})
        .await
        .unwrap()
}

/// A store with the secret in event 5.
async fn store() -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    let log = open(store.path()).await;
    for number in 2..40_u8 {
        let text = if number == 5 { SECRET } else { b"harmless" };
        log.append(vec![output(text)], Condition::none())
            .await
            .unwrap();
    }
    log.records(&Filter::default()).await.unwrap();
    log.close().await;
    store
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// The files of a store that hold the secret.
fn holding(store: &Path) -> Vec<PathBuf> {
    let has =
        |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| position(&bytes, SECRET).is_some());
    files(store).into_iter().filter(has).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_in_no_file_and_everything_else_is() {
    let store = store().await;
    assert_eq!(holding(store.path()).len(), 1, "the journal has it");
    let log = open(store.path()).await;
    // Another terminal asks; the one that holds the store does it.
    let client = open(store.path()).await;
    assert!(!client.is_holder().await);
    let before = log.records(&Filter::default()).await.unwrap();
    let erased = client
        .erase(
            &BTreeSet::from([Seq(5)]),
            ErasureCause::Redaction,
            "it was printed",
        )
        .await
        .unwrap();
    assert_eq!((erased.announced, erased.payloads), (Seq(40), 1));
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
    let after = log.records(&Filter::default()).await.unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.header, after.header);
        match before.header.seq == Seq(5) {
            true => assert_eq!(after.body(), Body::Erased),
            false => assert_eq!(before, after),
        }
    }
    client.close().await;
    log.close().await;
    let (report, _) = verify::journal(store.path()).unwrap();
    assert_eq!((report.findings, report.erased), (vec![], 1));
    // The databases, built anew from what is left.
    for name in ["index", "projection"] {
        std::fs::remove_dir_all(store.path().join(name)).unwrap();
    }
    let log = open(store.path()).await;
    assert_eq!(log.records(&Filter::default()).await.unwrap(), after);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_to_know_what_may_be_done_is_not_erased() {
    let store = store().await;
    let log = open(store.path()).await;
    for (seq, is_there) in [(1, true), (4000, false)] {
        let seqs = BTreeSet::from([Seq(2), Seq(seq)]);
        let error = log.erase(&seqs, ErasureCause::Redaction, "").await.err();
        assert!(
            matches!(&error, Some(Error::NotErasable { kind, .. }) if kind.is_some() == is_there),
            "{error:?}"
        );
    }
    assert_eq!(log.head().await.unwrap().seq, Seq(39), "nothing was begun");
    log.close().await;
}

/// Announced, and power was lost: before the first byte, in the middle, and behind the last one.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_was_cut_off_is_gone_on_with() {
    for (erased_bytes, with_databases) in [0, 1, 20, 32, 40, usize::MAX]
        .into_iter()
        .flat_map(|n| [(n, true), (n, false)])
    {
        let store = store().await;
        let log = open(store.path()).await;
        let announced = ErasureAnnounced {
            cause: ErasureCause::Retention,
            reason: "old".to_owned(),
            events: vec![SeqRange {
                first: Seq(5),
                last: Seq(5),
            }],
        };
        let draft = Draft::new(Subject::Cloud, announced).unwrap();
        log.append(vec![draft], Condition::none()).await.unwrap();
        let record = log.records(&Filter::at(Seq(5))).await.unwrap().remove(0);
        log.close().await;
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let body = 32 + record.payload.len();
        let start = frame.len() - 32 - body;
        let path = files(&store.path().join(JOURNAL))
            .into_iter()
            .find(|path| position(&std::fs::read(path).unwrap(), &frame).is_some())
            .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = position(&bytes, &frame).unwrap();
        let end = at + start + erased_bytes.min(body);
        bytes[at + start..end].fill(0);
        std::fs::write(&path, bytes).unwrap();
        if !with_databases {
            for name in ["index", "projection"] {
                std::fs::remove_dir_all(store.path().join(name)).unwrap();
            }
        }
        let (report, _) = verify::journal(store.path()).unwrap();
        let is_half = (1..body).contains(&erased_bytes);
        assert_eq!(
            (report.findings, report.unfinished),
            (vec![], u64::from(is_half))
        );
        let log = open(store.path()).await;
        let kind = Filter {
            kind: Some("erasure.completed".to_owned()),
            ..Filter::default()
        };
        assert_eq!(log.records(&kind).await.unwrap().len(), 1, "{erased_bytes}");
        let record = log.records(&Filter::at(Seq(5))).await.unwrap().remove(0);
        assert_eq!(record.body(), Body::Erased);
        log.close().await;
        assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
        let (report, _) = verify::journal(store.path()).unwrap();
        assert_eq!((report.findings, report.erased), (vec![], 1));
    }
}

/// Zeros that nobody announced are damage, and so is what was announced, done, and is there all the same.
#[tokio::test(flavor = "multi_thread")]
async fn erasures_and_what_is_said_of_them_are_held_against_each_other() {
    let store = store().await;
    let untouched = std::fs::read(segment_path(&store.path().join(JOURNAL), Seq(1))).unwrap();
    let log = open(store.path()).await;
    let seqs = BTreeSet::from([Seq(2)]);
    log.erase(&seqs, ErasureCause::Redaction, "").await.unwrap();
    log.close().await;
    let path = segment_path(&store.path().join(JOURNAL), Seq(1));
    std::fs::write(&path, &untouched).unwrap();
    let (report, _) = verify::journal(store.path()).unwrap();
    let classes: Vec<_> = report
        .findings
        .iter()
        .map(|one| (one.seq, one.class))
        .collect();
    assert_eq!(classes, [(Seq(2), verify::Class::Unerased)]);
}

/// Announces that events will be erased, as somebody who died right behind that.
async fn announce(store: &Path, ranges: &[(u64, u64)]) {
    let log = open(store).await;
    let range = |(first, last): &(u64, u64)| SeqRange {
        first: Seq(*first),
        last: Seq(*last),
    };
    let announced = ErasureAnnounced {
        cause: ErasureCause::Redaction,
        reason: "it was printed".to_owned(),
        events: ranges.iter().map(range).collect(),
    };
    let draft = Draft::new(Subject::Cloud, announced).unwrap();
    log.append(vec![draft], Condition::none()).await.unwrap();
    log.close().await;
}

/// Opens the store and lets it go; what was told meanwhile.
async fn opened(store: &Path) -> Vec<String> {
    let (sender, told) = std::sync::mpsc::channel();
    let limits = Limits { segment_len: 2000 };
    let tell = move |what| drop(sender.send(what));
    let log = Log::open_within(store, Open::Existing, limits, tell).await;
    log.unwrap().close().await;
    told.try_iter().collect()
}

/// All whole records of the journal, whatever else is there.
fn records(store: &Path) -> Vec<Record> {
    let mut found = Vec::new();
    for first in own_segments(&store.join(JOURNAL)).unwrap() {
        let bytes = std::fs::read(segment_path(&store.join(JOURNAL), first)).unwrap();
        let places = 0..bytes.len();
        found.extend(places.filter_map(|at| Some(Record::read_frame(&bytes[at..]).ok()?.0)));
    }
    found
}

/// How often an erasure is said to be done, and of how many payloads.
fn completed(store: &Path) -> Vec<u64> {
    let decode = |record: &Record| {
        let entry = Entry::from_record(record).unwrap();
        match entry.event {
            Event::ErasureCompleted(completed) => Some(completed.payloads),
            _ => None,
        }
    };
    records(store).iter().filter_map(decode).collect()
}

/// The file of the journal that holds an event, and where its frame is.
fn place(store: &Path, seq: u64) -> (PathBuf, Range<usize>) {
    for first in own_segments(&store.join(JOURNAL)).unwrap() {
        let path = segment_path(&store.join(JOURNAL), first);
        let bytes = std::fs::read(&path).unwrap();
        let mut at = segment::LEN;
        while let Ok(frame) = Frame::read(&bytes[at..]) {
            if frame.header().unwrap().seq == Seq(seq) {
                return (path, at..at + frame.len());
            }
            at += frame.len();
        }
    }
    panic!("event {seq} is nowhere");
}

/// Changes a byte of a frame's head: the record can't be found any more.
fn damage(store: &Path, seq: u64) -> (PathBuf, usize) {
    let (path, frame) = place(store, seq);
    mend(&path, frame.start + 5);
    (path, frame.start + 5)
}

/// Changes that byte, or changes it back.
fn mend(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

/// What stands before it is damaged: that does not end the segment.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_damage_is_erased() {
    let store = store().await;
    announce(store.path(), &[(5, 5)]).await;
    let (path, at) = damage(store.path(), 4);
    opened(store.path()).await;
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
    mend(&path, at);
    opened(store.path()).await;
    assert_eq!(completed(store.path()), [1]);
}

/// What can't be reached stays announced, all others are erased, and the store is open to everybody meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_reached_is_not_said_to_be_erased() {
    let store = store().await;
    announce(store.path(), &[(2, 30)]).await;
    let (path, at) = damage(store.path(), 5);
    for _ in 0..2 {
        let told = opened(store.path()).await;
        let is_told = |what: &String| what.contains("event 5 is not erased");
        assert!(told.iter().any(is_told), "{told:?}");
        assert_eq!(completed(store.path()), Vec::<u64>::new());
    }
    for record in records(store.path()) {
        let is_wanted = (2..=30).contains(&record.header.seq.0);
        assert_eq!(record.body() == Body::Erased, is_wanted);
    }
    mend(&path, at);
    assert_eq!(holding(store.path()).len(), 1);
    opened(store.path()).await;
    assert_eq!(completed(store.path()), [29]);
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
    let (report, _) = verify::journal(store.path()).unwrap();
    assert_eq!((report.findings, report.erased), (vec![], 29));
}

async fn archive(store: &Path) {
    let log = open(store).await;
    let archiving = Archiving {
        before: None,
        keep: 1,
        to: None,
        dry_run: false,
    };
    assert!(!log.archive(archiving).await.unwrap().is_empty());
    log.close().await;
}

/// The archive is not mounted: its directory is empty, or what a link leads to is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_an_archive_that_is_away_stays_announced() {
    for is_link in [false, true] {
        let store = store().await;
        archive(store.path()).await;
        announce(store.path(), &[(5, 5)]).await;
        let (here, away) = (store.path().join("archive"), store.path().join("away"));
        std::fs::rename(&here, &away).unwrap();
        if is_link {
            std::os::unix::fs::symlink(store.path().join("nowhere"), &here).unwrap();
        }
        let told = opened(store.path()).await;
        let is_told = |what: &String| what.contains("event 5 is not erased");
        assert!(told.iter().any(is_told), "{told:?}");
        assert_eq!(completed(store.path()), Vec::<u64>::new());
        if is_link {
            std::fs::remove_file(&here).unwrap();
        }
        std::fs::rename(&away, &here).unwrap();
        opened(store.path()).await;
        assert_eq!(completed(store.path()), [1]);
        let (report, _) = verify::journal(store.path()).unwrap();
        assert_eq!((report.findings, report.erased), (vec![], 1));
    }
}

/// A link that leads to nothing may hide another copy of what is here.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_an_archive_that_is_away_counts() {
    let store = store().await;
    let link = store.path().join("archive");
    std::os::unix::fs::symlink(store.path().join("nowhere"), &link).unwrap();
    let log = open(store.path()).await;
    let seqs = BTreeSet::from([Seq(5)]);
    let error = log.erase(&seqs, ErasureCause::Redaction, "").await.err();
    assert!(matches!(error, Some(Error::Journal(_))), "{error:?}");
    // What is here is gone all the same.
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
    // The newest segment is never there.
    let newest = log.head().await.unwrap().seq;
    log.append(vec![output(b"new")], Condition::none())
        .await
        .unwrap();
    let seqs = BTreeSet::from([newest.next()]);
    log.erase(&seqs, ErasureCause::Redaction, "").await.unwrap();
    log.close().await;
    std::fs::remove_file(&link).unwrap();
    opened(store.path()).await;
    assert_eq!(completed(store.path()), [1, 1]);
}

/// Copies that a recovery, a torn end or a process that was killed left behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_aside_holds_nothing_of_it() {
    let store = store().await;
    let (path, frame) = place(store.path(), 5);
    let segment = std::fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let kept = store.path().join("damaged-2");
    std::fs::create_dir(&kept).unwrap();
    // One that is whole, one that is damaged just there, and an end that was torn within it.
    std::fs::write(kept.join(&name), &segment).unwrap();
    let mut damaged = segment.clone();
    damaged[frame.start + 5] ^= 0xff;
    let other = store.path().join("damaged-3");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join(&name), &damaged).unwrap();
    let torn = format!("{name}.torn-{}-1", frame.start);
    let torn_bytes = &segment[frame.start..frame.end - 20];
    std::fs::write(store.path().join(JOURNAL).join(torn), torn_bytes).unwrap();
    let whole = format!("{name}.torn-{}-2", frame.start);
    let whole_bytes = &segment[frame.clone()];
    std::fs::write(store.path().join(JOURNAL).join(whole), whole_bytes).unwrap();
    assert_eq!(holding(store.path()).len(), 5);
    let log = open(store.path()).await;
    let seqs = BTreeSet::from([Seq(5)]);
    log.erase(&seqs, ErasureCause::Redaction, "").await.unwrap();
    log.close().await;
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
    // Every other event stays there.
    let mut expected = segment.clone();
    let body = frame.end - 64 - record_payload_len(&segment[frame.clone()])..frame.end - 32;
    expected[body].fill(0);
    assert_eq!(std::fs::read(kept.join(&name)).unwrap(), expected);
    let left = std::fs::read(other.join(&name)).unwrap();
    let behind = &segment[frame.end..];
    assert!(left.ends_with(behind), "what is sound stays");
    assert_eq!(left[..frame.start], segment[..frame.start]);
}

fn record_payload_len(frame: &[u8]) -> usize {
    Frame::read(frame).unwrap().payload.len()
}

/// What is packed is packed again; what can't be unpacked has to be removed, and is named.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_aside_of_an_archive_holds_nothing_of_it() {
    let store = store().await;
    archive(store.path()).await;
    let packed = std::fs::read_dir(store.path().join("archive")).unwrap();
    let mut packed: Vec<PathBuf> = packed.map(|entry| entry.unwrap().path()).collect();
    packed.sort();
    let unpacked = |path: &Path| {
        let stored = std::fs::read(path).unwrap();
        zstd::decode_all(&stored[tallybook_events::archive::LEN..]).unwrap()
    };
    let has = |bytes: &[u8]| position(bytes, SECRET).is_some();
    let source = packed.iter().find(|path| has(&unpacked(path))).unwrap();
    let kept = store.path().join("damaged-2");
    std::fs::create_dir(&kept).unwrap();
    let copy = kept.join(source.file_name().unwrap());
    std::fs::copy(source, &copy).unwrap();
    let broken = store.path().join("damaged-3");
    std::fs::create_dir(&broken).unwrap();
    let broken = broken.join(source.file_name().unwrap());
    let mut bytes = std::fs::read(source).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 0xff;
    std::fs::write(&broken, bytes).unwrap();
    let log = open(store.path()).await;
    let seqs = BTreeSet::from([Seq(5)]);
    let error = log.erase(&seqs, ErasureCause::Redaction, "").await.err();
    let text = error.map(|error| causes(&error)).unwrap_or_default();
    assert!(text.contains(&broken.display().to_string()), "{text}");
    assert!(text.contains("remove it"), "{text}");
    log.close().await;
    assert!(!has(&unpacked(source)) && !has(&unpacked(&copy)));
    std::fs::remove_file(&broken).unwrap();
    opened(store.path()).await;
    assert_eq!(completed(store.path()), [1]);
}

fn causes(error: &dyn std::error::Error) -> String {
    let because = error.source().map(causes).unwrap_or_default();
    format!("{error}: {because}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_written_is_removed() {
    let store = store().await;
    let names = [
        "journal/00000000000000000001.new",
        "archive/00000000000000000001.seg.new",
    ];
    let leave = || {
        for name in names {
            let path = store.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, SECRET).unwrap();
        }
    };
    let is_there = || names.map(|name| store.path().join(name).exists());
    leave();
    let log = open(store.path()).await;
    assert_eq!(is_there(), [false, false], "at a start");
    leave();
    // The next segment, being born.
    let born = store.path().join("journal/00000000000000009999.new");
    std::fs::write(&born, "").unwrap();
    let seqs = BTreeSet::from([Seq(5)]);
    log.erase(&seqs, ErasureCause::Redaction, "").await.unwrap();
    assert_eq!(is_there(), [false, false], "before an erasure");
    assert!(born.exists());
    log.close().await;
    assert_eq!(holding(store.path()), Vec::<PathBuf>::new());
}

/// Announced, read while it was intact, erased, and then said to be: the one who reads is not to be misled.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_while_it_is_verified_is_no_finding() {
    let store = store().await;
    let log = open(store.path()).await;
    // What says so is in a segment that was there before.
    loop {
        let appended = log.append(vec![output(b"more")], Condition::none()).await;
        let last = own_segments(&store.path().join(JOURNAL)).unwrap().pop();
        if last == Some(appended.unwrap()[0].seq) {
            break;
        }
    }
    let runtime = tokio::runtime::Handle::current();
    let looked = std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut is_erased = false;
            let scope = verify::Scope {
                threads: 1,
                ..verify::Scope::default()
            };
            verify::settled(store.path(), scope, |progress| {
                // Event 5 was read; the last segment was not.
                if progress.seq > Seq(10) && !is_erased {
                    is_erased = true;
                    let seqs = BTreeSet::from([Seq(5)]);
                    let erased = log.erase(&seqs, ErasureCause::Redaction, "");
                    runtime.block_on(erased).unwrap();
                }
            })
        });
        looker.join().unwrap()
    });
    let (_, report) = looked.unwrap();
    assert_eq!((report.findings, report.erased), (vec![], 1));
    log.close().await;
}

/// Ranges that no log can have.
const WRONG: [(u64, u64); 4] = [(9, 4), (0, 3), (2, 1000), (7, u64::MAX)];

fn announced(first: u64, last: u64) -> ErasureAnnounced {
    ErasureAnnounced {
        cause: ErasureCause::Redaction,
        reason: String::new(),
        events: vec![SeqRange {
            first: Seq(first),
            last: Seq(last),
        }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_can_not_be_are_refused() {
    let store = store().await;
    let log = open(store.path()).await;
    for (first, last) in WRONG {
        let draft = Draft::new(Subject::Cloud, announced(first, last)).unwrap();
        let refused = log.append(vec![draft], Condition::none()).await;
        assert!(refused.is_err(), "{first} to {last}");
    }
    log.close().await;
}

/// A forged log has them all the same: that is told, and misleads nobody.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_can_not_be_are_told_and_ignored() {
    for (first, last) in WRONG {
        let mut story = Story::of(3, 60);
        story.upkeep(announced(first, last));
        let store = tempfile::tempdir().unwrap();
        let directory = store.path().join(JOURNAL);
        let mut journal = Journal::create(&directory, samples::log(), Limits::default()).unwrap();
        let records = story.records;
        for write in records.chunk_by(|one, next| one.header.write == next.header.write) {
            journal.append(write).unwrap();
        }
        drop(journal);
        let (report, _) = verify::journal(store.path()).unwrap();
        let classes: Vec<_> = report.findings.iter().map(|one| one.class).collect();
        assert_eq!(classes, [verify::Class::Contradiction], "{first} to {last}");
        opened(store.path()).await;
        let (report, _) = verify::journal(store.path()).unwrap();
        assert_eq!(report.erased, 0, "{first} to {last}");
    }
}
