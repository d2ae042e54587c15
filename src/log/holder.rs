//! The holder's side of the log: one writer thread, the view that readers share, and the socket's server.
//!
//! The store's lock is released only after the last user of the databases is gone: two processes never have them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tallybook_events::actor::Actor;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_replay::state::{Head, OperationSummary, State};
use tokio::sync::{mpsc, oneshot, watch};

use super::admit::Admission;
use super::lock::Lock;
use super::open::Opened;
use super::view::{self, Answer, View};
use super::writer::{Request, WriterThread};
use super::{Appended, Condition, Draft, Error, Filter, chain, socket};
use crate::{identity, journal};

/// How many appends may wait for the writer; more wait outside.
const QUEUE_LEN: usize = 1024;

/// What everybody in the holder's process shares.
pub(super) struct Shared {
    // Declared before the lock, so dropped before it.
    pub(super) view: RwLock<View>,
    /// `None` once the journal stopped.
    lock: Mutex<Option<Lock>>,
}

impl Shared {
    fn read<T>(&self, run: impl FnOnce(&View) -> T) -> T {
        run(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let answer = self.read(|view| view.records(filter));
        let to = match answer {
            Ok(Answer::Records(records)) => return Ok(records),
            Ok(Answer::Journal(to)) => to,
            Err(error) => {
                // What only the databases lost, the journal still says.
                let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
                view.give_up_databases(&error);
                view.state.head.seq
            }
        };
        // Without the view: nobody has to wait until all of the journal is read.
        let directory = self.read(|view| view.directory().to_owned());
        view::from_journal(&directory, to, filter)
    }

    /// What the databases alone say: nothing is mended, and nothing answers in their place.
    fn indexed(&self, filter: &Filter) -> Result<Vec<Record>, String> {
        self.read(|view| match view.indexed(filter) {
            Some(answer) => answer.map_err(|error| chain(&error)),
            None => Err(view.faults.join("; ")),
        })
    }

    /// The journal stopped: lets the databases and the store go, so that another process can recover it.
    pub(super) fn let_go(&self) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        view.close_databases("the journal stopped after a failed write".to_owned());
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        *lock = None;
    }
}

/// The store's holder: answers this process and, over the socket, others.
pub(super) struct Holder {
    desk: Desk,
    writer: std::thread::JoinHandle<()>,
    server: Server,
}

/// The socket's server; ends with its holder.
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
            lock: Mutex::new(Some(lock)),
        });
        let writer = WriterThread {
            journal,
            shared: Arc::clone(&shared),
            recent: None,
            admission: Admission::default(),
            queue,
            head: head_sender,
            identity: identity::writer(),
        };
        let failed = |source| Error::Directory {
            path: directory.to_owned(),
            source,
        };
        let desk = Desk {
            shared,
            requests,
            head,
        };
        let server = Server(socket::serve(directory, desk.clone()).map_err(failed)?);
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        Ok(Holder {
            desk,
            writer,
            server,
        })
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
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
            mut server,
        } = self;
        server.0.abort();
        let _cancelled = (&mut server.0).await;
        let Desk {
            shared, requests, ..
        } = desk;
        drop(requests);
        let _ended = tokio::task::spawn_blocking(move || {
            // The server's tasks hold senders of the queue: the writer ends once they are gone.
            let _ended = writer.join();
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
        actor: Actor,
    ) -> Result<Vec<Appended>, Error> {
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

    pub(super) fn state(&self) -> State {
        self.shared.read(|view| view.state.clone())
    }

    pub(super) fn head(&self) -> Head {
        self.shared.read(|view| view.state.head)
    }

    /// What is wrong with the databases, as far as it was met.
    pub(super) fn faults(&self) -> Vec<String> {
        self.shared.read(|view| view.faults.clone())
    }

    /// What the projections hold, where it is not what was written there.
    pub(super) fn stored(&self) -> Option<State> {
        self.shared.read(|view| view.stored.as_deref().cloned())
    }

    /// What the databases alone say; what is wrong with them where they can't.
    pub(super) async fn indexed(
        &self,
        filter: &Filter,
    ) -> Result<Result<Vec<Record>, String>, Error> {
        let shared = Arc::clone(&self.shared);
        let filter = filter.clone();
        tokio::task::spawn_blocking(move || shared.indexed(&filter))
            .await
            .map_err(|error| Error::Holder(error.to_string()))
    }

    /// How an operation stands, in one line.
    pub(super) fn summary(&self, id: OperationId) -> Option<OperationSummary> {
        let find = |view: &View| view.state.operations.get(&id).cloned();
        self.shared.read(find)
    }

    pub(super) async fn records(&self, filter: &Filter) -> Result<Vec<Record>, Error> {
        let shared = Arc::clone(&self.shared);
        let filter = filter.clone();
        match tokio::task::spawn_blocking(move || shared.records(&filter)).await {
            Ok(records) => records,
            Err(error) => Err(Error::Holder(error.to_string())),
        }
    }

    /// The newest event's position, to wait on. Does not keep the writer alive.
    pub(super) fn newest(&self) -> watch::Receiver<Seq> {
        self.head.clone()
    }
}
