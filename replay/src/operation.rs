//! One operation, folded from its own events: its plan, where each step stands, and what was seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tallybook_events::actor::Actor;
use tallybook_events::event::{Event, Lack, Loss, SeqRange, SessionRecorded};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Blob, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;

use crate::entry::Entry;

mod error;
mod step;

pub use error::Error;
pub use step::{Evidence, Next, Step, StepStatus, next_status};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// Asked for; its plan is not durable yet, so nothing has acted.
    Intended,
    /// Being carried out, or left behind by a program that died.
    Running,
    /// Left on purpose; `op resume` goes on.
    Interrupted,
    /// A step failed; `op resume` tries again, `op rollback` takes it back.
    Failed,
    /// Somebody has to decide.
    Stuck,
    /// Another operation is taking it back.
    RollingBack,
    /// Done.
    Succeeded,
    /// Taken back.
    RolledBack,
    /// Given up: what it left stays, and nobody goes on with it.
    Abandoned,
}

impl OperationStatus {
    /// Whether nothing more will happen to it by itself, and its claims are free.
    pub const fn is_final(self) -> bool {
        match self {
            OperationStatus::Succeeded
            | OperationStatus::RolledBack
            | OperationStatus::Abandoned => true,
            OperationStatus::Intended
            | OperationStatus::Running
            | OperationStatus::Interrupted
            | OperationStatus::Failed
            | OperationStatus::Stuck
            | OperationStatus::RollingBack => false,
        }
    }

    /// As tables show it.
    pub const fn label(self) -> &'static str {
        match self {
            OperationStatus::Intended => "intended",
            OperationStatus::Running => "unfinished",
            OperationStatus::Interrupted => "interrupted",
            OperationStatus::Failed => "failed",
            OperationStatus::Stuck => "stuck",
            OperationStatus::RollingBack => "rolling back",
            OperationStatus::Succeeded => "succeeded",
            OperationStatus::RolledBack => "rolled back",
            OperationStatus::Abandoned => "abandoned",
        }
    }
}

/// An operation, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What was asked.
    pub intent: Intent,
    /// Who asked.
    pub actor: Actor,
    /// The event that made its claims.
    pub claim: ClaimRef,
    /// What it claims.
    pub claims: Vec<Subject>,
    /// The inventory it runs with.
    pub inventory: Seq,
    /// When it was asked for, by the controller's clock, in microseconds since 1970.
    pub started_unix_us: u64,
    /// Its newest event's time, likewise.
    pub last_unix_us: u64,
    /// Where it stands.
    pub status: OperationStatus,
    /// Why it stands there, where something said so.
    pub reason: Option<String>,
    /// How it goes over its hosts.
    pub pace: Pace,
    /// The hosts that its last run could not have.
    pub lacked: BTreeMap<HostName, Lack>,
    /// Whether it has a plan, which may be empty.
    pub is_planned: bool,
    /// Its steps.
    pub steps: Vec<Step>,
    /// What sessions it had.
    pub sessions: Vec<SessionRecorded>,
    /// How many events it has so far.
    pub events: u64,
    /// Its newest event.
    pub last: Seq,
}

impl Operation {
    /// Folds an operation from its own events, in order. `None` when there are none.
    ///
    /// # Errors
    /// When the events contradict each other.
    pub fn fold<'a>(
        id: OperationId,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<Option<Self>, Error> {
        let mut operation: Option<Operation> = None;
        for entry in entries {
            if entry.header.operation != Some(id) {
                continue;
            }
            match &mut operation {
                Some(operation) => operation.apply(entry)?,
                None => operation = Some(Operation::begin(id, entry)?),
            }
        }
        Ok(operation)
    }

