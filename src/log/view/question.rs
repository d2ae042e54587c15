//! What the index is asked, and how the journal gives the records that it names; or the journal alone.
//!
//! Nothing here needs the view: nobody waits while a question is answered.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tallybook_events::ids::{Hash, OperationId, Seq};
use tallybook_events::record::{Body, Record};
use tallybook_events::subject::Subject;
use tallybook_replay::state::{OperationSummary, State};

use super::super::{Error, Filter, JOURNAL, Limit, entry};
use crate::journal::{self, Fetch, Reader};
use crate::store::{BLOCK_EVENTS, Direction, Index, Place};

/// How long to wait for a payload to be overwritten that looks changed.
const ERASING: Duration = Duration::from_millis(20);

/// What the index is asked, as the view was at that moment.
pub(in crate::log) struct Question {
    pub(in crate::log) index: Arc<Index>,
    /// So many of its blocks.
    pub(super) blocks: u64,
    /// Where what the filter takes behind them is.
    pub(super) behind: Vec<Place>,
    /// How many events the answer must have, and which the last, where the state tells: on the events of an operation
    /// depends what is done again.
    pub(super) expected: Option<(OperationId, u64, Seq)>,
}

impl Question {
    pub(in crate::log) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Asks.
    ///
    /// # Errors
    /// [`Error::Store`] where the index is to blame: it can't be read, or what it says can't be so.
    pub(in crate::log) fn ask(
        self,
        directory: &Path,
        filter: &Filter,
    ) -> Result<Vec<Record>, Error> {
        let (index, blocks) = (&self.index, self.blocks);
        let records = by_index(
            directory,
            index,
            blocks,
            filter,
            self.behind,
            Payloads::Sound,
        )?;
        let last = records.last().map_or(Seq::NONE, |record| record.header.seq);
        match self.expected {
            Some((id, events, newest)) if (records.len() as u64, last) != (events, newest) => {
                let what = format!(
                    "it has {} events of operation {} up to event {last}, not {events} up to event {newest}",
                    records.len(),
                    id.short(),
                );
                Err(self.index.contradiction(what).into())
            }
            Some(_) | None => Ok(records),
        }
    }
}

/// The newest event of a subject in the index's blocks.
pub(super) fn newest_of(
    directory: &Path,
    index: &Index,
    blocks: u64,
    subject: &Subject,
) -> Result<Option<(Seq, Hash)>, Error> {
    let filter = Filter {
        subject: Some(subject.clone()),
        limit: Some(Limit::Newest(1)),
        ..Filter::default()
    };
    // A link is to its header alone.
    let how = Payloads::Any;
    let records = by_index(directory, index, blocks, &filter, Vec::new(), how)?;
    Ok(records
        .last()
        .map(|record| (record.header.seq, record.hash)))
}

/// An operation by its events in the index's blocks.
pub(super) fn summary_in(
    directory: &Path,
    index: &Index,
    blocks: u64,
    id: OperationId,
    behind: Vec<Place>,
) -> Result<Option<OperationSummary>, Error> {
    let filter = Filter::of_operation(id);
    let records = by_index(directory, index, blocks, &filter, behind, Payloads::Sound)?;
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
/// [`Error::Journal`] where the journal is.
fn by_index(
    directory: &Path,
    index: &Index,
    blocks: u64,
    filter: &Filter,
    behind: Vec<Place>,
    payloads: Payloads,
) -> Result<Vec<Record>, Error> {
    let (direction, wanted) = direction(filter);
    let mut found: Vec<Record> = Vec::new();
    let mut fetch = Fetch::new(&directory.join(JOURNAL));
    let mut record = |place: &Place| {
        let record = fetch_whole(&mut fetch, place, payloads)?;
        record.ok_or_else(|| {
            let what = format!("event {} is not at its place in the journal", place.seq);
            Error::from(index.contradiction(what))
        })
    };
    if direction == Direction::Back {
        for place in behind.iter().rev().take(wanted) {
            found.push(record(place)?);
        }
    }
    let end = Seq(blocks * BLOCK_EVENTS).next();
    let end = filter.to.map_or(end, |to| to.next().min(end));
    let first = filter.from.unwrap_or(Seq(1));
    let mut block: Option<(u64, Vec<Place>)> = None;
    'all: for stretch in index.find(&filter.terms(), first..end, direction) {
        for seq in stretch? {
            if found.len() >= wanted {
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
            let record = record(place)?;
            if filter.within(&record.header) {
                found.push(record);
            }
        }
    }
    match direction {
        Direction::Back => found.reverse(),
        Direction::Forward => {
            for place in behind.iter().take(wanted - found.len()) {
                found.push(record(place)?);
            }
        }
    }
    Ok(found)
}

/// Which way to go through the log for a filter, and how far at most.
fn direction(filter: &Filter) -> (Direction, usize) {
    match filter.limit {
        Some(Limit::Newest(wanted)) => (Direction::Back, wanted),
        Some(Limit::Oldest(wanted)) => (Direction::Forward, wanted),
        None => (Direction::Forward, usize::MAX),
    }
}

/// What is asked of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payloads {
    /// Each is the one that its header commits to, or erased.
    Sound,
    /// They do not matter.
    Any,
}

/// The record at a place. What is being erased at this moment is read again.
///
/// # Errors
/// When the event is there with another payload: then the journal is damaged, and the index is not to blame.
fn fetch_whole(
    fetch: &mut Fetch,
    place: &Place,
    payloads: Payloads,
) -> Result<Option<Record>, Error> {
    for again in [true, true, true, false] {
        let record = fetch.record(place.at, place.len)?;
        let record = record.filter(|record| place.is_of(record.header.seq, &record.hash));
        let is_sound = |record: &Record| match payloads {
            Payloads::Sound => record.body() != Body::Changed,
            Payloads::Any => true,
        };
        match record {
            Some(record) if is_sound(&record) => return Ok(Some(record)),
            Some(_) if !again => return Err(fetch.changed(place.seq, place.at).into()),
            None if !again => return Ok(None),
            Some(_) | None => {}
        }
        std::thread::sleep(ERASING);
    }
    Ok(None)
}

/// What a filter takes, read from the journal alone, up to a position.
pub(in crate::log) fn from_journal(
    directory: &Path,
    to: Seq,
    filter: &Filter,
) -> Result<Vec<Record>, Error> {
    let (direction, wanted) = direction(filter);
    let mut found = VecDeque::new();
    let mut reader = Reader::from_start(&directory.join(JOURNAL))?;
    while let Some((_, record)) = reader.next()? {
        if record.header.seq > to || direction == Direction::Forward && found.len() >= wanted {
            break;
        }
        if filter.takes(&record.header) {
            found.push_back(record);
            if direction == Direction::Back && found.len() > wanted {
                found.pop_front();
            }
        }
    }
    Ok(found.into())
}

/// The hash of an event by the journal alone; `None` where the journal ends before it.
pub(in crate::log) fn hash_in_journal(
    directory: &Path,
    seq: Seq,
) -> Result<(Seq, Option<Hash>), Error> {
    Ok(journal::holds(&directory.join(JOURNAL), seq)?)
}
