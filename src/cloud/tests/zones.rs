//! Which records zones have.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_agent::dns::files::Text;
use tallybook_events::ids::LogId;

use super::example::example;
use super::good;
use crate::cloud::dns::{DomainName, View};
use crate::cloud::inventory::Inventory;
use crate::cloud::zones::{Contents, Line, records, soa, untold, without_address, zones};
use crate::cloud::{Selection, compile};

fn all(inventory: &Inventory) -> BTreeMap<DomainName, Contents> {
    let seed = LogId::from_bytes([0; 16]);
    let selection = Selection::everything(inventory);
    let compiled = compile(
        inventory,
        &BTreeMap::new(),
        &Default::default(),
        &selection,
        &seed,
    );
    let entries = compiled.unwrap().entries.into_iter();
    let allocations = entries
        .map(|(key, entry)| (key, entry.allocation))
        .collect();
    zones(inventory, &allocations)
}

/// A zone's file, with the serial 7.
fn file(inventory: &Inventory, name: &DomainName, view: View, lines: &BTreeSet<Line>) -> String {
    let records = records(name, view, lines).unwrap();
    Text::new(name, &soa(name, &inventory.zones[name]), &records).with_serial(7)
}

/// The lines of a zone's file but the first two, without what each has in common.
fn lines(inventory: &Inventory, zone: &str, view: View) -> Vec<String> {
    let name: DomainName = zone.parse().unwrap();
    let contents = &all(inventory)[&name];
    let text = file(inventory, &name, view, &contents[&view]);
    text.lines().skip(2).map(str::to_owned).collect()
}

const CLOUD: &str = r#"
[network]
domain = "lxc.example.net"
[hosts.cn1]
address = "203.0.113.11"
public = ["203.0.113.11", "2001:db8::11"]
domains = ["cn1.example.net"]
[hosts.cn2]
address = "10.0.0.12"
[containers.shop]
host = "cn1"
address = "10.5.0.20"
domains = ["shop.example.net", "*.shop.example.net", "old.example.net"]
[containers."d.sub.example.net"]
host = "cn2"
address = "10.5.0.21"
[dns]
servers = ["cn1"]
[zones."example.net"]
nameservers = ["ns1"]
records = [
    { name = "ns1", type = "A", value = "203.0.113.11" },
    { name = "old", type = "CNAME", value = "shop", view = "outside" },
    { type = "TXT", value = "hello", ttl = "1m" },
]
[zones."sub.example.net"]
nameservers = ["ns1.example.net"]
[zones."example.org"]
nameservers = ["ns1.example.net"]
alias = "example.net"
[zones."5.10.in-addr.arpa"]
nameservers = ["ns1.example.net"]
"#;

#[test]
fn each_view_has_what_it_can_reach() {
    let inventory = good(CLOUD);
    assert_eq!(
        lines(&inventory, "example.net", View::Inside),
        [
            "*.shop.example.net. IN A 10.5.0.20",
            "cn1.example.net. IN A 203.0.113.11",
            "cn1.example.net. IN AAAA 2001:db8::11",
            "example.net. IN NS ns1.example.net.",
            "example.net. 60 IN TXT \"hello\"",
            "ns1.example.net. IN A 203.0.113.11",
            "old.example.net. IN A 10.5.0.20",
            "shop.example.net. IN A 10.5.0.20",
            "shop.lxc.example.net. IN A 10.5.0.20",
            "sub.example.net. IN NS ns1.example.net.",
        ]
    );
    assert_eq!(
        lines(&inventory, "example.net", View::Outside),
        [
            "*.shop.example.net. IN A 203.0.113.11",
            "*.shop.example.net. IN AAAA 2001:db8::11",
            "cn1.example.net. IN A 203.0.113.11",
            "cn1.example.net. IN AAAA 2001:db8::11",
            "example.net. IN NS ns1.example.net.",
            "example.net. 60 IN TXT \"hello\"",
            "ns1.example.net. IN A 203.0.113.11",
            // What is given for a name goes before what follows.
            "old.example.net. IN CNAME shop.example.net.",
            "shop.example.net. IN A 203.0.113.11",
            "shop.example.net. IN AAAA 2001:db8::11",
            "sub.example.net. IN NS ns1.example.net.",
        ]
    );
}

