//! The receipts journal: the host's own durable record of every start of every step, one file a log.
//!
//! Appended to, never rewritten. A receipt that says *started* is on the disk before the step's first effect; one
//! that says how it ended is on the disk before anybody is told. So a live journal without a receipt proves that a
//! step was never started, provided that it is the journal that was there when the step was to start: each has an
//! identity of its own, which the controller records with the start. A journal that is missing or damaged proves
//! nothing, and says so.
//!
//! # Bytes
//!
//! `receipts/LOG/journal` is a head and behind it a row of frames, with nothing between or behind them. Numbers are
//! little endian. The head:
//!
//! | offset | length | what |
//! |---|---|---|
//! | 0 | 4 | magic `TBJ1` |
//! | 4 | 16 | the log's id |
//! | 20 | 16 | the journal's id, random: version 4 of a UUID |
//! | 36 | 28 | the first 28 bytes of the BLAKE3 hash of bytes 0 to 35 |
//!
//! A frame:
//!
//! | offset | length | what |
//! |---|---|---|
//! | 0 | 4 | magic `TBA1` |
//! | 4 | 4 | *n*, the body's length; at most [`BODY_LEN_MAX`] |
//! | 8 | 4 | the first four bytes of the BLAKE3 hash of bytes 0 to 7 |
//! | 12 | *n* | the body: a [`Receipt`] as a named MessagePack map (`tallybook_events::codec`) |
//! | 12+*n* | 32 | the BLAKE3 hash of the body |
//!
//! A frame is written by one write, then synced. Where the file ends inside a frame, or in zeros instead of a
//! frame's end, power was lost before that sync: nothing had been done on its strength. Such a *torn* tail is put
//! aside as `journal.torn-N` and cut off before the next append. Anything else that is not a whole frame is
//! *damage*: it is left as it is, later frames are still found, and the journal is not live from then on. So is a
//! head that is not as above: it comes into being whole, synced beside its place and renamed into it.
//!
//! The journal is made by `MakeJournal`, which comes before the first `Run`; `Hello` and the question for receipts
//! leave no trace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use tallybook_events::codec;
use tallybook_events::ids::{JournalId, LogId, OperationId};
use tallybook_events::step::{Phase, Receipt};

use crate::durable;
use crate::layout::Layout;
use crate::lock;
use crate::protocol::{Begun, ReceiptReport};

/// The first bytes of a journal.
pub const HEAD_MAGIC: [u8; 4] = *b"TBJ1";
/// Magic, log, journal, check.
pub const HEAD_LEN: usize = 64;
/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"TBA1";
/// Magic, length, check.
pub const PREFIX_LEN: usize = 12;
/// The body's hash.
pub const TRAILER_LEN: usize = 32;
/// The most bytes a body may have.
pub const BODY_LEN_MAX: usize = 8 * 1024 * 1024;

/// A writer holds the file's lock for one write and one sync.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Reserved behind the end before a step starts, so that a full disk is noticed then and not after the effect.
const RESERVED_LEN: u64 = 1024 * 1024;

/// A journal that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory, or the file aside, could not be made durable.
    #[error("can't prepare the receipts journal")]
    Durable(#[from] durable::Error),
    /// Its file could not be used.
    #[error("can't {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A receipt has no encoding.
    #[error("a receipt can't be encoded")]
    Codec(#[from] codec::Error),
    /// A receipt is too long.
    #[error("a receipt of {0} bytes is longer than {BODY_LEN_MAX}")]
    TooLong(usize),
}

/// What is behind the last frame that follows all others without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// Nothing.
    Clean,
    /// A frame whose write was cut.
    Torn,
    /// Bytes that are no frame, and maybe frames behind them.
    Damaged,
}

struct Scan {
    /// Whose journal it is, when it was read from the beginning and the head is one.
    head: Option<JournalId>,
    /// Where the frames that are whole and without a gap end.
    end: u64,
    tail: Tail,
}

/// Where the journal of a log is.
pub fn path(layout: &Layout, log: LogId) -> PathBuf {
    layout.receipts(log).join("journal")
}

/// An open journal, to be appended to.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    log: LogId,
    id: Option<JournalId>,
    /// Up to here the file was found whole, or written, by this process.
    seen_len: u64,
    live: bool,
}

