//! The log as commands use it: append under a condition, query, follow. One process holds the store; the others
//! reach it through the holder's socket, and take over when it is gone. Same calls, same answers.
//!
//! It never acknowledges an event before the journal did, and never lets a condition be decided by anyone but the
//! single writer.

mod admit;
mod anchor;
mod draft;
mod erase;
mod error;
mod filter;
pub mod gate;
pub mod history;
mod holder;
mod indexer;
mod lock;
mod open;
pub mod recover;
mod reserve;
pub mod retention;
mod seal;
mod serving;
pub(crate) mod socket;
pub mod verify;
mod view;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_replay::entry::Entry;
use tallybook_replay::operation::Operation;
use tallybook_replay::state::{Head, OperationSummary, State};
use tokio::sync::RwLock;

use crate::causes::in_line as chain;
use crate::{identity, journal};
use gate::{Call, Gate};
use holder::Holder;
use lock::Lock;
use open::Opened;
use socket::Place;

pub use crate::journal::Limits;
pub use anchor::{HEAD, KeptHead, is_there};
pub use draft::{Appended, Condition, Draft, Refusal};
pub use erase::Erased;
pub use error::Error;
pub use filter::{Filter, Limit};
pub use serving::{ACT, READ};
pub use socket::{Attendant, Caller, Right};

/// How long to go on trying when the holder comes and goes.
const HOLDER_WAIT: Duration = Duration::from_secs(20);
/// The journal's directory in a store.
pub const JOURNAL: &str = "journal";
/// The index's directory in a store.
pub const INDEX: &str = "index";
/// The file in a store that its daemon has locked.
pub const DAEMON: &str = "daemon";
/// The projections' directory in a store.
pub const PROJECTION: &str = "projection";

/// Whether a store may be made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must be there.
    Existing,
    /// It is made where it is not there.
    Create,
    /// It must be there, and what is wrong with its databases stays wrong: for whoever looks for that.
    AsItIs,
}

/// Who is told what had to be mended, also when this process takes over later.
type Notice = Arc<Mutex<dyn FnMut(String) + Send>>;

