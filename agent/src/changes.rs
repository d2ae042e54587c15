//! What changed in a container's root file system between two looks at it.
//!
//! Looks from outside, through a directory opened once, follows no link and no mount of the container's, and waits for
//! none: a mount may be served by the container itself.
//! Reads no content: a file counts as changed when its size, times, mode or inode did. What services of the
//! container changed meanwhile is in it as well; who changed what can't be told from outside.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tallybook_events::event::{ChangeKind, PathChange};
use tallybook_events::ids::Blob;

use crate::deadline;
use crate::tree::walk::{Found, Mounts, Vanished, Visit, Walk};
use crate::tree::{Kind, Meta, Mtime};

/// Directories at the top whose content does not stay, or is not the container's.
const EXCLUDED: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// The deepest directory that is looked into.
const DEPTH_MAX: usize = 128;
/// The most changes that are named.
const CHANGES_MAX: usize = 500;
/// How long a look may take.
pub(crate) const LOOK_TIME: Duration = Duration::from_secs(30);

/// How much is looked at, in the order of names; what is behind it is not seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Entries.
    entries_max: usize,
    /// Bytes of their paths.
    paths_len_max: usize,
    /// Bytes of the names that are still to come.
    names_len_max: usize,
}

const LIMITS: Limits = Limits {
    entries_max: 1_000_000,
    paths_len_max: 128 << 20,
    names_len_max: 64 << 20,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    inode: u64,
    /// Size, modification and change time. `None` for a directory: its own say no more than its entries do.
    content: Option<(u64, Mtime, Mtime)>,
}

impl Entry {
    fn of(meta: &Meta) -> Self {
        let is_dir = meta.kind == Kind::Directory;
        Entry {
            kind: meta.kind,
            mode: meta.mode,
            owner: (meta.uid, meta.gid),
            inode: meta.ino,
            content: (!is_dir).then_some((meta.size, meta.mtime, meta.ctime)),
        }
    }
}

/// What a tree looked like. Paths are relative to its root.
#[derive(Debug, Default)]
pub(crate) struct Look {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Mounts and directories that were not looked into.
    unseen: BTreeSet<Vec<u8>>,
    /// Where the look ended before the tree did: neither this path nor what is behind it was seen.
    end: Option<PathBuf>,
}

/// Looks at the tree beneath an open directory, for as long as it answers within the time.
pub(crate) fn look(root: &OwnedFd) -> Option<Look> {
    let root = root.try_clone().ok()?;
    deadline::answer(LOOK_TIME, move || look_within(&root, LIMITS))
}

fn look_within(root: &OwnedFd, limits: Limits) -> Look {
    let mut look = Look::default();
    let mut at = PathBuf::new();
    if look.walk(root, limits, &mut at).is_err() {
        look.end = Some(at);
    }
    look
}

impl Look {
    /// Keeps in `at` how far it is.
    fn walk(
        &mut self,
        root: &OwnedFd,
        limits: Limits,
        at: &mut PathBuf,
    ) -> Result<(), Option<crate::tree::Error>> {
        let mut walk = Walk::new(root.as_fd())?
            .without_xattrs()
            .vanished(Vanished::Skip)
            .mounts(Mounts::LeaveOut)
            .names_len_max(limits.names_len_max);
        let mut paths_len = 0;
        while let Some(visit) = walk.visit()? {
            let (path, meta) = match visit {
                Visit::Leave(_) => continue,
                Visit::Mount(path) => (path, None),
                Visit::Enter(Found { entry, .. }) => (entry.path, Some(entry.meta)),
            };
            if path.as_os_str().is_empty() {
                continue;
            }
            at.clone_from(&path);
            let is_excluded = EXCLUDED.iter().any(|name| path == Path::new(name));
            if meta.is_none() || is_excluded || path.iter().count() > DEPTH_MAX {
                walk.pass_by();
            }
            paths_len += path.as_os_str().len();
            if paths_len > limits.paths_len_max || self.entries.len() >= limits.entries_max {
                return Err(None);
            }
            let path = path.into_os_string().into_vec();
            match meta {
                _ if is_excluded => {}
                Some(meta) => {
                    self.entries.insert(path, Entry::of(&meta));
                }
                None => {
                    self.unseen.insert(path);
                }
            }
        }
        Ok(())
    }

