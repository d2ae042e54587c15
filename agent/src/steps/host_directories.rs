//! `host.directories`: the tool's own directories on a host.
//!
//! It never removes a directory that holds anything, and never changes one that is not the tool's by its name.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Replaced};
use crate::packages;
use crate::step::{Context, Done, Step, fail, io_failure};

/// Makes the tool's directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirectories {}

/// The directories, a parent before its children. What dnsmasq reads after it gave up root is open to all.
fn directories(layout: &Layout) -> [(PathBuf, u32); 7] {
    [
        (layout.etc.clone(), 0o755),
        (layout.reservations(), 0o755),
        (layout.names(), 0o755),
        (layout.forwards(), 0o755),
        (layout.state.clone(), 0o700),
        (layout.state.join("receipts"), 0o700),
        (layout.locks(), 0o700),
    ]
}

/// Tells which operation installed the host.
fn marker(layout: &Layout) -> PathBuf {
    layout.state.join("installed")
}

enum There {
    No,
    Right,
    OtherMode,
}

fn look(path: &Path, mode: u32) -> Result<There, StepFailure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(There::No),
        Err(error) => Err(io_failure("looking at", path, &error)),
        Ok(meta) if !meta.is_dir() => Err(fail(
            FailureClass::Exists,
            format!("{} is there and is not a directory", path.display()),
        )),
        Ok(meta) if meta.permissions().mode() & 0o7777 == mode => Ok(There::Right),
        Ok(_) => Ok(There::OtherMode),
    }
}

/// Makes one of the tool's directories, or sets its mode; says whether it was different.
pub(crate) fn make(path: &Path, mode: u32) -> Result<bool, StepFailure> {
    match look(path, mode)? {
        There::Right => return Ok(false),
        There::No => DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|e| io_failure("making", path, &e))?,
        There::OtherMode => {}
    }
    // Also after making it, where the umask took bits away.
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|e| io_failure("setting the mode of", path, &e))?;
    Ok(true)
}

impl HostDirectories {
    fn done(context: &Context<'_>, changed: bool, output: Replaced) -> Done<Replaced> {
        Done {
            changed,
            output,
            facts: vec![Fact::HostInstalled {
                host: context.host.clone(),
            }],
        }
    }
}

impl Step for HostDirectories {
    const KIND: &'static str = "host.directories";
    type Output = Replaced;

