//! A disk as a loss of power may leave it: what was synced is there; of everything else any part may be, in any
//! order, and of a write any of its pages.
//!
//! It assumes less than file systems give. The sync of a new file says nothing of its name; a name says nothing of the
//! content; a file may have its new length without its content. What a failed sync was to write may or may not be
//! there, and no later sync changes that: the kernel counts it as written. Only what is read again after memory
//! was dropped is known. Owners, permissions, attributes and times are not part of it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::ops::{Change, Ino, Kind, Op, What, change_entries, write_at};

/// What the kernel writes at once.
const PAGE: u64 = 4096;
/// What a disk writes at once.
const SECTOR: u64 = 512;
/// How many places a write is cut at, of each sort.
const CUTS_MAX: u64 = 6;

#[derive(Debug, Clone)]
enum Body {
    File(Rc<Content>),
    Directory(Rc<BTreeMap<Vec<u8>, Ino>>),
    Symlink(Vec<u8>),
    Special,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Not synced yet.
    Open,
    /// A sync of it failed; whether a later one said that all is well.
    Lost { resynced: bool },
    /// Synced; it waits for one before it that is lost.
    Settled,
}

#[derive(Debug, Clone)]
struct Pending {
    ended: usize,
    ino: Ino,
    change: Change,
    fate: Fate,
}

/// A file's content: these bytes, and zeros up to its length.
#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    len: u64,
    /// Of both, once it was asked for.
    hash: OnceCell<blake3::Hash>,
}

impl Clone for Content {
    fn clone(&self) -> Self {
        Content {
            bytes: self.bytes.clone(),
            len: self.len,
            hash: OnceCell::new(),
        }
    }
}

impl Content {
    fn hash(&self) -> &blake3::Hash {
        self.hash.get_or_init(|| {
            let rest = self.bytes.iter().rposition(|byte| *byte != 0);
            let rest = &self.bytes[..rest.map_or(0, |last| last + 1)];
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.len.to_le_bytes()).update(rest);
            hasher.finalize()
        })
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.hash.take();
        let is_zeros = || bytes.iter().all(|byte| *byte == 0);
        if at < self.bytes.len() as u64 || !is_zeros() {
            write_at(&mut self.bytes, at, bytes);
        }
        self.len = self.len.max(at + bytes.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        self.hash.take();
        self.bytes.truncate(len as usize);
        self.len = len;
    }
}

/// What is on the disk for certain, and what may be.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    durable: Vec<Body>,
    pending: Vec<Pending>,
}

/// Which part of a change a loss of power leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Nothing,
    All,
    /// Of a write: these of its bytes, and a file at least this long.
    Torn {
        kept: Vec<Range<u64>>,
        len: u64,
    },
}

/// The files of a crash state.
#[derive(Debug)]
pub(crate) struct State {
    items: BTreeMap<PathBuf, Item>,
    /// The same for the same files.
    pub(crate) identity: blake3::Hash,
    /// Which part of what was there, for people.
    pub(crate) left: String,
}

#[derive(Debug)]
enum Item {
    File(Ino, Rc<Content>),
    Directory,
    Symlink(Vec<u8>),
    Special,
}

impl Disk {
    /// An empty directory.
    pub(crate) fn new() -> Self {
        Disk {
            durable: vec![Body::Directory(Rc::default())],
            pending: Vec::new(),
        }
    }

    /// What an operation does to it.
    pub(crate) fn play(&mut self, op: &Op) {
        match &op.what {
            What::Made(kind) => self.durable.push(match kind {
                Kind::File => Body::File(Rc::default()),
                Kind::Directory => Body::Directory(Rc::default()),
                Kind::Symlink(target) => Body::Symlink(target.clone()),
                Kind::Special => Body::Special,
            }),
            What::Changed(ino, change) => self.pending.push(Pending {
                ended: op.ended,
                ino: *ino,
                change: change.clone(),
                fate: Fate::Open,
            }),
            What::Synced { of, failed } => self.sync(op.begun, *of, *failed),
            What::Dropped(ino) => self.drop_memory(*ino),
            What::Said(_) => {}
        }
    }

