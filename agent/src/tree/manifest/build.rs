//! Making the manifest of a tree that is there. Two threads hash; the walk comes first, so that the total is known.
//! It changes nothing, not even access times where the kernel can be asked to leave them. What it holds in memory is
//! bounded by the longest manifest there may be, however much the tree tries.

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, StepFailure};

use super::{
    Content, EXTENT_ALIGN, Entry, Extent, Inode, Kind, LEN_MAX, Manifest, Node, PIECE_LEN,
    TreePath, piece_runs,
};
use crate::tree::beneath::Root;
use crate::tree::meta::{Meta, Xattrs};
use crate::tree::walk::{self, Walk};
use crate::tree::{self, meta};

/// How many threads hash.
const THREADS: usize = 2;
/// How often the watch is told.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How many entries are walked between two looks at the watch.
const WATCH_EVERY: usize = 256;

/// A tree whose manifest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// It could not be read.
    #[error("can't read the tree")]
    Tree(#[from] tree::Error),
    /// It holds what no manifest can say.
    #[error("the tree has no manifest")]
    Manifest(#[from] super::Error),
    /// It holds a path that no manifest can say.
    #[error("{path:?} has no place in a manifest: {what}")]
    Path {
        /// The path.
        path: std::path::PathBuf,
        /// Why not.
        what: &'static str,
    },
}

impl BuildError {
    /// As a step reports it, for the tree below `root`.
    pub fn failure(&self, root: &Path) -> StepFailure {
        match self {
            BuildError::Tree(error) => error.failure(root),
            BuildError::Manifest(_) | BuildError::Path { .. } => {
                let mut failure = crate::step::failure(FailureClass::Other, self);
                failure.message = format!("in {}: {}", root.display(), failure.message);
                failure
            }
        }
    }
}

/// How long the manifest has become, at least; more than it may is an error before it is in memory.
struct Len {
    now: AtomicU64,
    max: u64,
}

impl Len {
    fn add(&self, len: u64) -> Result<(), super::Error> {
        let before = self.now.fetch_add(len, Ordering::Relaxed);
        match before.saturating_add(len) {
            len if len <= self.max => Ok(()),
            len => Err(super::Error::TooLong(len)),
        }
    }
}

/// What an entry takes at least, besides its path, target and attributes: as a hard link, and as anything else.
const ENTRY_LEN_MIN: (u64, u64) = (5, 27);

/// How far hashing is, in bytes of content. The total is 0 while the tree is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hashed {
    /// Bytes hashed.
    pub done: u64,
    /// Bytes to hash.
    pub total: u64,
}

/// Told now and then how far it is; says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(Hashed) -> ControlFlow<()>;

/// The manifest of the tree below `dir`, with owners as they are stored there: a tree that is not in container
/// space is shifted by whoever copies it.
///
/// # Errors
/// When something can't be read, changes meanwhile, or has no place in a manifest.
pub fn build(dir: BorrowedFd<'_>, watch: Watch<'_>) -> Result<Manifest, BuildError> {
    build_within(LEN_MAX, dir, watch)
}

/// The same with another limit, for tests.
pub(super) fn build_within(
    len_max: u64,
    dir: BorrowedFd<'_>,
    watch: Watch<'_>,
) -> Result<Manifest, BuildError> {
    let len = Len {
        now: AtomicU64::new(0),
        max: len_max,
    };
    let (found, mut linked) = walked(dir, watch, &len)?;
    let mut entries = Vec::with_capacity(found.len());
    let mut firsts: HashMap<((u32, u32), u64), TreePath> = HashMap::new();
    let mut files = Vec::new();
    for (path, mut entry) in found {
        let meta = &entry.meta;
        if meta.nlink > 1 && meta.kind != meta::Kind::Directory {
            if let Some(first) = firsts.get(&meta.identity()) {
                let first = first.clone();
                entries.push(Entry {
                    path,
                    node: Node::Link { first },
                });
                continue;
            }
            firsts.insert(meta.identity(), path.clone());
            (entry.xattrs, entry.target) = linked.remove(&meta.identity()).unwrap_or_default();
        }
        if meta.kind == meta::Kind::File && meta.size > 0 {
            files.push(Job {
                at: entries.len(),
                path: path.clone(),
                meta: meta.clone(),
            });
        }
        entries.push(Entry {
            path,
            node: Node::Inode(inode(entry)),
        });
    }
    let root = crate::tree::Root::from_fd(
        dir.try_clone_to_owned()
            .map_err(|source| tree::Error::io("open", Path::new(""), source))?,
        Path::new(""),
    );
    for (at, content) in hash_all(&root, &files, watch, &len)? {
        if let Node::Inode(inode) = &mut entries[at].node {
            inode.kind = Kind::File(content);
        }
    }
    Ok(Manifest::new(entries)?)
}