/// A log, open. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    place: Arc<Place>,
    open: Open,
    limits: Limits,
    notice: Notice,
    role: Arc<RwLock<Role>>,
    /// Only in a simulation.
    gate: Option<Gate>,
    /// Whether this process is the daemon of the store: it leaves the store to nobody else.
    stays: Arc<AtomicBool>,
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
        Self::open_within(directory, open, Limits::default(), notice).await
    }

    /// Opens the store with other limits than the usual ones.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub async fn open_within(
        directory: &Path,
        open: Open,
        limits: Limits,
        notice: impl FnMut(String) + Send + 'static,
    ) -> Result<Self, Error> {
        if !is_there(directory)? && open != Open::Create {
            return Err(Error::Missing(directory.to_owned()));
        }
        let notice: Notice = Arc::new(Mutex::new(notice));
        let role = take_role(directory, open, limits, &notice).await?;
        Ok(Log {
            place: Arc::new(Place::Store(directory.to_owned())),
            open,
            limits,
            notice,
            role: Arc::new(RwLock::new(role)),
            gate: None,
            stays: Arc::default(),
        })
    }

    /// The same log, with each call passing the gate of a simulation.
    #[must_use]
    pub fn gated(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Whether this process holds the store.
    pub async fn is_holder(&self) -> bool {
        matches!(*self.role.read().await, Role::Holder(_))
    }

    /// The store's directory; `None` where only a daemon's socket can be used.
    pub fn store(&self) -> Option<&Path> {
        match &*self.place {
            Place::Store(directory) => Some(directory),
            Place::Socket(_) => None,
        }
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
        let appended = self.append_by_holder(drafts, condition);
        gate::call(self.gate.as_ref(), Call::Append, appended).await
    }

    async fn append_by_holder(
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
                        let actor = identity::actor_here();
                        return holder.desk().append(drafts, condition, actor).await;
                    }
                    Role::Client => {
                        if let Some(answer) =
                            socket::append(&self.place, &drafts, &condition).await?
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
        gate::call(self.gate.as_ref(), Call::Read, self.state_of_holder()).await
    }

    async fn state_of_holder(&self) -> Result<State, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return Ok(holder.desk().state()),
                    Role::Client => {
                        if let Some(state) = socket::state(&self.place).await? {
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
        gate::call(self.gate.as_ref(), Call::Read, self.head_of_holder()).await
    }

    async fn head_of_holder(&self) -> Result<Head, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return Ok(holder.desk().head()),
                    Role::Client => {
                        if let Some(head) = socket::head(&self.place).await? {
                            return Ok(head);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// The records that a filter takes, in order.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let records = self.records_of_holder(filter);
        gate::call(self.gate.as_ref(), Call::Read, records).await
    }

    async fn records_of_holder(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.desk().records(filter).await,
                    Role::Client => {
                        if let Some(records) = socket::records(&self.place, filter).await? {
                            return Ok(records);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// Holds the index against the journal, up to an event; whoever holds the store does it.
    ///
    /// # Errors
    /// When the store can't be reached, or the journal can't be read.
    pub async fn check_index(&self, to: Seq) -> Result<verify::IndexReport, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.desk().check_index(to).await,
                    Role::Client => {
                        if let Some(report) = socket::check_index(&self.place, to).await? {
                            return Ok(report);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// What is wrong with the databases, as far as whoever holds the store met it and did not mend it.
    ///
    /// # Errors
    /// When the store can't be reached.
    pub async fn faults(&self) -> Result<Vec<String>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.desk().faults().await,
                    Role::Client => {
                        if let Some(faults) = socket::faults(&self.place).await? {
                            return Ok(faults);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// What the projections held when this process opened them [as they are](Open::AsItIs), where that was not what
    /// was written there.
    pub async fn altered(&self) -> Option<State> {
        match &*self.role.read().await {
            Role::Holder(holder) => holder.desk().stored(),
            Role::Client => None,
        }
    }

    /// How an operation stands, in one line; `None` when there is none of this id.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn summary(&self, id: OperationId) -> Result<Option<OperationSummary>, Error> {
        let summary = self.summary_of_holder(id);
        gate::call(self.gate.as_ref(), Call::Read, summary).await
    }

    async fn summary_of_holder(&self, id: OperationId) -> Result<Option<OperationSummary>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.desk().summary(id).await,
                    Role::Client => {
                        if let Some(known) = socket::summary(&self.place, id).await? {
                            return Ok(known);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// The operations whose short ids begin so.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn operations_like(&self, start: &str) -> Result<BTreeSet<OperationId>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => {
                        return holder.desk().operations_like(start.to_owned()).await;
                    }
                    Role::Client => {
                        let found = socket::operations_like(&self.place, start).await?;
                        if let Some(found) = found {
                            return Ok(found);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// The newest operations, at most so many, and all that are open.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn operations(
        &self,
        newest: Option<usize>,
    ) -> Result<BTreeMap<OperationId, OperationSummary>, Error> {
        let mut operations = self.state().await?.operations;
        let filter = Filter {
            kind: Some("operation.intended".to_owned()),
            limit: newest.map(Limit::Newest),
            ..Filter::default()
        };
        for record in self.records(&filter).await? {
            if let Some(id) = record.header.operation
                && !operations.contains_key(&id)
                && let Some(known) = self.summary(id).await?
            {
                operations.insert(id, known);
            }
        }
        Ok(operations)
    }

    /// Overwrites what an announced erasure is about, in every copy; whoever holds the store does it. `None` when it is
    /// completed.
    async fn carry_out_erasure(&self, announced: Seq) -> Result<Option<u64>, Error> {
        let deadline = Instant::now() + HOLDER_WAIT;
        loop {
            {
                let role = self.role.read().await;
                match &*role {
                    Role::Holder(holder) => return holder.desk().erase(announced).await,
                    Role::Client => {
                        if let Some(payloads) = socket::erase(&self.place, announced).await? {
                            return Ok(payloads);
                        }
                    }
                }
            }
            self.take_over(deadline).await?;
        }
    }

    /// Waits until the databases have all that was acknowledged so far. Only whoever holds the store has to.
    ///
    /// # Errors
    /// When that can't be waited for.
    pub async fn settle(&self) -> Result<(), Error> {
        match &*self.role.read().await {
            Role::Holder(holder) => holder.desk().settle().await,
            Role::Client => Ok(()),
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
        let mut deadline = Instant::now() + HOLDER_WAIT;
        loop {
            // The role is not kept while waiting: others must be able to change it.
            let newest = match &*self.role.read().await {
                Role::Holder(holder) => Some(holder.desk().newest()),
                Role::Client => None,
            };
            let asked = Instant::now();
            let (was_client, beyond) = match newest {
                Some(mut newest) => tokio::select! {
                    biased;
                    is_beyond = async { newest.wait_for(|newest| *newest > seq).await.is_ok() } => {
                        (false, is_beyond)
                    }
                    // Who only waits is in no daemon's way.
                    () = self.wanted_by_daemon() => {
                        self.leave().await;
                        deadline = Instant::now() + HOLDER_WAIT;
                        continue;
                    }
                },
                None => (true, socket::wait_beyond(&self.place, seq).await?.is_some()),
            };
            if beyond {
                return Ok(());
            }
            if asked.elapsed() > HOLDER_WAIT / 20 {
                // There was a holder: its end begins a new search for one. A daemon that is started again comes first.
                deadline = Instant::now() + HOLDER_WAIT;
                if was_client && lock::knows_daemons(self.place.path()) {
                    tokio::time::sleep(HOLDER_WAIT / 4).await;
                    continue;
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
        self.operation_since(id, &mut None).await
    }

    /// The same for who asks again and again: `folded` is what its own events said last time, and is caught up with.
    ///
    /// # Errors
    /// When the store can't be read, or its events contradict each other.
    pub async fn operation_since(
        &self,
        id: OperationId,
        folded: &mut Option<Operation>,
    ) -> Result<Option<Operation>, Error> {
        let entries = self
            .entries(&Filter {
                from: folded.as_ref().map(|known| known.last.next()),
                ..Filter::of_operation(id)
            })
            .await?;
        let caught_up = match folded {
            Some(known) => entries.iter().try_for_each(|entry| known.apply(entry)),
            None => Operation::fold(id, &entries).map(|whole| *folded = whole),
        };
        caught_up.map_err(|source| Error::Operation { id, source })?;
        let Some(mut operation) = folded.clone() else {
            return Ok(None);
        };
        // That another operation takes it back, or no longer does, is said by that one's events.
        if let Some(known) = self.summary(id).await?
            && known.last == operation.last
        {
            operation.status = known.status;
            operation.reason = known.reason;
        }
        Ok(Some(operation))
    }

    /// The operation that takes this one back and is not done, whether somebody carries it out or not.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn taken_back_by(&self, id: OperationId) -> Result<Option<OperationId>, Error> {
        let state = self.state().await?;
        let mut open = state.operations.iter();
        let by = open
            .find(|(_, known)| known.intent.takes_back().contains(&id) && !known.status.is_final());
        Ok(by.map(|(by, _)| *by))
    }

    /// Gives the store up in good order.
    pub async fn close(self) {
        self.leave().await;
    }

    /// This process is the daemon of the store from here on.
    pub(crate) fn stay(&self) {
        self.stays.store(true, Ordering::SeqCst);
    }

    /// Resolves once a daemon that is another process is there, which has to have the store.
    async fn wanted_by_daemon(&self) {
        loop {
            tokio::time::sleep(HOLDER_WAIT / 40).await;
            if !self.stays.load(Ordering::SeqCst)
                && let Place::Store(directory) = &*self.place
                && lock::has_daemon(directory)
            {
                return;
            }
        }
    }

    /// Gives the store up, to go on as a client.
    async fn leave(&self) {
        let mut role = self.role.write().await;
        if let Role::Holder(holder) = std::mem::replace(&mut *role, Role::Client) {
            holder.close().await;
        }
    }

    /// The holder is gone: become it, or find the next one.
    async fn take_over(&self, deadline: Instant) -> Result<(), Error> {
        if Instant::now() > deadline {
            return Err(Error::NoHolder(self.place.path().to_owned()));
        }
        let mut role = self.role.write().await;
        match &*role {
            Role::Holder(holder) if holder.is_dead() => {
                Err(Error::Journal(journal::Error::Stopped))
            }
            Role::Holder(_) => Ok(()),
            Role::Client => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let stays = self.stays.load(Ordering::SeqCst);
                if let Place::Store(directory) = &*self.place
                    // Where there is a daemon, it is about to have the store.
                    && (stays || !lock::has_daemon(directory))
                {
                    *role = take_role(directory, self.open, self.limits, &self.notice).await?;
                }
                Ok(())
            }
        }
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
    limits: Limits,
    notice: &Notice,
) -> Result<Role, Error> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    if open == Open::Create {
        lock::make_directory(directory).map_err(failed)?;
    }
    let Some(lock) = Lock::take(directory, open).map_err(failed)? else {
        return Ok(Role::Client);
    };
    let owned = directory.to_owned();
    let notice = Arc::clone(notice);
    let tell = Arc::new(move |what| {
        let mut notice = notice.lock().unwrap_or_else(PoisonError::into_inner);
        (*notice)(what);
    });
    let opened = tokio::task::spawn_blocking(move || Opened::new(&owned, open, limits, lock, tell))
        .await
        .map_err(|error| failed(std::io::Error::other(error)))??;
    Ok(Role::Holder(Holder::serve(directory, opened)?))
}

/// Doors for the fuzz targets (`tests/fuzz`): what comes through the socket, and the file `head`. Each is decoded and
/// encoded again. Nothing else may use them.
#[doc(hidden)]
pub mod fuzzing {
    /// A message of the socket.
    pub fn message(bytes: &[u8], is_request: bool) -> Option<Vec<u8>> {
        super::socket::reread(bytes, is_request)
    }

    /// The file `head`.
    pub fn head(bytes: &[u8]) -> Option<Vec<u8>> {
        super::anchor::reread(bytes)
    }
}
