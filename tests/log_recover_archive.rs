//! Going on with a damaged log of which a part is in the archive: what is there whole is used, what is only away is not given
//! up, and nothing that was there before is overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tallybook::journal::{self, Journal, Limits, Reader, archive, segment_path};
use tallybook::log::recover::{Away, Recovered, Recovery};
use tallybook::log::retention::{Archiving, FailureClass, Restoring};
use tallybook::log::{
    Condition, Draft, Error, HEAD, INDEX, JOURNAL, Log, Open, PROJECTION, verify,
};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, Epoch, Seq};
use tallybook_events::record::Record;
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::files::position;
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

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

async fn open(store: &Path) -> Log {
    Log::open_within(store, Open::Existing, SMALL, |_| {})
        .await
        .unwrap()
}

fn all(to: Option<&Path>) -> Archiving {
    Archiving {
        before: None,
        keep: 0,
        to: to.map(Path::to_owned),
        dry_run: false,
    }
}

/// Moves all that can be moved to the archive; the first events of what was moved.
fn archive_all(store: &Path, to: Option<&Path>) -> Vec<Seq> {
    run(async {
        let log = open(store).await;
        let moved = log.archive(all(to)).await.unwrap();
        log.close().await;
        moved.iter().map(|one| one.events.first).collect()
    })
}

fn draft() -> Draft {
    let output = OutputCaptured {
        captured: Captured {
            command: "true".to_owned(),
            exit: Some(0),
            text: Blob(vec![b'x'; 3000]),
            dropped_bytes: 0,
        },
    };
    Draft::new(Subject::Cloud, output).unwrap()
}

fn recover_by(
    store: &Path,
    away: Away,
    step: &mut dyn FnMut(&'static str) -> std::io::Result<()>,
) -> Result<(BTreeSet<u64>, Recovered), Error> {
    let recovery = Recovery::plan(store, away)?;
    let ranges = recovery.losses.iter().map(|loss| loss.events);
    let lost = ranges.flat_map(|range| range.first.0..=range.last.0);
    let lost = lost.collect();
    let recovered = recovery.carry_out_by("a test", SMALL, step)?;
    Ok((lost, recovered))
}

fn recover(store: &Path) -> (BTreeSet<u64>, Recovered) {
    recover_by(store, Away::Awaited, &mut |_| Ok(())).unwrap()
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

/// All that there was is there, without what is lost, and nothing is wrong.
fn holds(store: &Path, records: &[Record], lost: &BTreeSet<u64>) {
    assert_eq!(verify::journal(store).unwrap().0.findings, vec![]);
    let mut wanted: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for record in records {
        wanted.insert(record.header.seq.0, bytes_of(record));
    }
    wanted.retain(|seq, _| !lost.contains(seq));
    let mut found = events(store);
    found.retain(|seq, _| *seq <= records.len() as u64);
    assert!(found == wanted, "{} events", found.len());
}

/// The files in a directory, each with the hash of its bytes.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return BTreeMap::new();
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_file() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            files.insert(name, hash_of(&path));
        }
    }
    files
}

