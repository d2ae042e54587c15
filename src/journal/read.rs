//! Reading the journal: in order, verifying frames and chain. Needs no lock and changes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tallybook_events::ids::{LogId, Seq};
use tallybook_events::record::{self, Record};
use tallybook_events::segment::{self, SegmentHead};

use super::follow::{self, Before, Broken, Next, Piece};
use super::{Damage, Error, Link, Position, io_error, segment_path, segments};

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
    /// The head of the segment at hand, while no record behind it was read.
    head: Option<SegmentHead>,
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
            return Err(reader.damaged(0, damage));
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
            head: None,
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
    ///
    /// Whoever holds the store may be writing: nothing is judged by bytes that were read before what they are judged by.
    fn read_append(&mut self) -> Result<bool, Error> {
        loop {
            if self.segment.is_none() {
                self.segment = Some(self.read_segment()?);
                self.base = self.position.offset;
            }
            if self.position.offset == 0 {
                self.read_head()?;
            }
            let bytes = self.segment.as_deref().unwrap_or_default();
            let start = usize::try_from(self.position.offset - self.base).unwrap_or(usize::MAX);
            match follow::next(bytes, start, self.before()) {
                Next::Append(pieces) => {
                    self.take(pieces);
                    return Ok(true);
                }
                Next::End => match self.next_segment()? {
                    None => {
                        self.segment = None;
                        return Ok(false);
                    }
                    Some(_) if self.reread()? => {}
                    Some(next) => self.enter(next)?,
                },
                Next::Broken(broken) => {
                    let later = self.next_segment()?;
                    if self.reread()? {
                        continue;
                    }
                    if later.is_some() || broken.was_durable {
                        return Err(self.damaged_at(*broken));
                    }
                    let bytes = self.segment.take().unwrap_or_default();
                    self.tail = Tail::Torn {
                        at: self.position,
                        bytes: (bytes.len() - start) as u64,
                    };
                    return Ok(false);
                }
            }
        }
    }

    const fn before(&self) -> Before {
        Before {
            link: self.link,
            gap: false,
            head: self.head,
        }
    }

    fn take(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            let place = |offset: usize| Position {
                segment: self.position.segment,
                offset: self.base + offset as u64,
            };
            let (start, end) = (place(piece.start), place(piece.end));
            self.head = None;
            self.link = Some(Link::of(&piece.record));
            self.position = end;
            self.ready.push_back((start, piece.record, end));
        }
    }

    fn path(&self) -> PathBuf {
        segment_path(&self.directory, self.position.segment)
    }

    /// The bytes of the segment at hand from the position on.
    fn read_segment(&self) -> Result<Vec<u8>, Error> {
        let path = self.path();
        read_from(&path, self.position.offset).map_err(io_error("reading", &path))
    }

    /// Reads the rest of the segment again. `false` when it is what was read before.
    fn reread(&mut self) -> Result<bool, Error> {
        let bytes = self.read_segment()?;
        let start = usize::try_from(self.position.offset - self.base).unwrap_or(usize::MAX);
        let known = self.segment.as_deref().unwrap_or_default();
        if known.get(start..) == Some(&bytes) {
            return Ok(false);
        }
        self.segment = Some(bytes);
        self.base = self.position.offset;
        Ok(true)
    }

    fn read_head(&mut self) -> Result<(), Error> {
        let bytes = self.segment.as_deref().unwrap_or_default();
        match follow::head(bytes, self.position.segment, self.before()) {
            Ok(head) => {
                self.head = Some(head);
                self.link.get_or_insert(follow::link_of(&head));
                self.position.offset = segment::LEN as u64;
                Ok(())
            }
            Err(Damage::SegmentFormat(format)) => Err(Error::Head {
                path: self.path(),
                source: segment::Error::Format(format),
            }),
            Err(damage) => Err(self.damaged(0, damage)),
        }
    }

    fn next_segment(&self) -> Result<Option<Seq>, Error> {
        let current = self.position.segment;
        let mut later = segments(&self.directory)?.into_iter();
        Ok(later.find(|first| *first > current))
    }

    fn enter(&mut self, segment: Seq) -> Result<(), Error> {
        self.position = Position { segment, offset: 0 };
        self.segment = None;
        let expected = self.link.map_or(segment, |link| link.seq.next());
        if segment != expected {
            let found = segment;
            return Err(self.damaged(0, Damage::Seq { expected, found }));
        }
        Ok(())
    }

    fn damaged_at(&mut self, broken: Broken) -> Error {
        if let Some(last) = broken.sound.last() {
            self.link = Some(Link::of(&last.record));
        }
        self.damaged(self.base + broken.at as u64, broken.damage)
    }

    /// An error at the event that was to be next, at a byte of the segment at hand.
    fn damaged(&self, offset: u64, source: Damage) -> Error {
        Error::Damaged {
            seq: self.link.map_or(Seq(1), |link| link.seq.next()),
            path: self.path(),
            offset,
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
