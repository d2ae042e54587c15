//! The holder's side of the log: opening and mending the store, and the single writer.
//!
//! One thread writes. It takes whatever is queued, decides each condition, writes all of it with one fdatasync,
//! and only then folds, indexes and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tallybook_events::event::{Event, LogCreated};
use tallybook_events::header::{Header, Writer};
use tallybook_events::ids::{Blob, EventId, Hash, Seq};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;
use tallybook_replay::state::{Key, State};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Appended, Condition, Draft, Error, Filter, INDEX, JOURNAL, Open, PROJECTION, Refusal, entry,
    socket,
};
use crate::journal::{self, Journal, Link, Position, Reader, Torn};
use crate::store::{self, BLOCK_EVENTS, Index, Projection};
use crate::{clock, identity};

/// How many appends may wait for the writer; more wait outside.
const QUEUE_LEN: usize = 1024;
/// How many appends one fdatasync may cover.
const BATCH_MAX: usize = 256;
/// How many sealed blocks are looked through for event ids, so that a repeated append is recognised.
const RECENT_BLOCKS: u64 = 16;

/// A store that was opened, recovered and locked.
pub struct Opened {
    directory: PathBuf,
    journal: Journal,
    view: View,
    recent: BTreeMap<EventId, Appended>,
    lock: File,
}

/// What readers see: always whole up to some event.
struct View {
    state: State,
    index: Index,
    projection: Projection,
    /// The records behind the last sealed block.
    tail: Vec<Record>,
    /// Where each of them, and the one after the last, begins.
    starts: Vec<Position>,
}

impl Opened {
    /// Opens a store whose lock is held.
    ///
    /// # Errors
    /// When there is none, or it is damaged in a way that needs a decision.
    pub fn new(
        directory: &Path,
        open: Open,
        lock: File,
        mut notice: impl FnMut(String),
    ) -> Result<Self, Error> {
        let journal_directory = directory.join(JOURNAL);
        if journal::segments(&journal_directory)?.is_empty() {
            if open == Open::Existing {
                return Err(Error::Missing(directory.to_owned()));
            }
            // Whatever index there is belongs to another log.
            remove_database(directory, INDEX)?;
            remove_database(directory, PROJECTION)?;
            Journal::create(&journal_directory, clock::log_id())?;
        }
        let (view, journal, torn) = match open_view(directory, &mut notice) {
            Ok(opened) => opened,
            Err(Error::Store(error)) => {
                notice(format!(
                    "the store in {} can't be used ({}); building it again from the journal",
                    directory.display(),
                    chain(&error)
                ));
                remove_database(directory, INDEX)?;
                remove_database(directory, PROJECTION)?;
                open_view(directory, &mut notice)?
            }
            Err(error) => return Err(error),
        };
        if let Some(torn) = torn {
            notice(format!(
                "the journal ended in {} bytes of a record that was never acknowledged; they are kept in {}",
                torn.bytes,
                torn.kept.display()
            ));
        }
        let recent = recent_events(&view)?;
        let mut opened = Opened {
            directory: directory.to_owned(),
            journal,
            view,
            recent,
            lock,
        };
        if opened.view.state.head.seq == Seq::NONE {
            opened.create_log()?;
        }
        Ok(opened)
    }

