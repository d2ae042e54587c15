//! Containers: made from scratch, from a template or from another container; started, stopped, copied, destroyed.

use tallybook_agent::base::Base;
use tallybook_agent::step::OutputOf;
use tallybook_agent::steps::base_bootstrap::BaseBootstrap;
use tallybook_agent::steps::container_await_address::ContainerAwaitAddress;
use tallybook_agent::steps::container_build::{ContainerBuild, Source as BuildSource};
use tallybook_agent::steps::container_configure::ContainerConfigure;
use tallybook_agent::steps::container_provision::{
    Command, ContainerProvision, ContainerProvisionUntil,
};
use tallybook_agent::steps::container_provision_2::{
    ContainerProvision2, ContainerProvisionUntil2,
};
use tallybook_agent::steps::container_publish::ContainerPublish;
use tallybook_agent::steps::container_retire::{ContainerCheckRetire, ContainerRetire};
use tallybook_agent::steps::container_start::ContainerStart;
use tallybook_agent::steps::container_stop::ContainerStop;
use tallybook_agent::steps::dhcp_release::DhcpRelease;
use tallybook_agent::steps::dhcp_reserve::DhcpReserve;
use tallybook_agent::steps::forward_close::ForwardClose;
use tallybook_agent::steps::forward_open::ForwardOpen;
use tallybook_agent::steps::template_scan::TemplateScan;
use tallybook_agent::steps::template_scrub::TemplateScrub;
use tallybook_agent::steps::trash_purge::TrashPurge;
use tallybook_agent::steps::tree_discard::TreeDiscard;
use tallybook_agent::steps::tree_receive::{Expect, TreeReceive};
use tallybook_agent::steps::tree_seal::TreeSeal;
use tallybook_agent::steps::tree_stage::TreeStage;
use tallybook_events::allocation::Allocation;
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::intent::Source;
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::step::{Peer, PlannedStep, SendSource};
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::{Error, Plan, host, template, value};
use crate::cloud::inventory::{self, Inventory};

/// How long a container may take to have its address.
const ADDRESS_TIMEOUT_S: u32 = 120;
/// How long a container is asked to stop before it is made to.
const STOP_TIMEOUT_S: u32 = 60;

/// Which container, where.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host.
    pub host: &'a HostName,
    /// The container.
    pub container: &'a ContainerName,
}

impl Place<'_> {
    /// As a subject.
    pub fn subject(&self) -> Subject {
        Subject::Container(self.host.clone(), self.container.clone())
    }

    fn key(&self) -> (HostName, ContainerName) {
        (self.host.clone(), self.container.clone())
    }
}

/// Everything a plan for containers is made from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The inventory.
    pub inventory: &'a Inventory,
    /// The state.
    pub state: &'a State,
}

impl Known<'_> {
    fn allocation(&self, place: Place<'_>) -> Result<&Allocation, Error> {
        self.state
            .allocations
            .get(&place.key())
            .ok_or_else(|| Error::NotAllocated {
                host: place.host.clone(),
                container: place.container.clone(),
            })
    }

    /// Refuses when the container is not there.
    ///
    /// # Errors
    /// [`Error::ContainerMissing`].
    pub fn present(&self, place: Place<'_>) -> Result<(), Error> {
        if self.state.containers.contains_key(&place.key()) {
            return Ok(());
        }
        Err(Error::ContainerMissing {
            host: place.host.clone(),
            container: place.container.clone(),
        })
    }

    fn absent(&self, place: Place<'_>) -> Result<(), Error> {
        if !self.state.containers.contains_key(&place.key()) {
            return Ok(());
        }
        Err(Error::ContainerExists {
            host: place.host.clone(),
            container: place.container.clone(),
        })
    }

    fn prepared(&self, name: &HostName) -> Result<&inventory::Host, Error> {
        let host = host::host(self.inventory, name)?;
        match self.state.hosts.get(name) {
            Some(known) if known.prepared.is_some() => Ok(host),
            Some(_) | None => Err(Error::NotPrepared(name.clone())),
        }
    }
}

