//! What readers of the log see: the live state, and the events, by the databases where they can be used and by the
//! journal where they can't. Always whole up to some event.
//!
//! It never decides what becomes an event, and the loss of a database never loses an answer. What was wrong with
//! the databases it keeps, for `verify`. The index is opened when the first question needs it: most do not.

mod question;
mod reindex;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tallybook_events::event::Event;
use tallybook_events::ids::{Hash, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::state::{CODE_VERSION, Key, OperationSummary, State};

use super::anchor::{Anchor, Anchors, HeadFile};
use super::open::Notify;
use super::{Error, Filter, Open, chain};
use crate::journal::Position;
use crate::store::{self, BLOCK_EVENTS, Block, Ends, Index, Located, Place, Projection, Staged};
use question::{Question, newest_of, summary_in};

pub(super) use question::{from_journal, hash_in_journal};

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
    /// It can't be used: then the journal answers, and what else the index would know is remembered, where the journal
    /// could be read for that.
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
    /// Whether these are all that there are: what is not among them is not in the log. Only without the index.
    remembers_all: bool,
    /// The block that the next record goes into. The indexer has it while it works.
    block: Block,
    /// How many blocks readers may ask the index for.
    sealed_blocks: u64,
    /// The records behind these.
    tail: VecDeque<Arc<Located>>,
    /// Those of them that the indexer has not taken yet.
    queue: Vec<Arc<Located>>,
    /// What the projections do not have yet.
    unsaved: BTreeSet<Key>,
    /// Whether the databases are left alone: what room there is, is for the journal.
    rests: bool,
    /// Where the newest record is.
    ends: Ends,
    /// `None` where it can't be written.
    head_file: Option<HeadFile>,
    /// The segment that the newest record is in.
    segment: Seq,
}

/// An answer, or who has to give it.
pub(super) enum Answer {
    /// The index.
    Index(Question),
    /// The journal, which needs no lock: up to this event.
    Journal(Seq),
}

/// What the indexer has to bring into the databases.
pub(super) struct Work {
    pub(super) staged: Option<Staged>,
    pub(super) index: Option<Arc<Index>>,
    pub(super) block: Block,
    pub(super) queue: Vec<Arc<Located>>,
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
            remembers_all: false,
            block: Block::default(),
            sealed_blocks: 0,
            tail: VecDeque::new(),
            queue: Vec::new(),
            unsaved: BTreeSet::new(),
            rests: false,
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

    /// Stores all of the state as it is.
    pub(super) fn save_whole(&mut self) -> Result<(), store::Error> {
        self.save(true, self.ends)
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
    pub(super) fn write_head(&mut self) {
        let segment = self.ends.next.segment;
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
        if let Event::OperationIntended(intended) = &entry.event {
            for operation in intended.intent.takes_back() {
                self.recall(*operation)?;
            }
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
                let record = Arc::new(Located::of(record, *start, *end));
                self.tail.push_back(Arc::clone(&record));
                self.queue.push(record);
            }
        }
        let at = starts.last().copied().unwrap_or(self.ends.at);
        self.ends = Ends { at, next };
        Ok(())
    }

    /// How many records wait for the indexer, where it does not rest.
    pub(super) fn waiting(&self) -> usize {
        if self.rests { 0 } else { self.queue.len() }
    }

    /// Has the databases left alone, or not any more.
    pub(super) fn rest(&mut self, rests: bool) {
        self.rests = rests;
    }

