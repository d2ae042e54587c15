//! The holder's side of the log: one writer thread, the view that readers share, and the socket's server.
//!
//! The store's lock is released only after the last user of the databases is gone: two processes never have them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use tallybook_events::actor::Actor;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Head, OperationSummary, State};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::admit::Admission;
use super::indexer::{self, Bell};
use super::lock::Lock;
use super::open::Opened;
use super::reserve::Reserve;
use super::seal::Prepared;
use super::socket::{Attendant, Right};
use super::verify::{self, IndexReport};
use super::view::{self, Answer, View};
use super::writer::{Company, Request, WriterThread};
use super::{Appended, Condition, Draft, Error, Filter, socket};
use crate::{identity, journal};

/// How many appends may wait for the writer; more wait outside.
const QUEUE_LEN: usize = 1024;

/// What everybody in the holder's process shares.
pub(super) struct Shared {
    // Declared before the lock, so dropped before it.
    view: RwLock<View>,
    /// How writer and indexer tell each other.
    pub(super) bell: Bell,
    /// `None` once the journal stopped.
    lock: Mutex<Option<Lock>>,
    /// Whoever changes or moves closed segments has it.
    upkeep: Arc<tokio::sync::Mutex<()>>,
    /// Who takes the lines of those who ask for the daemon.
    attendant: OnceLock<Attendant>,
}