    fn begin(id: OperationId, entry: &Entry) -> Result<Self, Error> {
        let Event::OperationIntended(intended) = &entry.event else {
            return Err(Error::NotIntended {
                seq: entry.header.seq,
                kind: entry.header.kind.to_string(),
            });
        };
        if entry.header.claim.is_some() {
            return Err(Error::Claim {
                seq: entry.header.seq,
                kind: entry.header.kind.to_string(),
            });
        }
        Ok(Operation {
            id,
            intent: intended.intent.clone(),
            actor: Actor::clone(&entry.header.actor),
            claim: ClaimRef {
                seq: entry.header.seq,
                hash: entry.hash,
            },
            claims: intended.claims.clone(),
            inventory: intended.inventory,
            started_unix_us: entry.header.time_unix_us,
            last_unix_us: entry.header.time_unix_us,
            status: OperationStatus::Intended,
            reason: None,
            pace: Pace::default(),
            lacked: BTreeMap::new(),
            is_planned: false,
            steps: Vec::new(),
            sessions: Vec::new(),
            events: 1,
            last: entry.header.seq,
        })
    }

    /// Takes the next event of this operation.
    ///
    /// # Errors
    /// When it contradicts what came before.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Error> {
        let seq = entry.header.seq;
        if self.status.is_final() {
            self.status = after_end(self.status, entry)?;
        }
        self.events += 1;
        self.last = seq;
        self.last_unix_us = entry.header.time_unix_us;
        self.check_claim(entry)?;
        if let Event::OperationSucceeded(succeeded) = &entry.event
            && succeeded.events != self.events
        {
            return Err(Error::Count {
                seq,
                says: succeeded.events,
                counted: self.events,
            });
        }
        if let Some(index) = entry.header.step {
            return self.apply_to_step(index, entry);
        }
        if let Some(status) = operation_status(&entry.event)
            && !matches!(entry.event, Event::OperationIntended(_))
        {
            self.status = status;
        }
        match &entry.event {
            Event::OperationPlanned(planned) => {
                if self.is_planned {
                    return Err(twice(entry));
                }
                self.is_planned = true;
                check_plan(&planned.steps, seq)?;
                self.steps = planned
                    .steps
                    .iter()
                    .map(|plan| Step {
                        plan: plan.clone(),
                        status: StepStatus::Pending,
                        attempts: Attempt(0),
                        unstarted: 0,
                        journal: None,
                        forced: false,
                        set_aside: false,
                        last: seq,
                    })
                    .collect();
            }
            Event::OperationResumed(_) => {
                self.reason = None;
                self.lacked.clear();
            }
            Event::OperationSucceeded(_) => self.reason = None,
            Event::OperationInterrupted(interrupted) => {
                self.reason = Some(interrupted.reason.clone());
            }
            Event::OperationFailed(failed) => self.reason = Some(failed.reason.clone()),
            Event::OperationStuck(stuck) => self.reason = Some(stuck.reason.clone()),
            Event::OperationAbandoned(abandoned) => {
                self.reason = Some(abandoned.reason.clone());
            }
            Event::OperationRolledBack(rolled_back) => {
                self.reason = Some(format!("rolled back by {}", rolled_back.by.short()));
            }
            Event::OperationPaced(paced) => self.pace = paced.pace,
            Event::OperationLacked(lacked) => {
                let lacked = lacked.hosts.iter();
                self.lacked
                    .extend(lacked.map(|lack| (lack.host.clone(), lack.clone())));
            }
            Event::SessionRecorded(session) => self.sessions.push(session.clone()),
            Event::OperationIntended(_) => return Err(twice(entry)),
            Event::StepStarted(_)
            | Event::StepSucceeded(_)
            | Event::StepFailed(_)
            | Event::StepDoubted(_)
            | Event::StepUnstarted(_)
            | Event::StepDrifted(_)
            | Event::StepForced(_)
            | Event::StepAdopted(_) => {
                return Err(Error::NoSuchStep {
                    seq,
                    kind: entry.header.kind.to_string(),
                });
            }
            Event::LogCreated(_)
            | Event::InventoryRecorded(_)
            | Event::AllocationMade(_)
            | Event::AllocationReleased(_)
            | Event::OutputCaptured(_)
            | Event::ErasureAnnounced(_)
            | Event::ErasureCompleted(_)
            | Event::SegmentsArchived(_)
            | Event::SegmentsRestored(_)
            | Event::LogRecovered(_)
            | Event::LogFenced(_)
            | Event::Unknown(_) => {}
        }
        Ok(())
    }

    /// An operation's first append can't name the claim that it makes; what takes it back is another operation's.
    fn check_claim(&self, entry: &Entry) -> Result<(), Error> {
        let claim = entry.header.claim;
        let holds = match &entry.event {
            Event::OperationIntended(_) => claim.is_none(),
            Event::OperationPlanned(_) | Event::OperationPaced(_) => {
                claim.is_none_or(|claim| claim == self.claim)
            }
            Event::OperationRolledBack(_) => claim.is_some_and(|claim| claim != self.claim),
            // Of a kind of a later program it is not known who writes it.
            Event::Unknown(_) if !entry.is_erased => true,
            Event::LogCreated(_)
            | Event::InventoryRecorded(_)
            | Event::AllocationMade(_)
            | Event::AllocationReleased(_)
            | Event::OperationResumed(_)
            | Event::OperationInterrupted(_)
            | Event::OperationSucceeded(_)
            | Event::OperationFailed(_)
            | Event::OperationStuck(_)
            | Event::OperationAbandoned(_)
            | Event::OperationLacked(_)
            | Event::StepStarted(_)
            | Event::StepSucceeded(_)
            | Event::StepFailed(_)
            | Event::StepDoubted(_)
            | Event::StepUnstarted(_)
            | Event::StepDrifted(_)
            | Event::StepForced(_)
            | Event::StepAdopted(_)
            | Event::OutputCaptured(_)
            | Event::SessionRecorded(_)
            | Event::ErasureAnnounced(_)
            | Event::ErasureCompleted(_)
            | Event::SegmentsArchived(_)
            | Event::SegmentsRestored(_)
            | Event::LogRecovered(_)
            | Event::LogFenced(_)
            | Event::Unknown(_) => claim == Some(self.claim),
        };
        match holds {
            true => Ok(()),
            false => Err(Error::Claim {
                seq: entry.header.seq,
                kind: entry.header.kind.to_string(),
            }),
        }
    }

    fn apply_to_step(&mut self, index: StepIndex, entry: &Entry) -> Result<(), Error> {
        let seq = entry.header.seq;
        if let Event::SessionRecorded(session) = &entry.event {
            self.sessions.push(session.clone());
        }
        let step = self
            .steps
            .get_mut(index.0 as usize)
            .ok_or_else(|| Error::NoSuchStep {
                seq,
                kind: entry.header.kind.to_string(),
            })?;
        let expected = match &entry.event {
            Event::StepStarted(_) => Attempt(step.attempts.0.saturating_add(1)),
            _ => step.attempts,
        };
        let found = entry.header.attempt;
        let is_known = !matches!(entry.event, Event::Unknown(_)) || entry.is_erased;
        match next_status(&step.status, &entry.event) {
            Next::Becomes(_) | Next::Stays if is_known && found != expected => {
                Err(Error::Attempt {
                    seq,
                    kind: entry.header.kind.to_string(),
                    expected,
                    found,
                })
            }
            Next::Becomes(status) => {
                step.status = status;
                step.attempts = step.attempts.max(entry.header.attempt);
                step.last = seq;
                if matches!(entry.event, Event::StepUnstarted(_)) {
                    step.unstarted += 1;
                }
                if let Event::StepStarted(started) = &entry.event {
                    step.journal = started.journal;
                }
                if matches!(entry.event, Event::StepFailed(_)) {
                    // What is in its way from here on, nobody has decided about.
                    step.forced = false;
                }
                Ok(())
            }
            Next::Stays => {
                if matches!(entry.event, Event::StepForced(_)) {
                    (step.forced, step.set_aside) = (true, true);
                }
                Ok(())
            }
            Next::Impossible => Err(Error::Transition {
                seq,
                kind: entry.header.kind.to_string(),
                status: step.status.label(),
            }),
        }
    }

    /// What the steps that succeeded reported, by their index.
    pub fn outputs(&self) -> BTreeMap<StepIndex, Blob> {
        self.steps
            .iter()
            .filter_map(|step| match &step.status {
                StepStatus::Succeeded { done, .. } => Some((step.plan.index, done.output.clone())),
                StepStatus::Pending
                | StepStatus::Started
                | StepStatus::Failed(_)
                | StepStatus::Doubted { .. }
                | StepStatus::Drifted { .. } => None,
            })
            .collect()
    }
}

