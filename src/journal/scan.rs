//! Reading every place of a journal, damaged or not, many segments at once.
//!
//! Each segment says itself what stands before it, so that all are read at the same time; what they say of each other
//! is checked afterwards, in order. It goes on behind damage at the next record that can be of this log, so that each
//! damaged place is named once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use tallybook_events::gap::Gap;
use tallybook_events::header::HeaderView;
use tallybook_events::ids::Seq;
use tallybook_events::record::Frame;
use tallybook_events::segment::{self, SegmentHead};

use super::archive::{self, Loaded};
use super::follow::{self, Before, Depth, Next, Piece, Pieces, What};
use super::{Damage, Error, FRAME_LEN_MIN, Position, Tail, segment_path, segments};

/// What was found at a place of a journal.
#[derive(Debug)]
pub enum Found<T> {
    /// The head of a segment, sound.
    Head,
    /// A record.
    Record {
        /// Its event.
        seq: Seq,
        /// What was made of it.
        item: T,
        /// Whether it was held against the event directly before it.
        follows: bool,
        /// What is wrong with its place or its payload.
        wrong: Option<Damage>,
    },
    /// A gap that a recovery wrote.
    Gap(Gap),
    /// What holds the segment is damaged; as much of it as can be had is looked at.
    DamagedFile(Damage),
    /// A damaged head of a segment.
    DamagedHead(Damage),
    /// Bytes that are no record: at least one event is lost.
    Lost(Damage),
    /// A segment that the system does not give, where [`Inspect::past_unreadable`].
    Unreadable {
        /// Why not.
        error: Error,
        /// The segment behind it, where there is one: the events up to that may all be there.
        next: Option<Seq>,
    },
}

/// Where something was found.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The file.
    pub path: &'a Path,
    /// The segment.
    pub segment: Seq,
    /// The byte in it.
    pub offset: u64,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Segments that are done.
    pub segments: usize,
    /// Of how many.
    pub of: usize,
    /// The last event that was looked at.
    pub seq: Seq,
}

/// How a journal is scanned.
#[derive(Debug, Clone, Copy)]
pub struct Inspect {
    /// How closely. The last segment is always looked at whole: what was never acknowledged is told by that.
    pub depth: Depth,
    /// How many threads read; at least one.
    pub threads: usize,
    /// Only the last segment: what is before it is believed.
    pub only_last: bool,
    /// Finds a segment that can't be read, and goes on behind it; else it is an error.
    pub past_unreadable: bool,
}

impl Default for Inspect {
    fn default() -> Self {
        Inspect {
            depth: Depth::Payloads,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            only_last: false,
            past_unreadable: false,
        }
    }
}

/// One segment, scanned.
struct Scanned<T> {
    path: PathBuf,
    len: usize,
    head: Result<SegmentHead, Damage>,
    places: Vec<(usize, Found<T>)>,
    /// What stands before the place behind it.
    before: Before,
    torn: Option<usize>,
}

