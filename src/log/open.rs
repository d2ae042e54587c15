//! Opening a store: recovering the journal's tail, and bringing the databases up to it, or building them again.
//!
//! It never cuts off what may have been acknowledged, and says aloud what it mended.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use tallybook_events::event::LogCreated;
use tallybook_events::ids::Seq;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::view::{Databases, REBUILD, View, hash_in_journal};
use super::writer::{Recent, seal};
use super::{Draft, Error, INDEX, JOURNAL, Open, PROJECTION, chain, entry};
use crate::journal::{self, Journal, Limits, Link, Position, Reader, Torn};
use crate::store::{self, BLOCK_EVENTS, Index, Projection, Sealed, Stored};
use crate::{clock, identity};

/// How many sealed blocks are looked through for event ids, so that a repeated append is recognised.
const RECENT_BLOCKS: u64 = 64;

/// A store that was opened, recovered and locked.
pub(super) struct Opened {
    pub(super) journal: Journal,
    pub(super) view: View,
    pub(super) recent: Recent,
    pub(super) lock: File,
}

impl Opened {
    /// Opens a store whose lock is held.
    ///
    /// # Errors
    /// When there is none, or it is damaged in a way that needs a decision.
    pub(super) fn new(
        directory: &Path,
        open: Open,
        limits: Limits,
        lock: File,
        mut notice: impl FnMut(String),
    ) -> Result<Self, Error> {
        let journal_directory = directory.join(JOURNAL);
        if journal::segments(&journal_directory)?.is_empty() {
            if open == Open::Existing {
                return Err(Error::Missing(directory.to_owned()));
            }
            // Whatever databases there are belong to another log.
            remove_databases(directory)?;
            Journal::create(&journal_directory, clock::log_id(), limits)?;
        }
        if directory.join(REBUILD).exists() {
            notice(format!(
                "the databases in {} could not be used last time; building them again from the journal",
                directory.display()
            ));
            remove_databases(directory)?;
        }
        let (view, journal, torn) = open_mending(directory, limits, &mut notice)?;
        if let Some(torn) = torn {
            notice(format!(
                "the journal ended in {} bytes of an append that was never acknowledged; they are kept in {}",
                torn.bytes,
                torn.kept.display()
            ));
        }
        let mut recent = Recent::default();
        for record in view.recent(RECENT_BLOCKS)? {
            recent.insert(&record);
        }
        let mut opened = Opened {
            journal,
            view,
            recent,
            lock,
        };
        if opened.view.state.head.seq == Seq::NONE {
            opened.create_log()?;
        }
        Ok(opened)
    }

