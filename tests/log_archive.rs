//! Segments in the archive: every answer stays the same, a crash loses nothing, and what changed there is named. Needs
//! root, for a tmpfs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tallybook::journal::{self, Journal, Limits, archive};
use tallybook::log::retention::{Archiving, Before, FailureClass, Moved, Restoring};
use tallybook::log::verify::{self, Class, Finding};
use tallybook::log::{
    Condition, Draft, Error, Filter, INDEX, JOURNAL, Limit, Log, Open, PROJECTION,
};
use tallybook_events::archive::{ArchiveHead, LEN, packed_hash};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, LogId, Seq};
use tallybook_events::record::Record;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

const LIMITS: Limits = Limits {
    segment_len: 20_000,
};

/// A small file system of its own, gone with this value.
struct Small(TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "this test needs root, to mount a tmpfs");
        Small(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn journal_of(directory: &Path, records: &[Record]) {
    let mut journal = Journal::create(directory, samples::log(), LIMITS).unwrap();
    for write in records.chunk_by(|earlier, later| earlier.header.write == later.header.write) {
        journal.append(write).unwrap();
    }
}

fn store_of(number: u64) -> (TempDir, Vec<Record>) {
    let store = tempfile::tempdir().unwrap();
    let records = Story::of(number, 200).records;
    journal_of(&store.path().join(JOURNAL), &records);
    (store, records)
}

async fn open(store: &Path) -> Log {
    Log::open_within(store, Open::Existing, LIMITS, |what| println!("{what}"))
        .await
        .unwrap()
}

fn all() -> Archiving {
    Archiving {
        before: None,
        keep: 0,
        to: None,
        dry_run: false,
    }
}

fn every() -> Restoring {
    Restoring {
        events: Vec::new(),
        dry_run: false,
    }
}

async fn archived(store: &Path, archiving: Archiving) -> Vec<Moved> {
    let log = open(store).await;
    let moved = log.archive(archiving).await.unwrap();
    log.close().await;
    moved
}

fn findings(store: &Path) -> Vec<Finding> {
    verify::journal(store).unwrap().0.findings
}

fn own(store: &Path) -> Vec<Seq> {
    journal::own_segments(&store.join(JOURNAL)).unwrap()
}

fn in_archive(store: &Path) -> Vec<Seq> {
    journal::archived_segments(&store.join(JOURNAL)).unwrap()
}

/// All but the newest segment, byte for byte.
fn sealed(store: &Path) -> BTreeMap<Seq, Vec<u8>> {
    let mut own = own(store);
    own.pop();
    let read = |first: Seq| {
        let path = journal::segment_path(&store.join(JOURNAL), first);
        (first, std::fs::read(path).unwrap())
    };
    own.into_iter().map(read).collect()
}

fn questions() -> Vec<Filter> {
    let all = Filter::default;
    vec![
        all(),
        Filter {
            host: Some(samples::host("cn1")),
            ..all()
        },
        Filter {
            kind: Some("step".to_owned()),
            limit: Some(Limit::Newest(7)),
            ..all()
        },
        Filter {
            kind: Some("operation.intended".to_owned()),
            ..all()
        },
        Filter::of_operation(samples::operation(3)),
        Filter::at(Seq(1)),
        Filter {
            from: Some(Seq(20)),
            to: Some(Seq(90)),
            limit: Some(Limit::Newest(50)),
            ..all()
        },
    ]
}

/// Answers about the events that were there before any upkeep.
async fn answers(log: &Log, to: Seq) -> Vec<Vec<Record>> {
    let mut answers = Vec::new();
    for mut question in questions() {
        question.to = Some(question.to.unwrap_or(to).min(to));
        answers.push(log.records(&question).await.unwrap());
    }
    answers
}

fn remove_databases(store: &Path) {
    for name in [INDEX, PROJECTION] {
        std::fs::remove_dir_all(store.join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_stays_the_same_and_files_come_back_as_they_were() {
    let (store, records) = store_of(3);
    let store = store.path();
    let before = sealed(store);
    assert!(before.len() >= 3, "{} segments", before.len());
    let end = records.last().unwrap().header.seq;
    let log = open(store).await;
    let expected = answers(&log, end).await;
    assert_eq!(expected[0], records);
    let dry = Archiving {
        dry_run: true,
        ..all()
    };
    let planned = log.archive(dry).await.unwrap();
    assert_eq!(planned.len(), before.len());
    assert!(!store.join("archive").exists(), "a dry run made an archive");
    assert_eq!(log.head().await.unwrap().seq, end, "and recorded it");

    let half = Archiving { keep: 2, ..all() };
    let moved = log.archive(half).await.unwrap();
    assert_eq!(moved.len(), before.len() - 2);
    assert_eq!(in_archive(store).len(), moved.len());
    assert_eq!(own(store).len(), 3);
    assert_eq!(answers(&log, end).await, expected);
    let recorded = log.entries(&Filter::at(end.next())).await.unwrap();
    assert_eq!(recorded[0].header.kind, "segments.archived");
    log.close().await;
    assert_eq!(findings(store), vec![]);
    // Both databases, from a journal of which a part is elsewhere.
    remove_databases(store);
    let log = open(store).await;
    assert_eq!(answers(&log, end).await, expected);
    assert_eq!(log.archive(all()).await.unwrap().len(), 2);
    assert_eq!(answers(&log, end).await, expected);
    assert_eq!(log.archive(all()).await.unwrap(), vec![], "nothing is left");
    log.append(vec![draft(100)], Condition::none())
        .await
        .unwrap();
    log.close().await;
    assert_eq!(findings(store), vec![]);
    remove_databases(store);

    let log = open(store).await;
    let one = Restoring {
        events: vec![Seq(2), Seq(1)],
        dry_run: false,
    };
    assert_eq!(log.restore(one).await.unwrap().len(), 1);
    assert_eq!(own(store)[0], Seq(1));
    assert_eq!(answers(&log, end).await, expected);
    let moved = log.restore(every()).await.unwrap();
    assert_eq!(moved.len(), before.len() - 1);
    assert_eq!(answers(&log, end).await, expected);
    log.close().await;
    for (first, bytes) in &before {
        assert_eq!(&sealed(store)[first], bytes, "segment {first}");
    }
    assert_eq!(in_archive(store), vec![]);
    assert_eq!(findings(store), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_older_goes() {
    let (store, records) = store_of(4);
    let store = store.path();
    let firsts = own(store);
    let dry = |before| Archiving {
        before: Some(before),
        dry_run: true,
        ..all()
    };
    let log = open(store).await;
    let older = |seq: Seq| log.archive(dry(Before::Seq(seq)));
    assert_eq!(older(firsts[2]).await.unwrap().len(), 2);
    assert_eq!(older(Seq(firsts[2].0 - 1)).await.unwrap().len(), 1);
    assert_eq!(older(Seq(1)).await.unwrap().len(), 0);
    let within = |first: Seq, next: Seq| {
        let of = |record: &&Record| (first..next).contains(&record.header.seq);
        let times = records.iter().filter(of);
        times.map(|record| record.header.time_unix_us).max()
    };
    let unix_us = within(firsts[0], firsts[1]).unwrap();
    let older = |unix_us: u64| log.archive(dry(Before::Time { unix_us }));
    assert_eq!(older(unix_us).await.unwrap().len(), 0);
    assert_eq!(older(unix_us + 1).await.unwrap().len(), 1);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_the_holder_do_it() {
    let (store, _) = store_of(3);
    let holder = open(store.path()).await;
    let client = open(store.path()).await;
    assert!(!client.is_holder().await);
    let moved = client.archive(all()).await.unwrap();
    assert!(!moved.is_empty());
    let unknown = Restoring {
        events: vec![Seq(1_000_000)],
        dry_run: false,
    };
    let refused = client.restore(unknown).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Retention(failure) if failure.class == FailureClass::Missing),
        "{refused:?}"
    );
    assert_eq!(client.restore(every()).await.unwrap().len(), moved.len());
    client.close().await;
    holder.close().await;
    assert_eq!(findings(store.path()), vec![]);
}

/// Each state that a crash can leave: opened, verified, and finished by a second run.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_both_and_a_second_run_finishes() {
    for state in 0..5 {
        let (store, records) = store_of(3);
        let store = store.path();
        let journal = store.join(JOURNAL);
        let before = sealed(store);
        let firsts: Vec<Seq> = before.keys().copied().collect();
        std::fs::create_dir(store.join("archive")).unwrap();
        let path = |first: Seq| archive::path(&journal, first);
        let put = |first: Seq| {
            let head = archive::put(&journal, first, &before[&first]).unwrap();
            assert_eq!(head.events.first, first);
        };
        match state {
            // Inside a write: half of a file under another name.
            0 => std::fs::write(path(firsts[0]).with_extension("new"), [7; 99]).unwrap(),
            // Some are there, and no event.
            1 => put(firsts[0]),
            2 => firsts.iter().for_each(|first| put(*first)),
            // The event, and none or some of the files gone.
            3 | 4 => {
                archived(store, all()).await;
                let back = if state == 3 { firsts.len() } else { 1 };
                for first in firsts.iter().rev().take(back) {
                    std::fs::write(journal::segment_path(&journal, *first), &before[first])
                        .unwrap();
                }
            }
            _ => unreachable!(),
        }
        assert_eq!(findings(store), vec![], "state {state}");
        let log = open(store).await;
        let end = records.last().unwrap().header.seq;
        assert_eq!(answers(&log, end).await[0], records, "state {state}");
        let stamp = |first: Seq| path(first).metadata().and_then(|found| found.modified());
        let packed = stamp(firsts[0]).ok();
        log.archive(all()).await.unwrap();
        if state > 0 {
            assert_eq!(stamp(firsts[0]).ok(), packed, "state {state}: packed again");
        }
        assert_eq!(answers(&log, end).await[0], records, "state {state}");
        log.close().await;
        assert_eq!(in_archive(store), firsts, "state {state}");
        assert_eq!(own(store).len(), 1, "state {state}");
        assert_eq!(findings(store), vec![], "state {state}");

        // And the same on the way back.
        match state {
            0 => std::fs::write(journal.join("00000000000000000001.seg.new"), [7; 99]).unwrap(),
            1 | 2 => std::fs::write(
                journal::segment_path(&journal, firsts[1]),
                &before[&firsts[1]],
            )
            .unwrap(),
            _ => {}
        }
        assert_eq!(findings(store), vec![], "state {state}");
        let log = open(store).await;
        log.restore(every()).await.unwrap();
        log.close().await;
        assert_eq!(in_archive(store), vec![], "state {state}");
        for (first, bytes) in &before {
            assert_eq!(&sealed(store)[first], bytes, "state {state}");
        }
        assert_eq!(findings(store), vec![], "state {state}");
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archive_may_be_elsewhere_and_away() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    // Longer than the index and the writer look back.
    let records = Story::of(3, 2200).records;
    journal_of(&store.join(JOURNAL), &records);
    let end = records.last().unwrap().header.seq;
    let disk = Small::mount("4m");
    let to = |path: &Path| Archiving {
        to: Some(path.to_owned()),
        before: Some(Before::Seq(Seq(300))),
        ..all()
    };
    let log = open(store).await;
    for bad in [Path::new("somewhere"), Path::new("/nowhere/at/all")] {
        let refused = log.archive(to(bad)).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Retention(failure) if failure.class == FailureClass::Place),
            "{refused:?}"
        );
    }
    let moved = log.archive(to(disk.0.path())).await.unwrap();
    assert_eq!(files(disk.0.path()).len(), moved.len());
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = log.archive(to(elsewhere.path())).await.unwrap_err();
    assert!(refused.to_string().contains("leads to"), "{refused}");
    log.settle().await.unwrap();
    log.close().await;

    // Not mounted: an empty directory is in its place.
    let link = store.join("archive");
    for away in [elsewhere.path(), Path::new("/nowhere/at/all")] {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(away, &link).unwrap();
        let log = open(store).await;
        log.append(vec![draft(10)], Condition::none())
            .await
            .unwrap();
        let refused = log.records(&Filter::at(Seq(1))).await.unwrap_err();
        let said = tallybook::causes::in_line(&refused);
        assert!(said.contains("00000000000000000001.seg.zst"), "{said}");
        assert!(matches!(
            refused,
            Error::Journal(journal::Error::Absent { .. })
        ));
        let refused = log.archive(all()).await.unwrap_err().to_string();
        assert!(refused.contains("mount"), "{refused}");
        let refused = log.restore(every()).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Retention(failure) if failure.class == FailureClass::Away),
            "{refused:?}"
        );
        log.close().await;
        assert!(!store.join("rebuild").exists(), "databases were given up");
        let found = findings(store);
        assert_eq!(found[0].class, Class::Missing);
        let what = &found[0].what;
        assert!(
            what.contains("00000000000000000001.seg") && what.contains("mount the archive"),
            "{what}"
        );
    }
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(disk.0.path(), &link).unwrap();
    let log = open(store).await;
    assert_eq!(answers(&log, end).await[0], records);
    log.close().await;
    assert_eq!(findings(store), vec![]);
}

fn draft(len: usize) -> Draft {
    // Does not compress.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    Draft::new(
        Subject::Cloud,
        OutputCaptured {
            captured: Captured {
                command: String::new(),
                exit: None,
                text: Blob((0..len).map(byte).collect()),
                dropped_bytes: 0,
            },
        },
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_archive_loses_nothing() {
    let (store, _) = store_of(3);
    let store = store.path();
    let disk = Small::mount("64k");
    let log = open(store).await;
    for _ in 0..5 {
        log.append(vec![draft(30_000)], Condition::none())
            .await
            .unwrap();
    }
    let before = sealed(store);
    let full = Archiving {
        to: Some(disk.0.path().to_owned()),
        ..all()
    };
    let head = log.head().await.unwrap();
    let refused = log.archive(full).await.unwrap_err();
    assert!(refused.is_disk_full(), "{refused:?}");
    assert_eq!(log.head().await.unwrap(), head, "recorded all the same");
    assert_eq!(sealed(store), before);
    let left = files(disk.0.path());
    assert!(
        left.iter().all(|path| path.extension().unwrap() == "zst"),
        "{left:?}"
    );
    assert_eq!(findings(store), vec![]);
    // What fits can still be moved.
    let older = Archiving {
        before: Some(Before::Seq(own(store)[1])),
        ..all()
    };
    assert_eq!(log.archive(older).await.unwrap().len(), 1);
    log.close().await;
    assert_eq!(findings(store), vec![]);

    // And on the way back.
    let small = Small::mount("2m");
    let copy = small.0.path().join("store");
    // What is set aside is made anew, as large as that disk allows.
    std::fs::remove_file(store.join("reserve")).unwrap();
    let status = Command::new("cp").arg("-a").arg(store).arg(&copy).status();
    assert!(status.unwrap().success());
    remove_databases(&copy);
    let log = open(&copy).await;
    let filler = small.0.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let first = || Restoring {
        events: vec![Seq(1)],
        dry_run: false,
    };
    let refused = log.restore(first()).await.unwrap_err();
    assert!(refused.is_disk_full(), "{refused:?}");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(own(&copy)[0], own(store)[0]);
    assert_eq!(log.restore(first()).await.unwrap().len(), 1);
    log.close().await;
    assert_eq!(own(&copy)[0], Seq(1));
    assert_eq!(findings(&copy), vec![]);
}

fn names(found: &[Finding], path: &Path) -> bool {
    let of =
        |one: &Finding| one.class == Class::Archive && one.place.contains(path.to_str().unwrap());
    found.iter().any(of)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_that_changed_is_named() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let limits = Limits { segment_len: 1 };
    let log = Log::open_within(store, Open::Create, limits, |_| {})
        .await
        .unwrap();
    for _ in 0..3 {
        log.append(vec![draft(10)], Condition::none())
            .await
            .unwrap();
    }
    log.archive(all()).await.unwrap();
    log.close().await;
    assert_eq!(findings(store), vec![]);
    let path = archive::path(&store.join(JOURNAL), Seq(2));
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&path, &changed).unwrap();
        let found = findings(store);
        assert!(names(&found, &path), "byte {at}: {found:?}");
    }
    for len in [0, 1, LEN - 1, LEN, LEN + 1, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(names(&findings(store), &path), "{len} bytes");
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&path, &longer).unwrap();
    assert!(names(&findings(store), &path));

    // The same segment, packed anew by somebody who could not know what its head says of that.
    let head = ArchiveHead::decode(&whole).unwrap();
    let content = zstd::bulk::decompress(&whole[LEN..], head.len as usize).unwrap();
    let again = zstd::bulk::compress(&content, 19).unwrap();
    assert_ne!(again, whole[LEN..]);
    let mut other = head;
    other.packed_len = again.len() as u64;
    std::fs::write(&path, [&other.encode()[..], &again].concat()).unwrap();
    let found = findings(store);
    assert!(names(&found, &path), "{found:?}");
    assert!(found[0].what.contains("not those that were put there"));
    std::fs::write(&path, &longer).unwrap();

    // Nothing is moved where one of them is damaged, and it is named.
    let log = open(store).await;
    let refused = log.restore(every()).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Retention(failure) if failure.class == FailureClass::Damaged),
        "{refused:?}"
    );
    assert!(refused.to_string().contains(path.to_str().unwrap()));
    assert_eq!(own(store).len(), 2, "something was moved");
    log.close().await;

    // What unpacks to far more than its head says.
    let mut head = ArchiveHead::decode(&whole).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 200 << 20], 3).unwrap();
    head.packed_len = bomb.len() as u64;
    head.packed = packed_hash(&bomb);
    std::fs::write(&path, [&head.encode()[..], &bomb].concat()).unwrap();
    let loaded = archive::load_archived(&store.join(JOURNAL), Seq(2));
    let loaded = loaded.unwrap().unwrap();
    assert!(loaded.wrong.is_some());
    assert_eq!(loaded.bytes.len() as u64, head.len + 1);
    assert!(names(&findings(store), &path));
}

