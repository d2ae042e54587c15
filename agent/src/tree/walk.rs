//! Walking a tree: every entry once, in an order that depends on names alone.
//!
//! A directory comes before what it holds, and names are sorted by their bytes, which is the order that `Path`
//! compares in. Mounts are never entered and symlinks never followed: a mount is an error that names it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec::IntoIter;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Error;
use super::budget::Budget;
use super::descent::{Descent, held, look_beneath, open_beneath};
use super::meta::{Kind, Meta, Xattrs, xattrs_at};

/// What is done about a file that vanishes between being listed and being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vanished {
    /// It is an error: the tree should hold still.
    Refuse,
    /// It is as if it had never been there.
    Skip,
}

/// What is done about a mount in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// It is an error: the tree would not be whole without it.
    Refuse,
    /// It is left out, and whatever is mounted there is not asked for anything: it may be of a kind that does not
    /// answer.
    LeaveOut,
}

/// The most memory that the names still to visit may take: they are held for all directories on the way down.
const NAMES_LEN_MAX: usize = 256 << 20;
/// The longest path that is gone down.
const PATH_LEN_MAX: usize = 1 << 20;

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root; empty for the root itself.
    pub path: PathBuf,
    /// What the kernel says of it.
    pub meta: Meta,
    /// Where a symlink points, as stored.
    pub target: Option<Vec<u8>>,
    /// Extended attributes, ACLs and capabilities; empty when the walk leaves them out.
    pub xattrs: Xattrs,
}

/// An entry with the open directory that holds it.
#[derive(Debug)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// The directory that holds it; for the root, the root itself.
    pub parent: Arc<OwnedFd>,
    /// Its name there; `.` for the root.
    pub name: OsString,
}

impl Found {
    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// When it can't be opened, or is not the file that was found any more.
    pub fn open(&self) -> Result<File, Error> {
        let path = &self.entry.path;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = open_beneath(self.parent.as_fd(), &self.name, flags)
            .map_err(|errno| Error::of("open", path, errno))?;
        let meta = Meta::of(fd.as_fd()).map_err(|errno| Error::of("look at", path, errno))?;
        if meta.identity() != self.entry.meta.identity() || meta.kind != Kind::File {
            return Err(Error::Changed { path: path.clone() });
        }
        Ok(File::from(fd))
    }
}

/// What the walk comes to.
#[derive(Debug)]
pub enum Visit {
    /// An entry; a directory before what it holds.
    Enter(Found),
    /// A mount that is left out.
    Mount(PathBuf),
    /// A directory was left: everything in it was visited.
    Leave(PathBuf),
}

/// A walk through a tree. As an iterator it yields the entries alone. After an error it ends.
pub struct Walk {
    descent: Descent,
    /// The names still to visit, a level each, with the memory that they took when they were listed.
    pending: Vec<(IntoIter<OsString>, usize)>,
    names: Budget,
    here: PathBuf,
    next: Next,
    with_xattrs: bool,
    vanished: Vanished,
    mounts: Mounts,
}

/// What the names are called in an error.
const NAMES: &str = "the names in it and in the directories above";

enum Next {
    Root,
    Name,
    Down(OsString),
    End,
}

impl Walk {
    /// Of the tree below `root`.
    ///
    /// # Errors
    /// When the directory can't be opened.
    pub fn new(root: BorrowedFd<'_>) -> Result<Self, Error> {
        let descent = Descent::new(root).map_err(|e| Error::of("open", Path::new(""), e))?;
        Ok(Walk {
            descent,
            pending: Vec::new(),
            names: Budget::new(NAMES, NAMES_LEN_MAX),
            here: PathBuf::new(),
            next: Next::Root,
            with_xattrs: true,
            vanished: Vanished::Refuse,
            mounts: Mounts::Refuse,
        })
    }

    /// Without reading extended attributes.
    #[must_use]
    pub fn without_xattrs(mut self) -> Self {
        self.with_xattrs = false;
        self
    }

    /// With this answer to vanishing files.
    #[must_use]
    pub fn vanished(mut self, vanished: Vanished) -> Self {
        self.vanished = vanished;
        self
    }

    /// With this answer to mounts.
    #[must_use]
    pub fn mounts(mut self, mounts: Mounts) -> Self {
        self.mounts = mounts;
        self
    }

    /// With at most this many bytes for the names still to visit.
    #[must_use]
    pub fn names_len_max(mut self, len_max: usize) -> Self {
        self.names = Budget::new(NAMES, len_max);
        self
    }

    /// Does not go down into the directory that was just entered: it is not left either.
    pub fn pass_by(&mut self) {
        if let Next::Down(_) = self.next {
            self.next = Next::Name;
        }
    }