/// Reads every place of a journal. `inspector` makes for each segment what is called with each of its whole records, in
/// order; segments are read in several threads. `found` is called in order, from this one, until it breaks.
///
/// # Errors
/// When the files themselves can't be read.
pub fn scan<T: Send, I: FnMut(&Frame<'_>, &HeaderView<'_>) -> T>(
    directory: &Path,
    how: Inspect,
    inspector: impl Fn() -> I + Sync,
    mut found: impl FnMut(At<'_>, Found<T>) -> ControlFlow<()>,
    mut progress: impl FnMut(Progress),
) -> Result<Tail, Error> {
    let mut all = segments(directory)?;
    if all.is_empty() {
        return Err(Error::Missing(directory.to_owned()));
    }
    let mut before = Before::START;
    if how.only_last {
        all.drain(..all.len() - 1);
        let last = all.first().map(|last| archive::load(directory, *last));
        // Where it can't be read, that is found below.
        if let Some(Ok(loaded)) = last
            && let Ok(head) = follow::read_head(&loaded.bytes)
        {
            before = Before::behind(follow::link_of(&head));
        }
    }
    let read = |memory: &mut Vec<u8>, number: usize| -> Result<Scanned<T>, Error> {
        let Some(first) = all.get(number).copied() else {
            return Err(Error::Missing(directory.to_owned()));
        };
        let loaded = archive::load_into(directory, first, memory)?;
        let head = follow::read_head(&loaded.bytes);
        let assumed = match &head {
            Ok(head) => Before::behind_head(*head),
            Err(_) => Before::START,
        };
        let how = depth_of(how, number, all.len());
        let scanned = scan_segment(&loaded, head, assumed, how, inspector());
        *memory = loaded.bytes;
        Ok(scanned)
    };
    let mut tail = Tail::Whole;
    let mut done = 0;
    in_order(all.len(), how.threads, read, |number, scanned| {
        let Some(first) = all.get(number).copied() else {
            return ControlFlow::Break(Ok(()));
        };
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(error) if how.past_unreadable => {
                before = Before {
                    lost: true,
                    bridged: false,
                    head: None,
                    ..before
                };
                done += 1;
                let path = unreadable(&error, directory, first);
                let at = At {
                    path: &path,
                    segment: first,
                    offset: 0,
                };
                let next = all.get(number + 1).copied();
                return match found(at, Found::Unreadable { error, next }) {
                    ControlFlow::Continue(()) => ControlFlow::Continue(()),
                    ControlFlow::Break(()) => ControlFlow::Break(Ok(())),
                };
            }
            Err(error) => return ControlFlow::Break(Err(error)),
        };
        let path = scanned.path.clone();
        let at = |offset: usize| At {
            path: &path,
            segment: first,
            offset: offset as u64,
        };
        let checked = follow::check_head(scanned.head.clone(), first, before);
        let said = match &checked {
            Ok(_) => Found::Head,
            Err(damage) => Found::DamagedHead(damage.clone()),
        };
        let holds = checked.is_ok();
        if !holds {
            // By its name it may be that events are missing before it: that is said already.
            let expected = before.link.map_or(Seq(1), |link| link.seq.next());
            before.lost |= first != expected;
        }
        // Where its own head is not believed, what really stands before it decides.
        let scanned = match holds {
            true => scanned,
            false => {
                let loaded = match archive::load(directory, first) {
                    Ok(loaded) => loaded,
                    Err(error) => return ControlFlow::Break(Err(error)),
                };
                let real = Before {
                    head: None,
                    bridged: false,
                    ..before
                };
                let how = depth_of(how, number, all.len());
                scan_segment(&loaded, scanned.head, real, how, inspector())
            }
        };
        let mut flow = found(at(0), said);
        for (offset, place) in scanned.places {
            if flow.is_break() {
                break;
            }
            flow = found(at(offset), place);
        }
        if flow.is_break() {
            return ControlFlow::Break(Ok(()));
        }
        if let Some(torn) = scanned.torn {
            tail = Tail::Torn {
                at: Position {
                    segment: first,
                    offset: torn as u64,
                },
                bytes: (scanned.len - torn) as u64,
            };
        }
        // Nothing of it was read: what stands before it stands before what comes next.
        let is_unread = scanned.before.link.is_none();
        before = match is_unread {
            true => Before {
                lost: true,
                ..before
            },
            false => scanned.before,
        };
        done += 1;
        progress(Progress {
            segments: done,
            of: all.len(),
            seq: before.link.map_or(Seq::NONE, |link| link.seq),
        });
        ControlFlow::Continue(())
    })?;
    Ok(tail)
}

/// The file that can't be read.
fn unreadable(error: &Error, directory: &Path, first: Seq) -> PathBuf {
    match error {
        Error::Io { path, .. } => path.clone(),
        _ => segment_path(directory, first),
    }
}

struct SegmentDepth {
    depth: Depth,
    is_last: bool,
}

fn depth_of(how: Inspect, number: usize, segments: usize) -> SegmentDepth {
    let is_last = number + 1 == segments;
    SegmentDepth {
        depth: if is_last { Depth::Payloads } else { how.depth },
        is_last,
    }
}

