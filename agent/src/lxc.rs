//! Driving LXC's own programs: states, start, a polite stop, freeze. Argument vectors only; nothing is
//! hard-killed before it was asked to stop.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::durable;
use crate::layout::Layout;
use crate::step::{Context, Ended, Program, fail};

/// How often LXC is asked while something is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How often a start is tried when it lost a race for a kernel object.
const START_ATTEMPTS_MAX: u32 = 5;
/// How long a container that was asked to stop is waited for before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a container may take to be running once it was started.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What LXC says a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// LXC knows no such container.
    Absent,
    /// It does not run.
    Stopped,
    /// It runs.
    Running,
    /// It runs, frozen.
    Frozen,
    /// On its way between two of the others.
    Changing,
}

/// One of LXC's programs, about one container.
pub fn program(layout: &Layout, name: &str, container: &ContainerName) -> Program {
    Program::new([
        name.to_owned(),
        "-P".to_owned(),
        layout.lxc.display().to_string(),
        "-n".to_owned(),
        container.to_string(),
    ])
}

/// The same with more arguments.
fn with(mut program: Program, arguments: &[&str]) -> Program {
    program
        .argv
        .extend(arguments.iter().map(|argument| (*argument).to_owned()));
    program
}

/// Where LXC writes its log about a container: beside its configuration, so that it goes where the container goes.
fn log_path(layout: &Layout, container: &ContainerName) -> PathBuf {
    layout.container(container).join("lxc.log")
}

/// What a container is doing.
///
/// # Errors
/// When LXC can't be asked or answers something unknown.
pub fn state(context: &mut Context<'_>, container: &ContainerName) -> Result<State, StepFailure> {
    let ask = program(context.layout, "lxc-info", container);
    let ended = context
        .link
        .run(&with(ask, &["-s", "-H"]).timeout(Duration::from_secs(30)))?;
    let said = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    match (ended.exit, said.as_str()) {
        (Some(0), "STOPPED") => Ok(State::Stopped),
        (Some(0), "RUNNING") => Ok(State::Running),
        (Some(0), "FROZEN") => Ok(State::Frozen),
        (Some(0), "STARTING" | "STOPPING" | "ABORTING" | "FREEZING" | "THAWED") => {
            Ok(State::Changing)
        }
        _ if printed(&ended).contains("doesn't exist") => Ok(State::Absent),
        _ => Err(fail(
            FailureClass::Command,
            format!(
                "lxc-info says of container {container}: {}",
                printed(&ended)
            ),
        )),
    }
}

/// What a container is doing, once it is not on its way any more; what it was last, where that takes too long.
///
/// # Errors
/// When LXC can't be asked.
pub fn settled(context: &mut Context<'_>, container: &ContainerName) -> Result<State, StepFailure> {
    let begun = Instant::now();
    loop {
        let now = state(context, container)?;
        if now != State::Changing || begun.elapsed() >= START_TIMEOUT {
            return Ok(now);
        }
        thread::sleep(POLL);
    }
}

/// Everything a program printed, on one line.
pub fn printed(ended: &Ended) -> String {
    let mut text = String::from_utf8_lossy(&ended.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&ended.stderr));
    text.trim().replace('\n', " | ")
}

/// The process id, on the host, of a container's first process; `None` when it does not run.
///
/// # Errors
/// When LXC can't be asked.
pub fn init_pid(
    context: &mut Context<'_>,
    container: &ContainerName,
) -> Result<Option<u32>, StepFailure> {
    let ask = program(context.layout, "lxc-info", container);
    let ended = context
        .link
        .run(&with(ask, &["-p", "-H"]).timeout(Duration::from_secs(30)))?;
    Ok(String::from_utf8_lossy(&ended.stdout).trim().parse().ok())
}

/// Waits until the container is in one of these states.
///
/// # Errors
/// [`FailureClass::Timeout`] when it takes longer; the state it was in then.
fn wait_for(
    context: &mut Context<'_>,
    container: &ContainerName,
    wanted: &[State],
    timeout: Duration,
) -> Result<State, StepFailure> {
    let begun = Instant::now();
    loop {
        let now = state(context, container)?;
        if wanted.contains(&now) {
            return Ok(now);
        }
        if begun.elapsed() >= timeout {
            return Err(fail(
                FailureClass::Timeout,
                format!(
                    "container {container} is {now:?} after {} s; waited for {wanted:?}",
                    timeout.as_secs()
                ),
            ));
        }
        thread::sleep(POLL);
    }
}

/// Starts a container that does not run, and waits until it does.
///
/// # Errors
/// When it does not start; the message ends with the end of LXC's log.
pub fn start(context: &mut Context<'_>, container: &ContainerName) -> Result<(), StepFailure> {
    let log = log_path(context.layout, container);
    let mut attempt = 1;
    loop {
        durable::remove(&log)?;
        let start = with(
            program(context.layout, "lxc-start", container),
            &["-d", "-l", "INFO", "-o", &log.display().to_string()],
        );
        let ended = context.link.run(&start.timeout(START_TIMEOUT * 2))?;
        if ended.exit == Some(0) {
            wait_for(
                context,
                container,
                &[State::Running, State::Frozen],
                START_TIMEOUT,
            )
            .map_err(|e| with_log(e, &log))?;
            return Ok(());
        }
        let lines = log_errors(&log);
        if attempt < START_ATTEMPTS_MAX && lost_a_race(&lines) {
            attempt += 1;
            thread::sleep(POLL * 6);
            continue;
        }
        return Err(StepFailure {
            hint: Some(format!(
                "the whole log of LXC is in {} on the host",
                log.display()
            )),
            ..fail(
                FailureClass::Command,
                format!(
                    "container {container} does not start: {}",
                    if lines.is_empty() {
                        printed(&ended)
                    } else {
                        lines.join(" | ")
                    }
                ),
            )
        });
    }
}

