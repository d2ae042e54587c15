//! Runs a program to its end: clean environment, own process group, bounded output, limited time, always reaped.
//!
//! Never a shell, and never anything of a guest's outside the guest. A program that leaves a daemon behind is
//! not waited for beyond its own end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tallybook_events::argv;
use tallybook_events::ids::Blob;
use tallybook_events::step::{Captured, FailureClass, StepFailure};

use crate::capture::Capture;
use crate::keeper;
use crate::mask;
use crate::secret::{SecretName, Secrets};
use crate::step::{Ended, Program, fail};

/// Where programs are looked up.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is recorded of a program's output: its beginning.
const RECORD_HEAD: usize = 48 * 1024;
/// What is recorded of a program's output: its end.
const RECORD_TAIL: usize = 16 * 1024;
/// What a step gets to read of each stream; behind it a line says how much is missing.
const STREAM_HEAD: usize = 4 * 1024 * 1024;
const STREAM_TAIL: usize = 16 * 1024;
/// From the polite signal to the other one.
const KILL_AFTER: Duration = Duration::from_secs(10);
/// How long output is still read after the program itself ended, when something it left behind holds it open.
const LINGER: Duration = Duration::from_millis(500);

/// A program that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The argument vector is empty.
    #[error("a program without a name")]
    Nameless,
    /// Nobody said what a secret is that it needs.
    #[error("nobody told this host the secret {0}")]
    Untold(SecretName),
    /// It could not be started.
    #[error("can't start {program}")]
    Start {
        /// The first of its argument vector.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be watched.
    #[error("can't watch {program}")]
    Watch {
        /// The first of its argument vector.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl From<Error> for StepFailure {
    fn from(error: Error) -> Self {
        let (class, hint) = match &error {
            Error::Start { program, source } if source.kind() == io::ErrorKind::NotFound => (
                FailureClass::Missing,
                Some(format!(
                    "install the package that holds {program} on the host"
                )),
            ),
            Error::Start { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                (FailureClass::Permission, None)
            }
            Error::Nameless | Error::Untold(_) | Error::Start { .. } | Error::Watch { .. } => {
                (FailureClass::Other, None)
            }
        };
        StepFailure {
            hint,
            ..crate::step::failure(class, &error)
        }
    }
}

/// A program that ran to its end, or to the end of its time.
#[derive(Debug)]
pub struct Run {
    /// How it ended, or the failure of one whose time was over.
    pub result: Result<Ended, StepFailure>,
    /// What is recorded of it.
    pub captured: Captured,
}

/// Runs a program.
///
/// # Errors
/// When it could not be started or watched; then nothing of it is left running.
pub fn run(program: &Program) -> Result<Run, Error> {
    run_telling(program, &[], &Secrets::default(), &mut |_| {})
}

/// Runs a program, with the locks that a lasting one holds until it ends, and the secrets that are known here: it finds
/// those that it names in its environment, and what it prints is kept without any. What its `watch` answers is told.
///
/// # Errors
/// As [`run`].
pub fn run_telling(
    program: &Program,
    running: &[PathBuf],
    secrets: &Secrets,
    tell: &mut dyn FnMut(&str),
) -> Result<Run, Error> {
    let name = program.argv.first().ok_or(Error::Nameless)?;
    let argv = if program.lasting && is_there(name) {
        keeper::held(&program.argv, running)
    } else {
        program.argv.iter().map(OsString::from).collect()
    };
    let mut command = Command::new(&argv[0]);
    command
        .args(&argv[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root")
        .envs(&program.env)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in &program.secrets {
        let value = secrets.get(name);
        let value = value.ok_or_else(|| Error::Untold(name.clone()))?;
        command.env(name.variable(), OsStr::from_bytes(value.expose()));
    }
    let child = command.spawn().map_err(|source| Error::Start {
        program: name.clone(),
        source,
    })?;
    let mut watched = Watched::new(child);
    let outcome = watched
        .wait(program, secrets, tell)
        .map_err(|source| Error::Watch {
            program: name.clone(),
            source,
        })?;
    Ok(outcome.into_run(program, secrets))
}

/// Whether a program is where programs are looked up: one that is not is not even started by a keeper.
fn is_there(name: &str) -> bool {
    PATH.split(':')
        .any(|dir| Path::new(dir).join(name).exists())
}

/// Signals a child's process group, or the child alone where it has no group of its own yet (`setsid` makes one
/// when it comes to it). The child must not be reaped yet: until then its number is its own.
pub(crate) fn signal_group(leader: u32, signal: Signal) {
    let pid = i32::try_from(leader).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && kill_process_group(pid, signal).is_err()
    {
        // It can only be gone by now, which is as good.
        let _ = kill_process(pid, signal);
    }
}

struct Outcome {
    status: ExitStatus,
    timed_out: bool,
    stdout: Capture,
    stderr: Capture,
    both: Capture,
}

impl Outcome {
    fn into_run(self, program: &Program, secrets: &Secrets) -> Run {
        let command = secrets.mask().clean_text(&argv::text(&program.argv));
        let result = if self.timed_out {
            let seconds = program.timeout.as_secs_f32();
            Err(fail(
                FailureClass::Timeout,
                format!("{command} took longer than {seconds} s and was stopped"),
            ))
        } else {
            Ok(Ended {
                exit: self.status.code(),
                stdout: self.stdout.into_bytes(),
                stderr: self.stderr.into_bytes(),
            })
        };
        Run {
            result,
            captured: Captured {
                command,
                exit: self.status.code(),
                dropped_bytes: self.both.dropped(),
                text: Blob(secrets.mask().clean(&self.both.into_bytes())),
            },
        }
    }
}

/// A child that is killed and reaped when this is dropped before its end.
struct Watched {
    child: Child,
    reaped: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.reaped {
            signal_group(self.child.id(), Signal::KILL);
            // It was killed, so this ends; nobody is left to tell an error to.
            let _ = self.child.wait();
        }
    }
}

impl Watched {
    fn new(child: Child) -> Self {
        Watched {
            child,
            reaped: false,
        }
    }

    fn wait(
        &mut self,
        program: &Program,
        secrets: &Secrets,
        tell: &mut dyn FnMut(&str),
    ) -> io::Result<Outcome> {
        let id = self.child.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process id out of range"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let mut pipes = Pipes::new(&mut self.child, &program.stdin, secrets)?;
        let mut lines = Lines::default();
        let mut deadline = Instant::now() + program.timeout;
        let mut signals = [Signal::TERM, Signal::KILL].into_iter();
        let mut timed_out = false;
        let mut ended_at = None;
        loop {
            let until = ended_at.map_or(deadline, |at: Instant| at + LINGER);
            let left = until.saturating_duration_since(Instant::now());
            let has_ended = pipes.turn(ended_at.is_none().then_some(pidfd.as_fd()), left)?;
            if let Some(watch) = program.watch {
                lines.take(&mut pipes.news, &mut |line| {
                    if let Some(what) = watch(line) {
                        tell(&what);
                    }
                });
            } else {
                pipes.news.clear();
            }
            if has_ended && ended_at.is_none() {
                ended_at = Some(Instant::now());
            }
            match ended_at {
                Some(_) if pipes.are_at_end() => break,
                Some(at) if Instant::now() >= at + LINGER => break,
                Some(_) => {}
                None if Instant::now() >= deadline => {
                    timed_out = true;
                    let signal = signals.next().unwrap_or(Signal::KILL);
                    signal_group(id, signal);
                    deadline = Instant::now() + KILL_AFTER;
                }
                None => {}
            }
        }
        if timed_out {
            // Not yet reaped, so the group's number is still its own: whoever outlived the polite signal goes.
            signal_group(id, Signal::KILL);
        }
        let status = self.child.wait()?;
        self.reaped = true;
        pipes.finish();
        Ok(Outcome {
            status,
            timed_out,
            stdout: pipes.stdout.kept,
            stderr: pipes.stderr.kept,
            both: pipes.both,
        })
    }
}

/// The longest line that is looked at; what follows is passed over.
const LINE_MAX: usize = 4096;

/// Lines of what a child printed.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes what came; each line that is whole is told.
    fn take(&mut self, news: &mut Vec<u8>, tell: &mut dyn FnMut(&str)) {
        for byte in news.drain(..) {
            match byte {
                b'\n' | b'\r' => {
                    tell(&String::from_utf8_lossy(&self.begun));
                    self.begun.clear();
                }
                _ if self.begun.len() < LINE_MAX => self.begun.push(byte),
                _ => {}
            }
        }
    }
}

/// One output stream of the child.
struct Stream<'a> {
    from: Option<File>,
    kept: Capture,
    /// Whether it is a program that reads what is kept, and not people: then it is kept as it came.
    is_read: bool,
    masked: mask::Stream<'a>,
}

