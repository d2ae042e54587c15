//! Copying a tree whole: numeric owners, modes, ACLs, attributes, capabilities, hardlinks, holes, devices, fifos
//! and times to the nanosecond. Sockets are left out: nobody listens on a copy.
//!
//! It copies into an empty directory of ours and can only be redone from scratch. Nothing in the source is
//! executed, followed or changed. The caller syncs the file system afterwards.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Error;
use super::beneath::{Root, mknod_at};
use super::budget::Budget;
use super::descent::Descent;
use super::dress::{Worn, dress, dress_name};
use super::meta::{Kind, Meta, Xattrs};
use super::walk::{Entry, Found, Vanished, Visit, Walk};

/// How content is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Bytes are copied.
    Copy,
    /// Extents are shared until one side writes; an error where the file system can't.
    Reflink,
}

/// How far a copy is, and in the end what was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Entries, with the root.
    pub entries: u64,
    /// Content of regular files in bytes, holes and shared extents included, hardlinks once.
    pub size_bytes: u64,
    /// Sockets that were left out.
    pub sockets_skipped: u64,
}

/// Told now and then how far the copy is; says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(&Copied) -> ControlFlow<()>;

/// Files waiting for a thread; each holds two descriptors.
const QUEUE_MAX: usize = 64;
/// How many entries are between two looks at the watch.
const WATCH_EVERY: u64 = 256;
/// The most that is copied between two looks whether to stop.
const CHUNK_LEN: u64 = 16 << 20;
/// How much memory may be taken by what a way down and back needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// By the attributes of the directories that we are in.
    pub(super) inside_len_max: usize,
    /// By the first names of files whose other names are still to come.
    pub(super) links_len_max: usize,
}

const LIMITS: Limits = Limits {
    inside_len_max: 128 << 20,
    links_len_max: 512 << 20,
};

/// How often the watch is told while a large file is copied.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Copies all below `source`, and its own metadata, into the empty directory `dest`.
///
/// # Errors
/// When anything can't be copied exactly; the error names it. What was copied so far is left for the caller
/// to remove.
pub fn copy_tree(
    source: BorrowedFd<'_>,
    dest: BorrowedFd<'_>,
    how: How,
    vanished: Vanished,
    watch: Watch<'_>,
) -> Result<Copied, Error> {
    copy_within(LIMITS, source, dest, how, vanished, watch)
}

/// The same with other limits, for tests.
pub(super) fn copy_within(
    limits: Limits,
    source: BorrowedFd<'_>,
    dest: BorrowedFd<'_>,
    how: How,
    vanished: Vanished,
    watch: Watch<'_>,
) -> Result<Copied, Error> {
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4));
    let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
    let (done, ended) = sync_channel::<()>(1);
    let shared = Shared {
        how,
        queue: Mutex::new(queue),
        stop: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        failed: Mutex::new(None),
    };
    let outcome = std::thread::scope(|scope| {
        for _ in 0..threads {
            let (shared, done) = (&shared, done.clone());
            scope.spawn(move || shared.work(&done));
        }
        drop(done);
        let mut copy = Copy {
            shared: &shared,
            jobs,
            ended,
            watch,
            copied: Copied::default(),
            inside: Vec::new(),
            inside_len: Budget::new(
                "the attributes of the directories above",
                limits.inside_len_max,
            ),
            links: HashMap::new(),
            links_len: Budget::new("files with several names", limits.links_len_max),
        };
        let outcome = copy.run(source, dest, vanished);
        if outcome.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        // The threads end when the queue is closed and empty.
        let Copy {
            jobs,
            ended,
            watch,
            copied,
            ..
        } = copy;
        drop(jobs);
        let waited = wait_for_end(&shared, &ended, watch, copied);
        outcome.and(waited).map(|()| copied)
    });
    let failed = shared
        .failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match failed {
        Some(error) => Err(error),
        None => outcome.map(|copied| Copied {
            size_bytes: shared.bytes.load(Ordering::Relaxed),
            ..copied
        }),
    }
}

