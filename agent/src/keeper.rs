//! What must go on, or be put right, when the agent is gone: killed, or ended with its session.
//!
//! A program that may run long is started by a keeper, which holds the operation's lock until the program ends, so that
//! nobody starts it a second time beside the first; the program itself, and what it leaves in a guest, never hold it.
//! A container that is frozen has a keeper that lets it go on. A keeper is this same binary, started anew; it says
//! nothing to the controller and keeps no receipts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tallybook_events::step::{FailureClass, StepFailure};

use crate::step::{FrozenWatch, fail};
use crate::{durable, lock, program};

/// The argument that makes this binary hold a lock while a program runs.
const HOLD: &str = "hold";
/// The argument that makes this binary thaw a container.
const THAW: &str = "thaw-when-gone";
/// What the keeper of a frozen container says once it watches.
const WATCHING: &[u8] = b"watching\n";
/// How long it may take to say so.
const WATCHING_WITHIN: Duration = Duration::from_secs(20);
/// How often a container is looked at that must run on.
const POLL: Duration = Duration::from_millis(200);
/// How long it must have run: a freeze that was asked for just before the agent died may come late.
const STAYS: Duration = Duration::from_secs(3);
/// How long it is tried.
const TRIED_MAX: Duration = Duration::from_secs(600);

/// Set in the agent's own process, where this binary can be started anew.
static PROCESS: OnceLock<Process> = OnceLock::new();

struct Process {
    /// No batch runs, so the agent may end at once.
    idle: Arc<AtomicBool>,
    /// It was asked to end.
    terminated: Arc<AtomicBool>,
}

/// Makes this process an agent: keepers can be started, and a polite signal ends it between two steps, not within one.
///
/// # Errors
/// When a signal can't be caught.
pub fn install() -> io::Result<()> {
    let process = PROCESS.get_or_init(|| Process {
        idle: Arc::new(AtomicBool::new(true)),
        terminated: Arc::new(AtomicBool::new(false)),
    });
    let code = 128 + SIGTERM;
    signal_hook::flag::register_conditional_shutdown(SIGTERM, code, Arc::clone(&process.idle))?;
    signal_hook::flag::register(SIGTERM, Arc::clone(&process.terminated))?;
    Ok(())
}

/// Whether the agent was asked to end.
pub(crate) fn is_terminated() -> bool {
    let process = PROCESS.get();
    process.is_some_and(|process| process.terminated.load(Ordering::SeqCst))
}

/// Says that a batch runs, until it is dropped.
pub(crate) struct Busy(());

impl Busy {
    pub(crate) fn begin() -> Self {
        set_idle(false);
        Busy(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        set_idle(true);
    }
}

fn set_idle(idle: bool) {
    if let Some(process) = PROCESS.get() {
        process.idle.store(idle, Ordering::SeqCst);
    }
}

/// What a keeper does; `None` where the arguments are not a keeper's.
pub fn main(arguments: &[OsString]) -> Option<ExitCode> {
    let (first, rest) = arguments.split_first()?;
    let done = match first.to_str()? {
        HOLD => hold(rest),
        THAW => thaw_when_gone(rest),
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("tallybook-agent: {error}");
        ExitCode::FAILURE
    }))
}

/// The argument vector that runs a program under a keeper; as it is where there is nothing to hold, or where this
/// process is no agent.
pub(crate) fn held(argv: &[String], running: &[PathBuf]) -> Vec<OsString> {
    let mut whole: Vec<OsString> = Vec::new();
    if PROCESS.get().is_some() && !running.is_empty() {
        whole.extend(["/proc/self/exe", HOLD].map(OsString::from));
        whole.push(std::process::id().to_string().into());
        whole.extend(running.iter().map(OsString::from));
        whole.push("--".into());
    }
    whole.extend(argv.iter().map(OsString::from));
    whole
}

/// Polite signals are for the program, which is in the same group; the keeper ends when the program does.
fn outstay() -> io::Result<()> {
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        // Caught, not ignored: what is ignored would be inherited.
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Holds the locks in the name of a running agent; `None` when that is gone.
fn take(agent: &OsString, running: &[OsString]) -> io::Result<Option<Vec<File>>> {
    let number = |text: &OsString| text.to_str()?.parse().ok();
    let agent = number(agent).ok_or_else(|| io::Error::other("the agent's process id is none"))?;
    let mut held = Vec::new();
    for path in running {
        match lock::outlive(Path::new(path), agent)? {
            Some(file) => held.push(file),
            None => return Ok(None),
        }
    }
    Ok(Some(held))
}

/// `hold AGENT LOCK... -- PROGRAM ARGUMENT...`
fn hold(arguments: &[OsString]) -> io::Result<ExitCode> {
    let usage = || io::Error::other("hold AGENT LOCK... -- PROGRAM ARGUMENT...");
    let middle = arguments.iter().position(|argument| argument == "--");
    let (before, argv) = arguments.split_at(middle.ok_or_else(usage)?);
    let (agent, running) = before.split_first().ok_or_else(usage)?;
    let name = argv.get(1).ok_or_else(usage)?;
    outstay()?;
    let Some(_held) = take(agent, running)? else {
        return Err(io::Error::other("the agent is gone"));
    };
    // Crash boundary: from here on the program runs, or the locks are free.
    let status = Command::new(name).args(&argv[2..]).status()?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(u8::MAX)))
}

