//! Checking the whole log: every frame, header, link and commitment of the journal, and the store against it.
//!
//! It changes nothing, needs no lock for the journal, and counts every check it made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use tallybook_events::event::Event;
use tallybook_events::ids::{Epoch, EventId, Hash, LogId, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{self, Operation};
use tallybook_replay::state::{Head, State};

use super::{Error, JOURNAL};
use crate::journal::{self, Damage, Tail};

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

/// How often each check was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Checks {
    /// Records read whole with the hash that follows them.
    pub records: u64,
    /// Links to the event before.
    pub chain: u64,
    /// Links to the previous event of the same subject.
    pub subjects: u64,
    /// Payloads against their commitment.
    pub commitments: u64,
    /// Payloads decoded.
    pub payloads: u64,
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
            Ok(record) => check.record(&record, place),
            Err(damage) => check.damage(&damage, place),
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
        unknown: check.state.head.unknown,
    };
    Ok((report, check.state))
}

#[derive(Default)]
struct Check {
    checks: Checks,
    findings: Vec<Finding>,
    log: Option<LogId>,
    epoch: Epoch,
    expected: Seq,
    previous: Option<Hash>,
    /// How many more events the append at hand must have.
    more: u16,
    /// Positions whose events are damaged: what names them is not to blame.
    lost: BTreeSet<Seq>,
    /// The header hash of every event that made claims.
    claims: BTreeMap<Seq, Hash>,
    subjects: BTreeMap<Subject, (Seq, Hash)>,
    seen: BTreeSet<EventId>,
    operations: BTreeMap<OperationId, Operation>,
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

    fn damage(&mut self, damage: &Damage, place: String) {
        let seq = self.next_seq();
        self.find(seq, &place, super::chain(damage));
        if !matches!(damage, Damage::SegmentHead) {
            // What was here is gone: the next record can't be held against it.
            self.expected = seq;
            self.previous = None;
            self.lost.insert(seq);
            self.more = self.more.saturating_sub(1);
        }
    }

    const fn next_seq(&self) -> Seq {
        self.expected.next()
    }

    fn record(&mut self, record: &Record, place: String) {
        let header = &record.header;
        let seq = header.seq;
        self.checks.records += 1;
        if *self.log.get_or_insert(header.log) != header.log {
            self.find(seq, &place, "it belongs to another log");
        }
        if header.epoch < self.epoch {
            self.find(
                seq,
                &place,
                "its epoch is lower than that of an earlier event",
            );
        }
        self.epoch = self.epoch.max(header.epoch);
        self.append(record, &place);
        self.chain(record, &place);
        self.subject(record, &place);
        self.claim(record, &place);
        if !self.seen.insert(header.event) {
            self.find(seq, &place, "its event id appears twice");
        }
        self.checks.commitments += 1;
        if !record.payload_is_intact() {
            self.find(
                seq,
                &place,
                "its payload is not the one that its header commits to",
            );
        }
        self.checks.payloads += 1;
        match Entry::from_record(record) {
            Ok(entry) => {
                self.operation(&entry, &place);
                self.state.apply(&entry);
            }
            Err(error) => self.find(seq, &place, super::chain(&error)),
        }
    }

    fn chain(&mut self, record: &Record, place: &str) {
        let seq = record.header.seq;
        let expected = self.next_seq();
        self.checks.chain += 1;
        if seq != expected {
            let what = if seq > expected {
                format!("events {expected} to {} are missing before it", seq.0 - 1)
            } else {
                format!("event {seq} stands where event {expected} must be")
            };
            self.find(expected, place, what);
        } else if seq == Seq(1) && record.header.previous != Hash::ZERO {
            self.find(seq, place, "the first event names one before it");
        } else if let Some(previous) = self.previous
            && record.header.previous != previous
        {
            self.find(
                seq,
                place,
                "it does not carry the hash of the event before it",
            );
        }
        self.expected = seq;
        self.previous = Some(record.hash);
    }

    /// An append is in the log whole: its events count down to the last one.
    fn append(&mut self, record: &Record, place: &str) {
        let header = &record.header;
        // Behind damage it is not known which append goes on.
        if self.previous.is_some() && self.more > 0 && header.more != self.more - 1 {
            self.find(
                header.seq,
                place,
                "the append that the event before it belongs to is not whole",
            );
        }
        self.more = header.more;
    }

    fn claim(&mut self, record: &Record, place: &str) {
        let header = &record.header;
        if header.kind == "operation.intended" {
            self.claims.insert(header.seq, record.hash);
        }
        if let Some(claim) = header.claim
            && !self.lost.contains(&claim.seq)
            && self.claims.get(&claim.seq) != Some(&claim.hash)
        {
            let what = format!(
                "it was written under event {}, which made no such claim",
                claim.seq
            );
            self.find(header.seq, place, what);
        }
    }

    fn subject(&mut self, record: &Record, place: &str) {
        let header = &record.header;
        self.checks.subjects += 1;
        let newest = self
            .subjects
            .insert(header.subject.clone(), (header.seq, record.hash))
            .unwrap_or((Seq::NONE, Hash::ZERO));
        let named = (header.subject_previous_seq, header.subject_previous);
        if newest != named && !self.lost.contains(&header.subject_previous_seq) {
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

    fn operation(&mut self, entry: &Entry, place: &str) {
        let Some(id) = entry.header.operation else {
            return;
        };
        self.checks.operations += 1;
        let seq = entry.header.seq;
        let result: Result<(), operation::Error> = match self.operations.get_mut(&id) {
            Some(known) => known.apply(entry),
            None => match Operation::fold(id, [entry]) {
                Ok(folded) => {
                    self.operations.extend(folded.map(|folded| (id, folded)));
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = result {
            self.find(seq, place, super::chain(&error));
        }
        if let Event::OperationSucceeded(succeeded) = &entry.event {
            self.checks.complete += 1;
            let counted = self.operations.get(&id).map_or(0, |known| known.events);
            if counted != succeeded.events {
                self.find(
                    seq,
                    place,
                    format!(
                        "operation {} says it has {} events, but {counted} are here",
                        id.short(),
                        succeeded.events
                    ),
                );
            }
        }
    }
}
