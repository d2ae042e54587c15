//! The manifest of a tree: what is in it, down to the last attribute, and what its content hashes to.
//!
//! The hash of a manifest's bytes is the identity of a template, so these bytes are fixed for ever and outlive
//! every other format here. There is exactly one encoding of a manifest, and [`Manifest::decode`] refuses
//! everything else; what it accepts can be unpacked without ever leaving the root (paths are relative, free of
//! `.` and `..`, unique, and below directories of the same manifest). It must never accept bytes that
//! [`Manifest::encode`] would not have written.
//!
//! # Bytes, format 1
//! All numbers are little endian. `bytes16` is a u16 length and that many bytes.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `89 54 42 54 52 45 45 0A` (`\x89TBTREE\n`) |
//! | u16 | format: 1 |
//! | u32 | number of entries, then the entries in ascending order of their paths' bytes |
//!
//! An entry:
//!
//! | bytes | what |
//! |---|---|
//! | bytes16 | path, components joined by `/`; empty for the root, which is always there and a directory |
//! | u8 | type: 0 hard link, 1 directory, 2 file, 3 sparse file, 4 symlink, 5 character device, 6 block device, 7 fifo, 8 socket |
//!
//! A hard link (0) goes on with `bytes16`, the path of the first name of the same inode, which is a smaller path
//! and not itself a hard link; and ends. Every other type goes on with
//!
//! | bytes | what |
//! |---|---|
//! | u16 | permissions, `0o7777` at most; `0o777` for a symlink |
//! | u32, u32 | uid, gid: numeric, as seen inside the container |
//! | i64, u32 | mtime: seconds since 1970-01-01 UTC, and nanoseconds below 1,000,000,000 |
//! | u16 | number of extended attributes, then each in ascending order of names: u8 length and name, u32 length and value |
//!
//! and then, by type: *directory, fifo, socket* nothing; *file* u64 size, then 32 bytes of BLAKE3 for each
//! piece; *sparse file* u64 size, u32 number of extents, each u64 offset and u64 length, then 32 bytes for each
//! piece that an extent touches; *symlink* `bytes16` target; *devices* u32 major, u32 minor.
//!
//! A piece is [`PIECE_LEN`] bytes of the content, the last one what remains; an empty file has none. An extent
//! is a stretch that may hold data; everything outside is zeros. Extents ascend, neither touch nor overlap, start
//! at multiples of [`EXTENT_ALIGN`] and end at one or at the end of the file. A file whose one extent is the whole
//! file is a *file*, never a *sparse file*. Nothing follows the last entry.

mod build;
mod codec;
mod difference;
mod path;

use std::collections::{BTreeMap, HashMap};

use tallybook_events::ids::Hash;

pub use build::{BuildError, Hashed, Watch, build};
pub use codec::{LEN_MAX, MAGIC};
pub use difference::{Aspect, Difference, differences};
pub use path::TreePath;

/// How much of a file one hash covers.
pub const PIECE_LEN: u64 = 1024 * 1024;
/// Where extents may start and end.
pub const EXTENT_ALIGN: u64 = 4096;
/// The longest path, in bytes.
pub const PATH_LEN_MAX: usize = 4095;
/// The longest name, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest value of an extended attribute, in bytes: the kernel's own limit.
pub const XATTR_LEN_MAX: usize = 65536;
/// The most extended attributes an inode may have.
pub const XATTRS_MAX: usize = 1024;

const ID_CONTEXT: &str = "tallybook 2026-11 manifest id v1";

/// Bytes that are not a manifest, or entries that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes do not begin like a manifest.
    #[error("these bytes are not a manifest")]
    Magic,
    /// A manifest of a version that is not known here.
    #[error("a manifest of format {0} can't be read by this version")]
    Format(u16),
    /// Longer than any manifest may be.
    #[error("a manifest of {0} bytes is longer than {LEN_MAX}")]
    TooLong(u64),
    /// The bytes end inside an entry.
    #[error("the manifest ends inside entry {entry}")]
    Truncated {
        /// Which entry, from 0.
        entry: usize,
    },
    /// Bytes follow the last entry.
    #[error("{0} bytes follow the manifest's last entry")]
    Trailing(usize),
    /// An entry holds what no entry may.
    #[error("entry {entry} of the manifest: {what}")]
    Field {
        /// Which entry, from 0.
        entry: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry does not fit the others, or its own type.
    #[error("{path} in the manifest: {what}")]
    Entry {
        /// The path, for people.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What a tree consists of. The entries are checked: sorted, unique, and consistent with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where, from the root.
    pub path: TreePath,
    /// What is there.
    pub node: Node,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// An inode, under the first of its names.
    Inode(Inode),
    /// Another name of an inode.
    Link {
        /// The first of its names.
        first: TreePath,
    },
}

/// An inode: what it is, whose, and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Permissions with set-uid, set-gid and sticky bits.
    pub mode: u16,
    /// Owner, as seen inside the container.
    pub uid: u32,
    /// Group, as seen inside the container.
    pub gid: u32,
    /// When the content was last modified: seconds since 1970-01-01 UTC.
    pub mtime_s: i64,
    /// Nanoseconds on top.
    pub mtime_ns: u32,
    /// Extended attributes, ACLs and capabilities, by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Its type, with what only that type has.
    pub kind: Kind,
}

