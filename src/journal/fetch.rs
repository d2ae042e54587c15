//! Single records of the journal, by where they are. Segments stay open from one to the next.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tallybook_events::ids::Seq;
use tallybook_events::record::{self, Record};

use super::{Damage, Error, Position, archive, io_error, segment_path};

/// How many segments stay open, or unpacked, at once.
const OPEN_MAX: usize = 4;

enum Source {
    File(File),
    /// From the archive.
    Bytes(Vec<u8>),
}

/// Fetches records from places.
pub struct Fetch {
    directory: PathBuf,
    open: BTreeMap<Seq, Source>,
}

impl Fetch {
    /// From a journal.
    pub fn new(directory: &Path) -> Self {
        Fetch {
            directory: directory.to_owned(),
            open: BTreeMap::new(),
        }
    }

    /// The record whose frame is at a place and so long, whatever its payload is; `None` where it is not one.
    ///
    /// # Errors
    /// When the segment can't be read, or no file has the event.
    pub fn record(&mut self, at: Position, len: u32) -> Result<Option<Record>, Error> {
        let Some(bytes) = self.bytes(at, len as usize)? else {
            return Ok(None);
        };
        let read = Record::read_frame(&bytes).ok();
        Ok(read.and_then(|(record, used)| {
            let is_whole = used == bytes.len();
            is_whole.then_some(record)
        }))
    }

    /// That the payload of the event at a place is not the one that its header commits to.
    pub fn changed(&self, seq: Seq, at: Position) -> Error {
        let own = segment_path(&self.directory, at.segment);
        Error::Damaged {
            seq,
            path: match own.exists() {
                true => own,
                false => archive::path(&self.directory, at.segment),
            },
            offset: at.offset,
            source: Damage::Record(record::Error::Commitment),
        }
    }

    fn bytes(&mut self, at: Position, len: usize) -> Result<Option<Vec<u8>>, Error> {
        if !self.open.contains_key(&at.segment) {
            let Some(source) = self.source(at.segment)? else {
                return Ok(None);
            };
            if self.open.len() >= OPEN_MAX {
                // Whoever reads goes one way or the other: the furthest is not needed again soon.
                let first = self.open.keys().next().copied();
                let last = self.open.keys().next_back().copied();
                let distance =
                    |seq: &Option<Seq>| seq.map_or(0, |seq| seq.0.abs_diff(at.segment.0));
                let far = if distance(&first) > distance(&last) {
                    first
                } else {
                    last
                };
                far.map(|far| self.open.remove(&far));
            }
            self.open.insert(at.segment, source);
        }
        match self.open.get(&at.segment) {
            None => Ok(None),
            Some(Source::Bytes(bytes)) => {
                let start = usize::try_from(at.offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(len);
                Ok(bytes.get(start..end).map(<[u8]>::to_vec))
            }
            Some(Source::File(file)) => {
                let mut bytes = vec![0; len];
                match file.read_exact_at(&mut bytes, at.offset) {
                    Ok(()) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(error) => {
                        let path = segment_path(&self.directory, at.segment);
                        Err(io_error("reading", &path)(error))
                    }
                }
            }
        }
    }

    fn source(&self, segment: Seq) -> Result<Option<Source>, Error> {
        let path = segment_path(&self.directory, segment);
        match File::open(&path) {
            Ok(file) => return Ok(Some(Source::File(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("opening", &path)(error)),
        }
        match archive::load(&self.directory, segment) {
            Ok(loaded) => Ok(Some(Source::Bytes(loaded.bytes))),
            // No file of this name: either another has the event, and the place is wrong; or none has.
            Err(Error::Absent { .. }) => super::holds(&self.directory, segment).map(|_| None),
            Err(error) => Err(error),
        }
    }
}
