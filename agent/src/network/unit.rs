//! Units of systemd: looked at by `systemctl show`, changed by `systemctl` and nothing else.
//!
//! It must never name a unit that is not the tool's, but the one of the DNS server, for which the tool has a drop-in.

use std::fs;

use tallybook_events::step::{FailureClass, StepFailure};

use crate::network::managed;
use crate::step::{Context, Program, fail};

/// How systemd sees a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// It runs, or it ran and stays in effect.
    pub active: bool,
    /// It is started at boot.
    pub enabled: bool,
    /// Its file is newer than what systemd has read.
    pub stale: bool,
    /// Its main process; 0 when there is none.
    pub main_pid: u32,
}

/// Looks at a unit; one that is not there is neither active nor enabled.
///
/// # Errors
/// When systemd can't be asked.
pub fn look(context: &mut Context<'_>, unit: &str) -> Result<Seen, StepFailure> {
    let ended = context.run(&Program::new([
        "systemctl",
        "show",
        "--property=ActiveState,UnitFileState,NeedDaemonReload,MainPID",
        unit,
    ]))?;
    let text = String::from_utf8_lossy(&ended.stdout);
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or("")
    };
    Ok(Seen {
        active: value("ActiveState") == "active",
        enabled: value("UnitFileState") == "enabled",
        stale: value("NeedDaemonReload") == "yes",
        main_pid: value("MainPID").parse().unwrap_or(0),
    })
}

/// Has systemd read a changed unit file and start it at boot; says how it is now, and whether that was different.
///
/// # Errors
/// When `systemctl` fails.
pub fn settle(
    context: &mut Context<'_>,
    unit: &str,
    file_changed: bool,
) -> Result<(Seen, bool), StepFailure> {
    let mut seen = look(context, unit)?;
    if file_changed || seen.stale {
        context.run(&Program::new(["systemctl", "daemon-reload"]))?;
        seen = look(context, unit)?;
    }
    let changed = !seen.enabled;
    if changed {
        context.run(&Program::new(["systemctl", "--quiet", "enable", unit]))?;
    }
    Ok((seen, changed))
}

/// Starts or restarts a unit; a failure quotes what its journal says.
///
/// # Errors
/// When it does not start.
pub fn start(context: &mut Context<'_>, verb: &'static str, unit: &str) -> Result<(), StepFailure> {
    let Err(mut failure) = context.run(&Program::new(["systemctl", verb, unit])) else {
        return Ok(());
    };
    let journal = Program::new([
        "journalctl",
        "--unit",
        unit,
        "--lines=5",
        "--no-pager",
        "--output=cat",
        "--boot",
    ]);
    if let Ok(ended) = context.link.run(&journal) {
        let text = String::from_utf8_lossy(&ended.stdout);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        failure.message = format!("{unit} does not start: {}", lines.join(" | "));
    }
    failure.hint = Some(format!("systemctl status {unit} says more"));
    Err(failure)
}

/// Stops a unit, forgets it, and removes its file; says whether the file was there. Safe to repeat.
///
/// # Errors
/// When the file is somebody else's, or `systemctl` fails.
pub fn remove(context: &mut Context<'_>, unit: &str) -> Result<bool, StepFailure> {
    let path = context.layout.unit(unit);
    match managed::read(&path)? {
        managed::Found::Absent => return Ok(false),
        managed::Found::Foreign => {
            return Err(fail(
                FailureClass::Exists,
                format!("{} was not written by tallybook", path.display()),
            ));
        }
        managed::Found::Ours { .. } => {}
    }
    context.run(&Program::new([
        "systemctl",
        "--quiet",
        "disable",
        "--now",
        unit,
    ]))?;
    managed::remove_ours(&path)?;
    context.run(&Program::new(["systemctl", "daemon-reload"]))?;
    Ok(true)
}

/// Whether the running main process was started with this in its environment.
pub fn started_with(context: &Context<'_>, seen: Seen, assignment: &str) -> bool {
    let path = context
        .layout
        .root
        .join(format!("proc/{}/environ", seen.main_pid));
    fs::read(path).is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|v| v == assignment.as_bytes()))
}
