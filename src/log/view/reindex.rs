//! Opening the index when something needs it: held against the journal, brought up to the newest event, or built again.
//!
//! It never relies on an index that contradicts the journal.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tallybook_events::gap::Gap;
use tallybook_events::ids::{Hash, Seq};
use tallybook_replay::state::State;

use super::super::open::remove_database;
use super::super::{Error, INDEX, JOURNAL, Open, chain, entry};
use super::question::hash_in_journal;
use super::{Slot, View};
use crate::journal::{self, Link, Reader};
use crate::store::{self, BLOCK_EVENTS, Block, End, Index, Located, Sealed};

impl View {
    /// Opens the index, and brings it up to the newest event; builds it again where it can't be used.
    ///
    /// # Errors
    /// When the journal contradicts it in a way that needs a decision, or can't be read.
    pub(in crate::log) fn open_index(&mut self) -> Result<(), Error> {
        if !matches!(self.index, Slot::Closed) {
            return Ok(());
        }
        let path = self.directory.join(INDEX);
        let was_there = path.exists();
        let error = match self.try_index() {
            Err(Error::Store(store::Error::Held(path))) => return Err(Error::Held(path)),
            Err(Error::Store(error)) if error.is_disk_full() => {
                return self.without_index(chain(&error));
            }
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
        let mut behind: VecDeque<Arc<Located>> = VecDeque::new();
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
            let record = Located::of(record, at, reader.position());
            block.push(&record);
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
    pub(super) fn without_index(&mut self, why: String) -> Result<(), Error> {
        self.faults.push(why);
        self.index = Slot::Failed;
        self.remembers_all = false;
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
        if state.head.seq < self.state.head.seq {
            return Err(Error::TailLost {
                path: self.directory.clone(),
                journal: state.head.seq,
                projection: self.state.head.seq,
            });
        }
        self.links = links;
        let over = state
            .operations
            .into_iter()
            .filter(|(_, known)| !known.is_open());
        self.past = over.collect();
        self.remembers_all = true;
        Ok(())
    }
}

/// So many events may be lost at once, and the index goes on behind them: it has a block for each 1024 of them, too. No
/// sound log has lost as many; a forged one is read without the index.
const BRIDGED_MAX: u64 = 1 << 24;

/// Brings a gap into the index, block by block.
fn bridge(index: &Index, block: &mut Block, gap: &Gap, before: End) -> Result<(), store::Error> {
    if gap.last.0.saturating_sub(block.filled().0) > BRIDGED_MAX {
        let what = format!(
            "events {} to {} are too many to be lost",
            gap.first, gap.last
        );
        return Err(index.contradiction(what));
    }
    while block.filled() < gap.last {
        block.bridge(gap.last, before);
        if block.is_full() {
            index.seal(block)?;
            *block = block.following();
        }
    }
    Ok(())
}