    fn create_log(&mut self) -> Result<(), Error> {
        let created = LogCreated {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let draft = Draft::new(Subject::Cloud, created).map_err(|source| Error::Payload {
            seq: Seq(1),
            source,
        })?;
        let writer = identity::writer();
        let record = seal(
            &draft,
            self.journal.link(),
            &BTreeMap::new(),
            &self.view.state,
            &identity::actor_here(),
            &writer,
        )?;
        let positions = self.journal.append(std::slice::from_ref(&record))?;
        self.view
            .take(vec![record], &positions, self.journal.position())
    }
}

/// Opens index and projections and reads the journal behind them.
fn open_view(
    directory: &Path,
    notice: &mut impl FnMut(String),
) -> Result<(View, Journal, Option<Torn>), Error> {
    let journal_directory = directory.join(JOURNAL);
    let rebuilt = !directory.join(INDEX).exists() || !directory.join(PROJECTION).exists();
    let index = Index::open(&directory.join(INDEX))?;
    let projection = Projection::open(&directory.join(PROJECTION))?;
    let stored = projection.load()?;
    let (known, next) = match stored {
        Some(stored) => (stored.state, Some(stored.next)),
        None => (State::default(), None),
    };
    let mut reader = match index.sealed() {
        Some(sealed) => Reader::from_position(&journal_directory, sealed.next, sealed.link),
        None => Reader::from_start(&journal_directory)?,
    };
    // The projections may be behind the index, never told more than the journal: fold what they lack.
    let sealed_seq = index.sealed().map_or(Seq::NONE, |sealed| sealed.link.seq);
    let mut view = View {
        state: known,
        index,
        projection,
        tail: Vec::new(),
        starts: vec![reader.position()],
    };
    if view.state.head.seq < sealed_seq {
        view.catch_up_projection(&journal_directory, next, sealed_seq)?;
    }
    let projected = view.state.head;
    let mut touched = BTreeSet::new();
    let mut count = 0_u64;
    while let Some((start, record)) = reader.next()? {
        if record.header.seq == projected.seq && record.hash != projected.hash {
            return Err(store::Error::Contradiction {
                path: directory.join(PROJECTION),
                what: format!(
                    "its head, event {}, is another one in the journal",
                    projected.seq
                ),
            }
            .into());
        }
        if record.header.seq > projected.seq {
            touched.extend(view.state.apply(&entry(&record)?));
        }
        view.push(record, start, reader.position())?;
        count += 1;
        if count.is_multiple_of(65_536) {
            notice(format!("read {count} events of the journal"));
        }
    }
    let link = reader.link();
    let end = link.map_or(Seq::NONE, |link| link.seq);
    if projected.seq > end {
        return Err(Error::TailLost {
            path: directory.to_owned(),
            journal: end,
            projection: projected.seq,
        });
    }
    let (journal, torn) = Journal::open(&journal_directory, &reader)?;
    if projected.seq == Seq::NONE && end > Seq::NONE {
        view.projection.replace(&view.state, journal.position())?;
        if rebuilt {
            notice(format!(
                "built the store in {} again from the journal: {end} events",
                directory.display()
            ));
        }
    } else if !touched.is_empty() {
        view.projection
            .save(&view.state, &touched, journal.position())?;
    }
    Ok((view, journal, torn))
}

impl View {
    /// Folds the events that the projections lack up to the index's last sealed one.
    fn catch_up_projection(
        &mut self,
        journal: &Path,
        next: Option<Position>,
        to: Seq,
    ) -> Result<(), Error> {
        let head = self.state.head;
        let mut reader = match (next, head.log) {
            (Some(next), Some(log)) => Reader::from_position(
                journal,
                next,
                Link {
                    log,
                    epoch: head.epoch,
                    seq: head.seq,
                    hash: head.hash,
                },
            ),
            _ => {
                self.state = State::default();
                Reader::from_start(journal)?
            }
        };
        while self.state.head.seq < to {
            let Some((_, record)) = reader.next()? else {
                break;
            };
            self.state.apply(&entry(&record)?);
        }
        self.projection.replace(&self.state, reader.position())?;
        Ok(())
    }

    /// Adds a record to the tail; seals a block when it is full.
    fn push(&mut self, record: Record, start: Position, next: Position) -> Result<(), Error> {
        if let Some(last) = self.starts.last_mut() {
            *last = start;
        }
        self.tail.push(record);
        self.starts.push(next);
        if self.tail.len() as u64 == BLOCK_EVENTS {
            self.index.seal(&self.tail, next)?;
            self.tail.clear();
            self.starts = vec![next];
        }
        Ok(())
    }

    /// Takes records that are durable: folds, indexes, stores.
    fn take(
        &mut self,
        records: Vec<Record>,
        starts: &[Position],
        next: Position,
    ) -> Result<(), Error> {
        let mut touched: BTreeSet<Key> = BTreeSet::new();
        let ends = starts.iter().skip(1).chain(std::iter::once(&next));
        for ((record, start), end) in records.into_iter().zip(starts).zip(ends) {
            touched.extend(self.state.apply(&entry(&record)?));
            self.push(record, *start, *end)?;
        }
        self.projection.save(&self.state, &touched, next)?;
        Ok(())
    }

    fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let terms = filter.terms();
        let wanted = filter.newest.unwrap_or(usize::MAX);
        let mut found: Vec<Record> = Vec::new();
        for record in self.tail.iter().rev() {
            if found.len() < wanted && filter.takes(&record.header) {
                found.push(record.clone());
            }
        }
        let beyond = |number: u64| {
            let first = Seq(number * BLOCK_EVENTS + 1);
            let last = Seq((number + 1) * BLOCK_EVENTS);
            filter.to.is_some_and(|to| first > to) || filter.from.is_some_and(|from| last < from)
        };
        if found.len() < wanted && self.index.block_count() > 0 {
            for (number, bitmap) in self.blocks(&terms, filter)? {
                if beyond(number) {
                    continue;
                }
                for (position, record) in self.index.block(number)?.into_iter().enumerate().rev() {
                    let marked = bitmap & (1 << position) != 0;
                    if marked && found.len() < wanted && filter.within(&record.header) {
                        found.push(record);
                    }
                }
                if found.len() >= wanted {
                    break;
                }
            }
        }
        found.reverse();
        Ok(found)
    }

