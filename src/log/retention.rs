//! Whole segments to the archive and back, by whoever holds the store.
//!
//! A segment's file goes only once it is whole, and was read back, where it went, and an event says so. A crash leaves both
//! files, never none; the same command then finishes. The last segment is never touched: the writer has it.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tallybook_events::actor::Actor;
use tallybook_events::archive::{ArchiveHead, content_hash};
use tallybook_events::event::{Event, SegmentsArchived, SegmentsRestored, SeqRange};
use tallybook_events::ids::Seq;
use tallybook_events::subject::Subject;

use super::holder::{Desk, Shared};
use super::{
    Condition, Draft, Error, Filter, HOLDER_WAIT, JOURNAL, Log, Role, chain, entry, socket,
};
use crate::identity;
use crate::journal;
use crate::journal::archive::{self, Own};
use crate::journal::away::{self, Archived};

/// Which segments go to the archive, and where that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archiving {
    /// Only segments all of whose events are older than this.
    pub before: Option<Before>,
    /// How many of the newest closed segments stay.
    pub keep: usize,
    /// The directory that the archive is to lead to.
    pub to: Option<PathBuf>,
    /// Change nothing.
    pub dry_run: bool,
}

/// What a segment has to be older than.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    /// This event.
    Seq(Seq),
    /// This time.
    Time {
        /// By the writer's clock.
        unix_us: u64,
    },
}

/// Which segments come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoring {
    /// Those that these events are in; all where there is none.
    pub events: Vec<Seq>,
    /// Change nothing.
    pub dry_run: bool,
}

/// A segment that was moved, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The events in it.
    pub events: SeqRange,
    /// Its length in bytes, as it is in the journal.
    pub len: u64,
    /// Its length in bytes in the archive, where it is there.
    pub packed_len: Option<u64>,
    /// Where it goes.
    pub to: PathBuf,
}

/// Why segments were not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what}")]
pub struct Failure {
    /// What happened, to which file.
    pub what: String,
    /// Of which sort it is.
    pub class: FailureClass,
}

/// A sort of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// The archive leads elsewhere, or to nothing.
    Place,
    /// The log says that segments are in the archive, and they are in no file.
    Away,
    /// No archived segment has such an event.
    Missing,
    /// A segment is not what it was, or is nowhere.
    Damaged,
    /// A newer program wrote it.
    Newer,
    /// A disk is full.
    DiskFull,
    /// Anything else.
    Other,
}

impl Failure {
    fn new(class: FailureClass, what: impl Into<String>) -> Self {
        let what = what.into();
        Failure { what, class }
    }
}

impl From<journal::Error> for Failure {
    fn from(error: journal::Error) -> Self {
        let class = match &error {
            _ if error.is_disk_full() => FailureClass::DiskFull,
            _ if error.is_newer() => FailureClass::Newer,
            journal::Error::Away { .. } => FailureClass::Away,
            journal::Error::Damaged { .. }
            | journal::Error::Head { .. }
            | journal::Error::Newer { .. }
            | journal::Error::Absent { .. }
            | journal::Error::Unreached { .. } => FailureClass::Damaged,
            journal::Error::Io { .. }
            | journal::Error::Unsynced { .. }
            | journal::Error::Stopped
            | journal::Error::Missing(_) => FailureClass::Other,
        };
        Failure::new(class, chain(&error))
    }
}

/// What is asked of the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    Archive(Archiving),
    Restore(Restoring),
}

impl Log {
    /// Moves whole, closed segments to the archive; whoever holds the store does it. Returns which.
    ///
    /// # Errors
    /// [`Error::Retention`] when one of them can't be moved. Then all that is not in the archive is where it was.
    pub async fn archive(&self, archiving: Archiving) -> Result<Vec<Moved>, Error> {
        self.retain(Ask::Archive(archiving)).await
    }

    /// Brings segments back from the archive; whoever holds the store does it. Returns which.
    ///
    /// # Errors
    /// [`Error::Retention`] when one of them is not what was put there: then nothing is moved.
    pub async fn restore(&self, restoring: Restoring) -> Result<Vec<Moved>, Error> {
        self.retain(Ask::Restore(restoring)).await
    }

