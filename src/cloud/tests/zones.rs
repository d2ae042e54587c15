//! Which records zones have.

use std::collections::BTreeMap;

use tallybook_events::ids::LogId;

use super::example::example;
use super::good;
use crate::cloud::dns::{DomainName, View};
use crate::cloud::inventory::Inventory;
use crate::cloud::zones::{file, unpublished, zones};
use crate::cloud::{Selection, compile};

/// The lines of a zone's file but the first two, without what each has in common.
fn lines(inventory: &Inventory, zone: &str, view: View) -> Vec<String> {
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
    let name: DomainName = zone.parse().unwrap();
    let contents = &zones(inventory, &allocations)[&name];
    let text = file(&name, &inventory.zones[&name], &contents[&view], 7);
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
            "20.0.5.10.in-addr.arpa. IN PTR old.example.net.",
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
fn a_domain_in_no_zone_is_told() {
    let inventory = good(example());
    assert!(unpublished(&inventory).is_empty());
    let inventory = good("[hosts.h]\ndomains = ['h.example.com']");
    let told: Vec<&str> = unpublished(&inventory)
        .iter()
        .map(|it| it.as_str())
        .collect();
    assert_eq!(told, ["h.example.com"]);
}

#[test]
fn a_zones_file_begins_with_what_its_times_are() {
    let inventory = good(CLOUD);
    let name: DomainName = "example.net".parse().unwrap();
    let text = file(&name, &inventory.zones[&name], &Default::default(), 7);
    assert_eq!(
        text,
        "$TTL 330\nexample.net. IN SOA ns1.example.net. hostmaster.example.net. 7 300 300 2419200 299\n"
    );
}
