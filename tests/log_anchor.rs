//! What was acknowledged is not forgotten: a journal that lost its end, or all of it, is refused as long as anything
//! knows how far it went; and one store has one writer, whatever was removed.

use std::path::Path;
use std::time::Duration;

use tallybook::journal::{Journal, Limits, segment_path};
use tallybook::log::{
    Condition, Draft, Error, Filter, HEAD, INDEX, JOURNAL, Log, Open, PROJECTION,
};
use tallybook::store::{Projection, Stored};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::Record;
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

fn store_of(records: &[Record]) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let mut journal = Journal::create(&store.path().join(JOURNAL), samples::log(), limits).unwrap();
    for append in records.chunk_by(|earlier, _| earlier.header.more > 0) {
        journal.append(append).unwrap();
    }
    store
}

async fn open(store: &Path, open: Open) -> Result<Log, Error> {
    Log::open(store, open, |_| {}).await
}

/// A store that was used, and what its journal is without its last append.
async fn used() -> (TempDir, Vec<u8>) {
    let records = Story::of(29, 1100).records;
    let store = store_of(&records);
    let log = open(store.path(), Open::Existing).await.unwrap();
    // The index is made when something needs it.
    log.records(&Filter::default()).await.unwrap();
    log.close().await;
    let before_last = (1..records.len())
        .rev()
        .find(|at| records[at - 1].header.more == 0)
        .unwrap();
    let kept = records[..before_last].iter().map(Record::frame_len);
    let len = segment::LEN + kept.sum::<usize>();
    let bytes = std::fs::read(first_segment(store.path())).unwrap();
    (store, bytes[..len].to_vec())
}

fn first_segment(store: &Path) -> std::path::PathBuf {
    segment_path(&store.join(JOURNAL), Seq(1))
}

fn remove(store: &Path, name: &str) {
    let path = store.join(name);
    match path.is_dir() {
        true => std::fs::remove_dir_all(path).unwrap(),
        false => std::fs::remove_file(path).unwrap(),
    }
}

