//! Leaves out of a receipts journal what nobody will ask for any more: the receipts of operations that are over.
//!
//! The journal is written anew beside its place and renamed into it, and stays the same journal: it keeps its identity,
//! and all that it has of other operations, byte for byte. One that is damaged is left as it is.
//!
//! What is left out must not be begun again when it still comes: the host's fence sees to that. Whoever asks for it shows
//! an event behind the last one of each of these operations, so a batch of one of them shows an older event.

use std::collections::BTreeSet;

use tallybook_events::ids::OperationId;

use super::scan::{Tail, frames};
use super::{Error, Journal, encode_head};
use crate::durable;

/// What was left out, and what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// How many receipts were left out.
    pub receipts: u64,
    /// How many bytes shorter the journal is.
    pub bytes: u64,
}

impl Journal {
    /// Leaves out the receipts of these operations.
    ///
    /// # Errors
    /// When the journal can't be read, or can't be written anew: then it is as it was.
    pub fn forget(&mut self, operations: &BTreeSet<OperationId>) -> Result<Forgotten, Error> {
        self.locked(|journal| journal.forget_locked(operations))
    }

    fn forget_locked(&mut self, operations: &BTreeSet<OperationId>) -> Result<Forgotten, Error> {
        // What another agent wrote meanwhile, and what a dead one left torn.
        self.catch_up(&mut |_| {})?;
        let (Some(id), false) = (self.live(), self.stopped) else {
            return Ok(Forgotten::default());
        };
        let mut kept = vec![encode_head(self.log, id).to_vec()];
        let mut forgotten = Forgotten::default();
        let read = frames(
            &self.file,
            &self.path,
            self.log,
            |receipt, frame| match operations.contains(&receipt.key.operation) {
                true => forgotten.receipts += 1,
                false => kept.push(frame.to_vec()),
            },
        )?;
        if forgotten.receipts == 0 || read.tail != Tail::Clean {
            return Ok(Forgotten::default());
        }
        let kept = kept.concat();
        durable::write(&self.path, 0o600, &kept)?;
        // Crash boundary: either journal is whole, and both say the same of all that may be asked for.
        forgotten.bytes = read.end.saturating_sub(kept.len() as u64);
        Ok(forgotten)
    }
}
