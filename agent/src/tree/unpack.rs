//! Making a tree from its manifest, beneath a directory that is ours alone until the tree is whole.
//!
//! Everything can be repeated: a name that is there and right stays, one that is there and wrong is made anew.
//! Nothing is written through a symlink, into a mount or outside of the directory, whatever the manifest says,
//! and symlinks are made after all content is written. Whether content is what it should be is checked by the
//! caller before it comes here.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Error;
use super::beneath::{Root, mknod_at};
use super::descent::open_resolved;
use super::dress::{Worn, dress_name};
use super::manifest::{Content, Entry, Inode, Kind, Manifest, Node, Piece, TreePath};
use super::meta::{self, Meta, Mtime};
use crate::durable;

/// Permissions of everything until it gets its own.
const PRIVATE_DIR: Mode = Mode::RWXU;
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Makes the directories of a manifest, with permissions for us alone.
///
/// # Errors
/// When one can't be made, or something else has its name.
pub fn make_directories(root: &Root, manifest: &Manifest) -> Result<(), Error> {
    let mut hand = Hand::new(root);
    for entry in manifest.entries() {
        if entry.path.is_root() || kind_of(entry) != Some(&Kind::Directory) {
            continue;
        }
        let path = entry.path.as_path();
        let (dir, name) = hand.parent(&entry.path)?;
        match rustix::fs::mkdirat(dir, name, PRIVATE_DIR) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = Meta::at(dir, name).map_err(|e| Error::of("look at", path, e))?;
                if there.kind != meta::Kind::Directory {
                    return Err(Error::Type {
                        path: path.to_owned(),
                        wanted: "directory",
                    });
                }
            }
            Err(errno) => return Err(Error::of("make the directory", path, errno)),
        }
    }
    Ok(())
}

/// Makes all that is not a directory and has no content to write, then gives everything its owner, permissions,
/// attributes and times; those of directories last, from the leaves to the root.
///
/// # Errors
/// When something can't be made or be given its attributes.
pub fn complete(root: &Root, manifest: &Manifest) -> Result<(), Error> {
    let mut hand = Hand::new(root);
    for entry in manifest.entries() {
        if let Some(content) = entry.content()
            && content.pieces.is_empty()
        {
            hand.file(&entry.path, content)?;
        }
    }
    link(&mut hand, manifest, true)?;
    for entry in manifest.entries() {
        make_special(&mut hand, entry)?;
    }
    link(&mut hand, manifest, false)?;
    // Backwards, a directory comes after all that is in it.
    for entry in manifest.entries().iter().rev() {
        if let Node::Inode(inode) = &entry.node {
            let path = entry.path.as_path();
            let (dir, name) = hand.parent(&entry.path)?;
            dress_name(dir, name, &worn(inode))
                .map_err(|e| Error::of("set the metadata of", path, e))?;
        }
    }
    Ok(())
}

fn kind_of(entry: &Entry) -> Option<&Kind> {
    entry.inode().map(|inode| &inode.kind)
}

/// The further names of regular files, or of everything else.
fn link(hand: &mut Hand<'_>, manifest: &Manifest, of_files: bool) -> Result<(), Error> {
    for entry in manifest.entries() {
        let Node::Link { first } = &entry.node else {
            continue;
        };
        let is_file = manifest.find(first).and_then(Entry::content).is_some();
        if is_file != of_files {
            continue;
        }
        let path = entry.path.as_path();
        let failed = |errno| Error::of("link", path, errno);
        let (first_dir, first_name) = hand.root.parent(first.as_path())?;
        let (dir, name) = hand.parent(&entry.path)?;
        let make = || rustix::fs::linkat(&first_dir, &first_name, dir, name, AtFlags::empty());
        match make() {
            Err(Errno::EXIST) => {
                let there = Meta::at(dir, name).map_err(failed)?;
                let first = Meta::at(first_dir.as_fd(), &first_name).map_err(failed)?;
                if there.identity() != first.identity() {
                    rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
                    make().map_err(failed)?;
                }
            }
            made => made.map_err(failed)?,
        }
    }
    Ok(())
}

/// A symlink, device, fifo or socket.
fn make_special(hand: &mut Hand<'_>, entry: &Entry) -> Result<(), Error> {
    let Some(kind) = kind_of(entry) else {
        return Ok(());
    };
    let (special, rdev) = match kind {
        Kind::Directory | Kind::File(_) => return Ok(()),
        Kind::Symlink { .. } => (meta::Kind::Symlink, (0, 0)),
        Kind::CharDevice { major, minor } => (meta::Kind::CharDevice, (*major, *minor)),
        Kind::BlockDevice { major, minor } => (meta::Kind::BlockDevice, (*major, *minor)),
        Kind::Fifo => (meta::Kind::Fifo, (0, 0)),
        Kind::Socket => (meta::Kind::Socket, (0, 0)),
    };
    let path = entry.path.as_path();
    let (dir, name) = hand.parent(&entry.path)?;
    let make = || match kind {
        Kind::Symlink { target } => rustix::fs::symlinkat(OsStr::from_bytes(target), dir, name),
        Kind::Directory
        | Kind::File(_)
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. }
        | Kind::Fifo
        | Kind::Socket => mknod_at(dir, name, special, 0o600, rdev),
    };
    let failed = |errno| Error::of("make", path, errno);
    match make() {
        Err(Errno::EXIST) => {
            // Left by an attempt before this one; whether it is right is not worth asking.
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
            make().map_err(failed)
        }
        made => made.map_err(failed),
    }
}

