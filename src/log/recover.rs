//! Going on with a damaged log, once an operator decided to: a new epoch, and what was lost named in it.
//!
//! Nobody else may have the store meanwhile. What is lost is said by an event, and nothing that is whole is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tallybook_events::event::{LogRecovered, Loss};
use tallybook_events::ids::{Epoch, Seq};
use tallybook_events::subject::Subject;

use super::anchor::{self, Anchors, HEAD, Kept};
use super::lock::Lock;
use super::open::{Opened, remove_database, remove_databases};
use super::{Draft, Error, JOURNAL, Limits, Open, verify};
use crate::journal::{self, Move, Work, recover};
use crate::store;

pub use crate::journal::recover::Away;

/// A damaged log, and what going on with it means. Nobody else has the store as long as this is there.
pub struct Recovery {
    directory: PathBuf,
    lock: Lock,
    plan: recover::Plan,
    work: Work,
    /// What is lost, in order.
    pub losses: Vec<Loss>,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery")
            .field("plan", &self.plan)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

/// What a recovery came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The event that says what is lost.
    pub seq: Seq,
    /// The epoch that it begins.
    pub epoch: Epoch,
}

impl Recovery {
    /// Takes the store and finds out what is lost. Changes nothing.
    ///
    /// # Errors
    /// When somebody else has the store, nothing of the log is left, a newer program wrote some of it, or the archive is
    /// away and not given up.
    pub fn plan(directory: &Path, away: Away) -> Result<Self, Error> {
        let failed = |source| Error::Directory {
            path: directory.to_owned(),
            source,
        };
        if !directory.is_dir() {
            return Err(Error::Missing(directory.to_owned()));
        }
        let lock = Lock::take(directory, Open::Existing).map_err(failed)?;
        let Some(lock) = lock else {
            return Err(Error::InUse(directory.to_owned()));
        };
        let journal = directory.join(JOURNAL);
        let kept = anchor::read(directory).map_err(failed)?;
        let mut anchors = Anchors::new(recover::log_in(&journal).map_err(not_to_be_judged)?);
        if let Kept::Anchor(anchor) = kept {
            anchors.add(anchor);
        }
        if let Err(store::Error::Held(path)) = anchors.add_databases(directory) {
            return Err(Error::Held(path));
        }
        let missing = || Error::Missing(directory.to_owned());
        let log = anchors.log().ok_or_else(missing)?;
        let known: Vec<recover::Known> = anchors
            .up_to(Seq(u64::MAX))
            .map(|(seq, hash)| recover::Known { seq, hash })
            .collect();
        let plan = recover::plan(&journal, log, &known, away).map_err(not_to_be_judged)?;
        let work = plan.work()?;
        let losses = explain(directory, &plan)?;
        Ok(Recovery {
            directory: directory.to_owned(),
            lock,
            plan,
            work,
            losses,
        })
    }

    /// The files that are put aside.
    pub fn moves(&self) -> &[Move] {
        &self.work.moves
    }

    /// Events that something beside the journal remembers otherwise than they are in it.
    pub fn contradicted(&self) -> &[Seq] {
        &self.plan.contradicted
    }

    /// The epoch that it begins.
    pub const fn epoch(&self) -> Epoch {
        self.plan.next_epoch()
    }

    /// Goes on.
    ///
    /// # Errors
    /// When the store can't be read or written; then it can be done again.
    pub fn carry_out(self, reason: &str) -> Result<Recovered, Error> {
        self.carry_out_by(reason, Limits::default(), &mut |_| Ok(()))
    }

    /// Goes on, unless it is stopped before one of its steps on the disk.
    ///
    /// # Errors
    /// As [`Recovery::carry_out`], and when it is stopped.
    #[doc(hidden)]
    pub fn carry_out_by(
        self,
        reason: &str,
        limits: Limits,
        step: &mut dyn FnMut(&'static str) -> io::Result<()>,
    ) -> Result<Recovered, Error> {
        let epoch = self.epoch();
        let directory = &self.directory;
        self.plan.carry_out(&self.work, step)?;
        let failed = |source| Error::Directory {
            path: directory.clone(),
            source,
        };
        // What they say of the log's end, the journal bears out by now; the places that they know have changed.
        step("forgetting").map_err(failed)?;
        remove_databases(directory)?;
        step("forgetting").map_err(failed)?;
        remove_database(&directory.join(HEAD))?;
        step("saying").map_err(failed)?;
        let notify = Arc::new(|what: String| tracing::debug!("{what}"));
        let mut opened = Opened::new(directory, Open::Existing, limits, self.lock, notify)?;
        let recovered = LogRecovered {
            reason: reason.to_owned(),
            losses: self.losses,
        };
        let seq = opened.journal.link().seq.next();
        let draft = Draft::new(Subject::Cloud, recovered);
        let draft = draft.map_err(|source| Error::Payload { seq, source })?;
        opened.journal.begin_epoch(epoch);
        opened.append_alone(draft)?;
        opened.view.flush();
        let link = opened.journal.link();
        Ok(Recovered {
            seq: link.seq,
            epoch: link.epoch,
        })
    }
}

/// What can't be decided without the archive, or without the program that wrote it.
fn not_to_be_judged(error: journal::Error) -> Error {
    match error {
        journal::Error::Away { .. } | journal::Error::Newer { .. } => Error::Undecidable(error),
        other => Error::Journal(other),
    }
}

/// What was found in the place of each loss.
fn explain(directory: &Path, plan: &recover::Plan) -> Result<Vec<Loss>, Error> {
    if plan.losses.is_empty() {
        return Ok(Vec::new());
    }
    let has_segments = !journal::segments(&directory.join(JOURNAL))?.is_empty();
    let findings = match has_segments {
        true => verify::journal(directory)?.0.findings,
        false => Vec::new(),
    };
    let losses = plan.losses.iter().map(|lost| {
        let here = findings.iter();
        let mut here = here.filter(|finding| lost.events.contains(finding.seq));
        let why = match here.next() {
            Some(finding) => format!("{} ({})", finding.what, finding.place),
            None if lost.events.last == plan.end => {
                "the journal ended before it, and it was recorded here before".to_owned()
            }
            None => {
                "what stood there is not what the next event names as the one before it".to_owned()
            }
        };
        Loss {
            events: lost.events,
            hash: lost.hash,
            header_kept: lost.header_kept,
            why,
        }
    });
    Ok(losses.collect())
}
