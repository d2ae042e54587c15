//! `tree.stage`: copies a container's root file system and configuration into staging, whole and flattened.
//!
//! The container must be stopped or frozen before, and the same after: one that was started in between, or stopped after
//! it was frozen, is not copied. It is only read, from outside. (One that was thawed and frozen again by hand within the copy
//! looks the same; the operation's claim keeps tallybook's own commands from that.)

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::step::{Context, Done, Program, Step, fail, failure};
use crate::template::config::{self, Rootfs};
use crate::template::overlay;
use crate::template::staged::{self, Identity};
use crate::tree::Root;
use crate::tree::copy::{Copied, How, copy_tree};
use crate::tree::walk::Vanished;
use crate::{durable, lxc, mark, staging};

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

/// A container that does not change: stopped, or frozen since one start of it.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    state: String,
    init: Option<u32>,
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.init {
            Some(init) => write!(f, "{} (process {init})", self.state),
            None => f.write_str(&self.state),
        }
    }
}

/// The copy while it is not whole; renamed when it is.
const PARTIAL: &str = "rootfs.partial";
/// What the step will report; written before the copy gets its name.
const OUTPUT: &str = "stage.output";
/// The longest configuration that is read.
const CONFIG_LEN_MAX: usize = 1 << 20;

impl TreeStage {
    /// Refuses a container that may change while it is copied; else what tells this rest from another one.
    fn rest(&self, context: &mut Context<'_>) -> Result<Rest, StepFailure> {
        let lxc = context.layout.lxc.display().to_string();
        let name = self.container.as_str();
        let ask = Program::new(["lxc-info", "-P", &lxc, "-n", name, "-s", "-H"]);
        let ended = context.run(&ask.timeout(Duration::from_secs(30)))?;
        let state = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
        if !matches!(state.as_str(), "STOPPED" | "FROZEN") {
            return Err(self.moving(&format!("is {state}")));
        }
        let init = lxc::init_pid(context, &self.container)?;
        Ok(Rest { state, init })
    }

    fn moving(&self, what: &str) -> StepFailure {
        let name = &self.container;
        StepFailure {
            hint: Some(format!("stop or freeze container {name}, then resume")),
            ..fail(
                FailureClass::Host,
                format!("container {name} {what}; a copy of it would not be consistent"),
            )
        }
    }

    fn open(&self, context: &Context<'_>) -> Result<(Root, u32, Vec<u8>), StepFailure> {
        let home = context.layout.container(&self.container);
        let bytes = Root::open(&home)
            .and_then(|root| root.read(Path::new("config"), CONFIG_LEN_MAX))
            .map_err(|error| error.failure(&home))?;
        let place = config::rootfs(&String::from_utf8_lossy(&bytes)).map_err(|error| {
            let hint = match &error {
                config::Error::NoRootfs => "set lxc.rootfs.path in its own config file",
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
        format!("copy container {} into staging", self.container)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let dir = context.staging();
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
            return Ok(done(false, output));
        }
        let before = self.rest(context)?;
        durable::create_dirs(&dir)?;
        mark::write(&dir, context.origin)?;
        let (source, layers, config) = self.open(context)?;
        staged::write(&dir, staged::CONFIG_SOURCE, &config)?;
        staged::store(&dir, staged::IDENTITY, &Identity::of(&source))?;
        let copied = self.copy(context, &source)?;
        let after = self.rest(context)?;
        if after != before {
            let what = format!("was {before} and is {after}, so it was started meanwhile");
            return Err(self.moving(&what));
        }
        let output = Staged {
            entries: copied.entries,
            size_bytes: copied.size_bytes,
            sockets_skipped: copied.sockets_skipped,
            layers,
        };
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
        // The directory's name holds the operation and the step: it is nobody else's.
        Ok(Done {
            changed: staging::remove_dir(&context.staging())?,
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
