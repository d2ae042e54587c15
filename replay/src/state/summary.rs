//! Operations in the state: how each stands, and what it holds.

use serde::{Deserialize, Serialize};
use tallybook_events::actor::Actor;
use tallybook_events::event::{Event, OperationIntended};
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::subject::Subject;

use super::{About, Key, State, Touched};
use crate::operation::OperationStatus;

/// An operation in one line; all of it is folded from its own events when asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// What was asked.
    pub intent: Intent,
    /// Who asked.
    pub actor: Actor,
    /// Where it stands.
    pub status: OperationStatus,
    /// Where it stood when another operation began to take it back, and why.
    pub before: Option<(OperationStatus, Option<String>)>,
    /// Why, where something said so.
    pub reason: Option<String>,
    /// Its first event.
    pub first: Seq,
    /// Its newest event.
    pub last: Seq,
    /// How many events it has.
    pub events: u64,
    /// When it began, in microseconds since 1970 by the controller's clock.
    pub started_unix_us: u64,
    /// Its newest event's time, likewise.
    pub last_unix_us: u64,
    /// What it claims.
    pub claims: Vec<Subject>,
    /// The `inventory.recorded` that it needs to go on, or to be taken back.
    pub inventory: Seq,
}

impl OperationSummary {
    /// Whether somebody still has to do something about it, or does it right now. A session in a container that
    /// failed, or whose line was lost, is over: it holds nothing, and can neither be resumed nor taken back.
    pub const fn is_open(&self) -> bool {
        let is_over = self.intent.is_session()
            && matches!(
                self.status,
                OperationStatus::Failed | OperationStatus::Interrupted
            );
        !self.status.is_final() && !is_over
    }
}

impl State {
    pub(super) fn apply_to_operation(
        &mut self,
        id: OperationId,
        about: &About<'_>,
        event: &Event,
        status: Option<OperationStatus>,
        touched: &mut Touched,
    ) {
        touched.add(|| Key::Operation(id));
        if let Event::OperationIntended(intended) = event {
            self.begin_operation(id, intended, about, touched);
            return;
        }
        let Some(summary) = self.operations.get_mut(&id) else {
            return;
        };
        summary.last = about.seq;
        summary.last_unix_us = about.time_unix_us;
        summary.events += 1;
        let Some(status) = status else {
            return;
        };
        summary.status = status;
        summary.before = None;
        summary.reason = reason(event);
        if status.is_final() {
            let claims = std::mem::take(&mut summary.claims);
            for subject in &claims {
                if self.claims.get(subject) == Some(&id) {
                    self.claims.remove(subject);
                    touched.add(|| Key::Claim(subject.clone()));
                }
            }
            summary.claims = claims;
        }
        if status == OperationStatus::Abandoned {
            for operation in summary.intent.takes_back().to_vec() {
                self.give_back(operation, touched);
            }
        }
    }

    /// The operation that took one back was given up: that one stands where it stood, and claims what it did.
    fn give_back(&mut self, id: OperationId, touched: &mut Touched) {
        let Some(original) = self.operations.get_mut(&id) else {
            return;
        };
        let Some((status, reason)) = original.before.take() else {
            return;
        };
        touched.add(|| Key::Operation(id));
        original.status = status;
        original.reason = reason;
        if !status.is_final() {
            for subject in original.claims.clone() {
                touched.add(|| Key::Claim(subject.clone()));
                self.claims.entry(subject).or_insert(id);
            }
        }
    }

    fn begin_operation(
        &mut self,
        id: OperationId,
        intended: &OperationIntended,
        about: &About<'_>,
        touched: &mut Touched,
    ) {
        for subject in &intended.claims {
            self.claims.insert(subject.clone(), id);
            touched.add(|| Key::Claim(subject.clone()));
        }
        for operation in intended.intent.takes_back() {
            let Some(original) = self.operations.get_mut(operation) else {
                continue;
            };
            let status = std::mem::replace(&mut original.status, OperationStatus::RollingBack);
            original.before = Some((status, original.reason.take()));
            original.reason = Some(format!("being rolled back by {}", id.short()));
            touched.add(|| Key::Operation(*operation));
        }
        self.operations.insert(
            id,
            OperationSummary {
                intent: intended.intent.clone(),
                actor: (about.actor)(),
                status: OperationStatus::Intended,
                before: None,
                reason: None,
                first: about.seq,
                last: about.seq,
                events: 1,
                started_unix_us: about.time_unix_us,
                last_unix_us: about.time_unix_us,
                claims: intended.claims.clone(),
                inventory: intended.inventory,
            },
        );
    }
}

/// Why an operation stands where an event put it. Being planned, resumed or done has no reason.
fn reason(event: &Event) -> Option<String> {
    if let Event::OperationInterrupted(interrupted) = event {
        Some(interrupted.reason.clone())
    } else if let Event::OperationFailed(failed) = event {
        Some(failed.reason.clone())
    } else if let Event::OperationStuck(stuck) = event {
        Some(stuck.reason.clone())
    } else if let Event::OperationAbandoned(abandoned) = event {
        Some(abandoned.reason.clone())
    } else if let Event::OperationRolledBack(rolled_back) = event {
        Some(format!("rolled back by {}", rolled_back.by.short()))
    } else {
        None
    }
}
