//! The state of the cloud, folded from events one at a time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tallybook_events::actor::Actor;
use tallybook_events::allocation::Allocation;
use tallybook_events::event::{Event, OperationIntended};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::{Epoch, Generation, Hash, LogId, OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::subject::Subject;

use crate::entry::Entry;
use crate::operation::{OperationStatus, operation_status};

/// Rises whenever the same events would fold to something else: stored projections of another version are rebuilt.
pub const CODE_VERSION: u32 = 2;

/// A host, as the facts say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    /// What was observed last: `os`, `kernel`, `arch`, ….
    pub properties: BTreeMap<String, String>,
    /// Whether it has what the tool needs.
    pub installed: bool,
    /// The bridge and gateway, when it can run containers.
    pub prepared: Option<(String, String)>,
    /// The newest event about it.
    pub last: Seq,
}

/// A container, as the facts say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// What it was made from.
    pub origin: Origin,
    /// How it is stored.
    pub backing: Backing,
    /// Whether it runs.
    pub running: bool,
    /// The address it answered for.
    pub address: Option<String>,
    /// Its machine id; empty where it makes one at first boot.
    pub machine_id: String,
    /// SHA-256 fingerprints of its SSH host keys.
    pub host_keys: Vec<String>,
    /// Who may log in by key.
    pub keys: Vec<String>,
    /// The event that made it.
    pub created: Seq,
    /// When, in microseconds since 1970 by the controller's clock.
    pub created_unix_us: u64,
    /// The newest event about it.
    pub last: Seq,
}

/// A generation of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateGeneration {
    /// The hash of its manifest: its identity.
    pub manifest: Hash,
    /// Number of entries.
    pub entries: u64,
    /// Content in bytes.
    pub size_bytes: u64,
    /// The hosts that have it, whole.
    pub hosts: BTreeSet<HostName>,
    /// The hosts that reported another tree as this generation, with its manifest's hash: they do not have this one.
    pub differing: BTreeMap<HostName, Hash>,
    /// The event that first reported it.
    pub created: Seq,
    /// When, in microseconds since 1970 by the controller's clock.
    pub created_unix_us: u64,
}

/// An operation in one line; all of it is folded from its own events when asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// What was asked.
    pub intent: Intent,
    /// Who asked.
    pub actor: Actor,
    /// Where it stands.
    pub status: OperationStatus,
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
}

impl OperationSummary {
    /// Whether somebody still has to do something about it, or does it right now. A session in a container that
    /// failed, or whose line was lost, is over: it holds nothing, and can neither be resumed nor taken back.
    pub const fn is_open(&self) -> bool {
        let is_session = matches!(
            self.intent,
            Intent::ContainerExec { .. } | Intent::ContainerShell { .. }
        );
        let is_over = is_session
            && matches!(
                self.status,
                OperationStatus::Failed | OperationStatus::Interrupted
            );
        !self.status.is_final() && !is_over
    }
}

/// The newest event of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its position; 0 when there is none.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
}

/// The head of a log: where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The log; `None` before its first event.
    pub log: Option<LogId>,
    /// The epoch of the newest event.
    pub epoch: Epoch,
    /// The newest event.
    pub seq: Seq,
    /// Its header hash.
    pub hash: Hash,
    /// Events of kinds that this program does not know: the state may lack what they say.
    pub unknown: u64,
}

impl Default for Head {
    fn default() -> Self {
        Head {
            log: None,
            epoch: Epoch(0),
            seq: Seq::NONE,
            hash: Hash::ZERO,
            unknown: 0,
        }
    }
}

/// Which entity of the state an event changed: what a store must write again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The newest event of a subject.
    Link(Subject),
    /// A host.
    Host(HostName),
    /// A container.
    Container(HostName, ContainerName),
    /// A generation of a template.
    Template(TemplateName, Generation),
    /// What a container was given.
    Allocation(HostName, ContainerName),
    /// An operation.
    Operation(OperationId),
    /// Who holds a subject.
    Claim(Subject),
    /// The newest inventory.
    Inventory,
}

