//! Allocation, case by case.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_events::ids::LogId;

use super::good;
use crate::cloud::allocate::{Allocation, Compiled, Error, Key, Status, compile};
use crate::cloud::inventory::Inventory;
use crate::cloud::limit::{Limit, Selection};

const SEED: LogId = LogId::from_bytes([7; 16]);

pub(super) type Recorded = BTreeMap<Key, Allocation>;

pub(super) fn compile_all(inventory: &Inventory, existing: &Recorded) -> Result<Compiled, Error> {
    compile(
        inventory,
        existing,
        &BTreeSet::new(),
        &Selection::everything(inventory),
        &SEED,
    )
}

pub(super) fn recorded(compiled: &Compiled) -> Recorded {
    let entries = compiled.entries.iter();
    entries
        .map(|(key, entry)| (key.clone(), entry.allocation.clone()))
        .collect()
}

pub(super) fn key(host: &str, name: &str) -> Key {
    (host.parse().unwrap(), name.parse().unwrap())
}

fn limited(inventory: &Inventory, existing: &Recorded, limit: &str) -> Result<Compiled, Error> {
    let selection = Limit::parse(limit).unwrap().select(inventory).unwrap();
    compile(inventory, existing, &BTreeSet::new(), &selection, &SEED)
}

fn cloud(containers: &str) -> Inventory {
    good(&format!(
        "[defaults.container]\nforward_ssh = true\n[hosts.cn1]\n[hosts.cn2]\n[containers]\n{containers}"
    ))
}

fn short(allocation: &Allocation) -> String {
    let ports = allocation.forwards.iter();
    let ports = ports.map(|forward| format!("{}:{}", forward.name, forward.host_port));
    let ports: Vec<String> = ports.collect();
    format!("{} {}", allocation.address, ports.join(" "))
}

#[test]
fn allocates_in_order_and_around_what_is_given() {
    let inventory = cloud(
        "a = { host = 'cn1' }
         b = { host = 'cn1', address = '10.5.0.2', ports = [{ container = 22, host = 40000 }] }
         c = { host = 'cn2' }",
    );
    let compiled = compile_all(&inventory, &Recorded::new()).unwrap();
    let shown = |host, name| short(&compiled.entries[&key(host, name)].allocation);
    assert_eq!(shown("cn1", "a"), "10.5.0.3 ssh:40001");
    assert_eq!(shown("cn1", "b"), "10.5.0.2 ssh:40000");
    assert_eq!(shown("cn2", "c"), "10.5.0.4 ssh:40000");
    assert!(
        compiled
            .entries
            .values()
            .all(|entry| entry.status == Status::New)
    );
    let mac = compiled.entries[&key("cn1", "a")].allocation.mac;
    assert!(mac.to_string().starts_with("00:16:3e:"));
    let other = LogId::from_bytes([8; 16]);
    let again = compile(
        &inventory,
        &Recorded::new(),
        &BTreeSet::new(),
        &Selection::everything(&inventory),
        &other,
    );
    assert_ne!(again.unwrap().entries[&key("cn1", "a")].allocation.mac, mac);
}

#[test]
fn a_given_value_outside_the_selection_is_not_given_away() {
    let inventory = cloud(
        "a = { host = 'cn1' }
         b = { host = 'cn1', address = '10.5.0.2', ports = [{ container = 22, host = 40000 }] }",
    );
    let compiled = limited(&inventory, &Recorded::new(), "a").unwrap();
    assert_eq!(compiled.entries.len(), 1);
    assert_eq!(
        short(&compiled.entries[&key("cn1", "a")].allocation),
        "10.5.0.3 ssh:40001"
    );
}

#[test]
fn what_another_holds_is_a_conflict_that_names_both() {
    let before = cloud("a = { host = 'cn1' }\nb = { host = 'cn1' }");
    let existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let after = cloud(
        "a = { host = 'cn1' }
         b = { host = 'cn1', address = '10.5.0.2', ports = [{ container = 22, host = 40000 }] }",
    );
    let expected = "address 10.5.0.2 is given in the inventory to container \"b\" on host \"cn1\" and recorded for \
                    container \"a\" on host \"cn1\"\n\
                    port 40000/tcp of host \"cn1\" is given in the inventory to container \"b\" on host \"cn1\" and \
                    recorded for container \"a\" on host \"cn1\"";
    assert_eq!(
        compile_all(&after, &existing).unwrap_err().to_string(),
        expected
    );
    // The same when the holder is outside the selection, seen from the other side.
    let error = limited(&after, &existing, "b").unwrap_err().to_string();
    assert!(
        error.starts_with("address 10.5.0.2 is recorded for container \"a\""),
        "{error}"
    );
    // The holder alone is free to stay as it is.
    let compiled = limited(&after, &existing, "a").unwrap();
    assert_eq!(compiled.entries[&key("cn1", "a")].status, Status::Unchanged);
}

