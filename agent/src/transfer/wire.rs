//! Asking for what is missing, and taking it in: packs are verified and written by two threads while the next
//! ones come. No piece is written whose hash is not the manifest's.

use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, StepFailure};

use super::each::write;
use super::journal::Record;
use super::message::{self, FromReceiver, FromSender, PACK_LEN_MAX, Pack, RANGES_MAX};
use super::pieces::{Pieces, ranges};
use super::receive::{interrupted, next, unexpected};
use super::staged::Staged;
use crate::step::{Link, fail};
use crate::tree::beneath::Root;
use crate::tree::unpack::Hand;

/// How many packs may be under way or in work: bounds the memory of the relay and of this end.
pub(super) const WINDOW: u32 = 32;
/// How many of them may be in work here before none more is taken in.
const WORKING_MAX: u32 = 8;
/// How many threads verify and write.
const THREADS: usize = 2;

/// A pack with the numbers it carries.
struct Job {
    pack: Pack,
    numbers: Vec<u32>,
}

/// A pack that was written.
struct Taken {
    record: Record,
    numbers: Vec<u32>,
    wire_bytes: u64,
}

/// Gets everything that is missing. What has come is journalled when this returns, even if it returns an error.
pub(super) fn fetch(staged: &mut Staged<'_>, link: &mut dyn Link) -> Result<(), StepFailure> {
    let wanted = staged.missing();
    if wanted.is_empty() {
        return staged.flush();
    }
    let all = ranges(wanted.iter().copied());
    let mut parts = all.chunks(RANGES_MAX).peekable();
    message::send(link, FromReceiver::Credit { packs: WINDOW })?;
    while let Some(part) = parts.next() {
        let more = parts.peek().is_some();
        let pieces = part.to_vec();
        message::send(link, FromReceiver::Want { pieces, more })?;
    }
    let (root, pieces) = (staged.root, staged.pieces);
    let (jobs, queue) = sync_channel(WORKING_MAX as usize);
    let queue = Mutex::new(queue);
    let (taken, results) = channel();
    let outcome = std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (queue, taken) = (&queue, taken.clone());
            scope.spawn(move || take_all(root, pieces, queue, &taken));
        }
        drop(taken);
        let outcome = take_in(staged, link, wanted, jobs, &results);
        // The queue is closed; what is still in it is written, so that it need not be sent again.
        let rest = results
            .iter()
            .try_for_each(|taken| note(staged, link, taken));
        outcome.and(rest)
    });
    // That what has come may not be on the disk is the worse of two failures.
    staged.flush().and(outcome)
}

fn note(
    staged: &mut Staged<'_>,
    link: &mut dyn Link,
    taken: Result<Taken, StepFailure>,
) -> Result<(), StepFailure> {
    let Taken {
        record,
        numbers,
        wire_bytes,
    } = taken?;
    staged.arrived(link, record, &numbers, wire_bytes)
}

fn take_in(
    staged: &mut Staged<'_>,
    link: &mut dyn Link,
    wanted: Vec<u32>,
    jobs: SyncSender<Job>,
    results: &Receiver<Result<Taken, StepFailure>>,
) -> Result<(), StepFailure> {
    let mut left = wanted.len();
    let mut asked = vec![false; staged.pieces.count() as usize];
    for number in wanted {
        asked[number as usize] = true;
    }
    // The three always add up to the window.
    let (mut under_way, mut working, mut to_grant) = (WINDOW, 0, 0);
    while left > 0 {
        if link.stop_requested() {
            return Err(interrupted());
        }
        loop {
            let wait = working >= WORKING_MAX || (under_way == 0 && to_grant == 0);
            let taken = if wait {
                results.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                results.try_recv()
            };
            match taken {
                Ok(taken) => note(staged, link, taken)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(ended_early()),
            }
            working -= 1;
            to_grant += 1;
        }
        if to_grant >= WINDOW / 4 || under_way == 0 {
            message::send(link, FromReceiver::Credit { packs: to_grant })?;
            under_way += std::mem::take(&mut to_grant);
        }
        let pack = match next(link)? {
            FromSender::Pack(pack) if under_way > 0 => pack,
            other => return Err(unexpected(&other)),
        };
        let numbers = check_numbers(staged.pieces, &pack, &mut asked)?;
        left -= numbers.len();
        under_way -= 1;
        working += 1;
        jobs.send(Job { pack, numbers })
            .map_err(|_| ended_early())?;
    }
    Ok(())
}

