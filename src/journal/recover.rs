//! What can be gone on with of a damaged journal, and how its segments look then.
//!
//! The log is trusted from its end backwards: each event names the hash of the one before it, so what was put in, doubled,
//! swapped or replaced falls out by itself. It only decides; `mend` carries it out. It never drops an event that is
//! whole and that the chain names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tallybook_events::event::{Event, SeqRange};
use tallybook_events::gap::Gap;
use tallybook_events::header::HeaderView;
use tallybook_events::ids::{Epoch, Hash, LogId, Seq};
use tallybook_events::record::{self, Body, Frame};
use tallybook_events::segment::{self, SegmentHead};

use super::archive::{self, Loaded};
use super::{Error, follow, io_error, segments};

/// What the originals of an unfinished recovery are marked with.
pub(super) const UNFINISHED: &str = "unfinished";

/// A file that records may be taken from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// The segment that it is; `None` for an original that an earlier recovery put aside.
    pub(super) first: Option<Seq>,
    pub(super) is_damaged: bool,
}

impl Source {
    pub(super) fn load(&self, journal: &Path) -> Result<Loaded, Error> {
        match self.first {
            Some(first) => archive::load(journal, first),
            None => archive::load_kept(&self.path),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A gap that an earlier recovery wrote, and where it begins.
    Gap(Seq),
    /// A record whose payload is another than it was.
    Changed,
    Whole,
}

/// Something whole of this log.
#[derive(Debug, Clone)]
struct Candidate {
    source: usize,
    start: usize,
    end: usize,
    seq: Seq,
    hash: Hash,
    /// `None` where it is a gap that does not know.
    previous: Option<Hash>,
    epoch: Epoch,
    more: u16,
    begins_write: bool,
    subject_previous: (Seq, Hash),
    kind: Kind,
    is_hidden: bool,
    /// What a recovery says that it lost.
    losses: Vec<(SeqRange, Hash)>,
}

impl Candidate {
    fn first(&self) -> Seq {
        match self.kind {
            Kind::Gap(first) => first,
            Kind::Changed | Kind::Whole => self.seq,
        }
    }
}

/// An event that is known to have been in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its place.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
}

/// A piece of a new segment.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Copy {
        source: usize,
        start: usize,
        end: usize,
    },
    /// A gap that keeps the header of the record there.
    Header {
        source: usize,
        start: usize,
        end: usize,
    },
    Gap(Gap),
}

/// Events that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub events: SeqRange,
    /// The header hash of the last.
    pub hash: Hash,
    /// Whether its header is there, and only the payload is lost.
    pub header_kept: bool,
}

/// A segment as it is to be.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) head: SegmentHead,
    pub(super) parts: Vec<Part>,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    pub(super) journal: PathBuf,
    pub(super) sources: Vec<Source>,
    pub(super) outputs: Vec<Output>,
    /// Where an unfinished recovery put originals aside.
    pub(super) kept: Option<PathBuf>,
    /// The last event, also when it is lost.
    pub end: Seq,
    /// The epoch of the newest event that is kept.
    pub epoch: Epoch,
    /// What is lost and was not said before, in order.
    pub losses: Vec<Lost>,
    /// Events that are in the journal, but not as they are known to have been.
    pub contradicted: Vec<Seq>,
}

