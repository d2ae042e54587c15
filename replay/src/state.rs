//! The state of the cloud, folded from events one at a time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tallybook_events::actor::Actor;
use tallybook_events::allocation::Allocation;
use tallybook_events::event::{Event, SeqRange, StepAdopted, StepSucceeded, fixed};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::{Epoch, Generation, Hash, LogId, OperationId, Seq};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::Mark;
use tallybook_events::subject::Subject;

use crate::entry::Entry;
use crate::folding::{Folding, What};
use crate::operation::operation_status;

mod summary;

pub use summary::OperationSummary;

/// Rises whenever the same events would fold to something else: stored projections of another version are rebuilt.
pub const CODE_VERSION: u32 = 6;

/// The kind of the events that hold an inventory.
pub(crate) const INVENTORY_RECORDED: &str = "inventory.recorded";

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
    /// An erasure that was announced by this event.
    Erasure(Seq),
    /// That a host refused this log.
    Fenced,
}

/// The state of the cloud.
///
/// A fold from the first event has all operations. What a store keeps is the *live* state: it forgets operations that
/// are over, so that it grows with the cloud and not with its history ([`State::forget_past`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Where the log ends.
    pub head: Head,
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
    /// The newest `inventory.recorded` and the hash of its text; `None` also once that is erased, or is to be: the text
    /// could be guessed by its hash.
    pub inventory: Option<(Seq, Hash)>,
    /// Erasures that were announced and are not completed, by the event that did so.
    pub erasures: BTreeMap<Seq, Vec<SeqRange>>,
    /// The host that was shown an event which this log does not have, and that event: nothing may be done to any host.
    pub fenced: Option<(HostName, Mark)>,
}

/// What a fold needs of an event besides what happened.
struct About<'a> {
    log: LogId,
    epoch: Epoch,
    seq: Seq,
    hash: Hash,
    time_unix_us: u64,
    operation: Option<OperationId>,
    // Few events are asked for these.
    subject: &'a dyn Fn() -> Option<Subject>,
    actor: &'a dyn Fn() -> Actor,
}

/// What a fold changed; `None` where nobody asks.
struct Touched(Option<BTreeSet<Key>>);

impl Touched {
    fn add(&mut self, key: impl FnOnce() -> Key) {
        if let Some(touched) = &mut self.0 {
            touched.insert(key());
        }
    }
}

impl State {
    /// Takes the next event. Returns what it changed.
    ///
    /// Events that a sound log can't hold (an operation event without its beginning) change nothing here:
    /// `verify` names them, a fold never fails.
    pub fn apply(&mut self, entry: &Entry) -> BTreeSet<Key> {
        let mut touched = Touched(Some(BTreeSet::new()));
        self.apply_noting(entry, &mut touched);
        touched.0.unwrap_or_default()
    }

    /// The same, without saying what changed.
    pub fn apply_quietly(&mut self, entry: &Entry) {
        self.apply_noting(entry, &mut Touched(None));
    }

    fn apply_noting(&mut self, entry: &Entry, touched: &mut Touched) {
        let header = &entry.header;
        let about = About {
            log: header.log,
            epoch: header.epoch,
            seq: header.seq,
            hash: entry.hash,
            time_unix_us: header.time_unix_us,
            operation: header.operation,
            subject: &|| Some(header.subject.clone()),
            actor: &|| Actor::clone(&header.actor),
        };
        let is_known = fixed(&header.kind, header.kind_version).is_some();
        self.advance(&about, !is_known);
        if let Some(id) = about.operation {
            let status = operation_status(&entry.event);
            self.apply_to_operation(id, &about, &entry.event, status, touched);
        }
        if entry.is_erased && is_known && header.kind == INVENTORY_RECORDED {
            self.forget_inventory(touched);
        }
        self.apply_event(&about, &entry.event, touched);
    }

    /// Takes the next event as it was read from its bytes: as [`State::apply`] does, without saying what changed.
    pub fn take(&mut self, folding: Folding) {
        let Folding {
            log,
            epoch,
            seq,
            hash,
            time_unix_us,
            operation,
            what,
        } = folding;
        let (subject, actor) = match &what {
            What::Happened { subject, actor, .. } => (subject.as_ref(), actor.as_ref()),
            What::Passed(_) | What::Unknown | What::Erased { .. } => (None, None),
        };
        let about = About {
            log,
            epoch,
            seq,
            hash,
            time_unix_us,
            operation,
            subject: &|| subject.cloned(),
            actor: &|| actor.cloned().unwrap_or_default(),
        };
        let mut touched = Touched(None);
        self.advance(&about, matches!(what, What::Unknown));
        let nothing = Event::nothing();
        let (event, status) = match &what {
            What::Happened { event, .. } => (&**event, operation_status(event)),
            What::Passed(status) => (&nothing, *status),
            What::Unknown | What::Erased { .. } => (&nothing, None),
        };
        if let Some(id) = operation {
            self.apply_to_operation(id, &about, event, status, &mut touched);
        }
        match &what {
            What::Happened { event, .. } => self.apply_event(&about, event, &mut touched),
            What::Erased { is_inventory: true } => self.forget_inventory(&mut touched),
            What::Erased {
                is_inventory: false,
            }
            | What::Passed(_)
            | What::Unknown => {}
        }
    }

