//! Erasing payloads: gone from every file of a store, told by events, and gone on with after a crash at any point.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tallybook::journal::segment_path;
use tallybook::log::{Condition, Draft, Error, Filter, JOURNAL, Limits, Log, Open, verify};
use tallybook_events::event::{ErasureAnnounced, ErasureCause, OutputCaptured, SeqRange};
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::Body;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;

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
    let has = |path: &PathBuf| {
        std::fs::read(path)
            .is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|window| window == SECRET))
    };
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
            .find(|path| {
                std::fs::read(path)
                    .unwrap()
                    .windows(frame.len())
                    .any(|window| window == frame)
            })
            .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes
            .windows(frame.len())
            .position(|window| window == frame)
            .unwrap();
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
