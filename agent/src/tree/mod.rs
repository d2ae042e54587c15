//! Trees of files: reading, writing, walking, copying and removing them by directory descriptors.
//!
//! Everything here treats a tree as hostile: no symlink of it is ever followed, no mount below it is entered,
//! no name of it is trusted, and its depth costs neither stack nor descriptors.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tallybook_events::step::{FailureClass, StepFailure};

pub mod beneath;
mod budget;
pub mod copy;
mod descent;
pub mod dress;
pub mod manifest;
pub mod meta;
pub mod remove;
#[cfg(test)]
mod tests;
pub mod unpack;
pub mod walk;

pub use beneath::Root;
pub use meta::{Kind, Meta, Mtime};

/// What went wrong with a tree. Paths are relative to the tree's root; an empty path is the root itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that no tree can have: absolute, with `..`, with a NUL, or empty where a name is needed.
    #[error("{path:?} is not a path within a tree")]
    Path {
        /// The path as given.
        path: PathBuf,
    },
    /// Nothing is there.
    #[error("{path:?} is missing")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A symlink is where none is followed.
    #[error("{path:?} is, or leads through, a symlink")]
    Symlink {
        /// The path.
        path: PathBuf,
    },
    /// Something of another type than needed is there.
    #[error("{path:?} is, or leads through, something that is not a {wanted}")]
    Type {
        /// The path.
        path: PathBuf,
        /// What is needed there.
        wanted: &'static str,
    },
    /// Another file system is mounted there.
    #[error("{path:?} is, or lies below, a mount")]
    Mount {
        /// The path.
        path: PathBuf,
    },
    /// The content is longer than the caller can take.
    #[error("{path:?} is longer than {limit} bytes")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// More of it would have to be held in memory than any tree may take.
    #[error("{path:?} is too much: {what} take more than {limit} bytes of memory")]
    TooMuch {
        /// Where it became too much.
        path: PathBuf,
        /// What.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The immutable or append-only attribute forbids it.
    #[error("{path:?} has the immutable or append-only attribute")]
    Immutable {
        /// The path.
        path: PathBuf,
    },
    /// It vanished, was exchanged or became shorter while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The file system can't share extents between these files.
    #[error("{path:?} can't share its extents")]
    Reflink {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped when asked to")]
    Stopped,
    /// Anything else of the file system.
    #[error("can't {doing} {path:?}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The error for what the kernel said of a path that was resolved without following symlinks.
    fn of(doing: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::NOENT => Error::Missing { path },
            Errno::LOOP => Error::Symlink { path },
            Errno::XDEV => Error::Mount { path },
            Errno::NOTDIR => Error::Type {
                path,
                wanted: "directory",
            },
            errno => Error::Io {
                doing,
                path,
                source: errno.into(),
            },
        }
    }

    /// The error for an operation on something already open, where no path was resolved.
    fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Error::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether nothing is there.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Error::Missing { .. })
    }

    /// What sort of failure a step reports for it.
    pub fn class(&self) -> FailureClass {
        match self {
            Error::Missing { .. } => FailureClass::Missing,
            Error::Immutable { .. } => FailureClass::Permission,
            Error::Changed { .. } => FailureClass::Verification,
            Error::Stopped => FailureClass::Interrupted,
            Error::Mount { .. } | Error::Reflink { .. } => FailureClass::Host,
            Error::Path { .. }
            | Error::Symlink { .. }
            | Error::Type { .. }
            | Error::TooLong { .. }
            | Error::TooMuch { .. } => FailureClass::Other,
            Error::Io { path, source, .. } => crate::step::io_failure("", path, source).class,
        }
    }

    /// As a step reports it, for the tree below `root`.
    pub fn failure(&self, root: &Path) -> StepFailure {
        let mut failure = crate::step::failure(self.class(), self);
        failure.message = format!("in {}: {}", root.display(), failure.message);
        failure.hint = match self {
            Error::Mount { path } => Some(format!("unmount {} first", root.join(path).display())),
            Error::Immutable { path } => {
                Some(format!("chattr -i -a {} first", root.join(path).display()))
            }
            Error::Changed { .. } => {
                Some("stop or freeze what writes there, then resume".to_owned())
            }
            Error::TooMuch { path, .. } => {
                Some(format!("look at what fills {}", root.join(path).display()))
            }
            Error::Reflink { .. } => {
                Some("use a plain copy, or a file system with reflinks (btrfs, XFS)".to_owned())
            }
            Error::Io { .. } if failure.class == FailureClass::DiskFull => Some(format!(
                "free space on the file system of {}",
                root.display()
            )),
            Error::Path { .. }
            | Error::Missing { .. }
            | Error::Symlink { .. }
            | Error::Type { .. }
            | Error::TooLong { .. }
            | Error::Stopped
            | Error::Io { .. } => None,
        };
        failure
    }
}