    /// What would be lost without a word if power went now.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether this sync has anything to make durable, or memory that is dropped anything to tell.
    pub(crate) fn is_needed(&self, op: &Op) -> bool {
        match &op.what {
            What::Synced { of, .. } => self.pending.iter().any(|it| covers(*of, it)),
            What::Dropped(ino) => self.pending.iter().any(|it| it.ino == *ino),
            What::Made(_) | What::Changed(..) | What::Said(_) => false,
        }
    }

    fn sync(&mut self, begun: usize, of: Option<Ino>, failed: bool) {
        for at in 0..self.pending.len() {
            let it = &self.pending[at];
            if !covers(of, it) || it.ended >= begun {
                continue;
            }
            let is_file = matches!(self.durable[it.ino], Body::File(_));
            self.pending[at].fate = match (it.fate, failed) {
                (Fate::Settled, _) => Fate::Settled,
                // The journal of a file system that fails does not go on: a directory's later sync can be believed.
                (Fate::Open, true) if !is_file => Fate::Open,
                (Fate::Open | Fate::Lost { .. }, true) => Fate::Lost { resynced: false },
                (Fate::Open, false) if self.is_over_lost(at) => Fate::Lost { resynced: true },
                (Fate::Open, false) => Fate::Settled,
                (Fate::Lost { .. }, false) => Fate::Lost { resynced: true },
            };
        }
        self.apply_settled();
    }

    /// Whether a change has a page in common with a write before it that was lost: that page is not written again, as
    /// long as it is the same one. What a file is cut by takes its pages with it.
    fn is_over_lost(&self, at: usize) -> bool {
        let of = &self.pending[at];
        let mine = pages(&of.change);
        self.pending[..at].iter().enumerate().any(|(lost, it)| {
            let theirs = pages(&it.change);
            let is_lost = matches!(it.fate, Fate::Lost { .. });
            let is_common = mine.start < theirs.end && theirs.start < mine.end;
            let is_cut = |later: &Pending| match &later.change {
                Change::SetLen(len) => later.ino == of.ino && len.div_ceil(PAGE) <= theirs.start,
                Change::Write { .. } => false,
                Change::Put { .. } | Change::Remove { .. } | Change::Rename { .. } => false,
            };
            let mut between = self.pending[lost + 1..=at].iter();
            is_lost && it.ino == of.ino && is_common && !between.any(is_cut)
        })
    }

    fn drop_memory(&mut self, ino: Ino) {
        for it in &mut self.pending {
            if it.ino == ino && it.fate == (Fate::Lost { resynced: true }) {
                it.fate = Fate::Settled;
            }
        }
        self.apply_settled();
    }

    fn apply_settled(&mut self) {
        let mut waits = Vec::new();
        let durable = &mut self.durable;
        self.pending.retain(|it| {
            if it.fate == Fate::Settled && !waits.contains(&it.ino) {
                apply(&mut durable[it.ino], &it.change, &Part::All);
                return false;
            }
            waits.push(it.ino);
            true
        });
    }

    /// Up to so many states that a loss of power may leave now, without repeats; those first that have the newest
    /// change lost or alone.
    pub(crate) fn states(&self, states_max: usize) -> Vec<State> {
        let open: Vec<usize> = (0..self.pending.len())
            .filter(|at| self.pending[*at].fate != Fate::Settled)
            .collect();
        let mut found: BTreeMap<[u8; 32], State> = BTreeMap::new();
        for (left, parts) in self.picks(&open) {
            if found.len() >= states_max {
                break;
            }
            let state = self.state(&parts, left);
            found.entry(*state.identity.as_bytes()).or_insert(state);
        }
        found.into_values().collect()
    }

