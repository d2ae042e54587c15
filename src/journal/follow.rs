//! What may follow what: the rules of segments, records, appends and writes. Whoever reads a journal, to use it or to
//! verify it, asks here, so that both find the same things wrong.
//!
//! It looks at bytes that were read, and never at files.

use tallybook_events::header::Header;
use tallybook_events::ids::{Epoch, Hash, Seq};
use tallybook_events::record::{self, Body, Record};
use tallybook_events::segment::{self, SegmentHead};

use super::{Damage, FRAME_LEN_MIN, Link};

/// What is known of what stands before a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// The last record that was read; `None` when none was.
    pub(super) link: Option<Link>,
    /// Whether something between that record and this place was lost.
    pub(super) gap: bool,
    /// What the segment's head says, when this place is directly behind it.
    pub(super) head: Option<SegmentHead>,
}

/// A whole record with where it stands in the bytes.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) record: Record,
}

/// What stands at a place of a segment.
#[derive(Debug)]
pub(super) enum Next {
    /// One append, whole and sound.
    Append(Vec<Piece>),
    /// Nothing: the segment ends here.
    End,
    /// Something else.
    Broken(Box<Broken>),
}

/// A place where the next append is not whole and sound.
#[derive(Debug)]
pub(super) struct Broken {
    /// The records of the append before the one that is wrong.
    pub(super) sound: Vec<Piece>,
    /// Where the first thing that is wrong begins,
    pub(super) at: usize,
    /// what is wrong with it,
    pub(super) damage: Damage,
    /// and what it is, when it is a whole record.
    pub(super) record: Option<Piece>,
    /// Where the next record behind it begins that can be of this log.
    pub(super) resume: Option<usize>,
    /// Whether what follows shows that this place was durable before a later write began.
    pub(super) was_durable: bool,
}

/// Checks the head of the segment of this name against what stands before it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn head(bytes: &[u8], name: Seq, before: Before) -> Result<SegmentHead, Damage> {
    let expected = before.link.map_or(Seq(1), |link| link.seq.next());
    let behind_gap = before.gap && name > expected;
    if name != expected && !behind_gap {
        return Err(Damage::Seq {
            expected,
            found: name,
        });
    }
    let head = SegmentHead::decode(bytes).map_err(|error| match error {
        segment::Error::Format(format) => Damage::SegmentFormat(format),
        segment::Error::Short { .. } | segment::Error::Damaged => Damage::SegmentHead,
    })?;
    let follows = match before.link {
        None => before.gap || head.previous == Hash::ZERO,
        Some(link) => {
            let chained = before.gap || (head.previous == link.hash && link.more == 0);
            head.log == link.log && head.epoch >= link.epoch && chained
        }
    };
    match head.first == name && follows {
        true => Ok(head),
        false => Err(Damage::SegmentHead),
    }
}

/// Checks a record's header against what stands before it.
fn record(header: &Header, before: Before) -> Result<(), Damage> {
    if let Some(head) = before.head {
        if header.log != head.log {
            return Err(Damage::Foreign);
        }
        if header.epoch != head.epoch {
            return Err(Damage::SegmentHead);
        }
    }
    let Some(link) = before.link else {
        return Ok(());
    };
    if header.log != link.log || header.epoch < link.epoch {
        return Err(Damage::Foreign);
    }
    let expected = link.seq.next();
    let behind_gap = before.gap && header.seq > expected;
    if header.seq != expected && !behind_gap {
        return Err(Damage::Seq {
            expected,
            found: header.seq,
        });
    }
    if behind_gap {
        return match header.write <= header.seq {
            true => Ok(()),
            false => Err(Damage::Write),
        };
    }
    if header.previous != link.hash {
        return Err(Damage::Chain);
    }
    let within_append = link.more > 0;
    if within_append && (before.head.is_some() || header.more != link.more - 1) {
        return Err(Damage::Append);
    }
    let begins_write = header.write == header.seq;
    let goes_on = header.write == link.write && before.head.is_none() && link.seq > Seq::NONE;
    match goes_on || (begins_write && !within_append) {
        true => Ok(()),
        false => Err(Damage::Write),
    }
}

