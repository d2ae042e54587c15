//! What may follow what: the rules of segments, records, appends and writes. Whoever reads a journal, to use it or to
//! verify it, asks here, so that both find the same things wrong.
//!
//! It looks at bytes that were read, and never at files.

use tallybook_events::gap::{self, Gap};
use tallybook_events::header::{ActorSeen, HeaderView};
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::{self, Body, Frame};
use tallybook_events::segment::{self, SegmentHead};

use super::{Damage, FRAME_LEN_MIN, Link};

/// How closely records are looked at. Frames, header hashes and what may follow what are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// No payload is looked at.
    Chain,
    /// Each payload is held against its commitment.
    Payloads,
}

/// What is known of what stands before a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// The last record that was read; `None` when none was.
    pub(super) link: Option<Link>,
    /// Whether something between that record and this place was lost.
    pub(super) lost: bool,
    /// Whether a gap that a recovery wrote stands directly before this place.
    pub(super) bridged: bool,
    /// What the segment's head says, when this place is directly behind it.
    pub(super) head: Option<SegmentHead>,
}

impl Before {
    /// The beginning of a journal.
    pub(super) const START: Before = Before {
        link: None,
        lost: false,
        bridged: false,
        head: None,
    };

    /// Behind a record.
    pub(super) const fn behind(link: Link) -> Self {
        Before {
            link: Some(link),
            lost: false,
            bridged: false,
            head: None,
        }
    }

    /// Behind a segment's head that is sound, where only what it says is known.
    pub(super) fn behind_head(head: SegmentHead) -> Self {
        Before {
            link: Some(link_of(&head)),
            lost: false,
            bridged: false,
            head: Some(head),
        }
    }
}

/// What is whole at a place.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are records, and none is kept"
)]
pub(super) enum What<'a> {
    Record(Frame<'a>, HeaderView<'a>),
    Gap(Gap),
}

/// Something whole with where it stands in the bytes.
#[derive(Debug, Clone)]
pub(super) struct Piece<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) what: What<'a>,
}

/// The pieces of an append. Who reads many has one for all of them.
#[derive(Debug, Default)]
pub(super) struct Pieces<'a> {
    pub(super) of_append: Vec<Piece<'a>>,
    actor: ActorSeen<'a>,
}

/// What stands at a place of a segment.
#[derive(Debug)]
pub(super) enum Next<'a> {
    /// One append, whole and sound; a gap ends one. Its pieces are where the caller wanted them.
    Append,
    /// Nothing: the segment ends here.
    End,
    /// Zeros up to the end: room that was made for what comes next. Nothing else is behind it.
    Room,
    /// Something else.
    Broken(Box<Broken<'a>>),
}

/// A place where the next append is not whole and sound.
#[derive(Debug)]
pub(super) struct Broken<'a> {
    /// The records of the append before the one that is wrong.
    pub(super) sound: Vec<Piece<'a>>,
    /// Where the first thing that is wrong begins,
    pub(super) at: usize,
    /// what is wrong with it,
    pub(super) damage: Damage,
    /// and what it is, when it is a whole record.
    pub(super) record: Option<Piece<'a>>,
    /// Where the next record behind it begins that can be of this log.
    pub(super) resume: Option<usize>,
    /// Whether what follows shows that this place was durable before a later write began.
    pub(super) was_durable: bool,
}

/// Reads the head of a segment.
///
/// # Errors
/// When it is damaged, or of a layout that this program does not know.
pub(super) fn read_head(bytes: &[u8]) -> Result<SegmentHead, Damage> {
    SegmentHead::decode(bytes).map_err(|error| match error {
        segment::Error::Format(format) => Damage::SegmentFormat(format),
        segment::Error::Short { .. } | segment::Error::Damaged => Damage::SegmentHead,
    })
}

