//! `[dns]` and `[zones.NAME]`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tallybook_agent::secret::SecretName;
use tallybook_events::name::HostName;

use super::{Name, Names, named_sections};
use crate::cloud::diagnostic::{did_you_mean, quoted};
use crate::cloud::dns::{Data, Dns, DomainName, Record, Times, View, Zone};
use crate::cloud::network::Subnet;
use crate::cloud::section::{At, Report, Section, table_of};

/// The longest time that a record may count (RFC 2181, 8).
const TTL_S_MAX: u64 = (1 << 31) - 1;
/// Kinds of records that an operator may expect, with what is there in their place.
const ELSEWHERE: [(&str, &str); 4] = [
    ("SOA", "its times are keys of the zone"),
    ("SPF", "it was given up for TXT (RFC 7208, 3.1)"),
    ("DNSKEY", "zones are not signed here"),
    ("RRSIG", "zones are not signed here"),
];
const LATER: [&str; 6] = ["dnssec", "forward", "keys", "sign", "update", "views"];

impl Name for DomainName {
    fn checked(text: &str) -> Result<Self, String> {
        Self::new(text).map_err(|error| error.to_string())
    }
}

/// What a zone has unless it says otherwise.
#[derive(Debug, Clone, Default)]
struct Settings {
    /// Whether the servers have a key.
    has_key: bool,
    servers: Option<Vec<HostName>>,
    contact: Option<DomainName>,
    ttl_s: Option<u32>,
    refresh_s: Option<u32>,
    retry_s: Option<u32>,
    expire_s: Option<u32>,
    minimum_s: Option<u32>,
}

impl Settings {
    fn read(section: &Section<'_>, names: &Names<'_>) -> Self {
        Settings {
            has_key: section.position("key").is_some(),
            servers: servers(section, names),
            contact: contact(section),
            ttl_s: duration(section, "ttl"),
            refresh_s: duration(section, "refresh"),
            retry_s: duration(section, "retry"),
            expire_s: duration(section, "expire"),
            minimum_s: duration(section, "minimum"),
        }
    }

    fn times(&self, general: &Self) -> Times {
        let usual = Times::default();
        Times {
            ttl_s: self.ttl_s.or(general.ttl_s).unwrap_or(usual.ttl_s),
            refresh_s: self
                .refresh_s
                .or(general.refresh_s)
                .unwrap_or(usual.refresh_s),
            retry_s: self.retry_s.or(general.retry_s).unwrap_or(usual.retry_s),
            expire_s: self.expire_s.or(general.expire_s).unwrap_or(usual.expire_s),
            minimum_s: self
                .minimum_s
                .or(general.minimum_s)
                .unwrap_or(usual.minimum_s),
        }
    }
}

/// Reads `[dns]` and every zone.
pub(super) fn read_all(root: &Section<'_>, names: &Names<'_>) -> (Dns, BTreeMap<DomainName, Zone>) {
    let (dns, general) = read(root.section("dns", "[dns]"), names);
    let mut zones: BTreeMap<DomainName, Zone> = BTreeMap::new();
    let mut aliases = Vec::new();
    let mut given = Vec::new();
    for (name, section) in named_sections::<DomainName>(root, "zones", "zone") {
        let (at, line) = (section.at, root.report().line(section.at));
        if name.is_wildcard() {
            let message = format!("zone {:?} can't be a wildcard", name.as_str());
            root.report().error(section.at, message);
        }
        let (zone, alias, records) = read_zone(section.value, &name, line, names, &general);
        let has_several = zone.as_ref().is_some_and(|zone| zone.servers.len() > 1);
        if has_several && !general.has_key {
            let message = format!(
                "zone {:?} has several servers, and they have no key",
                name.as_str()
            );
            let help = "name a secret by which they know each other: key = \"…\" in [dns]";
            root.report().error_help(at, message, help);
        }
        given.extend(records.into_iter().map(|record| (name.clone(), record)));
        if let Some(other) = zones.get(&name) {
            let message = format!("zone {:?} is defined twice", name.as_str());
            root.report()
                .error_related(at, message, other.line, "the first one");
        }
        aliases.extend(alias.map(|alias| (name.clone(), alias)));
        zones.extend(zone.map(|zone| (name, zone)));
    }
    refuse_wrong_aliases(root.report(), &zones, aliases);
    refuse_other_zones_names(root.report(), &zones, given);
    (dns, zones)
}

