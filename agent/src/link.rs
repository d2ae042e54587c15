//! What a running step sees of the world besides the file system, over the line to the controller.

use std::any::Any;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tallybook_events::step::{Captured, FailureClass, StepFailure, StepKey};

use crate::keeper;
use crate::line::{FromPeer, Line};
use crate::program;
use crate::protocol::{FRAME_LEN_MAX, Reply};
use crate::queue::Got;
use crate::secret::Secrets;
use crate::step::{Ended, FrozenWatch, Link, Program, fail};

/// Progress is told no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// The other end of a transfer may be silent for so long: it may be hashing a large tree.
const PEER_SILENCE_MAX: Duration = Duration::from_secs(600);
/// How often a wait for it is told: over a line that was cut unnoticed, a word is what finds out, so that a resumed
/// transfer does not wait for the one before it.
const PEER_WAIT_SAID: Duration = Duration::from_secs(5);
/// How often a wait looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(200);
/// The most bytes of captured output a step may record, over all the programs it ran.
const CAPTURED_MAX: usize = 1024 * 1024;
/// The most programs a step may record.
const PROGRAMS_MAX: usize = 256;

/// The link of one step, or of the sending end of a transfer.
pub(crate) struct LineLink<'a> {
    line: &'a Line,
    secrets: &'a Secrets,
    /// The step; the sending end of a transfer is none, and tells no progress.
    key: Option<StepKey>,
    /// What a program holds that may outlive the agent.
    running: Vec<PathBuf>,
    has_peer: bool,
    told_at: Option<Instant>,
    untold: Option<(String, u64, u64)>,
    captured: Vec<Captured>,
    captured_len: usize,
}

impl<'a> LineLink<'a> {
    /// A link of a step. Whether a peer is let in was decided before: see [`Line::open_peer`].
    pub(crate) fn new(line: &'a Line, secrets: &'a Secrets, key: Option<StepKey>) -> Self {
        LineLink {
            line,
            secrets,
            key,
            running: Vec::new(),
            has_peer: false,
            told_at: None,
            untold: None,
            captured: Vec::new(),
            captured_len: 0,
        }
    }

    /// With what a lasting program holds until it ends.
    pub(crate) fn outlived_by(mut self, running: Vec<PathBuf>) -> Self {
        self.running = running;
        self
    }

    /// The step ended: tells the last progress, and lets no more of a peer in.
    pub(crate) fn end(&mut self) {
        if let Some(progress) = self.due() {
            self.line.say(&progress);
        }
        self.line.close_peer();
    }

    /// What was not told yet.
    fn due(&mut self) -> Option<Reply> {
        let (what, done, total) = self.untold.take()?;
        let key = self.key?;
        self.told_at = Some(Instant::now());
        Some(Reply::Progress {
            key,
            what,
            done,
            total,
        })
    }

    fn keep(&mut self, mut captured: Captured) {
        if self.captured.len() >= PROGRAMS_MAX {
            return;
        }
        let len = captured.text.0.len();
        if self.captured_len + len > CAPTURED_MAX {
            captured.dropped_bytes += len as u64;
            captured.text.0.clear();
        }
        self.captured_len += captured.text.0.len();
        self.captured.push(captured);
    }

    fn line_lost(&self) -> StepFailure {
        fail(FailureClass::Peer, "the line to the controller is gone")
    }

    fn is_wanted(&mut self) -> Result<(), StepFailure> {
        if self.line.is_stopped() {
            Err(fail(
                FailureClass::Interrupted,
                "the step was asked to stop",
            ))
        } else {
            Ok(())
        }
    }
}

impl Link for LineLink<'_> {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        let running = std::mem::take(&mut self.running);
        let secrets = self.secrets;
        let run = program::run_telling(program, &running, secrets, &mut |what| {
            self.progress(what, 0, 0);
        });
        self.running = running;
        let run = run?;
        self.keep(run.captured);
        run.result
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.untold = Some((self.secrets.mask().apply_text(what), done, total));
        if self.told_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY)
            && let Some(progress) = self.due()
        {
            self.line.mention(&progress);
        }
    }

    fn stop_requested(&mut self) -> bool {
        self.line.is_stopped() || (self.has_peer && self.line.is_gone())
    }

    fn send_peer(&mut self, bytes: Vec<u8>) -> Result<(), StepFailure> {
        self.has_peer = true;
        self.is_wanted()?;
        if bytes.len() > FRAME_LEN_MAX - 64 {
            let message = format!(
                "a message of {} bytes does not fit into a frame",
                bytes.len()
            );
            return Err(fail(FailureClass::Peer, message));
        }
        if self.line.is_gone() || !self.line.say_to_peer(bytes) {
            return Err(self.line_lost());
        }
        Ok(())
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        self.has_peer = true;
        let deadline = Instant::now() + PEER_SILENCE_MAX;
        let mut spoken = Instant::now();
        loop {
            self.is_wanted()?;
            if spoken.elapsed() >= PEER_WAIT_SAID {
                spoken = Instant::now();
                self.progress("waiting for the other end of the transfer", 0, 0);
            }
            match self.line.hear_peer(SLICE) {
                Got::Item(FromPeer::Bytes(bytes)) => return Ok(bytes),
                Got::Item(FromPeer::Lost(why)) => {
                    let message = format!("the other end of the transfer is gone: {why}");
                    return Err(fail(FailureClass::Peer, message));
                }
                Got::Closed => return Err(self.line_lost()),
                Got::Nothing if self.line.is_gone() => return Err(self.line_lost()),
                Got::Nothing if Instant::now() >= deadline => {
                    let seconds = PEER_SILENCE_MAX.as_secs();
                    let message =
                        format!("the other end of the transfer said nothing for {seconds} s");
                    return Err(fail(FailureClass::Peer, message));
                }
                Got::Nothing => {}
            }
        }
    }

    fn watch_frozen(&mut self, watch: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure> {
        Ok(Box::new(keeper::watch(watch, &self.running)?))
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        self.captured_len = 0;
        std::mem::take(&mut self.captured)
    }
}
