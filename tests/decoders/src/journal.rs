//! Whole journals: a script builds one from records that hold together and harms it; then who verifies and who reads must
//! find the same.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tallybook::journal::{self, At, Found, Inspect, Reader, Tail, link_at, scan, segment_path};
use tallybook::log::{JOURNAL, verify};
use tallybook_events::header::HeaderView;
use tallybook_events::ids::{Epoch, Hash, Seq};
use tallybook_events::record::{Frame, Record};
use tallybook_events::segment::SegmentHead;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

use crate::directory;
use crate::memory::bounded;

/// Histories to take records from: of many writes, of few, and one that begins as the first does.
static STORIES: LazyLock<Vec<Vec<Record>>> = LazyLock::new(|| {
    let first = Story::of(3, 24);
    let branch = first.branch(9, 8);
    let few = Story::in_writes(5, 24, 3);
    [first, few, branch].map(|story| story.records).into()
});

static STORE: LazyLock<PathBuf> = LazyLock::new(|| {
    let store = directory("journal");
    fs::create_dir_all(store.join(JOURNAL)).expect("memory can be written to");
    store
});

/// The most bytes a script may build: it can double what is there.
const LEN_MAX: usize = 1 << 14;

/// Builds a journal by a script, and has it read.
pub fn run(bytes: &[u8]) {
    let directory = STORE.join(JOURNAL);
    for entry in fs::read_dir(&directory).expect("it is there").flatten() {
        fs::remove_file(entry.path()).expect("it is ours");
    }
    let (with_verify, segments) = build(bytes);
    let mut len = 0;
    for (first, bytes) in &segments {
        fs::write(segment_path(&directory, *first), bytes).expect("memory can be written to");
        len += bytes.len();
    }
    if !segments.is_empty() {
        compare(&directory, len);
        if with_verify {
            verified();
        }
    }
}

/// What a script does: two bytes of setting, then operations of three bytes: what, and two of how.
fn build(script: &[u8]) -> (bool, Vec<(Seq, Vec<u8>)>) {
    let Some(([flags, story], rest)) = script.split_first_chunk::<2>() else {
        return (false, Vec::new());
    };
    let records = &STORIES[usize::from(*story) % STORIES.len()];
    let mut segments = vec![(Seq(1), head(Seq(1), Hash::ZERO, Epoch(1)))];
    let mut next = 0;
    let mut total = 0;
    let mut steps = rest;
    while let Some(([what, low, high], after)) = steps.split_first_chunk::<3>() {
        steps = after;
        let how = usize::from(u16::from_le_bytes([*low, *high]));
        let Some((_, bytes)) = segments.last_mut() else {
            break;
        };
        total += bytes.len();
        if total > LEN_MAX * 4 || bytes.len() > LEN_MAX {
            break;
        }
        match what % 12 {
            // Whole appends, as many as are asked for: what a sound journal is made of.
            0..=3 => {
                for record in records.iter().skip(next).take(1 + how % 8) {
                    record.write_frame(bytes);
                    next += 1;
                }
                while next > 0
                    && records
                        .get(next - 1)
                        .is_some_and(|last| last.header.more > 0)
                {
                    let Some(record) = records.get(next) else {
                        break;
                    };
                    record.write_frame(bytes);
                    next += 1;
                }
            }
            4 => {
                let before = next.checked_sub(1).and_then(|last| records.get(last));
                let seq = before.map_or(Seq(1), |record| record.header.seq.next());
                let hash = before.map_or(Hash::ZERO, |record| record.hash);
                segments.push((seq, head(seq, hash, Epoch(1 + u32::from(how > 0xff00)))));
            }
            5 => next += how % 4,
            6 => next = next.saturating_sub(how % 4),
            7 => {
                let story = &STORIES[how % STORIES.len()];
                if let Some(record) = story.get(next) {
                    record.write_frame(bytes);
                }
            }
            8 => {
                let at = how % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (what / 12 % 8);
                }
            }
            9 => bytes.truncate(bytes.len().saturating_sub(how % 700)),
            10 => {
                let (at, len) = (how % bytes.len().max(1), usize::from(what / 12) * 40);
                let end = bytes.len().min(at + len);
                bytes[at..end].fill(0);
            }
            _ => {
                let taken = after.len().min(how % 256);
                bytes.extend_from_slice(&after[..taken]);
                steps = &after[taken..];
            }
        }
    }
    // The same name twice is the same file.
    segments.sort_by_key(|(first, _)| *first);
    (flags & 15 == 0, segments)
}

