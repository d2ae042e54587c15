//! A step of an operation: where it stands, how that is known, and what each event does to it.

use serde::Serialize;
use tallybook_events::event::{Event, Resolution};
use tallybook_events::ids::{Attempt, JournalId, Seq};
use tallybook_events::step::{FailureClass, PlannedStep, StepDone, StepFailure};

/// How it is known that a step ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Evidence {
    /// The agent reported it as it happened.
    Reported,
    /// It was read from the agent's receipt afterwards.
    Receipt,
    /// It was seen by looking at the host.
    Probe,
    /// Somebody decided that what is there stands for it.
    Adopted,
}

impl From<Resolution> for Evidence {
    fn from(resolution: Resolution) -> Self {
        match resolution {
            Resolution::Reported => Evidence::Reported,
            Resolution::Receipt => Evidence::Receipt,
            Resolution::Probe => Evidence::Probe,
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Never started, or known never to have acted.
    Pending,
    /// Started, without an outcome: in doubt unless somebody is waiting for it right now.
    Started,
    /// Ended well.
    Succeeded {
        /// How that is known.
        evidence: Evidence,
        /// What it reported.
        done: StepDone,
    },
    /// Failed.
    Failed(StepFailure),
    /// Its outcome could not be told when somebody looked.
    Doubted {
        /// Why.
        why: String,
    },
    /// When somebody looked, something was there that somebody else did.
    Drifted {
        /// What.
        what: String,
    },
}

impl StepStatus {
    /// As tables show it.
    pub const fn label(&self) -> &'static str {
        match self {
            StepStatus::Pending => "pending",
            StepStatus::Started => "started",
            StepStatus::Succeeded {
                evidence: Evidence::Adopted,
                ..
            } => "adopted",
            StepStatus::Succeeded { .. } => "succeeded",
            StepStatus::Failed(_) => "failed",
            StepStatus::Doubted { .. } => "in doubt",
            StepStatus::Drifted { .. } => "drifted",
        }
    }
}

/// A step with where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was planned.
    pub plan: PlannedStep,
    /// Where it stands.
    pub status: StepStatus,
    /// How many times it was started.
    pub attempts: Attempt,
    /// How many of these are known never to have acted.
    pub unstarted: u32,
    /// The receipts journal that its host had before the last of these.
    pub journal: Option<JournalId>,
    /// Whether what others have in its place is set aside when it is started.
    pub forced: bool,
    /// Whether something of others may have been set aside for it: an undo puts that back.
    pub set_aside: bool,
    /// Its newest event.
    pub last: Seq,
}

impl Step {
    /// Whether what is there was taken over as what it was to make.
    pub fn is_adopted(&self) -> bool {
        matches!(
            self.status,
            StepStatus::Succeeded {
                evidence: Evidence::Adopted,
                ..
            }
        )
    }

    /// Whether something of others is known to be in its way.
    pub fn is_blocked(&self) -> bool {
        match &self.status {
            StepStatus::Failed(failure) => failure.class == FailureClass::Exists,
            StepStatus::Drifted { .. } => true,
            StepStatus::Pending
            | StepStatus::Started
            | StepStatus::Succeeded { .. }
            | StepStatus::Doubted { .. } => false,
        }
    }

    /// Whether a start of it may have acted.
    pub const fn may_have_acted(&self) -> bool {
        self.starts() > 0
    }

    /// How many starts of it may have acted.
    pub const fn starts(&self) -> u32 {
        self.attempts.0.saturating_sub(self.unstarted)
    }
}

/// What an event does to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It stands there now.
    Becomes(StepStatus),
    /// It stands where it stood.
    Stays,
    /// The event can't follow.
    Impossible,
}

/// Where an event puts a step. Every pair of status and event is decided here and nowhere else.
pub fn next_status(current: &StepStatus, event: &Event) -> Next {
    match event {
        Event::StepStarted(_) => match current {
            StepStatus::Pending
            | StepStatus::Failed(_)
            | StepStatus::Doubted { .. }
            | StepStatus::Drifted { .. } => Next::Becomes(StepStatus::Started),
            StepStatus::Started | StepStatus::Succeeded { .. } => Next::Impossible,
        },
        Event::StepSucceeded(succeeded) => match current {
            StepStatus::Started | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Succeeded {
                    evidence: succeeded.resolution.into(),
                    done: succeeded.done.clone(),
                })
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => {
                Next::Impossible
            }
        },
        Event::StepFailed(failed) => match current {
            StepStatus::Started | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Failed(failed.failure.clone()))
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => {
                Next::Impossible
            }
        },
        Event::StepDoubted(doubted) => match current {
            StepStatus::Started | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Doubted {
                    why: doubted.why.clone(),
                })
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => {
                Next::Impossible
            }
        },
        Event::StepUnstarted(_) => match current {
            StepStatus::Started | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Pending)
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => {
                Next::Impossible
            }
        },
        Event::StepDrifted(drifted) => match current {
            StepStatus::Started | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Drifted {
                    what: drifted.what.clone(),
                })
            }
            StepStatus::Pending | StepStatus::Succeeded { .. } | StepStatus::Failed(_) => {
                Next::Impossible
            }
        },
        Event::StepForced(_) => match current {
            StepStatus::Failed(_) | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Stays
            }
            StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => {
                Next::Impossible
            }
        },
        Event::StepAdopted(adopted) => match current {
            StepStatus::Failed(_) | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => {
                Next::Becomes(StepStatus::Succeeded {
                    evidence: Evidence::Adopted,
                    done: adopted.done.clone(),
                })
            }
            StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => {
                Next::Impossible
            }
        },
        Event::OutputCaptured(_) | Event::SessionRecorded(_) | Event::Unknown(_) => Next::Stays,
        Event::LogCreated(_)
        | Event::InventoryRecorded(_)
        | Event::AllocationMade(_)
        | Event::AllocationReleased(_)
        | Event::OperationIntended(_)
        | Event::OperationPlanned(_)
        | Event::OperationResumed(_)
        | Event::OperationInterrupted(_)
        | Event::OperationSucceeded(_)
        | Event::OperationFailed(_)
        | Event::OperationRolledBack(_)
        | Event::OperationStuck(_)
        | Event::OperationAbandoned(_)
        | Event::OperationPaced(_)
        | Event::OperationLacked(_)
        | Event::ErasureAnnounced(_)
        | Event::ErasureCompleted(_)
        | Event::SegmentsArchived(_)
        | Event::SegmentsRestored(_)
        | Event::LogRecovered(_)
        | Event::LogFenced(_) => Next::Impossible,
    }
}
