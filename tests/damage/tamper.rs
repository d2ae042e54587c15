//! Ten thousand tamperings at random places, by somebody who knows the format: records, heads and hashes are made whole
//! again by themselves. None gets by, but those that only an outside witness can see:
//!
//! - the log's end cut off at an append's border, with the file `head` removed or written anew and the databases gone:
//!   what is left is a sound log, as it was when it ended there;
//! - the log written anew from some event on, every hash behind it recomputed, and `head` and databases likewise: what is
//!   there is a sound log, and no byte of the old one is left to contradict it.
//!
//! Against both stands what is kept where the forger can't write: a copy, a checkpoint, a witness.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tallybook::log::{HEAD, INDEX, JOURNAL, PROJECTION};
use tallybook_events::gap::Gap;
use tallybook_events::header::{Header, Outcome};
use tallybook_events::ids::{Epoch, EventId, Hash, LogId, Seq};
use tallybook_events::record::{self, Record};
use tallybook_events::segment::{self, SegmentHead};
use tallybook_testkit::story::Story;

use crate::ground::{self, frames};

const SEED: u64 = 0x7a11_b00c;
const CASES: u64 = 10_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A store's files: segments by the first event, and the file `head`.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    segments: BTreeMap<u64, Vec<u8>>,
    head: Option<Vec<u8>>,
}

struct Base {
    files: Files,
    records: Vec<Record>,
    branch: Vec<Record>,
    other_log: Vec<Record>,
}

impl Base {
    fn new() -> Self {
        let begun = Story::of(31, 10);
        let mut story = begun.clone();
        while story.records.len() < 90 {
            story.operate();
        }
        let records = story.kept_up().records;
        let store = ground::journal_of(&records, 12_000);
        ground::use_it(store.path());
        let first = ground::segments(store.path());
        assert!(first.len() >= 4, "{first:?}");
        let read = |seq: &Seq| std::fs::read(ground::segment_file(store.path(), *seq)).unwrap();
        Base {
            files: Files {
                segments: first.iter().map(|seq| (seq.0, read(seq))).collect(),
                head: Some(std::fs::read(store.path().join(HEAD)).unwrap()),
            },
            branch: begun.branch(3, 90).records,
            other_log: ground::of_another_log(&records),
            records,
        }
    }

    /// Records in segments that begin where those of the log do.
    fn laid_out(&self, records: &[Record]) -> BTreeMap<u64, Vec<u8>> {
        let mut segments: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for record in records {
            let header = &record.header;
            if self.files.segments.contains_key(&header.seq.0) {
                let head = SegmentHead {
                    log: header.log,
                    epoch: header.epoch,
                    first: header.seq,
                    previous: header.previous,
                };
                segments.insert(header.seq.0, head.encode().to_vec());
            }
            let mut last = segments.last_entry().unwrap();
            record.write_frame(last.get_mut());
        }
        segments
    }
}

/// A file `head` that says that the log ends with this record, with its check.
fn head_of(record: &Record) -> Vec<u8> {
    let header = &record.header;
    let said = format!("{} {:020} {}", header.log, header.seq.0, record.hash);
    let check = Hash(blake3::derive_key(
        "tallybook 2026-11 head file",
        said.as_bytes(),
    ));
    format!("{said} {check}\n").into_bytes()
}

/// Changes a field of a header to something that it can be.
fn change(random: &mut Random, header: &mut Header) -> &'static str {
    let (changed, other) = (random.next(), random.below(90) as u64);
    match random.below(19) {
        0 => (header.time_unix_us ^= 1 << random.below(40), "time").1,
        1 => {
            (
                Arc::make_mut(&mut header.actor).0[0].value.push('1'),
                "actor",
            )
                .1
        }
        2 => (header.kind.to_mut().push('x'), "kind").1,
        3 => (header.kind_version += 1, "kind version").1,
        4 => (header.subject = "host:other".parse().unwrap(), "subject").1,
        5 => (header.cause = Seq(other), "cause").1,
        6 => (header.write = Seq(other + 1), "write").1,
        7 => (header.more = header.more.wrapping_add(1), "more").1,
        8 => (header.epoch = Epoch(header.epoch.0 + 1), "epoch").1,
        9 => (header.claim = None, "claim").1,
        10 => (header.operation = None, "operation").1,
        11 => (header.attempt.0 += 1, "attempt").1,
        12 => {
            (
                header.event = EventId::new(changed >> 16, [1; 10]),
                "event id",
            )
                .1
        }
        13 if header.outcome == Outcome::Failed => (header.outcome = Outcome::None, "outcome").1,
        13 => (header.outcome = Outcome::Failed, "outcome").1,
        14 => (header.erasable = !header.erasable, "erasable").1,
        15 => (header.seq = Seq(header.seq.0 + 1 + other), "seq").1,
        16 => (header.log = LogId::new(changed >> 16, [2; 10]), "log").1,
        17 => {
            (
                header.subject_previous_seq = Seq(other),
                "previous of the subject",
            )
                .1
        }
        _ => (header.previous = Hash([changed as u8; 32]), "previous").1,
    }
}

