//! Stores to be damaged, and what is asked of them afterwards.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tallybook::journal::{self, Journal, Limits, archive, segment_path};
use tallybook::log::verify::{self, Class, Finding};
use tallybook::log::{Filter, HEAD, JOURNAL, KeptHead, Log, Open};
use tallybook_events::archive::{ArchiveHead, content_hash, packed_hash};
use tallybook_events::event::SeqRange;
use tallybook_events::header::{ClaimRef, Header};
use tallybook_events::ids::{Hash, LogId, Seq};
use tallybook_events::record::{Frame, Record};
use tallybook_events::segment;
pub(crate) use tallybook_testkit::files::copy_tree;
use tallybook_testkit::samples;
use tempfile::TempDir;

/// Nothing that is done to a small store may take longer.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// A directory in memory, where there is such a place: thousands of stores are written and synced.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// A store with a journal of these records and nothing else, in segments of about this length.
pub(crate) fn journal_of(records: &[Record], segment_len: u64) -> TempDir {
    let store = scratch();
    write_journal(store.path(), records, segment_len);
    store
}

pub(crate) fn write_journal(store: &Path, records: &[Record], segment_len: u64) {
    let log = records[0].header.log;
    let limits = Limits { segment_len };
    let mut journal = Journal::create(&store.join(JOURNAL), log, limits).unwrap();
    for write in records.chunk_by(|earlier, later| earlier.header.write == later.header.write) {
        journal.append(write).unwrap();
    }
}

/// Has the databases and the file `head` made.
pub(crate) fn use_it(store: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let log = Log::open(store, Open::Existing, |_| {}).await.unwrap();
        log.records(&Filter::at(Seq(1))).await.unwrap();
        log.close().await;
    });
}

pub(crate) fn segments(store: &Path) -> Vec<Seq> {
    journal::segments(&store.join(JOURNAL)).unwrap()
}

pub(crate) fn segment_file(store: &Path, first: Seq) -> PathBuf {
    segment_path(&store.join(JOURNAL), first)
}

pub(crate) fn archive_file(store: &Path, first: Seq) -> PathBuf {
    archive::path(&store.join(JOURNAL), first)
}

/// Moves a whole segment into the archive.
pub(crate) fn archive_segment(store: &Path, first: Seq) {
    let own = segment_file(store, first);
    let bytes = std::fs::read(&own).unwrap();
    let last = frames(&bytes).last().cloned().unwrap();
    let (last, _) = Record::read_frame(&bytes[last]).unwrap();
    let packed = zstd::bulk::compress(&bytes, 3).unwrap();
    let head = ArchiveHead {
        log: last.header.log,
        events: SeqRange {
            first,
            last: last.header.seq,
        },
        hash: last.hash,
        len: bytes.len() as u64,
        content: content_hash(&bytes),
        packed_len: packed.len() as u64,
        packed: packed_hash(&packed),
    };
    let mut stored = head.encode().to_vec();
    stored.extend(packed);
    std::fs::create_dir_all(archive::directory(&store.join(JOURNAL))).unwrap();
    std::fs::write(archive_file(store, first), stored).unwrap();
    std::fs::remove_file(own).unwrap();
}

/// Where the records of a segment's bytes are.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut at = segment::LEN;
    let mut found = Vec::new();
    while let Some(Ok(frame)) = bytes.get(at..).map(Frame::read) {
        found.push(at..at + frame.len());
        at += frame.len();
    }
    found
}

/// Every file below a directory with its bytes, to see whether anything changed.
pub(crate) fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// The same history sealed anew from a record on: some headers changed, all hashes that follow from that set right.
pub(crate) fn resealed(
    records: &[Record],
    from: usize,
    change: impl Fn(usize, &mut Header),
) -> Vec<Record> {
    let mut all: Vec<Record> = records[..from].to_vec();
    for (number, record) in records.iter().enumerate().skip(from) {
        let mut header = record.header.clone();
        let hash_of = |seq: Seq| all[seq.0 as usize - 1].hash;
        if number > 0 {
            header.previous = all[number - 1].hash;
        }
        if header.subject_previous_seq > Seq::NONE {
            header.subject_previous = hash_of(header.subject_previous_seq);
        }
        header.claim = header.claim.map(|claim| ClaimRef {
            seq: claim.seq,
            hash: hash_of(claim.seq),
        });
        change(number, &mut header);
        all.push(Record::seal(header, record.salt, record.payload.clone()).unwrap());
    }
    all
}

/// The same history as another log.
pub(crate) fn of_another_log(records: &[Record]) -> Vec<Record> {
    let other = LogId::new(1_794_000_000_001, [8; 10]);
    assert_ne!(other, samples::log());
    resealed(records, 0, |_, header| header.log = other)
}

/// What was found wrong with a store.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) findings: Vec<Finding>,
    pub(crate) torn_bytes: u64,
    pub(crate) head: (Seq, Hash),
    /// That it could not be read at all.
    pub(crate) refused: Option<String>,
}

/// What `tallybook verify --journal-only` does.
pub(crate) fn judge(store: &Path, threads: usize) -> Judged {
    let scope = verify::Scope {
        threads,
        ..verify::Scope::default()
    };
    let judged = || -> Result<Judged, tallybook::log::Error> {
        let kept = KeptHead::of(store)?;
        let (report, _) = verify::journal_within(store, scope, |_| {})?;
        let mut findings = report.findings;
        if findings.is_empty()
            && let Some(what) = kept.against(store, &report.head)?
        {
            findings.push(Finding {
                seq: report.head.seq,
                place: store.join(HEAD).display().to_string(),
                class: Class::End,
                what,
            });
        }
        Ok(Judged {
            findings,
            torn_bytes: report.torn_bytes,
            head: (report.head.seq, report.head.hash),
            refused: None,
        })
    };
    judged().unwrap_or_else(|error| Judged {
        findings: Vec::new(),
        torn_bytes: 0,
        head: (Seq::NONE, Hash::ZERO),
        refused: Some(chain(&error)),
    })
}

/// The same in a thread of its own, which must not panic and must come to an end.
pub(crate) fn judge_guarded(store: &Path) -> Result<Judged, &'static str> {
    let (done, result) = mpsc::channel();
    let store = store.to_owned();
    std::thread::spawn(move || drop(done.send(judge(&store, 2))));
    match result.recv_timeout(HANG) {
        Ok(judged) => Ok(judged),
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("it panicked"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(because) = cause {
        text.push_str(&format!(": {because}"));
        cause = because.source();
    }
    text
}

/// How a command of the program ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// `None` when it had to be killed because it took too long.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program on a store.
pub(crate) fn tallybook(store: &Path, args: &[&str]) -> Run {
    let aside = scratch();
    let (out, err) = (aside.path().join("out"), aside.path().join("err"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_tallybook"))
        .args(args)
        .env("TALLYBOOK_STORE", store)
        .env("HOME", aside.path())
        .env_remove("TALLYBOOK_CRASH")
        .current_dir(aside.path())
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status.code().unwrap_or(-1)),
            None if began.elapsed() > HANG => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    Run {
        code,
        stdout: text(&out),
        stderr: text(&err),
    }
}
