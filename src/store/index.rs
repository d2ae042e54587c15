//! The index: where in the journal each event is, and which events have which terms.
//!
//! Events themselves stay in the journal. What sled keeps of a million of them is small enough that it opens in
//! milliseconds; with the events in it, opening alone took a third of a second (docs/decisions). Places are sealed in
//! blocks of 1024 events; a term has one list of events for every 8192. The events behind the last sealed block are read
//! from the journal.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::header::{Header, HeaderView};
use tallybook_events::ids::{OperationId, Seq};

use super::{Error, guarded, next, open_database};
use crate::journal::{Link, Position};
use block::decode;

mod block;

pub(super) use block::reread_places;
pub use block::{Block, End, Located, Place};

/// How many events a block has.
pub const BLOCK_EVENTS: u64 = 1024;
/// How many events one list of a term is about.
pub const STRETCH_EVENTS: u64 = 8 * BLOCK_EVENTS;

/// Rises when places or postings are laid out differently: an index of another version is built again.
const LAYOUT: u32 = 4;

const PLACES: &str = "places";
const POSTINGS: &str = "postings";
const META: &str = "meta";
const META_SEALED: &[u8] = b"sealed";

/// What the index says of itself: how far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    layout: u32,
    /// The last record in a block, or before one that holds only gaps.
    pub link: Link,
    /// Where that record begins in the journal.
    pub at: Position,
    /// Where what is behind it begins in the journal.
    pub next: Position,
    /// How many blocks there are.
    pub blocks: u64,
}

impl Sealed {
    /// The last event that a block answers for.
    pub fn filled(&self) -> Seq {
        Seq(self.blocks * BLOCK_EVENTS)
    }

    /// The last record.
    pub fn end(&self) -> End {
        (self.link, self.at, self.next)
    }
}

/// The part of [`Sealed`] that every layout of it has.
#[derive(Deserialize)]
struct SealedLink {
    layout: u32,
    link: Link,
}

/// The terms of an event: what it can be found by.
pub type Terms = BTreeSet<Vec<u8>>;

/// The classes of terms, those that fewest events share first.
const CLASSES: &[u8] = b"osctahk";

/// Whether an event's header has all these terms.
pub fn has_terms(header: &Header, mut wanted: Terms) -> bool {
    if !wanted.is_empty() {
        each_term(header, |term| {
            wanted.remove(term);
        });
    }
    wanted.is_empty()
}

/// The term of an operation. What people write of its id comes first, so that they find it by a part of that.
pub fn operation_term(id: &OperationId) -> Vec<u8> {
    let bytes = id.as_bytes();
    let (front, back) = bytes.split_at(bytes.len() - OperationId::SHORT_LEN);
    [b"o", back, front].concat()
}

fn each_term(header: &Header, term: impl FnMut(&[u8])) {
    let subject = header.subject.to_string();
    terms_of(
        &subject,
        header.operation,
        &header.kind,
        &header.actor.label(),
        term,
    );
}

/// The terms of a header that is read in place.
pub fn view_terms(header: &HeaderView<'_>, term: impl FnMut(&[u8])) {
    let actor = header.actor().unwrap_or_default();
    terms_of(
        header.subject,
        header.operation,
        header.kind,
        &actor.label(),
        term,
    );
}

fn terms_of(
    subject: &str,
    operation: Option<OperationId>,
    kind: &str,
    actor: &str,
    mut term: impl FnMut(&[u8]),
) {
    let mut buffer: Vec<u8> = Vec::with_capacity(64);
    let mut add = |class: u8, value: &[u8]| {
        buffer.clear();
        buffer.push(class);
        buffer.extend_from_slice(value);
        term(&buffer);
    };
    add(b's', subject.as_bytes());
    match subject.split_once(':') {
        Some(("host", host)) => add(b'h', host.as_bytes()),
        Some(("container", rest)) => {
            let (host, container) = rest.split_once('/').unwrap_or((rest, ""));
            add(b'h', host.as_bytes());
            add(b'c', container.as_bytes());
        }
        Some(("template", template)) => add(b't', template.as_bytes()),
        Some(_) | None => {}
    }
    if let Some(operation) = &operation {
        let term = operation_term(operation);
        add(b'o', term.get(1..).unwrap_or_default());
    }
    add(b'k', kind.as_bytes());
    if let Some((noun, _)) = kind.split_once('.') {
        add(b'k', noun.as_bytes());
    }
    add(b'a', actor.as_bytes());
}

