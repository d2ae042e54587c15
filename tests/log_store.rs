//! The databases are disposable: deleted, damaged or folded by other code, the next start builds them again, says so,
//! and answers the same.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tallybook::journal::{self, Journal, Limits, Position};
use tallybook::log::{Error, Filter, INDEX, JOURNAL, Limit, Log, Open, PROJECTION, verify};
use tallybook::store::{Ends, Projection, Stored, operation_term};
use tallybook_events::gap::Gap;
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::State;
use tallybook_testkit::files::{copy_tree, position};
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

fn store_of(records: &[Record]) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    let limits = Limits {
        segment_len: 50_000,
    };
    let mut journal = Journal::create(&store.path().join(JOURNAL), samples::log(), limits).unwrap();
    for write in records.chunk_by(|earlier, later| earlier.header.write == later.header.write) {
        journal.append(write).unwrap();
    }
    store
}

async fn open(store: &Path) -> (Log, mpsc::Receiver<String>) {
    let (sender, notices) = mpsc::channel();
    let log = Log::open(store, Open::Existing, move |what| drop(sender.send(what)))
        .await
        .unwrap();
    (log, notices)
}

/// Has both databases made.
async fn settle(store: &Path) {
    let (log, _) = open(store).await;
    log.records(&Filter::at(Seq(1))).await.unwrap();
    log.close().await;
}

/// What was told so far.
fn told(notices: &mpsc::Receiver<String>) -> Vec<String> {
    notices.try_iter().collect()
}

/// Questions that meet every class of term, the bounds, and the newest and the oldest few.
fn questions() -> Vec<Filter> {
    let all = Filter::default;
    vec![
        all(),
        Filter {
            host: Some(samples::host("cn1")),
            ..all()
        },
        Filter {
            container: Some(samples::container("db")),
            ..all()
        },
        Filter {
            kind: Some("step".to_owned()),
            limit: Some(Limit::Newest(7)),
            ..all()
        },
        Filter {
            kind: Some("operation.intended".to_owned()),
            from: Some(Seq(70)),
            ..all()
        },
        Filter {
            actor: Some("ada?".to_owned()),
            to: Some(Seq(130)),
            ..all()
        },
        Filter {
            subject: Some("cloud".parse().unwrap()),
            ..all()
        },
        Filter::of_operation(samples::operation(3)),
        Filter::at(Seq(64)),
        Filter {
            from: Some(Seq(60)),
            to: Some(Seq(140)),
            limit: Some(Limit::Newest(70)),
            ..all()
        },
        Filter {
            kind: Some("step".to_owned()),
            limit: Some(Limit::Oldest(7)),
            ..all()
        },
        // Over the end of what is in blocks.
        Filter {
            from: Some(Seq(60)),
            limit: Some(Limit::Oldest(1100)),
            ..all()
        },
        Filter {
            template: Some(samples::template("none")),
            ..all()
        },
    ]
}

async fn answers(log: &Log) -> (State, Vec<Vec<Record>>) {
    let mut answers = Vec::new();
    for question in questions() {
        answers.push(log.records(&question).await.unwrap());
    }
    (log.state().await.unwrap(), answers)
}

/// What the journal itself says.
fn expected(records: &[Record], store: &Path) -> (State, Vec<Vec<Record>>) {
    let (report, mut state) = verify::journal(store).unwrap();
    assert_eq!(report.findings, vec![]);
    state.forget_past();
    let answer = |filter: &Filter| {
        let taken: Vec<Record> = records
            .iter()
            .filter(|record| filter.takes(&record.header))
            .cloned()
            .collect();
        let limited = match filter.limit {
            Some(Limit::Newest(wanted)) => &taken[taken.len().saturating_sub(wanted)..],
            Some(Limit::Oldest(wanted)) => &taken[..taken.len().min(wanted)],
            None => &taken,
        };
        limited.to_vec()
    };
    (state, questions().iter().map(answer).collect())
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_answer_as_the_journal_does() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    for _ in 0..3 {
        let (log, _) = open(store.path()).await;
        assert_eq!(answers(&log).await, expected);
        log.close().await;
    }
    // The stored projections are the fold, links and inventory included.
    let mut projection = Projection::open(&store.path().join(PROJECTION)).unwrap();
    let Stored::State { state, .. } = projection.load().unwrap() else {
        panic!("nothing is stored")
    };
    assert_eq!(*state, expected.0);
}

