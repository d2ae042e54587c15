//! The stored format, byte for byte: `events/tests/golden/` holds the bytes as hex text, and these tests compare.
//!
//! `GOLDEN_WRITE=1 cargo test -p tallybook-events --test golden` writes what is missing; it never replaces a file,
//! because bytes once written are never reinterpreted.

#![expect(
    clippy::disallowed_methods,
    reason = "the crate is pure; a test of it reads its golden files"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use tallybook_events::archive::ArchiveHead;
use tallybook_events::event::{Event, KINDS, OperationIntended};
use tallybook_events::gap::Gap;
use tallybook_events::ids::{Epoch, Hash, Seq};
use tallybook_events::record::{Body, Record, header_hash};
use tallybook_events::segment::SegmentHead;
use tallybook_events::step::Receipt;
use tallybook_events::{codec, fact::Fact, intent::Intent};
use tallybook_testkit::samples;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// The bytes of a golden file, which must be these.
fn pinned(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = directory().join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{name} has no golden file ({error}); see the head of this test")
    });
    assert_eq!(hex(bytes), text, "{name}: the stored bytes changed");
    unhex(&text)
}

#[test]
fn a_record_of_every_kind() {
    let events = samples::events();
    for (number, event) in events.iter().enumerate() {
        let (kind, version) = event.kind().unwrap();
        let header = samples::header(event, number as u64 + 1);
        let record = Record::seal(header, [0x5a; 32], event.encode().unwrap()).unwrap();
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let stored = pinned(&format!("record.{kind}.v{version}"), &frame);
        let (read, len) = Record::read_frame(&stored).unwrap();
        assert_eq!((&read, len), (&record, stored.len()));
        assert_eq!(read.body(), Body::Intact);
        let decoded = Event::decode(&read.header.kind, read.header.kind_version, &read.payload);
        assert_eq!(&decoded.unwrap(), event);
    }
    let covered: BTreeSet<(&str, u16)> = events.iter().filter_map(Event::kind).collect();
    let kinds: BTreeSet<(&str, u16)> = KINDS.iter().copied().collect();
    assert_eq!(
        covered, kinds,
        "every kind has a sample and so a golden file"
    );
}

#[test]
fn a_first_record_with_nothing_optional() {
    let event = &samples::events()[0];
    let mut header = samples::header(event, 1);
    header.previous = Hash::ZERO;
    header.subject = tallybook_events::subject::Subject::Cloud;
    header.subject_previous = Hash::ZERO;
    header.claim = None;
    header.operation = None;
    header.step = None;
    header.attempt = tallybook_events::ids::Attempt(0);
    header.cause = Seq::NONE;
    header.more = 513;
    let record = Record::seal(header, [0x5a; 32], event.encode().unwrap()).unwrap();
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    let stored = pinned("record.minimal", &frame);
    assert_eq!(Record::read_frame(&stored).unwrap().0, record);
}

#[test]
fn the_head_of_an_archived_segment() {
    let head = ArchiveHead {
        log: samples::log(),
        events: samples::range(70_001, 140_000),
        hash: Hash([0x44; 32]),
        len: 67_108_900,
        content: Hash([0x55; 32]),
        packed_len: 6_710_890,
        packed: Hash([0x66; 32]),
    };
    let stored = pinned("archive.head", &head.encode());
    assert_eq!(ArchiveHead::decode(&stored).unwrap(), head);
    for at in 0..stored.len() {
        let mut changed = stored.clone();
        changed[at] ^= 0x40;
        assert!(ArchiveHead::decode(&changed).is_err(), "byte {at}");
        assert!(ArchiveHead::decode(&stored[..at]).is_err(), "{at} bytes");
    }
}

#[test]
fn a_segment_head() {
    for (name, first, previous) in [
        ("segment.first", 1, Hash::ZERO),
        ("segment.later", 70_001, Hash([0x33; 32])),
    ] {
        let head = SegmentHead {
            log: samples::log(),
            epoch: Epoch(1),
            first: Seq(first),
            previous,
        };
        let stored = pinned(name, &head.encode());
        assert_eq!(SegmentHead::decode(&stored).unwrap(), head);
    }
}

#[test]
fn a_gap() {
    let event = &samples::events()[0];
    let header = samples::header(event, 8).encode().unwrap();
    let without = Gap {
        first: Seq(4),
        last: Seq(6),
        hash: Hash([0x44; 32]),
        header: Vec::new(),
    };
    let with = Gap {
        first: Seq(8),
        last: Seq(8),
        hash: header_hash(&header),
        header,
    };
    for (name, gap) in [("gap.lost", without), ("gap.header", with)] {
        let stored = pinned(name, &gap.encode());
        assert_eq!(Gap::read(&stored), Some((gap, stored.len())));
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Gap::read(&flipped), None, "{name}, bit {bit}");
        }
        for len in 0..stored.len() {
            assert_eq!(Gap::read(&stored[..len]), None, "{name}, cut to {len}");
        }
    }
}

#[test]
fn every_intent() {
    for (number, intent) in samples::intents().iter().enumerate() {
        let stored = pinned(
            &format!("intent.{number:02}"),
            &codec::encode(intent).unwrap(),
        );
        assert_eq!(&codec::decode::<Intent>(&stored).unwrap(), intent);
    }
    let covered: BTreeSet<&str> = samples::intents().iter().map(intent_name).collect();
    assert_eq!(covered.len(), 16, "every variant has a sample");
}

