//! A running command on a host: its standard input and output, a bounded tail of its standard error, and its end.
//!
//! Must never grow without limit: output that nobody reads stops the sender (and, over SSH, after the window is
//! full, the whole session: read or drop it); standard error keeps its last [`STDERR_MAX`] bytes.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{oneshot, watch};

use super::error::Error;
use tallybook_agent::scrub::scrub;

/// How much of standard error is kept: the end of it.
pub const STDERR_MAX: usize = 64 * 1024;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// With an exit code.
    Code(u32),
    /// By a signal, named without `SIG` where it has a name.
    Signal(String),
}

impl Status {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How it ended.
    pub status: Status,
    /// The last bytes of standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more.
    pub stderr_cut: bool,
}

/// What the holder of a [`Process`] wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Run,
    Terminate,
}

/// A command in progress. Its parts can be moved to different tasks.
#[derive(Debug)]
pub struct Stream {
    /// To the command; shutting it down or dropping it is its end of file.
    pub stdin: Stdin,
    /// From the command.
    pub stdout: Stdout,
    /// The command itself; dropping it gives the command up: its input ends, its output is thrown away, and it is
    /// not killed.
    pub process: Process,
}

/// The command's standard input.
#[derive(Debug)]
pub struct Stdin(pub(super) StdinPipe);

#[derive(Debug)]
pub(super) enum StdinPipe {
    Ssh(DuplexStream),
    Local(ChildStdin),
}

/// The command's standard output.
#[derive(Debug)]
pub struct Stdout(pub(super) StdoutPipe);

#[derive(Debug)]
pub(super) enum StdoutPipe {
    Ssh(DuplexStream),
    Local(ChildStdout),
}

/// A handle on the running command.
#[derive(Debug)]
pub struct Process {
    pub(super) host: String,
    pub(super) wish: watch::Sender<Wish>,
    pub(super) end: oneshot::Receiver<Result<Exit, Error>>,
}

impl Process {
    /// Waits for the end. Nobody reads standard output here: read it, or drop it, first.
    ///
    /// # Errors
    /// When the line is lost before the command's end is known.
    pub async fn wait(self) -> Result<Exit, Error> {
        match self.end.await {
            Ok(end) => end,
            Err(_closed) => Err(Error::LineLost {
                host: self.host,
                why: "the session was shut down".to_owned(),
            }),
        }
    }

    /// Asks the command to terminate with SIGTERM and gives it up. Its end can still be waited for; over SSH its
    /// channel is closed if that takes longer than some seconds.
    ///
    /// sshd does not deliver signals to a root login (nor does any before 7.9): there, only the end of its input
    /// tells the command, and one that does not read keeps its place in sshd's MaxSessions until it ends.
    pub fn terminate(&self) {
        self.wish.send_replace(Wish::Terminate);
    }
}

/// Resolves when the process is given up; `Terminate` when it shall end.
pub(super) async fn given_up(wish: &mut watch::Receiver<Wish>) -> Option<Wish> {
    match wish.wait_for(|wish| *wish == Wish::Terminate).await {
        Ok(wish) => Some(*wish),
        Err(_dropped) => None,
    }
}

/// The last bytes of something long.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        if self.bytes.len() > STDERR_MAX {
            self.cut = true;
            self.bytes.drain(..self.bytes.len() - STDERR_MAX);
        }
    }

    pub(super) fn exit(self, status: Status) -> Exit {
        Exit {
            status,
            // It may be shown, or recorded as a reason, and no host's word is vouched for.
            stderr: scrub(&Vec::from(self.bytes)),
            stderr_cut: self.cut,
        }
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            StdinPipe::Ssh(pipe) => Pin::new(pipe).poll_write(cx, buf),
            StdinPipe::Local(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            StdinPipe::Ssh(pipe) => Pin::new(pipe).poll_flush(cx),
            StdinPipe::Local(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            StdinPipe::Ssh(pipe) => Pin::new(pipe).poll_shutdown(cx),
            StdinPipe::Local(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Stdout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            StdoutPipe::Ssh(pipe) => Pin::new(pipe).poll_read(cx, buf),
            StdoutPipe::Local(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}
