//! `[hosts.NAME]` and `[defaults.host]`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tallybook_events::name::HostName;

use super::{Names, host_reference, label_references, named_sections, network};
use crate::cloud::diagnostic::quoted;
use crate::cloud::inventory::{Become, Host, Label};
use crate::cloud::section::{At, Report, Section};

const LATER: [&str; 7] = [
    "become_method",
    "become_user",
    "connection",
    "environment",
    "proxy",
    "tags",
    "vars",
];

const PASSWORD: &str = "passwords are not kept here: log in by key";

/// What one host, or the defaults of all, say about reaching a host.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    port: Option<u16>,
    user: Option<String>,
    identity: Option<String>,
    become_root: Option<Become>,
    jump: Option<HostName>,
    package_cache: Option<String>,
    network: network::Settings,
}

/// A host's name, and where it says it is in a group.
pub(super) type Memberships = Vec<(HostName, Vec<At<Label>>)>;

fn settings(section: &Section<'_>, names: &Names<'_>, of_one_host: bool) -> Settings {
    let becomes = [("none", Become::None), ("sudo", Become::Sudo)];
    let inside = format!("network of {}", section.what());
    let network = section.section("network", &inside);
    Settings {
        port: section.port("port").map(|port| port.value),
        user: user(section),
        identity: identity(section),
        become_root: section.choice("become", &becomes, &["su", "doas", "run0"]),
        jump: host_reference(section, "jump", names).map(|jump| jump.value),
        package_cache: package_cache(section),
        network: network.map_or_else(Default::default, |section| {
            network::read_host(section, of_one_host)
        }),
    }
}

/// A directory's path: absolute, without `..`.
fn package_cache(section: &Section<'_>) -> Option<String> {
    let path = section.text("package_cache")?;
    if !path.value.starts_with('/') || path.value.split('/').any(|part| part == "..") {
        let message = "package_cache must be an absolute path without \"..\"";
        section.report().error(path.at, message);
        return None;
    }
    Some(path.value.to_owned())
}

/// Reads `[defaults.host]`, above what `[network]` says.
pub(super) fn defaults(
    defaults: Option<&Section<'_>>,
    names: &Names<'_>,
    general: network::Settings,
) -> Settings {
    let section = defaults.and_then(|defaults| defaults.section("host", "[defaults.host]"));
    let Some(section) = section else {
        return Settings {
            network: general,
            ..Settings::default()
        };
    };
    let read = settings(&section, names, false);
    let each = "each host has its own: set it in [hosts.NAME]";
    let elsewhere = [
        ("address", each),
        ("local", each),
        ("groups", each),
        ("public", each),
        ("domains", each),
        ("password", PASSWORD),
    ];
    section.finish(&LATER, &elsewhere);
    Settings {
        network: read.network.or(&general),
        ..read
    }
}

/// Reads every host; which groups each names is left to be resolved.
pub(super) fn read_all(
    root: &Section<'_>,
    names: &Names<'_>,
    defaults: &Settings,
) -> (BTreeMap<HostName, Host>, Memberships) {
    let report = root.report();
    let mut hosts = BTreeMap::new();
    let mut memberships = Vec::new();
    let mut reached: BTreeMap<(String, u16, Option<HostName>), (HostName, usize)> = BTreeMap::new();
    let mut local: Option<(HostName, usize)> = None;
    for (name, section) in named_sections::<HostName>(root, "hosts", "host") {
        let line = report.line(section.at);
        let section = section.value;
        let places = [
            ("address", section.position("address")),
            ("local", section.position("local")),
        ];
        let [address_at, local_at] = places.map(|(_, at)| at.unwrap_or(section.at()));
        let groups = label_references(&section, "groups", &names.groups);
        let host = read(section, &name, line, names, defaults);
        if host.local {
            if let Some((other, line)) = &local {
                let message = format!(
                    "host {:?} is local, and so is {:?}",
                    name.as_str(),
                    other.as_str()
                );
                report.error_related(local_at, message, *line, "the first local host");
            }
            local.get_or_insert((name.clone(), line));
        } else {
            let key = (
                host.address.to_lowercase(),
                host.ssh_port(),
                host.jump.clone(),
            );
            if let Some((other, line)) = reached.get(&key) {
                let message = format!("host {:?} has the address and port of", name.as_str());
                let message = format!(
                    "{message} host {:?}: {} port {}",
                    other.as_str(),
                    key.0,
                    key.1
                );
                report.error_related(address_at, message, *line, "that host");
            } else {
                reached.insert(key, (name.clone(), line));
            }
        }
        memberships.push((name.clone(), groups.unwrap_or_default()));
        hosts.insert(name, host);
    }
    refuse_local_jumps(report, names, &hosts);
    refuse_jump_cycles(report, names, &hosts);
    (hosts, memberships)
}

