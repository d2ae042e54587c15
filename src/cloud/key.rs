//! Public SSH keys, as an inventory lists them; and how a private key is told apart.
//!
//! A private key is never taken, quoted or kept.

use std::fmt;

use serde::{Serialize, Serializer};

/// Key types taken, as `ssh-keygen -l` and sshd name them (RFC 4253, RFC 5656, RFC 8709, OpenSSH PROTOCOL.u2f).
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The most bytes of one key's line: a 16384-bit RSA key has 2.8 KB.
const LINE_BYTES_MAX: usize = 8192;

/// Why a text is not a public key. No variant repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than one line, or a control character: it could add a line to an `authorized_keys` file.
    #[error("a public key is one line without control characters")]
    Lines,
    /// Longer than any key.
    #[error("a public key has at most {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The line does not open with a key type.
    #[error("a public key starts with its type, such as ssh-ed25519")]
    Type,
    /// The second word is not base64, or names another type inside.
    #[error("the key after {0} is damaged or cut short")]
    Blob(&'static str),
}

/// A public SSH key: its type, its base64 and its comment, on one line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(String);

impl PublicKey {
    /// Checks and takes a line of an `id_*.pub` file.
    ///
    /// # Errors
    /// When it has several lines, opens with something other than a key type, or its base64 does not hold
    /// that type.
    pub fn new(text: &str) -> Result<Self, Error> {
        let line = text.trim();
        if line.chars().any(char::is_control) {
            return Err(Error::Lines);
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let kind = TYPES.into_iter().find(|kind| *kind == first);
        let kind = kind.ok_or(Error::Type)?;
        let blob = words.next().and_then(decode_base64);
        let blob = blob.ok_or(Error::Blob(kind))?;
        if !is_blob_of(kind, &blob) {
            return Err(Error::Blob(kind));
        }
        Ok(Self(line.to_owned()))
    }

    /// The line, for an `authorized_keys` file.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Whether a text holds a private key: PEM of any kind, OpenPGP's, PuTTY's or age's.
pub fn looks_private(text: &str) -> bool {
    const MARKS: [&str; 5] = [
        "PRIVATE KEY-----",
        "PRIVATE KEY BLOCK-----",
        "PuTTY-User-Key-File-",
        "AGE-SECRET-KEY-1",
        // OpenSSH's own format without its PEM lines: base64 of "openssh-key-" (PROTOCOL.key).
        "b3BlbnNzaC1rZXkt",
    ];
    MARKS.into_iter().any(|mark| text.contains(mark))
}

/// Whether the blob is made of length-prefixed fields that fill it exactly, the first being the type (RFC 4251, 5).
fn is_blob_of(kind: &str, blob: &[u8]) -> bool {
    let mut rest = blob;
    let mut fields = 0_usize;
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let Some((field, after)) = after.split_at_checked(len) else {
            return false;
        };
        if fields == 0 && field != kind.as_bytes() {
            return false;
        }
        fields += 1;
        rest = after;
    }
    rest.is_empty() && fields >= 2
}

/// Decodes padded base64 (RFC 4648, 4).
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in body.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}
