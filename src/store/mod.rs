//! The embedded store that every read goes to: an index of all events, and the projections folded from them. Two
//! databases: what shows the cloud as it is opens only the small one.
//!
//! It holds nothing that the journal does not say and carries no durability: it can be deleted at any time and is
//! built again. Its own crash safety is never relied on; what it says of itself (log, seq, head) is checked.

mod index;
mod projection;

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tallybook_events::codec;
use tallybook_replay::state::State;

pub use index::{
    BLOCK_EVENTS, Block, Direction, End, Index, Located, Place, STRETCH_EVENTS, Sealed, Terms,
    has_terms, operation_term, view_terms,
};
pub use projection::{Ends, Projection, Staged, Stored};

/// What can go wrong with the store. All of it but [`Error::Held`] is mended by building it again from the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// sled refused, or found itself damaged.
    #[error("the database in {}", path.display())]
    Database {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: sled::Error,
    },
    /// Another process has it open: nothing is wrong with it, and nothing of it may be removed.
    #[error("another process has the database in {} open", .0.display())]
    Held(PathBuf),
    /// sled panicked, which it does on some damage.
    #[error("the database in {} is damaged beyond what it can report", .0.display())]
    Panicked(PathBuf),
    /// A stored value is not what it should be.
    #[error("a value in the database in {} can't be read", path.display())]
    Value {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: codec::Error,
    },
    /// The stored state is not the one that was written.
    #[error("the database in {} lost or changed something", path.display())]
    Altered {
        /// Its directory.
        path: PathBuf,
        /// What it holds.
        state: Box<State>,
    },
    /// A stored value contradicts the journal or the layout.
    #[error("the database in {}: {what}", path.display())]
    Contradiction {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// Whether the disk is full: then nothing is wrong with the database, and nothing is mended by building it again.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Error::Database { source: sled::Error::Io(error), .. }
            if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
    }
}

/// How often a database that is held is tried again, and how long to wait in between: threads of sled's that write for a
/// database which was just closed keep its lock for some moments more, also in this process.
const HELD_TRIES: u32 = 50;
const HELD_WAIT: Duration = Duration::from_millis(20);

/// Opens a database, for its owner only; damage that makes sled panic is an error like any other.
fn open_database(path: &Path) -> Result<sled::Db, Error> {
    let mut tries = 0;
    loop {
        match try_database(path) {
            Err(Error::Held(_)) if tries < HELD_TRIES => {
                tries += 1;
                std::thread::sleep(HELD_WAIT);
            }
            other => return other,
        }
    }
}

fn try_database(path: &Path) -> Result<sled::Db, Error> {
    guarded(path, || {
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        } else if path.is_dir() && path.metadata()?.permissions().mode() & 0o077 != 0 {
            // It may have been copied here, or be from before its mode was looked at.
            std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        sled::Config::new()
            .path(path)
            .cache_capacity(64 * 1024 * 1024)
            .flush_every_ms(Some(500))
            .open()
    })
}

/// Runs something on a database, turning its errors and its panics into ours.
fn guarded<T>(path: &Path, run: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|source| match is_lock(&source) {
            true => Error::Held(path.to_owned()),
            false => Error::Database {
                path: path.to_owned(),
                source,
            },
        }),
        Err(_) => Err(Error::Panicked(path.to_owned())),
    }
}

/// The next of what sled goes through. It reads, and so may panic, here and not where it was asked for it.
fn next<T>(
    path: &Path,
    items: &mut impl Iterator<Item = sled::Result<T>>,
) -> Option<Result<T, Error>> {
    guarded(path, || items.next().transpose()).transpose()
}

/// Whether sled means that another process has the database open. It says so in words only.
fn is_lock(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_the_way_through_a_database_is_an_error() {
        let mut items = (0..3).map(|number| match number {
            1 => panic!("a broken tree"),
            number => Ok(number),
        });
        let path = Path::new("store/index");
        assert!(matches!(next(path, &mut items), Some(Ok(0))));
        assert!(matches!(
            next(path, &mut items),
            Some(Err(Error::Panicked(_)))
        ));
        let mut items = std::iter::once(Err::<(), _>(sled::Error::Unsupported(String::new())));
        assert!(matches!(
            next(path, &mut items),
            Some(Err(Error::Database { .. }))
        ));
        assert!(next(path, &mut items).is_none());
    }
}

/// Doors for the fuzz targets (`tests/fuzz`): the values in the databases, decoded and encoded again. Nothing else may
/// use them.
#[doc(hidden)]
pub mod fuzzing {
    /// What the projections hold under a key of this class; what they say of themselves, for class 0.
    pub fn projected(class: u8, bytes: &[u8]) -> Option<Vec<u8>> {
        super::projection::reread(class, bytes)
    }

    /// What the index says of itself.
    pub fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
        super::index::reread(bytes)
    }

    /// Where the events of a block of the index are.
    pub fn places(bytes: &[u8]) -> Option<Vec<u8>> {
        super::index::reread_places(bytes)
    }
}