/// Decides what is kept of a journal. `known` are events that something beside it remembers.
///
/// # Errors
/// When the files can't be read, or nothing of the log is left.
pub fn plan(journal: &Path, log: LogId, known: &[Known]) -> Result<Plan, Error> {
    let (mut sources, kept) = sources(journal)?;
    let mut candidates = Vec::new();
    for number in 0..sources.len() {
        let Some(source) = sources.get_mut(number) else {
            break;
        };
        let loaded = source.load(journal)?;
        source.is_damaged = loaded.wrong.is_some();
        source.path = loaded.path;
        collect(&loaded.bytes, log, number, &mut candidates);
    }
    drop_torn(journal, &sources, known, &mut candidates)?;
    let mut walk = Walk::new(&candidates, known);
    let Some(top) = walk.top() else {
        return Err(Error::Missing(journal.to_owned()));
    };
    let furthest = known.iter().max_by_key(|known| known.seq);
    let end = match furthest {
        Some(known) if known.seq >= top.seq => *known,
        Some(_) | None => Known {
            seq: top.seq,
            hash: top.hash,
        },
    };
    walk.down(end);
    let mut places = walk.places;
    places.reverse();
    Ok(arrange(
        Plan {
            journal: journal.to_owned(),
            sources,
            outputs: Vec::new(),
            kept,
            end: end.seq,
            epoch: Epoch(1),
            losses: Vec::new(),
            contradicted: Vec::new(),
        },
        log,
        known,
        &candidates,
        &places,
    ))
}

/// The log that the first sound head, else the first record of a journal is of.
///
/// # Errors
/// When the files can't be read.
pub fn log_in(journal: &Path) -> Result<Option<LogId>, Error> {
    let mut by_record = None;
    for source in sources(journal)?.0 {
        let bytes = source.load(journal)?.bytes;
        if let Ok(head) = follow::read_head(&bytes) {
            return Ok(Some(head.log));
        }
        by_record = by_record.or(follow::whole(&bytes, 0).map(|(_, _, header)| header.log));
    }
    Ok(by_record)
}

/// What an unfinished recovery put aside, and then the segments.
fn sources(journal: &Path) -> Result<(Vec<Source>, Option<PathBuf>), Error> {
    let store = journal.parent().unwrap_or(Path::new("."));
    let is_unfinished = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("damaged-")) && path.join(UNFINISHED).exists()
    };
    let entries = std::fs::read_dir(store).map_err(io_error("reading", store))?;
    let mut unfinished = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error("reading", store))?.path();
        unfinished.extend(Some(path).filter(is_unfinished));
    }
    unfinished.sort();
    let kept = unfinished.pop();
    let mut sources = Vec::new();
    let source = |path, first| Source {
        path,
        first,
        is_damaged: false,
    };
    if let Some(directory) = &kept {
        let entries = std::fs::read_dir(directory).map_err(io_error("reading", directory))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_error("reading", directory))?.path();
            let name = path.to_string_lossy();
            if name.ends_with(".seg") || name.ends_with(".seg.zst") {
                paths.push(path.clone());
            }
        }
        paths.sort();
        sources.extend(paths.into_iter().map(|path| source(path, None)));
    }
    let all = segments(journal)?;
    sources.extend(
        all.into_iter()
            .map(|first| source(PathBuf::new(), Some(first))),
    );
    Ok((sources, kept))
}

/// Everything whole of this log in the bytes of a segment.
fn collect(bytes: &[u8], log: LogId, source: usize, into: &mut Vec<Candidate>) {
    let mut at = 0;
    let mut behind = segment::LEN;
    loop {
        while let Some((gap, len)) = bytes.get(behind..).and_then(Gap::read) {
            into.push(of_gap(&gap, source, behind, behind + len));
            behind += len;
            at = behind;
        }
        let Some((start, frame, header)) = follow::whole(bytes, at) else {
            add_hidden(bytes, (at, bytes.len()), log, source, into);
            return;
        };
        add_hidden(bytes, (at, start), log, source, into);
        at = start + frame.len();
        behind = at;
        if header.log == log && header.seq > Seq::NONE {
            into.push(of_record(&frame, &header, source, start));
        }
    }
}

/// What may be the payload of something damaged: it counts only where the chain names it.
fn add_hidden(
    bytes: &[u8],
    (from, to): (usize, usize),
    log: LogId,
    source: usize,
    into: &mut Vec<Candidate>,
) {
    for start in hidden(bytes, from, to) {
        if let Ok(frame) = Frame::read(bytes.get(start..).unwrap_or_default())
            && let Ok(header) = frame.header()
            && header.log == log
            && header.seq > Seq::NONE
        {
            let mut found = of_record(&frame, &header, source, start);
            found.is_hidden = true;
            into.push(found);
        }
    }
}