impl Journal {
    /// Opens the journal of a log, or makes it where there is none; every receipt in it is shown to `visit`, oldest first.
    ///
    /// # Errors
    /// When it can't be made, read or repaired.
    pub fn open(
        layout: &Layout,
        log: LogId,
        visit: &mut dyn FnMut(Receipt),
    ) -> Result<Self, Error> {
        let path = path(layout, log);
        let dir = layout.receipts(log);
        durable::create_dirs(&dir)?;
        let file = loop {
            match OpenOptions::new().read(true).append(true).open(&path) {
                Ok(file) => break file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path, log)?,
                Err(error) => return Err(at("open", &path)(error)),
            }
        };
        // Another process may have renamed it into place a moment ago, and be about to sync that.
        durable::sync_dir(&dir)?;
        let mut journal = Journal {
            file,
            path,
            log,
            id: None,
            seen_len: 0,
            live: true,
        };
        journal.locked(|journal| journal.catch_up(visit))?;
        Ok(journal)
    }

    /// Which journal it is, where it is whole.
    pub fn live(&self) -> Option<JournalId> {
        self.id.filter(|_| self.live)
    }

    /// Makes sure that the next receipts will find room on the disk, where the file system can do that.
    ///
    /// # Errors
    /// When there is no room.
    pub fn reserve(&mut self) -> Result<(), Error> {
        let how = FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file.as_fd(), how, self.seen_len, RESERVED_LEN) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(at("reserve room in", &self.path)(error.into())),
        }
    }

    /// Appends a receipt. Once this returned, the receipt is on the disk.
    ///
    /// # Errors
    /// When it can't be written or synced. It is then not in the journal.
    pub fn append(&mut self, receipt: &Receipt) -> Result<(), Error> {
        let frame = encode(receipt)?;
        self.locked(|journal| {
            let path = journal.path.clone();
            let before = journal.file.metadata().map_err(at("look at", &path))?.len();
            if before != journal.seen_len {
                // Another agent wrote, or was cut while it did: a torn frame must not end up between whole ones.
                journal.catch_up(&mut |_| {})?;
            }
            let before = journal.seen_len;
            let written = journal
                .file
                .write_all(&frame)
                .and_then(|()| journal.file.sync_all());
            if let Err(error) = written {
                // Best effort: what can't be cut off here is cut off as a torn tail later.
                let _ = journal.file.set_len(before);
                return Err(at("append to", &path)(error));
            }
            journal.seen_len = before + frame.len() as u64;
            Ok(())
        })
    }

    /// Reads what is behind `seen_len`; puts a torn tail aside and cuts it off. The file must be locked.
    fn catch_up(&mut self, visit: &mut dyn FnMut(Receipt)) -> Result<(), Error> {
        let scan = scan(&self.file, &self.path, self.log, self.seen_len, visit)?;
        self.id = self.id.or(scan.head);
        self.seen_len = scan.end;
        match scan.tail {
            Tail::Clean => Ok(()),
            Tail::Torn => self.cut_off(scan.end),
            Tail::Damaged => {
                self.live = false;
                let len = self.file.metadata().map_err(at("look at", &self.path))?;
                self.seen_len = len.len();
                Ok(())
            }
        }
    }

    fn cut_off(&mut self, end: u64) -> Result<(), Error> {
        let mut torn = Vec::new();
        let mut reader = &self.file;
        reader
            .seek(SeekFrom::Start(end))
            .and_then(|_| reader.read_to_end(&mut torn))
            .map_err(at("read", &self.path))?;
        let mut number = 1;
        let aside = loop {
            let aside = self.path.with_extension(format!("torn-{number}"));
            if !aside.exists() {
                break aside;
            }
            number += 1;
        };
        durable::write(&aside, 0o600, &torn)?;
        self.file
            .set_len(end)
            .and_then(|()| self.file.sync_all())
            .map_err(at("cut the torn tail off", &self.path))
    }

    fn locked<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        lock::file(&self.file, true, LOCK_WAIT).map_err(at("lock", &self.path))?;
        let result = act(self);
        lock::release(&self.file);
        result
    }
}

