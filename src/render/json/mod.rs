//! The shapes of JSON output. A field, once there, keeps its name and its meaning; `docs/JSON.md` lists them.
//!
//! Programs depend on these, so nothing here is made from a debug string or from a stored encoding by accident.

mod event;
mod operation;

use std::collections::BTreeMap;

use serde::Serialize;
use tallybook_events::allocation::{Allocation, Forward};
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::ids::{Hash, OperationId, Seq};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::Mark;
use tallybook_replay::operation::OperationStatus;
use tallybook_replay::state::{Head, OperationSummary, State};

use crate::clock::rfc3339;
pub use event::{EventView, LogLine};
pub use operation::{CapturedView, OperationWhole, StepView};

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

/// A host with another tree in the place of a generation.
#[derive(Debug, Clone, Serialize)]
pub struct DifferingView {
    /// The host.
    pub host: HostName,
    /// The hash of that tree's manifest.
    pub manifest: Hash,
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
    /// The hosts that have another tree in its place.
    pub differing: Vec<DifferingView>,
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

/// What a host was shown that this log does not have.
#[derive(Debug, Clone, Serialize)]
pub struct FencedView {
    /// The host.
    pub host: HostName,
    /// That event, and its epoch and hash.
    #[serde(flatten)]
    pub seen: Mark,
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
    /// Why nothing may be done to any host, where that is so.
    pub fenced: Option<FencedView>,
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
            differing: known
                .differing
                .iter()
                .map(|(host, manifest)| DifferingView {
                    host: host.clone(),
                    manifest: *manifest,
                })
                .collect(),
            created: At {
                seq: known.created,
                time: rfc3339(known.created_unix_us),
            },
        })
        .collect()
}

/// Operations, by their beginning.
pub fn operations(operations: &BTreeMap<OperationId, OperationSummary>) -> Vec<OperationView> {
    let mut operations: Vec<OperationView> = operations
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
            operations: operations(&state.operations),
            claims: claims(state),
            fenced: state
                .fenced
                .clone()
                .map(|(host, seen)| FencedView { host, seen }),
        }
    }
}
