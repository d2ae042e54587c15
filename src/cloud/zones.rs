//! From an inventory and what is allocated, to the records of every zone, as each view has them.
//!
//! Pure, and the same every time. What the inventory gives for a name goes before what follows from hosts and containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use tallybook_agent::dns::{self, Record, Soa};
use tallybook_events::allocation::Allocation;
use tallybook_events::name::ContainerName;

use super::allocate::Key;
use super::dns::{Data, DomainName, View, Zone};
use super::inventory::{Container, Inventory};

/// A record of a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Line {
    /// Whose it is.
    pub name: DomainName,
    /// What it says.
    #[serde(flatten)]
    pub data: Data,
    /// How long it counts, in seconds; as its zone says unless given.
    pub ttl_s: Option<u32>,
}

/// The records of a zone but its SOA, in each view.
pub type Contents = BTreeMap<View, BTreeSet<Line>>;

/// Every zone, with its records.
///
/// A domain that can't have one has none; [`untold`] finds those.
pub fn zones(
    inventory: &Inventory,
    allocations: &BTreeMap<Key, Allocation>,
) -> BTreeMap<DomainName, Contents> {
    let follows = follows(inventory, allocations);
    let answers = |name: &DomainName, zone: &Zone| -> Contents {
        let views = View::ALL.into_iter();
        views
            .map(|view| (view, answers(inventory, name, zone, &follows, view)))
            .collect()
    };
    let all = inventory.zones.iter();
    let all: BTreeMap<DomainName, Contents> = all
        .map(|(name, zone)| (name.clone(), answers(name, zone)))
        .collect();
    let mut zones = all.clone();
    for (name, zone) in &inventory.zones {
        let Some(around) = parent_of(inventory, name).and_then(|it| zones.get_mut(it)) else {
            continue;
        };
        for (view, lines) in around {
            lines.extend(delegation(inventory, &all, name, zone, *view));
        }
    }
    zones
}

/// Domains of hosts and containers that nobody is told an address of, and why that is so.
pub fn untold(
    inventory: &Inventory,
    zones: &BTreeMap<DomainName, Contents>,
) -> BTreeMap<DomainName, &'static str> {
    let of_hosts = inventory.hosts.values();
    let of_hosts = of_hosts.flat_map(|host| host.domains.iter().cloned());
    let of_containers = inventory.containers.iter().flat_map(|(name, container)| {
        let host = inventory.hosts.get(&container.host);
        let own = host.and_then(|host| host.own_domain(name));
        // Its host's own server has that name; here it is missed only where there is a zone for it.
        let own = own.filter(|own| zone_of(inventory, own).is_some());
        names(name, container).into_iter().chain(own)
    });
    let is_told = |domain: &DomainName| {
        let views = zones.values().flat_map(BTreeMap::values);
        let mut lines = views.flatten();
        lines.any(|line| line.name == *domain && leads_somewhere(&line.data))
    };
    let domains = of_hosts.chain(of_containers);
    let domains = domains.filter(|domain| !is_told(domain));
    domains
        .map(|domain| {
            let why = why_untold(inventory, &domain);
            (domain, why)
        })
        .collect()
}

fn why_untold(inventory: &Inventory, domain: &DomainName) -> &'static str {
    let Some((of, zone)) =
        zone_of(inventory, domain).and_then(|it| inventory.zones.get_key_value(it))
    else {
        return "no zone answers for it";
    };
    if !domain.is_host_name() {
        return "no host can have that name, for an underscore is in it";
    }
    let is_elsewhere = |view| {
        let given = given(inventory, of, zone, view);
        given.iter().any(|line| takes_away(line, of, domain))
    };
    match View::ALL.into_iter().any(is_elsewhere) {
        true => "it is below a delegation of its zone",
        false => "nothing can reach it: it has no address, or none that is public",
    }
}

