//! Drafts become records: whatever needs no place in the log is done before the writer has them, by whoever hands them in.
//!
//! It decides whether this program may write such an event at all; where it goes is for the writer to say.

use std::sync::Arc;

use tallybook_events::actor::Actor;
use tallybook_events::event::{Event, Fixed, fixed};
use tallybook_events::header::{Header, Writer};
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::{Committed, Record};
use tallybook_replay::entry::Entry;

use super::{Draft, Error, Refusal, chain};
use crate::clock;
use crate::journal::Link;

/// A draft with all that can be made of it before it has a place.
pub(super) struct Prepared {
    /// What was handed in. The payload is not in it any more.
    pub(super) draft: Draft,
    pub(super) event: Event,
    fixed: Fixed,
    payload: Committed,
}

impl Prepared {
    /// Checks that an event is one that this program writes, and commits to its payload.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] when it is not.
    pub(super) fn of(mut draft: Draft) -> Result<Self, Error> {
        let Some(fixed) = fixed(&draft.kind, draft.kind_version) else {
            return Err(malformed(format!(
                "this program does not write events of kind {:?} version {}",
                draft.kind, draft.kind_version
            )));
        };
        if fixed.outcome != draft.outcome {
            return Err(malformed(format!("{} can't have that outcome", draft.kind)));
        }
        let payload = std::mem::take(&mut draft.payload).0;
        let event = Event::decode_exact(&draft.kind, draft.kind_version, &payload)
            .map_err(|error| malformed(chain(&error)))?;
        Ok(Prepared {
            draft,
            event,
            fixed,
            payload: Committed::to(clock::random(), payload),
        })
    }
}

/// Where an event is put.
pub(super) struct Sealing<'a> {
    /// How many events of the same append follow.
    pub(super) more: u16,
    /// The first event of its write.
    pub(super) write: Seq,
    /// The event before it.
    pub(super) link: Link,
    /// The event before it of the same subject.
    pub(super) subject_previous: (Seq, Hash),
    pub(super) actor: &'a Arc<Actor>,
    pub(super) writer: &'a Arc<Writer>,
}

/// Gives a draft its place.
///
/// # Errors
/// [`Refusal::Malformed`] when its header can't be written.
pub(super) fn seal(prepared: Prepared, sealing: &Sealing<'_>) -> Result<(Record, Entry), Error> {
    let Prepared {
        draft,
        event,
        fixed,
        payload,
    } = prepared;
    let link = sealing.link;
    let (subject_previous_seq, subject_previous) = sealing.subject_previous;
    let header = Header {
        log: link.log,
        epoch: link.epoch,
        seq: link.seq.next(),
        previous: link.hash,
        subject: draft.subject,
        subject_previous_seq,
        subject_previous,
        event: draft.event,
        kind: fixed.kind.into(),
        kind_version: draft.kind_version,
        time_unix_us: clock::now_unix_us(),
        actor: Arc::clone(sealing.actor),
        writer: Arc::clone(sealing.writer),
        claim: draft.claim,
        operation: draft.operation,
        step: draft.step,
        attempt: draft.attempt,
        more: sealing.more,
        write: sealing.write,
        cause: draft.cause,
        outcome: draft.outcome,
        erasable: fixed.erasable,
        payload_len: 0,
        commitment: Hash::ZERO,
    };
    let record = Record::seal_over(header, payload).map_err(|error| malformed(chain(&error)))?;
    let entry = Entry {
        header: record.header.clone(),
        hash: record.hash,
        event,
        is_erased: false,
    };
    Ok((record, entry))
}

fn malformed(what: String) -> Error {
    Error::Refused(Refusal::Malformed(what))
}
