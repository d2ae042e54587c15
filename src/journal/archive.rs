//! Segments in the archive: compressed, checked, and read like the others.
//!
//! The archive is the directory `archive` beside the journal, or what a symbolic link of that name leads to. A segment
//! is there whole, and was read back from there, before its file beside the others goes. While both are there, the
//! journal's own counts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tallybook_events::archive::{self, ArchiveHead, content_hash, packed_hash};
use tallybook_events::event::SeqRange;
use tallybook_events::ids::{Hash, LogId, Seq};
use tallybook_events::segment::{self, SegmentHead};

use super::follow::{self, Before, Depth, Next, Pieces, What};
use super::read::{log_of, read_start};
use super::write::{settle_file, sync_directory};
use super::{Damage, Error, absent, io_error, keep, segment_path};

/// Fast, and a tenth of what a log takes: measured on captured output and plans.
const LEVEL: i32 = 3;
/// No segment of ours is as long; nothing longer is unpacked.
const LEN_MAX: u64 = 1 << 30;
/// No file that holds one is longer: what does not compress grows by less than this.
const STORED_LEN_MAX: usize = (1 << 30) + (1 << 24);

/// The archive of a journal.
pub fn directory(journal: &Path) -> PathBuf {
    journal.with_file_name("archive")
}

/// The file of an archived segment.
pub fn path(journal: &Path, first: Seq) -> PathBuf {
    directory(journal).join(format!("{:020}.seg.zst", first.0))
}

/// The segment that a file of this name in the archive is.
pub(super) fn named(journal: &Path, entry: &Path) -> Option<Seq> {
    let name = entry.file_name()?.to_str()?;
    let first = Seq(name.strip_suffix(".seg.zst")?.parse().ok()?);
    (path(journal, first).file_name() == entry.file_name()).then_some(first)
}

/// A segment's bytes, from wherever it is.
#[derive(Debug)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// The segment, as far as it can be had.
    pub bytes: Vec<u8>,
    /// What is wrong with what holds them.
    pub wrong: Option<Damage>,
}

/// Reads a segment from the journal, else from the archive.
///
/// # Errors
/// When neither has it, or it can't be read.
pub(super) fn load(journal: &Path, first: Seq) -> Result<Loaded, Error> {
    load_into(journal, first, &mut Vec::new())
}

/// The same, into memory that was used before: who reads many segments has the kernel map none anew.
///
/// # Errors
/// As [`load`].
pub(super) fn load_into(journal: &Path, first: Seq, memory: &mut Vec<u8>) -> Result<Loaded, Error> {
    let mut own = || read_own(journal, first, std::mem::take(memory));
    match own()? {
        Some(loaded) => Ok(loaded),
        None => match load_archived(journal, first)? {
            Some(loaded) => Ok(loaded),
            // It may have come back from the archive between the two looks.
            None => own()?.ok_or_else(|| absent(journal, first)),
        },
    }
}

/// The segment in the journal itself, where it is there.
///
/// # Errors
/// When it can't be read.
pub fn load_own(journal: &Path, first: Seq) -> Result<Option<Loaded>, Error> {
    read_own(journal, first, Vec::new())
}