fn read(section: Option<Section<'_>>, names: &Names<'_>) -> (Dns, Settings) {
    let Some(section) = section else {
        return (Dns::default(), Settings::default());
    };
    let settings = Settings::read(&section, names);
    let report = section.report();
    let subnet = |text: At<&str>| match text.value.parse::<Subnet>() {
        Ok(subnet) => Some(subnet),
        Err(error) => {
            report.error(text.at, format_args!("inside: {error}"));
            None
        }
    };
    let inside = section.texts("inside").unwrap_or_default();
    let key = section.text("key");
    let key = key.filter(|name| names.secrets.resolve(report, *name));
    let dns = Dns {
        servers: settings.servers.clone().unwrap_or_default(),
        inside: inside.into_iter().filter_map(subnet).collect(),
        key: key.and_then(|name| SecretName::new(name.value).ok()),
    };
    let each = "each zone has its own: set it in [zones.NAME]";
    let elsewhere = ["alias", "nameservers", "records", "transfer"];
    section.finish(&LATER, &elsewhere.map(|key| (key, each)));
    (dns, settings)
}

fn read_zone<'a>(
    section: Section<'a>,
    name: &DomainName,
    line: usize,
    names: &Names<'_>,
    general: &Settings,
) -> (Option<Zone>, Option<At<DomainName>>, Vec<At<Record>>) {
    let report = section.report();
    let own = Settings::read(&section, names);
    let nameservers = section.texts("nameservers").unwrap_or_default();
    let has_nameservers = !nameservers.is_empty();
    let nameservers: Vec<DomainName> = nameservers
        .into_iter()
        .filter_map(|text| within(report, text, name))
        .filter(|server| {
            let is_right = server.value.is_host_name() && !server.value.is_wildcard();
            if !is_right {
                let message = format!("nameserver {} is not a host's name", server.value);
                report.error(server.at, message);
            }
            is_right
        })
        .map(|name| name.value)
        .collect();
    let transfer = section.texts("transfer").unwrap_or_default();
    let address = |text: At<&str>| {
        let address: Result<IpAddr, _> = text.value.parse();
        let noted = address.map_err(|_| report.error(text.at, "transfer must list IP addresses"));
        noted.ok()
    };
    let transfer = transfer.into_iter().filter_map(address).collect();
    let alias = section.text("alias");
    let alias = alias.and_then(|text| {
        super::name::<DomainName>(report, text).map(|value| At { value, at: text.at })
    });
    let records = records(&section, name);
    let given = records.clone();
    if let Some(at) = section.position("records").filter(|_| alias.is_some()) {
        let message = format!(
            "{} is an alias and can't have records of its own",
            section.what()
        );
        report.error(at, message);
    }
    let servers = own.servers.clone().or_else(|| general.servers.clone());
    if servers.as_ref().is_none_or(Vec::is_empty) {
        let message = format!("{} has no server", section.what());
        let help =
            "name hosts whose DNS server answers for it: servers = [\"…\"], there or in [dns]";
        report.error_help(section.at(), message, help);
    }
    if !has_nameservers {
        let message = format!("{} has no nameservers", section.what());
        let help = "give the names that its NS records have: nameservers = [\"ns1\"]";
        report.error_help(section.at(), message, help);
    }
    let contact = own.contact.clone().or_else(|| general.contact.clone());
    let contact = contact.or_else(|| DomainName::new(&format!("hostmaster.{name}")).ok());
    section.finish(&LATER, &[("key", "all zones have one: set it in [dns]")]);
    let zone = contact.map(|contact| Zone {
        line,
        servers: servers.unwrap_or_default(),
        nameservers,
        contact,
        times: own.times(general),
        transfer,
        alias: alias.as_ref().map(|alias| alias.value.clone()),
        records: records.into_iter().map(|record| record.value).collect(),
    });
    (zone, alias, given)
}

