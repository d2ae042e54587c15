//! DNS: the servers of the cloud's zones, and what each answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tallybook_agent::dns::{AsOf, DomainName, Entry, Network, Role, Service, View, Zone};
use tallybook_agent::step::OutputOf;
use tallybook_agent::steps::dns_follow::DnsFollow;
use tallybook_agent::steps::dns_serve::DnsServe;
use tallybook_agent::steps::host_packages::HostPackages;
use tallybook_events::name::HostName;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::{Error, Plan, host, value};
use crate::cloud::inventory::{self, Inventory};
use crate::cloud::zones::{self, Contents};

/// What a server of zones needs on its host.
const PACKAGES: [&str; 3] = ["bind9", "bind9-dnsutils", "bind9-utils"];

/// The hosts that are servers of zones.
pub fn servers(inventory: &Inventory) -> BTreeSet<HostName> {
    let zones = inventory.zones.values();
    zones
        .flat_map(|zone| zone.servers.iter().cloned())
        .collect()
}

/// `dns apply`: every server answers for its zones, and those that have some from another one have them as they are there.
///
/// # Errors
/// When there is no zone, a server is not installed, or can't be reached by another one.
pub fn apply(inventory: &Inventory, state: &State) -> Result<Vec<PlannedStep>, Error> {
    let servers = servers(inventory);
    if servers.is_empty() {
        return Err(Error::NoZones);
    }
    let contents = zones::zones(inventory, &state.allocations);
    if let Some((zone, view, server)) = zones::without_address(&contents).first() {
        return Err(Error::NoServerAddress {
            zone: (*zone).clone(),
            view: view.label(),
            server: (*server).clone(),
        });
    }
    let mut plan = Plan::default();
    let mut serving = BTreeMap::new();
    for name in &servers {
        let known = host::host(inventory, name)?;
        if !state.hosts.get(name).is_some_and(|known| known.installed) {
            return Err(Error::NotInstalled(name.clone()));
        }
        let subject = Subject::Host(name.clone());
        let packages = PACKAGES.iter().map(|name| value("package", name));
        let packages = packages.collect::<Result<_, _>>()?;
        let packages = plan.then(name, &subject, &HostPackages { packages })?;
        let packages = OutputOf::step(packages);
        let service = service(inventory, state, &contents, name, known)?;
        let is_known_to_others = service.zones.iter().any(|zone| match &zone.role {
            Role::Primary { secondaries, .. } => !secondaries.is_empty(),
            Role::Secondary { .. } => true,
        });
        let key = inventory.dns.key.clone().filter(|_| is_known_to_others);
        let step = plan.then(
            name,
            &subject,
            &DnsServe {
                packages,
                service,
                key,
            },
        )?;
        serving.insert(name, step);
    }
    for name in &servers {
        let subject = Subject::Host(name.clone());
        for (primary, zones) in followed(inventory, name) {
            let Some(served) = serving.get(primary) else {
                continue;
            };
            let follow = DnsFollow {
                primary: primary.clone(),
                served: OutputOf::step(*served),
                zones,
            };
            plan.behind(name, &subject, &follow, *served)?;
        }
    }
    Ok(plan.finish())
}

/// The zones that a host has from others, by who has them first.
fn followed<'a>(
    inventory: &'a Inventory,
    name: &HostName,
) -> BTreeMap<&'a HostName, Vec<DomainName>> {
    let mut followed: BTreeMap<&HostName, Vec<DomainName>> = BTreeMap::new();
    for (zone, about) in &inventory.zones {
        if let Some((primary, others)) = about.servers.split_first()
            && others.contains(name)
        {
            followed.entry(primary).or_default().push(zone.clone());
        }
    }
    followed
}

/// What a host's server answers.
fn service(
    inventory: &Inventory,
    state: &State,
    contents: &BTreeMap<DomainName, Contents>,
    name: &HostName,
    known: &inventory::Host,
) -> Result<Service, Error> {
    let mut zones = Vec::new();
    let mut records = Vec::new();
    for (zone, about) in &inventory.zones {
        let Some((primary, secondaries)) = about.servers.split_first() else {
            continue;
        };
        let role = if primary == name {
            for (view, lines) in contents.get(zone).into_iter().flatten() {
                let all = zones::records(zone, *view, lines)?;
                records.extend(all.into_iter().map(|record| Entry {
                    record,
                    container: None,
                }));
            }
            let secondaries = secondaries.iter().map(|name| address(inventory, name));
            Role::Primary {
                soa: zones::soa(zone, about),
                secondaries: secondaries.collect::<Result<_, _>>()?,
                others: about.transfer.clone(),
            }
        } else if secondaries.contains(name) {
            Role::Secondary {
                primary: address(inventory, primary)?,
            }
        } else {
            continue;
        };
        let name = zone.clone();
        zones.push(Zone { name, role });
    }
    Ok(Service {
        as_of: AsOf {
            epoch: state.head.epoch,
            seq: state.head.seq,
        },
        inside: inside(inventory)?,
        not_at: vec![inventory.network.gateway],
        forwarders: forwarders(inventory, known),
        zones,
        records,
    })
}

/// Whom a server asks for what is in no zone: whom its host asks, but for the servers themselves, which would ask each other.
fn forwarders(inventory: &Inventory, known: &inventory::Host) -> Vec<IpAddr> {
    let servers = servers(inventory);
    let own: BTreeSet<IpAddr> = servers
        .iter()
        .filter_map(|name| inventory.hosts.get(name))
        .flat_map(|host| host.public.iter().copied().chain(host.address.parse().ok()))
        .collect();
    let all = known.network.dns.iter().copied();
    all.filter(|server| !own.contains(server) && !server.is_loopback())
        .collect()
}

