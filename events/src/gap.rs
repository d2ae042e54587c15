//! A gap: what stands in a segment where events were lost, once an operator decided to go on without them.
//!
//! It carries the chain over what is missing: the events behind it still name the hash that it gives. A gap is
//! written by a recovery alone, which also says so in `log.recovered`.

use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

use crate::header;
use crate::ids::{Hash, Seq};
use crate::record::header_hash;

/// The first bytes of every gap.
pub const MAGIC: [u8; 4] = *b"TBG1";
/// Magic, header length, first, last, hash.
pub const PREFIX_LEN: usize = 4 + 4 + 8 + 8 + 32;
/// The check.
pub const TRAILER_LEN: usize = 32;
/// The most bytes a gap may have.
pub const LEN_MAX: usize = PREFIX_LEN + header::LEN_MAX + TRAILER_LEN;

static CONTEXT: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("tallybook 2026-11 gap"));

/// Events that are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first.
    pub first: Seq,
    /// The last.
    pub last: Seq,
    /// The header hash of the last, by what stands behind it or by what remembered it.
    pub hash: Hash,
    /// The header's bytes, where one event alone is lost and that only by its payload; else empty.
    pub header: Vec<u8>,
}

impl Gap {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let len = u32::try_from(self.header.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(PREFIX_LEN + self.header.len() + TRAILER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&self.last.0.to_le_bytes());
        out.extend_from_slice(&self.hash.0);
        out.extend_from_slice(&self.header);
        let check = check(&out);
        out.extend_from_slice(&check);
        out
    }

    /// Reads the gap at the start of `bytes`, with its length; `None` where there is none that is whole and sound.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let head: &[u8; PREFIX_LEN] = bytes.first_chunk()?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (last, hash) = rest.split_first_chunk::<8>()?;
        let len = u32::from_le_bytes(*len) as usize;
        if *magic != MAGIC || len > header::LEN_MAX {
            return None;
        }
        let end = PREFIX_LEN + len;
        let header = bytes.get(PREFIX_LEN..end)?;
        let trailer = bytes.get(end..end + TRAILER_LEN)?;
        let gap = Gap {
            first: Seq(u64::from_le_bytes(*first)),
            last: Seq(u64::from_le_bytes(*last)),
            hash: Hash(hash.try_into().ok()?),
            header: header.to_vec(),
        };
        let is_checked = check(bytes.get(..end)?) == trailer;
        let is_sound = gap.first > Seq::NONE && gap.first <= gap.last && gap.last.0 < u64::MAX;
        let is_of_header =
            header.is_empty() || (gap.first == gap.last && header_hash(header) == gap.hash);
        (is_checked && is_sound && is_of_header).then_some((gap, end + TRAILER_LEN))
    }
}

fn check(bytes: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_from_context_key(&CONTEXT)
        .update(bytes)
        .finalize()
        .as_bytes()
}