/// What the journal of a log knows of an operation. Changes nothing, and makes no journal where there is none.
///
/// # Errors
/// When it is there and can't be read.
pub fn report(layout: &Layout, log: LogId, operation: OperationId) -> Result<ReceiptReport, Error> {
    let path = path(layout, log);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(ReceiptReport {
                journal: None,
                receipts: Vec::new(),
            });
        }
        Err(error) => return Err(at("open", &path)(error)),
    };
    lock::file(&file, false, LOCK_WAIT).map_err(at("lock", &path))?;
    let mut newest = std::collections::BTreeMap::new();
    let scan = scan(&file, &path, log, 0, &mut |receipt| {
        if receipt.key.log == log && receipt.key.operation == operation {
            newest.insert(receipt.key, receipt);
        }
    })?;
    Ok(ReceiptReport {
        journal: scan.head.filter(|_| scan.tail != Tail::Damaged),
        receipts: newest.into_values().collect(),
    })
}

/// The step of an operation that was begun last and has not ended.
///
/// # Errors
/// When the journal is there and can't be read.
pub fn begun(layout: &Layout, log: LogId, operation: OperationId) -> Result<Option<Begun>, Error> {
    let report = report(layout, log, operation)?;
    let open = |receipt: &Receipt| receipt.phase == Phase::Started;
    let open = report.receipts.into_iter().filter(open);
    Ok(open
        .max_by_key(|receipt| receipt.time_unix_us)
        .map(|receipt| Begun {
            key: receipt.key,
            since_unix_us: receipt.time_unix_us,
        }))
}

/// Which journal there is, by its head alone; whether it is whole is told by [`report`].
pub fn identity(layout: &Layout, log: LogId) -> Option<JournalId> {
    let mut head = [0; HEAD_LEN];
    let read = File::open(path(layout, log)).and_then(|mut file| file.read_exact(&mut head));
    read.ok().and_then(|()| decode_head(&head, log))
}

