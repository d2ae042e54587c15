//! Writing the journal: whole batches, one fdatasync each, and the directory's when a segment is born.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

use tallybook_events::ids::{Epoch, Hash, LogId, Seq};
use tallybook_events::record::Record;
use tallybook_events::segment::{self, SegmentHead};

use super::{Error, Limits, Link, Position, Reader, Tail, io_error, own_segments, segment_path};

/// A record that was never acknowledged was cut off the end of the journal, and kept aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Where the bytes are now.
    pub kept: PathBuf,
    /// How many.
    pub bytes: u64,
}

/// The journal, open for appending. There is one a store: whoever has the store's lock.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    segment: Seq,
    /// Where the next record goes.
    len: u64,
    /// How long the file is: behind the last record is room, zeros that the next ones are written over. A sync that
    /// changes no length and finds its blocks in their place costs a third less.
    file_len: u64,
    link: Link,
    limits: Limits,
    stopped: bool,
}

/// How much room is made at once.
const ROOM_LEN: u64 = 1024 * 1024;

impl Journal {
    /// Makes a journal with no record yet.
    ///
    /// # Errors
    /// When the directory or the first segment can't be made durable.
    pub fn create(directory: &Path, log: LogId, limits: Limits) -> Result<Self, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io_error("making", directory))?;
        if let Some(parent) = directory.parent() {
            sync_directory(parent)?;
        }
        let link = Link::end(log, Epoch(1), Seq::NONE, Hash::ZERO);
        let (file, len) = new_segment(directory, link)?;
        Ok(Journal {
            directory: directory.to_owned(),
            file,
            segment: Seq(1),
            len,
            file_len: len,
            link,
            limits,
            stopped: false,
        })
    }

    /// Opens behind a reader that has read to the end; cuts off what was never acknowledged, and makes durable what
    /// was read: whoever wrote it may have died before its sync.
    ///
    /// # Errors
    /// When the last segment can't be opened, or its tail can't be cut off.
    pub fn open(
        directory: &Path,
        reader: &Reader,
        limits: Limits,
    ) -> Result<(Self, Option<Torn>), Error> {
        let position = reader.position();
        let Some(link) = reader.link() else {
            return Err(Error::Missing(directory.to_owned()));
        };
        let path = segment_path(directory, position.segment);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        let torn = match reader.tail() {
            Tail::Whole => None,
            Tail::Torn { bytes: 0, .. } => None,
            Tail::Torn { at, bytes } => Some(cut_tail(&path, &mut file, at, bytes)?),
        };
        let len = position.offset;
        let file_len = file.metadata().map_err(io_error("opening", &path))?.len();
        let mut behind = Vec::new();
        file.seek(SeekFrom::Start(len))
            .and_then(|_| file.read_to_end(&mut behind))
            .map_err(io_error("reading", &path))?;
        if file_len < len || behind.iter().any(|byte| *byte != 0) {
            // The reader was told of a place that this file does not reach, or that was written to since.
            let source = io::Error::other(format!(
                "it has {file_len} bytes, and something else than room behind byte {len}"
            ));
            return Err(io_error("opening", &path)(source));
        }
        file.sync_all().map_err(io_error("syncing", &path))?;
        sync_directory(directory)?;
        let journal = Journal {
            directory: directory.to_owned(),
            file,
            segment: position.segment,
            len,
            file_len,
            link,
            limits,
            stopped: false,
        };
        Ok((journal, torn))
    }

    /// The last record, and with it the log and its epoch.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Where the next record will begin.
    pub fn position(&self) -> Position {
        Position {
            segment: self.segment,
            offset: self.len,
        }
    }

    /// Whether nothing can be appended any more: what is on the disk is not known to be whole.
    pub const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Makes sure that the file is where and as long as this journal left it: two that write would each destroy what
    /// the other acknowledged.
    fn check_alone(&mut self) -> Result<(), Error> {
        let path = segment_path(&self.directory, self.segment);
        let found = identify(&self.file, "", AtFlags::EMPTY_PATH)
            .map_err(|error| io_error("writing", &path)(error.into()))?;
        let is_named = identify(rustix::fs::CWD, &path, AtFlags::empty())
            .is_ok_and(|named| named.is_same(&found));
        if found.len == self.file_len && is_named {
            return Ok(());
        }
        self.stopped = true;
        let what = match is_named {
            true => format!(
                "it has {} bytes, not {}: something else wrote to it",
                found.len, self.file_len
            ),
            false => "it was moved, removed or replaced".to_owned(),
        };
        Err(io_error("writing", &path)(io::Error::other(what)))
    }

    /// Appends records and returns once they are durable, with where each begins.
    ///
    /// # Errors
    /// When they could not be written: then none of them is in the journal. When it is not known whether they
    /// are durable, the journal stops and every later append fails.
    pub fn append<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Vec<Position>, Error> {
        if self.stopped {
            return Err(Error::Stopped);
        }
        self.check_alone()?;
        if self.len >= self.limits.segment_len && self.segment != self.link.seq.next() {
            self.next_segment()?;
        }
        let mut bytes = Vec::new();
        let mut positions = Vec::new();
        let mut last: Option<&Record> = None;
        let write = self.link.seq.next();
        for record in records {
            debug_assert_eq!(
                record.header.write, write,
                "what one sync makes durable says so"
            );
            positions.push(Position {
                segment: self.segment,
                offset: self.len + bytes.len() as u64,
            });
            record.write_frame(&mut bytes);
            last = Some(record);
        }
        let path = segment_path(&self.directory, self.segment);
        let end = self.len + bytes.len() as u64;
        self.make_room(end);
        if let Err(source) = self.file.write_all_at(&bytes, self.len) {
            // Nothing of the batch was acknowledged: take back what part of it was written, for good. What is refused
            // here must not be there after a loss of power.
            let back = self
                .file
                .set_len(self.len)
                .and_then(|()| self.file.sync_data());
            self.file_len = self.len;
            return Err(match back {
                Ok(()) => io_error("writing", &path)(source),
                Err(_) => {
                    self.stopped = true;
                    Error::Unsynced { path, source }
                }
            });
        }
        self.file_len = self.file_len.max(end);
        // Crash boundary: until this returns, the batch may or may not be there, and nobody was told.
        if let Err(source) = self.file.sync_data() {
            // After a failed fsync the kernel may drop the dirty pages and report success next time.
            self.stopped = true;
            return Err(Error::Unsynced { path, source });
        }
        self.len = end;
        if let Some(last) = last {
            self.link = Link::of(last);
        }
        Ok(positions)
    }

    /// Ends the segment at hand where its last record does, and begins the next one.
    fn next_segment(&mut self) -> Result<(), Error> {
        let path = segment_path(&self.directory, self.segment);
        if self.file_len > self.len {
            // Durable before the next one is there: only the last segment may have room. One that was filled by this
            // journal has none left.
            self.file
                .set_len(self.len)
                .and_then(|()| self.file.sync_data())
                .map_err(|source| {
                    self.stopped = true;
                    io_error("ending", &path)(source)
                })?;
            self.file_len = self.len;
        }
        let next = segment_path(&self.directory, self.link.seq.next());
        let (file, len) = new_segment(&self.directory, self.link).inspect_err(|_| {
            // It has its name, but whether the directory's entry is durable is not known.
            self.stopped = next.exists();
        })?;
        self.file = file;
        self.len = len;
        self.file_len = len;
        self.segment = self.link.seq.next();
        Ok(())
    }

    /// Makes room up to an end and beyond, where there is space for it. What is written into it is made durable
    /// together with what is written over it.
    fn make_room(&mut self, end: u64) {
        if end <= self.file_len {
            return;
        }
        let wanted = end + ROOM_LEN.min(self.limits.segment_len.saturating_sub(end));
        let zeros = vec![0; usize::try_from(wanted - self.file_len).unwrap_or_default()];
        match self.file.write_all_at(&zeros, self.file_len) {
            Ok(()) => self.file_len = wanted,
            // A disk that is nearly full: without room it goes on as long as it goes.
            Err(_) => drop(self.file.set_len(self.file_len)),
        }
    }

    /// Begins a new epoch behind the last record.
    pub fn begin_epoch(&mut self, epoch: Epoch) {
        debug_assert!(epoch > self.link.epoch, "an epoch never falls");
        self.link.epoch = epoch;
    }
}

