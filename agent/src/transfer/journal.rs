//! What of a tree has arrived: an append-only file beside it. A record is written after what it speaks of is
//! durable, so that whoever reads it after a crash may rely on it (and checks it all the same).
//!
//! The file: `89 54 42 52 45 43 56 0A`, the manifest's id (32 bytes), and records: u32 little endian length, 32
//! bytes of BLAKE3 over the manifest's id, the record's position and its body, and the body: a MessagePack map.
//! A record that is not whole ends the journal: what follows is not believed, and is cut off. It is damage unless it was
//! cut short by a loss of power: then the file ends within it, or has a sector of zeros from it on.
//!
//! After a sync that failed, nothing more is noted by this process; the next one goes by what the disk has.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, StepFailure};

use super::pieces::Ranges;
use super::receive::Received;
use crate::durable;
use crate::step::{failure, io_failure};

const MAGIC: [u8; 8] = *b"\x89TBRECV\n";
const HEAD_LEN: usize = 8 + 32;
const RECORD_HEAD_LEN: usize = 4 + 32;
const CONTEXT: &str = "tallybook 2026-11 transfer journal v1";
/// No transfer needs more; a longer file is not one of ours.
const LEN_MAX: u64 = 1024 * 1024 * 1024;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// A pack came and was written.
    Pack {
        /// Its id.
        id: Hash,
        /// What it carried.
        pieces: Ranges,
    },
    /// Pieces were found on this host and written.
    Local {
        /// Which.
        pieces: Ranges,
    },
    /// The tree is whole and was verified.
    Complete(Received),
}

/// The journal, open at its end.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    manifest: Hash,
    end: u64,
    /// Why nothing can be noted any more: whether what was noted last is on the disk is not known.
    stopped: Option<StepFailure>,
}

/// What a journal says.
pub(super) struct Told {
    /// The records, in order.
    pub(super) records: Vec<Record>,
    /// Where it is damaged, for people. A record cut short by a crash is no damage.
    pub(super) damage: Option<String>,
}

/// The records of a journal without changing it; `None` when there is none of this manifest.
pub(super) fn read(path: &Path, manifest: Hash) -> Result<Option<Told>, StepFailure> {
    let mut bytes = Vec::new();
    let read = |file: File| {
        durable::settle(&file)?;
        file.take(LEN_MAX).read_to_end(&mut bytes)
    };
    match File::open(path).and_then(read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| io_failure("reading", path, &e))?,
    };
    Ok(parse(&bytes, manifest, path).map(|parsed| parsed.told))
}

struct Parsed {
    told: Told,
    /// Where its records end.
    end: usize,
    /// The first record that says that the tree is whole: how many are before it, and where it begins.
    complete: Option<(usize, usize)>,
}

/// `None` when this is not the journal of this manifest.
fn parse(bytes: &[u8], manifest: Hash, path: &Path) -> Option<Parsed> {
    let head = bytes.get(..HEAD_LEN)?;
    if head[..8] != MAGIC || head[8..] != manifest.0 {
        return None;
    }
    let mut told = Told {
        records: Vec::new(),
        damage: None,
    };
    let mut complete = None;
    let mut at = HEAD_LEN;
    while let Some(head) = bytes.get(at..at + RECORD_HEAD_LEN) {
        let (len, sum) = head.split_at(4);
        // The slice is four bytes long.
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let start = at + RECORD_HEAD_LEN;
        let Some(body) = start.checked_add(len).and_then(|end| bytes.get(start..end)) else {
            break;
        };
        let good = checksum(manifest, at as u64, body).0 == *sum;
        match good.then(|| codec::decode(body)) {
            Some(Ok(record)) => {
                if matches!(record, Record::Complete(_)) {
                    complete = complete.or(Some((told.records.len(), at)));
                }
                told.records.push(record);
            }
            Some(Err(_)) | None => {
                told.damage = (!durable::has_unwritten(&bytes[at..], at as u64))
                    .then(|| format!("{} is damaged at byte {at}", path.display()));
                break;
            }
        }
        at = start + len;
    }
    Some(Parsed {
        told,
        end: at,
        complete,
    })
}

fn checksum(manifest: Hash, at: u64, body: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&manifest.0);
    hasher.update(&at.to_le_bytes());
    hasher.update(body);
    hasher.finalize().into()
}

