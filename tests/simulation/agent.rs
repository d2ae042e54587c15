//! An agent's process: the real one, in threads of its own, with steps whose effects the simulation keeps.
//!
//! What it does depends on nothing but what it is told: whoever told it something waits until it has nothing more to do.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use tallybook_agent::fence;
use tallybook_agent::layout::Layout;
use tallybook_agent::protocol::{Reply, read_frame};
use tallybook_agent::serve::{Deeds, serve};
use tallybook_agent::step::{Context, Link, StepKind, fail};
use tallybook_agent::steps;
use tallybook_events::ids::{Blob, OperationId, Seq, StepIndex};
use tallybook_events::step::{FailureClass, Seen, SendSource, StepDone, StepFailure, StepKey};

/// What an agent lets the simulation know.
pub(crate) enum Said {
    /// To the controller.
    Reply(Reply),
    /// A step asks what it is to do, and waits for the answer.
    Step(Asked),
    /// It waits for the other end of a transfer.
    AtPeer,
    /// It is gone.
    Ended,
}

/// What a step is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Probe,
    Forward,
    /// The rest of `Forward`, once all has arrived.
    Arrived,
    Undo,
}

/// What a step does, and by whose word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) deed: Deed,
    pub(crate) key: StepKey,
    /// The forward step that this is about.
    pub(crate) origin: (OperationId, StepIndex),
    /// The newest event that the host was shown by then.
    pub(crate) shown: Seq,
}

/// A step that asks.
pub(crate) struct Asked {
    pub(crate) act: Act,
    pub(crate) answer: Sender<Answer>,
}

/// What it is to do.
pub(crate) enum Answer {
    Seen(Seen),
    Done(Result<StepDone, StepFailure>),
    /// Take what the other end sends.
    Receive,
}

/// How steps let the simulation know.
struct Voice {
    said: Sender<Said>,
    /// What is said once all that was told to the controller before has left.
    behind: Sender<Said>,
}

thread_local! {
    static VOICE: RefCell<Option<Voice>> = const { RefCell::new(None) };
}

/// In the place of what is said behind all that was told to the controller before.
const BEHIND: &[u8] = b"\0behind";

/// Its standard input, and what it says.
pub(crate) struct Process {
    pub(crate) input: Sender<Vec<u8>>,
    pub(crate) said: Receiver<Said>,
    /// Says whenever it took in all that came so far; ends once it knows that its line is gone.
    pub(crate) hears: Receiver<()>,
}

/// Starts one on a host.
pub(crate) fn start(layout: &Layout) -> Process {
    let (input, stdin) = mpsc::channel();
    let (said, hear) = mpsc::channel();
    let (behind, held_back) = mpsc::channel();
    let (hearing, hears) = mpsc::channel();
    let layout = layout.clone();
    thread::spawn(move || {
        VOICE.set(Some(Voice {
            said: said.clone(),
            behind,
        }));
        let input = Input {
            frames: stdin,
            left: Vec::new(),
            hearing,
        };
        let output = Output {
            said: said.clone(),
            held_back,
            begun: Vec::new(),
        };
        let deeds = Deeds {
            table: &TABLE,
            send: Some(send),
            program: None,
        };
        serve(input, output, &layout, deeds);
        let _nobody_asks = said.send(Said::Ended);
    });
    Process {
        input,
        said: hear,
        hears,
    }
}

struct Input {
    frames: Receiver<Vec<u8>>,
    left: Vec<u8>,
    /// Dropped once whoever reads has made known that nothing follows.
    hearing: Sender<()>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() {
            let _killed = self.hearing.send(());
            // An end where the simulation hung up.
            self.left = self.frames.recv().unwrap_or_default();
        }
        let count = self.left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.left[..count]);
        self.left.drain(..count);
        Ok(count)
    }
}

