//! An operation with its steps and what its programs printed.

use serde::Serialize;
use serde_json::Value;
use tallybook_events::event::Event;
use tallybook_events::ids::Seq;
use tallybook_events::name::HostName;
use tallybook_events::step::Captured;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{Operation, Step, StepStatus};
use tallybook_replay::state::OperationSummary;

use super::OperationView;
use crate::render::{packed, summary};

/// A step of an operation.
#[derive(Debug, Clone, Serialize)]
pub struct StepView {
    /// Its position.
    pub index: u32,
    /// The host it acts on.
    pub host: HostName,
    /// What it is about.
    pub subject: String,
    /// Its kind.
    pub kind: String,
    /// What it does, in a line.
    pub summary: String,
    /// `pending`, `started`, `succeeded`, `failed` or `in_doubt`.
    pub status: &'static str,
    /// How many times it was started.
    pub attempts: u32,
    /// Why it failed or is in doubt.
    pub message: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The steps that must have succeeded before.
    pub after: Vec<u32>,
    /// `undo`, `keep` or `irreversible`: what a rollback can do about it.
    pub reversal: &'static str,
    /// Its parameters.
    pub params: Value,
    /// What it reported, once it succeeded.
    pub output: Value,
    /// What became true, in words.
    pub facts: Vec<String>,
    /// Its newest event.
    pub last: Seq,
}

impl From<&Step> for StepView {
    fn from(step: &Step) -> Self {
        let plan = &step.plan;
        let (message, hint) = match &step.status {
            StepStatus::Failed(failure) => (Some(failure.message.clone()), failure.hint.clone()),
            StepStatus::Doubted { why } => (Some(why.clone()), None),
            StepStatus::Drifted { what } => (Some(what.clone()), None),
            StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => {
                (None, None)
            }
        };
        let done = match &step.status {
            StepStatus::Succeeded { done, .. } => Some(done),
            StepStatus::Pending
            | StepStatus::Started
            | StepStatus::Failed(_)
            | StepStatus::Doubted { .. }
            | StepStatus::Drifted { .. } => None,
        };
        StepView {
            index: plan.index.0,
            host: plan.host.clone(),
            subject: plan.subject.to_string(),
            kind: plan.kind.clone(),
            summary: plan.summary.clone(),
            status: match &step.status {
                StepStatus::Pending => "pending",
                StepStatus::Started => "started",
                StepStatus::Succeeded { .. } if step.is_adopted() => "adopted",
                StepStatus::Succeeded { .. } => "succeeded",
                StepStatus::Failed(_) => "failed",
                StepStatus::Doubted { .. } => "in_doubt",
                StepStatus::Drifted { .. } => "drifted",
            },
            attempts: step.attempts.0,
            message,
            hint,
            after: plan.after.iter().map(|index| index.0).collect(),
            reversal: summary::reversal(&plan.reversal),
            params: packed::value(&plan.params),
            output: done.map_or(Value::Null, |done| packed::value(&done.output)),
            facts: done.map_or_else(Vec::new, |done| {
                done.facts.iter().map(summary::fact).collect()
            }),
            last: step.last,
        }
    }
}

/// An operation, whole.
#[derive(Debug, Clone, Serialize)]
pub struct OperationWhole {
    /// In short.
    #[serde(flatten)]
    pub operation: OperationView,
    /// The inventory it runs with.
    pub inventory: Option<Seq>,
    /// Its steps.
    pub steps: Vec<StepView>,
    /// What programs printed, with the event that holds it.
    pub captured: Vec<CapturedView>,
}

impl OperationWhole {
    /// Of an operation.
    pub fn new(operation: &Operation, known: &OperationSummary, entries: &[Entry]) -> Self {
        OperationWhole {
            operation: OperationView::new(&operation.id, known),
            inventory: (operation.inventory != Seq::NONE).then_some(operation.inventory),
            steps: operation.steps.iter().map(StepView::from).collect(),
            captured: entries.iter().filter_map(CapturedView::of).collect(),
        }
    }
}

/// What a program printed.
#[derive(Debug, Clone, Serialize)]
pub struct CapturedView {
    /// The event that holds it.
    pub seq: Seq,
    /// The step that ran it.
    pub step: Option<u32>,
    /// What ran.
    pub command: String,
    /// Its exit status; `null` when a signal ended it.
    pub exit: Option<i32>,
    /// What it printed.
    pub text: String,
    /// How many bytes were dropped from the middle.
    pub dropped_bytes: u64,
}

impl CapturedView {
    /// Of an event, when it holds output.
    pub fn of(entry: &Entry) -> Option<Self> {
        let Event::OutputCaptured(output) = &entry.event else {
            return None;
        };
        let Captured {
            command,
            exit,
            text,
            dropped_bytes,
        } = &output.captured;
        Some(CapturedView {
            seq: entry.header.seq,
            step: entry.header.step.map(|step| step.0),
            command: command.clone(),
            exit: *exit,
            text: String::from_utf8_lossy(&text.0).into_owned(),
            dropped_bytes: *dropped_bytes,
        })
    }
}