#[test]
fn two_containers_can_swap_what_they_are_given_at_once_and_not_one_by_one() {
    let before = cloud(
        "a = { host = 'cn1', address = '10.5.0.7' }\nb = { host = 'cn1', address = '10.5.0.8' }",
    );
    let existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let after = cloud(
        "a = { host = 'cn1', address = '10.5.0.8' }\nb = { host = 'cn1', address = '10.5.0.7' }",
    );
    let compiled = compile_all(&after, &existing).unwrap();
    let changed = compiled.entries.values();
    assert!(
        changed
            .into_iter()
            .all(|entry| matches!(entry.status, Status::Changed { .. }))
    );
    assert!(matches!(
        limited(&after, &existing, "a"),
        Err(Error::Conflicts(_))
    ));
}

#[test]
fn what_is_no_longer_given_is_kept() {
    let before = cloud("a = { host = 'cn1', address = '10.5.9.9', mac = '00:16:3e:01:02:03' }");
    let existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let after = compile_all(&cloud("a = { host = 'cn1' }"), &existing).unwrap();
    let now = &after.entries[&key("cn1", "a")].allocation;
    assert_eq!(
        (now.address.to_string(), now.mac.to_string()),
        ("10.5.9.9".to_owned(), "00:16:3e:01:02:03".to_owned())
    );
}

#[test]
fn forwards_follow_their_name_and_then_their_end() {
    let ports = |ports: &str| {
        cloud(&format!(
            "a = {{ host = 'cn1', forward_ssh = false, ports = [{ports}] }}"
        ))
    };
    let first = ports("{ name = 'x', container = 80 }, { name = 'y', container = 81 }");
    let existing = recorded(&compile_all(&first, &Recorded::new()).unwrap());
    let short_of = |inventory: &Inventory| {
        let compiled = compile_all(inventory, &existing).unwrap();
        short(&compiled.entries[&key("cn1", "a")].allocation)
    };
    assert_eq!(short_of(&first), "10.5.0.2 x:40000 y:40001");
    // The order in the file means nothing.
    let swapped = ports("{ name = 'y', container = 81 }, { name = 'x', container = 80 }");
    assert_eq!(short_of(&swapped), "10.5.0.2 x:40000 y:40001");
    // Same name, another end; and the other way round.
    assert_eq!(
        short_of(&ports("{ name = 'x', container = 8080 }")),
        "10.5.0.2 x:40000"
    );
    assert_eq!(
        short_of(&ports("{ name = 'z', container = 81 }")),
        "10.5.0.2 z:40001"
    );
    // Two new names for one end: one keeps the port, and neither shares it.
    let two = ports("{ name = 'p', container = 80 }, { name = 'q', container = 80 }");
    assert_eq!(short_of(&two), "10.5.0.2 p:40000 q:40001");
    // A new name for an end whose old name is still in use elsewhere takes nothing away.
    let both = ports("{ name = 'n', container = 80 }, { name = 'x', container = 80 }");
    assert_eq!(short_of(&both), "10.5.0.2 n:40001 x:40000");
}

#[test]
fn a_container_that_moves_brings_its_address_and_mac() {
    let before = cloud("a = { host = 'cn1' }\nb = { host = 'cn2' }");
    let existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let old = &existing[&key("cn1", "a")];
    let after = compile_all(
        &cloud("a = { host = 'cn2' }\nb = { host = 'cn2' }"),
        &existing,
    )
    .unwrap();
    let moved = &after.entries[&key("cn2", "a")];
    assert!(matches!(&moved.status, Status::Moved { from, .. } if from.as_str() == "cn1"));
    assert_eq!(
        (moved.allocation.address, moved.allocation.mac),
        (old.address, old.mac)
    );
    // Its old port is b's on the new host.
    assert_eq!(short(&moved.allocation), "10.5.0.2 ssh:40001");
    assert_eq!(after.orphans.iter().collect::<Vec<_>>(), [&key("cn1", "a")]);
    assert_eq!(after.to_record().count(), 1);
    // Recorded at both places, until the old one is released: nothing is in its own way, and its old port stays held.
    let mut both = existing.clone();
    both.insert(key("cn2", "a"), moved.allocation.clone());
    let settled = cloud("a = { host = 'cn2' }\nb = { host = 'cn2' }\nc = { host = 'cn1' }");
    let settled = compile_all(&settled, &both).unwrap();
    assert_eq!(settled.entries[&key("cn2", "a")].status, Status::Unchanged);
    assert_eq!(
        short(&settled.entries[&key("cn1", "c")].allocation),
        "10.5.0.4 ssh:40001"
    );
    // Where it is free, it comes along, before anything new is allocated.
    let two = cloud("a = { host = 'cn1' }\nd = { host = 'cn1' }");
    let two = recorded(&compile_all(&two, &Recorded::new()).unwrap());
    assert_eq!(short(&two[&key("cn1", "d")]), "10.5.0.3 ssh:40001");
    let after = cloud(
        "a = { host = 'cn1' }\nb = { host = 'cn2' }\nc = { host = 'cn2' }\nd = { host = 'cn2' }",
    );
    let after = compile_all(&after, &two).unwrap();
    assert_eq!(
        short(&after.entries[&key("cn2", "d")].allocation),
        "10.5.0.3 ssh:40001"
    );
    assert_eq!(
        short(&after.entries[&key("cn2", "c")].allocation),
        "10.5.0.5 ssh:40002"
    );
}

