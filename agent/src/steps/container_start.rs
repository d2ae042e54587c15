//! `container.start`: a container runs. What ran before is left as it was, by undo too.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::before;
use crate::lxc::{self, State, Stop};
use crate::mark;
use crate::step::{Context, Done, Step, fail};

/// How long undo lets it take to stop when asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStart {
    /// The container.
    pub container: ContainerName,
}

/// What was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Whether it ran already; `None` where that was never known.
    pub was_running: Option<bool>,
    /// Who made the container that was started; `None` where it carries no mark.
    pub maker: Option<mark::Origin>,
}

/// That a container started, by name.
pub(crate) fn started(context: &Context<'_>, container: &ContainerName) -> Vec<Fact> {
    vec![Fact::ContainerStarted {
        host: context.host.clone(),
        container: container.clone(),
    }]
}

/// That a container stopped, by name.
pub(crate) fn stopped(context: &Context<'_>, container: &ContainerName) -> Vec<Fact> {
    vec![Fact::ContainerStopped {
        host: context.host.clone(),
        container: container.clone(),
    }]
}

/// The failure for a container that LXC does not know.
pub(crate) fn no_such(context: &Context<'_>, container: &ContainerName) -> StepFailure {
    fail(
        FailureClass::Missing,
        format!("container {container} is not on {}", context.host),
    )
}

/// Whether this very operation made the container: then it did not run before.
fn made_here(context: &Context<'_>, container: &ContainerName) -> Result<bool, StepFailure> {
    let mark = mark::read(&context.layout.container(container))?;
    Ok(mark.is_some_and(|(operation, _)| operation == context.origin.0))
}

/// Makes sure that a container which an earlier step of the operation had started runs, and tells what became true.
/// Something may have stopped it meanwhile: a host that lost power, and does not start it by itself or has not yet.
pub(crate) fn keep_running(
    context: &mut Context<'_>,
    container: &ContainerName,
) -> Result<Vec<Fact>, StepFailure> {
    match lxc::state(context, container)? {
        State::Running => Ok(Vec::new()),
        State::Absent => Err(no_such(context, container)),
        State::Frozen => Err(frozen(container)),
        State::Stopped | State::Changing => {
            context
                .link
                .progress("it was stopped meanwhile; starting it again", 0, 0);
            let outcome = lxc::start(context, container);
            // The host's own start of its containers may have been quicker.
            if outcome.is_err() && lxc::state(context, container)? != State::Running {
                outcome?;
            }
            Ok(started(context, container))
        }
    }
}

fn frozen(container: &ContainerName) -> StepFailure {
    StepFailure {
        hint: Some(format!(
            "lxc-unfreeze -n {container} on the host lets it run on"
        )),
        ..fail(
            FailureClass::Host,
            format!("container {container} is frozen"),
        )
    }
}

impl Step for ContainerStart {
    const KIND: &'static str = "container.start";
    type Output = Started;

    fn summary(&self) -> String {
        format!("start {}", self.container)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        match lxc::state(context, &self.container)? {
            State::Running | State::Frozen => {
                let output = match before::kept(context, &self.container)? {
                    Some(before) => Started {
                        was_running: Some(before.was_running),
                        maker: before.maker,
                    },
                    None => Started {
                        was_running: made_here(context, &self.container)?.then_some(false),
                        maker: mark::read(&context.layout.container(&self.container))?,
                    },
                };
                let facts = started(context, &self.container);
                Done {
                    changed: true,
                    output,
                    facts,
                }
                .seen()
            }
            State::Changing => Ok(Seen::Partial {
                what: "it is starting or stopping".to_owned(),
            }),
            State::Stopped | State::Absent => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Started>, StepFailure> {
        let state = lxc::settled(context, &self.container)?;
        match state {
            State::Absent => return Err(no_such(context, &self.container)),
            State::Frozen => return Err(frozen(&self.container)),
            State::Running | State::Stopped | State::Changing => {}
        }
        let is_first = before::kept(context, &self.container)?.is_none();
        // A host that booted meanwhile may have started what this operation had put there: that is this operation's doing.
        let was_running = state == State::Running && !made_here(context, &self.container)?;
        // Crash boundary: from here on it is known what was before, whatever this step finds when it is started again.
        let before = before::keep(context, &self.container, was_running)?;
        if state != State::Running {
            lxc::start(context, &self.container)?;
        }
        let facts = started(context, &self.container);
        let output = Started {
            was_running: Some(before.was_running),
            maker: before.maker,
        };
        Ok(Done {
            changed: state != State::Running || (is_first && !was_running),
            output,
            facts,
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Started>,
    ) -> Result<Done<()>, StepFailure> {
        let unchanged = || Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        let kept = before::kept(context, &self.container)?;
        let known = output.map(|output| (output.was_running, output.maker));
        let known = known.or(kept.map(|before| (Some(before.was_running), before.maker)));
        match lxc::state(context, &self.container)? {
            State::Absent | State::Stopped => {
                before::forget(context, &self.container)?;
                return Ok(unchanged());
            }
            State::Running | State::Frozen | State::Changing => {}
        }
        if let Some((_, maker)) = known
            && before::is_another(context, &self.container, maker)?
        {
            return Ok(unchanged());
        }
        let was_running = match known.and_then(|(was_running, _)| was_running) {
            Some(was_running) => was_running,
            None if made_here(context, &self.container)? => false,
            None => {
                return Err(StepFailure {
                    hint: Some("stop it if it should not run, then retry the undo".to_owned()),
                    ..fail(
                        FailureClass::Other,
                        format!(
                            "container {} runs, and whether it ran before is not known",
                            self.container
                        ),
                    )
                });
            }
        };
        if was_running {
            before::forget(context, &self.container)?;
            return Ok(unchanged());
        }
        let changed = lxc::stop(context, &self.container, STOP_TIMEOUT)? != Stop::WasStopped;
        before::forget(context, &self.container)?;
        let facts = stopped(context, &self.container);
        Ok(Done {
            changed,
            output: (),
            facts,
        })
    }
}
