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

/// How often the last segment is read again while it changes.
const AGAIN_MAX: u32 = 50;
/// So many places are found before they are told, where one thread does both.
const STRETCH: usize = 512;

type Places<T> = Vec<(usize, Found<T>)>;

/// A segment that was told of, unless whoever listens had enough.
type Told = Result<ControlFlow<(), (Seq, SegmentEnd)>, Error>;

/// One segment, scanned.
struct Scanned<T> {
    first: Seq,
    path: PathBuf,
    head: Result<SegmentHead, Damage>,
    places: Places<T>,
    end: SegmentEnd,
}

/// How a segment ends.
struct SegmentEnd {
    len: usize,
    /// What stands before the place behind it.
    before: Before,
    torn: Option<usize>,
}

/// How far a scan is, in the order of the log.
struct Course {
    before: Before,
    tail: Tail,
    done: usize,
}

impl Course {
    /// Checks the head of the next segment. Whether it is believed, and what is to be told of it.
    fn head<T>(&mut self, first: Seq, head: &Result<SegmentHead, Damage>) -> (bool, Found<T>) {
        match follow::check_head(head.clone(), first, self.before) {
            Ok(_) => (true, Found::Head),
            Err(damage) => {
                // By its name it may be that events are missing before it: that is said already.
                let expected = self.before.link.map_or(Seq(1), |link| link.seq.next());
                self.before.lost |= first != expected;
                (false, Found::DamagedHead(damage))
            }
        }
    }

    /// What stands before a segment: by its own head, else by what was read before it.
    fn real(&self) -> Before {
        Before {
            head: None,
            bridged: false,
            ..self.before
        }
    }