/// Where something between two places begins like a record.
fn hidden(bytes: &[u8], from: usize, to: usize) -> impl Iterator<Item = usize> {
    let between = bytes.get(from..to).unwrap_or_default();
    let windows = between.windows(record::MAGIC.len()).enumerate();
    let begins = windows.filter(|(_, window)| *window == record::MAGIC);
    begins.map(move |(at, _)| from + at)
}

fn of_record(frame: &Frame<'_>, header: &HeaderView<'_>, source: usize, start: usize) -> Candidate {
    let body = frame.body(header);
    let mut losses = Vec::new();
    if header.kind == "log.recovered"
        && body == Body::Intact
        && let Ok(Event::LogRecovered(recovered)) =
            Event::decode(header.kind, header.kind_version, frame.payload)
    {
        let said = recovered.losses.iter();
        losses.extend(said.map(|loss| (loss.events, loss.hash)));
    }
    Candidate {
        source,
        start,
        end: start + frame.len(),
        seq: header.seq,
        hash: frame.hash,
        previous: Some(header.previous),
        epoch: header.epoch,
        more: header.more,
        begins_write: header.write == header.seq,
        subject_previous: (header.subject_previous_seq, header.subject_previous),
        kind: match body {
            Body::Changed => Kind::Changed,
            Body::Intact | Body::Erased => Kind::Whole,
        },
        is_hidden: false,
        losses,
    }
}

fn of_gap(gap: &Gap, source: usize, start: usize, end: usize) -> Candidate {
    let header = HeaderView::decode(&gap.header).ok();
    Candidate {
        source,
        start,
        end,
        seq: gap.last,
        hash: gap.hash,
        previous: header.map(|header| header.previous),
        epoch: header.map_or(Epoch(1), |header| header.epoch),
        more: 0,
        begins_write: false,
        subject_previous: (Seq::NONE, Hash::ZERO),
        kind: Kind::Gap(gap.first),
        is_hidden: false,
        losses: Vec::new(),
    }
}

/// What stands in the journal's end and was never acknowledged is not in the log.
fn drop_torn(
    journal: &Path,
    sources: &[Source],
    known: &[Known],
    candidates: &mut Vec<Candidate>,
) -> Result<(), Error> {
    let how = super::Inspect {
        only_last: true,
        ..super::Inspect::default()
    };
    let all = segments(journal)?;
    if all.is_empty() {
        return Ok(());
    }
    let ignore = |_: super::At<'_>, _: super::Found<()>| std::ops::ControlFlow::Continue(());
    let tail = super::scan(journal, how, || |_: &_, _: &_| (), ignore, |_| {})?;
    let super::Tail::Torn { at, .. } = tail else {
        return Ok(());
    };
    let furthest = known.iter().map(|known| known.seq).max();
    let last = sources.len() - 1;
    let begin = usize::try_from(at.offset).unwrap_or(usize::MAX);
    candidates.retain(|found| {
        let is_torn = found.source == last && found.start >= begin;
        !is_torn || furthest.is_some_and(|seq| found.seq <= seq)
    });
    Ok(())
}

/// What stands at a place of the mended log.
enum Placed {
    Kept(usize),
    Lost(Gap),
}

/// The way down from the log's end.
struct Walk<'a> {
    candidates: &'a [Candidate],
    by_seq: BTreeMap<Seq, Vec<usize>>,
    /// Hashes of events that what is kept, or something beside the journal, names.
    named: BTreeMap<Seq, Hash>,
    places: Vec<Placed>,
}

impl<'a> Walk<'a> {
    fn new(candidates: &'a [Candidate], known: &[Known]) -> Self {
        let mut by_seq: BTreeMap<Seq, Vec<usize>> = BTreeMap::new();
        for (number, candidate) in candidates.iter().enumerate() {
            by_seq.entry(candidate.seq).or_default().push(number);
        }
        Walk {
            candidates,
            by_seq,
            named: known.iter().map(|known| (known.seq, known.hash)).collect(),
            places: Vec::new(),
        }
    }

