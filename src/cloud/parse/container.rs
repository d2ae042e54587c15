//! `[containers.NAME]` and `[defaults.container]`, apart from what they are made from and what runs inside.

mod provision;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use tallybook_events::name::{ContainerName, HostName};

use self::source::Scratch;
use super::{Names, host_reference, label, label_references, named_sections};
use crate::cloud::dns::DomainName;
use crate::cloud::inventory::{Backing, Container, Host, Label, Network, Port};
use crate::cloud::network::{CardMac, Mac, Protocol};
use crate::cloud::section::{At, Report, Section, table_of};

const SSH_PORT: u16 = 22;

/// What an operator coming from elsewhere may expect: refused by name, because nothing would act on it.
const LATER: [&str; 31] = [
    "additional_ips",
    "address6",
    "architecture",
    "clone_snapshot",
    "config",
    "cpu",
    "cpus",
    "devices",
    "disk",
    "environment",
    "features",
    "fstab",
    "gateway",
    "groups",
    "hooks",
    "image",
    "interfaces",
    "limits",
    "lxc_conf",
    "memory",
    "mounts",
    "nesting",
    "network",
    "network_profile",
    "privileged",
    "profile",
    "size",
    "snapshots",
    "storage",
    "unprivileged",
    "volumes",
];

const PASSWORD: &str = "passwords are not kept here: use keys";
const SECRETS: &str = "an entry of provision names those that it needs";

/// What one container, or the defaults of all, say that may be said of all.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    scratch: Scratch,
    backing: Option<Backing>,
    autostart: Option<bool>,
    forward_ssh: Option<bool>,
    keys: Option<BTreeSet<Label>>,
}

/// What may be used once only, and by whom it is: addresses and MACs in the cloud, ports on a host, domains.
#[derive(Default)]
struct Taken {
    addresses: BTreeMap<Ipv4Addr, (ContainerName, usize)>,
    macs: BTreeMap<Mac, (ContainerName, usize)>,
    ports: BTreeMap<(HostName, Protocol, u16), (ContainerName, usize)>,
    domains: BTreeMap<DomainName, (ContainerName, usize)>,
}

fn settings(section: &Section<'_>, names: &Names<'_>) -> Settings {
    let backings = [
        ("auto", Backing::Auto),
        ("dir", Backing::Dir),
        ("overlay", Backing::Overlay),
        ("reflink", Backing::Reflink),
    ];
    let later = [
        "best",
        "btrfs",
        "loop",
        "lvm",
        "nbd",
        "overlayfs",
        "rbd",
        "zfs",
    ];
    let keys = label_references(section, "keys", &names.keys);
    Settings {
        scratch: Scratch::read(section),
        backing: section.choice("backing", &backings, &later),
        autostart: section.boolean("autostart"),
        forward_ssh: section.boolean("forward_ssh"),
        keys: keys.map(|keys| keys.into_iter().map(|key| key.value).collect()),
    }
}

/// Reads `[defaults.container]`.
pub(super) fn defaults(defaults: Option<&Section<'_>>, names: &Names<'_>) -> Settings {
    let section = defaults.and_then(|all| all.section("container", "[defaults.container]"));
    let Some(section) = section else {
        return Settings::default();
    };
    let settings = settings(&section, names);
    let each = "each container has its own: set it in [containers.NAME]";
    let own = [
        "address",
        "domains",
        "host",
        "mac",
        "ports",
        "provision",
        "template",
    ];
    let mut elsewhere: Vec<_> = own.into_iter().map(|key| (key, each)).collect();
    elsewhere.push(("password", PASSWORD));
    elsewhere.push(("secrets", SECRETS));
    section.finish(&LATER, &elsewhere);
    settings
}

