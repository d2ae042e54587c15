//! `container.stop`: a container does not run. It is asked first, and killed only when its time is over.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::before;
use crate::lxc::{self, State, Stop};
use crate::mark;
use crate::step::{Context, Done, Step, fail};
use crate::steps::container_start::{no_such, started, stopped};

/// Stops a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStop {
    /// The container.
    pub container: ContainerName,
    /// How long it may take when asked, in seconds.
    pub timeout_s: u32,
}

/// What was before, and how it came to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Whether it ran; `None` where that was never known.
    pub was_running: Option<bool>,
    /// Whether it did not stop when asked.
    pub killed: bool,
    /// Who made the container that was stopped; `None` where it carries no mark.
    pub maker: Option<mark::Origin>,
}

impl Step for ContainerStop {
    const KIND: &'static str = "container.stop";
    type Output = Stopped;

    fn summary(&self) -> String {
        format!(
            "stop {} (asked; killed after {} s)",
            self.container, self.timeout_s
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        match lxc::state(context, &self.container)? {
            State::Stopped => {
                let before = before::kept(context, &self.container)?;
                let maker = match before {
                    Some(before) => before.maker,
                    None => mark::read(&context.layout.container(&self.container))?,
                };
                let output = Stopped {
                    was_running: before.map(|before| before.was_running),
                    killed: false,
                    maker,
                };
                let facts = stopped(context, &self.container);
                Done {
                    changed: true,
                    output,
                    facts,
                }
                .seen()
            }
            State::Absent => Ok(Seen::Conflict {
                what: format!("container {} is not on this host", self.container),
            }),
            State::Changing => Ok(Seen::Partial {
                what: "it is starting or stopping".to_owned(),
            }),
            State::Running | State::Frozen => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Stopped>, StepFailure> {
        let state = lxc::settled(context, &self.container)?;
        if state == State::Absent {
            return Err(no_such(context, &self.container));
        }
        // Crash boundary: from here on it is known what was before, whatever this step finds when it is started again.
        let before = before::keep(context, &self.container, state != State::Stopped)?;
        let timeout = Duration::from_secs(u64::from(self.timeout_s));
        let how = lxc::stop(context, &self.container, timeout)?;
        let output = Stopped {
            was_running: Some(before.was_running),
            killed: how == Stop::Killed,
            maker: before.maker,
        };
        let facts = stopped(context, &self.container);
        Ok(Done {
            changed: how != Stop::WasStopped,
            output,
            facts,
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Stopped>,
    ) -> Result<Done<()>, StepFailure> {
        let unchanged = || Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        let kept = before::kept(context, &self.container)?;
        let known = output.map(|output| (output.was_running, output.maker));
        let known = known.or(kept.map(|before| (Some(before.was_running), before.maker)));
        if let Some((_, maker)) = known
            && before::is_another(context, &self.container, maker)?
        {
            return Ok(unchanged());
        }
        match lxc::state(context, &self.container)? {
            State::Running | State::Frozen => {
                before::forget(context, &self.container)?;
                return Ok(unchanged());
            }
            State::Absent => return Err(no_such(context, &self.container)),
            State::Stopped | State::Changing => {}
        }
        match known.and_then(|(was_running, _)| was_running) {
            Some(false) => {
                before::forget(context, &self.container)?;
                return Ok(unchanged());
            }
            Some(true) => {}
            None => {
                return Err(StepFailure {
                    hint: Some("start it if it should run, then retry the undo".to_owned()),
                    ..fail(
                        FailureClass::Other,
                        format!(
                            "container {} is stopped, and whether it ran before is not known",
                            self.container
                        ),
                    )
                });
            }
        }
        lxc::start(context, &self.container)?;
        before::forget(context, &self.container)?;
        let facts = started(context, &self.container);
        Ok(Done {
            changed: true,
            output: (),
            facts,
        })
    }
}
