//! `base.bootstrap`: a base system in the host's cache, made once and shared by all later creates.
//!
//! Built in staging and complete by its rename; never built in the place where it is used from.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::base::{Base, busybox, debian};
use crate::step::{Context, Done, Step, fail, io_failure};
use crate::{durable, guest, mark, staging};

/// Makes sure that a base system is in the host's cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseBootstrap {
    /// What to start from.
    pub distribution: Base,
    /// A directory on the host that keeps downloaded packages; used when it is there.
    pub cache_dir: Option<PathBuf>,
}

/// Which base system is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrapped {
    /// Its name in the cache.
    pub key: String,
}

impl BaseBootstrap {
    fn output(&self) -> Bootstrapped {
        Bootstrapped {
            key: self.distribution.key(),
        }
    }

    fn lock_path(&self, context: &Context<'_>, what: &str) -> PathBuf {
        let key = self.distribution.key();
        context.layout.locks().join(format!("base-{key}.{what}"))
    }

    fn build(&self, context: &mut Context<'_>, staging: &Path) -> Result<(), StepFailure> {
        let rootfs = staging.join(guest::ROOTFS);
        match &self.distribution {
            Base::Debian {
                release,
                mirror,
                packages,
            } => {
                let wanted = debian::Wanted {
                    release,
                    mirror: mirror.as_ref(),
                    packages,
                    cache_dir: self.cache_dir.as_deref(),
                };
                let lock = self.lock_path(context, "debootstrap");
                debian::bootstrap(context, &wanted, &rootfs, &lock)?;
            }
            Base::Busybox => {
                fs::create_dir(&rootfs).map_err(|e| io_failure("making directory", &rootfs, &e))?;
                busybox::bootstrap(context, &rootfs)?;
            }
        }
        context.link.progress("writing to disk", 0, 0);
        Ok(durable::sync_file_system(staging)?)
    }
}

/// Waits for a lock of this host; it is given back when the file is closed.
fn lock(context: &mut Context<'_>, path: &Path) -> Result<File, StepFailure> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| io_failure("opening", path, &e))?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(io_failure("locking", path, &e.into())),
        }
        if context.link.stop_requested() {
            return Err(fail(
                FailureClass::Interrupted,
                "stopped while another create makes the base system",
            ));
        }
        if !told {
            context.link.progress(
                "waiting for another create that makes the same base system",
                0,
                0,
            );
            told = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

impl Step for BaseBootstrap {
    const KIND: &'static str = "base.bootstrap";
    type Output = Bootstrapped;

    fn summary(&self) -> String {
        format!("have {} in the cache", self.distribution.title())
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "a base system is shared by later creates".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let cached = self.distribution.cached(context.layout);
        if mark::read(&cached)?.is_some() {
            return Done {
                changed: false,
                output: self.output(),
                facts: Vec::new(),
            }
            .seen();
        }
        if cached.exists() {
            return Ok(Seen::Conflict {
                what: format!(
                    "{} is there and was not made by this tool",
                    cached.display()
                ),
            });
        }
        if context.staging().exists() {
            return Ok(Seen::Partial {
                what: "a base system that was begun".to_owned(),
            });
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Bootstrapped>, StepFailure> {
        let cached = self.distribution.cached(context.layout);
        let done = |changed| Done {
            changed,
            output: self.output(),
            facts: Vec::new(),
        };
        durable::create_dirs(&context.layout.locks())?;
        durable::create_dirs(&context.layout.cache())?;
        let _alone = lock(context, &self.lock_path(context, "lock"))?;
        if mark::read(&cached)?.is_some() {
            staging::remove(context)?;
            return Ok(done(false));
        }
        // A debootstrap that outlived its agent still writes to the staging directory: it holds this one.
        drop(lock(context, &self.lock_path(context, "debootstrap"))?);
        let staging = staging::create(context)?;
        let built = self.build(context, &staging);
        if let Err(failed) = built {
            // What failed is of no use to anyone, and this step has no undo. A crash here leaves it to the
            // next attempt.
            staging::remove(context)?;
            return Err(failed);
        }
        durable::rename_new(&staging, &cached)?;
        staging::prune(&staging)?;
        Ok(done(true))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let cached = self.distribution.cached(context.layout);
        let is_others = cached.symlink_metadata().is_ok() && mark::read(&cached)?.is_none();
        Ok(is_others.then_some(cached).into_iter().collect())
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Bootstrapped>, StepFailure> {
        let cached = self.distribution.cached(context.layout);
        let root = cached.join(guest::ROOTFS);
        let is_it = match &self.distribution {
            Base::Debian { release, .. } => {
                let found = guest::system(&root)?;
                found == Some(("debian".to_owned(), release.as_str().to_owned()))
            }
            Base::Busybox => root.join("bin/busybox").is_file(),
        };
        if !is_it {
            let message = format!(
                "{} does not show itself to be {}",
                root.display(),
                self.distribution.title()
            );
            return Err(fail(FailureClass::Exists, message));
        }
        Ok(Done {
            changed: false,
            output: self.output(),
            facts: Vec::new(),
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Bootstrapped>,
    ) -> Result<Done<()>, StepFailure> {
        let changed = staging::remove(context)?;
        Ok(Done {
            changed,
            output: (),
            facts: Vec::new(),
        })
    }
}