async fn is_refused(store: &Path, how: Open) {
    let refused = open(store, how).await.map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, Error::TailLost { projection, .. } if projection.0 >= 200),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_does_not_become_a_new_log() {
    for kept in [
        &[HEAD, INDEX, PROJECTION][..],
        &[HEAD],
        &[INDEX],
        &[PROJECTION],
    ] {
        let (store, _) = used().await;
        for name in [HEAD, INDEX, PROJECTION] {
            if !kept.contains(&name) {
                remove(store.path(), name);
            }
        }
        for empty in [false, true] {
            match empty {
                true => std::fs::create_dir_all(store.path().join(JOURNAL)).unwrap(),
                false => remove(store.path(), JOURNAL),
            }
            let refused = open(store.path(), Open::Existing).await.map(|_| ());
            assert!(
                matches!(refused, Err(Error::TailLost { .. })),
                "{refused:?}"
            );
            let refused = open(store.path(), Open::Create).await.map(|_| ());
            assert!(
                matches!(refused, Err(Error::TailLost { .. })),
                "{refused:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_not_removed_before_they_said_how_far_the_log_went() {
    // What is lost or damaged besides, so that the databases are built again.
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 6] = [
        ("nothing", |_| {}),
        ("the file", |store| remove(store, HEAD)),
        ("both databases", |store| {
            remove(store, INDEX);
            remove(store, PROJECTION);
        }),
        ("the file, and trust in the databases", |store| {
            remove(store, HEAD);
            std::fs::write(store.join("rebuild"), "").unwrap();
        }),
        ("the file, and the index", |store| {
            remove(store, HEAD);
            remove(store, INDEX);
            std::fs::write(store.join(INDEX), "no database").unwrap();
        }),
        ("the file, and the version", |store| {
            remove(store, HEAD);
            remove(store, INDEX);
            let mut projection = Projection::open(&store.join(PROJECTION)).unwrap();
            let Stored::State { state, ends } = projection.load().unwrap() else {
                panic!("nothing is stored")
            };
            projection.replace_as(0, &state, ends).unwrap();
            projection.flush().unwrap();
        }),
    ];
    for (what, lose) in losses {
        let (store, shorter) = used().await;
        let whole = std::fs::read(first_segment(store.path())).unwrap();
        std::fs::write(first_segment(store.path()), &shorter).unwrap();
        lose(store.path());
        println!("lost: {what}");
        // Once more after the databases are gone: what they knew is kept.
        for how in [Open::Existing, Open::AsItIs, Open::Create] {
            is_refused(store.path(), how).await;
        }
        assert_eq!(std::fs::read(first_segment(store.path())).unwrap(), shorter);
        std::fs::write(first_segment(store.path()), &whole).unwrap();
        open(store.path(), Open::Existing)
            .await
            .unwrap()
            .close()
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_how_far_the_log_went_also_of_a_killed_process() {
    let store = tempfile::tempdir().unwrap();
    let log = open(store.path(), Open::Create).await.unwrap();
    log.append(vec![draft("a"), draft("b")], Condition::none())
        .await
        .unwrap();
    let head = log.head().await.unwrap();
    let expected = format!("{} {:020} {} ", head.log.unwrap(), head.seq.0, head.hash);
    // Not closed: this is what a process that is killed leaves. It is written right behind the answer.
    let mut said = String::new();
    for _ in 0..500 {
        said = std::fs::read_to_string(store.path().join(HEAD)).unwrap();
        if said.starts_with(&expected) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(said.starts_with(&expected), "{said}");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_is_noticed_without_the_databases() {
    let (store, _) = used().await;
    let other = store_of(&Story::of(31, 1200).records);
    std::fs::copy(first_segment(other.path()), first_segment(store.path())).unwrap();
    remove(store.path(), INDEX);
    remove(store.path(), PROJECTION);
    let refused = open(store.path(), Open::Existing).await.map(|_| ());
    assert!(
        matches!(refused, Err(Error::Rewritten { .. })),
        "{refused:?}"
    );
}

fn draft(name: &str) -> Draft {
    let subject = Subject::Container(samples::host("cn1"), samples::container(name));
    let captured = Captured {
        command: "true".to_owned(),
        exit: Some(0),
        text: Blob(Vec::new()),
        dropped_bytes: 0,
    };
    Draft::new(subject, OutputCaptured { captured }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_lock_does_not_make_a_second_writer() {
    let store = tempfile::tempdir().unwrap();
    let log = open(store.path(), Open::Create).await.unwrap();
    assert!(log.is_holder().await);
    remove(store.path(), "lock");
    let other = open(store.path(), Open::Create).await.unwrap();
    assert!(!other.is_holder().await);
    other
        .append(vec![draft("a")], Condition::none())
        .await
        .unwrap();
    assert_eq!(log.head().await.unwrap().seq, Seq(2));
    other.close().await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_another_process_has_open_are_left_to_it() {
    let (store, _) = used().await;
    let held = Projection::open(&store.path().join(PROJECTION)).unwrap();
    for how in [Open::Existing, Open::AsItIs] {
        let refused = open(store.path(), how).await.map(|_| ());
        assert!(matches!(refused, Err(Error::Held(_))), "{refused:?}");
    }
    assert!(held.head().unwrap().is_some());
    drop(held);
    open(store.path(), Open::Existing)
        .await
        .unwrap()
        .close()
        .await;
}

/// Something else wrote to the journal: whoever goes on there would destroy it. The store is let go, and the next
/// process finds out what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_somebody_else_wrote_to_stops_and_is_let_go() {
    let store = tempfile::tempdir().unwrap();
    let log = open(store.path(), Open::Create).await.unwrap();
    let client = open(store.path(), Open::Existing).await.unwrap();
    assert!(!client.is_holder().await);
    let path = first_segment(store.path());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], b"TBR1"].concat()).unwrap();
    let error = log
        .append(vec![draft("a")], Condition::none())
        .await
        .unwrap_err();
    assert!(format!("{error:?}").contains("something else"), "{error:?}");
    let error = log
        .append(vec![draft("a")], Condition::none())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Journal(tallybook::journal::Error::Stopped)),
        "{error:?}"
    );
    assert!(log.wait_beyond(Seq(1)).await.is_err(), "a follower is told");
    assert_eq!(log.records(&Filter::default()).await.unwrap().len(), 1);
    let appended = client
        .append(vec![draft("c")], Condition::none())
        .await
        .unwrap();
    assert_eq!(appended[0].seq, Seq(2));
    assert!(client.is_holder().await, "it has taken over");
    client.close().await;
    log.close().await;
}

/// More events than the newest blocks hold that were looked through once.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_append_is_recognised_after_a_takeover() {
    let store = tempfile::tempdir().unwrap();
    let log = open(store.path(), Open::Create).await.unwrap();
    let drafts: Vec<Draft> = (0..6_000).map(|_| draft("a")).collect();
    let first = log.append(drafts.clone(), Condition::none()).await.unwrap();
    log.append(vec![draft("b")], Condition::none())
        .await
        .unwrap();
    log.close().await;
    let log = open(store.path(), Open::Existing).await.unwrap();
    let again = log.append(drafts, Condition::none()).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(log.head().await.unwrap().seq, Seq(6_002));
    log.close().await;
}