/// Which way to go through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the oldest event on.
    Forward,
    /// From the newest event on.
    Back,
}

/// The index of sealed blocks.
pub struct Index {
    path: PathBuf,
    database: sled::Db,
    places: sled::Tree,
    postings: sled::Tree,
    meta: sled::Tree,
    sealed: RwLock<Option<Sealed>>,
}

impl Index {
    /// Opens or makes an index, and tells `seen` how far it says that the journal went: also where nothing else of
    /// it can be used.
    ///
    /// # Errors
    /// When sled refuses or is damaged, or the index has another layout.
    pub fn open(path: &Path, seen: impl FnOnce(Link)) -> Result<Self, Error> {
        let database = open_database(path)?;
        let tree = |name: &str| guarded(path, || database.open_tree(name));
        let (places, postings, meta) = (tree(PLACES)?, tree(POSTINGS)?, tree(META)?);
        let sealed = match guarded(path, || meta.get(META_SEALED))? {
            None => None,
            Some(bytes) => {
                let unreadable = |source| Error::Value {
                    path: path.to_owned(),
                    source,
                };
                let SealedLink { layout, link } = codec::decode(&bytes).map_err(unreadable)?;
                seen(link);
                if layout != LAYOUT {
                    return Err(Error::Contradiction {
                        path: path.to_owned(),
                        what: format!("its layout is {layout}, not {LAYOUT}"),
                    });
                }
                Some(codec::decode(&bytes).map_err(unreadable)?)
            }
        };
        Ok(Index {
            path: path.to_owned(),
            database,
            places,
            postings,
            meta,
            sealed: RwLock::new(sealed),
        })
    }

