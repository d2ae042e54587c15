//! Opening a store: recovering the journal's tail, and bringing the databases up to it, or building them again.
//!
//! It never cuts off what may have been acknowledged, never removes what says how far the log went before that was
//! read, and says aloud what it mended.

use std::collections::BTreeSet;
use std::path::Path;

use tallybook_events::event::LogCreated;
use tallybook_events::ids::Seq;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::anchor::{self, Anchor, Anchors, HeadFile, Kept};
use super::lock::Lock;
use super::view::{Databases, REBUILD, View, hash_in_journal};
use super::writer::seal;
use super::{Draft, Error, INDEX, JOURNAL, Open, PROJECTION, chain, entry};
use crate::journal::{self, Journal, Limits, Link, Position, Reader, Torn};
use crate::store::{self, BLOCK_EVENTS, Index, Projection, Sealed, Stored};
use crate::{clock, identity};

/// A store that was opened, recovered and locked.
pub(super) struct Opened {
    pub(super) journal: Journal,
    pub(super) view: View,
    pub(super) lock: Lock,
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
        lock: Lock,
        mut notice: impl FnMut(String),
    ) -> Result<Self, Error> {
        let journal_directory = directory.join(JOURNAL);
        if journal::segments(&journal_directory)?.is_empty() {
            refuse_a_lost_journal(directory)?;
            if open != Open::Create {
                return Err(Error::Missing(directory.to_owned()));
            }
            // Whatever databases there are never held an event.
            remove_databases(directory)?;
            Journal::create(&journal_directory, clock::log_id(), limits)?;
        }
        journal::settle(&journal_directory)?;
        let mut opening = Opening {
            directory,
            limits,
            anchors: Anchors::new(Some(journal::log_of(&journal_directory)?)),
            notice: &mut notice,
        };
        let head_is_sound = opening.read_head(open)?;
        let (mut view, journal, torn) = match open {
            Open::Existing | Open::Create => opening.mending()?,
            Open::AsItIs => opening.as_it_is()?,
        };
        if let Some(torn) = torn {
            notice(format!(
                "the journal ended in {} bytes of an append that was not whole; they are kept in {}",
                torn.bytes,
                torn.kept.display()
            ));
        }
        if head_is_sound || open != Open::AsItIs {
            view.keep_head(journal.position().segment);
        }
        let mut opened = Opened {
            journal,
            view,
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
        let link = self.journal.link();
        let record = seal(
            &draft,
            0,
            link.seq.next(),
            link,
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

/// Where there is no journal: whether there was one.
fn refuse_a_lost_journal(directory: &Path) -> Result<(), Error> {
    // The file `head` was asked already, without the lock; it may have been written since.
    anchor::is_there(directory)?;
    let mut anchors = Anchors::new(None);
    anchors.add_databases(directory)?;
    match anchors.furthest() {
        Some(anchor) => Err(Error::TailLost {
            path: directory.to_owned(),
            journal: Seq::NONE,
            projection: anchor.seq,
        }),
        None => Ok(()),
    }
}

type Recovered = (View, Journal, Option<Torn>);

/// One opening of one store.
struct Opening<'a, N> {
    directory: &'a Path,
    limits: Limits,
    /// What the journal must have: all that was met so far, also in databases that are gone by now.
    anchors: Anchors,
    notice: &'a mut N,
}

impl<N: FnMut(String)> Opening<'_, N> {
    /// Takes in what the file `head` says. `false` when it can't be understood.
    fn read_head(&mut self, open: Open) -> Result<bool, Error> {
        let kept = anchor::read(self.directory).map_err(|source| Error::Directory {
            path: self.directory.join(anchor::HEAD),
            source,
        })?;
        let log = journal::log_of(&self.directory.join(JOURNAL))?;
        match kept {
            Kept::Nothing => Ok(true),
            Kept::Damaged => {
                if open != Open::AsItIs {
                    let path = self.directory.join(anchor::HEAD);
                    let path = path.display();
                    (self.notice)(format!("{path} can't be understood; it is written again"));
                }
                Ok(false)
            }
            Kept::Anchor(anchor) if anchor.log != log => Err(Error::Rewritten {
                path: self.directory.to_owned(),
                seq: anchor.seq,
            }),
            Kept::Anchor(anchor) => {
                self.anchors.add(anchor);
                Ok(true)
            }
        }
    }

    /// Opens; builds the databases again where they can't be used; goes on without them where that fails too.
    fn mending(&mut self) -> Result<Recovered, Error> {
        let directory = self.directory;
        if directory.join(REBUILD).exists() {
            (self.notice)(format!(
                "the databases in {} could not be used last time; building them again from the journal",
                directory.display()
            ));
            self.discard_databases()?;
        }
        let error = match self.with_databases() {
            Err(Error::Store(error)) => self.unless_held(error)?,
            other => return other,
        };
        (self.notice)(format!(
            "the databases in {} can't be used ({}); building them again from the journal",
            directory.display(),
            chain(&error)
        ));
        let rebuilt = self
            .discard_databases()
            .and_then(|()| self.with_databases());
        let error = match rebuilt {
            Err(Error::Store(error)) => chain(&self.unless_held(error)?),
            Err(error @ Error::Directory { .. }) => chain(&error),
            other => return other,
        };
        (self.notice)(format!(
            "the databases in {} can't be built ({error}); reading the journal instead",
            directory.display(),
        ));
        self.without_databases(error)
    }

    /// Opens and mends nothing: where the databases can't be used, the journal answers, and they stay as they are.
    fn as_it_is(&mut self) -> Result<Recovered, Error> {
        let marker = self.directory.join(REBUILD);
        if marker.exists() {
            let why = std::fs::read_to_string(&marker).unwrap_or_default();
            return self.without_databases(format!("they were given up: {}", why.trim()));
        }
        let error = match self.with_databases() {
            Err(Error::Store(error)) => self.unless_held(error)?,
            other => return other,
        };
        // The state that was stored, so that it can be told what of it is wrong.
        let stored = match error {
            store::Error::Altered { ref state, .. } => Some(state.clone()),
            _ => None,
        };
        let mut recovered = self.without_databases(chain(&error))?;
        recovered.0.stored = stored;
        Ok(recovered)
    }

    /// An error that nobody else's use of the databases explains: then they are not damaged, and not ours.
    fn unless_held(&self, error: store::Error) -> Result<store::Error, Error> {
        match error {
            store::Error::Held(path) => Err(Error::Held(path)),
            other => Ok(other),
        }
    }

    fn without_databases(&mut self, why: String) -> Result<Recovered, Error> {
        let journal = self.directory.join(JOURNAL);
        let mut view = View::new(self.directory, State::default(), None);
        view.faults.push(why);
        let mut recovery = Recovery {
            view,
            reader: Reader::from_start(&journal)?,
            touched: BTreeSet::new(),
        };
        recovery.read_to_end(self)?;
        let (journal, torn) = Journal::open(&journal, &recovery.reader, self.limits)?;
        Ok((recovery.view, journal, torn))
    }

    fn with_databases(&mut self) -> Result<Recovered, Error> {
        let directory = self.directory;
        let journal_directory = directory.join(JOURNAL);
        let missing = !directory.join(INDEX).exists() || !directory.join(PROJECTION).exists();
        let index = Index::open(&directory.join(INDEX), |link| self.anchors.add_link(link))?;
        let mut projection = Projection::open(&directory.join(PROJECTION))?;
        if let Some(head) = projection.head()? {
            if head.log.is_some_and(|log| !self.anchors.is_of(log)) {
                return contradiction(directory, PROJECTION, "it belongs to another log");
            }
            self.anchors.add_head(&head);
        }
        let (known, next) = match projection.load()? {
            Stored::State { state, next } => (*state, Some(next)),
            Stored::Nothing => (State::default(), None),
            Stored::Altered(state) => {
                return Err(Error::Store(store::Error::Altered {
                    path: directory.join(PROJECTION),
                    state,
                }));
            }
            Stored::OtherVersion(version) => {
                (self.notice)(format!(
                    "the projections in {} were folded by another version of the program ({version}); folding them again",
                    directory.display()
                ));
                (State::default(), None)
            }
        };
        let sealed = index.sealed();
        self.confirm(&index, sealed)?;
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
        let behind = recovery.view.state.head.seq < sealed_seq;
        if behind {
            recovery.catch_up(directory, next, sealed_seq)?;
        }
        recovery.read_to_end(self)?;
        let (journal, torn) = Journal::open(&journal_directory, &recovery.reader, self.limits)?;
        let Recovery {
            mut view, touched, ..
        } = recovery;
        let end = journal.link().seq;
        // Only here: what was stored says how far the log went, and the journal has not been read to its end before.
        view.save_projection(fresh || behind, &touched, journal.position())?;
        let unindexed = sealed.is_none() && end.0 >= BLOCK_EVENTS;
        if end > Seq::NONE && (missing || fresh || unindexed) {
            (self.notice)(format!(
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
    fn confirm(&self, index: &Index, sealed: Option<Sealed>) -> Result<(), Error> {
        let directory = self.directory;
        let Some(sealed) = sealed else {
            return Ok(());
        };
        if !self.anchors.is_of(sealed.link.log) {
            return contradiction(directory, INDEX, "it belongs to another log");
        }
        let seq = sealed.link.seq;
        // What lies behind the sealed blocks is read anyway; what lies in them is in the index, or that is built anew.
        for (known, hash) in self.anchors.up_to(seq) {
            let same = match known == seq {
                true => sealed.link.hash == hash,
                false => index.holds(known, hash)?,
            };
            if !same {
                return contradiction(directory, INDEX, "it holds another event than was recorded");
            }
        }
        if let Some((record, next)) = journal::record_at(&directory.join(JOURNAL), sealed.at)?
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
            Some(_) => contradiction(
                directory,
                INDEX,
                "its events are at other places in the journal",
            ),
        }
    }

    /// Removes the databases, once what they say of the log's end is kept beside them.
    fn discard_databases(&mut self) -> Result<(), Error> {
        // What else they can't say is lost with them; the file `head` says it too.
        if let Err(store::Error::Held(path)) = self.anchors.add_databases(self.directory) {
            return Err(Error::Held(path));
        }
        if let Some(anchor) = self.anchors.furthest() {
            // Crash boundary: the next opening, too, must know it.
            HeadFile::open(self.directory, &anchor).map_err(|source| Error::Directory {
                path: self.directory.join(anchor::HEAD),
                source,
            })?;
        }
        remove_databases(self.directory)
    }
}

fn contradiction<T>(directory: &Path, name: &str, what: &str) -> Result<T, Error> {
    Err(Error::Store(store::Error::Contradiction {
        path: directory.join(name),
        what: what.to_owned(),
    }))
}

/// Reading the journal behind what the databases know.
struct Recovery {
    view: View,
    reader: Reader,
    touched: BTreeSet<tallybook_replay::state::Key>,
}

impl Recovery {
    /// Folds the events that the projections lack up to the index's last sealed one.
    fn catch_up(&mut self, directory: &Path, next: Option<Position>, to: Seq) -> Result<(), Error> {
        let journal = &directory.join(JOURNAL);
        let head = self.view.state.head;
        let mut reader = match (next, head.log) {
            (Some(next), Some(log)) => Reader::from_position(
                journal,
                next,
                // The projections are written at the end of a write.
                Link::end(log, head.epoch, head.seq, head.hash),
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
        if self.view.state.head.seq < to {
            return Err(Error::TailLost {
                path: directory.to_owned(),
                journal: self.view.state.head.seq,
                projection: to,
            });
        }
        Ok(())
    }

    /// Reads to the end: folds what the projections lack, indexes what the index lacks.
    fn read_to_end<N: FnMut(String)>(&mut self, opening: &mut Opening<'_, N>) -> Result<(), Error> {
        let projected = self.view.state.head;
        let mut count = 0_u64;
        while let Some((start, record)) = self.reader.next()? {
            if !opening.anchors.allow(record.header.seq, record.hash) {
                return Err(Error::Rewritten {
                    path: opening.directory.to_owned(),
                    seq: record.header.seq,
                });
            }
            if record.header.seq > projected.seq {
                self.touched.extend(self.view.state.apply(&entry(&record)?));
            }
            self.view.push(record, start, self.reader.position())?;
            count += 1;
            if count.is_multiple_of(65_536) {
                (opening.notice)(format!("read {count} events of the journal"));
            }
        }
        let end = self.reader.link().map_or(Seq::NONE, |link| link.seq);
        match opening.anchors.furthest() {
            Some(Anchor { seq, .. }) if seq > end => Err(Error::TailLost {
                path: opening.directory.to_owned(),
                journal: end,
                projection: seq,
            }),
            Some(_) | None => Ok(()),
        }
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
