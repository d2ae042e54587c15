//! Erasing payloads for good: redaction of what nobody must read, and expiry of output that was kept long enough.
//!
//! What will be erased is an event before the first byte is overwritten, and that it is done is another one. In
//! between, whoever opens the store goes on with it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use tallybook_events::event::{ErasureAnnounced, ErasureCause, ErasureCompleted, Event, SeqRange};
use tallybook_events::ids::Seq;
use tallybook_events::record::{self, Body, Record};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::state::State;

use super::{Condition, Draft, Error, Filter, JOURNAL, Log, Open, Refusal};
use crate::journal::{self, Damage, Depth, Found, Inspect};

/// No announcement names more runs of events: it has to fit into one event.
const RUNS_MAX: usize = 100_000;

/// What became of an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// The event that announced it.
    pub announced: Seq,
    /// The event that says that it is done.
    pub completed: Seq,
    /// How many payloads.
    pub payloads: u64,
}

impl Log {
    /// Erases the payloads of these events: announces it, overwrites every copy, says that it is done.
    ///
    /// # Errors
    /// [`Error::NotErasable`] for an event that is not there, or of a kind that is needed to know what may be done, and
    /// [`Refusal::Needed`] for an inventory that an unfinished operation needs; then nothing was erased. An error of the
    /// journal when one of them can't be reached: the others are erased by then, and whoever opens the store tries again.
    /// Otherwise as [`Log::append`].
    pub async fn erase(
        &self,
        events: &BTreeSet<Seq>,
        cause: ErasureCause,
        reason: &str,
    ) -> Result<Erased, Error> {
        for seq in events {
            self.erasable(*seq).await?;
        }
        let runs = SeqRange::of(events.iter().copied());
        if runs.len() > RUNS_MAX {
            return Err(Error::TooLarge(runs.len()));
        }
        let condition = Condition {
            unneeded: Some(runs.clone()),
            ..Condition::none()
        };
        let announced = ErasureAnnounced {
            cause,
            reason: reason.to_owned(),
            events: runs,
        };
        let appended = self.append(vec![draft(announced)?], condition).await?;
        let announced = appended.first().map_or(Seq::NONE, |appended| appended.seq);
        // Crash boundary: from here on whoever opens the store goes on with it.
        let Some(payloads) = self.carry_out_erasure(announced).await? else {
            return self.erased_meanwhile(announced).await;
        };
        let completed = ErasureCompleted {
            announced,
            payloads,
        };
        let mut done = draft(completed)?;
        done.cause = announced;
        let appended = self.append(vec![done], Condition::none()).await?;
        Ok(Erased {
            announced,
            completed: appended.first().map_or(Seq::NONE, |appended| appended.seq),
            payloads,
        })
    }

    /// An erasure that whoever took the store over finished.
    async fn erased_meanwhile(&self, announced: Seq) -> Result<Erased, Error> {
        let filter = Filter {
            kind: Some("erasure.completed".to_owned()),
            from: Some(announced),
            ..Filter::default()
        };
        for entry in self.entries(&filter).await? {
            if let Event::ErasureCompleted(completed) = &entry.event
                && completed.announced == announced
            {
                return Ok(Erased {
                    announced,
                    completed: entry.header.seq,
                    payloads: completed.payloads,
                });
            }
        }
        let what = format!("nothing is known of the erasure that event {announced} announced");
        Err(Error::Holder(what))
    }

    /// The event, if its payload may be erased.
    ///
    /// # Errors
    /// [`Error::NotErasable`] when it may not, or is not there.
    pub async fn erasable(&self, seq: Seq) -> Result<Record, Error> {
        let found = self.records(&Filter::at(seq)).await?.into_iter().next();
        match found {
            Some(record) if record.header.erasable => Ok(record),
            Some(record) => Err(Error::NotErasable {
                seq,
                kind: Some(record.header.kind.into_owned()),
            }),
            None => Err(Error::NotErasable { seq, kind: None }),
        }
    }

