//! The directory in which one step of one operation builds what is later renamed into place. Its name holds the
//! operation and the step, so whatever is found under it is that step's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tallybook_events::step::StepFailure;

use crate::durable;
use crate::mark;
use crate::step::{Context, io_failure};
use crate::tree::Root;

/// An empty staging directory for this step, marked; what an earlier, cut attempt left is removed first.
///
/// # Errors
/// When what was left can't be removed, or the directory can't be made.
pub fn create(context: &Context<'_>) -> Result<PathBuf, StepFailure> {
    remove(context)?;
    let staging = context.staging();
    durable::create_dirs(&staging)?;
    mark::write(&staging, context.origin)?;
    Ok(staging)
}

/// Removes this step's staging directory, never across a mount; whether it was there.
///
/// # Errors
/// When something in it can't be removed.
pub fn remove(context: &Context<'_>) -> Result<bool, StepFailure> {
    remove_dir(&context.staging())
}

/// Removes a directory of the tool's own with all in it, beneath its parent; whether it was there.
///
/// # Errors
/// When it holds a mount or an immutable file, or can't be removed.
pub fn remove_dir(path: &Path) -> Result<bool, StepFailure> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io_failure("looking at", path, &e)),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let removed = Root::open(parent)
        .and_then(|root| root.remove_dir_all(Path::new(name)))
        .map_err(|e| e.failure(parent))?;
    durable::sync_dir(parent)?;
    Ok(removed)
}