fn worn(inode: &Inode) -> Worn<'_> {
    Worn {
        uid: inode.uid,
        gid: inode.gid,
        mode: (!matches!(inode.kind, Kind::Symlink { .. })).then_some(u32::from(inode.mode)),
        mtime: Mtime {
            seconds: inode.mtime_s,
            nanoseconds: inode.mtime_ns,
        },
        xattrs: &inode.xattrs,
    }
}

/// Reads and writes content beneath a root. Keeps the last directory and the last file open, so that whoever goes
/// through a tree in order opens each once. One for each thread.
pub struct Hand<'a> {
    root: &'a Root,
    dir: Option<(TreePath, OwnedFd)>,
    file: Option<(TreePath, File)>,
}

impl<'a> Hand<'a> {
    /// Nothing open yet.
    pub const fn new(root: &'a Root) -> Self {
        Hand {
            root,
            dir: None,
            file: None,
        }
    }

    /// The directory that holds a path, and its name there; for the root, itself and `.`.
    fn parent<'s, 'p>(
        &'s mut self,
        path: &'p TreePath,
    ) -> Result<(BorrowedFd<'s>, &'p OsStr), Error> {
        let parent = path.parent().unwrap_or(TreePath::root());
        if self.dir.as_ref().is_none_or(|(at, _)| *at != parent) {
            let fd = self.root.dir(parent.as_path())?;
            self.dir = Some((parent, fd));
        }
        // Set just above where it was not there.
        let dir = self.dir.as_ref().map(|(_, fd)| fd.as_fd());
        Ok((dir.unwrap_or(self.root.as_fd()), path.name()))
    }

    fn open(&mut self, path: &TreePath, flags: OFlags) -> Result<File, Error> {
        let at = path.as_path();
        let (dir, name) = self.parent(path)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mode = if flags.contains(OFlags::CREATE) {
            PRIVATE_FILE
        } else {
            Mode::empty()
        };
        let fd = open_resolved(dir, name, flags, mode, resolve)
            .map_err(|errno| Error::of("open", at, errno))?;
        let there = Meta::of(fd.as_fd()).map_err(|e| Error::of("look at", at, e))?;
        if there.kind != meta::Kind::File {
            return Err(Error::Type {
                path: at.to_owned(),
                wanted: "regular file",
            });
        }
        Ok(File::from(fd))
    }

    /// The file of a path, made if it is missing, with the length of the content.
    fn file(&mut self, path: &TreePath, content: &Content) -> Result<&File, Error> {
        if self.file.as_ref().is_none_or(|(at, _)| at != path) {
            self.file = None;
            let file = self.open(path, OFlags::RDWR | OFlags::CREATE)?;
            let set = |source| Error::io("set the length of", path.as_path(), source);
            if file.metadata().map_err(set)?.len() != content.size {
                file.set_len(content.size).map_err(set)?;
            }
            self.file = Some((path.clone(), file));
        }
        self.opened(path)
    }

    /// Drops what memory has of a file, if it is there: what is read from here on is what the disk has.
    ///
    /// # Errors
    /// When it is there and can't be opened.
    pub fn drop_memory(&mut self, path: &TreePath) -> Result<(), Error> {
        let file = match self.open(path, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Error::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        durable::drop_memory(&file)
            .map_err(|source| Error::io("drop from memory", path.as_path(), source))
    }

    fn opened(&self, path: &TreePath) -> Result<&File, Error> {
        // Every caller has just set it.
        let file = self.file.as_ref().map(|(_, file)| file);
        file.ok_or_else(|| Error::Missing {
            path: path.as_path().to_owned(),
        })
    }

    /// Writes a piece of a file, and nothing where the file has holes.
    ///
    /// # Errors
    /// When the file can't be made or written.
    pub fn write(
        &mut self,
        path: &TreePath,
        content: &Content,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let file = self.file(path, content)?;
        for (start, end) in content.data_within(piece) {
            file.write_all_at(&bytes[start..end], piece.offset + start as u64)
                .map_err(|source| Error::io("write", path.as_path(), source))?;
        }
        Ok(())
    }

    /// Reads a piece of a file that is there; `false` when the file is missing or too short.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&mut self, path: &TreePath, offset: u64, into: &mut [u8]) -> Result<bool, Error> {
        if self.file.as_ref().is_none_or(|(at, _)| at != path) {
            self.file = None;
            match self.open(path, OFlags::RDONLY) {
                Ok(file) => self.file = Some((path.clone(), file)),
                Err(Error::Missing { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match self.opened(path)?.read_exact_at(into, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(Error::io("read", path.as_path(), source)),
        }
    }

    /// Makes a file that shares the extents of another; `false` when the file system can't.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn share(
        &mut self,
        path: &TreePath,
        content: &Content,
        from: &File,
    ) -> Result<bool, Error> {
        let to = self.file(path, content)?;
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => {
                // A source that has grown since would make this one longer, too.
                to.set_len(content.size)
                    .map_err(|source| Error::io("set the length of", path.as_path(), source))?;
                Ok(true)
            }
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY) => {
                Ok(false)
            }
            Err(errno) => Err(Error::of("share the extents of", path.as_path(), errno)),
        }
    }
}
