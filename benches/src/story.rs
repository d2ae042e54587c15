//! What a real store holds, made up: a cloud of 20 hosts whose containers come and go. Plans come from the planner itself;
//! facts and outputs are what its steps report.
//!
//! The same seed tells the same story to the byte, however it is written down. It reads no clock and draws no randomness.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use tallybook::cloud::inventory::Inventory;
use tallybook::plan::container::{self, Known, Place};
use tallybook_events::allocation::Allocation;
use tallybook_events::event::{
    AllocationMade, AllocationReleased, Event, InventoryRecorded, OperationIntended,
    OperationPlanned, OperationSucceeded, OutputCaptured, Resolution, SessionRecorded, StepStarted,
    StepSucceeded,
};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::{Blob, Generation, Hash, JournalId, OperationId, Seq, StepIndex};
use tallybook_events::intent::{Intent, Source};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::{PlannedStep, StepDone};
use tallybook_events::subject::Subject;
use tallybook_replay::state::{self, State, TemplateGeneration};

use crate::Failure;
use crate::choices::Choices;
use crate::world::{self, HOSTS, KINDS, allocation, hosts_text, kinds_text, planned, properties};

/// Containers that the inventory has at any time.
const NAMES_MAX: usize = 600;
/// So many of them are there before any is destroyed.
const LIVE_MIN: usize = 250;
/// Operations between two inventories that differ.
const INVENTORY_EVERY: u64 = 1500;
/// When the story begins, in microseconds since 1970.
pub(crate) const BEGINS_UNIX_US: u64 = 1_700_000_000_000_000;

/// An event that waits for its place in the log.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// What it is about.
    pub(crate) subject: Subject,
    /// What happened.
    pub(crate) event: Event,
    /// Its operation, and whether it is written under that one's claim.
    pub(crate) operation: Option<(OperationId, bool)>,
    /// Its step, in its first start.
    pub(crate) step: Option<StepIndex>,
    /// Whether the newest inventory caused it.
    pub(crate) by_inventory: bool,
}

/// The events of one append.
pub(crate) type Append = Vec<Told>;

struct Named {
    host: HostName,
    name: ContainerName,
    kind: usize,
    allocation: Allocation,
    is_live: bool,
}

/// The story, told an operation at a time.
pub(crate) struct Story {
    choices: Choices,
    inventory: Inventory,
    state: State,
    names: Vec<Named>,
    live: usize,
    made: u32,
    operations: u64,
    journals: Vec<JournalId>,
}

impl Story {
    /// Begins one.
    pub(crate) fn new(seed: u64) -> Result<Self, Failure> {
        let mut choices = Choices::new(seed);
        let text = hosts_text() + &kinds_text();
        let inventory = tallybook::cloud::parse("cloud.toml", &text)
            .map_err(|error| format!("the story's inventory: {error}"))?;
        let mut state = State::default();
        let hosts: Vec<HostName> = inventory.hosts.keys().cloned().collect();
        for host in &hosts {
            let prepared = state::Host {
                installed: true,
                prepared: Some(("tbbr0".to_owned(), "10.5.0.1/16".to_owned())),
                ..state::Host::default()
            };
            state.hosts.insert(host.clone(), prepared);
        }
        for template in inventory.templates.keys() {
            let generation = TemplateGeneration {
                manifest: Hash(choices.bytes()),
                entries: 21_345,
                size_bytes: 612_000_000,
                hosts: hosts.iter().cloned().collect(),
                differing: BTreeMap::new(),
                created: Seq(1),
                created_unix_us: BEGINS_UNIX_US,
            };
            state
                .templates
                .insert((template.clone(), Generation(1)), generation);
        }
        let journals = hosts
            .iter()
            .map(|_| JournalId::from_bytes(choices.bytes()))
            .collect();
        Ok(Story {
            choices,
            inventory,
            state,
            names: Vec::new(),
            live: 0,
            made: 0,
            operations: 0,
            journals,
        })
    }