fn hash_of(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_string()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Where the frame of an event begins in the journal itself.
fn place(store: &Path, record: &Record) -> (PathBuf, usize) {
    let frame = bytes_of(record);
    let journal = store.join(JOURNAL);
    let found = journal::own_segments(&journal).unwrap().into_iter();
    let mut found = found.filter_map(|first| {
        let path = segment_path(&journal, first);
        let bytes = std::fs::read(&path).unwrap();
        let at = position(&bytes, &frame)?;
        Some((path, at))
    });
    found.next().unwrap()
}

/// Damages an event in the journal itself.
fn harm(store: &Path, record: &Record) -> PathBuf {
    let (path, at) = place(store, record);
    change(&path, |bytes| bytes[at + 40] ^= 1);
    path
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Cuts off what is behind the last of these records; the segments that are behind its own.
fn cut(store: &Path, records: &[Record]) -> Vec<PathBuf> {
    let last = &records[records.len() - 1];
    let (path, at) = place(store, last);
    change(&path, |bytes| bytes.truncate(at + last.frame_len()));
    let journal = store.join(JOURNAL);
    let own = journal::own_segments(&journal).unwrap().into_iter();
    let behind = own.filter(|first| *first > last.header.seq);
    behind.map(|first| segment_path(&journal, first)).collect()
}

/// Removes all that says how far the log went.
fn forget(store: &Path) {
    for name in [INDEX, PROJECTION] {
        let _absent = std::fs::remove_dir_all(store.join(name));
    }
    let _absent = std::fs::remove_file(store.join(HEAD));
}

fn is_away(refused: Result<Recovery, Error>) -> String {
    let error = refused.map(|recovery| recovery.losses).unwrap_err();
    assert!(
        matches!(&error, Error::Undecidable(journal::Error::Away { .. })),
        "{error:?}"
    );
    tallybook::causes::in_line(&error)
}

#[test]
fn an_archive_that_is_away_is_awaited() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let disk = tempfile::tempdir().unwrap();
    let firsts = archive_all(store, Some(disk.path()));
    assert!(firsts.len() > 3, "{firsts:?}");
    let link = store.join("archive");
    let empty = tempfile::tempdir().unwrap();
    let before = files(&store.join(JOURNAL));

    for leads in [Some(Path::new("/nowhere/at/all")), Some(empty.path()), None] {
        std::fs::remove_file(&link).unwrap();
        if let Some(leads) = leads {
            std::os::unix::fs::symlink(leads, &link).unwrap();
        }
        let said = is_away(Recovery::plan(store, Away::Awaited));
        assert!(said.contains(link.to_str().unwrap()), "{said}");
        assert_eq!(files(&store.join(JOURNAL)), before);
        let _absent = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    }
    // One file of it, and nothing else.
    let one = archive::path(&store.join(JOURNAL), firsts[1]);
    let aside = disk.path().join("aside");
    std::fs::rename(&one, &aside).unwrap();
    let said = is_away(Recovery::plan(store, Away::Awaited));
    let events = format!("events {} to {} are in no file", firsts[1], firsts[2].0 - 1);
    assert!(said.contains(&events), "{said}");
    std::fs::rename(&aside, &one).unwrap();

    let (lost, _) = recover(store);
    assert_eq!(lost, BTreeSet::new());
    holds(store, &records, &lost);
}

/// Where the event that says what is there is lost too, the link alone tells.
#[test]
fn a_link_to_nothing_is_an_archive_that_is_away() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let journal = store.join(JOURNAL);
    std::os::unix::fs::symlink("/nowhere/at/all", store.join("archive")).unwrap();
    // Archived by somebody, and nothing says so.
    std::fs::remove_file(segment_path(&journal, Seq(1))).unwrap();
    let said = is_away(Recovery::plan(store, Away::Awaited));
    assert!(said.contains("leads to /nowhere/at/all"), "{said}");
    let next = journal::own_segments(&journal).unwrap()[0];
    let (lost, _) = recover_by(store, Away::Lost, &mut |_| Ok(())).unwrap();
    assert_eq!(lost, (1..next.0).collect());
    holds(store, &records, &lost);
}

#[test]
fn an_archive_that_is_gone_is_given_up_when_somebody_says_so_and_used_again_when_it_is_back() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let disk = tempfile::tempdir().unwrap();
    archive_all(store, Some(disk.path()));
    let own = journal::own_segments(&store.join(JOURNAL)).unwrap()[0];
    let link = store.join("archive");
    std::fs::remove_file(&link).unwrap();

    let (lost, recovered) = recover_by(store, Away::Lost, &mut |_| Ok(())).unwrap();
    assert_eq!(lost, (1..own.0).collect());
    assert_eq!(recovered.epoch, Epoch(2));
    holds(store, &records, &lost);
    // Nobody waits for it any more.
    run(async {
        let log = open(store).await;
        for _ in 0..3 {
            log.append(vec![draft()], Condition::none()).await.unwrap();
        }
        assert!(!log.archive(all(None)).await.unwrap().is_empty());
        let every = Restoring {
            events: Vec::new(),
            dry_run: false,
        };
        assert!(!log.restore(every).await.unwrap().is_empty());
        log.close().await;
    });
    assert_eq!(recover(store).0, BTreeSet::new());

    // It was not gone after all.
    std::fs::remove_dir(&link).unwrap();
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    assert_eq!(recover(store).0, BTreeSet::new());
    holds(store, &records, &BTreeSet::new());
}

