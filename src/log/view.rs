//! What readers of the log see: the live state, and the events, by the databases where they can be used and by the
//! journal where they can't. Always whole up to some event.
//!
//! It never decides what becomes an event, and the loss of a database never loses an answer. What was wrong with
//! the databases it keeps, for `verify`. The index is opened when the first question needs it: most do not.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tallybook_events::event::Event;
use tallybook_events::gap::Gap;
use tallybook_events::ids::{Hash, OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::state::{CODE_VERSION, Key, OperationSummary, State};

use super::anchor::{Anchor, Anchors, HeadFile};
use super::open::{Notify, remove_database};
use super::{Error, Filter, INDEX, JOURNAL, Open, chain, entry};
use crate::journal::{self, Fetch, Link, Position, Reader};
use crate::store::{
    self, BLOCK_EVENTS, Block, End, Ends, Index, Place, Projection, Sealed, Staged,
};

/// Its presence tells the next opening to build the databases again.
pub(super) const REBUILD: &str = "rebuild";
/// Where a journal begins.
const START: Position = Position {
    segment: Seq(1),
    offset: 0,
};
/// How many subjects' and ended operations' newest events are remembered beside the index.
const REMEMBERED_MAX: usize = 4096;

/// The index, as far as it was needed.
enum Slot {
    Closed,
    Open(Arc<Index>),
    /// It can't be used: then the journal answers, and what else the index would know is all remembered.
    Failed,
}

pub(super) struct View {
    /// The live state.
    pub(super) state: State,
    directory: PathBuf,
    open: Open,
    anchors: Anchors,
    notify: Notify,
    projection: Option<Projection>,
    index: Slot,
    /// Why they can't be used, and whatever else was met that is not as it was written.
    pub(super) faults: Vec<String>,
    /// The state that the projections hold where it is not what was written there.
    pub(super) stored: Option<Box<State>>,
    /// The newest event of subjects: of all that have one behind the sealed blocks, and of some others.
    links: HashMap<Subject, (Seq, Hash)>,
    /// Operations that are over, likewise.
    past: BTreeMap<OperationId, OperationSummary>,
    /// The block that the next record goes into. The indexer has it while it works.
    block: Block,
    /// How many blocks readers may ask the index for.
    sealed_blocks: u64,
    /// The records behind these.
    tail: VecDeque<Arc<Record>>,
    /// Those of them that the indexer has not taken yet, each with where it begins and ends.
    queue: Vec<(Arc<Record>, Position, Position)>,
    /// What the projections do not have yet.
    unsaved: BTreeSet<Key>,
    /// Where the newest record is.
    ends: Ends,
    /// `None` where it can't be written.
    head_file: Option<HeadFile>,
    /// The segment that the newest record is in.
    segment: Seq,
}

/// An answer, or who has to give it.
pub(super) enum Answer {
    /// These blocks of the index, and these records behind them.
    Index(Arc<Index>, u64, Vec<Arc<Record>>),
    /// The journal, which needs no lock: up to this event.
    Journal(Seq),
}

/// What the indexer has to bring into the databases.
pub(super) struct Work {
    pub(super) staged: Option<Staged>,
    pub(super) index: Option<Arc<Index>>,
    pub(super) block: Block,
    pub(super) queue: Vec<(Arc<Record>, Position, Position)>,
    /// The newest event that it is about.
    pub(super) seq: Seq,
}

impl View {
    pub(super) fn new(
        directory: &Path,
        open: Open,
        anchors: Anchors,
        notify: Notify,
        projection: Option<Projection>,
    ) -> Self {
        View {
            state: State::default(),
            directory: directory.to_owned(),
            open,
            anchors,
            notify,
            projection,
            index: Slot::Closed,
            faults: Vec::new(),
            stored: None,
            links: HashMap::new(),
            past: BTreeMap::new(),
            block: Block::default(),
            sealed_blocks: 0,
            tail: VecDeque::new(),
            queue: Vec::new(),
            unsaved: BTreeSet::new(),
            ends: Ends {
                at: START,
                next: START,
            },
            head_file: None,
            segment: Seq::NONE,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stores all of the state, or what changed of it: what was read at a start.
    pub(super) fn save(&mut self, whole: bool, ends: Ends) -> Result<(), store::Error> {
        self.ends = ends;
        let unsaved = std::mem::take(&mut self.unsaved);
        match &mut self.projection {
            Some(projection) if whole => projection.replace(&self.state, ends),
            Some(projection) if !unsaved.is_empty() => projection.save(&self.state, &unsaved, ends),
            Some(_) | None => Ok(()),
        }
    }

    /// Begins to keep in the file `head` how far the log goes. The newest record is in this segment.
    pub(super) fn keep_head(&mut self, segment: Seq) {
        self.segment = segment;
        let Some(anchor) = Anchor::of(&self.state.head) else {
            return;
        };
        match HeadFile::open(&self.directory, &anchor) {
            Ok(file) => self.head_file = Some(file),
            Err(error) => tracing::warn!(
                "{} can't say where the log ends: {error}",
                self.directory.join(super::anchor::HEAD).display()
            ),
        }
    }

    /// Says in the file `head` where the log ends. Costs no sync but where a new segment cost some.
    fn write_head(&mut self, segment: Seq) {
        let (Some(file), Some(anchor)) = (&mut self.head_file, Anchor::of(&self.state.head)) else {
            return self.keep_head(segment);
        };
        let written = file
            .write(&anchor)
            .and_then(|()| match segment == self.segment {
                true => Ok(()),
                false => file.sync(),
            });
        self.segment = segment;
        if let Err(error) = written {
            tracing::warn!(
                "{} can't say where the log ends: {error}",
                file.path().display()
            );
        }
    }

    /// Folds the next event.
    pub(super) fn fold(&mut self, entry: &Entry) -> Result<(), Error> {
        if let Event::OperationIntended(intended) = &entry.event
            && let Intent::Rollback { operation } = &intended.intent
        {
            self.recall(*operation)?;
        }
        let touched = self.state.apply(entry);
        let link = (entry.header.seq, entry.hash);
        match self.links.get_mut(&entry.header.subject) {
            Some(known) => *known = link,
            None => drop(self.links.insert(entry.header.subject.clone(), link)),
        }
        for key in &touched {
            if let Key::Operation(id) = key
                && (self.state.operations.get(id)).is_some_and(|known| !known.is_open())
                && let Some(over) = self.state.operations.remove(id)
            {
                self.past.insert(*id, over);
            }
        }
        self.unsaved.extend(touched);
        Ok(())
    }

    /// Takes records that are durable: folds them, and leaves the databases to the indexer. `starts` is where each
    /// begins, `next` where the one behind them will.
    pub(super) fn take(
        &mut self,
        records: Vec<(Record, Entry)>,
        starts: &[Position],
        next: Position,
    ) -> Result<(), Error> {
        let ends = starts.iter().skip(1).chain(std::iter::once(&next));
        for (((record, entry), start), end) in records.into_iter().zip(starts).zip(ends) {
            self.fold(&entry)?;
            if let Slot::Open(_) = self.index {
                let record = Arc::new(record);
                self.tail.push_back(Arc::clone(&record));
                self.queue.push((record, *start, *end));
            }
        }
        let at = starts.last().copied().unwrap_or(self.ends.at);
        self.ends = Ends { at, next };
        self.write_head(next.segment);
        Ok(())
    }

    /// How many records wait for the indexer.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What the indexer has to do now; `None` when nothing.
    pub(super) fn work(&mut self) -> Option<Work> {
        if self.queue.is_empty() && (self.unsaved.is_empty() || self.projection.is_none()) {
            return None;
        }
        let unsaved = std::mem::take(&mut self.unsaved);
        let staged = match &mut self.projection {
            Some(projection) => projection.stage(CODE_VERSION, &self.state, &unsaved, self.ends),
            None => {
                return Some(self.work_with(None));
            }
        };
        match staged {
            Ok(staged) => Some(self.work_with(Some(staged))),
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn work_with(&mut self, staged: Option<Staged>) -> Work {
        Work {
            staged,
            index: match &self.index {
                Slot::Open(index) => Some(Arc::clone(index)),
                Slot::Closed | Slot::Failed => None,
            },
            block: std::mem::take(&mut self.block),
            queue: std::mem::take(&mut self.queue),
            seq: self.state.head.seq,
        }
    }

    /// The indexer did what it had to.
    pub(super) fn indexed_up_to(&mut self, block: Block, sealed_blocks: u64) {
        self.block = block;
        self.sealed_blocks = self.sealed_blocks.max(sealed_blocks);
        let sealed = Seq(self.sealed_blocks * BLOCK_EVENTS);
        while (self.tail.front()).is_some_and(|record| record.header.seq <= sealed) {
            self.tail.pop_front();
        }
        if matches!(self.index, Slot::Open(_)) {
            if self.links.len() > REMEMBERED_MAX {
                self.links.retain(|_, (seq, _)| *seq > sealed);
            }
            if self.past.len() > REMEMBERED_MAX {
                self.past.retain(|_, known| known.last > sealed);
            }
        }
    }

    /// The newest event of a subject.
    pub(super) fn link(&mut self, subject: &Subject) -> Result<Option<(Seq, Hash)>, Error> {
        if let Some(link) = self.links.get(subject) {
            return Ok(Some(*link));
        }
        self.open_index()?;
        let found = match &self.index {
            Slot::Open(index) => newest_of(&self.directory, index, self.sealed_blocks, subject),
            Slot::Closed | Slot::Failed => return Ok(self.links.get(subject).copied()),
        };
        match found {
            Ok(found) => {
                if let Some(link) = found {
                    self.links.insert(subject.clone(), link);
                }
                Ok(found)
            }
            Err(Error::Store(error)) => {
                self.give_up(&error);
                Ok(self.links.get(subject).copied())
            }
            Err(error) => Err(error),
        }
    }

    /// How an operation stands, also when it is over; `None` when there is none of this id.
    pub(super) fn operation(&mut self, id: OperationId) -> Result<Option<OperationSummary>, Error> {
        let known = |view: &View| {
            let open = view.state.operations.get(&id);
            open.or_else(|| view.past.get(&id)).cloned()
        };
        if let Some(found) = known(self) {
            return Ok(Some(found));
        }
        self.open_index()?;
        let found = match &self.index {
            Slot::Open(index) => summary_in(&self.directory, index, self.sealed_blocks, id),
            Slot::Closed | Slot::Failed => return Ok(known(self)),
        };
        match found {
            Ok(found) => {
                if let Some(summary) = &found {
                    self.past.insert(id, summary.clone());
                }
                Ok(found)
            }
            Err(Error::Store(error)) => {
                self.give_up(&error);
                Ok(known(self))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes an operation that is over back into the live state, for it to go on.
    fn recall(&mut self, id: OperationId) -> Result<(), Error> {
        if let Some(known) = self.operation(id)? {
            self.past.remove(&id);
            self.state.operations.entry(id).or_insert(known);
        }
        Ok(())
    }

    /// The operations whose short ids begin so.
    pub(super) fn operations_like(&mut self, start: &str) -> Result<BTreeSet<OperationId>, Error> {
        self.open_index()?;
        let mut found = match &self.index {
            Slot::Open(index) => match index.operations(start) {
                Ok(found) => found,
                Err(error) => {
                    self.give_up(&error);
                    BTreeSet::new()
                }
            },
            Slot::Closed | Slot::Failed => BTreeSet::new(),
        };
        let known = self.state.operations.keys().chain(self.past.keys());
        found.extend(known.filter(|id| id.short().starts_with(start)));
        Ok(found)
    }

    /// Opens the index, and brings it up to the newest event; builds it again where it can't be used.
    ///
    /// # Errors
    /// When the journal contradicts it in a way that needs a decision, or can't be read.
    pub(super) fn open_index(&mut self) -> Result<(), Error> {
        if !matches!(self.index, Slot::Closed) {
            return Ok(());
        }
        let path = self.directory.join(INDEX);
        let was_there = path.exists();
        let error = match self.try_index() {
            Err(Error::Store(store::Error::Held(path))) => return Err(Error::Held(path)),
            Err(Error::Store(error)) => chain(&error),
            other => {
                let events = self.state.head.seq;
                if other.is_ok() && !was_there && events.0 >= BLOCK_EVENTS {
                    self.tell(format!(
                        "built the index in {} again from the journal: {events} events",
                        path.display()
                    ));
                }
                return other;
            }
        };
        if self.open == Open::AsItIs {
            return self.without_index(error);
        }
        self.tell(format!(
            "the index in {} can't be used ({error}); building it again from the journal",
            path.display()
        ));
        let rebuilt = remove_database(&path).and_then(|()| self.try_index());
        let error = match rebuilt {
            Err(Error::Store(error)) => chain(&error),
            Err(error @ Error::Directory { .. }) => chain(&error),
            other => return other,
        };
        self.tell(format!(
            "the index in {} can't be built ({error}); reading the journal instead",
            path.display()
        ));
        self.without_index(error)
    }

    fn try_index(&mut self) -> Result<(), Error> {
        let journal = self.directory.join(JOURNAL);
        let mut known = None;
        let index = Index::open(&self.directory.join(INDEX), |link| known = Some(link));
        if let Some(link) = known
            && self.anchors.is_of(link.log)
            && link.seq > self.state.head.seq
        {
            return Err(Error::TailLost {
                path: self.directory.clone(),
                journal: self.state.head.seq,
                projection: link.seq,
            });
        }
        let index = index?;
        let sealed = index.sealed();
        self.confirm(sealed)?;
        let mut reader = match sealed {
            Some(sealed) => Reader::from_position(&journal, sealed.next, sealed.link),
            None => Reader::from_start(&journal)?,
        };
        let mut block = match sealed {
            Some(sealed) => Block::behind(sealed.filled(), Some(sealed.end())),
            None => Block::behind(Seq::NONE, None),
        };
        let start = reader.position();
        let mut behind: VecDeque<Arc<Record>> = VecDeque::new();
        let mut bridged = 0;
        while (reader.link()).is_none_or(|link| link.seq < self.state.head.seq) {
            let next = reader.next()?;
            for gap in reader.gaps().iter().skip(bridged) {
                let log = reader
                    .link()
                    .map(|link| Link::end(link.log, link.epoch, Seq::NONE, Hash::ZERO));
                let Some(before) = log else { continue };
                bridge(&index, &mut block, gap, (before, start, start))?;
            }
            bridged = reader.gaps().len();
            let Some((at, record)) = next else {
                break;
            };
            block.push(&record, at, reader.position());
            behind.push_back(Arc::new(record));
            if block.is_full() {
                index.seal(&block)?;
                block = block.following();
                if index.block_count().is_multiple_of(1024) {
                    let events = index.block_count() * BLOCK_EVENTS;
                    self.tell(format!("indexed {events} events of the journal"));
                }
            }
            let sealed = Seq(index.block_count() * BLOCK_EVENTS);
            while (behind.front()).is_some_and(|record| record.header.seq <= sealed) {
                behind.pop_front();
            }
        }
        if let Some(link) = reader.link()
            && link.seq < self.state.head.seq
        {
            return Err(Error::TailLost {
                path: self.directory.clone(),
                journal: link.seq,
                projection: self.state.head.seq,
            });
        }
        for record in &behind {
            let link = (record.header.seq, record.hash);
            self.links.insert(record.header.subject.clone(), link);
        }
        self.block = block;
        self.sealed_blocks = index.block_count();
        self.tail = behind;
        self.index = Slot::Open(Arc::new(index));
        Ok(())
    }

    /// Holds what the index says was here against the journal, before anything relies on it.
    ///
    /// An index of another log, or one that was laid out by a journal with other places, is built again. A journal
    /// that says something else there is an error that needs a decision.
    fn confirm(&self, sealed: Option<Sealed>) -> Result<(), Error> {
        let directory = &self.directory;
        let Some(sealed) = sealed else {
            return Ok(());
        };
        let contradiction = |what: &str| {
            Err(Error::Store(store::Error::Contradiction {
                path: directory.join(INDEX),
                what: what.to_owned(),
            }))
        };
        if !self.anchors.is_of(sealed.link.log) {
            return contradiction("it belongs to another log");
        }
        let seq = sealed.link.seq;
        if seq == Seq::NONE {
            // Nothing but a gap is sealed.
            return Ok(());
        }
        if (self.anchors.up_to(seq)).any(|(known, hash)| known == seq && hash != sealed.link.hash) {
            return contradiction("it holds another event than was recorded");
        }
        let journal = directory.join(JOURNAL);
        if journal::link_at(&journal, sealed.at)? == Some((sealed.link.hash, sealed.next)) {
            return Ok(());
        }
        match hash_in_journal(directory, seq)?.1 {
            Some(hash) if hash != sealed.link.hash => Err(Error::Rewritten {
                path: directory.clone(),
                seq,
            }),
            Some(_) | None => contradiction("its events are at other places in the journal"),
        }
    }

    /// Goes on without the index: what else it would know is folded from the journal and remembered.
    fn without_index(&mut self, why: String) -> Result<(), Error> {
        self.faults.push(why);
        self.index = Slot::Failed;
        self.tail.clear();
        self.queue.clear();
        let mut state = State::default();
        let mut reader = Reader::from_start(&self.directory.join(JOURNAL))?;
        let mut links = HashMap::new();
        while state.head.seq < self.state.head.seq {
            let Some((_, record)) = reader.next()? else {
                break;
            };
            links.insert(
                record.header.subject.clone(),
                (record.header.seq, record.hash),
            );
            state.apply(&entry(&record)?);
        }
        self.links = links;
        let over = state
            .operations
            .into_iter()
            .filter(|(_, known)| !known.is_open());
        self.past = over.collect();
        Ok(())
    }

    /// Goes on without the databases; the next opening builds them again, and until then `verify` tells of it.
    pub(super) fn give_up(&mut self, error: &store::Error) {
        let why = chain(error);
        tracing::warn!(
            "the databases in {} can't be used ({why}); the journal answers instead, and the next start builds them again",
            self.directory.display(),
        );
        let marked = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.directory.join(REBUILD))
            .and_then(|mut file| writeln!(file, "{why}"));
        if let Err(error) = marked {
            // The next opening meets what was met here.
            tracing::warn!("the next start can't be told: {error}");
        }
        self.projection = None;
        if let Err(error) = self.without_index(why) {
            // What was known stays known; what has to be looked up fails where it is.
            tracing::warn!("the journal can't be read either: {}", chain(&error));
        }
    }

    /// Lets the databases go, in good order, and nothing else take their place.
    pub(super) fn close_databases(&mut self, why: String) {
        self.flush();
        self.faults.push(why);
        self.projection = None;
        self.index = Slot::Failed;
        self.tail.clear();
        self.queue.clear();
    }

    /// Who answers which records there are.
    pub(super) fn answer(&mut self, filter: &Filter) -> Result<Answer, Error> {
        self.open_index()?;
        Ok(match &self.index {
            Slot::Open(index) => {
                let of_tail = self
                    .tail
                    .iter()
                    .filter(|record| filter.takes(&record.header));
                let of_tail = of_tail.cloned().collect();
                Answer::Index(Arc::clone(index), self.sealed_blocks, of_tail)
            }
            Slot::Closed | Slot::Failed => Answer::Journal(self.state.head.seq),
        })
    }

    /// Holds all events of an operation against what the state says of it: on them depends what is done again.
    pub(super) fn check_operation(
        &self,
        filter: &Filter,
        records: &[Record],
    ) -> Result<(), store::Error> {
        let Some((id, known)) = filter
            .operation
            .filter(|id| *filter == Filter::of_operation(*id))
            .and_then(|id| Some((id, self.state.operations.get(&id)?)))
        else {
            return Ok(());
        };
        let last = records.last().map_or(Seq::NONE, |record| record.header.seq);
        // More may have come since.
        if (records.len() as u64, last) == (known.events, known.last) || known.last > last {
            return Ok(());
        }
        Err(store::Error::Contradiction {
            path: self.directory.join(INDEX),
            what: format!(
                "it has {} events of operation {} up to event {last}, not {} up to event {}",
                records.len(),
                id.short(),
                known.events,
                known.last
            ),
        })
    }

    /// Lets sled write what it holds back.
    pub(super) fn flush(&self) {
        // Durability does not depend on it: what is not written is folded again.
        if let Slot::Open(index) = &self.index {
            let _flushed = index.flush();
        }
        if let Some(projection) = &self.projection {
            let _flushed = projection.flush();
        }
        if let Some(file) = &self.head_file {
            let _synced = file.sync();
        }
    }

    fn tell(&self, what: String) {
        (self.notify)(what);
    }
}

/// Brings a gap into the index, block by block.
fn bridge(index: &Index, block: &mut Block, gap: &Gap, before: End) -> Result<(), store::Error> {
    while block.filled() < gap.last {
        block.bridge(gap.last, before);
        if block.is_full() {
            index.seal(block)?;
            *block = block.following();
        }
    }
    Ok(())
}

/// The newest event of a subject in the index's blocks.
fn newest_of(
    directory: &Path,
    index: &Index,
    blocks: u64,
    subject: &Subject,
) -> Result<Option<(Seq, Hash)>, Error> {
    let filter = Filter {
        subject: Some(subject.clone()),
        newest: Some(1),
        ..Filter::default()
    };
    let records = by_index(directory, index, blocks, &filter, Vec::new())?;
    Ok(records
        .last()
        .map(|record| (record.header.seq, record.hash)))
}

/// An operation by its events in the index's blocks.
fn summary_in(
    directory: &Path,
    index: &Index,
    blocks: u64,
    id: OperationId,
) -> Result<Option<OperationSummary>, Error> {
    let records = by_index(
        directory,
        index,
        blocks,
        &Filter::of_operation(id),
        Vec::new(),
    )?;
    let mut state = State::default();
    for record in &records {
        state.apply(&entry(record)?);
    }
    Ok(state.operations.remove(&id))
}

/// The records that a filter takes, in order: of the index's blocks, and then these.
///
/// # Errors
/// [`Error::Store`] where the index is to blame: it can't be read, or the journal has something else at its places.
pub(super) fn by_index(
    directory: &Path,
    index: &Index,
    blocks: u64,
    filter: &Filter,
    behind: Vec<Arc<Record>>,
) -> Result<Vec<Record>, Error> {
    let wanted = filter.newest.unwrap_or(usize::MAX);
    let mut found: Vec<Record> = Vec::new();
    for record in behind.iter().rev().take(wanted) {
        found.push(Record::clone(record));
    }
    let end = Seq(blocks * BLOCK_EVENTS).next();
    let end = filter.to.map_or(end, |to| to.next().min(end));
    let first = filter.from.unwrap_or(Seq(1));
    let mut fetch = Fetch::new(&directory.join(JOURNAL));
    let mut block: Option<(u64, Vec<Place>)> = None;
    'all: for stretch in index.find(&filter.terms(), end) {
        for seq in stretch?.into_iter().rev() {
            if found.len() >= wanted || seq < first {
                break 'all;
            }
            let number = (seq.0 - 1) / BLOCK_EVENTS;
            let places = match &block {
                Some((at_hand, places)) if *at_hand == number => places,
                Some(_) | None => &block.insert((number, index.places(number)?)).1,
            };
            let place = places.binary_search_by_key(&seq, |place| place.seq);
            // A lost event has no place, and no terms.
            let Some(place) = place.ok().and_then(|at| places.get(at)) else {
                continue;
            };
            let record = fetch.record(place.at, place.len)?;
            let record = record.filter(|record| place.is_of(record.header.seq, &record.hash));
            let Some(record) = record else {
                let what = format!("event {seq} is not at its place in the journal");
                return Err(index.contradiction(what).into());
            };
            if filter.within(&record.header) {
                found.push(record);
            }
        }
    }
    found.reverse();
    Ok(found)
}

/// What a filter takes, read from the journal alone, up to a position.
pub(super) fn from_journal(
    directory: &Path,
    to: Seq,
    filter: &Filter,
) -> Result<Vec<Record>, Error> {
    let wanted = filter.newest.unwrap_or(usize::MAX);
    let mut found = VecDeque::new();
    let mut reader = Reader::from_start(&directory.join(JOURNAL))?;
    while let Some((_, record)) = reader.next()? {
        if record.header.seq > to {
            break;
        }
        if filter.takes(&record.header) {
            found.push_back(record);
            if found.len() > wanted {
                found.pop_front();
            }
        }
    }
    Ok(found.into())
}

/// The hash of an event by the journal alone; `None` where the journal ends before it.
pub(super) fn hash_in_journal(directory: &Path, seq: Seq) -> Result<(Seq, Option<Hash>), Error> {
    Ok(journal::holds(&directory.join(JOURNAL), seq)?)
}
