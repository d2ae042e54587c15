//! `tallybook cloud show`: the inventory compiled, with what is given out already and what would be.

use serde::Serialize;
use tallybook_events::name::{ContainerName, HostName};
use tallybook_replay::state::State;

use super::super::argument::EntityArgument;
use super::super::context::{resolve_planned, select};
use super::super::{Context, Error, Exit, resolve};
use crate::cloud::allocate::{Entry, Key, Status};
use crate::cloud::inventory::{Become, Inventory, Source};
use crate::cloud_log::{self, Outcome};
use crate::render::json::AllocationView;
use crate::render::{Cell, Column, Format, Ink, Output, Table, Written, summary};

/// Show the inventory compiled: addresses, MACs and ports, recorded or to be allocated
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook cloud show\n  tallybook cloud show cn1")]
pub(super) struct Args {
    /// Only this host or container
    #[arg(value_name = "HOST|CONTAINER")]
    name: Option<EntityArgument>,
    /// Only these: names, groups and globs, `!` takes away
    #[arg(long, conflicts_with = "name")]
    limit: Option<String>,
}

/// A container of the inventory.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PlannedContainer {
    pub(super) host: HostName,
    pub(super) name: ContainerName,
    pub(super) source: String,
    /// `unchanged` when this is recorded; else `new`, `changed` or `moved`, and it would be.
    pub(super) status: &'static str,
    #[serde(flatten)]
    pub(super) allocation: AllocationView,
    /// What is recorded now, where that is something else.
    pub(super) before: Option<AllocationView>,
    /// The host it is recorded on, when it moved.
    pub(super) moved_from: Option<HostName>,
    /// Whether it is there.
    pub(super) created: bool,
}

/// A host of the inventory.
#[derive(Debug, Clone, Serialize)]
struct PlannedHost {
    name: HostName,
    address: String,
    port: Option<u16>,
    user: Option<String>,
    r#become: Become,
    jump: Option<HostName>,
    local: bool,
    groups: Vec<String>,
    bridge: String,
    domain: Option<String>,
    forward_ports: String,
    /// What the log says of it: whether it has what the tool needs, and whether it can run containers.
    installed: bool,
    prepared: bool,
}

/// The inventory compiled.
#[derive(Debug, Clone, Serialize)]
struct Shown {
    file: String,
    hosts: Vec<PlannedHost>,
    containers: Vec<PlannedContainer>,
    /// Recorded, although the inventory doesn't have them there.
    orphans: Vec<Orphan>,
}

#[derive(Debug, Clone, Serialize)]
struct Orphan {
    host: HostName,
    name: ContainerName,
    /// Whether `cloud refresh` would release it; else the container is still there.
    released: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let loaded = context.load_inventory()?;
        let inventory = &loaded.inventory;
        let limit = match &self.name {
            Some(name) => Some(name_in(inventory, name)?),
            None => self.limit,
        };
        let selection = select(inventory, limit.as_deref())?;
        let state = context.state_or_empty().await?;
        let outcome = cloud_log::plan(&state, inventory, &selection)?;
        let hosts = selection.hosts.iter();
        let shown = Shown {
            file: loaded.path.display().to_string(),
            hosts: hosts
                .filter_map(|name| host(inventory, &state, name))
                .collect(),
            containers: planned(inventory, &state, &outcome),
            orphans: orphans(&outcome, limit.is_none()),
        };
        match out.format() {
            Format::Json => out.json(&shown)?,
            Format::Table => show(&shown, out)?,
        }
        Ok(Exit::Ok)
    }
}

/// The host or container of the inventory that is meant, as a limit.
fn name_in(inventory: &Inventory, name: &EntityArgument) -> Result<String, Error> {
    if let Some(host) = &name.host
        && inventory.hosts.contains_key(host)
    {
        return Ok(host.to_string());
    }
    let hosts = inventory.hosts.keys().map(HostName::as_str);
    let containers = inventory.containers.keys().map(ContainerName::as_str);
    let nearest = resolve::nearest(&name.text, hosts.chain(containers));
    let unknown = || Error::Unknown {
        what: "host or container",
        name: name.text.clone(),
        place: Some("in the inventory".to_owned()),
        nearest,
        hint: Some("`tallybook cloud show` shows all"),
    };
    let Some(container) = &name.container else {
        return Err(unknown());
    };
    match resolve_planned(inventory, container) {
        Ok((_, container)) => Ok(container.to_string()),
        Err(error) if container.host.is_some() => Err(error),
        Err(_) => Err(unknown()),
    }
}

fn host(inventory: &Inventory, state: &State, name: &HostName) -> Option<PlannedHost> {
    let host = inventory.hosts.get(name)?;
    let known = state.hosts.get(name);
    Some(PlannedHost {
        name: name.clone(),
        address: host.address.clone(),
        port: host.port,
        user: host.user.clone(),
        r#become: host.become_root,
        jump: host.jump.clone(),
        local: host.local,
        groups: host.groups.iter().map(ToString::to_string).collect(),
        bridge: host.network.bridge.clone(),
        domain: host.network.domain.clone(),
        forward_ports: host.network.forward_ports.to_string(),
        installed: known.is_some_and(|known| known.installed),
        prepared: known.is_some_and(|known| known.prepared.is_some()),
    })
}