/// Checks the head of the segment of this name against what stands before it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_head(
    head: Result<SegmentHead, Damage>,
    name: Seq,
    before: Before,
) -> Result<SegmentHead, Damage> {
    let expected = before.link.map_or(Seq(1), |link| link.seq.next());
    let behind_loss = before.lost && name > expected;
    if name != expected && !behind_loss {
        return Err(Damage::Seq {
            expected,
            found: name,
        });
    }
    let head = head?;
    let follows = match before.link {
        None => before.lost || head.previous == Hash::ZERO,
        Some(link) => {
            let chained = before.lost || (head.previous == link.hash && link.more == 0);
            head.log == link.log && head.epoch >= link.epoch && chained
        }
    };
    match head.first == name && follows {
        true => Ok(head),
        false => Err(Damage::SegmentHead),
    }
}

/// Checks a record's header against what stands before it.
fn record(header: &HeaderView<'_>, before: Before) -> Result<(), Damage> {
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
    let behind_loss = before.lost && header.seq > expected;
    if header.seq != expected && !behind_loss {
        return Err(Damage::Seq {
            expected,
            found: header.seq,
        });
    }
    if !behind_loss && header.previous != link.hash {
        return Err(Damage::Chain);
    }
    if behind_loss || before.bridged {
        // Where its append and its write began may be lost.
        return match header.write <= header.seq {
            true => Ok(()),
            false => Err(Damage::Write),
        };
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

/// The gap at a place, where there is one that fits behind what stands before it.
fn bridge(bytes: &[u8], before: Before) -> Option<(Gap, usize)> {
    if !bytes.starts_with(&gap::MAGIC) {
        return None;
    }
    let (gap, len) = Gap::read(bytes)?;
    let expected = before.link?.seq.next();
    let fits = gap.first == expected || (before.lost && gap.first > expected);
    fits.then_some((gap, len))
}

/// The format of a frame that a newer program wrote.
fn later_format(bytes: &[u8]) -> Option<char> {
    let prefix = bytes.first_chunk::<{ record::PREFIX_LEN }>()?;
    let [known @ .., ours] = record::MAGIC;
    let format = prefix[known.len()];
    let is_later = prefix.starts_with(&known) && format.is_ascii_digit() && format > ours;
    // Where a later layout has its check is not known here: its digit is believed, unless the check at hand shows that
    // only the digit was altered.
    let mut renumbered = *prefix;
    renumbered[known.len()] = ours;
    let is_altered = || record::read_prefix(&renumbered).is_ok();
    (is_later && !is_altered()).then_some(char::from(format))
}

/// What a newer program wrote at a place where a record is expected.
pub(super) fn of_newer(bytes: &[u8]) -> Option<Damage> {
    if let Some(format) = later_format(bytes) {
        return Some(Damage::FrameFormat(format));
    }
    let error = Frame::read(bytes).and_then(|frame| frame.header()).err()?;
    Some(Damage::Record(error)).filter(Damage::is_newer)
}

/// Whether there is nothing but zeros from a place on.
fn is_room(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes.iter().all(|byte| *byte == 0)
}

/// Reads one append at a place of a segment. What is sound of it is put into `pieces`, in the place of what was there.
pub(super) fn next<'a>(
    bytes: &'a [u8],
    start: usize,
    before: Before,
    depth: Depth,
    pieces: &mut Pieces<'a>,
) -> Next<'a> {
    let Pieces {
        of_append: sound,
        actor,
    } = pieces;
    sound.clear();
    let mut at = start;
    let mut now = before;
    // An append whose beginning was read before was acknowledged, or it would not have been given out.
    let begun = before.link.is_some_and(|link| link.more > 0) && !before.lost;
    if at >= bytes.len() && !begun {
        return Next::End;
    }
    if !begun && is_room(bytes.get(at..).unwrap_or_default()) {
        return Next::Room;
    }
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        if let Some((gap, len)) = bridge(rest, now) {
            sound.push(Piece {
                start: at,
                end: at + len,
                what: What::Gap(gap),
            });
            return Next::Append;
        }
        let read = Frame::read(rest).and_then(|frame| Ok((frame, frame.header_beside(actor)?)));
        let (record, damage) = match read {
            Err(error) => (None, Damage::Record(error)),
            Ok((frame, header)) => {
                let piece = Piece {
                    start: at,
                    end: at + frame.len(),
                    what: What::Record(frame, header),
                };
                let changed = || depth == Depth::Payloads && frame.body(&header) == Body::Changed;
                match self::record(&header, now) {
                    Err(damage) => (Some(piece), damage),
                    Ok(()) if changed() => (Some(piece), Damage::Record(record::Error::Commitment)),
                    Ok(()) => {
                        at = piece.end;
                        now = Before::behind(Link::of_view(&header, frame.hash));
                        sound.push(piece);
                        if header.more == 0 {
                            return Next::Append;
                        }
                        continue;
                    }
                }
            }
        };
        let first = sound.first().and_then(Piece::seq);
        let first = first.or(now.link.map(|link| link.seq.next()));
        let found = search(bytes, at, now.link, first.unwrap_or(Seq(1)));
        // No loss of power leaves what another program would have written: it is for that one to judge.
        let damage = match later_format(rest) {
            Some(format) => Damage::FrameFormat(format),
            None => damage,
        };
        let is_newer = damage.is_newer();
        return Next::Broken(Box::new(Broken {
            sound: std::mem::take(sound),
            at,
            damage,
            resume: found.resume,
            was_durable: begun || found.was_durable || is_newer,
            record,
        }));
    }
}

