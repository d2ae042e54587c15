//! What somebody else has in a step's place, moved beside it where an operator wants that, and put back by the step's undo.
//!
//! It deletes nothing and replaces nothing. Where it went is on the disk before it goes there.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::Blob;
use tallybook_events::step::{Captured, FailureClass, StepFailure};

use crate::layout::Layout;
use crate::mark::Origin;
use crate::step::{Context, Program, fail, failure, io_failure};
use crate::{durable, staging};

/// How many things in one place a step sets aside: somebody puts another one there each time.
const ASIDE_MAX: u32 = 16;

/// One thing that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Aside {
    /// Where it was.
    from: PathBuf,
    /// Where it is.
    to: PathBuf,
}

fn directory(layout: &Layout) -> PathBuf {
    layout.state.join("set-aside")
}

fn record(layout: &Layout, (operation, step): Origin) -> PathBuf {
    directory(layout).join(format!("{operation}-{step}"))
}

fn recorded(path: &Path) -> Result<Vec<Aside>, StepFailure> {
    match fs::read(path) {
        Ok(bytes) => {
            codec::decode(&bytes).map_err(|error| failure(FailureClass::Verification, &error))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_failure("reading", path, &error)),
    }
}

fn is_there(path: &Path) -> Result<bool, StepFailure> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_failure("looking at", path, &error)),
    }
}

/// The name that a thing gets: hidden, so that LXC, dnsmasq, systemd and the tool itself pass over it; and of the step, so that
/// it is found again.
fn beside(path: &Path, (operation, step): Origin) -> Result<PathBuf, StepFailure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for number in 1..=ASIDE_MAX {
        let to = path.with_file_name(format!(".{name}.set-aside-{operation}-{step}-{number}"));
        if !is_there(&to)? {
            return Ok(to);
        }
    }
    let message = format!("{} was set aside {ASIDE_MAX} times already", path.display());
    Err(fail(FailureClass::Exists, message))
}

/// Moves things out of the way of the context's step; what is told of each.
///
/// # Errors
/// When one can't be moved, or where it goes can't be recorded: then it is where it was.
pub(crate) fn clear(
    context: &mut Context<'_>,
    paths: &[PathBuf],
) -> Result<Vec<Captured>, StepFailure> {
    let mut moved = Vec::new();
    if paths.is_empty() {
        return Ok(moved);
    }
    durable::create_dirs(&directory(context.layout))?;
    let record = record(context.layout, context.origin);
    let mut known = recorded(&record)?;
    for from in paths {
        if !is_there(from)? {
            continue;
        }
        let aside = Aside {
            from: from.clone(),
            to: beside(from, context.origin)?,
        };
        known.push(aside.clone());
        let bytes =
            codec::encode(&known).map_err(|error| failure(FailureClass::Unknown, &error))?;
        // Crash boundary: what is recorded and was not moved is where it was, and is passed over when all is put back.
        durable::write(&record, 0o600, &bytes)?;
        durable::rename_new(&aside.from, &aside.to)?;
        let text = format!(
            "{} is set aside as {}",
            aside.from.display(),
            aside.to.display()
        );
        moved.push(told(context, text));
    }
    Ok(moved)
}

/// Puts back what the context's step set aside, the last first; what is told of each. What has something else in its place
/// by now stays where it is, and that is told.
///
/// # Errors
/// When one can't be moved.
pub(crate) fn put_back(context: &mut Context<'_>) -> Result<Vec<Captured>, StepFailure> {
    let record = record(context.layout, context.origin);
    let mut all = Vec::new();
    let mut stays = false;
    let mut is_unit = false;
    for Aside { from, to } in recorded(&record)?.into_iter().rev() {
        if !is_there(&to)? {
            continue;
        }
        if is_there(&from)? {
            stays = true;
            let text = format!(
                "{} stays set aside as {}: something else is in its place",
                from.display(),
                to.display()
            );
            all.push(told(context, text));
            continue;
        }
        durable::rename_new(&to, &from)?;
        is_unit |= from.starts_with(&context.layout.units);
        let text = format!("{} is back", from.display());
        all.push(told(context, text));
    }
    if is_unit {
        context.run(&Program::new(["systemctl", "daemon-reload"]))?;
    }
    // Crash boundary: what is back is passed over by a repeat. What stays is found by its record.
    if !stays && durable::remove(&record)? {
        let directory = directory(context.layout);
        if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none()) {
            staging::remove_dir(&directory)?;
        }
    }
    Ok(all)
}

fn told(context: &mut Context<'_>, text: String) -> Captured {
    context.link.progress(&text, 0, 0);
    Captured {
        command: "set aside".to_owned(),
        exit: Some(0),
        text: Blob(format!("{text}\n").into_bytes()),
        dropped_bytes: 0,
    }
}
