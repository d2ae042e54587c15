//! Stores of other versions: one that version 1 wrote with all that its upkeep leaves behind, kept in the repository; and
//! stores that a later program wrote, which this one has to refuse without touching them.

use std::path::Path;

use tallybook::log::verify;
use tallybook::log::{Filter, Log, Open};
use tallybook_events::event::{Event, Loss};
use tallybook_events::gap::Gap;
use tallybook_events::ids::Seq;
use tallybook_events::record::{self, Body, Record, header_hash};
use tallybook_events::segment::{self, SegmentHead};
use tallybook_events::{archive, header};
use tallybook_testkit::samples::range;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

use crate::ground::{self, content, copy_tree, tallybook};

/// A log of every kind that the second program knew, in which a payload was erased and twice something was lost; and what of it is left.
struct KeptUp {
    records: Vec<Record>,
    gaps: Vec<Gap>,
}

impl KeptUp {
    fn new() -> Self {
        let mut story = Story::of_first_kinds().kept_up();
        for number in 0..6_u8 {
            story.capture(&[number; 40]);
        }
        let end = story.records.len() as u64;
        // Three events that can't be read, and behind them one whose payload is another.
        let first = Gap {
            first: Seq(end - 4),
            last: Seq(end - 2),
            hash: story.records[end as usize - 3].hash,
            header: Vec::new(),
        };
        let alone = &story.records[end as usize - 1];
        let second = Gap {
            first: Seq(end),
            last: Seq(end),
            hash: alone.hash,
            header: alone.header.encode().unwrap(),
        };
        let gaps = vec![first, second];
        let loss = |gap: &Gap| Loss {
            events: range(gap.first.0, gap.last.0),
            hash: gap.hash,
            header_kept: !gap.header.is_empty(),
            why: "the disk lost it".to_owned(),
        };
        story.recover("the disk lost a block", gaps.iter().map(loss).collect());
        story.capture(b"behind it");
        KeptUp {
            records: story.records,
            gaps,
        }
    }

    fn is_lost(&self, record: &Record) -> bool {
        let seq = record.header.seq;
        self.gaps
            .iter()
            .any(|gap| (gap.first..=gap.last).contains(&seq))
    }

    /// A journal of small segments, the second of them in the archive.
    fn write(&self, store: &Path) {
        std::fs::create_dir_all(store.join("journal")).unwrap();
        let mut bytes: Vec<u8> = Vec::new();
        let mut first = Seq(1);
        let end = self.records.len();
        for (number, record) in self.records.iter().enumerate() {
            let header = &record.header;
            let begins = number == 0
                || (bytes.len() > 7000 && header.write == header.seq && !self.is_lost(record));
            if begins {
                if number > 0 {
                    std::fs::write(ground::segment_file(store, first), &bytes).unwrap();
                }
                first = header.seq;
                let head = SegmentHead {
                    log: header.log,
                    epoch: header.epoch,
                    first,
                    previous: header.previous,
                };
                bytes = head.encode().to_vec();
            }
            if !self.is_lost(record) {
                record.write_frame(&mut bytes);
            }
            let gap = self.gaps.iter().find(|gap| gap.last == header.seq);
            bytes.extend(gap.map(Gap::encode).unwrap_or_default());
            if number + 1 == end {
                std::fs::write(ground::segment_file(store, first), &bytes).unwrap();
            }
        }
        ground::archive_segment(store, ground::segments(store)[1]);
    }
}

