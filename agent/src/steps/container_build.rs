//! `container.build`: a container's root file system, in staging.
//!
//! A source is only read. Nothing is shared with it that writing on one side would show on the other.

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::ids::{Generation, Hash, StepIndex};
use tallybook_events::name::{ContainerName, TemplateName};
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::base::Base;
use crate::guest::{ROOTFS, UPPER};
use crate::step::{Context, Done, Program, Step, fail, io_failure};
use crate::tree::Root;
use crate::tree::copy::{How, copy_tree};
use crate::tree::walk::Vanished;
use crate::{durable, mark, staging};

/// Written last: what was built, so that a probe can tell a whole tree from a half one.
const BUILT: &str = "built";
/// The directory beside a lower layer that names who lies on it.
pub const USERS: &str = "users";

/// What a container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A base system in the host's cache.
    Base(Base),
    /// A generation of a template on the host.
    Template {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
        /// The hash of its manifest, as the log knows it.
        manifest: Hash,
    },
    /// A tree that an earlier step of the operation staged; it is taken, not copied.
    Staged {
        /// The step.
        staged: StepIndex,
        /// What that tree is.
        origin: Origin,
    },
}

/// Makes a root file system in staging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerBuild {
    /// The container it is for.
    pub container: ContainerName,
    /// What it is made from.
    pub source: Source,
    /// How it is stored; none means the best the host can.
    pub backing: Option<Backing>,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// How it is stored.
    pub backing: Backing,
    /// What it was made from.
    pub origin: Origin,
    /// The layer below, of an overlay.
    pub lower: Option<PathBuf>,
}

impl ContainerBuild {
    /// The directory that holds the source's `rootfs/`, and what the container is made from.
    fn source(&self, context: &Context<'_>) -> (PathBuf, Origin) {
        match &self.source {
            Source::Base(base) => (base.cached(context.layout), base.origin()),
            Source::Template {
                template,
                generation,
                manifest,
            } => (
                context.layout.generation(template, *generation),
                Origin::Template {
                    template: template.clone(),
                    generation: *generation,
                    manifest: *manifest,
                },
            ),
            Source::Staged { staged, origin } => (
                context.layout.staging(context.origin.0, *staged),
                origin.clone(),
            ),
        }
    }

    fn missing(&self, from: &Path) -> StepFailure {
        let hint = match &self.source {
            Source::Base(_) => "base.bootstrap makes it; run the create again".to_owned(),
            Source::Template { template, .. } => {
                format!("bring it here with: template sync {template} --to this host")
            }
            Source::Staged { .. } => "the step before must have staged it".to_owned(),
        };
        StepFailure {
            hint: Some(hint),
            ..fail(
                FailureClass::Missing,
                format!("there is no {} to make a container from", from.display()),
            )
        }
    }

    fn choose(
        &self,
        context: &mut Context<'_>,
        staging: &Path,
        lower: &Path,
    ) -> Result<Backing, StepFailure> {
        if let Some(backing) = self.backing {
            return Ok(backing);
        }
        if can_reflink(staging, lower) {
            return Ok(Backing::Reflink);
        }
        match &self.source {
            Source::Template { .. } if can_overlay(context, staging, lower)? => {
                Ok(Backing::Overlay)
            }
            Source::Template { .. } | Source::Base(_) | Source::Staged { .. } => Ok(Backing::Dir),
        }
    }

    /// Copies, or lays an overlay over, a tree that stays.
    fn lay_from_kept(
        &self,
        context: &mut Context<'_>,
        staging: &Path,
        from: &Path,
    ) -> Result<(Backing, Option<PathBuf>), StepFailure> {
        let lower = from.join(ROOTFS);
        let backing = self.choose(context, staging, &lower)?;
        match backing {
            Backing::Dir => copy(context, &lower, &staging.join(ROOTFS), How::Copy)?,
            Backing::Reflink => copy(context, &lower, &staging.join(ROOTFS), How::Reflink)?,
            Backing::Overlay => {
                // The source may not go while something lies on it, so this is said before anything is made.
                // A crash here leaves a user that has this step's origin: redo and undo know it as their own.
                self.use_lower(context, from)?;
                make_upper(staging, &lower)?;
                return Ok((backing, Some(lower)));
            }
        }
        Ok((backing, None))
    }

