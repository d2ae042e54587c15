//! What was before a step acted, kept on the host from before it acts: a second start of the step, after an agent that
//! died in the middle, finds the world changed already and would take that for what was before.
//!
//! A file a step, below the container's name. It goes when the step is taken back, when another operation acts on the
//! container, or with the container.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::layout::Layout;
use crate::step::{Context, failure, io_failure};
use crate::{durable, mark, staging};

/// What was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// Whether the container ran.
    pub(crate) was_running: bool,
    /// Who made the container; `None` where it carries no mark.
    pub(crate) maker: Option<mark::Origin>,
}

fn directory(layout: &Layout, container: &ContainerName) -> PathBuf {
    layout.state.join("before").join(container.as_str())
}

fn path(context: &Context<'_>, container: &ContainerName) -> PathBuf {
    let (operation, step) = context.origin;
    directory(context.layout, container).join(format!("{operation}-{step}"))
}

/// What an earlier start of the step kept.
///
/// # Errors
/// When it is there and can't be read.
pub(crate) fn kept(
    context: &Context<'_>,
    container: &ContainerName,
) -> Result<Option<Before>, StepFailure> {
    let path = path(context, container);
    match fs::read(&path) {
        Ok(bytes) => codec::decode(&bytes)
            .map(Some)
            .map_err(|error| failure(FailureClass::Verification, &error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failure("reading", &path, &error)),
    }
}

/// Keeps what is now, unless an earlier start of the step kept what was; answers with what counts.
///
/// # Errors
/// When it can't be read or written.
pub(crate) fn keep(
    context: &Context<'_>,
    container: &ContainerName,
    was_running: bool,
) -> Result<Before, StepFailure> {
    if let Some(before) = kept(context, container)? {
        return Ok(before);
    }
    let before = Before {
        was_running,
        maker: mark::read(&context.layout.container(container))?,
    };
    let bytes = codec::encode(&before).map_err(|error| failure(FailureClass::Unknown, &error))?;
    let directory = directory(context.layout, container);
    durable::create_dirs(&directory)?;
    // Another operation that acted on it is over, or this one could not act: its journal knows what was.
    let own = format!("{}-", context.origin.0);
    let entries = fs::read_dir(&directory).map_err(|e| io_failure("listing", &directory, &e))?;
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&own) {
            durable::remove(&entry.path())?;
        }
    }
    durable::write(&path(context, container), 0o600, &bytes)?;
    Ok(before)
}

/// The step is taken back.
///
/// # Errors
/// When the file can't be removed.
pub(crate) fn forget(context: &Context<'_>, container: &ContainerName) -> Result<(), StepFailure> {
    durable::remove(&path(context, container))?;
    let directory = directory(context.layout, container);
    if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none()) {
        staging::remove_dir(&directory)?;
    }
    Ok(())
}

/// The container is gone.
///
/// # Errors
/// When its directory can't be removed.
pub(crate) fn forget_all(layout: &Layout, container: &ContainerName) -> Result<(), StepFailure> {
    staging::remove_dir(&directory(layout, container)).map(drop)
}

/// Whether another container has the name by now: who made it differs.
///
/// # Errors
/// When the mark can't be read.
pub(crate) fn is_another(
    context: &mut Context<'_>,
    container: &ContainerName,
    maker: Option<mark::Origin>,
) -> Result<bool, StepFailure> {
    let now = mark::read(&context.layout.container(container))?;
    let another = now != maker;
    if another {
        let what = format!("{container} is another container by now; it is left as it is");
        context.link.progress(&what, 0, 0);
    }
    Ok(another)
}