/// A zone that is defined is where its names are given, and not in the one around it; but for what that one says of it.
fn refuse_other_zones_names(
    report: &Report<'_>,
    zones: &BTreeMap<DomainName, Zone>,
    given: Vec<(DomainName, At<Record>)>,
) {
    for (of, record) in given {
        let Record { name, data, .. } = &record.value;
        let is_of_parent = |zone: &DomainName| zone == name && matches!(data, Data::Other("DS", _));
        let nearer = zones.iter().find(|(zone, _)| {
            **zone != of && zone.is_within(&of) && name.is_within(zone) && !is_of_parent(zone)
        });
        if let Some((zone, about)) = nearer {
            let message = format!(
                "{:?} is in zone {:?}: give its records there",
                name.as_str(),
                zone.as_str()
            );
            report.error_related(record.at, message, about.line, "that zone");
        }
    }
}

/// A zone has the records of one that has its own.
fn refuse_wrong_aliases(
    report: &Report<'_>,
    zones: &BTreeMap<DomainName, Zone>,
    aliases: Vec<(DomainName, At<DomainName>)>,
) {
    for (name, alias) in aliases {
        match zones.get(&alias.value) {
            None => {
                let message = format!("unknown zone {:?}", alias.value.as_str());
                let help = did_you_mean(alias.value.as_str(), zones.keys().map(DomainName::as_str));
                report.error_with(alias.at, message, help, Vec::new());
            }
            Some(_) if alias.value == name => {
                report.error(alias.at, "a zone can't be an alias of itself");
            }
            Some(other) if other.alias.is_some() => {
                let message = format!("zone {:?} is an alias itself", alias.value.as_str());
                report.error_related(alias.at, message, other.line, "that zone");
            }
            Some(_) => {}
        }
    }
}

fn servers(section: &Section<'_>, names: &Names<'_>) -> Option<Vec<HostName>> {
    let report = section.report();
    let mut servers: Vec<HostName> = Vec::new();
    for text in section.texts("servers")? {
        if !names.hosts.resolve(report, text) {
            continue;
        }
        match HostName::new(text.value) {
            Ok(host) if servers.contains(&host) => {
                let message = format!("host {} is named twice", quoted(text.value));
                report.error(text.at, message);
            }
            Ok(host) => servers.push(host),
            // Noted where the host is defined.
            Err(_) => {}
        }
    }
    Some(servers)
}

/// A mailbox, as the SOA record has it (RFC 1035, 8): what stands before the `@` is one label.
fn contact(section: &Section<'_>) -> Option<DomainName> {
    let text = section.text("contact")?;
    let name = match text.value.split_once('@') {
        Some((local, domain)) if !local.contains('.') => format!("{local}.{domain}"),
        Some(_) | None => String::new(),
    };
    let contact = DomainName::new(&name);
    if contact.is_err() {
        let message = "contact must be an address such as \"hostmaster@example.net\", without a dot before the @";
        section.report().error(text.at, message);
    }
    contact.ok()
}

fn duration(section: &Section<'_>, key: &'static str) -> Option<u32> {
    let text = section.text(key)?;
    let seconds = seconds(text.value);
    if seconds.is_none() {
        let message =
            format!("{key} must be a duration of whole seconds such as \"5m\", at most 68 years");
        section.report().error(text.at, message);
    }
    seconds
}

fn seconds(text: &str) -> Option<u32> {
    let duration = humantime::parse_duration(text).ok()?;
    let seconds = (duration.subsec_nanos() == 0).then_some(duration.as_secs());
    let seconds = seconds.filter(|seconds| *seconds <= TTL_S_MAX)?;
    u32::try_from(seconds).ok()
}

