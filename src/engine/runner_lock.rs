//! Which process carries an operation out: one at a time, and nobody once that process is dead.
//!
//! A claim in the log outlives the process that made it, on purpose. So that two do not act under one claim, whoever
//! carries an operation out holds `flock` on `running/OPERATION` in the store; the kernel drops it with the process,
//! so none is ever stale and none is ever broken by force. The file is empty: what happened is in the log.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tallybook_events::ids::OperationId;

/// The directory in a store that holds the locks.
pub const RUNNING: &str = "running";

/// A lock that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A live process carries the operation out.
    #[error("another process is carrying out operation {} right now", .0.short())]
    Held(OperationId),
    /// The lock's file can't be used.
    #[error("can't lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The right to carry an operation out. Dropping it gives it up.
#[derive(Debug)]
#[must_use = "dropping it lets another process carry the operation out"]
pub struct Hold {
    _file: File,
    path: PathBuf,
    operation: OperationId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Removed while it is held: whoever opened it before sees, once locked, that its name is gone. A process that
        // is killed leaves an empty file, which is harmless.
        let _left = std::fs::remove_file(&self.path);
    }
}

impl Hold {
    /// Takes it for an operation of the log in this store.
    ///
    /// # Errors
    /// When another live process has it, or the file can't be used.
    pub fn take(store: &Path, operation: OperationId) -> Result<Self, Error> {
        let directory = store.join(RUNNING);
        let path = directory.join(operation.to_string());
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed)?;
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) if is_named(&file, &path).map_err(failed)? => {
                    return Ok(Hold {
                        _file: file,
                        path,
                        operation,
                    });
                }
                // Its holder removed it between our open and our lock.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Held(operation)),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

impl Hold {
    /// The operation.
    pub const fn operation(&self) -> OperationId {
        self.operation
    }
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_until_it_is_dropped() {
        let store = tempfile::tempdir().unwrap();
        let id = OperationId::from_bytes([1; 16]);
        let other = OperationId::from_bytes([2; 16]);
        let held = Hold::take(store.path(), id).unwrap();
        assert!(matches!(Hold::take(store.path(), id), Err(Error::Held(of)) if of == id));
        let _other = Hold::take(store.path(), other).unwrap();
        drop(held);
        let _again = Hold::take(store.path(), id).unwrap();
        assert!(matches!(Hold::take(store.path(), id), Err(Error::Held(_))));
    }

    #[test]
    fn what_a_killed_process_left_stops_nobody() {
        let store = tempfile::tempdir().unwrap();
        let id = OperationId::from_bytes([1; 16]);
        std::fs::create_dir(store.path().join(RUNNING)).unwrap();
        std::fs::write(store.path().join(RUNNING).join(id.to_string()), "").unwrap();
        let _held = Hold::take(store.path(), id).unwrap();
    }
}