fn ended_early() -> StepFailure {
    fail(
        FailureClass::Other,
        "a thread that writes the tree ended early",
    )
}

/// The numbers in a pack, each of which was asked for and has not come yet.
fn check_numbers(
    pieces: &Pieces<'_>,
    pack: &Pack,
    asked: &mut [bool],
) -> Result<Vec<u32>, StepFailure> {
    let wrong = |what: &str| bad_pack(pack, what);
    let count = pack
        .pieces
        .iter()
        .map(|range| u64::from(range.1))
        .sum::<u64>();
    // Empty files have no pieces, so each takes a byte at least.
    if count == 0 || count > PACK_LEN_MAX as u64 {
        return Err(wrong("it says that it carries nothing, or too much"));
    }
    let numbers = pieces.numbers(&pack.pieces).map_err(wrong)?;
    for number in &numbers {
        if !std::mem::take(&mut asked[*number as usize]) {
            return Err(wrong("it carries what was not asked for"));
        }
    }
    Ok(numbers)
}

fn bad_pack(pack: &Pack, what: &str) -> StepFailure {
    fail(
        FailureClass::Verification,
        format!("pack {} is no good: {what}", pack.id.short()),
    )
}

fn take_all(
    root: &Root,
    pieces: &Pieces<'_>,
    queue: &Mutex<Receiver<Job>>,
    taken: &Sender<Result<Taken, StepFailure>>,
) {
    let mut hand = Hand::new(root);
    let mut content = Vec::with_capacity(PACK_LEN_MAX);
    loop {
        let next = {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.recv()
        };
        let Ok(job) = next else { return };
        let wire_bytes = job.pack.bytes.0.len() as u64;
        let outcome = take(root, pieces, &job, &mut hand, &mut content).map(|()| Taken {
            record: Record::Pack {
                id: job.pack.id,
                pieces: job.pack.pieces,
            },
            numbers: job.numbers,
            wire_bytes,
        });
        if taken.send(outcome).is_err() {
            return;
        }
    }
}

/// Verifies a pack, then each of its pieces, and writes them.
fn take(
    root: &Root,
    pieces: &Pieces<'_>,
    job: &Job,
    hand: &mut Hand<'_>,
    content: &mut Vec<u8>,
) -> Result<(), StepFailure> {
    let pack = &job.pack;
    if Hash::from(blake3::hash(&pack.bytes.0)) != pack.id {
        return Err(bad_pack(pack, "its bytes were changed on the way"));
    }
    let len = pieces.len_of(job.numbers.iter().copied());
    if len > PACK_LEN_MAX as u64 {
        return Err(bad_pack(pack, "it is too long"));
    }
    let len = len as usize;
    content.clear();
    let bytes = if pack.zstd {
        content.reserve(len);
        zstd::bulk::Decompressor::new()
            .and_then(|mut zstd| zstd.decompress_to_buffer(&pack.bytes.0, content))
            .map_err(|e| bad_pack(pack, &format!("it can't be decompressed: {e}")))?;
        &content[..]
    } else {
        &pack.bytes.0[..]
    };
    if bytes.len() != len {
        return Err(bad_pack(pack, "it has another length than its pieces"));
    }
    let mut at = 0;
    for number in &job.numbers {
        let piece = pieces.piece(*number);
        let piece_bytes = &bytes[at..at + piece.len as usize];
        at += piece.len as usize;
        if Hash::from(blake3::hash(piece_bytes)) != piece.hash {
            let path = &pieces.places(*number)[0].entry.path;
            let what = format!(
                "it carries something else as {path} from byte {}",
                piece.offset
            );
            return Err(bad_pack(pack, &what));
        }
        write(root, pieces, *number, hand, piece_bytes)?;
    }
    Ok(())
}
