//! The head of a journal segment file: which log it belongs to and where in the log it begins.

use crate::ids::{Epoch, Hash, LogId, Seq};

/// The first bytes of every segment.
pub const MAGIC: [u8; 8] = *b"TALLYSEG";
/// The layout that this module writes.
pub const FORMAT: u16 = 1;
/// The length of a segment's head in bytes.
pub const LEN: usize = 8 + 2 + 16 + 4 + 8 + 32 + 32;

const CONTEXT: &str = "tallybook 2026-11 segment head";

/// Bytes that are not a segment's head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file ends inside its head.
    #[error("the segment's head has {have} bytes of {LEN}")]
    Short {
        /// How many bytes there are.
        have: usize,
    },
    /// Magic or check do not hold.
    #[error("the segment's head is damaged")]
    Damaged,
    /// A layout that this program does not know.
    #[error("the segment has format {0}; this program knows format {FORMAT}")]
    Format(u16),
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// The log.
    pub log: LogId,
    /// The epoch of its first event.
    pub epoch: Epoch,
    /// The position of its first event.
    pub first: Seq,
    /// The header hash of the event before it; zero for the first segment.
    pub previous: Hash,
}

impl SegmentHead {
    /// The bytes to store.
    pub fn encode(&self) -> [u8; LEN] {
        let mut out = Vec::with_capacity(LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(self.log.as_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&self.previous.0);
        let check = check(&out);
        out.extend_from_slice(&check);
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Reads a head from the start of a segment.
    ///
    /// # Errors
    /// When the bytes are not a whole, undamaged head of a known format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let Some(head) = bytes.first_chunk::<LEN>() else {
            return Err(Error::Short { have: bytes.len() });
        };
        let body = &head[..LEN - 32];
        if body[..8] != MAGIC {
            return Err(Error::Damaged);
        }
        let stored = &head[LEN - 32..];
        let format = u16::from_le_bytes([body[8], body[9]]);
        if format > FORMAT && !is_renumbered(body, stored) {
            return Err(Error::Format(format));
        }
        if format != FORMAT || stored != check(body) {
            return Err(Error::Damaged);
        }
        let mut log = [0; 16];
        log.copy_from_slice(&body[10..26]);
        let mut epoch = [0; 4];
        epoch.copy_from_slice(&body[26..30]);
        let mut first = [0; 8];
        first.copy_from_slice(&body[30..38]);
        let mut previous = [0; 32];
        previous.copy_from_slice(&body[38..70]);
        Ok(SegmentHead {
            log: LogId::from_bytes(log),
            epoch: Epoch(u32::from_le_bytes(epoch)),
            first: Seq(u64::from_le_bytes(first)),
            previous: Hash(previous),
        })
    }
}

/// Whether it is a head of the layout at hand but for its number. Where a later layout has its check is not known here, so its
/// number is believed unless this shows that it was altered.
fn is_renumbered(body: &[u8], stored: &[u8]) -> bool {
    let mut renumbered = body.to_vec();
    renumbered[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    stored == check(&renumbered)
}

fn check(body: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_derive_key(CONTEXT)
        .update(body)
        .finalize()
        .as_bytes()
}