/// The journal's own file counts, and is damaged: the whole one takes its place, and it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_gives_way_to_the_whole_one_in_the_archive() {
    let (store, records) = store_of(3);
    let store = store.path();
    let journal = store.join(JOURNAL);
    let end = records.last().unwrap().header.seq;
    let before = sealed(store);
    let firsts: Vec<Seq> = before.keys().copied().collect();
    archived(store, all()).await;
    let path = journal::segment_path(&journal, firsts[1]);
    let mut damaged = before[&firsts[1]].clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for (number, harm) in [damaged.clone(), damaged, vec![7; 99]].iter().enumerate() {
        std::fs::write(&path, harm).unwrap();
        assert_ne!(findings(store), vec![]);
        let log = open(store).await;
        let second = |dry_run| Restoring {
            events: vec![firsts[1]],
            dry_run,
        };
        assert_eq!(log.restore(second(true)).await.unwrap().len(), 1);
        assert_eq!(&std::fs::read(&path).unwrap(), harm, "a dry run");
        assert_eq!(log.restore(second(false)).await.unwrap().len(), 1);
        assert_eq!(answers(&log, end).await[0], records);
        log.close().await;
        assert_eq!(std::fs::read(&path).unwrap(), before[&firsts[1]]);
        let kept: Vec<PathBuf> = files(&journal)
            .into_iter()
            .filter(|path| path.to_str().unwrap().contains(".seg.damaged-"))
            .collect();
        // The same is kept once.
        assert_eq!(kept.len(), [1, 1, 2][number], "{kept:?}");
        assert_eq!(&std::fs::read(kept.last().unwrap()).unwrap(), harm);
        assert_eq!(findings(store), vec![]);
        archived(store, all()).await;
    }
    // Another one of the same name, and whole: nobody knows which is the right one.
    let other = store_of(5).0;
    let theirs = journal::segment_path(&other.path().join(JOURNAL), Seq(1));
    std::fs::copy(theirs, journal::segment_path(&journal, Seq(1))).unwrap();
    let log = open(store).await;
    let first = Restoring {
        events: vec![Seq(1)],
        dry_run: false,
    };
    let refused = log.restore(first).await.unwrap_err().to_string();
    assert!(
        refused.contains("another segment of this name"),
        "{refused}"
    );
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_segment_in_its_place_is_named() {
    let (store, _) = store_of(3);
    let store = store.path();
    let firsts: Vec<Seq> = sealed(store).into_keys().collect();
    archived(store, all()).await;
    let journal = store.join(JOURNAL);
    let path = |first: Seq| archive::path(&journal, first);
    let whole = std::fs::read(path(firsts[1])).unwrap();
    std::fs::copy(path(firsts[0]), path(firsts[1])).unwrap();
    let found = findings(store);
    assert!(names(&found, &path(firsts[1])), "{found:?}");
    std::fs::write(path(firsts[1]), whole).unwrap();

    // Of another log: the same story, told of another one.
    let other = tempfile::tempdir().unwrap();
    let theirs = other.path().join(JOURNAL);
    let log = LogId::from_bytes([9; 16]);
    drop(Journal::create(&theirs, log, LIMITS).unwrap());
    let bytes = std::fs::read(journal::segment_path(&theirs, Seq(1))).unwrap();
    std::fs::create_dir(other.path().join("archive")).unwrap();
    archive::put(&theirs, Seq(1), &bytes).unwrap();
    std::fs::copy(archive::path(&theirs, Seq(1)), path(Seq(1))).unwrap();
    let found = findings(store);
    assert!(names(&found, &path(Seq(1))), "{found:?}");
    let log = open(store).await;
    let refused = log.restore(every()).await.unwrap_err().to_string();
    assert!(refused.contains("another log"), "{refused}");
    log.close().await;
}