    /// The blocks to look into, newest first: only those between the bounds when nothing else is asked.
    fn blocks(&self, terms: &store::Terms, filter: &Filter) -> Result<Vec<(u64, u64)>, Error> {
        if !terms.is_empty() {
            return Ok(self.index.find(terms)?);
        }
        let first = filter
            .from
            .map_or(0, |from| from.0.saturating_sub(1) / BLOCK_EVENTS);
        let end = filter.to.map_or(self.index.block_count(), |to| {
            (to.0.saturating_sub(1) / BLOCK_EVENTS + 1).min(self.index.block_count())
        });
        Ok((first..end)
            .rev()
            .map(|number| (number, u64::MAX))
            .collect())
    }
}

fn remove_database(directory: &Path, name: &str) -> Result<(), Error> {
    let path = directory.join(name);
    match std::fs::remove_dir_all(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Directory { path, source }),
    }
}

fn recent_events(view: &View) -> Result<BTreeMap<EventId, Appended>, Error> {
    let mut recent = BTreeMap::new();
    let mut note = |record: &Record| {
        recent.insert(
            record.header.event,
            Appended {
                seq: record.header.seq,
                hash: record.hash,
            },
        );
    };
    let blocks = view.index.block_count();
    for number in blocks.saturating_sub(RECENT_BLOCKS)..blocks {
        view.index.block(number)?.iter().for_each(&mut note);
    }
    view.tail.iter().for_each(&mut note);
    Ok(recent)
}

type Answer = oneshot::Sender<Result<Vec<Appended>, Error>>;

struct Request {
    drafts: Vec<Draft>,
    condition: Condition,
    actor: tallybook_events::actor::Actor,
    answer: Answer,
}

/// The store's holder: answers this process and, over the socket, others.
pub struct Holder {
    view: Arc<RwLock<View>>,
    requests: mpsc::Sender<Request>,
    head: watch::Receiver<Seq>,
    writer: std::thread::JoinHandle<()>,
    server: tokio::task::JoinHandle<()>,
}

/// What the socket's server needs of the holder.
#[derive(Clone)]
pub(super) struct Desk {
    view: Arc<RwLock<View>>,
    requests: mpsc::Sender<Request>,
    head: watch::Receiver<Seq>,
}

impl Holder {
    /// Starts the writer and the server of the socket.
    ///
    /// # Errors
    /// When the socket or the thread can't be made.
    pub fn serve(opened: Opened) -> Result<Self, Error> {
        let Opened {
            directory,
            journal,
            view,
            recent,
            lock,
        } = opened;
        let (requests, queue) = mpsc::channel(QUEUE_LEN);
        let (head_sender, head) = watch::channel(view.state.head.seq);
        let view = Arc::new(RwLock::new(view));
        let writer = WriterThread {
            journal,
            view: Arc::clone(&view),
            recent,
            queue,
            head: head_sender,
            identity: identity::writer(),
            _lock: lock,
        };
        let failed = |source| Error::Directory {
            path: directory.clone(),
            source,
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        let desk = Desk {
            view: Arc::clone(&view),
            requests: requests.clone(),
            head: head.clone(),
        };
        let server = socket::serve(&directory, desk).map_err(failed)?;
        Ok(Holder {
            view,
            requests,
            head,
            writer: thread,
            server,
        })
    }

    fn desk(&self) -> Desk {
        Desk {
            view: Arc::clone(&self.view),
            requests: self.requests.clone(),
            head: self.head.clone(),
        }
    }

    pub(super) async fn append(
        &self,
        drafts: Vec<Draft>,
        condition: Condition,
        actor: tallybook_events::actor::Actor,
    ) -> Result<Vec<Appended>, Error> {
        self.desk().append(drafts, condition, actor).await
    }

    pub(super) fn state(&self) -> State {
        self.desk().state()
    }

    pub(super) fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        self.desk().records(filter)
    }

    pub(super) async fn wait_beyond(&self, seq: Seq) {
        self.desk().wait_beyond(seq).await;
    }

