//! A directory and what can be done beneath it by relative paths.
//!
//! No operation follows a symlink, leaves the directory, or enters a mount, whatever is in the tree and whoever
//! changes it meanwhile. Where a symlink is in the way the operation fails and says so; operations on a name
//! itself (remove, rename, stat, readlink, chown) act on the symlink.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::Error;
use super::descent::{DIRECTORY, open_beneath, open_resolved};
use super::dress::{Worn, dress};
use super::meta::{Kind, Meta, xattrs_at};

/// Longest piece of a path handed to the kernel at once; its own limit is 4096 with the NUL.
const PIECE_LEN_MAX: usize = 3800;

/// A directory, open, and its path for messages.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    label: PathBuf,
}

impl Root {
    /// Opens a directory of the host's own, by a path that is trusted up to its last component.
    ///
    /// # Errors
    /// When it is missing, a symlink, or not a directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|errno| Error::of("open", path, errno))?;
        Ok(Root::from_fd(fd, path))
    }

    /// Takes an open directory; `label` names it in messages.
    pub fn from_fd(fd: OwnedFd, label: &Path) -> Self {
        Root {
            fd,
            label: label.to_owned(),
        }
    }

    /// What messages call it: its path as it was opened.
    pub fn label(&self) -> &Path {
        &self.label
    }

    /// Opens a directory beneath it; the empty path is the root itself.
    ///
    /// # Errors
    /// When it is missing, not a directory, or behind a symlink or a mount.
    pub fn dir(&self, path: &Path) -> Result<OwnedFd, Error> {
        checked(path)?;
        let mut fd = rustix::fs::openat(&self.fd, c".", DIRECTORY, Mode::empty())
            .map_err(|errno| Error::of("open", Path::new(""), errno))?;
        for piece in pieces(path) {
            fd = open_beneath(fd.as_fd(), piece.as_os_str(), DIRECTORY)
                .map_err(|errno| Error::of("open", path, errno))?;
        }
        Ok(fd)
    }

    /// A directory beneath it, as a root of its own.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn subtree(&self, path: &Path) -> Result<Root, Error> {
        Ok(Root::from_fd(self.dir(path)?, &self.label.join(path)))
    }

    /// Where a directory really is, when symlinks are followed as a process would that has this root as its
    /// `/`. The path may be absolute. Only for trees that nobody else changes.
    ///
    /// # Errors
    /// When there is no such directory in the tree.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, Error> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if path.as_os_str().as_bytes().contains(&0) {
            return Err(Error::Path {
                path: path.to_owned(),
            });
        }
        let opened = open_resolved(
            self.as_fd(),
            path.as_os_str(),
            flags,
            Mode::empty(),
            resolve,
        );
        let inside = match opened {
            // No directory can have such a name, so there is none.
            Err(Errno::NAMETOOLONG) => Err(Errno::NOENT),
            other => other,
        }
        .map_err(|errno| Error::of("open", path, errno))?;
        let named = |fd: BorrowedFd<'_>| {
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            std::fs::read_link(link).map_err(|source| Error::io("name", path, source))
        };
        let (root, real) = (named(self.as_fd())?, named(inside.as_fd())?);
        match real.strip_prefix(&root) {
            Ok(relative) => Ok(relative.to_owned()),
            Err(_) => Err(Error::Path {
                path: path.to_owned(),
            }),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// When it is missing, not a regular file, or behind a symlink or a mount.
    pub fn open_file(&self, path: &Path) -> Result<File, Error> {
        self.open_regular(path, OFlags::RDONLY)
    }

    /// The same, and reading it leaves its access time where the file system can.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn open_file_quietly(&self, path: &Path) -> Result<File, Error> {
        match self.open_regular(path, OFlags::RDONLY | OFlags::NOATIME) {
            // It is for a file's owner and for root to ask for that.
            Err(Error::Io { source, .. }) if is_refusal(&source) => self.open_file(path),
            opened => opened,
        }
    }

    fn open_regular(&self, path: &Path, access: OFlags) -> Result<File, Error> {
        let (dir, name) = self.parent(path)?;
        // Without NONBLOCK, opening a fifo would wait for its other end.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match open_beneath(dir.as_fd(), &name, flags) {
            // What has no content to open: a socket, a directory to write to, a fifo without reader.
            Err(Errno::NXIO | Errno::ISDIR) => return Err(not_a_file(path)),
            other => other.map_err(|errno| refused(&dir, &name, "open", path, errno))?,
        };
        let meta = Meta::of(fd.as_fd()).map_err(|errno| Error::of("look at", path, errno))?;
        if meta.kind != Kind::File {
            return Err(not_a_file(path));
        }
        Ok(File::from(fd))
    }

    /// Reads a file of at most `len_max` bytes.
    ///
    /// # Errors
    /// As [`Root::open_file`], or when it is longer.
    pub fn read(&self, path: &Path, len_max: usize) -> Result<Vec<u8>, Error> {
        let file = self.open_file(path)?;
        let mut bytes = Vec::new();
        file.take(len_max as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::io("read", path, source))?;
        if bytes.len() > len_max {
            return Err(Error::TooLong {
                path: path.to_owned(),
                limit: len_max,
            });
        }
        Ok(bytes)
    }

    /// Reads a file that may be missing.
    ///
    /// # Errors
    /// As [`Root::read`], except when it is missing.
    pub fn read_optional(&self, path: &Path, len_max: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.read(path, len_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file so that either its old or its new content is there, whenever the power fails. Owner,
    /// mode and the rest of an old file are not kept; the new one has `mode` and belongs to `owner`.
    ///
    /// # Errors
    /// When its directory is missing or behind a symlink, or writing fails.
    pub fn write_atomic(
        &self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        let temporary = temporary_name(&name);
        match rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::of("clear the way for", path, errno)),
        }
        let written = self.write_new(&dir, &temporary, bytes, mode, owner);
        // Crash boundary: until the rename the old content is there, and the temporary file is replaced by the
        // next attempt.
        let renamed = written.and_then(|()| rustix::fs::renameat(&dir, &temporary, &dir, &name));
        if let Err(errno) = renamed {
            // The first failure is what is reported; a temporary file left behind is replaced next time.
            let _left = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
            return Err(refused(&dir, &name, "write", path, errno));
        }
        rustix::fs::fsync(&dir).map_err(|errno| Error::of("sync the directory of", path, errno))
    }

    fn write_new(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        bytes: &[u8],
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(
            dir,
            name,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?;
        let mut file = File::from(fd);
        file.write_all(bytes)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        rustix::fs::fsync(&file)
    }

    /// Replaces the content of a file that is there, with its owner and mode kept.
    ///
    /// # Errors
    /// As [`Root::open_file`] and [`Root::write_atomic`].
    pub fn rewrite(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let meta = self.stat(path)?;
        if meta.kind != Kind::File {
            return Err(not_a_file(path));
        }
        self.write_atomic(path, bytes, meta.mode, (meta.uid, meta.gid))
    }

    /// Makes a directory and those it lies in, as far as they are missing. A new one has `mode` and belongs
    /// to whoever runs this.
    ///
    /// # Errors
    /// When something else is in the way.
    pub fn create_dir_all(&self, path: &Path, mode: u32) -> Result<(), Error> {
        checked(path)?;
        let mut fd = self.dir(Path::new(""))?;
        for name in path.iter() {
            let made = match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(Error::of("make the directory", path, errno)),
            };
            fd = open_beneath(fd.as_fd(), name, DIRECTORY)
                .map_err(|errno| Error::of("open", path, errno))?;
            if made {
                // Independent of the umask, which belongs to the whole process.
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777))
                    .map_err(|errno| Error::of("change the mode of", path, errno))?;
            }
        }
        Ok(())
    }

    /// Removes a name that is not a directory; whether it was there.
    ///
    /// # Errors
    /// When it is a directory, immutable, or behind a symlink.
    pub fn remove_file(&self, path: &Path) -> Result<bool, Error> {
        let (dir, name) = match self.parent(path) {
            Err(Error::Missing { .. }) => return Ok(false),
            other => other?,
        };
        match rustix::fs::unlinkat(&dir, &name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Err(not_a_file(path)),
            Err(errno) => Err(refused(&dir, &name, "remove", path, errno)),
        }
    }

    /// Removes a directory and all in it, or a file; whether it was there. Nothing is removed when a mount
    /// or an immutable file is found in it.
    ///
    /// # Errors
    /// As [`super::remove::remove_tree`].
    pub fn remove_dir_all(&self, path: &Path) -> Result<bool, Error> {
        let meta = match self.stat(path) {
            Err(Error::Missing { .. }) => return Ok(false),
            other => other?,
        };
        if meta.kind != Kind::Directory {
            return self.remove_file(path);
        }
        super::remove::remove_tree(self, path)?;
        Ok(true)
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// When the name is taken, or its directory is missing or behind a symlink.
    pub fn symlink(&self, target: &OsStr, path: &Path) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, &dir, &name)
            .map_err(|errno| Error::of("make the symlink", path, errno))
    }

    /// Where a symlink points, as stored.
    ///
    /// # Errors
    /// When it is missing or not a symlink.
    pub fn readlink(&self, path: &Path) -> Result<OsString, Error> {
        let (dir, name) = self.parent(path)?;
        match rustix::fs::readlinkat(&dir, &name, Vec::new()) {
            Ok(target) => Ok(OsStr::from_bytes(target.as_bytes()).to_owned()),
            Err(Errno::INVAL) => Err(Error::Type {
                path: path.to_owned(),
                wanted: "symlink",
            }),
            Err(errno) => Err(Error::of("read the symlink", path, errno)),
        }
    }

    /// What the kernel knows of it; a symlink is not followed. The empty path is the root itself.
    ///
    /// # Errors
    /// When it is missing, or behind a symlink.
    pub fn stat(&self, path: &Path) -> Result<Meta, Error> {
        if path.as_os_str().is_empty() {
            return Meta::of(self.as_fd()).map_err(|e| Error::of("look at", path, e));
        }
        let (dir, name) = self.parent(path)?;
        Meta::at(dir.as_fd(), &name).map_err(|errno| Error::of("look at", path, errno))
    }

    /// Whether something is there, be it a dangling symlink.
    ///
    /// # Errors
    /// When that can't be told, for example behind a symlink.
    pub fn exists(&self, path: &Path) -> Result<bool, Error> {
        match self.stat(path) {
            Ok(_) => Ok(true),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes permissions. A symlink has none: it is an error.
    ///
    /// # Errors
    /// When it is missing or a symlink, or not allowed.
    pub fn chmod(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        let fd = open_beneath(dir.as_fd(), &name, OFlags::PATH)
            .map_err(|errno| Error::of("open", path, errno))?;
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::chmod(link, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|errno| refused(&dir, &name, "change the mode of", path, errno))
    }

    /// Gives a directory owner, mode, attributes and times of another, in another tree.
    ///
    /// # Errors
    /// When either is missing, or that is not allowed.
    pub fn dress_like(&self, path: &Path, model: &Root, model_path: &Path) -> Result<(), Error> {
        let meta = model.stat(model_path)?;
        let like = model.dir(model_path)?;
        let xattrs = xattrs_at(like.as_fd(), OsStr::new("."))
            .map_err(|errno| Error::of("read the attributes of", model_path, errno))?;
        let worn = Worn {
            uid: meta.uid,
            gid: meta.gid,
            mode: Some(meta.mode),
            mtime: meta.mtime,
            xattrs: &xattrs,
        };
        dress(self.dir(path)?.as_fd(), &worn)
            .map_err(|errno| Error::of("set the metadata of", path, errno))
    }

    /// Changes owner and group, of a symlink itself too.
    ///
    /// # Errors
    /// When it is missing or not allowed.
    pub fn chown(&self, path: &Path, uid: u32, gid: u32) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&dir, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| refused(&dir, &name, "change the owner of", path, errno))
    }

    /// Empties a regular file.
    ///
    /// # Errors
    /// As [`Root::open_file`], or when it is immutable.
    pub fn truncate(&self, path: &Path) -> Result<(), Error> {
        let file = self.open_regular(path, OFlags::WRONLY)?;
        file.set_len(0)
            .map_err(|source| Error::io("empty", path, source))
    }

    /// The names in a directory, sorted by their bytes.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn list(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        let dir = self.dir(path)?;
        super::descent::names(dir.as_fd()).map_err(|errno| Error::of("list", path, errno))
    }

    /// Renames beneath the root; never replaces something.
    ///
    /// # Errors
    /// When the new name is taken, or either is behind a symlink.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let flags = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&from_dir, &from_name, &to_dir, &to_name, flags)
            .map_err(|errno| Error::of("rename", from, errno))
    }

    /// Makes a file that is no regular one, for tests and for copies.
    ///
    /// # Errors
    /// When the name is taken or it is not allowed.
    pub fn mknod(&self, path: &Path, kind: Kind, mode: u32, rdev: (u32, u32)) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        mknod_at(dir.as_fd(), &name, kind, mode, rdev)
            .map_err(|errno| Error::of("make the device", path, errno))
    }

    /// The open directory that holds a path, and the path's last name.
    ///
    /// # Errors
    /// When the path has no name, or as [`Root::dir`].
    pub fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Error> {
        checked(path)?;
        let Some(name) = path.file_name() else {
            return Err(Error::Path {
                path: path.to_owned(),
            });
        };
        let dir = self.dir(path.parent().unwrap_or(Path::new("")));
        match dir {
            Ok(dir) => Ok((dir, name.to_owned())),
            // What can't be reached is the path that was asked for.
            Err(Error::Missing { .. }) => Err(Error::Missing {
                path: path.to_owned(),
            }),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) fn mknod_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    mode: u32,
    (major, minor): (u32, u32),
) -> Result<(), Errno> {
    let file_type = match kind {
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Directory | Kind::File | Kind::Symlink => return Err(Errno::INVAL),
    };
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(
        dir,
        name,
        file_type,
        Mode::from_raw_mode(mode & 0o7777),
        device,
    )
}

