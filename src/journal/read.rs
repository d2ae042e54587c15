//! Reading the journal: in order, verifying frames and chain. Needs no lock and changes nothing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Hash, Seq};
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
    /// The segment's head can't be read, or does not follow the segment before it.
    #[error("the head of its segment is damaged or does not follow the segment before it")]
    SegmentHead,
}

/// How the journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// At the end of a record.
    Whole,
    /// Inside a record that was never acknowledged: this many bytes belong to it.
    Torn {
        /// Where it begins.
        at: Position,
        /// How many bytes of it are there.
        bytes: u64,
    },
}

/// Reads records in order from a place, each checked against the one before.
pub struct Reader {
    directory: PathBuf,
    position: Position,
    link: Option<Link>,
    /// The bytes of the segment at hand from `base` on.
    segment: Option<Vec<u8>>,
    base: u64,
    tail: Tail,
}

impl Reader {
    /// From the first record there is.
    ///
    /// # Errors
    /// When the directory can't be read or holds no segment.
    pub fn from_start(directory: &Path) -> Result<Self, Error> {
        let Some(first) = segments(directory)?.first().copied() else {
            return Err(Error::Missing(directory.to_owned()));
        };
        Ok(Reader {
            directory: directory.to_owned(),
            position: Position {
                segment: first,
                offset: 0,
            },
            link: None,
            segment: None,
            base: 0,
            tail: Tail::Whole,
        })
    }

    /// From a place that was reached before, with the record before it.
    pub fn from_position(directory: &Path, position: Position, link: Link) -> Self {
        Reader {
            directory: directory.to_owned(),
            position,
            link: Some(link),
            segment: None,
            base: 0,
            tail: Tail::Whole,
        }
    }

    /// Where the next record begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The last record read, or the one this reader was given.
    pub fn link(&self) -> Option<Link> {
        self.link
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
                // Never whole on disk, so never acknowledged: the frame runs past the end of the last segment, or
                // the file was extended and its content never arrived.
                let torn =
                    matches!(error, record::Error::Short { .. }) || rest.iter().all(|b| *b == 0);
                if torn && self.is_last_segment()? {
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
        self.link = Some(Link {
            log: record.header.log,
            epoch: record.header.epoch,
            seq: record.header.seq,
            hash: record.hash,
        });
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
        match SegmentHead::decode(&bytes) {
            Ok(head)
                if head.first == *first
                    && link
                        .is_none_or(|link| link.log == head.log && link.hash == head.previous) => {}
            Ok(_) | Err(_) => found(&path, 0, Err(Damage::SegmentHead)),
        }
        let last = number + 1 == all.len();
        let mut offset = segment::LEN.min(bytes.len());
        while offset < bytes.len() {
            let rest = &bytes[offset..];
            match Record::read_frame(rest) {
                Ok((record, len)) => {
                    link = Some(Link {
                        log: record.header.log,
                        epoch: record.header.epoch,
                        seq: record.header.seq,
                        hash: record.hash,
                    });
                    found(&path, offset as u64, Ok(record));
                    offset += len;
                }
                Err(error) => match next_frame(rest) {
                    Some(skip) => {
                        found(&path, offset as u64, Err(Damage::Record(error)));
                        offset += skip;
                    }
                    None => {
                        let torn = matches!(error, record::Error::Short { .. })
                            || rest.iter().all(|b| *b == 0);
                        if last && torn {
                            tail = Tail::Torn {
                                at: Position {
                                    segment: *first,
                                    offset: offset as u64,
                                },
                                bytes: rest.len() as u64,
                            };
                        } else {
                            found(&path, offset as u64, Err(Damage::Record(error)));
                        }
                        break;
                    }
                },
            }
        }
    }
    Ok(tail)
}

/// How far behind a damaged record the next whole one begins.
fn next_frame(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len().saturating_sub(record::PREFIX_LEN)).find(|skip| {
        let rest = &bytes[*skip..];
        rest.starts_with(&record::MAGIC) && Record::read_frame(rest).is_ok()
    })
}
