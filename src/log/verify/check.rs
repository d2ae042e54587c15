//! The rules of a log, one event after the other.

mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tallybook_events::event::{Event, SeqRange, fixed};
use tallybook_events::gap::Gap;
use tallybook_events::header::{ClaimRef, Common, HeaderView};
use tallybook_events::ids::{Epoch, EventId, Hash, LogId, OperationId, Seq};
use tallybook_events::record::{self, Body, Frame};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{self, Operation, OperationStatus};
use tallybook_replay::state::{Head, State};

use super::{Checks, Class, Finding, Reach, Report, chain};
use crate::journal::Damage;

/// What is needed of a record, made where it was read.
pub(super) struct Seen {
    log: LogId,
    epoch: Epoch,
    seq: Seq,
    hash: Hash,
    raises_epoch: bool,
    /// `None` where only the chain is checked.
    whole: Option<Box<Whole>>,
}

struct Whole {
    body: Body,
    /// What is wrong with it by itself.
    wrong: Vec<(Class, String)>,
    is_kind_known: bool,
    is_decoded: bool,
    erasable: bool,
    event: EventId,
    subject_previous: (Seq, Hash),
    hash: Hash,
    /// Of one whose payload can't be understood.
    subject: Option<Subject>,
    /// `None` where it can't be understood.
    entry: Option<Entry>,
}

impl Seen {
    pub(super) fn of(
        reach: Reach,
        frame: &Frame<'_>,
        header: &HeaderView<'_>,
        common: &mut Common,
    ) -> Self {
        Seen {
            log: header.log,
            epoch: header.epoch,
            seq: header.seq,
            hash: frame.hash,
            raises_epoch: header.kind == "log.recovered",
            whole: match reach {
                Reach::Chain => None,
                Reach::Tail | Reach::Full => Some(Box::new(Whole::of(frame, header, common))),
            },
        }
    }
}

impl Whole {
    fn of(frame: &Frame<'_>, header: &HeaderView<'_>, common: &mut Common) -> Self {
        let mut wrong = Vec::new();
        let kind = fixed(header.kind, header.kind_version);
        if let Some(fixed) = kind {
            if fixed.outcome != header.outcome {
                let what = "its outcome is not the one of its kind";
                wrong.push((Class::Contradiction, what.to_owned()));
            }
            if fixed.erasable != header.erasable {
                let what = "whether it may be erased is not what its kind says";
                wrong.push((Class::Contradiction, what.to_owned()));
            }
        }
        let body = frame.body(header);
        let mut is_decoded = false;
        let event = match body {
            // Judged once it is known what was being erased; its header counts as that of one which is.
            Body::Changed if !header.erasable => None,
            Body::Changed | Body::Erased => Some(Event::nothing()),
            Body::Intact => {
                let decoded = Event::decode(header.kind, header.kind_version, frame.payload);
                let exact = decoded.and_then(|event| match event {
                    Event::Unknown(_) => Ok(event),
                    event => {
                        is_decoded = true;
                        match event.is_encoded_as(frame.payload)? {
                            true => Ok(event),
                            // Says what is wrong with its form.
                            false => {
                                Event::decode_exact(header.kind, header.kind_version, frame.payload)
                            }
                        }
                    }
                });
                match exact {
                    Ok(event) => Some(event),
                    Err(error) => {
                        is_decoded = false;
                        wrong.push((Class::Contradiction, chain(&error)));
                        // What is in another form than it must be may still be understood.
                        Event::decode(header.kind, header.kind_version, frame.payload).ok()
                    }
                }
            }
        };
        let entry = event.and_then(|event| {
            Some(Entry {
                header: header.to_header_beside(common).ok()?,
                hash: frame.hash,
                event,
                is_erased: body != Body::Intact,
            })
        });
        Whole {
            body,
            wrong,
            is_kind_known: kind.is_some(),
            is_decoded,
            erasable: header.erasable,
            event: header.event,
            subject_previous: (header.subject_previous_seq, header.subject_previous),
            hash: frame.hash,
            subject: entry.is_none().then(|| header.subject().ok()).flatten(),
            entry,
        }
    }
}

