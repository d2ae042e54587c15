//! Paths within a tree: relative, free of `.` and `..`. Nothing else can be made into one.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{NAME_LEN_MAX, PATH_LEN_MAX};

/// A path from the root of a tree; empty for the root itself. Compares by its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The path with these bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, &'static str> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(TreePath(bytes));
        }
        if bytes.len() > PATH_LEN_MAX {
            return Err("the path is too long");
        }
        if bytes.contains(&0) {
            return Err("the path holds a NUL");
        }
        if bytes[0] == b'/' {
            return Err("the path is absolute");
        }
        for name in bytes.split(|byte| *byte == b'/') {
            match name {
                b"" => return Err("the path has an empty component"),
                b"." | b".." => return Err("the path has a . or .. in it"),
                name if name.len() > NAME_LEN_MAX => return Err("a name is too long"),
                _ => {}
            }
        }
        Ok(TreePath(bytes))
    }

    /// The root of the tree.
    pub const fn root() -> Self {
        TreePath(Vec::new())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path relative to the root; empty for the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Whether it is the root.
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(TreePath(self.0[..end].to_vec()))
    }

    /// Its last component; `.` for the root.
    pub fn name(&self) -> &OsStr {
        let last = self.0.rsplit(|byte| *byte == b'/').next();
        OsStr::from_bytes(last.filter(|name| !name.is_empty()).unwrap_or(b"."))
    }
}

/// For people: `/` before it, and bytes that are not printable ASCII or UTF-8 escaped.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/")?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}