    /// What comes before the first operation: an inventory, and what was found on the hosts and templates.
    pub(crate) fn beginning(&mut self) -> Result<Vec<Append>, Failure> {
        let mut appends = vec![vec![self.recorded()]];
        for (host, _) in self.state.hosts.clone() {
            let subject = Subject::Host(host.clone());
            let intent = Intent::HostPrepare {
                hosts: vec![host.clone()],
            };
            let mut facts = vec![
                Fact::HostObserved {
                    host: host.clone(),
                    properties: properties(),
                },
                Fact::HostInstalled { host: host.clone() },
                Fact::HostPrepared {
                    host: host.clone(),
                    bridge: "tbbr0".to_owned(),
                    gateway: "10.5.0.1/16".to_owned(),
                },
            ];
            for ((template, generation), known) in &self.state.templates {
                facts.push(Fact::TemplatePresent {
                    host: host.clone(),
                    template: template.clone(),
                    generation: *generation,
                    manifest: known.manifest,
                    entries: known.entries,
                    size_bytes: known.size_bytes,
                });
            }
            let plan = vec![planned(&host, &subject, "host.observe", 0)];
            appends.extend(self.operation(&subject, intent, plan, |_| facts.clone())?);
        }
        Ok(appends)
    }

    /// The appends of the next operation.
    pub(crate) fn operate(&mut self) -> Result<Vec<Append>, Failure> {
        self.operations += 1;
        let mut appends = Vec::new();
        if self.operations.is_multiple_of(INVENTORY_EVERY) {
            appends.push(vec![self.recorded()]);
        }
        let choice = self.choices.below(100);
        appends.extend(match choice {
            _ if self.live < LIVE_MIN => self.create(),
            0..=40 if self.live < NAMES_MAX - 1 => self.create(),
            41..=80 => self.destroy(),
            81..=87 => self.session(),
            _ => self.restart(),
        }?);
        Ok(appends)
    }

    fn recorded(&mut self) -> Told {
        let mut text = hosts_text() + &kinds_text();
        for named in &self.names {
            let _ = write!(
                text,
                "\n[containers.{}]\nhost = \"{}\"\ntemplate = \"{}\"\nkeys = [\"alice\"]\nforward_ssh = true\n",
                named.name, named.host, KINDS[named.kind].0
            );
        }
        let event = InventoryRecorded {
            path: "/etc/tallybook/cloud.toml".to_owned(),
            hash: blake3::hash(text.as_bytes()).into(),
            text: Blob(text.into_bytes()),
        };
        Told {
            subject: Subject::Cloud,
            event: event.into(),
            operation: None,
            step: None,
            by_inventory: false,
        }
    }

    fn create(&mut self) -> Result<Vec<Append>, Failure> {
        let (position, mut first) = self.pick_name()?;
        let named = &self.names[position];
        let (host, name, kind) = (named.host.clone(), named.name.clone(), named.kind);
        let template: TemplateName = KINDS[kind].0.parse()?;
        let source = Source::Template {
            template: template.clone(),
            generation: None,
        };
        let place = Place {
            host: &host,
            container: &name,
        };
        let known = Known {
            inventory: &self.inventory,
            state: &self.state,
        };
        let spec = &self.inventory.containers[&format!("kind{kind}").parse::<ContainerName>()?];
        let steps = container::create(known, place, spec, &source, None)?;
        let subject = place.subject();
        let intent = Intent::ContainerCreate {
            container: name.clone(),
            host: host.clone(),
            source,
            backing: None,
        };
        let manifest = self.state.templates[&(template.clone(), Generation(1))].manifest;
        let address = self.names[position].allocation.address.to_string();
        let machine_id = format!("{:016x}{:016x}", self.choices.next(), self.choices.next());
        let key = |choices: &mut Choices| {
            format!(
                "SHA256:{:016x}{:016x}{:011x}",
                choices.next(),
                choices.next(),
                choices.next() >> 20
            )
        };
        let host_keys = vec![
            key(&mut self.choices),
            key(&mut self.choices),
            key(&mut self.choices),
        ];
        let (host_of, name_of) = (host.clone(), name.clone());
        let facts = move |step: &PlannedStep| {
            let (host, container) = (host_of.clone(), name_of.clone());
            match step.kind.as_str() {
                "container.publish" => vec![
                    Fact::ContainerCreated {
                        host: host.clone(),
                        container: container.clone(),
                        origin: Origin::Template {
                            template: template.clone(),
                            generation: Generation(1),
                            manifest,
                        },
                        backing: Backing::Overlay,
                    },
                    Fact::ContainerIdentified {
                        host: host.clone(),
                        container: container.clone(),
                        machine_id: machine_id.clone(),
                        host_keys: host_keys.clone(),
                    },
                    Fact::KeysAuthorized {
                        host,
                        container,
                        keys: vec!["alice".to_owned()],
                    },
                ],
                "container.start" => vec![Fact::ContainerStarted { host, container }],
                "container.await_address" => vec![Fact::ContainerAddressed {
                    host,
                    container,
                    address: address.clone(),
                }],
                "container.provision" => vec![Fact::Provisioned {
                    host,
                    container,
                    entry: 0,
                }],
                _ => Vec::new(),
            }
        };
        let made = self.operation(&subject, intent, steps, facts)?;
        // What was given is in the operation's first append, before its intent.
        let mut appends = made;
        if let Some(begin) = appends.first_mut() {
            first.append(begin);
            *begin = first;
        }
        let named = &mut self.names[position];
        named.is_live = true;
        self.live += 1;
        let known = state::Container {
            origin: Origin::Scratch {
                distribution: String::new(),
                release: String::new(),
            },
            backing: Backing::Overlay,
            running: true,
            address: None,
            machine_id: String::new(),
            host_keys: Vec::new(),
            keys: Vec::new(),
            created: Seq(1),
            created_unix_us: 0,
            last: Seq(1),
        };
        self.state.containers.insert((host, name), known);
        Ok(appends)
    }

