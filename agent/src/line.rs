//! The line to the controller: a thread that reads frames, a thread that writes them, and what is known of it.
//!
//! Losing it never stops a step that runs. A line whose other end reads nothing for too long counts as lost.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::keeper;
use crate::protocol::{self, Reply, Request};
use crate::queue::{Got, Put, Queue};

/// Requests that wait; counted in bytes of what is typed.
const REQUESTS_MAX: usize = 1024 * 1024;
/// Bytes for the other end of a transfer that may wait on this host.
const PEER_MAX: usize = 4 * 1024 * 1024;
/// Bytes that may wait to be written.
const OUTGOING_MAX: usize = 4 * 1024 * 1024;
/// How often a sign of life is given: the other end takes a long silence for a lost line.
const BEAT: Duration = Duration::from_secs(5);
/// When the other end reads nothing for so long, the line counts as lost.
const STALLED: Duration = Duration::from_secs(120);
/// How long a peer may keep the line full: it writes and syncs what it gets.
const PEER_STALLED: Duration = Duration::from_secs(600);

/// How long a person may keep the line full.
const SHOW_STALLED: Duration = Duration::from_secs(3600);

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A request.
    Request(Request),
    /// The line can't be understood; why. Nothing follows.
    Broken(String),
}

/// What came from the other end of a transfer.
#[derive(Debug)]
pub(crate) enum FromPeer {
    /// Bytes.
    Bytes(Vec<u8>),
    /// It is gone; why.
    Lost(String),
}

struct Shared {
    requests: Queue<Incoming>,
    peer: Queue<FromPeer>,
    outgoing: Queue<Vec<u8>>,
    gone: AtomicBool,
    stop: AtomicBool,
}

/// The line.
pub(crate) struct Line {
    shared: Arc<Shared>,
    writer: thread::JoinHandle<()>,
}

impl Line {
    /// Starts reading and writing.
    pub(crate) fn open(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
    ) -> Self {
        Line::beating(input, output, BEAT)
    }

    fn beating(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        beat: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            requests: Queue::new(REQUESTS_MAX),
            peer: Queue::new(PEER_MAX),
            outgoing: Queue::new(OUTGOING_MAX),
            gone: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        shared.peer.close();
        let reading = Arc::clone(&shared);
        // Not joined: it may wait for the other end for ever, and ends with the process.
        thread::spawn(move || read(&reading, input));
        let writing = Arc::clone(&shared);
        let writer = thread::spawn(move || write(&writing, output));
        let living = Arc::clone(&shared);
        // Not joined either: it notices the end at its next beat.
        thread::spawn(move || live(&living, beat));
        Line { shared, writer }
    }

    /// The next request.
    pub(crate) fn next(&self, wait: Duration) -> Got<Incoming> {
        self.shared.requests.get(wait)
    }

    /// Whether the other end can't be heard or reached any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::SeqCst)
    }

    /// Whether the other end asked to begin nothing more, or somebody on the host asked the agent to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst) || keeper::is_terminated()
    }

    /// Says something. Where it can't be said, the line counts as lost.
    pub(crate) fn say(&self, reply: &Reply) {
        self.say_within(reply, STALLED);
    }

    /// Says something that may be dropped when the line is busy.
    pub(crate) fn mention(&self, reply: &Reply) {
        if let Ok(frame) = protocol::encode_frame(reply) {
            // Weighs as if it were large, so that it is dropped long before what matters has to wait.
            self.shared
                .outgoing
                .put(OUTGOING_MAX / 16 + frame.len(), frame, Duration::ZERO);
        }
    }

    /// Sends bytes to the other end of a transfer; `false` when the line is lost.
    pub(crate) fn say_to_peer(&self, bytes: Vec<u8>) -> bool {
        self.say_within(&Reply::Peer(bytes.into()), PEER_STALLED)
    }

    /// Sends what a command printed. A person may have stopped the terminal, so this waits long.
    pub(crate) fn show(&self, bytes: Vec<u8>, stderr: bool) {
        let reply = Reply::Output {
            bytes: bytes.into(),
            stderr,
        };
        self.say_within(&reply, SHOW_STALLED);
    }

    /// Lets bytes of a peer in, for one step: before it is told as started, for what the peer says may follow at
    /// once. `Send` lets them in by itself.
    pub(crate) fn open_peer(&self) {
        self.shared.peer.reopen();
    }

    /// Drops what a peer sent and will send.
    pub(crate) fn close_peer(&self) {
        self.shared.peer.discard();
    }

    /// What the other end of the transfer sent.
    pub(crate) fn hear_peer(&self, wait: Duration) -> Got<FromPeer> {
        self.shared.peer.get(wait)
    }

    /// Waits until all that was said is written, or the line is lost.
    pub(crate) fn finish(self) {
        self.shared.outgoing.close();
        let mut waited = Duration::ZERO;
        let slice = Duration::from_millis(5);
        while !self.writer.is_finished() && waited < STALLED {
            thread::sleep(slice);
            waited += slice;
        }
    }

    fn say_within(&self, reply: &Reply, wait: Duration) -> bool {
        let put = match protocol::encode_frame(reply) {
            Ok(frame) => self.shared.outgoing.put(frame.len(), frame, wait),
            // Only a frame beyond the limit: what is said is bounded where it is made.
            Err(_) => Put::Closed,
        };
        if put != Put::Taken {
            self.shared.gone.store(true, Ordering::SeqCst);
        }
        put == Put::Taken
    }
}

