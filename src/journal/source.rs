//! The files that a recovery takes records from: segments, wherever they are, and what an unfinished recovery put aside.

use std::path::{Path, PathBuf};

use tallybook_events::ids::{Epoch, Seq};

use super::archive::{self, Loaded};
use super::{Error, absent, archived_segments, io_error, own_segments};

/// What the originals of an unfinished recovery are marked with.
pub(super) const UNFINISHED: &str = "unfinished";

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum In {
    /// An earlier recovery put it aside.
    Aside,
    Archive,
    Journal,
}

/// A file that records may be taken from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) is_in: In,
    /// The segment that it is, or was.
    pub(super) first: Seq,
    pub(super) is_damaged: bool,
}

impl Source {
    pub(super) fn load(&self, journal: &Path) -> Result<Loaded, Error> {
        let first = self.first;
        let loaded = match self.is_in {
            In::Aside => return archive::load_kept(&self.path),
            In::Archive => archive::load_archived(journal, first)?,
            In::Journal => archive::load_own(journal, first)?,
        };
        loaded.ok_or_else(|| absent(journal, first))
    }
}

/// What a recovery is made of.
#[derive(Debug)]
pub(super) struct Sources {
    /// What an unfinished recovery put aside, and then the segments. Of the two files of one, the journal's own is the later.
    pub(super) files: Vec<Source>,
    /// Where an unfinished recovery put originals aside.
    pub(super) aside: Option<PathBuf>,
    /// The newest epoch that a recovery of which originals are kept may have begun and finished.
    pub(super) epoch: Epoch,
}

/// Finds the files.
///
/// # Errors
/// When a directory can't be read.
pub(super) fn sources(journal: &Path) -> Result<Sources, Error> {
    let store = journal.parent().unwrap_or(Path::new("."));
    let (mut epoch, mut unfinished) = (0, None);
    for path in list(store)? {
        let Some(began) = epoch_of(&path) else {
            continue;
        };
        if path.join(UNFINISHED).exists() {
            // It has begun no epoch yet.
            epoch = epoch.max(began.saturating_sub(1));
            unfinished = unfinished.max(Some((began, path)));
        } else {
            epoch = epoch.max(began);
        }
    }
    let aside = unfinished.map(|(_, path)| path);
    let mut files: Vec<Source> = Vec::new();
    let source = |path, is_in, first| Source {
        path,
        is_in,
        first,
        is_damaged: false,
    };
    for path in aside.as_deref().map(list).transpose()?.unwrap_or_default() {
        if let Some(first) = put_aside(&path) {
            files.push(source(path, In::Aside, first));
        }
    }
    let mut found: Vec<(Seq, In)> = Vec::new();
    let archived = archived_segments(journal)?.into_iter();
    found.extend(archived.map(|first| (first, In::Archive)));
    let own = own_segments(journal)?.into_iter();
    found.extend(own.map(|first| (first, In::Journal)));
    found.sort_unstable();
    let found = found.into_iter();
    files.extend(found.map(|(first, is_in)| source(PathBuf::new(), is_in, first)));
    Ok(Sources {
        files,
        aside,
        epoch: Epoch(epoch),
    })
}

/// The epoch that a recovery began which put originals aside there.
fn epoch_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("damaged-")?.parse().ok()
}

/// The segment that was put aside under a name.
fn put_aside(path: &Path) -> Option<Seq> {
    let (first, end) = path.file_name()?.to_str()?.split_once('.')?;
    let is_segment = end.ends_with("seg") || end.ends_with("seg.zst");
    is_segment.then(|| first.parse().ok().map(Seq)).flatten()
}

/// What is in a directory, by name.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(directory).map_err(io_error("reading", directory))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(io_error("reading", directory))?.path());
    }
    paths.sort();
    Ok(paths)
}