/// Servers that have their name in the zone, or below it, and no address there; with the view where that is so.
pub fn without_address(
    zones: &BTreeMap<DomainName, Contents>,
) -> BTreeSet<(&DomainName, View, &DomainName)> {
    let mut wrong = BTreeSet::new();
    for (zone, contents) in zones {
        for (view, lines) in contents {
            let has_address = |name: &DomainName| {
                let addresses = lines.iter().filter(|line| line.data.is_address());
                addresses
                    .into_iter()
                    .any(|line| line.name == *name || line.name.stands_for(name))
            };
            let servers = lines.iter().filter_map(|line| match &line.data {
                Data::Ns(server) if server.is_within(zone) => Some(server),
                _ => None,
            });
            let servers = servers.filter(|server| !has_address(server));
            wrong.extend(servers.map(|server| (zone, *view, server)));
        }
    }
    wrong
}

/// What a zone's SOA says.
pub fn soa(name: &DomainName, zone: &Zone) -> Soa {
    let times = &zone.times;
    Soa {
        server: zone.nameservers.first().unwrap_or(name).clone(),
        contact: zone.contact.clone(),
        ttl_s: times.ttl_s,
        refresh_s: times.refresh_s,
        retry_s: times.retry_s,
        expire_s: times.expire_s,
        minimum_s: times.minimum_s,
    }
}

/// The records of a zone in a view, as a server has them.
///
/// # Errors
/// When one can't be in a zone's file.
pub fn records(
    zone: &DomainName,
    view: View,
    lines: &BTreeSet<Line>,
) -> Result<Vec<Record>, dns::Error> {
    let record = |line: &Line| {
        Ok(Record {
            zone: zone.clone(),
            view,
            name: line.name.clone(),
            ttl_s: line.ttl_s,
            kind: line.data.kind().parse()?,
            value: line.data.to_string().parse()?,
        })
    };
    lines.iter().map(record).collect()
}

/// The zone that answers for a name: the nearest above it.
fn zone_of<'a>(inventory: &'a Inventory, name: &DomainName) -> Option<&'a DomainName> {
    let zones = inventory.zones.keys().filter(|zone| name.is_within(zone));
    zones.max_by_key(|zone| zone.as_str().len())
}

/// What a zone answers by itself.
fn answers(
    inventory: &Inventory,
    name: &DomainName,
    zone: &Zone,
    follows: &BTreeSet<(View, Line)>,
    view: View,
) -> BTreeSet<Line> {
    let of = |zone: &DomainName| -> Vec<Line> {
        let lines = follows
            .iter()
            .filter(|(seen, line)| *seen == view && zone_of(inventory, &line.name) == Some(zone));
        lines.map(|(_, line)| line.clone()).collect()
    };
    let mut following = of(name);
    if let Some(original) = &zone.alias {
        let own: BTreeSet<DomainName> = following.iter().map(|line| line.name.clone()).collect();
        let there = of(original);
        let there = there.iter().filter_map(|it| renamed(it, original, name));
        following.extend(there.filter(|line| {
            zone_of(inventory, &line.name) == Some(name) && !own.contains(&line.name)
        }));
    }
    let given = given(inventory, name, zone, view);
    let is_server =
        |name: &DomainName| given.iter().any(|line| line.data == Data::Ns(name.clone()));
    // The addresses of servers are told with them.
    let is_hidden = |line: &Line| {
        let is_away = given.iter().any(|by| takes_away(by, name, &line.name));
        is_away && !(line.data.is_address() && is_server(&line.name))
    };
    following.retain(|line| {
        let is_given = |by: &Line| by.name == line.name && leads_somewhere(&by.data);
        !given.iter().any(is_given) && !is_hidden(line)
    });
    let servers = zone.nameservers.iter().map(|server| Line {
        name: name.clone(),
        data: Data::Ns(server.clone()),
        ttl_s: None,
    });
    let servers: BTreeSet<Line> = servers.collect();
    servers.into_iter().chain(given).chain(following).collect()
}