/// What an event says of its own place in the log, whatever was before it.
///
/// # Errors
/// When no log can have it there.
pub fn check_place(entry: &Entry) -> Result<(), Error> {
    let header = &entry.header;
    let seq = header.seq;
    let kind = || header.kind.to_string();
    if matches!(entry.event, Event::LogCreated(_)) != (seq == Seq(1)) {
        return Err(Error::Beginning { seq, kind: kind() });
    }
    if header.cause >= seq {
        let (kind, cause) = (kind(), header.cause);
        return Err(Error::Cause { seq, kind, cause });
    }
    if let Some(range) = named(&entry.event).find(|range| !range.is_before(seq)) {
        return Err(Error::Range {
            seq,
            kind: kind(),
            range,
        });
    }
    let of_operation = header.operation.is_some();
    let of_step = header.step.is_some();
    let fits = match &entry.event {
        Event::OperationIntended(_)
        | Event::OperationPlanned(_)
        | Event::OperationResumed(_)
        | Event::OperationInterrupted(_)
        | Event::OperationSucceeded(_)
        | Event::OperationFailed(_)
        | Event::OperationRolledBack(_)
        | Event::OperationStuck(_)
        | Event::OperationAbandoned(_)
        | Event::OperationPaced(_)
        | Event::OperationLacked(_) => of_operation && !of_step,
        Event::StepStarted(_)
        | Event::StepSucceeded(_)
        | Event::StepFailed(_)
        | Event::StepDoubted(_)
        | Event::StepUnstarted(_)
        | Event::StepDrifted(_)
        | Event::StepForced(_)
        | Event::StepAdopted(_) => of_operation && of_step,
        Event::LogCreated(_)
        | Event::InventoryRecorded(_)
        | Event::ErasureAnnounced(_)
        | Event::ErasureCompleted(_)
        | Event::SegmentsArchived(_)
        | Event::SegmentsRestored(_)
        | Event::LogRecovered(_)
        | Event::LogFenced(_) => !of_operation,
        Event::AllocationMade(_)
        | Event::AllocationReleased(_)
        | Event::OutputCaptured(_)
        | Event::SessionRecorded(_)
        | Event::Unknown(_) => true,
    };
    let counted = of_step == (header.attempt > Attempt(0));
    match fits && counted && (of_operation || !of_step) {
        true => Ok(()),
        false => Err(Error::Place { seq, kind: kind() }),
    }
}

