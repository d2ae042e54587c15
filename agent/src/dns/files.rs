//! The files of a server, as text: its configuration and its zones. Pure, and the same every time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use tallybook_events::name::ContainerName;

use super::{Amendment, DomainName, Record, Role, Service, Soa, View, Zone};

/// From this address the server's own host asks as if from outside.
pub const ASKS_FROM_OUTSIDE: &str = "127.0.0.9";

/// A zone as a view has it.
pub type Key = (View, DomainName);

/// The text of every zone that a server is the primary of, but its serial.
///
/// What is amended goes before what the service says, where it is known since later.
pub fn zones(
    service: &Service,
    amendments: &BTreeMap<ContainerName, Amendment>,
) -> BTreeMap<Key, Text> {
    let amended: BTreeMap<&ContainerName, &Amendment> = amendments
        .iter()
        .filter(|(_, amendment)| amendment.as_of > service.as_of)
        .collect();
    let said = service.records.iter();
    let said = said.filter(|entry| {
        let container = entry.container.as_ref();
        container.is_none_or(|container| !amended.contains_key(container))
    });
    let said = said.map(|entry| &entry.record);
    let records = said.chain(amended.values().flat_map(|it| &it.records));
    let mut by_zone: BTreeMap<(View, &DomainName), BTreeSet<&Record>> = BTreeMap::new();
    for record in records {
        let of = by_zone.entry((record.view, &record.zone)).or_default();
        of.insert(record);
    }
    let mut texts = BTreeMap::new();
    for zone in &service.zones {
        let Role::Primary { soa, .. } = &zone.role else {
            continue;
        };
        for view in View::ALL {
            let records = by_zone.remove(&(view, &zone.name)).unwrap_or_default();
            let text = Text::new(&zone.name, soa, records);
            texts.insert((view, zone.name.clone()), text);
        }
    }
    texts
}

/// A zone's file, but its serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    before: String,
    behind: String,
}

impl Text {
    /// The file of a zone with these records.
    pub fn new<'a>(
        zone: &DomainName,
        soa: &Soa,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Self {
        let Soa {
            server,
            contact,
            ttl_s,
            refresh_s,
            retry_s,
            expire_s,
            minimum_s,
        } = soa;
        let before = format!("$TTL {ttl_s}\n{zone}. IN SOA {server}. {contact}. ");
        let mut behind = format!(" {refresh_s} {retry_s} {expire_s} {minimum_s}\n");
        for record in records {
            let Record {
                name, kind, value, ..
            } = record;
            let ttl = record
                .ttl_s
                .map(|ttl| format!("{ttl} "))
                .unwrap_or_default();
            // Writing to a text does not fail.
            let _written = writeln!(behind, "{name}. {ttl}IN {kind} {value}");
        }
        Text { before, behind }
    }

    /// The whole file.
    pub fn with_serial(&self, serial: u32) -> String {
        format!("{}{serial}{}", self.before, self.behind)
    }

    /// The serial of a file that says the same; `None` for one that says anything else.
    pub fn serial_of(&self, file: &str) -> Option<u32> {
        let rest = file.strip_prefix(&self.before)?;
        rest.strip_suffix(&self.behind)?.parse().ok()
    }
}

/// The serial of a zone's file as [`Text::with_serial`] writes it, whatever else it says.
pub fn serial(file: &str) -> Option<u32> {
    let soa = file.lines().nth(1)?;
    soa.split(' ').nth(5)?.parse().ok()
}

/// The name of a zone's file, in the directory of its view.
pub fn name(zone: &DomainName) -> String {
    format!("{zone}.zone")
}

