//! The log as it was: states folded from the journal up to an event or a time. Needs no lock and changes nothing.

use std::path::Path;

use tallybook_events::ids::Seq;
use tallybook_replay::state::State;

use super::argument::Point;
use super::error::Error;
use crate::journal::Reader;
use crate::{clock, log};

/// How far to fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Up to the newest event.
    Newest,
    /// Up to and with this event, which must be there.
    Seq(Seq),
    /// Up to the last event before the first one with a later time.
    Time(u64),
}

impl From<Point> for Until {
    fn from(point: Point) -> Self {
        match point {
            Point::Seq(seq) => Until::Seq(seq),
            Point::Time(time) => Until::Time(time.unix_us(clock::now_unix_us())),
        }
    }
}

/// Folds a journal from nothing.
///
/// # Errors
/// When it can't be read, is damaged on the way, or ends before the event.
pub(super) fn fold(journal: &Path, until: Until) -> Result<State, Error> {
    let mut state = State::default();
    if until == Until::Seq(Seq::NONE) {
        return Ok(state);
    }
    let mut reader = Reader::from_start(journal).map_err(log::Error::from)?;
    while let Some((_, record)) = reader.next().map_err(log::Error::from)? {
        if let Until::Time(unix_us) = until
            && record.header.time_unix_us > unix_us
        {
            return Ok(state);
        }
        state.apply(&log::entry(&record)?);
        if until == Until::Seq(state.head.seq) {
            return Ok(state);
        }
    }
    match until {
        Until::Seq(seq) => Err(Error::NoEvent {
            seq,
            head: state.head.seq,
        }),
        Until::Newest | Until::Time(_) => Ok(state),
    }
}
