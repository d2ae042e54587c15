//! What is looked for in contents and names, and what makes a match more than a coincidence.

use std::io::{self, Read};
use std::path::Path;

use aho_corasick::AhoCorasick;

use crate::template::Source;
use crate::template::staged::Identity;

/// What a pattern stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// A name with a domain, a digit or a hyphen in it: hardly there by accident.
    Name,
    /// A name that is an ordinary word: looked for only where names of machines are written.
    PlainName,
    Address,
    Mac,
    MachineId,
    HostKey,
    PrivateKey,
    WireGuard,
}

/// One text to look for.
#[derive(Debug, Clone)]
pub struct Pattern {
    pub(super) text: Vec<u8>,
    sort: Sort,
}

type Hit = (&'static str, String);

/// How the armour of private keys begins.
const ARMOUR: &[&str] = &[
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN DSA PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "-----BEGIN ENCRYPTED PRIVATE KEY-----",
    "-----BEGIN SSH2 ENCRYPTED PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "PuTTY-User-Key-File-",
];

/// Everything to look for.
pub(super) fn patterns(source: &Source, identity: &Identity) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    let mut add = |text: String, sort| {
        if !text.is_empty() && !patterns.iter().any(|p: &Pattern| p.text == text.as_bytes()) {
            patterns.push(Pattern {
                text: text.into_bytes(),
                sort,
            });
        }
    };
    for name in source.names.iter().chain(&identity.names) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name == "localhost" {
            continue;
        }
        let is_telling = name.bytes().any(|b| !b.is_ascii_alphabetic()) && name.len() >= 4;
        add(
            name,
            if is_telling {
                Sort::Name
            } else {
                Sort::PlainName
            },
        );
    }
    for address in &source.addresses {
        add(address.to_string(), Sort::Address);
    }
    for mac in &source.macs {
        add(mac.to_string(), Sort::Mac);
        add(mac.to_string().replace(':', "-"), Sort::Mac);
    }
    for id in &identity.machine_ids {
        let id = id.to_ascii_lowercase();
        add(id.clone(), Sort::MachineId);
        if id.len() == 32 && id.is_ascii() {
            let parts = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]];
            add(parts.join("-"), Sort::MachineId);
        }
    }
    for key in &identity.host_keys {
        add(key.clone(), Sort::HostKey);
    }
    for armour in ARMOUR {
        add((*armour).to_owned(), Sort::PrivateKey);
    }
    add("PrivateKey".to_owned(), Sort::WireGuard);
    add("PresharedKey".to_owned(), Sort::WireGuard);
    patterns
}

/// How much is read at once.
const CHUNK_LEN: usize = 256 * 1024;
/// How much before and after a match is looked at to judge it.
const CONTEXT_LEN: usize = 512;

/// Searches a content in bounded memory. `path` is where it is in the tree; without one, everything counts.
pub(super) fn search(
    mut content: impl Read,
    matcher: &AhoCorasick,
    patterns: &[Pattern],
    path: Option<&Path>,
) -> io::Result<Vec<Hit>> {
    let longest = patterns.iter().map(|p| p.text.len()).max().unwrap_or(0);
    let overlap = longest + 2 * CONTEXT_LEN;
    let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK_LEN + overlap);
    let mut hits: Vec<Hit> = Vec::new();
    let mut is_program = false;
    let mut is_first = true;
    loop {
        let kept = buffer.len();
        let read = content
            .by_ref()
            .take(CHUNK_LEN as u64)
            .read_to_end(&mut buffer)?;
        if read == 0 && kept > 0 {
            break;
        }
        if std::mem::take(&mut is_first) {
            // Libraries of cryptography hold keys to test themselves with: everybody has them.
            is_program = path.is_some_and(is_package_data) && buffer.starts_with(b"\x7fELF");
        }
        for found in matcher.find_overlapping_iter(&buffer) {
            let pattern = &patterns[found.pattern().as_usize()];
            if is_program && pattern.sort == Sort::PrivateKey {
                continue;
            }
            let before = &buffer[found.start().saturating_sub(CONTEXT_LEN)..found.start()];
            let after = &buffer[found.end()..buffer.len().min(found.end() + CONTEXT_LEN)];
            if let Some(hit) = judge(pattern, before, after, path)
                && !hits.contains(&hit)
            {
                hits.push(hit);
            }
        }
        if read == 0 {
            break;
        }
        // A match near the end is judged again with what follows it; hits are kept once.
        let start = buffer.len().saturating_sub(overlap);
        buffer.drain(..start);
    }
    Ok(hits)
}

