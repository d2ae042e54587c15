//! Room on the disk that is set aside, so that a full one refuses new steps and not the ends of running ones, nor what it
//! takes to undo them.
//!
//! `receipts/LOG/reserve` is a file of [`LEN`] bytes of no meaning that have their place on the disk. It is made with the
//! journal, given up part by part where a write finds no room, and made whole before a step begins: while there is no room
//! for that, none begins. Lost, or cut by a crash, it is made anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// How long the file is while it is whole: two receipts of the greatest length.
pub const LEN: u64 = 16 * 1024 * 1024;
/// How much is given up at once: others write to the disk, too, and take what is free.
const PART_LEN: u64 = 1024 * 1024;

/// The reserve beside a journal.
pub(super) fn path(journal: &Path) -> PathBuf {
    journal.with_file_name("reserve")
}

/// Makes the reserve whole, unless it is.
pub(super) fn make(journal: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path(journal))?;
    let len = file.metadata()?.len();
    if len >= LEN {
        return Ok(());
    }
    let made = match rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, LEN) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&file),
        made => made.map_err(io::Error::from),
    };
    if made.is_err() {
        // What is free is not to be taken in vain.
        file.set_len(len)?;
    }
    made.and_then(|()| file.sync_all())?;
    let directory = journal.parent().unwrap_or(journal);
    File::open(directory).and_then(|directory| directory.sync_all())
}

/// Where the file system can't set room aside, bytes that were written have theirs.
fn fill(mut file: &File) -> io::Result<()> {
    let part = vec![b'-'; PART_LEN as usize];
    for _ in 0..LEN / PART_LEN {
        file.write_all(&part)?;
    }
    Ok(())
}

/// Gives a part of the reserve up; whether there was any.
pub(super) fn give_up(journal: &Path) -> bool {
    let file = OpenOptions::new().write(true).open(path(journal));
    let given = file.and_then(|file| {
        let len = file.metadata()?.len();
        file.set_len(len.saturating_sub(PART_LEN))?;
        // A file system may count the room as free only once it is durable that it is.
        file.sync_all()?;
        Ok(len > 0)
    });
    given.unwrap_or(false)
}
