//! A record: header ‖ salt ‖ payload, framed for the journal, with the hashes that hold the log together.
//!
//! The chain covers the header's stored bytes only; the header commits to the payload with a salted keyed hash,
//! so that overwriting salt and payload (redaction) leaves the chain whole and the payload unguessable.

use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

use crate::header::{self, ActorSeen, Header, HeaderView};
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

/// The keys that BLAKE3's `derive_key` mode derives from its context strings: once, not for each event.
static CONTEXT_HEADER: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 event header"));
static CONTEXT_COMMITMENT: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 payload commitment"));

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
    blake3::Hasher::new_from_context_key(&CONTEXT_HEADER)
        .update(header)
        .finalize()
        .into()
}

/// The commitment to a payload under a salt.
pub fn commitment(salt: &[u8; SALT_LEN], payload: &[u8]) -> Hash {
    blake3::Hasher::new_from_context_key(&CONTEXT_COMMITMENT)
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

/// A payload, and what a header says to commit to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    salt: [u8; SALT_LEN],
    payload: Vec<u8>,
    commitment: Hash,
}

impl Committed {
    /// Commits to a payload with this salt.
    pub fn to(salt: [u8; SALT_LEN], payload: Vec<u8>) -> Self {
        Committed {
            commitment: commitment(&salt, &payload),
            salt,
            payload,
        }
    }
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
        header: Header,
        salt: [u8; SALT_LEN],
        payload: Vec<u8>,
    ) -> Result<Self, header::Error> {
        Record::seal_over(header, Committed::to(salt, payload))
    }

    /// The same, over a payload that was committed to before.
    ///
    /// # Errors
    /// When the header can't be encoded.
    pub fn seal_over(mut header: Header, payload: Committed) -> Result<Self, header::Error> {
        let Committed {
            salt,
            payload,
            commitment,
        } = payload;
        let len = payload.len();
        let fits = u32::try_from(len).ok().filter(|_| len <= PAYLOAD_LEN_MAX);
        let Some(payload_len) = fits else {
            return Err(header::Error::TooLong {
                field: "payload",
                len,
            });
        };
        header.payload_len = payload_len;
        header.commitment = commitment;
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
        body(
            &self.salt,
            &self.payload,
            self.header.erasable,
            &self.header.commitment,
        )
    }

    /// Overwrites salt and payload with zeros. What is left is a record of its kind only where that is erasable.
    pub fn erase(&mut self) {
        self.salt = SALT_ERASED;
        self.payload.fill(0);
    }

    /// The header as it is stored: what the hash is of.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// The length of the frame in bytes.
    pub fn frame_len(&self) -> usize {
        frame_len(self.header_bytes.len(), self.payload.len())
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
        let frame = Frame::read(bytes)?;
        let record = frame.to_record(&frame.header()?)?;
        Ok((record, frame.len()))
    }
}

/// A frame over its stored bytes: lengths and header hash hold.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The whole frame.
    pub bytes: &'a [u8],
    /// The header's bytes.
    pub header_bytes: &'a [u8],
    /// Their hash.
    pub hash: Hash,
    /// The salt of the commitment.
    pub salt: &'a [u8; SALT_LEN],
    /// The payload's bytes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes`. Its header is not decoded yet.
    ///
    /// # Errors
    /// When the bytes are not a whole frame with a header that has the hash stored behind it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header_len, payload_len) = read_prefix(bytes)?;
        let need = frame_len(header_len, payload_len);
        let short = Error::Short {
            have: bytes.len(),
            need,
        };
        let bytes = bytes.get(..need).ok_or_else(|| short.clone())?;
        let (header_bytes, rest) = bytes[PREFIX_LEN..].split_at(header_len);
        let (salt, rest) = rest.split_first_chunk().ok_or(short)?;
        let (payload, trailer) = rest.split_at(payload_len);
        let hash = header_hash(header_bytes);
        if hash.0 != trailer {
            return Err(Error::HeaderHash);
        }
        Ok(Frame {
            bytes,
            header_bytes,
            hash,
            salt,
            payload,
        })
    }

    /// The header, in place.
    ///
    /// # Errors
    /// When it is none, or gives the payload another length than the frame does.
    pub fn header(&self) -> Result<HeaderView<'a>, Error> {
        self.header_beside(&mut ActorSeen::default())
    }

    /// The header, in place, where the actor of another one was read before.
    ///
    /// # Errors
    /// As [`Frame::header`].
    pub fn header_beside(&self, seen: &mut ActorSeen<'a>) -> Result<HeaderView<'a>, Error> {
        let header = HeaderView::decode_beside(self.header_bytes, seen).map_err(Error::Header)?;
        if header.payload_len as usize != self.payload.len() {
            return Err(Error::Length {
                frame: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
                header: header.payload_len,
            });
        }
        Ok(header)
    }

    /// Holds salt and payload against the frame's header.
    pub fn body(&self, header: &HeaderView<'_>) -> Body {
        body(self.salt, self.payload, header.erasable, &header.commitment)
    }

    /// The record with bytes of its own.
    ///
    /// # Errors
    /// Never for the header that was decoded from this frame.
    pub fn to_record(&self, header: &HeaderView<'_>) -> Result<Record, Error> {
        Ok(Record {
            header: header.to_header().map_err(Error::Header)?,
            hash: self.hash,
            salt: *self.salt,
            payload: self.payload.to_vec(),
            header_bytes: self.header_bytes.to_vec(),
        })
    }

    /// The length of the frame in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }
}

fn body(salt: &[u8; SALT_LEN], payload: &[u8], erasable: bool, committed: &Hash) -> Body {
    let is_zero = || *salt == SALT_ERASED && payload.iter().all(|byte| *byte == 0);
    if erasable && is_zero() {
        Body::Erased
    } else if commitment(salt, payload) == *committed {
        Body::Intact
    } else {
        Body::Changed
    }
}

/// The length of a frame with a header and a payload of these lengths.
pub const fn frame_len(header: usize, payload: usize) -> usize {
    PREFIX_LEN + header + SALT_LEN + payload + TRAILER_LEN
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