/// What is kept of files with several names once, not once a name.
type Linked = HashMap<((u32, u32), u64), (Xattrs, Option<Vec<u8>>)>;

/// All entries in the manifest's order, with empty paths of their own: the manifest's are beside them. Those with
/// several names have their attributes and targets apart.
fn walked(
    dir: BorrowedFd<'_>,
    watch: Watch<'_>,
    len: &Len,
) -> Result<(Vec<(TreePath, walk::Entry)>, Linked), BuildError> {
    let (mut found, mut linked) = (Vec::new(), Linked::new());
    for entry in Walk::new(dir)? {
        let mut entry = entry?.entry;
        let own = std::mem::take(&mut entry.path);
        let bytes = own.as_os_str().as_encoded_bytes();
        let path = TreePath::new(bytes).map_err(|what| BuildError::Path {
            path: own.clone(),
            what,
        })?;
        let (xattrs, target) = (&entry.xattrs, &entry.target);
        let held = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 5);
        let held = held.sum::<usize>() + target.as_ref().map_or(0, Vec::len);
        let is_linked = entry.meta.nlink > 1 && entry.meta.kind != meta::Kind::Directory;
        if is_linked && linked.contains_key(&entry.meta.identity()) {
            (entry.xattrs, entry.target) = (Xattrs::new(), None);
            len.add(bytes.len() as u64 + ENTRY_LEN_MIN.0)?;
        } else {
            len.add((bytes.len() + held) as u64 + ENTRY_LEN_MIN.1)?;
        }
        if is_linked {
            let (xattrs, target) = (std::mem::take(&mut entry.xattrs), entry.target.take());
            let identity = entry.meta.identity();
            linked.entry(identity).or_insert((xattrs, target));
        }
        found.push((path, entry));
        if found.len() % WATCH_EVERY == 0 && watch(Hashed::default()).is_break() {
            return Err(tree::Error::Stopped.into());
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((found, linked))
}

fn inode(entry: walk::Entry) -> Inode {
    let meta = entry.meta;
    let (major, minor) = meta.rdev;
    Inode {
        // Links have no permissions of their own; what is shown for them differs between file systems.
        mode: match meta.kind {
            meta::Kind::Symlink => 0o777,
            meta::Kind::Directory
            | meta::Kind::File
            | meta::Kind::Fifo
            | meta::Kind::Socket
            | meta::Kind::CharDevice
            | meta::Kind::BlockDevice => (meta.mode & 0o7777) as u16,
        },
        uid: meta.uid,
        gid: meta.gid,
        mtime_s: meta.mtime.seconds,
        mtime_ns: meta.mtime.nanoseconds,
        xattrs: entry.xattrs,
        kind: match meta.kind {
            meta::Kind::Directory => Kind::Directory,
            // Filled in when it was hashed.
            meta::Kind::File => Kind::File(Content {
                size: 0,
                extents: None,
                pieces: Vec::new(),
            }),
            meta::Kind::Symlink => Kind::Symlink {
                target: entry.target.unwrap_or_default(),
            },
            meta::Kind::Fifo => Kind::Fifo,
            meta::Kind::Socket => Kind::Socket,
            meta::Kind::CharDevice => Kind::CharDevice { major, minor },
            meta::Kind::BlockDevice => Kind::BlockDevice { major, minor },
        },
    }
}

/// A file to hash.
struct Job {
    at: usize,
    path: TreePath,
    meta: Meta,
}

/// The contents of all files, with the positions of their entries.
fn hash_all(
    root: &Root,
    jobs: &[Job],
    watch: Watch<'_>,
    len: &Len,
) -> Result<Vec<(usize, Content)>, BuildError> {
    let stored = |job: &Job| job.meta.size.min(job.meta.blocks.saturating_mul(512));
    let total = jobs.iter().map(stored).fold(0, u64::saturating_add);
    let (next, done, stop) = (
        AtomicUsize::new(0),
        AtomicU64::new(0),
        AtomicBool::new(false),
    );
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    let stopped = std::thread::scope(|scope| {
        let (alive, ended) = channel::<()>();
        for _ in 0..THREADS {
            let alive = alive.clone();
            let (next, stop, results) = (&next, &stop, &results);
            let shared = Shared {
                done: &done,
                stop,
                len,
            };
            scope.spawn(move || {
                let _alive = alive;
                let mut buffer = vec![0; PIECE_LEN as usize];
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let content = hash(root, job, &mut buffer, &shared);
                    if content.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push(content.map(|content| (job.at, content)));
                }
            });
        }
        drop(alive);
        loop {
            match ended.recv_timeout(WATCH_INTERVAL) {
                Err(RecvTimeoutError::Disconnected) => return false,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            let done = done.load(Ordering::Relaxed);
            if watch(Hashed { done, total }).is_break() {
                stop.store(true, Ordering::Relaxed);
                return true;
            }
        }
    });
    if stopped {
        return Err(tree::Error::Stopped.into());
    }
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().collect()
}

/// What the threads that hash share.
struct Shared<'a> {
    done: &'a AtomicU64,
    stop: &'a AtomicBool,
    len: &'a Len,
}

