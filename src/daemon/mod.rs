//! The daemon: the one process that holds a store for long, and carries operations out for whoever may have that done.
//!
//! It decides nothing that the log does not: what is done is what was planned and recorded by those who asked, and how it
//! ended is recorded as by any other process. How an operation is carried out, it is told by who starts it.

pub mod client;
pub mod ending;
pub mod jobs;
mod line;
pub mod notify;
pub mod protocol;
mod scan;
pub mod sockets;

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::causes;
use crate::log::{self, ACT, Caller, Condition, DAEMON, Log, READ, Right};
use jobs::{Jobs, Work};
use notify::Manager;
use sockets::Group;

/// How long others may hold the store at the start.
const HOLDER_WAIT: Duration = Duration::from_secs(20);
/// How long it is waited for those who followed, once all has come to a rest.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);
/// The longest that it may take to come to a rest.
const DRAIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the lock is asked for: others look whether somebody has it, and have it meanwhile.
const LOCK_TRIES: u32 = 20;
/// How many lines of clients may stand at once of those who may act, and of those who may read.
const LINES_MAX: usize = 128;

/// Why there is no daemon, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another one serves the store.
    #[error("another daemon serves the store in {}", .0.display())]
    Other(PathBuf),
    /// The store, or the lock in it, can't be used.
    #[error("can't lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] sockets::Error),
    /// Signals can't be heard.
    #[error("can't hear signals")]
    Signals(#[source] io::Error),
}

/// How it serves.
#[derive(Debug)]
pub struct Options {
    /// Where the sockets of groups are.
    pub sockets: PathBuf,
    /// Who may read.
    pub readers: Option<Group>,
    /// Who may act.
    pub actors: Option<Group>,
    /// How many operations are carried out at once.
    pub at_once: usize,
    /// How long it is waited before one is tried again the first time.
    pub pause: Duration,
    /// How long what runs may take to end, once the daemon shall end.
    pub drain: Duration,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that ran has come to a rest.
    Drained,
    /// Operations were left as they were: the next start finds out what became of them.
    Left(usize),
}

/// Serves until it is told to end: by SIGTERM or SIGINT in good order, by a second one at once.
///
/// # Errors
/// When another daemon has the store, it can't be had, or the log fails.
pub async fn serve(
    log: &Log,
    options: &Options,
    manager: &Manager,
    work: Work,
    serving: impl FnOnce(),
) -> Result<Ended, Error> {
    let store = log
        .store()
        .ok_or_else(|| log::Error::NoDaemon(PathBuf::new()))?;
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let mut lock = Some(lock(store)?);
    log.stay();
    tokio::select! {
        held = hold(log, store) => held?,
        () = signals.heard() => return Ok(Ended::Drained),
    }
    let _sockets = listen(log, options).await?;
    let jobs = Jobs::new(log.clone(), work, options.at_once, options.pause);
    if !attend(log, &jobs).await {
        return Err(lost(log));
    }
    serving();
    manager.ready();
    let scanned = tokio::select! {
        ended = scan::run(log, &jobs, manager) => ended,
        () = signals.heard() => Ok(()),
    };
    if let Err(error) = &scanned {
        // Whoever needs the store may have it, and recover it.
        lock = None;
        tracing::error!("ending, because the log fails: {}", causes::in_line(error));
    }
    manager.stopping();
    jobs.drain();
    manager.status(&format!(
        "ending: {} operations come to a rest",
        jobs.count()
    ));
    let until = Instant::now() + options.drain.min(DRAIN_MAX);
    let rest = async {
        loop {
            // What runs may take as long as it takes, but it must still be recorded.
            if log.append(Vec::new(), Condition::none()).await.is_ok() {
                manager.alive();
            }
            let beat = manager
                .watchdog()
                .map_or(options.drain, |watchdog| watchdog / 3);
            if timeout(beat, jobs.done()).await.is_ok() {
                return;
            }
        }
    };
    let ended = tokio::select! {
        () = rest => {
            // Who followed is told to the end.
            let _told = timeout(LAST_WORDS, jobs.told()).await;
            Ended::Drained
        }
        () = tokio::time::sleep_until(until) => Ended::Left(jobs.count()),
        () = signals.heard() => Ended::Left(jobs.count()),
    };
    drop(lock);
    scanned?;
    Ok(ended)
}

/// Has the lines of those who ask for the daemon served, so many at once.
async fn attend(log: &Log, jobs: &Arc<Jobs>) -> bool {
    let [readers, actors, owners] = [(), (), ()].map(|()| Arc::new(Semaphore::new(LINES_MAX)));
    let (log_there, jobs) = (log.clone(), Arc::clone(jobs));
    let attendant = move |stream, caller: Caller| {
        // Who is one too many finds the line ended.
        let lines = match caller.right {
            Right::Read => &readers,
            Right::Act => &actors,
            Right::Own => &owners,
        };
        let Ok(place) = Arc::clone(lines).try_acquire_owned() else {
            let peer = caller.peer;
            tracing::warn!("{LINES_MAX} clients are there already: {peer} was sent away");
            return;
        };
        let (log, jobs) = (log_there.clone(), Arc::clone(&jobs));
        tokio::spawn(async move {
            let _place = place;
            line::serve(log, jobs, stream, caller).await;
        });
    };
    log.attend(Arc::new(attendant)).await
}

/// Somebody else holds the store.
fn lost(log: &Log) -> Error {
    log::Error::InUse(log.store().unwrap_or(Path::new("")).to_owned()).into()
}

/// The sockets that are taken away again.
struct Sockets(PathBuf, Vec<&'static str>);

impl Drop for Sockets {
    fn drop(&mut self) {
        for name in &self.1 {
            sockets::remove(&self.0, name);
        }
    }
}

async fn listen(log: &Log, options: &Options) -> Result<Sockets, Error> {
    let mut made = Sockets(options.sockets.clone(), Vec::new());
    for (name, group, right) in [
        (READ, &options.readers, Right::Read),
        (ACT, &options.actors, Right::Act),
    ] {
        let Some(group) = group else { continue };
        let listener = sockets::listen(&options.sockets, name, group)?;
        made.1.push(name);
        if !log.serve_at(listener, right).await {
            return Err(lost(log));
        }
    }
    Ok(made)
}

/// Keeps other daemons from the store. The kernel drops it with the process.
fn lock(store: &Path) -> Result<File, Error> {
    let path = store.join(DAEMON);
    let failed = |source| Error::Lock {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(Error::Other(store.to_owned()))
}

/// Has this process hold the store: whoever holds it now may be about to end.
async fn hold(log: &Log, store: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + HOLDER_WAIT;
    while !log.is_holder().await {
        if Instant::now() > deadline {
            return Err(log::Error::InUse(store.to_owned()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Where the holder is gone, this takes its place.
        log.head().await?;
    }
    Ok(())
}

/// What ends it.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals(
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ))
    }

    async fn heard(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