pub(super) struct Check {
    reach: Reach,
    pub(super) checks: Checks,
    findings: Vec<Finding>,
    unknown: u64,
    /// The last record.
    last: Option<Seen>,
    /// Where the log ends.
    head: Head,
    /// The first and the last of events that are damaged or missing: what names them is not to blame.
    lost: Vec<(Seq, Seq)>,
    /// Those of them that a gap stands for, each with where,
    gaps: Vec<(SeqRange, Hash, String)>,
    /// and what recoveries say that they lost.
    losses: Vec<(SeqRange, Hash)>,
    /// The events of segments that can't be read.
    unread: Vec<SeqRange>,
    unjudged: u64,
    /// Where an erased payload is, each with its place,
    erased: BTreeMap<Seq, String>,
    /// one that is neither erased nor whole,
    changed: BTreeMap<Seq, String>,
    unfinished: u64,
    /// one that could be erased and is not,
    intact: Vec<Seq>,
    /// what was to be erased, and the events that said so and by which it was done.
    announced: BTreeMap<Seq, Vec<SeqRange>>,
    completed: BTreeSet<Seq>,
    /// Whether what is read by now is behind the last event that is to be checked.
    is_behind: bool,
    /// Whether something behind that is lost or damaged, which may have said what became of events before.
    lacks_behind: bool,
    /// The claim that each operation was begun with.
    claims: HashMap<OperationId, ClaimRef>,
    by_claim: HashMap<Seq, Hash>,
    subjects: HashMap<Subject, (Seq, Hash)>,
    /// The ids of events: told apart at the end, all at once.
    seen: Vec<(EventId, Seq)>,
    /// The operations that have not ended, without the output of their sessions,
    open: BTreeMap<OperationId, Operation>,
    /// and how the others ended.
    ended: BTreeMap<OperationId, OperationStatus>,
    state: State,
}

const CHANGED: &str = "its payload is not the one that its header commits to";

type Place<'a> = &'a dyn Fn() -> String;

impl Check {
    pub(super) fn new(reach: Reach) -> Self {
        Check {
            reach,
            checks: Checks::default(),
            findings: Vec::new(),
            unknown: 0,
            last: None,
            head: Head::default(),
            lost: Vec::new(),
            gaps: Vec::new(),
            losses: Vec::new(),
            unread: Vec::new(),
            unjudged: 0,
            erased: BTreeMap::new(),
            changed: BTreeMap::new(),
            unfinished: 0,
            intact: Vec::new(),
            announced: BTreeMap::new(),
            completed: BTreeSet::new(),
            is_behind: false,
            lacks_behind: false,
            claims: HashMap::new(),
            by_claim: HashMap::new(),
            subjects: HashMap::new(),
            seen: Vec::new(),
            open: BTreeMap::new(),
            ended: BTreeMap::new(),
            state: State::default(),
        }
    }

    fn find(&mut self, seq: Seq, place: &str, class: Class, what: impl Into<String>) {
        self.findings.push(Finding {
            seq,
            place: place.to_owned(),
            class,
            what: what.into(),
        });
    }

    fn next(&self) -> Seq {
        self.head.seq.next()
    }

    pub(super) fn file(&mut self, damage: &Damage, place: &str) {
        self.find(self.next(), place, Class::of(damage), chain(damage));
    }

    pub(super) fn head(&mut self, damage: &Damage, place: &str) {
        let class = match damage {
            Damage::Seq { expected, found } if found > expected => Class::Missing,
            other => Class::of(other),
        };
        let what = match damage {
            Damage::Seq { expected, found } if found > expected => format!(
                "event {expected} is in no file: {:020}.seg is neither in the journal nor in the archive; mount the archive, or bring the file back",
                expected.0
            ),
            other => chain(other),
        };
        self.find(self.next(), place, class, what);
    }

    pub(super) fn lost(&mut self, damage: &Damage, place: &str) {
        let seq = self.next();
        self.find(seq, place, Class::of(damage), chain(damage));
        self.lost.push((seq, seq));
    }

    /// A segment that the system does not give. Nothing is known to be wrong with its events.
    pub(super) fn unreadable(
        &mut self,
        damage: &Damage,
        first: Seq,
        next: Option<Seq>,
        place: &str,
    ) {
        self.find(first, place, Class::of(damage), chain(damage));
        let last = next.map_or(first, |next| Seq(next.0.saturating_sub(1)));
        self.lost.push((first, last));
        self.unread.push(SeqRange { first, last });
        self.last = None;
        // Where the journal ends in it, nobody knows where.
        if next.is_some() {
            self.head.seq = last;
        }
    }

    /// Events that a recovery went on without.
    pub(super) fn gap(&mut self, gap: &Gap, place: Place<'_>) {
        let range = SeqRange {
            first: gap.first,
            last: gap.last,
        };
        self.lost.push((gap.first, gap.last));
        self.gaps.push((range, gap.hash, place()));
        self.head.seq = gap.last;
        self.head.hash = gap.hash;
        self.last = None;
    }