/// The server's configuration. `generation` is the directory that its zones are in; `received` the one for zones from elsewhere;
/// `keys` the file of the views' keys, where there are some.
pub fn configuration(
    service: &Service,
    generation: &Path,
    received: &Path,
    keys: Option<&Path>,
) -> String {
    let statements =
        |all: &[String]| -> String { all.iter().map(|it| format!(" {it};")).collect() };
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    if let Some(keys) = keys {
        line(format!("include \"{}\";", keys.display()));
    }
    let inside: Vec<String> = service.inside.iter().map(ToString::to_string).collect();
    line(format!(
        "acl tallybook-inside {{ !{ASKS_FROM_OUTSIDE}; localhost; 127.0.0.0/8;{} }};",
        statements(&inside)
    ));
    line("options {".to_owned());
    line(format!("    directory \"{}\";", received.display()));
    let not_at: Vec<String> = service.not_at.iter().map(|it| format!("!{it}")).collect();
    line(format!("    listen-on {{{} any; }};", statements(&not_at)));
    line("    listen-on-v6 { any; };".to_owned());
    line("    allow-transfer { none; };".to_owned());
    line("    dnssec-validation auto;".to_owned());
    // Its defaults take minutes over some hundreds of zones.
    for (setting, count) in [
        ("serial-query-rate", 1000),
        ("notify-rate", 1000),
        ("startup-notify-rate", 1000),
        ("transfers-in", 50),
        ("transfers-per-ns", 50),
        ("transfers-out", 50),
    ] {
        line(format!("    {setting} {count};"));
    }
    line("};".to_owned());
    for view in View::ALL {
        let label = view.label();
        line(format!("view \"{label}\" {{"));
        let mut clients = Vec::new();
        if keys.is_some() {
            clients.extend(
                View::ALL
                    .iter()
                    .filter(|it| **it != view)
                    .map(|it| format!("!{}", key(*it))),
            );
            clients.push(key(view));
        }
        match view {
            View::Inside => {
                clients.push("tallybook-inside".to_owned());
                line(format!("    match-clients {{{} }};", statements(&clients)));
                line("    recursion yes;".to_owned());
                line("    allow-recursion { tallybook-inside; };".to_owned());
                if !service.forwarders.is_empty() {
                    let all: Vec<String> =
                        service.forwarders.iter().map(ToString::to_string).collect();
                    line(format!("    forwarders {{{} }};", statements(&all)));
                }
            }
            View::Outside => {
                clients.push("any".to_owned());
                line(format!("    match-clients {{{} }};", statements(&clients)));
                line("    recursion no;".to_owned());
                line("    allow-query-cache { none; };".to_owned());
            }
        }
        for zone in &service.zones {
            let forwards = view == View::Inside && !service.forwarders.is_empty();
            line(statement(zone, view, generation, keys.is_some(), forwards));
        }
        line("};".to_owned());
    }
    text
}

fn key(view: View) -> String {
    format!("key tallybook-{}", view.label())
}

/// A zone's statement in a view.
fn statement(
    zone: &Zone,
    view: View,
    generation: &Path,
    has_keys: bool,
    has_forwarders: bool,
) -> String {
    // What is delegated is asked for where it is.
    let beyond = match has_forwarders {
        true => " forwarders { };",
        false => "",
    };
    let label = view.label();
    let keyed = |address: &IpAddr| match has_keys {
        true => format!(" {address} {};", key(view)),
        false => format!(" {address};"),
    };
    let file = name(&zone.name);
    match &zone.role {
        Role::Primary {
            secondaries,
            others,
            ..
        } => {
            let path = generation.join(label).join(file);
            let plain = |address: &IpAddr| format!(" {address};");
            let mut may: String = others.iter().map(plain).collect();
            match has_keys {
                true if !secondaries.is_empty() => may.push_str(&format!(" {};", key(view))),
                true => {}
                false => may.extend(secondaries.iter().map(plain)),
            }
            let may = if may.is_empty() { " none;" } else { &may };
            let told: String = secondaries
                .iter()
                .map(keyed)
                .chain(others.iter().map(plain))
                .collect();
            format!(
                "    zone \"{}\" {{ type primary; file \"{}\"; allow-transfer {{{may} }}; notify explicit; also-notify {{{told} }};{beyond} }};",
                zone.name,
                path.display()
            )
        }
        Role::Secondary { primary } => {
            let from = keyed(primary);
            let may_tell = match has_keys {
                true => format!(" {primary}; {};", key(view)),
                false => format!(" {primary};"),
            };
            format!(
                "    zone \"{}\" {{ type secondary; file \"{}\"; masterfile-format text; primaries {{{from} }}; allow-notify {{{may_tell} }}; notify no;{beyond} }};",
                zone.name,
                received_name(view, &zone.name)
            )
        }
    }
}

/// How the files begin that the server writes itself: zones from elsewhere.
pub const RECEIVED: &str = "tallybook-";

/// The name of the file in which the server keeps a zone from elsewhere.
fn received_name(view: View, zone: &DomainName) -> String {
    format!("{RECEIVED}{}-{}", view.label(), name(zone))
}

#[cfg(test)]
mod tests {
    use tallybook_events::ids::{Epoch, Seq};

    use super::*;
    use crate::dns::{AsOf, Entry};

    fn as_of(seq: u64) -> AsOf {
        AsOf {
            epoch: Epoch(1),
            seq: Seq(seq),
        }
    }

    fn record(name: &str, value: &str) -> Record {
        Record {
            zone: "example.net".parse().unwrap(),
            view: View::Inside,
            name: name.parse().unwrap(),
            ttl_s: None,
            kind: "A".parse().unwrap(),
            value: value.parse().unwrap(),
        }
    }

