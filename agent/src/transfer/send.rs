//! The sending end: serves one tree, read-only, to whoever the controller connects it with.
//!
//! It opens nothing but regular files of the manifest beneath the tree's root, never through a symlink, and sends
//! no piece whose hash is not the manifest's: damage is found here, and named, before it costs any transfer.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tallybook_events::ids::{Blob, Hash};
use tallybook_events::step::{FailureClass, StepFailure};

use super::message::{
    self, Failed, FromReceiver, FromSender, MANIFEST_CHUNK_LEN, PACK_LEN_MAX, Pack,
};
use super::pieces::{Pieces, packs, ranges};
use crate::layout::Layout;
use crate::protocol::SendSource;
use crate::step::{Link, fail, failure, io_failure};
use crate::tree::beneath::Root;
use crate::tree::manifest::{self, Manifest};
use crate::tree::unpack::Hand;

/// How many threads read, check and compress.
const THREADS: usize = 2;
/// How many packs wait to be sent.
const READY_MAX: usize = 4;
/// The levels of zstd that are gone through as the line turns out slower than the compression.
const LEVELS: [i32; 4] = [1, 3, 6, 9];
/// After how many packs the level is looked at anew.
const LEVEL_EVERY: u32 = 16;
/// How often the other end hears that this one still works.
pub(super) const WORKING_INTERVAL: Duration = Duration::from_secs(5);

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Packs.
    pub packs: u64,
    /// Content in bytes, before compression.
    pub content_bytes: u64,
    /// Content in bytes, as sent.
    pub wire_bytes: u64,
}

/// Serves a tree until the other end has what it wants.
///
/// # Errors
/// When the tree can't be read or is not what its manifest says, the line is gone, or the other end fails.
pub fn serve(
    link: &mut dyn Link,
    source: &SendSource,
    layout: &Layout,
) -> Result<Sent, StepFailure> {
    let (dir, what) = match source {
        SendSource::Template {
            template,
            generation,
        } => (
            layout.generation(template, *generation),
            format!("generation {generation} of template {template}"),
        ),
        SendSource::Staged { operation, step } => (
            layout.staging(*operation, *step),
            format!("what step {step} of operation {operation} staged"),
        ),
    };
    let outcome = serve_dir(link, &dir, &what);
    if let Err(error) = &outcome {
        // If the line is what failed, the other end learns of it by itself.
        let _lost = message::send(link, FromSender::Failed(Failed::of(error)));
    }
    outcome
}

fn serve_dir(link: &mut dyn Link, dir: &Path, what: &str) -> Result<Sent, StepFailure> {
    let rootfs = dir.join("rootfs");
    let root = Root::open(&rootfs).map_err(|error| {
        let mut failure = error.failure(dir);
        failure.message = format!("{what} can't be sent: {}", failure.message);
        failure
    })?;
    let bytes = manifest_bytes(link, dir, &root)?;
    let manifest = Manifest::decode(&bytes).map_err(|error| {
        let mut failure = failure(FailureClass::Verification, &error);
        let at = dir.join("manifest");
        failure.message = format!("{} is damaged: {}", at.display(), failure.message);
        failure
    })?;
    let pieces = Pieces::of(&manifest).map_err(|e| failure(FailureClass::Verification, &e))?;
    let offer = FromSender::Offer {
        manifest: manifest::id_of(&bytes),
        manifest_len: bytes.len() as u64,
    };
    message::send(link, offer)?;
    let mut wanted = Vec::new();
    let mut credit = 0;
    loop {
        match message::receive(link)? {
            FromReceiver::WantManifest => send_manifest(link, &bytes)?,
            FromReceiver::Want { pieces: some, more } => {
                let numbers = pieces.numbers(&some).map_err(not_understood)?;
                if wanted.last() >= numbers.first() && !wanted.is_empty() {
                    return Err(not_understood("pieces are named twice or out of order"));
                }
                wanted.extend(numbers);
                if !more {
                    return Stream {
                        root: &root,
                        path: &rootfs,
                        pieces: &pieces,
                        packs: packs(&pieces, &wanted),
                        next: AtomicUsize::new(0),
                        level: AtomicI32::new(LEVELS[0]),
                    }
                    .run(link, credit);
                }
            }
            FromReceiver::Credit { packs } => credit += u64::from(packs),
            FromReceiver::Working => {}
            FromReceiver::Done => return Ok(Sent::default()),
            FromReceiver::Failed(failed) => return Err(failed.failure("receiving")),
        }
    }
}