    /// Ends the server and the writer, and lets sled write what it holds back.
    pub(super) async fn close(self) {
        self.server.abort();
        let Holder {
            view,
            requests,
            head,
            writer,
            server,
        } = self;
        drop((requests, head));
        // The server's tasks hold senders of the queue: the writer ends once they are gone.
        let _cancelled = server.await;
        let _flushed = tokio::task::spawn_blocking(move || {
            let _ended = writer.join();
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            let _flushed = view.index.flush();
            let _flushed = view.projection.flush();
        })
        .await;
    }
}

impl Desk {
    pub(super) async fn append(
        &self,
        drafts: Vec<Draft>,
        condition: Condition,
        actor: tallybook_events::actor::Actor,
    ) -> Result<Vec<Appended>, Error> {
        let (answer, wait) = oneshot::channel();
        let request = Request {
            drafts,
            condition,
            actor,
            answer,
        };
        let gone = || Error::Journal(journal::Error::Stopped);
        self.requests.send(request).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    pub(super) fn state(&self) -> State {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .state
            .clone()
    }

    pub(super) fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .records(filter)
    }

    pub(super) async fn wait_beyond(&self, seq: Seq) {
        let mut head = self.head.clone();
        let _gone = head.wait_for(|newest| *newest > seq).await;
    }
}

struct WriterThread {
    journal: Journal,
    view: Arc<RwLock<View>>,
    recent: BTreeMap<EventId, Appended>,
    queue: mpsc::Receiver<Request>,
    head: watch::Sender<Seq>,
    identity: Writer,
    _lock: File,
}

/// The appends that share one fdatasync.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    links: BTreeMap<Subject, (Seq, Hash)>,
    /// Whether an event of the batch may change who holds what.
    changes_claims: bool,
    answers: Vec<(Answer, Vec<Appended>)>,
}

impl WriterThread {
    fn run(mut self) {
        let mut held_over = None;
        loop {
            let Some(first) = held_over.take().or_else(|| self.queue.blocking_recv()) else {
                return;
            };
            let mut batch = Batch::default();
            let mut next = Some(first);
            while let Some(request) = next.take() {
                if batch.changes_claims && request.condition != Condition::none()
                    || conflicts(&request.condition, &batch)
                {
                    // What it depends on is in this batch: decide once that is durable.
                    held_over = Some(request);
                    break;
                }
                self.admit(request, &mut batch);
                if batch.answers.len() < BATCH_MAX {
                    next = self.queue.try_recv().ok();
                }
            }
            if !self.commit(batch) {
                return;
            }
        }
    }

    /// Decides one append and adds it to the batch, or answers with the refusal.
    fn admit(&mut self, request: Request, batch: &mut Batch) {
        let repeated: Option<Vec<Appended>> = request
            .drafts
            .iter()
            .map(|draft| self.recent.get(&draft.event).copied())
            .collect();
        if let Some(appended) = repeated.filter(|appended| !appended.is_empty()) {
            let _gone = request.answer.send(Ok(appended));
            return;
        }
        match self.place(&request, batch) {
            Ok(appended) => batch.answers.push((request.answer, appended)),
            Err(error) => {
                let _gone = request.answer.send(Err(error));
            }
        }
    }

    fn place(&self, request: &Request, batch: &mut Batch) -> Result<Vec<Appended>, Error> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        check(&request.condition, &view.state)?;
        let mut records: Vec<Record> = Vec::with_capacity(request.drafts.len());
        let mut links = batch.links.clone();
        let mut link = match batch.records.last() {
            Some(last) => Link {
                log: last.header.log,
                epoch: last.header.epoch,
                seq: last.header.seq,
                hash: last.hash,
            },
            None => self.journal.link(),
        };
        let mut changes_claims = false;
        for draft in &request.drafts {
            let record = seal(
                draft,
                link,
                &links,
                &view.state,
                &request.actor,
                &self.identity,
            )?;
            link.seq = record.header.seq;
            link.hash = record.hash;
            links.insert(draft.subject.clone(), (link.seq, link.hash));
            changes_claims |= draft.kind.starts_with("operation.");
            records.push(record);
        }
        let appended = records
            .iter()
            .map(|record| Appended {
                seq: record.header.seq,
                hash: record.hash,
            })
            .collect();
        batch.changes_claims |= changes_claims;
        batch.records.extend(records);
        batch.links = links;
        Ok(appended)
    }

    /// Makes a batch durable, then visible, then answers. `false` when the store can't go on: the events are safe
    /// in the journal, and the next opening builds the store again.
    fn commit(&mut self, batch: Batch) -> bool {
        if batch.records.is_empty() {
            return true;
        }
        let positions = match self.journal.append(&batch.records) {
            Ok(positions) => positions,
            Err(error) => {
                refuse(batch, error);
                return true;
            }
        };
        // Crash boundary: durable and not yet folded; the next opening folds it from the journal.
        for record in &batch.records {
            self.recent.insert(
                record.header.event,
                Appended {
                    seq: record.header.seq,
                    hash: record.hash,
                },
            );
        }
        let newest = self.journal.link().seq;
        let taken = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            view.take(batch.records, &positions, self.journal.position())
        };
        if let Err(error) = &taken {
            tracing::error!("the store could not take durable events: {}", chain(error));
        }
        for (answer, appended) in batch.answers {
            let _gone = answer.send(Ok(appended));
        }
        self.head.send_replace(newest);
        taken.is_ok()
    }
}

