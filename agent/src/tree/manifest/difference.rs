//! What sets two manifests, or a tree and its manifest, apart, path by path.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;

use tallybook_events::ids::Hash;

use super::build::{BuildError, Watch, build};
use super::{Content, Entry, Inode, Kind, Manifest, Node, PIECE_LEN, TreePath};

/// One difference between what is expected and what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: TreePath,
    /// In what.
    pub aspect: Aspect,
}

/// What can be different about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aspect {
    /// It is expected and not there.
    Missing,
    /// It is there and not expected.
    Unexpected,
    /// Its type.
    Kind,
    /// Which other paths are names of the same inode.
    Links,
    /// Permissions.
    Mode,
    /// Owner or group.
    Owner,
    /// Time of last modification.
    Mtime,
    /// An extended attribute, ACL or capability.
    Xattr {
        /// Its name.
        name: Vec<u8>,
    },
    /// Where a symlink points.
    Target,
    /// A device's numbers.
    Device,
    /// Length of the content.
    Size,
    /// The content.
    Content {
        /// Where the first piece starts that differs.
        offset: u64,
    },
    /// Where its holes are; the content is the same.
    Holes,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.path)?;
        match &self.aspect {
            Aspect::Missing => f.write_str("is missing"),
            Aspect::Unexpected => f.write_str("should not be there"),
            Aspect::Kind => f.write_str("has another type"),
            Aspect::Links => f.write_str("has other hard links"),
            Aspect::Mode => f.write_str("has other permissions"),
            Aspect::Owner => f.write_str("has another owner"),
            Aspect::Mtime => f.write_str("has another modification time"),
            Aspect::Xattr { name } => {
                write!(f, "differs in attribute {}", String::from_utf8_lossy(name))
            }
            Aspect::Target => f.write_str("points elsewhere"),
            Aspect::Device => f.write_str("is another device"),
            Aspect::Size => f.write_str("has another length"),
            Aspect::Content { offset } => write!(f, "has other content from byte {offset}"),
            Aspect::Holes => f.write_str("has other holes"),
        }
    }
}

impl Manifest {
    /// What is different in the tree below `dir`, in the order of paths; all of its content is hashed anew.
    ///
    /// # Errors
    /// When the tree can't be read.
    pub fn verify(
        &self,
        dir: BorrowedFd<'_>,
        watch: Watch<'_>,
    ) -> Result<Vec<Difference>, BuildError> {
        Ok(differences(self, &build(dir, watch)?))
    }
}

impl Difference {
    /// Whether a tree with this difference is another tree. Some file systems keep no holes, or others; nothing that
    /// reads a file can tell.
    pub fn counts(&self) -> bool {
        self.aspect != Aspect::Holes
    }
}

/// What is different in `found`, in the order of paths.
pub fn differences(expected: &Manifest, found: &Manifest) -> Vec<Difference> {
    let mut paths: BTreeMap<&TreePath, (Option<&Entry>, Option<&Entry>)> = BTreeMap::new();
    for entry in expected.entries() {
        paths.entry(&entry.path).or_default().0 = Some(entry);
    }
    for entry in found.entries() {
        paths.entry(&entry.path).or_default().1 = Some(entry);
    }
    let mut all = Vec::new();
    for (path, pair) in paths {
        let aspects = match pair {
            (Some(expected), Some(found)) => between(expected, found),
            (Some(_), None) => vec![Aspect::Missing],
            (None, _) => vec![Aspect::Unexpected],
        };
        all.extend(aspects.into_iter().map(|aspect| Difference {
            path: path.clone(),
            aspect,
        }));
    }
    all
}

fn between(expected: &Entry, found: &Entry) -> Vec<Aspect> {
    match (&expected.node, &found.node) {
        (Node::Inode(a), Node::Inode(b)) => between_inodes(a, b),
        (Node::Link { first: a }, Node::Link { first: b }) if a == b => Vec::new(),
        (Node::Link { .. }, _) | (_, Node::Link { .. }) => vec![Aspect::Links],
    }
}

fn between_inodes(a: &Inode, b: &Inode) -> Vec<Aspect> {
    let mut aspects = Vec::new();
    if a.mode != b.mode {
        aspects.push(Aspect::Mode);
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        aspects.push(Aspect::Owner);
    }
    if (a.mtime_s, a.mtime_ns) != (b.mtime_s, b.mtime_ns) {
        aspects.push(Aspect::Mtime);
    }
    let names: std::collections::BTreeSet<_> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
    for name in names {
        if a.xattrs.get(name) != b.xattrs.get(name) {
            aspects.push(Aspect::Xattr { name: name.clone() });
        }
    }
    match (&a.kind, &b.kind) {
        (a, b) if a == b => {}
        (Kind::File(a), Kind::File(b)) => aspects.push(between_contents(a, b)),
        (Kind::Symlink { .. }, Kind::Symlink { .. }) => aspects.push(Aspect::Target),
        (Kind::CharDevice { .. }, Kind::CharDevice { .. })
        | (Kind::BlockDevice { .. }, Kind::BlockDevice { .. }) => aspects.push(Aspect::Device),
        (
            Kind::Directory
            | Kind::File(_)
            | Kind::Symlink { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo
            | Kind::Socket,
            _,
        ) => aspects.push(Aspect::Kind),
    }
    aspects
}

/// Two contents that are not the same, or have other holes.
fn between_contents(a: &Content, b: &Content) -> Aspect {
    if a.size != b.size {
        return Aspect::Size;
    }
    let mut pieces: BTreeMap<u64, (u32, Option<Hash>, Option<Hash>)> = BTreeMap::new();
    for piece in a.pieces() {
        pieces.insert(piece.offset, (piece.len, Some(piece.hash), None));
    }
    for piece in b.pieces() {
        let pair = pieces
            .entry(piece.offset)
            .or_insert((piece.len, None, None));
        pair.2 = Some(piece.hash);
    }
    // A piece that only one of them has is a hole in the other: zeros.
    let zeros = vec![0; PIECE_LEN as usize];
    let differs = |(len, a, b): &(u32, Option<Hash>, Option<Hash>)| {
        let hole = || Hash::from(blake3::hash(&zeros[..*len as usize]));
        a.unwrap_or_else(hole) != b.unwrap_or_else(hole)
    };
    match pieces.iter().find(|(_, piece)| differs(piece)) {
        Some((offset, _)) => Aspect::Content { offset: *offset },
        None => Aspect::Holes,
    }
}