/// The state of the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Where the log ends.
    pub head: Head,
    /// The newest event of each subject.
    pub links: BTreeMap<Subject, Link>,
    /// Hosts.
    pub hosts: BTreeMap<HostName, Host>,
    /// Containers, by host and name.
    pub containers: BTreeMap<(HostName, ContainerName), Container>,
    /// Templates, by name and generation.
    pub templates: BTreeMap<(TemplateName, Generation), TemplateGeneration>,
    /// What containers were given.
    pub allocations: BTreeMap<(HostName, ContainerName), Allocation>,
    /// Operations.
    pub operations: BTreeMap<OperationId, OperationSummary>,
    /// Who holds which subject.
    pub claims: BTreeMap<Subject, OperationId>,
    /// The newest `inventory.recorded` and the hash of its text.
    pub inventory: Option<(Seq, Hash)>,
}

impl State {
    /// Takes the next event. Returns what it changed.
    ///
    /// Events that a sound log can't hold (an operation event without its beginning) change nothing here:
    /// `verify` names them, a fold never fails.
    pub fn apply(&mut self, entry: &Entry) -> BTreeSet<Key> {
        let header = &entry.header;
        let mut touched = BTreeSet::new();
        self.head = Head {
            log: Some(header.log),
            epoch: header.epoch,
            seq: header.seq,
            hash: entry.hash,
            unknown: self.head.unknown + u64::from(matches!(entry.event, Event::Unknown(_))),
        };
        self.links.insert(
            header.subject.clone(),
            Link {
                seq: header.seq,
                hash: entry.hash,
            },
        );
        touched.insert(Key::Link(header.subject.clone()));
        if let Some(id) = header.operation {
            self.apply_to_operation(id, entry, &mut touched);
        }
        match &entry.event {
            Event::InventoryRecorded(recorded) => {
                self.inventory = Some((header.seq, recorded.hash));
                touched.insert(Key::Inventory);
            }
            Event::AllocationMade(made) => {
                if let Subject::Container(host, container) = &header.subject {
                    let key = (host.clone(), container.clone());
                    self.allocations.insert(key, made.allocation.clone());
                    touched.insert(Key::Allocation(host.clone(), container.clone()));
                }
            }
            Event::AllocationReleased(_) => {
                if let Subject::Container(host, container) = &header.subject {
                    self.allocations.remove(&(host.clone(), container.clone()));
                    touched.insert(Key::Allocation(host.clone(), container.clone()));
                }
            }
            Event::StepSucceeded(succeeded) => {
                for fact in &succeeded.done.facts {
                    self.apply_fact(fact, entry, &mut touched);
                }
            }
            Event::LogCreated(_)
            | Event::OperationIntended(_)
            | Event::OperationPlanned(_)
            | Event::OperationResumed(_)
            | Event::OperationInterrupted(_)
            | Event::OperationSucceeded(_)
            | Event::OperationFailed(_)
            | Event::OperationRolledBack(_)
            | Event::OperationStuck(_)
            | Event::StepStarted(_)
            | Event::StepFailed(_)
            | Event::StepDoubted(_)
            | Event::StepUnstarted(_)
            | Event::OutputCaptured(_)
            | Event::SessionRecorded(_)
            | Event::Unknown(_) => {}
        }
        touched
    }