/// The index has a list of a term for each 8192 events, and is gone through from either end.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_asked_from_either_end() {
    let records = Story::of(23, 20_000).records;
    let store = store_of(&records);
    let (log, _) = open(store.path()).await;
    let ends = [1, 2, 8192, 8193, 12_000, 16_384, 16_385, 19_999].map(|seq| Some(Seq(seq)));
    let ends = || std::iter::once(None).chain(ends);
    let limits = [None, Some(Limit::Newest(9)), Some(Limit::Oldest(9))];
    let all = Filter::default;
    let of_kind = Filter {
        kind: Some("operation.intended".to_owned()),
        ..all()
    };
    let of_both = Filter {
        host: Some(samples::host("cn1")),
        ..of_kind.clone()
    };
    let mut found = 0;
    for what in [all(), of_kind, of_both] {
        for (from, to) in ends().flat_map(|from| ends().map(move |to| (from, to))) {
            for limit in limits {
                let is_narrow = from.zip(to).is_some_and(|(from, to)| to.0 < from.0 + 5000);
                if what == all() && limit.is_none() && !is_narrow {
                    continue;
                }
                let filter = Filter {
                    from,
                    to,
                    limit,
                    ..what.clone()
                };
                let taken = records.iter().filter(|one| filter.takes(&one.header));
                let mut taken: Vec<Seq> = taken.map(|one| one.header.seq).collect();
                match limit {
                    None => {}
                    Some(Limit::Newest(wanted)) => {
                        taken.drain(..taken.len().saturating_sub(wanted));
                    }
                    Some(Limit::Oldest(wanted)) => taken.truncate(wanted),
                }
                let answer = log.records(&filter).await.unwrap();
                let answer: Vec<Seq> = answer.iter().map(|one| one.header.seq).collect();
                assert_eq!(answer, taken, "{filter:?}");
                found += answer.len();
            }
        }
    }
    assert!(found > 5_000, "{found}");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_database_is_built_again_and_said_so() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    let (log, notices) = open(store.path()).await;
    assert_eq!(told(&notices).len(), 1, "the projections");
    answers(&log).await;
    assert_eq!(told(&notices).len(), 1, "the index");
    log.close().await;
    let (log, notices) = open(store.path()).await;
    answers(&log).await;
    assert_eq!(told(&notices), Vec::<String>::new());
    log.close().await;
    for removed in [vec![INDEX], vec![PROJECTION], vec![INDEX, PROJECTION]] {
        for name in &removed {
            std::fs::remove_dir_all(store.path().join(name)).unwrap();
        }
        let (log, notices) = open(store.path()).await;
        assert_eq!(answers(&log).await, expected, "{removed:?}");
        let notices = told(&notices);
        assert!(
            notices
                .iter()
                .all(|notice| notice.contains("again from the journal")),
            "{removed:?}: {notices:?}"
        );
        assert_eq!(notices.len(), removed.len());
        log.close().await;
    }
}

