//! Which process has the store: `flock` on the file `lock` and on the journal's directory. Dropped with the process.
//!
//! Two locks, because a file can be removed: whoever then makes another one still finds the directory taken.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::{DAEMON, HEAD, JOURNAL, Open};

const LOCK: &str = "lock";

/// Whether a daemon serves the store, or is about to.
pub(super) fn has_daemon(directory: &Path) -> bool {
    let file = File::open(directory.join(DAEMON));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether the store ever had a daemon.
pub(super) fn knows_daemons(directory: &Path) -> bool {
    directory.join(DAEMON).exists()
}

/// The store, had by this process alone.
pub(super) struct Lock {
    _file: File,
    /// `None` where there is no journal to lock.
    _journal: Option<File>,
}

impl Lock {
    /// Takes it; `None` when another process has it.
    pub(super) fn take(directory: &Path, open: Open) -> io::Result<Option<Self>> {
        let path = directory.join(LOCK);
        let file = loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            match had(&file)? {
                true if is_named(&file, &path)? => break file,
                // Somebody removed it between our open and our lock.
                true => {}
                false => return Ok(None),
            }
        };
        let journal = directory.join(JOURNAL);
        if open == Open::Create {
            make_directory(&journal)?;
        }
        let locked = match File::open(&journal) {
            Ok(opened) if had(&opened)? => Some(opened),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let head = directory.join(HEAD);
        for (path, mode) in [(&path, 0o600), (&head, 0o600), (&journal, 0o700)] {
            make_private(path, mode)?;
        }
        Ok(Some(Lock {
            _file: file,
            _journal: locked,
        }))
    }
}

fn had(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let locked = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes from others what they may do with something of ours: it may have been there before, or been copied here.
pub(super) fn make_private(path: &Path, mode: u32) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_symlink() && found.mode() & 0o077 != 0 => {
            std::fs::set_permissions(path, Permissions::from_mode(mode))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory for its owner only, with those above it that are missing, each durable in the one above it.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    // A relative path begins in the directory that we are in.
    let parent = match directory.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    make_directory(parent)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_for_their_owner_beneath_what_is_there() {
        let above = tempfile::tempdir().unwrap();
        let store = above.path().join("a/b/store");
        make_directory(&store).unwrap();
        for made in [&store, &above.path().join("a/b"), &above.path().join("a")] {
            assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700);
        }
        make_directory(&store).unwrap();
    }
}