fn not_understood(what: &'static str) -> StepFailure {
    fail(
        FailureClass::Peer,
        format!("the receiving end asks for what can't be: {what}"),
    )
}

/// The manifest beside the tree; a tree that is still staged may have none, and then it is made.
fn manifest_bytes(link: &mut dyn Link, dir: &Path, root: &Root) -> Result<Vec<u8>, StepFailure> {
    let path = dir.join("manifest");
    let beside = Root::open(dir).map_err(|e| e.failure(dir))?;
    let len_max = usize::try_from(manifest::LEN_MAX).unwrap_or(usize::MAX);
    let there = beside.read_optional(Path::new("manifest"), len_max);
    if let Some(bytes) = there.map_err(|e| e.failure(&path))? {
        return Ok(bytes);
    }
    let mut lost = None;
    let mut told = Instant::now();
    let built = manifest::build(root.as_fd(), &mut |hashed| {
        link.progress("hashing", hashed.done, hashed.total);
        if told.elapsed() >= WORKING_INTERVAL {
            told = Instant::now();
            lost = message::send(link, FromSender::Working).err();
        }
        if lost.is_some() || link.stop_requested() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match (built, lost) {
        (_, Some(lost)) => Err(lost),
        (Ok(manifest), None) => Ok(manifest.encode()),
        (Err(error), None) => Err(error.failure(root.label())),
    }
}

fn send_manifest(link: &mut dyn Link, bytes: &[u8]) -> Result<(), StepFailure> {
    for part in bytes.chunks(MANIFEST_CHUNK_LEN) {
        let compressed = zstd::bulk::compress(part, LEVELS[1])
            .map_err(|e| io_failure("compressing", Path::new("the manifest"), &e))?;
        message::send(
            link,
            FromSender::Manifest {
                len: part.len() as u32,
                bytes: Blob(compressed),
            },
        )?;
    }
    Ok(())
}

/// Sending packs: threads make them, the one with the link sends them.
struct Stream<'a> {
    root: &'a Root,
    path: &'a Path,
    pieces: &'a Pieces<'a>,
    packs: Vec<Vec<u32>>,
    next: AtomicUsize,
    level: AtomicI32,
}

struct Made {
    pack: Pack,
    content_len: u64,
}

impl Stream<'_> {
    fn run(self, link: &mut dyn Link, credit: u64) -> Result<Sent, StepFailure> {
        let (ready, made) = sync_channel(READY_MAX);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                let (stream, ready) = (&self, ready.clone());
                scope.spawn(move || stream.make_packs(&ready));
            }
            drop(ready);
            // The threads end when `made` is dropped, at the latest.
            self.send_packs(link, credit, made)
        })
    }

    fn send_packs(
        &self,
        link: &mut dyn Link,
        mut credit: u64,
        made: Receiver<Result<Made, StepFailure>>,
    ) -> Result<Sent, StepFailure> {
        let mut sent = Sent::default();
        let mut waited = Waited::default();
        while sent.packs < self.packs.len() as u64 {
            if link.stop_requested() {
                return Err(fail(FailureClass::Interrupted, "stopped when asked to"));
            }
            let start = Instant::now();
            while credit == 0 {
                match message::receive(link)? {
                    FromReceiver::Credit { packs } => credit += u64::from(packs),
                    other => self.between(other)?,
                }
            }
            waited.for_line += start.elapsed();
            let start = Instant::now();
            let Ok(next) = made.recv() else {
                return Err(fail(
                    FailureClass::Other,
                    "a thread that reads the tree ended early",
                ));
            };
            let next = next?;
            waited.for_packs += start.elapsed();
            sent.packs += 1;
            sent.content_bytes += next.content_len;
            sent.wire_bytes += next.pack.bytes.0.len() as u64;
            credit -= 1;
            let start = Instant::now();
            message::send(link, FromSender::Pack(next.pack))?;
            waited.for_line += start.elapsed();
            if let Some(level) = waited.level(self.level.load(Ordering::Relaxed)) {
                self.level.store(level, Ordering::Relaxed);
            }
        }
        loop {
            match message::receive(link)? {
                FromReceiver::Done => return Ok(sent),
                FromReceiver::Credit { .. } => {}
                other => self.between(other)?,
            }
        }
    }

    /// What may come between packs besides credit.
    fn between(&self, message: FromReceiver) -> Result<(), StepFailure> {
        match message {
            FromReceiver::Working | FromReceiver::Credit { .. } => Ok(()),
            FromReceiver::Failed(failed) => Err(failed.failure("receiving")),
            FromReceiver::Done => Err(not_understood("it is done before it has everything")),
            FromReceiver::Want { .. } | FromReceiver::WantManifest => {
                Err(not_understood("something more while packs are sent"))
            }
        }
    }

    fn make_packs(&self, ready: &SyncSender<Result<Made, StepFailure>>) {
        let mut hand = Hand::new(self.root);
        let mut compressor = None;
        let mut content = Vec::with_capacity(PACK_LEN_MAX);
        while let Some(pack) = self.packs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let made = self.make(pack, &mut hand, &mut compressor, &mut content);
            let failed = made.is_err();
            // Nobody is there to take it when the line is gone.
            if ready.send(made).is_err() || failed {
                return;
            }
        }
    }

    fn make(
        &self,
        numbers: &[u32],
        hand: &mut Hand<'_>,
        compressor: &mut Option<(i32, zstd::bulk::Compressor<'static>)>,
        content: &mut Vec<u8>,
    ) -> Result<Made, StepFailure> {
        content.clear();
        for number in numbers {
            let place = &self.pieces.places(*number)[0];
            let (piece, path) = (&place.piece, &place.entry.path);
            let start = content.len();
            content.resize(start + piece.len as usize, 0);
            let whole = hand
                .read(path, piece.offset, &mut content[start..])
                .map_err(|e| e.failure(self.path))?;
            if !whole || Hash::from(blake3::hash(&content[start..])) != piece.hash {
                return Err(damaged(&self.path.join(path.as_path()), piece.offset));
            }
        }
        let squeeze = |e: std::io::Error| io_failure("compressing for", self.path, &e);
        let level = self.level.load(Ordering::Relaxed);
        let zstd = match compressor {
            Some((at, zstd)) if *at == level => zstd,
            other => {
                &mut other
                    .insert((level, zstd::bulk::Compressor::new(level).map_err(squeeze)?))
                    .1
            }
        };
        let compressed = zstd.compress(content).map_err(squeeze)?;
        // What hardly shrinks is not worth the other end's time.
        let zstd = compressed.len() < content.len() - content.len() / 32;
        let bytes = if zstd { compressed } else { content.clone() };
        Ok(Made {
            pack: Pack {
                id: blake3::hash(&bytes).into(),
                pieces: ranges(numbers.iter().copied()),
                zstd,
                bytes: Blob(bytes),
            },
            content_len: content.len() as u64,
        })
    }
}