/// A file of a database, damaged in some way.
fn damage(path: &Path, how: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    // sled preallocates: what it wrote ends long before the file does.
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(1, |at| at + 1);
    let flip =
        |bytes: &mut Vec<u8>, at: usize| (at..(at + 16).min(len)).for_each(|at| bytes[at] ^= 0xff);
    match how {
        0 => flip(&mut bytes, 0),
        1 => flip(&mut bytes, used / 2),
        2 => flip(&mut bytes, used - 1),
        3 => bytes.truncate(used / 2),
        4 => bytes.clear(),
        5 => bytes.fill(0xa5),
        6 => flip(&mut bytes, used / 4),
        7 => flip(&mut bytes, used * 3 / 4),
        _ => unreachable!("8 ways"),
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_never_changes_an_answer() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    settle(store.path()).await;
    let targets: Vec<PathBuf> = [INDEX, PROJECTION]
        .iter()
        .flat_map(|name| files(&store.path().join(name)))
        .map(|path| path.strip_prefix(store.path()).unwrap().to_owned())
        .collect();
    assert!(targets.len() >= 4, "{targets:?}");
    for target in &targets {
        for how in 0..8 {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(store.path(), copy.path());
            damage(&copy.path().join(target), how);
            for _ in 0..2 {
                let (log, notices) = open(copy.path()).await;
                assert_eq!(
                    answers(&log).await,
                    expected,
                    "{} {how}: {:?}",
                    target.display(),
                    told(&notices)
                );
                log.close().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_a_file_or_of_another_log_is_built_again() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    for name in [INDEX, PROJECTION] {
        settle(store.path()).await;
        std::fs::remove_dir_all(store.path().join(name)).unwrap();
        std::fs::write(store.path().join(name), "garbage").unwrap();
        let (log, notices) = open(store.path()).await;
        assert_eq!(answers(&log).await, expected);
        let notices = told(&notices);
        assert!(notices[0].contains("can't be used"), "{notices:?}");
        log.close().await;
    }
    let other = tempfile::tempdir().unwrap();
    let log = Log::open(other.path(), Open::Create, |_| {}).await.unwrap();
    log.close().await;
    std::fs::remove_dir_all(store.path().join(PROJECTION)).unwrap();
    copy_tree(
        &other.path().join(PROJECTION),
        &store.path().join(PROJECTION),
    );
    let (log, notices) = open(store.path()).await;
    let notices = told(&notices);
    assert!(notices[0].contains("belongs to another log"), "{notices:?}");
    assert_eq!(answers(&log).await, expected);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_of_another_version_are_folded_again() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    settle(store.path()).await;
    {
        // A state that today's code would not fold, under yesterday's version.
        let mut projection = Projection::open(&store.path().join(PROJECTION)).unwrap();
        let start = Position {
            segment: Seq(1),
            offset: 0,
        };
        let ends = Ends {
            at: start,
            next: start,
        };
        let mut wrong = expected.0.clone();
        wrong.hosts.clear();
        projection.replace_as(0, &wrong, ends).unwrap();
        projection.flush().unwrap();
    }
    let (log, notices) = open(store.path()).await;
    let notices = told(&notices);
    assert!(
        notices
            .iter()
            .any(|notice| notice.contains("another version")),
        "{notices:?}"
    );
    assert_eq!(answers(&log).await, expected);
    log.close().await;
}

/// Opens a database whose holder has just closed it: its threads may not all be gone.
fn open_database(path: &Path) -> sled::Db {
    for _ in 0..500 {
        if let Ok(database) = sled::open(path) {
            return database;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    sled::open(path).unwrap()
}

/// Changes a tree of a database that nobody has open.
fn change(store: &Path, database: &str, tree: &str, run: impl FnOnce(&sled::Tree)) {
    let database = open_database(&store.join(database));
    run(&database.open_tree(tree).unwrap());
    database.flush().unwrap();
}

/// A posting that is lost hides a step that was done: the step would be done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_posting_hides_no_event_of_an_operation() {
    let mut records = Story::of(23, 1300).records;
    // An operation that is not over, with events in what the index sealed.
    let unfinished = (900..1024).find_map(|at| {
        let id = records[at].header.operation?;
        let of = |record: &Record| record.header.operation == Some(id);
        let last = records.iter().rposition(of)?;
        let cut = (1024..=last)
            .rev()
            .find(|cut| records[cut - 1].header.more == 0)?;
        Some((id, cut))
    });
    let (id, cut) = unfinished.unwrap();
    records.truncate(cut);
    let store = store_of(&records);
    let (log, _) = open(store.path()).await;
    assert!(log.state().await.unwrap().operations.contains_key(&id));
    let whole = log.operation(id).await.unwrap().unwrap();
    log.close().await;
    change(store.path(), INDEX, "postings", |postings| {
        let term = operation_term(&id);
        let len = u16::try_from(term.len()).unwrap().to_be_bytes();
        let prefix = [&len[..], &term].concat();
        let keys: Vec<sled::IVec> = postings
            .scan_prefix(prefix)
            .keys()
            .map(Result::unwrap)
            .collect();
        postings.remove(keys.first().unwrap()).unwrap();
    });
    let (log, _) = open(store.path()).await;
    assert_eq!(log.operation(id).await.unwrap().unwrap(), whole);
    let faults = log.faults().await.unwrap();
    assert!(faults[0].contains("events of operation"), "{faults:?}");
    log.close().await;
    let (log, notices) = open(store.path()).await;
    assert!(told(&notices)[0].contains("could not be used last time"));
    assert_eq!(log.operation(id).await.unwrap().unwrap(), whole);
    assert_eq!(log.faults().await.unwrap(), Vec::<String>::new());
    log.close().await;
}

/// A claim that is lost would let two operations have one container.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_changed_entity_is_folded_again() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let expected = expected(&records, store.path());
    settle(store.path()).await;
    let classes: std::collections::BTreeSet<u8> = {
        let database = open_database(&store.path().join(PROJECTION));
        let keys = database.iter().keys().map(|key| key.unwrap()[0]);
        keys.filter(|class| *class != 0).collect()
    };
    assert!(classes.len() > 3, "{classes:?}");
    for class in classes {
        change(store.path(), PROJECTION, "__sled__default", |tree| {
            let key = tree.scan_prefix([class]).keys().next().unwrap().unwrap();
            tree.remove(key).unwrap();
        });
        let (log, notices) = open(store.path()).await;
        let notices = told(&notices);
        assert!(
            notices[0].contains("lost or changed something"),
            "{notices:?}"
        );
        assert_eq!(answers(&log).await, expected, "class {class}");
        log.close().await;
    }
}

/// The newest block was read at every start, and its damage ended every command.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_recent_block_stops_nothing() {
    let records = Story::of(23, 1300).records;
    for remove in [true, false] {
        let store = store_of(&records);
        let expected = expected(&records, store.path());
        settle(store.path()).await;
        change(store.path(), INDEX, "places", |blocks| {
            let (key, block) = blocks.last().unwrap().unwrap();
            let mut block = block.to_vec();
            block[30] ^= 1;
            match remove {
                true => drop(blocks.remove(key).unwrap()),
                false => drop(blocks.insert(key, block).unwrap()),
            }
        });
        let (log, _) = open(store.path()).await;
        assert_eq!(answers(&log).await, expected);
        log.close().await;
        let (log, notices) = open(store.path()).await;
        assert!(told(&notices)[0].contains("could not be used last time"));
        assert_eq!(answers(&log).await, expected);
        log.close().await;
    }
}

/// What databases and journals that were there before may be read by.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_store_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    let open_to_all = |name: &str| {
        let path = store.path().join(name);
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |name: &str| {
        let found = std::fs::metadata(store.path().join(name)).unwrap();
        found.permissions().mode() & 0o777
    };
    open_to_all("");
    for round in 0..2 {
        let (log, _) = open(store.path()).await;
        log.records(&Filter::at(Seq(1))).await.unwrap();
        for name in [JOURNAL, INDEX, PROJECTION] {
            assert_eq!(mode(name), 0o700, "{name} in round {round}");
        }
        for name in ["lock", "head", "socket"] {
            assert_eq!(mode(name), 0o600, "{name} in round {round}");
        }
        log.close().await;
        for name in [JOURNAL, INDEX, PROJECTION, "lock"] {
            open_to_all(name);
        }
    }
}

/// A store that version 1 of the format wrote, kept in the repository: its journal must open for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_version_1_opens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-v1");
    let story = Story::of_first_kinds();
    if !golden.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        copy_tree(store_of(&story.records).path(), &golden);
    }
    let store = tempfile::tempdir().unwrap();
    copy_tree(&golden, store.path());
    let (report, _) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!(report.head.seq, Seq(story.records.len() as u64));
    assert_eq!(report.head.hash, story.records.last().unwrap().hash);
    let (log, _) = open(store.path()).await;
    assert_eq!(
        log.records(&Filter::default()).await.unwrap(),
        story.records
    );
    log.entries(&Filter::default()).await.unwrap();
    log.close().await;
}

