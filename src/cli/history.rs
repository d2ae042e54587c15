//! The log as it was, up to an event or a time that an operator gives.

use std::path::Path;

use tallybook_replay::state::State;

use super::argument::Point;
use super::error::Error;
use crate::clock;
use crate::log::history;

pub(super) use crate::log::history::Until;

impl From<Point> for Until {
    fn from(point: Point) -> Self {
        match point {
            Point::Seq(seq) => Until::Seq(seq),
            Point::Time(time) => Until::Time(time.unix_us(clock::now_unix_us())),
        }
    }
}

/// Folds a journal from nothing: all of the state, with what is over.
///
/// # Errors
/// When it can't be read, is damaged on the way, or ends before the event.
pub(super) fn fold(journal: &Path, until: Until) -> Result<State, Error> {
    let state = history::fold(journal, until)?.state;
    match until {
        Until::Seq(seq) if state.head.seq < seq => Err(Error::NoEvent {
            seq,
            head: state.head.seq,
        }),
        Until::Seq(_) | Until::Newest | Until::Time(_) => Ok(state),
    }
}