impl Shared {
    pub(super) fn read<T>(&self, run: impl FnOnce(&View) -> T) -> T {
        run(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn change<T>(&self, run: impl FnOnce(&mut View) -> T) -> T {
        run(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let directory = self.read(|view| view.directory().to_owned());
        // Without the view from here on: nobody has to wait until all is read.
        let to = match self.change(|view| view.answer(filter))? {
            Answer::Journal(to) => to,
            Answer::Index(question) => {
                let found = question.ask(&directory, filter);
                match found {
                    Ok(found) => return Ok(found),
                    // What only the databases lost, the journal still says.
                    Err(Error::Store(error)) => self.change(|view| {
                        view.give_up(&error);
                        view.state.head.seq
                    }),
                    Err(error) => return Err(error),
                }
            }
        };
        view::from_journal(&directory, to, filter)
    }

    /// Fails once the store was let go: what is in it may be another process's by now.
    pub(super) fn check_held(&self) -> Result<(), Error> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match *lock {
            Some(_) => Ok(()),
            None => Err(Error::Journal(journal::Error::Stopped)),
        }
    }

    /// The journal stopped: lets the databases and the store go, so that another process can recover it.
    pub(super) fn let_go(&self) {
        let why = "the journal stopped after a failed write".to_owned();
        self.change(|view| view.close_databases(why));
        // Not before the last who writes to the databases or moves segments is done.
        self.bell.end();
        let _alone = self.upkeep.blocking_lock();
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        *lock = None;
    }
}

/// The store's holder: answers this process and, over the socket, others.
pub(super) struct Holder {
    desk: Desk,
    writer: std::thread::JoinHandle<()>,
    indexer: std::thread::JoinHandle<()>,
    servers: Vec<Server>,
}

/// A socket's server; ends with its holder.
struct Server(tokio::task::JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What answers questions: cheap to clone. While there is one, the writer lives.
#[derive(Clone)]
pub(super) struct Desk {
    // Declared before the queue, so dropped before it: once the writer has ended, nobody else has the view.
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    head: watch::Receiver<Seq>,
}

impl Holder {
    /// Starts the writer and the server of the socket.
    pub(super) fn serve(directory: &Path, opened: Opened) -> Result<Self, Error> {
        let Opened {
            journal,
            view,
            lock,
        } = opened;
        let (requests, queue) = mpsc::channel(QUEUE_LEN);
        let (head_sender, head) = watch::channel(view.state.head.seq);
        let shared = Arc::new(Shared {
            view: RwLock::new(view),
            bell: Bell::default(),
            lock: Mutex::new(Some(lock)),
            upkeep: Arc::default(),
            attendant: OnceLock::new(),
        });
        let writer = WriterThread {
            journal,
            shared: Arc::clone(&shared),
            recent: None,
            admission: Admission::default(),
            reserve: Reserve::of(directory),
            queue,
            head: head_sender,
            identity: Arc::new(identity::writer()),
            company: Company::default(),
        };
        let failed = |source| Error::Directory {
            path: directory.to_owned(),
            source,
        };
        let indexed = Arc::clone(&shared);
        let desk = Desk {
            shared,
            requests,
            head,
        };
        let listener = socket::listen(directory).map_err(failed)?;
        let server = Server(socket::serve(listener, Right::Own, desk.clone()));
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        // Last: it ends with the writer.
        let indexer = std::thread::Builder::new()
            .name("indexer".to_owned())
            .spawn(move || indexer::run(&indexed))
            .map_err(failed)?;
        Ok(Holder {
            desk,
            writer,
            indexer,
            servers: vec![server],
        })
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Answers on another socket as well.
    pub(super) fn serve_at(&mut self, listener: UnixListener, right: Right) {
        let server = socket::serve(listener, right, self.desk.clone());
        self.servers.push(Server(server));
    }

    /// Whether the writer ended without being asked to.
    pub(super) fn is_dead(&self) -> bool {
        self.writer.is_finished()
    }

    /// Ends the server and the writer, and lets sled write what it holds back.
    pub(super) async fn close(self) {
        let Holder {
            desk,
            writer,
            indexer,
            servers,
        } = self;
        for mut server in servers {
            server.0.abort();
            let _cancelled = (&mut server.0).await;
        }
        let Desk {
            shared, requests, ..
        } = desk;
        drop(requests);
        let _ended = tokio::task::spawn_blocking(move || {
            // The server's tasks hold senders of the queue: the writer ends once they are gone.
            let _ended = writer.join();
            shared.bell.stop();
            let _ended = indexer.join();
            shared.read(View::flush);
            drop(shared);
        })
        .await;
    }
}

impl Desk {
    pub(super) async fn append(
        &self,
        drafts: Vec<Draft>,
        condition: Condition,
        actor: Arc<Actor>,
    ) -> Result<Vec<Appended>, Error> {
        let drafts = drafts
            .into_iter()
            .map(Prepared::of)
            .collect::<Result<_, _>>()?;
        let (answer, wait) = oneshot::channel();
        let request = Request {
            drafts,
            condition,
            actor,
            answer,
        };
        let gone = || Error::Journal(journal::Error::Stopped);
        self.requests.send(request).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// Has this take the lines of those who ask for the daemon; `false` when another one does.
    pub(super) fn attend(&self, attendant: Attendant) -> bool {
        self.shared.attendant.set(attendant).is_ok()
    }

    /// Who takes them.
    pub(super) fn attendant(&self) -> Option<Attendant> {
        self.shared.attendant.get().cloned()
    }

    pub(super) fn state(&self) -> State {
        self.shared.read(|view| view.state.clone())
    }

    pub(super) fn head(&self) -> Head {
        self.shared.read(|view| view.state.head)
    }

    /// What is wrong with the databases, as far as it was met; the index is opened for that.
    pub(super) async fn faults(&self) -> Result<Vec<String>, Error> {
        self.away(|shared| {
            shared.change(|view| {
                view.open_index()?;
                Ok(view.faults.clone())
            })
        })
        .await
    }

    /// What the projections hold, where it is not what was written there.
    pub(super) fn stored(&self) -> Option<State> {
        self.shared.read(|view| view.stored.as_deref().cloned())
    }

    /// How an operation stands, in one line.
    pub(super) async fn summary(&self, id: OperationId) -> Result<Option<OperationSummary>, Error> {
        let open = self
            .shared
            .read(|view| view.state.operations.get(&id).cloned());
        match open {
            Some(known) => Ok(Some(known)),
            None => {
                self.away(move |shared| shared.change(|view| view.operation(id)))
                    .await
            }
        }
    }

    /// The operations whose short ids begin so.
    pub(super) async fn operations_like(
        &self,
        start: String,
    ) -> Result<BTreeSet<OperationId>, Error> {
        self.away(move |shared| shared.change(|view| view.operations_like(&start)))
            .await
    }

    /// Holds the index against the journal, up to an event.
    pub(super) async fn check_index(&self, to: Seq) -> Result<IndexReport, Error> {
        self.away(move |shared| {
            shared.bell.settle();
            let directory = shared.read(|view| view.directory().to_owned());
            match shared.change(|view| view.answer(&Filter::at(Seq::NONE)))? {
                Answer::Index(question) => {
                    verify::index(&directory, &question.index, question.blocks(), to)
                }
                Answer::Journal(_) => Ok(IndexReport::default()),
            }
        })
        .await
    }

    /// Overwrites what an announced erasure is about, and returns how many payloads that is; `None` when it is completed.
    pub(super) async fn erase(&self, announced: Seq) -> Result<Option<u64>, Error> {
        // A segment that is on its way to the archive is not overwritten in between.
        let alone = self.upkeep().lock_owned().await;
        self.away(move |shared| {
            // Also when nobody waits for this any more.
            let _alone = alone;
            shared.check_held()?;
            let (directory, pending) = shared.read(|view| {
                let journal = view.directory().join(super::JOURNAL);
                (journal, view.state.erasures.get(&announced).cloned())
            });
            let Some(pending) = pending else {
                return Ok(None);
            };
            Ok(Some(journal::erase(&directory, &pending)?))
        })
        .await
    }

    /// Waits until the databases have all that was acknowledged.
    pub(super) async fn settle(&self) -> Result<(), Error> {
        self.away(|shared| {
            shared.bell.settle();
            Ok(())
        })
        .await
    }

    /// What only one may have: closed segments are changed and moved by one at a time.
    pub(super) fn upkeep(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.shared.upkeep)
    }

    /// Does what may take long outside of the runtime's threads.
    pub(super) async fn away<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || run(&shared)).await {
            Ok(done) => done,
            Err(error) => Err(Error::Holder(error.to_string())),
        }
    }

    pub(super) async fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let filter = filter.clone();
        self.away(move |shared| shared.records(&filter)).await
    }

    /// The newest event's position, to wait on. Does not keep the writer alive.
    pub(super) fn newest(&self) -> watch::Receiver<Seq> {
        self.head.clone()
    }
}