/// The records that the inventory gives for a zone; those of the other one, if it is an alias.
fn given(inventory: &Inventory, name: &DomainName, zone: &Zone, view: View) -> Vec<Line> {
    let of = |zone: &Zone| -> Vec<Line> {
        let records = zone.records.iter();
        let records = records.filter(|record| record.view.is_none_or(|of| of == view));
        let line = |record: &super::dns::Record| Line {
            name: record.name.clone(),
            data: record.data.clone(),
            ttl_s: record.ttl_s,
        };
        records.map(line).collect()
    };
    let Some(original) = &zone.alias else {
        return of(zone);
    };
    let there = inventory.zones.get(original).map(of).unwrap_or_default();
    // What is said of the zones below that one: they are not below this one.
    let is_of_below = |line: &Line| {
        matches!(line.data, Data::Other("DS", _)) && inventory.zones.contains_key(&line.name)
    };
    let there = there.iter().filter(|line| !is_of_below(line));
    let there = there.filter_map(|it| renamed(it, original, name));
    there
        .filter(|line| zone_of(inventory, &line.name) == Some(name))
        .collect()
}

/// Whether a record of a zone sends who asks for a name elsewhere: to other servers, or to another name.
fn takes_away(by: &Line, zone: &DomainName, name: &DomainName) -> bool {
    by.data.takes_away(&by.name, zone, name)
}

/// What the zone around a zone says of it: its servers, and where those are that only it knows.
fn delegation(
    inventory: &Inventory,
    all: &BTreeMap<DomainName, Contents>,
    name: &DomainName,
    zone: &Zone,
    view: View,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for server in &zone.nameservers {
        lines.push(Line {
            name: name.clone(),
            data: Data::Ns(server.clone()),
            ttl_s: None,
        });
        let there = zone_of(inventory, server).filter(|_| server.is_within(name));
        let there = there.and_then(|of| all.get(of)?.get(&view));
        let addresses = there.into_iter().flatten();
        let addresses = addresses.filter(|line| line.name == *server && line.data.is_address());
        lines.extend(addresses.cloned());
    }
    lines
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

/// The same under another name.
fn renamed(line: &Line, original: &DomainName, name: &DomainName) -> Option<Line> {
    Some(Line {
        name: moved(&line.name, original, name)?,
        ..line.clone()
    })
}

/// A name of one zone, in another one.
fn moved(name: &DomainName, from: &DomainName, to: &DomainName) -> Option<DomainName> {
    let before = name.as_str().strip_suffix(from.as_str())?;
    DomainName::new(&format!("{before}{to}")).ok()
}

/// What follows from hosts and containers, whatever zone it is in.
fn follows(
    inventory: &Inventory,
    allocations: &BTreeMap<Key, Allocation>,
) -> BTreeSet<(View, Line)> {
    let mut lines = BTreeSet::new();
    for host in inventory.hosts.values() {
        for view in View::ALL {
            let seen = host.seen_from(view);
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
        let own = host.own_domain(&key.1);
        let own = own.filter(|own| !names.contains(own));
        let of_inside = || names.iter().chain(&own);
        lines.extend(addresses(View::Inside, of_inside(), &inside));
        let address = IpAddr::V4(allocation.address);
        lines.extend(reverse(View::Inside, address, of_inside()));
        // From elsewhere, it is its host that is reached.
        let seen = host.seen_from(View::Outside);
        lines.extend(addresses(View::Outside, &names, &seen));
    }
    lines
}

/// The names by which all may ask for a container: its domains in order, and its own name where that is one.
fn names(name: &ContainerName, container: &Container) -> Vec<DomainName> {
    let own = Some(name.as_str()).filter(|name| name.contains('.'));
    let own = own.and_then(|name| DomainName::new(name).ok());
    let own = own.filter(|own| !container.domains.contains(own));
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
    let names = names.into_iter().filter(|name| name.is_host_name());
    names.flat_map(of).collect()
}

/// The name of an address: the first that is one.
fn reverse<'a>(
    view: View,
    address: IpAddr,
    mut names: impl Iterator<Item = &'a DomainName>,
) -> Option<(View, Line)> {
    let name = names.find(|name| name.is_host_name() && !name.is_wildcard())?;
    let line = Line {
        name: DomainName::of_address(address),
        data: Data::Ptr(name.clone()),
        ttl_s: None,
    };
    Some((view, line))
}
