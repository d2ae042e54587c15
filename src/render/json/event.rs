//! Events: a line of `log`, and the whole of one.

use serde::Serialize;
use serde_json::Value;
use tallybook_events::event::{Event, StepAdopted, StepSucceeded};
use tallybook_events::header::{Header, Outcome};
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::step::{Action, PlannedStep};
use tallybook_replay::entry::Entry;

use crate::clock::rfc3339;
use crate::render::{packed, summary};

/// One line of `log`.
#[derive(Debug, Clone, Serialize)]
pub struct LogLine {
    /// Its position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// What it is about.
    pub subject: String,
    /// Its kind.
    pub kind: String,
    /// The version of its payload.
    pub kind_version: u16,
    /// Who made it happen.
    pub actor: String,
    /// The operation it belongs to.
    pub operation: Option<String>,
    /// The step of that operation.
    pub step: Option<u32>,
    /// Which start of that step.
    pub attempt: Option<u32>,
    /// How what it reports ended.
    pub outcome: Outcome,
    /// The event that caused it.
    pub cause: Option<Seq>,
    /// What it says, in a line for people.
    pub summary: String,
    /// Its header hash.
    pub hash: Hash,
}

impl From<&Entry> for LogLine {
    fn from(entry: &Entry) -> Self {
        let header = &entry.header;
        LogLine {
            seq: header.seq,
            time: rfc3339(header.time_unix_us),
            subject: header.subject.to_string(),
            kind: header.kind.to_string(),
            kind_version: header.kind_version,
            actor: header.actor.label(),
            operation: header.operation.map(|id| id.to_string()),
            step: header.step.map(|step| step.0),
            attempt: header.step.map(|_| header.attempt.0),
            outcome: header.outcome,
            cause: (header.cause != Seq::NONE).then_some(header.cause),
            summary: summary::event(entry),
            hash: entry.hash,
        }
    }
}

/// One event, whole.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    /// Its header, as stored.
    pub header: Header,
    /// Its header hash.
    pub hash: Hash,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// `known`, `unknown` (of a kind that this program does not know) or `redacted`.
    pub payload_is: &'static str,
    /// Its payload, as stored; parameters and outputs of steps decoded.
    pub payload: Value,
}

impl EventView {
    /// Of an event.
    ///
    /// # Errors
    /// When its payload has no JSON form.
    pub fn new(entry: &Entry) -> Result<Self, serde_json::Error> {
        let (payload_is, payload) = match &entry.event {
            Event::Unknown(_) if entry.is_erased => ("redacted", Value::Null),
            Event::Unknown(bytes) => ("unknown", packed::value(bytes)),
            known => ("known", payload(known)?),
        };
        Ok(EventView {
            header: entry.header.clone(),
            hash: entry.hash,
            time: rfc3339(entry.header.time_unix_us),
            payload_is,
            payload,
        })
    }
}

/// A payload with what is packed in it unpacked.
fn payload(event: &Event) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(event)?;
    if let Event::OperationPlanned(planned) = event
        && let Some(steps) = value.get_mut("steps").and_then(Value::as_array_mut)
    {
        for (shown, step) in steps.iter_mut().zip(&planned.steps) {
            unpack_plan(shown, step);
        }
    }
    if let Event::StepSucceeded(StepSucceeded { done, .. })
    | Event::StepAdopted(StepAdopted { done, .. }) = event
        && let Some(output) = value.pointer_mut("/done/output")
    {
        *output = packed::value(&done.output);
    }
    Ok(value)
}

fn unpack_plan(shown: &mut Value, step: &PlannedStep) {
    if let Some(params) = shown.get_mut("params") {
        *params = packed::value(&step.params);
    }
    if let Action::Undo {
        output: Some(output),
        ..
    } = &step.action
        && let Some(place) = shown.pointer_mut("/action/Undo/output")
    {
        *place = packed::value(output);
    }
}