    fn is_lost(&self, seq: Seq) -> bool {
        let within = |(first, last): &(Seq, Seq)| (*first..=*last).contains(&seq);
        !self.lost.is_empty() && self.lost.iter().any(within)
    }

    pub(super) fn record(
        &mut self,
        mut seen: Seen,
        follows: bool,
        wrong: Option<Damage>,
        place: Place<'_>,
    ) {
        let seq = seen.seq;
        self.checks.records += 1;
        self.checks.chain += u64::from(follows);
        self.step(seq, wrong.as_ref(), place);
        self.epoch(&seen, follows, place);
        self.head = Head {
            log: Some(seen.log),
            epoch: seen.epoch,
            seq,
            hash: seen.hash,
            unknown: 0,
        };
        let whole = seen.whole.take();
        self.last = Some(seen);
        if let Some(whole) = whole {
            self.whole(seq, *whole, place);
        }
    }

    fn whole(&mut self, seq: Seq, whole: Whole, place: Place<'_>) {
        let Whole {
            body,
            wrong,
            is_kind_known,
            is_decoded,
            erasable,
            event,
            subject_previous,
            hash,
            subject,
            entry,
        } = whole;
        for (class, what) in wrong {
            self.find(seq, &place(), class, what);
        }
        self.checks.kinds += u64::from(is_kind_known);
        self.checks.commitments += u64::from(body != Body::Erased);
        self.checks.payloads += u64::from(is_decoded);
        self.seen.push((event, seq));
        match (body, &entry) {
            (Body::Erased, _) => drop(self.erased.insert(seq, place())),
            (Body::Changed, _) if erasable => drop(self.changed.insert(seq, place())),
            (Body::Changed, _) => self.find(seq, &place(), Class::Altered, CHANGED),
            (Body::Intact, Some(entry)) if entry.header.erasable => {
                self.intact.push(seq);
            }
            (Body::Intact, _) => {}
        }
        let known = entry.as_ref().map(|entry| &entry.header.subject);
        let newest = known.or(subject.as_ref()).map(|subject| {
            let link = (seq, hash);
            match self.subjects.get_mut(subject) {
                Some(known) => std::mem::replace(known, link),
                None => {
                    self.subjects.insert(subject.clone(), link);
                    (Seq::NONE, Hash::ZERO)
                }
            }
        });
        let Some(entry) = entry else { return };
        let newest = newest.unwrap_or_default();
        if body == Body::Intact && matches!(entry.event, Event::Unknown(_)) {
            self.unknown += 1;
        }
        if self.reach == Reach::Full {
            self.subject(&entry, subject_previous, newest, place);
            self.entry(&entry, place);
        }
        self.upkeep(seq, &entry.event);
        self.state.apply_quietly(&entry);
    }

    /// What is wrong with the place of a record, and what is missing before it.
    fn step(&mut self, seq: Seq, wrong: Option<&Damage>, place: Place<'_>) {
        let mut expected = self.next();
        if self.is_lost(expected) {
            // That it is damaged is said already.
            expected = expected.next();
        }
        let begins_here = self.reach == Reach::Tail && self.checks.records == 1;
        if seq > expected && !begins_here {
            let last = Seq(seq.0 - 1);
            self.lost.push((expected, last));
            let what = format!("events {expected} to {last} are missing before it");
            self.find(expected, &place(), Class::Missing, what);
        }
        match wrong {
            // The payload's own is said where it is looked at.
            None | Some(Damage::Record(record::Error::Commitment)) => {}
            Some(Damage::Seq { .. }) if seq > expected => {}
            Some(damage @ Damage::Seq { expected, .. }) => {
                self.find(*expected, &place(), Class::of(damage), chain(damage));
            }
            Some(damage) => self.find(seq, &place(), Class::of(damage), chain(damage)),
        }
    }

    /// An epoch rises by a recovery, and never else.
    fn epoch(&mut self, seen: &Seen, follows: bool, place: Place<'_>) {
        let Some(last) = self.last.as_ref().filter(|_| follows) else {
            return;
        };
        self.checks.epochs += 1;
        // By more than one where epochs between them are lost.
        let fits = match seen.raises_epoch {
            true => seen.epoch > last.epoch,
            false => seen.epoch == last.epoch,
        };
        if !fits {
            let what = format!(
                "its epoch is {}, behind one of epoch {}; it rises with log.recovered, and never else",
                seen.epoch, last.epoch
            );
            self.find(seen.seq, &place(), Class::Foreign, what);
        }
    }

