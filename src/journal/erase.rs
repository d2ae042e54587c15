//! Overwriting salt and payload of records with zeros, in the journal, in the archive and in what was put aside of them: the
//! one way in which bytes of a log ever change.
//!
//! It is told which events; that they may be erased it sees in their headers, and it touches no others. It never counts an
//! event as erased that it did not see.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tallybook_events::event::SeqRange;
use tallybook_events::gap::Gap;
use tallybook_events::ids::{LogId, Seq};
use tallybook_events::record::PREFIX_LEN;
use tallybook_events::segment::{self, SegmentHead};

use super::{
    Error, archive, archived_segments, follow, io_error, kept, own_segments, segment_path,
};

/// Erases the payloads of events, wherever they are, and returns how many of them there are now, erased before or not.
///
/// Safe to repeat. A crash leaves some of it done: what is half overwritten is neither erased nor whole until it is repeated.
///
/// # Errors
/// When one of them can't be reached in a file that has it, or is in none and no gap stands for it; when a file can't
/// be read, written or synced. All the others are erased by then; the error is about the first.
pub fn erase(directory: &Path, events: &[SeqRange]) -> Result<u64, Error> {
    let wanted = Wanted::of(events);
    let Some(first) = wanted.first() else {
        return Ok(0);
    };
    let own = own_segments(directory)?;
    let mut left = Left::default();
    left.take(
        first,
        kept::remove_unfinished(directory, own.last().copied()),
    );
    let archived = left.take(first, archived_segments(directory));
    let archived = archived.unwrap_or_default();
    let mut all: Vec<Seq> = own.iter().chain(&archived).copied().collect();
    all.sort_unstable();
    all.dedup();
    let before = all
        .first()
        .map_or(u64::MAX, |first| first.0.saturating_sub(1));
    if let Some(missing) = wanted.within(Seq(1), Seq(before)).first() {
        left.add(
            missing,
            unreached(missing, &segment_path(directory, Seq(1)), NOWHERE),
        );
    }
    if archive::is_away(directory)
        && let Some(first) = wanted.within(Seq(1), last_closed(&own)).first()
    {
        // It may have another copy of what is here, too.
        left.add(first, away(directory, first));
    }
    let mut erased = 0;
    for (number, first) in all.iter().enumerate() {
        let next = all.get(number + 1);
        let wanted = wanted.within(*first, kept::end_before(next));
        let Some(first_wanted) = wanted.first() else {
            continue;
        };
        let mut most = 0;
        if own.binary_search(first).is_ok() {
            let walked = left.take(first_wanted, erase_own(directory, *first, &wanted));
            if let Some(walked) = walked {
                most = walked.bodies.len();
                left.miss(&wanted, &walked, &segment_path(directory, *first));
            }
        }
        if archived.binary_search(first).is_ok() {
            let walked = left.take(first_wanted, erase_archived(directory, *first, &wanted));
            if let Some(Some(walked)) = walked {
                most = most.max(walked.bodies.len());
                left.miss(&wanted, &walked, &archive::path(directory, *first));
            }
        }
        erased += most as u64;
    }
    kept::erase(directory, &wanted, &all, &mut left);
    match left.first {
        None => Ok(erased),
        Some((_, error)) => Err(error),
    }
}

const NOWHERE: &str =
    "it is in no file, here or in the archive: mount that, or bring the file back";

/// The last event that may be in a segment which others follow.
fn last_closed(own: &[Seq]) -> Seq {
    Seq(own.last().map_or(u64::MAX, |last| last.0.saturating_sub(1)))
}

fn away(directory: &Path, seq: Seq) -> Error {
    let what = "it may be in the archive, which leads to nothing: mount what it leads to";
    unreached(seq, &archive::directory(directory), what)
}

pub(super) fn unreached(seq: Seq, path: &Path, what: &str) -> Error {
    Error::Unreached {
        seq,
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

/// The first event that could not be reached, and why.
#[derive(Default)]
pub(super) struct Left {
    first: Option<(Seq, Error)>,
}

impl Left {
    pub(super) fn add(&mut self, seq: Seq, error: Error) {
        if self.first.as_ref().is_none_or(|(first, _)| seq < *first) {
            self.first = Some((seq, error));
        }
    }

    /// What came of something that was done for the sake of this event.
    pub(super) fn take<T>(&mut self, seq: Seq, done: Result<T, Error>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.add(seq, error);
                None
            }
        }
    }

    /// Notes the first event that is to be in a file and was not found there.
    fn miss(&mut self, wanted: &Wanted, walked: &Walked, path: &Path) {
        if let Some(seq) = wanted.first_but(&walked.reached) {
            let what = match walked.rest.is_empty() {
                true => NOWHERE,
                false => "what stands where it must be is damaged; see `tallybook log recover`",
            };
            self.add(seq, unreached(seq, path, what));
        }
    }
}

/// Runs of events, in order and apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted(Vec<SeqRange>);

