//! Headers and frames for any contents: what is written is read back, and no flipped bit goes unseen.

use std::sync::Arc;

use proptest::prelude::*;
use tallybook_events::actor::{Actor, ActorClaim, ClaimSource};
use tallybook_events::event::Event;
use tallybook_events::header::{self, ClaimRef, Header, Outcome, Writer};
use tallybook_events::ids::{
    Attempt, BootId, Epoch, EventId, Hash, LogId, OperationId, Seq, StepIndex,
};
use tallybook_events::record::{self, Body, Record};
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;

fn subject() -> impl Strategy<Value = Subject> {
    let name = "[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?";
    prop_oneof![
        Just(Subject::Cloud),
        name.prop_map(|host| Subject::Host(samples::host(&host))),
        (name, name).prop_map(|(host, container)| {
            Subject::Container(samples::host(&host), samples::container(&container))
        }),
        name.prop_map(|template| Subject::Template(samples::template(&template))),
    ]
}

fn actor() -> impl Strategy<Value = Actor> {
    let source = prop_oneof![
        Just(ClaimSource::Kernel),
        Just(ClaimSource::Asserted),
        Just(ClaimSource::Derived),
    ];
    let claim = (".{0,9}", ".{0,20}", source).prop_map(|(name, value, source)| ActorClaim {
        name,
        value,
        source,
    });
    prop::collection::vec(claim, 0..5).prop_map(Actor)
}

