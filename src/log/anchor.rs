//! How far the log went: what opening a journal holds it against, so that a lost end or another copy shows.
//!
//! The databases say it, and beside them the file `head`, which outlives them. It never says more than the journal:
//! it is written behind each append, once that is durable.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Hash, LogId, Seq};
use tallybook_replay::state::Head;

use super::view::hash_in_journal;
use super::{Error, INDEX, JOURNAL, PROJECTION};
use crate::journal::{self, Link};
use crate::store::{self, Index, Projection};

/// The file's name in a store.
pub const HEAD: &str = "head";
/// `LOG SEQ HASH CHECK` and a line feed. Less than a disk writes at once.
const LEN: usize = 36 + 1 + 20 + 1 + 64 + 1 + 64 + 1;

/// An event that was acknowledged, of this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Anchor {
    pub(super) seq: Seq,
    pub(super) hash: Hash,
    pub(super) log: LogId,
}

impl Anchor {
    pub(super) fn of(head: &Head) -> Option<Self> {
        let log = head.log.filter(|_| head.seq > Seq::NONE)?;
        Some(Anchor {
            seq: head.seq,
            hash: head.hash,
            log,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let said = format!("{} {:020} {}", self.log, self.seq.0, self.hash);
        format!("{said} {}\n", check(&said)).into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (said, stored) = line.rsplit_once(' ')?;
        let mut words = said.split(' ');
        let mut word = || words.next();
        let anchor = Anchor {
            log: word()?.parse().ok()?,
            seq: Seq(word()?.parse().ok()?),
            hash: word()?.parse().ok()?,
        };
        // In the one form that it is written in.
        (check(said) == stored && anchor.encode() == bytes).then_some(anchor)
    }
}

fn check(said: &str) -> String {
    Hash(blake3::derive_key(
        "tallybook 2026-11 head file",
        said.as_bytes(),
    ))
    .to_string()
}

/// What the file `head` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// There is none: a log that an earlier program wrote, or somebody removed it.
    Nothing,
    /// It can't be understood.
    Damaged,
    /// This.
    Anchor(Anchor),
}

/// Reads the file `head` of a store. Needs no lock.
pub(super) fn read(directory: &Path) -> io::Result<Kept> {
    let path = directory.join(HEAD);
    // Its holder may be writing it: what does not fit is read again.
    for _ in 0..3 {
        match std::fs::read(&path) {
            Ok(bytes) => {
                if let Some(anchor) = Anchor::decode(&bytes) {
                    return Ok(Kept::Anchor(anchor));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::Nothing),
            Err(error) => return Err(error),
        }
    }
    Ok(Kept::Damaged)
}

/// The file `head`, open for writing.
pub(super) struct HeadFile {
    file: File,
    path: PathBuf,
}

impl HeadFile {
    /// Opens or makes it, and makes what it says durable.
    pub(super) fn open(directory: &Path, anchor: &Anchor) -> io::Result<Self> {
        let path = directory.join(HEAD);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        let said = std::fs::read(&path)?;
        let mut head = HeadFile { file, path };
        if said == anchor.encode() {
            head.sync()?;
            return Ok(head);
        }
        head.write(anchor)?;
        head.file.set_len(LEN as u64)?;
        head.file.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(head)
    }

    /// Says that the log goes this far. Not synced: a power cut may lose what was said in the last seconds, and then
    /// it says less than the journal. It never says more.
    pub(super) fn write(&mut self, anchor: &Anchor) -> io::Result<()> {
        self.file.write_all_at(&anchor.encode(), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Everything that is known of how far the log went.
#[derive(Clone)]
pub(super) struct Anchors {
    log: Option<LogId>,
    all: BTreeSet<(Seq, Hash)>,
}

impl Anchors {
    /// For a log; for whichever there was, where its journal is gone.
    pub(super) fn new(log: Option<LogId>) -> Self {
        Anchors {
            log,
            all: BTreeSet::new(),
        }
    }

    /// Takes in what something says. What another log's databases say does not count here.
    pub(super) fn add(&mut self, anchor: Anchor) {
        if anchor.seq > Seq::NONE && self.is_of(anchor.log) {
            self.log = Some(anchor.log);
            self.all.insert((anchor.seq, anchor.hash));
        }
    }

    pub(super) fn add_link(&mut self, link: Link) {
        self.add(Anchor {
            seq: link.seq,
            hash: link.hash,
            log: link.log,
        });
    }

    pub(super) fn add_head(&mut self, head: &Head) {
        if let Some(anchor) = Anchor::of(head) {
            self.add(anchor);
        }
    }

    /// Asks the databases of a store, as far as they can be opened.
    ///
    /// # Errors
    /// When one is there and says nothing.
    pub(super) fn add_databases(&mut self, directory: &Path) -> Result<(), store::Error> {
        let (index, projection) = (directory.join(INDEX), directory.join(PROJECTION));
        let index = match index.is_dir() {
            true => Index::open(&index, |link| self.add_link(link)).map(|_| ()),
            false => Ok(()),
        };
        let projection = match projection.is_dir() {
            true => Projection::open(&projection).and_then(|database| database.head()),
            false => Ok(None),
        };
        if let Ok(Some(head)) = &projection {
            self.add_head(head);
        }
        index.and(projection.map(|_| ()))
    }

    /// The log, as far as anything says which it is.
    pub(super) const fn log(&self) -> Option<LogId> {
        self.log
    }

    /// Whether this is the log.
    pub(super) fn is_of(&self, log: LogId) -> bool {
        self.log.is_none_or(|known| known == log)
    }

    /// The furthest event.
    pub(super) fn furthest(&self) -> Option<Anchor> {
        let (seq, hash) = *self.all.last()?;
        Some(Anchor {
            seq,
            hash,
            log: self.log?,
        })
    }

    /// Those not behind this event.
    pub(super) fn up_to(&self, seq: Seq) -> impl Iterator<Item = (Seq, Hash)> {
        let all = self.all.iter().copied();
        all.take_while(move |(known, _)| *known <= seq)
    }

    /// Whether an event of the journal is what it was.
    pub(super) fn allow(&self, seq: Seq, hash: Hash) -> bool {
        let mut here = self
            .all
            .range((seq, Hash::ZERO)..=(seq, Hash([u8::MAX; 32])));
        here.all(|(_, known)| *known == hash)
    }
}

/// Whether there is a log in a store.
///
/// # Errors
/// [`Error::TailLost`] when there was one and its journal is gone.
pub fn is_there(directory: &Path) -> Result<bool, Error> {
    if !journal::segments(&directory.join(JOURNAL))?.is_empty() {
        return Ok(true);
    }
    let kept = read(directory).map_err(|source| Error::Directory {
        path: directory.join(HEAD),
        source,
    })?;
    match kept {
        Kept::Anchor(anchor) => Err(Error::TailLost {
            path: directory.to_owned(),
            journal: Seq::NONE,
            projection: anchor.seq,
        }),
        // What it was is for the databases to tell, once they are opened.
        Kept::Damaged => Ok(true),
        Kept::Nothing => Ok([INDEX, PROJECTION]
            .iter()
            .any(|name| directory.join(name).exists())),
    }
}

/// What the file `head` of a store says. Read before a journal, it can be held against that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptHead(Kept);

impl KeptHead {
    /// Reads it. Needs no lock.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn of(directory: &Path) -> Result<Self, Error> {
        let kept = read(directory).map_err(|source| Error::Directory {
            path: directory.join(HEAD),
            source,
        })?;
        Ok(KeptHead(kept))
    }

    /// What of it a sound journal that ends here does not bear out.
    ///
    /// # Errors
    /// When the journal can't be read.
    pub fn against(&self, directory: &Path, end: &Head) -> Result<Option<String>, Error> {
        let anchor = match self.0 {
            Kept::Nothing => return Ok(None),
            Kept::Damaged => return Ok(Some("it can't be understood".to_owned())),
            Kept::Anchor(anchor) => anchor,
        };
        let Anchor { seq, hash, log } = anchor;
        if end.log.is_some_and(|other| other != log) {
            return Ok(Some("it belongs to another log".to_owned()));
        }
        if seq > end.seq {
            return Ok(Some(format!(
                "event {seq} was recorded here before, but the journal ends at event {}",
                end.seq
            )));
        }
        let found = match seq == end.seq {
            true => Some(end.hash),
            false => hash_in_journal(directory, seq)?.1,
        };
        let other = || format!("event {seq} is not the one that was recorded here before");
        Ok((found != Some(hash)).then(other))
    }
}

/// For the fuzz targets: the line of the file `head`, decoded and encoded again.
pub(super) fn reread(bytes: &[u8]) -> Option<Vec<u8>> {
    Anchor::decode(bytes).map(|anchor| anchor.encode())
}
