//! What readers of the log see: the folded state, and the events, by the databases where they can be used and by
//! the journal where they can't. Always whole up to some event.
//!
//! It never decides what becomes an event, and the loss of a database never loses an answer.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Key, State};

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
    /// The records behind the last sealed block.
    tail: Vec<Record>,
}

impl View {
    pub(super) fn new(directory: &Path, state: State, databases: Option<Databases>) -> Self {
        View {
            state,
            directory: directory.to_owned(),
            databases,
            tail: Vec::new(),
        }
    }

    pub(super) fn databases(&self) -> Option<&Databases> {
        self.databases.as_ref()
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
        match &self.databases {
            Some(databases) => databases.projection.save(&self.state, touched, next),
            None => Ok(()),
        }
    }

    /// Goes on without the databases; the next opening builds them again.
    pub(super) fn give_up_databases(&mut self, error: &store::Error) {
        if self.databases.is_none() {
            return;
        }
        tracing::warn!(
            "the databases in {} can't be used ({}); the journal answers instead, and the next start builds them again",
            self.directory.display(),
            chain(error)
        );
        // Where even this can't be written, the databases say themselves how far they go.
        let _marked = File::create(self.directory.join(REBUILD));
        self.databases = None;
        self.tail = Vec::new();
    }

    /// The records that a filter takes, in order; an error of the databases where only they failed.
    pub(super) fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        match &self.databases {
            Some(databases) => Ok(self.answer_by_index(databases, filter)?),
            None => from_journal(&self.directory, self.state.head.seq, filter),
        }
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

    /// The newest records, at least as many as the blocks given hold, newest last.
    pub(super) fn recent(&self, blocks_max: u64) -> Result<Vec<Record>, Error> {
        let count = usize::try_from(blocks_max * BLOCK_EVENTS).unwrap_or(usize::MAX);
        self.records(&Filter {
            newest: Some(count),
            ..Filter::default()
        })
    }

    /// Lets sled write what it holds back.
    pub(super) fn flush(&self) {
        if let Some(databases) = &self.databases {
            // Durability does not depend on it: what is not written is folded again.
            let _flushed = databases.index.flush();
            let _flushed = databases.projection.flush();
        }
    }
}

/// What a filter takes, read from the journal alone, up to a position.
fn from_journal(directory: &Path, to: Seq, filter: &Filter) -> Result<Vec<Record>, Error> {
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
