//! The log as commands use it: append under a condition, query, follow. One process holds the store; the others
//! reach it through the holder's socket, and take over when it is gone. Same calls, same answers.
//!
//! It never acknowledges an event before the journal did, and never lets a condition be decided by anyone but the
//! single writer.

mod book;
mod draft;
mod filter;
mod socket;
pub mod verify;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_events::{codec, event};
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::Operation;
use tallybook_replay::state::{Head, State};
use tokio::sync::RwLock;

use crate::{journal, store};
pub use book::{Holder, Opened};
pub use draft::{Appended, Condition, Draft, Refusal};
pub use filter::Filter;

/// How long to go on trying when the holder comes and goes.
const HOLDER_WAIT: Duration = Duration::from_secs(20);
/// The journal's directory in a store.
pub const JOURNAL: &str = "journal";
/// The index's directory in a store.
pub const INDEX: &str = "index";
/// The projections' directory in a store.
pub const PROJECTION: &str = "projection";
const LOCK: &str = "lock";

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no log.
    #[error("there is no log in {}", .0.display())]
    Missing(PathBuf),
    /// The store's directory can't be used.
    #[error("can't use the store in {}", path.display())]
    Directory {
        /// The store.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The journal failed.
    #[error("the log can't be read or written")]
    Journal(#[from] journal::Error),
    /// The store failed, and building it again did not help.
    #[error("the store can't be used")]
    Store(#[from] store::Error),
    /// The condition of an append did not hold; nothing was appended.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The holder could not be reached, and the store could not be taken over.
    #[error("another process holds the store in {} and does not answer", .0.display())]
    NoHolder(PathBuf),
    /// The holder answered with an error.
    #[error("the process that holds the store says: {0}")]
    Holder(String),
    /// The holder said something that can't be understood: probably another version.
    #[error("the process that holds the store speaks another version of the protocol")]
    Protocol(#[source] codec::Error),
    /// A payload can't be understood.
    #[error("event {seq} can't be understood")]
    Payload {
        /// Its position.
        seq: Seq,
        /// Why not.
        source: event::Error,
    },
    /// An operation's events contradict each other.
    #[error("the events of operation {id} contradict each other")]
    Operation {
        /// The operation.
        id: OperationId,
        /// How.
        source: tallybook_replay::operation::Error,
    },
    /// The projections know more events than the journal has: its end was cut off, or it is an old copy.
    #[error(
        "the journal in {} ends at event {journal}, but event {projection} was recorded here before",
        path.display()
    )]
    TailLost {
        /// The store.
        path: PathBuf,
        /// The journal's last event.
        journal: Seq,
        /// The newest event that was acknowledged here.
        projection: Seq,
    },
}

/// Whether a store may be made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must be there.
    Existing,
    /// It is made where it is not there.
    Create,
}

/// A log, open. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    directory: Arc<PathBuf>,
    open: Open,
    role: Arc<RwLock<Role>>,
}

enum Role {
    Holder(Holder),
    Client,
}

impl Log {
    /// Opens the store: becomes its holder, or a client of who holds it.
    ///
    /// `notice` is told, in a sentence, what had to be mended.
    ///
    /// # Errors
    /// When there is none (and none may be made), it is damaged, or it can't be reached.
    pub async fn open(
        directory: &Path,
        open: Open,
        notice: impl FnMut(String) + Send + 'static,
    ) -> Result<Self, Error> {
        if open == Open::Existing && journal::segments(&directory.join(JOURNAL))?.is_empty() {
            return Err(Error::Missing(directory.to_owned()));
        }
        let role = take_role(directory, open, notice).await?;
        Ok(Log {
            directory: Arc::new(directory.to_owned()),
            open,
            role: Arc::new(RwLock::new(role)),
        })
    }

    /// Whether this process holds the store.
    pub async fn is_holder(&self) -> bool {
        matches!(*self.role.read().await, Role::Holder(_))
    }

    /// The store's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Appends events if the condition holds; returns once they are durable.
    ///
    /// # Errors
    /// [`Error::Refused`] when the condition does not hold. On any error nothing may be acted on.
    pub async fn append(
        &self,
        drafts: Vec<Draft>,
        condition: Condition,
    ) -> Result<Vec<Appended>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => {
                        let actor = crate::identity::actor_here();
                        return holder.append(drafts, condition, actor).await;
                    }
                    Role::Client => {
                        if let Some(answer) =
                            socket::append(&self.directory, &drafts, &condition).await?
                        {
                            return answer;
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// The state, folded up to the newest event.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn state(&self) -> Result<State, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return Ok(holder.state()),
                    Role::Client => {
                        if let Some(state) = socket::state(&self.directory).await? {
                            return Ok(state);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// Where the log ends.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn head(&self) -> Result<Head, Error> {
        Ok(self.state().await?.head)
    }

    /// The records that a filter takes, in order.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.records(filter),
                    Role::Client => {
                        if let Some(records) = socket::records(&self.directory, filter).await? {
                            return Ok(records);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// The events that a filter takes, in order.
    ///
    /// # Errors
    /// When the store can't be read, or an event can't be understood.
    pub async fn entries(&self, filter: &Filter) -> Result<Vec<Entry>, Error> {
        self.records(filter).await?.iter().map(entry).collect()
    }

    /// Waits until there is an event behind this one.
    ///
    /// # Errors
    /// When the store can't be reached any more.
    pub async fn wait_beyond(&self, seq: Seq) -> Result<(), Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => {
                        holder.wait_beyond(seq).await;
                        return Ok(());
                    }
                    Role::Client => {
                        if socket::wait_beyond(&self.directory, seq).await?.is_some() {
                            return Ok(());
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// An operation, folded from its events; `None` when there is none of this id.
    ///
    /// # Errors
    /// When the store can't be read, or the events contradict each other.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, Error> {
        let entries = self.entries(&Filter::of_operation(id)).await?;
        Operation::fold(id, &entries).map_err(|source| Error::Operation { id, source })
    }

    /// Gives the store up in good order.
    pub async fn close(self) {
        let mut role = self.role.write().await;
        if let Role::Holder(holder) = std::mem::replace(&mut *role, Role::Client) {
            holder.close().await;
        }
    }

    /// The holder is gone: become it, or find the next one.
    async fn take_over(&self, deadline: Instant) -> Result<(), Error> {
        if Instant::now() > deadline {
            return Err(Error::NoHolder(self.directory.to_path_buf()));
        }
        let mut role = self.role.write().await;
        if matches!(*role, Role::Client) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let notice = |notice: String| tracing::warn!("{notice}");
            *role = take_role(&self.directory, self.open, notice).await?;
        }
        Ok(())
    }
}

/// Decodes a record.
///
/// # Errors
/// When its payload is not what its kind and version say.
pub fn entry(record: &Record) -> Result<Entry, Error> {
    Entry::from_record(record).map_err(|source| Error::Payload {
        seq: record.header.seq,
        source,
    })
}

async fn take_role(
    directory: &Path,
    open: Open,
    notice: impl FnMut(String) + Send + 'static,
) -> Result<Role, Error> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    if open == Open::Create {
        make_store_directory(directory).map_err(failed)?;
    }
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {
            let owned = directory.to_owned();
            let opened =
                tokio::task::spawn_blocking(move || Opened::new(&owned, open, lock, notice))
                    .await
                    .map_err(|error| failed(std::io::Error::other(error)))??;
            Ok(Role::Holder(Holder::serve(opened)?))
        }
        Err(std::fs::TryLockError::WouldBlock) => Ok(Role::Client),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn make_store_directory(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    match directory.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}
