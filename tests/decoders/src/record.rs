//! Records: frames, headers, and heads of segments. What is accepted is exactly what would be written.

use tallybook_events::header::Header;
use tallybook_events::record::{self, Body, Record};
use tallybook_events::segment::{self, SegmentHead};

use crate::memory::bounded;
use crate::{chosen, part};

/// One of the decoders, raw or behind checks that hold.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    match which % 6 {
        0 => frame(bytes),
        1 => frame(&framed(bytes)),
        2 => header(bytes),
        3 => head(bytes),
        4 => head(&checked_head(bytes)),
        _ => drop(record::read_prefix(bytes)),
    }
}

fn frame(bytes: &[u8]) {
    let Ok((record, len)) = bounded(bytes.len(), || Record::read_frame(bytes)) else {
        return;
    };
    let mut again = Vec::new();
    record.write_frame(&mut again);
    assert_eq!(again, bytes[..len], "a frame has one form");
    assert_eq!(record.frame_len(), len);
    let (header_len, payload_len) = record::read_prefix(bytes).expect("its prefix was read");
    assert_eq!(payload_len, record.payload.len());
    assert_eq!(
        record.header.encode().expect("it was decoded"),
        bytes[record::PREFIX_LEN..record::PREFIX_LEN + header_len]
    );
    let whole = record::commitment(&record.salt, &record.payload) == record.header.commitment;
    match record.body() {
        Body::Intact => assert!(whole),
        Body::Erased => assert!(record.header.erasable && record.salt == record::SALT_ERASED),
        Body::Changed => assert!(!whole),
    }
}

fn header(bytes: &[u8]) {
    if let Ok(header) = bounded(bytes.len(), || Header::decode(bytes)) {
        assert!(bytes.len() >= tallybook_events::header::LEN_MIN);
        if bytes.len() <= tallybook_events::header::LEN_MAX {
            assert_eq!(header.encode().expect("it was decoded"), bytes);
        }
    }
}

fn head(bytes: &[u8]) {
    if let Ok(head) = SegmentHead::decode(bytes) {
        assert_eq!(head.encode(), bytes[..segment::LEN]);
    }
}

/// A frame around a header, a salt and a payload, with the checks that hold it together.
pub fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let header = part(&mut bytes);
    let mut salt = [0; record::SALT_LEN];
    let salt_len = bytes.len().min(salt.len());
    salt[..salt_len].copy_from_slice(&bytes[..salt_len]);
    let payload = &bytes[salt_len..];
    let mut frame = record::MAGIC.to_vec();
    frame.extend_from_slice(&(header.len() as u32).to_le_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let check = blake3::hash(&frame);
    frame.extend_from_slice(&check.as_bytes()[..4]);
    frame.extend_from_slice(header);
    frame.extend_from_slice(&salt);
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&record::header_hash(header).0);
    frame
}

fn checked_head(bytes: &[u8]) -> Vec<u8> {
    let mut head = bytes.to_vec();
    head.resize(segment::LEN - 32, 0);
    let check = blake3::Hasher::new_derive_key("tallybook 2026-11 segment head")
        .update(&head)
        .finalize();
    head.extend_from_slice(check.as_bytes());
    head
}