/// The place of a random record: its segment, and where it is in that.
fn some_record(random: &mut Random, files: &Files) -> Option<(u64, std::ops::Range<usize>)> {
    let number = random.below(files.segments.len());
    let (first, bytes) = files.segments.iter().nth(number)?;
    let frames = frames(bytes);
    let frame = frames.get(random.below(frames.len()))?.clone();
    Some((*first, frame))
}

fn frame_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.write_frame(&mut bytes);
    bytes
}

fn read(files: &Files, first: u64, frame: &std::ops::Range<usize>) -> Option<Record> {
    let bytes = files.segments.get(&first)?.get(frame.clone())?;
    Record::read_frame(bytes).ok().map(|(record, _)| record)
}

/// Changes bytes of a file without knowing what they are.
fn blindly(random: &mut Random, files: &mut Files) -> String {
    let number = random.below(files.segments.len() * 8 + 1);
    let (name, bytes) = match files.segments.iter_mut().nth(number / 8) {
        Some((first, bytes)) => (format!("segment {first}"), bytes),
        None => match &mut files.head {
            Some(bytes) => ("head".to_owned(), bytes),
            None => return "nothing".to_owned(),
        },
    };
    let at = random.below(bytes.len());
    let len = (1 + random.below(300)).min(bytes.len() - at.min(bytes.len()));
    let how = random.below(7);
    match how {
        _ if bytes.is_empty() => {}
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at..at + len].fill(0),
        2 => bytes[at..at + len].fill(0xa5),
        3 => bytes[at..at + len].copy_from_slice(&random.bytes(len)),
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(at..at + len)),
        _ => drop(bytes.splice(at..at, random.bytes(len))),
    }
    format!("{name} byte {at}, {len} long, way {how}")
}

/// Moves whole records about.
fn records(random: &mut Random, base: &Base, files: &mut Files) -> String {
    let Some((first, frame)) = some_record(random, files) else {
        return "no record".to_owned();
    };
    let bytes = files.segments[&first][frame.clone()].to_vec();
    let other = some_record(random, files);
    let seq = read(files, first, &frame).map_or(1, |record| record.header.seq.0);
    let here = |files: &mut Files, with: &[u8]| {
        let segment = files.segments.get_mut(&first).unwrap();
        segment.splice(frame.clone(), with.iter().copied());
    };
    let same = |records: &[Record]| records.get(seq as usize - 1).map(frame_of);
    let how = random.below(6);
    match (how, other) {
        (0, _) => here(files, &[bytes.clone(), bytes].concat()),
        (1, Some((elsewhere, there))) if elsewhere != first => {
            let theirs = files.segments[&elsewhere][there.clone()].to_vec();
            here(files, &theirs);
            let segment = files.segments.get_mut(&elsewhere).unwrap();
            segment.splice(there, bytes);
        }
        (2, Some((elsewhere, there))) if elsewhere != first => {
            here(files, &[]);
            let segment = files.segments.get_mut(&elsewhere).unwrap();
            segment.splice(there.start..there.start, bytes);
        }
        (3, _) => here(files, &same(&base.branch).unwrap_or_default()),
        (4, _) => here(files, &same(&base.other_log).unwrap_or_default()),
        _ => here(files, &[]),
    }
    format!("record {seq}, way {how}")
}