    async fn retain(&self, ask: Ask) -> Result<Vec<Moved>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => {
                        return holder.desk().retain(ask, identity::actor_here()).await;
                    }
                    Role::Client => {
                        if let Some(moved) = socket::retain(&self.place, &ask).await? {
                            return moved;
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }
}

impl Desk {
    /// Does what is asked, one at a time.
    pub(super) async fn retain(&self, ask: Ask, actor: Arc<Actor>) -> Result<Vec<Moved>, Error> {
        let desk = self.clone();
        // A task of its own: who asked may be gone before it is done, and nobody else may begin before that.
        let done = tokio::spawn(async move {
            let _alone = desk.upkeep().lock_owned().await;
            desk.away(Shared::check_held).await?;
            match ask {
                Ask::Archive(archiving) => desk.archive(archiving, actor).await,
                Ask::Restore(restoring) => desk.restore(restoring, actor).await,
            }
        });
        match done.await {
            Ok(moved) => moved,
            Err(error) => Err(Error::Holder(error.to_string())),
        }
    }

    async fn archive(&self, archiving: Archiving, actor: Arc<Actor>) -> Result<Vec<Moved>, Error> {
        let dry_run = archiving.dry_run;
        let (store, directory, moved) = self
            .away(move |shared| {
                let store = shared.read(|view| view.directory().to_owned());
                // An archive that is not mounted is an empty directory: what is put there is hidden by the mount.
                await_archive(shared, &store.join(JOURNAL))?;
                let directory = place(&store, archiving.to.as_deref(), dry_run)?;
                let moved = pack(&store, &directory, &archiving)?;
                Ok((store, directory, moved))
            })
            .await?;
        if dry_run || moved.is_empty() {
            return Ok(moved);
        }
        let archived = SegmentsArchived {
            directory: directory.display().to_string(),
            segments: moved.iter().map(|one| one.events).collect(),
        };
        // Crash boundary: both files of each are there.
        self.record(archived, actor).await?;
        self.away(move |_| {
            remove_own(&store, &moved)?;
            Ok(moved)
        })
        .await
    }

