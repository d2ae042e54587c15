//! Keeping a file as it is, before another takes its place.
//!
//! Nothing that was kept before is ever overwritten, and nothing is held for kept that is not there byte for byte.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The first of these names that is free, or that a file is kept under already.
///
/// # Errors
/// When a file can't be read.
pub(super) fn place(path: &Path, names: impl Iterator<Item = PathBuf>) -> io::Result<PathBuf> {
    for name in names {
        if std::fs::symlink_metadata(&name).is_err() || is_same(path, &name)? {
            return Ok(name);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Keeps a file under a name. The caller syncs the directory.
///
/// # Errors
/// When it can't be read or kept, or something else is kept there.
pub(super) fn keep(path: &Path, name: &Path) -> io::Result<()> {
    // It may be a copy that somebody just brought back.
    File::open(path)?.sync_all()?;
    match std::fs::hard_link(path, name) {
        Ok(()) => Ok(()),
        Err(_) if std::fs::symlink_metadata(name).is_ok() => match is_same(path, name)? {
            true => Ok(()),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        },
        // It may be on another disk, or on one without such links.
        Err(_) => copy(path, name),
    }
}

fn is_same(path: &Path, other: &Path) -> io::Result<bool> {
    let (one, two) = (std::fs::metadata(path)?, std::fs::metadata(other)?);
    if (one.dev(), one.ino()) == (two.dev(), two.ino()) {
        return Ok(true);
    }
    Ok(one.len() == two.len() && std::fs::read(path)? == std::fs::read(other)?)
}

/// Under its name only once it is whole.
fn copy(path: &Path, name: &Path) -> io::Result<()> {
    let mut new = name.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    write_whole(&new, &std::fs::read(path)?)?;
    std::fs::rename(&new, name)
}

/// Writes a file and makes its bytes durable.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
