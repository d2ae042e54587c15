//! The shapes of JSON output. A field, once there, keeps its name and its meaning; `docs/JSON.md` lists them.
//!
//! Programs depend on these, so nothing here is made from a debug string or from a stored encoding by accident.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tallybook_events::allocation::{Allocation, Forward};
use tallybook_events::event::Event;
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::header::{Header, Outcome};
use tallybook_events::ids::{Hash, OperationId, Seq};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::{Action, Captured, PlannedStep};
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::state::{Head, OperationSummary, State};

use super::{packed, summary};
use crate::clock::rfc3339;

/// An event and its time.
#[derive(Debug, Clone, Serialize)]
pub struct At {
    /// Its position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
}

/// Where the log ends.
#[derive(Debug, Clone, Serialize)]
pub struct HeadView {
    /// The log.
    pub log: Option<String>,
    /// Its epoch.
    pub epoch: u32,
    /// The newest event.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
    /// Events of kinds that this program does not know.
    pub unknown: u64,
}

impl From<&Head> for HeadView {
    fn from(head: &Head) -> Self {
        HeadView {
            log: head.log.map(|log| log.to_string()),
            epoch: head.epoch.0,
            seq: head.seq,
            hash: head.hash,
            unknown: head.unknown,
        }
    }
}

/// A host.
#[derive(Debug, Clone, Serialize)]
pub struct HostView {
    /// Its name.
    pub name: HostName,
    /// Whether it has what the tool needs.
    pub installed: bool,
    /// Its bridge, when it is prepared.
    pub bridge: Option<String>,
    /// The bridge's own address, when it is prepared.
    pub gateway: Option<String>,
    /// How many containers it has.
    pub containers: usize,
    /// How many of them run.
    pub running: usize,
    /// What was observed last.
    pub properties: BTreeMap<String, String>,
    /// The newest event about it.
    pub last: Seq,
}

/// What something was made from.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OriginView {
    /// A distribution.
    Scratch {
        /// Which.
        distribution: String,
        /// Its release; empty where there is none.
        release: String,
    },
    /// A generation of a template.
    Template {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: u32,
        /// The hash of its manifest.
        manifest: Hash,
    },
    /// Another container.
    Container {
        /// The host it was on.
        host: HostName,
        /// Its name there.
        container: ContainerName,
    },
}

impl From<&Origin> for OriginView {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Scratch {
                distribution,
                release,
            } => OriginView::Scratch {
                distribution: distribution.clone(),
                release: release.clone(),
            },
            Origin::Template {
                template,
                generation,
                manifest,
            } => OriginView::Template {
                template: template.clone(),
                generation: generation.0,
                manifest: *manifest,
            },
            Origin::Container { host, container } => OriginView::Container {
                host: host.clone(),
                container: container.clone(),
            },
        }
    }
}

/// What a container was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllocationView {
    /// Its address.
    pub address: String,
    /// Its MAC address; `null` before there is a log to derive it from.
    pub mac: Option<String>,
    /// Its forwarded ports.
    pub forwards: Vec<Forward>,
}

impl From<&Allocation> for AllocationView {
    fn from(allocation: &Allocation) -> Self {
        AllocationView {
            address: allocation.address.to_string(),
            mac: Some(allocation.mac.to_string()),
            forwards: allocation.forwards.clone(),
        }
    }
}

/// A container.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerView {
    /// Its host.
    pub host: HostName,
    /// Its name.
    pub name: ContainerName,
    /// Whether it runs.
    pub running: bool,
    /// The address it answered for.
    pub address: Option<String>,
    /// What it was given.
    pub allocation: Option<AllocationView>,
    /// What it was made from.
    pub origin: OriginView,
    /// How it is stored.
    pub backing: Backing,
    /// Its machine id; empty where it makes one at first boot.
    pub machine_id: String,
    /// Fingerprints of its SSH host keys.
    pub host_keys: Vec<String>,
    /// Who may log in by key.
    pub keys: Vec<String>,
    /// The event that made it.
    pub created: At,
    /// The newest event about it.
    pub last: Seq,
}

/// A generation of a template.
#[derive(Debug, Clone, Serialize)]
pub struct TemplateView {
    /// The template.
    pub name: TemplateName,
    /// The generation.
    pub generation: u32,
    /// The hash of its manifest.
    pub manifest: Hash,
    /// Number of entries.
    pub entries: u64,
    /// Content in bytes.
    pub size_bytes: u64,
    /// The hosts that have it.
    pub hosts: Vec<HostName>,
    /// The event that first reported it.
    pub created: At,
}

/// An allocation with whose it is.
#[derive(Debug, Clone, Serialize)]
pub struct HeldAllocation {
    /// The host.
    pub host: HostName,
    /// The container.
    pub container: ContainerName,
    /// What it was given.
    #[serde(flatten)]
    pub allocation: AllocationView,
}

/// An operation in short.
#[derive(Debug, Clone, Serialize)]
pub struct OperationView {
    /// Its id.
    pub id: String,
    /// Its short id.
    pub short: String,
    /// What was asked, as it would be typed.
    pub intent: String,
    /// Where it stands.
    pub status: OperationStatus,
    /// Why.
    pub reason: Option<String>,
    /// Who asked.
    pub by: String,
    /// Its first event.
    pub first: At,
    /// Its newest event.
    pub last: At,
    /// How many events it has.
    pub events: u64,
    /// What it claims.
    pub claims: Vec<String>,
}