/// An earlier program keeps a version that it does not know as unknown. Under one that it knows it would take what it has no
/// words for as damage.
#[test]
fn a_later_version_is_used_for_what_an_earlier_one_can_not_say_and_for_nothing_else() {
    let intended = |intent: &Intent| -> Event {
        OperationIntended {
            intent: intent.clone(),
            inventory: Seq(2),
            claims: Vec::new(),
        }
        .into()
    };
    for intent in samples::intents() {
        let event = intended(&intent);
        let (kind, version) = event.kind().unwrap();
        let is_later = matches!(intent, Intent::RollbackTo { .. });
        assert_eq!(version, if is_later { 2 } else { 1 }, "{intent:?}");
        let bytes = event.encode().unwrap();
        assert_eq!(Event::decode(kind, version, &bytes).unwrap(), event);
        assert!(
            Event::decode(kind, 3 - version, &bytes).is_err(),
            "{intent:?}"
        );
        assert!(matches!(
            Event::decode(kind, 3, &bytes),
            Ok(Event::Unknown(_))
        ));
    }
}

#[test]
fn every_fact() {
    for (number, fact) in samples::facts().iter().enumerate() {
        let stored = pinned(&format!("fact.{number:02}"), &codec::encode(fact).unwrap());
        assert_eq!(&codec::decode::<Fact>(&stored).unwrap(), fact);
    }
    let covered: BTreeSet<&str> = samples::facts().iter().map(fact_name).collect();
    assert_eq!(covered.len(), 15, "every variant has a sample");
}

#[test]
fn every_receipt() {
    for (number, receipt) in samples::receipts().iter().enumerate() {
        let stored = pinned(
            &format!("receipt.{number:02}"),
            &codec::encode(receipt).unwrap(),
        );
        assert_eq!(&codec::decode::<Receipt>(&stored).unwrap(), receipt);
    }
}

#[test]
fn no_golden_file_is_left_over() {
    let mut expected: BTreeSet<String> = KINDS
        .iter()
        .map(|(kind, version)| format!("record.{kind}.v{version}.hex"))
        .collect();
    let counted = |what: &str, count: usize| {
        (0..count)
            .map(|number| format!("{what}.{number:02}.hex"))
            .collect::<Vec<_>>()
    };
    expected.extend(counted("intent", samples::intents().len()));
    expected.extend(counted("fact", samples::facts().len()));
    expected.extend(counted("receipt", samples::receipts().len()));
    for name in [
        "archive.head",
        "gap.header",
        "gap.lost",
        "record.minimal",
        "segment.first",
        "segment.later",
    ] {
        expected.insert(format!("{name}.hex"));
    }
    let found: BTreeSet<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // A kind's older versions stay pinned for ever: they are read, never written.
    let older = |name: &String| name.starts_with("record.") && !expected.contains(name);
    let found: BTreeSet<String> = found.into_iter().filter(|name| !older(name)).collect();
    assert_eq!(found, expected);
}

/// Exhaustive on purpose: a new variant does not compile until it has a name here and a sample.
fn intent_name(intent: &Intent) -> &'static str {
    match intent {
        Intent::HostInstall { .. } => "HostInstall",
        Intent::HostPrepare { .. } => "HostPrepare",
        Intent::DnsApply { .. } => "DnsApply",
        Intent::ContainerCreate { .. } => "ContainerCreate",
        Intent::ContainerStart { .. } => "ContainerStart",
        Intent::ContainerStop { .. } => "ContainerStop",
        Intent::ContainerRestart { .. } => "ContainerRestart",
        Intent::ContainerDestroy { .. } => "ContainerDestroy",
        Intent::ContainerExec { .. } => "ContainerExec",
        Intent::ContainerShell { .. } => "ContainerShell",
        Intent::ContainerCopy { .. } => "ContainerCopy",
        Intent::TemplateSnapshot { .. } => "TemplateSnapshot",
        Intent::TemplateSync { .. } => "TemplateSync",
        Intent::TemplateRemove { .. } => "TemplateRemove",
        Intent::Rollback { .. } => "Rollback",
        Intent::RollbackTo { .. } => "RollbackTo",
    }
}

/// Exhaustive on purpose, likewise.
fn fact_name(fact: &Fact) -> &'static str {
    match fact {
        Fact::HostObserved { .. } => "HostObserved",
        Fact::HostInstalled { .. } => "HostInstalled",
        Fact::HostUninstalled { .. } => "HostUninstalled",
        Fact::HostPrepared { .. } => "HostPrepared",
        Fact::HostUnprepared { .. } => "HostUnprepared",
        Fact::ContainerCreated { .. } => "ContainerCreated",
        Fact::ContainerIdentified { .. } => "ContainerIdentified",
        Fact::ContainerStarted { .. } => "ContainerStarted",
        Fact::ContainerAddressed { .. } => "ContainerAddressed",
        Fact::ContainerStopped { .. } => "ContainerStopped",
        Fact::ContainerDestroyed { .. } => "ContainerDestroyed",
        Fact::KeysAuthorized { .. } => "KeysAuthorized",
        Fact::Provisioned { .. } => "Provisioned",
        Fact::TemplatePresent { .. } => "TemplatePresent",
        Fact::TemplateAbsent { .. } => "TemplateAbsent",
    }
}
