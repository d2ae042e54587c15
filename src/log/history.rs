//! The log as it was: states folded from the journal alone. Needs no lock and changes nothing.
//!
//! Payloads are decoded in several threads, and folded in order in one.

use std::ops::ControlFlow;
use std::path::Path;

use tallybook_events::gap::Gap;
use tallybook_events::ids::Seq;
use tallybook_replay::folding::Folding;
use tallybook_replay::state::State;

use super::{Error, chain};
use crate::journal::{self, At, Depth, Found, Inspect, Link, Position, Reader};

/// How far to fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Up to the newest event.
    Newest,
    /// Up to and with this event.
    Seq(Seq),
    /// Up to the last event before the first one with a later time.
    Time(u64),
}

/// A fold of a journal.
#[derive(Debug)]
pub struct History {
    /// All of the state, with what is over.
    pub state: State,
    /// Events that a recovery went on without.
    pub gaps: Vec<Gap>,
}

/// Folds a journal from nothing, as far as that is asked for or as it goes.
///
/// # Errors
/// When it can't be read, or is damaged on the way.
pub fn fold(journal: &Path, until: Until) -> Result<History, Error> {
    fold_within(journal, until, Inspect::default().threads)
}

/// The same, with so many threads.
///
/// # Errors
/// As [`fold`].
pub fn fold_within(journal: &Path, until: Until, threads: usize) -> Result<History, Error> {
    let mut history = History {
        state: State::default(),
        gaps: Vec::new(),
    };
    if until == Until::Seq(Seq::NONE) {
        return Ok(history);
    }
    let how = Inspect {
        depth: Depth::Chain,
        threads,
        ..Inspect::default()
    };
    let mut end = Ok(());
    journal::scan(
        journal,
        how,
        || Folding::of,
        |at, found| match step(&mut history, until, at, found) {
            Ok(flow) => flow,
            Err(error) => {
                end = Err(error);
                ControlFlow::Break(())
            }
        },
        |_| {},
    )?;
    end.map(|()| history)
}

fn step(
    history: &mut History,
    until: Until,
    at: At<'_>,
    found: Found<Result<Folding, tallybook_replay::folding::NotFolded>>,
) -> Result<ControlFlow<()>, Error> {
    let next = history.state.head.seq.next();
    let damaged = |seq, source| {
        Error::Journal(journal::Error::Damaged {
            seq,
            path: at.path.to_owned(),
            offset: at.offset,
            source,
        })
    };
    match found {
        Found::Head => {}
        Found::Gap(gap) => {
            let Until::Seq(to) = until else {
                history.gaps.push(gap);
                return Ok(ControlFlow::Continue(()));
            };
            let is_end = gap.last >= to;
            history.gaps.extend(Some(gap).filter(|gap| gap.first <= to));
            if is_end {
                return Ok(ControlFlow::Break(()));
            }
        }
        Found::DamagedFile(damage) | Found::DamagedHead(damage) | Found::Lost(damage) => {
            return Err(damaged(next, damage));
        }
        Found::Unreadable { error, .. } => return Err(Error::Journal(error)),
        Found::Record {
            seq,
            wrong: Some(damage),
            ..
        } => return Err(damaged(seq, damage)),
        Found::Record {
            seq,
            item,
            wrong: None,
            ..
        } => {
            let folding = item.map_err(|error| Error::Fold {
                seq,
                what: chain(&error),
            })?;
            if let Until::Time(unix_us) = until
                && folding.time_unix_us() > unix_us
            {
                return Ok(ControlFlow::Break(()));
            }
            history.state.take(folding);
            if until == Until::Seq(seq) {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Folds all segments but the last, and gives the reader that goes on from there: the end of a journal is judged with
/// more care than a fold needs.
///
/// # Errors
/// As [`fold`].
pub(super) fn fold_known(journal: &Path) -> Result<(State, Reader), Error> {
    let last = journal::segments(journal)?.last().copied();
    let Some(last) = last.filter(|last| *last > Seq(1)) else {
        return Ok((State::default(), Reader::from_start(journal)?));
    };
    let History { state, gaps } = fold(journal, Until::Seq(Seq(last.0 - 1)))?;
    let head = state.head;
    let (Some(log), position) = (
        head.log,
        Position {
            segment: last,
            offset: 0,
        },
    ) else {
        return Ok((State::default(), Reader::from_start(journal)?));
    };
    // A gap may end what is before the last segment.
    let bridged = gaps.last().filter(|gap| gap.last.next() == last);
    let link = match bridged {
        Some(gap) => Link::end(log, head.epoch, gap.last, gap.hash),
        None => Link::end(log, head.epoch, head.seq, head.hash),
    };
    Ok((state, Reader::from_position(journal, position, link)))
}