/// Changes what a record says, and makes it whole again by itself.
fn forged(random: &mut Random, files: &mut Files) -> String {
    let place = some_record(random, files);
    let Some((first, frame)) = place else {
        return "no record".to_owned();
    };
    let Some(record) = read(files, first, &frame) else {
        return "no record".to_owned();
    };
    let mut header = record.header.clone();
    let (mut salt, mut payload) = (record.salt, record.payload.clone());
    let seq = header.seq;
    let bytes = files.segments.get_mut(&first).unwrap();
    let what = match random.below(4) {
        0 | 1 => change(random, &mut header),
        2 => {
            salt[0] ^= 1;
            let at = random.below(payload.len());
            if let Some(byte) = payload.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
            "payload and its commitment"
        }
        _ => {
            // As a redaction does it, with or without the right to; nothing is sealed anew.
            let body = frame.end - record::TRAILER_LEN - payload.len() - record::SALT_LEN;
            bytes[body..frame.end - record::TRAILER_LEN].fill(0);
            return format!("event {seq} erased");
        }
    };
    if let Ok(sealed) = Record::seal(header, salt, payload) {
        bytes.splice(frame, frame_of(&sealed));
    }
    format!("event {seq} with another {what}")
}

/// Puts a gap in the place of some records, as a recovery would.
fn gap(random: &mut Random, files: &mut Files) -> String {
    let place = some_record(random, files);
    let Some((first, frame)) = place else {
        return "no record".to_owned();
    };
    let bytes = &files.segments[&first];
    let behind: Vec<_> = frames(bytes)
        .into_iter()
        .filter(|other| other.start >= frame.start)
        .take(1 + random.below(3))
        .collect();
    let of = |frame: &std::ops::Range<usize>| read(files, first, frame);
    let (Some(begin), Some(end)) = (of(&frame), behind.last().and_then(of)) else {
        return "no record".to_owned();
    };
    let gap = Gap {
        first: begin.header.seq,
        last: end.header.seq.max(begin.header.seq),
        hash: end.hash,
        header: Vec::new(),
    };
    let until = behind.last().unwrap().end;
    let segment = files.segments.get_mut(&first).unwrap();
    segment.splice(frame.start..until, gap.encode());
    format!("a gap for events {} to {}", gap.first, gap.last)
}

/// Whole segments: gone, swapped, doubled, of another log, with another head.
fn segments(random: &mut Random, base: &Base, files: &mut Files) -> String {
    let all: Vec<u64> = files.segments.keys().copied().collect();
    let (one, other) = (all[random.below(all.len())], all[random.below(all.len())]);
    let how = random.below(6);
    match how {
        0 if all.len() > 1 => drop(files.segments.remove(&one)),
        1 => {
            let (ours, theirs) = (files.segments[&one].clone(), files.segments[&other].clone());
            files.segments.insert(one, theirs);
            files.segments.insert(other, ours);
        }
        2 => {
            let again = files.segments[&one].clone();
            files.segments.insert(1 + random.below(120) as u64, again);
        }
        3 => {
            let theirs = base.laid_out(&base.other_log);
            theirs
                .get(&one)
                .map(|theirs| files.segments.insert(one, theirs.clone()));
        }
        _ => {
            let segment = files.segments.get_mut(&one).unwrap();
            if let Ok(mut head) = SegmentHead::decode(segment) {
                match random.below(4) {
                    0 => head.epoch.0 += 1,
                    1 => head.first.0 += 1,
                    2 => head.previous.0[3] ^= 1,
                    _ => head.log = LogId::new(5, [5; 10]),
                }
                segment[..segment::LEN].copy_from_slice(&head.encode());
            }
        }
    }
    format!("segment {one} (and {other}), way {how}")
}

/// Cuts the log at an append's border.
fn cut(random: &mut Random, base: &Base, files: &mut Files) -> String {
    let borders: Vec<usize> = (1..base.records.len())
        .filter(|at| base.records[at - 1].header.more == 0)
        .collect();
    let end = borders[random.below(borders.len())];
    files.segments = base.laid_out(&base.records[..end]);
    format!("cut behind event {end}")
}

/// Writes the log anew from some event on.
fn rewritten(random: &mut Random, base: &Base, files: &mut Files) -> String {
    let at = random.below(base.records.len());
    let records = ground::resealed(&base.records, at, |number, header| {
        if number == at {
            header.time_unix_us += 1;
        }
    });
    files.segments = base.laid_out(&records);
    format!("written anew from event {}", at + 1)
}

fn tamper(random: &mut Random, base: &Base, files: &mut Files) -> String {
    match random.below(20) {
        0..=5 => blindly(random, files),
        6..=8 => records(random, base, files),
        9..=13 => forged(random, files),
        14 => gap(random, files),
        15..=17 => segments(random, base, files),
        18 => cut(random, base, files),
        _ => rewritten(random, base, files),
    }
}

