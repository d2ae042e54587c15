//! Checking the whole log: every frame, header, link and commitment of the journal, and the store against it.
//!
//! It changes nothing, needs no lock for the journal, and counts every check it made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use tallybook_events::event::{Event, fixed};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{EventId, Hash, OperationId, Seq};
use tallybook_events::record::{self, Body, Record};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{self, Operation, OperationStatus};
use tallybook_replay::state::{Head, State};

use super::{Error, JOURNAL};
use crate::journal::{self, Damage, Found, Tail};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The event, as far as its place tells.
    pub seq: Seq,
    /// Where its bytes are: file and byte.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// How often each check was made. What could not be compared, because the other side is lost, erased or of a kind that
/// this program does not know, is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Checks {
    /// Heads of segments, against their check and what is before and behind them.
    pub segments: u64,
    /// Records read whole with the hash that follows them.
    pub records: u64,
    /// Records against the one before: its hash, its append and its write.
    pub chain: u64,
    /// Links to the previous event of the same subject.
    pub subjects: u64,
    /// Payloads against their commitment.
    pub commitments: u64,
    /// Payloads decoded, and encoded to the same bytes again.
    pub payloads: u64,
    /// Headers against what their kind fixes.
    pub kinds: u64,
    /// Claims against the event that made them.
    pub claims: u64,
    /// Events of operations against what their operation allows.
    pub operations: u64,
    /// Operations that say how many events they have.
    pub complete: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Where the journal ends.
    pub head: Head,
    /// How often each check was made.
    pub checks: Checks,
    /// Bytes behind the last record, of one that was never acknowledged.
    pub torn_bytes: u64,
    /// Everything that is wrong, in order.
    pub findings: Vec<Finding>,
    /// Events of kinds that this program does not know.
    pub unknown: u64,
    /// Events whose payload was erased.
    pub erased: u64,
}

/// Reads the journal of a store from its first byte to its last.
///
/// # Errors
/// When the files themselves can't be read.
pub fn journal(store: &Path) -> Result<(Report, State), Error> {
    let mut check = Check::default();
    let tail = journal::scan(&store.join(JOURNAL), |path, offset, found| {
        let place = format!("{} byte {offset}", path.display());
        match found {
            Found::Head => check.checks.segments += 1,
            Found::Record {
                record,
                follows,
                wrong,
            } => check.record(&record, follows, wrong, &place),
            Found::DamagedHead(damage) => check.head(&damage, &place),
            Found::Lost(damage) => check.lost(&damage, &place),
        }
    })?;
    let torn_bytes = match tail {
        Tail::Whole => 0,
        Tail::Torn { bytes, .. } => bytes,
    };
    let report = Report {
        head: check.state.head,
        checks: check.checks,
        torn_bytes,
        findings: check.findings,
        unknown: check.unknown,
        erased: check.erased,
    };
    Ok((report, check.state))
}

#[derive(Default)]
struct Check {
    checks: Checks,
    findings: Vec<Finding>,
    unknown: u64,
    erased: u64,
    /// The last record.
    last: Seq,
    /// The first and the last of events that are damaged or missing: what names them is not to blame.
    lost: Vec<(Seq, Seq)>,
    /// The claim that each operation was begun with.
    claims: BTreeMap<OperationId, ClaimRef>,
    subjects: BTreeMap<Subject, (Seq, Hash)>,
    seen: BTreeSet<EventId>,
    /// The operations that have not ended, without the output of their sessions,
    open: BTreeMap<OperationId, Operation>,
    /// and how the others ended.
    ended: BTreeMap<OperationId, OperationStatus>,
    state: State,
}

impl Check {
    fn find(&mut self, seq: Seq, place: &str, what: impl Into<String>) {
        self.findings.push(Finding {
            seq,
            place: place.to_owned(),
            what: what.into(),
        });
    }

    fn head(&mut self, damage: &Damage, place: &str) {
        self.find(self.last.next(), place, super::chain(damage));
    }

    fn lost(&mut self, damage: &Damage, place: &str) {
        let seq = self.last.next();
        self.find(seq, place, super::chain(damage));
        self.lost.push((seq, seq));
    }

    fn is_lost(&self, seq: Seq) -> bool {
        let within = |(first, last): &(Seq, Seq)| (*first..=*last).contains(&seq);
        self.lost.iter().any(within)
    }