#[test]
fn a_name_is_in_the_nearest_zone_and_an_alias_has_the_same_ones() {
    let inventory = good(CLOUD);
    assert_eq!(
        lines(&inventory, "sub.example.net", View::Inside),
        [
            "d.sub.example.net. IN A 10.5.0.21",
            "sub.example.net. IN NS ns1.example.net.",
        ]
    );
    // Its host has no address that the world could reach.
    assert_eq!(
        lines(&inventory, "sub.example.net", View::Outside),
        ["sub.example.net. IN NS ns1.example.net."]
    );
    let alias = lines(&inventory, "example.org", View::Outside);
    assert!(
        alias.contains(&"old.example.org. IN CNAME shop.example.net.".to_owned()),
        "{alias:?}"
    );
    assert!(
        alias.contains(&"example.org. IN NS ns1.example.net.".to_owned()),
        "{alias:?}"
    );
    assert!(
        !alias.iter().any(|line| line.starts_with("sub.")),
        "{alias:?}"
    );
}

#[test]
fn addresses_have_their_names_where_there_is_a_zone_for_them() {
    let inventory = good(CLOUD);
    assert_eq!(
        lines(&inventory, "5.10.in-addr.arpa", View::Inside),
        [
            // The first of its domains.
            "20.0.5.10.in-addr.arpa. IN PTR shop.example.net.",
            "21.0.5.10.in-addr.arpa. IN PTR d.sub.example.net.",
            "5.10.in-addr.arpa. IN NS ns1.example.net.",
        ]
    );
    assert_eq!(
        lines(&inventory, "5.10.in-addr.arpa", View::Outside),
        ["5.10.in-addr.arpa. IN NS ns1.example.net."]
    );
}

#[test]
fn a_domain_that_nobody_is_told_is_named() {
    assert_eq!(told(&good(example())), [""; 0]);
    let inventory = good(
        r#"
[hosts.h]
domains = ["h.example.com", "h.example.net", "h.far.example.net", "a_b.example.net"]
[containers.some_thing]
host = "h"
[containers.more]
host = "h"
[network]
domain = "example.net"
[dns]
servers = ["h"]
[zones."example.net"]
nameservers = ["ns.example.org"]
records = [
    { name = "far", type = "NS", value = "ns.example.org" },
    { name = "h", type = "TXT", value = "no address" },
]
"#,
    );
    assert_eq!(
        told(&inventory),
        [
            "a_b.example.net: no host can have that name, for an underscore is in it",
            "h.example.com: no zone answers for it",
            // Its address is a name.
            "h.example.net: nothing can reach it: it has no address, or none that is public",
            "h.far.example.net: it is below a delegation of its zone",
            "some_thing.example.net: no host can have that name, for an underscore is in it",
        ]
    );
}

fn told(inventory: &Inventory) -> Vec<String> {
    let untold = untold(inventory, &all(inventory)).into_iter();
    untold
        .map(|(domain, why)| format!("{domain}: {why}"))
        .collect()
}

const DELEGATIONS: &str = r#"
[hosts.cn1]
address = "203.0.113.11"
domains = ["ns.sub.example.net", "h.far.example.net"]
[containers."c.example.com"]
host = "cn1"
[dns]
servers = ["cn1"]
[zones."example.net"]
nameservers = ["ns1", "ns2"]
records = [
    { name = "ns1", type = "A", value = "203.0.113.11", view = "outside" },
    { name = "far", type = "NS", value = "ns.far.example.net" },
    { name = "ns.far.example.net", type = "AAAA", value = "2001:db8::1" },
]
[zones."sub.example.net"]
nameservers = ["ns", "ns1.example.net"]
[zones."alias.example.net"]
nameservers = ["ns"]
alias = "sub.example.net"
[zones."example.org"]
nameservers = ["ns1.example.net"]
alias = "example.net"
"#;

#[test]
fn who_is_sent_on_is_told_where_the_servers_are_that_only_those_know() {
    let inventory = good(DELEGATIONS);
    assert_eq!(
        lines(&inventory, "example.net", View::Outside),
        [
            "alias.example.net. IN NS ns.alias.example.net.",
            "example.net. IN NS ns1.example.net.",
            "example.net. IN NS ns2.example.net.",
            "far.example.net. IN NS ns.far.example.net.",
            "ns.alias.example.net. IN A 203.0.113.11",
            "ns.far.example.net. IN AAAA 2001:db8::1",
            "ns.sub.example.net. IN A 203.0.113.11",
            "ns1.example.net. IN A 203.0.113.11",
            "sub.example.net. IN NS ns.sub.example.net.",
            "sub.example.net. IN NS ns1.example.net.",
        ]
    );
    // Other people's servers answer for what is below them also there, ours do not.
    assert_eq!(
        lines(&inventory, "example.org", View::Inside),
        [
            "example.org. IN NS ns1.example.net.",
            "far.example.org. IN NS ns.far.example.net.",
            "ns.far.example.org. IN AAAA 2001:db8::1",
        ]
    );
}

