//! One line of a known_hosts file: what it says and whether it speaks of a given name. Pure.
//!
//! Must never turn a line it can't read into "nothing": such a line is returned as a [`Problem`] that still
//! says whether it might concern the name asked for, so that the caller can refuse instead of accepting.

use data_encoding::{BASE64, BASE64_NOPAD};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What a line's key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A host's own key.
    Host,
    /// `@cert-authority`: this key signs host certificates.
    Authority,
    /// `@revoked`: this key must never be accepted.
    Revoked,
}

/// A public key as recorded or as offered: its type and its wire bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ssh-rsa`, …
    pub kind: String,
    /// The key in SSH wire form.
    pub blob: Vec<u8>,
}

impl Key {
    /// Reads the two fields `TYPE BASE64`.
    ///
    /// # Errors
    /// A short reason when the text is not base64, or the bytes name another type.
    pub fn parse(kind: &str, base64: &str) -> Result<Self, String> {
        let blob = BASE64
            .decode(base64.as_bytes())
            .or_else(|_| BASE64_NOPAD.decode(base64.as_bytes()))
            .map_err(|source| format!("the {kind} key is not base64: {source}"))?;
        let named = blob_kind(&blob).ok_or("the key's bytes are cut short")?;
        if named != kind.as_bytes() {
            let named = String::from_utf8_lossy(named);
            return Err(format!("the line says {kind}, the key itself says {named}"));
        }
        Ok(Self {
            kind: kind.to_owned(),
            blob,
        })
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.blob);
        format!("SHA256:{}", BASE64_NOPAD.encode(&digest))
    }

    /// The key's bytes in base64, as a known_hosts line holds them.
    pub fn base64(&self) -> String {
        BASE64.encode(&self.blob)
    }
}

/// The type a key's wire bytes begin with.
fn blob_kind(blob: &[u8]) -> Option<&[u8]> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if rest.len() <= length {
        return None;
    }
    rest.get(..length)
}

/// A line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the key is good for.
    pub marker: Marker,
    /// Whom it is about.
    hosts: Hosts,
    /// The key.
    pub key: Key,
}

impl Entry {
    /// Whether the line speaks of this name (lower case; `[name]:port` when the port is not 22).
    pub fn is_about(&self, lookup: &str) -> bool {
        self.hosts.matches(lookup)
    }
}

/// A line that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Why.
    pub why: String,
    /// Whom it is about, where that much was readable.
    hosts: Option<Hosts>,
}

impl Problem {
    fn anyone(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            hosts: None,
        }
    }

    /// Whether the line might speak of this name; when in doubt, yes.
    pub fn may_be_about(&self, lookup: &str) -> bool {
        self.hosts
            .as_ref()
            .is_none_or(|hosts| hosts.matches(lookup))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Patterns(Vec<Pattern>),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    glob: String,
}

impl Hosts {
    fn parse(field: &str) -> Result<Self, String> {
        if let Some(hashed) = field.strip_prefix('|') {
            return Self::parse_hashed(hashed);
        }
        let mut patterns = Vec::new();
        for part in field.split(',') {
            let (negated, glob) = match part.strip_prefix('!') {
                Some(glob) => (true, glob),
                None => (false, part),
            };
            if glob.is_empty() {
                return Err(format!("the host list {field:?} has an empty entry"));
            }
            if glob.starts_with('|') {
                return Err("a hashed name can't stand in a list".to_owned());
            }
            patterns.push(Pattern {
                negated,
                glob: glob.to_ascii_lowercase(),
            });
        }
        Ok(Self::Patterns(patterns))
    }

    fn parse_hashed(rest: &str) -> Result<Self, String> {
        let mut parts = rest.split('|');
        let (version, salt, hash) = (parts.next(), parts.next(), parts.next());
        let (Some("1"), Some(salt), Some(hash), None) = (version, salt, hash, parts.next()) else {
            return Err("a hashed name must read |1|SALT|HASH".to_owned());
        };
        let decode = |what: &str, text: &str| {
            BASE64
                .decode(text.as_bytes())
                .map_err(|source| format!("the {what} of the hashed name is not base64: {source}"))
        };
        let (salt, hash) = (decode("salt", salt)?, decode("hash", hash)?);
        if hash.len() != 20 {
            return Err(format!("the hashed name has {} bytes, not 20", hash.len()));
        }
        Ok(Self::Hashed { salt, hash })
    }

    fn matches(&self, lookup: &str) -> bool {
        match self {
            Self::Patterns(patterns) => {
                let mut matched = false;
                for pattern in patterns {
                    if glob_matches(pattern.glob.as_bytes(), lookup.as_bytes()) {
                        if pattern.negated {
                            return false;
                        }
                        matched = true;
                    }
                }
                matched
            }
            Self::Hashed { salt, hash } => Hmac::<Sha1>::new_from_slice(salt).is_ok_and(|mac| {
                mac.chain_update(lookup.as_bytes())
                    .verify_slice(hash)
                    .is_ok()
            }),
        }
    }
}