/// The runs of other events that an event of the log's own upkeep is about.
fn named(event: &Event) -> impl Iterator<Item = SeqRange> + '_ {
    let (ranges, losses) = match event {
        Event::ErasureAnnounced(announced) => (announced.events.as_slice(), [].as_slice()),
        Event::SegmentsArchived(archived) => (archived.segments.as_slice(), [].as_slice()),
        Event::SegmentsRestored(restored) => (restored.segments.as_slice(), [].as_slice()),
        Event::LogRecovered(recovered) => ([].as_slice(), recovered.losses.as_slice()),
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
        | Event::StepStarted(_)
        | Event::StepSucceeded(_)
        | Event::StepFailed(_)
        | Event::StepDoubted(_)
        | Event::StepUnstarted(_)
        | Event::StepDrifted(_)
        | Event::StepForced(_)
        | Event::StepAdopted(_)
        | Event::OutputCaptured(_)
        | Event::SessionRecorded(_)
        | Event::ErasureCompleted(_)
        | Event::LogFenced(_)
        | Event::Unknown(_) => ([].as_slice(), [].as_slice()),
    };
    let lost = losses.iter().map(|loss: &Loss| loss.events);
    ranges.iter().copied().chain(lost)
}

/// Where an event puts an operation that has ended: one that succeeded, or was given up, can be taken back; and given up, where
/// that was begun and given up itself.
///
/// # Errors
/// When nothing can follow, or not this.
pub fn after_end(status: OperationStatus, entry: &Entry) -> Result<OperationStatus, Error> {
    match (status, &entry.event) {
        (
            OperationStatus::Succeeded | OperationStatus::Abandoned,
            Event::OperationRolledBack(_),
        ) => Ok(OperationStatus::RolledBack),
        (OperationStatus::Succeeded | OperationStatus::Abandoned, Event::OperationAbandoned(_)) => {
            Ok(OperationStatus::Abandoned)
        }
        _ => Err(Error::Ended {
            seq: entry.header.seq,
            kind: entry.header.kind.to_string(),
            status: status.label(),
        }),
    }
}