impl<'a> Stream<'a> {
    fn new(from: Option<OwnedFd>, is_read: bool, secrets: &'a Secrets) -> io::Result<Self> {
        Ok(Stream {
            from: from.map(nonblocking).transpose()?,
            kept: Capture::new(STREAM_HEAD, STREAM_TAIL),
            is_read,
            masked: mask::Stream::new(secrets.mask()),
        })
    }

    /// Reads what is there.
    fn read(&mut self, both: &mut Capture, news: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        let Some(from) = &mut self.from else {
            return Ok(());
        };
        match from.read(&mut buffer) {
            Ok(0) => self.from = None,
            Ok(count) => {
                if self.is_read {
                    self.kept.push(&buffer[..count]);
                }
                let masked = self.masked.push(&buffer[..count]);
                self.keep(&masked, both);
                news.extend(masked);
            }
            Err(error) if is_not_now(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Keeps what was held back.
    fn finish(&mut self, both: &mut Capture) {
        let masked = self.masked.finish();
        self.keep(&masked, both);
    }

    fn keep(&mut self, masked: &[u8], both: &mut Capture) {
        if !self.is_read {
            self.kept.push(masked);
        }
        both.push(masked);
    }
}

/// The child's three streams.
struct Pipes<'a> {
    stdin: Option<File>,
    input: &'a [u8],
    stdout: Stream<'a>,
    stderr: Stream<'a>,
    both: Capture,
    /// What came since it was last looked at, of both.
    news: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn new(child: &mut Child, input: &'a [u8], secrets: &'a Secrets) -> io::Result<Self> {
        let stdin = child.stdin.take().map(OwnedFd::from);
        Ok(Pipes {
            stdin: if input.is_empty() {
                None
            } else {
                stdin.map(nonblocking).transpose()?
            },
            input,
            stdout: Stream::new(child.stdout.take().map(OwnedFd::from), true, secrets)?,
            stderr: Stream::new(child.stderr.take().map(OwnedFd::from), false, secrets)?,
            both: Capture::new(RECORD_HEAD, RECORD_TAIL),
            news: Vec::new(),
        })
    }

    /// Nothing more will come.
    fn finish(&mut self) {
        self.stdout.finish(&mut self.both);
        self.stderr.finish(&mut self.both);
    }

    fn are_at_end(&self) -> bool {
        self.stdout.from.is_none() && self.stderr.from.is_none()
    }

    /// Waits until something can be read or written, or the process ended, and reads and writes it. Whether the
    /// process ended.
    fn turn(&mut self, process: Option<BorrowedFd<'_>>, wait: Duration) -> io::Result<bool> {
        let mut ready = [false; 4];
        {
            let wanted = [
                (process, PollFlags::IN),
                (self.stdin.as_ref().map(AsFd::as_fd), PollFlags::OUT),
                (self.stdout.from.as_ref().map(AsFd::as_fd), PollFlags::IN),
                (self.stderr.from.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ];
            let mut polled = Vec::with_capacity(wanted.len());
            let mut which = Vec::with_capacity(wanted.len());
            for (at, (fd, flags)) in wanted.into_iter().enumerate() {
                if let Some(fd) = fd {
                    polled.push(PollFd::from_borrowed_fd(fd, flags));
                    which.push(at);
                }
            }
            let wait = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            match poll(&mut polled, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for (fd, at) in polled.iter().zip(which) {
                ready[at] = !fd.revents().is_empty();
            }
        }
        let [has_ended, stdin, stdout, stderr] = ready;
        if stdin {
            self.write();
        }
        if stdout {
            self.stdout.read(&mut self.both, &mut self.news)?;
        }
        if stderr {
            self.stderr.read(&mut self.both, &mut self.news)?;
        }
        Ok(has_ended)
    }

    /// A program need not read what it is given: a closed pipe is no failure.
    fn write(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(self.input) {
            Ok(count) => self.input = &self.input[count..],
            Err(error) if is_not_now(&error) => return,
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }
}

/// Whether a read or a write is only to be tried again.
pub(crate) fn is_not_now(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The file, in the mode where it never waits.
pub(crate) fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests;