/// `container create`.
///
/// # Errors
/// When it is there already, its host is not prepared, or what it is to be made from is not there.
pub fn create(
    known: Known<'_>,
    place: Place<'_>,
    spec: &inventory::Container,
    source: &Source,
    backing: Option<Backing>,
) -> Result<Vec<PlannedStep>, Error> {
    let node = known.prepared(place.host)?;
    known.absent(place)?;
    let mut plan = Plan::default();
    let subject = place.subject();
    let built_from = match source {
        Source::Scratch => {
            let distribution = base(spec)?;
            let bootstrap = BaseBootstrap {
                distribution: distribution.clone(),
                cache_dir: node.package_cache.as_ref().map(Into::into),
            };
            plan.then(place.host, &subject, &bootstrap)?;
            BuildSource::Base(distribution)
        }
        Source::Template {
            template,
            generation,
        } => {
            let (generation, found) =
                template::on_host(known.state, template, *generation, place.host)?;
            BuildSource::Template {
                template: template.clone(),
                generation,
                manifest: found.manifest,
            }
        }
        Source::Container { container } => {
            let from = Place {
                host: place.host,
                container,
            };
            let staged = stage(&mut plan, known, from, &subject)?;
            let source = template::identity(known, from);
            scrub(&mut plan, place.host, &subject, staged, &source)?;
            BuildSource::Staged {
                staged,
                origin: Origin::Container {
                    host: place.host.clone(),
                    container: container.clone(),
                },
            }
        }
    };
    let staged = match &built_from {
        BuildSource::Staged { staged, .. } => Some(*staged),
        BuildSource::Base(_) | BuildSource::Template { .. } => None,
    };
    finish(&mut plan, known, place, spec, built_from, backing)?;
    if let Some(staged) = staged {
        plan.then(place.host, &subject, &TreeDiscard { staged })?;
    }
    Ok(plan.finish())
}

/// Copies a container's tree, frozen if it runs, and returns the step that did.
pub(super) fn stage(
    plan: &mut Plan,
    known: Known<'_>,
    from: Place<'_>,
    subject: &Subject,
) -> Result<StepIndex, Error> {
    known.present(from)?;
    let container = from.container.clone();
    plan.then(from.host, subject, &TreeStage { container })
}

fn scrub(
    plan: &mut Plan,
    host: &HostName,
    subject: &Subject,
    staged: StepIndex,
    source: &tallybook_agent::template::Source,
) -> Result<(), Error> {
    let scrub = TemplateScrub {
        staged,
        keep: Vec::new(),
        source: source.clone(),
    };
    plan.then(host, subject, &scrub)?;
    let scan = TemplateScan {
        staged,
        source: source.clone(),
        allow: Vec::new(),
    };
    plan.then(host, subject, &scan)?;
    Ok(())
}

/// From what it is built from to a container that runs and is provisioned.
fn finish(
    plan: &mut Plan,
    known: Known<'_>,
    place: Place<'_>,
    spec: &inventory::Container,
    source: BuildSource,
    backing: Option<Backing>,
) -> Result<(), Error> {
    let allocation = known.allocation(place)?;
    let node = host::host(known.inventory, place.host)?;
    let subject = place.subject();
    let container = place.container;
    let reserve = DhcpReserve {
        container: container.clone(),
        allocation: allocation.clone(),
    };
    plan.then(place.host, &subject, &reserve)?;
    let build = ContainerBuild {
        container: container.clone(),
        source,
        backing,
    };
    let built = plan.then(place.host, &subject, &build)?;
    let keys = spec
        .keys
        .iter()
        .filter_map(|key| known.inventory.keys.get(key))
        .flatten()
        .map(|key| key.as_str().to_owned());
    let configure = ContainerConfigure {
        container: container.clone(),
        staged: built,
        built: OutputOf::step(built),
        mac: allocation.mac,
        address: allocation.address,
        bridge: node.network.bridge.clone(),
        gateway: known.inventory.network.gateway,
        prefix: known.inventory.network.subnet.bits(),
        autostart: spec.autostart,
        domain: node.network.domain.clone(),
        keys: keys.collect(),
    };
    let identified = plan.then(place.host, &subject, &configure)?;
    let publish = ContainerPublish {
        container: container.clone(),
        staged: built,
        built: OutputOf::step(built),
        identity: OutputOf::step(identified),
    };
    plan.then(place.host, &subject, &publish)?;
    if !allocation.forwards.is_empty() {
        let open = ForwardOpen {
            container: container.clone(),
            allocation: allocation.clone(),
        };
        plan.then(place.host, &subject, &open)?;
    }
    run(plan, place, allocation)?;
    provision(plan, place, spec)
}