/// Reads one append at a place of a segment.
pub(super) fn next(bytes: &[u8], start: usize, before: Before) -> Next {
    let mut sound: Vec<Piece> = Vec::new();
    let mut at = start;
    let mut now = before;
    // An append whose beginning was read before was acknowledged, or it would not have been given out.
    let begun = before.link.is_some_and(|link| link.more > 0) && !before.gap;
    if at >= bytes.len() && !begun {
        return Next::End;
    }
    loop {
        let (record, damage) = match Record::read_frame(bytes.get(at..).unwrap_or_default()) {
            Err(error) => (None, Damage::Record(error)),
            Ok((found, len)) => {
                let checked = record(&found.header, now);
                let piece = Piece {
                    start: at,
                    end: at + len,
                    record: found,
                };
                match checked {
                    Err(damage) => (Some(piece), damage),
                    Ok(()) if piece.record.body() == Body::Changed => {
                        (Some(piece), Damage::Record(record::Error::Commitment))
                    }
                    Ok(()) => {
                        at = piece.end;
                        now = Before {
                            link: Some(Link::of(&piece.record)),
                            gap: false,
                            head: None,
                        };
                        let whole = piece.record.header.more == 0;
                        sound.push(piece);
                        if whole {
                            return Next::Append(sound);
                        }
                        continue;
                    }
                }
            }
        };
        let first = sound.first().map(|piece| piece.record.header.seq);
        let first = first.or(now.link.map(|link| link.seq.next()));
        let found = search(bytes, at, now.link, first.unwrap_or(Seq(1)));
        return Next::Broken(Box::new(Broken {
            sound,
            at,
            damage,
            resume: found.resume,
            was_durable: begun || found.was_durable,
            record,
        }));
    }
}

#[derive(Default)]
struct Found {
    resume: Option<usize>,
    was_durable: bool,
}

/// Looks behind a broken place for records of this log. `first` is the event with which the append there begins.
///
/// What shows that the place was durable is taken generously: to refuse a torn end loses nothing. Where to go on is
/// taken with care: a payload may hold bytes of records, of this log or of a copy of it.
fn search(bytes: &[u8], at: usize, link: Option<Link>, first: Seq) -> Found {
    let mut found = Found::default();
    let mut doubtful = None;
    // The newest record that is not to be gone on with: nor is what follows it.
    let mut stranger: Option<Hash> = None;
    let mut place = at;
    while let Some((start, end, record)) = whole(bytes, place) {
        place = end;
        let header = &record.header;
        let Some(link) = link else {
            found.was_durable = true;
            found.resume = found.resume.or((start > at).then_some(start));
            continue;
        };
        let ahead = header.log == link.log && header.seq > link.seq;
        let follows = header.seq == link.seq.next() && header.previous == link.hash;
        let is_changed = record.body() == Body::Changed;
        found.was_durable |= ahead && (header.write > first || (follows && !is_changed));
        if start == at || is_changed {
            continue;
        }
        let lost = header.seq.0.saturating_sub(link.seq.0 + 1);
        let fits = lost > 0 && lost <= ((start - at) / FRAME_LEN_MIN) as u64;
        let is_of_stranger = stranger == Some(header.previous);
        if ahead && header.epoch >= link.epoch && (follows || (fits && !is_of_stranger)) {
            found.resume = found.resume.or(Some(start));
        } else {
            stranger = Some(record.hash);
            doubtful = doubtful.or(ahead.then_some(start));
        }
        if found.resume.is_some() && found.was_durable {
            break;
        }
    }
    found.resume = found.resume.or(doubtful);
    found
}

/// The first whole record at or behind a place, with where it begins and ends.
fn whole(bytes: &[u8], mut place: usize) -> Option<(usize, usize, Record)> {
    loop {
        let rest = bytes.get(place..)?;
        if let Ok((record, len)) = Record::read_frame(rest) {
            return Some((place, place + len, record));
        }
        // Where the frame says how long it is, what lies within it is its payload and no record of the log.
        if let Ok((header, payload)) = record::read_prefix(rest) {
            let end = place + record::PREFIX_LEN + header + record::SALT_LEN + payload;
            let end = end + record::TRAILER_LEN;
            let behind = bytes.get(end..).unwrap_or_default();
            if let Ok((record, len)) = Record::read_frame(behind) {
                return Some((end, end + len, record));
            }
        }
        place += 1 + bytes
            .get(place + 1..)?
            .windows(record::MAGIC.len())
            .position(|window| window == record::MAGIC)?;
    }
}

/// What a segment's head says of the event before the first one, where nothing else is known of it.
pub(super) fn link_of(head: &SegmentHead) -> Link {
    let epoch: Epoch = head.epoch;
    let seq = Seq(head.first.0.saturating_sub(1));
    Link {
        log: head.log,
        epoch,
        seq,
        hash: head.previous,
        more: 0,
        write: seq,
    }
}
