//! Files and directories that are there after a power loss: the order of write, fsync, rename and fsync.
//!
//! Nothing here returns before what it did is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

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

/// Makes what a directory lists durable.
///
/// # Errors
/// When it can't be opened or synced.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::at("sync the directory", path))
}

/// Makes a directory and all above it that are missing, mode 0700, and syncs the parent of each one made.
///
/// # Errors
/// When one can't be made or synced.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(Error::at("create the directory", path)(error)),
    }
    // Also where another process was faster: it may not have come to its sync yet.
    path.parent().map_or(Ok(()), sync_dir)
}

/// Puts a whole file in place of another, or of none, mode 0600. A cut leaves the old one, or the new one.
///
/// # Errors
/// When it can't be written, synced or renamed.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temp = Path::new(&name);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temp)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(Error::at("write", temp))?;
    fs::rename(temp, path).map_err(Error::at("rename into place", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_files_are_made_and_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b/c");
        create_dir(&dir).unwrap();
        create_dir(&dir).unwrap();
        let file = dir.join("file");
        replace(&file, b"old").unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            1,
            "nothing else is left"
        );
        let error = create_dir(&file.join("below")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