/// A journal that version 1 of the format wrote, kept in the repository: it must open for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_up_store_of_version_1_opens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-v1-upkeep");
    let kept_up = KeptUp::new();
    if !golden.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        kept_up.write(&golden);
    }
    let store = ground::scratch();
    copy_tree(&golden, store.path());
    let (report, folded) = verify::journal(store.path()).unwrap();
    assert_eq!(report.findings, vec![]);
    assert_eq!((report.erased, report.lost, report.unknown), (1, 4, 0));
    assert_eq!((report.torn_bytes, report.checks.gaps), (0, 2));
    assert!(report.checks.segments >= 4, "{report:?}");
    let last = kept_up.records.last().unwrap();
    assert_eq!(
        (report.head.seq, report.head.hash),
        (last.header.seq, last.hash)
    );
    // What is in the archive alone is read from there.
    assert_eq!(content(&store.path().join("archive")).len(), 1);
    let expected: Vec<Record> = kept_up
        .records
        .iter()
        .filter(|one| !kept_up.is_lost(one))
        .cloned()
        .collect();
    for _ in 0..2 {
        let log = Log::open(store.path(), Open::Existing, |_| {})
            .await
            .unwrap();
        let found = log.records(&Filter::default()).await.unwrap();
        assert_eq!(found, expected);
        log.entries(&Filter::default()).await.unwrap();
        assert_eq!(log.state().await.unwrap().head, folded.head);
        log.close().await;
    }
    let written = ground::scratch();
    kept_up.write(written.path());
    assert_eq!(names(&golden), names(written.path()));
    for name in names(&golden) {
        // A later zstd may pack the same bytes otherwise.
        if name.starts_with("journal") {
            let read = |store: &Path| std::fs::read(store.join(&name)).unwrap();
            assert_eq!(read(&golden), read(written.path()), "{}", name.display());
        }
    }
    let run = tallybook(store.path(), &["verify"]);
    assert_eq!(run.code, Some(0), "{run:?}");
}

fn names(store: &Path) -> Vec<std::path::PathBuf> {
    let all = content(store).into_iter();
    all.map(|(path, _)| path.strip_prefix(store).unwrap().to_owned())
        .collect()
}

/// A journal of three segments, and its last one.
fn journal() -> (TempDir, Vec<Record>, std::path::PathBuf) {
    let records = Story::of(5, 60).records;
    let store = ground::journal_of(&records, 12_000);
    let all = ground::segments(store.path());
    assert!(all.len() >= 3, "{all:?}");
    let last = ground::segment_file(store.path(), *all.last().unwrap());
    (store, records, last)
}

