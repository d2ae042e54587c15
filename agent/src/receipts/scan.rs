//! The bytes of a receipts journal: heads, frames, and what is found where frames should be.
//!
//! It reads and judges; it never changes a file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tallybook_events::codec;
use tallybook_events::ids::{JournalId, LogId};
use tallybook_events::step::Receipt;

use super::{Error, at};
use crate::durable;

/// The first bytes of a journal.
pub const HEAD_MAGIC: [u8; 4] = *b"TBJ1";
/// Magic, log, journal, check.
pub const HEAD_LEN: usize = 64;
/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"TBA1";
/// Magic, length, check.
pub const PREFIX_LEN: usize = 12;
/// The body's hash.
pub const TRAILER_LEN: usize = 32;
/// The most bytes a body may have.
pub const BODY_LEN_MAX: usize = 8 * 1024 * 1024;

/// What is behind the last frame that follows all others without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing.
    Clean,
    /// A frame whose write was cut.
    Torn,
    /// Bytes that are no frame, and maybe frames behind them.
    Damaged,
}

pub(super) struct Scan {
    /// Whose journal it is, when it was read from the beginning and the head is one.
    pub(super) head: Option<JournalId>,
    /// Where the frames that are whole and without a gap end.
    pub(super) end: u64,
    pub(super) tail: Tail,
}

/// The bytes of a head.
pub fn encode_head(log: LogId, id: JournalId) -> [u8; HEAD_LEN] {
    let mut bytes = [0; HEAD_LEN];
    bytes[..4].copy_from_slice(&HEAD_MAGIC);
    bytes[4..20].copy_from_slice(log.as_bytes());
    bytes[20..36].copy_from_slice(id.as_bytes());
    let check = blake3::hash(&bytes[..36]);
    bytes[36..].copy_from_slice(&check.as_bytes()[..HEAD_LEN - 36]);
    bytes
}

/// The journal's id, where these bytes are the head of a journal of this log.
pub(super) fn decode_head(bytes: &[u8; HEAD_LEN], log: LogId) -> Option<JournalId> {
    let id = JournalId::from_bytes(*bytes[20..].first_chunk()?);
    (encode_head(log, id) == *bytes).then_some(id)
}

/// The bytes of one frame.
///
/// # Errors
/// When the receipt has no encoding, or is too long.
pub fn encode(receipt: &Receipt) -> Result<Vec<u8>, Error> {
    let body = codec::encode(receipt)?;
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > BODY_LEN_MAX {
        return Err(Error::TooLong(body.len()));
    }
    let mut frame = Vec::with_capacity(PREFIX_LEN + body.len() + TRAILER_LEN);
    frame.extend_from_slice(&prefix(len));
    frame.extend_from_slice(&body);
    frame.extend_from_slice(blake3::hash(&body).as_bytes());
    Ok(frame)
}

pub(super) fn prefix(len: u32) -> [u8; PREFIX_LEN] {
    let mut bytes = [0; PREFIX_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    let check = blake3::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&check.as_bytes()[..4]);
    bytes
}

/// The length of the body and the trailer, where these bytes are a frame's first.
fn rest_len(head: &[u8]) -> Option<usize> {
    let head: &[u8; PREFIX_LEN] = head.first_chunk()?;
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    (prefix(len) == *head && len as usize <= BODY_LEN_MAX).then_some(len as usize + TRAILER_LEN)
}

/// The body, where these bytes are a body and its hash.
fn body(rest: &[u8]) -> Option<&[u8]> {
    let (body, trailer) = rest.split_at_checked(rest.len().checked_sub(TRAILER_LEN)?)?;
    (blake3::hash(body).as_bytes() == trailer).then_some(body)
}

/// Reads the frames from a place on, and shows the receipts.
pub(super) fn scan(
    file: &File,
    path: &Path,
    log: LogId,
    from: u64,
    visit: &mut dyn FnMut(Receipt),
) -> Result<Scan, Error> {
    scan_frames(file, path, log, from, &mut |receipt, _| visit(receipt))
}

