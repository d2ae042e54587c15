//! Reading the journal: in order, verifying frames and chain. Needs no lock and changes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tallybook_events::gap::{self, Gap};
use tallybook_events::ids::{Hash, LogId, Seq};
use tallybook_events::record::{self, Record};
use tallybook_events::segment::{self, SegmentHead};

use super::archive::{self, Loaded};
use super::follow::{self, Before, Broken, Depth, Next, Piece, Pieces, What};
use super::{
    Damage, Error, Link, Position, absent, archived_segments, io_error, own_segments, segment_path,
    segments,
};

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
    /// Whether a gap is directly before the position.
    bridged: bool,
    /// The bytes of the segment at hand from `base` on, and their file.
    segment: Option<Arc<Vec<u8>>>,
    file: PathBuf,
    base: u64,
    tail: Tail,
    /// The gaps that were met.
    gaps: Vec<Gap>,
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
        match first {
            Seq(1) => Ok(Reader::new(directory, start, None)),
            _ => Err(absent(directory, Seq(1))),
        }
    }

    /// From the first record of the segment that an event has to be in; what is before it is believed.
    ///
    /// # Errors
    /// When no file can have the event, or the segment's head can't be read.
    pub fn from_segment_of(directory: &Path, seq: Seq) -> Result<Self, Error> {
        let earlier = |first: &Seq| *first <= seq;
        let Some(first) = segments(directory)?.into_iter().rev().find(earlier) else {
            return Err(absent(directory, Seq(1)));
        };
        if first == Seq(1) {
            return Reader::from_start(directory);
        }
        let start = Position {
            segment: first,
            offset: 0,
        };
        let mut reader = Reader::new(directory, start, None);
        let bytes = reader.read_segment()?;
        // Where it can't be read, it is refused as any other.
        reader.link = follow::read_head(&bytes)
            .ok()
            .map(|head| follow::link_of(&head));
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
            bridged: false,
            segment: None,
            file: segment_path(directory, position.segment),
            base: 0,
            tail: Tail::Whole,
            gaps: Vec::new(),
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

    /// The gaps that were met so far: events that a recovery went on without.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
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
            let bytes = match &self.segment {
                Some(bytes) => Arc::clone(bytes),
                None => self.read_segment()?,
            };
            if self.position.offset == 0 {
                self.read_head(&bytes)?;
            }
            let start = usize::try_from(self.position.offset - self.base).unwrap_or(usize::MAX);
            let mut pieces = Pieces::default();
            match follow::next(&bytes, start, self.before(), Depth::Payloads, &mut pieces) {
                Next::Append => {
                    if self.take(pieces.of_append)? {
                        return Ok(true);
                    }
                }
                Next::End => match self.next_segment()? {
                    None => {
                        self.segment = None;
                        return Ok(false);
                    }
                    Some(_) if self.reread()? => {}
                    Some(next) => self.enter(next)?,
                },
                Next::Room => match self.next_segment()? {
                    None => {
                        self.segment = None;
                        return Ok(false);
                    }
                    Some(_) if self.reread()? => {}
                    Some(_) => return Err(self.damaged(self.position.offset, Damage::Room)),
                },
                Next::Broken(broken) => {
                    let later = self.next_segment()?;
                    if self.reread()? {
                        continue;
                    }
                    if later.is_some() || broken.was_durable {
                        return Err(self.damaged_at(*broken));
                    }
                    self.segment = None;
                    let rest = bytes.get(start..).unwrap_or_default();
                    let room = rest.iter().rev().take_while(|byte| **byte == 0).count();
                    self.tail = Tail::Torn {
                        at: self.position,
                        bytes: (rest.len() - room) as u64,
                    };
                    return Ok(false);
                }
            }
        }
    }

    const fn before(&self) -> Before {
        Before {
            link: self.link,
            lost: false,
            bridged: self.bridged,
            head: self.head,
        }
    }

    /// Keeps what was read of an append. `false` when it is a gap alone.
    fn take(&mut self, pieces: Vec<Piece<'_>>) -> Result<bool, Error> {
        for piece in pieces {
            let place = |offset: usize| Position {
                segment: self.position.segment,
                offset: self.base + offset as u64,
            };
            let (start, end) = (place(piece.start), place(piece.end));
            let behind = piece.behind(self.before());
            match &piece.what {
                What::Record(frame, header) => {
                    let record = frame
                        .to_record(header)
                        .map_err(|error| self.damaged(start.offset, Damage::Record(error)))?;
                    self.ready.push_back((start, record, end));
                }
                What::Gap(gap) => self.gaps.push(gap.clone()),
            }
            self.head = None;
            self.bridged = behind.bridged;
            self.link = behind.link;
            self.position = end;
        }
        Ok(!self.ready.is_empty())
    }

    /// The bytes of the segment at hand from the position on.
    fn read_segment(&mut self) -> Result<Arc<Vec<u8>>, Error> {
        let loaded = self.load()?;
        if let Some(wrong) = loaded.wrong {
            self.file = loaded.path;
            return Err(self.damaged(0, wrong));
        }
        let bytes = Arc::new(loaded.bytes);
        self.file = loaded.path;
        self.base = self.position.offset;
        self.segment = Some(Arc::clone(&bytes));
        Ok(bytes)
    }

    fn load(&self) -> Result<Loaded, Error> {
        let Position { segment, offset } = self.position;
        let path = segment_path(&self.directory, segment);
        match read_from(&path, offset) {
            Ok(bytes) => Ok(Loaded {
                path,
                bytes,
                wrong: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut loaded = archive::load(&self.directory, segment)?;
                let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
                loaded.bytes = loaded.bytes.split_off(skipped.min(loaded.bytes.len()));
                Ok(loaded)
            }
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    /// Reads the rest of the segment again. `false` when it is what was read before.
    fn reread(&mut self) -> Result<bool, Error> {
        let bytes = self.load()?.bytes;
        let start = usize::try_from(self.position.offset - self.base).unwrap_or(usize::MAX);
        let known = self
            .segment
            .as_deref()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if known.get(start..) == Some(&bytes) {
            return Ok(false);
        }
        self.segment = Some(Arc::new(bytes));
        self.base = self.position.offset;
        Ok(true)
    }

    fn read_head(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let head = follow::read_head(bytes);
        match follow::check_head(head, self.position.segment, self.before()) {
            Ok(head) => {
                self.head = Some(head);
                self.bridged = false;
                self.link.get_or_insert(follow::link_of(&head));
                self.position.offset = segment::LEN as u64;
                Ok(())
            }
            Err(Damage::SegmentFormat(format)) => Err(Error::Head {
                path: self.file.clone(),
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
        self.file = segment_path(&self.directory, segment);
        let expected = self.link.map_or(segment, |link| link.seq.next());
        if segment > expected {
            return Err(absent(&self.directory, expected));
        }
        if segment != expected {
            let found = segment;
            return Err(self.damaged(0, Damage::Seq { expected, found }));
        }
        Ok(())
    }

    fn damaged_at(&mut self, broken: Broken<'_>) -> Error {
        if let Some(last) = broken.sound.last() {
            self.link = last.behind(self.before()).link;
        }
        self.damaged(self.base + broken.at as u64, broken.damage)
    }

    /// An error at the event that was to be next, at a byte of the segment at hand.
    fn damaged(&self, offset: u64, source: Damage) -> Error {
        Error::Damaged {
            seq: self.link.map_or(Seq(1), |link| link.seq.next()),
            path: self.file.clone(),
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

/// The header hash of the record, or of the gap, that begins at a place, and where the next one would; `None` where
/// there is none that is whole.
///
/// # Errors
/// When the file is there and can't be read.
pub fn link_at(directory: &Path, at: Position) -> Result<Option<(Hash, Position)>, Error> {
    let path = segment_path(directory, at.segment);
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(at.offset))?;
        let mut bytes = vec![0; record::PREFIX_LEN];
        file.read_exact(&mut bytes)?;
        let rest = match record::read_prefix(&bytes) {
            Ok((header, payload)) => header + record::SALT_LEN + payload + record::TRAILER_LEN,
            Err(_) => gap::LEN_MAX,
        };
        file.take(rest as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !archived_segments(directory)?.contains(&at.segment) {
                return Ok(None);
            }
            let mut bytes = archive::load(directory, at.segment)?.bytes;
            let start = usize::try_from(at.offset).unwrap_or(usize::MAX);
            bytes.split_off(start.min(bytes.len()))
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    let record = Record::read_frame(&bytes).map(|(record, len)| (record.hash, len));
    let gap = || Gap::read(&bytes).map(|(gap, len)| (gap.hash, len));
    Ok(record.ok().or_else(gap).map(|(hash, len)| {
        let next = Position {
            segment: at.segment,
            offset: at.offset + len as u64,
        };
        (hash, next)
    }))
}

/// The hash of an event by the journal alone, `None` where that ends before it; and the newest event that was read.
///
/// # Errors
/// When the files can't be read, or none has the event although others go beyond it.
pub fn holds(directory: &Path, seq: Seq) -> Result<(Seq, Option<Hash>), Error> {
    let mut reader = Reader::from_segment_of(directory, seq)?;
    while let Some((_, record)) = reader.next()? {
        if record.header.seq >= seq {
            let found = (record.header.seq == seq).then_some(record.hash);
            let of_gap = || {
                let mut gaps = reader.gaps().iter();
                gaps.find(|gap| gap.last == seq).map(|gap| gap.hash)
            };
            return Ok((record.header.seq, found.or_else(of_gap)));
        }
    }
    let gap = reader.gaps().iter().find(|gap| gap.last == seq);
    if let Some(gap) = gap {
        return Ok((seq, Some(gap.hash)));
    }
    Ok((reader.link().map_or(Seq::NONE, |link| link.seq), None))
}

/// The log that a journal belongs to, by the first head in it that is not damaged; the archive is asked only where there is no
/// segment in it.
///
/// # Errors
/// When there is none at all, or no head can be read, or a newer program wrote one.
pub fn log_of(directory: &Path) -> Result<LogId, Error> {
    let own = own_segments(directory)?;
    let mut damaged = None;
    for first in &own {
        let path = segment_path(directory, *first);
        let bytes = read_start(&path, segment::LEN).map_err(io_error("reading", &path))?;
        match SegmentHead::decode(&bytes) {
            Ok(head) => return Ok(head.log),
            Err(source @ segment::Error::Format(_)) => return Err(Error::Head { path, source }),
            Err(source) => {
                damaged.get_or_insert(Error::Head { path, source });
            }
        }
    }
    if let Some(error) = damaged {
        return Err(error);
    }
    match archived_segments(directory)?.first() {
        Some(first) => Ok(archive::head(directory, *first)?.log),
        None => Err(Error::Missing(directory.to_owned())),
    }
}

/// The first bytes of a file, as many as it has of so many.
pub(super) fn read_start(path: &Path, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
