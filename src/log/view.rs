//! What readers of the log see: the folded state, and the events, by the databases where they can be used and by
//! the journal where they can't. Always whole up to some event.
//!
//! It never decides what becomes an event, and the loss of a database never loses an answer. What was wrong with
//! the databases it keeps, for `verify`.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Key, State};

use super::anchor::{Anchor, HeadFile};
use super::{Error, Filter, JOURNAL, chain, entry};
use crate::journal::{Position, Reader};
use crate::store::{self, BLOCK_EVENTS, Index, Projection};

/// Its presence tells the next opening to build the databases again.
pub(super) const REBUILD: &str = "rebuild";

/// The two databases.
pub(super) struct Databases {
    pub(super) index: Index,
    pub(super) projection: Projection,
}

pub(super) struct View {
    pub(super) state: State,
    /// The store's directory.
    directory: PathBuf,
    /// `None` once they can't be used: then the journal answers.
    databases: Option<Databases>,
    /// Why they can't be used, and whatever else was met that is not as it was written.
    pub(super) faults: Vec<String>,
    /// The state that the projections hold where it is not what was written there.
    pub(super) stored: Option<Box<State>>,
    /// The records behind the last sealed block.
    tail: Vec<Record>,
    /// `None` where it can't be written.
    head_file: Option<HeadFile>,
    /// The segment that the newest record is in.
    segment: Seq,
}

/// An answer, or who has to give it.
pub(super) enum Answer {
    Records(Vec<Record>),
    /// The journal, which needs no lock: up to this event.
    Journal(Seq),
}

