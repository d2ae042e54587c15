//! Makes a store's journal from the story: sealed here and written through the library's own journal, one write an append.
//!
//! It makes no databases. The first opening builds them, and that is what the bench of the rebuild measures.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tallybook::journal::{Journal, Limits};
use tallybook_events::actor::{Actor, ActorClaim, ClaimSource};
use tallybook_events::event::{Event, LogCreated, fixed};
use tallybook_events::header::{ClaimRef, Header, Writer};
use tallybook_events::ids::{Attempt, BootId, Epoch, EventId, Hash, LogId, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;

use crate::Failure;
use crate::choices::Choices;
use crate::story::{Append, BEGINS_UNIX_US, Story, Told};

/// Microseconds between two events.
const PACE_US: u64 = 4_000_000;

/// What a made store has, and what is asked of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Its events.
    pub(crate) events: u64,
    /// Appends, each written and synced alone.
    pub(crate) appends: u64,
    /// Operations.
    pub(crate) operations: u64,
    /// Bytes of all payloads.
    pub(crate) payload_bytes: u64,
    /// Bytes of all frames: what the journal holds but for heads of segments.
    pub(crate) frame_bytes: u64,
    /// Subjects.
    pub(crate) subjects: u64,
    /// A container of a few hundred events,
    pub(crate) container: String,
    /// and how many.
    pub(crate) container_events: u64,
    /// An event of a step in the middle.
    pub(crate) seq: u64,
    /// Its operation.
    pub(crate) operation: String,
}

impl Facts {
    /// Where a store's facts are: beside it, for nothing foreign belongs in it.
    pub(crate) fn path(store: &Path) -> PathBuf {
        store.with_extension("json")
    }

    /// Reads them.
    ///
    /// # Errors
    /// When the store was not made here, or not to its end.
    pub(crate) fn read(store: &Path) -> Result<Self, Failure> {
        Ok(serde_json::from_slice(&std::fs::read(Self::path(store))?)?)
    }
}

/// Seals what is told, in order.
pub(crate) struct Sealer {
    log: LogId,
    actor: Arc<Actor>,
    writer: Arc<Writer>,
    choices: Choices,
    links: BTreeMap<Subject, (Seq, Hash)>,
    claims: BTreeMap<OperationId, ClaimRef>,
    last: (Seq, Hash),
    inventory: Seq,
}

impl Sealer {
    /// For a new log.
    pub(crate) fn new(seed: u64) -> Self {
        let mut choices = Choices::new(seed ^ 0x5ea1);
        let claim = |name: &str, value: &str, source| ActorClaim {
            name: name.to_owned(),
            value: value.to_owned(),
            source,
        };
        Sealer {
            log: LogId::new(BEGINS_UNIX_US / 1000, choices.bytes()),
            actor: Arc::new(Actor(vec![
                claim("uid", "0", ClaimSource::Kernel),
                claim("user", "root", ClaimSource::Derived),
                claim("loginuid", "1000", ClaimSource::Kernel),
                claim("login_user", "alice", ClaimSource::Derived),
            ])),
            writer: Arc::new(Writer {
                controller: "ctl".to_owned(),
                boot: BootId::from_bytes(choices.bytes()),
            }),
            choices,
            links: BTreeMap::new(),
            claims: BTreeMap::new(),
            last: (Seq::NONE, Hash::ZERO),
            inventory: Seq::NONE,
        }
    }

    /// The records of an append, which is a write of its own.
    ///
    /// # Errors
    /// When one can't be encoded.
    pub(crate) fn seal(&mut self, append: Append) -> Result<Vec<Record>, Failure> {
        let count = append.len();
        let write = self.last.0.next();
        let mut records = Vec::with_capacity(count);
        for (position, told) in append.into_iter().enumerate() {
            records.push(self.record(told, (count - position - 1) as u16, write)?);
        }
        Ok(records)
    }