#[test]
fn what_came_back_from_the_archive_needs_none() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    archive_all(store, None);
    run(async {
        let log = open(store).await;
        let every = Restoring {
            events: Vec::new(),
            dry_run: false,
        };
        log.restore(every).await.unwrap();
        log.close().await;
    });
    std::fs::remove_dir(store.join("archive")).unwrap();
    let gone = segment_path(&store.join(JOURNAL), Seq(1));
    let next = journal::own_segments(&store.join(JOURNAL)).unwrap()[1];
    std::fs::remove_file(gone).unwrap();
    // It is lost by another way.
    assert_eq!(recover(store).0, (1..next.0).collect());
}

/// A store whose second and third segments are both in the journal and in the archive.
fn doubled(records: &[Record]) -> (TempDir, Vec<Seq>) {
    let store = store_of(records);
    let journal = store.path().join(JOURNAL);
    let firsts = journal::own_segments(&journal).unwrap();
    assert!(firsts.len() > 4, "{firsts:?}");
    std::fs::create_dir(store.path().join("archive")).unwrap();
    for first in &firsts[1..3] {
        let bytes = std::fs::read(segment_path(&journal, *first)).unwrap();
        archive::put(&journal, *first, &bytes).unwrap();
    }
    (store, firsts)
}

#[test]
fn a_whole_copy_in_the_archive_is_used() {
    let records = Story::of(5, 120).records;
    let (store, firsts) = doubled(&records);
    let store = store.path();
    let kept = store.join("damaged-2");
    let in_archive = files(&store.join("archive"));
    // The first event of one, and one within the other.
    let harmed: Vec<PathBuf> = [firsts[1], firsts[2].next()]
        .iter()
        .map(|seq| harm(store, &records[seq.0 as usize - 1]))
        .collect();
    let damaged: Vec<String> = harmed.iter().map(|path| hash_of(path)).collect();

    let (lost, _) = recover(store);
    assert_eq!(lost, BTreeSet::new());
    holds(store, &records, &lost);
    let again = journal::own_segments(&store.join(JOURNAL)).unwrap();
    assert_eq!(again[..firsts.len()], firsts, "other segments");
    let expected = harmed.iter().map(|path| name(path)).zip(damaged);
    assert_eq!(files(&kept), expected.collect(), "kept as they were");
    assert_eq!(
        files(&store.join("archive")),
        in_archive,
        "whole, and stays"
    );
}

#[test]
fn each_of_two_damaged_copies_gives_what_it_has() {
    let records = Story::of(5, 120).records;
    let (store, firsts) = doubled(&records);
    let store = store.path();
    let own = harm(store, &records[firsts[1].0 as usize]);
    let second = archive::path(&store.join(JOURNAL), firsts[1]);
    // Its last bytes: what is packed there is the end of the segment.
    change(&second, |bytes| {
        let end = bytes.len() - 9;
        bytes[end] ^= 0x11;
    });
    let (damaged, packed) = (hash_of(&own), hash_of(&second));
    let (lost, _) = recover(store);
    holds(store, &records, &lost);
    // What the own one has is there in any case.
    assert!(lost.iter().all(|seq| *seq == firsts[1].0 + 1), "{lost:?}");
    let kept = files(&store.join("damaged-2"));
    assert_eq!(kept[&name(&own)], damaged);
    assert_eq!(kept[&name(&second)], packed);
    assert_eq!(kept.len(), 2, "{:?}", kept.keys());
}

#[test]
fn a_copy_in_the_archive_that_can_not_be_read_is_in_nobodys_way() {
    let records = Story::of(5, 120).records;
    let (store, firsts) = doubled(&records);
    let store = store.path();
    let second = archive::path(&store.join(JOURNAL), firsts[1]);
    std::fs::remove_file(&second).unwrap();
    std::fs::create_dir(&second).unwrap();
    harm(store, &records[0]);
    let (lost, _) = recover(store);
    assert_eq!(lost, BTreeSet::from([1]));
    holds(store, &records, &lost);
}

