//! The scrub: takes out of a staged tree what belongs to the one container it was copied from.
//!
//! It works from outside beneath the tree's root, on names the guest chose, and executes nothing of it. Each
//! operation is one row of [`OPERATIONS`], can be left out by name, and reports what it did. It never decides
//! whether the tree is fit to be published: the leak scan does, and shares no table with this.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Source;
use crate::tree::{Error, Kind, Root, remove};

mod enrolment;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod network;
mod secrets;
mod state;
#[cfg(test)]
pub(super) mod tests;

/// What sort of thing an operation takes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What tells one machine from all others.
    Identity,
    /// Keys, passwords, histories.
    Secrets,
    /// Its name and its place in the network.
    Network,
    /// Where it is registered.
    Enrolment,
    /// Logs, spools and caches.
    State,
}

/// One operation of the scrub.
pub struct Operation {
    /// Its name: what `keep` takes.
    pub name: &'static str,
    /// What sort of thing it takes out.
    pub group: Group,
    /// What it does, for people.
    pub what: &'static str,
    run: fn(&mut Scrub<'_>) -> Result<(), Error>,
}

/// Every operation, in the order they run.
pub const OPERATIONS: &[&[Operation]] = &[
    identity::OPERATIONS,
    secrets::OPERATIONS,
    network::OPERATIONS,
    enrolment::OPERATIONS,
    state::OPERATIONS,
];

/// What was done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is gone.
    Removed,
    /// It is there, without content.
    Emptied,
    /// It has other content.
    Changed,
    /// Nothing: it was seen and left, for people to know.
    Noticed,
}

/// The most paths that one operation's report names.
const PATHS_MAX: usize = 50;

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The operation.
    pub operation: String,
    /// How many paths it touched.
    pub count: u64,
    /// The first of them, for people.
    pub paths: Vec<(Change, String)>,
}

/// Names in `keep` that no operation has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no scrub operation is called {}; there are: {}", .unknown.join(", "), names().join(", "))]
pub struct UnknownOperation {
    /// Those names.
    pub unknown: Vec<String>,
}

/// The names of all operations, and of the one on LXC's configuration.
pub fn names() -> Vec<&'static str> {
    let of_the_tree = OPERATIONS.iter().flat_map(|group| group.iter());
    of_the_tree
        .map(|operation| operation.name)
        .chain([super::config::OPERATION])
        .collect()
}

/// Checks the names of operations to leave out.
///
/// # Errors
/// When there is no such operation.
pub fn check_keep(keep: &[String]) -> Result<BTreeSet<&str>, UnknownOperation> {
    let known = names();
    let unknown: Vec<String> = keep
        .iter()
        .filter(|name| !known.contains(&name.as_str()))
        .cloned()
        .collect();
    if unknown.is_empty() {
        Ok(keep.iter().map(String::as_str).collect())
    } else {
        Err(UnknownOperation { unknown })
    }
}

/// Runs all operations but those in `keep`, which [`check_keep`] returned. `told` hears each one's name before
/// it runs.
///
/// # Errors
/// When the tree can't be changed; what was done so far stays done.
pub fn scrub(
    root: &Root,
    source: &Source,
    keep: &BTreeSet<&str>,
    told: &mut dyn FnMut(&'static str),
) -> Result<Vec<Report>, Error> {
    let mut reports = Vec::new();
    let homes = homes(root)?;
    for operation in OPERATIONS.iter().flat_map(|group| group.iter()) {
        if keep.contains(operation.name) {
            continue;
        }
        told(operation.name);
        let mut scrub = Scrub {
            root,
            source,
            homes: &homes,
            report: Report {
                operation: operation.name.to_owned(),
                count: 0,
                paths: Vec::new(),
            },
        };
        (operation.run)(&mut scrub)?;
        if scrub.report.count > 0 {
            reports.push(scrub.report);
        }
    }
    Ok(reports)
}

/// The longest configuration file that is edited.
const EDIT_LEN_MAX: usize = 4 << 20;

/// One operation at work.
struct Scrub<'a> {
    root: &'a Root,
    source: &'a Source,
    /// Every home directory of the tree, without a leading `/`.
    homes: &'a [PathBuf],
    report: Report,
}