fn within(report: &Report<'_>, text: At<&str>, zone: &DomainName) -> Option<At<DomainName>> {
    match DomainName::within(text.value, zone) {
        Ok(value) => Some(At { value, at: text.at }),
        Err(error) => {
            report.error(text.at, error);
            None
        }
    }
}

fn records(section: &Section<'_>, zone: &DomainName) -> Vec<At<Record>> {
    let report = section.report();
    let mut records: Vec<At<Record>> = Vec::new();
    for item in section.array("records").unwrap_or_default() {
        let Some(table) = table_of(report, "each of records", item) else {
            continue;
        };
        let what = format!("a record of {}", section.what());
        if let Some(value) = record(Section::new(report, what, table), zone) {
            let record = At {
                value,
                at: table.at,
            };
            refuse_misplaced(report, &record, zone);
            refuse_contradiction(report, &records, &record);
            records.push(record);
        }
    }
    refuse_hidden(report, &records, zone);
    records
}

/// A name that stands for another one has nothing of its own (RFC 1034, 3.6.2), and what is said in several records counts for
/// one time (RFC 2181, 5.2).
fn refuse_contradiction(report: &Report<'_>, earlier: &[At<Record>], record: &At<Record>) {
    let (at, record) = (record.at, &record.value);
    let is_cname = |record: &Record| matches!(record.data, Data::Cname(_));
    let is_dname = |record: &Record| matches!(record.data, Data::Dname(_));
    let is_null =
        |record: &Record| matches!(&record.data, Data::Mx(_, target) if target.host().is_none());
    let is_mx = |record: &Record| matches!(record.data, Data::Mx(..));
    let meets = |other: &&Record| {
        let seen_by_one = [record.view, other.view].contains(&None) || record.view == other.view;
        seen_by_one && other.name == record.name
    };
    let others = earlier.iter().map(|other| &other.value);
    for other in others.filter(meets) {
        if is_cname(record) || is_cname(other) {
            let message = format!(
                "{:?} has a CNAME, and nothing can stand beside it",
                record.name.as_str()
            );
            return report.error_related(at, message, other.line, "the other record");
        }
        if is_dname(record) && is_dname(other) {
            let message = format!("{:?} has two DNAMEs", record.name.as_str());
            return report.error_related(at, message, other.line, "the other record");
        }
        if is_mx(record) && is_mx(other) && (is_null(record) || is_null(other)) {
            let message = format!(
                "an MX record says that {:?} has no mail, and another one who receives it",
                record.name.as_str()
            );
            return report.error_related(at, message, other.line, "the other record");
        }
        if other.data.kind() == record.data.kind() && other.ttl_s != record.ttl_s {
            let kind = record.data.kind();
            let message = format!(
                "the {kind} records of {:?} have different ttls",
                record.name.as_str()
            );
            return report.error_related(at, message, other.line, "the other record");
        }
    }
}

/// What no record of a zone can be, whatever the others are.
fn refuse_misplaced(report: &Report<'_>, record: &At<Record>, zone: &DomainName) {
    let (at, Record { name, data, .. }) = (record.at, &record.value);
    let is_own = name == zone;
    if matches!(data, Data::Cname(_)) && is_own {
        let message = "a zone's own name can't be a CNAME: it has SOA and NS records";
        report.error(at, message);
    }
    if matches!(data, Data::Ns(_)) && is_own {
        let message = "the servers of the zone itself are not given as records";
        report.error_help(at, message, "name them in nameservers of the zone");
    }
    if matches!(data, Data::Ns(_)) && name.is_wildcard() {
        report.error(at, "a wildcard can't have servers of its own");
    }
    if matches!(data, Data::Other("DS", _)) && is_own {
        let message = "DS records of a zone's own name are in the zone around it";
        report.error(at, message);
    }
    // Servers refuse the whole zone for it (check-names).
    let of_hosts = data.is_address() || matches!(data, Data::Mx(..));
    let owner = Some(name).filter(|name| of_hosts && !name.is_host_name());
    let host = data.leads_to();
    let host = host.filter(|host| !host.is_host_name() || host.is_wildcard());
    if let Some(wrong) = owner.or(host) {
        let message = format!(
            "{:?} in a record of type {} is not a host's name",
            wrong.as_str(),
            data.kind()
        );
        let help = "those have letters, digits, hyphens and dots";
        report.error_help(at, message, help);
    }
}

