//! The receipts journal: the host's own durable record of every start of every step, one file a log.
//!
//! Appended to; only what it has of operations that are over is left out of it at times (`forget.rs`). A receipt that says *started* is on the disk before the step's first effect; one
//! that says how it ended is on the disk before anybody is told. A receipt that says *given up* is there before a
//! controller is told that the step has not begun: from then on it is not begun, whatever is still under way. So a live
//! journal with that one proves that the step never began, provided that it is the journal that was there when the step was
//! to start: each has an identity of its own, which the controller records with the start. A journal that is missing or
//! damaged proves nothing, and says so.
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
//! A frame is written by one write, then synced. Where the file ends inside a frame, or has a sector of zeros in what
//! is not a whole frame, power was lost before that sync: nothing had been done on its strength. Such a *torn* tail is
//! put aside as `journal.torn-N` and cut off before the next append. Anything else that is not a whole frame, or has one
//! behind it, is *damage*: it is left as it is, later frames are still found, and the journal is not live from then on.
//! So is a head that is not as above: it comes into being whole, synced beside its place and renamed into it.
//!
//! After a sync that failed, nobody knows what of the file the disk has, and what is read may be in memory only. So this
//! process appends nothing more; and whoever opens the journal, or asks what is in it, goes by the disk.
//!
//! `receipts/LOG/reserve` holds room for a full disk, see `reserve.rs`.
//!
//! The journal is made by `MakeJournal`, which comes before the first `Run`, or for a start that is given up; `Hello` leaves
//! no trace.

mod forget;
mod reserve;
mod scan;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
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

pub use forget::Forgotten;
pub use reserve::LEN as RESERVE_LEN;
pub use scan::{
    BODY_LEN_MAX, HEAD_LEN, HEAD_MAGIC, MAGIC, PREFIX_LEN, TRAILER_LEN, encode, encode_head,
};
use scan::{Tail, decode_head, scan};

/// A writer holds the file's lock for one write and one sync.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Reserved behind the end before a step starts, so that a full disk is noticed then and not after the effect.
const AHEAD_LEN: u64 = 1024 * 1024;

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
    /// A receipt was written, and the sync behind it failed: it may or may not be on the disk.
    #[error("whether the last receipt is in {path} is not known: syncing it failed")]
    Unsynced {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A write or a sync failed before; what is on the disk is not known to be whole.
    #[error(
        "this agent appends nothing more to {0}: what an earlier failure left of it is not known"
    )]
    Stopped(PathBuf),
    /// What is kept for a full disk was used, and there is no room to make it again.
    #[error("can't set {} MiB aside in {path} for what running steps have yet to record", RESERVE_LEN >> 20)]
    Reserve {
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

impl Error {
    /// Whether the disk is full, and nothing else is wrong.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Error::Durable(durable::Error { source, .. })
            | Error::File { source, .. }
            | Error::Reserve { source, .. } => is_full(source),
            Error::Unsynced { .. } | Error::Stopped(_) | Error::Codec(_) | Error::TooLong(_) => {
                false
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
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
    /// Whether nothing can be appended any more.
    stopped: bool,
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
            stopped: false,
        };
        journal.locked(|journal| {
            durable::settle(&journal.file).map_err(at("sync", &journal.path))?;
            journal.catch_up(visit)
        })?;
        Ok(journal)
    }

    /// Which journal it is, where it is whole.
    pub fn live(&self) -> Option<JournalId> {
        self.id.filter(|_| self.live)
    }

    /// Makes sure that the next receipts will find room on the disk, and that there is more set aside for when it is
    /// full. Asked before an effect, so that it is refused rather than left without its end.
    ///
    /// # Errors
    /// When there is no room.
    pub fn reserve(&mut self) -> Result<(), Error> {
        self.locked(|journal| {
            let set_aside = reserve::make(&journal.path);
            set_aside.map_err(|source| Error::Reserve {
                path: reserve::path(&journal.path),
                source,
            })?;
            let how = FallocateFlags::KEEP_SIZE;
            let file = journal.file.as_fd();
            match rustix::fs::fallocate(file, how, journal.seen_len, AHEAD_LEN) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                Err(error) => Err(at("reserve room in", &journal.path)(error.into())),
            }
        })
    }

    /// Appends a receipt. Once this returned, the receipt is on the disk.
    ///
    /// # Errors
    /// When it can't be written: it is then not in the journal. When it is not known whether it is on the disk, this
    /// process appends nothing more.
    pub fn append(&mut self, receipt: &Receipt) -> Result<(), Error> {
        let frame = encode(receipt)?;
        self.locked(|journal| journal.append_frame(&frame))
    }

    /// The same for what must be recorded on a full disk too, the end of a step or the start of an undo: what was set
    /// aside is given up for it, part by part.
    ///
    /// # Errors
    /// As [`Journal::append`]; that the disk is full only once nothing is left that was set aside.
    pub fn append_from_reserve(&mut self, receipt: &Receipt) -> Result<(), Error> {
        let frame = encode(receipt)?;
        self.locked(|journal| {
            loop {
                match journal.append_frame(&frame) {
                    Err(error) if error.is_disk_full() && reserve::give_up(&journal.path) => {}
                    appended => return appended,
                }
            }
        })
    }

    /// Opens what is in its place now.
    fn reopen(&mut self) -> Result<(), Error> {
        let opened = OpenOptions::new().read(true).append(true).open(&self.path);
        self.file = opened.map_err(at("open", &self.path))?;
        self.seen_len = 0;
        Ok(())
    }

    fn append_frame(&mut self, frame: &[u8]) -> Result<(), Error> {
        if self.stopped {
            return Err(Error::Stopped(self.path.clone()));
        }
        let path = self.path.clone();
        let before = self.file.metadata().map_err(at("look at", &path))?.len();
        if before != self.seen_len {
            // Another agent wrote, or was cut while it did: a torn frame must not end up between whole ones.
            self.catch_up(&mut |_| {})?;
        }
        let before = self.seen_len;
        if let Err(source) = self.file.write_all(frame) {
            // What is refused here must not be there after a loss of power.
            let back = self.file.set_len(before);
            return match back.and_then(|()| self.file.sync_data()) {
                Ok(()) => Err(at("append to", &path)(source)),
                Err(_) => {
                    self.stopped = true;
                    Err(Error::Unsynced { path, source })
                }
            };
        }
        // Crash boundary: until this returns, the receipt may or may not be there, and nobody acts on it.
        if let Err(source) = self.file.sync_data() {
            self.stopped = true;
            return Err(Error::Unsynced { path, source });
        }
        self.seen_len = before + frame.len() as u64;
        Ok(())
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
        while let Err(error) = durable::write(&aside, 0o600, &torn) {
            if !(is_full(&error.source) && reserve::give_up(&self.path)) {
                return Err(error.into());
            }
        }
        // Crash boundary: the bytes are kept before they are cut.
        self.file
            .set_len(end)
            .and_then(|()| self.file.sync_all())
            .inspect_err(|_| self.stopped = true)
            .map_err(at("cut the torn tail off", &self.path))
    }

    fn locked<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        loop {
            lock::file(&self.file, true, LOCK_WAIT).map_err(at("lock", &self.path))?;
            // A shorter one may have come into its place since it was opened.
            if is_in_place(&self.file, &self.path)? {
                break;
            }
            lock::release(&self.file);
            self.reopen()?;
        }
        let result = act(self);
        lock::release(&self.file);
        result
    }
}

