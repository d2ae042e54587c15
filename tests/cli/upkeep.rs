//! What keeps the log itself in order: to the archive and back, erased when it was kept long enough, and gone on with when it is
//! damaged.

use tallybook::journal::{self, Journal, Limits, segment_path};
use tallybook_events::ids::Seq;
use tallybook_events::record::Record;
use tallybook_testkit::files::position;
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

use crate::fixture::Fixture;
use crate::snapshot;

/// A log of several segments whose every byte is known.
fn segmented() -> (Fixture, Vec<Record>) {
    let fixture = Fixture::empty();
    let records = Story::of(3, 120).records;
    let limits = Limits {
        segment_len: 12_000,
    };
    let directory = fixture.store().join("journal");
    let mut journal = Journal::create(&directory, samples::log(), limits).unwrap();
    for write in records.chunk_by(|one, other| one.header.write == other.header.write) {
        journal.append(write).unwrap();
    }
    assert!(journal::segments(&directory).unwrap().len() > 3);
    (fixture, records)
}

/// Damages an event.
fn harm(fixture: &Fixture, record: &Record) {
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    let journal = fixture.store().join("journal");
    for first in journal::own_segments(&journal).unwrap() {
        let path = segment_path(&journal, first);
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = position(&bytes, &frame) {
            bytes[at + 40] ^= 1;
            return std::fs::write(&path, bytes).unwrap();
        }
    }
    panic!("event {} is nowhere", record.header.seq);
}

#[test]
fn archiving_and_restoring() {
    let (fixture, _) = segmented();
    snapshot(
        "log_archive",
        &fixture,
        &[
            &["log", "archive", "--dry-run"],
            &["log", "archive", "--before", "60"],
            &["log", "archive", "--keep", "0", "--format", "json"],
            &["log", "archive", "--keep", "0"],
            &["log", "archive", "--to", "/nowhere/at/all"],
            &["log", "restore", "1", "--dry-run"],
            &["log", "restore", "1", "2", "--format", "json"],
            &["log", "restore", "1"],
            &["log", "restore", "1000000"],
            &["log", "restore"],
            &["log", "restore", "--all"],
            &["log", "restore", "--all"],
            &["log", "--kind", "segments"],
        ],
    );
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
}

#[test]
fn an_archive_that_is_away() {
    let (fixture, _) = segmented();
    let run = fixture.run(&["log", "archive", "--keep", "0"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    std::fs::rename(fixture.store().join("archive"), fixture.path().join("away")).unwrap();
    snapshot(
        "log_archive_away",
        &fixture,
        &[
            &["log", "archive"],
            &["log", "restore", "--all"],
            &["log", "restore", "1"],
            &["log", "recover", "--reason", "it is not mounted", "--yes"],
            &[
                "log",
                "recover",
                "--reason",
                "its disk burnt",
                "--archive-lost",
                "--dry-run",
            ],
        ],
    );
    // It was mounted again, and nothing was lost.
    std::fs::rename(fixture.path().join("away"), fixture.store().join("archive")).unwrap();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
}

#[test]
fn expiring() {
    let fixture = Fixture::story();
    snapshot(
        "log_expire",
        &fixture,
        &[
            &["log", "expire", "--before", "2020-01-01", "--dry-run"],
            &["log", "expire", "--before", "0s", "--dry-run"],
            &["log", "expire", "--before", "0s"],
            &["log", "expire", "--before", "0s", "--yes"],
            &[
                "log", "expire", "--before", "0s", "--yes", "--format", "json",
            ],
            &["log", "--kind", "erasure"],
        ],
    );
    let run = fixture.run(&["verify", "--journal-only"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
}

#[test]
fn recovering() {
    let (fixture, records) = segmented();
    let seq_of = |kind: &str| {
        let mut of_kind = records.iter().filter(|one| one.header.kind == kind);
        of_kind.nth(1).unwrap().clone()
    };
    let started = seq_of("step.started");
    harm(&fixture, &started);
    let of = started.header.operation.unwrap().short();
    let reason = ["log", "recover", "--reason", "the disk lost a block"];
    let with = |more: &[&'static str]| [&reason[..], more].concat();
    snapshot(
        "log_recover",
        &fixture,
        &[
            &with(&["--dry-run"]),
            &with(&["--dry-run", "--format", "json"]),
            &with(&[]),
            &with(&["--yes"]),
            &["log", "--kind", "log.recovered"],
            &["op", "show", &of],
            &["op", "show", &of, "--format", "json"],
            &["log", "--operation", &of],
            &with(&["--yes", "--format", "json"]),
        ],
    );
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    assert!(run.stdout.contains("1 events are lost"), "{}", run.stdout);
    assert_eq!(started.header.epoch.0, 1);
    let head = journal::segments(&fixture.store().join("journal")).unwrap();
    assert_eq!(head[0], Seq(1));
}