fn run(plan: &mut Plan, place: Place<'_>, allocation: &Allocation) -> Result<(), Error> {
    let subject = place.subject();
    let container = place.container.clone();
    plan.then(place.host, &subject, &ContainerStart { container })?;
    let wait = ContainerAwaitAddress {
        container: place.container.clone(),
        address: allocation.address,
        timeout_s: ADDRESS_TIMEOUT_S,
    };
    plan.then(place.host, &subject, &wait)?;
    Ok(())
}

fn provision(plan: &mut Plan, place: Place<'_>, spec: &inventory::Container) -> Result<(), Error> {
    let subject = place.subject();
    for (entry, wanted) in (0..).zip(&spec.provision) {
        let command = match &wanted.action {
            inventory::Action::Run(argv) => Command::Argv(argv.clone()),
            inventory::Action::Script(script) => Command::Script(script.clone()),
        };
        let container = place.container.clone();
        let timeout_s = wanted.timeout_s;
        let secrets: Vec<_> = wanted.secrets.iter().cloned().collect();
        match (wanted.creates.clone(), secrets.is_empty()) {
            (Some(creates), true) => {
                let step = ContainerProvisionUntil {
                    container,
                    entry,
                    command,
                    creates,
                    timeout_s,
                };
                plan.then(place.host, &subject, &step)?;
            }
            (Some(creates), false) => {
                let step = ContainerProvisionUntil2 {
                    container,
                    entry,
                    command,
                    secrets,
                    creates,
                    timeout_s,
                };
                plan.then(place.host, &subject, &step)?;
            }
            (None, true) => {
                let step = ContainerProvision {
                    container,
                    entry,
                    command,
                    timeout_s,
                };
                plan.then(place.host, &subject, &step)?;
            }
            (None, false) => {
                let step = ContainerProvision2 {
                    container,
                    entry,
                    command,
                    secrets,
                    timeout_s,
                };
                plan.then(place.host, &subject, &step)?;
            }
        }
    }
    Ok(())
}

fn base(spec: &inventory::Container) -> Result<Base, Error> {
    match &spec.source {
        inventory::Source::Debian(debian) => {
            let mirror = debian.mirror.as_deref();
            let packages = debian.packages.iter().map(|name| value("package", name));
            Ok(Base::Debian {
                release: value("release", &debian.release)?,
                mirror: mirror.map(|mirror| value("mirror", mirror)).transpose()?,
                packages: packages.collect::<Result<_, _>>()?,
            })
        }
        inventory::Source::Busybox => Ok(Base::Busybox),
        inventory::Source::Template(template) => Err(Error::TemplateNowhere {
            template: template.clone(),
            generation: None,
        }),
    }
}

/// `container start`.
///
/// # Errors
/// When it is not there.
pub fn start(known: Known<'_>, place: Place<'_>) -> Result<Vec<PlannedStep>, Error> {
    known.present(place)?;
    let mut plan = Plan::default();
    run(&mut plan, place, known.allocation(place)?)?;
    Ok(plan.finish())
}

