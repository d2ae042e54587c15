//! Blocks of the index: where the events of 1024 positions are, and which terms they have, while they are filled and as they
//! are stored.

use std::collections::BTreeMap;

use tallybook_events::header::Header;
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::Record;

use super::{BLOCK_EVENTS, each_term, position};
use crate::journal::{Link, Position};

/// The last record before a place: it, where it begins in the journal, and where what is behind it does.
pub type End = (Link, Position, Position);

/// Where an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The event.
    pub seq: Seq,
    /// Where its frame begins.
    pub at: Position,
    /// How long that is.
    pub len: u32,
    /// The beginning of its header hash: that nothing else stands there.
    pub check: [u8; 4],
}

impl Place {
    /// Whether this is the event that was there.
    pub fn is_of(&self, seq: Seq, hash: &Hash) -> bool {
        self.seq == seq && hash.0.starts_with(&self.check)
    }
}

/// A record without its payload, and where it is in the journal.
#[derive(Debug)]
pub struct Located {
    /// Its header.
    pub header: Header,
    /// The header's hash.
    pub hash: Hash,
    at: Position,
    len: u32,
    next: Position,
}

impl Located {
    /// Lets the payload of a record go that begins at a place; `next` is where the record behind it will.
    pub fn of(record: Record, at: Position, next: Position) -> Self {
        Located {
            hash: record.hash,
            len: u32::try_from(record.frame_len()).unwrap_or(u32::MAX),
            header: record.header,
            at,
            next,
        }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        let [a, b, c, d, ..] = self.hash.0;
        Place {
            seq: self.header.seq,
            at: self.at,
            len: self.len,
            check: [a, b, c, d],
        }
    }
}

/// A block that is being filled: the places, and the terms, of 1024 positions of the log.
#[derive(Default)]
pub struct Block {
    pub(super) number: u64,
    places: Vec<Place>,
    pub(super) postings: BTreeMap<Vec<u8>, Vec<u16>>,
    /// The last position that is taken.
    filled: Seq,
    /// The last record, in this block or before it; `None` before the first one.
    pub(super) end: Option<End>,
}

impl Block {
    /// The block that begins behind an event which ends one, empty.
    pub fn behind(filled: Seq, end: Option<End>) -> Self {
        Block {
            number: filled.0 / BLOCK_EVENTS,
            filled,
            end,
            ..Block::default()
        }
    }

    /// The block behind this one, empty.
    #[must_use]
    pub fn following(&self) -> Self {
        Block::behind(Seq((self.number + 1) * BLOCK_EVENTS), self.end)
    }

    /// Adds the next record.
    pub fn push(&mut self, record: &Located) {
        let seq = record.header.seq;
        self.places.push(record.place());
        let position = position(seq);
        each_term(&record.header, |term| match self.postings.get_mut(term) {
            Some(positions) => positions.push(position),
            None => drop(self.postings.insert(term.to_vec(), vec![position])),
        });
        self.filled = seq;
        let link = Link::behind(&record.header, record.hash);
        self.end = Some((link, record.at, record.next));
    }

    /// Leaves out as many events as lie in this block of those that are lost up to one. `before` is what stands before
    /// them, where no record does.
    pub fn bridge(&mut self, last: Seq, before: End) {
        self.filled = Seq((self.number + 1) * BLOCK_EVENTS).min(last);
        self.end.get_or_insert(before);
    }

    /// Whether the last of its positions is taken.
    pub fn is_full(&self) -> bool {
        self.filled.0 == (self.number + 1) * BLOCK_EVENTS
    }

    /// The last position that is taken.
    pub fn filled(&self) -> Seq {
        self.filled
    }

    /// Runs of frames that lie behind each other, then the length and the check of each event; length 0 where it is lost.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut runs: Vec<(u16, Position)> = Vec::new();
        let mut expected: Option<Position> = None;
        let mut events = vec![0; usize::try_from(BLOCK_EVENTS * EVENT_LEN).unwrap_or_default()];
        for place in &self.places {
            let index = (place.seq.0 - 1) % BLOCK_EVENTS;
            if expected != Some(place.at) {
                runs.push((index as u16, place.at));
            }
            expected = Some(Position {
                offset: place.at.offset + u64::from(place.len),
                ..place.at
            });
            let at = usize::try_from(index * EVENT_LEN).unwrap_or_default();
            if let Some(event) = events.get_mut(at..at + 8) {
                event[..4].copy_from_slice(&place.len.to_le_bytes());
                event[4..].copy_from_slice(&place.check);
            }
        }
        let mut bytes = (runs.len() as u16).to_le_bytes().to_vec();
        for (index, at) in runs {
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(&at.segment.0.to_le_bytes());
            bytes.extend_from_slice(&at.offset.to_le_bytes());
        }
        bytes.extend_from_slice(&events);
        bytes
    }
}

/// Length and check.
const EVENT_LEN: u64 = 8;
/// Index, segment and offset.
const RUN_LEN: usize = 2 + 8 + 8;

/// The places of a block.
pub(super) fn decode(number: u64, bytes: &[u8]) -> Option<Vec<Place>> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let count = usize::from(u16::from_le_bytes(*count));
    let (runs, events) = rest.split_at_checked(count * RUN_LEN)?;
    let mut runs = runs.chunks_exact(RUN_LEN).map(|run| {
        let (index, rest) = run.split_first_chunk::<2>()?;
        let (segment, offset) = rest.split_first_chunk::<8>()?;
        let at = Position {
            segment: Seq(u64::from_le_bytes(*segment)),
            offset: u64::from_le_bytes(offset.try_into().ok()?),
        };
        Some((u64::from(u16::from_le_bytes(*index)), at))
    });
    let mut next_run = runs.next();
    let mut at: Option<Position> = None;
    let mut places = Vec::with_capacity(usize::try_from(BLOCK_EVENTS).unwrap_or_default());
    if events.len() as u64 != BLOCK_EVENTS * EVENT_LEN {
        return None;
    }
    for (index, event) in (0_u64..).zip(events.chunks_exact(8)) {
        if let Some(run) = next_run {
            let (first, begins) = run?;
            if first == index {
                at = Some(begins);
                next_run = runs.next();
            }
        }
        let (len, check) = event.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        if len == 0 {
            continue;
        }
        let begins = at?;
        places.push(Place {
            seq: Seq(number * BLOCK_EVENTS + index + 1),
            at: begins,
            len,
            check: check.try_into().ok()?,
        });
        at = Some(Position {
            offset: begins.offset.checked_add(u64::from(len))?,
            ..begins
        });
    }
    next_run.is_none().then_some(places)
}

/// For the fuzz targets: where the events of a block are, decoded and encoded again.
pub(in crate::store) fn reread_places(bytes: &[u8]) -> Option<Vec<u8>> {
    let block = Block {
        places: decode(0, bytes)?,
        ..Block::default()
    };
    Some(block.encode())
}
