//! Files, directories and renames that are there after a power loss: the order of write, fsync, rename and fsync.
//!
//! Nothing here returns before what it did is on the disk, and nothing is replaced that was not to be replaced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Advice, CWD, RenameFlags, renameat_with};
use tallybook_events::step::StepFailure;

use crate::step::io_failure;

/// Something that could not be made durable.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}")]
pub struct Error {
    /// What was being done.
    pub doing: &'static str,
    /// To which path.
    pub path: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// For `map_err`.
    pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Error {
            doing,
            path,
            source,
        }
    }
}

impl From<Error> for StepFailure {
    fn from(error: Error) -> Self {
        io_failure(error.doing, Path::new(&error.path), &error.source)
    }
}

/// Makes what a directory lists durable.
///
/// # Errors
/// When it can't be opened or synced.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::at("syncing the directory", path))
}

/// Makes sure that what is read of a file from here on is on the disk.
///
/// Whoever wrote it may have died before its sync; and after a failed one the kernel counts pages as written that are in
/// memory only: they can be read, and syncing them again succeeds without their content ever reaching the disk. So they are
/// dropped: then a read gives what the disk has.
///
/// # Errors
/// When it can't be synced.
pub(crate) fn settle(file: &File) -> io::Result<()> {
    // An error of a write that nobody waited for is told once. What it concerns is lost, and not read below.
    file.sync_all().or_else(|_| file.sync_all())?;
    drop_memory(file)
}

/// Drops what memory has of a file and the disk has, too, or is not known to have.
pub(crate) fn drop_memory(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

/// What a disk writes at once.
const SECTOR_LEN: u64 = 512;

/// Whether some of these bytes, which begin at a place of a file, may never have been written: a loss of power may leave a
/// file its new length without some of what was to be in it, in any order. Then a sector is all zeros, as far as these
/// bytes are in it, or they end in more of them than a hash does.
pub(crate) fn has_unwritten(bytes: &[u8], at: u64) -> bool {
    let first = (SECTOR_LEN - at % SECTOR_LEN) as usize;
    let (first, rest) = bytes.split_at(first.min(bytes.len()));
    let mut sectors = std::iter::once(first).chain(rest.chunks(SECTOR_LEN as usize));
    let is_zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let end = bytes.last_chunk::<8>();
    end.is_some_and(|end| is_zeros(end))
        || sectors.any(|sector| !sector.is_empty() && is_zeros(sector))
}

/// Makes all that was written to the file system below `path` durable.
///
/// # Errors
/// When it can't be opened, or something could not be written back.
pub fn sync_file_system(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|dir| rustix::fs::syncfs(&dir).map_err(io::Error::from))
        .map_err(Error::at("syncing the file system of", path))
}

/// Makes a directory and all above it that are missing, and syncs what lists each. Mode 0700: what is in
/// them, guests' trees with their set-uid files above all, is no other account's to enter.
///
/// # Errors
/// When one can't be made or synced.
pub fn create_dirs(path: &Path) -> Result<(), Error> {
    create_within(path, AGAIN_MAX)
}

/// How often a directory is made again whose parent went away meanwhile.
const AGAIN_MAX: u8 = 16;

fn create_within(path: &Path, tries: u8) -> Result<(), Error> {
    if path.is_dir() {
        // Whoever made it may not have come to its sync, or that may have failed. What is above it was synced before it
        // was made.
        return path.parent().map_or(Ok(()), sync_dir);
    }
    if let Some(parent) = path.parent() {
        create_within(parent, tries)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        // Another operation's undo removed the parent meanwhile, which was empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => {
            return create_within(path, tries - 1);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(Error::at("making the directory", path)(error)),
    }
    // Also where another process was faster: it may not have come to its sync yet.
    path.parent().map_or(Ok(()), sync_dir)
}

/// Writes a file whole or not at all: beside it, synced, renamed over it, the directory synced. Only for
/// directories that no guest can write to. It has exactly this mode, whatever the umask of whoever started us.
///
/// # Errors
/// When it can't be written, synced or renamed.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The same on every attempt, so that what a cut one left is written over by the next. Two processes never write the
    // same file at once: they act under one lock.
    let beside = path.with_file_name(format!(".{name}.new"));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(Error::at("writing", &beside))?;
    // Crash here: only the file beside it is there, and nobody reads that.
    fs::rename(&beside, path).map_err(Error::at("renaming into place", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file if it is there, durably; whether it was.
///
/// # Errors
/// When it can't be removed.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::at("removing", path)(error)),
    }
}

/// Renames a directory to a name that nothing has, durably on both sides.
///
/// # Errors
/// When the name is taken, or it can't be renamed.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), Error> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        .map_err(io::Error::from)
        .map_err(Error::at("renaming to", to))?;
    // Crash here: either name may be the one found after a power cut, never both, never half a tree.
    for dir in [from.parent(), to.parent()].into_iter().flatten() {
        sync_dir(dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tallybook_events::step::FailureClass;

    use super::*;

    #[test]
    fn directories_and_files_are_made_and_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b/c");
        create_dirs(&dir).unwrap();
        create_dirs(&dir).unwrap();
        let mode = fs::metadata(&dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let file = dir.join("file");
        write(&file, 0o600, b"old").unwrap();
        write(
            &dir.join(".file.new"),
            0o600,
            b"left by an attempt that was cut",
        )
        .unwrap();
        write(&file, 0o600, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let count = fs::read_dir(&dir).unwrap().count();
        assert_eq!(count, 1, "nothing else is left");
        let error = create_dirs(&file.join("below")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        // What is left beside it by a cut, with another mode, is as what a umask takes away.
        let beside = dir.join(".file.new");
        fs::write(&beside, b"torn").unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).unwrap();
        write(&file, 0o644, b"new").unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert!(remove(&file).unwrap());
        assert!(!remove(&file).unwrap());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let failure = StepFailure::from(rename_new(&a, &b).unwrap_err());
        assert_eq!(failure.class, FailureClass::Exists);
        fs::remove_dir(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert!(b.is_dir() && !a.exists());
    }
}
