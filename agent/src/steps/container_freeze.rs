//! `container.freeze` and `container.thaw`: hold a running container still while it is copied, and let it go on.
//!
//! A file of the tool's own says who froze it, durably before it is frozen: only what this operation froze is
//! thawed, and nothing stays frozen for want of knowing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{Reversal, Seen, StepFailure};

use crate::lxc::{self, State};
use crate::step::{Context, Done, OutputOf, Step};
use crate::steps::container_start::no_such;
use crate::{durable, mark};

/// Freezes a container if it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFreeze {
    /// The container.
    pub container: ContainerName,
}

/// Lets a container go on that an earlier step of the operation froze.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerThaw {
    /// The container.
    pub container: ContainerName,
    /// What that step reported.
    pub froze: OutputOf<Frozen>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Whether this operation froze it: false when it did not run, or was frozen by somebody else.
    pub froze: bool,
}

fn mark_path(context: &Context<'_>, container: &ContainerName) -> PathBuf {
    context.layout.state.join("frozen").join(container.as_str())
}

/// Whether this operation froze the container, or was about to.
fn is_ours(context: &Context<'_>, container: &ContainerName) -> Result<bool, StepFailure> {
    let mark = mark::read_file(&mark_path(context, container))?;
    Ok(mark.is_some_and(|(operation, _)| operation == context.origin.0))
}

/// Lets it go on if this operation froze it; whether anything changed.
fn thaw(context: &mut Context<'_>, container: &ContainerName) -> Result<bool, StepFailure> {
    if !is_ours(context, container)? {
        return Ok(false);
    }
    let frozen = lxc::state(context, container)? == State::Frozen;
    if frozen {
        lxc::unfreeze(context, container)?;
    }
    // Crash here: the mark of a container that runs on is ours, and the next thaw removes it.
    durable::remove(&mark_path(context, container))?;
    Ok(frozen)
}

impl Step for ContainerFreeze {
    const KIND: &'static str = "container.freeze";
    type Output = Frozen;

    fn summary(&self) -> String {
        format!("freeze {} if it runs", self.container)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let ours = is_ours(context, &self.container)?;
        match lxc::state(context, &self.container)? {
            State::Frozen => Done {
                changed: ours,
                output: Frozen { froze: ours },
                facts: Vec::new(),
            }
            .seen(),
            State::Stopped => Done {
                changed: false,
                output: Frozen { froze: false },
                facts: Vec::new(),
            }
            .seen(),
            State::Running | State::Changing | State::Absent => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Frozen>, StepFailure> {
        let done = |changed, froze| Done {
            changed,
            output: Frozen { froze },
            facts: Vec::new(),
        };
        match lxc::state(context, &self.container)? {
            State::Absent => Err(no_such(context, &self.container)),
            State::Stopped => Ok(done(false, false)),
            State::Frozen => Ok(done(false, is_ours(context, &self.container)?)),
            State::Running | State::Changing => {
                durable::create_dirs(&context.layout.state.join("frozen"))?;
                let text = mark::text(context.origin);
                durable::write(&mark_path(context, &self.container), 0o644, text.as_bytes())?;
                // Crash here: it is marked and runs; freezing again and thawing both know what to do.
                lxc::freeze(context, &self.container)?;
                Ok(done(true, true))
            }
        }
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Frozen>,
    ) -> Result<Done<()>, StepFailure> {
        let changed = thaw(context, &self.container)?;
        Ok(Done {
            changed,
            output: (),
            facts: Vec::new(),
        })
    }
}

impl Step for ContainerThaw {
    const KIND: &'static str = "container.thaw";
    type Output = ();

    fn summary(&self) -> String {
        format!("let {} go on", self.container)
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "the container runs as it did before".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if context.output(&self.froze)?.froze && is_ours(context, &self.container)? {
            return Ok(Seen::Absent);
        }
        Done {
            changed: true,
            output: (),
            facts: Vec::new(),
        }
        .seen()
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<()>, StepFailure> {
        let changed = context.output(&self.froze)?.froze && thaw(context, &self.container)?;
        Ok(Done {
            changed,
            output: (),
            facts: Vec::new(),
        })
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<()>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}
