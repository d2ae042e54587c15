//! How much of a tree may be in memory at once. Who made the tree does not decide how much memory it takes: what has
//! no bound of its own is counted here, and is an error before it is a burden.

use std::path::{Path, PathBuf};

use super::Error;

/// The longest start of a path that an error about too much of something names.
const NAMED_LEN_MAX: usize = 255;

/// A number of bytes, and how many of them are taken.
#[derive(Debug)]
pub(super) struct Budget {
    what: &'static str,
    left: usize,
    limit: usize,
}

impl Budget {
    /// Of `limit` bytes for `what`.
    pub(super) const fn new(what: &'static str, limit: usize) -> Self {
        Budget {
            what,
            left: limit,
            limit,
        }
    }

    /// Takes bytes for something at `path`.
    pub(super) fn take(&mut self, len: usize, path: &Path) -> Result<(), Error> {
        match self.left.checked_sub(len) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.exceeded(path)),
        }
    }

    /// Gives bytes back that were taken.
    pub(super) fn give_back(&mut self, len: usize) {
        self.left = self.left.saturating_add(len).min(self.limit);
    }

    /// How many are left.
    pub(super) const fn left(&self) -> usize {
        self.left
    }

    /// The error when there were not enough.
    pub(super) fn exceeded(&self, path: &Path) -> Error {
        let mut named = PathBuf::new();
        for name in path {
            if named.as_os_str().len() + name.len() > NAMED_LEN_MAX {
                break;
            }
            named.push(name);
        }
        Error::TooMuch {
            path: named,
            what: self.what,
            limit: self.limit,
        }
    }
}
