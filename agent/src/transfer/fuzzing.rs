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

/// The records of a journal, each encoded, and whether it is damaged; `None` when it is not one of this manifest.
pub fn read_journal(
    path: &Path,
    manifest: Hash,
) -> Result<Option<(Vec<Vec<u8>>, bool)>, StepFailure> {
    let told = journal::read(path, manifest)?;
    Ok(told.map(|told| (encoded(&told.records), told.damage.is_some())))
}

/// The same, of a journal that is opened to go on with.
pub fn open_journal(path: &Path, manifest: Hash) -> Result<(Vec<Vec<u8>>, bool), StepFailure> {
    let (_, told) = Journal::open(path, manifest)?;
    Ok((encoded(&told.records), told.damage.is_some()))
}

fn encoded(records: &[journal::Record]) -> Vec<Vec<u8>> {
    let bytes = records.iter().map(codec::encode);
    bytes.map(Result::unwrap_or_default).collect()
}

/// How many pieces a manifest has, and the numbers in ranges that the other end sent, as ranges again.
pub fn numbers(manifest: &Manifest, named: &Ranges) -> Option<(u32, Option<Ranges>)> {
    let pieces = Pieces::of(manifest).ok()?;
    let numbers = pieces.numbers(named).ok();
    Some((pieces.count(), numbers.map(ranges)))
}

/// Receives a manifest's bytes that are to have this length and id.
pub fn manifest(link: &mut dyn Link, expect: Hash, len: u64) -> Result<Vec<u8>, StepFailure> {
    let order = Order {
        expect,
        what: "what a fuzzer sends",
        staging: Path::new("/nonexistent"),
    };
    fetch_manifest(link, &order, len)
}
