//! What is done to a file.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Something done to bytes of a file, or to the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    FlipBit,
    FlipByte,
    Zero(usize),
    Fill,
    Truncate,
    Cut,
    Insert,
    Double,
    Swap,
    FromBranch,
    FromOtherLog,
    OtherEpoch,
    Delete,
    Empty,
    Directory,
    LinkNowhere,
    LinkToAnother,
    SwapFiles,
    BranchFile,
    OtherLogFile,
}

/// Where in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Head,
    Middle,
    Tail,
}

pub(crate) const PLACES: [Place; 3] = [Place::Head, Place::Middle, Place::Tail];

/// Done to bytes.
pub(crate) const TO_BYTES: [Action; 9] = [
    Action::FlipBit,
    Action::FlipByte,
    Action::Zero(16),
    Action::Zero(512),
    Action::Zero(4096),
    Action::Fill,
    Action::Truncate,
    Action::Cut,
    Action::Insert,
];

/// Done to parts: a record, a block.
pub(crate) const TO_PARTS: [Action; 4] = [
    Action::Double,
    Action::Swap,
    Action::FromBranch,
    Action::FromOtherLog,
];

/// Done to files.
pub(crate) const TO_FILES: [Action; 8] = [
    Action::Delete,
    Action::Empty,
    Action::Directory,
    Action::LinkNowhere,
    Action::LinkToAnother,
    Action::SwapFiles,
    Action::BranchFile,
    Action::OtherLogFile,
];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Head => "head",
            Place::Middle => "middle",
            Place::Tail => "tail",
        })
    }
}

impl Place {
    /// The first of so many bytes at this place of a stretch.
    fn of(self, stretch: &Range<usize>, len: usize) -> usize {
        let room = stretch.len() - len.min(stretch.len());
        stretch.start
            + match self {
                Place::Head => 0,
                Place::Middle => room / 2,
                Place::Tail => room,
            }
    }

    pub(crate) fn among(self, count: usize) -> usize {
        match self {
            Place::Head => 0,
            Place::Middle => count / 2,
            Place::Tail => count - 1,
        }
    }
}

/// Does something to bytes of a stretch of a file. Nothing for what is not done to bytes.
pub(crate) fn to_bytes(action: Action, place: Place, bytes: &mut Vec<u8>, stretch: Range<usize>) {
    let at = |len: usize| {
        let from = place.of(&stretch, len);
        from..(from + len).min(stretch.end)
    };
    match action {
        Action::FlipBit => bytes[at(1)][0] ^= 1,
        Action::FlipByte => bytes[at(1)][0] ^= 0xff,
        Action::Zero(len) => bytes[at(len)].fill(0),
        Action::Fill => bytes[at(512)].fill(0xa5),
        Action::Truncate => bytes.truncate(match place {
            Place::Head => stretch.start + 1,
            Place::Middle => stretch.start + stretch.len() / 2,
            Place::Tail => stretch.end - 1,
        }),
        Action::Cut => drop(bytes.drain(at(100))),
        Action::Insert => {
            let from = at(0).start;
            bytes.splice(from..from, [0x5a; 100]);
        }
        Action::Double
        | Action::Swap
        | Action::FromBranch
        | Action::FromOtherLog
        | Action::OtherEpoch
        | Action::Delete
        | Action::Empty
        | Action::Directory
        | Action::LinkNowhere
        | Action::LinkToAnother
        | Action::SwapFiles
        | Action::BranchFile
        | Action::OtherLogFile => {}
    }
}

/// Doubles a part behind itself.
pub(crate) fn double(bytes: &mut Vec<u8>, part: Range<usize>) {
    let again = bytes[part.clone()].to_vec();
    bytes.splice(part.end..part.end, again);
}

/// Swaps a part with its neighbour.
pub(crate) fn swap(bytes: &mut Vec<u8>, parts: &[Range<usize>], number: usize) {
    let first = number.min(parts.len() - 2);
    let (one, other) = (parts[first].clone(), parts[first + 1].clone());
    let swapped = [&bytes[other.clone()], &bytes[one.clone()]].concat();
    bytes.splice(one.start..other.end, swapped);
}

/// The other files that an action on a whole file may need.
pub(crate) struct Others<'a> {
    /// Another file of the same kind in the same store,
    pub(crate) another: &'a Path,
    /// the same file in a branch of the log,
    pub(crate) branch: &'a Path,
    /// and in another log.
    pub(crate) other_log: &'a Path,
}

/// Does something to a whole file. Nothing for what is done to its bytes.
pub(crate) fn to_file(action: Action, path: &Path, others: &Others<'_>) {
    let replace = |bytes: &[u8]| std::fs::write(path, bytes).unwrap();
    let link = |to: PathBuf| {
        std::fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    match action {
        Action::Delete => std::fs::remove_file(path).unwrap(),
        Action::Empty => replace(b""),
        Action::Directory => {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }
        Action::LinkNowhere => link("nowhere".into()),
        Action::LinkToAnother => link(others.another.to_owned()),
        Action::SwapFiles => {
            let (one, other) = (
                std::fs::read(path).unwrap(),
                std::fs::read(others.another).unwrap(),
            );
            replace(&other);
            std::fs::write(others.another, one).unwrap();
        }
        Action::BranchFile => replace(&std::fs::read(others.branch).unwrap()),
        Action::OtherLogFile => replace(&std::fs::read(others.other_log).unwrap()),
        Action::FlipBit
        | Action::FlipByte
        | Action::Zero(_)
        | Action::Fill
        | Action::Truncate
        | Action::Cut
        | Action::Insert
        | Action::Double
        | Action::Swap
        | Action::FromBranch
        | Action::FromOtherLog
        | Action::OtherEpoch => {}
    }
}
