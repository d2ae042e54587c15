//! Reading the journal: in order, verifying frames and chain. Needs no lock and changes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Hash, LogId, Seq};
use tallybook_events::record::{self, Record};
use tallybook_events::segment::{self, SegmentHead};

use super::{Error, Link, Position, io_error, segment_path, segments};

/// What is wrong at a place of the journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The record's own bytes.
    #[error("the record can't be read")]
    Record(#[from] record::Error),
    /// The record has another position than its place says.
    #[error("event {found} stands where event {expected} must be")]
    Seq {
        /// What must be here.
        expected: Seq,
        /// What is here.
        found: Seq,
    },
    /// The record does not follow the one before it.
    #[error("it does not carry the hash of the event before it")]
    Chain,
    /// The record is of another log, or of an earlier epoch.
    #[error("it belongs to another log or epoch")]
    Foreign,
    /// The record does not go on with the append that the one before it began.
    #[error("it is not the next event of the append that the event before it belongs to")]
    Append,
    /// The segment's head can't be read, or does not follow the segment before it.
    #[error("the head of its segment is damaged or does not follow the segment before it")]
    SegmentHead,
}

/// How the journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// At the end of a record.
    Whole,
    /// Inside an append that was never acknowledged: this many bytes belong to it.
    Torn {
        /// Where it begins.
        at: Position,
        /// How many bytes of it are there.
        bytes: u64,
    },
}

/// Reads records in order from a place, each checked against the one before. An append is handed out whole or not
/// at all.
pub struct Reader {
    directory: PathBuf,
    position: Position,
    link: Option<Link>,
    /// The bytes of the segment at hand from `base` on.
    segment: Option<Vec<u8>>,
    base: u64,
    tail: Tail,
    /// What was read of the append at hand and not handed out yet, each with where it begins and ends.
    ready: VecDeque<(Position, Record, Position)>,
    /// Behind the last record that was handed out.
    given: (Position, Option<Link>),
}

impl Reader {
    /// From the first record there is.
    ///
    /// # Errors
    /// When the directory can't be read or holds no segment, or the first segment is missing.
    pub fn from_start(directory: &Path) -> Result<Self, Error> {
        let Some(first) = segments(directory)?.first().copied() else {
            return Err(Error::Missing(directory.to_owned()));
        };
        let start = Position {
            segment: first,
            offset: 0,
        };
        let reader = Reader::new(directory, start, None);
        if first != Seq(1) {
            let damage = Damage::Seq {
                expected: Seq(1),
                found: first,
            };
            return Err(reader.damaged(&segment_path(directory, first), Seq(1), damage));
        }
        Ok(reader)
    }

    /// From a place that was reached before, with the record before it.
    pub fn from_position(directory: &Path, position: Position, link: Link) -> Self {
        Reader::new(directory, position, Some(link))
    }

    fn new(directory: &Path, position: Position, link: Option<Link>) -> Self {
        Reader {
            directory: directory.to_owned(),
            position,
            link,
            segment: None,
            base: 0,
            tail: Tail::Whole,
            ready: VecDeque::new(),
            given: (position, link),
        }
    }

    /// Where the next record begins.
    pub fn position(&self) -> Position {
        self.given.0
    }

    /// The last record handed out, or the one this reader was given.
    pub fn link(&self) -> Option<Link> {
        self.given.1
    }