impl Journal {
    /// Opens the journal to go on with it; begins it anew if there is none, or one of another manifest. That the tree is
    /// whole is said no longer: whoever goes on changes it.
    pub(super) fn open(path: &Path, manifest: Hash) -> Result<(Self, Told), StepFailure> {
        let failed = |e: &io::Error| io_failure("opening", path, e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| failed(&e))?;
        durable::settle(&file).map_err(|e| failed(&e))?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(LEN_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| failed(&e))?;
        let (told, end) = match parse(&bytes, manifest, path) {
            Some(Parsed {
                mut told,
                end,
                complete,
            }) => {
                told.records
                    .truncate(complete.map_or(usize::MAX, |it| it.0));
                (told, complete.map_or(end, |it| it.1))
            }
            None => {
                let damage = (bytes.len() >= HEAD_LEN
                    && !durable::has_unwritten(&bytes[..HEAD_LEN], 0))
                .then(|| format!("{} does not begin as it should", path.display()));
                let mut head = MAGIC.to_vec();
                head.extend_from_slice(&manifest.0);
                file.set_len(0).map_err(|e| failed(&e))?;
                file.write_all_at(&head, 0).map_err(|e| failed(&e))?;
                let records = Vec::new();
                (Told { records, damage }, HEAD_LEN)
            }
        };
        file.set_len(end as u64).map_err(|e| failed(&e))?;
        file.sync_all().map_err(|e| failed(&e))?;
        // Also where it was there: whoever made it may not have come to this.
        path.parent().map_or(Ok(()), durable::sync_dir)?;
        let journal = Journal {
            file,
            path: path.to_owned(),
            manifest,
            end: end as u64,
            stopped: None,
        };
        Ok((journal, told))
    }

    /// Writes records; they are durable when this returns. What they speak of must be so already.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), StepFailure> {
        if let Some(failure) = &self.stopped {
            return Err(failure.clone());
        }
        let mut bytes = Vec::new();
        for record in records {
            let body = codec::encode(record).map_err(|e| failure(FailureClass::Unknown, &e))?;
            let at = self.end + bytes.len() as u64;
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&checksum(self.manifest, at, &body).0);
            bytes.extend_from_slice(&body);
        }
        // Crash boundary: a record that is cut short here is cut off when the journal is next opened.
        self.file
            .write_all_at(&bytes, self.end)
            .map_err(|e| io_failure("writing", &self.path, &e))?;
        self.file.sync_data().map_err(|e| {
            let failure = io_failure("syncing", &self.path, &e);
            self.stopped = Some(failure.clone());
            failure
        })?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32) -> Record {
        Record::Pack {
            id: Hash([n as u8; 32]),
            pieces: vec![(n, 1)],
        }
    }

    #[test]
    fn a_flipped_bit_is_named_and_nothing_after_it_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        let id = Hash([7; 32]);
        let (mut journal, _) = Journal::open(&path, id).unwrap();
        let records: Vec<_> = (0..3).map(record).collect();
        journal.append(&records[..1]).unwrap();
        let first_end = journal.end as usize;
        journal.append(&records[1..2]).unwrap();
        let second_end = journal.end as usize;
        journal.append(&records[2..]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, &flipped).unwrap();
            let (_, told) = Journal::open(&path, id).unwrap();
            assert!(told.records.len() < 3, "{at}");
            assert_eq!(told.records, records[..told.records.len()], "{at}");
            assert!(at < first_end || !told.records.is_empty(), "{at}");
            // In the length of a record, a bit can make it look like one that was cut short.
            let in_len = [0, 1, 2, 3]
                .iter()
                .any(|n| [HEAD_LEN, first_end, second_end].contains(&(at - n.min(&at))));
            let named = told.damage.is_some_and(|text| text.contains("received"));
            assert!(named || in_len, "{at}");
        }
    }

    #[test]
    fn a_record_cut_short_is_no_damage_and_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        let id = Hash([7; 32]);
        let (mut journal, _) = Journal::open(&path, id).unwrap();
        journal.append(&[record(1)]).unwrap();
        let one = journal.end as usize;
        journal.append(&[record(2)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for end in one..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (mut journal, told) = Journal::open(&path, id).unwrap();
            assert_eq!((told.records, told.damage), (vec![record(1)], None));
            journal.append(&[record(2)]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn whoever_goes_on_says_no_longer_that_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        let id = Hash([7; 32]);
        let (mut journal, _) = Journal::open(&path, id).unwrap();
        let records = [record(1), Record::Complete(Received::default())];
        journal.append(&records).unwrap();
        assert_eq!(read(&path, id).unwrap().unwrap().records, records);
        let (_, told) = Journal::open(&path, id).unwrap();
        assert_eq!(told.records, records[..1]);
        assert_eq!(read(&path, id).unwrap().unwrap().records, records[..1]);
    }

    #[test]
    fn the_journal_of_another_manifest_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received");
        let (mut journal, _) = Journal::open(&path, Hash([7; 32])).unwrap();
        journal.append(&[record(1)]).unwrap();
        assert!(read(&path, Hash([8; 32])).unwrap().is_none());
        let (_, told) = Journal::open(&path, Hash([8; 32])).unwrap();
        assert!(told.records.is_empty());
        assert!(read(&path, Hash([7; 32])).unwrap().is_none());
    }
}
