//! Doors for the fuzz targets: what the receiving end makes of the sending one's bytes and of its own journal.
//! Nothing else may use them.

use std::path::Path;

use tallybook_events::codec;
use tallybook_events::ids::Hash;
use tallybook_events::step::StepFailure;

use super::journal::{self, Journal};
use super::pieces::{Pieces, Ranges, ranges};
use super::receive::{Order, fetch_manifest};
use crate::step::Link;
use crate::tree::manifest::Manifest;

/// What a journal says.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Its records, each encoded.
    pub records: Vec<Vec<u8>>,
    /// Whether it is damaged.
    pub is_damaged: bool,
}

impl Told {
    fn of(told: &journal::Told) -> Self {
        let records = told.records.iter().map(codec::encode);
        Told {
            records: records.map(Result::unwrap_or_default).collect(),
            is_damaged: told.damage.is_some(),
        }
    }
}

/// What a journal says; `None` when it is not one of this manifest.
///
/// # Errors
/// When it can't be read.
pub fn read_journal(path: &Path, manifest: Hash) -> Result<Option<Told>, StepFailure> {
    Ok(journal::read(path, manifest)?.as_ref().map(Told::of))
}

/// The same, of a journal that is opened to go on with.
///
/// # Errors
/// When it can't be read or repaired.
pub fn open_journal(path: &Path, manifest: Hash) -> Result<Told, StepFailure> {
    let (_, told) = Journal::open(path, manifest)?;
    Ok(Told::of(&told))
}

/// How many pieces a manifest has, and the numbers in ranges that the other end sent, as ranges again.
pub fn numbers(manifest: &Manifest, named: &Ranges) -> Option<(u32, Option<Ranges>)> {
    let pieces = Pieces::of(manifest).ok()?;
    let numbers = pieces.numbers(named).ok();
    Some((pieces.count(), numbers.map(ranges)))
}

/// Receives a manifest's bytes that are to have this length and id.
///
/// # Errors
/// When the other end does not send them.
pub fn manifest(link: &mut dyn Link, expect: Hash, len: u64) -> Result<Vec<u8>, StepFailure> {
    let order = Order {
        expect,
        what: "what a fuzzer sends",
        staging: Path::new("/nonexistent"),
    };
    fetch_manifest(link, &order, len)
}
