//! What changed in a container's root file system between two looks at it.
//!
//! Looks from outside, through a directory opened once, and follows no link and no mount of the container's.
//! Reads no content: a file counts as changed when its size, times, mode or inode did. What services of the
//! container changed meanwhile is in it as well; who changed what can't be told from outside.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use tallybook_events::event::{ChangeKind, PathChange};
use tallybook_events::ids::Blob;

/// Directories at the top whose content does not stay, or is not the container's.
const EXCLUDED: [&[u8]; 5] = [b"dev", b"proc", b"run", b"sys", b"tmp"];
/// The most entries that are looked at, in the order of their names; what is behind them is not seen.
const ENTRIES_MAX: usize = 1_000_000;
/// The deepest directory that is looked into.
const DEPTH_MAX: usize = 128;
/// The most changes that are named.
const CHANGES_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    inode: u64,
    /// Size, then modification and change time in seconds and nanoseconds. `None` for a directory: its own say
    /// no more than its entries do.
    content: Option<[i64; 5]>,
}

impl Entry {
    #[expect(
        clippy::unnecessary_cast,
        reason = "the fields of `stat` differ in type between architectures"
    )]
    fn of(stat: &Stat) -> Self {
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Entry {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            inode: stat.st_ino,
            content: (!is_dir).then_some([
                stat.st_size as i64,
                stat.st_mtime as i64,
                stat.st_mtime_nsec as i64,
                stat.st_ctime as i64,
                stat.st_ctime_nsec as i64,
            ]),
        }
    }
}

/// What a tree looked like.
#[derive(Debug, Default)]
pub(crate) struct Look {
    entries: BTreeMap<Vec<u8>, Entry>,
}

/// Looks at the tree beneath an open directory. What can't be read is left out.
pub(crate) fn look(root: &OwnedFd) -> Look {
    let mut look = Look::default();
    if let Ok(stat) = fstat(root) {
        look.beneath(root.as_fd(), b"", stat.st_dev, 0);
    }
    look
}

impl Look {
    fn beneath(&mut self, dir: BorrowedFd<'_>, path: &[u8], device: u64, depth: usize) {
        for name in names(dir) {
            if depth == 0 && EXCLUDED.contains(&name.as_bytes()) {
                continue;
            }
            if self.entries.len() >= ENTRIES_MAX {
                return;
            }
            let Ok(stat) = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let mut path = path.to_vec();
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
            self.entries.insert(path.clone(), Entry::of(&stat));
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            // Only directories tell mounts apart: the files of an overlay have devices of their layers.
            if is_dir
                && stat.st_dev == device
                && depth < DEPTH_MAX
                && let Ok(child) = openat(dir, &name, DIRECTORY, Mode::empty())
            {
                self.beneath(child.as_fd(), &path, device, depth + 1);
            }
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The names in a directory, sorted, so that two looks that are cut by a limit are cut at the same place.
fn names(dir: BorrowedFd<'_>) -> Vec<CString> {
    let Ok(entries) = Dir::read_from(dir) else {
        return Vec::new();
    };
    let mut names: Vec<CString> = entries
        .map_while(Result::ok)
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| !matches!(name.as_bytes(), b"." | b".."))
        .collect();
    names.sort();
    names
}

/// What is different, in the order of paths, and how many more differences there are.
pub(crate) fn between(before: &Look, after: &Look) -> (Vec<PathChange>, u64) {
    let mut changed: BTreeMap<&[u8], ChangeKind> = BTreeMap::new();
    for (path, entry) in &before.entries {
        match after.entries.get(path) {
            None => {
                changed.insert(path, ChangeKind::Removed);
            }
            Some(now) if now != entry => {
                changed.insert(path, ChangeKind::Modified);
            }
            Some(_) => {}
        }
    }
    for path in after.entries.keys() {
        if !before.entries.contains_key(path) {
            changed.insert(path, ChangeKind::Added);
        }
    }
    let dropped = changed.len().saturating_sub(CHANGES_MAX) as u64;
    let named = changed
        .into_iter()
        .take(CHANGES_MAX)
        .map(|(path, change)| PathChange {
            change,
            path: Blob(path.to_vec()),
        })
        .collect();
    (named, dropped)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn tells_what_was_added_modified_and_removed_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        for dir in ["etc/sub", "tmp", "proc", "home"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["etc/kept", "etc/gone", "etc/mode", "etc/sub/replaced"] {
            fs::write(at(file), "x").unwrap();
        }
        symlink("/", at("etc/root")).unwrap();
        let root = open(temp.path());
        let before = look(&root);
        fs::remove_file(at("etc/gone")).unwrap();
        fs::write(at("etc/new"), "").unwrap();
        fs::write(at("tmp/new"), "").unwrap();
        fs::write(at("proc/new"), "").unwrap();
        fs::set_permissions(at("etc/mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("etc/sub/other"), "y").unwrap();
        fs::rename(at("etc/sub/other"), at("etc/sub/replaced")).unwrap();
        let (changes, dropped) = between(&before, &look(&root));
        let told: Vec<(ChangeKind, String)> = changes
            .into_iter()
            .map(|it| (it.change, it.path.to_string()))
            .collect();
        let expected = [
            (ChangeKind::Removed, "/etc/gone"),
            (ChangeKind::Modified, "/etc/mode"),
            (ChangeKind::Added, "/etc/new"),
            (ChangeKind::Modified, "/etc/sub/replaced"),
        ];
        assert_eq!(told, expected.map(|(kind, path)| (kind, path.to_owned())));
        assert_eq!(dropped, 0);
    }

    #[test]
    fn counts_what_it_does_not_name() {
        let temp = tempfile::tempdir().unwrap();
        let root = open(temp.path());
        let before = look(&root);
        for number in 0..CHANGES_MAX + 7 {
            fs::write(temp.path().join(format!("{number:04}")), "").unwrap();
        }
        let (changes, dropped) = between(&before, &look(&root));
        assert_eq!((changes.len(), dropped), (CHANGES_MAX, 7));
        assert_eq!(changes[0].path.to_string(), "/0000");
    }
}