impl Drop for Journal {
    /// A journal at rest ends with its last record. Nothing depends on it.
    fn drop(&mut self) {
        if !self.stopped && self.file_len > self.len && self.check_alone().is_ok() {
            let _shortened = self.file.set_len(self.len);
        }
    }
}

/// Which file it is, and how long.
struct Identity {
    device: (u32, u32),
    inode: u64,
    len: u64,
}

impl Identity {
    fn is_same(&self, other: &Identity) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Asks which file it is. Not for its times, as stat(2) does: once they were asked for, Linux (since 6.13) gives the next write
/// a time of its own, and the sync behind it has to write the inode as well, which takes half as long again.
fn identify(
    at: impl AsFd,
    path: impl rustix::path::Arg,
    flags: AtFlags,
) -> rustix::io::Result<Identity> {
    let found = statx(at, path, flags, StatxFlags::INO | StatxFlags::SIZE)?;
    Ok(Identity {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        len: found.stx_size,
    })
}

fn new_segment(directory: &Path, link: Link) -> Result<(File, u64), Error> {
    let head = SegmentHead {
        log: link.log,
        epoch: link.epoch,
        first: link.seq.next(),
        previous: link.hash,
    };
    let path = segment_path(directory, head.first);
    // Under its name only once it is whole: a full disk or a crash leaves nothing that the next try stumbles over.
    let new = path.with_extension("new");
    let write = || -> io::Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&head.encode())?;
        file.sync_all()?;
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        std::fs::rename(&new, &path)?;
        Ok(file)
    };
    let file = write().map_err(io_error("making", &path))?;
    sync_directory(directory)?;
    Ok((file, segment::LEN as u64))
}