impl Piece<'_> {
    /// The event, where it is one.
    pub(super) fn seq(&self) -> Option<Seq> {
        match &self.what {
            What::Record(_, header) => Some(header.seq),
            What::Gap(_) => None,
        }
    }

    /// What stands before the place behind it.
    pub(super) fn behind(&self, before: Before) -> Before {
        match &self.what {
            What::Record(frame, header) => Before::behind(Link::of_view(header, frame.hash)),
            What::Gap(gap) => Before {
                link: before.link.map(|link| Link {
                    seq: gap.last,
                    hash: gap.hash,
                    more: 0,
                    write: gap.last,
                    ..link
                }),
                lost: false,
                bridged: true,
                head: None,
            },
        }
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
    while let Some((start, frame, header)) = whole(bytes, place) {
        place = start + frame.len();
        let Some(link) = link else {
            found.was_durable = true;
            found.resume = found.resume.or((start > at).then_some(start));
            continue;
        };
        let ahead = header.log == link.log && header.seq > link.seq;
        let follows = header.seq == link.seq.next() && header.previous == link.hash;
        let is_changed = frame.body(&header) == Body::Changed;
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
            stranger = Some(frame.hash);
            doubtful = doubtful.or(ahead.then_some(start));
        }
        if found.resume.is_some() && found.was_durable {
            break;
        }
    }
    found.resume = found.resume.or(doubtful);
    found
}

/// The first whole record at or behind a place, with where it begins.
pub(super) fn whole(bytes: &[u8], mut place: usize) -> Option<(usize, Frame<'_>, HeaderView<'_>)> {
    let at = |place: usize| {
        let frame = Frame::read(bytes.get(place..)?).ok()?;
        Some((place, frame, frame.header().ok()?))
    };
    loop {
        let rest = bytes.get(place..)?;
        if let Some(found) = at(place) {
            return Some(found);
        }
        // Where the frame says how long it is, what lies within it is its payload and no record of the log.
        if let Ok((header, payload)) = record::read_prefix(rest) {
            let end = place + record::PREFIX_LEN + header + record::SALT_LEN + payload;
            if let Some(found) = at(end + record::TRAILER_LEN) {
                return Some(found);
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
    let seq = Seq(head.first.0.saturating_sub(1));
    Link {
        log: head.log,
        epoch: head.epoch,
        seq,
        hash: head.previous,
        more: 0,
        write: seq,
    }
}
