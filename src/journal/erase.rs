//! Overwriting salt and payload of records with zeros, in the journal and in the archive: the one way in which bytes of a
//! log ever change.
//!
//! It is told which events; that they may be erased it sees in their headers, and it touches no others.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tallybook_events::gap::Gap;
use tallybook_events::ids::Seq;
use tallybook_events::record::{Frame, PREFIX_LEN};
use tallybook_events::segment;

use super::{Error, archive, archived_segments, io_error, own_segments, segment_path, segments};

/// Erases the payloads of events, wherever they are, and returns how many of them there are now, erased before or not.
///
/// Safe to repeat. A crash leaves some of it done: what is half overwritten is neither erased nor whole until it is repeated.
///
/// # Errors
/// When a segment can't be read, written or synced.
pub fn erase(directory: &Path, events: &BTreeSet<Seq>) -> Result<u64, Error> {
    let all = segments(directory)?;
    let own: BTreeSet<Seq> = own_segments(directory)?.into_iter().collect();
    let archived: BTreeSet<Seq> = archived_segments(directory)?.into_iter().collect();
    let mut erased = 0;
    for (number, first) in all.iter().enumerate() {
        let end = all.get(number + 1).copied().unwrap_or(Seq(u64::MAX));
        let wanted: BTreeSet<Seq> = events.range(*first..end).copied().collect();
        if wanted.is_empty() {
            continue;
        }
        let mut found = 0;
        if own.contains(first) {
            found = erase_own(directory, *first, &wanted)?;
        }
        if archived.contains(first) {
            let in_archive = erase_archived(directory, *first, &wanted)?;
            found = found.max(in_archive);
        }
        erased += found;
    }
    Ok(erased)
}

fn erase_own(directory: &Path, first: Seq, wanted: &BTreeSet<Seq>) -> Result<u64, Error> {
    let path = segment_path(directory, first);
    let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
    let bodies = bodies(&bytes, wanted);
    let overwrite = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        for body in &bodies {
            let zeros = vec![0; body.len()];
            file.write_all_at(&zeros, body.start as u64)?;
        }
        // Crash boundary: until here any part of it may be on the disk.
        file.sync_data()
    };
    overwrite().map_err(io_error("erasing payloads in", &path))?;
    Ok(bodies.len() as u64)
}

fn erase_archived(directory: &Path, first: Seq, wanted: &BTreeSet<Seq>) -> Result<u64, Error> {
    let Some(loaded) = archive::load_archived(directory, first)? else {
        return Ok(0);
    };
    if let Some(source) = loaded.wrong {
        return Err(Error::Damaged {
            seq: first,
            path: loaded.path,
            offset: 0,
            source,
        });
    }
    let mut bytes = loaded.bytes;
    let bodies = bodies(&bytes, wanted);
    let is_done = |body: &Range<usize>| {
        let body = bytes.get(body.clone()).unwrap_or_default();
        body.iter().all(|byte| *byte == 0)
    };
    if bodies.iter().all(is_done) {
        return Ok(bodies.len() as u64);
    }
    for body in &bodies {
        if let Some(body) = bytes.get_mut(body.clone()) {
            body.fill(0);
        }
    }
    archive::put(directory, first, &bytes)?;
    Ok(bodies.len() as u64)
}

/// Where salt and payload of these events are in a segment, as far as they may be erased.
fn bodies(bytes: &[u8], wanted: &BTreeSet<Seq>) -> Vec<Range<usize>> {
    let mut bodies = Vec::new();
    let mut at = segment::LEN;
    while let Some(rest) = bytes.get(at..) {
        if let Some((_, len)) = Gap::read(rest) {
            at += len;
            continue;
        }
        let read = Frame::read(rest).and_then(|frame| Ok((frame, frame.header()?)));
        let Ok((frame, header)) = read else {
            break;
        };
        if header.erasable && wanted.contains(&header.seq) {
            let start = at + PREFIX_LEN + frame.header_bytes.len();
            bodies.push(start..start + frame.salt.len() + frame.payload.len());
        }
        at += frame.len();
    }
    bodies
}
