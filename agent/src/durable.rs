//! Files and renames that are still there after a power cut. Never replaces what it was not told to replace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tallybook_events::step::{FailureClass, StepFailure};

use crate::step::{fail, io_failure};

/// Makes the directory's entries durable.
///
/// # Errors
/// When it can't be opened or synced.
pub fn sync_dir(path: &Path) -> Result<(), StepFailure> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| io_failure("syncing", path, &e))
}

/// Makes all that was written to the file system below `path` durable.
///
/// # Errors
/// When it can't be opened, or something could not be written back.
pub fn sync_file_system(path: &Path) -> Result<(), StepFailure> {
    File::open(path)
        .and_then(|dir| rustix::fs::syncfs(&dir).map_err(io::Error::from))
        .map_err(|e| io_failure("syncing the file system of", path, &e))
}

/// Makes the directory and its missing parents, durably.
///
/// # Errors
/// When one can't be made.
pub fn create_dirs(path: &Path) -> Result<(), StepFailure> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dirs(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(io_failure("making directory", path, &e)),
    }
}

/// Writes a file whole or not at all: beside it, synced, renamed over it, the directory synced. Only for
/// directories that no guest can write to.
///
/// # Errors
/// When it can't be written.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), StepFailure> {
    let failed = |e: io::Error| io_failure("writing", path, &e);
    let name = path.file_name().ok_or_else(|| {
        fail(
            FailureClass::Unknown,
            format!("{} has no name", path.display()),
        )
    })?;
    let beside = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_failure("removing", &beside, &e)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    // Crash here: only the file beside it is there, and the next write starts by removing it.
    fs::rename(&beside, path).map_err(failed)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file if it is there, durably; whether it was.
///
/// # Errors
/// When it can't be removed.
pub fn remove(path: &Path) -> Result<bool, StepFailure> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_failure("removing", path, &e)),
    }
}

/// Renames a directory to a name that nothing has, durably on both sides.
///
/// # Errors
/// [`FailureClass::Exists`] when the name is taken; else when it can't be renamed.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), StepFailure> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        .map_err(|e| io_failure("renaming to", to, &io::Error::from(e)))?;
    // Crash here: either name may be the one found after a power cut, never both, never half a tree.
    for dir in [from.parent(), to.parent()].into_iter().flatten() {
        sync_dir(dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_cut_write_does_not_stop_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, 0o600, b"one").unwrap();
        fs::write(dir.path().join(".f.new"), b"torn").unwrap();
        write(&path, 0o600, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().class, FailureClass::Exists);
        fs::remove_dir(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert!(b.is_dir() && !a.exists());
    }
}