/// Searches a file's name, or a symlink's target.
pub(super) fn in_name(
    name: &[u8],
    path: &Path,
    matcher: &AhoCorasick,
    patterns: &[Pattern],
) -> Vec<Hit> {
    matcher
        .find_overlapping_iter(name)
        .filter_map(|found| {
            let pattern = &patterns[found.pattern().as_usize()];
            let (before, after) = (&name[..found.start()], &name[found.end()..]);
            let (rule, what) = judge(pattern, before, after, Some(path))?;
            Some((rule, format!("{what}, in its name or target")))
        })
        .collect()
}

fn judge(pattern: &Pattern, before: &[u8], after: &[u8], path: Option<&Path>) -> Option<Hit> {
    let (previous, next) = (before.last().copied(), after.first().copied());
    let is_apart = |part: fn(u8) -> bool| !previous.is_some_and(part) && !next.is_some_and(part);
    let hit = |rule, what: &str| Some((rule, what.to_owned()));
    match pattern.sort {
        Sort::Name if path.is_none_or(holds_configuration) && is_apart(is_name_byte) => {
            hit("name", "the source's name")
        }
        Sort::PlainName if path.is_none_or(names_machines) && is_apart(is_name_byte) => {
            hit("name", "the source's name")
        }
        Sort::Address if path.is_none_or(|path| !is_package_data(path)) => {
            is_whole_address(&pattern.text, before, after)
                .then(|| ("address", "the source's address".to_owned()))
        }
        Sort::Mac if is_apart(|byte| byte.is_ascii_hexdigit()) => {
            hit("mac", "the source's MAC address")
        }
        Sort::MachineId if is_apart(|byte| byte.is_ascii_hexdigit()) => {
            hit("machine-id", "the source's machine id")
        }
        Sort::HostKey => hit("host-key", "the source's public SSH host key"),
        Sort::PrivateKey if path.is_none_or(|path| !is_sample(path)) && holds_key(after) => {
            hit("private-key", "a private key")
        }
        Sort::WireGuard
            if is_wireguard(after) && previous.is_none_or(|b| b == b'\n' || b == b' ') =>
        {
            hit("private-key", "a WireGuard key")
        }
        Sort::Name
        | Sort::PlainName
        | Sort::Address
        | Sort::Mac
        | Sort::MachineId
        | Sort::PrivateKey
        | Sort::WireGuard => None,
    }
}

/// Programs hold the words that a key begins with; a key is base64 on the lines that follow.
fn holds_key(after: &[u8]) -> bool {
    let mut run = 0;
    for byte in after.iter().take(CONTEXT_LEN) {
        match byte {
            0 => return false,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'=' => run += 1,
            _ => run = 0,
        }
        if run >= 32 {
            return true;
        }
    }
    false
}

/// ` = ` and 44 characters of base64.
fn is_wireguard(after: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&after[..after.len().min(64)]);
    let Some(value) = text.trim_start().strip_prefix('=') else {
        return false;
    };
    let value = value.split_whitespace().next().unwrap_or_default();
    value.len() == 44 && value.ends_with('=')
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Whether an address is not part of a longer one, or of a version. A port may follow an IPv4 address.
fn is_whole_address(address: &[u8], before: &[u8], after: &[u8]) -> bool {
    if address.contains(&b':') {
        let is_part = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_hexdigit() || *b == b':');
        return !is_part(before.last()) && !is_part(after.first());
    }
    let begins = match before {
        [.., digit, b'.'] => !digit.is_ascii_digit(),
        [.., last] => !last.is_ascii_digit(),
        [] => true,
    };
    let ends = match after {
        [b'.', digit, ..] => !digit.is_ascii_digit(),
        [first, ..] => !first.is_ascii_digit(),
        [] => true,
    };
    begins && ends
}

/// Where names of machines get into: configuration, and what people and services write. What packages bring
/// is full of words that may be somebody's name.
fn holds_configuration(path: &Path) -> bool {
    if ["var/lib/dpkg", "var/lib/apt", "var/cache", "etc/ssl/certs"]
        .iter()
        .any(|dir| path.starts_with(dir))
    {
        return false;
    }
    ["etc", "root", "home", "srv", "opt", "var", "usr/local"]
        .iter()
        .any(|dir| path.starts_with(dir))
}

