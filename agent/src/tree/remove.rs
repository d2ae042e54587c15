//! Removing a tree, beneath a root and never across a mount.
//!
//! It looks before it removes: a mount or an immutable file anywhere in the tree stops it while all is there. Only
//! a tree too large to be looked at stops where such a thing is found.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Error;
use super::beneath::{Root, refused};
use super::descent::Descent;
use super::walk::{Vanished, Walk};

/// Removes a directory beneath `root` with all in it.
///
/// # Errors
/// When it is missing, is or holds a mount or an immutable file (nothing is removed then), or when removing
/// fails.
pub fn remove_tree(root: &Root, path: &Path) -> Result<(), Error> {
    let (dir, name) = root.parent(path)?;
    let top = root.dir(path)?;
    look(top.as_fd()).map_err(|error| below(path, error))?;
    empty(top.as_fd()).map_err(|error| below(path, error))?;
    drop(top);
    match rustix::fs::unlinkat(&dir, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(refused(&dir, &name, "remove", path, errno)),
    }
}

/// Looks for what stops a removal.
fn look(top: BorrowedFd<'_>) -> Result<(), Error> {
    for found in Walk::new(top)?.without_xattrs().vanished(Vanished::Skip) {
        let entry = match found {
            // What fills a disk with names must not be there for ever.
            Err(Error::TooMuch { .. }) => return Ok(()),
            found => found?.entry,
        };
        if entry.meta.immutable {
            return Err(Error::Immutable { path: entry.path });
        }
    }
    Ok(())
}

/// Removes all that a directory holds, and not the directory.
///
/// # Errors
/// As [`remove_tree`].
pub fn empty(top: impl AsFd) -> Result<(), Error> {
    let mut emptying = Emptying {
        descent: Descent::new(top.as_fd()).map_err(|e| Error::of("open", Path::new(""), e))?,
        pending: Vec::new(),
        here: PathBuf::new(),
    };
    let names = emptying.list()?;
    emptying.pending.push(names);
    while emptying.step()? {}
    Ok(())
}

/// How many names are listed at once in the first directories of a way down, and below.
const AT_ONCE: (usize, usize) = (16 * 1024, 64);
/// How many directories are the first ones.
const FIRST: usize = 32;

struct Emptying {
    descent: Descent,
    /// A level each: some of the names still to remove.
    pending: Vec<IntoIter<OsString>>,
    here: PathBuf,
}

impl Emptying {
    fn list(&self) -> Result<IntoIter<OsString>, Error> {
        let (first, below) = AT_ONCE;
        let count = if self.pending.len() < FIRST {
            first
        } else {
            below
        };
        let names = self.descent.some_names(count);
        let names = names.map_err(|errno| Error::of("list", &self.here, errno))?;
        Ok(names.into_iter())
    }

    /// Removes one name; whether there is more to do.
    fn step(&mut self) -> Result<bool, Error> {
        let Some(names) = self.pending.last_mut() else {
            return Ok(false);
        };
        let name = match names.next() {
            Some(name) => name,
            None => {
                let mut more = self.list()?;
                let Some(name) = more.next() else {
                    return self.leave();
                };
                self.pending.pop();
                self.pending.push(more);
                name
            }
        };
        let dir = self.descent.here();
        match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::ISDIR) => {
                let path = self.here.join(&name);
                self.descent
                    .down(&name)
                    .map_err(|errno| Error::of("open", &path, errno))?;
                self.here = path;
                let names = self.list()?;
                self.pending.push(names);
                Ok(true)
            }
            Err(errno) => {
                let path = self.here.join(&name);
                Err(refused(dir, &name, "remove", &path, errno))
            }
        }
    }

    fn leave(&mut self) -> Result<bool, Error> {
        self.pending.pop();
        if self.pending.is_empty() {
            return Ok(false);
        }
        let left = self.here.clone();
        let name = left.file_name().unwrap_or(OsStr::new(".")).to_owned();
        self.here.pop();
        match self.descent.up() {
            Ok(()) => {}
            Err(Errno::STALE) => return Err(Error::Changed { path: left }),
            Err(errno) => return Err(Error::of("leave", &left, errno)),
        }
        let dir = self.descent.here();
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(refused(dir, &name, "remove", &left, errno)),
        }
    }
}

/// The same error with its path seen from the root that the caller knows.
fn below(path: &Path, error: Error) -> Error {
    let join = |inner: PathBuf| {
        if inner.as_os_str().is_empty() {
            path.to_owned()
        } else {
            path.join(inner)
        }
    };
    match error {
        Error::Path { path } => Error::Path { path: join(path) },
        Error::Missing { path } => Error::Missing { path: join(path) },
        Error::Symlink { path } => Error::Symlink { path: join(path) },
        Error::Type { path, wanted } => Error::Type {
            path: join(path),
            wanted,
        },
        Error::Mount { path } => Error::Mount { path: join(path) },
        Error::TooLong { path, limit } => Error::TooLong {
            path: join(path),
            limit,
        },
        Error::TooMuch { path, what, limit } => Error::TooMuch {
            path: join(path),
            what,
            limit,
        },
        Error::Immutable { path } => Error::Immutable { path: join(path) },
        Error::Changed { path } => Error::Changed { path: join(path) },
        Error::Reflink { path, source } => Error::Reflink {
            path: join(path),
            source,
        },
        Error::Stopped => Error::Stopped,
        Error::Io {
            doing,
            path,
            source,
        } => Error::Io {
            doing,
            path: join(path),
            source,
        },
    }
}
