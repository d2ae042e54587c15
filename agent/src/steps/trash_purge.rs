//! `trash.purge`: the second half of destroying a container: its content is removed, for good.
//!
//! Only what a step of the same operation retired is ever removed; no symlink is followed, no mount crossed.

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::ids::StepIndex;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::network::managed;
use crate::step::{Context, Done, Step, fail};
use crate::steps::container_build::release_lower;
use crate::steps::container_retire::{retired, trash};
use crate::{before, lxc_config, mark, staging};

/// Removes what an earlier step retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashPurge {
    /// The container it was.
    pub container: ContainerName,
    /// The step that retired it.
    pub retired: StepIndex,
}

/// Nothing more than that it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {}

impl TrashPurge {
    fn done(&self, context: &Context<'_>, changed: bool) -> Done<Purged> {
        let fact = Fact::ContainerDestroyed {
            host: context.host.clone(),
            container: self.container.clone(),
        };
        Done {
            changed,
            output: Purged {},
            facts: vec![fact],
        }
    }
}

impl Step for TrashPurge {
    const KIND: &'static str = "trash.purge";
    type Output = Purged;

    fn summary(&self) -> String {
        format!("remove the content of {}", self.container)
    }

    fn reversal(&self) -> Reversal {
        Reversal::Irreversible {
            why: "removed content can't be brought back".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if !trash(context.layout, (context.origin.0, self.retired)).exists() {
            return self.done(context, true).seen();
        }
        Ok(Seen::Partial {
            what: "content that is still to be removed".to_owned(),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Purged>, StepFailure> {
        let dir = retired(context, self.retired, &self.container);
        // The layer it lies on is released first: once the config that names it is gone, nothing could.
        if let (Some(lower), Some(maker)) = (lxc_config::lower_of(&dir)?, mark::read(&dir)?) {
            release_lower(&lower, &self.container, maker)?;
        }
        context.link.progress("removing", 0, 0);
        let changed =
            staging::remove_dir(&trash(context.layout, (context.origin.0, self.retired)))?;
        // What other steps kept for taking it back, which nothing can any more.
        before::forget_all(context.layout, &self.container)?;
        for path in [
            context.layout.reservation(&self.container),
            context.layout.forward(&self.container),
        ] {
            managed::forget_taken(&path, context.origin.0)?;
        }
        Ok(self.done(context, changed))
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Purged>,
    ) -> Result<Done<()>, StepFailure> {
        Err(fail(
            FailureClass::Other,
            "removed content can't be brought back",
        ))
    }
}
