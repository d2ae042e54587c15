//! A record: header ‖ salt ‖ payload, framed for the journal, with the hashes that hold the log together.
//!
//! The chain covers the header's stored bytes only; the header commits to the payload with a salted keyed hash,
//! so that overwriting salt and payload (redaction) leaves the chain whole and the payload unguessable.

use crate::header::{self, Header};
use crate::ids::Hash;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"TBR1";
/// Magic, header length, payload length, check of these.
pub const PREFIX_LEN: usize = 16;
/// The salt of the commitment.
pub const SALT_LEN: usize = 32;
/// The header hash after the payload.
pub const TRAILER_LEN: usize = 32;
/// The most bytes a payload may have. What is larger is cut before it becomes an event.
pub const PAYLOAD_LEN_MAX: usize = 8 * 1024 * 1024;

const CONTEXT_HEADER: &str = "tallybook 2026-11 event header";
const CONTEXT_COMMITMENT: &str = "tallybook 2026-11 payload commitment";

/// The salt and the bytes of a payload after redaction are all zero; this is the salt.
pub const SALT_ERASED: [u8; SALT_LEN] = [0; SALT_LEN];

/// What can be said of a record's salt and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// They are the ones that the header commits to.
    Intact,
    /// They were overwritten with zeros, and events of this kind may be.
    Erased,
    /// They are others, or zeros where none may be.
    Changed,
}

/// The hash of a header's stored bytes: the link that the next event carries.
pub fn header_hash(header: &[u8]) -> Hash {
    blake3::Hasher::new_derive_key(CONTEXT_HEADER)
        .update(header)
        .finalize()
        .into()
}

/// The commitment to a payload under a salt.
pub fn commitment(salt: &[u8; SALT_LEN], payload: &[u8]) -> Hash {
    blake3::Hasher::new_derive_key(CONTEXT_COMMITMENT)
        .update(salt)
        .update(payload)
        .finalize()
        .into()
}

/// What is wrong with the bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the record does: a torn tail, or a cut file.
    #[error("the record ends after {have} bytes of {need}")]
    Short {
        /// How many bytes there are.
        have: usize,
        /// How many the record needs, as far as it can be told.
        need: usize,
    },
    /// The frame does not begin like one.
    #[error("the record's frame (magic, lengths, check) is damaged")]
    Prefix,
    /// The header's bytes do not have the hash that follows the payload.
    #[error("the header does not have the hash stored behind it")]
    HeaderHash,
    /// The header can't be read.
    #[error("the header can't be read")]
    Header(#[source] header::Error),
    /// The frame gives the payload another length than the header does.
    #[error("the frame gives the payload {frame} bytes, its header {header}")]
    Length {
        /// By the frame.
        frame: u32,
        /// By the header, which the chain covers.
        header: u32,
    },
    /// Salt and payload do not have the commitment that the header gives.
    #[error("the payload is not the one the header commits to")]
    Commitment,
}

/// One record, its parts as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The header, decoded.
    pub header: Header,
    /// The hash of the header's bytes.
    pub hash: Hash,
    /// The salt of the commitment.
    pub salt: [u8; SALT_LEN],
    /// The payload's bytes.
    pub payload: Vec<u8>,
    header_bytes: Vec<u8>,
}

impl Record {
    /// Seals a header over a payload. The header's `commitment` and `payload_len` are set here.
    ///
    /// # Errors
    /// When the header can't be encoded.
    pub fn seal(
        mut header: Header,
        salt: [u8; SALT_LEN],
        payload: Vec<u8>,
    ) -> Result<Self, header::Error> {
        let len = payload.len();
        let fits = u32::try_from(len).ok().filter(|_| len <= PAYLOAD_LEN_MAX);
        let Some(payload_len) = fits else {
            return Err(header::Error::TooLong {
                field: "payload",
                len,
            });
        };
        header.payload_len = payload_len;
        header.commitment = commitment(&salt, &payload);
        let header_bytes = header.encode()?;
        Ok(Record {
            hash: header_hash(&header_bytes),
            header,
            salt,
            payload,
            header_bytes,
        })
    }