fn is_refusal(error: &std::io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::PERM)
}

fn not_a_file(path: &Path) -> Error {
    Error::Type {
        path: path.to_owned(),
        wanted: "regular file",
    }
}

/// As [`Error::of`], but tells the immutable attribute from other reasons why it is not permitted, and a mount
/// from other reasons why it is busy.
pub(super) fn refused(
    dir: &impl AsFd,
    name: &OsStr,
    doing: &'static str,
    path: &Path,
    errno: Errno,
) -> Error {
    if matches!(errno, Errno::PERM | Errno::ACCESS | Errno::BUSY) {
        let path = path.to_owned();
        let holder = Meta::of(dir.as_fd()).is_ok_and(|meta| meta.immutable);
        match Meta::at(dir.as_fd(), name) {
            Ok(meta) if meta.mount => return Error::Mount { path },
            Ok(meta) if meta.immutable || holder => return Error::Immutable { path },
            Err(_) if holder => return Error::Immutable { path },
            Ok(_) | Err(_) => {}
        }
    }
    Error::of(doing, path, errno)
}

/// A name for a file on its way: at most 255 bytes, whatever the name is, and the same on every attempt.
fn temporary_name(name: &OsStr) -> OsString {
    let digest = blake3::hash(name.as_bytes()).to_hex();
    OsString::from(format!(".tallybook-{}.new", &digest.as_str()[..16]))
}

/// Refuses what could mean something else than names below the root.
fn checked(path: &Path) -> Result<(), Error> {
    let plain = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if plain && !path.as_os_str().as_bytes().contains(&0) {
        Ok(())
    } else {
        Err(Error::Path {
            path: path.to_owned(),
        })
    }
}

/// A path in pieces that are each short enough for the kernel.
fn pieces(path: &Path) -> Vec<PathBuf> {
    let mut pieces: Vec<PathBuf> = Vec::new();
    for name in path.iter() {
        match pieces.last_mut() {
            Some(last) if last.as_os_str().len() + name.len() < PIECE_LEN_MAX => last.push(name),
            Some(_) | None => pieces.push(PathBuf::from(name)),
        }
    }
    pieces
}