/// `container stop`.
///
/// # Errors
/// When it is not there.
pub fn stop(known: Known<'_>, place: Place<'_>) -> Result<Vec<PlannedStep>, Error> {
    known.present(place)?;
    let mut plan = Plan::default();
    plan.then(place.host, &place.subject(), &stop_step(place))?;
    Ok(plan.finish())
}

/// `container restart`.
///
/// # Errors
/// When it is not there.
pub fn restart(known: Known<'_>, place: Place<'_>) -> Result<Vec<PlannedStep>, Error> {
    known.present(place)?;
    let mut plan = Plan::default();
    plan.then(place.host, &place.subject(), &stop_step(place))?;
    run(&mut plan, place, known.allocation(place)?)?;
    Ok(plan.finish())
}

fn stop_step(place: Place<'_>) -> ContainerStop {
    ContainerStop {
        container: place.container.clone(),
        timeout_s: STOP_TIMEOUT_S,
    }
}

/// `container destroy`.
///
/// # Errors
/// When it is not there.
pub fn destroy(known: Known<'_>, place: Place<'_>) -> Result<Vec<PlannedStep>, Error> {
    known.present(place)?;
    let allocation = known.allocation(place)?;
    let mut plan = Plan::default();
    let subject = place.subject();
    let container = place.container;
    // First, while nothing is harmed: whatever could not be taken out of use is refused here.
    let check = ContainerCheckRetire {
        container: container.clone(),
        adopted: false,
    };
    plan.then(place.host, &subject, &check)?;
    plan.then(place.host, &subject, &stop_step(place))?;
    if !allocation.forwards.is_empty() {
        let close = ForwardClose {
            container: container.clone(),
            allocation: allocation.clone(),
        };
        plan.then(place.host, &subject, &close)?;
    }
    let release = DhcpRelease {
        container: container.clone(),
        allocation: allocation.clone(),
    };
    plan.then(place.host, &subject, &release)?;
    let retire = ContainerRetire {
        container: container.clone(),
        adopted: false,
    };
    let retired = plan.then(place.host, &subject, &retire)?;
    let purge = TrashPurge {
        container: container.clone(),
        retired,
    };
    plan.then(place.host, &subject, &purge)?;
    Ok(plan.finish())
}

/// `container copy`: to another host, or beside itself under another name.
///
/// # Errors
/// When the container is not there, or the copy is, or its host is not prepared.
pub fn copy(
    known: Known<'_>,
    operation: OperationId,
    from: Place<'_>,
    to: Place<'_>,
    spec: &inventory::Container,
) -> Result<Vec<PlannedStep>, Error> {
    known.prepared(to.host)?;
    known.absent(to)?;
    let mut plan = Plan::default();
    let staged = stage(&mut plan, known, from, &to.subject())?;
    let origin = Origin::Container {
        host: from.host.clone(),
        container: from.container.clone(),
    };
    let subject = to.subject();
    if from.host == to.host {
        let source = BuildSource::Staged { staged, origin };
        finish(&mut plan, known, to, spec, source, None)?;
        plan.then(to.host, &subject, &TreeDiscard { staged })?;
        return Ok(plan.finish());
    }
    let sealed = plan.then(from.host, &to.subject(), &TreeSeal { staged })?;
    let receive = TreeReceive {
        expect: Expect::Output(OutputOf::step(sealed)),
        what: format!("container {}/{}", from.host, from.container),
    };
    let peer = Peer {
        host: from.host.clone(),
        source: SendSource::Staged {
            operation,
            step: staged,
        },
    };
    let received = plan.receive(to.host, &to.subject(), &receive, peer, Some(sealed))?;
    let source = BuildSource::Staged {
        staged: received,
        origin,
    };
    finish(&mut plan, known, to, spec, source, None)?;
    plan.then(to.host, &subject, &TreeDiscard { staged: received })?;
    plan.behind(from.host, &subject, &TreeDiscard { staged }, received)?;
    Ok(plan.finish())
}
