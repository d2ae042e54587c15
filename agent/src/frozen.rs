//! Holding a container still while it is read: one that runs is frozen for that long, and never longer.
//!
//! A file of the tool's own says who froze it, durably before it is frozen, and a keeper watches before that too: only
//! what this step froze is let go on, and nothing stays frozen because the agent died. The file goes only when the
//! container was seen to run, or not to.

use std::any::Any;
use std::path::PathBuf;

use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::lxc::{self, State};
use crate::step::{Context, FrozenWatch, fail};
use crate::steps::container_start::no_such;
use crate::{durable, mark};

/// A container that is held still; [`let_go`] ends it.
#[must_use = "a container that was frozen must be let go"]
pub(crate) struct Still {
    container: ContainerName,
    state: State,
    pid: Option<u32>,
    /// What our mark says, where we froze it.
    text: Option<String>,
    /// Dropped last: until then somebody else sees to it that the container goes on.
    _watch: Option<Box<dyn Any>>,
}

fn mark_path(context: &Context<'_>, container: &ContainerName) -> PathBuf {
    context.layout.state.join("frozen").join(container.as_str())
}

/// Whether this step froze the container, or was about to.
pub(crate) fn is_ours(
    context: &Context<'_>,
    container: &ContainerName,
) -> Result<bool, StepFailure> {
    let mark = mark::read_file(&mark_path(context, container))?;
    Ok(mark == Some(context.origin))
}

/// Lets a container go on if this step froze it; whether anything changed.
pub(crate) fn let_go(
    context: &mut Context<'_>,
    container: &ContainerName,
) -> Result<bool, StepFailure> {
    if !is_ours(context, container)? {
        return Ok(false);
    }
    let held = match lxc::state(context, container)? {
        State::Running | State::Stopped | State::Absent => false,
        State::Frozen | State::Changing => {
            lxc::unfreeze(context, container)?;
            true
        }
    };
    // Crash here: the mark of a container that runs on is ours, and whoever looks next removes it.
    durable::remove(&mark_path(context, container))?;
    Ok(held)
}

/// Freezes the container if it runs.
///
/// # Errors
/// When it is not there, when something else is being done to it, or when nothing could let it go on if the agent died.
pub(crate) fn hold(
    context: &mut Context<'_>,
    container: &ContainerName,
) -> Result<Still, StepFailure> {
    // An earlier start of this step may have died with it frozen.
    let_go(context, container)?;
    let mut still = Still {
        container: container.clone(),
        state: lxc::settled(context, container)?,
        pid: None,
        text: None,
        _watch: None,
    };
    match still.state {
        State::Absent => return Err(no_such(context, container)),
        State::Changing => {
            return Err(fail(
                FailureClass::Host,
                format!("container {container} is starting or stopping"),
            ));
        }
        State::Frozen if mark::read_file(&mark_path(context, container))?.is_some() => {
            return Err(StepFailure {
                hint: Some(format!(
                    "wait for the other operation; else lxc-unfreeze -n {container} on the host lets it run on"
                )),
                ..fail(
                    FailureClass::Host,
                    format!("container {container} is held still by another operation"),
                )
            });
        }
        State::Stopped | State::Frozen => {}
        State::Running => {
            let text = format!(
                "{}attempt {}\n",
                mark::text(context.origin),
                context.key.attempt
            );
            durable::create_dirs(&context.layout.state.join("frozen"))?;
            let path = mark_path(context, container);
            durable::write(&path, 0o644, text.as_bytes())?;
            still.text = Some(text.clone());
            still._watch = Some(context.link.watch_frozen(&FrozenWatch {
                lxc: context.layout.lxc.clone(),
                container: container.clone(),
                mark: path,
                text,
            })?);
            // Crash here: it is marked and runs; the keeper removes the mark, or the step's next start.
            if let Err(failure) = lxc::freeze(context, container) {
                let_go(context, container)?;
                return Err(failure);
            }
            still.state = State::Frozen;
        }
    }
    still.pid = lxc::init_pid(context, container)?;
    Ok(still)
}

impl Still {
    /// Makes sure that nothing moved since: the same state, the same first process, our mark.
    ///
    /// # Errors
    /// When anything did.
    pub(crate) fn check(&self, context: &mut Context<'_>) -> Result<(), StepFailure> {
        let container = &self.container;
        let state = lxc::state(context, container)?;
        let pid = lxc::init_pid(context, container)?;
        let marked = match &self.text {
            Some(text) => std::fs::read(mark_path(context, container))
                .is_ok_and(|there| there == text.as_bytes()),
            None => true,
        };
        if state == self.state && pid == self.pid && marked {
            return Ok(());
        }
        let what = if state != self.state {
            format!("was {:?} and is {state:?}", self.state)
        } else if marked {
            "was stopped and started".to_owned()
        } else {
            "was let go".to_owned()
        };
        Err(StepFailure {
            hint: Some(format!("leave container {container} alone, then resume")),
            ..fail(
                FailureClass::Host,
                format!(
                    "container {container} {what} while it was copied; the copy would not be consistent"
                ),
            )
        })
    }
}
