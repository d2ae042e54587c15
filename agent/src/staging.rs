//! The directory in which one step of one operation builds what is later renamed into place. Its name holds the
//! operation and the step, so whatever is found under it is that step's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tallybook_events::step::StepFailure;

use crate::durable;
use crate::layout;
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

/// Removes a directory of the tool's own with all in it, beneath its parent, and those of the tool's own above it that
/// became empty; whether it was there.
///
/// # Errors
/// When it holds a mount or an immutable file, or can't be removed.
pub fn remove_dir(path: &Path) -> Result<bool, StepFailure> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // An attempt before this one may have come so far.
            prune(path)?;
            return Ok(false);
        }
        Err(e) => return Err(io_failure("looking at", path, &e)),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let removed = Root::open(parent)
        .and_then(|root| root.remove_dir_all(Path::new(name)))
        .map_err(|e| e.failure(parent))?;
    durable::sync_dir(parent)?;
    prune(path)?;
    Ok(removed)
}

/// Removes the directories above a path that hold nothing, up to the tool's own at the top and with it.
fn prune(path: &Path) -> Result<(), StepFailure> {
    let is_ours = |dir: &&Path| dir.iter().any(|name| name == layout::OWN);
    for dir in path.ancestors().skip(1).take_while(is_ours) {
        match fs::remove_dir(dir) {
            Ok(()) => dir.parent().map_or(Ok(()), durable::sync_dir)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(e) => return Err(io_failure("removing", dir, &e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_became_empty_go_up_to_the_tool_s_own_and_no_further() {
        let temp = tempfile::tempdir().unwrap();
        let lxc = temp.path().join("lxc");
        let own = lxc.join(layout::OWN);
        let (first, second) = (own.join("staging/1-0"), own.join("templates/web/1"));
        fs::create_dir_all(first.join("rootfs")).unwrap();
        fs::create_dir_all(&second).unwrap();
        assert!(remove_dir(&first).unwrap());
        assert!(!own.join("staging").exists() && second.exists());
        fs::create_dir(own.join("staging")).unwrap();
        assert!(!remove_dir(&first).unwrap(), "cut before the second half");
        assert!(!own.join("staging").exists());
        assert!(remove_dir(&second).unwrap());
        assert!(!own.exists() && lxc.exists());
        fs::create_dir_all(lxc.join("web/x")).unwrap();
        remove_dir(&lxc.join("web/x")).unwrap();
        assert!(lxc.join("web").exists(), "not the tool's");
    }
}