    async fn restore(&self, restoring: Restoring, actor: Arc<Actor>) -> Result<Vec<Moved>, Error> {
        let dry_run = restoring.dry_run;
        let (journal, moved) = self
            .away(move |shared| {
                let journal = shared.read(|view| view.directory().join(JOURNAL));
                if restoring.events.is_empty() {
                    match await_archive(shared, &journal) {
                        // What is damaged there is named below, and nothing else matters for what can be brought back.
                        Ok(()) | Err(Error::Journal(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                let moved = match unpack(&journal, &restoring) {
                    Err(failure) if failure.class == FailureClass::Missing => {
                        await_archive(shared, &journal)?;
                        return Err(failure.into());
                    }
                    unpacked => unpacked?,
                };
                Ok((journal, moved))
            })
            .await?;
        if dry_run || moved.is_empty() {
            return Ok(moved);
        }
        let segments = moved.iter().map(|one| one.events).collect();
        // Crash boundary: both files of each are there.
        self.record(SegmentsRestored { segments }, actor).await?;
        self.away(move |_| {
            for one in &moved {
                archive::remove(&archive::path(&journal, one.events.first))
                    .map_err(Failure::from)?;
            }
            Ok(moved)
        })
        .await
    }

    async fn record(&self, event: impl Into<Event>, actor: Arc<Actor>) -> Result<(), Error> {
        let draft = Draft::new(Subject::Cloud, event).map_err(|error| {
            Failure::new(
                FailureClass::Other,
                format!("what was moved can't be recorded: {}", chain(&error)),
            )
        })?;
        self.append(vec![draft], Condition::none(), actor)
            .await
            .map(drop)
    }
}

/// What the log says is in the archive has to be there.
fn await_archive(shared: &Shared, journal: &Path) -> Result<(), Error> {
    let away = match in_archive(shared) {
        Ok(archived) => {
            let away = archived.in_no_file(journal).map_err(Failure::from)?;
            if away.is_empty() {
                return Ok(());
            }
            away::shown(&away)
        }
        // What else is there, an event says that is away itself.
        Err(Error::Journal(journal::Error::Absent { seq, .. })) => {
            format!("event {seq} is in no file")
        }
        Err(error) => return Err(error),
    };
    let path = archive::directory(journal);
    Err(Failure::from(journal::Error::Away { path, what: away }).into())
}

/// The segments in the archive, by what the log says.
fn in_archive(shared: &Shared) -> Result<Archived, Error> {
    let mut said = Vec::new();
    for kind in ["segments", "log.recovered"] {
        let of_kind = Filter {
            kind: Some(kind.to_owned()),
            ..Filter::default()
        };
        said.extend(shared.records(&of_kind)?);
    }
    said.sort_by_key(|record| record.header.seq);
    let mut archived = Archived::default();
    for record in &said {
        archived.take(&entry(record)?.event);
    }
    Ok(archived)
}

/// The archive's directory; made, or made to lead elsewhere, where there is none yet. A dry run makes nothing.
fn place(store: &Path, to: Option<&Path>, dry_run: bool) -> Result<PathBuf, Failure> {
    let directory = archive::directory(&store.join(JOURNAL));
    let shown = directory.display();
    let wrong = |what: String| Failure::new(FailureClass::Place, what);
    let failed = |error: io::Error| journal_io("making", &directory, error);
    if let Some(to) = to
        && !(to.is_absolute() && to.is_dir())
    {
        let to = to.display();
        return Err(wrong(format!(
            "{to} is not a directory, or not a path from the root"
        )));
    }
    let made = match (std::fs::symlink_metadata(&directory), to) {
        (Err(error), to) if error.kind() == io::ErrorKind::NotFound => {
            if dry_run {
                return Ok(to.map_or_else(|| directory.clone(), Path::to_owned));
            }
            match to {
                Some(to) => std::os::unix::fs::symlink(to, &directory),
                None => std::fs::DirBuilder::new().mode(0o700).create(&directory),
            }
            .map_err(failed)?;
            true
        }
        (Err(error), _) => return Err(failed(error)),
        (Ok(_), _) => false,
    };
    if made {
        std::fs::File::open(store)
            .and_then(|store| store.sync_all())
            .map_err(failed)?;
    }
    let Ok(real) = std::fs::canonicalize(&directory) else {
        let leads = std::fs::read_link(&directory).unwrap_or_default();
        return Err(wrong(format!(
            "the archive {shown} leads to {}, which is not there; mount it",
            leads.display()
        )));
    };
    if let Some(to) = to
        && std::fs::canonicalize(to).ok().as_ref() != Some(&real)
    {
        return Err(wrong(format!(
            "the archive {shown} leads to {}, not to {}",
            real.display(),
            to.display()
        )));
    }
    Ok(real)
}

fn journal_io(doing: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::from(journal::Error::Io {
        doing,
        path: path.to_owned(),
        source,
    })
}

/// Puts all that is chosen into the archive, and leaves it in the journal too.
fn pack(store: &Path, directory: &Path, archiving: &Archiving) -> Result<Vec<Moved>, Failure> {
    let journal = store.join(JOURNAL);
    // What an archive that is not mounted lacks would be put behind a hole.
    if journal::segments(&journal)?.first() != Some(&Seq(1)) {
        let missing = archive::path(&journal, Seq(1));
        return Err(Failure::new(
            FailureClass::Damaged,
            format!(
                "{} is not there; mount the archive first",
                missing.display()
            ),
        ));
    }
    let own = journal::own_segments(&journal)?;
    let sealed = own.len().saturating_sub(1);
    let mut moved = Vec::new();
    let pairs = own.iter().zip(own.iter().skip(1));
    for (first, next) in pairs.take(sealed.saturating_sub(archiving.keep)) {
        if let Some(Before::Seq(seq)) = archiving.before
            && *next > seq
        {
            break;
        }
        let Some(loaded) = archive::load_own(&journal, *first)? else {
            continue;
        };
        let described = archive::describe(&loaded.path, *first, &loaded.bytes)?;
        if let Some(Before::Time { unix_us }) = archiving.before
            && described.time_unix_us >= unix_us
        {
            break;
        }
        let to = archive::path(&journal, *first);
        let to = to
            .file_name()
            .map_or_else(|| to.clone(), |name| directory.join(name));
        let packed_len = match archiving.dry_run {
            true => None,
            false => Some(archive::put(&journal, *first, &loaded.bytes)?.stored_len()),
        };
        moved.push(Moved {
            events: described.events,
            len: loaded.bytes.len() as u64,
            packed_len,
            to,
        });
    }
    Ok(moved)
}

/// Removes from the journal what is in the archive, each held against that once more.
fn remove_own(store: &Path, moved: &[Moved]) -> Result<(), Failure> {
    let journal = store.join(JOURNAL);
    for one in moved {
        let first = one.events.first;
        let head = archive::head(&journal, first)?;
        let Some(own) = archive::load_own(&journal, first)? else {
            continue;
        };
        if content_hash(&own.bytes) != head.content {
            let what = format!(
                "{} changed while it was archived, and stays; archive it again",
                own.path.display()
            );
            return Err(Failure::new(FailureClass::Other, what));
        }
        archive::remove(&own.path)?;
    }
    Ok(())
}

/// Brings all that is chosen back into the journal, and leaves it in the archive too. Nothing is written before all was
/// checked.
fn unpack(journal: &Path, restoring: &Restoring) -> Result<Vec<Moved>, Failure> {
    let archived = journal::archived_segments(journal)?;
    let mut chosen: Vec<Seq> = match restoring.events.is_empty() {
        true => archived,
        false => {
            let of = |seq: &Seq| segment_of(journal, &archived, *seq);
            restoring.events.iter().map(of).collect::<Result<_, _>>()?
        }
    };
    chosen.sort_unstable();
    chosen.dedup();
    let mut moved = Vec::new();
    for first in &chosen {
        let (head, _) = check(journal, *first)?;
        moved.push(Moved {
            events: head.events,
            len: head.len,
            packed_len: Some(head.stored_len()),
            to: journal::segment_path(journal, *first),
        });
    }
    if restoring.dry_run {
        return Ok(moved);
    }
    for first in chosen {
        let (_, bytes) = check(journal, first)?;
        // Crash boundary: where both are there, the journal's own counts, and it is whole and on the disk from here on.
        archive::put_back(journal, first, &bytes)?;
    }
    Ok(moved)
}

/// The archived segment that an event is in.
fn segment_of(journal: &Path, archived: &[Seq], seq: Seq) -> Result<Seq, Failure> {
    let at = archived.iter().rev().find(|first| **first <= seq);
    if let Some(first) = at
        && archive::head(journal, *first)?.events.last >= seq
    {
        return Ok(*first);
    }
    let what = format!(
        "event {seq} is in no segment of the archive {}",
        archive::directory(journal).display()
    );
    Err(Failure::new(FailureClass::Missing, what))
}

/// An archived segment, held against its head, its own chain and the segments before and behind it.
fn check(journal: &Path, first: Seq) -> Result<(ArchiveHead, Vec<u8>), Failure> {
    let Some(loaded) = archive::load_archived(journal, first)? else {
        let path = archive::path(journal, first);
        return Err(Failure::new(
            FailureClass::Missing,
            format!("{} is not there", path.display()),
        ));
    };
    let damaged = |what: &str| {
        let path = loaded.path.display();
        Failure::new(
            FailureClass::Damaged,
            format!("{path} is damaged: {what}; nothing was moved"),
        )
    };
    if let Some(wrong) = &loaded.wrong {
        return Err(damaged(&wrong.to_string()));
    }
    let head = archive::head(journal, first)?;
    let described = archive::describe(&loaded.path, first, &loaded.bytes)
        .map_err(|error| damaged(&chain(&error)))?;
    if (described.log, described.events, described.hash) != (head.log, head.events, head.hash) {
        return Err(damaged("its head says something else than what is in it"));
    }
    let all = journal::segments(journal)?;
    if all.contains(&head.events.last.next()) {
        let next = archive::segment_head(journal, head.events.last.next())?;
        if (next.log, next.previous) != (head.log, head.hash) {
            return Err(damaged("the segment behind it does not follow it"));
        }
    }
    if let Some(before) = all.iter().rev().find(|other| **other < first)
        && journal::archived_segments(journal)?.contains(before)
        && let Ok(before) = archive::head(journal, *before)
        && (before.events.last.next(), before.hash) != (first, described.previous)
    {
        return Err(damaged("it does not follow the segment before it"));
    }
    if archive::own(journal, first, &described)? == Own::Other {
        return Err(damaged("the journal has another segment of this name"));
    }
    Ok((head, loaded.bytes))
}