/// The files whose purpose is to hold a machine's name.
fn names_machines(path: &Path) -> bool {
    [
        "etc/hostname",
        "etc/hosts",
        "etc/mailname",
        "etc/machine-info",
        "etc/postfix/main.cf",
        "etc/exim4/update-exim4.conf.conf",
        "etc/network",
        "etc/netplan",
        "etc/systemd/network",
        "etc/salt/minion_id",
        "etc/resolv.conf",
    ]
    .iter()
    .any(|file| path.starts_with(file))
}

fn is_package_data(path: &Path) -> bool {
    (path.starts_with("usr") && !path.starts_with("usr/local"))
        || path.starts_with("var/lib/dpkg/info")
        || path.starts_with("var/lib/apt/lists")
}

/// Samples and tests that packages bring hold keys that everybody has.
fn is_sample(path: &Path) -> bool {
    if !path.starts_with("usr/share") && !path.starts_with("usr/lib") {
        return false;
    }
    path.starts_with("usr/share/doc")
        || path.iter().any(|part| {
            [
                "test",
                "tests",
                "testing",
                "testdata",
                "test-data",
                "fixtures",
                "example",
                "examples",
                "demo",
                "demos",
                "doc",
                "docs",
                "man",
            ]
            .iter()
            .any(|name| part == *name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEogIBAAKCAQEA6yCvplantedplantedplanted\n";

    fn rules(text: &[u8], path: &str, source: &Source) -> Vec<&'static str> {
        let patterns = patterns(source, &Identity::default());
        let matcher = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(patterns.iter().map(|pattern| &pattern.text))
            .expect("patterns");
        let hits = search(text, &matcher, &patterns, Some(Path::new(path))).expect("search");
        hits.into_iter().map(|(rule, _)| rule).collect()
    }

    #[test]
    fn a_key_is_found_wherever_a_chunk_ends() {
        let source = Source::default();
        for start in (CHUNK_LEN - 90..CHUNK_LEN + 5)
            .step_by(5)
            .chain([0, 3 * CHUNK_LEN - 1])
        {
            let mut text = vec![b'.'; start];
            text.extend_from_slice(KEY.as_bytes());
            assert_eq!(
                rules(&text, "srv/x", &source),
                ["private-key"],
                "at {start}"
            );
            text.extend(vec![b'.'; CHUNK_LEN]);
            assert_eq!(
                rules(&text, "srv/x", &source),
                ["private-key"],
                "at {start}, with more"
            );
        }
    }

    #[test]
    fn what_packages_bring_is_told_from_what_was_put_there() {
        let source = Source::default();
        let program = format!("\x7fELF....{KEY}");
        assert!(rules(program.as_bytes(), "usr/lib/libtls.so", &source).is_empty());
        assert_eq!(
            rules(program.as_bytes(), "usr/local/lib/x.so", &source),
            ["private-key"]
        );
        assert_eq!(
            rules(KEY.as_bytes(), "usr/lib/app/key.pem", &source),
            ["private-key"]
        );
        assert!(rules(KEY.as_bytes(), "usr/lib/python3/test/key.pem", &source).is_empty());
        assert_eq!(
            rules(KEY.as_bytes(), "home/test/key.pem", &source),
            ["private-key"]
        );
    }

    #[test]
    fn names_and_addresses_count_as_words_and_where_they_mean_a_machine() {
        let source = Source {
            names: vec!["mail".to_owned(), "web-1".to_owned()],
            addresses: ["10.0.3.7", "fd00::7"]
                .map(|text| text.parse().expect("address"))
                .to_vec(),
            macs: vec!["00:16:3e:0a:0b:0c".parse().expect("mac")],
        };
        for (text, path, expected) in [
            ("on WEB-1.", "etc/motd", &["name"][..]),
            ("on web-12 xweb-1 my-web-1", "etc/motd", &[]),
            ("on web-1", "usr/share/words", &[]),
            ("mail 25/tcp", "etc/services", &[]),
            ("mail", "etc/hostname", &["name"]),
            ("at 10.0.3.7:80", "etc/x", &["address"]),
            ("gone.10.0.3.7.", "etc/x", &["address"]),
            ("[fd00::7]:80", "etc/x", &["address"]),
            ("fd00::7:1 1fd00::7", "etc/x", &[]),
            ("10.0.3.77 110.0.3.7 1.10.0.3.7 10.0.3.7.1", "etc/x", &[]),
            ("00-16-3E-0A-0B-0C", "opt/x", &["mac"]),
            ("100:16:3e:0a:0b:0c", "opt/x", &[]),
        ] {
            assert_eq!(
                rules(text.as_bytes(), path, &source),
                expected,
                "{text} in {path}"
            );
        }
    }
}