/// `*` is any run of bytes, `?` any one byte; linear in time, without recursion.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == b'?' || Some(&c) == text.get(t) => {
                g += 1;
                t += 1;
            }
            Some(_) | None => match star {
                Some((star_g, star_t)) => {
                    star = Some((star_g, star_t + 1));
                    g = star_g + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    glob.get(g..)
        .is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}

/// Reads one line; `Ok(None)` for a blank line or a comment.
///
/// # Errors
/// A [`Problem`] when the line is neither.
pub(super) fn parse(line: &str) -> Result<Option<Entry>, Problem> {
    let line = line.trim_matches([' ', '\t', '\r', '\n']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut fields = line.split([' ', '\t']).filter(|field| !field.is_empty());
    let mut first = fields.next().unwrap_or_default();
    let mut marker = Marker::Host;
    if first.starts_with('@') {
        marker = match first {
            "@cert-authority" => Marker::Authority,
            "@revoked" => Marker::Revoked,
            unknown => return Err(Problem::anyone(format!("unknown marker {unknown:?}"))),
        };
        first = fields
            .next()
            .ok_or_else(|| Problem::anyone("nothing follows the marker"))?;
    }
    let hosts = Hosts::parse(first).map_err(Problem::anyone)?;
    let about = |why: String| Problem {
        why,
        hosts: Some(hosts.clone()),
    };
    let kind = fields
        .next()
        .ok_or_else(|| about("no key follows the name".to_owned()))?;
    let base64 = fields
        .next()
        .ok_or_else(|| about(format!("no key follows the key type {kind:?}")))?;
    let key = Key::parse(kind, base64).map_err(about)?;
    Ok(Some(Entry { marker, hosts, key }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgQeGVLQ3GTxQ8xLJ3hTLTXJ8F5uEqfCIcx3TxKxk5Z";

    fn entry(line: &str) -> Entry {
        parse(line).unwrap().unwrap()
    }

    fn about(hosts: &str, lookup: &str) -> bool {
        entry(&format!("{hosts} {KEY}")).is_about(lookup)
    }

    #[test]
    fn names_match_whole_and_without_case() {
        assert!(about("cn1", "cn1"));
        assert!(about("CN1.Example", "cn1.example"));
        assert!(!about("cn1", "cn10"));
        assert!(!about("cn1", "xcn1"));
        assert!(!about("cn1", "[cn1]:2222"));
        assert!(about("[cn1]:2222", "[cn1]:2222"));
        assert!(!about("[cn1]:2222", "cn1"));
        assert!(about("a,cn1,b", "cn1"));
    }

    #[test]
    fn wildcards_and_negation() {
        assert!(about("*.example.org", "cn1.example.org"));
        assert!(!about("*.example.org", "example.org"));
        assert!(about("cn?", "cn1"));
        assert!(!about("cn?", "cn"));
        assert!(!about("cn?", "cn12"));
        assert!(about("*", "anything"));
        assert!(about("[*]:22*", "[cn1]:2222"));
        assert!(!about("*.example.org,!cn1.example.org", "cn1.example.org"));
        assert!(!about("!cn1.example.org,*.example.org", "cn1.example.org"));
        assert!(about("*.example.org,!cn1.example.org", "cn2.example.org"));
        assert!(!about("!cn1", "cn2"), "negation alone accepts nobody");
        assert!(about("a*b*c", "axxbxbyc"));
        assert!(!about("a*b*c", "axxbxby"));
    }

    #[test]
    fn a_hashed_name_matches_only_itself() {
        let salt = b"0123456789abcdefghij";
        let mac = Hmac::<Sha1>::new_from_slice(salt)
            .unwrap()
            .chain_update(b"cn1.example.org")
            .finalize()
            .into_bytes();
        let hosts = format!("|1|{}|{}", BASE64.encode(salt), BASE64.encode(&mac));
        assert!(about(&hosts, "cn1.example.org"));
        assert!(!about(&hosts, "cn2.example.org"));
        assert!(!about(&hosts, "[cn1.example.org]:2222"));
    }

    #[test]
    fn markers_comments_and_blank_lines() {
        assert_eq!(parse("").unwrap(), None);
        assert_eq!(parse("  \t\r\n").unwrap(), None);
        assert_eq!(parse("# cn1 ssh-ed25519 AAAA").unwrap(), None);
        assert_eq!(entry(&format!("cn1 {KEY} a comment")).marker, Marker::Host);
        assert_eq!(
            entry(&format!("@cert-authority *.x {KEY}")).marker,
            Marker::Authority
        );
        assert_eq!(
            entry(&format!("@revoked\t*\t{KEY}")).marker,
            Marker::Revoked
        );
    }

    #[test]
    fn a_bad_line_says_why_and_whom_it_may_concern() {
        let problem = |line: &str| parse(line).unwrap_err();
        assert!(problem("@rewoked cn1 x y").may_be_about("anyone"));
        assert!(problem("@revoked").may_be_about("anyone"));
        assert!(problem("|1|???|x ssh-ed25519 AAAA").may_be_about("anyone"));
        assert!(problem("|2|AAAA|AAAA ssh-ed25519 AAAA").may_be_about("anyone"));
        assert!(problem(&format!("a,,b {KEY}")).may_be_about("anyone"));
        for line in [
            "cn1",
            "cn1 ssh-ed25519",
            "cn1 ssh-ed25519 !!",
            "cn1 ssh-rsa AAAA",
        ] {
            assert!(problem(line).may_be_about("cn1"), "{line}");
            assert!(!problem(line).may_be_about("cn2"), "{line}");
        }
        let lying = KEY.replace("ssh-ed25519 ", "ssh-rsa ");
        let why = problem(&format!("cn1 {lying}")).why;
        assert!(why.contains("the key itself says ssh-ed25519"), "{why}");
    }
}