    /// Whether the look came to this path.
    fn came_to(&self, path: &Path) -> bool {
        let before_end = |end: &PathBuf| path.cmp(end) == Ordering::Less;
        self.end.as_ref().is_none_or(before_end)
            && !path.ancestors().any(|above| {
                let above = above.as_os_str().as_bytes();
                self.unseen.contains(above)
            })
    }
}

/// What is different, in the order of paths, and how many more differences there are. What one of the looks did not
/// come to is no difference.
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
    changed.retain(|path, _| {
        let path = Path::new(OsStr::from_bytes(path));
        before.came_to(path) && after.came_to(path)
    });
    let dropped = changed.len().saturating_sub(CHANGES_MAX) as u64;
    let named = changed
        .into_iter()
        .take(CHANGES_MAX)
        .map(|(path, change)| PathChange {
            change,
            path: Blob([b"/", path].concat()),
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
        let before = look(&root).unwrap();
        fs::remove_file(at("etc/gone")).unwrap();
        fs::write(at("etc/new"), "").unwrap();
        fs::write(at("tmp/new"), "").unwrap();
        fs::write(at("proc/new"), "").unwrap();
        fs::set_permissions(at("etc/mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("etc/sub/other"), "y").unwrap();
        fs::rename(at("etc/sub/other"), at("etc/sub/replaced")).unwrap();
        let (changes, dropped) = between(&before, &look(&root).unwrap());
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
        let before = look(&root).unwrap();
        for number in 0..CHANGES_MAX + 7 {
            fs::write(temp.path().join(format!("{number:04}")), "").unwrap();
        }
        let (changes, dropped) = between(&before, &look(&root).unwrap());
        assert_eq!((changes.len(), dropped), (CHANGES_MAX, 7));
        assert_eq!(changes[0].path.to_string(), "/0000");
    }

    fn told(before: &Look, after: &Look) -> Vec<(ChangeKind, String)> {
        let (changes, _) = between(before, after);
        changes
            .into_iter()
            .map(|it| (it.change, it.path.to_string()))
            .collect()
    }

    #[test]
    fn what_a_look_did_not_come_to_is_no_change() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        for dir in ["a", "b", "c"] {
            fs::create_dir(at(dir)).unwrap();
            for number in 0..40 {
                fs::write(at(&format!("{dir}/{number:0200}")), "").unwrap();
            }
        }
        let root = open(temp.path());
        for limits in [
            Limits {
                entries_max: 60,
                ..LIMITS
            },
            Limits {
                paths_len_max: 12_000,
                ..LIMITS
            },
        ] {
            fs::remove_file(at("a/new")).ok();
            let before = look_within(&root, limits);
            assert!(before.entries.len() < 90, "{}", before.entries.len());
            fs::write(at("a/new"), "").unwrap();
            let after = look_within(&root, limits);
            let added = (ChangeKind::Added, "/a/new".to_owned());
            assert_eq!(told(&before, &after), [added], "{limits:?}");
        }
        let names = Limits {
            names_len_max: 2_000,
            ..LIMITS
        };
        let cut = look_within(&root, names);
        assert_eq!(cut.end, Some(PathBuf::from("a")));
        assert_eq!(told(&look(&root).unwrap(), &cut), []);
    }

    #[test]
    fn a_mount_that_does_not_answer_is_not_asked() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        fs::create_dir_all(at("mnt/silent")).unwrap();
        fs::write(at("mnt/silent/below"), "").unwrap();
        let root = open(temp.path());
        let before = look(&root).unwrap();
        let silent = crate::deadline::tests::Silent::mount(&at("mnt/silent"));
        fs::write(at("zz"), "").unwrap();
        let after = look(&root).unwrap();
        drop(silent);
        let added = (ChangeKind::Added, "/zz".to_owned());
        assert_eq!(told(&before, &after), [added]);
    }
}