/// Answers every append of a batch with an error: the first with what happened, the others that it did.
fn refuse(batch: Batch, error: journal::Error) {
    let text = chain(&error);
    let mut first = Some(error);
    for (answer, _) in batch.answers {
        let error = match first.take() {
            Some(error) => Error::Journal(error),
            None => Error::Holder(text.clone()),
        };
        let _gone = answer.send(Err(error));
    }
}

/// Whether a condition looks at something that the batch changes.
fn conflicts(condition: &Condition, batch: &Batch) -> bool {
    condition.unchanged.as_ref().is_some_and(|(subjects, _)| {
        subjects
            .iter()
            .any(|subject| batch.links.contains_key(subject))
    })
}

fn check(condition: &Condition, state: &State) -> Result<(), Refusal> {
    if let Some((operation, claim)) = condition.held {
        let holds = state
            .operations
            .get(&operation)
            .is_some_and(|known| known.first == claim && !known.status.is_final());
        if !holds {
            return Err(Refusal::ClaimLost(operation));
        }
    }
    if let Some((subjects, except)) = &condition.unclaimed {
        for subject in subjects {
            let holder = state.claims.get(subject).filter(|id| Some(**id) != *except);
            let Some(holder) = holder else { continue };
            let known = state.operations.get(holder);
            return Err(Refusal::Claimed {
                subject: subject.clone(),
                holder: *holder,
                summary: known.map_or_else(String::new, |known| known.intent.summary()),
                status: known
                    .map_or("unknown", |known| known.status.label())
                    .to_owned(),
            });
        }
    }
    if let Some((subjects, since)) = &condition.unchanged {
        for subject in subjects {
            if let Some(link) = state.links.get(subject)
                && link.seq > *since
            {
                return Err(Refusal::Changed {
                    subject: subject.clone(),
                    seq: link.seq,
                });
            }
        }
    }
    Ok(())
}

/// Gives a draft its place behind `link`.
fn seal(
    draft: &Draft,
    link: Link,
    links: &BTreeMap<Subject, (Seq, Hash)>,
    state: &State,
    actor: &tallybook_events::actor::Actor,
    writer: &Writer,
) -> Result<Record, Error> {
    let malformed = |what: String| Error::Refused(Refusal::Malformed(what));
    match Event::decode(&draft.kind, draft.kind_version, &draft.payload.0) {
        Ok(Event::Unknown(Blob(_))) => {
            return Err(malformed(format!(
                "this program does not write events of kind {:?} version {}",
                draft.kind, draft.kind_version
            )));
        }
        Ok(event) if event.outcome() != draft.outcome => {
            return Err(malformed(format!("{} can't have that outcome", draft.kind)));
        }
        Ok(_) => {}
        Err(error) => return Err(malformed(chain(&error))),
    }
    let (subject_previous_seq, subject_previous) = links
        .get(&draft.subject)
        .copied()
        .or_else(|| {
            state
                .links
                .get(&draft.subject)
                .map(|link| (link.seq, link.hash))
        })
        .unwrap_or((Seq::NONE, Hash::ZERO));
    let header = Header {
        log: link.log,
        epoch: link.epoch,
        seq: link.seq.next(),
        previous: link.hash,
        subject: draft.subject.clone(),
        subject_previous_seq,
        subject_previous,
        event: draft.event,
        kind: draft.kind.clone(),
        kind_version: draft.kind_version,
        time_unix_us: clock::now_unix_us(),
        actor: actor.clone(),
        writer: writer.clone(),
        claim: draft.claim,
        operation: draft.operation,
        step: draft.step,
        attempt: draft.attempt,
        cause: draft.cause,
        outcome: draft.outcome,
        commitment: Hash::ZERO,
    };
    Record::seal(header, clock::random(), draft.payload.0.clone())
        .map_err(|error| malformed(chain(&error)))
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