pub(super) fn read_all(
    root: &Section<'_>,
    names: &Names<'_>,
    defaults: &Settings,
    network: &Network,
    hosts: &BTreeMap<HostName, Host>,
) -> BTreeMap<ContainerName, Container> {
    let mut containers = BTreeMap::new();
    let mut taken = Taken::default();
    for (name, section) in named_sections::<ContainerName>(root, "containers", "container") {
        let line = root.report().line(section.at);
        let section = section.value;
        let host = host_reference(&section, "host", names);
        if section.position("host").is_none() {
            let message = format!("{} has no host", section.what());
            let help = "say where it runs: host = \"…\"";
            section.report().error_help(section.at(), message, help);
        }
        let own = settings(&section, names);
        let source = source::read(&section, names, &own.scratch, &defaults.scratch);
        let address = address(&section, &name, network, &mut taken);
        let mac = mac(&section, &name, &mut taken);
        let ssh = own.forward_ssh.or(defaults.forward_ssh).unwrap_or(false);
        let ports = ports(&section, line, ssh);
        let on_host = host
            .as_ref()
            .and_then(|host| hosts.get_key_value(&host.value));
        if let Some((host_name, host)) = on_host {
            take_ports(
                section.report(),
                &name,
                (host_name, host),
                &ports,
                &mut taken,
            );
        }
        let own_domain = on_host.and_then(|(_, host)| host.own_domain(&name));
        let domains = domains(&section, &name, own_domain, hosts, &mut taken);
        let provision = provision::read_all(&section, names);
        section.finish(&LATER, &[("password", PASSWORD), ("secrets", SECRETS)]);
        let (Some(host), Some(source)) = (host, source) else {
            continue;
        };
        let container = Container {
            line,
            host: host.value,
            source,
            backing: own.backing.or(defaults.backing).unwrap_or(Backing::Auto),
            autostart: own.autostart.or(defaults.autostart).unwrap_or(true),
            address,
            mac,
            ports: ports.into_iter().map(|port| port.value).collect(),
            keys: own
                .keys
                .or_else(|| defaults.keys.clone())
                .unwrap_or_default(),
            provision,
            domains,
        };
        containers.insert(name, container);
    }
    containers
}

fn address(
    section: &Section<'_>,
    name: &ContainerName,
    network: &Network,
    taken: &mut Taken,
) -> Option<Ipv4Addr> {
    let report = section.report();
    let given = section.parsed::<Ipv4Addr>("address")?;
    let (address, subnet) = (given.value, network.subnet);
    let wrong = if !subnet.contains(address) {
        Some(format!("is outside the subnet {subnet}"))
    } else if address == network.gateway {
        Some("is the gateway's".to_owned())
    } else if address == subnet.network() {
        Some(format!("is the network address of {subnet}"))
    } else if address == subnet.broadcast() {
        Some(format!("is the broadcast address of {subnet}"))
    } else {
        None
    };
    if let Some(wrong) = wrong {
        report.error(given.at, format!("address {address} {wrong}"));
        return None;
    }
    take(
        report,
        &mut taken.addresses,
        address,
        "address",
        name,
        At {
            value: address,
            at: given.at,
        },
    );
    Some(address)
}

fn mac(section: &Section<'_>, name: &ContainerName, taken: &mut Taken) -> Option<Mac> {
    let given = section.parsed::<CardMac>("mac")?;
    let mac = At {
        value: given.value.0,
        at: given.at,
    };
    take(
        section.report(),
        &mut taken.macs,
        mac.value,
        "MAC address",
        name,
        mac,
    );
    Some(mac.value)
}

/// Notes a mistake when a value that is used once only has an owner already.
fn take<K: Ord, T: std::fmt::Display>(
    report: &Report<'_>,
    taken: &mut BTreeMap<K, (ContainerName, usize)>,
    key: K,
    what: &str,
    name: &ContainerName,
    shown: At<T>,
) {
    if let Some((owner, line)) = taken.get(&key) {
        let message = format!(
            "{what} {} is used by container {:?} too",
            shown.value,
            owner.as_str()
        );
        report.error_related(shown.at, message, *line, "first used here");
        return;
    }
    taken.insert(key, (name.clone(), report.line(shown.at)));
}

fn ports(section: &Section<'_>, line: usize, ssh: bool) -> Vec<At<Port>> {
    let report = section.report();
    let mut ports: Vec<At<Port>> = Vec::new();
    for item in section.array("ports").unwrap_or_default() {
        let Some(table) = table_of(report, "each of ports", item) else {
            continue;
        };
        let what = format!("a port of {}", section.what());
        let Some(port) = port(Section::new(report, what, table)) else {
            continue;
        };
        let same = ports
            .iter()
            .find(|other| other.value.name == port.value.name);
        if let Some(same) = same {
            let message = format!(
                "two ports of {} are called {:?}",
                section.what(),
                port.value.name.as_str()
            );
            report.error_related(port.at, message, same.value.line, "the first one");
        }
        ports.push(port);
    }
    let is_ssh = |port: &Port| port.protocol == Protocol::Tcp && port.container == SSH_PORT;
    let has_ssh = ports.iter().any(|port| is_ssh(&port.value));
    let name = port_name(Protocol::Tcp, SSH_PORT);
    let clash = ports
        .iter()
        .find(|port| Some(&port.value.name) == name.as_ref());
    match (ssh && !has_ssh, clash, name) {
        (true, Some(clash), _) => {
            let message = format!(
                "the port called \"ssh\" of {} is not its port 22",
                section.what()
            );
            report.error_help(
                clash.at,
                message,
                "call it otherwise, or set forward_ssh = false",
            );
        }
        (true, None, Some(name)) => ports.push(At {
            value: Port {
                line,
                name,
                protocol: Protocol::Tcp,
                container: SSH_PORT,
                host: None,
            },
            at: section.at(),
        }),
        (true | false, _, _) => {}
    }
    ports
}