    /// How far the sealed blocks go; `None` while there is none.
    pub fn sealed(&self) -> Option<Sealed> {
        *self.sealed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next block, which is full.
    ///
    /// # Errors
    /// When sled refuses, or it is not the next one.
    pub fn seal(&self, block: &Block) -> Result<(), Error> {
        let expected = self.block_count();
        let Some((link, at, next)) = block.end.filter(|_| block.is_full()) else {
            return Err(self.contradiction(format!("block {} is not full", block.number)));
        };
        if block.number != expected {
            let what = format!("block {} was to follow {expected}", block.number);
            return Err(self.contradiction(what));
        }
        let stretch = block.number * BLOCK_EVENTS / STRETCH_EVENTS;
        let first = position(Seq(block.number * BLOCK_EVENTS + 1));
        let mut postings = sled::Batch::default();
        for (term, positions) in &block.postings {
            let key = posting_key(term, stretch);
            let mut list = Vec::new();
            if first > 0
                && let Some(before) = guarded(&self.path, || self.postings.get(&key))?
            {
                // A block that is written again, after a crash, is not to be in it twice.
                let before = positions_of(&before).unwrap_or_default();
                list.extend(before.into_iter().filter(|position| *position < first));
            }
            list.extend_from_slice(positions);
            let bytes: Vec<u8> = list.iter().flat_map(|one| one.to_le_bytes()).collect();
            postings.insert(key, bytes);
        }
        let sealed = Sealed {
            layout: LAYOUT,
            link,
            at,
            next,
            blocks: block.number + 1,
        };
        let bytes = codec::encode(&sealed).map_err(|source| Error::Value {
            path: self.path.clone(),
            source,
        })?;
        guarded(&self.path, || {
            self.places
                .insert(block.number.to_be_bytes(), block.encode())?;
            self.postings.apply_batch(postings)?;
            // Crash boundary: until this is written the block counts as not there, and is written again.
            self.meta.insert(META_SEALED, bytes)
        })?;
        *self.sealed.write().unwrap_or_else(PoisonError::into_inner) = Some(sealed);
        Ok(())
    }

    /// How many sealed blocks there are.
    pub fn block_count(&self) -> u64 {
        self.sealed().map_or(0, |sealed| sealed.blocks)
    }

    /// Where the events of a block are. Those that are lost are not among them.
    ///
    /// # Errors
    /// When sled refuses, or the block is missing or damaged.
    pub fn places(&self, number: u64) -> Result<Vec<Place>, Error> {
        let bytes = guarded(&self.path, || self.places.get(number.to_be_bytes()))?
            .ok_or_else(|| self.contradiction(format!("block {number} is missing")))?;
        decode(number, &bytes)
            .ok_or_else(|| self.contradiction(format!("block {number} is damaged")))
    }

    /// The events in a range with all of these terms, or all events in it, a stretch at a time.
    pub fn find<'a>(
        &'a self,
        terms: &Terms,
        range: Range<Seq>,
        direction: Direction,
    ) -> impl Iterator<Item = Result<Vec<Seq>, Error>> + use<'a> {
        let rank = |term: &Vec<u8>| CLASSES.iter().position(|class| term.first() == Some(class));
        let mut terms: Vec<Vec<u8>> = terms.iter().cloned().collect();
        terms.sort_by_key(|term| rank(term));
        let first = range.start.0.saturating_sub(1) / STRETCH_EVENTS;
        let stretches = first
            ..range
                .end
                .0
                .saturating_sub(1)
                .div_ceil(STRETCH_EVENTS)
                .max(first);
        let mut terms = terms.into_iter();
        let scan = terms.next().map(|term| {
            let keys = posting_key(&term, stretches.start)..posting_key(&term, stretches.end);
            let mut items = self.postings.range(keys);
            std::iter::from_fn(move || match direction {
                Direction::Forward => next(&self.path, &mut items),
                Direction::Back => next(&self.path, &mut items.by_ref().rev()),
            })
        });
        let others: Vec<Vec<u8>> = terms.collect();
        let mut all = scan.is_none().then_some(stretches).into_iter().flatten();
        let all = std::iter::from_fn(move || match direction {
            Direction::Forward => all.next(),
            Direction::Back => all.next_back(),
        });
        let all = all.map(|stretch| {
            let first = stretch * STRETCH_EVENTS + 1;
            Ok((first..first + STRETCH_EVENTS).map(Seq).collect())
        });
        let found = scan.into_iter().flatten();
        let found = found.map(move |item| self.posting(item, &others));
        all.chain(found).map(move |stretch| {
            let mut stretch: Vec<Seq> = stretch?;
            stretch.retain(|seq| range.contains(seq));
            if direction == Direction::Back {
                stretch.reverse();
            }
            Ok(stretch)
        })
    }

    /// The events of a posting that other terms share.
    fn posting(
        &self,
        item: Result<(sled::IVec, sled::IVec), Error>,
        others: &[Vec<u8>],
    ) -> Result<Vec<Seq>, Error> {
        let (key, value) = item?;
        let stretch = key.last_chunk().map(|number| u64::from_be_bytes(*number));
        let (Some(stretch), Some(mut positions)) = (stretch, positions_of(&value)) else {
            return Err(self.contradiction("a posting has another size".to_owned()));
        };
        for term in others {
            let other: BTreeSet<u16> = self.positions(term, stretch)?.into_iter().collect();
            positions.retain(|position| other.contains(position));
        }
        let first = Seq(stretch * STRETCH_EVENTS + 1);
        let seqs = positions
            .into_iter()
            .map(|one| Seq(first.0 + u64::from(one)));
        Ok(seqs.collect())
    }

    /// Where in a stretch the events with a term are.
    ///
    /// # Errors
    /// When sled refuses, or the posting is not of its shape.
    pub fn positions(&self, term: &[u8], stretch: u64) -> Result<Vec<u16>, Error> {
        let found = guarded(&self.path, || self.postings.get(posting_key(term, stretch)))?;
        match found.as_deref().map(positions_of) {
            None => Ok(Vec::new()),
            Some(Some(positions)) => Ok(positions),
            Some(None) => Err(self.contradiction("a posting has another size".to_owned())),
        }
    }

    /// Every posting, in no order: term, stretch, positions.
    ///
    /// # Errors
    /// When sled refuses, or one is not of its shape.
    pub fn postings(&self, mut each: impl FnMut(&[u8], u64, Vec<u16>)) -> Result<(), Error> {
        let mut items = self.postings.iter();
        while let Some(item) = next(&self.path, &mut items) {
            let (key, value) = item?;
            let term = key
                .get(2..key.len().saturating_sub(8))
                .filter(|term| key.starts_with(&posting_prefix(term)));
            let stretch = key.last_chunk().map(|number| u64::from_be_bytes(*number));
            let (Some(term), Some(stretch), Some(positions)) =
                (term, stretch, positions_of(&value))
            else {
                return Err(self.contradiction("a posting has another size".to_owned()));
            };
            each(term, stretch, positions);
        }
        Ok(())
    }

    /// The operations whose ids, as people write them, begin so.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn operations(&self, start: &str) -> Result<BTreeSet<OperationId>, Error> {
        let mut found = BTreeSet::new();
        let whole = data_encoding::HEXLOWER_PERMISSIVE
            .decode(start.get(..start.len() & !1).unwrap_or_default().as_bytes())
            .unwrap_or_default();
        // All terms of operations are equally long, and that comes first in a key.
        let any = operation_term(&OperationId::from_bytes([0; 16]));
        let mut prefix = posting_prefix(&any);
        prefix.truncate(prefix.len() - 16);
        prefix.extend_from_slice(&whole);
        let mut from = prefix.clone();
        // From one operation to the next, over all its postings.
        while let Some(item) = next(&self.path, &mut self.postings.range(from.clone()..)) {
            let (key, _) = item?;
            if !key.starts_with(&prefix) {
                break;
            }
            let id = key.get(3..19).and_then(|rotated| {
                let (back, front) = rotated.split_at(OperationId::SHORT_LEN);
                let bytes: [u8; 16] = [front, back].concat().try_into().ok()?;
                Some(OperationId::from_bytes(bytes))
            });
            found.extend(id.filter(|id| id.short().starts_with(start)));
            from = key.get(..19).unwrap_or_default().to_vec();
            from.extend_from_slice(&[u8::MAX; 9]);
        }
        Ok(found)
    }

    /// Lets sled write what it holds back. Durability does not depend on it.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn flush(&self) -> Result<(), Error> {
        guarded(&self.path, || self.database.flush()).map(|_| ())
    }

    pub(crate) fn contradiction(&self, what: String) -> Error {
        Error::Contradiction {
            path: self.path.clone(),
            what,
        }
    }
}

