//! The sockets for those who may read and for those who may act: who that is, is the file's group and mode.
//!
//! A socket is closed until it is whose it shall be, and replaces at once what a dead daemon left.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such group.
    #[error("there is no group {0:?} in /etc/group")]
    Group(String),
    /// The directory or the file can't be made.
    #[error("can't make the socket {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A group that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(u32);

impl Group {
    /// By its name in `/etc/group`, or its number.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self, Error> {
        if let Ok(gid) = name.parse() {
            return Ok(Group(gid));
        }
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let found = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let is_it = fields.next() == Some(name);
            fields.nth(1).filter(|_| is_it)?.parse().ok()
        });
        found
            .map(Group)
            .ok_or_else(|| Error::Group(name.to_owned()))
    }
}

/// Listens at a socket of this name, for its owner and a group.
///
/// # Errors
/// When it can't be made, or given to that group.
pub fn listen(directory: &Path, name: &str, group: &Group) -> Result<UnixListener, Error> {
    let path = directory.join(name);
    make(directory, name, group).map_err(|source| Error::File { path, source })
}

fn make(directory: &Path, name: &str, group: &Group) -> io::Result<UnixListener> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    check(directory)?;
    // Nobody else looks in here: until it is moved, whoever may use it is not decided.
    let closed = directory.join(".closed");
    match DirBuilder::new().mode(0o700).create(&closed) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700))?;
    let made = closed.join(name);
    match std::fs::remove_file(&made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // A path that is short enough for the kernel, however deep the directory is.
    let opened = std::fs::File::open(&closed)?;
    let short = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
    let listener = UnixListener::bind(short)?;
    std::os::unix::fs::chown(&made, None, Some(group.0))?;
    std::fs::set_permissions(&made, Permissions::from_mode(0o660))?;
    std::fs::rename(&made, directory.join(name))?;
    Ok(listener)
}

/// Refuses a directory in which others could put something in our place.
fn check(directory: &Path) -> io::Result<()> {
    let about = directory.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    match about.uid() == own || about.uid() == 0 {
        true if about.mode() & 0o022 == 0 => Ok(()),
        true | false => Err(io::Error::other(format!(
            "others than its owner may change {}",
            directory.display()
        ))),
    }
}

/// Takes a socket away that this process listens at.
pub fn remove(directory: &Path, name: &str) {
    let _gone = std::fs::remove_file(directory.join(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_groups_and_replaces_a_dead_one() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("sockets");
        let group = Group(rustix::process::getegid().as_raw());
        let first = listen(&directory, "read", &group).unwrap();
        drop(first);
        let _second = listen(&directory, "read", &group).unwrap();
        let made = directory.join("read").metadata().unwrap();
        assert_eq!(made.mode() & 0o777, 0o660);
        assert_eq!(made.gid(), group.0);
        tokio::net::UnixStream::connect(directory.join("read"))
            .await
            .unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
        let refused = listen(&directory, "act", &group).unwrap_err();
        let Error::File { source, .. } = refused else {
            panic!("{refused}");
        };
        assert!(source.to_string().contains("may change"), "{source}");
        assert_eq!(Group::named("17").unwrap(), Group(17));
        assert!(matches!(Group::named("no such"), Err(Error::Group(_))));
    }
}
