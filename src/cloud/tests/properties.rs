//! What is true of every inventory: nothing is shared, nothing that is recorded moves, and no text makes it panic.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::allocation::{Recorded, compile_all, recorded};
use super::example::example;
use super::{PUBLIC_KEY, good};
use crate::cloud::allocate::{Allocation, Compiled, Key, Status};
use crate::cloud::limit::Limit;
use crate::cloud::network::{Mac, PortRange, Subnet, card_mac};
use crate::cloud::parse;

/// A container: its host, and what it is given.
#[derive(Debug, Clone)]
struct Wanted {
    host: u8,
    address: bool,
    mac: bool,
    ports: Vec<(u16, bool)>,
}

const HOSTS: u8 = 3;

fn wanted() -> impl Strategy<Value = Wanted> {
    let ports = prop::collection::btree_map(1_u16..6, any::<bool>(), 0..4);
    (0..HOSTS, any::<bool>(), any::<bool>(), ports).prop_map(|(host, address, mac, ports)| Wanted {
        host,
        address,
        mac,
        ports: ports.into_iter().collect(),
    })
}

/// What container `n` is given is its own: an inventory is good whatever is given.
fn text(containers: &[(usize, &Wanted)]) -> String {
    let mut text =
        String::from("[network]\nsubnet = \"10.5.0.0/24\"\nforward_ports = \"40000-40099\"\n");
    for host in 0..HOSTS {
        writeln!(text, "[hosts.h{host}]").unwrap();
    }
    for (n, wanted) in containers {
        writeln!(text, "[containers.c{n}]\nhost = \"h{}\"", wanted.host).unwrap();
        if wanted.address {
            // Low, so that they stand where allocation looks first.
            writeln!(text, "address = \"10.5.0.{}\"", 2 + n * 2).unwrap();
        }
        if wanted.mac {
            writeln!(text, "mac = \"00:16:3e:00:00:{n:02x}\"").unwrap();
        }
        let ports = wanted.ports.iter().map(|(port, given)| match given {
            true => format!(
                "{{ container = {port}, host = {} }}",
                40_000 + n * 6 + usize::from(*port)
            ),
            false => format!("{{ container = {port} }}"),
        });
        writeln!(text, "ports = [{}]", ports.collect::<Vec<_>>().join(", ")).unwrap();
    }
    text
}

fn numbered(containers: &[Wanted]) -> Vec<(usize, &Wanted)> {
    containers.iter().enumerate().collect()
}

fn assert_nothing_shared<'a>(allocations: impl Iterator<Item = (&'a Key, &'a Allocation)>) {
    let (mut addresses, mut macs, mut ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for ((host, name), allocation) in allocations {
        assert!(
            addresses.insert(allocation.address),
            "{name}: {}",
            allocation.address
        );
        assert!(macs.insert(allocation.mac), "{name}: {}", allocation.mac);
        for forward in &allocation.forwards {
            assert!(
                ports.insert((host, forward.host_port)),
                "{name}: {forward:?}"
            );
        }
    }
}