fn read_own(journal: &Path, first: Seq, mut memory: Vec<u8>) -> Result<Option<Loaded>, Error> {
    let path = segment_path(journal, first);
    memory.clear();
    let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut memory));
    match read.map(|_| memory) {
        Ok(bytes) => Ok(Some(Loaded {
            path,
            bytes,
            wrong: None,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("reading", &path)(error)),
    }
}

/// The segment in the archive, where it is there.
///
/// # Errors
/// When it can't be read.
pub fn load_archived(journal: &Path, first: Seq) -> Result<Option<Loaded>, Error> {
    let path = path(journal, first);
    let stored = match read_start(&path, STORED_LEN_MAX) {
        Ok(stored) => stored,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    let (bytes, wrong) = unpack(&stored);
    let wrong = wrong.or_else(|| misplaced(journal, first, &stored));
    Ok(Some(Loaded { path, bytes, wrong }))
}

/// Reads an original that a recovery put aside, archived or not.
pub(super) fn load_kept(path: &Path) -> Result<Loaded, Error> {
    let stored = std::fs::read(path).map_err(io_error("reading", path))?;
    let is_packed = path.extension().is_some_and(|end| end == "zst");
    let (bytes, wrong) = match is_packed {
        true => unpack(&stored),
        false => (stored, None),
    };
    let path = path.to_owned();
    Ok(Loaded { path, bytes, wrong })
}

/// What is wrong with a sound archived segment under this name in this archive.
fn misplaced(journal: &Path, first: Seq, stored: &[u8]) -> Option<Damage> {
    let head = ArchiveHead::decode(stored).ok()?;
    if head.events.first != first {
        let what = format!("it is the segment of event {}", head.events.first);
        return Some(Damage::Archive(what));
    }
    let log = log_of(journal).ok()?;
    (head.log != log).then(|| Damage::Archive(format!("it is of another log, {}", head.log)))
}

/// The head of an archived segment, alone.
///
/// # Errors
/// When it can't be read, or is damaged.
pub fn head(journal: &Path, first: Seq) -> Result<ArchiveHead, Error> {
    let path = path(journal, first);
    let bytes = read_start(&path, archive::LEN).map_err(io_error("reading", &path))?;
    ArchiveHead::decode(&bytes).map_err(|error| Error::Damaged {
        seq: first,
        path,
        offset: 0,
        source: of_head(&error),
    })
}

fn of_head(error: &archive::Error) -> Damage {
    match error {
        archive::Error::Format(format) => Damage::ArchiveFormat(*format),
        archive::Error::Short { .. } | archive::Error::Damaged => {
            Damage::Archive(error.to_string())
        }
    }
}

/// The segment in an archived one, as far as it can be had, and what is wrong with it. No more is unpacked than its head
/// says.
fn unpack(stored: &[u8]) -> (Vec<u8>, Option<Damage>) {
    let head = ArchiveHead::decode(stored);
    let packed = stored.get(archive::LEN..).unwrap_or_default();
    let most = head.as_ref().map_or(LEN_MAX, |head| head.len.min(LEN_MAX));
    let mut bytes = Vec::new();
    let unpacked = zstd::stream::read::Decoder::new(packed)
        .and_then(|decoder| decoder.take(most.saturating_add(1)).read_to_end(&mut bytes));
    let wrong = match (head, unpacked) {
        (Err(error), _) => return (bytes, Some(of_head(&error))),
        (Ok(head), _) if head.packed_len != packed.len() as u64 => Some(format!(
            "{} bytes are behind its head, not {}",
            packed.len(),
            head.packed_len
        )),
        (Ok(head), _) if packed_hash(packed) != head.packed => {
            Some("its bytes are not those that were put there".to_owned())
        }
        (Ok(_), Err(error)) => Some(format!("it can't be unpacked: {error}")),
        (Ok(head), Ok(_)) if content_hash(&bytes) != head.content => {
            Some("what is in it is not what was put there".to_owned())
        }
        (Ok(_), Ok(_)) => None,
    };
    (bytes, wrong.map(Damage::Archive))
}

/// Puts a whole, sound segment into the archive, reads it back from there, and returns its head. What was there under
/// this name is replaced, where it is not the same.
///
/// # Errors
/// When the bytes are not a whole segment, or the archive can't be written or does not give them back. Then nothing is
/// there that was not there before.
pub fn put(journal: &Path, first: Seq, bytes: &[u8]) -> Result<ArchiveHead, Error> {
    let described = describe(&segment_path(journal, first), first, bytes)?;
    let path = path(journal, first);
    settle(&path)?;
    match load_archived(journal, first)? {
        Some(there) if there.wrong.is_none() && there.bytes == bytes => {
            // Crash boundary: an earlier run may have been killed before its name was durable.
            sync_parent(&path)?;
            return head(journal, first);
        }
        Some(Loaded {
            wrong: Some(newer), ..
        }) if newer.is_newer() => {
            return Err(Error::Newer {
                path,
                offset: 0,
                source: newer,
            });
        }
        Some(_) | None => {}
    }
    let packed = zstd::bulk::compress(bytes, LEVEL).map_err(io_error("compressing", &path))?;
    let head = ArchiveHead {
        log: described.log,
        events: described.events,
        hash: described.hash,
        len: bytes.len() as u64,
        content: content_hash(bytes),
        packed_len: packed.len() as u64,
        packed: packed_hash(&packed),
    };
    let mut stored = head.encode().to_vec();
    stored.extend_from_slice(&packed);
    write(&path, &stored, |back| match unpack(back) {
        (read, None) if read == bytes => Ok(()),
        (_, wrong) => Err(wrong.map_or_else(
            || "it reads back as something else".to_owned(),
            |wrong| wrong.to_string(),
        )),
    })?;
    Ok(head)
}

/// Writes what an archived segment that was put aside holds by now.
///
/// # Errors
/// When it can't be read or written. Then it is as it was.
pub(super) fn pack_again(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let stored = read_start(path, archive::LEN).map_err(io_error("reading", path))?;
    let head = ArchiveHead::decode(&stored).map_err(|error| Error::Damaged {
        seq: Seq(1),
        path: path.to_owned(),
        offset: 0,
        source: Damage::Archive(error.to_string()),
    })?;
    let packed = zstd::bulk::compress(bytes, LEVEL).map_err(io_error("compressing", path))?;
    let head = ArchiveHead {
        content: content_hash(bytes),
        packed_len: packed.len() as u64,
        packed: packed_hash(&packed),
        ..head
    };
    let mut stored = head.encode().to_vec();
    stored.extend_from_slice(&packed);
    write(path, &stored, |back| match unpack(back) {
        (read, None) if read == bytes => Ok(()),
        _ => Err("it reads back as something else".to_owned()),
    })
}

/// Whether the archive leads to something that is not there.
pub(super) fn is_away(journal: &Path) -> bool {
    let path = directory(journal);
    path.symlink_metadata().is_ok() && !path.exists()
}

/// What the journal itself has of a segment that the archive has too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// Nothing.
    Absent,
    /// The same segment, whole and sound.
    Sound,
    /// The same, and it is damaged.
    Damaged,
    /// Another one.
    Other,
}

/// Holds what the journal itself has of a segment against that segment. What it finds is on the disk.
///
/// # Errors
/// When it can't be read, or a newer program wrote it.
pub fn own(journal: &Path, first: Seq, archived: &Described) -> Result<Own, Error> {
    settle(&segment_path(journal, first))?;
    let Some(own) = load_own(journal, first)? else {
        return Ok(Own::Absent);
    };
    match describe(&own.path, first, &own.bytes) {
        // A payload may have been erased in one of them: headers are the same all the same.
        Ok(own)
            if (own.log, own.events, own.hash)
                == (archived.log, archived.events, archived.hash) =>
        {
            Ok(Own::Sound)
        }
        Ok(_) => Ok(Own::Other),
        Err(error) if error.is_newer() => Err(error),
        Err(_) => Ok(Own::Damaged),
    }
}

/// Puts a segment back into the journal, byte for byte as it was. Where it is there already, whole and sound, it stays; where it
/// is there and damaged, what is there is kept beside it.
///
/// # Errors
/// When it can't be written, or does not read back, or another one is there. Then what is there is what was there.
pub fn put_back(journal: &Path, first: Seq, bytes: &[u8]) -> Result<(), Error> {
    let path = segment_path(journal, first);
    let described = describe(&path, first, bytes)?;
    match own(journal, first, &described)? {
        // Crash boundary: an earlier run may have been killed before its name was durable.
        Own::Sound => return sync_parent(&path),
        Own::Absent => {}
        Own::Damaged => {
            keep::place(&path, beside(&path))
                .and_then(|kept| keep::keep(&path, &kept))
                .map_err(io_error("keeping", &path))?;
            // Crash boundary: what is damaged is kept before another takes its place.
            sync_parent(&path)?;
        }
        Own::Other => {
            let other = io::Error::other("another segment is there under this name");
            return Err(io_error("writing", &path)(other));
        }
    }
    write(&path, bytes, |back| match back == bytes {
        true => Ok(()),
        false => Err("it reads back as something else".to_owned()),
    })
}

/// What a damaged segment is kept as, beside the one that takes its place: no name of a segment.
fn beside(path: &Path) -> impl Iterator<Item = PathBuf> {
    (1_u32..).map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    })
}