fn wait_for_end(
    shared: &Shared,
    ended: &Receiver<()>,
    watch: Watch<'_>,
    mut copied: Copied,
) -> Result<(), Error> {
    use std::sync::mpsc::RecvTimeoutError;
    loop {
        match ended.recv_timeout(WATCH_INTERVAL) {
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
        copied.size_bytes = shared.bytes.load(Ordering::Relaxed);
        if watch(&copied).is_break() {
            shared.stop.store(true, Ordering::Relaxed);
            return Err(Error::Stopped);
        }
    }
}

/// One regular file to fill.
struct Job {
    entry: Entry,
    from: File,
    to: File,
}

/// What the threads share.
struct Shared {
    how: How,
    queue: Mutex<Receiver<Job>>,
    stop: AtomicBool,
    bytes: AtomicU64,
    failed: Mutex<Option<Error>>,
}

impl Shared {
    fn work(&self, done: &SyncSender<()>) {
        loop {
            let next = {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.recv()
            };
            let Ok(job) = next else { return };
            if !self.stop.load(Ordering::Relaxed)
                && let Err(error) = self.fill(&job)
            {
                self.stop.store(true, Ordering::Relaxed);
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                // A thread that merely saw the stop flag must not hide why it was set.
                if failed.is_none() && !matches!(error, Error::Stopped) {
                    *failed = Some(error);
                }
            }
            // Full means that the main thread has yet to hear of an earlier one: once is enough.
            let _heard = done.try_send(());
        }
    }

    fn fill(&self, job: &Job) -> Result<(), Error> {
        let path = &job.entry.path;
        if job.entry.meta.size > 0 {
            match self.how {
                How::Copy => self.content(job)?,
                How::Reflink => {
                    rustix::fs::ioctl_ficlone(&job.to, &job.from).map_err(|errno| {
                        Error::Reflink {
                            path: path.clone(),
                            source: errno.into(),
                        }
                    })?;
                    self.bytes.fetch_add(job.entry.meta.size, Ordering::Relaxed);
                }
            }
        }
        dress(job.to.as_fd(), &worn(&job.entry.meta, &job.entry.xattrs))
            .map_err(|errno| Error::of("set the metadata of", path, errno))
    }

    /// Copies what is stored, and leaves holes as they are.
    fn content(&self, job: &Job) -> Result<(), Error> {
        let size = job.entry.meta.size;
        let whole = job.entry.meta.blocks.saturating_mul(512) >= size;
        if whole {
            return self.range(job, 0, size);
        }
        let path = &job.entry.path;
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(&job.from, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                // No data after `at`: a hole to the end.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    self.range(job, at, size)?;
                    at = size;
                    break;
                }
                Err(errno) => return Err(Error::of("find the holes of", path, errno)),
            };
            let hole = rustix::fs::seek(&job.from, rustix::fs::SeekFrom::Hole(data))
                .map_err(|errno| Error::of("find the holes of", path, errno))?
                .min(size);
            self.bytes.fetch_add(data - at, Ordering::Relaxed);
            self.range(job, data, hole)?;
            at = hole;
        }
        self.bytes
            .fetch_add(size.saturating_sub(at), Ordering::Relaxed);
        rustix::fs::ftruncate(&job.to, size).map_err(|e| Error::of("set the length of", path, e))
    }

    fn range(&self, job: &Job, from: u64, to: u64) -> Result<(), Error> {
        let (mut at, mut out) = (from, from);
        while at < to {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let len = usize::try_from((to - at).min(CHUNK_LEN)).unwrap_or(usize::MAX);
            let copied =
                rustix::fs::copy_file_range(&job.from, Some(&mut at), &job.to, Some(&mut out), len);
            match copied {
                Ok(0)
                | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) =>
                {
                    return self.read_write(job, at, to);
                }
                Ok(len) => {
                    self.bytes.fetch_add(len as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::of("copy", &job.entry.path, errno)),
            }
        }
        Ok(())
    }

    /// For what the kernel can't copy by itself, between two kinds of file systems for example.
    fn read_write(&self, job: &Job, from: u64, to: u64) -> Result<(), Error> {
        let (entry, mut source, mut dest) = (&job.entry, &job.from, &job.to);
        let error = |source| Error::io("copy", &entry.path, source);
        source.seek(SeekFrom::Start(from)).map_err(error)?;
        dest.seek(SeekFrom::Start(from)).map_err(error)?;
        let mut buffer = vec![0; 128 * 1024];
        let mut left = to - from;
        while left > 0 {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let want = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let len = source.read(&mut buffer[..want]).map_err(error)?;
            if len == 0 {
                return Err(Error::Changed {
                    path: entry.path.clone(),
                });
            }
            dest.write_all(&buffer[..len]).map_err(error)?;
            left -= len as u64;
            self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The main thread: makes every name, hands regular files to the others.
struct Copy<'a> {
    shared: &'a Shared,
    jobs: SyncSender<Job>,
    ended: Receiver<()>,
    watch: Watch<'a>,
    copied: Copied,
    /// The directories that we are in, to be dressed when they are left.
    inside: Vec<Inside>,
    inside_len: Budget,
    /// The files that have names still to come.
    links: HashMap<((u32, u32), u64), First>,
    links_len: Budget,
}

/// What is kept of a directory: not its path, which is as long as the way down.
struct Inside {
    meta: Meta,
    xattrs: Xattrs,
}

impl Inside {
    /// The bytes that it takes.
    fn held(&self) -> usize {
        let of_xattr = |(name, value): (&Vec<u8>, &Vec<u8>)| name.len() + value.len() + 96;
        size_of::<Inside>() + self.xattrs.iter().map(of_xattr).sum::<usize>()
    }
}

/// A file's first name, and how many are to come.
struct First {
    path: PathBuf,
    to_come: u32,
}

impl First {
    /// The bytes that it takes.
    fn held(&self) -> usize {
        self.path.as_os_str().len() + 2 * size_of::<(((u32, u32), u64), First)>()
    }
}

impl Copy<'_> {
    fn run(
        &mut self,
        source: BorrowedFd<'_>,
        dest: BorrowedFd<'_>,
        vanished: Vanished,
    ) -> Result<(), Error> {
        let top = Path::new("");
        let open = |errno| Error::of("open", top, errno);
        let root = rustix::fs::openat(dest, c".", super::descent::DIRECTORY, Mode::empty())
            .map_err(open)?;
        let root = Root::from_fd(root, top);
        if !root.list(top)?.is_empty() {
            return Err(Error::io(
                "copy into",
                top,
                std::io::Error::from(std::io::ErrorKind::DirectoryNotEmpty),
            ));
        }
        let mut into = Descent::new(dest).map_err(open)?;
        let mut walk = Walk::new(source)?.vanished(vanished);
        while let Some(visit) = walk.visit()? {
            match visit {
                Visit::Enter(found) => {
                    self.copied.entries += 1;
                    if found.entry.meta.kind == Kind::Directory {
                        if !self.inside.is_empty() {
                            make_dir(&mut into, &found)?;
                        }
                        let Entry {
                            path, meta, xattrs, ..
                        } = found.entry;
                        let entered = Inside { meta, xattrs };
                        self.inside_len.take(entered.held(), &path)?;
                        self.inside.push(entered);
                    } else {
                        self.enter(&root, into.here(), found, vanished)?;
                    }
                }
                Visit::Mount(path) => return Err(Error::Mount { path }),
                Visit::Leave(path) => {
                    if let Some(left) = self.inside.pop() {
                        self.inside_len.give_back(left.held());
                        // Last of all, since every name made in it changes its time, and an inherited ACL or
                        // group would change what is made in it.
                        dress(into.here().as_fd(), &worn(&left.meta, &left.xattrs))
                            .map_err(|errno| Error::of("set the metadata of", &path, errno))?;
                    }
                    if !self.inside.is_empty() {
                        into.up()
                            .map_err(|errno| Error::of("leave", &path, errno))?;
                    }
                }
            }
            if self.copied.entries.is_multiple_of(WATCH_EVERY) {
                self.look()?;
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        root: &Root,
        dir: &OwnedFd,
        found: Found,
        vanished: Vanished,
    ) -> Result<(), Error> {
        let path = found.entry.path.clone();
        let meta = &found.entry.meta;
        if meta.nlink > 1 {
            if let Some(first) = self.links.get_mut(&meta.identity()) {
                let (first_dir, first_name) = root.parent(&first.path)?;
                first.to_come = first.to_come.saturating_sub(1);
                if first.to_come == 0 {
                    self.links_len.give_back(first.held());
                    self.links.remove(&meta.identity());
                }
                return rustix::fs::linkat(
                    &first_dir,
                    &first_name,
                    dir,
                    &found.name,
                    AtFlags::empty(),
                )
                .map_err(|errno| Error::of("link", &path, errno));
            }
            if meta.kind != Kind::Socket {
                let first = First {
                    path: path.clone(),
                    to_come: meta.nlink - 1,
                };
                self.links_len.take(first.held(), &path)?;
                self.links.insert(meta.identity(), first);
            }
        }
        let name = found.name.as_os_str();
        let made = match meta.kind {
            Kind::File => {
                let identity = meta.identity();
                return match self.file(dir, found) {
                    Err(Error::Missing { .. }) if vanished == Vanished::Skip => {
                        if let Some(first) = self.links.remove(&identity) {
                            self.links_len.give_back(first.held());
                        }
                        Ok(())
                    }
                    Err(Error::Missing { path }) => Err(Error::Changed { path }),
                    other => other,
                };
            }
            Kind::Socket => {
                self.copied.sockets_skipped += 1;
                self.copied.entries -= 1;
                return Ok(());
            }
            Kind::Symlink => {
                let target = found.entry.target.as_deref().unwrap_or_default();
                rustix::fs::symlinkat(target, dir, name)
            }
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                mknod_at(dir.as_fd(), name, meta.kind, 0o600, meta.rdev)
            }
            // The caller enters directories itself.
            Kind::Directory => Err(Errno::ISDIR),
        };
        let worn = worn(meta, &found.entry.xattrs);
        made.and_then(|()| dress_name(dir.as_fd(), name, &worn))
            .map_err(|errno| Error::of("make", &path, errno))
    }

    fn file(&mut self, dir: &OwnedFd, found: Found) -> Result<(), Error> {
        let from = found.open()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(dir, &found.name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| Error::of("make", &found.entry.path, errno))?;
        let mut job = Job {
            entry: found.entry,
            from,
            to: File::from(to),
        };
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => return Ok(()),
                // Can't be: the threads hold the other end until this one is dropped.
                Err(TrySendError::Disconnected(_)) => return Err(Error::Stopped),
                Err(TrySendError::Full(back)) => {
                    job = back;
                    // A timeout means that large files are being copied; either way there may be room now.
                    let _room = self.ended.recv_timeout(WATCH_INTERVAL);
                    self.look()?;
                }
            }
        }
    }

    fn look(&mut self) -> Result<(), Error> {
        self.copied.size_bytes = self.shared.bytes.load(Ordering::Relaxed);
        let stop = self.shared.stop.load(Ordering::Relaxed);
        if stop || (self.watch)(&self.copied).is_break() {
            return Err(Error::Stopped);
        }
        Ok(())
    }
}

fn make_dir(into: &mut Descent, found: &Found) -> Result<(), Error> {
    rustix::fs::mkdirat(into.here(), &found.name, Mode::from_raw_mode(0o700))
        .and_then(|()| into.down(&found.name))
        .map_err(|errno| Error::of("make the directory", &found.entry.path, errno))
}

fn worn<'a>(meta: &Meta, xattrs: &'a Xattrs) -> Worn<'a> {
    Worn {
        uid: meta.uid,
        gid: meta.gid,
        mode: (meta.kind != Kind::Symlink).then_some(meta.mode),
        mtime: meta.mtime,
        xattrs,
    }
}