    /// The next visit; `None` at the end.
    ///
    /// # Errors
    /// When something can't be read, is a mount, or vanished.
    pub fn visit(&mut self) -> Result<Option<Visit>, Error> {
        let step = self.advance();
        if step.is_err() {
            self.next = Next::End;
        }
        step
    }

    fn advance(&mut self) -> Result<Option<Visit>, Error> {
        match std::mem::replace(&mut self.next, Next::Name) {
            Next::End => {
                self.next = Next::End;
                return Ok(None);
            }
            Next::Root => {
                let found = self.look(OsStr::new("."), PathBuf::new())?;
                self.list()?;
                return Ok(Some(Visit::Enter(found)));
            }
            Next::Down(name) => {
                let path = self.here.join(&name);
                match self.descent.down(&name) {
                    Ok(()) => {
                        self.here = path;
                        self.list()?;
                    }
                    // It was entered, so it is left, as if it were empty.
                    Err(Errno::NOENT) if self.vanished == Vanished::Skip => {
                        return Ok(Some(Visit::Leave(path)));
                    }
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                        return Err(Error::Changed { path });
                    }
                    Err(errno) => return Err(Error::of("open", &path, errno)),
                }
            }
            Next::Name => {}
        }
        while let Some((names, _)) = self.pending.last_mut() {
            let Some(name) = names.next() else {
                return self.leave().map(Some);
            };
            let path = self.here.join(&name);
            let found = match self.look(&name, path) {
                Err(Error::Missing { path }) => match self.vanished {
                    Vanished::Skip => continue,
                    Vanished::Refuse => return Err(Error::Changed { path }),
                },
                Err(Error::Mount { path }) if self.mounts == Mounts::LeaveOut => {
                    return Ok(Some(Visit::Mount(path)));
                }
                other => other?,
            };
            if found.entry.meta.mount {
                return Err(Error::Mount {
                    path: found.entry.path,
                });
            }
            if found.entry.meta.kind == Kind::Directory {
                if found.entry.path.as_os_str().len() > PATH_LEN_MAX {
                    return Err(Budget::new("the path", PATH_LEN_MAX).exceeded(&found.entry.path));
                }
                self.next = Next::Down(name);
            }
            return Ok(Some(Visit::Enter(found)));
        }
        self.next = Next::End;
        Ok(None)
    }

    fn leave(&mut self) -> Result<Visit, Error> {
        if let Some((_, len)) = self.pending.pop() {
            self.names.give_back(len);
        }
        let left = self.here.clone();
        if self.pending.is_empty() {
            self.next = Next::End;
            return Ok(Visit::Leave(left));
        }
        self.here.pop();
        match self.descent.up() {
            Ok(()) => Ok(Visit::Leave(left)),
            Err(Errno::STALE) => Err(Error::Changed { path: left }),
            Err(errno) => Err(Error::of("leave", &left, errno)),
        }
    }

    fn list(&mut self) -> Result<(), Error> {
        let names = self
            .descent
            .names(self.names.left())
            .map_err(|errno| Error::of("list", &self.here, errno))?
            .ok_or_else(|| self.names.exceeded(&self.here))?;
        let len = names.iter().map(|name| held(name)).sum();
        self.names.take(len, &self.here)?;
        self.pending.push((names.into_iter(), len));
        Ok(())
    }

    fn look(&self, name: &OsStr, path: PathBuf) -> Result<Found, Error> {
        let parent = self.descent.here();
        let meta = match self.mounts {
            Mounts::Refuse => Meta::at(parent.as_fd(), name),
            // The kernel itself refuses to step onto a mount, before the mount is asked.
            Mounts::LeaveOut => {
                look_beneath(parent.as_fd(), name).and_then(|fd| Meta::of(fd.as_fd()))
            }
        }
        .map_err(|e| Error::of("look at", &path, e))?;
        let target = match meta.kind {
            Kind::Symlink => Some(
                rustix::fs::readlinkat(parent, name, Vec::new())
                    .map_err(|e| Error::of("read the symlink", &path, e))?
                    .into_bytes(),
            ),
            Kind::Directory
            | Kind::File
            | Kind::Fifo
            | Kind::Socket
            | Kind::CharDevice
            | Kind::BlockDevice => None,
        };
        let xattrs = if self.with_xattrs {
            xattrs_at(parent.as_fd(), name)
                .map_err(|e| Error::of("read the attributes of", &path, e))?
        } else {
            Xattrs::new()
        };
        Ok(Found {
            entry: Entry {
                path,
                meta,
                target,
                xattrs,
            },
            parent: Arc::clone(parent),
            name: name.to_owned(),
        })
    }
}

impl Iterator for Walk {
    type Item = Result<Found, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.visit() {
                Ok(Some(Visit::Enter(found))) => return Some(Ok(found)),
                Ok(Some(Visit::Leave(_) | Visit::Mount(_))) => {}
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
