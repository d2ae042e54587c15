//! The distinct pieces of content of a manifest, numbered the same way on both ends: in the order of their first
//! place. Content that is in a tree twice has one number, is sent once, and is written to all its places.

use std::collections::HashMap;

use tallybook_events::ids::Hash;

use super::message::PACK_LEN_MAX;
use crate::tree::manifest::{Entry, Manifest, Piece};

/// Numbers of pieces: `(first, count)`, ascending.
pub type Ranges = Vec<(u32, u32)>;

/// Where a piece is in the tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) entry: &'a Entry,
    pub(super) piece: Piece,
}

/// All distinct pieces.
pub(super) struct Pieces<'a> {
    /// Sorted by number; the places of one number follow each other.
    places: Vec<Place<'a>>,
    /// Where the places of a number begin.
    starts: Vec<usize>,
}

/// The manifest gives the same hash to pieces of different lengths: it was not made from a tree.
#[derive(Debug, thiserror::Error)]
#[error("{path} in the manifest has the hash of a piece of another length")]
pub(super) struct Contradiction {
    path: String,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(manifest: &'a Manifest) -> Result<Self, Contradiction> {
        let mut numbers: HashMap<Hash, (u32, u32)> = HashMap::new();
        let mut numbered = Vec::new();
        for entry in manifest.entries() {
            let Some(content) = entry.content() else {
                continue;
            };
            for piece in content.pieces() {
                // A manifest is too short for more pieces than a u32 can number.
                let next = numbers.len() as u32;
                let (number, len) = *numbers.entry(piece.hash).or_insert((next, piece.len));
                if len != piece.len {
                    return Err(Contradiction {
                        path: entry.path.to_string(),
                    });
                }
                numbered.push((number, Place { entry, piece }));
            }
        }
        // Stable: the places of a number stay in the order of the tree.
        numbered.sort_by_key(|(number, _)| *number);
        let mut starts = Vec::with_capacity(numbers.len() + 1);
        for (at, (number, _)) in numbered.iter().enumerate() {
            if *number as usize == starts.len() {
                starts.push(at);
            }
        }
        starts.push(numbered.len());
        Ok(Pieces {
            places: numbered.into_iter().map(|(_, place)| place).collect(),
            starts,
        })
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    /// All places of a piece, at least one. The number must be below the count.
    pub(super) fn places(&self, number: u32) -> &[Place<'a>] {
        let number = number as usize;
        &self.places[self.starts[number]..self.starts[number + 1]]
    }

    /// The hash and length of a piece.
    pub(super) fn piece(&self, number: u32) -> &Piece {
        &self.places(number)[0].piece
    }

    /// How many bytes these pieces have.
    pub(super) fn len_of(&self, numbers: impl IntoIterator<Item = u32>) -> u64 {
        let lens = numbers.into_iter().map(|n| u64::from(self.piece(n).len));
        lens.sum()
    }

    /// The numbers in ranges that the other end sent.
    ///
    /// # Errors
    /// When one is beyond the count, or they do not ascend.
    pub(super) fn numbers(&self, ranges: &[(u32, u32)]) -> Result<Vec<u32>, &'static str> {
        let mut numbers = Vec::new();
        let mut end = 0;
        for (first, count) in ranges {
            let next = first.checked_add(*count).filter(|end| *end <= self.count());
            let next = next.ok_or("a piece is named that is not in the manifest")?;
            if *count == 0 || *first < end {
                return Err("pieces are named twice or out of order");
            }
            numbers.extend(*first..next);
            end = next;
        }
        Ok(numbers)
    }
}

/// Ascending numbers as ranges.
pub(super) fn ranges(numbers: impl IntoIterator<Item = u32>) -> Ranges {
    let mut ranges: Ranges = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            Some(_) | None => ranges.push((number, 1)),
        }
    }
    ranges
}

/// Pieces in packs of [`PACK_LEN_MAX`] at most.
pub(super) fn packs(pieces: &Pieces<'_>, wanted: &[u32]) -> Vec<Vec<u32>> {
    let mut packs: Vec<Vec<u32>> = Vec::new();
    let mut room = 0;
    for number in wanted {
        let len = pieces.piece(*number).len as usize;
        match packs.last_mut() {
            Some(pack) if len <= room => pack.push(*number),
            Some(_) | None => {
                packs.push(vec![*number]);
                room = PACK_LEN_MAX;
            }
        }
        room -= len;
    }
    packs
}