/// Makes sure that what is read of the journal's end from here on is on the disk. To be called before it is read.
///
/// After a failed sync the kernel counts pages as written that are in memory only: they can be read, and syncing or
/// writing them again succeeds without their content ever reaching the disk (ext4 keeps such extents as unwritten). So they
/// are dropped: then a read gives what the disk has.
///
/// # Errors
/// When the last segment can't be opened or synced.
pub fn settle(directory: &Path) -> Result<(), Error> {
    let Some(last) = own_segments(directory)?.last().copied() else {
        return Ok(());
    };
    let path = segment_path(directory, last);
    settle_file(&path).map_err(io_error("syncing", &path))
}

/// Makes sure that what is read of a file from here on is on the disk.
pub(super) fn settle_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // An error of a write that nobody waited for is told once. What it concerns is lost, and not read behind this.
    file.sync_all().or_else(|_| file.sync_all())?;
    Ok(rustix::fs::fadvise(
        &file,
        0,
        None,
        rustix::fs::Advice::DontNeed,
    )?)
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("syncing", directory))
}

fn cut_tail(path: &Path, file: &mut File, at: Position, bytes: u64) -> Result<Torn, Error> {
    let kept_as = |number: u32| {
        let mut kept = path.as_os_str().to_owned();
        kept.push(format!(".torn-{}-{number}", at.offset));
        PathBuf::from(kept)
    };
    // What an earlier crash left at the same place stays.
    let kept = (1..=u32::MAX)
        .map(kept_as)
        .find(|kept| !kept.exists())
        .unwrap_or_else(|| kept_as(0));
    let cut = |file: &mut File| -> io::Result<()> {
        file.seek(SeekFrom::Start(at.offset))?;
        let mut aside = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&kept)?;
        io::copy(&mut file.take(bytes), &mut aside)?;
        aside.sync_all()
    };
    let failed = || io_error("cutting the torn tail of", path);
    cut(file).map_err(failed())?;
    // Crash boundary: the bytes are kept before they are cut.
    if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    file.set_len(at.offset)
        .and_then(|()| file.sync_all())
        .map_err(failed())?;
    Ok(Torn { kept, bytes })
}