    /// How the journal ended, once [`Reader::next`] returned `None`.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The next record with the place it begins at; `None` at the end.
    ///
    /// # Errors
    /// When the files can't be read, or hold something that is not the next record.
    #[expect(
        clippy::should_implement_trait,
        reason = "an Iterator could be used on after an error"
    )]
    pub fn next(&mut self) -> Result<Option<(Position, Record)>, Error> {
        if self.ready.is_empty() && !self.read_append()? {
            self.given = (self.position, self.link);
            return Ok(None);
        }
        Ok(self.ready.pop_front().map(|(start, record, end)| {
            self.given = (end, Some(Link::of(&record)));
            (start, record)
        }))
    }

    /// Reads one append whole. `false` at the end, and where the last append was never whole.
    fn read_append(&mut self) -> Result<bool, Error> {
        let before = self.link;
        let mut expected = None;
        loop {
            let Some((start, record)) = self.read_next()? else {
                let Some((start, first, _)) = self.ready.pop_front() else {
                    return Ok(false);
                };
                // Never whole on disk, so never acknowledged: none of it counts.
                self.ready.clear();
                let path = segment_path(&self.directory, start.segment);
                let len = path.metadata().map_err(io_error("reading", &path))?.len();
                self.tail = Tail::Torn {
                    at: start,
                    bytes: len.saturating_sub(start.offset),
                };
                self.segment = None;
                self.position = start;
                self.link = before.or(Some(Link {
                    log: first.header.log,
                    epoch: first.header.epoch,
                    seq: Seq(first.header.seq.0.saturating_sub(1)),
                    hash: first.header.previous,
                }));
                return Ok(false);
            };
            let seq = record.header.seq;
            let more = record.header.more;
            let strange = expected.is_some_and(|expected| more != expected)
                || (self.ready.front()).is_some_and(|(first, ..)| first.segment != start.segment);
            if strange {
                self.position = start;
                let path = segment_path(&self.directory, start.segment);
                return Err(self.damaged(&path, seq, Damage::Append));
            }
            self.ready.push_back((start, record, self.position));
            match more.checked_sub(1) {
                Some(next) => expected = Some(next),
                None => return Ok(true),
            }
        }
    }

    fn read_next(&mut self) -> Result<Option<(Position, Record)>, Error> {
        loop {
            let first = self.position.segment;
            let path = segment_path(&self.directory, first);
            if self.segment.is_none() {
                self.base = self.position.offset;
                let bytes = read_from(&path, self.base).map_err(io_error("reading", &path))?;
                self.segment = Some(bytes);
            }
            if self.position.offset == 0 {
                if !self.check_head(&path)? {
                    self.segment = None;
                    return Ok(None);
                }
                self.position.offset = segment::LEN as u64;
            }
            let bytes = self.segment.as_deref().unwrap_or_default();
            if bytes.len() as u64 <= self.position.offset - self.base {
                if self.enter_next_segment()? {
                    continue;
                }
                self.segment = None;
                return Ok(None);
            }
            return self.read_record(&path);
        }
    }

    /// Checks the head of the segment at hand. `false` when it was never written whole.
    fn check_head(&mut self, path: &Path) -> Result<bool, Error> {
        let first = self.position.segment;
        let bytes = self.segment.as_deref().unwrap_or_default();
        let head = match SegmentHead::decode(bytes) {
            Ok(head) => head,
            Err(segment::Error::Short { .. }) if self.is_last_segment()? => {
                self.tail = Tail::Torn {
                    at: self.position,
                    bytes: bytes.len() as u64,
                };
                return Ok(false);
            }
            Err(segment::Error::Damaged | segment::Error::Short { .. }) => {
                return Err(self.damaged(path, first, Damage::SegmentHead));
            }
            Err(source @ segment::Error::Format(_)) => {
                return Err(Error::Head {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let follows = match self.link {
            Some(link) => head.log == link.log && head.previous == link.hash,
            None => first != Seq(1) || head.previous == Hash::ZERO,
        };
        if head.first != first || !follows {
            return Err(self.damaged(path, first, Damage::SegmentHead));
        }
        if self.link.is_none() {
            self.link = Some(Link {
                log: head.log,
                epoch: head.epoch,
                seq: Seq(first.0.saturating_sub(1)),
                hash: head.previous,
            });
        }
        Ok(true)
    }

    fn read_record(&mut self, path: &Path) -> Result<Option<(Position, Record)>, Error> {
        let bytes = self.segment.as_deref().unwrap_or_default();
        let start = usize::try_from(self.position.offset - self.base).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        let expected = self
            .link
            .map_or(self.position.segment, |link| link.seq.next());
        let (record, len) = match Record::read_frame(rest) {
            Ok(read) => read,
            Err(error) => {
                if never_whole(rest, &error) && self.is_last_segment()? {
                    self.tail = Tail::Torn {
                        at: self.position,
                        bytes: rest.len() as u64,
                    };
                    self.segment = None;
                    return Ok(None);
                }
                return Err(self.damaged(path, expected, Damage::Record(error)));
            }
        };
        if let Some(link) = self.link {
            let header = &record.header;
            if header.log != link.log || header.epoch < link.epoch {
                return Err(self.damaged(path, expected, Damage::Foreign));
            }
            if header.seq != expected {
                let found = header.seq;
                return Err(self.damaged(path, expected, Damage::Seq { expected, found }));
            }
            if header.previous != link.hash {
                return Err(self.damaged(path, expected, Damage::Chain));
            }
        }
        if !record.payload_is_intact() && !record.payload_is_erased() {
            let damage = Damage::Record(record::Error::Commitment);
            return Err(self.damaged(path, expected, damage));
        }
        self.link = Some(Link::of(&record));
        let position = self.position;
        self.position.offset += len as u64;
        Ok(Some((position, record)))
    }

    fn enter_next_segment(&mut self) -> Result<bool, Error> {
        let current = self.position.segment;
        let Some(next) = segments(&self.directory)?
            .into_iter()
            .find(|first| *first > current)
        else {
            return Ok(false);
        };
        let expected = self.link.map_or(next, |link| link.seq.next());
        let path = segment_path(&self.directory, next);
        self.position = Position {
            segment: next,
            offset: 0,
        };
        self.segment = None;
        if next != expected {
            let damage = Damage::Seq {
                expected,
                found: next,
            };
            return Err(self.damaged(&path, expected, damage));
        }
        Ok(true)
    }

    fn is_last_segment(&self) -> Result<bool, Error> {
        Ok(segments(&self.directory)?.last() == Some(&self.position.segment))
    }

    fn damaged(&self, path: &Path, seq: Seq, source: Damage) -> Error {
        Error::Damaged {
            seq,
            path: path.to_owned(),
            offset: self.position.offset,
            source,
        }
    }
}

/// A file's bytes from a place on.
fn read_from(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether the bytes behind the last whole record were never a whole one, and so never acknowledged: the frame runs
/// past the end of the file, or the file was extended and the end of its content never arrived.
fn never_whole(rest: &[u8], error: &record::Error) -> bool {
    let short = |error: &record::Error| matches!(error, record::Error::Short { .. });
    if short(error) {
        return true;
    }
    let end = rest
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    // A frame ends in a hash: fewer zeros than a hash has bytes may be the end of an acknowledged one.
    rest.len() - end >= record::TRAILER_LEN
        && Record::read_frame(&rest[..end]).is_err_and(|error| short(&error))
}

/// The record that begins at a place, and where the next one would; `None` where there is none that is whole.
///
/// # Errors
/// When the file is there and can't be read.
pub fn record_at(directory: &Path, at: Position) -> Result<Option<(Record, Position)>, Error> {
    let path = segment_path(directory, at.segment);
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(at.offset))?;
        let mut bytes = vec![0; record::PREFIX_LEN];
        file.read_exact(&mut bytes)?;
        if let Ok((header, payload)) = record::read_prefix(&bytes) {
            let rest = header + record::SALT_LEN + payload + record::TRAILER_LEN;
            file.take(rest as u64).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    Ok(Record::read_frame(&bytes).ok().map(|(record, len)| {
        let next = Position {
            segment: at.segment,
            offset: at.offset + len as u64,
        };
        (record, next)
    }))
}

/// The log that a journal belongs to, by the head of its first segment.
///
/// # Errors
/// When there is none, or it can't be read.
pub fn log_of(directory: &Path) -> Result<LogId, Error> {
    let Some(first) = segments(directory)?.first().copied() else {
        return Err(Error::Missing(directory.to_owned()));
    };
    let path = segment_path(directory, first);
    let mut head = Vec::with_capacity(segment::LEN);
    File::open(&path)
        .and_then(|file| file.take(segment::LEN as u64).read_to_end(&mut head))
        .map_err(io_error("reading", &path))?;
    match SegmentHead::decode(&head) {
        Ok(head) => Ok(head.log),
        Err(source) => Err(Error::Head { path, source }),
    }
}

/// Every place of a journal, damaged or not: what `verify` reads. Goes on behind damage at the next thing that is
/// a whole record, so that each damaged place is named once.
///
/// # Errors
/// When the files themselves can't be read.
pub fn scan(
    directory: &Path,
    mut found: impl FnMut(&Path, u64, Result<Record, Damage>),
) -> Result<Tail, Error> {
    let all = segments(directory)?;
    if all.is_empty() {
        return Err(Error::Missing(directory.to_owned()));
    }
    let mut tail = Tail::Whole;
    let mut link: Option<Link> = None;
    for (number, first) in all.iter().enumerate() {
        let path = segment_path(directory, *first);
        let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
        let last = number + 1 == all.len();
        if last && bytes.is_empty() {
            tail = Tail::Torn {
                at: Position {
                    segment: *first,
                    offset: 0,
                },
                bytes: 0,
            };
            break;
        }
        if !head_fits(&bytes, *first, link) {
            found(&path, 0, Err(Damage::SegmentHead));
        }
        let (end, whole) = scan_segment(&bytes, last, |offset, what| {
            if let Ok(record) = &what {
                link = Some(Link::of(record));
            }
            found(&path, offset as u64, what);
        });
        if !whole {
            tail = Tail::Torn {
                at: Position {
                    segment: *first,
                    offset: end as u64,
                },
                bytes: (bytes.len() - end) as u64,
            };
        }
    }
    Ok(tail)
}

/// Whether a segment's head is whole, follows the segment before it, and is followed by the record it announces.
fn head_fits(bytes: &[u8], first: Seq, link: Option<Link>) -> bool {
    let Ok(head) = SegmentHead::decode(bytes) else {
        return false;
    };
    let follows = match link {
        Some(link) => link.log == head.log && link.hash == head.previous,
        None => first != Seq(1) || head.previous == Hash::ZERO,
    };
    let announces = match Record::read_frame(&bytes[segment::LEN..]) {
        Ok((record, _)) => {
            record.header.log == head.log
                && record.header.epoch == head.epoch
                && record.header.previous == head.previous
        }
        Err(_) => true,
    };
    head.first == first && follows && announces
}

/// Every place of one segment. Returns where what was acknowledged ends, and whether that is the end of the file.
fn scan_segment(
    bytes: &[u8],
    last: bool,
    mut found: impl FnMut(usize, Result<Record, Damage>),
) -> (usize, bool) {
    let mut offset = segment::LEN.min(bytes.len());
    // The append at hand: whether it was ever whole is not known yet.
    let mut held: Vec<(usize, Record)> = Vec::new();
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        match Record::read_frame(rest) {
            Ok((record, len)) => {
                let more = record.header.more;
                held.push((offset, record));
                offset += len;
                if more == 0 {
                    held.drain(..)
                        .for_each(|(at, record)| found(at, Ok(record)));
                }
            }
            Err(error) => {
                let skip = next_frame(rest);
                if skip.is_none() && last && never_whole(rest, &error) {
                    return (held.first().map_or(offset, |(at, _)| *at), false);
                }
                held.drain(..)
                    .for_each(|(at, record)| found(at, Ok(record)));
                found(offset, Err(Damage::Record(error)));
                match skip {
                    Some(skip) => offset += skip,
                    None => return (bytes.len(), true),
                }
            }
        }
    }
    if last && let Some((at, _)) = held.first() {
        return (*at, false);
    }
    held.drain(..)
        .for_each(|(at, record)| found(at, Ok(record)));
    (bytes.len(), true)
}

/// How far behind a damaged record the next whole one begins.
fn next_frame(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len().saturating_sub(record::PREFIX_LEN)).find(|skip| {
        let rest = &bytes[*skip..];
        rest.starts_with(&record::MAGIC) && Record::read_frame(rest).is_ok()
    })
}