    /// What the indexer has to do now; `None` when nothing.
    pub(super) fn work(&mut self) -> Option<Work> {
        if self.rests
            || self.queue.is_empty() && (self.unsaved.is_empty() || self.projection.is_none())
        {
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
        // Opening it took in what is behind the sealed blocks.
        if let Some(link) = self.links.get(subject) {
            return Ok(Some(*link));
        }
        let found = match &self.index {
            Slot::Open(index) => newest_of(&self.directory, index, self.sealed_blocks, subject),
            Slot::Closed | Slot::Failed => return self.remembered(None),
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
                self.remembered(self.links.get(subject).copied())
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
        let behind = self.behind(|record| record.header.operation == Some(id));
        let found = match &self.index {
            Slot::Open(index) => summary_in(&self.directory, index, self.sealed_blocks, id, behind),
            Slot::Closed | Slot::Failed => return self.remembered(known(self)),
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
                self.remembered(known(self))
            }
            Err(error) => Err(error),
        }
    }

    /// What is remembered where the index can't be asked. That there is nothing is known only where all is remembered.
    fn remembered<T>(&self, found: Option<T>) -> Result<Option<T>, Error> {
        match found.is_some() || self.remembers_all {
            true => Ok(found),
            false => Err(Error::Unknowable {
                path: self.directory.clone(),
                why: self.faults.last().cloned().unwrap_or_default(),
            }),
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
        if !matches!(self.index, Slot::Open(_)) {
            // Another one may begin like that, too.
            self.remembered(None::<()>)?;
        }
        let of_tail = self
            .tail
            .iter()
            .filter_map(|record| record.header.operation.as_ref());
        let known = self.state.operations.keys().chain(self.past.keys());
        found.extend(
            known
                .chain(of_tail)
                .filter(|id| id.short().starts_with(start)),
        );
        Ok(found)
    }

    /// Goes on without the databases; the next opening builds them again, and until then `verify` tells of it. Nothing is
    /// wrong with them where the disk is full: the next opening goes on with them.
    pub(super) fn give_up(&mut self, error: &store::Error) {
        let why = chain(error);
        let is_disk_full = error.is_disk_full();
        tracing::warn!(
            "the databases in {} can't be used ({why}); the journal answers instead, and the next start {}",
            self.directory.display(),
            match is_disk_full {
                true => "uses them again",
                false => "builds them again",
            }
        );
        if !is_disk_full {
            self.mark_for_rebuild(&why);
        }
        self.projection = None;
        if let Err(error) = self.without_index(why) {
            // What was known stays known; what has to be looked up fails where it is.
            let why = chain(&error);
            tracing::warn!("the journal can't be read either: {why}");
            self.faults.push(why);
        }
    }

    /// Has the next opening build the databases again.
    fn mark_for_rebuild(&self, why: &str) {
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
    }

    /// Lets the databases go, in good order, and nothing else take their place.
    pub(super) fn close_databases(&mut self, why: String) {
        self.flush();
        self.faults.push(why);
        self.projection = None;
        self.index = Slot::Failed;
        self.remembers_all = false;
        self.tail.clear();
        self.queue.clear();
    }

    /// Where records behind the sealed blocks are.
    fn behind(&self, wanted: impl Fn(&Located) -> bool) -> Vec<Place> {
        let wanted = self.tail.iter().filter(|record| wanted(record));
        wanted.map(|record| record.place()).collect()
    }

    /// Who answers which records there are.
    pub(super) fn answer(&mut self, filter: &Filter) -> Result<Answer, Error> {
        self.open_index()?;
        Ok(match &self.index {
            Slot::Open(index) => {
                let of_operation = filter
                    .operation
                    .filter(|id| *filter == Filter::of_operation(*id));
                let expected = of_operation.and_then(|id| {
                    let known = self.state.operations.get(&id)?;
                    Some((id, known.events, known.last))
                });
                Answer::Index(Question {
                    index: Arc::clone(index),
                    blocks: self.sealed_blocks,
                    behind: self.behind(|record| filter.takes(&record.header)),
                    expected,
                })
            }
            Slot::Closed | Slot::Failed => Answer::Journal(self.state.head.seq),
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A full disk is no fault of the databases: the next start has no reason to build them again.
    #[test]
    fn a_full_disk_gives_no_reason_to_build_the_databases_again() {
        let store = tempfile::tempdir().unwrap();
        let cases = [
            (io::ErrorKind::StorageFull, false),
            (io::ErrorKind::InvalidData, true),
        ];
        for (kind, is_marked) in cases {
            let notify: Notify = Arc::new(|_| {});
            let anchors = Anchors::new(None);
            let mut view = View::new(store.path(), Open::Existing, anchors, notify, None);
            view.give_up(&store::Error::Database {
                path: store.path().join("index"),
                source: sled::Error::Io(io::Error::from(kind)),
            });
            assert_eq!(store.path().join(REBUILD).exists(), is_marked);
            assert!(matches!(view.index, Slot::Failed));
            // There is no journal to look into.
            let asked = view.link(&Subject::Cloud);
            assert!(matches!(asked, Err(Error::Unknowable { .. })), "{asked:?}");
        }
    }
}