    /// Captured output from before a time, of operations that are over, and not erased yet.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn output_before(&self, unix_us: u64) -> Result<Vec<Record>, Error> {
        let open = self.state().await?.operations;
        let mut found = Vec::new();
        for kind in ["output.captured", "session.recorded"] {
            let filter = Filter {
                kind: Some(kind.to_owned()),
                until_unix_us: Some(unix_us),
                ..Filter::default()
            };
            found.extend(self.records(&filter).await?.into_iter().filter(|record| {
                let of_open = record
                    .header
                    .operation
                    .is_some_and(|id| open.contains_key(&id));
                !of_open && record.header.erasable && record.body() == Body::Intact
            }));
        }
        found.sort_by_key(|record| record.header.seq);
        Ok(found)
    }
}

fn draft(event: impl Into<Event>) -> Result<Draft, Error> {
    Draft::new(Subject::Cloud, event).map_err(|source| Error::Payload {
        seq: Seq::NONE,
        source,
    })
}

/// Refuses to erase an inventory that an operation goes on with, or is taken back with.
pub(super) fn check_unneeded(state: &State, events: &[SeqRange]) -> Result<(), Refusal> {
    let mut open = state.operations.iter().filter(|(_, known)| known.is_open());
    let needs = open.find(|(_, known)| events.iter().any(|range| range.contains(known.inventory)));
    match needs {
        None => Ok(()),
        Some((operation, known)) => Err(Refusal::Needed {
            inventory: known.inventory,
            operation: *operation,
            summary: known.intent.summary(),
            status: known.status.label().to_owned(),
        }),
    }
}

/// Refuses an operation that begins with an inventory which is being erased: it could not be gone on with.
pub(super) fn check_inventory(state: &State, entry: &Entry) -> Result<(), Refusal> {
    let Event::OperationIntended(intended) = &entry.event else {
        return Ok(());
    };
    let is_of = |ranges: &Vec<SeqRange>| ranges.iter().any(|one| one.contains(intended.inventory));
    let mut erasures = state.erasures.iter();
    match erasures.find(|(_, ranges)| is_of(ranges)) {
        None => Ok(()),
        Some((announced, _)) => Err(Refusal::Changed {
            subject: Subject::Cloud,
            seq: *announced,
        }),
    }
}

/// Whether an error of reading a journal may come of an erasure that was cut off.
pub(super) fn may_be_cut_off(error: &Error, open: Open) -> bool {
    let is_payload = match error {
        Error::Journal(journal::Error::Damaged { source, .. }) => {
            *source == Damage::Record(record::Error::Commitment)
        }
        Error::Fold { .. } => true,
        _ => false,
    };
    is_payload && open != Open::AsItIs
}

/// Goes on with erasures that the journal itself announces. Whether there were any.
///
/// # Errors
/// When the journal can't be read, or a payload can't be overwritten: all others are then.
pub(super) fn finish_cut_off(store: &Path) -> Result<bool, Error> {
    let journal = store.join(JOURNAL);
    let mut state = State::default();
    let how = Inspect {
        depth: Depth::Chain,
        ..Inspect::default()
    };
    let inspector = || {
        |frame: &record::Frame<'_>, header: &tallybook_events::header::HeaderView<'_>| {
            let is_of_it = header.kind.starts_with("erasure.");
            (is_of_it && frame.body(header) == Body::Intact)
                .then(|| tallybook_replay::folding::Folding::of(frame, header).ok())
                .flatten()
        }
    };
    let found = |_: journal::At<'_>, found| {
        if let Found::Record {
            item: Some(folding),
            ..
        } = found
        {
            state.take(folding);
        }
        ControlFlow::Continue(())
    };
    journal::scan(&journal, how, inspector, found, |_| {})?;
    let pending: Vec<SeqRange> = state.erasures.into_values().flatten().collect();
    if pending.is_empty() {
        return Ok(false);
    }
    journal::erase(&journal, &pending)?;
    Ok(true)
}
