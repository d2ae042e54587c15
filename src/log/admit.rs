//! Whether an event may stand where it would: what `verify` would condemn for ever is refused before it is written.
//!
//! It folds each open operation once and then one event at a time; it never reads the log itself.

use std::collections::BTreeMap;

use tallybook_events::event::Event;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::OperationId;
use tallybook_events::record::Record;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::{self, Operation};

use super::{Error, Refusal, chain, entry};

/// The operations that events were admitted to, without the output of their sessions.
#[derive(Default)]
pub(super) struct Admission {
    open: BTreeMap<OperationId, Operation>,
}

impl Admission {
    pub(super) fn knows(&self, id: &OperationId) -> bool {
        self.open.contains_key(id)
    }

    /// Whether one of them made this claim.
    pub(super) fn has_claim(&self, claim: ClaimRef) -> bool {
        self.open.values().any(|known| known.claim == claim)
    }

    /// Takes in an operation by its events so far.
    pub(super) fn learn(&mut self, id: OperationId, records: &[Record]) -> Result<(), Error> {
        let entries: Vec<Entry> = records.iter().map(entry).collect::<Result<_, _>>()?;
        let folded = Operation::fold(id, &entries).map_err(refused)?;
        if let Some(mut operation) = folded {
            operation.sessions.clear();
            self.open.insert(id, operation);
        }
        Ok(())
    }

    /// Decides on the next event.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<(), Error> {
        operation::check_place(entry).map_err(refused)?;
        self.check_claim(entry)?;
        let Some(id) = entry.header.operation else {
            return Ok(());
        };
        match self.open.get_mut(&id) {
            Some(operation) => {
                let applied = operation.apply(entry);
                operation.sessions.clear();
                if applied.is_err() {
                    self.open.remove(&id);
                }
                applied.map_err(refused)
            }
            None => {
                let begun = Operation::fold(id, [entry]).map_err(refused)?;
                self.open.extend(begun.map(|operation| (id, operation)));
                Ok(())
            }
        }
    }

    /// The claims that an operation's own fold can't know: of the one that takes it back, and of events of none.
    fn check_claim(&self, entry: &Entry) -> Result<(), Error> {
        let header = &entry.header;
        let Some(claim) = header.claim else {
            return Ok(());
        };
        let holds = match (&entry.event, header.operation) {
            (Event::OperationRolledBack(rolled_back), _) => {
                self.claim(rolled_back.by) == Some(claim)
            }
            (_, Some(_)) => true,
            (_, None) => self.has_claim(claim),
        };
        match holds {
            true => Ok(()),
            false => Err(refused(operation::Error::Claim {
                seq: header.seq,
                kind: header.kind.to_string(),
            })),
        }
    }

    fn claim(&self, id: OperationId) -> Option<ClaimRef> {
        self.open.get(&id).map(|operation| operation.claim)
    }

    /// Forgets operations of which events were admitted that will not be in the log.
    pub(super) fn forget(&mut self, wanted: impl Fn(&OperationId) -> bool) {
        self.open.retain(|id, _| !wanted(id));
    }

    /// Forgets what has ended.
    pub(super) fn settle(&mut self) {
        self.open
            .retain(|_, operation| !operation.status.is_final());
    }
}

fn refused(error: operation::Error) -> Error {
    Error::Refused(Refusal::Malformed(chain(&error)))
}