struct Output {
    said: Sender<Said>,
    held_back: Receiver<Said>,
    begun: Vec<u8>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        let mut rest = &self.begun[..];
        while let Some(len) = rest.first_chunk::<4>() {
            let end = 4 + u32::from_le_bytes(*len) as usize;
            let Some(frame) = rest.get(..end) else { break };
            let said = match read_frame(frame).unwrap().unwrap() {
                Reply::Peer(bytes) if bytes.0 == BEHIND => self.held_back.recv().unwrap(),
                reply => Said::Reply(reply),
            };
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            self.said.send(said).map_err(gone)?;
            rest = &rest[end..];
        }
        self.begun = rest.to_vec();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every kind of step that there is, with effects of the simulation's.
pub(crate) static TABLE: LazyLock<Vec<StepKind>> = LazyLock::new(|| {
    let kind = |row: &StepKind| StepKind {
        kind: row.kind,
        once: row.once,
        summary: row.summary,
        secrets: row.secrets,
        reversal: row.reversal,
        probe: |_, context| match ask(context, Deed::Probe)? {
            Answer::Seen(seen) => Ok(seen),
            Answer::Done(_) | Answer::Receive => unreachable!("a probe sees"),
        },
        forward: |_, context| match ask(context, Deed::Forward)? {
            Answer::Done(done) => done,
            Answer::Receive => {
                receive(context.link)?;
                match ask(context, Deed::Arrived)? {
                    Answer::Done(done) => done,
                    Answer::Seen(_) | Answer::Receive => unreachable!("it has arrived"),
                }
            }
            Answer::Seen(_) => unreachable!("a step acts"),
        },
        in_the_way: |_, _| Err(unplayed()),
        adopt: |_, _| Err(unplayed()),
        undo: |_, context, _| match ask(context, Deed::Undo)? {
            Answer::Done(done) => done,
            Answer::Seen(_) | Answer::Receive => unreachable!("an undo acts"),
        },
    };
    steps::TABLE.iter().map(kind).collect()
});

/// Nobody in it decides about what others made.
fn unplayed() -> StepFailure {
    fail(FailureClass::Exists, "this is not played")
}

/// Lets the simulation know, behind all that was told to the controller before.
fn say(link: &mut dyn Link, said: Said) -> Result<(), StepFailure> {
    VOICE.with_borrow(|voice| {
        let voice = voice.as_ref().ok_or_else(killed)?;
        if link.send_peer(BEHIND.to_vec()).is_ok() {
            return voice.behind.send(said).map_err(|_| killed());
        }
        // The controller hears nothing more, so nothing is before it.
        voice.said.send(said).map_err(|_| killed())
    })
}

/// What a step of a killed agent ends with; nothing it does from here on reaches a host.
fn killed() -> StepFailure {
    fail(FailureClass::Other, "killed")
}

fn ask(context: &mut Context<'_>, deed: Deed) -> Result<Answer, StepFailure> {
    let log = context.key.log;
    let shown = fence::read(&fence::path(context.layout, log), log);
    let shown = shown.ok().flatten();
    let (answer, wait) = mpsc::channel();
    let act = Act {
        deed,
        key: context.key,
        origin: context.origin,
        shown: shown.map_or(Seq::NONE, |seen| seen.mark.seq),
    };
    say(context.link, Said::Step(Asked { act, answer }))?;
    wait.recv().map_err(|_| killed())
}

/// How many pieces a transfer has.
const PIECES: u8 = 3;
const END: &[u8] = b"end";

fn receive(link: &mut dyn Link) -> Result<(), StepFailure> {
    loop {
        say(link, Said::AtPeer)?;
        let piece = link.receive_peer()?;
        if piece == END {
            return Ok(());
        }
        link.send_peer(piece)?;
    }
}

fn send(_: &SendSource, _: &Layout, link: &mut dyn Link) -> Result<(), StepFailure> {
    for piece in 0..PIECES {
        link.send_peer(vec![piece; 100])?;
        say(link, Said::AtPeer)?;
        link.receive_peer()?;
    }
    link.send_peer(END.to_vec())
}

/// What every step reports.
pub(crate) fn done(changed: bool) -> StepDone {
    StepDone {
        changed,
        output: Blob::default(),
        facts: Vec::new(),
        captured: Vec::new(),
    }
}
