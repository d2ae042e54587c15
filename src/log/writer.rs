//! The single writer: decides each condition, writes whatever is queued with one fdatasync, and only then folds,
//! indexes and answers.
//!
//! It never lets an append depend on what is not durable yet, and never acknowledges part of one.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tallybook_events::actor::Actor;
use tallybook_events::event::Event;
use tallybook_events::header::Writer;
use tallybook_events::ids::{EventId, Hash, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::OperationStatus;
use tallybook_replay::state::State;
use tokio::sync::{mpsc, oneshot, watch};

use super::admit::Admission;
use super::holder::Shared;
use super::reserve::{RESERVE, Reserve};
use super::seal::{Prepared, Sealing, seal};
use super::view::View;
use super::{Appended, Condition, Error, Filter, Limit, Refusal, chain, erase};
use crate::journal::{self, Journal, Link};

/// How many appends one fdatasync may cover.
const BATCH_MAX: usize = 256;
/// No append joins a batch that has so many bytes.
const BATCH_LEN_MAX: usize = 32 * 1024 * 1024;
/// How long the writer looks for the next append before it sleeps.
const LINGER: Duration = Duration::from_micros(50);
/// The longest that a write waits for company.
const PATIENCE_MAX: Duration = Duration::from_micros(200);
/// How far the clocks of two appends of the same may be apart.
const CLOCK_SLACK_US: u64 = 600 * 1_000_000;
/// How many event ids are remembered, so that a repeated append is recognised. No append has more events.
const RECENT_MAX: usize = 65_536;

/// The events appended last, by their id.
#[derive(Default)]
pub(super) struct Recent {
    by_id: HashMap<EventId, Appended>,
    order: VecDeque<EventId>,
}

impl Recent {
    /// The newest of the log that may be what somebody appends again. Ids say when they were chosen: what was appended
    /// long before that is something else.
    fn of(shared: &Shared, drafts: &[Prepared]) -> Result<Self, Error> {
        let oldest = drafts.iter().map(|one| one.draft.event.unix_ms()).min();
        let since_unix_us = oldest.unwrap_or_default().saturating_mul(1000);
        let since_unix_us = since_unix_us.saturating_sub(CLOCK_SLACK_US);
        let mut recent = Recent::default();
        let mut newest = 64;
        let records = loop {
            let filter = Filter {
                limit: Some(Limit::Newest(newest)),
                ..Filter::default()
            };
            let records = shared.records(&filter)?;
            let is_old = |record: &Record| record.header.time_unix_us < since_unix_us;
            if records.len() < newest || newest >= RECENT_MAX || records.first().is_some_and(is_old)
            {
                break records;
            }
            newest = (newest * 8).min(RECENT_MAX);
        };
        for record in records {
            recent.insert(&record);
        }
        Ok(recent)
    }

    pub(super) fn insert(&mut self, record: &Record) {
        let id = record.header.event;
        if self.by_id.insert(id, appended(record)).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

fn appended(record: &Record) -> Appended {
    Appended {
        seq: record.header.seq,
        hash: record.hash,
    }
}

type Answer = oneshot::Sender<Result<Vec<Appended>, Error>>;

/// An append that waits for the writer.
pub(super) struct Request {
    pub(super) drafts: Vec<Prepared>,
    pub(super) condition: Condition,
    pub(super) actor: Arc<Actor>,
    pub(super) answer: Answer,
}

pub(super) struct WriterThread {
    pub(super) journal: Journal,
    pub(super) shared: Arc<Shared>,
    /// Read when the first append comes: who only reads does not need them.
    pub(super) recent: Option<Recent>,
    pub(super) admission: Admission,
    pub(super) reserve: Reserve,
    pub(super) queue: mpsc::Receiver<Request>,
    pub(super) head: watch::Sender<Seq>,
    pub(super) identity: Arc<Writer>,
    /// How many appends the last write had, and how long its sync took.
    pub(super) company: Company,
}

/// What the last write says of the next one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Company {
    appends: usize,
    sync: Duration,
}

/// The appends that share one fdatasync.
#[derive(Default)]
struct Batch {
    records: Vec<(Record, Entry)>,
    len: usize,
    links: BTreeMap<Subject, (Seq, Hash)>,
    events: BTreeSet<EventId>,
    /// Whether an event of the batch may change who holds what, or what is there to go on with.
    changes_claims: bool,
    /// Whether something of it must be recorded although the disk is full.
    is_urgent: bool,
    answers: Vec<(Answer, Vec<Appended>)>,
}

impl Batch {
    /// Whether what is asked depends on something in this batch, and so must wait until that is durable.
    fn decides(&self, request: &Request) -> bool {
        let repeated = request
            .drafts
            .iter()
            .any(|one| self.events.contains(&one.draft.event));
        let claims = self.changes_claims && request.condition != Condition::none();
        let changed = request.condition.unchanged.as_ref();
        let changed = changed.is_some_and(|(subjects, _)| {
            subjects
                .iter()
                .any(|subject| self.links.contains_key(subject))
        });
        repeated || claims || changed
    }

    fn has_room(&self) -> bool {
        self.answers.len() < BATCH_MAX && self.len < BATCH_LEN_MAX
    }
}

impl WriterThread {
    pub(super) fn run(mut self) {
        let mut held_over = None;
        loop {
            let Some(first) = held_over.take().or_else(|| self.first()) else {
                // Also where nobody closed the log: the indexer must not keep the store.
                self.shared.bell.stop();
                return;
            };
            let mut batch = Batch::default();
            let began = Instant::now();
            let mut next = Some(first);
            while let Some(request) = next.take() {
                if batch.decides(&request) {
                    held_over = Some(request);
                    break;
                }
                self.admit(request, &mut batch);
                if batch.has_room() {
                    next = self.next_of(&batch, began);
                }
            }
            self.commit(batch);
            if self.journal.is_stopped() {
                // Nothing can be appended here any more, and what is at the end of the journal is for another opening
                // to find out. Whoever waits is told by the end of the queue.
                drop(held_over);
                self.queue.close();
                // Waits for whoever is about to send: one of them may have what letting go waits for.
                while let Some(request) = self.queue.blocking_recv() {
                    drop(request);
                }
                self.shared.let_go();
                return;
            }
        }
    }

    /// The first append of a batch; `None` when there will be none. Who was answered mostly goes on at once: to be there
    /// costs less than to be woken.
    fn first(&mut self) -> Option<Request> {
        let began = Instant::now();
        while began.elapsed() < LINGER {
            match self.queue.try_recv() {
                Ok(request) => return Some(request),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => std::thread::yield_now(),
            }
        }
        self.queue.blocking_recv()
    }

    /// The next append for a batch. Who waited for the last sync together mostly comes back together: it is worth a part
    /// of a sync to have all of them in one.
    fn next_of(&mut self, batch: &Batch, began: Instant) -> Option<Request> {
        let patience = (self.company.sync / 2).min(PATIENCE_MAX);
        loop {
            match self.queue.try_recv() {
                Ok(request) => return Some(request),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => {}
            }
            if batch.answers.len() >= self.company.appends || began.elapsed() >= patience {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Decides one append and adds it to the batch, or answers with the refusal.
    fn admit(&mut self, request: Request, batch: &mut Batch) {
        let Request {
            drafts,
            condition,
            actor,
            answer,
        } = request;
        if drafts.is_empty() && condition == Condition::none() {
            // Nothing is asked but whether anybody is there.
            let _gone = answer.send(Ok(Vec::new()));
            return;
        }
        let is_urgent = is_urgent(&drafts);
        let kept = match is_urgent {
            // A long operation has nothing but such: once there is room again, the databases need not rest on.
            true => Ok(self.reserve.try_again()),
            false => self.reserve.keep(),
        };
        if let Ok(true) = kept {
            self.shared.change(|view| view.rest(false));
        }
        if let Err(source) = kept {
            let _gone = answer.send(Err(Error::NoReserve {
                path: self.shared.read(|view| view.directory().join(RESERVE)),
                source,
            }));
            return;
        }
        match self.repeated(&drafts) {
            Ok(None) => {}
            known => {
                let _gone = answer.send(known.map(Option::unwrap_or_default));
                return;
            }
        }
        let about: BTreeSet<OperationId> = drafts
            .iter()
            .filter_map(|one| one.draft.operation)
            .collect();
        let placed = self
            .know(&drafts, batch)
            .and_then(|()| self.place(drafts, &condition, &actor, batch));
        match placed {
            Ok(appended) => {
                batch.is_urgent |= is_urgent;
                batch.answers.push((answer, appended));
            }
            Err(error) => {
                // Some of its events may have been folded; what remains is read again when it is asked for.
                self.admission.forget(|id| about.contains(id));
                let _gone = answer.send(Err(error));
            }
        }
    }

    /// Where these drafts are, when they are in the log already.
    fn repeated(&mut self, drafts: &[Prepared]) -> Result<Option<Vec<Appended>>, Error> {
        let distinct: BTreeSet<EventId> = drafts.iter().map(|one| one.draft.event).collect();
        if distinct.len() != drafts.len() {
            let twice = "an event id appears twice in one append";
            return Err(Refusal::Malformed(twice.to_owned()).into());
        }
        let recent = match &mut self.recent {
            Some(recent) => recent,
            unread => unread.insert(Recent::of(&self.shared, drafts)?),
        };
        let known: Vec<Appended> = drafts
            .iter()
            .filter_map(|one| recent.by_id.get(&one.draft.event).copied())
            .collect();
        match known.len() {
            0 => Ok(None),
            len if len == drafts.len() => Ok(Some(known)),
            _ => {
                let part = "some of these events are in the log already, by another append";
                Err(Refusal::Malformed(part.to_owned()).into())
            }
        }
    }

    /// Takes in the operations that an append is about, as far as the log has them.
    fn know(&mut self, drafts: &[Prepared], batch: &Batch) -> Result<(), Error> {
        let mut wanted: BTreeSet<OperationId> = BTreeSet::new();
        for Prepared { draft, event, .. } in drafts {
            wanted.extend(draft.operation);
            match event {
                Event::OperationIntended(intended) => {
                    // Looked up while it can still be refused: once the event is durable, the fold needs it.
                    for operation in intended.intent.takes_back() {
                        self.shared.change(|view| view.operation(*operation))?;
                    }
                }
                Event::OperationRolledBack(rolled_back) => {
                    wanted.insert(rolled_back.by);
                }
                _ => {}
            }
            if let (None, Some(claim)) = (draft.operation, draft.claim)
                && !self.admission.has_claim(claim)
            {
                let made = self.shared.records(&Filter::at(claim.seq))?;
                wanted.extend(made.iter().filter_map(|record| record.header.operation));
            }
        }
        wanted.retain(|id| !self.admission.knows(id));
        for id in wanted {
            if self.shared.change(|view| view.operation(id))?.is_none() {
                // It begins with this append, or is in the batch: that was admitted, and so is known.
                continue;
            }
            let mut records = self.shared.records(&Filter::of_operation(id))?;
            let of = |(record, _): &&(Record, Entry)| record.header.operation == Some(id);
            records.extend(
                batch
                    .records
                    .iter()
                    .filter(of)
                    .map(|(record, _)| record.clone()),
            );
            self.admission.learn(id, &records)?;
        }
        Ok(())
    }

    fn place(
        &mut self,
        drafts: Vec<Prepared>,
        condition: &Condition,
        actor: &Arc<Actor>,
        batch: &mut Batch,
    ) -> Result<Vec<Appended>, Error> {
        self.shared.change(|view| check(condition, view))?;
        let count = drafts.len();
        let mut records: Vec<(Record, Entry)> = Vec::with_capacity(count);
        let mut links: BTreeMap<Subject, (Seq, Hash)> = BTreeMap::new();
        let mut link = match batch.records.last() {
            Some((last, _)) => Link::of(last),
            None => self.journal.link(),
        };
        // All that one sync makes durable says where that began.
        let write = batch
            .records
            .first()
            .map_or(link.seq.next(), |(first, _)| first.header.seq);
        let mut changes_claims = false;
        for (position, one) in drafts.into_iter().enumerate() {
            let more = u16::try_from(count - position - 1).map_err(|_| {
                Refusal::Malformed(format!("{count} events are too many for one append"))
            })?;
            let subject = &one.draft.subject;
            let within = links.get(subject);
            let subject_previous = match within.or_else(|| batch.links.get(subject)) {
                Some(known) => *known,
                None => self
                    .shared
                    .change(|view| view.link(subject))?
                    .unwrap_or((Seq::NONE, Hash::ZERO)),
            };
            let sealing = Sealing {
                more,
                write,
                link,
                subject_previous,
                actor,
                writer: &self.identity,
            };
            let (record, entry) = seal(one, &sealing)?;
            self.shared
                .read(|view| erase::check_inventory(&view.state, &entry))?;
            self.shared.read(|view| check_fence(&view.state, &entry))?;
            self.admission.admit(&entry)?;
            link = Link::of(&record);
            changes_claims |= record.header.kind.starts_with("operation.")
                || matches!(&*record.header.kind, "erasure.announced" | "log.fenced");
            links.insert(record.header.subject.clone(), (link.seq, link.hash));
            records.push((record, entry));
        }
        let answer = records.iter().map(|(record, _)| appended(record)).collect();
        batch.changes_claims |= changes_claims;
        batch.len += records
            .iter()
            .map(|(record, _)| record.frame_len())
            .sum::<usize>();
        batch
            .events
            .extend(records.iter().map(|(record, _)| record.header.event));
        batch.records.extend(records);
        batch.links.extend(links);
        Ok(answer)
    }

    /// Makes a batch durable, then visible, then answers. The databases follow.
    fn commit(&mut self, batch: Batch) {
        if batch.records.is_empty() {
            // Nothing was asked for but whether the condition holds.
            for (answer, appended) in batch.answers {
                let _gone = answer.send(Ok(appended));
            }
            return;
        }
        let records = || batch.records.iter().map(|(record, _)| record);
        let began = Instant::now();
        let written = match self.journal.append(records()) {
            Err(error)
                if batch.is_urgent
                    && error.is_disk_full()
                    && !self.journal.is_stopped()
                    && self.reserve.give_up() =>
            {
                self.shared.change(|view| view.rest(true));
                self.journal.append(records())
            }
            other => other,
        };
        let positions = match written {
            Ok(positions) => positions,
            Err(error) => {
                self.admission.forget(|_| true);
                refuse(batch, error);
                return;
            }
        };
        self.company = Company {
            appends: batch.answers.len(),
            sync: began.elapsed(),
        };
        // Crash boundary: durable and not yet folded; the next opening folds it from the journal.
        if let Some(recent) = &mut self.recent {
            batch
                .records
                .iter()
                .for_each(|(record, _)| recent.insert(record));
        }
        self.admission.settle();
        let newest = self.journal.link().seq;
        let next = self.journal.position();
        let (taken, waiting) = self.shared.change(|view| {
            let taken = view.take(batch.records, &positions, next);
            (taken, view.waiting())
        });
        #[expect(
            clippy::expect_used,
            reason = "going on would answer from a state that lacks an event"
        )]
        taken.expect("an event that is durable can be folded");
        // Before anybody is told: who then waits for the databases waits for this, too.
        self.shared.bell.ring(waiting);
        for (answer, appended) in batch.answers {
            let _gone = answer.send(Ok(appended));
        }
        self.head.send_replace(newest);
        self.shared.change(View::write_head);
        self.shared.bell.keep_up();
    }
}

/// Whether all of an append is about operations that run, or takes one back: it is recorded although the disk is full.
fn is_urgent(drafts: &[Prepared]) -> bool {
    let begins = |one: &&Prepared| match &one.event {
        Event::OperationIntended(intended) => !intended.intent.is_rollback(),
        _ => false,
    };
    let begun: BTreeSet<OperationId> = drafts
        .iter()
        .filter(begins)
        .filter_map(|one| one.draft.operation)
        .collect();
    let is_of_running = |one: &Prepared| match one.draft.operation {
        Some(id) => !begun.contains(&id),
        None => one.draft.claim.is_some() || matches!(one.event, Event::ErasureCompleted(_)),
    };
    !drafts.is_empty() && drafts.iter().all(is_of_running)
}

/// Answers every append of a batch with what happened.
fn refuse(batch: Batch, error: journal::Error) {
    let disk_full = error.is_disk_full();
    let in_doubt = matches!(error, journal::Error::Unsynced { .. });
    let what = chain(&error);
    let mut first = Some(error);
    for (answer, _) in batch.answers {
        let error = match first.take() {
            Some(error) => Error::Journal(error),
            None => Error::NotWritten {
                what: what.clone(),
                disk_full,
                in_doubt,
            },
        };
        let _gone = answer.send(Err(error));
    }
}

/// With a log that a host has seen a newer line of, nothing is begun: not an operation, nor a step of one that runs.
fn check_fence(state: &State, entry: &Entry) -> Result<(), Error> {
    let begins = matches!(
        entry.event,
        Event::OperationIntended(_) | Event::StepStarted(_)
    );
    match &state.fenced {
        Some((host, seen)) if begins => Err(Refusal::Fenced {
            host: host.clone(),
            seen: *seen,
        }
        .into()),
        Some(_) | None => Ok(()),
    }
}

fn check(condition: &Condition, view: &mut View) -> Result<(), Error> {
    let state = &view.state;
    if let Some((operation, claim)) = condition.held {
        let holds = state.operations.get(&operation).is_some_and(|known| {
            known.first == claim
                    && !known.status.is_final()
                    && known.status != OperationStatus::RollingBack
                    // A rollback takes the claims over: then they are held, but not by this one.
                    && known
                        .claims
                        .iter()
                        .all(|subject| state.claims.get(subject) == Some(&operation))
        });
        if !holds {
            return Err(Refusal::ClaimLost(operation).into());
        }
    }
    if let Some((subjects, except)) = &condition.unclaimed {
        for subject in subjects {
            let holder = state.claims.get(subject).filter(|id| !except.contains(id));
            let Some(holder) = holder else { continue };
            let known = state.operations.get(holder);
            let refusal = Refusal::Claimed {
                subject: subject.clone(),
                holder: *holder,
                summary: known.map_or_else(String::new, |known| known.intent.summary()),
                status: known
                    .map_or("unknown", |known| known.status.label())
                    .to_owned(),
            };
            return Err(refusal.into());
        }
    }
    if let Some(ranges) = &condition.unneeded {
        erase::check_unneeded(state, ranges)?;
    }
    if let Some((subjects, since)) = &condition.unchanged {
        for subject in subjects {
            if let Some((seq, _)) = view.link(subject)?
                && seq > *since
            {
                let subject = subject.clone();
                return Err(Refusal::Changed { subject, seq }.into());
            }
        }
    }
    Ok(())
}
