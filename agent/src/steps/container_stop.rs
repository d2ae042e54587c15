//! `container.stop`: a container does not run. It is asked first, and killed only when its time is over.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::lxc::{self, State, Stop};
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
                let output = Stopped {
                    was_running: None,
                    killed: false,
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
        if lxc::state(context, &self.container)? == State::Absent {
            return Err(no_such(context, &self.container));
        }
        let timeout = Duration::from_secs(u64::from(self.timeout_s));
        let how = lxc::stop(context, &self.container, timeout)?;
        let output = Stopped {
            was_running: Some(how != Stop::WasStopped),
            killed: how == Stop::Killed,
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
        match lxc::state(context, &self.container)? {
            State::Running | State::Frozen => return Ok(unchanged()),
            State::Absent => return Err(no_such(context, &self.container)),
            State::Stopped | State::Changing => {}
        }
        match output.and_then(|output| output.was_running) {
            Some(false) => return Ok(unchanged()),
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
        let facts = started(context, &self.container);
        Ok(Done {
            changed: true,
            output: (),
            facts,
        })
    }
}