    fn subject(
        &mut self,
        entry: &Entry,
        named: (Seq, Hash),
        newest: (Seq, Hash),
        place: Place<'_>,
    ) {
        if self.is_lost(named.0) {
            return;
        }
        self.checks.subjects += 1;
        if newest != named {
            self.find(
                entry.header.seq,
                &place(),
                Class::Contradiction,
                format!(
                    "it names event {} as the previous one of {}, but that is event {}",
                    named.0, entry.header.subject, newest.0
                ),
            );
        }
    }

    fn entry(&mut self, entry: &Entry, place: Place<'_>) {
        let header = &entry.header;
        let seq = header.seq;
        if let Err(error) = operation::check_place(entry) {
            self.find(seq, &place(), Class::Contradiction, chain(&error));
        }
        if let Some(claim) = header.claim
            && !self.is_lost(claim.seq)
        {
            self.checks.claims += 1;
            let by = match &entry.event {
                Event::OperationRolledBack(rolled_back) => Some(rolled_back.by),
                _ => header.operation,
            };
            let made = match by {
                Some(by) => self.claims.get(&by) == Some(&claim),
                None => self.by_claim.get(&claim.seq) == Some(&claim.hash),
            };
            if !made {
                let what = format!(
                    "it was written under event {}, which did not make its claim",
                    claim.seq
                );
                self.find(seq, &place(), Class::Contradiction, what);
            }
        }
        if let Some(id) = header.operation {
            self.checks.operations += 1;
            if matches!(entry.event, Event::OperationSucceeded(_)) {
                self.checks.complete += 1;
            }
            if let Err(error) = self.operation(id, entry) {
                match self.may_lack_events(id) {
                    true => self.unjudged += 1,
                    false => self.find(seq, &place(), Class::Contradiction, chain(&error)),
                }
            }
        }
    }

    fn operation(&mut self, id: OperationId, entry: &Entry) -> Result<(), operation::Error> {
        // Few are open, and most events are of one that is.
        let Some(known) = self.open.get_mut(&id) else {
            if let Some(status) = self.ended.get_mut(&id) {
                *status = operation::after_end(*status, entry)?;
                return Ok(());
            }
            let Some(folded) = Operation::fold(id, [entry])? else {
                return Ok(());
            };
            self.claims.insert(id, folded.claim);
            self.by_claim.insert(folded.claim.seq, folded.claim.hash);
            self.open.insert(id, folded);
            return Ok(());
        };
        let applied = known.apply(entry);
        known.sessions.clear();
        if known.status.is_final() {
            self.ended.insert(id, known.status);
            self.open.remove(&id);
        }
        applied
    }

    /// Whether events that this operation may have had are lost, as a recovery says, or can't be read.
    fn may_lack_events(&self, id: OperationId) -> bool {
        let began = self.claims.get(&id).map_or(Seq::NONE, |claim| claim.seq);
        self.are_out_of_reach(began)
    }

    /// Whether a recovery went on without events that are not before this one, or they can't be read.
    fn are_out_of_reach(&self, from: Seq) -> bool {
        let gaps = self.gaps.iter().map(|(range, ..)| range);
        gaps.chain(&self.unread).any(|range| range.last >= from)
    }

    pub(super) fn finish(mut self, torn_bytes: u64) -> (Report, State) {
        // What is erased in the last segment was announced behind it.
        if self.reach != Reach::Chain {
            self.finish_erasures();
        }
        if self.reach == Reach::Full {
            self.finish_gaps();
        }
        self.finish_ids();
        for (seq, place) in std::mem::take(&mut self.changed) {
            self.find(seq, &place, Class::Altered, CHANGED);
        }
        // In the order of the log; what belongs to one event stays as it was found.
        self.findings.sort_by_key(|finding| finding.seq);
        self.head.unknown = self.state.head.unknown;
        let lost = self.gaps.iter().map(|(range, ..)| range.count()).sum();
        let report = Report {
            reach: self.reach,
            head: self.head,
            checks: self.checks,
            torn_bytes,
            findings: self.findings,
            unknown: self.unknown,
            erased: self.erased.len() as u64,
            lost,
            unjudged: self.unjudged,
            unfinished: self.unfinished,
        };
        (report, self.state)
    }

    fn finish_ids(&mut self) {
        let mut seen = std::mem::take(&mut self.seen);
        // An id begins with when it was chosen: they are nearly in order.
        seen.sort();
        for pair in seen.windows(2) {
            if let [(id, _), (same, seq)] = pair
                && id == same
            {
                let what = "its event id appears twice";
                self.find(*seq, "the journal", Class::Contradiction, what);
            }
        }
    }
}