    fn picks(&self, open: &[usize]) -> Vec<(String, BTreeMap<usize, Part>)> {
        let all = |part: &Part| -> BTreeMap<usize, Part> {
            open.iter().map(|at| (*at, part.clone())).collect()
        };
        let (none, whole) = (all(&Part::Nothing), all(&Part::All));
        let but = |base: &BTreeMap<usize, Part>, at: usize, part: Part| {
            let mut parts = base.clone();
            parts.insert(at, part);
            parts
        };
        let mut picks = vec![
            ("nothing unsynced".to_owned(), none.clone()),
            ("everything".to_owned(), whole.clone()),
        ];
        for at in open.iter().rev() {
            let what = format!("{:?}", Brief(&self.pending[*at]));
            picks.push((format!("all but {what}"), but(&whole, *at, Part::Nothing)));
            picks.push((format!("nothing but {what}"), but(&none, *at, Part::All)));
            let mut before = none.clone();
            before.extend(open.iter().filter(|it| *it < at).map(|at| (*at, Part::All)));
            for torn in self.torn(*at) {
                picks.push((
                    format!("all, and {torn:?} of {what}"),
                    but(&whole, *at, torn.clone()),
                ));
                picks.push((
                    format!("{torn:?} of {what}, and what was before"),
                    but(&before, *at, torn),
                ));
            }
            picks.push((format!("all before {what}"), before));
        }
        picks
    }

    /// The parts of a write that may be there without the others.
    fn torn(&self, at: usize) -> Vec<Part> {
        let Change::Write { at, bytes } = &self.pending[at].change else {
            return Vec::new();
        };
        let (start, end) = (*at, at + bytes.len() as u64);
        let mut torn = Vec::new();
        // A beginning and an end of it, either of which may be empty.
        let mut cut = |first: u64, last: u64, len: u64| {
            let kept = [start..first, last..end].into_iter();
            let kept = kept.filter(|it| !it.is_empty()).collect();
            torn.push(Part::Torn { kept, len });
        };
        // A file may be as long as it is to be, and hold nothing.
        cut(start, end, end);
        cut(start + (end - start) / 2, end, 0);
        for border in some_of(start / SECTOR + 1..end.div_ceil(SECTOR)) {
            let border = border * SECTOR;
            cut(border, end, 0);
            cut(border, end, end);
            cut(start, border, end);
        }
        for page in some_of(start / PAGE..end.div_ceil(PAGE)) {
            let (from, to) = ((page * PAGE).max(start), ((page + 1) * PAGE).min(end));
            cut(from, to, end);
        }
        torn
    }

    fn state(&self, parts: &BTreeMap<usize, Part>, left: String) -> State {
        let mut bodies: BTreeMap<Ino, Body> = BTreeMap::new();
        for (at, it) in self.pending.iter().enumerate() {
            let part = parts.get(&at).unwrap_or(&Part::All);
            if *part != Part::Nothing {
                let body = bodies.entry(it.ino);
                let body = body.or_insert_with(|| self.durable[it.ino].clone());
                apply(body, &it.change, part);
            }
        }
        let mut items = BTreeMap::new();
        let mut queue = vec![(PathBuf::new(), 0)];
        while let Some((path, ino)) = queue.pop() {
            let body = bodies.get(&ino).unwrap_or(&self.durable[ino]);
            let item =
                match body {
                    Body::File(content) => Item::File(ino, Rc::clone(content)),
                    Body::Directory(entries) => {
                        queue.extend(entries.iter().map(|(name, ino)| {
                            (path.join(std::ffi::OsStr::from_bytes(name)), *ino)
                        }));
                        Item::Directory
                    }
                    Body::Symlink(target) => Item::Symlink(target.clone()),
                    Body::Special => Item::Special,
                };
            items.insert(path, item);
        }
        State {
            identity: identity(&items),
            items,
            left,
        }
    }
}

/// The pages that a change of a file's content writes.
fn pages(change: &Change) -> Range<u64> {
    match change {
        Change::Write { at, bytes } => at / PAGE..(at + bytes.len() as u64).div_ceil(PAGE),
        Change::SetLen(len) => len / PAGE..u64::MAX,
        Change::Put { .. } | Change::Remove { .. } | Change::Rename { .. } => 0..0,
    }
}

