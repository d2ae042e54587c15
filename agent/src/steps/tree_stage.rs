//! `tree.stage`: copies a container's root file system and configuration into staging, whole and flattened.
//!
//! One that runs is frozen while it is copied, and goes on when this step ends, however it ends: that is why freezing,
//! copying and thawing are one step. It is only read, from outside.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::frozen::{self, Still};
use crate::step::{Context, Done, Step, failure};
use crate::template::config::{self, Rootfs};
use crate::template::overlay;
use crate::template::staged::{self, Identity};
use crate::tree::Root;
use crate::tree::copy::{Copied, How, copy_tree};
use crate::tree::walk::Vanished;
use crate::{durable, lxc_config, mark, staging};

/// Copies a container into staging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStage {
    /// The container.
    pub container: ContainerName,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Entries in the tree.
    pub entries: u64,
    /// Content in bytes.
    pub size_bytes: u64,
    /// Sockets that were left out.
    pub sockets_skipped: u64,
    /// How many layers were merged; 1 for a plain directory.
    pub layers: u32,
}

/// The copy while it is not whole; renamed when it is.
const PARTIAL: &str = "rootfs.partial";
/// What the step will report; written before the copy gets its name.
const OUTPUT: &str = "stage.output";
/// The longest configuration that is read.
const CONFIG_LEN_MAX: usize = 1 << 20;

impl TreeStage {
    fn open(&self, context: &Context<'_>) -> Result<(Root, u32, Vec<u8>), StepFailure> {
        let home = context.layout.container(&self.container);
        let bytes = Root::open(&home)
            .and_then(|root| root.read(Path::new("config"), CONFIG_LEN_MAX))
            .map_err(|error| error.failure(&home))?;
        // As LXC reads it: ids may be shifted, or its files be elsewhere, by what the configuration includes.
        let whole = lxc_config::whole(&String::from_utf8_lossy(&bytes))?;
        let place = config::rootfs(&whole).map_err(|error| {
            let hint = match &error {
                config::Error::NoRootfs => "set lxc.rootfs.path in its configuration",
                config::Error::Backing(_) => "copy it to a container backed by a directory first",
                config::Error::IdMap => "make the template from a privileged container",
            };
            StepFailure {
                hint: Some(hint.to_owned()),
                ..failure(FailureClass::Host, &error)
            }
        })?;
        let (root, layers) = match place {
            Rootfs::Directory(path) => (Root::open(&path), 1),
            Rootfs::Overlay(layers) => (overlay::merged(&layers), layers.len() as u32),
        };
        Ok((root.map_err(|error| error.failure(&home))?, layers, bytes))
    }

    /// Reads it all while it is still.
    fn copy_still(&self, context: &mut Context<'_>, still: &Still) -> Result<Staged, StepFailure> {
        let dir = context.staging();
        durable::create_dirs(&dir)?;
        mark::write(&dir, context.origin)?;
        let (source, layers, config) = self.open(context)?;
        staged::write(&dir, staged::CONFIG_SOURCE, &config)?;
        staged::store(&dir, staged::IDENTITY, &Identity::of(&source))?;
        let copied = self.copy(context, &source)?;
        still.check(context)?;
        Ok(Staged {
            entries: copied.entries,
            size_bytes: copied.size_bytes,
            sockets_skipped: copied.sockets_skipped,
            layers,
        })
    }

    fn copy(&self, context: &mut Context<'_>, source: &Root) -> Result<Copied, StepFailure> {
        let partial = context.staging().join(PARTIAL);
        // Redone from scratch: what an earlier attempt left can't be told from what it did not finish.
        staging::remove_dir(&partial)?;
        durable::create_dirs(&partial)?;
        let dest = Root::open(&partial).map_err(|error| error.failure(&partial))?;
        let what = format!("copying {}", self.container);
        let link = &mut *context.link;
        let mut watch = |copied: &Copied| {
            link.progress(&what, copied.size_bytes, 0);
            if link.stop_requested() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let (from, to) = (source.as_fd(), dest.as_fd());
        copy_tree(from, to, How::Copy, Vanished::Refuse, &mut watch)
            .map_err(|error| error.failure(source.label()))
    }
}

impl Step for TreeStage {
    const KIND: &'static str = "tree.stage";
    type Output = Staged;

    fn summary(&self) -> String {
        format!(
            "copy container {} into staging (frozen meanwhile, if it runs)",
            self.container
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let dir = context.staging();
        if frozen::is_ours(context, &self.container)? {
            return Ok(Seen::Partial {
                what: format!("{} may be held still for a copy", self.container),
            });
        }
        if !dir.exists() {
            return Ok(Seen::Absent);
        }
        if !dir.join(staged::ROOTFS).exists() {
            return Ok(Seen::Partial {
                what: format!("an unfinished copy in {}", dir.display()),
            });
        }
        match staged::load(&dir, OUTPUT)? {
            Some(output) => done(false, output).seen(),
            None => Ok(Seen::Unknown {
                why: format!("{} has a tree but no record of it", dir.display()),
            }),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Staged>, StepFailure> {
        let dir = context.staging();
        if dir.join(staged::ROOTFS).exists()
            && let Some(output) = staged::load(&dir, OUTPUT)?
        {
            frozen::let_go(context, &self.container)?;
            return Ok(done(false, output));
        }
        let still = frozen::hold(context, &self.container)?;
        let copied = self.copy_still(context, &still);
        let went_on = frozen::let_go(context, &self.container);
        drop(still);
        // Why the copy failed says more than why it was not thawed: the keeper tries that again.
        let output = copied?;
        went_on?;
        staged::store(&dir, OUTPUT, &output)?;
        durable::sync_file_system(&dir)?;
        // Crash boundary: with this name the copy is whole and durable.
        durable::rename_new(&dir.join(PARTIAL), &dir.join(staged::ROOTFS))?;
        Ok(done(true, output))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Staged>,
    ) -> Result<Done<()>, StepFailure> {
        let went_on = frozen::let_go(context, &self.container)?;
        // The directory's name holds the operation and the step: it is nobody else's.
        let removed = staging::remove_dir(&context.staging())?;
        Ok(Done {
            changed: went_on || removed,
            output: (),
            facts: Vec::new(),
        })
    }
}

fn done(changed: bool, output: Staged) -> Done<Staged> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}
