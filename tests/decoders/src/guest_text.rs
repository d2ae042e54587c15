//! What is in the files of a guest and what its programs print, both of which it may have made up to do harm.

use tallybook::render;
use tallybook_agent::capture::Capture;
use tallybook_agent::fuzzing;
use tallybook_agent::scrub::scrub;
use tallybook_agent::template::Source;
use tallybook_agent::template::leaks::Scan;
use tallybook_agent::template::scrub::fuzzing as edits;
use tallybook_agent::template::staged::Identity;

use crate::memory::bounded;
use crate::{chosen, part};

/// One of the readers.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    bounded(bytes.len(), || match which % 8 {
        0 => printed(bytes),
        1 => captured(bytes),
        2 => scanned(bytes),
        3 => hosts(bytes),
        4 => accounts(bytes),
        5 => keys(bytes),
        6 => network(bytes),
        _ => shown(bytes),
    });
}

fn source() -> Source {
    Source {
        names: vec!["web1".to_owned(), "web1.example.org".to_owned()],
        addresses: vec![[10, 5, 0, 2].into(), "fd00::2".parse().expect("an address")],
        macs: vec!["00:16:3e:01:02:03".parse().expect("a MAC")],
    }
}

fn printed(bytes: &[u8]) {
    let clean = scrub(bytes);
    assert!(clean.len() <= bytes.len() + 32 * bytes.len().div_ceil(10));
    assert!(
        !clean
            .windows(32)
            .any(|window| window == b"-----BEGIN OPENSSH PRIVATE KEY--"),
        "the armour of a key is still there"
    );
}

fn captured(mut bytes: &[u8]) {
    let all = bytes.len();
    let mut whole = Vec::new();
    let mut capture = Capture::new(64, 32);
    while !bytes.is_empty() {
        let piece = part(&mut bytes);
        whole.extend_from_slice(piece);
        capture.push(piece);
    }
    let dropped = usize::try_from(capture.dropped()).expect("it is within the input");
    assert_eq!(dropped, whole.len().saturating_sub(96));
    let kept = capture.into_bytes();
    assert!(kept.len() <= all.min(96) + 48);
    assert!(kept.starts_with(&whole[..whole.len().min(64)]));
    assert!(kept.ends_with(&whole[whole.len() - (whole.len().saturating_sub(64)).min(32)..]));
}

fn scanned(bytes: &[u8]) {
    let identity = Identity {
        machine_ids: vec!["0123456789abcdef0123456789abcdef".to_owned()],
        host_keys: vec![
            "AAAAC3NzaC1lZDI1NTE5AAAAIHgQeGVLQ3GTxQ8xLJ3hTLTXJ8F5uEqfCIcx3TxKxk5Z".to_owned(),
        ],
        names: Vec::new(),
    };
    let allow = Vec::new();
    let mut scan = Scan::new(&source(), &identity, &allow).expect("there is little to look for");
    scan.text("config", bytes).expect("nothing is read");
    let findings = scan.finish().findings;
    let has = |what: &[u8]| {
        bytes
            .windows(what.len())
            .any(|window| window.eq_ignore_ascii_case(what))
    };
    // What is nowhere can't be found.
    assert!(
        findings
            .iter()
            .all(|finding| finding.rule != "host-key" || has(b"AAAAC3NzaC1lZDI1NTE5AAAAI"))
    );
    if has(identity.host_keys[0].as_bytes()) {
        assert!(findings.iter().any(|finding| finding.rule == "host-key"));
    }
}

fn hosts(bytes: &[u8]) {
    let source = source();
    let clean = edits::hosts(bytes, &source);
    assert_eq!(
        edits::hosts(&clean, &source),
        clean,
        "what is left is left again"
    );
    let text = String::from_utf8_lossy(&clean);
    let own = fuzzing::guest_hosts(&text, "web2", Some("example.org"));
    let again = fuzzing::guest_hosts(&own, "web2", Some("example.org"));
    // A carriage return in front of a line's end goes the next time.
    assert!(
        again == own || own.contains('\r'),
        "its own name is there once"
    );
    let named = own
        .lines()
        .filter(|line| line.split_whitespace().next() == Some("127.0.1.1"));
    assert_eq!(named.count(), 1);
}

fn accounts(bytes: &[u8]) {
    let locked = edits::locked(bytes);
    assert_eq!(
        edits::locked(&locked),
        locked,
        "what is locked stays as it is"
    );
    let lines = |text: &[u8]| text.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines(&locked), lines(bytes));
}

fn keys(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let ours = [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice"
            .to_owned(),
    ];
    let with = fuzzing::authorized_keys(bytes, &ours);
    assert!(with.starts_with(bytes), "nothing of others is changed");
    assert_eq!(
        fuzzing::authorized_keys(&with, &ours),
        with,
        "a key is there once"
    );
    for line in text.lines() {
        if let Some((kind, content)) = fuzzing::public_key(line) {
            assert!(!kind.contains(char::is_whitespace) && !content.contains(char::is_whitespace));
        }
    }
}

fn network(bytes: &[u8]) {
    let source = source();
    let _fixed = edits::is_fixed(bytes, &source);
    let replaced = edits::replaced(bytes, b"web1", b"localhost");
    assert_eq!(edits::replaced(&replaced, b"web1", b"localhost"), replaced);
}

/// What a terminal of an operator's is given.
fn shown(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(!render::plain(&text).chars().any(char::is_control));
    for line in render::plain_lines(&text) {
        assert!(!line.chars().any(|c| c.is_control() && c != '\t'));
    }
}
