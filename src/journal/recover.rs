//! What can be gone on with of a damaged journal, and how its segments look then.
//!
//! The log is trusted from its end backwards: each event names the hash of the one before it, so what was put in, doubled,
//! swapped or replaced falls out by itself. It only decides; `mend` carries it out. It never drops an event that is
//! whole and that the chain names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tallybook_events::event::{Loss, SeqRange};
use tallybook_events::gap::Gap;
use tallybook_events::ids::{Epoch, Hash, LogId, Seq};
use tallybook_events::segment::SegmentHead;

use super::archive::Loaded;
use super::away::{self, Archived};
use super::candidate::{Candidate, Kind, collect};
use super::source::{In, Source, Sources, sources};
use super::{Damage, Error, archive, follow, segments};

/// What becomes of segments that the log says are in the archive, and that are in no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// The archive may come back: nothing is decided without it.
    Awaited,
    /// It is gone for good: what was in it is lost.
    Lost,
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
    /// The newest epoch that anything here is of: what is kept, what is lost, what earlier recoveries put aside, and what
    /// hosts were shown.
    pub epoch: Epoch,
    /// What is lost and was not said before, in order.
    pub losses: Vec<Lost>,
    /// Events that are in the journal, but not as they are known to have been.
    pub contradicted: Vec<Seq>,
}

/// Decides what is kept of a journal. `known` are events that something beside it remembers.
///
/// # Errors
/// When the files can't be read, nothing of the log is left, a newer program wrote some of it, or the archive is away and
/// awaited.
pub fn plan(journal: &Path, log: LogId, known: &[Known], away: Away) -> Result<Plan, Error> {
    if away == Away::Awaited
        && let Some(leads) = away::dangles(journal)
    {
        return Err(Error::Away {
            path: archive::directory(journal),
            what: format!("it leads to {}, and nothing is there", leads.display()),
        });
    }
    let mut found = sources(journal)?;
    let mut candidates = Vec::new();
    let mut newest = found.epoch;
    for number in 0..found.files.len() {
        let loaded = load(journal, &found, number)?;
        newest = newest.max(head_epoch(&loaded, log)?);
        collect(&loaded.bytes, log, number, &mut candidates).map_err(|(offset, source)| {
            Error::Newer {
                path: loaded.path.clone(),
                offset: offset as u64,
                source,
            }
        })?;
        if let Some(source) = found.files.get_mut(number) {
            source.is_damaged = loaded.wrong.is_some();
            source.path = loaded.path;
        }
    }
    let of_log = candidates.iter().filter(|found| !found.is_hidden);
    newest = of_log.map(Candidate::newest_epoch).fold(newest, Epoch::max);
    if away == Away::Awaited {
        refuse_away(journal, &candidates)?;
    }
    drop_torn(journal, &found.files, known, &mut candidates)?;
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
    let mut plan = arrange(
        Plan {
            journal: journal.to_owned(),
            sources: found.files,
            outputs: Vec::new(),
            kept: found.aside,
            end: end.seq,
            epoch: Epoch(1),
            losses: Vec::new(),
            contradicted: Vec::new(),
        },
        log,
        known,
        &candidates,
        &places,
    );
    plan.epoch = plan.epoch.max(newest);
    Ok(plan)
}

/// Reads a file. One in the archive that can't be read is none, where the journal has the segment itself.
fn load(journal: &Path, found: &Sources, number: usize) -> Result<Loaded, Error> {
    let Some(source) = found.files.get(number) else {
        return Err(Error::Missing(journal.to_owned()));
    };
    let own = found.files.get(number + 1);
    let has_own = source.is_in == In::Archive
        && own.is_some_and(|own| (own.first, own.is_in) == (source.first, In::Journal));
    match source.load(journal) {
        Err(Error::Io { path, source, .. }) if has_own => Ok(Loaded {
            path,
            bytes: Vec::new(),
            wrong: Some(Damage::Unreadable(source.to_string())),
        }),
        Ok(Loaded {
            path,
            wrong: Some(newer),
            ..
        }) if newer.is_newer() => Err(Error::Newer {
            path,
            offset: 0,
            source: newer,
        }),
        other => other,
    }
}