fn hash(
    root: &Root,
    job: &Job,
    buffer: &mut [u8],
    shared: &Shared<'_>,
) -> Result<Content, BuildError> {
    let path = job.path.as_path();
    let file = root.open_file_quietly(path)?;
    let changed = || tree::Error::Changed {
        path: path.to_owned(),
    };
    let look = || Meta::of(file.as_fd()).map_err(|e| tree::Error::of("look at", path, e));
    if look()?.identity() != job.meta.identity() {
        return Err(changed().into());
    }
    let size = job.meta.size;
    let extents = extents(&file, path, &job.meta)?;
    let runs = piece_runs(size, extents.as_deref());
    let count = runs.iter().map(|run| run.1).sum::<u64>();
    let extents_len = 16 * extents.as_ref().map_or(0, Vec::len) as u64;
    shared
        .len
        .add(extents_len.saturating_add(count.saturating_mul(32)))?;
    let mut pieces = Vec::new();
    for (first, count) in runs {
        for number in first..first + count {
            if shared.stop.load(Ordering::Relaxed) {
                return Err(tree::Error::Stopped.into());
            }
            let offset = number * PIECE_LEN;
            let piece = &mut buffer[..(size - offset).min(PIECE_LEN) as usize];
            match file.read_exact_at(piece, offset) {
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(changed().into());
                }
                read => read.map_err(|source| tree::Error::io("read", path, source))?,
            }
            pieces.push(Hash::from(blake3::hash(piece)));
            shared.done.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
    let after = look()?;
    if after.size != size || after.mtime != job.meta.mtime {
        return Err(changed().into());
    }
    Ok(Content {
        size,
        extents,
        pieces,
    })
}

/// Where a file holds data, in whole blocks of [`EXTENT_ALIGN`]; `None` when it has no holes.
fn extents(file: &File, path: &Path, meta: &Meta) -> Result<Option<Vec<Extent>>, BuildError> {
    let size = meta.size;
    if meta.blocks.saturating_mul(512) >= size {
        return Ok(None);
    }
    let seek = |to| rustix::fs::seek(file, to);
    let failed = |errno| tree::Error::of("find the holes of", path, errno);
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(rustix::fs::SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // No data after `at`: a hole to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(failed(errno).into()),
        };
        let end = seek(rustix::fs::SeekFrom::Hole(start)).map_err(failed)?;
        at = end.clamp(start + 1, size);
        let offset = start - start % EXTENT_ALIGN;
        let end = at.next_multiple_of(EXTENT_ALIGN).min(size);
        match extents.last_mut() {
            Some(last) if last.end() >= offset => last.len = end - last.offset,
            Some(_) | None => extents.push(Extent {
                offset,
                len: end - offset,
            }),
        }
        let len = 16 * extents.len() as u64;
        if len > LEN_MAX {
            return Err(super::Error::TooLong(len).into());
        }
    }
    let whole = extents.first().is_some_and(|extent| extent.len == size);
    Ok((!whole).then_some(extents))
}