fn twice(entry: &Entry) -> Error {
    Error::Twice {
        seq: entry.header.seq,
        kind: entry.header.kind.to_string(),
    }
}

fn check_plan(steps: &[PlannedStep], seq: Seq) -> Result<(), Error> {
    let sound = |(place, step): (usize, &PlannedStep)| {
        step.index.0 as usize == place
            && step
                .after
                .iter()
                .all(|index| (index.0 as usize) < steps.len() && *index != step.index)
    };
    match steps
        .iter()
        .enumerate()
        .position(|numbered| !sound(numbered))
    {
        None => Ok(()),
        Some(index) => Err(Error::Plan { seq, index }),
    }
}

/// Where an event of an operation puts it; `None` when it leaves it where it is.
pub(crate) fn operation_status(event: &Event) -> Option<OperationStatus> {
    match event {
        Event::OperationIntended(_) => Some(OperationStatus::Intended),
        Event::OperationPlanned(_) | Event::OperationResumed(_) => Some(OperationStatus::Running),
        Event::OperationInterrupted(_) => Some(OperationStatus::Interrupted),
        Event::OperationSucceeded(_) => Some(OperationStatus::Succeeded),
        Event::OperationFailed(_) => Some(OperationStatus::Failed),
        Event::OperationRolledBack(_) => Some(OperationStatus::RolledBack),
        Event::OperationStuck(_) => Some(OperationStatus::Stuck),
        Event::OperationAbandoned(_) => Some(OperationStatus::Abandoned),
        Event::LogCreated(_)
        | Event::InventoryRecorded(_)
        | Event::AllocationMade(_)
        | Event::AllocationReleased(_)
        | Event::OperationPaced(_)
        | Event::OperationLacked(_)
        | Event::StepStarted(_)
        | Event::StepSucceeded(_)
        | Event::StepFailed(_)
        | Event::StepDoubted(_)
        | Event::StepUnstarted(_)
        | Event::StepDrifted(_)
        | Event::StepForced(_)
        | Event::StepAdopted(_)
        | Event::OutputCaptured(_)
        | Event::SessionRecorded(_)
        | Event::ErasureAnnounced(_)
        | Event::ErasureCompleted(_)
        | Event::SegmentsArchived(_)
        | Event::SegmentsRestored(_)
        | Event::LogRecovered(_)
        | Event::LogFenced(_)
        | Event::Unknown(_) => None,
    }
}