fn header() -> impl Strategy<Value = Header> {
    let links = (
        any::<[u64; 4]>(),
        any::<[[u8; 32]; 4]>(),
        any::<[[u8; 16]; 4]>(),
    );
    let small = (any::<[u32; 2]>(), any::<[u16; 2]>(), 0..4_u8, any::<u64>());
    let optional = (any::<[bool; 3]>(), 0..u32::MAX, 1..u64::MAX);
    (links, small, optional, subject(), actor(), "[a-z.]{0,20}").prop_map(
        |(
            (seqs, hashes, ids),
            (words, halves, outcome, time),
            (has, step, claim),
            subject,
            actor,
            kind,
        )| {
            let outcomes = [
                Outcome::None,
                Outcome::Succeeded,
                Outcome::Failed,
                Outcome::InDoubt,
            ];
            let mut operation = ids[3];
            operation[0] |= 1;
            Header {
                log: LogId::from_bytes(ids[0]),
                epoch: Epoch(words[0]),
                seq: Seq(seqs[0]),
                previous: Hash(hashes[0]),
                subject,
                subject_previous_seq: Seq(seqs[1]),
                subject_previous: Hash(hashes[1]),
                event: EventId::from_bytes(ids[1]),
                kind: kind.clone().into(),
                kind_version: halves[0],
                time_unix_us: time,
                actor: actor.into(),
                writer: Arc::new(Writer {
                    controller: kind,
                    boot: BootId::from_bytes(ids[2]),
                }),
                claim: has[0].then_some(ClaimRef {
                    seq: Seq(claim),
                    hash: Hash(hashes[2]),
                }),
                operation: has[1].then_some(OperationId::from_bytes(operation)),
                step: has[2].then_some(StepIndex(step)),
                attempt: Attempt(words[1]),
                more: halves[1],
                write: Seq(seqs[3]),
                cause: Seq(seqs[2]),
                outcome: outcomes[usize::from(outcome)],
                erasable: has[0] ^ has[1],
                payload_len: words[0],
                commitment: Hash(hashes[3]),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn a_header_is_read_as_it_was_written(header in header()) {
        let bytes = header.encode().unwrap();
        prop_assert_eq!(Header::decode(&bytes).unwrap(), header);
        for len in 0..bytes.len() {
            prop_assert!(Header::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn no_two_byte_strings_are_one_header(header in header(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = header.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Header::decode(&bytes) {
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn a_flipped_bit_of_a_frame_is_seen(
        header in header(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        salt in any::<[u8; 32]>(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let record = Record::seal(header, salt, payload).unwrap();
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        let unseen = Record::read_frame(&frame).is_ok_and(|(read, _)| read.body() == Body::Intact);
        prop_assert!(!unseen, "the bit at byte {at} was flipped");
    }

    #[test]
    fn hostile_bytes_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Record::read_frame(&bytes).is_err());
        let _any = Header::decode(&bytes);
        for (kind, version) in tallybook_events::event::KINDS {
            let _any = Event::decode(kind, *version, &bytes);
        }
    }
}

#[test]
fn every_bit_of_a_frame_of_every_kind_counts() {
    for (number, event) in samples::events().iter().enumerate() {
        let header = samples::header(event, number as u64 + 1);
        let record = Record::seal(header, [3; 32], event.encode().unwrap()).unwrap();
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        for at in 0..frame.len() {
            frame[at] ^= 0x10;
            let unseen =
                Record::read_frame(&frame).is_ok_and(|(read, _)| read.body() == Body::Intact);
            assert!(!unseen, "byte {at} of {}", record.header.kind);
            frame[at] ^= 0x10;
        }
    }
}

#[test]
fn the_shortest_header() {
    let event = &samples::events()[0];
    let mut header = samples::header(event, 1);
    header.subject = Subject::Cloud;
    header.kind = "".into();
    header.actor = Actor(Vec::new()).into();
    header.writer = Arc::new(Writer {
        controller: String::new(),
        boot: header.writer.boot,
    });
    assert_eq!(header.encode().unwrap().len(), header::LEN_MIN);
}

#[test]
fn the_length_of_a_payload_is_the_headers_also_when_it_is_erased() {
    let event = samples::events()
        .into_iter()
        .find(|event| event.kind() == Some(("output.captured", 1)))
        .unwrap();
    let record = Record::seal(samples::header(&event, 1), [3; 32], event.encode().unwrap());
    let record = record.unwrap();
    let mut frame = Vec::new();
    record.write_frame(&mut frame);
    let body = frame.len() - 64 - record.payload.len()..frame.len() - 32;
    frame[body.clone()].fill(0);
    let (erased, _) = Record::read_frame(&frame).unwrap();
    assert_eq!(erased.body(), Body::Erased);
    // One byte less of zeros, and a frame that says so.
    let len = (record.payload.len() - 1) as u32;
    frame.remove(body.start);
    frame[8..12].copy_from_slice(&len.to_le_bytes());
    let check = blake3::hash(&frame[..12]);
    frame[12..16].copy_from_slice(&check.as_bytes()[..4]);
    assert!(matches!(
        Record::read_frame(&frame),
        Err(record::Error::Length { frame, header }) if frame == len && header == len + 1
    ));
}

#[test]
fn zeros_are_a_redaction_only_where_the_kind_allows_it() {
    let mut erasable = Vec::new();
    for (number, event) in samples::events().iter().enumerate() {
        let header = samples::header(event, number as u64 + 1);
        let record = Record::seal(header, [3; 32], event.encode().unwrap()).unwrap();
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let end = frame.len() - 32;
        frame[end - 32 - record.payload.len()..end].fill(0);
        match Record::read_frame(&frame).unwrap().0.body() {
            Body::Erased => erasable.push(record.header.kind.clone()),
            Body::Changed => {}
            Body::Intact => panic!("{}", record.header.kind),
        }
    }
    assert_eq!(
        erasable,
        ["inventory.recorded", "output.captured", "session.recorded"]
    );
}

/// What MessagePack can also say, and a writer never writes.
#[test]
fn a_payload_has_one_form() {
    let exact = |payload: &[u8]| Event::decode_exact("operation.succeeded", 1, payload);
    let canonical = b"\x81\xa6events\x0c";
    assert!(exact(canonical).is_ok());
    let others: [&[u8]; 4] = [
        b"\x81\xa6events\xcd\x00\x0c",
        b"\x91\x0c",
        b"\x82\xa6events\x0c\xa4more\x01",
        b"\xde\x00\x01\xa6events\x0c",
    ];
    for other in others {
        let decoded = Event::decode("operation.succeeded", 1, other);
        assert_eq!(decoded.unwrap(), exact(canonical).unwrap(), "{other:02x?}");
        assert!(exact(other).is_err(), "{other:02x?}");
    }
}

#[test]
fn what_stands_for_absence_is_not_written() {
    let event = &samples::events()[0];
    let whole = samples::header(event, 1);
    let absent = [
        Header {
            operation: Some(OperationId::from_bytes([0; 16])),
            ..whole.clone()
        },
        Header {
            step: Some(StepIndex(u32::MAX)),
            ..whole.clone()
        },
        Header {
            claim: Some(ClaimRef {
                seq: Seq::NONE,
                hash: Hash([1; 32]),
            }),
            ..whole.clone()
        },
    ];
    for header in absent {
        assert!(matches!(header.encode(), Err(header::Error::Value { .. })));
    }
    let mut long = whole;
    long.kind = "k".repeat(header::LEN_MAX).into();
    assert!(matches!(long.encode(), Err(header::Error::TooLong { .. })));
}
