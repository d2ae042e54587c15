//! The first layout of the fence file, `TBF1`: the newest claim of each operation. The newest of all is what was seen.

use std::collections::BTreeMap;

use serde::Deserialize;
use tallybook_events::codec;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Epoch, LogId, OperationId, Seq};
use tallybook_events::step::Mark;

use super::Seen;

pub(super) const MAGIC: [u8; 4] = *b"TBF1";

#[derive(Deserialize)]
struct Claims {
    log: LogId,
    epoch: Epoch,
    claim_seq: Seq,
    claims: BTreeMap<OperationId, ClaimRef>,
}

/// What a body of that layout says was seen.
pub(super) fn seen(body: &[u8]) -> Option<Seen> {
    let claims: Claims = codec::decode(body).ok()?;
    let newest = claims.claims.values().max_by_key(|claim| claim.seq)?;
    let mark = Mark {
        epoch: claims.epoch,
        seq: newest.seq,
        hash: newest.hash,
    };
    (newest.seq == claims.claim_seq).then_some(Seen {
        log: claims.log,
        mark,
    })
}