    /// A name that no container has now: in most cases one that had one. With what it is given when it is new.
    fn pick_name(&mut self) -> Result<(usize, Append), Failure> {
        let free: Vec<usize> = (0..self.names.len())
            .filter(|at| !self.names[*at].is_live)
            .collect();
        if !free.is_empty() && self.choices.below(5) > 0 {
            return Ok((free[self.choices.below(free.len())], Vec::new()));
        }
        let mut first = Vec::new();
        self.made += 1;
        let made = self.made;
        let host: HostName = format!("cn{:02}", self.choices.below(HOSTS) + 1).parse()?;
        let kind = self.choices.below(KINDS.len());
        let name: ContainerName = format!("{}-{made}", KINDS[kind].0).parse()?;
        let given = |subject, event| Told {
            subject,
            event,
            operation: None,
            step: None,
            by_inventory: true,
        };
        let number = match free.first().filter(|_| self.names.len() >= NAMES_MAX) {
            Some(&oldest) => {
                let gone = self.names.remove(oldest);
                let key = (gone.host.clone(), gone.name.clone());
                self.state.allocations.remove(&key);
                let subject = Subject::Container(key.0, key.1);
                let address = gone.allocation.address;
                first.push(given(
                    subject,
                    AllocationReleased {
                        allocation: gone.allocation,
                    }
                    .into(),
                ));
                u32::from(address) - u32::from(Ipv4Addr::new(10, 5, 0, 0))
            }
            None => self.names.len() as u32 + 10,
        };
        let allocation = allocation(number);
        let subject = Subject::Container(host.clone(), name.clone());
        first.push(given(
            subject,
            AllocationMade {
                allocation: allocation.clone(),
            }
            .into(),
        ));
        self.state
            .allocations
            .insert((host.clone(), name.clone()), allocation.clone());
        self.names.push(Named {
            host,
            name,
            kind,
            allocation,
            is_live: false,
        });
        Ok((self.names.len() - 1, first))
    }

    fn pick_live(&mut self) -> usize {
        loop {
            let at = self.choices.below(self.names.len());
            if self.names[at].is_live {
                return at;
            }
        }
    }

    fn destroy(&mut self) -> Result<Vec<Append>, Failure> {
        let position = self.pick_live();
        let (host, name) = (
            self.names[position].host.clone(),
            self.names[position].name.clone(),
        );
        let place = Place {
            host: &host,
            container: &name,
        };
        let known = Known {
            inventory: &self.inventory,
            state: &self.state,
        };
        let steps = container::destroy(known, place)?;
        let subject = place.subject();
        let intent = Intent::ContainerDestroy {
            container: name.clone(),
            host: host.clone(),
        };
        self.names[position].is_live = false;
        self.live -= 1;
        self.state.containers.remove(&(host.clone(), name.clone()));
        self.operation(&subject, intent, steps, |step| {
            let (host, container) = (host.clone(), name.clone());
            match step.kind.as_str() {
                "container.stop" => vec![Fact::ContainerStopped { host, container }],
                "container.retire" => vec![Fact::ContainerDestroyed { host, container }],
                _ => Vec::new(),
            }
        })
    }

