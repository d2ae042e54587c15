//! A session with a host: commands at once, each with its own standard input and output, over SSH or as plain
//! child processes. Cheap to clone; the line is closed when the last clone is gone.
//!
//! Must never run anything but a [`Command`]: what varies travels on standard input.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::command::Command;
use super::error::Error;
use super::local;
use super::ssh::Connection;
use super::stream::{Status, Stdout, Stream};

/// How long a command may take, and how much of its output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From start to end.
    pub timeout: Duration,
    /// What of standard output is kept; the rest is read and thrown away.
    pub stdout_bytes_max: usize,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// The first bytes of standard output.
    pub stdout: Vec<u8>,
    /// Whether there was more of it.
    pub stdout_cut: bool,
    /// The last bytes of standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The output, if the command ended with exit code 0.
    ///
    /// # Errors
    /// [`Error::CommandFailed`] otherwise.
    pub fn success(self, host: &str, what: &'static str) -> Result<Self, Error> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Error::CommandFailed {
            host: host.to_owned(),
            what,
            status: self.status.to_string(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
        })
    }
}

/// A session with one host.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    host: String,
    sudo: bool,
    line: Line,
}

enum Line {
    Ssh(Connection),
    Local,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.0.host).finish()
    }
}

impl Session {
    pub(super) fn ssh(host: String, sudo: bool, connection: Connection) -> Self {
        let line = Line::Ssh(connection);
        Self(Arc::new(Inner { host, sudo, line }))
    }

    /// A session with the controller itself, as host `host`.
    pub(super) fn local(host: String, sudo: bool) -> Self {
        let line = Line::Local;
        Self(Arc::new(Inner { host, sudo, line }))
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Whether commands go through `sudo -n`.
    pub fn becomes_root(&self) -> bool {
        self.0.sudo
    }

    /// Whether the line is known to be gone.
    pub fn is_closed(&self) -> bool {
        match &self.0.line {
            Line::Ssh(connection) => connection.is_closed(),
            Line::Local => false,
        }
    }

    /// Starts a command and returns its standard input and output.
    ///
    /// # Errors
    /// When all slots of the session stay taken, the host refuses, or the line is lost.
    pub async fn open(&self, command: &Command) -> Result<Stream, Error> {
        match &self.0.line {
            Line::Ssh(connection) => connection.open(command.line(self.0.sudo)).await,
            Line::Local => local::open(&self.0.host, command, self.0.sudo),
        }
    }

    /// Runs a command to its end. `what` names it in messages.
    ///
    /// # Errors
    /// As [`Session::open`], and when it does not end in time: it is then told to terminate.
    pub async fn run(
        &self,
        what: &'static str,
        command: &Command,
        stdin: &[u8],
        bounds: Bounds,
    ) -> Result<Output, Error> {
        let deadline = tokio::time::Instant::now() + bounds.timeout;
        let timed_out = || Error::CommandTimeout {
            host: self.0.host.clone(),
            what,
            after: bounds.timeout,
        };
        let opening = self.open(command);
        let stream = match tokio::time::timeout_at(deadline, opening).await {
            Ok(stream) => stream?,
            Err(_elapsed) => return Err(timed_out()),
        };
        let Stream {
            stdin: mut pipe,
            stdout,
            process,
        } = stream;
        let feed = async {
            // A command that does not read to the end says with its exit code what it thought of it.
            if pipe.write_all(stdin).await.is_ok() {
                let _ = pipe.shutdown().await;
            }
            drop(pipe);
        };
        let talk = async { tokio::join!(feed, read_bounded(stdout, bounds.stdout_bytes_max)).1 };
        let Ok((stdout, stdout_cut)) = tokio::time::timeout_at(deadline, talk).await else {
            process.terminate();
            return Err(timed_out());
        };
        let exit = match tokio::time::timeout_at(deadline, process.wait()).await {
            Ok(exit) => exit?,
            Err(_elapsed) => return Err(timed_out()),
        };
        Ok(Output {
            status: exit.status,
            stdout,
            stdout_cut,
            stderr: exit.stderr,
        })
    }

    /// Closes the line at once; commands still running lose it.
    pub async fn close(&self) {
        match &self.0.line {
            Line::Ssh(connection) => connection.close().await,
            Line::Local => {}
        }
    }
}

async fn read_bounded(mut stdout: Stdout, max: usize) -> (Vec<u8>, bool) {
    let mut kept = Vec::new();
    let mut cut = false;
    let mut buffer = vec![0; 64 * 1024];
    // An error is the end of the pipe; how the command ended is told by its exit.
    while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
        let room = max.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&buffer[..room]);
        cut |= room < length;
    }
    (kept, cut)
}