/// Whether the log names a kernel object that was busy, which another try may get.
fn lost_a_race(lines: &[String]) -> bool {
    lines.iter().any(|line| {
        line.contains("Device or resource busy")
            || line.contains("Resource temporarily unavailable")
    })
}

/// The last errors in LXC's log.
fn log_errors(log: &Path) -> Vec<String> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .filter_map(|line| {
            line.split_once(" ERROR ")
                .map(|(_, rest)| rest.trim().to_owned())
        })
        .take(4)
        .collect();
    lines.reverse();
    lines
}

fn with_log(mut failure: StepFailure, log: &Path) -> StepFailure {
    let lines = log_errors(log);
    if !lines.is_empty() {
        failure.message = format!("{}: {}", failure.message, lines.join(" | "));
    }
    failure
}

/// How a container came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It did not run.
    WasStopped,
    /// It stopped when it was asked.
    Asked,
    /// It was asked, did not stop in time, and was killed.
    Killed,
}

/// Asks a container to stop; kills it only when it was asked and the time is over. A frozen one is thawed, or it
/// could not hear.
///
/// # Errors
/// When it runs on all the same, or LXC does not know it.
pub fn stop(
    context: &mut Context<'_>,
    container: &ContainerName,
    timeout: Duration,
) -> Result<Stop, StepFailure> {
    match state(context, container)? {
        State::Stopped => return Ok(Stop::WasStopped),
        State::Absent => {
            return Err(fail(
                FailureClass::Missing,
                format!("container {container} is not on this host"),
            ));
        }
        State::Frozen => unfreeze(context, container)?,
        State::Running | State::Changing => {}
    }
    context.link.progress("asked to stop", 0, 0);
    let begun = Instant::now();
    loop {
        // Asked again now and then: an init that is still starting does not hear the first time.
        let left = timeout.saturating_sub(begun.elapsed());
        let wait = left.min(ASK_AGAIN).max(Duration::from_secs(1));
        let ask = with(
            program(context.layout, "lxc-stop", container),
            &["--nokill", "--timeout", &wait.as_secs().to_string()],
        );
        context
            .link
            .run(&ask.timeout(wait + Duration::from_secs(30)))?;
        if state(context, container)? == State::Stopped {
            return Ok(Stop::Asked);
        }
        if begun.elapsed() >= timeout {
            break;
        }
        // Where LXC returns early, it is not asked in a tight loop.
        thread::sleep(POLL * 4);
    }
    context
        .link
        .progress("did not stop when asked; killing", 0, 0);
    let kill = with(program(context.layout, "lxc-stop", container), &["--kill"]);
    context.link.run(&kill.timeout(Duration::from_secs(60)))?;
    wait_for(
        context,
        container,
        &[State::Stopped],
        Duration::from_secs(10),
    )?;
    Ok(Stop::Killed)
}

/// Freezes a running container.
///
/// # Errors
/// When LXC can't.
pub fn freeze(context: &mut Context<'_>, container: &ContainerName) -> Result<(), StepFailure> {
    let freeze = program(context.layout, "lxc-freeze", container);
    context.run(&freeze.timeout(Duration::from_secs(60)))?;
    wait_for(
        context,
        container,
        &[State::Frozen],
        Duration::from_secs(10),
    )
    .map(drop)
}

/// Lets a container run on, and waits until it does, or does not run at all.
///
/// # Errors
/// When it is still held then; the message says what LXC said.
pub fn unfreeze(context: &mut Context<'_>, container: &ContainerName) -> Result<(), StepFailure> {
    let thaw = program(context.layout, "lxc-unfreeze", container);
    let said = context.link.run(&thaw.timeout(Duration::from_secs(60)))?;
    // What counts is what it does: it may have gone on, or stopped, by itself.
    wait_for(
        context,
        container,
        &[State::Running, State::Stopped, State::Absent],
        Duration::from_secs(10),
    )
    .map(drop)
    .map_err(|failure| StepFailure {
        message: format!("{}; lxc-unfreeze: {}", failure.message, printed(&said)),
        ..failure
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_log_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("l");
        fs::write(
            &log,
            "lxc-start web 1 INFO     conf - fine\n\
             lxc-start web 1 ERROR    network - Device or resource busy - Failed to attach\n",
        )
        .unwrap();
        let lines = log_errors(&log);
        assert_eq!(lines.len(), 1);
        assert!(lost_a_race(&lines), "{lines:?}");
        assert!(!lost_a_race(&["network - No such device".to_owned()]));
        assert!(log_errors(&dir.path().join("none")).is_empty());
    }
}