impl View {
    pub(super) fn new(directory: &Path, state: State, databases: Option<Databases>) -> Self {
        View {
            state,
            directory: directory.to_owned(),
            databases,
            faults: Vec::new(),
            stored: None,
            tail: Vec::new(),
            head_file: None,
            segment: Seq::NONE,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stores the state: all of it, or what was touched.
    pub(super) fn save_projection(
        &mut self,
        whole: bool,
        touched: &BTreeSet<Key>,
        next: Position,
    ) -> Result<(), store::Error> {
        match &mut self.databases {
            Some(databases) if whole => databases.projection.replace(&self.state, next),
            Some(databases) if !touched.is_empty() => {
                databases.projection.save(&self.state, touched, next)
            }
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

    /// Adds a record to the tail; seals a block when it is full.
    pub(super) fn push(
        &mut self,
        record: Record,
        start: Position,
        next: Position,
    ) -> Result<(), store::Error> {
        let Some(databases) = &mut self.databases else {
            return Ok(());
        };
        self.tail.push(record);
        if self.tail.len() as u64 == BLOCK_EVENTS {
            databases.index.seal(&self.tail, start, next)?;
            self.tail.clear();
        }
        Ok(())
    }

    /// Takes records that are durable: folds, indexes, stores. `starts` is where each begins, `next` where the one
    /// behind them will.
    ///
    /// The databases may fail; the events are in the journal all the same and count.
    pub(super) fn take(
        &mut self,
        records: Vec<Record>,
        starts: &[Position],
        next: Position,
    ) -> Result<(), Error> {
        let mut touched: BTreeSet<Key> = BTreeSet::new();
        for record in &records {
            touched.extend(self.state.apply(&entry(record)?));
        }
        self.write_head(next.segment);
        if let Err(error) = self.store(records, starts, next, &touched) {
            self.give_up_databases(&error);
        }
        Ok(())
    }

    fn store(
        &mut self,
        records: Vec<Record>,
        starts: &[Position],
        next: Position,
        touched: &BTreeSet<Key>,
    ) -> Result<(), store::Error> {
        let ends = starts.iter().skip(1).chain(std::iter::once(&next));
        for ((record, start), end) in records.into_iter().zip(starts).zip(ends) {
            self.push(record, *start, *end)?;
        }
        self.save_projection(false, touched, next)
    }

    /// Goes on without the databases; the next opening builds them again, and until then `verify` tells of it.
    pub(super) fn give_up_databases(&mut self, error: &store::Error) {
        if self.databases.is_none() {
            return;
        }
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
        self.close_databases(why);
    }

    /// Lets the databases go, in good order, and nothing else take their place.
    pub(super) fn close_databases(&mut self, why: String) {
        self.flush();
        self.faults.push(why);
        self.databases = None;
        self.tail = Vec::new();
    }

    /// The records that a filter takes, in order; an error of the databases where only they failed.
    pub(super) fn records(&self, filter: &Filter) -> Result<Answer, store::Error> {
        match &self.databases {
            Some(databases) => {
                let records = self.answer_by_index(databases, filter)?;
                self.check_operation(filter, &records)?;
                Ok(Answer::Records(records))
            }
            None => Ok(Answer::Journal(self.state.head.seq)),
        }
    }

    /// The records that the index finds, unchecked: `None` when there is no index.
    pub(super) fn indexed(&self, filter: &Filter) -> Option<Result<Vec<Record>, store::Error>> {
        let databases = self.databases.as_ref()?;
        Some(self.answer_by_index(databases, filter))
    }

    /// Holds all events of an operation against what the state says of it: on them depends what is done again.
    fn check_operation(&self, filter: &Filter, records: &[Record]) -> Result<(), store::Error> {
        let Some((id, known)) = filter
            .operation
            .filter(|id| *filter == Filter::of_operation(*id))
            .and_then(|id| Some((id, self.state.operations.get(&id)?)))
        else {
            return Ok(());
        };
        let last = records.last().map_or(Seq::NONE, |record| record.header.seq);
        if (records.len() as u64, last) == (known.events, known.last) {
            return Ok(());
        }
        Err(store::Error::Contradiction {
            path: self.directory.join(super::INDEX),
            what: format!(
                "it has {} events of operation {} up to event {last}, not {} up to event {}",
                records.len(),
                id.short(),
                known.events,
                known.last
            ),
        })
    }

    fn answer_by_index(
        &self,
        databases: &Databases,
        filter: &Filter,
    ) -> Result<Vec<Record>, store::Error> {
        let index = &databases.index;
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
        if found.len() < wanted && index.block_count() > 0 {
            for (number, bitmap) in blocks(index, filter)? {
                if beyond(number) {
                    continue;
                }
                for (position, record) in index.block(number)?.into_iter().enumerate().rev() {
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

    /// Lets sled write what it holds back.
    pub(super) fn flush(&self) {
        if let Some(databases) = &self.databases {
            // Durability does not depend on it: what is not written is folded again.
            let _flushed = databases.index.flush();
            let _flushed = databases.projection.flush();
        }
        if let Some(file) = &self.head_file {
            let _synced = file.sync();
        }
    }
}

/// What a filter takes, read from the journal alone, up to a position.
pub(super) fn from_journal(
    directory: &Path,
    to: Seq,
    filter: &Filter,
) -> Result<Vec<Record>, Error> {
    let wanted = filter.newest.unwrap_or(usize::MAX);
    let mut found = std::collections::VecDeque::new();
    let mut reader = Reader::from_start(&directory.join(JOURNAL))?;
    while let Some((_, record)) = reader.next()? {
        if record.header.seq > to {
            break;
        }
        if filter.takes(&record.header) {
            found.push_back(record);
        }
        if found.len() > wanted {
            found.pop_front();
        }
    }
    Ok(found.into())
}

/// The blocks to look into, newest first: only those between the bounds when nothing else is asked.
fn blocks(index: &Index, filter: &Filter) -> Result<Vec<(u64, u64)>, store::Error> {
    let terms = filter.terms();
    if !terms.is_empty() {
        return index.find(&terms);
    }
    let first = filter
        .from
        .map_or(0, |from| from.0.saturating_sub(1) / BLOCK_EVENTS);
    let end = filter.to.map_or(index.block_count(), |to| {
        (to.0.saturating_sub(1) / BLOCK_EVENTS + 1).min(index.block_count())
    });
    Ok((first..end)
        .rev()
        .map(|number| (number, u64::MAX))
        .collect())
}

/// The hash of an event by the journal alone; `None` where the journal ends before it.
pub(super) fn hash_in_journal(directory: &Path, seq: Seq) -> Result<(Seq, Option<Hash>), Error> {
    let mut reader = Reader::from_start(&directory.join(JOURNAL))?;
    while let Some((_, record)) = reader.next()? {
        if record.header.seq == seq {
            return Ok((seq, Some(record.hash)));
        }
    }
    Ok((reader.link().map_or(Seq::NONE, |link| link.seq), None))
}
