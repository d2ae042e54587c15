//! The head of an archived segment: which events are in it, and what the segment was.
//!
//! Behind it is the segment's whole file, compressed.

use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

use crate::event::SeqRange;
use crate::ids::{Hash, LogId, Seq};

/// The first bytes of every archived segment.
pub const MAGIC: [u8; 8] = *b"TALLYARC";
/// The layout that this module writes.
pub const FORMAT: u16 = 1;
/// The length of the head in bytes.
pub const LEN: usize = 8 + 2 + 16 + 8 + 8 + 32 + 8 + 32 + 8 + 32 + 32;

const BODY_LEN: usize = LEN - 32;

static CONTEXT: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 archive head"));
static CONTEXT_PACKED: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 packed segment"));
static CONTEXT_CONTENT: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 archived segment"));

/// Bytes that are not the head of an archived segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file ends inside its head.
    #[error("the archived segment's head has {have} bytes of {LEN}")]
    Short {
        /// How many bytes there are.
        have: usize,
    },
    /// Magic or check do not hold.
    #[error("the archived segment's head is damaged")]
    Damaged,
    /// A layout that this program does not know.
    #[error("the archived segment has format {0}; this program knows format {FORMAT}")]
    Format(u16),
}

/// The head of an archived segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveHead {
    /// The log.
    pub log: LogId,
    /// The events in it.
    pub events: SeqRange,
    /// The header hash of the last of them.
    pub hash: Hash,
    /// The segment's length in bytes.
    pub len: u64,
    /// What its bytes hash to ([`content_hash`]).
    pub content: Hash,
    /// How many bytes are behind this head: the segment, compressed.
    pub packed_len: u64,
    /// What these hash to ([`packed_hash`]). Bytes of a compressed stream can change and still unpack to the same.
    pub packed: Hash,
}

/// What the bytes of a segment hash to.
pub fn content_hash(segment: &[u8]) -> Hash {
    blake3::Hasher::new_from_context_key(&CONTEXT_CONTENT)
        .update(segment)
        .finalize()
        .into()
}

/// What the bytes of a compressed segment hash to.
pub fn packed_hash(packed: &[u8]) -> Hash {
    blake3::Hasher::new_from_context_key(&CONTEXT_PACKED)
        .update(packed)
        .finalize()
        .into()
}

impl ArchiveHead {
    /// The length of the whole file.
    pub const fn stored_len(&self) -> u64 {
        LEN as u64 + self.packed_len
    }

    /// The bytes to store.
    pub fn encode(&self) -> [u8; LEN] {
        let mut out = Vec::with_capacity(LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(self.log.as_bytes());
        out.extend_from_slice(&self.events.first.0.to_le_bytes());
        out.extend_from_slice(&self.events.last.0.to_le_bytes());
        out.extend_from_slice(&self.hash.0);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.content.0);
        out.extend_from_slice(&self.packed_len.to_le_bytes());
        out.extend_from_slice(&self.packed.0);
        let check = check(&out);
        out.extend_from_slice(&check);
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Reads a head from the start of an archived segment.
    ///
    /// # Errors
    /// When the bytes are not a whole, undamaged head of a known format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let Some(head) = bytes.first_chunk::<LEN>() else {
            return Err(Error::Short { have: bytes.len() });
        };
        let body = &head[..BODY_LEN];
        if body[..8] != MAGIC {
            return Err(Error::Damaged);
        }
        let stored = &head[BODY_LEN..];
        let format = u16::from_le_bytes([body[8], body[9]]);
        if format > FORMAT && !is_renumbered(body, stored) {
            return Err(Error::Format(format));
        }
        if format != FORMAT || stored != check(body) {
            return Err(Error::Damaged);
        }
        let mut rest = &body[10..];
        Ok(ArchiveHead {
            log: LogId::from_bytes(take(&mut rest)?),
            events: SeqRange {
                first: Seq(u64::from_le_bytes(take(&mut rest)?)),
                last: Seq(u64::from_le_bytes(take(&mut rest)?)),
            },
            hash: Hash(take(&mut rest)?),
            len: u64::from_le_bytes(take(&mut rest)?),
            content: Hash(take(&mut rest)?),
            packed_len: u64::from_le_bytes(take(&mut rest)?),
            packed: Hash(take(&mut rest)?),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Error> {
    let (taken, behind) = rest.split_first_chunk().ok_or(Error::Damaged)?;
    *rest = behind;
    Ok(*taken)
}

/// Whether it is a head of the layout at hand but for its number (as for the head of a segment).
fn is_renumbered(body: &[u8], stored: &[u8]) -> bool {
    let mut renumbered = body.to_vec();
    renumbered[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    stored == check(&renumbered)
}

fn check(body: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_from_context_key(&CONTEXT)
        .update(body)
        .finalize()
        .as_bytes()
}