/// Who is inside: containers, hosts, and whom the inventory says.
fn inside(inventory: &Inventory) -> Result<Vec<Network>, Error> {
    let subnets = [inventory.network.subnet];
    let subnets = subnets.iter().chain(&inventory.dns.inside);
    let networks = subnets.map(|subnet| value("network", &subnet.to_string()));
    let mut networks = networks.collect::<Result<BTreeSet<Network>, Error>>()?;
    for host in inventory.hosts.values() {
        let own = host
            .address
            .parse()
            .ok()
            .map(|own: IpAddr| own.to_canonical());
        let all = host.seen_from(View::Inside).into_iter().chain(own);
        networks.extend(all.map(Network::of));
    }
    Ok(networks.into_iter().collect())
}

/// By which address other servers reach a host's.
fn address(inventory: &Inventory, name: &HostName) -> Result<IpAddr, Error> {
    let host = host::host(inventory, name)?;
    let own: Option<IpAddr> = host.address.parse().ok();
    let own = own.filter(|own| !own.is_loopback() && !own.is_unspecified());
    let address = own.or_else(|| host.public.first().copied());
    address
        .map(|address: IpAddr| address.to_canonical())
        .ok_or_else(|| Error::NoAddress(name.clone()))
}

#[cfg(test)]
mod tests {
    use tallybook_replay::state;

    use super::*;

    const CLOUD: &str = r#"
[hosts.a]
address = "192.0.2.1"
public = ["203.0.113.1"]
[hosts.a.network]
dns = ["192.0.2.2", "203.0.113.1", "9.9.9.9"]
[hosts.b]
address = "b.example"
public = ["192.0.2.2"]
[hosts.c]
address = "c.example"
[secrets.dns]
file = "/secret"
[dns]
servers = ["a", "b"]
key = "dns"
inside = ["198.51.100.0/24"]
[zones."example.net"]
nameservers = ["ns.example.edu"]
[zones."example.org"]
servers = ["b", "a"]
nameservers = ["ns.example.edu"]
[zones."example.com"]
servers = ["c"]
nameservers = ["ns.example.edu"]
"#;

    fn planned(text: &str) -> Result<Vec<PlannedStep>, Error> {
        let inventory = crate::cloud::parse("cloud.toml", text).unwrap();
        let host = state::Host {
            installed: true,
            ..state::Host::default()
        };
        let hosts = inventory
            .hosts
            .keys()
            .map(|name| (name.clone(), host.clone()));
        let state = State {
            hosts: hosts.collect(),
            ..State::default()
        };
        apply(&inventory, &state)
    }

    fn serve(steps: &[PlannedStep], host: &str) -> DnsServe {
        let is_it = |step: &&PlannedStep| step.kind == "dns.serve" && step.host.as_str() == host;
        let step = steps.iter().find(is_it).unwrap();
        tallybook_events::codec::decode(&step.params.0).unwrap()
    }

    #[test]
    fn each_server_has_its_zones_and_follows_who_has_them_first() {
        let steps = planned(CLOUD).unwrap();
        let told: Vec<(&str, &str)> = steps
            .iter()
            .filter(|step| step.kind.starts_with("dns"))
            .map(|step| (step.host.as_str(), step.summary.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("a", "answer for the DNS zones example.net, example.org"),
                ("b", "answer for the DNS zones example.net, example.org"),
                ("c", "answer for the DNS zone example.com"),
                ("a", "have the DNS zone example.org from b"),
                ("b", "have the DNS zone example.net from a"),
            ]
        );
        let a = serve(&steps, "a");
        let Role::Primary { secondaries, .. } = &a.service.zones[0].role else {
            panic!("{a:?}");
        };
        assert_eq!(secondaries, &["192.0.2.2".parse::<IpAddr>().unwrap()]);
        let inside: Vec<String> = a.service.inside.iter().map(ToString::to_string).collect();
        assert_eq!(
            inside,
            [
                "10.5.0.0/16",
                "192.0.2.1/32",
                "192.0.2.2/32",
                "198.51.100.0/24",
                "203.0.113.1/32"
            ]
        );
        assert!(a.key.is_some());
        let others: [IpAddr; 1] = [[9, 9, 9, 9].into()];
        assert_eq!(
            a.service.forwarders, others,
            "servers do not ask each other"
        );
        let Role::Secondary { primary } = a.service.zones[1].role else {
            panic!("{a:?}");
        };
        assert_eq!(primary, "192.0.2.2".parse::<IpAddr>().unwrap());
        assert!(serve(&steps, "c").key.is_none(), "it knows no other server");
        let follows = steps.iter().filter(|step| step.kind == "dns.follow");
        for step in follows {
            assert_eq!(
                step.after.len(),
                2,
                "behind its own server and the other one: {step:?}"
            );
        }
    }

    #[test]
    fn what_can_not_be_planned_is_refused() {
        let unreachable = CLOUD.replace("servers = [\"c\"]", "servers = [\"c\", \"a\"]");
        let error = planned(&unreachable).unwrap_err();
        assert!(
            matches!(error, Error::NoAddress(ref name) if name.as_str() == "c"),
            "{error}"
        );
        let nowhere = CLOUD.replacen("ns.example.edu", "ns", 1);
        let error = planned(&nowhere).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ns.example.net is a server of the DNS zone example.net and has no address, seen from inside"
        );
        assert!(matches!(planned("[hosts.a]").unwrap_err(), Error::NoZones));
    }
}