    fn summary(&self) -> String {
        "make the tool's directories".to_owned()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let mut right = 0;
        let all = directories(context.layout);
        for (path, mode) in &all {
            match look(path, *mode) {
                Ok(There::Right) => right += 1,
                Ok(There::No | There::OtherMode) => {}
                Err(failure) if failure.class == FailureClass::Exists => {
                    return Ok(Seen::Conflict {
                        what: failure.message,
                    });
                }
                Err(failure) => return Err(failure),
            }
        }
        let marked = managed::body(&marker(context.layout))?.is_some();
        if marked && right == all.len() {
            let replaced = managed::replaced(&marker(context.layout), context.origin)?;
            return Self::done(context, false, replaced).seen();
        }
        // The state directory alone says nothing: the agent keeps its receipts there before any step.
        if !marked {
            return Ok(Seen::Absent);
        }
        Ok(Seen::Partial {
            what: format!("{right} of {} directories", all.len()),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let mut changed = make(&context.layout.state, 0o700)?;
        // Crash boundary: the mark comes first, so that an undo finds what a cut left.
        let (marked, replaced) = managed::write(&marker(context.layout), context.origin, "")?;
        for (path, mode) in directories(context.layout) {
            changed |= make(&path, mode)?;
        }
        Ok(Self::done(context, changed || marked, replaced))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let mut found = managed::of_others([marker(context.layout)])?;
        // What the tool itself keeps on the host is never moved: receipts, fence and locks are in use as it runs.
        let kept = |path: &Path| path.starts_with(&context.layout.state);
        let others = directories(context.layout).into_iter();
        for (path, mode) in others.filter(|(path, _)| !kept(path)) {
            match look(&path, mode) {
                Ok(There::No | There::Right | There::OtherMode) => {}
                Err(failure) if failure.class == FailureClass::Exists => found.push(path),
                Err(failure) => return Err(failure),
            }
        }
        Ok(found)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let marker = marker(context.layout);
        let mut done = Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        if !managed::is_made_by(&marker, context.origin)? {
            return Ok(done);
        }
        // Crash boundary: the mark goes when only the state directory is left, so that a repeat still sees it.
        for (path, _) in directories(context.layout).iter().rev() {
            if *path == context.layout.state {
                continue;
            }
            remove_empty(path)?;
        }
        // A stamp of no worth without the rest.
        let stamp = packages::stamp(context.layout);
        if stamp.exists() {
            fs::remove_file(&stamp).map_err(|e| io_failure("removing", &stamp, &e))?;
        }
        managed::take_back(&marker, context.origin, output.as_ref())?;
        remove_empty(&context.layout.state)?;
        done.changed = true;
        done.facts.push(Fact::HostUninstalled {
            host: context.host.clone(),
        });
        Ok(done)
    }
}

/// Removes a directory that is there and has nothing in it.
pub(crate) fn remove_empty(path: &Path) -> Result<(), StepFailure> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(io_failure("removing", path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::Simulated;

    #[test]
    fn makes_them_once_and_removes_what_is_empty() {
        let mut sim = Simulated::bare();
        sim.makes_once_and_takes_back(&HostDirectories {});
        assert!(!sim.layout.state.exists() && !sim.layout.etc.exists());

        sim.forward(1, &HostDirectories {}).unwrap();
        assert!(!sim.forward(2, &HostDirectories {}).unwrap().changed);
        assert!(!sim.undo(2, &HostDirectories {}, None).unwrap().changed);
        fs::write(sim.layout.state.join("receipts/kept"), "x").unwrap();
        let done = sim.undo(1, &HostDirectories {}, None).unwrap();
        assert!(matches!(done.facts[..], [Fact::HostUninstalled { .. }]));
        assert!(sim.layout.state.join("receipts/kept").exists());
        assert!(!sim.layout.etc.exists());
    }

    #[test]
    fn a_cut_after_the_mark_is_completed_or_taken_back() {
        for complete in [true, false] {
            let mut sim = Simulated::bare();
            sim.forward(1, &HostDirectories {}).unwrap();
            fs::remove_dir_all(&sim.layout.etc).unwrap();
            assert!(matches!(
                sim.probe(1, &HostDirectories {}),
                Seen::Partial { .. }
            ));
            if complete {
                assert!(sim.forward(1, &HostDirectories {}).unwrap().changed);
                assert!(matches!(sim.probe(1, &HostDirectories {}), Seen::Done(_)));
            } else {
                sim.undo(1, &HostDirectories {}, None).unwrap();
                assert!(matches!(sim.probe(1, &HostDirectories {}), Seen::Absent));
                assert!(!sim.layout.state.exists());
            }
        }
    }

    #[test]
    fn repairs_modes_and_refuses_what_is_no_directory() {
        let mut sim = Simulated::bare();
        sim.forward(1, &HostDirectories {}).unwrap();
        fs::set_permissions(&sim.layout.state, Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            sim.probe(1, &HostDirectories {}),
            Seen::Partial { .. }
        ));
        assert!(sim.forward(1, &HostDirectories {}).unwrap().changed);
        let mode = fs::metadata(&sim.layout.state)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700);

        let mut sim = Simulated::bare();
        fs::create_dir_all(sim.layout.etc.parent().unwrap()).unwrap();
        fs::write(&sim.layout.etc, "x").unwrap();
        let failure = sim.forward(1, &HostDirectories {}).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(matches!(
            sim.probe(1, &HostDirectories {}),
            Seen::Conflict { .. }
        ));
    }
}