fn head(first: Seq, previous: Hash, epoch: Epoch) -> Vec<u8> {
    let log = samples::log();
    let head = SegmentHead {
        log,
        epoch,
        first,
        previous,
    };
    head.encode().to_vec()
}

struct Scanned {
    tail: Tail,
    records: Vec<(PathBuf, u64, Record)>,
    is_sound: bool,
}

fn scanned(directory: &Path) -> Scanned {
    let mut records = Vec::new();
    let mut is_sound = true;
    let how = Inspect {
        threads: 1,
        ..Inspect::default()
    };
    let inspector = || {
        |frame: &Frame<'_>, header: &HeaderView<'_>| frame.to_record(header).expect("it is decoded")
    };
    let found = |at: At<'_>, found| {
        match found {
            Found::Head | Found::Gap(_) => {}
            Found::Record { item, wrong, .. } => {
                is_sound &= wrong.is_none();
                records.push((at.path.to_owned(), at.offset, item));
            }
            Found::DamagedFile(_)
            | Found::DamagedHead(_)
            | Found::Lost(_)
            | Found::Unreadable { .. } => is_sound = false,
        }
        ControlFlow::Continue(())
    };
    let tail = scan(directory, how, inspector, found, |_| {});
    Scanned {
        tail: tail.expect("memory can be read"),
        records,
        is_sound,
    }
}

fn compare(directory: &Path, len: usize) {
    let scanned = bounded(len, || scanned(directory));
    let mut read = Vec::new();
    let ended = Reader::from_start(directory).and_then(|mut reader| {
        while let Some((at, record)) = reader.next()? {
            read.push((at, record));
        }
        Ok(reader.tail())
    });
    for (number, (at, record)) in read.iter().enumerate() {
        let (path, offset, by_scan) = &scanned.records[number];
        assert_eq!(record, by_scan, "both find the same records");
        assert_eq!(
            (&segment_path(directory, at.segment), at.offset),
            (path, *offset)
        );
        // A file is opened each time: the ends are enough.
        if number == 0 || number + 1 == read.len() {
            let found = link_at(directory, *at).expect("memory can be read");
            assert_eq!(found.map(|(hash, _)| hash), Some(record.hash));
        }
    }
    let mut open: (&Path, Vec<u8>) = (Path::new(""), Vec::new());
    for (path, offset, record) in &scanned.records {
        if open.0 != path {
            open = (path, fs::read(path).expect("it is there"));
        }
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let start = usize::try_from(*offset).expect("it is in memory");
        let there = open.1.get(start..start + frame.len());
        assert_eq!(there, Some(&frame[..]), "it stands where it is said to");
    }
    match ended {
        Ok(tail) => {
            assert!(
                scanned.is_sound,
                "a reader read to the end of what a scan finds damaged"
            );
            assert_eq!(tail, scanned.tail);
            assert_eq!(read.len(), scanned.records.len());
            // Where a store opens: behind the last record, from where nothing more is read.
            if let Some((last, record)) = read.last() {
                let link = journal::Link::of(record);
                let next = link_at(directory, *last).expect("memory can be read");
                let next = next.expect("it was read").1;
                let mut behind = Reader::from_position(directory, next, link);
                assert!(behind.next().expect("nothing is wrong there").is_none());
            }
        }
        Err(error) => assert!(
            !scanned.is_sound,
            "a scan finds nothing wrong, a reader {error}"
        ),
    }
}

/// The whole verification, which folds what it reads.
fn verified() {
    if let Ok((report, _)) = verify::journal(&STORE)
        && report.findings.is_empty()
    {
        let scanned = scanned(&STORE.join(JOURNAL));
        assert!(
            scanned.is_sound,
            "verify finds nothing wrong with what a scan finds damaged"
        );
        assert_eq!(report.head.seq.0, scanned.records.len() as u64);
    }
}