/// A record that a later program would write behind these.
fn later(records: &[Record], change: impl Fn(&mut header::Header), payload: &[u8]) -> Record {
    let last = records.last().unwrap();
    let about = &last.header.subject;
    let mut header = last.header.clone();
    let seq = last.header.seq.next();
    header.seq = seq;
    header.write = seq;
    header.more = 0;
    header.previous = last.hash;
    let of_subject = records
        .iter()
        .rev()
        .find(|record| record.header.subject == *about);
    let newest = of_subject.unwrap();
    (header.subject_previous_seq, header.subject_previous) = (newest.header.seq, newest.hash);
    header.event = tallybook_events::ids::EventId::new(1, [seq.0 as u8; 10]);
    (header.operation, header.claim, header.step) = (None, None, None);
    header.attempt.0 = 0;
    header.outcome = header::Outcome::None;
    change(&mut header);
    Record::seal(header, [9; 32], payload.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_a_later_program_are_kept_and_counted() {
    let (store, mut records, last) = journal();
    let (_, before) = verify::journal(store.path()).unwrap();
    for (kind, version, payload) in [
        ("container.dreamt", 1, &b"\x81\xa1a\x01"[..]),
        ("operation.failed", 2, b"\x80"),
        ("container.dreamt", 7, b"not even MessagePack"),
    ] {
        let change = |header: &mut header::Header| {
            header.kind = kind.into();
            header.kind_version = version;
        };
        records.push(later(&records, change, payload));
    }
    let mut bytes = std::fs::read(&last).unwrap();
    for record in &records[records.len() - 3..] {
        record.write_frame(&mut bytes);
    }
    std::fs::write(&last, &bytes).unwrap();
    let (report, mut state) = verify::journal(store.path()).unwrap();
    assert_eq!(
        (report.findings, report.unknown, report.torn_bytes),
        (vec![], 3, 0)
    );
    assert_eq!(
        (report.head.seq, state.head.unknown),
        (Seq(records.len() as u64), 3)
    );
    // What it does not know changes nothing of what it knows.
    state.head = before.head;
    assert_eq!(state, before);
    let log = Log::open(store.path(), Open::Existing, |_| {})
        .await
        .unwrap();
    assert_eq!(log.records(&Filter::default()).await.unwrap(), records);
    let entries = log.entries(&Filter::default()).await.unwrap();
    let unknown = entries
        .iter()
        .filter(|entry| matches!(entry.event, Event::Unknown(_)));
    assert_eq!(unknown.count(), 3);
    log.close().await;
    let run = tallybook(store.path(), &["verify"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stdout
            .contains("3 payloads are of kinds that this program does not know"),
        "{run:?}"
    );
    let run = tallybook(store.path(), &["log", "--kind", "container.dreamt"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("container.dreamt"), "{run:?}");
}

/// Every command that meets what it can't read says so with 4 and leaves all of it as it is.
fn is_refused(store: &Path, says: &str) {
    let before = content(&store.join("journal"));
    let recover = ["log", "recover", "--reason", "an older program", "--yes"];
    let commands = [
        &["verify"][..],
        &["log"],
        &["state"],
        &recover,
        &["cloud", "refresh"],
    ];
    for command in commands {
        let run = tallybook(store, command);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(
            content(&store.join("journal")),
            before,
            "{command:?} wrote: {said}"
        );
        if command != ["cloud", "refresh"] {
            assert_eq!(run.code, Some(4), "{command:?}: {said}");
            assert!(said.contains(says), "{command:?}: {said}");
            let hint = "use the program that wrote it, or a newer one";
            assert!(said.contains(hint), "{command:?}: {said}");
        }
    }
    let (report, _) = verify::journal(store).unwrap();
    assert_eq!(report.findings[0].class, verify::Class::Newer);
}

#[test]
fn a_segment_of_a_later_format_is_refused() {
    let (store, _, last) = journal();
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[8] = 2;
    let check = blake3::derive_key(
        "tallybook 2026-11 segment head",
        &bytes[..segment::LEN - 32],
    );
    bytes[segment::LEN - 32..segment::LEN].copy_from_slice(&check);
    std::fs::write(&last, &bytes).unwrap();
    is_refused(store.path(), "has format 2; this program knows format 1");
}

#[test]
fn an_archived_segment_of_a_later_format_is_refused() {
    let (store, ..) = journal();
    let second = ground::segments(store.path())[1];
    ground::archive_segment(store.path(), second);
    let file = ground::archive_file(store.path(), second);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] = 2;
    let check = blake3::derive_key(
        "tallybook 2026-11 archive head",
        &bytes[..archive::LEN - 32],
    );
    bytes[archive::LEN - 32..archive::LEN].copy_from_slice(&check);
    std::fs::write(&file, &bytes).unwrap();
    let archived = content(&store.path().join("archive"));
    is_refused(store.path(), "has format 2; this program knows format 1");
    assert_eq!(content(&store.path().join("archive")), archived);
}

/// The bytes of a record whose header has format 2.
fn of_header_2(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.write_frame(&mut bytes);
    bytes[record::PREFIX_LEN] = 2;
    let header_len = record.header.encode().unwrap().len();
    let hash = header_hash(&bytes[record::PREFIX_LEN..record::PREFIX_LEN + header_len]);
    let end = bytes.len();
    bytes[end - record::TRAILER_LEN..].copy_from_slice(&hash.0);
    bytes
}

/// The bytes of a record in a frame of format 2.
fn in_frame_2(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.write_frame(&mut bytes);
    bytes[3] = b'2';
    let check = blake3::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&check.as_bytes()[..4]);
    bytes
}

/// Behind what this program wrote.
fn appended(with: impl Fn(&Record) -> Vec<u8>) -> TempDir {
    let (store, records, last) = journal();
    let record = later(&records, |_| {}, &records.last().unwrap().payload);
    assert_eq!(record.body(), Body::Intact);
    let mut bytes = std::fs::read(&last).unwrap();
    bytes.extend(with(&record));
    std::fs::write(&last, bytes).unwrap();
    store
}

#[test]
fn a_header_of_a_later_format_is_refused() {
    is_refused(
        appended(of_header_2).path(),
        "format 2; this program knows format 1",
    );
}

#[test]
fn a_frame_of_a_later_format_is_refused() {
    is_refused(
        appended(in_frame_2).path(),
        "format 2; this program knows format 1",
    );
}

/// One bit of the digit is another: that is damage, and nothing that a later program wrote.
#[test]
fn a_digit_that_was_altered_is_damage() {
    for (at_end, digit) in [(false, b'3'), (false, b'5'), (true, b'9'), (false, b'0')] {
        let (store, records, last) = journal();
        let bytes = std::fs::read(&last).unwrap();
        let frames = ground::frames(&bytes);
        let frame = match at_end {
            true => frames.last().unwrap(),
            false => &frames[1],
        };
        let (record, _) = Record::read_frame(&bytes[frame.clone()]).unwrap();
        let mut changed = bytes.clone();
        changed[frame.start + 3] = digit;
        std::fs::write(&last, changed).unwrap();
        let (report, _) = verify::journal(store.path()).unwrap();
        if at_end {
            // As any part of an append that was never acknowledged.
            assert_eq!(report.findings, vec![]);
            assert!(report.torn_bytes > 0);
            continue;
        }
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert_eq!(report.findings[0].seq, record.header.seq);
        assert_eq!(report.findings[0].class, verify::Class::Altered);
        let recover = ["log", "recover", "--reason", "a flipped bit", "--yes"];
        let run = tallybook(store.path(), &recover);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(run.stdout.contains("1 event lost"), "{run:?}");
        let (report, _) = verify::journal(store.path()).unwrap();
        assert_eq!((report.findings, report.lost), (vec![], 1));
        assert_eq!(report.head.seq.0, records.len() as u64 + 1);
    }
}

/// What is put aside and what an older program finds in the archive is no less a newer program's.
#[test]
fn an_archived_segment_of_a_later_format_is_not_replaced() {
    let (store, ..) = journal();
    let second = ground::segments(store.path())[1];
    let own = ground::segment_file(store.path(), second);
    let whole = std::fs::read(&own).unwrap();
    ground::archive_segment(store.path(), second);
    std::fs::write(&own, &whole).unwrap();
    let file = ground::archive_file(store.path(), second);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] = 2;
    bytes[archive::LEN - 1] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let run = tallybook(store.path(), &["log", "archive", "--keep", "0"]);
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(run.stderr.contains("newer"), "{run:?}");
    let recover = ["log", "recover", "--reason", "an older program", "--yes"];
    let run = tallybook(store.path(), &recover);
    assert_eq!(run.code, Some(4), "{run:?}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert_eq!(std::fs::read(&own).unwrap(), whole);
}

/// Where the file `head` was kept up by the later program too, as it is with every program that has it.
#[test]
fn records_of_a_later_format_that_were_acknowledged_are_not_cut_off() {
    let forms: [fn(&Record) -> Vec<u8>; 2] = [of_header_2, in_frame_2];
    for with in forms {
        let (store, records, last) = journal();
        let record = later(&records, |_| {}, &records.last().unwrap().payload);
        let mut bytes = std::fs::read(&last).unwrap();
        bytes.extend(with(&record));
        std::fs::write(&last, bytes).unwrap();
        let head = &record.header;
        let said = format!("{} {:020} {}", head.log, head.seq.0, record.hash);
        let check = blake3::derive_key("tallybook 2026-11 head file", said.as_bytes());
        let check = tallybook_events::ids::Hash(check);
        std::fs::write(store.path().join("head"), format!("{said} {check}\n")).unwrap();
        is_refused(store.path(), "this program knows format 1");
    }
}
