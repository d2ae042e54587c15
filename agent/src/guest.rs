//! A guest's tree seen from outside: a plain directory, or the upper layer of an overlay over a lower one.
//!
//! Everything is beneath directory descriptors; no symlink of the guest is followed, nothing of it is executed,
//! and the lower layer is never written to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tallybook_events::step::StepFailure;

use crate::tree::{Error, Kind, Meta, Root};

/// Where the tree lies in a container's or a staging directory, when it is a plain one.
pub const ROOTFS: &str = "rootfs";
/// Where the upper layer lies, when it is an overlay. LXC puts its work directory beside it.
pub const UPPER: &str = "overlay/delta";
/// The longest file of a guest that is read.
const FILE_LEN_MAX: usize = 4 << 20;

/// A guest's tree.
#[derive(Debug)]
pub struct Guest {
    upper: Root,
    lower: Option<Root>,
    path: PathBuf,
}

/// How a guest's files are marked: in an overlay, a name of the lower layer that was removed is a character
/// device 0:0 (Documentation/filesystems/overlayfs.rst of the kernel).
fn is_whiteout(meta: &Meta) -> bool {
    meta.kind == Kind::CharDevice && meta.rdev == (0, 0)
}

impl Guest {
    /// Opens the tree in `dir` (a container's or a staging directory); `lower` is the layer below, if any.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(dir: &Path, lower: Option<&Path>) -> Result<Self, StepFailure> {
        let path = dir.join(if lower.is_some() { UPPER } else { ROOTFS });
        let open = |path: &Path| Root::open(path).map_err(|e| e.failure(path));
        Ok(Guest {
            upper: open(&path)?,
            lower: lower.map(open).transpose()?,
            path,
        })
    }

    fn failed(&self, error: &Error) -> StepFailure {
        error.failure(&self.path)
    }

    /// What is at a path; `None` when nothing is.
    ///
    /// # Errors
    /// When a symlink is on the way there.
    pub fn stat(&self, path: &Path) -> Result<Option<Meta>, StepFailure> {
        self.look(path).map_err(|e| self.failed(&e))
    }

    fn look(&self, path: &Path) -> Result<Option<Meta>, Error> {
        match self.upper.stat(path) {
            Ok(meta) if self.lower.is_some() && is_whiteout(&meta) => return Ok(None),
            Ok(meta) => return Ok(Some(meta)),
            Err(Error::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        match &self.lower {
            None => Ok(None),
            Some(lower) => match lower.stat(path) {
                Ok(meta) => Ok(Some(meta)),
                Err(Error::Missing { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether something is at a path.
    ///
    /// # Errors
    /// As [`Guest::stat`].
    pub fn exists(&self, path: &str) -> Result<bool, StepFailure> {
        self.stat(Path::new(path)).map(|meta| meta.is_some())
    }

    /// A file's content; `None` when nothing is there.
    ///
    /// # Errors
    /// When it is no regular file, too long, or behind a symlink.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, StepFailure> {
        let path = Path::new(path);
        if self.stat(path)?.is_none() {
            return Ok(None);
        }
        let upper = self.upper.read_optional(path, FILE_LEN_MAX);
        match (upper.map_err(|e| self.failed(&e))?, &self.lower) {
            (Some(bytes), _) => Ok(Some(bytes)),
            (None, Some(lower)) => lower
                .read_optional(path, FILE_LEN_MAX)
                .map_err(|e| self.failed(&e)),
            (None, None) => Ok(None),
        }
    }

    /// Writes a file of root's whole; a symlink under that name is replaced, not followed.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), StepFailure> {
        let path = Path::new(path);
        self.parents(path)
            .and_then(|()| self.upper.write_atomic(path, bytes, mode, (0, 0)))
            .map_err(|e| self.failed(&e))
    }

    /// Makes a directory of root's with this mode, or gives it that mode and owner.
    ///
    /// # Errors
    /// When something else is in the way.
    pub fn directory(&self, path: &str, mode: u32) -> Result<(), StepFailure> {
        let path = Path::new(path);
        self.parents(path)
            .and_then(|()| self.upper.create_dir_all(path, mode))
            .and_then(|()| self.upper.chown(path, 0, 0))
            .and_then(|()| self.upper.chmod(path, mode))
            .map_err(|e| self.failed(&e))
    }

    /// Removes what is not a directory; whether it was there.
    ///
    /// # Errors
    /// When it is a directory, or behind a symlink.
    pub fn remove(&self, path: &str) -> Result<bool, StepFailure> {
        self.unlink(Path::new(path)).map_err(|e| self.failed(&e))
    }

    fn unlink(&self, path: &Path) -> Result<bool, Error> {
        if self.look(path)?.is_none() {
            return Ok(false);
        }
        self.upper.remove_file(path)?;
        if let Some(lower) = &self.lower
            && lower.exists(path)?
        {
            self.parents(path)?;
            self.upper.mknod(path, Kind::CharDevice, 0, (0, 0))?;
        }
        Ok(true)
    }

    /// Makes a symlink in the place of whatever file is there.
    ///
    /// # Errors
    /// When a directory is there, or it can't be made.
    pub fn symlink(&self, target: &str, path: &str) -> Result<(), StepFailure> {
        let path = Path::new(path);
        self.parents(path)
            .and_then(|()| self.upper.remove_file(path))
            .and_then(|_| self.upper.symlink(OsStr::new(target), path))
            .map_err(|e| self.failed(&e))
    }

    /// The names in a directory, of both layers; none when it is not there.
    ///
    /// # Errors
    /// When it is no directory, or behind a symlink.
    pub fn list(&self, path: &str) -> Result<Vec<String>, StepFailure> {
        let mut names = Vec::new();
        for layer in [Some(&self.upper), self.lower.as_ref()]
            .into_iter()
            .flatten()
        {
            match layer.list(Path::new(path)) {
                Ok(found) => {
                    names.extend(found.into_iter().filter_map(|name| name.into_string().ok()))
                }
                Err(Error::Missing { .. }) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Where a symlink points; `None` when there is no symlink.
    pub fn readlink(&self, path: &str) -> Option<String> {
        let path = Path::new(path);
        let target = match (self.upper.readlink(path), &self.lower) {
            (Ok(target), _) => Some(target),
            (Err(Error::Missing { .. }), Some(lower)) => lower.readlink(path).ok(),
            (Err(_), _) => None,
        };
        target.and_then(|target| target.into_string().ok())
    }

    /// Makes the directories that `path` lies in as far as the upper layer lacks them: as they are below, so
    /// that the overlay shows no other owner, mode, ACL or time.
    fn parents(&self, path: &Path) -> Result<(), Error> {
        let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        else {
            return Ok(());
        };
        self.parents(parent)?;
        if self.upper.exists(parent)? {
            return Ok(());
        }
        let below = match &self.lower {
            Some(lower) => match lower.stat(parent) {
                Ok(meta) => Some((lower, meta)),
                Err(Error::Missing { .. }) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        match below {
            None => self.upper.create_dir_all(parent, 0o755),
            Some((lower, meta)) if meta.kind == Kind::Directory => {
                // A crash leaves the one without its attributes under a name that the next attempt clears.
                let made = parent.with_file_name(".tallybook-parent");
                self.upper.remove_dir_all(&made)?;
                self.upper.create_dir_all(&made, 0o700)?;
                self.upper.dress_like(&made, lower, parent)?;
                self.upper.rename(&made, parent)
            }
            Some((_, meta)) if meta.kind == Kind::Symlink => Err(Error::Symlink {
                path: parent.to_owned(),
            }),
            Some(_) => Err(Error::Type {
                path: parent.to_owned(),
                wanted: "directory",
            }),
        }
    }
}

/// The most bytes of a small file in which a tree says what it is.
const SAYS_LEN_MAX: usize = 64 * 1024;

/// Which distribution and release a tree shows itself to be, os-release(5); `None` where it does not say.
///
/// # Errors
/// When it can't be read.
pub fn system(root: &Path) -> Result<Option<(String, String)>, StepFailure> {
    let Some(text) = says(root, &["usr/lib/os-release", "etc/os-release"])? else {
        return Ok(None);
    };
    let value = |key: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim_matches(['"', '\'']).to_owned())
    };
    let release = value("VERSION_CODENAME").or_else(|| value("VERSION_ID"));
    Ok(value("ID").zip(release))
}

/// The machine id in a tree; empty where it has none.
///
/// # Errors
/// When it can't be read.
pub fn machine_id(root: &Path) -> Result<String, StepFailure> {
    let id = says(root, &["etc/machine-id"])?.unwrap_or_default();
    let id = id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(if is_id { id.to_owned() } else { String::new() })
}

/// The first of these files that is there, as text. No symlink of the tree's is followed.
fn says(root: &Path, paths: &[&str]) -> Result<Option<String>, StepFailure> {
    let tree = match Root::open(root) {
        Ok(tree) => tree,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.failure(root)),
    };
    for path in paths {
        match tree.read_optional(Path::new(path), SAYS_LEN_MAX) {
            Ok(Some(bytes)) => return Ok(String::from_utf8(bytes).ok()),
            Ok(None) => {}
            Err(error) => return Err(error.failure(root)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn an_overlay_is_changed_in_its_upper_layer_only() {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        fs::create_dir_all(lower.join("root/.ssh")).unwrap();
        fs::set_permissions(lower.join("root"), fs::Permissions::from_mode(0o700)).unwrap();
        let shell = |script: &str| {
            let mut shell = std::process::Command::new("sh");
            let ran = shell.args(["-euc", script]).current_dir(dir.path());
            let output = ran.output().unwrap();
            assert!(output.status.success(), "{script}");
            String::from_utf8(output.stdout).unwrap()
        };
        shell("setfacl -m u:1234:rx,d:u:1234:rx lower/root; setfattr -n user.of -v x lower/root");
        fs::write(lower.join("root/.ssh/authorized_keys"), "below\n").unwrap();
        fs::create_dir_all(dir.path().join(UPPER)).unwrap();
        let guest = Guest::open(dir.path(), Some(&lower)).unwrap();
        assert_eq!(
            guest.read("root/.ssh/authorized_keys").unwrap().unwrap(),
            b"below\n"
        );
        guest
            .write("root/.ssh/authorized_keys", 0o600, b"above\n")
            .unwrap();
        assert_eq!(
            guest.read("root/.ssh/authorized_keys").unwrap().unwrap(),
            b"above\n"
        );
        assert_eq!(
            fs::read(lower.join("root/.ssh/authorized_keys")).unwrap(),
            b"below\n"
        );
        let mode = fs::metadata(dir.path().join(UPPER).join("root"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o750, "as it is below");
        let worn = |at: &str| shell(&format!("cd {at} && getfattr -d -m - -e hex root"));
        assert!(worn("lower").contains("posix_acl_default"));
        assert_eq!(worn(UPPER), worn("lower"));
        assert!(guest.remove("root/.ssh/authorized_keys").unwrap());
        assert!(!guest.exists("root/.ssh/authorized_keys").unwrap());
        assert!(!guest.remove("root/.ssh/authorized_keys").unwrap());
    }

    #[test]
    fn symlinks_of_the_guest_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("hostname"), "host\n").unwrap();
        let rootfs = dir.path().join(ROOTFS);
        fs::create_dir_all(rootfs.join("root")).unwrap();
        symlink(&outside, rootfs.join("etc")).unwrap();
        symlink(outside.join("hostname"), rootfs.join("file")).unwrap();
        let guest = Guest::open(dir.path(), None).unwrap();
        assert!(guest.write("etc/hostname", 0o644, b"evil\n").is_err());
        assert!(guest.read("etc/hostname").is_err());
        assert!(guest.directory("etc/ssh", 0o755).is_err());
        guest.write("file", 0o644, b"mine\n").unwrap();
        assert_eq!(fs::read(outside.join("hostname")).unwrap(), b"host\n");
        assert_eq!(fs::read(rootfs.join("file")).unwrap(), b"mine\n");
    }
}