/// The type of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

/// The content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// Where data is, when the file has holes.
    pub extents: Option<Vec<Extent>>,
    /// The hashes of the pieces that hold data, in order.
    pub pieces: Vec<Hash>,
}

/// A stretch of a file that may hold data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl Extent {
    /// Where it ends.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A piece of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts: a multiple of [`PIECE_LEN`].
    pub offset: u64,
    /// How long it is: [`PIECE_LEN`] at most.
    pub len: u32,
    /// What it hashes to.
    pub hash: Hash,
}

/// The stretches of pieces that extents, which ascend, touch: `(first, count)`, ascending, apart from each other.
fn piece_runs(size: u64, extents: Option<&[Extent]>) -> Vec<(u64, u64)> {
    let whole = [Extent {
        offset: 0,
        len: size,
    }];
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in extents.unwrap_or(&whole).iter().filter(|e| e.len > 0) {
        let (first, end) = (extent.offset / PIECE_LEN, extent.end().div_ceil(PIECE_LEN));
        match runs.last_mut() {
            Some(last) if first <= last.0 + last.1 => last.1 = end - last.0,
            Some(_) | None => runs.push((first, end - first)),
        }
    }
    runs
}

impl Content {
    /// Its pieces in order: those that hold data.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let size = self.size;
        piece_runs(size, self.extents.as_deref())
            .into_iter()
            .flat_map(|(first, count)| first..first + count)
            .zip(&self.pieces)
            .map(move |(number, hash)| {
                let offset = number * PIECE_LEN;
                let len = (size - offset).min(PIECE_LEN);
                Piece {
                    offset,
                    // At most PIECE_LEN, which is a u32.
                    len: len as u32,
                    hash: *hash,
                }
            })
    }

    /// Where data may be, within a piece: `(start, end)` from the start of the piece.
    pub fn data_within(&self, piece: &Piece) -> Vec<(usize, usize)> {
        let (start, end) = (piece.offset, piece.offset + u64::from(piece.len));
        let Some(extents) = &self.extents else {
            return vec![(0, piece.len as usize)];
        };
        let from = extents.partition_point(|extent| extent.end() <= start);
        extents[from..]
            .iter()
            .take_while(|extent| extent.offset < end)
            .map(|extent| {
                let (a, b) = (extent.offset.max(start), extent.end().min(end));
                ((a - start) as usize, (b - start) as usize)
            })
            .collect()
    }
}

impl Inode {
    /// Its content, if it is a regular file.
    pub const fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(content) => Some(content),
            Kind::Directory
            | Kind::Symlink { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo
            | Kind::Socket => None,
        }
    }
}

impl Entry {
    /// Its inode, unless it is another name of one.
    pub const fn inode(&self) -> Option<&Inode> {
        match &self.node {
            Node::Inode(inode) => Some(inode),
            Node::Link { .. } => None,
        }
    }

    /// Its content, if it is the first name of a regular file.
    pub fn content(&self) -> Option<&Content> {
        self.inode().and_then(Inode::content)
    }
}