/// Makes sure that what is read of a file from here on is on the disk: it may have been written by somebody who was
/// killed, or whose sync failed ([why it is dropped](super::settle)). That it is not there is no error.
fn settle(path: &Path) -> Result<(), Error> {
    match settle_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("syncing", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync_directory)
}

/// Writes a file, which is there under its name whole and read back from the disk, or not at all.
fn write(
    path: &Path,
    bytes: &[u8],
    check: impl Fn(&[u8]) -> Result<(), String>,
) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // What counts is what the disk gives back.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        check(&std::fs::read(&new)?).map_err(io::Error::other)?;
        // Crash boundary: it is there under its name or not at all.
        std::fs::rename(&new, path)
    };
    write().map_err(|error| {
        // A disk that is full is not to stay so for nothing.
        let _removed = std::fs::remove_file(&new);
        io_error("writing", path)(error)
    })?;
    sync_parent(path)
}

/// A segment's file, gone for good.
///
/// # Errors
/// When it can't be removed. That it is not there is none.
pub fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("removing", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    sync_parent(path)
}

/// What a whole segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The log.
    pub log: LogId,
    /// The header hash of the event before it.
    pub previous: Hash,
    /// Its events.
    pub events: SeqRange,
    /// The header hash of the last of them.
    pub hash: Hash,
    /// The latest time that one of them has.
    pub time_unix_us: u64,
}

