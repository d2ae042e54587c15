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

/// How often a rename is tried whose directory others remove while it is empty.
const RENAME_TRIES_MAX: u32 = 5;

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

/// Removes the directories above a path that hold nothing, up to the tool's own at the top and with it. Whoever renames
/// something out of a staging directory calls it afterwards.
///
/// # Errors
/// When one that is empty can't be removed.
pub fn prune(path: &Path) -> Result<(), StepFailure> {
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

/// Renames to a staging directory what was published from it, for its step to take back.
///
/// # Errors
/// When the directory is there, or it can't be renamed.
pub fn put_back(published: &Path, staging: &Path) -> Result<(), durable::Error> {
    let mut tries = RENAME_TRIES_MAX;
    loop {
        staging.parent().map_or(Ok(()), durable::create_dirs)?;
        tries -= 1;
        match durable::rename_new(published, staging) {
            // Another operation may have removed the empty directory above it meanwhile.
            Err(_) if tries > 0 && staging.parent().is_some_and(|dir| !dir.exists()) => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_goes_back_where_the_directory_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let own = temp.path().join("lxc").join(layout::OWN);
        let (home, staged) = (temp.path().join("lxc/web"), own.join("staging/1-0"));
        fs::create_dir_all(&staged).unwrap();
        durable::rename_new(&staged, &home).unwrap();
        prune(&staged).unwrap();
        assert!(!own.exists());
        put_back(&home, &staged).unwrap();
        assert!(staged.exists() && !home.exists());
        fs::create_dir(&home).unwrap();
        assert!(put_back(&home, &staged).is_err(), "it is there");
    }

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
