//! The fence: the newest claims that a host was shown, kept so that an older line of history can't act any more.
//!
//! `receipts/LOG/fence` is magic `TBF1`, the BLAKE3 hash of the rest, and the rest: a named MessagePack map. It is
//! replaced whole and synced before the batch that showed the newer claim acts. A fence file that can't be read
//! refuses everything: without it nobody could say what was seen.
//!
//! For now only the epoch decides. The claim of each operation is stored as well, for a later rule that
//! refuses an older claim of the same operation.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Epoch, LogId, OperationId, Seq};
use tallybook_events::step::Fence;

use crate::durable;
use crate::layout::Layout;
use crate::lock;

const MAGIC: [u8; 4] = *b"TBF1";
const HASH_LEN: usize = 32;
/// How many operations' claims are kept; those with the lowest positions go first.
const CLAIMS_MAX: usize = 512;
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A fence that refuses, or that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A newer line of history was seen.
    #[error(
        "this host has seen epoch {seen} of log {log}; this controller acts under epoch {shown}"
    )]
    Older {
        /// The log.
        log: LogId,
        /// The epoch that was seen.
        seen: Epoch,
        /// The epoch that was shown.
        shown: Epoch,
    },
    /// The file is not one.
    #[error("the fence file {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("can't read the fence file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file could not be kept.
    #[error("can't keep the fence file")]
    Keep(#[from] durable::Error),
    /// What it holds has no encoding.
    #[error("the fence can't be encoded")]
    Codec(#[from] codec::Error),
    /// Another agent has it.
    #[error("can't lock the fence file")]
    Lock(#[from] lock::Error),
}

/// What was seen of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The log.
    pub log: LogId,
    /// Its highest epoch.
    pub epoch: Epoch,
    /// The highest position of a claim's event in that epoch.
    pub claim_seq: Seq,
    /// The newest claim of each operation.
    pub claims: BTreeMap<OperationId, ClaimRef>,
}

/// Where the fence of a log is.
pub fn path(layout: &Layout, log: LogId) -> PathBuf {
    layout.receipts(log).join("fence")
}

/// Refuses a fence of an older epoch; makes durable what is newer than what was seen.
///
/// # Errors
/// When the fence is refused, or the file can't be read or kept.
pub fn pass(layout: &Layout, fence: &Fence, operation: OperationId) -> Result<(), Error> {
    let _lock = lock::resource(layout, "fence", LOCK_WAIT)?;
    let path = path(layout, fence.log);
    let before = read(&path, fence.log)?;
    if let Some(seen) = &before
        && fence.epoch < seen.epoch
    {
        return Err(Error::Older {
            log: fence.log,
            seen: seen.epoch,
            shown: fence.epoch,
        });
    }
    let after = extended(before.clone(), fence, operation);
    if before.as_ref() == Some(&after) {
        return Ok(());
    }
    let body = codec::encode(&after)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    bytes.extend_from_slice(&body);
    durable::create_dirs(&layout.receipts(fence.log))?;
    durable::write(&path, 0o600, &bytes)?;
    Ok(())
}

/// What was seen of a log; `None` where nothing was.
///
/// # Errors
/// When the file is there and can't be read.
pub fn read(path: &Path, log: LogId) -> Result<Option<Seen>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let whole = || {
        let (head, body) = bytes.split_at_checked(MAGIC.len() + HASH_LEN)?;
        let is_whole =
            head[..MAGIC.len()] == MAGIC && head[MAGIC.len()..] == *blake3::hash(body).as_bytes();
        let seen: Seen = is_whole.then(|| codec::decode(body).ok())??;
        (seen.log == log).then_some(seen)
    };
    whole().map(Some).ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
    })
}

fn extended(before: Option<Seen>, fence: &Fence, operation: OperationId) -> Seen {
    let mut seen = before.unwrap_or(Seen {
        log: fence.log,
        epoch: fence.epoch,
        claim_seq: fence.claim.seq,
        claims: BTreeMap::new(),
    });
    if fence.epoch > seen.epoch {
        // Positions of an older line of history mean nothing in the new one.
        seen.epoch = fence.epoch;
        seen.claim_seq = fence.claim.seq;
        seen.claims.clear();
    }
    seen.claim_seq = seen.claim_seq.max(fence.claim.seq);
    let claim = seen.claims.entry(operation).or_insert(fence.claim);
    if fence.claim.seq > claim.seq {
        *claim = fence.claim;
    }
    while seen.claims.len() > CLAIMS_MAX {
        let oldest = seen.claims.iter().min_by_key(|(_, claim)| claim.seq);
        let Some(oldest) = oldest.map(|(operation, _)| *operation) else {
            break;
        };
        seen.claims.remove(&oldest);
    }
    seen
}

#[cfg(test)]
mod tests {
    use tallybook_events::ids::Hash;

    use super::*;

    fn fence(epoch: u32, seq: u64) -> Fence {
        Fence {
            log: LogId::from_bytes([1; 16]),
            epoch: Epoch(epoch),
            claim: ClaimRef {
                seq: Seq(seq),
                hash: Hash([seq as u8; 32]),
            },
        }
    }

    fn operation(number: u64) -> OperationId {
        OperationId::new(number, [0; 10])
    }

    #[test]
    fn the_highest_of_each_is_kept_and_an_older_epoch_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let look = || {
            let log = fence(0, 0).log;
            read(&path(&layout, log), log).unwrap()
        };
        assert_eq!(look(), None);
        pass(&layout, &fence(2, 20), operation(1)).unwrap();
        pass(&layout, &fence(2, 10), operation(2)).unwrap();
        pass(&layout, &fence(2, 15), operation(1)).unwrap();
        let seen = look().unwrap();
        assert_eq!((seen.epoch, seen.claim_seq), (Epoch(2), Seq(20)));
        assert_eq!(seen.claims[&operation(1)].seq, Seq(20));
        assert_eq!(seen.claims[&operation(2)].seq, Seq(10));
        let refused = pass(&layout, &fence(1, 99), operation(3)).unwrap_err();
        assert!(matches!(refused, Error::Older { .. }), "{refused}");
        assert_eq!(look().unwrap(), seen, "a refusal changes nothing");
        pass(&layout, &fence(3, 5), operation(3)).unwrap();
        let seen = look().unwrap();
        assert_eq!((seen.epoch, seen.claim_seq), (Epoch(3), Seq(5)));
        assert_eq!(seen.claims.len(), 1);
    }

    #[test]
    fn any_damage_refuses() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let fence = fence(1, 1);
        pass(&layout, &fence, operation(1)).unwrap();
        let path = path(&layout, fence.log);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let refused = pass(&layout, &fence, operation(1));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            let refused = pass(&layout, &fence, operation(1));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "cut at {at}");
        }
    }

    #[test]
    fn claims_are_bounded_and_the_newest_stay() {
        let mut seen = None;
        for number in 0..CLAIMS_MAX as u64 + 3 {
            seen = Some(extended(seen, &fence(1, number), operation(number)));
        }
        let seen = seen.unwrap();
        assert_eq!(seen.claims.len(), CLAIMS_MAX);
        assert!(!seen.claims.contains_key(&operation(2)));
        assert!(seen.claims.contains_key(&operation(3)));
    }
}