/// Records that nobody would be told, for another one sends who asks for them elsewhere. The addresses of the servers that it
/// names may stand there.
fn refuse_hidden(report: &Report<'_>, records: &[At<Record>], zone: &DomainName) {
    for record in records {
        let Record { name, data, .. } = &record.value;
        let by = records.iter().map(|by| &by.value).find(|by| {
            // One that only one view has leaves the record to be told in the other.
            let is_seen = by.view.is_none() || by.view == record.value.view;
            is_seen && by.data.takes_away(&by.name, zone, name)
        });
        let Some(by) = by else { continue };
        let is_server = || {
            records
                .iter()
                .any(|it| it.value.data == Data::Ns(name.clone()))
        };
        let is_delegated = matches!(by.data, Data::Ns(_));
        let is_of_delegation = matches!(data, Data::Ns(_) | Data::Other("DS", _));
        let may_stand = is_delegated
            && (is_of_delegation && *name == by.name || data.is_address() && is_server());
        if may_stand {
            continue;
        }
        let message = format!(
            "{:?} is answered elsewhere, for {:?} has a {} record: its {} record would never be told",
            name.as_str(),
            by.name.as_str(),
            by.data.kind(),
            data.kind()
        );
        report.error_related(record.at, message, by.line, "the other record");
    }
}

fn record(section: Section<'_>, zone: &DomainName) -> Option<Record> {
    let report = section.report();
    let line = report.line(section.at());
    let name = section.text("name").unwrap_or(At {
        value: "@",
        at: section.at(),
    });
    let name = within(report, name, zone).filter(|name| {
        let is_inside = name.value.is_within(zone);
        if !is_inside {
            let message = format!(
                "{:?} is not in zone {:?}",
                name.value.as_str(),
                zone.as_str()
            );
            report.error(name.at, message);
        }
        is_inside
    });
    let kind = section.text("type");
    let value = section.text("value");
    for (key, is_there) in [("type", kind.is_some()), ("value", value.is_some())] {
        if !is_there && section.position(key).is_none() {
            let message = format!("{} has no {key}", section.what());
            let help = "a record is { name = \"www\", type = \"A\", value = \"192.0.2.1\" }";
            report.error_help(section.at(), message, help);
        }
    }
    let views = View::ALL.map(|view| (view.label(), view));
    let view = section.choice("view", &views, &[]);
    let ttl_s = duration(&section, "ttl");
    let data = kind
        .zip(value)
        .and_then(|(kind, value)| data(report, kind, value, zone));
    section.finish(
        &["comment"],
        &[("data", "it is called value"), ("ip", "it is called value")],
    );
    Some(Record {
        line,
        name: name?.value,
        ttl_s,
        view,
        data: data?,
    })
}

fn data(report: &Report<'_>, kind: At<&str>, value: At<&str>, zone: &DomainName) -> Option<Data> {
    match Data::read(kind.value, value.value, zone) {
        Some(Ok(data)) => Some(data),
        Some(Err(error)) => {
            report.error(value.at, error);
            None
        }
        None => {
            let given = quoted(kind.value);
            let elsewhere = ELSEWHERE.iter().find(|(known, _)| *known == kind.value);
            let help = match elsewhere {
                Some((_, help)) => Some((*help).to_owned()),
                None => did_you_mean(kind.value, Data::kinds()),
            };
            let message = format!("there is no type {given} of records here");
            report.error_with(kind.at, message, help, Vec::new());
            None
        }
    }
}
