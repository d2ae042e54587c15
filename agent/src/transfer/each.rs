//! What is done with pieces on this host before any is asked for: reading back what an interrupted attempt left,
//! and taking over what other trees hold. Every piece is hashed before it counts. Two threads work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tallybook_events::ids::Hash;
use tallybook_events::step::StepFailure;

use super::journal::Record;
use super::local::{self, Source};
use super::message::{self, FromReceiver};
use super::pieces::{Pieces, packs};
use super::receive::interrupted;
use super::send::WORKING_INTERVAL;
use super::staged::Staged;
use crate::step::Link;
use crate::tree::beneath::Root;
use crate::tree::manifest::Manifest;
use crate::tree::unpack::Hand;

/// How many threads work.
const THREADS: usize = 2;
/// How often is looked whether to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Reads back what the journal says is there; what is not what it should be is as if it had never come.
pub(super) fn resume(
    staged: &mut Staged<'_>,
    link: &mut dyn Link,
    records: &[Record],
    repaired: &mut Vec<String>,
) -> Result<(), StepFailure> {
    let mut said = BTreeSet::new();
    for record in records {
        let ranges = match record {
            Record::Pack { pieces, .. } | Record::Local { pieces } => pieces,
            Record::Complete(_) => continue,
        };
        // Numbers that the manifest does not have can't be in a journal of ours; they are not worth failing for.
        said.extend(staged.pieces.numbers(ranges).unwrap_or_default());
    }
    let said: Vec<u32> = said.into_iter().collect();
    let (root, pieces) = (staged.root, staged.pieces);
    let total = pieces.len_of(said.iter().copied());
    let mut done = 0;
    let mut good = Vec::new();
    each(
        pieces,
        &said,
        link,
        || (Hand::new(root), Vec::new()),
        |(hand, buffer), number| in_place(root, pieces, number, hand, buffer),
        |link, numbers, count| {
            done += count;
            link.progress("checking what had arrived", done, total);
            good.extend(numbers);
            Ok(())
        },
    )?;
    good.sort_unstable();
    staged.resumed(&good);
    let bad = said.len() - good.len();
    if bad > 0 {
        let first = said.iter().find(|n| good.binary_search(n).is_err());
        let path = first.map(|n| pieces.places(*n)[0].entry.path.to_string());
        repaired.push(format!(
            "{bad} pieces that had arrived were damaged, first of all in {}",
            path.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Whether a piece is in all its places.
fn in_place(
    root: &Root,
    pieces: &Pieces<'_>,
    number: u32,
    hand: &mut Hand<'_>,
    buffer: &mut Vec<u8>,
) -> Result<bool, StepFailure> {
    for place in pieces.places(number) {
        buffer.resize(place.piece.len as usize, 0);
        let read = hand.read(&place.entry.path, place.piece.offset, buffer);
        if !read.map_err(|e| e.failure(root.label()))? {
            return Ok(false);
        }
        if Hash::from(blake3::hash(buffer)) != place.piece.hash {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where the file system can, files that another tree has under the same path share its extents.
pub(super) fn share(
    staged: &mut Staged<'_>,
    link: &mut dyn Link,
    manifest: &Manifest,
    sources: &[Source],
) -> Result<(), StepFailure> {
    let (root, pieces) = (staged.root, staged.pieces);
    let missing = staged.missing();
    if missing.is_empty() || sources.is_empty() {
        return Ok(());
    }
    let wanted: std::collections::HashSet<Hash> =
        missing.iter().map(|n| pieces.piece(*n).hash).collect();
    let mut hand = Hand::new(root);
    let mut shared = BTreeSet::new();
    let mut told = Instant::now();
    for entry in manifest.entries() {
        let Some(content) = entry.content() else {
            continue;
        };
        if !content.pieces.iter().any(|hash| wanted.contains(hash)) {
            continue;
        }
        let Some(source) = local::same_file(sources, entry) else {
            continue;
        };
        // A source that can't be opened, or is a symlink by now, is none: the line has it, too.
        let Ok(from) = source.root.open_file(entry.path.as_path()) else {
            continue;
        };
        let sharing = hand.share(&entry.path, content, &from);
        if !sharing.map_err(|e| e.failure(root.label()))? {
            break;
        }
        shared.insert(&entry.path);
        alive(link, &mut told)?;
    }
    let whole = |number: &u32| {
        let places = pieces.places(*number);
        places
            .iter()
            .all(|place| shared.contains(&place.entry.path))
    };
    let numbers: Vec<u32> = missing.into_iter().filter(whole).collect();
    each(
        pieces,
        &numbers,
        link,
        || (Hand::new(root), Vec::new()),
        |(hand, buffer), number| in_place(root, pieces, number, hand, buffer),
        |link, numbers, _| staged.found(link, &numbers),
    )
}

/// Copies the missing pieces that other trees have.
pub(super) fn copy(
    staged: &mut Staged<'_>,
    link: &mut dyn Link,
    sources: &[Source],
) -> Result<(), StepFailure> {
    let (root, pieces) = (staged.root, staged.pieces);
    let spots = local::spots(sources);
    let mut numbers = staged.missing();
    numbers.retain(|number| spots.contains_key(&pieces.piece(*number).hash));
    let hands = || {
        let from: Vec<_> = sources
            .iter()
            .map(|source| Hand::new(&source.root))
            .collect();
        (Hand::new(root), from, Vec::new())
    };
    let take = |(to, from, buffer): &mut (Hand<'_>, Vec<Hand<'_>>, Vec<u8>), number| {
        let piece = pieces.piece(number);
        let Some(spot) = spots.get(&piece.hash) else {
            return Ok(false);
        };
        buffer.resize(piece.len as usize, 0);
        // A source that can't be read, or was changed, is none.
        let read = from[spot.source].read(spot.path, spot.offset, buffer);
        if !read.unwrap_or(false) || Hash::from(blake3::hash(buffer)) != piece.hash {
            return Ok(false);
        }
        write(root, pieces, number, to, buffer)?;
        Ok(true)
    };
    each(pieces, &numbers, link, hands, take, |link, numbers, _| {
        staged.found(link, &numbers)
    })
}

/// Writes a piece, whose hash was checked, to all its places.
pub(super) fn write(
    root: &Root,
    pieces: &Pieces<'_>,
    number: u32,
    hand: &mut Hand<'_>,
    bytes: &[u8],
) -> Result<(), StepFailure> {
    for place in pieces.places(number) {
        let (path, piece) = (&place.entry.path, &place.piece);
        let Some(content) = place.entry.content() else {
            continue;
        };
        if !content.holes_are_zero(piece, bytes) {
            return Err(crate::step::fail(
                tallybook_events::step::FailureClass::Verification,
                format!("the manifest says that {path} has holes where its content is not zero"),
            ));
        }
        hand.write(path, content, piece, bytes)
            .map_err(|e| e.failure(root.label()))?;
    }
    Ok(())
}

/// Tells the other end now and then that this one is still there; an error when it should stop.
fn alive(link: &mut dyn Link, told: &mut Instant) -> Result<(), StepFailure> {
    if link.stop_requested() {
        return Err(interrupted());
    }
    if told.elapsed() >= WORKING_INTERVAL {
        *told = Instant::now();
        message::send(link, FromReceiver::Working)?;
    }
    Ok(())
}

/// Does `work` for each number on threads of their own, each with a state of its own; `tell` hears for which
/// numbers it said yes, and how many bytes were gone through.
fn each<S>(
    pieces: &Pieces<'_>,
    numbers: &[u32],
    link: &mut dyn Link,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u32) -> Result<bool, StepFailure> + Sync,
    mut tell: impl FnMut(&mut dyn Link, Vec<u32>, u64) -> Result<(), StepFailure>,
) -> Result<(), StepFailure> {
    if numbers.is_empty() {
        return Ok(());
    }
    let groups = packs(pieces, numbers);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (results, ended) = sync_channel(THREADS * 2);
    let mut told = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let results = results.clone();
            let (groups, next, stop, state, work) = (&groups, &next, &stop, &state, &work);
            scope.spawn(move || {
                let mut state = state();
                while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let good: Result<Vec<u32>, StepFailure> = group
                        .iter()
                        .filter_map(|number| match work(&mut state, *number) {
                            Ok(true) => Some(Ok(*number)),
                            Ok(false) => None,
                            Err(error) => Some(Err(error)),
                        })
                        .collect();
                    let len = pieces.len_of(group.iter().copied());
                    if results.send(good.map(|good| (good, len))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        let mut listen = || {
            loop {
                match ended.recv_timeout(LOOK_INTERVAL) {
                    Ok(done) => {
                        let (good, len) = done?;
                        tell(link, good, len)?;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                alive(link, &mut told)?;
            }
        };
        let outcome = listen();
        stop.store(true, Ordering::Relaxed);
        // A thread that waits to be heard sees that nobody listens any more.
        drop(ended);
        outcome
    })
}