    fn record(&mut self, record: &Record, follows: bool, wrong: Option<Damage>, place: &str) {
        let header = &record.header;
        let seq = header.seq;
        self.checks.records += 1;
        self.checks.chain += u64::from(follows);
        self.gap(seq, wrong.as_ref(), place);
        self.last = seq;
        self.subject(record, place);
        if !self.seen.insert(header.event) {
            self.find(seq, place, "its event id appears twice");
        }
        if let Some(fixed) = fixed(&header.kind, header.kind_version) {
            self.checks.kinds += 1;
            if fixed.outcome != header.outcome {
                self.find(seq, place, "its outcome is not the one of its kind");
            }
            if fixed.erasable != header.erasable {
                let what = "whether it may be erased is not what its kind says";
                self.find(seq, place, what);
            }
        }
        match record.body() {
            Body::Changed => {
                self.checks.commitments += 1;
                let what = "its payload is not the one that its header commits to";
                return self.find(seq, place, what);
            }
            Body::Erased => {
                self.erased += 1;
                let what = "its payload was erased; the header still commits to what it was";
                self.find(seq, place, what);
            }
            Body::Intact => {
                self.checks.commitments += 1;
                match Event::decode_exact(&header.kind, header.kind_version, &record.payload) {
                    Ok(Event::Unknown(_)) => self.unknown += 1,
                    Ok(_) => self.checks.payloads += 1,
                    Err(error) => self.find(seq, place, super::chain(&error)),
                }
            }
        }
        // What is in another form than it must be may still be understood.
        if let Ok(entry) = Entry::from_record(record) {
            self.entry(&entry, place);
            self.state.apply(&entry);
        }
    }

    /// What is wrong with the place of a record, and what is missing before it.
    fn gap(&mut self, seq: Seq, wrong: Option<&Damage>, place: &str) {
        let mut expected = self.last.next();
        if self.is_lost(expected) {
            // That it is damaged is said already.
            expected = expected.next();
        }
        if seq > expected {
            let last = Seq(seq.0 - 1);
            self.lost.push((expected, last));
            let what = format!("events {expected} to {last} are missing before it");
            self.find(expected, place, what);
        }
        match wrong {
            // The payload's own is said where it is looked at.
            None | Some(Damage::Record(record::Error::Commitment)) => {}
            Some(Damage::Seq { .. }) if seq > expected => {}
            Some(damage @ Damage::Seq { expected, .. }) => {
                self.find(*expected, place, super::chain(damage));
            }
            Some(damage) => self.find(seq, place, super::chain(damage)),
        }
    }

    fn subject(&mut self, record: &Record, place: &str) {
        let header = &record.header;
        let newest = self
            .subjects
            .insert(header.subject.clone(), (header.seq, record.hash))
            .unwrap_or((Seq::NONE, Hash::ZERO));
        if self.is_lost(header.subject_previous_seq) {
            return;
        }
        self.checks.subjects += 1;
        let named = (header.subject_previous_seq, header.subject_previous);
        if newest != named {
            self.find(
                header.seq,
                place,
                format!(
                    "it names event {} as the previous one of {}, but that is event {}",
                    header.subject_previous_seq, header.subject, newest.0
                ),
            );
        }
    }

    fn entry(&mut self, entry: &Entry, place: &str) {
        let header = &entry.header;
        let seq = header.seq;
        if let Err(error) = operation::check_place(entry) {
            self.find(seq, place, super::chain(&error));
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
                None => self.claims.values().any(|made| *made == claim),
            };
            if !made {
                let what = format!(
                    "it was written under event {}, which did not make its claim",
                    claim.seq
                );
                self.find(seq, place, what);
            }
        }
        if let Some(id) = header.operation {
            self.checks.operations += 1;
            if matches!(entry.event, Event::OperationSucceeded(_)) {
                self.checks.complete += 1;
            }
            if let Err(error) = self.operation(id, entry) {
                self.find(seq, place, super::chain(&error));
            }
        }
    }

    fn operation(&mut self, id: OperationId, entry: &Entry) -> Result<(), operation::Error> {
        if let Some(status) = self.ended.get_mut(&id) {
            *status = operation::after_end(*status, entry)?;
            return Ok(());
        }
        let Some(known) = self.open.get_mut(&id) else {
            let Some(folded) = Operation::fold(id, [entry])? else {
                return Ok(());
            };
            self.claims.insert(id, folded.claim);
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
}
