//! `container.retire`: the first half of destroying a container. It loses its name and keeps all its content, so
//! that undo can give it back; `trash.purge` is the second half.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::StepIndex;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Phase, Receipt, Reversal, Seen, StepFailure};

use crate::layout::Layout;
use crate::lxc::{self, State};
use crate::lxc_config::{self, Rootfs};
use crate::step::{Context, Done, Step, fail, failure};
use crate::steps::container_stop::ContainerStop;
use crate::{boot, durable, mark, receipts, staging};

/// How long one that its host has started again may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes a stopped container's name away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRetire {
    /// The container.
    pub container: ContainerName,
    /// Whether it may be one that this tool adopted and did not make.
    pub adopted: bool,
}

/// Nothing more than that it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {}

/// Where the containers that a step retired lie.
pub(crate) fn trash(layout: &Layout, origin: mark::Origin) -> PathBuf {
    layout
        .own()
        .join("trash")
        .join(format!("{}-{}", origin.0, origin.1))
}

/// Looks whether a container can be destroyed, before anything is done to it; see [`ContainerRetire`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCheckRetire {
    /// The container.
    pub container: ContainerName,
    /// Whether it may be one that this tool adopted and did not make.
    pub adopted: bool,
}

/// Nothing more than that nothing is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirable {}

impl Step for ContainerCheckRetire {
    const KIND: &'static str = "container.check_retire";
    type Output = Retirable;

    fn summary(&self) -> String {
        format!("make sure that {} can go", self.container)
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "it only looks".to_owned(),
        }
    }

    /// Never done already: what others lie on it is looked for anew.
    fn probe(&self, _context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Retirable>, StepFailure> {
        check(context, &self.container, self.adopted)?;
        Ok(done(false, Retirable {}))
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Retirable>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(done(false, ()))
    }
}

impl ContainerRetire {
    fn trashed(&self, context: &Context<'_>) -> PathBuf {
        trash(context.layout, context.origin).join(self.container.as_str())
    }

    /// Refuses what must not go now. What this operation has stopped, and its host started again when it booted, is stopped once
    /// more; what somebody started on purpose is not.
    fn prepare(&self, context: &mut Context<'_>) -> Result<(), StepFailure> {
        check(context, &self.container, self.adopted)?;
        let state = lxc::state(context, &self.container)?;
        if matches!(state, State::Stopped | State::Absent) {
            return Ok(());
        }
        if !self.was_started_by_its_host(context)? {
            return Err(StepFailure {
                hint: Some(format!(
                    "stop it on the host, with lxc-stop -n {}, or take the operation back",
                    self.container
                )),
                ..fail(
                    FailureClass::Host,
                    format!("somebody has started container {} again", self.container),
                )
            });
        }
        lxc::stop(context, &self.container, STOP_TIMEOUT).map(drop)
    }

    fn was_started_by_its_host(&self, context: &Context<'_>) -> Result<bool, StepFailure> {
        let home = context.layout.container(&self.container);
        let config = lxc_config::read_whole(&home)?.unwrap_or_default();
        if !lxc_config::starts_with_host(&config) {
            return Ok(false);
        }
        let (log, operation) = (context.key.log, context.key.operation);
        let known = receipts::report(context.layout, log, operation)
            .map_err(|error| failure(FailureClass::Host, &error))?;
        // Also one whose end was not kept: that it stopped is known by a probe then, or this would not have begun.
        let is_stop = |receipt: &&Receipt| {
            receipt.kind == ContainerStop::KIND
                && matches!(receipt.phase, Phase::Started | Phase::Succeeded(_))
        };
        match known.receipts.iter().rfind(is_stop) {
            Some(stopped) => boot::came_after(stopped),
            None => Ok(false),
        }
    }
}

/// Refuses what must not go.
fn check(
    context: &mut Context<'_>,
    container: &ContainerName,
    adopted: bool,
) -> Result<(), StepFailure> {
    let home = context.layout.container(container);
    if !home.is_dir() {
        return Err(fail(
            FailureClass::Missing,
            format!("container {} is not on {}", container, context.host),
        ));
    }
    if mark::read(&home)?.is_none() && !adopted {
        return Err(StepFailure {
            hint: Some("adopt it first, if it is to be destroyed".to_owned()),
            ..fail(
                FailureClass::Exists,
                format!("container {} was not made by this tool", container),
            )
        });
    }
    let text = lxc_config::read_whole(&home)?.unwrap_or_default();
    let elsewhere = match lxc_config::rootfs_of(&text) {
        None => None,
        Some(Rootfs::Dir(path)) | Some(Rootfs::Overlay(_, path)) => {
            (!path.starts_with(&home)).then(|| path.display().to_string())
        }
        Some(Rootfs::Other(value)) => Some(value),
    };
    if let Some(elsewhere) = elsewhere {
        return Err(StepFailure {
            hint: Some(format!(
                "destroy it on the host with: lxc-destroy -n {}",
                container
            )),
            ..fail(
                FailureClass::Host,
                format!(
                    "the root file system of {} is {elsewhere}, outside of its directory",
                    container
                ),
            )
        });
    }
    let dependents = lxc_config::dependents(context.layout, container)?;
    if !dependents.is_empty() {
        return Err(StepFailure {
            hint: Some("destroy those first".to_owned()),
            ..fail(
                FailureClass::Host,
                format!(
                    "containers that lie on {}: {}",
                    container,
                    dependents.join(", ")
                ),
            )
        });
    }
    Ok(())
}

fn done<T>(changed: bool, output: T) -> Done<T> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}

impl Step for ContainerRetire {
    const KIND: &'static str = "container.retire";
    type Output = Retired;

    fn summary(&self) -> String {
        format!(
            "take {} out of use (its content is kept until the purge)",
            self.container
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if self.trashed(context).is_dir() {
            return done(true, Retired {}).seen();
        }
        if context.layout.container(&self.container).is_dir() {
            return Ok(Seen::Absent);
        }
        Ok(Seen::Conflict {
            what: format!("container {} is not on {}", self.container, context.host),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Retired>, StepFailure> {
        let trashed = self.trashed(context);
        if trashed.is_dir() {
            return Ok(done(false, Retired {}));
        }
        self.prepare(context)?;
        durable::create_dirs(&trash(context.layout, context.origin))?;
        durable::rename_new(&context.layout.container(&self.container), &trashed)?;
        Ok(done(true, Retired {}))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Retired>,
    ) -> Result<Done<()>, StepFailure> {
        let trashed = self.trashed(context);
        if !trashed.is_dir() {
            return Ok(done(false, ()));
        }
        let home = context.layout.container(&self.container);
        durable::rename_new(&trashed, &home)
            .map_err(StepFailure::from)
            .map_err(|failure| StepFailure {
                hint: (failure.class == FailureClass::Exists).then(|| {
                    format!(
                        "another container {} was made meanwhile; the old one lies in {}",
                        self.container,
                        trashed.display()
                    )
                }),
                ..failure
            })?;
        staging::remove_dir(&trash(context.layout, context.origin))?;
        Ok(done(true, ()))
    }
}

/// The retired container's own directory, for the step that purges it.
pub(crate) fn retired(
    context: &Context<'_>,
    step: StepIndex,
    container: &ContainerName,
) -> PathBuf {
    trash(context.layout, (context.origin.0, step)).join(container.as_str())
}
