//! Room that is set aside for what must be recorded although the disk is full: how steps of running operations ended, and
//! taking them back.
//!
//! It is a file of real blocks. It is given up when such an append finds no room; until it is whole again, nothing new
//! begins.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

/// The file's name in a store.
pub(super) const RESERVE: &str = "reserve";
/// How long it is, on a file system that is not small.
const LEN: u64 = 16 * 1024 * 1024;
/// No more than one part in so many of a file system is set aside.
const SHARE: u64 = 64;

/// How long it is left alone while a disk is full.
const PAUSE: Duration = Duration::from_secs(1);

/// The room that is set aside.
pub(super) struct Reserve {
    path: PathBuf,
    is_whole: bool,
    /// When it was given up, or could not be made whole since.
    lacked: Option<Instant>,
}

impl Reserve {
    /// Of a store. Nothing is set aside yet.
    pub(super) fn of(store: &Path) -> Self {
        Reserve {
            path: store.join(RESERVE),
            is_whole: false,
            lacked: None,
        }
    }

    /// Tries to make it whole again, where it was given up and some time has passed. Whether it is.
    pub(super) fn try_again(&mut self) -> bool {
        if self.lacked.is_none_or(|since| since.elapsed() < PAUSE) {
            return false;
        }
        self.lacked = Some(Instant::now());
        self.keep().is_ok()
    }

    /// Makes sure that it is whole; whether it had to be made so.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn keep(&mut self) -> io::Result<bool> {
        if self.is_whole {
            return Ok(false);
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.path)?;
        let len = len_on(&file)?;
        if file.metadata()?.len() != len {
            file.set_len(0)?;
            let kept = fallocate(&file, FallocateFlags::empty(), 0, len);
            match kept {
                Ok(()) => {}
                // A file system that can't set room aside: then there is none, and no promise.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    file.set_len(len)?
                }
                Err(error) => {
                    file.set_len(0)?;
                    return Err(error.into());
                }
            }
            file.sync_all()?;
        }
        self.is_whole = true;
        self.lacked = None;
        Ok(true)
    }

    /// Gives it up. Whether there was anything to give.
    pub(super) fn give_up(&mut self) -> bool {
        self.is_whole = false;
        self.lacked = Some(Instant::now());
        let freed = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|file| {
                let had = file.metadata()?.len();
                file.set_len(0)?;
                file.sync_all()?;
                Ok(had > 0)
            });
        freed.unwrap_or(false)
    }
}

fn len_on(file: &File) -> io::Result<u64> {
    let found = fstatvfs(file)?;
    let all = found.f_blocks.saturating_mul(found.f_frsize);
    Ok(LEN.min(all / SHARE).max(4096))
}
