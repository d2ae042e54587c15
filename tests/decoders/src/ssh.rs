//! What decides which host is spoken to: known_hosts, what `ssh -G` prints, destinations; and what a host says back.

use std::path::{Path, PathBuf};

use tallybook::host::known_hosts::{Key, KnownHosts, Offered, Verdict};
use tallybook::host::{Jump, Settings, fuzzing};

use crate::memory::bounded;
use crate::{chosen, part};

const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIHgQeGVLQ3GTxQ8xLJ3hTLTXJ8F5uEqfCIcx3TxKxk5Z";
const OTHER: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    let text = &*String::from_utf8_lossy(bytes);
    match which % 5 {
        0 => judged(bytes),
        1 => config(text),
        2 => drop(fuzzing::placed(text)),
        3 => destination(text),
        _ => key(bytes),
    }
}

fn offered(base64: &str) -> Offered {
    Offered {
        lookup: "cn1.example.org".to_owned(),
        key: Key::parse("ssh-ed25519", base64).expect("it is a key"),
    }
}

fn judged(bytes: &[u8]) {
    let file = Path::new("/known_hosts");
    let mut known = KnownHosts::default();
    bounded(bytes.len(), || known.add(file, bytes));
    let (ours, other) = (offered(KEY), offered(OTHER));
    let verdict = known.judge(&ours);
    if let Verdict::Trusted(place) = &verdict {
        let line = bytes.split(|byte| *byte == b'\n').nth(place.line - 1);
        let line = String::from_utf8_lossy(line.expect("the place is within the file"));
        assert!(
            line.contains(KEY),
            "trusted by a line that does not have the key"
        );
        assert!(
            !line.trim_start().starts_with(['#', '@']),
            "trusted by a line that is no host's"
        );
    }
    drop(known.algorithms(&ours.lookup));
    // A key that an operator accepted is on record from then on, and another is not.
    let unknown = matches!(verdict, Verdict::Unknown { .. });
    known.add(Path::new("/accepted"), ours.line().as_bytes());
    match known.judge(&ours) {
        Verdict::Trusted(_) | Verdict::Revoked(_) | Verdict::Malformed(..) => {}
        verdict => panic!("an accepted key is {verdict}"),
    }
    if unknown {
        assert!(matches!(known.judge(&ours), Verdict::Trusted(_)));
        assert!(matches!(
            known.judge(&other),
            Verdict::Changed(_) | Verdict::Revoked(_)
        ));
    }
}

fn config(text: &str) {
    let settings = Settings {
        home: Some(PathBuf::from("/home/op")),
        agent_socket: Some(PathBuf::from("/run/agent")),
        ..Settings::default()
    };
    let Ok(found) = bounded(text.len(), || fuzzing::ssh_config("cn1", text, &settings)) else {
        return;
    };
    // What is not understood must not be passed over where it decides whom to trust.
    let says = |keyword: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .any(|(key, value)| key == keyword && value.trim() != "none")
    };
    assert!(!says("proxycommand") && !says("revokedhostkeys"));
    for jump in &found.jumps {
        drop(Jump::parse(jump));
    }
}

fn destination(text: &str) {
    if let Some((user, host, port)) = fuzzing::destination(text) {
        assert!(text.contains(host));
        assert!(user.is_none_or(|user| text.starts_with(user)));
        assert!(
            port.is_none_or(
                |port| text.trim_end().ends_with(&port.to_string()) || text.contains(':')
            )
        );
    }
    if let Some(jump) = Jump::parse(text) {
        assert!(
            !jump.address.starts_with('-') && !jump.address.is_empty(),
            "it would be an option"
        );
        assert!(
            jump.address
                .chars()
                .all(|c| !c.is_whitespace() && !c.is_control())
        );
    }
}

fn key(mut bytes: &[u8]) {
    let kind = String::from_utf8_lossy(part(&mut bytes)).into_owned();
    let base64 = String::from_utf8_lossy(bytes);
    if let Ok(key) = bounded(bytes.len(), || Key::parse(&kind, &base64)) {
        assert_eq!(Key::parse(&key.kind, &key.base64()), Ok(key.clone()));
        assert!(key.fingerprint().starts_with("SHA256:"));
    }
}
