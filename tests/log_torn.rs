//! A loss of power amid a write: whatever of its pages arrived, the log opens again, and what is not whole is put
//! aside. The same in an earlier write is damage.

use std::path::Path;

use proptest::prelude::*;
use tallybook::journal::{self, Damage, Journal, Limits, Reader, Tail, segment_path};
use tallybook::log::{Condition, Draft, Error, Filter, JOURNAL, Log, Open, verify};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::Record;
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

const PAGE: usize = 4096;
const ONE_SEGMENT: Limits = Limits {
    segment_len: 1 << 30,
};

/// A journal of several writes, with where each begins and how many events are before it.
struct Written {
    records: Vec<Record>,
    bytes: Vec<u8>,
    /// The same journal with another last write, which never came to its end.
    other: Vec<u8>,
    /// Byte and number of events, for each write, and the end.
    writes: Vec<(usize, usize)>,
}

fn written(choices: u64) -> Written {
    let story = Story::in_writes(choices, 90, 25);
    let records = story.branch(choices + 50, 60).records;
    let mut other = empty().1;
    for record in &story.branch(choices + 100, 60).records {
        record.write_frame(&mut other);
    }
    let mut bytes = empty().1;
    let mut writes = Vec::new();
    for (number, record) in records.iter().enumerate() {
        if record.header.write == record.header.seq {
            writes.push((bytes.len(), number));
        }
        record.write_frame(&mut bytes);
    }
    writes.push((bytes.len(), records.len()));
    Written {
        records,
        bytes,
        other,
        writes,
    }
}

/// A store with a journal of no event, and the bytes of its segment.
fn empty() -> (TempDir, Vec<u8>) {
    let store = tempfile::tempdir().unwrap();
    Journal::create(&store.path().join(JOURNAL), samples::log(), ONE_SEGMENT).unwrap();
    let bytes = std::fs::read(segment_path(&store.path().join(JOURNAL), Seq(1))).unwrap();
    assert_eq!(bytes.len(), segment::LEN);
    (store, bytes)
}

fn store_of(bytes: &[u8]) -> TempDir {
    let (store, _) = empty();
    std::fs::write(segment_path(&store.path().join(JOURNAL), Seq(1)), bytes).unwrap();
    store
}

/// What a page that never arrived holds instead.
#[derive(Debug, Clone, Copy)]
enum Instead {
    Zeros,
    /// What stood there before: another write that was cut off.
    Old,
    Noise,
}

/// The bytes with some pages of a stretch replaced; what is before the stretch in its first page stays.
fn replaced(
    bytes: &[u8],
    (from, to): (usize, usize),
    old: &[u8],
    pages: &[(bool, Instead)],
) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for (page, number) in (from / PAGE..=(to - 1) / PAGE).zip(0..) {
        let (lost, instead) = pages[number % pages.len()];
        if !lost {
            continue;
        }
        for at in (page * PAGE).max(from)..((page + 1) * PAGE).min(to) {
            changed[at] = match instead {
                Instead::Zeros => 0,
                Instead::Old => old.get(at).copied().unwrap_or_default(),
                Instead::Noise => (at as u8).wrapping_mul(37) ^ bytes[at],
            };
        }
    }
    changed
}

/// Reads all there is; how many events, and how it ended.
fn read(store: &Path) -> Result<(usize, Tail), journal::Error> {
    let mut reader = Reader::from_start(&store.join(JOURNAL))?;
    let mut count = 0;
    while reader.next()?.is_some() {
        count += 1;
    }
    Ok((count, reader.tail()))
}

