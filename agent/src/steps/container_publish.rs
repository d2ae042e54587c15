//! `container.publish`: a staged container gets its name, by one rename that replaces nothing.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::StepIndex;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::guest::{self, ROOTFS};
use crate::lxc::{self, State};
use crate::lxc_config::Rootfs;
use crate::step::{Context, Done, OutputOf, Step, fail};
use crate::steps::container_build::Built;
use crate::steps::container_configure::Identity;
use crate::{before, durable, lxc_config, mark, staging};

/// How long a container may take to stop when its creation is taken back.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Gives a staged container its name.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerPublish {
    /// The container.
    pub container: ContainerName,
    /// The step that built it.
    pub staged: StepIndex,
    /// What that step reported.
    pub built: OutputOf<Built>,
    /// What the step that configured it reported.
    pub identity: OutputOf<Identity>,
}

/// Nothing more than that it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {}

impl ContainerPublish {
    fn is_ours(&self, context: &Context<'_>) -> Result<bool, StepFailure> {
        let home = context.layout.container(&self.container);
        Ok(mark::read(&home)? == Some((context.origin.0, self.staged)))
    }

    fn done(&self, context: &Context<'_>, changed: bool) -> Result<Done<Published>, StepFailure> {
        let built = context.output(&self.built)?;
        let identity = context.output(&self.identity)?;
        let (host, container) = (context.host, &self.container);
        let mut facts = vec![
            Fact::ContainerCreated {
                host: host.clone(),
                container: container.clone(),
                origin: built.origin,
                backing: built.backing,
            },
            Fact::ContainerIdentified {
                host: host.clone(),
                container: container.clone(),
                machine_id: identity.machine_id,
                host_keys: identity.host_keys,
            },
        ];
        if !identity.authorized.is_empty() {
            facts.push(Fact::KeysAuthorized {
                host: host.clone(),
                container: container.clone(),
                keys: identity.authorized,
            });
        }
        Ok(Done {
            changed,
            output: Published {},
            facts,
        })
    }

    fn taken(&self, context: &Context<'_>) -> String {
        format!(
            "{} is already on {}",
            context.layout.container(&self.container).display(),
            context.host
        )
    }
}

impl Step for ContainerPublish {
    const KIND: &'static str = "container.publish";
    type Output = Published;

    fn summary(&self) -> String {
        format!("put {} in place", self.container)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if self.is_ours(context)? {
            return self.done(context, true)?.seen();
        }
        if context.layout.container(&self.container).exists() {
            return Ok(Seen::Conflict {
                what: self.taken(context),
            });
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let home = context.layout.container(&self.container);
        let staged = context.layout.staging(context.origin.0, self.staged);
        if self.is_ours(context)? {
            staging::prune(&staged)?;
            return self.done(context, false);
        }
        if home.symlink_metadata().is_ok() {
            return Err(StepFailure {
                hint: Some(
                    "choose another name, or adopt or destroy the one that is there".to_owned(),
                ),
                ..fail(FailureClass::Exists, self.taken(context))
            });
        }
        if !staged.join(lxc_config::NAME).is_file() {
            return Err(fail(
                FailureClass::Missing,
                format!("there is no configured container in {}", staged.display()),
            ));
        }
        durable::sync_file_system(&staged)?;
        durable::rename_new(&staged, &home)?;
        staging::prune(&staged)?;
        self.done(context, true)
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let home = context.layout.container(&self.container);
        if self.is_ours(context)? || home.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        if let Some(maker) = mark::read(&home)? {
            return Err(mark::refused(&home, maker));
        }
        let message = match lxc::state(context, &self.container)? {
            State::Stopped | State::Absent => {
                let dependents = lxc_config::dependents(context.layout, &self.container)?;
                if dependents.is_empty() {
                    return Ok(vec![home]);
                }
                let dependents = dependents.join(", ");
                format!("{} is there, and {dependents} lies on it", home.display())
            }
            State::Running | State::Frozen | State::Changing => {
                format!("{} is there, and runs: stop it first", home.display())
            }
        };
        Err(fail(FailureClass::Exists, message))
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let home = context.layout.container(&self.container);
        if let Some(maker) = mark::read(&home)? {
            return Err(mark::refused(&home, maker));
        }
        let root = home.join(ROOTFS);
        let text = lxc_config::read_whole(&home)?.unwrap_or_default();
        let is_within =
            matches!(lxc_config::rootfs_of(&text), Some(Rootfs::Dir(path)) if path == root);
        let found = match is_within {
            true => guest::system(&root)?,
            false => None,
        };
        let Some((distribution, release)) = found else {
            let message = format!(
                "{} is no container whose system is in {} and says what it is",
                home.display(),
                root.display()
            );
            return Err(fail(FailureClass::Exists, message));
        };
        let (host, container) = (context.host.clone(), self.container.clone());
        let mut facts = vec![
            Fact::ContainerCreated {
                host: host.clone(),
                container: container.clone(),
                origin: Origin::Scratch {
                    distribution,
                    release,
                },
                backing: Backing::Dir,
            },
            Fact::ContainerIdentified {
                host: host.clone(),
                container: container.clone(),
                machine_id: guest::machine_id(&root)?,
                host_keys: Vec::new(),
            },
        ];
        match lxc::state(context, &self.container)? {
            State::Running | State::Frozen => {
                facts.push(Fact::ContainerStarted { host, container });
            }
            State::Stopped | State::Absent | State::Changing => {}
        }
        Ok(Done {
            changed: false,
            output: Published {},
            facts,
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Published>,
    ) -> Result<Done<()>, StepFailure> {
        if !self.is_ours(context)? {
            // Taken back already, or never done. Whatever else has this name is not ours.
            return Ok(Done {
                changed: false,
                output: (),
                facts: Vec::new(),
            });
        }
        // It is ours, made by this very operation, and asked politely before anything harder.
        match lxc::state(context, &self.container)? {
            State::Stopped | State::Absent => {}
            State::Running | State::Frozen | State::Changing => {
                lxc::stop(context, &self.container, STOP_TIMEOUT)?;
            }
        }
        // Crash boundary: before it goes; a repeat would not know it as ours, and would not look.
        before::forget_all(context.layout, &self.container)?;
        let home = context.layout.container(&self.container);
        let staged = context.layout.staging(context.origin.0, self.staged);
        // Before the rename: after it, a repeat would not know the container as ours.
        staging::put_back(&home, &staged)?;
        let fact = Fact::ContainerDestroyed {
            host: context.host.clone(),
            container: self.container.clone(),
        };
        Ok(Done {
            changed: true,
            output: (),
            facts: vec![fact],
        })
    }
}