/// Each event of a damaged archived segment that can still be had is kept, and the file as it was.
#[test]
fn a_damaged_archived_segment_is_recovered() {
    let records = Story::of(5, 120).records;
    let whole = store_of(&records);
    let firsts = archive_all(whole.path(), None);
    let file = archive::path(&whole.path().join(JOURNAL), firsts[1]);
    let sound = std::fs::read(&file).unwrap();
    let range: BTreeSet<u64> = (firsts[1].0..firsts[2].0).collect();
    let first_of =
        |bytes: &[u8], at: usize| [&bytes[..at], &[bytes[at] ^ 1], &bytes[at + 1..]].concat();
    let head = tallybook_events::archive::LEN;
    let harms = [
        ("its head", first_of(&sound, 20), BTreeSet::new()),
        ("all of it", vec![7; 300], range.clone()),
        ("what is packed", first_of(&sound, head + 60), range.clone()),
        ("its end", sound[..sound.len() - 40].to_vec(), range.clone()),
        ("nothing in it", Vec::new(), range),
    ];
    for (what, bytes, at_most) in harms {
        let copy = tempfile::tempdir().unwrap();
        let store = copy.path();
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(whole.path().join("."))
            .arg(store)
            .status();
        assert!(status.unwrap().success());
        let file = archive::path(&store.join(JOURNAL), firsts[1]);
        std::fs::write(&file, &bytes).unwrap();
        let in_archive = files(&store.join("archive"));
        let (lost, _) = recover(store);
        println!("{what}: {lost:?}");
        assert!(lost.is_subset(&at_most), "{what}: {lost:?}");
        holds(store, &records, &lost);
        let mut kept = files(&store.join("damaged-2"));
        // What is left of it is in the journal. A gap in its place is behind the segment before it.
        assert_eq!(kept[&name(&file)], blake3::hash(&bytes).to_string());
        kept.extend(files(&store.join("archive")));
        assert_eq!(kept, in_archive, "{what}");
        assert!(!file.exists(), "{what}");
        // A second one finds nothing to do, and puts nothing aside.
        assert_eq!(recover(store).0, BTreeSet::new(), "{what}");
        assert!(!store.join("damaged-3").exists(), "{what}");
    }
}

#[test]
fn no_epoch_is_begun_twice_and_no_original_is_overwritten() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let first = harm(store, &records[10]);
    assert_eq!(recover(store).1.epoch, Epoch(2));
    let kept = files(&store.join("damaged-2"));
    assert_eq!(kept.keys().collect::<Vec<_>>(), [&name(&first)]);

    // The event that began the epoch is lost, and nothing else knows of it; the same file is damaged once more.
    forget(store);
    for behind in cut(store, &records) {
        std::fs::remove_file(behind).unwrap();
    }
    harm(store, &records[11]);
    let damaged = hash_of(&first);
    let (lost, recovered) = recover(store);
    assert_eq!(recovered.epoch, Epoch(3));
    assert_eq!(files(&store.join("damaged-2")), kept, "kept before");
    assert_eq!(files(&store.join("damaged-3"))[&name(&first)], damaged);
    // What the first recovery lost is said once more, because nothing says it now.
    assert_eq!(lost, BTreeSet::from([11, 12]));
    holds(store, &records, &lost);
}

/// Without any original that was kept, the head of a segment says which epochs there were.
#[test]
fn the_head_of_a_segment_tells_an_epoch() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    assert_eq!(recover(store).1.epoch, Epoch(2));
    assert!(!store.join("damaged-2").exists());
    run(async {
        let log = open(store).await;
        for _ in 0..4 {
            log.append(vec![draft()], Condition::none()).await.unwrap();
        }
        log.close().await;
    });
    forget(store);
    let behind = cut(store, &records);
    assert!(!behind.is_empty());
    for path in behind {
        change(&path, |bytes| bytes.truncate(segment::LEN));
    }
    let (_, recovered) = recover(store);
    assert_eq!(recovered.epoch, Epoch(3));
    // It rises by two there, and that is no finding.
    holds(store, &records, &BTreeSet::new());
}

