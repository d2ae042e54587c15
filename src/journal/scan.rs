//! Reading every place of a journal, damaged or not: what `verify` does.
//!
//! It goes on behind damage at the next record that can be of this log, so that each damaged place is named once.

use std::path::Path;

use tallybook_events::ids::Seq;
use tallybook_events::record::Record;
use tallybook_events::segment;

use super::follow::{self, Before, Next, Piece};
use super::{Damage, Error, Link, Position, Tail, io_error, segment_path, segments};

/// What was found at a place of a journal.
#[derive(Debug)]
pub enum Found {
    /// The head of a segment, sound.
    Head,
    /// A record.
    Record {
        /// It.
        record: Box<Record>,
        /// Whether it was held against the event directly before it.
        follows: bool,
        /// What is wrong with its place or its payload.
        wrong: Option<Damage>,
    },
    /// A damaged head of a segment.
    DamagedHead(Damage),
    /// Bytes that are no record: at least one event is lost.
    Lost(Damage),
}

/// Reads every place of a journal.
///
/// # Errors
/// When the files themselves can't be read.
pub fn scan(directory: &Path, mut found: impl FnMut(&Path, u64, Found)) -> Result<Tail, Error> {
    let all = segments(directory)?;
    if all.is_empty() {
        return Err(Error::Missing(directory.to_owned()));
    }
    let mut tail = Tail::Whole;
    let mut before = Before {
        link: None,
        gap: false,
        head: None,
    };
    for (number, first) in all.iter().enumerate() {
        let path = segment_path(directory, *first);
        let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
        match follow::head(&bytes, *first, before) {
            Ok(head) => {
                found(&path, 0, Found::Head);
                before.link.get_or_insert(follow::link_of(&head));
                before.head = Some(head);
            }
            Err(damage) => {
                found(&path, 0, Found::DamagedHead(damage));
                // By its name it may be that events are missing before it: that is said already.
                let expected = before.link.map_or(Seq(1), |link| link.seq.next());
                before.gap |= *first != expected;
                before.head = None;
            }
        }
        let last = number + 1 == all.len();
        let torn = scan_segment(&bytes, last, &mut before, |offset, what| {
            found(&path, offset as u64, what);
        });
        if let Some(at) = torn {
            tail = Tail::Torn {
                at: Position {
                    segment: *first,
                    offset: at as u64,
                },
                bytes: (bytes.len() - at) as u64,
            };
        }
    }
    Ok(tail)
}

/// Every place of one segment. Returns where what was never acknowledged begins.
fn scan_segment(
    bytes: &[u8],
    last: bool,
    before: &mut Before,
    mut found: impl FnMut(usize, Found),
) -> Option<usize> {
    let mut offset = segment::LEN;
    loop {
        let broken = match follow::next(bytes, offset, *before) {
            Next::End => return None,
            Next::Append(pieces) => {
                for piece in pieces {
                    offset = piece.end;
                    found(piece.start, take(before, piece, None));
                }
                continue;
            }
            Next::Broken(broken) if last && !broken.was_durable => return Some(offset),
            Next::Broken(broken) => *broken,
        };
        for piece in broken.sound {
            found(piece.start, take(before, piece, None));
        }
        if let Some(piece) = broken.record {
            offset = piece.end;
            found(piece.start, take(before, piece, Some(broken.damage)));
            continue;
        }
        found(broken.at, Found::Lost(broken.damage));
        before.gap = true;
        before.head = None;
        offset = broken.resume?;
    }
}

fn take(before: &mut Before, piece: Piece, wrong: Option<Damage>) -> Found {
    let follows = before.link.is_some() && !before.gap;
    *before = Before {
        link: Some(Link::of(&piece.record)),
        gap: false,
        head: None,
    };
    Found::Record {
        record: Box::new(piece.record),
        follows,
        wrong,
    }
}