impl OperationView {
    /// Of an operation in the state.
    pub fn new(id: &OperationId, known: &OperationSummary) -> Self {
        OperationView {
            id: id.to_string(),
            short: id.short(),
            intent: known.intent.summary(),
            status: known.status,
            reason: known.reason.clone(),
            by: known.actor.label(),
            first: At {
                seq: known.first,
                time: rfc3339(known.started_unix_us),
            },
            last: At {
                seq: known.last,
                time: rfc3339(known.last_unix_us),
            },
            events: known.events,
            claims: known.claims.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Who holds something.
#[derive(Debug, Clone, Serialize)]
pub struct ClaimView {
    /// What is held.
    pub subject: String,
    /// By which operation.
    pub operation: OperationId,
}

/// The newest inventory.
#[derive(Debug, Clone, Serialize)]
pub struct InventoryView {
    /// The event that recorded it.
    pub seq: Seq,
    /// The hash of its text.
    pub hash: Hash,
}

/// The state of the cloud.
#[derive(Debug, Clone, Serialize)]
pub struct StateView {
    /// Where the log ends.
    pub head: HeadView,
    /// The newest inventory.
    pub inventory: Option<InventoryView>,
    /// Hosts.
    pub hosts: Vec<HostView>,
    /// Containers.
    pub containers: Vec<ContainerView>,
    /// Templates.
    pub templates: Vec<TemplateView>,
    /// What containers were given.
    pub allocations: Vec<HeldAllocation>,
    /// Operations.
    pub operations: Vec<OperationView>,
    /// Who holds what.
    pub claims: Vec<ClaimView>,
}

/// The hosts of a state.
pub fn hosts(state: &State) -> Vec<HostView> {
    let hosts = state.hosts.iter();
    hosts
        .map(|(name, host)| {
            let on = || state.containers.iter().filter(|((on, _), _)| on == name);
            HostView {
                name: name.clone(),
                installed: host.installed,
                bridge: host.prepared.as_ref().map(|(bridge, _)| bridge.clone()),
                gateway: host.prepared.as_ref().map(|(_, gateway)| gateway.clone()),
                containers: on().count(),
                running: on().filter(|(_, container)| container.running).count(),
                properties: host.properties.clone(),
                last: host.last,
            }
        })
        .collect()
}

/// The containers of a state.
pub fn containers(state: &State) -> Vec<ContainerView> {
    let containers = state.containers.iter();
    containers
        .map(|(key, container)| ContainerView {
            host: key.0.clone(),
            name: key.1.clone(),
            running: container.running,
            address: container.address.clone(),
            allocation: state.allocations.get(key).map(AllocationView::from),
            origin: OriginView::from(&container.origin),
            backing: container.backing,
            machine_id: container.machine_id.clone(),
            host_keys: container.host_keys.clone(),
            keys: container.keys.clone(),
            created: At {
                seq: container.created,
                time: rfc3339(container.created_unix_us),
            },
            last: container.last,
        })
        .collect()
}

/// The templates of a state.
pub fn templates(state: &State) -> Vec<TemplateView> {
    let templates = state.templates.iter();
    templates
        .map(|((name, generation), known)| TemplateView {
            name: name.clone(),
            generation: generation.0,
            manifest: known.manifest,
            entries: known.entries,
            size_bytes: known.size_bytes,
            hosts: known.hosts.iter().cloned().collect(),
            created: At {
                seq: known.created,
                time: rfc3339(known.created_unix_us),
            },
        })
        .collect()
}

/// The operations of a state, by their beginning.
pub fn operations(state: &State) -> Vec<OperationView> {
    let mut operations: Vec<OperationView> = state
        .operations
        .iter()
        .map(|(id, known)| OperationView::new(id, known))
        .collect();
    operations.sort_by_key(|operation| operation.first.seq);
    operations
}

/// The claims of a state.
pub fn claims(state: &State) -> Vec<ClaimView> {
    let claims = state.claims.iter();
    claims
        .map(|(subject, id)| ClaimView {
            subject: subject.to_string(),
            operation: *id,
        })
        .collect()
}

impl From<&State> for StateView {
    fn from(state: &State) -> Self {
        let allocations = state.allocations.iter();
        StateView {
            head: HeadView::from(&state.head),
            inventory: state
                .inventory
                .map(|(seq, hash)| InventoryView { seq, hash }),
            hosts: hosts(state),
            containers: containers(state),
            templates: templates(state),
            allocations: allocations
                .map(|((host, container), allocation)| HeldAllocation {
                    host: host.clone(),
                    container: container.clone(),
                    allocation: AllocationView::from(allocation),
                })
                .collect(),
            operations: operations(state),
            claims: claims(state),
        }
    }
}

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
            kind: header.kind.clone(),
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
            Event::Unknown(bytes) if summary::is_erased(&bytes.0) => ("redacted", Value::Null),
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
    if let Event::StepSucceeded(succeeded) = event
        && let Some(output) = value.pointer_mut("/done/output")
    {
        *output = packed::value(&succeeded.done.output);
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
        use tallybook_events::step::Reversal;
        let plan = &step.plan;
        let (message, hint) = match &step.status {
            StepStatus::Failed(failure) => (Some(failure.message.clone()), failure.hint.clone()),
            StepStatus::Doubted { why } => (Some(why.clone()), None),
            StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => {
                (None, None)
            }
        };
        let done = match &step.status {
            StepStatus::Succeeded { done, .. } => Some(done),
            StepStatus::Pending
            | StepStatus::Started
            | StepStatus::Failed(_)
            | StepStatus::Doubted { .. } => None,
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
                StepStatus::Succeeded { .. } => "succeeded",
                StepStatus::Failed(_) => "failed",
                StepStatus::Doubted { .. } => "in_doubt",
            },
            attempts: step.attempts.0,
            message,
            hint,
            after: plan.after.iter().map(|index| index.0).collect(),
            reversal: match plan.reversal {
                Reversal::Undo => "undo",
                Reversal::Keep { .. } => "keep",
                Reversal::Irreversible { .. } => "irreversible",
            },
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