fn port(section: Section<'_>) -> Option<At<Port>> {
    let report = section.report();
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let protocol = section.choice("protocol", &protocols, &["sctp", "all"]);
    let protocol = match section.position("protocol") {
        Some(_) => protocol,
        None => Some(Protocol::default()),
    };
    let inside = section.port("container");
    if section.position("container").is_none() {
        let message = format!("{} doesn't say which", section.what());
        report.error_help(
            section.at(),
            message,
            "give the port inside: container = 80",
        );
    }
    let host = section.port("host");
    let name = section.text("name");
    let name = name.map(|name| label(report, "port", name));
    let at = section.position("host").unwrap_or(section.at());
    let line = report.line(section.at());
    let elsewhere = [
        "host_address",
        "hostPort",
        "portRange",
        "hostPortRange",
        "port",
    ];
    let elsewhere = elsewhere.map(|key| {
        (
            key,
            "a forward is { container = 80, host = 8080, protocol = \"tcp\" }",
        )
    });
    section.finish(&["proxy_protocol", "range", "source"], &elsewhere);
    let (container, protocol) = (inside?.value, protocol?);
    let port = Port {
        line,
        name: name.unwrap_or_else(|| port_name(protocol, container))?,
        protocol,
        container,
        host: host.map(|host| host.value),
    };
    Some(At { value: port, at })
}

fn port_name(protocol: Protocol, container: u16) -> Option<Label> {
    if protocol == Protocol::Tcp && container == SSH_PORT {
        return Label::new("ssh");
    }
    Label::new(&format!("{protocol}-{container}"))
}

fn take_ports(
    report: &Report<'_>,
    name: &ContainerName,
    (host_name, host): (&HostName, &Host),
    ports: &[At<Port>],
    taken: &mut Taken,
) {
    for port in ports {
        let Some(number) = port.value.host else {
            continue;
        };
        let protocol = port.value.protocol;
        // A forward there would cut the host off from whoever manages it.
        if number == host.ssh_port() && protocol == Protocol::Tcp {
            let message = format!(
                "port {number} of host {:?} is its SSH daemon's",
                host_name.as_str()
            );
            report.error(port.at, message);
            continue;
        }
        let key = (host_name.clone(), protocol, number);
        let shown = format!("{number}/{protocol} of host {:?}", host_name.as_str());
        take(
            report,
            &mut taken.ports,
            key,
            "port",
            name,
            At {
                value: shown,
                at: port.at,
            },
        );
    }
}

/// The domains that are said to be its, of which none is another's; nor is `own`, the one that it has by its name.
fn domains(
    section: &Section<'_>,
    name: &ContainerName,
    own: Option<DomainName>,
    hosts: &BTreeMap<HostName, Host>,
    taken: &mut Taken,
) -> Vec<DomainName> {
    let report = section.report();
    let domains = super::domains(section);
    let own = own.map(|value| At {
        value,
        at: section.at(),
    });
    let own = own.filter(|own| domains.iter().all(|domain| domain.value != own.value));
    for domain in domains.iter().chain(&own) {
        let of_host = hosts
            .iter()
            .find(|(_, host)| host.domains.contains(&domain.value));
        if let Some((host, of)) = of_host {
            let message = format!("domain {} is host {:?}'s", domain.value, host.as_str());
            report.error_related(domain.at, message, of.line, "that host");
        }
        let key = domain.value.clone();
        take(
            report,
            &mut taken.domains,
            key,
            "domain",
            name,
            domain.clone(),
        );
    }
    domains.into_iter().map(|domain| domain.value).collect()
}
