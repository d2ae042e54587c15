//! The embedded store that every read goes to: an index of all events, and the projections folded from them.
//!
//! It holds nothing that the journal does not say and carries no durability: it can be deleted at any time and is
//! built again. Its own crash safety is never relied on; what it says of itself (log, seq, head) is checked.

mod index;
mod projection;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tallybook_events::codec;

pub use index::{BLOCK_EVENTS, Index, Sealed, Terms, entry_terms};
pub use projection::{Projection, Stored};

/// What can go wrong with the store. All of it is mended by building it again from the journal.
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
    /// A stored value contradicts the journal or the layout.
    #[error("the database in {}: {what}", path.display())]
    Contradiction {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Opens a database; damage that makes sled panic is an error like any other.
fn open_database(path: &Path) -> Result<sled::Db, Error> {
    guarded(path, || {
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
        Ok(result) => result.map_err(|source| Error::Database {
            path: path.to_owned(),
            source,
        }),
        Err(_) => Err(Error::Panicked(path.to_owned())),
    }
}