    fn restart(&mut self) -> Result<Vec<Append>, Failure> {
        let position = self.pick_live();
        let (host, name) = (
            self.names[position].host.clone(),
            self.names[position].name.clone(),
        );
        let place = Place {
            host: &host,
            container: &name,
        };
        let known = Known {
            inventory: &self.inventory,
            state: &self.state,
        };
        let steps = container::restart(known, place)?;
        let address = self.names[position].allocation.address.to_string();
        let intent = Intent::ContainerRestart {
            container: name.clone(),
            host: host.clone(),
        };
        self.operation(&place.subject(), intent, steps, |step| {
            let (host, container) = (host.clone(), name.clone());
            match step.kind.as_str() {
                "container.stop" => vec![Fact::ContainerStopped { host, container }],
                "container.start" => vec![Fact::ContainerStarted { host, container }],
                "container.await_address" => {
                    vec![Fact::ContainerAddressed {
                        host,
                        container,
                        address: address.clone(),
                    }]
                }
                _ => Vec::new(),
            }
        })
    }

    /// Somebody ran a command in a container.
    fn session(&mut self) -> Result<Vec<Append>, Failure> {
        let position = self.pick_live();
        let (host, container) = (
            self.names[position].host.clone(),
            self.names[position].name.clone(),
        );
        let subject = Subject::Container(host.clone(), container.clone());
        let argv = vec!["apt-get".to_owned(), "-y".to_owned(), "upgrade".to_owned()];
        let intent = Intent::ContainerExec {
            container,
            host,
            argv: argv.clone(),
        };
        let id = self.id();
        let of = |event: Event, claimed| Told {
            subject: subject.clone(),
            event,
            operation: Some((id, claimed)),
            step: None,
            by_inventory: false,
        };
        let len = 300 + self.choices.below(3000);
        let session = SessionRecorded {
            argv,
            terminal: false,
            started_unix_us: BEGINS_UNIX_US,
            ended_unix_us: BEGINS_UNIX_US + 1_000_000,
            exit: Some(0),
            output: Blob(self.choices.text(len)),
            dropped_bytes: 0,
            changes: Vec::new(),
            changes_dropped: 0,
        };
        let intended = OperationIntended {
            intent,
            inventory: Seq(2),
            claims: vec![subject.clone()],
        };
        Ok(vec![
            vec![
                of(intended.into(), false),
                of(OperationPlanned { steps: Vec::new() }.into(), false),
            ],
            vec![
                of(session.into(), true),
                of(OperationSucceeded { events: 4 }.into(), true),
            ],
        ])
    }

    fn id(&mut self) -> OperationId {
        let random = self.choices.bytes();
        OperationId::new(BEGINS_UNIX_US / 1000 + self.operations * 200_000, random)
    }

    /// An operation as the engine writes it: intent and plan as one, the starts of a chain as one, each outcome with the output
    /// before it as one.
    fn operation(
        &mut self,
        subject: &Subject,
        intent: Intent,
        steps: Vec<PlannedStep>,
        facts: impl Fn(&PlannedStep) -> Vec<Fact>,
    ) -> Result<Vec<Append>, Failure> {
        let id = self.id();
        let of = |subject: &Subject, event: Event, claimed, step| Told {
            subject: subject.clone(),
            event,
            operation: Some((id, claimed)),
            step,
            by_inventory: false,
        };
        let intended = OperationIntended {
            intent,
            inventory: Seq(2),
            claims: vec![subject.clone()],
        };
        let mut events = 2;
        let mut appends = vec![vec![
            of(subject, intended.into(), false, None),
            of(
                subject,
                OperationPlanned {
                    steps: steps.clone(),
                }
                .into(),
                false,
                None,
            ),
        ]];
        let journal = self.journals[self.choices.below(HOSTS)];
        let mut starts = Vec::new();
        for step in &steps {
            let started = StepStarted {
                kind: step.kind.clone(),
                journal: Some(journal),
            };
            starts.push(of(&step.subject, started.into(), true, Some(step.index)));
        }
        events += starts.len() as u64;
        appends.push(starts);
        for step in &steps {
            let mut append = Vec::new();
            if let Some(captured) = world::captured(&mut self.choices, step) {
                append.push(of(
                    &step.subject,
                    OutputCaptured { captured }.into(),
                    true,
                    Some(step.index),
                ));
            }
            let done = StepDone {
                changed: self.choices.below(10) > 0,
                output: world::output(&mut self.choices, step)?,
                facts: facts(step),
                captured: Vec::new(),
            };
            let succeeded = StepSucceeded {
                resolution: Resolution::Reported,
                done,
            };
            append.push(of(&step.subject, succeeded.into(), true, Some(step.index)));
            events += append.len() as u64;
            appends.push(append);
        }
        let succeeded = OperationSucceeded { events: events + 1 };
        appends.push(vec![of(subject, succeeded.into(), true, None)]);
        Ok(appends)
    }
}