    fn apply_to_operation(&mut self, id: OperationId, entry: &Entry, touched: &mut BTreeSet<Key>) {
        let header = &entry.header;
        touched.insert(Key::Operation(id));
        if let Event::OperationIntended(intended) = &entry.event {
            self.begin_operation(id, intended, entry, touched);
            return;
        }
        let Some(summary) = self.operations.get_mut(&id) else {
            return;
        };
        summary.last = header.seq;
        summary.last_unix_us = header.time_unix_us;
        summary.events += 1;
        let Some(status) = operation_status(&entry.event) else {
            return;
        };
        summary.status = status;
        match &entry.event {
            Event::OperationInterrupted(interrupted) => {
                summary.reason = Some(interrupted.reason.clone());
            }
            Event::OperationFailed(failed) => summary.reason = Some(failed.reason.clone()),
            Event::OperationStuck(stuck) => summary.reason = Some(stuck.reason.clone()),
            Event::OperationRolledBack(rolled_back) => {
                summary.reason = Some(format!("rolled back by {}", rolled_back.by.short()));
            }
            Event::OperationPlanned(_)
            | Event::OperationResumed(_)
            | Event::OperationSucceeded(_) => summary.reason = None,
            Event::LogCreated(_)
            | Event::InventoryRecorded(_)
            | Event::AllocationMade(_)
            | Event::AllocationReleased(_)
            | Event::OperationIntended(_)
            | Event::StepStarted(_)
            | Event::StepSucceeded(_)
            | Event::StepFailed(_)
            | Event::StepDoubted(_)
            | Event::StepUnstarted(_)
            | Event::OutputCaptured(_)
            | Event::SessionRecorded(_)
            | Event::Unknown(_) => {}
        }
        if status.is_final() {
            let held: Vec<Subject> = self
                .claims
                .iter()
                .filter(|(_, holder)| **holder == id)
                .map(|(subject, _)| subject.clone())
                .collect();
            for subject in held {
                self.claims.remove(&subject);
                touched.insert(Key::Claim(subject));
            }
        }
    }

    fn begin_operation(
        &mut self,
        id: OperationId,
        intended: &OperationIntended,
        entry: &Entry,
        touched: &mut BTreeSet<Key>,
    ) {
        let header = &entry.header;
        for subject in &intended.claims {
            self.claims.insert(subject.clone(), id);
            touched.insert(Key::Claim(subject.clone()));
        }
        if let Intent::Rollback { operation } = &intended.intent
            && let Some(original) = self.operations.get_mut(operation)
        {
            original.status = OperationStatus::RollingBack;
            original.reason = Some(format!("being rolled back by {}", id.short()));
            touched.insert(Key::Operation(*operation));
        }
        self.operations.insert(
            id,
            OperationSummary {
                intent: intended.intent.clone(),
                actor: header.actor.clone(),
                status: OperationStatus::Intended,
                reason: None,
                first: header.seq,
                last: header.seq,
                events: 1,
                started_unix_us: header.time_unix_us,
                last_unix_us: header.time_unix_us,
                claims: intended.claims.clone(),
            },
        );
    }