fn pages() -> impl Strategy<Value = Vec<(bool, Instead)>> {
    let instead = prop_oneof![
        Just(Instead::Zeros),
        Just(Instead::Old),
        Just(Instead::Noise)
    ];
    prop::collection::vec((any::<bool>(), instead), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn pages_of_the_last_write_may_be_lost(choices in 1..40_u64, pages in pages(), len in 0..=8_usize) {
        let written = written(choices);
        let [.., (from, before), (to, _)] = written.writes[..] else { panic!("one write only") };
        let mut bytes = replaced(&written.bytes, (from, to), &written.other, &pages);
        // And the file may be shorter than what was written.
        bytes.truncate(to - (to - from) * len / 16);
        let whole = bytes == written.bytes;
        let store = store_of(&bytes);
        let (count, tail) = read(store.path()).unwrap();
        prop_assert!(count >= before, "{count} of {before} events that were acknowledged");
        let report = verify::journal(store.path()).unwrap().0;
        prop_assert_eq!(report.findings, vec![]);
        prop_assert_eq!(report.head.seq, Seq(count as u64));
        match tail {
            Tail::Whole => prop_assert_eq!(report.torn_bytes, 0),
            Tail::Torn { bytes, .. } => {
                prop_assert!(!whole);
                prop_assert_eq!(report.torn_bytes, bytes);
            }
        }
    }

    #[test]
    fn pages_of_an_earlier_write_may_not(choices in 1..40_u64, which in 0..3_usize, pages in pages()) {
        let written = written(choices);
        let old = self::written(choices + 1).bytes;
        let which = which.min(written.writes.len() - 3);
        let (from, before) = written.writes[which];
        let (to, _) = written.writes[which + 1];
        let bytes = replaced(&written.bytes, (from, to), &old, &pages);
        prop_assume!(bytes != written.bytes);
        let store = store_of(&bytes);
        let damaged = matches!(
            read(store.path()),
            Err(journal::Error::Damaged { seq, .. }) if seq.0 > before as u64
        );
        prop_assert!(damaged);
        let report = verify::journal(store.path()).unwrap().0;
        prop_assert!(!report.findings.is_empty());
        prop_assert_eq!(report.torn_bytes, 0);
        prop_assert_eq!(report.head.seq.0 as usize, written.records.len(), "it goes on behind the damage");
    }
}

fn draft(len: usize) -> Draft {
    let captured = Captured {
        command: String::new(),
        exit: None,
        text: Blob(vec![b'x'; len]),
        dropped_bytes: 0,
    };
    Draft::new(Subject::Cloud, OutputCaptured { captured }).unwrap()
}

/// One append of a megabyte, with a page lost at its beginning, in its middle and at its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_append_that_lost_a_page_is_put_aside_and_the_log_goes_on() {
    let store = tempfile::tempdir().unwrap();
    let quiet = |_| {};
    let log = Log::open(store.path(), Open::Create, quiet).await.unwrap();
    log.append(vec![draft(100)], Condition::none())
        .await
        .unwrap();
    log.close().await;
    let path = segment_path(&store.path().join(JOURNAL), Seq(1));
    let before = std::fs::read(&path).unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join(JOURNAL)).unwrap();
    let copied = segment_path(&copy.path().join(JOURNAL), Seq(1));
    std::fs::write(&copied, &before).unwrap();
    let log = Log::open(copy.path(), Open::Existing, quiet).await.unwrap();
    let large = vec![draft(300_000), draft(400_000), draft(300_000)];
    log.append(large, Condition::none()).await.unwrap();
    log.close().await;
    let after = std::fs::read(&copied).unwrap();
    let last = after.len() / PAGE;
    for lost in [before.len() / PAGE, before.len() / PAGE + 1, last / 2, last] {
        let mut bytes = after.clone();
        let from = (lost * PAGE).max(before.len());
        let to = ((lost + 1) * PAGE).min(after.len());
        bytes[from..to].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let log = Log::open(store.path(), Open::Existing, quiet)
            .await
            .unwrap();
        assert_eq!(log.head().await.unwrap().seq, Seq(2), "page {lost}");
        log.close().await;
        assert_eq!(std::fs::read(&path).unwrap(), before, "page {lost}");
    }
    // Where the databases know that it was acknowledged, the same bytes are a loss.
    let mut bytes = after.clone();
    bytes[before.len()..PAGE].fill(0);
    std::fs::write(&copied, &bytes).unwrap();
    let log = Log::open(copy.path(), Open::Existing, quiet).await.unwrap();
    // What is not read at a start is found out before it is relied on.
    for _ in 0..2 {
        let error = log.append(vec![draft(1)], Condition::none()).await.err();
        assert!(
            matches!(
                error,
                Some(Error::TailLost {
                    projection: Seq(5),
                    ..
                })
            ),
            "{error:?}"
        );
    }
    log.close().await;
    assert_eq!(
        std::fs::read(&copied).unwrap(),
        bytes,
        "nothing was written"
    );
    std::fs::write(&copied, &after).unwrap();
    let log = Log::open(copy.path(), Open::Existing, quiet).await.unwrap();
    assert_eq!(log.records(&Filter::default()).await.unwrap().len(), 5);
    log.close().await;
}

/// A payload that holds the bytes of records: they are no records of this log, whatever is damaged around them.
#[test]
fn records_inside_a_payload_are_not_taken_for_records() {
    let mut story = Story::new(9);
    // Of this log, already read; of this log, far ahead; and such that would follow, if their hashes did.
    let other = Story::of(5, 30).records;
    story.capture(b"first");
    let known = frames(&story.records);
    story.capture(&[known, frames(&other[20..]), frames(&other[2..5])].concat());
    story.capture(b"behind it");
    let records = story.records;
    let (store, mut bytes) = empty();
    bytes.extend(frames(&records));
    let path = segment_path(&store.path().join(JOURNAL), Seq(1));
    let holder = records.len() - 2;
    let start = segment::LEN + frames(&records[..holder]).len();
    for at in [0, 8, 30, records[holder].frame_len() - 1] {
        let mut damaged = bytes.clone();
        damaged[start + at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let report = verify::journal(store.path()).unwrap().0;
        assert_eq!(report.head.seq, Seq(records.len() as u64), "byte {at}");
        assert_eq!(report.findings.len(), 1, "{at}: {:?}", report.findings);
        let seq = Seq(holder as u64 + 1);
        assert_eq!(report.findings[0].seq, seq);
        match read(store.path()) {
            Err(journal::Error::Damaged {
                seq: found,
                source: Damage::Record(_),
                ..
            }) => assert_eq!(found, seq),
            other => panic!("{other:?}"),
        }
    }
}

fn frames(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        record.write_frame(&mut bytes);
    }
    bytes
}