/// Where an event is in its stretch.
fn position(seq: Seq) -> u16 {
    (seq.0.saturating_sub(1) % STRETCH_EVENTS) as u16
}

fn positions_of(value: &[u8]) -> Option<Vec<u16>> {
    let (pairs, rest) = value.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
}

/// The length comes first, so that no term is a prefix of another one's keys.
fn posting_prefix(term: &[u8]) -> Vec<u8> {
    let len = u16::try_from(term.len()).unwrap_or(u16::MAX);
    let mut key = Vec::with_capacity(term.len() + 10);
    key.extend_from_slice(&len.to_be_bytes());
    key.extend_from_slice(term);
    key
}

fn posting_key(term: &[u8], stretch: u64) -> Vec<u8> {
    let mut key = posting_prefix(term);
    key.extend_from_slice(&stretch.to_be_bytes());
    key
}

/// For the fuzz targets: what the index says of itself, decoded and encoded again.
pub(super) fn reread(bytes: &[u8]) -> Option<Vec<u8>> {
    let part: SealedLink = codec::decode(bytes).ok()?;
    let whole: Sealed = codec::decode(bytes).ok()?;
    let is_same = part.link == whole.link && part.layout == whole.layout;
    assert!(is_same, "its part says what the whole does not");
    codec::encode(&whole).ok()
}
