//! Removing a tree, beneath a root and never across a mount.
//!
//! It looks before it removes: a mount or an immutable file anywhere in the tree stops it while all is there.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
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
    for found in Walk::new(top.as_fd())?
        .without_xattrs()
        .vanished(Vanished::Skip)
    {
        let entry = found.map_err(|error| below(path, error))?.entry;
        if entry.meta.immutable {
            return Err(Error::Immutable {
                path: path.join(entry.path),
            });
        }
    }
    empty(top.as_fd()).map_err(|error| below(path, error))?;
    drop(top);
    match rustix::fs::unlinkat(&dir, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(refused(&dir, &name, "remove", path, errno)),
    }
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
    emptying.list()?;
    while emptying.step()? {}
    Ok(())
}

struct Emptying {
    descent: Descent,
    /// A level each: the names still to remove.
    pending: Vec<IntoIter<OsString>>,
    here: PathBuf,
}

impl Emptying {
    fn list(&mut self) -> Result<(), Error> {
        let names = self.descent.names();
        let names = names.map_err(|errno| Error::of("list", &self.here, errno))?;
        self.pending.push(names.into_iter());
        Ok(())
    }

    /// Removes one name; whether there is more to do.
    fn step(&mut self) -> Result<bool, Error> {
        let Some(names) = self.pending.last_mut() else {
            return Ok(false);
        };
        let Some(name) = names.next() else {
            return self.leave();
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
                self.list()?;
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