    fn apply_fact(&mut self, fact: &Fact, entry: &Entry, touched: &mut BTreeSet<Key>) {
        let seq = entry.header.seq;
        match fact {
            Fact::HostObserved { host, properties } => {
                self.host(host, seq, touched).properties = properties.clone();
            }
            Fact::HostInstalled { host } => self.host(host, seq, touched).installed = true,
            Fact::HostUninstalled { host } => self.host(host, seq, touched).installed = false,
            Fact::HostPrepared {
                host,
                bridge,
                gateway,
            } => {
                self.host(host, seq, touched).prepared = Some((bridge.clone(), gateway.clone()));
            }
            Fact::HostUnprepared { host } => self.host(host, seq, touched).prepared = None,
            Fact::ContainerCreated {
                host,
                container,
                origin,
                backing,
            } => {
                // Nothing of an earlier one of that name is true of it, also where nobody saw that one go.
                self.containers.insert(
                    (host.clone(), container.clone()),
                    blank_container(origin, *backing, entry),
                );
                touched.insert(Key::Container(host.clone(), container.clone()));
            }
            Fact::ContainerDestroyed { host, container } => {
                self.containers.remove(&(host.clone(), container.clone()));
                touched.insert(Key::Container(host.clone(), container.clone()));
            }
            Fact::ContainerIdentified {
                host,
                container,
                machine_id,
                host_keys,
            } => self.container(host, container, seq, touched, |known| {
                known.machine_id.clone_from(machine_id);
                known.host_keys.clone_from(host_keys);
            }),
            Fact::ContainerStarted { host, container } => {
                self.container(host, container, seq, touched, |known| known.running = true);
            }
            Fact::ContainerStopped { host, container } => {
                self.container(host, container, seq, touched, |known| {
                    known.running = false;
                    known.address = None;
                });
            }
            Fact::ContainerAddressed {
                host,
                container,
                address,
            } => self.container(host, container, seq, touched, |known| {
                known.address = Some(address.clone());
            }),
            Fact::KeysAuthorized {
                host,
                container,
                keys,
            } => self.container(host, container, seq, touched, |known| {
                known.keys.clone_from(keys);
            }),
            Fact::Provisioned {
                host,
                container,
                entry: _,
            } => self.container(host, container, seq, touched, |_| {}),
            Fact::TemplatePresent {
                host,
                template,
                generation,
                manifest,
                entries,
                size_bytes,
            } => {
                let known = self
                    .templates
                    .entry((template.clone(), *generation))
                    .or_insert_with(|| TemplateGeneration {
                        manifest: *manifest,
                        entries: *entries,
                        size_bytes: *size_bytes,
                        hosts: BTreeSet::new(),
                        differing: BTreeMap::new(),
                        created: seq,
                        created_unix_us: entry.header.time_unix_us,
                    });
                if known.manifest == *manifest {
                    known.hosts.insert(host.clone());
                    known.differing.remove(host);
                } else {
                    known.hosts.remove(host);
                    known.differing.insert(host.clone(), *manifest);
                }
                touched.insert(Key::Template(template.clone(), *generation));
            }
            Fact::TemplateAbsent {
                host,
                template,
                generation,
            } => {
                let key = (template.clone(), *generation);
                if let Some(known) = self.templates.get_mut(&key) {
                    known.hosts.remove(host);
                    known.differing.remove(host);
                    if known.hosts.is_empty() && known.differing.is_empty() {
                        self.templates.remove(&key);
                    }
                }
                touched.insert(Key::Template(template.clone(), *generation));
            }
        }
    }

    fn host(&mut self, name: &HostName, seq: Seq, touched: &mut BTreeSet<Key>) -> &mut Host {
        touched.insert(Key::Host(name.clone()));
        let host = self.hosts.entry(name.clone()).or_default();
        host.last = seq;
        host
    }

    fn container(
        &mut self,
        host: &HostName,
        container: &ContainerName,
        seq: Seq,
        touched: &mut BTreeSet<Key>,
        change: impl FnOnce(&mut Container),
    ) {
        if let Some(known) = self.containers.get_mut(&(host.clone(), container.clone())) {
            change(known);
            known.last = seq;
            touched.insert(Key::Container(host.clone(), container.clone()));
        }
    }

    /// The newest generation of a template, on a host where one is given.
    pub fn newest_generation(
        &self,
        template: &TemplateName,
        on: Option<&HostName>,
    ) -> Option<(Generation, &TemplateGeneration)> {
        self.templates
            .range((template.clone(), Generation(0))..=(template.clone(), Generation(u32::MAX)))
            .rev()
            .find(|(_, known)| on.is_none_or(|host| known.hosts.contains(host)))
            .map(|((_, generation), known)| (*generation, known))
    }
}

fn blank_container(origin: &Origin, backing: Backing, entry: &Entry) -> Container {
    Container {
        origin: origin.clone(),
        backing,
        running: false,
        address: None,
        machine_id: String::new(),
        host_keys: Vec::new(),
        keys: Vec::new(),
        created: entry.header.seq,
        created_unix_us: entry.header.time_unix_us,
        last: entry.header.seq,
    }
}