/// Gives up a part of what was set aside for a full disk, for something that an undo has to write beside the journal; whether
/// anything was left.
pub(crate) fn give_up_reserve(layout: &Layout, log: LogId) -> bool {
    reserve::give_up(&path(layout, log))
}

/// What the journal of a log knows of an operation. Changes nothing, and makes no journal where there is none.
///
/// # Errors
/// When it is there and can't be read.
pub fn report(layout: &Layout, log: LogId, operation: OperationId) -> Result<ReceiptReport, Error> {
    let path = path(layout, log);
    let Some(file) = open_to_read(&path)? else {
        return Ok(ReceiptReport {
            journal: None,
            receipts: Vec::new(),
        });
    };
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

/// The operations that the journal of a log has receipts of. Changes nothing.
///
/// # Errors
/// When it is there and can't be read.
pub fn operations(layout: &Layout, log: LogId) -> Result<BTreeSet<OperationId>, Error> {
    let path = path(layout, log);
    let mut operations = BTreeSet::new();
    if let Some(file) = open_to_read(&path)? {
        scan(&file, &path, log, 0, &mut |receipt| {
            operations.insert(receipt.key.operation);
        })?;
    }
    Ok(operations)
}

/// How many bytes the journal of a log has; 0 where there is none.
pub fn len(layout: &Layout, log: LogId) -> u64 {
    fs::metadata(path(layout, log)).map_or(0, |found| found.len())
}

/// The journal, locked against writers and as the disk has it; `None` where there is none.
fn open_to_read(path: &Path) -> Result<Option<File>, Error> {
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("open", path)(error)),
        };
        lock::file(&file, false, LOCK_WAIT).map_err(at("lock", path))?;
        if is_in_place(&file, path)? {
            durable::settle(&file).map_err(at("sync", path))?;
            return Ok(Some(file));
        }
    }
}

/// Whether an open file is the one that has this name.
fn is_in_place(file: &File, path: &Path) -> Result<bool, Error> {
    let ours = file.metadata().map_err(at("look at", path))?;
    let named = fs::metadata(path).map_err(at("look at", path))?;
    Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino()))
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