#[test]
fn a_released_allocation_is_used_again_and_an_orphan_is_not() {
    let before = cloud("a = { host = 'cn1' }\nb = { host = 'cn1' }");
    let mut existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let after = cloud("b = { host = 'cn1' }\nc = { host = 'cn1' }");
    let compiled = compile_all(&after, &existing).unwrap();
    assert_eq!(
        short(&compiled.entries[&key("cn1", "c")].allocation),
        "10.5.0.4 ssh:40002"
    );
    assert!(compiled.orphans.contains(&key("cn1", "a")));
    existing.remove(&key("cn1", "a"));
    let compiled = compile_all(&after, &existing).unwrap();
    assert_eq!(
        short(&compiled.entries[&key("cn1", "c")].allocation),
        "10.5.0.2 ssh:40000"
    );
}

#[test]
fn what_runs_out_says_so() {
    let small = |network: &str, host: &str| {
        let text = format!(
            "[network]\n{network}\n[defaults.container]\nforward_ssh = true\n[hosts.h]\n{host}\n"
        );
        let text = format!("{text}[containers]\na = {{ host = 'h' }}\nb = {{ host = 'h' }}\n");
        compile_all(&good(&text), &Recorded::new())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        small("subnet = '10.9.0.0/30'", ""),
        "no address is left in 10.9.0.0/30 for container \"b\" on host \"h\""
    );
    // The SSH daemon's port is in the range and is never given away.
    assert_eq!(
        small("forward_ports = '40000-40001'", "port = 40000"),
        "no port is left in 40000-40001 for container \"b\" on host \"h\""
    );
}

#[test]
fn a_subnet_that_changes_under_a_container_is_an_error() {
    let existing =
        recorded(&compile_all(&cloud("a = { host = 'cn1' }"), &Recorded::new()).unwrap());
    let after =
        good("[network]\nsubnet = '10.6.0.0/16'\n[hosts.cn1]\n[containers.a]\nhost = 'cn1'");
    assert_eq!(
        compile_all(&after, &existing).unwrap_err().to_string(),
        "address 10.5.0.2, recorded for container \"a\" on host \"cn1\", is outside the subnet 10.6.0.0/16"
    );
    let after = good("[network]\ngateway = '10.5.0.2'\n[hosts.cn1]\n[containers.a]\nhost = 'cn1'");
    assert!(matches!(
        compile_all(&after, &existing),
        Err(Error::Conflicts(_))
    ));
}

#[test]
fn a_derived_mac_that_is_taken_is_derived_anew() {
    let inventory = cloud("a = { host = 'cn1' }");
    let first = compile_all(&inventory, &Recorded::new()).unwrap();
    let taken = first.entries[&key("cn1", "a")].allocation.clone();
    let existing = Recorded::from([(key("cn2", "z"), taken.clone())]);
    let second = compile_all(&inventory, &existing).unwrap();
    let now = &second.entries[&key("cn1", "a")].allocation;
    assert_ne!((now.mac, now.address), (taken.mac, taken.address));
    assert_ne!(now.mac, taken.mac);
}

#[test]
fn allocation_goes_around_the_gateway_and_a_number_used_by_the_other_protocol() {
    let inventory = good(
        "[network]\ngateway = '10.5.0.2'\n[hosts.h]\n[containers.a]\nhost = 'h'\n\
         ports = [{ container = 53 }, { container = 53, protocol = 'udp' }]",
    );
    let compiled = compile_all(&inventory, &Recorded::new()).unwrap();
    let shown = short(&compiled.entries[&key("h", "a")].allocation);
    assert_eq!(shown, "10.5.0.3 tcp-53:40000 udp-53:40001");
}

#[test]
fn records_that_share_something_are_an_error_and_not_kept_quiet() {
    let inventory = cloud("a = { host = 'cn1' }\nb = { host = 'cn1' }");
    let mut existing = recorded(&compile_all(&inventory, &Recorded::new()).unwrap());
    let of_a = existing[&key("cn1", "a")].clone();
    existing.insert(key("cn1", "b"), of_a);
    let Err(Error::Conflicts(conflicts)) = compile_all(&inventory, &existing) else {
        panic!("taken");
    };
    assert_eq!(conflicts.len(), 3, "address, MAC and port: {conflicts:?}");
}

#[test]
fn what_a_container_uses_never_moves_to_a_copy_of_its_name() {
    let before = cloud("a = { host = 'cn1' }");
    let existing = recorded(&compile_all(&before, &Recorded::new()).unwrap());
    let after = cloud("a = { host = 'cn2' }");
    let everything = Selection::everything(&after);
    let there = BTreeSet::from([key("cn1", "a")]);
    let copied = compile(&after, &existing, &there, &everything, &SEED).unwrap();
    let (original, copy) = (
        &existing[&key("cn1", "a")],
        &copied.entries[&key("cn2", "a")],
    );
    assert_eq!(copy.status, Status::New);
    assert_ne!(copy.allocation.address, original.address);
    assert_ne!(copy.allocation.mac, original.mac);
}