/// Changes a byte of an event's payload in the journal.
fn change_payload(store: &Path, record: &Record) {
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    for path in files(&store.join(JOURNAL)) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = position(&bytes, &frame) {
            bytes[at + frame.len() - 33] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("event {} is nowhere", record.header.seq);
}

/// The index is not to blame for a payload that was changed: it stays, and nothing is built again for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_payload_is_damage_of_the_journal() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    settle(store.path()).await;
    change_payload(store.path(), &records[99]);
    let (log, _) = open(store.path()).await;
    let asked = log.records(&Filter::at(Seq(100))).await;
    let is_named = matches!(
        &asked,
        Err(Error::Journal(journal::Error::Damaged {
            seq: Seq(100),
            ..
        }))
    );
    assert!(is_named, "{asked:?}");
    assert_eq!(log.faults().await.unwrap(), Vec::<String>::new());
    // All else is answered.
    let others = log.records(&Filter::at(Seq(101))).await.unwrap();
    assert_eq!(others, records[100..101]);
    log.close().await;
    assert!(!store.path().join("rebuild").exists());
}

/// Without the index, and with a journal that can't be read in its place, nobody says that something is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_looked_up_is_not_said_to_be_missing() {
    let records = Story::of(23, 1300).records;
    let store = store_of(&records);
    settle(store.path()).await;
    change_payload(store.path(), &records[99]);
    std::fs::remove_dir_all(store.path().join(INDEX)).unwrap();
    std::fs::write(store.path().join(INDEX), "no database").unwrap();
    let log = Log::open(store.path(), Open::AsItIs, |_| {}).await.unwrap();
    let over = records.iter().find_map(|record| {
        let is_end = record.header.kind == "operation.succeeded";
        record.header.operation.filter(|_| is_end)
    });
    for _ in 0..3 {
        let asked = log.summary(over.unwrap()).await;
        assert!(asked.is_err(), "{asked:?}");
        let asked = log.operations_like("").await;
        assert!(asked.is_err(), "{asked:?}");
    }
    log.close().await;
}