#[test]
fn a_server_in_its_own_zone_has_an_address_in_each_view() {
    let inventory = good(DELEGATIONS);
    let zones = all(&inventory);
    let wrong = without_address(&zones).into_iter();
    let wrong: Vec<String> = wrong
        .map(|(zone, view, server)| format!("{zone} {} {server}", view.label()))
        .collect();
    assert_eq!(
        wrong,
        [
            "example.net inside ns1.example.net",
            "example.net inside ns2.example.net",
            "example.net outside ns2.example.net",
        ]
    );
}

#[test]
fn what_others_answer_for_is_not_in_the_zone_but_for_where_they_are() {
    let inventory = good(
        r#"
[hosts.h]
address = "203.0.113.11"
domains = ["ns.far.example.net", "www.far.example.net", "www.old.example.net", "old.example.net"]
[dns]
servers = ["h"]
[zones."example.net"]
nameservers = ["ns.example.org"]
records = [
    { name = "far", type = "NS", value = "ns.far.example.net" },
    { name = "old", type = "DNAME", value = "example.org" },
]
"#,
    );
    assert_eq!(
        lines(&inventory, "example.net", View::Outside),
        [
            "example.net. IN NS ns.example.org.",
            "far.example.net. IN NS ns.far.example.net.",
            "ns.far.example.net. IN A 203.0.113.11",
            "old.example.net. IN A 203.0.113.11",
            "old.example.net. IN DNAME example.org.",
        ]
    );
}

#[test]
fn what_is_said_of_an_alias_itself_goes_before_what_it_takes_over() {
    let inventory = good(
        r#"
[hosts.h]
address = "203.0.113.11"
domains = ["both.example.net", "www.example.org", "both.example.org", "x.far.example.org"]
[dns]
servers = ["h"]
[zones."example.net"]
nameservers = ["ns.example.com"]
records = [
    { name = "www", type = "CNAME", value = "web.example.com" },
    { name = "sub", type = "CNAME", value = "web.example.com" },
    { name = "far", type = "NS", value = "ns.example.com" },
    { name = "near", type = "DS", value = "1 13 2 00" },
]
[zones."near.example.net"]
nameservers = ["ns.example.com"]
[zones."example.org"]
nameservers = ["ns.example.com"]
alias = "example.net"
[zones."sub.example.org"]
nameservers = ["ns.example.com"]
"#,
    );
    assert_eq!(
        lines(&inventory, "example.org", View::Outside),
        [
            "both.example.org. IN A 203.0.113.11",
            "example.org. IN NS ns.example.com.",
            "far.example.org. IN NS ns.example.com.",
            "sub.example.org. IN NS ns.example.com.",
            "www.example.org. IN CNAME web.example.com.",
        ]
    );
}

#[test]
fn only_what_can_be_reached_from_elsewhere_is_seen_there() {
    for (address, inside, outside) in [
        ("100.64.0.1", true, false),
        ("100.128.0.1", true, true),
        ("::ffff:10.0.0.1", true, false),
        ("0.0.0.0", false, false),
        ("127.0.0.1", false, false),
        ("224.0.0.1", true, false),
        ("198.51.100.7", true, true),
        ("198.18.0.1", true, false),
        ("fd00::1", true, false),
        ("host.example.net", false, false),
    ] {
        let inventory = good(&format!("[hosts.h]\naddress = '{address}'"));
        let host = inventory.hosts.values().next().unwrap();
        let seen = View::ALL.map(|view| !host.seen_from(view).is_empty());
        assert_eq!(seen, [inside, outside], "{address}");
    }
}

#[test]
fn a_zones_file_begins_with_what_its_times_are() {
    let inventory = good(CLOUD);
    let name: DomainName = "example.net".parse().unwrap();
    let text = file(&inventory, &name, View::Inside, &Default::default());
    assert_eq!(
        text,
        "$TTL 330\nexample.net. IN SOA ns1.example.net. hostmaster.example.net. 7 300 300 2419200 299\n"
    );
}