    fn create_log(&mut self) -> Result<(), Error> {
        let created = LogCreated {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let draft = Draft::new(Subject::Cloud, created).map_err(|source| Error::Payload {
            seq: Seq(1),
            source,
        })?;
        let record = seal(
            &draft,
            0,
            self.journal.link(),
            None,
            &self.view.state,
            &identity::actor_here(),
            &identity::writer(),
        )?;
        let positions = self.journal.append(std::slice::from_ref(&record))?;
        self.view
            .take(vec![record], &positions, self.journal.position())
    }
}

type Recovered = (View, Journal, Option<Torn>);

/// Opens; builds the databases again where they can't be used; goes on without them where that fails too.
fn open_mending(
    directory: &Path,
    limits: Limits,
    notice: &mut impl FnMut(String),
) -> Result<Recovered, Error> {
    let error = match open_with_databases(directory, limits, notice) {
        Err(Error::Store(error)) => error,
        other => return other,
    };
    notice(format!(
        "the databases in {} can't be used ({}); building them again from the journal",
        directory.display(),
        chain(&error)
    ));
    let rebuilt =
        remove_databases(directory).and_then(|()| open_with_databases(directory, limits, notice));
    let error = match rebuilt {
        Err(error @ (Error::Store(_) | Error::Directory { .. })) => error,
        other => return other,
    };
    notice(format!(
        "the databases in {} can't be built ({}); reading the journal instead",
        directory.display(),
        chain(&error)
    ));
    let reader = Reader::from_start(&directory.join(JOURNAL))?;
    let view = View::new(directory, State::default(), None);
    let mut recovery = Recovery {
        view,
        reader,
        touched: BTreeSet::new(),
    };
    recovery.read_to_end(directory, notice)?;
    let (journal, torn) = Journal::open(&directory.join(JOURNAL), &recovery.reader, limits)?;
    Ok((recovery.view, journal, torn))
}

fn open_with_databases(
    directory: &Path,
    limits: Limits,
    notice: &mut impl FnMut(String),
) -> Result<Recovered, Error> {
    let journal_directory = directory.join(JOURNAL);
    let missing = !directory.join(INDEX).exists() || !directory.join(PROJECTION).exists();
    let index = Index::open(&directory.join(INDEX))?;
    let projection = Projection::open(&directory.join(PROJECTION))?;
    let (known, next) = match projection.load()? {
        Stored::State { state, next } => (*state, Some(next)),
        Stored::Nothing => (State::default(), None),
        Stored::OtherVersion(version) => {
            notice(format!(
                "the projections in {} were folded by another version of the program ({version}); folding them again",
                directory.display()
            ));
            (State::default(), None)
        }
    };
    let sealed = index.sealed();
    confirm(directory, sealed, &known)?;
    let reader = match sealed {
        Some(sealed) => Reader::from_position(&journal_directory, sealed.next, sealed.link),
        None => Reader::from_start(&journal_directory)?,
    };
    let fresh = known.head.seq == Seq::NONE;
    let databases = Databases { index, projection };
    let mut recovery = Recovery {
        view: View::new(directory, known, Some(databases)),
        reader,
        touched: BTreeSet::new(),
    };
    // The projections may be behind the index, never told more than the journal: fold what they lack.
    let sealed_seq = sealed.map_or(Seq::NONE, |sealed| sealed.link.seq);
    if recovery.view.state.head.seq < sealed_seq {
        recovery.catch_up(&journal_directory, next, sealed_seq)?;
    }
    recovery.read_to_end(directory, notice)?;
    let (journal, torn) = Journal::open(&journal_directory, &recovery.reader, limits)?;
    let Recovery { view, touched, .. } = recovery;
    let end = journal.link().seq;
    if let Some(databases) = view.databases() {
        if fresh {
            databases
                .projection
                .replace(&view.state, journal.position())?;
        } else if !touched.is_empty() {
            databases
                .projection
                .save(&view.state, &touched, journal.position())?;
        }
    }
    let unindexed = sealed.is_none() && end.0 >= BLOCK_EVENTS;
    if end > Seq::NONE && (missing || fresh || unindexed) {
        notice(format!(
            "built the databases in {} again from the journal: {end} events",
            directory.display()
        ));
    }
    Ok((view, journal, torn))
}

/// Holds what the databases say was here against the journal, before anything relies on it.
///
/// A database of another log, or one that was laid out by a journal with other places, is built again. A journal
/// that ends before what was acknowledged, or says something else there, is an error that needs a decision.
fn confirm(directory: &Path, sealed: Option<Sealed>, projected: &State) -> Result<(), Error> {
    let journal_directory = directory.join(JOURNAL);
    let log = journal::log_of(&journal_directory)?;
    let contradiction = |name: &str, what: &str| {
        Err(Error::Store(store::Error::Contradiction {
            path: directory.join(name),
            what: what.to_owned(),
        }))
    };
    if projected.head.log.is_some_and(|other| other != log) {
        return contradiction(PROJECTION, "it belongs to another log");
    }
    let Some(sealed) = sealed else {
        return Ok(());
    };
    if sealed.link.log != log {
        return contradiction(INDEX, "it belongs to another log");
    }
    let seq = sealed.link.seq;
    if projected.head.seq == seq && projected.head.hash != sealed.link.hash {
        return contradiction(INDEX, "its last event is another one in the projections");
    }
    if let Some((record, next)) = journal::record_at(&journal_directory, sealed.at)?
        && record.hash == sealed.link.hash
        && next == sealed.next
    {
        return Ok(());
    }
    let (end, hash) = hash_in_journal(directory, seq)?;
    match hash {
        None => Err(Error::TailLost {
            path: directory.to_owned(),
            journal: end,
            projection: seq,
        }),
        Some(hash) if hash != sealed.link.hash => Err(Error::Rewritten {
            path: directory.to_owned(),
            seq,
        }),
        Some(_) => contradiction(INDEX, "its events are at other places in the journal"),
    }
}

/// Reading the journal behind what the databases know.
struct Recovery {
    view: View,
    reader: Reader,
    touched: BTreeSet<tallybook_replay::state::Key>,
}

impl Recovery {
    /// Folds the events that the projections lack up to the index's last sealed one.
    fn catch_up(&mut self, journal: &Path, next: Option<Position>, to: Seq) -> Result<(), Error> {
        let head = self.view.state.head;
        let mut reader = match (next, head.log) {
            (Some(next), Some(log)) => Reader::from_position(
                journal,
                next,
                Link {
                    log,
                    epoch: head.epoch,
                    seq: head.seq,
                    hash: head.hash,
                },
            ),
            (Some(_) | None, Some(_) | None) => {
                self.view.state = State::default();
                Reader::from_start(journal)?
            }
        };
        while self.view.state.head.seq < to {
            let Some((_, record)) = reader.next()? else {
                break;
            };
            self.view.state.apply(&entry(&record)?);
        }
        if let Some(databases) = self.view.databases() {
            databases
                .projection
                .replace(&self.view.state, reader.position())?;
        }
        Ok(())
    }

    /// Reads to the end: folds what the projections lack, indexes what the index lacks.
    fn read_to_end(
        &mut self,
        directory: &Path,
        notice: &mut impl FnMut(String),
    ) -> Result<(), Error> {
        let projected = self.view.state.head;
        let mut count = 0_u64;
        while let Some((start, record)) = self.reader.next()? {
            if record.header.seq == projected.seq && record.hash != projected.hash {
                return Err(Error::Rewritten {
                    path: directory.to_owned(),
                    seq: projected.seq,
                });
            }
            if record.header.seq > projected.seq {
                self.touched.extend(self.view.state.apply(&entry(&record)?));
            }
            self.view.push(record, start, self.reader.position())?;
            count += 1;
            if count.is_multiple_of(65_536) {
                notice(format!("read {count} events of the journal"));
            }
        }
        let end = self.reader.link().map_or(Seq::NONE, |link| link.seq);
        if projected.seq > end {
            return Err(Error::TailLost {
                path: directory.to_owned(),
                journal: end,
                projection: projected.seq,
            });
        }
        Ok(())
    }
}

/// Removes both databases, and what asked for it.
fn remove_databases(directory: &Path) -> Result<(), Error> {
    for name in [INDEX, PROJECTION] {
        let path = directory.join(name);
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        ignore_missing(&path, removed)?;
    }
    let path = directory.join(REBUILD);
    ignore_missing(&path, std::fs::remove_file(&path))
}

fn ignore_missing(path: &Path, removed: std::io::Result<()>) -> Result<(), Error> {
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Directory {
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}
