//! A way down a tree by directory descriptors: as deep as the tree is, with few descriptors open.
//!
//! It never follows a symlink, never enters a mount, and never comes back up to another directory than the
//! one it went down from.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::meta::Meta;

/// How many directories of one way down are open at once.
const OPEN_MAX: usize = 32;

/// How a directory is opened.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

struct Level {
    identity: ((u32, u32), u64),
    fd: Option<Arc<OwnedFd>>,
}

/// The directories from a root down to where we are.
pub(super) struct Descent {
    levels: Vec<Level>,
}

impl Descent {
    /// At the root, with a descriptor of its own.
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let fd = rustix::fs::openat(root, c".", DIRECTORY, Mode::empty())?;
        let identity = Meta::of(fd.as_fd())?.identity();
        Ok(Descent {
            levels: vec![Level {
                identity,
                fd: Some(Arc::new(fd)),
            }],
        })
    }

    /// The directory we are in.
    pub(super) fn here(&self) -> &Arc<OwnedFd> {
        let top = self.levels.last().and_then(|level| level.fd.as_ref());
        // `down` opens the last level and `up` opens it again; the root is never left.
        top.expect("the last level is open")
    }

    /// Goes down into `name`.
    pub(super) fn down(&mut self, name: &OsStr) -> Result<(), Errno> {
        let fd = open_beneath(self.here().as_fd(), name, DIRECTORY)?;
        let identity = Meta::of(fd.as_fd())?.identity();
        self.levels.push(Level {
            identity,
            fd: Some(Arc::new(fd)),
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_MAX + 1)
            && far > 0
        {
            self.levels[far].fd = None;
        }
        Ok(())
    }

    /// Goes back up. `STALE` when the parent is no longer the directory we came from. Must not be called at
    /// the root.
    pub(super) fn up(&mut self) -> Result<(), Errno> {
        let (Some(left), Some(parent)) = (self.levels.pop(), self.levels.last_mut()) else {
            return Err(Errno::INVAL);
        };
        if parent.fd.is_none() {
            let fd = left.fd.ok_or(Errno::BADF)?;
            let up = rustix::fs::openat(&fd, c"..", DIRECTORY, Mode::empty())?;
            if Meta::of(up.as_fd())?.identity() != parent.identity {
                return Err(Errno::STALE);
            }
            parent.fd = Some(Arc::new(up));
        }
        Ok(())
    }

    /// The names in the directory we are in, sorted by their bytes; `None` when they take more than `len_max` bytes.
    pub(super) fn names(&self, len_max: usize) -> Result<Option<Vec<OsString>>, Errno> {
        names_within(self.here().as_fd(), len_max)
    }

    /// At most `count_max` of the names in the directory we are in, in no order.
    pub(super) fn some_names(&self, count_max: usize) -> Result<Vec<OsString>, Errno> {
        let mut names = Vec::new();
        each_name(self.here().as_fd(), &mut |name| {
            names.push(name.to_owned());
            names.len() < count_max
        })?;
        Ok(names)
    }
}

/// Opens one name, or a short path, without following symlinks or entering mounts.
pub(super) fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &OsStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // With NOFOLLOW the kernel would say of a symlink that it is not a directory; so it says that it is one.
    let flags = flags.difference(OFlags::NOFOLLOW);
    open_resolved(dir, path, flags, Mode::empty(), resolve)
}

/// Opens one name to look at it only, be it a symlink, and nothing of a mount.
pub(super) fn look_beneath(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    open_resolved(dir, name, flags, Mode::empty(), resolve)
}

/// How often a resolution is repeated when something else was renamed meanwhile.
const AGAIN_MAX: usize = 64;

pub(super) fn open_resolved(
    dir: BorrowedFd<'_>,
    path: &OsStr,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < AGAIN_MAX => tries += 1,
            other => return other,
        }
    }
}

/// What a name takes in memory.
pub(super) fn held(name: &OsStr) -> usize {
    name.len() + size_of::<OsString>()
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    names_within(dir, usize::MAX).map(Option::unwrap_or_default)
}

fn names_within(dir: BorrowedFd<'_>, len_max: usize) -> Result<Option<Vec<OsString>>, Errno> {
    let (mut names, mut len) = (Vec::new(), 0_usize);
    each_name(dir, &mut |name| {
        len = len.saturating_add(held(name));
        if len <= len_max {
            names.push(name.to_owned());
        }
        len <= len_max
    })?;
    if len > len_max {
        return Ok(None);
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// Tells of every name in a directory until `told` has enough.
fn each_name(dir: BorrowedFd<'_>, told: &mut dyn FnMut(&OsStr) -> bool) -> Result<(), Errno> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !told(OsStr::from_bytes(name)) {
            return Ok(());
        }
    }
    Ok(())
}
