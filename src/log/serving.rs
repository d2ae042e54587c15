//! The log and a daemon: sockets besides the store's, lines to the daemon, and how it is found without the store.
//!
//! Nothing is decided here about what may be asked: the socket does that.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::RwLock;

use super::socket::{self, Attendant, Place, Right};
use super::{Error, Limits, Log, Open, Role};

/// The socket of a daemon for those who may act.
pub const ACT: &str = "act";
/// The socket of a daemon for those who may read.
pub const READ: &str = "read";

impl Log {
    /// Asks at the sockets of a daemon, for whoever can't use its store: where they may act, else where they may read.
    ///
    /// # Errors
    /// When none is served there, or none is open to whoever asks.
    pub async fn open_at(sockets: &Path) -> Result<Self, Error> {
        let mut closed = None;
        for name in [ACT, READ] {
            let place = Place::Socket(sockets.join(name));
            match socket::head(&place).await {
                Ok(Some(_)) => {
                    return Ok(Log {
                        place: Arc::new(place),
                        open: Open::Existing,
                        limits: Limits::default(),
                        notice: Arc::new(Mutex::new(drop::<String>)),
                        role: Arc::new(RwLock::new(Role::Client)),
                        gate: None,
                        stays: Arc::default(),
                    });
                }
                Ok(None) => {}
                Err(error @ Error::Forbidden(_)) => closed = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(closed.unwrap_or_else(|| Error::NoDaemon(sockets.to_owned())))
    }

    /// Answers on another socket as well, what may be asked there; as long as this process holds the store. `false` when it
    /// does not.
    pub async fn serve_at(&self, listener: UnixListener, right: Right) -> bool {
        match &mut *self.role.write().await {
            Role::Holder(holder) => {
                holder.serve_at(listener, right);
                true
            }
            Role::Client => false,
        }
    }

    /// Has this take the lines of those who ask for the daemon. `false` when this process does not hold the store, or another
    /// one takes them.
    pub async fn attend(&self, attendant: Attendant) -> bool {
        match &*self.role.read().await {
            Role::Holder(holder) => holder.desk().attend(attendant),
            Role::Client => false,
        }
    }

    /// A line to the daemon that holds the store; `None` where there is none.
    ///
    /// # Errors
    /// When the holder hangs, or speaks another version.
    pub async fn daemon(&self) -> Result<Option<UnixStream>, Error> {
        match &*self.role.read().await {
            Role::Holder(_) => Ok(None),
            Role::Client => socket::daemon(&self.place).await,
        }
    }
}