impl Wanted {
    fn of(events: &[SeqRange]) -> Self {
        let sound = |range: &&SeqRange| Seq::NONE < range.first && range.first <= range.last;
        let mut sorted: Vec<SeqRange> = events.iter().filter(sound).copied().collect();
        sorted.sort_unstable();
        let mut runs: Vec<SeqRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match runs.last_mut() {
                Some(run) if range.first.0 - 1 <= run.last.0 => run.last = run.last.max(range.last),
                Some(_) | None => runs.push(range),
            }
        }
        Wanted(runs)
    }

    pub(super) fn first(&self) -> Option<Seq> {
        self.0.first().map(|range| range.first)
    }

    fn contains(&self, seq: Seq) -> bool {
        let at = self.0.partition_point(|range| range.last < seq);
        self.0.get(at).is_some_and(|range| range.contains(seq))
    }

    /// Those of them from one event to another.
    pub(super) fn within(&self, first: Seq, last: Seq) -> Wanted {
        let start = self.0.partition_point(|range| range.last < first);
        let runs = self.0.iter().skip(start);
        let runs = runs.take_while(|range| range.first <= last);
        let runs = runs.map(|range| SeqRange {
            first: range.first.max(first),
            last: range.last.min(last),
        });
        Wanted(runs.collect())
    }

    /// The first of them that is not among these.
    pub(super) fn first_but(&self, others: &[SeqRange]) -> Option<Seq> {
        let others = Wanted::of(others);
        self.0.iter().find_map(|range| {
            let at = others.0.partition_point(|other| other.last < range.first);
            match others.0.get(at) {
                // They are apart: what follows this one is not among them.
                Some(other) if other.first <= range.first => {
                    (other.last < range.last).then(|| other.last.next())
                }
                Some(_) | None => Some(range.first),
            }
        })
    }
}

/// What is in the bytes of a segment.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Where salt and payload of wanted events are, as far as they may be erased.
    pub(super) bodies: Vec<Range<usize>>,
    /// The events that were found, or that a gap stands for.
    pub(super) reached: Vec<SeqRange>,
    /// What belongs to no record and no gap, room left out.
    pub(super) rest: Vec<Range<usize>>,
}

/// Goes through all that is whole in a segment's bytes from a place on, behind damage too.
pub(super) fn walk(bytes: &[u8], start: usize, wanted: &Wanted) -> Walked {
    let log = SegmentHead::decode(bytes).ok().map(|head| head.log);
    let room = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let content = bytes.len() - room;
    let mut walked = Walked::default();
    let mut at = start;
    loop {
        while let Some((gap, len)) = bytes.get(at..).and_then(Gap::read) {
            walked.reached.push(SeqRange {
                first: gap.first,
                last: gap.last,
            });
            at += len;
        }
        let found = follow::whole(bytes, at);
        let end = found.as_ref().map_or(content, |(begins, ..)| *begins);
        if at < end {
            walked.rest.push(at..end);
        }
        let Some((begins, frame, header)) = found else {
            return walked;
        };
        at = begins + frame.len();
        let is_of_log = log.is_none_or(|log: LogId| log == header.log);
        if !is_of_log || !wanted.contains(header.seq) {
            continue;
        }
        if header.erasable {
            let start = begins + PREFIX_LEN + frame.header_bytes.len();
            let len = frame.salt.len() + frame.payload.len();
            walked.bodies.push(start..start + len);
        }
        match walked.reached.last_mut() {
            Some(run) if run.last.next() == header.seq => run.last = header.seq,
            Some(_) | None => walked.reached.push(SeqRange {
                first: header.seq,
                last: header.seq,
            }),
        }
    }
}

fn erase_own(directory: &Path, first: Seq, wanted: &Wanted) -> Result<Walked, Error> {
    let path = segment_path(directory, first);
    let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
    let walked = walk(&bytes, segment::LEN, wanted);
    overwrite(&path, &walked.bodies).map_err(io_error("erasing payloads in", &path))?;
    Ok(walked)
}

/// Overwrites places of a file with zeros, for good.
pub(super) fn overwrite(path: &Path, places: &[Range<usize>]) -> io::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    for place in places {
        let zeros = vec![0; place.len()];
        file.write_all_at(&zeros, place.start as u64)?;
    }
    // Crash boundary: until here any part of it may be on the disk.
    file.sync_data()
}

fn erase_archived(directory: &Path, first: Seq, wanted: &Wanted) -> Result<Option<Walked>, Error> {
    let Some(loaded) = archive::load_archived(directory, first)? else {
        return Ok(None);
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
    let walked = walk(&bytes, segment::LEN, wanted);
    if zero(&mut bytes, &walked.bodies) {
        archive::put(directory, first, &bytes)?;
    }
    Ok(Some(walked))
}

/// Overwrites places of bytes with zeros. Whether there was anything else.
pub(super) fn zero(bytes: &mut [u8], places: &[Range<usize>]) -> bool {
    let mut is_changed = false;
    for place in places {
        let Some(place) = bytes.get_mut(place.clone()) else {
            continue;
        };
        is_changed |= place.iter().any(|byte| *byte != 0);
        place.fill(0);
    }
    is_changed
}