fn covers(of: Option<Ino>, it: &Pending) -> bool {
    of.is_none_or(|ino| ino == it.ino)
}

/// Up to [`CUTS_MAX`] of these, the first and the last among them.
fn some_of(range: Range<u64>) -> Vec<u64> {
    let count = range.end.saturating_sub(range.start);
    let step = count.div_ceil(CUTS_MAX).max(1) as usize;
    let last = range.end.checked_sub(1).filter(|_| count > 1);
    let mut some: Vec<u64> = range.step_by(step).chain(last).collect();
    some.dedup();
    some
}

fn apply(body: &mut Body, change: &Change, part: &Part) {
    match (body, change) {
        (Body::File(content), Change::Write { at, bytes }) => {
            let content = Rc::make_mut(content);
            match part {
                Part::Nothing => {}
                Part::All => content.write(*at, bytes),
                Part::Torn { kept, len } => {
                    for range in kept {
                        let bytes = &bytes[(range.start - at) as usize..(range.end - at) as usize];
                        content.write(range.start, bytes);
                    }
                    content.set_len(content.len.max(*len));
                }
            }
        }
        (Body::File(content), Change::SetLen(len)) => Rc::make_mut(content).set_len(*len),
        (Body::Directory(entries), change) => change_entries(Rc::make_mut(entries), change),
        (body, change) => panic!("{change:?} of {body:?}"),
    }
}

fn identity(items: &BTreeMap<PathBuf, Item>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut inodes: BTreeMap<Ino, usize> = BTreeMap::new();
    for (path, item) in items {
        hasher.update(path.as_os_str().as_bytes());
        match item {
            Item::File(ino, content) => {
                // Which names are of one file, whatever its number.
                let number = inodes.len();
                let number = *inodes.entry(*ino).or_insert(number);
                hasher
                    .update(&[0, 1])
                    .update(&(number as u64).to_le_bytes());
                hasher.update(content.hash().as_bytes())
            }
            Item::Directory => hasher.update(&[0, 2]),
            Item::Symlink(target) => hasher.update(&[0, 3]).update(target).update(&[0]),
            Item::Special => hasher.update(&[0, 4]),
        };
    }
    hasher.finalize()
}

impl State {
    /// Makes the files in a directory that is there and empty.
    pub(crate) fn make(&self, root: &Path) {
        let mut made: BTreeMap<Ino, PathBuf> = BTreeMap::new();
        for (path, item) in &self.items {
            let path = root.join(path);
            match item {
                Item::Directory if path == root.join("") => {}
                Item::Directory => std::fs::create_dir(&path).unwrap(),
                Item::Symlink(target) => {
                    let target = std::ffi::OsStr::from_bytes(target);
                    std::os::unix::fs::symlink(target, &path).unwrap();
                }
                Item::Special => {
                    use rustix::fs::{CWD, FileType, Mode};
                    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
                }
                Item::File(ino, content) => match made.get(ino) {
                    Some(first) => std::fs::hard_link(first, &path).unwrap(),
                    None => {
                        let mut file = std::fs::File::create(&path).unwrap();
                        file.write_all(&content.bytes).unwrap();
                        file.set_len(content.len).unwrap();
                        made.insert(*ino, path);
                    }
                },
            }
        }
    }
}

/// A change in a few words.
struct Brief<'a>(&'a Pending);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ino = self.0.ino;
        match &self.0.change {
            Change::Write { at, bytes } => {
                write!(f, "a write of {} bytes at {at} of inode {ino}", bytes.len())
            }
            Change::SetLen(len) => write!(f, "the length {len} of inode {ino}"),
            Change::Put { name, ino: of } => {
                write!(
                    f,
                    "the name {} of inode {of}",
                    String::from_utf8_lossy(name)
                )
            }
            Change::Remove { name } => {
                write!(f, "the removal of {}", String::from_utf8_lossy(name))
            }
            Change::Rename { from, to } => write!(
                f,
                "the rename of {} to {}",
                String::from_utf8_lossy(from),
                String::from_utf8_lossy(to)
            ),
        }
    }
}
