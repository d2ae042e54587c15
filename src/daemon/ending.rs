//! How a run ended, in a form that a line can carry: whoever shows it need not be where it ran.
//!
//! It says nothing that was not judged where the operation ran; what is in the log is read there.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::OperationId;

use crate::cli::Report;
use crate::engine::Outcome;

/// How a run ended, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The run.
    pub ran: Ran,
    /// How it was taken back, where that was tried.
    pub undone: Option<Undone>,
    /// When a daemon tries again by itself, where it does.
    pub again: Option<Duration>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ran {
    /// With an outcome, which is in the log.
    Ended(Outcome),
    /// The log failed meanwhile: nobody knows what was done.
    Left(Report),
    /// It could not be carried out.
    Refused(Report),
}

/// How an operation was taken back that had failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undone {
    /// By this operation, which ended so.
    By(OperationId, Outcome),
    /// It could not be.
    Failed(Report),
}

impl From<Ran> for Ending {
    fn from(ran: Ran) -> Self {
        Ending {
            ran,
            undone: None,
            again: None,
        }
    }
}