/// A recovery is stopped, and somebody puts something else where an original was before it goes on.
#[test]
fn what_was_put_there_meanwhile_is_kept_too() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let path = harm(store, &records[10]);
    let first = std::fs::read(&path).unwrap();
    let stopped = recover_by(store, Away::Awaited, &mut |word| match word {
        "replacing" => Err(std::io::Error::other("stopped")),
        _ => Ok(()),
    });
    assert!(stopped.is_err());
    assert!(store.join("damaged-2/unfinished").exists());
    // A copy that is damaged elsewhere.
    let frame = bytes_of(&records[11]);
    let mut copy = first.clone();
    let at = position(&copy, &frame);
    copy[at.unwrap() + frame.len() - 33] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, copy).unwrap();
    let second = hash_of(&path);
    let (lost, recovered) = recover(store);
    assert_eq!(recovered.epoch, Epoch(2), "it is the same recovery");
    // The original that was kept before still has what that copy lacks.
    assert_eq!(lost, BTreeSet::from([11]));
    holds(store, &records, &lost);
    let kept = files(&store.join("damaged-2"));
    let (stem, end) = name(&path)
        .split_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert_eq!(kept[&name(&path)], blake3::hash(&first).to_string());
    assert_eq!(kept[&format!("{stem}.1.{end}")], second);
    assert_eq!(kept.len(), 2, "{:?}", kept.keys());
}

/// What a recovery that is not finished put aside is read, also what nothing else has.
#[test]
fn what_was_put_aside_is_read_again() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let path = harm(store, &records[10]);
    let damaged = hash_of(&path);
    let stopped = recover_by(store, Away::Awaited, &mut |word| match word {
        "writing" => Err(std::io::Error::other("stopped")),
        _ => Ok(()),
    });
    assert!(stopped.is_err());
    std::fs::remove_file(&path).unwrap();
    let (lost, _) = recover(store);
    assert_eq!(lost, BTreeSet::from([11]));
    holds(store, &records, &lost);
    let kept = files(&store.join("damaged-2"));
    assert_eq!(kept, BTreeMap::from([(name(&path), damaged)]));
}

/// Of several that are not finished, the newest is gone on with, by its number.
#[test]
fn a_tenth_epoch_is_newer_than_a_ninth() {
    let records = Story::of(5, 60).records;
    let store = store_of(&records);
    let store = store.path();
    for number in [9, 10] {
        std::fs::create_dir(store.join(format!("damaged-{number}"))).unwrap();
    }
    harm(store, &records[3]);
    assert_eq!(recover(store).1.epoch, Epoch(11));
    assert_eq!(files(&store.join("damaged-11")).len(), 1);
    assert_eq!(files(&store.join("damaged-10")).len(), 0);
}

#[test]
fn archiving_and_restoring_wait_for_the_archive_too() {
    let records = Story::of(5, 120).records;
    let store = store_of(&records);
    let store = store.path();
    let disk = tempfile::tempdir().unwrap();
    let firsts = archive_all(store, Some(disk.path()));
    // The first segment came back: all that was looked for before.
    run(async {
        let log = open(store).await;
        let first = Restoring {
            events: vec![Seq(1)],
            dry_run: false,
        };
        log.restore(first).await.unwrap();
        log.close().await;
    });
    let empty = tempfile::tempdir().unwrap();
    let link = store.join("archive");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(empty.path(), &link).unwrap();
    let own = files(&store.join(JOURNAL));
    run(async {
        let log = open(store).await;
        let of = |dry_run, events: &[Seq]| Restoring {
            events: events.to_vec(),
            dry_run,
        };
        let dry = Archiving {
            dry_run: true,
            ..all(None)
        };
        let refused = [
            log.archive(all(None)).await.unwrap_err(),
            log.archive(dry).await.unwrap_err(),
            log.restore(of(false, &[])).await.unwrap_err(),
            log.restore(of(true, &[])).await.unwrap_err(),
            log.restore(of(false, &firsts[2..3])).await.unwrap_err(),
        ];
        for error in refused {
            assert!(
                matches!(&error, Error::Retention(failure) if failure.class == FailureClass::Away),
                "{error:?}"
            );
            let said = error.to_string();
            assert!(
                said.contains("is not there") && said.contains("in no file"),
                "{said}"
            );
        }
        log.close().await;
    });
    assert_eq!(files(&store.join(JOURNAL)), own);
    assert_eq!(
        files(empty.path()),
        BTreeMap::new(),
        "behind the mount point"
    );
}