    /// Tells of a segment that was scanned; `again` does so anew, behind what really stands before it.
    fn tell<T>(
        &mut self,
        scanned: Scanned<T>,
        again: impl FnOnce(Seq, Before) -> Result<Scanned<T>, Error>,
        found: &mut impl FnMut(At<'_>, Found<T>) -> ControlFlow<()>,
    ) -> Told {
        let first = scanned.first;
        let (holds, said) = self.head(first, &scanned.head);
        let scanned = match holds {
            true => scanned,
            // Where its own head is not believed, what really stands before it decides.
            false => again(first, self.real())?,
        };
        let at = |offset: usize| At {
            path: &scanned.path,
            segment: first,
            offset: offset as u64,
        };
        let mut flow = found(at(0), said);
        for (offset, place) in scanned.places {
            if flow.is_break() {
                break;
            }
            flow = found(at(offset), place);
        }
        Ok(flow.map_continue(|()| (first, scanned.end)))
    }

    /// Scans a segment and tells of it meanwhile: what is found is used before it leaves the processor's cache.
    fn stream<T>(
        &mut self,
        first: Seq,
        loaded: &Loaded,
        how: SegmentDepth,
        mut inspect: impl FnMut(&Frame<'_>, &HeaderView<'_>) -> T,
        found: &mut impl FnMut(At<'_>, Found<T>) -> ControlFlow<()>,
    ) -> ControlFlow<(), (Seq, SegmentEnd)> {
        let at = |offset: usize| At {
            path: &loaded.path,
            segment: first,
            offset: offset as u64,
        };
        let head = follow::read_head(&loaded.bytes);
        let (holds, said) = self.head(first, &head);
        found(at(0), said)?;
        if let Some(wrong) = &loaded.wrong {
            found(at(0), Found::DamagedFile(wrong.clone()))?;
        }
        let before = match holds {
            true => before_by(&head),
            false => self.real(),
        };
        let mut walk = Walk::new(&loaded.bytes, before, how);
        let mut places = Vec::new();
        while !walk.is_done {
            walk.go(STRETCH, &mut inspect, &mut places);
            for (offset, place) in places.drain(..) {
                found(at(offset), place)?;
            }
        }
        ControlFlow::Continue((first, walk.end()))
    }

    /// Goes on behind a segment that can't be read.
    fn miss<T>(
        &mut self,
        directory: &Path,
        first: Seq,
        error: Error,
        next: Option<Seq>,
        found: &mut impl FnMut(At<'_>, Found<T>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.before = Before {
            lost: true,
            ..self.real()
        };
        self.done += 1;
        let path = match &error {
            Error::Io { path, .. } => path.clone(),
            _ => segment_path(directory, first),
        };
        let at = At {
            path: &path,
            segment: first,
            offset: 0,
        };
        found(at, Found::Unreadable { error, next })
    }

    /// Goes on behind a segment.
    fn pass(&mut self, first: Seq, end: &SegmentEnd, of: usize) -> Progress {
        if let Some(torn) = end.torn {
            self.tail = Tail::Torn {
                at: Position {
                    segment: first,
                    offset: torn as u64,
                },
                bytes: (end.len - torn) as u64,
            };
        }
        self.before = match end.before.link {
            Some(_) => end.before,
            // Nothing of it was read: what stands before it stands before what comes next.
            None => Before {
                lost: true,
                ..self.before
            },
        };
        self.done += 1;
        Progress {
            segments: self.done,
            of,
            seq: self.before.link.map_or(Seq::NONE, |link| link.seq),
        }
    }
}

/// Reads every place of a journal. `inspector` makes for each segment what is called with each of its whole records, in
/// order; segments are read in several threads. `found` is called in order, from this one, until it breaks.
///
/// # Errors
/// When the files themselves can't be read.
pub fn scan<T, I, F>(
    directory: &Path,
    how: Inspect,
    inspector: impl Fn() -> I + Sync,
    mut found: F,
    mut progress: impl FnMut(Progress),
) -> Result<Tail, Error>
where
    T: Send,
    I: FnMut(&Frame<'_>, &HeaderView<'_>) -> T,
    F: FnMut(At<'_>, Found<T>) -> ControlFlow<()>,
{
    let mut all = segments(directory)?;
    if all.is_empty() {
        return Err(Error::Missing(directory.to_owned()));
    }
    let mut course = Course {
        before: Before::START,
        tail: Tail::Whole,
        done: 0,
    };
    if how.only_last {
        all.drain(..all.len() - 1);
        let last = all.first().map(|last| archive::load(directory, *last));
        // Where it can't be read, that is found below.
        if let Some(Ok(loaded)) = last
            && let Ok(head) = follow::read_head(&loaded.bytes)
        {
            course.before = Before::behind(follow::link_of(&head));
        }
    }
    let of = all.len();
    let depth = |number: usize| depth_of(how, number, of);
    let whole = |memory: &mut Vec<u8>, number: usize| -> Result<Scanned<T>, Error> {
        let Some(first) = all.get(number).copied() else {
            return Err(Error::Missing(directory.to_owned()));
        };
        scan_whole(directory, first, memory, None, depth(number), &inspector)
    };
    let again = |first: Seq, real: Before, number: usize| {
        scan_whole(
            directory,
            first,
            &mut Vec::new(),
            Some(real),
            depth(number),
            &inspector,
        )
    };
    let mut go_on = |course: &mut Course, number: usize, told: Told, found: &mut F| {
        let unread = match told {
            Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
            Ok(ControlFlow::Continue((first, end))) => {
                progress(course.pass(first, &end, of));
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) => error,
        };
        match all.get(number).filter(|_| how.past_unreadable) {
            Some(first) => {
                let next = all.get(number + 1).copied();
                Ok(course.miss(directory, *first, unread, next, found))
            }
            None => Err(unread),
        }
    };
    if how.threads > 1 {
        in_order(of, how.threads, whole, |number, scanned| {
            let told = scanned.and_then(|scanned| {
                let again = |first, real| again(first, real, number);
                course.tell(scanned, again, &mut found)
            });
            match go_on(&mut course, number, told, &mut found) {
                Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
                Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        })?;
        return Ok(course.tail);
    }
    let mut memory = Vec::new();
    for (number, first) in all.iter().copied().enumerate() {
        let told = match depth(number).is_last {
            true => whole(&mut memory, number).and_then(|scanned| {
                let again = |first, real| again(first, real, number);
                course.tell(scanned, again, &mut found)
            }),
            false => archive::load_into(directory, first, &mut memory).map(|loaded| {
                let told = course.stream(first, &loaded, depth(number), inspector(), &mut found);
                memory = loaded.bytes;
                told
            }),
        };
        if go_on(&mut course, number, told, &mut found)?.is_break() {
            break;
        }
    }
    Ok(course.tail)
}

#[derive(Clone, Copy)]
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

/// Every place of one segment. `real` is what stands before it, where its own head is not to be believed.
fn scan_whole<T, I: FnMut(&Frame<'_>, &HeaderView<'_>) -> T>(
    directory: &Path,
    first: Seq,
    memory: &mut Vec<u8>,
    real: Option<Before>,
    how: SegmentDepth,
    inspector: &impl Fn() -> I,
) -> Result<Scanned<T>, Error> {
    let mut loaded = archive::load_into(directory, first, memory)?;
    for again in 0..=AGAIN_MAX {
        let head = follow::read_head(&loaded.bytes);
        let before = real.unwrap_or_else(|| before_by(&head));
        let mut walk = Walk::new(&loaded.bytes, before, how);
        // Memory that is never touched costs nothing; growing copies what is there.
        let mut places = Vec::with_capacity(loaded.bytes.len() / FRAME_LEN_MIN);
        places.extend(
            loaded
                .wrong
                .clone()
                .map(|wrong| (0, Found::DamagedFile(wrong))),
        );
        walk.go(usize::MAX, &mut inspector(), &mut places);
        let is_doubted = how.is_last && (walk.is_broken || head.is_err());
        let end = walk.end();
        if is_doubted && again < AGAIN_MAX {
            // Whoever holds the store may be writing, and a read sees some of that: nothing is believed to be wrong with
            // the last segment that is not so in what was read twice.
            let later = archive::load(directory, first)?;
            if later.bytes != loaded.bytes {
                loaded = later;
                continue;
            }
        }
        let path = loaded.path;
        *memory = loaded.bytes;
        return Ok(Scanned {
            first,
            path,
            head,
            places,
            end,
        });
    }
    unreachable!("the last time it is believed")
}

/// What stands before a segment by its own head.
fn before_by(head: &Result<SegmentHead, Damage>) -> Before {
    match head {
        Ok(head) => Before::behind_head(*head),
        Err(_) => Before::START,
    }
}

/// A segment that is read from its head to its end.
struct Walk<'a> {
    bytes: &'a [u8],
    how: SegmentDepth,
    offset: usize,
    before: Before,
    torn: Option<usize>,
    is_done: bool,
    is_broken: bool,
    pieces: Pieces<'a>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], before: Before, how: SegmentDepth) -> Self {
        Walk {
            bytes,
            how,
            offset: segment::LEN,
            before,
            torn: None,
            is_done: false,
            is_broken: false,
            pieces: Pieces::default(),
        }
    }

    /// Reads on, until there are about so many places or nothing is left.
    fn go<T>(
        &mut self,
        most: usize,
        inspect: &mut impl FnMut(&Frame<'_>, &HeaderView<'_>) -> T,
        places: &mut Places<T>,
    ) {
        while !self.is_done && places.len() < most {
            let SegmentDepth { depth, is_last } = self.how;
            match follow::next(
                self.bytes,
                self.offset,
                self.before,
                depth,
                &mut self.pieces,
            ) {
                Next::Append => {
                    let mut pieces = std::mem::take(&mut self.pieces.of_append);
                    for piece in pieces.drain(..) {
                        self.take(piece, None, inspect, places);
                    }
                    self.pieces.of_append = pieces;
                }
                Next::End => self.is_done = true,
                Next::Room => {
                    self.is_done = true;
                    if !is_last {
                        places.push((self.offset, Found::Lost(Damage::Room)));
                    }
                }
                Next::Broken(broken) if is_last && !broken.was_durable => {
                    self.is_broken = true;
                    self.torn = Some(self.offset);
                    self.is_done = true;
                }
                Next::Broken(broken) => {
                    self.is_broken = true;
                    for piece in broken.sound {
                        self.take(piece, None, inspect, places);
                    }
                    if let Some(piece) = broken.record {
                        self.take(piece, Some(broken.damage), inspect, places);
                        continue;
                    }
                    places.push((broken.at, Found::Lost(broken.damage)));
                    self.before.lost = true;
                    self.before.head = None;
                    match broken.resume {
                        Some(resume) => self.offset = resume,
                        None => self.is_done = true,
                    }
                }
            }
        }
    }

    fn take<T>(
        &mut self,
        piece: Piece<'_>,
        wrong: Option<Damage>,
        inspect: &mut impl FnMut(&Frame<'_>, &HeaderView<'_>) -> T,
        places: &mut Places<T>,
    ) {
        let follows = self.before.link.is_some() && !self.before.lost;
        let found = match &piece.what {
            What::Record(frame, header) => Found::Record {
                seq: header.seq,
                item: inspect(frame, header),
                follows,
                wrong,
            },
            What::Gap(gap) => Found::Gap(gap.clone()),
        };
        self.before = piece.behind(self.before);
        self.offset = piece.end;
        places.push((piece.start, found));
    }

    fn end(&self) -> SegmentEnd {
        let zeros = self.bytes.iter().rev().take_while(|byte| **byte == 0);
        let content = self.bytes.len() - zeros.count();
        SegmentEnd {
            len: content.max(self.torn.unwrap_or(0)),
            before: self.before,
            torn: self.torn,
        }
    }
}
