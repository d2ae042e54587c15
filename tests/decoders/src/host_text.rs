//! What files, tables and programs of a host say: text that the agent takes apart.

use std::net::Ipv4Addr;

use tallybook_agent::network::managed::Found;
use tallybook_agent::network::reservation::Reservation;
use tallybook_agent::network::ruleset::Nat;
use tallybook_agent::step::Ended;
use tallybook_agent::template::config;
use tallybook_agent::{base, fuzzing, lxc_config};

use crate::chosen;
use crate::memory::bounded;

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    let text = &*String::from_utf8_lossy(bytes);
    bounded(bytes.len(), || match which % 12 {
        0 => sockets(text),
        1 => fragments(text),
        2 => generated(text),
        3 => leases(text),
        4 => apt(text),
        5 => drop(fuzzing::apt_failure(&Ended {
            exit: Some(100),
            stdout: Vec::new(),
            stderr: bytes.to_vec(),
        })),
        6 => mounts(text),
        7 => addresses(bytes, text),
        8 => lxc(text),
        9 => drop(base::apt::transport_settings(text)),
        10 => drop(fuzzing::fingerprint(bytes)),
        _ => nat(text),
    });
}

fn sockets(text: &str) {
    for line in text.lines() {
        for state in ["0A", "07"] {
            let _listener = fuzzing::listener(line, state);
        }
    }
}

fn fragments(text: &str) {
    for line in text.lines() {
        if let Some(((protocol, host_port), (address, port))) = fuzzing::forward(line) {
            let again = format!("{protocol} {host_port} {address} {port}");
            let read = fuzzing::forward(&again);
            assert_eq!(read, Some(((protocol, host_port), (address, port))));
        }
    }
    let _rules = fuzzing::rules(text);
}

fn generated(text: &str) {
    match fuzzing::generated(text) {
        Found::Ours { made_by, body } => {
            assert!(text.ends_with(&body), "the body is the file's end");
            assert!(!made_by.contains('\n'));
        }
        Found::Foreign | Found::Absent => {}
    }
    if let Some((bridge, gateway)) = fuzzing::bridge_unit(text) {
        let again = format!("# bridge {bridge} {gateway}\n");
        assert_eq!(fuzzing::bridge_unit(&again), Some((bridge, gateway)));
    }
}

fn leases(text: &str) {
    let _mac = fuzzing::lease_holder(text, Ipv4Addr::new(10, 5, 0, 2));
    let line = text.lines().next().unwrap_or_default();
    if let Some(found) = Reservation::parse(line) {
        let again = format!("{},{}\n", found.mac, found.address);
        assert_eq!(Reservation::parse(&again), Some(found));
    }
}

fn apt(text: &str) {
    for source in text.lines().filter_map(fuzzing::apt_line) {
        // Without a component a line of apt's names no archive, and none is made of it.
        let is_plain = !source.uri.starts_with('[') && !source.line().contains('#');
        if is_plain && !source.components.is_empty() {
            assert_eq!(fuzzing::apt_line(&source.line()), Some(source));
        }
    }
    for source in fuzzing::apt_stanzas(text) {
        assert!(!source.uri.contains(char::is_whitespace));
        assert!(!source.suite.contains(char::is_whitespace));
    }
}

fn mounts(text: &str) {
    if let Some(kind) = fuzzing::filesystem(text, "/var/lib/lxc") {
        assert!(!kind.contains(['\n', ' ']));
    }
    let _bytes = fuzzing::memory_bytes(text);
}

fn addresses(bytes: &[u8], text: &str) {
    drop(fuzzing::addresses(bytes));
    let found = fuzzing::local_addresses(text);
    assert!(found.is_sorted() && found.iter().all(|address| !address.is_loopback()));
    let _known = fuzzing::is_resolved(text, Ipv4Addr::new(10, 5, 0, 2));
}

fn lxc(text: &str) {
    drop(lxc_config::rootfs_of(text));
    drop(config::rootfs(text));
    for value in config::identifying(text) {
        assert!(!value.contains('\n'));
    }
    let (kept, _) = config::neutral(text);
    assert_eq!(config::neutral(&kept).0, kept, "what is kept is kept again");
    // What it includes is read from this machine's disk.
    if !text.contains("lxc.include") {
        let whole = lxc_config::whole(text).expect("it includes nothing");
        assert_eq!(whole.lines().count(), text.lines().count());
    }
}

fn nat(text: &str) {
    if let Some(nat) = Nat::of_file(text) {
        assert_eq!(Nat::of_file(&nat.body()), Some(nat));
    }
}