    fn service() -> Service {
        let entry = |name: &str, value: &str, container: Option<&str>| Entry {
            record: record(name, value),
            container: container.map(|it| it.parse().unwrap()),
        };
        Service {
            as_of: as_of(10),
            inside: vec!["10.5.0.0/16".parse().unwrap()],
            not_at: vec![[10, 5, 0, 1].into()],
            forwarders: vec!["192.0.2.53".parse().unwrap()],
            zones: vec![
                Zone {
                    name: "example.net".parse().unwrap(),
                    role: Role::Primary {
                        soa: Soa {
                            server: "ns1.example.net".parse().unwrap(),
                            contact: "hostmaster.example.net".parse().unwrap(),
                            ttl_s: 330,
                            refresh_s: 300,
                            retry_s: 300,
                            expire_s: 2_419_200,
                            minimum_s: 299,
                        },
                        secondaries: vec!["192.0.2.2".parse().unwrap()],
                        others: vec!["198.51.100.1".parse().unwrap()],
                    },
                },
                Zone {
                    name: "example.org".parse().unwrap(),
                    role: Role::Secondary {
                        primary: "192.0.2.2".parse().unwrap(),
                    },
                },
            ],
            records: vec![
                entry("ns1.example.net", "192.0.2.1", None),
                entry("web.example.net", "10.5.0.2", Some("web")),
                entry("db.example.net", "10.5.0.3", Some("db")),
            ],
        }
    }

    fn inside(amendments: &BTreeMap<ContainerName, Amendment>) -> String {
        let key = (View::Inside, "example.net".parse().unwrap());
        zones(&service(), amendments)[&key].with_serial(7)
    }

    #[test]
    fn later_amendments_go_before_the_service_and_earlier_ones_do_not_count() {
        let head = "$TTL 330\nexample.net. IN SOA ns1.example.net. hostmaster.example.net. 7 300 300 2419200 299\n";
        let line = |name: &str, value: &str| format!("{name}.example.net. IN A {value}\n");
        let (ns1, web, db) = (
            line("ns1", "192.0.2.1"),
            line("web", "10.5.0.2"),
            line("db", "10.5.0.3"),
        );
        assert_eq!(inside(&BTreeMap::new()), format!("{head}{db}{ns1}{web}"));
        let amendment = |seq: u64, records: Vec<Record>| Amendment {
            as_of: as_of(seq),
            records,
        };
        let amended = BTreeMap::from([
            (
                "web".parse().unwrap(),
                amendment(11, vec![record("web.example.net", "10.5.0.9")]),
            ),
            ("db".parse().unwrap(), amendment(12, Vec::new())),
            (
                "new".parse().unwrap(),
                amendment(13, vec![record("new.example.net", "10.5.0.4")]),
            ),
        ]);
        let (new, moved) = (line("new", "10.5.0.4"), line("web", "10.5.0.9"));
        assert_eq!(inside(&amended), format!("{head}{new}{ns1}{moved}"));
        let early = amended.into_iter().map(|(name, it)| {
            (
                name,
                Amendment {
                    as_of: as_of(10),
                    ..it
                },
            )
        });
        assert_eq!(inside(&early.collect()), format!("{head}{db}{ns1}{web}"));
    }

    #[test]
    fn a_serial_is_found_only_where_the_rest_is_the_same() {
        let key = (View::Inside, "example.net".parse().unwrap());
        let text = &zones(&service(), &BTreeMap::new())[&key];
        let file = text.with_serial(2_026_112_800);
        assert_eq!(text.serial_of(&file), Some(2_026_112_800));
        assert_eq!(serial(&file), Some(2_026_112_800));
        let other = file.replace("10.5.0.2", "10.5.0.9");
        assert_eq!(text.serial_of(&other), None);
        assert_eq!(serial(&other), Some(2_026_112_800));
        assert_eq!(serial("not a zone\n"), None);
    }

    #[test]
    fn the_configuration_keeps_views_and_their_transfers_apart() {
        let directory = Path::new("/g");
        let text = configuration(
            &service(),
            directory,
            Path::new("/c"),
            Some(Path::new("/k")),
        );
        for wanted in [
            "include \"/k\";",
            "acl tallybook-inside { !127.0.0.9; localhost; 127.0.0.0/8; 10.5.0.0/16; };",
            "    listen-on { !10.5.0.1; any; };",
            "    match-clients { !key tallybook-outside; key tallybook-inside; tallybook-inside; };",
            "    match-clients { !key tallybook-inside; key tallybook-outside; any; };",
            "    forwarders { 192.0.2.53; };",
            "    zone \"example.net\" { type primary; file \"/g/outside/example.net.zone\"; allow-transfer { 198.51.100.1; key tallybook-outside; }; notify explicit; also-notify { 192.0.2.2 key tallybook-outside; 198.51.100.1; }; };",
            "    zone \"example.org\" { type secondary; file \"tallybook-inside-example.org.zone\"; masterfile-format text; primaries { 192.0.2.2 key tallybook-inside; }; allow-notify { 192.0.2.2; key tallybook-inside; }; notify no; forwarders { }; };",
        ] {
            assert!(
                text.lines().any(|line| line == wanted),
                "{wanted} is missing in {text}"
            );
        }
        let text = configuration(&service(), directory, Path::new("/c"), None);
        assert!(!text.contains("key"), "{text}");
        assert!(
            text.contains("allow-transfer { 198.51.100.1; 192.0.2.2; };"),
            "{text}"
        );
    }
}