impl Scrub<'_> {
    fn note(&mut self, change: Change, path: &Path) {
        self.report.count += 1;
        if self.report.paths.len() < PATHS_MAX {
            let shown = format!("/{}", path.display());
            self.report.paths.push((change, shown));
        }
    }

    /// Where a path really is: symlinks among its directories are followed within the tree, as the guest would.
    /// `None` when there is nothing.
    fn real(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>, Error> {
        let path = path.as_ref();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        match self.root.resolve(&Path::new("/").join(parent)) {
            Ok(parent) => {
                let path = parent.join(name);
                Ok(self.root.exists(&path)?.then_some(path))
            }
            Err(error) => nothing_there(error),
        }
    }

    /// The real path of a directory and the names in it; nothing when it is not there, or when it is a detour
    /// into what the system consists of.
    fn list(&self, dir: impl AsRef<Path>) -> Result<(PathBuf, Vec<OsString>), Error> {
        let inside = Path::new("/").join(dir.as_ref());
        let real = match self.root.resolve(&inside) {
            Ok(real) => real,
            Err(error) => {
                nothing_there::<()>(error)?;
                return Ok((PathBuf::new(), Vec::new()));
            }
        };
        if real != dir.as_ref() && is_system(&real) {
            return Ok((PathBuf::new(), Vec::new()));
        }
        let names = self.root.list(&real)?;
        Ok((real, names))
    }

    /// Removes whatever is there, a symlink itself.
    fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        if let Some(path) = self.real(path)?
            && self.root.remove_dir_all(&path)?
        {
            self.note(Change::Removed, &path);
        }
        Ok(())
    }

    fn remove_all(&mut self, paths: &[&str]) -> Result<(), Error> {
        paths.iter().try_for_each(|path| self.remove(path))
    }

    /// Removes what a directory holds, as far as `which` says so, and keeps the directory.
    fn remove_in(&mut self, dir: impl AsRef<Path>, which: fn(&[u8]) -> bool) -> Result<(), Error> {
        let (dir, names) = self.list(dir)?;
        for name in names.iter().filter(|name| which(name.as_bytes())) {
            self.remove(dir.join(name))?;
        }
        Ok(())
    }

    /// Removes all that a directory holds.
    fn clear(&mut self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let (dir, names) = self.list(dir)?;
        if names.is_empty() {
            return Ok(());
        }
        let open = self.root.dir(&dir)?;
        remove::empty(open.as_fd())?;
        names
            .iter()
            .for_each(|name| self.note(Change::Removed, &dir.join(name)));
        Ok(())
    }

    /// Takes the content of a regular file away.
    fn empty(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let Some(path) = self.real(path)? else {
            return Ok(());
        };
        let meta = self.root.stat(&path)?;
        if meta.kind == Kind::File && meta.size > 0 {
            self.root.truncate(&path)?;
            self.note(Change::Emptied, &path);
        }
        Ok(())
    }

    /// Changes the content of a regular file, where `edit` makes a difference.
    fn edit(
        &mut self,
        path: impl AsRef<Path>,
        edit: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<(), Error> {
        let Some(path) = self.real(path)? else {
            return Ok(());
        };
        if self.root.stat(&path)?.kind != Kind::File {
            return Ok(());
        }
        let old = self.root.read(&path, EDIT_LEN_MAX)?;
        let new = edit(&old);
        if new != old {
            self.root.rewrite(&path, &new)?;
            self.note(Change::Changed, &path);
        }
        Ok(())
    }

    /// Removes these below every home.
    fn remove_in_homes(&mut self, paths: &[&str]) -> Result<(), Error> {
        for home in self.homes {
            for path in paths {
                self.remove(home.join(path))?;
            }
        }
        Ok(())
    }
}

/// What the system consists of. A directory of secrets or logs that is a symlink to such a place is none: emptied,
/// it would take the system with it (`/root/.ssh -> /`). The leak scan still looks there.
fn is_system(real: &Path) -> bool {
    const SYSTEM: [&str; 10] = [
        "etc", "usr", "bin", "sbin", "lib", "lib32", "lib64", "boot", "dev", "opt",
    ];
    real.components().count() < 2 || SYSTEM.iter().any(|dir| real.starts_with(dir))
}

/// What has no directory to be in is not there; other errors stay errors.
fn nothing_there<T>(error: Error) -> Result<Option<T>, Error> {
    match error {
        Error::Missing { .. } | Error::Symlink { .. } | Error::Type { .. } | Error::Path { .. } => {
            Ok(None)
        }
        error => Err(error),
    }
}

/// Every home that the tree's accounts have, and what is in `/home` besides, as real paths, each once.
fn homes(root: &Root) -> Result<Vec<PathBuf>, Error> {
    let passwd = root
        .read_optional(Path::new("etc/passwd"), EDIT_LEN_MAX)?
        .unwrap_or_default();
    let of_accounts = passwd
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b':').nth(5))
        .filter(|home| home.starts_with(b"/"))
        .map(|home| PathBuf::from(OsStr::from_bytes(home)));
    let mut wanted: Vec<PathBuf> = of_accounts.collect();
    wanted.push(PathBuf::from("/root"));
    wanted.push(PathBuf::from("/etc/skel"));
    if let Ok(home) = root.resolve(Path::new("/home")) {
        let names = root.list(&home)?;
        wanted.extend(names.iter().map(|name| Path::new("/home").join(name)));
    }
    let mut homes = BTreeSet::new();
    for home in wanted {
        match root.resolve(&home) {
            Ok(real) => {
                homes.insert(real);
            }
            Err(error) => {
                nothing_there::<()>(error)?;
            }
        }
    }
    Ok(homes.into_iter().collect())
}

/// Where a word is in a text: neither part of a longer one nor of another name.
fn replace_word(text: &[u8], word: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let begins = at == 0 || !is_word_byte(text[at - 1]);
        if begins
            && rest.len() >= word.len()
            && rest[..word.len()].eq_ignore_ascii_case(word)
            && rest.get(word.len()).is_none_or(|next| !is_word_byte(*next))
        {
            out.extend_from_slice(with);
            at += word.len();
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

const fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}