/// Reads a segment from end to end: every frame, link and commitment.
///
/// # Errors
/// Where it is not whole and sound.
pub fn describe(path: &Path, first: Seq, bytes: &[u8]) -> Result<Described, Error> {
    let damaged = |seq: Seq, offset: usize, source: Damage| Error::Damaged {
        seq,
        path: path.to_owned(),
        offset: offset as u64,
        source,
    };
    let head = follow::read_head(bytes).map_err(|damage| damaged(first, 0, damage))?;
    if head.first != first {
        return Err(damaged(first, 0, Damage::SegmentHead));
    }
    let SegmentHead { log, previous, .. } = head;
    let mut before = Before::behind_head(head);
    let mut offset = segment::LEN;
    let mut time_unix_us = 0;
    let mut pieces = Pieces::default();
    loop {
        let here = before.link.map_or(first, |link| link.seq.next());
        match follow::next(bytes, offset, before, Depth::Payloads, &mut pieces) {
            Next::Append => {
                for piece in pieces.of_append.drain(..) {
                    offset = piece.end;
                    before = piece.behind(before);
                    if let What::Record(_, header) = &piece.what {
                        time_unix_us = time_unix_us.max(header.time_unix_us);
                    }
                }
            }
            Next::End => break,
            Next::Room => return Err(damaged(here, offset, Damage::Room)),
            Next::Broken(broken) => return Err(damaged(here, broken.at, broken.damage)),
        }
    }
    let link = before.link.unwrap_or(follow::link_of(&head));
    Ok(Described {
        log,
        previous,
        events: SeqRange {
            first,
            last: link.seq,
        },
        hash: link.hash,
        time_unix_us,
    })
}

/// The head of the segment itself, wherever it is.
///
/// # Errors
/// When it is nowhere, or can't be read.
pub fn segment_head(journal: &Path, first: Seq) -> Result<SegmentHead, Error> {
    let own = segment_path(journal, first);
    let (path, bytes) = match read_start(&own, segment::LEN) {
        Ok(bytes) => (own, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let loaded = load(journal, first)?;
            (loaded.path, loaded.bytes)
        }
        Err(error) => return Err(io_error("reading", &own)(error)),
    };
    SegmentHead::decode(&bytes).map_err(|source| Error::Head { path, source })
}