/// Reads all frames, and shows each with its bytes. Those behind a gap are shown without bytes.
pub(super) fn frames(
    file: &File,
    path: &Path,
    log: LogId,
    mut visit: impl FnMut(Receipt, &[u8]),
) -> Result<Scan, Error> {
    scan_frames(file, path, log, 0, &mut visit)
}

fn scan_frames(
    file: &File,
    path: &Path,
    log: LogId,
    from: u64,
    visit: &mut dyn FnMut(Receipt, &[u8]),
) -> Result<Scan, Error> {
    let len = file.metadata().map_err(at("look at", path))?.len();
    let mut head = None;
    let mut end = from;
    if from == 0 {
        let mut bytes = [0; HEAD_LEN];
        if len >= HEAD_LEN as u64 {
            file.read_exact_at(&mut bytes, 0)
                .map_err(at("read", path))?;
            head = decode_head(&bytes, log);
        }
        if head.is_none() {
            // Not a torn tail, whatever it looks like: a head is there whole or not at all.
            find(&rest(file, path, 0, len)?, 0, &mut |receipt| {
                visit(receipt, &[])
            });
            return Ok(Scan {
                head,
                end: len,
                tail: Tail::Damaged,
            });
        }
        end = HEAD_LEN as u64;
    }
    let mut reader = file;
    reader
        .seek(SeekFrom::Start(end))
        .map_err(at("seek in", path))?;
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    let mut frame = Vec::new();
    while len - end >= PREFIX_LEN as u64 {
        let mut head = [0; PREFIX_LEN];
        reader.read_exact(&mut head).map_err(at("read", path))?;
        let Some(rest_len) = rest_len(&head) else {
            break;
        };
        if len - end < (PREFIX_LEN + rest_len) as u64 {
            break;
        }
        frame.clear();
        frame.extend_from_slice(&head);
        frame.resize(PREFIX_LEN + rest_len, 0);
        reader
            .read_exact(&mut frame[PREFIX_LEN..])
            .map_err(at("read", path))?;
        // A whole body that is no receipt was written by something newer: what it says is not known here.
        let body = body(&frame[PREFIX_LEN..]);
        let Some(receipt) = body.and_then(|body| codec::decode(body).ok()) else {
            break;
        };
        visit(receipt, &frame);
        end += (PREFIX_LEN + rest_len) as u64;
    }
    if end >= len {
        return Ok(Scan {
            head,
            end,
            tail: Tail::Clean,
        });
    }
    let behind = rest(file, path, end, len)?;
    let tail = beyond(&behind, end, &mut |receipt| visit(receipt, &[]));
    Ok(Scan { head, end, tail })
}

fn rest(file: &File, path: &Path, from: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, from)
        .map_err(at("read", path))?;
    Ok(bytes)
}

/// Judges bytes from a place of the file on that do not begin with a whole frame, and shows the frames behind the
/// first one.
fn beyond(bytes: &[u8], at: u64, visit: &mut dyn FnMut(Receipt)) -> Tail {
    let claimed = rest_len(bytes).map(|rest| PREFIX_LEN + rest);
    let cut = match claimed {
        Some(len) => bytes.len() < len,
        None => bytes.len() < PREFIX_LEN,
    };
    // Where the length can be trusted, what is inside the body is no frame, whatever it looks like.
    let found = find(bytes, claimed.unwrap_or(1), visit);
    if found || !(cut || durable::has_unwritten(bytes, at)) {
        Tail::Damaged
    } else {
        Tail::Torn
    }
}

/// Shows the frames that are found from a place on; whether there were any.
fn find(bytes: &[u8], from: usize, visit: &mut dyn FnMut(Receipt)) -> bool {
    let mut at = from;
    let mut found = false;
    while let Some(rest) = bytes.get(at..) {
        let whole = rest_len(rest).and_then(|len| rest.get(PREFIX_LEN..PREFIX_LEN + len));
        match whole.and_then(body).map(codec::decode::<Receipt>) {
            Some(Ok(receipt)) => {
                visit(receipt);
                found = true;
                at += PREFIX_LEN + whole.map_or(0, <[u8]>::len);
            }
            Some(Err(_)) | None => {
                let next = rest.iter().skip(1).position(|byte| *byte == MAGIC[0]);
                let Some(next) = next else { break };
                at += 1 + next;
            }
        }
    }
    found
}