    /// Takes the tree that another step staged.
    fn take_staged(&self, staging: &Path, from: &Path) -> Result<Backing, StepFailure> {
        match self.backing {
            None | Some(Backing::Dir) => {}
            Some(Backing::Reflink | Backing::Overlay) => {
                return Err(fail(
                    FailureClass::Host,
                    "a tree that was brought here has nothing to share; leave the backing to the host",
                ));
            }
        }
        durable::rename_new(&from.join(ROOTFS), &staging.join(ROOTFS))?;
        Ok(Backing::Dir)
    }

    fn use_lower(&self, context: &Context<'_>, from: &Path) -> Result<(), StepFailure> {
        let users = from.join(USERS);
        let user = users.join(self.container.as_str());
        if user.exists() && mark::read_file(&user)? != Some(context.origin) {
            return Err(fail(
                FailureClass::Exists,
                format!(
                    "another container {} already lies on {}",
                    self.container,
                    from.display()
                ),
            ));
        }
        durable::create_dirs(&users)?;
        Ok(durable::write(
            &user,
            0o644,
            mark::text(context.origin).as_bytes(),
        )?)
    }

    /// What a whole build of this step says of itself.
    fn built(staging: &Path) -> Option<Built> {
        let bytes = fs::read(staging.join(BUILT)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Takes back that a container lies on a lower layer, if `origin` said so. `lower` is the layer's `rootfs`.
///
/// # Errors
/// When it can't be removed.
pub fn release_lower(
    lower: &Path,
    container: &ContainerName,
    origin: mark::Origin,
) -> Result<bool, StepFailure> {
    let Some(from) = lower.parent() else {
        return Ok(false);
    };
    let user = from.join(USERS).join(container.as_str());
    if mark::read_file(&user)? == Some(origin) {
        return Ok(durable::remove(&user)?);
    }
    Ok(false)
}

/// Gives back what a copy took that did not fit: else the disk stays full, and neither the receipt of the failure
/// nor the undo has room. What can't be removed here is the undo's.
fn make_room(staging: &Path, failure: &StepFailure) {
    if failure.class == FailureClass::DiskFull {
        let _left_to_undo = staging::remove_dir(&staging.join(ROOTFS));
    }
}

fn copy(context: &mut Context<'_>, from: &Path, to: &Path, how: How) -> Result<(), StepFailure> {
    fs::create_dir(to).map_err(|e| io_failure("making directory", to, &e))?;
    let source = Root::open(from).map_err(|e| e.failure(from))?;
    let dest = Root::open(to).map_err(|e| e.failure(to))?;
    let link = &mut *context.link;
    let mut watch = |copied: &crate::tree::copy::Copied| {
        link.progress("copying", copied.size_bytes, 0);
        if link.stop_requested() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    copy_tree(
        source.as_fd(),
        dest.as_fd(),
        how,
        Vanished::Refuse,
        &mut watch,
    )
    .map(drop)
    .map_err(|e| e.failure(from))
}

/// An empty upper layer whose root looks like the lower one's.
fn make_upper(staging: &Path, lower: &Path) -> Result<(), StepFailure> {
    let below = Root::open(lower).map_err(|e| e.failure(lower))?;
    let root = Root::open(staging).map_err(|e| e.failure(staging))?;
    let upper = Path::new(UPPER);
    root.create_dir_all(upper, 0o755)
        .and_then(|()| root.dress_like(upper, &below, Path::new("")))
        .map_err(|e| e.failure(staging))
}

/// Whether extents of files below `from` can be shared with files in `staging`: tried with one of its files.
fn can_reflink(staging: &Path, from: &Path) -> bool {
    let trial = staging.join("reflink-trial");
    let tried = (|| {
        let source = Root::open(from).ok()?;
        let sample = ["etc/passwd", "bin/busybox", "etc/hosts"]
            .iter()
            .find_map(|path| source.open_file(Path::new(path)).ok())?;
        let file = fs::File::create_new(&trial).ok()?;
        rustix::fs::ioctl_ficlone(&file, &sample).ok()
    })();
    // A trial file that stays would be part of the staging directory only, never of the tree.
    let _gone = fs::remove_file(&trial);
    tried.is_some()
}

/// Whether an overlay over `lower` can be mounted with its upper layer in `staging`: tried in a mount namespace
/// of its own, so that nothing stays mounted whatever happens.
fn can_overlay(
    context: &mut Context<'_>,
    staging: &Path,
    lower: &Path,
) -> Result<bool, StepFailure> {
    let trial = staging.join("overlay-trial");
    let unmountable = |path: &Path| path.display().to_string().contains([',', ':', '\\']);
    if unmountable(&trial) || unmountable(lower) {
        return Ok(false);
    }
    for dir in ["upper", "work", "merged"] {
        let dir = trial.join(dir);
        fs::create_dir_all(&dir).map_err(|e| io_failure("making directory", &dir, &e))?;
    }
    let options = format!(
        "lowerdir={},upperdir={1}/upper,workdir={1}/work",
        lower.display(),
        trial.display()
    );
    let merged = trial.join("merged").display().to_string();
    let mount = Program::new([
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "overlay",
        "overlay",
        "-o",
        &options,
        &merged,
    ]);
    let ended = context.link.run(&mount.timeout(Duration::from_secs(30)))?;
    staging::remove_dir(&trial)?;
    Ok(ended.exit == Some(0))
}

impl Step for ContainerBuild {
    const KIND: &'static str = "container.build";
    type Output = Built;

    fn summary(&self) -> String {
        let from = match &self.source {
            Source::Base(base) => base.title(),
            Source::Template {
                template,
                generation,
                ..
            } => format!("template {template} generation {generation}"),
            Source::Staged { .. } => "the copied tree".to_owned(),
        };
        format!(
            "build the root file system of {} from {from}",
            self.container
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        // Once it is published the staging directory is the container's own, and says the same of itself.
        let published = context.layout.container(&self.container);
        for dir in [context.staging(), published] {
            if mark::read(&dir)? == Some(context.origin)
                && let Some(output) = Self::built(&dir)
            {
                return Done {
                    changed: true,
                    output,
                    facts: Vec::new(),
                }
                .seen();
            }
        }
        if context.staging().exists() {
            return Ok(Seen::Partial {
                what: "a root file system that was begun".to_owned(),
            });
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Built>, StepFailure> {
        let staging = context.staging();
        let whole = mark::read(&staging)? == Some(context.origin);
        if let Some(output) = Self::built(&staging).filter(|_| whole) {
            return Ok(Done {
                changed: false,
                output,
                facts: Vec::new(),
            });
        }
        let (from, origin) = self.source(context);
        let (backing, lower) = if let Source::Staged { .. } = self.source {
            // A tree that a cut attempt already took over is in our staging directory: it must not be removed.
            if from.join(ROOTFS).is_dir() {
                staging::create(context)?;
                (self.take_staged(&staging, &from)?, None)
            } else if whole && staging.join(ROOTFS).is_dir() {
                (Backing::Dir, None)
            } else {
                return Err(self.missing(&from.join(ROOTFS)));
            }
        } else {
            if !from.join(ROOTFS).is_dir() {
                return Err(self.missing(&from.join(ROOTFS)));
            }
            staging::create(context)?;
            self.lay_from_kept(context, &staging, &from)
                .inspect_err(|failure| make_room(&staging, failure))?
        };
        let output = Built {
            backing,
            origin,
            lower,
        };
        context.link.progress("writing to disk", 0, 0);
        durable::sync_file_system(&staging)?;
        let text = serde_json::to_vec(&output)
            .map_err(|e| crate::step::failure(FailureClass::Unknown, &e))?;
        durable::write(&staging.join(BUILT), 0o644, &text)?;
        Ok(Done {
            changed: true,
            output,
            facts: Vec::new(),
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Built>,
    ) -> Result<Done<()>, StepFailure> {
        let changed = staging::remove(context)?;
        let (from, _) = self.source(context);
        // Last: while any of the overlay is there, what it lies on stays.
        let released = release_lower(&from.join(ROOTFS), &self.container, context.origin)?;
        Ok(Done {
            changed: changed || released,
            output: (),
            facts: Vec::new(),
        })
    }
}
