//! What the kernel knows of one file besides its content: type, mode, owner, times, attributes.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// The types of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A time of last modification or change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Seconds since 1970-01-01 UTC; negative before.
    pub seconds: i64,
    /// Nanoseconds on top, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What `statx` says of a file, symlinks not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its type.
    pub kind: Kind,
    /// Permissions with set-uid, set-gid and sticky bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the content in bytes.
    pub size: u64,
    /// How much of it is stored, in units of 512 bytes.
    pub blocks: u64,
    /// When the content was last modified.
    pub mtime: Mtime,
    /// When the inode was last changed in any way.
    pub ctime: Mtime,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// How many names it has.
    pub nlink: u32,
    /// Major and minor number of the device it is stored on.
    pub dev: (u32, u32),
    /// Its number there.
    pub ino: u64,
    /// Whether it is the root of a mount.
    pub mount: bool,
    /// Whether the immutable or the append-only attribute is set.
    pub immutable: bool,
}

impl Meta {
    /// What the kernel says of `name` in `dir`; `.` is the directory itself.
    pub(super) fn at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Self, Errno> {
        Self::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What the kernel says of something open.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::statx(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn statx(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Self, Errno> {
        let flags = flags | AtFlags::NO_AUTOMOUNT;
        Self::new(&rustix::fs::statx(
            dir,
            name,
            flags,
            StatxFlags::BASIC_STATS,
        )?)
    }

    fn new(stat: &Statx) -> Result<Self, Errno> {
        let kind = match stat.stx_mode & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File,
            0o120_000 => Kind::Symlink,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            // There are no other types; a file system that invents one is broken.
            _ => return Err(Errno::INVAL),
        };
        Ok(Meta {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            mtime: Mtime {
                seconds: stat.stx_mtime.tv_sec,
                nanoseconds: stat.stx_mtime.tv_nsec,
            },
            ctime: Mtime {
                seconds: stat.stx_ctime.tv_sec,
                nanoseconds: stat.stx_ctime.tv_nsec,
            },
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            nlink: stat.stx_nlink,
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            mount: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            immutable: stat
                .stx_attributes
                .intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        })
    }

    /// What tells this file from all others, whatever its names are.
    pub const fn identity(&self) -> ((u32, u32), u64) {
        (self.dev, self.ino)
    }
}

/// The path that names `name` in `dir` to system calls that take no directory descriptor. The last component
/// is never followed by the `l…xattr` calls, and `dir` stays the directory it is, wherever it is moved.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// Whether an attribute belongs to the file and not to the file system it happens to be on.
fn is_portable(name: &[u8]) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    name.starts_with(b"user.")
        || name.starts_with(b"security.")
        || name.starts_with(b"trusted.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// The names of the attributes of what a path leads to: those that belong to the file.
pub(super) fn xattr_names(path: &str) -> Result<Vec<Vec<u8>>, Errno> {
    match grown(|buffer| rustix::fs::listxattr(path, buffer)) {
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        names => Ok(names?
            .split(|byte| *byte == 0)
            .filter(|name| is_portable(name))
            .map(<[u8]>::to_vec)
            .collect()),
    }
}

/// The extended attributes of `name` in `dir`, with its ACLs and capabilities.
pub(super) fn xattrs_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Xattrs, Errno> {
    let path = proc_path(dir, name)?;
    let mut found = Xattrs::new();
    let names = match grown(|buffer| rustix::fs::llistxattr(&path, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(found),
        other => other?,
    };
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| is_portable(name))
    {
        match grown(|buffer| rustix::fs::lgetxattr(&path, name, buffer)) {
            Ok(value) => {
                found.insert(name.to_vec(), value);
            }
            // It was removed between the two calls.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The kernel's own limit for a list of names and for a value.
const XATTR_LEN_MAX: usize = 65536;

fn grown(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 512];
    match read(&mut small) {
        Ok(len) => Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_LEN_MAX];
            let len = read(&mut large)?;
            large.truncate(len);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}