fn read(
    section: Section<'_>,
    name: &HostName,
    line: usize,
    names: &Names<'_>,
    defaults: &Settings,
) -> Host {
    let own = settings(&section, names, true);
    let local = section.boolean("local").unwrap_or(false);
    let jump_at = section.position("jump");
    if let Some(at) = jump_at.filter(|_| local) {
        let message = format!(
            "{} is local and can't be behind a jump host",
            section.what()
        );
        section.report().error(at, message);
    }
    let inherited = defaults.jump.clone().filter(|jump| jump != name);
    let host = Host {
        line,
        address: address(&section).unwrap_or_else(|| name.to_string()),
        port: own.port.or(defaults.port),
        user: own.user.or_else(|| defaults.user.clone()),
        identity: own.identity.or_else(|| defaults.identity.clone()),
        become_root: own
            .become_root
            .or(defaults.become_root)
            .unwrap_or(Become::None),
        jump: own.jump.or(inherited).filter(|_| !local),
        local,
        groups: BTreeSet::new(),
        package_cache: own.package_cache.or_else(|| defaults.package_cache.clone()),
        public: public(&section),
        domains: super::domains(&section)
            .into_iter()
            .map(|it| it.value)
            .collect(),
        network: own.network.or(&defaults.network).complete(),
    };
    section.finish(&LATER, &[("password", PASSWORD)]);
    host
}

fn public(section: &Section<'_>) -> BTreeSet<IpAddr> {
    let report = section.report();
    let texts = section.texts("public").unwrap_or_default();
    let address = |text: At<&str>| {
        let address = text.value.parse();
        let noted = address.map_err(|_| report.error(text.at, "public must list IP addresses"));
        noted.ok()
    };
    texts.into_iter().filter_map(address).collect()
}

/// A POSIX portable user name (useradd(8)): it becomes an argument and a part of a path.
fn user(section: &Section<'_>) -> Option<String> {
    let text = section.text("user")?;
    let word =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    if !text.value.starts_with(first) || text.value.len() > 32 || !text.value.chars().all(word) {
        let given = quoted(text.value);
        section
            .report()
            .error(text.at, format_args!("user {given} is not a user name"));
        return None;
    }
    Some(text.value.to_owned())
}

fn identity(section: &Section<'_>) -> Option<String> {
    let text = section.text("identity")?;
    let path = text.value;
    if path.is_empty() || path.starts_with('-') || path.chars().any(char::is_control) {
        section
            .report()
            .error(text.at, "identity must be the path of a private key");
        return None;
    }
    if std::path::Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "pub")
    {
        let message = "identity is the path of a public key";
        section
            .report()
            .error_help(text.at, message, "name the private one, without .pub");
        return None;
    }
    Some(path.to_owned())
}

fn address(section: &Section<'_>) -> Option<String> {
    let text = section.text("address")?;
    if text.value.parse::<IpAddr>().is_err() && HostName::new(text.value).is_err() {
        let given = quoted(text.value);
        let message = format!("address {given} is neither an IP address nor a DNS name");
        let help = "user and port have keys of their own";
        let with_more = text.value.contains(['@', ':']);
        let help = with_more.then(|| help.to_owned());
        section
            .report()
            .error_with(text.at, message, help, Vec::new());
        return None;
    }
    Some(text.value.to_owned())
}

/// To go through the machine one is on is to go directly.
fn refuse_local_jumps(report: &Report<'_>, names: &Names<'_>, hosts: &BTreeMap<HostName, Host>) {
    for (name, host) in hosts {
        let jump = host
            .jump
            .as_ref()
            .and_then(|jump| hosts.get_key_value(jump));
        if let Some((jump, through)) = jump.filter(|(_, jump)| jump.local) {
            let at = names.hosts.names.get(name.as_str()).copied();
            let message = format!("host {:?} has the jump host", name.as_str());
            let message = format!("{message} {:?}, which is local", jump.as_str());
            report.error_related(at.unwrap_or_default(), message, through.line, "local here");
        }
    }
}

/// A host that can only be reached through itself can't be reached.
fn refuse_jump_cycles(report: &Report<'_>, names: &Names<'_>, hosts: &BTreeMap<HostName, Host>) {
    let jump_of = |name: &HostName| hosts.get(name).and_then(|host| host.jump.as_ref());
    let mut settled: BTreeSet<&HostName> = BTreeSet::new();
    for start in hosts.keys() {
        let mut path = vec![start];
        while let Some(next) = path.last().and_then(|last| jump_of(last)) {
            if settled.contains(next) {
                break;
            }
            if let Some(from) = path.iter().position(|name| *name == next) {
                let round = path.iter().skip(from).chain([&next]);
                let round: Vec<&str> = round.map(|name| name.as_str()).collect();
                let at = names
                    .hosts
                    .names
                    .get(next.as_str())
                    .copied()
                    .unwrap_or_default();
                report.error(
                    at,
                    format_args!("jump hosts lead in a circle: {}", round.join(" → ")),
                );
                break;
            }
            path.push(next);
        }
        settled.extend(path);
    }
}