/// Gives signs of life until the line ends. Where it is full they are left out: what fills it is one.
fn live(shared: &Shared, beat: Duration) {
    let Ok(frame) = protocol::encode_frame(&Reply::Alive) else {
        return;
    };
    loop {
        thread::sleep(beat);
        let weight = OUTGOING_MAX / 16;
        if shared.outgoing.put(weight, frame.clone(), Duration::ZERO) == Put::Closed {
            return;
        }
    }
}

fn read(shared: &Shared, mut input: impl Read) {
    loop {
        let incoming = match protocol::read_frame(&mut input) {
            Ok(Some(Request::Stop)) => {
                shared.stop.store(true, Ordering::SeqCst);
                continue;
            }
            Ok(Some(Request::Peer(bytes))) => {
                let weight = bytes.0.len();
                let put = shared
                    .peer
                    .put(weight, FromPeer::Bytes(bytes.0), PEER_STALLED);
                if put == Put::Full {
                    // A message can't be left out: better no line than a wrong one.
                    break;
                }
                continue;
            }
            Ok(Some(Request::PeerLost(why))) => {
                // Weighs nothing, so there is room at once.
                shared.peer.put(0, FromPeer::Lost(why), PEER_STALLED);
                continue;
            }
            Ok(Some(request)) => {
                if matches!(request, Request::Send { .. }) {
                    // Here and not where it is acted on: what the peer says may follow at once.
                    shared.peer.reopen();
                }
                Incoming::Request(request)
            }
            Ok(None) | Err(protocol::Error::Io(_)) => break,
            Err(error @ (protocol::Error::TooLong(_) | protocol::Error::Codec(_))) => {
                shared
                    .requests
                    .put(0, Incoming::Broken(error.to_string()), STALLED);
                break;
            }
        };
        let weight = match &incoming {
            Incoming::Request(Request::Input(bytes)) => bytes.0.len() + 1,
            Incoming::Request(_) | Incoming::Broken(_) => 1,
        };
        if shared.requests.put(weight, incoming, PEER_STALLED) != Put::Taken {
            break;
        }
    }
    shared.gone.store(true, Ordering::SeqCst);
    shared.requests.close();
    // What was received is still read; then the step sees the end.
    shared.peer.close();
}

fn write(shared: &Shared, mut output: impl Write) {
    loop {
        match shared.outgoing.get(STALLED) {
            Got::Item(frame) => {
                if output
                    .write_all(&frame)
                    .and_then(|()| output.flush())
                    .is_err()
                {
                    break;
                }
            }
            Got::Nothing => {}
            Got::Closed => return,
        }
    }
    shared.gone.store(true, Ordering::SeqCst);
    shared.outgoing.discard();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_come_by_themselves_until_the_end() {
        let (from_controller, _to_agent) = std::io::pipe().unwrap();
        let (mut from_agent, to_controller) = std::io::pipe().unwrap();
        let line = Line::beating(from_controller, to_controller, Duration::from_millis(5));
        for _ in 0..3 {
            let heard = protocol::read_frame::<Reply>(&mut from_agent).unwrap();
            assert_eq!(heard, Some(Reply::Alive));
        }
        line.finish();
        while let Some(heard) = protocol::read_frame::<Reply>(&mut from_agent).unwrap() {
            assert_eq!(heard, Reply::Alive);
        }
    }
}
