//! From an inventory and what was allocated before, to what every container has now.
//!
//! Pure, and the same every time. What was allocated stays for as long as it is in `existing`: nothing here frees,
//! moves or renumbers anything that an operator didn't name. Two owners of one thing are an error, never a guess.

mod claims;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
pub use tallybook_events::allocation::{Allocation, Forward};
use tallybook_events::ids::LogId;
use tallybook_events::name::{ContainerName, HostName};

use self::claims::Claims;
pub use self::claims::{Claim, Conflict, Error, Thing};
use super::inventory::{Container, Inventory, Port};
use super::limit::Selection;

/// Where a container is, and which.
pub type Key = (HostName, ContainerName);

/// What a container has, and how that compares with before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it has now.
    pub allocation: Allocation,
    /// How it came to that.
    pub status: Status,
}

/// How an allocation compares with what was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There was none: it is to be recorded.
    New,
    /// It is what is recorded.
    Unchanged,
    /// The inventory now says otherwise.
    Changed {
        /// What is recorded.
        before: Allocation,
    },
    /// The container is recorded on another host: its address and MAC come along, and its host ports where they are
    /// free. What is recorded there stays held until it is released.
    Moved {
        /// The host it is recorded on.
        from: HostName,
        /// What is recorded there.
        before: Allocation,
    },
}

/// The selected part of the cloud, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Every selected container.
    pub entries: BTreeMap<Key, Entry>,
    /// Recorded allocations of containers the inventory doesn't have there: still held, until released.
    pub orphans: BTreeSet<Key>,
}

impl Compiled {
    /// Entries to record: all but the unchanged.
    pub fn to_record(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        let entries = self.entries.iter();
        entries.filter(|(_, entry)| entry.status != Status::Unchanged)
    }
}

/// Compiles the selected containers. `existing` is every allocation that is recorded and not released; `present` is every
/// container that is there, whose allocation is in use and never moves to another host; `seed` makes MAC addresses of one
/// log differ from another's.
///
/// # Errors
/// When two containers would share something, or nothing is left to allocate.
pub fn compile(
    inventory: &Inventory,
    existing: &BTreeMap<Key, Allocation>,
    present: &BTreeSet<Key>,
    selection: &Selection,
    seed: &LogId,
) -> Result<Compiled, Error> {
    let targets = targets(inventory, existing, present, selection);
    let selected: BTreeSet<&Key> = targets.iter().map(|target| &target.key).collect();
    let mut claims = Claims::new(inventory, seed);
    for (key, held) in existing.iter().filter(|(key, _)| !selected.contains(key)) {
        claims.hold(key, held);
    }
    for target in &targets {
        claims.take_explicit(target);
    }
    for target in &targets {
        claims.take_kept(target);
    }
    // Last, and yielding: what an operator wants for a container outside the selection binds nobody yet, but isn't
    // given away either.
    for (name, container) in &inventory.containers {
        let key = (container.host.clone(), name.clone());
        if !selected.contains(&key) {
            claims.promise(&key, container);
        }
    }
    claims.check()?;
    let mut entries = BTreeMap::new();
    // A container that comes from another host wants its old ports; a new one doesn't mind.
    let (moved, settled): (Vec<&Target<'_>>, Vec<_>) = targets
        .iter()
        .partition(|target| target.moved_from.is_some());
    for target in moved.into_iter().chain(settled) {
        let allocation = claims.allocate(target)?;
        let status = target.status(&allocation);
        entries.insert(target.key.clone(), Entry { allocation, status });
    }
    let is_orphan = |(host, name): &&Key| {
        let container = inventory.containers.get(name);
        container.is_none_or(|container| container.host != *host)
    };
    let orphans = existing.keys().filter(is_orphan).cloned().collect();
    Ok(Compiled { entries, orphans })
}

/// A container to be compiled, and what is recorded of it.
struct Target<'a> {
    key: Key,
    container: &'a Container,
    before: Option<&'a Allocation>,
    /// The host that `before` is recorded on, when the inventory names another.
    moved_from: Option<HostName>,
}

fn targets<'a>(
    inventory: &'a Inventory,
    existing: &'a BTreeMap<Key, Allocation>,
    present: &BTreeSet<Key>,
    selection: &Selection,
) -> Vec<Target<'a>> {
    let mut recorded: BTreeMap<&ContainerName, Vec<(&HostName, &Allocation)>> = BTreeMap::new();
    for ((host, name), allocation) in existing {
        recorded.entry(name).or_default().push((host, allocation));
    }
    let selected = inventory.containers.iter();
    let selected = selected.filter(|(name, _)| selection.containers.contains(*name));
    let target = |(name, container): (&ContainerName, &'a Container)| {
        let places = recorded.get(name).map_or(&[][..], Vec::as_slice);
        let here = places.iter().find(|(host, _)| **host == container.host);
        // Of two copies elsewhere neither is the one that moved.
        let elsewhere = match places {
            [(host, allocation)]
                if here.is_none() && !present.contains(&((*host).clone(), name.clone())) =>
            {
                Some(((*host).clone(), *allocation))
            }
            _ => None,
        };
        let (moved_from, moved) = elsewhere.unzip();
        Target {
            key: (container.host.clone(), name.clone()),
            container,
            before: here.map(|(_, allocation)| *allocation).or(moved),
            moved_from,
        }
    };
    selected.map(target).collect()
}

impl Target<'_> {
    /// The host port this port has had: by its name, or else by where it leads.
    fn kept_port(&self, port: &Port) -> Option<u16> {
        let recorded = || self.before.iter().flat_map(|before| &before.forwards);
        let same_name = |forward: &&Forward| {
            forward.name == port.name.as_str() && forward.protocol == port.protocol
        };
        // A forward whose name is still in use belongs to that port.
        let named_still = |forward: &Forward| {
            let mut ports = self.container.ports.iter();
            ports
                .any(|port| forward.name == port.name.as_str() && forward.protocol == port.protocol)
        };
        let same_end = |forward: &&Forward| {
            let end = (forward.container_port, forward.protocol);
            end == (port.container, port.protocol) && !named_still(forward)
        };
        let forward = recorded().find(same_name).or_else(|| {
            // Of two new names for one end, the first has it.
            let mut rivals = self.container.ports.iter();
            let rival = rivals.find(|other| {
                let end = (other.container, other.protocol) == (port.container, port.protocol);
                end && !recorded().any(|forward| {
                    forward.name == other.name.as_str() && forward.protocol == other.protocol
                })
            });
            rival.filter(|rival| rival.name == port.name)?;
            recorded().find(same_end)
        });
        forward.map(|forward| forward.host_port)
    }

    fn status(&self, now: &Allocation) -> Status {
        match (self.before, &self.moved_from) {
            (None, _) => Status::New,
            (Some(before), Some(from)) => Status::Moved {
                from: from.clone(),
                before: before.clone(),
            },
            (Some(before), None) if before == now => Status::Unchanged,
            (Some(before), None) => Status::Changed {
                before: before.clone(),
            },
        }
    }
}