    fn at(&self, seq: Seq) -> impl Iterator<Item = (usize, &'a Candidate)> {
        let candidates = self.candidates;
        let numbers = self.by_seq.get(&seq).map(Vec::as_slice);
        let numbers = numbers.unwrap_or_default().iter();
        numbers.filter_map(move |number| Some((*number, candidates.get(*number)?)))
    }

    /// Whether the event before it is there as it names it.
    fn is_supported(&self, candidate: &Candidate) -> bool {
        let before = Seq(candidate.first().0.saturating_sub(1));
        match candidate.previous {
            None => true,
            Some(previous) if before == Seq::NONE => previous == Hash::ZERO,
            Some(previous) => self.at(before).any(|(_, found)| found.hash == previous),
        }
    }

    /// Whether the event before it is there, and another than it names: of the two it is then the stranger.
    fn is_stranger(&self, candidate: &Candidate) -> bool {
        let before = Seq(candidate.first().0.saturating_sub(1));
        let contradicts = |(_, found): (usize, &Candidate)| self.is_supported(found);
        !self.is_supported(candidate) && self.at(before).any(contradicts)
    }

    /// The newest event by the journal alone.
    fn top(&self) -> Option<&'a Candidate> {
        let last = self.candidates.iter().map(|found| found.source).max()?;
        let is_of_end = |found: &&Candidate| found.source == last || self.is_supported(found);
        let mut descending = self.by_seq.keys().rev();
        descending.find_map(|seq| {
            let (_, found) = self.find(*seq, None)?;
            Some(found)
                .filter(is_of_end)
                .filter(|found| found.more == 0)
        })
    }

    /// The best that there is for an event. Of the same, what stands furthest back in the files.
    fn find(&self, seq: Seq, expected: Option<Hash>) -> Option<(usize, &'a Candidate)> {
        let expected = expected.or_else(|| self.named.get(&seq).copied());
        let fits = |(_, found): &(usize, &Candidate)| match expected {
            Some(hash) => found.hash == hash,
            None => !found.is_hidden && !self.is_stranger(found),
        };
        let worth = |(number, found): &(usize, &'a Candidate)| {
            (self.is_supported(found), found.kind, *number)
        };
        self.at(seq).filter(fits).max_by_key(worth)
    }

    fn down(&mut self, end: Known) {
        let mut want = end.seq;
        let mut expected = Some(end.hash);
        while want > Seq::NONE {
            if let Some((number, found)) = self.find(want, expected) {
                self.keep(number, found);
                expected = found.previous;
                want = Seq(found.first().0.saturating_sub(1));
                continue;
            }
            let mut below = self.by_seq.range(..want).rev().map(|(seq, _)| *seq);
            let next = below.find(|seq| self.find(*seq, None).is_some());
            let next = next.unwrap_or(Seq::NONE);
            self.lose(
                next.next(),
                want,
                expected.or(self.named.get(&want).copied()),
            );
            want = next;
            expected = None;
        }
    }

    fn keep(&mut self, number: usize, found: &Candidate) {
        let (seq, hash) = found.subject_previous;
        if seq > Seq::NONE {
            self.named.entry(seq).or_insert(hash);
        }
        self.places.push(Placed::Kept(number));
    }

    fn lose(&mut self, first: Seq, last: Seq, hash: Option<Hash>) {
        let lost = |last, hash| {
            Placed::Lost(Gap {
                first,
                last,
                hash,
                header: Vec::new(),
            })
        };
        if let Some(hash) = hash {
            self.places.push(lost(last, hash));
            return;
        }
        // Only a gap does not know what was before it: then both are one.
        let above = match self.places.pop() {
            Some(Placed::Lost(gap)) => Some((gap.last, gap.hash)),
            Some(Placed::Kept(number)) => {
                let found = self.candidates.get(number);
                found.map(|found| (found.seq, found.hash))
            }
            None => None,
        };
        self.places
            .extend(above.map(|(last, hash)| lost(last, hash)));
    }
}