    fn record(&mut self, told: Told, more: u16, write: Seq) -> Result<Record, Failure> {
        let Told {
            subject,
            event,
            operation,
            step,
            by_inventory,
        } = told;
        let seq = self.last.0.next();
        let (kind, kind_version) = event.kind().ok_or("an event without a kind")?;
        let fixed = fixed(kind, kind_version).ok_or("a kind that fixes nothing")?;
        let newest = self.links.get(&subject).copied();
        let (subject_previous_seq, subject_previous) = newest.unwrap_or((Seq::NONE, Hash::ZERO));
        let claim = operation
            .filter(|(_, claimed)| *claimed)
            .and_then(|(id, _)| self.claims.get(&id).copied());
        let time_unix_us = BEGINS_UNIX_US + seq.0 * PACE_US;
        let header = Header {
            log: self.log,
            epoch: Epoch(1),
            seq,
            previous: self.last.1,
            subject: subject.clone(),
            subject_previous_seq,
            subject_previous,
            event: EventId::new(time_unix_us / 1000, self.choices.bytes()),
            kind: kind.into(),
            kind_version,
            time_unix_us,
            actor: Arc::clone(&self.actor),
            writer: Arc::clone(&self.writer),
            claim,
            operation: operation.map(|(id, _)| id),
            step,
            attempt: Attempt(u32::from(step.is_some())),
            more,
            write,
            cause: match by_inventory {
                true => self.inventory,
                false => claim.map_or(Seq::NONE, |claim| claim.seq),
            },
            outcome: event.outcome(),
            erasable: fixed.erasable,
            payload_len: 0,
            commitment: Hash::ZERO,
        };
        let record = Record::seal(header, self.choices.bytes(), event.encode()?)?;
        self.links.insert(subject, (seq, record.hash));
        self.last = (seq, record.hash);
        if matches!(event, Event::InventoryRecorded(_)) {
            self.inventory = seq;
        }
        if let Some((id, _)) = operation {
            if matches!(event, Event::OperationIntended(_)) {
                let hash = record.hash;
                self.claims.insert(id, ClaimRef { seq, hash });
            } else if matches!(event, Event::OperationSucceeded(_)) {
                self.claims.remove(&id);
            }
        }
        Ok(record)
    }
}

/// The whole story up to so many events, sealed append by append.
///
/// # Errors
/// What `each` fails with.
pub(crate) fn tell(
    seed: u64,
    events: u64,
    mut each: impl FnMut(Vec<Record>) -> Result<(), Failure>,
) -> Result<LogId, Failure> {
    let mut story = Story::new(seed)?;
    let mut sealer = Sealer::new(seed);
    let created = Told {
        subject: Subject::Cloud,
        event: LogCreated {
            tool_version: "0.1.0".to_owned(),
        }
        .into(),
        operation: None,
        step: None,
        by_inventory: false,
    };
    each(sealer.seal(vec![created])?)?;
    for append in story.beginning()? {
        each(sealer.seal(append)?)?;
    }
    // Only whole operations: a log whose last one is cut short would be verified, and listed, differently.
    while sealer.last.0.0 < events {
        for append in story.operate()? {
            each(sealer.seal(append)?)?;
        }
    }
    Ok(sealer.log)
}

/// Makes the journal of a store of at least so many events, and its facts beside it.
///
/// # Errors
/// When something is there already, or it can't be written.
pub(crate) fn make(store: &Path, events: u64, seed: u64) -> Result<Facts, Failure> {
    let directory = store.join(tallybook::log::JOURNAL);
    if directory.exists() {
        return Err(format!("there is a journal in {} already", store.display()).into());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(store)?;
    let log = Sealer::new(seed).log;
    let mut journal = Journal::create(&directory, log, Limits::default())?;
    let mut facts = Facts {
        events: 0,
        appends: 0,
        operations: 0,
        payload_bytes: 0,
        frame_bytes: 0,
        subjects: 0,
        container: String::new(),
        container_events: 0,
        seq: 0,
        operation: String::new(),
    };
    let mut containers: BTreeMap<String, u64> = BTreeMap::new();
    let mut subjects: BTreeMap<Subject, ()> = BTreeMap::new();
    tell(seed, events, |records| {
        journal.append(&records)?;
        facts.appends += 1;
        for record in &records {
            let header = &record.header;
            facts.events += 1;
            facts.payload_bytes += record.payload.len() as u64;
            facts.frame_bytes += record.frame_len() as u64;
            facts.operations += u64::from(header.kind == "operation.intended");
            if let Subject::Container(_, name) = &header.subject {
                *containers.entry(name.to_string()).or_default() += 1;
            }
            if facts.seq == 0 && header.seq.0 > events / 2 && header.kind == "step.succeeded" {
                facts.seq = header.seq.0;
                facts.operation = header
                    .operation
                    .map_or_else(String::new, |id| id.to_string());
            }
            if !subjects.contains_key(&header.subject) {
                subjects.insert(header.subject.clone(), ());
            }
        }
        Ok(())
    })?;
    facts.subjects = subjects.len() as u64;
    let near = |count: u64| count.abs_diff(300);
    if let Some((name, count)) = containers.iter().min_by_key(|(_, count)| near(**count)) {
        (facts.container, facts.container_events) = (name.clone(), *count);
    }
    std::fs::write(Facts::path(store), serde_json::to_vec_pretty(&facts)?)?;
    Ok(facts)
}