/// The compiled containers as they are shown.
pub(super) fn planned(
    inventory: &Inventory,
    state: &State,
    outcome: &Outcome,
) -> Vec<PlannedContainer> {
    let view = |(key, entry): (&Key, &Entry)| {
        let (status, before, moved_from) = match &entry.status {
            Status::New => ("new", None, None),
            Status::Unchanged => ("unchanged", None, None),
            Status::Changed { before } => ("changed", Some(AllocationView::from(before)), None),
            Status::Moved { from, before } => {
                let before = AllocationView::from(before);
                ("moved", Some(before), Some(from.clone()))
            }
        };
        let mut allocation = AllocationView::from(&entry.allocation);
        let container = inventory.containers.get(&key.1);
        // A MAC is derived from the log's id: without a log there is none to show, unless the inventory gives it.
        if state.head.log.is_none() && container.is_none_or(|container| container.mac.is_none()) {
            allocation.mac = None;
        }
        PlannedContainer {
            host: key.0.clone(),
            name: key.1.clone(),
            source: container.map_or_else(String::new, |container| source(&container.source)),
            status,
            allocation,
            before,
            moved_from,
            created: state.containers.contains_key(key),
        }
    };
    outcome.entries.iter().map(view).collect()
}

fn orphans(outcome: &Outcome, all: bool) -> Vec<Orphan> {
    let released = outcome.released.keys().map(|key| (key, true));
    let held = outcome.held.iter().filter(|_| all).map(|key| (key, false));
    let mut orphans: Vec<Orphan> = released
        .chain(held)
        .map(|((host, name), released)| Orphan {
            host: host.clone(),
            name: name.clone(),
            released,
        })
        .collect();
    orphans.sort_by(|a, b| (&a.host, &a.name).cmp(&(&b.host, &b.name)));
    orphans
}

fn source(source: &Source) -> String {
    match source {
        Source::Template(template) => format!("template {template}"),
        Source::Debian(debian) => format!("debian {}", debian.release),
        Source::Busybox => "busybox".to_owned(),
    }
}

fn show(shown: &Shown, out: &mut Output) -> Written {
    let mut hosts = Table::new([
        Column::left("HOST"),
        Column::left("REACHED"),
        Column::left("BRIDGE"),
        Column::left("PORTS"),
        Column::left("GROUPS"),
        Column::left("STATUS"),
    ]);
    for host in &shown.hosts {
        let user = host.user.as_ref().map(|user| format!("{user}@"));
        let port = host.port.map(|port| format!(":{port}"));
        let address = [user, Some(host.address.clone()), port];
        let address: String = address.into_iter().flatten().collect();
        let reached = match (host.local, &host.jump) {
            (true, _) => "here".to_owned(),
            (false, None) => address,
            (false, Some(jump)) => format!("{address} through {jump}"),
        };
        let status = match (host.installed, host.prepared) {
            (_, true) => Cell::inked(Ink::Good, "prepared"),
            (true, false) => Cell::inked(Ink::Open, "installed"),
            (false, false) => Cell::inked(Ink::Faint, "not installed"),
        };
        hosts.row([
            Cell::from(&host.name),
            reached.into(),
            Cell::from(&host.bridge),
            Cell::from(&host.forward_ports),
            Cell::or_dash(Some(host.groups.join(" ")).filter(|groups| !groups.is_empty())),
            status,
        ]);
    }
    out.table(&hosts)?;
    if !hosts.is_empty() && !shown.containers.is_empty() {
        out.line("")?;
    }
    containers(&shown.containers, out)?;
    for orphan in &shown.orphans {
        let Orphan {
            host,
            name,
            released,
        } = orphan;
        let then = match released {
            true => "`cloud refresh` would release it",
            false => "kept while the container is there",
        };
        out.line(format!(
            "{host}/{name} has an allocation and is not in the inventory: {then}"
        ))?;
    }
    Ok(())
}

/// Compiled containers as a table.
pub(super) fn containers(containers: &[PlannedContainer], out: &mut Output) -> Written {
    let mut table = Table::new([
        Column::left("CONTAINER"),
        Column::left("FROM"),
        Column::left("ADDRESS"),
        Column::left("MAC"),
        Column::left("PORTS"),
        Column::left("STATUS"),
    ]);
    for container in containers {
        let forwards = summary::forwards(&container.allocation.forwards);
        let status = match (container.status, &container.moved_from) {
            ("unchanged", _) => Cell::inked(Ink::Good, "recorded"),
            (_, Some(from)) => Cell::inked(Ink::Open, format!("moves from {from}")),
            (status, None) => Cell::inked(Ink::Open, status),
        };
        table.row([
            format!("{}/{}", container.host, container.name).into(),
            Cell::from(&container.source),
            Cell::from(&container.allocation.address),
            Cell::or_dash(container.allocation.mac.as_ref()),
            Cell::or_dash(Some(forwards).filter(|forwards| !forwards.is_empty())),
            status,
        ]);
    }
    out.table(&table)
}
