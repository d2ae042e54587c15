//! Giving a file all that the kernel knows of it besides its content, exactly: owner, attributes, ACLs,
//! capabilities, mode and time. What it got otherwise, an ACL inherited from a directory above for example, goes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod, chownat,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::descent::look_beneath;
use super::meta::{Mtime, Xattrs, xattr_names};

/// What a file is to have.
#[derive(Debug, Clone, Copy)]
pub struct Worn<'a> {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions with set-uid, set-gid and sticky bits; none for a symlink.
    pub mode: Option<u32>,
    /// When its content was last modified.
    pub mtime: Mtime,
    /// All extended attributes, ACLs and capabilities.
    pub xattrs: &'a Xattrs,
}

/// Dresses something open, be it open to look at only. In this order: a change of owner takes away set-uid bits and
/// capabilities, an ACL changes the mode, and everything changes the time.
pub(super) fn dress(fd: BorrowedFd<'_>, worn: &Worn<'_>) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(worn.uid), Gid::from_raw(worn.gid));
    chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    // The link leads to what is open, also where that is a symlink, and no further.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for there in xattr_names(path.as_str())? {
        if !worn.xattrs.contains_key(&there) {
            removexattr(path.as_str(), there.as_slice())?;
        }
    }
    for (name, value) in worn.xattrs {
        setxattr(path.as_str(), name.as_slice(), value, XattrFlags::empty())?;
    }
    if let Some(mode) = worn.mode {
        chmod(path.as_str(), Mode::from_raw_mode(mode & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: worn.mtime.seconds,
            tv_nsec: worn.mtime.nanoseconds.into(),
        },
    };
    utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)
}

/// The same by name. The directory is ours, so nobody can exchange the name meanwhile.
pub(super) fn dress_name(dir: BorrowedFd<'_>, name: &OsStr, worn: &Worn<'_>) -> Result<(), Errno> {
    dress(look_beneath(dir, name)?.as_fd(), worn)
}