/// Does work in several threads, each with memory of its own, and takes what comes of it in order. What is ahead of
/// being taken is bounded.
fn in_order<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(&mut Vec<u8>, usize) -> T + Sync,
    mut take: impl FnMut(usize, T) -> ControlFlow<Result<(), Error>>,
) -> Result<(), Error> {
    let threads = threads.clamp(1, count.max(1));
    if threads == 1 {
        let mut memory = Vec::new();
        for number in 0..count {
            if let ControlFlow::Break(end) = take(number, work(&mut memory, number)) {
                return end;
            }
        }
        return Ok(());
    }
    let (permit, permits) = mpsc::channel::<usize>();
    let permits = Mutex::new(permits);
    let (done, results) = mpsc::channel();
    let stop = AtomicBool::new(false);
    let mut ahead = 0..count;
    for number in ahead.by_ref().take(threads + 1) {
        let _open = permit.send(number);
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (done, permits, work, stop) = (done.clone(), &permits, &work, &stop);
            scope.spawn(move || {
                let mut memory = Vec::new();
                loop {
                    let next = permits
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .recv();
                    let Ok(number) = next else { return };
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // The others would wait for ever for what a thread that panicked owes.
                    let result = catch_unwind(AssertUnwindSafe(|| work(&mut memory, number)));
                    if done.send((number, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let permit = permit;
        let mut waiting: BTreeMap<usize, T> = BTreeMap::new();
        for number in 0..count {
            let taken = loop {
                if let Some(taken) = waiting.remove(&number) {
                    break taken;
                }
                let Ok((of, result)) = results.recv() else {
                    unreachable!("a thread ends only once nothing is wanted of it");
                };
                match result {
                    Ok(result) => drop(waiting.insert(of, result)),
                    Err(panic) => resume_unwind(panic),
                }
            };
            if let Some(next) = ahead.next() {
                let _open = permit.send(next);
            }
            if let ControlFlow::Break(end) = take(number, taken) {
                stop.store(true, Ordering::Relaxed);
                return end;
            }
        }
        Ok(())
    })
}

/// Every place of one segment.
fn scan_segment<T>(
    loaded: &Loaded,
    head: Result<SegmentHead, Damage>,
    assumed: Before,
    SegmentDepth { depth, is_last }: SegmentDepth,
    mut inspect: impl FnMut(&Frame<'_>, &HeaderView<'_>) -> T,
) -> Scanned<T> {
    let Loaded { path, bytes, wrong } = loaded;
    // Memory that is never touched costs nothing; growing copies what is there.
    let mut places: Vec<(usize, Found<T>)> = Vec::with_capacity(bytes.len() / FRAME_LEN_MIN);
    places.extend(wrong.clone().map(|wrong| (0, Found::DamagedFile(wrong))));
    let mut before = assumed;
    let mut offset = segment::LEN;
    let mut torn = None;
    let mut take = |before: &mut Before, piece: Piece<'_>, wrong: Option<Damage>| {
        let follows = before.link.is_some() && !before.lost;
        let found = match &piece.what {
            What::Record(frame, header) => Found::Record {
                seq: header.seq,
                item: inspect(frame, header),
                follows,
                wrong,
            },
            What::Gap(gap) => Found::Gap(gap.clone()),
        };
        *before = piece.behind(*before);
        places.push((piece.start, found));
        piece.end
    };
    let mut lost: Vec<(usize, Damage)> = Vec::new();
    let mut pieces = Pieces::default();
    loop {
        let broken = match follow::next(bytes, offset, before, depth, &mut pieces) {
            Next::End => break,
            Next::Room if is_last => break,
            Next::Room => {
                lost.push((offset, Damage::Room));
                break;
            }
            Next::Append => {
                for piece in pieces.of_append.drain(..) {
                    offset = take(&mut before, piece, None);
                }
                continue;
            }
            Next::Broken(broken) if is_last && !broken.was_durable => {
                torn = Some(offset);
                break;
            }
            Next::Broken(broken) => *broken,
        };
        for piece in broken.sound {
            take(&mut before, piece, None);
        }
        if let Some(piece) = broken.record {
            offset = take(&mut before, piece, Some(broken.damage));
            continue;
        }
        lost.push((broken.at, broken.damage));
        before.lost = true;
        before.head = None;
        match broken.resume {
            Some(resume) => offset = resume,
            None => break,
        }
    }
    let lost = lost
        .into_iter()
        .map(|(at, damage)| (at, Found::Lost(damage)));
    places.extend(lost);
    places.sort_by_key(|(at, _)| *at);
    let content = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    Scanned {
        path: path.clone(),
        len: content.max(torn.unwrap_or(0)),
        head,
        places,
        before,
        torn,
    }
}
