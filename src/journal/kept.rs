//! Files beside the journal that hold copies of its records: originals that a recovery put aside, torn ends, and what a
//! process that was killed had half written.
//!
//! An erasure reaches them, too. What is in them is never read as a part of the log.

use std::io;
use std::path::{Path, PathBuf};

use tallybook_events::ids::Seq;
use tallybook_events::segment;

use super::erase::{Left, Wanted, overwrite, unreached, walk, zero};
use super::source::UNFINISHED;
use super::{Error, archive, io_error};

/// A file that was put aside.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// The segment that it was, or was the end of.
    first: Seq,
    /// Where its records begin.
    start: usize,
    is_packed: bool,
    /// Whether a recovery that is not finished may still take records from it.
    is_source: bool,
}

/// Erases payloads of events in what was put aside. What belongs to no record there may be what is left of one of them: where
/// one was not found whole, that goes too.
pub(super) fn erase(journal: &Path, wanted: &Wanted, segments: &[Seq], left: &mut Left) {
    let Some(first) = wanted.first() else {
        return;
    };
    let Some(found) = left.take(first, list(journal)) else {
        return;
    };
    let mut names: Vec<Seq> = segments.to_vec();
    names.extend(found.iter().map(|kept| kept.first));
    names.sort_unstable();
    for kept in found {
        let next = names.get(names.partition_point(|name| *name <= kept.first));
        let wanted = wanted.within(kept.first, end_before(next));
        if let Some(first) = wanted.first() {
            left.take(first, erase_in(&kept, first, &wanted));
        }
    }
}

/// The last event before the segment of this name.
pub(super) fn end_before(next: Option<&Seq>) -> Seq {
    Seq(next.map_or(u64::MAX, |next| next.0.saturating_sub(1)))
}

fn erase_in(kept: &Kept, first: Seq, wanted: &Wanted) -> Result<(), Error> {
    let path = &kept.path;
    let loaded = archive::load_kept(path)?;
    if loaded.wrong.is_some() {
        let what = "it is kept since a recovery and can't be unpacked: remove it";
        return Err(unreached(first, path, what));
    }
    let mut bytes = loaded.bytes;
    let walked = walk(&bytes, kept.start, wanted);
    let mut places = walked.bodies;
    let missing = wanted.first_but(&walked.reached);
    match missing.filter(|_| !walked.rest.is_empty()) {
        Some(seq) if kept.is_source => {
            let what =
                "a recovery put it aside and is not finished: run `tallybook log recover` again";
            return Err(unreached(seq, path, what));
        }
        Some(_) => places.extend(walked.rest),
        None => {}
    }
    if !kept.is_packed {
        return overwrite(path, &places).map_err(io_error("erasing payloads in", path));
    }
    match zero(&mut bytes, &places) {
        true => archive::pack_again(path, &bytes),
        false => Ok(()),
    }
}

/// All that was put aside.
fn list(journal: &Path) -> Result<Vec<Kept>, Error> {
    let mut found = Vec::new();
    for directory in put_aside(journal)? {
        let is_source = directory.join(UNFINISHED).exists();
        for path in files(&directory)? {
            let Some((first, ending)) = named(&path) else {
                continue;
            };
            let is_packed = ending.ends_with("seg.zst");
            if is_packed || ending.ends_with("seg") {
                found.push(Kept {
                    first,
                    start: segment::LEN,
                    is_packed,
                    is_source,
                    path,
                });
            }
        }
    }
    for path in files(journal)? {
        let Some((first, ending)) = named(&path) else {
            continue;
        };
        // A damaged one in whose place that of the archive was put, or an end that was torn.
        let is_segment = ending.starts_with("seg.damaged-");
        if is_segment || ending.starts_with("seg.torn-") {
            found.push(Kept {
                first,
                start: if is_segment { segment::LEN } else { 0 },
                is_packed: false,
                is_source: false,
                path,
            });
        }
    }
    Ok(found)
}

/// The directories in which recoveries put originals aside.
fn put_aside(journal: &Path) -> Result<Vec<PathBuf>, Error> {
    let store = journal.parent().unwrap_or(Path::new("."));
    let mut found = files(store)?;
    found.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("damaged-")) && path.is_dir()
    });
    Ok(found)
}

/// What is in a directory, in order; nothing where it is not there.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("reading", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(entry.map_err(io_error("reading", directory))?.path());
    }
    found.sort();
    Ok(found)
}

/// The event that a file is named for, and what is behind that in its name.
fn named(path: &Path) -> Option<(Seq, &str)> {
    let (digits, ending) = path.file_name()?.to_str()?.split_once('.')?;
    let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let first = is_number.then(|| digits.parse().ok())??;
    Some((Seq(first), ending))
}

/// Removes what a process that was killed had half written of segments: nothing reads it, and it holds copies. Where one
/// is being written to, the `last` segment, the one that follows it may be coming into being.
///
/// # Errors
/// When one is there and can't be removed.
pub fn remove_unfinished(journal: &Path, last: Option<Seq>) -> Result<(), Error> {
    let mut found = files(journal)?;
    found.retain(|path| last.is_none_or(|last| named(path).is_some_and(|(seq, _)| seq <= last)));
    found.extend(files(&archive::directory(journal))?);
    for directory in put_aside(journal)? {
        found.extend(files(&directory)?);
    }
    for path in found {
        let ending = named(&path).map(|(_, ending)| ending);
        if ending.is_some_and(|ending| ending == "new" || ending.ends_with(".new")) {
            archive::remove(&path)?;
        }
    }
    Ok(())
}