/// Puts the file `head` out of the way.
fn silence(random: &mut Random, files: &mut Files) -> &'static str {
    let last = files
        .segments
        .iter()
        .next_back()
        .and_then(|(first, bytes)| {
            let frame = frames(bytes).last()?.clone();
            read(files, *first, &frame)
        });
    match (random.below(2), last) {
        (0, Some(last)) => {
            files.head = Some(head_of(&last));
            "; head written anew"
        }
        _ => {
            files.head = None;
            "; head removed"
        }
    }
}

/// Why nothing can be found in a store that was tampered with; `None` when it ought to be.
fn excuse(base: &Base, files: &Files) -> Option<&'static str> {
    let all = |files: &Files| -> Vec<Vec<u8>> {
        let of = |bytes: &Vec<u8>| -> Vec<Vec<u8>> {
            frames(bytes)
                .into_iter()
                .map(|frame| bytes[frame].to_vec())
                .collect()
        };
        files.segments.values().flat_map(of).collect()
    };
    let hash = |frame: &Vec<u8>| frame[frame.len() - record::TRAILER_LEN..].to_vec();
    let (was, is) = (all(&base.files), all(files));
    let same_bytes = was
        .iter()
        .zip(&is)
        .take_while(|(one, other)| one == other)
        .count();
    let same = was
        .iter()
        .zip(&is)
        .take_while(|(one, other)| hash(one) == hash(other))
        .count();
    if same_bytes != same {
        // A payload that is another under the same header.
        return None;
    }
    let is_silent = files.head != base.files.head;
    match (same == is.len(), same == was.len()) {
        (true, true) => Some("nothing of the log was changed"),
        (true, false) if is_silent => {
            Some("outside witness: the end was cut off at an append's border")
        }
        (false, _) if is_silent => Some("outside witness: written anew from some event on"),
        _ => None,
    }
}

fn put(store: &Path, files: &Files) {
    let journal = store.join(JOURNAL);
    std::fs::remove_dir_all(&journal).ok();
    std::fs::create_dir(&journal).unwrap();
    for (first, bytes) in &files.segments {
        std::fs::write(ground::segment_file(store, Seq(*first)), bytes).unwrap();
    }
    let head = store.join(HEAD);
    match &files.head {
        Some(bytes) => std::fs::write(head, bytes).unwrap(),
        None => drop(std::fs::remove_file(head)),
    }
    assert!(!store.join(INDEX).exists() && !store.join(PROJECTION).exists());
}

/// One case: what was done, and the class of what came of it.
fn case(base: &Base, store: &Path, seed: u64) -> (String, Result<&'static str, String>) {
    let mut random = Random(seed);
    let mut files = base.files.clone();
    let mut done = Vec::new();
    while files == base.files {
        done.clear();
        for _ in 0..1 + random.below(6).saturating_sub(3) {
            done.push(tamper(&mut random, base, &mut files));
        }
    }
    if random.below(6) == 0 {
        done.push(silence(&mut random, &mut files).to_owned());
    }
    put(store, &files);
    let judged = ground::judge(store, 1);
    let class = if !judged.findings.is_empty() {
        Ok("named")
    } else if judged.refused.is_some() {
        Ok("refused")
    } else if judged.torn_bytes > 0 {
        Ok("told as a torn end")
    } else {
        excuse(base, &files).ok_or_else(|| format!("{judged:?}"))
    };
    (done.join(", "), class)
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// `TAMPER_SEED` and `TAMPER_CASES` run others, or one of these again.
#[test]
fn no_tampering_gets_by() {
    let base = Base::new();
    let (seed, cases) = (number("TAMPER_SEED", SEED), number("TAMPER_CASES", CASES));
    let classes: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (base, classes) = (&base, &classes);
            scope.spawn(move || {
                let store = ground::scratch();
                for case_seed in (seed..seed + cases).skip(worker).step_by(2) {
                    let told = || format!("TAMPER_SEED={case_seed} TAMPER_CASES=1");
                    let (done, class) = case(base, store.path(), case_seed);
                    match class {
                        Ok(class) => *classes.lock().unwrap().entry(class).or_default() += 1,
                        Err(judged) => panic!("{}: {done} got by: {judged}", told()),
                    }
                }
            });
        }
    });
    let classes = classes.into_inner().unwrap();
    println!("{classes:#?}");
    assert_eq!(classes.values().sum::<u64>(), cases);
    if cases == CASES {
        let outside = classes
            .keys()
            .filter(|class| class.starts_with("outside witness"));
        assert_eq!(outside.count(), 2, "{classes:?}");
        assert!(classes["named"] > cases * 8 / 10, "{classes:?}");
    }
}