    /// Forgets the operations that are over.
    pub fn forget_past(&mut self) {
        self.operations.retain(|_, known| known.is_open());
    }

    fn advance(&mut self, about: &About<'_>, is_unknown: bool) {
        self.head = Head {
            log: Some(about.log),
            epoch: about.epoch,
            seq: about.seq,
            hash: about.hash,
            unknown: self.head.unknown + u64::from(is_unknown),
        };
    }

    /// What the newest inventory says is erased, and nothing older takes its place.
    fn forget_inventory(&mut self, touched: &mut Touched) {
        self.inventory = None;
        touched.add(|| Key::Inventory);
    }

    fn apply_event(&mut self, about: &About<'_>, event: &Event, touched: &mut Touched) {
        match event {
            Event::InventoryRecorded(recorded) => {
                self.inventory = Some((about.seq, recorded.hash));
                touched.add(|| Key::Inventory);
            }
            Event::AllocationMade(made) => {
                if let Some(Subject::Container(host, container)) = (about.subject)() {
                    touched.add(|| Key::Allocation(host.clone(), container.clone()));
                    self.allocations
                        .insert((host, container), made.allocation.clone());
                }
            }
            Event::AllocationReleased(_) => {
                if let Some(Subject::Container(host, container)) = (about.subject)() {
                    touched.add(|| Key::Allocation(host.clone(), container.clone()));
                    self.allocations.remove(&(host, container));
                }
            }
            Event::StepSucceeded(StepSucceeded { done, .. })
            | Event::StepAdopted(StepAdopted { done, .. }) => {
                for fact in &done.facts {
                    self.apply_fact(fact, about, touched);
                }
            }
            Event::ErasureAnnounced(announced) => {
                // A forged one may name anything.
                let ranges = announced.events.iter().copied();
                let ranges: Vec<SeqRange> =
                    ranges.filter(|range| range.is_before(about.seq)).collect();
                let inventory = self.inventory.map(|(seq, _)| seq);
                if inventory.is_some_and(|seq| ranges.iter().any(|range| range.contains(seq))) {
                    self.forget_inventory(touched);
                }
                self.erasures.insert(about.seq, ranges);
                touched.add(|| Key::Erasure(about.seq));
            }
            Event::ErasureCompleted(completed) => {
                self.erasures.remove(&completed.announced);
                touched.add(|| Key::Erasure(completed.announced));
            }
            Event::LogFenced(fenced) => {
                self.fenced = Some((fenced.host.clone(), fenced.seen));
                touched.add(|| Key::Fenced);
            }
            Event::LogRecovered(_) => {
                if self.fenced.take().is_some() {
                    touched.add(|| Key::Fenced);
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
            | Event::OperationAbandoned(_)
            | Event::OperationPaced(_)
            | Event::OperationLacked(_)
            | Event::StepStarted(_)
            | Event::StepFailed(_)
            | Event::StepDoubted(_)
            | Event::StepUnstarted(_)
            | Event::StepDrifted(_)
            | Event::StepForced(_)
            | Event::OutputCaptured(_)
            | Event::SessionRecorded(_)
            | Event::SegmentsArchived(_)
            | Event::SegmentsRestored(_)
            | Event::Unknown(_) => {}
        }
    }

    fn apply_fact(&mut self, fact: &Fact, about: &About<'_>, touched: &mut Touched) {
        let seq = about.seq;
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
                    blank_container(origin, *backing, about),
                );
                touched.add(|| Key::Container(host.clone(), container.clone()));
            }
            Fact::ContainerDestroyed { host, container } => {
                self.containers.remove(&(host.clone(), container.clone()));
                touched.add(|| Key::Container(host.clone(), container.clone()));
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
                        created_unix_us: about.time_unix_us,
                    });
                if known.manifest == *manifest {
                    known.hosts.insert(host.clone());
                    known.differing.remove(host);
                } else {
                    known.hosts.remove(host);
                    known.differing.insert(host.clone(), *manifest);
                }
                touched.add(|| Key::Template(template.clone(), *generation));
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
                touched.add(|| Key::Template(template.clone(), *generation));
            }
        }
    }

    fn host(&mut self, name: &HostName, seq: Seq, touched: &mut Touched) -> &mut Host {
        touched.add(|| Key::Host(name.clone()));
        let host = self.hosts.entry(name.clone()).or_default();
        host.last = seq;
        host
    }

    fn container(
        &mut self,
        host: &HostName,
        container: &ContainerName,
        seq: Seq,
        touched: &mut Touched,
        change: impl FnOnce(&mut Container),
    ) {
        if let Some(known) = self.containers.get_mut(&(host.clone(), container.clone())) {
            change(known);
            known.last = seq;
            touched.add(|| Key::Container(host.clone(), container.clone()));
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

fn blank_container(origin: &Origin, backing: Backing, about: &About<'_>) -> Container {
    Container {
        origin: origin.clone(),
        backing,
        running: false,
        address: None,
        machine_id: String::new(),
        host_keys: Vec::new(),
        keys: Vec::new(),
        created: about.seq,
        created_unix_us: about.time_unix_us,
        last: about.seq,
    }
}