/// The epoch that a segment's head says, where it is of this log.
fn head_epoch(loaded: &Loaded, log: LogId) -> Result<Epoch, Error> {
    match follow::read_head(&loaded.bytes) {
        Ok(head) if head.log == log => Ok(head.epoch),
        Err(source) if source.is_newer() => Err(Error::Newer {
            path: loaded.path.clone(),
            offset: 0,
            source,
        }),
        Ok(_) | Err(_) => Ok(Epoch(0)),
    }
}

/// What the log says is in the archive has to be in some file.
fn refuse_away(journal: &Path, candidates: &[Candidate]) -> Result<(), Error> {
    let said = candidates.iter().filter(|found| !found.is_hidden);
    let said = said.filter_map(|found| Some((found.seq, found.says.as_deref()?)));
    let mut said: Vec<_> = said.collect();
    said.sort_by_key(|(seq, _)| *seq);
    let mut archived = Archived::default();
    said.into_iter().for_each(|(_, event)| archived.take(event));
    let mut missing = archived.unnamed(journal)?;
    let is_found = |one: &SeqRange| {
        let mut whole = candidates.iter().filter(|found| !found.is_hidden);
        whole.any(|found| (found.first()..=found.seq).contains(&one.first))
    };
    missing.retain(|one| !is_found(one));
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Away {
            path: archive::directory(journal),
            what: away::shown(&missing),
        }),
    }
}

/// The log that the first sound head, else the first record of a journal is of.
///
/// # Errors
/// When the files can't be read.
pub fn log_in(journal: &Path) -> Result<Option<LogId>, Error> {
    let mut by_record = None;
    let found = sources(journal)?;
    for number in 0..found.files.len() {
        let bytes = load(journal, &found, number)?.bytes;
        if let Ok(head) = follow::read_head(&bytes) {
            return Ok(Some(head.log));
        }
        by_record = by_record.or(follow::whole(&bytes, 0).map(|(_, _, header)| header.log));
    }
    Ok(by_record)
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
    let mut newest_segment = Seq::NONE;
    let mut said: Vec<&Loss> = Vec::new();
    for (at, placed) in places.iter().enumerate() {
        let place = match placed {
            Placed::Lost(gap) => Place::of_gap(gap),
            Placed::Kept(number) => match candidates.get(*number) {
                Some(found) => Place::of_candidate(found, &plan.sources, at + 1 == places.len()),
                None => continue,
            },
        };
        plan.contradicted.extend(place.contradicted(known));
        // A segment may begin only with what a write began with, and not within an append.
        let may_begin = place.begins_write && before.1 == 0;
        let is_next_segment = place.segment.is_some_and(|first| first > newest_segment);
        newest_segment = newest_segment.max(place.segment.unwrap_or(Seq::NONE));
        if plan.outputs.is_empty() || (is_next_segment && may_begin) {
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
    let is_said = |lost: &Lost| {
        let mut said = said.iter();
        said.any(|loss| (loss.events, loss.hash) == (lost.events, lost.hash))
    };
    plan.losses.retain(|lost| !is_said(lost));
    plan
}

/// What stands at a place of the mended log, ready to be put there.
struct Place<'a> {
    events: SeqRange,
    hash: Hash,
    more: u16,
    begins_write: bool,
    /// Which of the segments it is from.
    segment: Option<Seq>,
    epoch: Option<Epoch>,
    part: Part,
    lost: Option<Lost>,
    losses: &'a [Loss],
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
            segment: None,
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

    fn of_candidate(found: &'a Candidate, sources: &[Source], is_last: bool) -> Self {
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
            segment: sources.get(source).map(|source| source.first),
            epoch: Some(found.epoch).filter(|_| found.previous.is_some()),
            part,
            lost,
            losses: found.losses(),
        }
    }

    fn contradicted(&self, known: &[Known]) -> Option<Seq> {
        let here = known.iter().find(|known| known.seq == self.events.last);
        here.filter(|known| known.hash != self.hash)
            .map(|known| known.seq)
    }
}
