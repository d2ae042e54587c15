//! Segments in the archive: compressed, checked, and read like the others.
//!
//! The archive is the directory `archive` beside the journal, or what a symbolic link of that name leads to. A segment
//! is there whole, and was read back from there, before its file beside the others goes. While both are there, the
//! journal's own counts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tallybook_events::archive::{self, ArchiveHead, content_hash};
use tallybook_events::event::SeqRange;
use tallybook_events::ids::Seq;
use tallybook_events::segment::{self, SegmentHead};

use super::follow::{self, Before, Depth, Next};
use super::read::read_start;
use super::write::sync_directory;
use super::{Damage, Error, io_error, segment_path};

/// Fast, and a tenth of what a log takes: measured on captured output and plans.
const LEVEL: i32 = 3;
/// No segment of ours is as long; a head that says so is damaged.
const LEN_MAX: u64 = 4 << 30;

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
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    /// What is wrong with what holds them.
    pub(super) wrong: Option<Damage>,
}

/// Reads a segment from the journal, else from the archive.
///
/// # Errors
/// When neither has it, or it can't be read.
pub(super) fn load(journal: &Path, first: Seq) -> Result<Loaded, Error> {
    let own = segment_path(journal, first);
    match std::fs::read(&own) {
        Ok(bytes) => {
            return Ok(Loaded {
                path: own,
                bytes,
                wrong: None,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("reading", &own)(error)),
    }
    let path = path(journal, first);
    let stored = match std::fs::read(&path) {
        Ok(stored) => stored,
        // Named as where it has to be.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(io_error("reading", &own)(error));
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    let (bytes, wrong) = unpack(&stored);
    Ok(Loaded { path, bytes, wrong })
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
        source: Damage::Archive(error.to_string()),
    })
}

/// The segment in an archived one, as far as it can be had, and what is wrong with it.
fn unpack(stored: &[u8]) -> (Vec<u8>, Option<Damage>) {
    let head = ArchiveHead::decode(stored);
    let packed = stored.get(archive::LEN..).unwrap_or_default();
    let most = head.as_ref().map_or(LEN_MAX, |head| head.len.min(LEN_MAX));
    let mut bytes = Vec::new();
    let unpacked = zstd::stream::read::Decoder::new(packed)
        .and_then(|decoder| decoder.take(most.saturating_add(1)).read_to_end(&mut bytes));
    let wrong = match (head, unpacked) {
        (Err(error), _) => Some(Damage::Archive(error.to_string())),
        (Ok(_), Err(error)) => Some(Damage::Archive(format!("it can't be unpacked: {error}"))),
        (Ok(head), Ok(_)) if content_hash(&bytes) != head.content => Some(Damage::Archive(
            "what is in it is not what was put there".to_owned(),
        )),
        (Ok(_), Ok(_)) => None,
    };
    (bytes, wrong)
}

/// Puts bytes of a whole, sound segment into the archive, reads them back from there, and returns which events they
/// are. What was there under this name is replaced.
///
/// # Errors
/// When the bytes are not a whole segment, or the archive can't be written or does not give them back.
pub(super) fn put(journal: &Path, first: Seq, bytes: &[u8]) -> Result<SeqRange, Error> {
    let head = describe(journal, first, bytes)?;
    let path = path(journal, first);
    let new = path.with_extension("new");
    let mut stored = head.encode().to_vec();
    let packed = zstd::bulk::compress(bytes, LEVEL).map_err(io_error("compressing", &path))?;
    stored.extend_from_slice(&packed);
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&stored)?;
        file.sync_all()?;
        // What counts is what the disk gives back.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let (read, wrong) = unpack(&std::fs::read(&new)?);
        match (read == bytes, wrong) {
            (true, None) => Ok(()),
            (_, wrong) => Err(io::Error::other(
                wrong.map_or("it reads back as something else".to_owned(), |wrong| {
                    wrong.to_string()
                }),
            )),
        }?;
        // Crash boundary: it is there under its name or not at all.
        std::fs::rename(&new, &path)
    };
    write().map_err(io_error("archiving", &path))?;
    sync_directory(&directory(journal))?;
    Ok(head.events)
}

/// What an archived segment's head says of these bytes.
fn describe(journal: &Path, first: Seq, bytes: &[u8]) -> Result<ArchiveHead, Error> {
    let damaged = |seq: Seq, offset: usize, source: Damage| Error::Damaged {
        seq,
        path: segment_path(journal, first),
        offset: offset as u64,
        source,
    };
    let head = follow::read_head(bytes).map_err(|damage| damaged(first, 0, damage))?;
    let SegmentHead { log, .. } = head;
    let mut before = Before::behind_head(head);
    let mut offset = segment::LEN;
    loop {
        match follow::next(bytes, offset, before, Depth::Payloads) {
            Next::Append(pieces) => {
                for piece in pieces {
                    offset = piece.end;
                    before = piece.behind(before);
                }
            }
            Next::End => break,
            Next::Room => return Err(damaged(first, offset, Damage::Room)),
            Next::Broken(broken) => return Err(damaged(first, broken.at, broken.damage)),
        }
    }
    let link = before.link.unwrap_or(follow::link_of(&head));
    Ok(ArchiveHead {
        log,
        events: SeqRange {
            first,
            last: link.seq,
        },
        hash: link.hash,
        len: bytes.len() as u64,
        content: content_hash(bytes),
    })
}