/// Puts what is kept into segments, as much as it can like those that there were.
fn arrange(
    mut plan: Plan,
    log: LogId,
    known: &[Known],
    candidates: &[Candidate],
    places: &[Placed],
) -> Plan {
    let mut before = (Hash::ZERO, 0);
    let mut newest_source = 0;
    let mut said: Vec<(SeqRange, Hash)> = Vec::new();
    for (at, placed) in places.iter().enumerate() {
        let place = match placed {
            Placed::Lost(gap) => Place::of_gap(gap),
            Placed::Kept(number) => match candidates.get(*number) {
                Some(found) => Place::of_candidate(found, at + 1 == places.len()),
                None => continue,
            },
        };
        plan.contradicted.extend(place.contradicted(known));
        // A segment may begin only with what a write began with, and not within an append.
        let may_begin = place.begins_write && before.1 == 0;
        let is_next_source = place.source.is_some_and(|source| source > newest_source);
        newest_source = newest_source.max(place.source.unwrap_or(0));
        if plan.outputs.is_empty() || (is_next_source && may_begin) {
            plan.outputs.push(Output {
                head: SegmentHead {
                    log,
                    epoch: place.epoch.unwrap_or(plan.epoch),
                    first: place.events.first,
                    previous: before.0,
                },
                parts: Vec::new(),
            });
        }
        plan.epoch = plan.epoch.max(place.epoch.unwrap_or(plan.epoch));
        said.extend(place.losses);
        plan.losses.extend(place.lost);
        if let Some(output) = plan.outputs.last_mut() {
            output.parts.push(place.part);
        }
        before = (place.hash, place.more);
    }
    let is_said = |lost: &Lost| said.contains(&(lost.events, lost.hash));
    plan.losses.retain(|lost| !is_said(lost));
    plan
}

/// What stands at a place of the mended log, ready to be put there.
struct Place<'a> {
    events: SeqRange,
    hash: Hash,
    more: u16,
    begins_write: bool,
    source: Option<usize>,
    epoch: Option<Epoch>,
    part: Part,
    lost: Option<Lost>,
    losses: &'a [(SeqRange, Hash)],
}

impl<'a> Place<'a> {
    fn of_gap(gap: &Gap) -> Self {
        let events = SeqRange {
            first: gap.first,
            last: gap.last,
        };
        Place {
            events,
            hash: gap.hash,
            more: 0,
            begins_write: false,
            source: None,
            epoch: None,
            part: Part::Gap(gap.clone()),
            lost: Some(Lost {
                events,
                hash: gap.hash,
                header_kept: false,
            }),
            losses: &[],
        }
    }

    fn of_candidate(found: &'a Candidate, is_last: bool) -> Self {
        let events = SeqRange {
            first: found.first(),
            last: found.seq,
        };
        let (source, start, end) = (found.source, found.start, found.end);
        // The log can't end within an append: only a gap ends one early.
        let is_cut = is_last && found.more > 0;
        let lost = Some(Lost {
            events,
            hash: found.hash,
            header_kept: found.previous.is_some(),
        });
        let copy = Part::Copy { source, start, end };
        let (part, lost) = match found.kind {
            Kind::Whole if !is_cut => (copy, None),
            Kind::Whole | Kind::Changed => (Part::Header { source, start, end }, lost),
            Kind::Gap(_) => (copy, lost),
        };
        let is_gap = lost.is_some();
        Place {
            events,
            hash: found.hash,
            more: if is_gap { 0 } else { found.more },
            begins_write: found.begins_write && !is_gap,
            source: Some(source),
            epoch: Some(found.epoch).filter(|_| found.previous.is_some()),
            part,
            lost,
            losses: &found.losses,
        }
    }

    fn contradicted(&self, known: &[Known]) -> Option<Seq> {
        let here = known.iter().find(|known| known.seq == self.events.last);
        here.filter(|known| known.hash != self.hash)
            .map(|known| known.seq)
    }
}