fn damaged(path: &Path, offset: u64) -> StepFailure {
    let mut failure = fail(
        FailureClass::Verification,
        format!(
            "{} is not what the manifest says, from byte {offset}",
            path.display()
        ),
    );
    failure.hint =
        Some("send another generation, or one of another host; this one was changed".into());
    failure
}

/// What the sending thread waited for since the level was last looked at.
#[derive(Default)]
struct Waited {
    for_line: Duration,
    for_packs: Duration,
    packs: u32,
}

impl Waited {
    /// After enough packs, another level if the line or the compression is clearly the slower one.
    fn level(&mut self, level: i32) -> Option<i32> {
        self.packs += 1;
        if self.packs < LEVEL_EVERY {
            return None;
        }
        let Waited {
            for_line,
            for_packs,
            ..
        } = std::mem::take(self);
        let at = LEVELS.iter().position(|l| *l == level).unwrap_or(0);
        if for_line > for_packs * 3 && for_line > Duration::from_millis(200) {
            LEVELS.get(at + 1).copied()
        } else if for_packs > for_line {
            at.checked_sub(1).map(|at| LEVELS[at])
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(line_ms: u64, packs_ms: u64, level: i32) -> Option<i32> {
        let mut waited = Waited {
            for_line: Duration::from_millis(line_ms),
            for_packs: Duration::from_millis(packs_ms),
            packs: LEVEL_EVERY - 1,
        };
        waited.level(level)
    }

    #[test]
    fn the_level_follows_what_is_waited_for() {
        assert_eq!(waited(1000, 10, 1), Some(3));
        assert_eq!(waited(1000, 10, 9), None);
        assert_eq!(waited(10, 1000, 6), Some(3));
        assert_eq!(waited(10, 1000, 1), None);
        assert_eq!(waited(100, 90, 3), None);
    }
}