fn assert_given(compiled: &Compiled, containers: &[(usize, &Wanted)]) {
    for (n, wanted) in containers {
        let key = (
            format!("h{}", wanted.host).parse().unwrap(),
            format!("c{n}").parse().unwrap(),
        );
        let allocation = &compiled.entries[&key].allocation;
        if wanted.address {
            assert_eq!(
                allocation.address.octets()[3],
                u8::try_from(2 + n * 2).unwrap()
            );
        }
        if wanted.mac {
            assert_eq!(usize::from(allocation.mac.0[5]), *n);
        }
        assert_eq!(allocation.forwards.len(), wanted.ports.len());
        for forward in &allocation.forwards {
            let (port, given) = wanted
                .ports
                .iter()
                .find(|(port, _)| *port == forward.container_port)
                .unwrap();
            if *given {
                assert_eq!(
                    usize::from(forward.host_port),
                    40_000 + n * 6 + usize::from(*port)
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_shared_and_what_is_given_is_honoured(containers in prop::collection::vec(wanted(), 1..14)) {
        let containers = numbered(&containers);
        let compiled = compile_all(&good(&text(&containers)), &Recorded::new()).unwrap();
        let entries = compiled.entries.iter().map(|(key, entry)| (key, &entry.allocation));
        assert_nothing_shared(entries);
        assert_given(&compiled, &containers);
    }

    #[test]
    fn compiling_again_changes_nothing(containers in prop::collection::vec(wanted(), 1..14)) {
        let inventory = good(&text(&numbered(&containers)));
        let first = compile_all(&inventory, &Recorded::new()).unwrap();
        let again = compile_all(&inventory, &Recorded::new()).unwrap();
        prop_assert_eq!(&first, &again);
        let second = compile_all(&inventory, &recorded(&first)).unwrap();
        prop_assert_eq!(recorded(&second), recorded(&first));
        prop_assert_eq!(second.to_record().count(), 0);
    }

    /// Containers that come and go, given nothing: those that stay keep everything, and what is released comes back.
    #[test]
    fn containers_that_come_and_go_never_change_others(
        containers in prop::collection::vec(wanted(), 2..14),
        before in prop::collection::vec(any::<bool>(), 14),
        after in prop::collection::vec(any::<bool>(), 14),
        release in any::<bool>(),
    ) {
        let mut containers = containers;
        for wanted in &mut containers {
            wanted.address = false;
            wanted.mac = false;
            wanted.ports.iter_mut().for_each(|(_, given)| *given = false);
        }
        let chosen = |chosen: &[bool]| -> Vec<(usize, &Wanted)> {
            containers.iter().enumerate().filter(|(n, _)| chosen[*n]).collect()
        };
        let (first, second) = (chosen(&before), chosen(&after));
        let compiled = compile_all(&good(&text(&first)), &Recorded::new()).unwrap();
        let mut existing = recorded(&compiled);
        let now = good(&text(&second));
        if release {
            existing.retain(|(_, name), _| now.containers.contains_key(name));
        }
        let compiled = compile_all(&now, &existing).unwrap();
        let mut all = existing.clone();
        for (key, entry) in &compiled.entries {
            if let Some(held) = existing.get(key) {
                prop_assert_eq!(&entry.allocation, held);
                prop_assert_eq!(&entry.status, &Status::Unchanged);
            } else {
                prop_assert_eq!(&entry.status, &Status::New);
            }
            all.insert(key.clone(), entry.allocation.clone());
        }
        assert_nothing_shared(all.iter());
        if release {
            // No hole is left below the highest address: what was released is used before what is new.
            let highest = all.values().map(|held| held.address).max();
            let recorded_highest = existing.values().map(|held| held.address).max();
            let dense = usize::from(highest.map_or(1, |address| address.octets()[3])) - 1;
            prop_assert!(dense == all.len() || highest == recorded_highest);
        }
    }

    /// What is stored and shown reads back as itself.
    #[test]
    fn values_read_back(mac in any::<[u8; 6]>(), bits in any::<u32>(), prefix in 8_u8..31, ports in any::<(u16, u16)>()) {
        if let Ok(mac) = card_mac(mac) {
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            let json = serde_json::to_string(&mac).unwrap();
            prop_assert_eq!(serde_json::from_str::<Mac>(&json).unwrap(), mac);
        }
        let subnet = Subnet::holding(Ipv4Addr::from_bits(bits), prefix).unwrap();
        prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
        prop_assert!(subnet.contains(Ipv4Addr::from_bits(bits)));
        let last = (1_u32 << (32 - u32::from(prefix))) - 2;
        prop_assert!(subnet.nth(last).is_some_and(|last| last < subnet.broadcast()));
        prop_assert_eq!(subnet.nth(last + 1), None);
        if let Ok(range) = PortRange::new(ports.0, ports.1) {
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }
    }

    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
        let _ = parse("cloud.toml", &text);
        if let Ok(limit) = Limit::parse(&text) {
            let _ = limit.select(&good(example()));
        }
    }

    #[test]
    fn no_damage_to_a_good_text_makes_reading_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        const PIECES: [&str; 16] = [
            "", "[", "]", "{", "}", "\"", "'", "=", ".", "\n", "-1", "ä", "\0", "hosts", "999999999999999999999", PUBLIC_KEY,
        ];
        let mut chars: Vec<char> = example().chars().collect();
        for (from, len, piece) in edits {
            let from = from.index(chars.len());
            let to = (from + len.index(12)).min(chars.len());
            let piece = PIECES[usize::from(piece) % PIECES.len()];
            chars.splice(from..to, piece.chars());
        }
        let text: String = chars.into_iter().collect();
        if let Err(diagnostics) = parse("cloud.toml", &text) {
            let lines = text.split('\n').count();
            for diagnostic in diagnostics.as_slice() {
                prop_assert!((1..=lines).contains(&diagnostic.line), "{}", diagnostic);
            }
        }
    }
}

#[test]
fn deep_and_large_texts_do_not_overflow() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{ a = ".repeat(100_000)),
        format!("{}b = 1", "a.".repeat(100_000)),
        format!("[{}b]", "a.".repeat(100_000)),
        "x".repeat((16 << 20) + 1),
    ] {
        assert!(parse("cloud.toml", &text).is_err());
    }
}
