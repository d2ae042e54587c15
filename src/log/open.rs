//! Opening a store: recovering the journal's tail, and bringing the live state up to it, or folding it again.
//!
//! It never cuts off what may have been acknowledged, never removes what says how far the log went before that was
//! read, and says aloud what it mended. The index is left alone until something needs it.

use std::path::Path;
use std::sync::Arc;

use tallybook_events::event::{ErasureCompleted, Event, LogCreated, SeqRange};
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::subject::Subject;
use tallybook_replay::state::{Head, State};

use super::anchor::{self, Anchor, Anchors, HeadFile, Kept};
use super::lock::Lock;
use super::seal::{Prepared, Sealing, seal};
use super::view::{REBUILD, View, hash_in_journal};
use super::{Draft, Error, INDEX, JOURNAL, Open, PROJECTION, chain, entry, erase, history};
use crate::journal::{self, Journal, Limits, Link, Reader, Torn};
use crate::store::{self, Ends, Projection, Stored};
use crate::{clock, identity};

/// Who is told, in a sentence, what had to be mended.
pub(super) type Notify = Arc<dyn Fn(String) + Send + Sync>;

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
        notify: Notify,
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
        if open != Open::AsItIs
            && let Err(error) = journal::remove_unfinished(&journal_directory, None)
        {
            tracing::warn!("{}", chain(&error));
        }
        let mut opening = Opening {
            directory,
            open,
            limits,
            anchors: Anchors::new(Some(journal::log_of(&journal_directory)?)),
            notify,
        };
        let head_is_sound = opening.read_head()?;
        let (mut view, journal, torn) = match opening.recover() {
            // Payloads that were being overwritten when somebody died look damaged.
            Err(error) if erase::may_be_cut_off(&error, open) => {
                match erase::finish_cut_off(directory) {
                    Ok(true) => opening.recover()?,
                    Ok(false) => return Err(error),
                    // One that can't be reached need not be the one that is in the way.
                    Err(_) => opening.recover().map_err(|_| error)?,
                }
            }
            other => other?,
        };
        if let Some(torn) = torn {
            (opening.notify)(format!(
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
        if open != Open::AsItIs {
            opened.finish_erasures(&opening.notify)?;
        }
        Ok(opened)
    }

    /// Goes on with erasures that were announced and never completed. One that can't be carried out now keeps nobody from
    /// the store: the next opening tries again.
    fn finish_erasures(&mut self, notify: &Notify) -> Result<(), Error> {
        for (announced, events) in self.view.state.erasures.clone() {
            let before = self.journal.link().seq;
            match self.finish_erasure(announced, &events) {
                Ok(payloads) => (notify)(format!(
                    "finished the erasure that event {announced} announced: {payloads} payloads"
                )),
                // What the journal has by now is not known here, or not in the state.
                Err(error) if self.journal.is_stopped() || self.journal.link().seq != before => {
                    return Err(error);
                }
                Err(error) => (notify)(format!(
                    "the erasure that event {announced} announced is not finished ({}); the next start tries again",
                    chain(&error)
                )),
            }
        }
        Ok(())
    }

    fn finish_erasure(&mut self, announced: Seq, events: &[SeqRange]) -> Result<u64, Error> {
        let directory = self.view.directory().join(JOURNAL);
        let payloads = journal::erase(&directory, events)?;
        self.append(ErasureCompleted {
            announced,
            payloads,
        })?;
        Ok(payloads)
    }

    /// Appends an event of the log's own upkeep, while nobody else can.
    fn append(&mut self, event: impl Into<Event>) -> Result<(), Error> {
        let draft = Draft::new(Subject::Cloud, event).map_err(|source| Error::Payload {
            seq: self.journal.link().seq.next(),
            source,
        })?;
        self.append_alone(draft)
    }

    /// Appends an event while nobody else can.
    pub(super) fn append_alone(&mut self, draft: Draft) -> Result<(), Error> {
        let link = self.journal.link();
        let newest = self.view.link(&draft.subject)?;
        let sealing = Sealing {
            more: 0,
            write: link.seq.next(),
            link,
            subject_previous: newest.unwrap_or((Seq::NONE, Hash::ZERO)),
            actor: &identity::actor_here(),
            writer: &Arc::new(identity::writer()),
        };
        let (record, entry) = seal(Prepared::of(draft)?, &sealing)?;
        let positions = self.journal.append(std::slice::from_ref(&record))?;
        let next = self.journal.position();
        self.view.take(vec![(record, entry)], &positions, next)?;
        self.view.write_head();
        Ok(())
    }

    fn create_log(&mut self) -> Result<(), Error> {
        self.append(LogCreated {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        self.view.save_whole()?;
        Ok(())
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
struct Opening<'a> {
    directory: &'a Path,
    open: Open,
    limits: Limits,
    /// What the journal must have: all that was met so far, also in databases that are gone by now.
    anchors: Anchors,
    notify: Notify,
}

impl Opening<'_> {
    /// Takes in what the file `head` says. `false` when it can't be understood.
    fn read_head(&mut self) -> Result<bool, Error> {
        let kept = anchor::read(self.directory).map_err(|source| Error::Directory {
            path: self.directory.join(anchor::HEAD),
            source,
        })?;
        let log = journal::log_of(&self.directory.join(JOURNAL))?;
        match kept {
            Kept::Nothing => Ok(true),
            Kept::Damaged => {
                if self.open != Open::AsItIs {
                    let path = self.directory.join(anchor::HEAD);
                    let path = path.display();
                    (self.notify)(format!("{path} can't be understood; it is written again"));
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

    fn recover(&mut self) -> Result<Recovered, Error> {
        match self.open {
            Open::Existing | Open::Create => self.mending(),
            Open::AsItIs => self.as_it_is(),
        }
    }

    /// Opens; folds the projections again where they can't be used; goes on without them where that fails too.
    fn mending(&mut self) -> Result<Recovered, Error> {
        let directory = self.directory;
        if directory.join(REBUILD).exists() {
            (self.notify)(format!(
                "the databases in {} could not be used last time; building them again from the journal",
                directory.display()
            ));
            self.keep_what_databases_know()?;
            remove_databases(directory)?;
        }
        let path = directory.join(PROJECTION);
        let error = match self.with_projection() {
            Err(Error::Store(error)) if error.is_disk_full() => {
                return self.without_projection(chain(&error));
            }
            Err(Error::Store(error)) => unless_held(error)?,
            other => return other,
        };
        (self.notify)(format!(
            "the projections in {} can't be used ({}); folding them again from the journal",
            path.display(),
            chain(&error)
        ));
        let rebuilt = self
            .keep_what_databases_know()
            .and_then(|()| remove_database(&path))
            .and_then(|()| self.with_projection());
        let error = match rebuilt {
            Err(Error::Store(error)) => chain(&unless_held(error)?),
            Err(error @ Error::Directory { .. }) => chain(&error),
            other => return other,
        };
        (self.notify)(format!(
            "the projections in {} can't be kept ({error}); reading the journal instead",
            path.display(),
        ));
        self.without_projection(error)
    }

    /// Opens and mends nothing: where the projections can't be used, the journal answers, and they stay as they are.
    fn as_it_is(&mut self) -> Result<Recovered, Error> {
        let marker = self.directory.join(REBUILD);
        if marker.exists() {
            let why = std::fs::read_to_string(&marker).unwrap_or_default();
            return self.without_projection(format!("they were given up: {}", why.trim()));
        }
        let error = match self.with_projection() {
            Err(Error::Store(error)) => unless_held(error)?,
            other => return other,
        };
        // The state that was stored, so that it can be told what of it is wrong.
        let stored = match error {
            store::Error::Altered { ref state, .. } => Some(state.clone()),
            _ => None,
        };
        let mut recovered = self.without_projection(chain(&error))?;
        recovered.0.stored = stored;
        Ok(recovered)
    }

    fn view(&self, projection: Option<Projection>) -> View {
        let anchors = self.anchors.clone();
        let notify = Arc::clone(&self.notify);
        View::new(self.directory, self.open, anchors, notify, projection)
    }

    fn without_projection(&mut self, why: String) -> Result<Recovered, Error> {
        let mut view = self.view(None);
        view.faults.push(why);
        self.fold_to_end(view, None)
    }

    fn with_projection(&mut self) -> Result<Recovered, Error> {
        let path = self.directory.join(PROJECTION);
        let mut projection = Projection::open(&path)?;
        if let Some(head) = projection.head()? {
            if head.log.is_some_and(|log| !self.anchors.is_of(log)) {
                return Err(Error::Store(store::Error::Contradiction {
                    path,
                    what: "it belongs to another log".to_owned(),
                }));
            }
            self.anchors.add_head(&head);
        }
        let known = match projection.load()? {
            Stored::State { state, ends } => {
                self.confirm(&state, ends)?;
                Some((*state, ends))
            }
            Stored::Nothing => None,
            Stored::Altered(state) => {
                return Err(Error::Store(store::Error::Altered { path, state }));
            }
            Stored::OtherVersion(version) => {
                (self.notify)(format!(
                    "the projections in {} were folded by another version of the program ({version}); folding them again",
                    path.display()
                ));
                None
            }
        };
        let view = self.view(Some(projection));
        self.fold_to_end(view, known)
    }

    /// Folds what a state lacks, up to the journal's end.
    fn fold_to_end(
        &mut self,
        mut view: View,
        known: Option<(State, Ends)>,
    ) -> Result<Recovered, Error> {
        let journal_directory = self.directory.join(JOURNAL);
        let known = known.and_then(|(state, ends)| Some((state.head.log?, state, ends)));
        let mut at = known.as_ref().map(|(_, _, ends)| ends.at);
        let (mut reader, is_fresh) = match known {
            Some((log, state, ends)) => {
                let head = state.head;
                view.state = state;
                // The projections are written at the end of a write.
                let link = Link::end(log, head.epoch, head.seq, head.hash);
                (
                    Reader::from_position(&journal_directory, ends.next, link),
                    false,
                )
            }
            None => {
                let (state, reader) = history::fold_known(&journal_directory)?;
                view.state = state;
                view.state.forget_past();
                (reader, true)
            }
        };
        let folded = view.state.head;
        self.allow_folded(&folded)?;
        while let Some((start, record)) = reader.next()? {
            at = Some(start);
            if !self.anchors.allow(record.header.seq, record.hash) {
                return Err(Error::Rewritten {
                    path: self.directory.to_owned(),
                    seq: record.header.seq,
                });
            }
            if record.header.seq > folded.seq {
                view.fold(&entry(&record)?)?;
            }
        }
        let end = reader.link().map_or(Seq::NONE, |link| link.seq);
        if let Some(Anchor { seq, .. }) = self.anchors.furthest()
            && seq > end
        {
            return Err(Error::TailLost {
                path: self.directory.to_owned(),
                journal: end,
                projection: seq,
            });
        }
        let (journal, torn) = Journal::open(&journal_directory, &reader, self.limits)?;
        // Only here: what was stored says how far the log went, and the journal has not been read to its end before.
        let next = journal.position();
        view.save(
            is_fresh,
            Ends {
                at: at.unwrap_or(next),
                next,
            },
        )?;
        if end > Seq::NONE && is_fresh && view.faults.is_empty() {
            (self.notify)(format!(
                "folded the projections in {} again from the journal: {end} events",
                self.directory.join(PROJECTION).display()
            ));
        }
        Ok((view, journal, torn))
    }

    /// Holds what the projections say was here against the journal, before anything relies on it.
    fn confirm(&self, state: &State, ends: Ends) -> Result<(), Error> {
        let head = state.head;
        let journal = self.directory.join(JOURNAL);
        if head.seq == Seq::NONE
            || journal::link_at(&journal, ends.at)? == Some((head.hash, ends.next))
        {
            return Ok(());
        }
        let (end, found) = hash_in_journal(self.directory, head.seq)?;
        match found {
            None => Err(Error::TailLost {
                path: self.directory.to_owned(),
                journal: end,
                projection: head.seq,
            }),
            Some(hash) if hash != head.hash => Err(Error::Rewritten {
                path: self.directory.to_owned(),
                seq: head.seq,
            }),
            Some(_) => Err(Error::Store(store::Error::Contradiction {
                path: self.directory.join(PROJECTION),
                what: "its newest event is at another place in the journal".to_owned(),
            })),
        }
    }

    /// Holds what is known of the log's end against events that were folded without looking at each.
    fn allow_folded(&self, folded: &Head) -> Result<(), Error> {
        for (seq, hash) in self.anchors.up_to(folded.seq) {
            let found = match seq == folded.seq {
                true => Some(folded.hash),
                false => hash_in_journal(self.directory, seq)?.1,
            };
            if found != Some(hash) {
                return Err(Error::Rewritten {
                    path: self.directory.to_owned(),
                    seq,
                });
            }
        }
        Ok(())
    }

    /// Keeps beside the databases what they say of the log's end, before they are removed.
    fn keep_what_databases_know(&mut self) -> Result<(), Error> {
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
        Ok(())
    }
}

/// An error that nobody else's use of the databases explains: then they are not damaged, and not ours.
fn unless_held(error: store::Error) -> Result<store::Error, Error> {
    match error {
        store::Error::Held(path) => Err(Error::Held(path)),
        other => Ok(other),
    }
}

/// Removes both databases, and what asked for it.
pub(super) fn remove_databases(directory: &Path) -> Result<(), Error> {
    for name in [INDEX, PROJECTION] {
        remove_database(&directory.join(name))?;
    }
    let path = directory.join(REBUILD);
    ignore_missing(&path, std::fs::remove_file(&path))
}

/// Removes one database.
pub(super) fn remove_database(path: &Path) -> Result<(), Error> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    ignore_missing(path, removed)
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