impl Manifest {
    /// A manifest of these entries, in any order.
    ///
    /// # Errors
    /// When they can't be the entries of one tree.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, Error> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest { entries };
        manifest.check()?;
        let len = manifest.encode().len() as u64;
        if len > LEN_MAX {
            return Err(Error::TooLong(len));
        }
        Ok(manifest)
    }

    /// The entries, in ascending order of their paths' bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a path.
    pub fn find(&self, path: &TreePath) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.path.cmp(path));
        at.ok().map(|at| &self.entries[at])
    }

    /// The bytes of this manifest.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&self.entries)
    }

    /// The manifest whose bytes these are.
    ///
    /// # Errors
    /// When they are not exactly the one encoding of a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let manifest = Manifest {
            entries: codec::decode(bytes)?,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The identity of the tree: the hash of its manifest's bytes.
    pub fn id(&self) -> Hash {
        id_of(&self.encode())
    }

    /// How many bytes of content the tree holds, holes left out.
    pub fn content_len(&self) -> u64 {
        let contents = self.entries.iter().filter_map(Entry::content);
        contents
            .flat_map(Content::pieces)
            .fold(0, |sum: u64, piece| {
                sum.saturating_add(u64::from(piece.len))
            })
    }

    fn check(&self) -> Result<(), Error> {
        let mut seen: HashMap<&TreePath, &Entry> = HashMap::with_capacity(self.entries.len());
        let mut last: Option<&TreePath> = None;
        for entry in &self.entries {
            let fault = |what| Error::Entry {
                path: entry.path.to_string(),
                what,
            };
            if last.is_some_and(|last| *last >= entry.path) {
                return Err(fault("is out of order or there twice"));
            }
            last = Some(&entry.path);
            match entry.path.parent() {
                None => check_root(entry).map_err(fault)?,
                Some(parent) => {
                    let parent = seen.get(&parent).and_then(|entry| entry.inode());
                    if parent.is_none_or(|inode| inode.kind != Kind::Directory) {
                        return Err(fault("is not below a directory of the tree"));
                    }
                }
            }
            match &entry.node {
                Node::Inode(inode) => check_inode(inode).map_err(fault)?,
                Node::Link { first } => {
                    let inode = seen.get(first).and_then(|entry| entry.inode());
                    if inode.is_none_or(|inode| inode.kind == Kind::Directory) {
                        return Err(fault("is a hard link to what is no first name of a file"));
                    }
                }
            }
            seen.insert(&entry.path, entry);
        }
        if self.entries.is_empty() {
            return Err(Error::Field {
                entry: 0,
                what: "there is no root",
            });
        }
        Ok(())
    }
}

/// The identity of the tree whose manifest has these bytes.
pub fn id_of(bytes: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
    hasher.update(bytes);
    Hash::from(hasher.finalize())
}

fn check_root(entry: &Entry) -> Result<(), &'static str> {
    match entry.inode().map(|inode| &inode.kind) {
        Some(Kind::Directory) => Ok(()),
        Some(
            Kind::File(_)
            | Kind::Symlink { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo
            | Kind::Socket,
        )
        | None => Err("the root is not a directory"),
    }
}

fn check_inode(inode: &Inode) -> Result<(), &'static str> {
    if inode.mode > 0o7777 {
        return Err("has permissions beyond 07777");
    }
    if inode.mtime_ns >= 1_000_000_000 {
        return Err("has a modification time of a second or more in nanoseconds");
    }
    if inode.uid == u32::MAX || inode.gid == u32::MAX {
        return Err("has an owner that no file can have");
    }
    if inode.xattrs.len() > XATTRS_MAX {
        return Err("has too many extended attributes");
    }
    for (name, value) in &inode.xattrs {
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(&0) {
            return Err("has an extended attribute with an impossible name");
        }
        if value.len() > XATTR_LEN_MAX {
            return Err("has an extended attribute that is too long");
        }
    }
    match &inode.kind {
        Kind::Directory | Kind::Fifo | Kind::Socket => Ok(()),
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => Ok(()),
        Kind::Symlink { target } => {
            if target.is_empty() || target.len() > PATH_LEN_MAX || target.contains(&0) {
                return Err("is a symlink with an impossible target");
            }
            if inode.mode != 0o777 {
                return Err("is a symlink with permissions of its own");
            }
            Ok(())
        }
        Kind::File(content) => check_content(content),
    }
}

fn check_content(content: &Content) -> Result<(), &'static str> {
    if content.size > i64::MAX as u64 {
        return Err("is larger than a file can be");
    }
    if let Some(extents) = &content.extents {
        let mut end = None;
        for extent in extents {
            let apart = end.is_none_or(|end| end < extent.offset);
            let fits = extent.len > 0
                && extent.offset.checked_add(extent.len).is_some()
                && extent.end() <= content.size;
            let aligned = extent.offset % EXTENT_ALIGN == 0
                && (extent.end() % EXTENT_ALIGN == 0 || extent.end() == content.size);
            if !(apart && fits && aligned) {
                return Err("has extents that overlap, touch or lie outside of it");
            }
            end = Some(extent.end());
        }
        let whole = extents.iter().any(|extent| extent.len == content.size);
        if whole || content.size == 0 {
            return Err("is called sparse and has no holes");
        }
    }
    let runs = piece_runs(content.size, content.extents.as_deref());
    let count: u64 = runs.iter().map(|(_, count)| count).sum();
    if count == content.pieces.len() as u64 {
        Ok(())
    } else {
        Err("has another number of hashes than of pieces")
    }
}

#[cfg(test)]
mod tests;