/// A keeper that watches a frozen container, until this is dropped.
pub(crate) struct Watcher {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The end of its input is what it waits for. Where the mark is still there it thaws the container first.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Starts a keeper that thaws a container when this process is gone, and waits until it watches.
///
/// # Errors
/// When none can be started; then nothing may be frozen.
pub(crate) fn watch(watch: &FrozenWatch, running: &[PathBuf]) -> Result<Watcher, StepFailure> {
    if PROCESS.get().is_none() {
        return Err(fail(
            FailureClass::Other,
            "this process can't start a keeper",
        ));
    }
    // In a scope of its own where there is systemd: the end of a session then does not end it.
    let scope = ["systemd-run", "--scope", "--quiet", "--collect"];
    if Path::new("/run/systemd/system").is_dir()
        && let Ok(watcher) = spawn(&scope, watch, running)
    {
        return Ok(watcher);
    }
    spawn(&[], watch, running).map_err(|error| StepFailure {
        hint: Some(format!("stop {} first", watch.container)),
        ..fail(
            FailureClass::Host,
            format!(
                "nothing can be started that would let {} go on if the agent died: {error}",
                watch.container
            ),
        )
    })
}

fn spawn(before: &[&str], watch: &FrozenWatch, running: &[PathBuf]) -> io::Result<Watcher> {
    // Its own name, not /proc/self: systemd-run would start itself.
    let own = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let mut argv: Vec<OsString> = before.iter().map(OsString::from).collect();
    argv.push(own.into());
    argv.push(THAW.into());
    argv.push(std::process::id().to_string().into());
    argv.push(watch.lxc.clone().into());
    argv.push(watch.container.to_string().into());
    argv.push(watch.mark.clone().into());
    argv.push(watch.text.clone().into());
    argv.extend(running.iter().map(OsString::from));
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .env_clear()
        .env("PATH", program::PATH)
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let watcher = Watcher { child, stdin };
    let said = stdout.map_or(Ok(false), |stdout| says_so(stdout.into()))?;
    if said {
        return Ok(watcher);
    }
    Err(io::Error::other("its keeper does not answer"))
}

/// Waits for the keeper's word.
fn says_so(stdout: std::os::fd::OwnedFd) -> io::Result<bool> {
    let mut stdout = program::nonblocking(stdout)?;
    let deadline = Instant::now() + WATCHING_WITHIN;
    let mut said = Vec::new();
    while Instant::now() < deadline {
        let mut buffer = [0; 64];
        match stdout.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) if program::is_not_now(&error) => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
        if said.ends_with(WATCHING) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `thaw-when-gone AGENT LXC-PATH CONTAINER MARK TEXT LOCK...`: waits for the end of its input, and lets the container
/// go on if the mark still says so.
fn thaw_when_gone(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [agent, lxc, container, mark, text, running @ ..] = arguments else {
        return Err(io::Error::other(
            "thaw-when-gone AGENT LXC-PATH CONTAINER MARK TEXT LOCK...",
        ));
    };
    outstay()?;
    let Some(_held) = take(agent, running)? else {
        return Err(io::Error::other("the agent is gone"));
    };
    io::stdout().write_all(WATCHING)?;
    io::stdout().flush()?;
    // Nothing is ever written to it: it ends with the agent, however that ends.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    let mark = Path::new(mark);
    let is_ours = || fs::read(mark).is_ok_and(|there| there == text.as_encoded_bytes());
    let deadline = Instant::now() + TRIED_MAX;
    let mut runs_since = None;
    while is_ours() && Instant::now() < deadline {
        let state = lxc_says(lxc, container)?;
        match state.as_str() {
            "RUNNING" => {
                let since = *runs_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STAYS {
                    durable::remove(mark).map_err(io::Error::other)?;
                }
            }
            "STOPPED" => durable::remove(mark).map(drop).map_err(io::Error::other)?,
            _ if !Path::new(lxc).join(container).exists() => {
                durable::remove(mark).map_err(io::Error::other)?;
            }
            _ => {
                runs_since = None;
                lxc_program("lxc-unfreeze", lxc, container).status()?;
            }
        }
        thread::sleep(POLL);
    }
    Ok(ExitCode::SUCCESS)
}

fn lxc_program(name: &str, lxc: &OsString, container: &OsString) -> Command {
    let mut command = Command::new(name);
    command
        .arg("-P")
        .arg(lxc)
        .arg("-n")
        .arg(container)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// What LXC says a container is doing; nothing where it knows none.
fn lxc_says(lxc: &OsString, container: &OsString) -> io::Result<String> {
    let mut ask = lxc_program("lxc-info", lxc, container);
    let output = ask.args(["-s", "-H"]).stdout(Stdio::piped()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
