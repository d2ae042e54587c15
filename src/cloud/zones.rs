//! From an inventory and what is allocated, to the records of every zone, as each view has them.
//!
//! Pure, and the same every time. What the inventory gives for a name goes before what follows from hosts and containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;
use tallybook_events::allocation::Allocation;

use super::allocate::Key;
use super::dns::{Data, DomainName, View, Zone};
use super::inventory::{Container, Inventory};

/// A record of a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Line {
    /// Whose it is.
    pub name: DomainName,
    /// What it says.
    pub data: Data,
    /// How long it counts, in seconds; as its zone says unless given.
    pub ttl_s: Option<u32>,
}

/// The records of a zone but its SOA, in each view.
pub type Contents = BTreeMap<View, BTreeSet<Line>>;

/// Every zone, with its records.
///
/// A name that is in no zone has no record; [`unpublished`] finds those.
pub fn zones(
    inventory: &Inventory,
    allocations: &BTreeMap<Key, Allocation>,
) -> BTreeMap<DomainName, Contents> {
    let follows = follows(inventory, allocations);
    let own = inventory
        .zones
        .iter()
        .filter(|(_, zone)| zone.alias.is_none());
    let mut zones: BTreeMap<DomainName, Contents> = own
        .map(|(name, zone)| (name.clone(), contents(inventory, name, zone, &follows)))
        .collect();
    for (name, zone) in &inventory.zones {
        let Some(original) = zone.alias.as_ref() else {
            continue;
        };
        let mut contents = contents(inventory, name, zone, &follows);
        for (view, lines) in zones.get(original).into_iter().flatten() {
            let renamed = lines
                .iter()
                .filter_map(|line| renamed(line, original, name));
            contents.entry(*view).or_default().extend(renamed);
        }
        zones.insert(name.clone(), contents);
    }
    zones
}

/// Domains of hosts and containers that are in no zone.
pub fn unpublished(inventory: &Inventory) -> BTreeSet<&DomainName> {
    let of_hosts = inventory.hosts.values().flat_map(|host| &host.domains);
    let containers = inventory.containers.values();
    let of_containers = containers.flat_map(|container| &container.domains);
    let all = of_hosts.chain(of_containers);
    all.filter(|domain| zone_of(inventory, domain).is_none())
        .collect()
}

/// A zone's file for a view. `serial` is its version.
pub fn file(name: &DomainName, zone: &Zone, lines: &BTreeSet<Line>, serial: u32) -> String {
    let times = &zone.times;
    let primary = zone.nameservers.first().unwrap_or(name);
    let mut text = format!(
        "$TTL {}\n{name}. IN SOA {primary}. {}. {serial} {} {} {} {}\n",
        times.ttl_s, zone.contact, times.refresh_s, times.retry_s, times.expire_s, times.minimum_s
    );
    for line in lines {
        let ttl = line.ttl_s.map(|ttl| format!("{ttl} ")).unwrap_or_default();
        let (name, kind) = (&line.name, line.data.kind());
        // Writing to a text does not fail.
        let _written = writeln!(text, "{name}. {ttl}IN {kind} {}", line.data);
    }
    text
}

/// The zone that answers for a name: the nearest above it.
fn zone_of<'a>(inventory: &'a Inventory, name: &DomainName) -> Option<&'a DomainName> {
    let zones = inventory.zones.keys().filter(|zone| name.is_within(zone));
    zones.max_by_key(|zone| zone.as_str().len())
}

fn contents(
    inventory: &Inventory,
    name: &DomainName,
    zone: &Zone,
    follows: &BTreeSet<(View, Line)>,
) -> Contents {
    let mut contents = Contents::new();
    for view in View::ALL {
        let lines = contents.entry(view).or_default();
        let servers = zone.nameservers.iter().map(|server| (name, server));
        let below = inventory
            .zones
            .iter()
            .filter(|(other, _)| *other != name && parent_of(inventory, other) == Some(name));
        // Who asks for what is below is sent on to its servers.
        let below =
            below.flat_map(|(below, zone)| zone.nameservers.iter().map(move |it| (below, it)));
        lines.extend(servers.chain(below).map(|(of, server)| Line {
            name: of.clone(),
            data: Data::Ns(server.clone()),
            ttl_s: None,
        }));
        let given = zone.records.iter();
        let given = given.filter(|record| record.view.is_none_or(|of| of == view));
        lines.extend(given.map(|record| Line {
            name: record.name.clone(),
            data: record.data.clone(),
            ttl_s: record.ttl_s,
        }));
        let is_given: BTreeSet<&DomainName> = zone
            .records
            .iter()
            .filter(|record| {
                record.view.is_none_or(|of| of == view) && leads_somewhere(&record.data)
            })
            .map(|record| &record.name)
            .collect();
        let follows = follows.iter().filter(|(of, line)| {
            *of == view
                && zone_of(inventory, &line.name) == Some(name)
                && !is_given.contains(&line.name)
        });
        lines.extend(follows.map(|(_, line)| line.clone()));
    }
    contents
}