/// Makes an empty journal, unless another process was faster.
fn make(path: &Path, log: LogId) -> Result<(), Error> {
    let mut random = [0; 16];
    let source = Path::new("/dev/urandom");
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(at("read", source))?;
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let id = JournalId::from_bytes(random);
    let beside = path.with_extension(format!("new-{id}"));
    durable::write(&beside, 0o600, &encode_head(log, id))?;
    // Crash boundary: a journal that is not in its place is none.
    match durable::rename_new(&beside, path) {
        Ok(()) => Ok(()),
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
            durable::remove(&beside)?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The bytes of a head.
pub fn encode_head(log: LogId, id: JournalId) -> [u8; HEAD_LEN] {
    let mut bytes = [0; HEAD_LEN];
    bytes[..4].copy_from_slice(&HEAD_MAGIC);
    bytes[4..20].copy_from_slice(log.as_bytes());
    bytes[20..36].copy_from_slice(id.as_bytes());
    let check = blake3::hash(&bytes[..36]);
    bytes[36..].copy_from_slice(&check.as_bytes()[..HEAD_LEN - 36]);
    bytes
}

/// The journal's id, where these bytes are the head of a journal of this log.
fn decode_head(bytes: &[u8; HEAD_LEN], log: LogId) -> Option<JournalId> {
    let id = JournalId::from_bytes(*bytes[20..].first_chunk()?);
    (encode_head(log, id) == *bytes).then_some(id)
}

/// The bytes of one frame.
///
/// # Errors
/// When the receipt has no encoding, or is too long.
pub fn encode(receipt: &Receipt) -> Result<Vec<u8>, Error> {
    let body = codec::encode(receipt)?;
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > BODY_LEN_MAX {
        return Err(Error::TooLong(body.len()));
    }
    let mut frame = Vec::with_capacity(PREFIX_LEN + body.len() + TRAILER_LEN);
    frame.extend_from_slice(&prefix(len));
    frame.extend_from_slice(&body);
    frame.extend_from_slice(blake3::hash(&body).as_bytes());
    Ok(frame)
}

fn prefix(len: u32) -> [u8; PREFIX_LEN] {
    let mut bytes = [0; PREFIX_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    let check = blake3::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&check.as_bytes()[..4]);
    bytes
}

/// The length of the body and the trailer, where these bytes are a frame's first.
fn rest_len(head: &[u8]) -> Option<usize> {
    let head: &[u8; PREFIX_LEN] = head.first_chunk()?;
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    (prefix(len) == *head && len as usize <= BODY_LEN_MAX).then_some(len as usize + TRAILER_LEN)
}

/// The body, where these bytes are a body and its hash.
fn body(rest: &[u8]) -> Option<&[u8]> {
    let (body, trailer) = rest.split_at_checked(rest.len().checked_sub(TRAILER_LEN)?)?;
    (blake3::hash(body).as_bytes() == trailer).then_some(body)
}

fn scan(
    file: &File,
    path: &Path,
    log: LogId,
    from: u64,
    visit: &mut dyn FnMut(Receipt),
) -> Result<Scan, Error> {
    let len = file.metadata().map_err(at("look at", path))?.len();
    let mut head = None;
    let mut end = from;
    if from == 0 {
        let mut bytes = [0; HEAD_LEN];
        if len >= HEAD_LEN as u64 {
            file.read_exact_at(&mut bytes, 0)
                .map_err(at("read", path))?;
            head = decode_head(&bytes, log);
        }
        if head.is_none() {
            // Not a torn tail, whatever it looks like: a head is there whole or not at all.
            find(&rest(file, path, 0, len)?, 0, visit);
            return Ok(Scan {
                head,
                end: len,
                tail: Tail::Damaged,
            });
        }
        end = HEAD_LEN as u64;
    }
    let mut reader = file;
    reader
        .seek(SeekFrom::Start(end))
        .map_err(at("seek in", path))?;
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    let mut frame = Vec::new();
    while len - end >= PREFIX_LEN as u64 {
        let mut head = [0; PREFIX_LEN];
        reader.read_exact(&mut head).map_err(at("read", path))?;
        let Some(rest_len) = rest_len(&head) else {
            break;
        };
        if len - end < (PREFIX_LEN + rest_len) as u64 {
            break;
        }
        frame.resize(rest_len, 0);
        reader.read_exact(&mut frame).map_err(at("read", path))?;
        // A whole body that is no receipt was written by something newer: what it says is not known here.
        let Some(receipt) = body(&frame).and_then(|body| codec::decode(body).ok()) else {
            break;
        };
        visit(receipt);
        end += (PREFIX_LEN + rest_len) as u64;
    }
    if end >= len {
        return Ok(Scan {
            head,
            end,
            tail: Tail::Clean,
        });
    }
    let tail = beyond(&rest(file, path, end, len)?, visit);
    Ok(Scan { head, end, tail })
}

fn rest(file: &File, path: &Path, from: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, from)
        .map_err(at("read", path))?;
    Ok(bytes)
}

/// Judges bytes that do not begin with a whole frame, and shows the frames behind the first one.
fn beyond(bytes: &[u8], visit: &mut dyn FnMut(Receipt)) -> Tail {
    let claimed = rest_len(bytes).map(|rest| PREFIX_LEN + rest);
    let cut = match claimed {
        Some(len) => bytes.len() < len,
        None => bytes.len() < PREFIX_LEN,
    };
    // The end of a frame is a hash; that it ends in eight zeros does not happen.
    let unwritten = bytes.len() >= 8 && bytes.ends_with(&[0; 8]);
    // Where the length can be trusted, what is inside the body is no frame, whatever it looks like.
    let found = find(bytes, claimed.unwrap_or(1), visit);
    if found || !(cut || unwritten) {
        Tail::Damaged
    } else {
        Tail::Torn
    }
}

/// Shows the frames that are found from a place on; whether there were any.
fn find(bytes: &[u8], from: usize, visit: &mut dyn FnMut(Receipt)) -> bool {
    let mut at = from;
    let mut found = false;
    while let Some(rest) = bytes.get(at..) {
        let whole = rest_len(rest).and_then(|len| rest.get(PREFIX_LEN..PREFIX_LEN + len));
        match whole.and_then(body).map(codec::decode::<Receipt>) {
            Some(Ok(receipt)) => {
                visit(receipt);
                found = true;
                at += PREFIX_LEN + whole.map_or(0, <[u8]>::len);
            }
            Some(Err(_)) | None => {
                let next = rest.iter().skip(1).position(|byte| *byte == MAGIC[0]);
                let Some(next) = next else { break };
                at += 1 + next;
            }
        }
    }
    found
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        doing,
        path,
        source,
    }
}

/// The torn tails that were put aside, for people and tests.
///
/// # Errors
/// When the directory can't be read.
pub fn torn(layout: &Layout, log: LogId) -> Result<Vec<PathBuf>, Error> {
    let dir = layout.receipts(log);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
        let path = entry.map_err(at("list", &dir))?.path();
        let is_torn = path
            .extension()
            .is_some_and(|it| it.as_encoded_bytes().starts_with(b"torn-"));
        if is_torn {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