/// A forged gap takes no more time than an honest one.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_without_end_is_not_brought_into_the_index() {
    let mut story = Story::of(23, 60);
    story.capture(b"behind it");
    let mut records = story.records;
    let last = records.pop().unwrap();
    let store = store_of(&records);
    let gap = Gap {
        first: last.header.seq,
        last: Seq(1 << 40),
        hash: Hash([7; 32]),
        header: Vec::new(),
    };
    let mut header = last.header.clone();
    header.seq = gap.last.next();
    header.write = header.seq;
    header.previous = gap.hash;
    let behind = Record::seal(header, last.salt, last.payload.clone()).unwrap();
    let segment = files(&store.path().join(JOURNAL)).pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes.extend(gap.encode());
    behind.write_frame(&mut bytes);
    std::fs::write(&segment, bytes).unwrap();
    let (log, _) = open(store.path()).await;
    assert_eq!(log.head().await.unwrap().seq, behind.header.seq);
    let within = std::time::Duration::from_secs(60);
    for record in [&records[2], &behind] {
        let at = Filter::at(record.header.seq);
        let asked = tokio::time::timeout(within, log.records(&at)).await;
        let Ok(asked) = asked else {
            // Nothing else ends the thread that is at it.
            eprintln!("it goes on and on");
            std::process::exit(1);
        };
        assert_eq!(asked.unwrap(), std::slice::from_ref(record));
    }
    log.close().await;
}