/// The zone around a zone.
fn parent_of<'a>(inventory: &'a Inventory, name: &DomainName) -> Option<&'a DomainName> {
    let zones = inventory.zones.keys();
    let around = zones.filter(|zone| *zone != name && name.is_within(zone));
    around.max_by_key(|zone| zone.as_str().len())
}

/// Whether whoever asks for a name is told where to go, so that nothing else is to be said of that.
const fn leads_somewhere(data: &Data) -> bool {
    matches!(
        data,
        Data::A(_) | Data::Aaaa(_) | Data::Cname(_) | Data::Ptr(_)
    )
}

/// The same under another name; servers are each zone's own.
fn renamed(line: &Line, original: &DomainName, name: &DomainName) -> Option<Line> {
    if matches!(line.data, Data::Ns(_)) {
        return None;
    }
    let before = line.name.as_str().strip_suffix(original.as_str())?;
    Some(Line {
        name: DomainName::new(&format!("{before}{name}")).ok()?,
        ..line.clone()
    })
}

/// What follows from hosts and containers, whatever zone it is in.
fn follows(
    inventory: &Inventory,
    allocations: &BTreeMap<Key, Allocation>,
) -> BTreeSet<(View, Line)> {
    let mut lines = BTreeSet::new();
    for host in inventory.hosts.values() {
        let seen = host.seen_from_outside();
        for view in View::ALL {
            lines.extend(addresses(view, &host.domains, &seen));
            lines.extend(
                seen.iter()
                    .filter_map(|at| reverse(view, *at, host.domains.iter())),
            );
        }
    }
    for (key, allocation) in allocations {
        let Some(container) = inventory.containers.get(&key.1) else {
            continue;
        };
        let Some(host) = inventory.hosts.get(&container.host) else {
            continue;
        };
        let inside = BTreeSet::from([IpAddr::V4(allocation.address)]);
        let names = names(&key.1, container);
        // A name with a dot is whole already.
        let is_short = !key.1.as_str().contains('.');
        let in_domain = host.network.domain.as_ref().filter(|_| is_short);
        let in_domain =
            in_domain.and_then(|domain| DomainName::new(&format!("{}.{domain}", key.1)).ok());
        lines.extend(addresses(
            View::Inside,
            names.iter().chain(&in_domain),
            &inside,
        ));
        let first = names.iter().chain(&in_domain);
        lines.extend(reverse(View::Inside, IpAddr::V4(allocation.address), first));
        // From elsewhere, it is its host that is reached.
        lines.extend(addresses(View::Outside, &names, &host.seen_from_outside()));
    }
    lines
}

/// The names of a container: its domains, and its own name where that is one.
fn names(
    name: &tallybook_events::name::ContainerName,
    container: &Container,
) -> BTreeSet<DomainName> {
    let own = Some(name.as_str()).filter(|name| name.contains('.'));
    let own = own.and_then(|name| DomainName::new(name).ok());
    container.domains.iter().cloned().chain(own).collect()
}

fn addresses<'a>(
    view: View,
    names: impl IntoIterator<Item = &'a DomainName>,
    addresses: &BTreeSet<IpAddr>,
) -> Vec<(View, Line)> {
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => Data::A(*address),
        IpAddr::V6(address) => Data::Aaaa(*address),
    };
    let line = |name: &DomainName, address| Line {
        name: name.clone(),
        data: data(address),
        ttl_s: None,
    };
    let of = |name: &'a DomainName| addresses.iter().map(move |it| (view, line(name, it)));
    names.into_iter().flat_map(of).collect()
}

/// The name of an address: the first that is one.
fn reverse<'a>(
    view: View,
    address: IpAddr,
    mut names: impl Iterator<Item = &'a DomainName>,
) -> Option<(View, Line)> {
    let name = names.find(|name| !name.is_wildcard())?;
    let line = Line {
        name: DomainName::of_address(address),
        data: Data::Ptr(name.clone()),
        ttl_s: None,
    };
    Some((view, line))
}