    /// Holds salt and payload against the header.
    pub fn body(&self) -> Body {
        let zeros = self.salt == SALT_ERASED && self.payload.iter().all(|byte| *byte == 0);
        if zeros && self.header.erasable {
            Body::Erased
        } else if commitment(&self.salt, &self.payload) == self.header.commitment {
            Body::Intact
        } else {
            Body::Changed
        }
    }

    /// The length of the frame in bytes.
    pub fn frame_len(&self) -> usize {
        PREFIX_LEN + self.header_bytes.len() + SALT_LEN + self.payload.len() + TRAILER_LEN
    }

    /// Appends the frame to `out`.
    pub fn write_frame(&self, out: &mut Vec<u8>) {
        let header_len = u32::try_from(self.header_bytes.len());
        let Ok(header_len) = header_len else {
            unreachable!("seal and read_frame admit no header beyond its limit");
        };
        out.reserve(self.frame_len());
        out.extend_from_slice(&prefix(header_len, self.header.payload_len));
        out.extend_from_slice(&self.header_bytes);
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.payload);
        out.extend_from_slice(&self.hash.0);
    }

    /// Reads the frame at the start of `bytes`; returns the record and the frame's length.
    ///
    /// The payload's commitment is *not* checked here, because an erased payload is still a record: see
    /// [`Record::body`].
    ///
    /// # Errors
    /// When the bytes are not a whole, undamaged frame.
    pub fn read_frame(bytes: &[u8]) -> Result<(Self, usize), Error> {
        let (header_len, payload_len) = read_prefix(bytes)?;
        let need = PREFIX_LEN + header_len + SALT_LEN + payload_len + TRAILER_LEN;
        let Some(frame) = bytes.get(..need) else {
            return Err(Error::Short {
                have: bytes.len(),
                need,
            });
        };
        let (header_bytes, rest) = frame[PREFIX_LEN..].split_at(header_len);
        let (salt_bytes, rest) = rest.split_at(SALT_LEN);
        let (payload, trailer) = rest.split_at(payload_len);
        let hash = header_hash(header_bytes);
        if hash.0 != trailer {
            return Err(Error::HeaderHash);
        }
        let header = Header::decode(header_bytes).map_err(Error::Header)?;
        if header.payload_len as usize != payload_len {
            return Err(Error::Length {
                frame: u32::try_from(payload_len).unwrap_or(u32::MAX),
                header: header.payload_len,
            });
        }
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(salt_bytes);
        let record = Record {
            header,
            hash,
            salt,
            payload: payload.to_vec(),
            header_bytes: header_bytes.to_vec(),
        };
        Ok((record, need))
    }
}

/// The lengths of header and payload that a frame's first [`PREFIX_LEN`] bytes give.
///
/// # Errors
/// When there are fewer bytes, or they are not a frame's.
pub fn read_prefix(bytes: &[u8]) -> Result<(usize, usize), Error> {
    let Some(head) = bytes.first_chunk::<PREFIX_LEN>() else {
        return Err(Error::Short {
            have: bytes.len(),
            need: PREFIX_LEN,
        });
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (header_len, payload_len) = (word(4), word(8));
    if prefix(header_len, payload_len) != *head {
        return Err(Error::Prefix);
    }
    let (header_len, payload_len) = (header_len as usize, payload_len as usize);
    if header_len > header::LEN_MAX || payload_len > PAYLOAD_LEN_MAX {
        return Err(Error::Prefix);
    }
    Ok((header_len, payload_len))
}

fn prefix(header_len: u32, payload_len: u32) -> [u8; PREFIX_LEN] {
    let mut bytes = [0; PREFIX_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&header_len.to_le_bytes());
    bytes[8..12].copy_from_slice(&payload_len.to_le_bytes());
    let check = blake3::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&check.as_bytes()[..4]);
    bytes
}
