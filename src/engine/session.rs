//! Work in a container: a command, or a shell at a terminal, recorded as an operation with one step.
//!
//! What the terminal shows is recorded, bounded; what is typed never is. A session can't be taken up again.

use tallybook_agent::protocol::{Reply, Request, SessionRequest};
use tallybook_events::event::{
    Event, OperationFailed, OperationSucceeded, Resolution, SessionRecorded, StepFailed,
    StepStarted, StepSucceeded,
};
use tallybook_events::ids::{Attempt, Blob, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, FailureClass, PlannedStep, Reversal, StepDone, StepFailure};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus};
use tokio::sync::{mpsc, watch};

use super::chain::asked_to_stop;
use super::conversation::Conversation;
use super::{Engine, Error, Proposal, draft, reach};
use crate::log::Condition;

/// The kind of a session's one step. It is carried out by a conversation, so no agent has it in its table.
const KIND: &str = "container.session";

/// What the operator's side does.
#[derive(Debug)]
pub enum Input {
    /// Bytes were typed, or read from a pipe.
    Bytes(Vec<u8>),
    /// Nothing more will come.
    End,
    /// The terminal has another size: columns and rows.
    Resize(u16, u16),
}

/// Takes what the command prints; `true` for standard error.
pub type Printer = Box<dyn FnMut(&[u8], bool) + Send>;

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The command ended.
    Command(SessionRecorded),
    /// It could not be started, or the line was lost.
    Failed(StepFailure),
    /// The host can't be reached; nothing was begun.
    Unreachable(reach::Error),
}

/// The one step of a session's operation.
pub fn plan(host: &HostName, subject: &Subject, request: &SessionRequest) -> PlannedStep {
    let what = if request.argv.is_empty() {
        "a shell".to_owned()
    } else {
        request.argv.join(" ")
    };
    PlannedStep {
        index: StepIndex(0),
        host: host.clone(),
        subject: subject.clone(),
        kind: KIND.to_owned(),
        params: Blob(tallybook_events::codec::encode(request).unwrap_or_default()),
        summary: format!("run {what} in {}", request.container),
        action: Action::Forward,
        reversal: Reversal::Keep {
            why: "what somebody did in a container is not undone".to_owned(),
        },
        once: true,
        after: Vec::new(),
        peer: None,
    }
}

impl Engine {
    /// Runs a session as an operation.
    ///
    /// # Errors
    /// When the log can't be written. What the session did is then not recorded, and the caller must say so.
    pub async fn session(
        &self,
        proposal: Proposal,
        request: SessionRequest,
        input: mpsc::Receiver<Input>,
        print: Printer,
    ) -> Result<Ended, Error> {
        let id = self.begin(proposal).await?;
        let operation = self.load(id).await?;
        let Some(step) = operation.steps.first().map(|step| step.plan.clone()) else {
            return Err(Error::Unplanned(id));
        };
        let log = self.log.head().await?.log.ok_or(Error::Missing(id))?;
        let mut conversation = match self.reach.open(&step.host, log).await {
            Ok(conversation) => conversation,
            Err(error) => {
                let reason = error.to_string();
                self.close_session(&operation, &step, Vec::new(), Some(reason))
                    .await?;
                return Ok(Ended::Unreachable(error));
            }
        };
        let started = StepStarted {
            kind: KIND.to_owned(),
            // A session leaves no receipt anywhere.
            journal: None,
        };
        self.append_step(&operation, &step, vec![started.into()])
            .await?;
        let stop = self.stop.clone();
        let ended = converse(&mut conversation, request, input, print, stop).await;
        let resolution = Resolution::Reported;
        match &ended {
            Ended::Command(recorded) => {
                let done = StepDone {
                    changed: !recorded.changes.is_empty(),
                    output: Blob(
                        tallybook_events::codec::encode(&recorded.exit).unwrap_or_default(),
                    ),
                    facts: Vec::new(),
                    captured: Vec::new(),
                };
                let events = vec![
                    recorded.clone().into(),
                    StepSucceeded { resolution, done }.into(),
                ];
                self.close_session(&operation, &step, events, None).await?;
            }
            Ended::Failed(failure) => {
                let failed = StepFailed {
                    resolution,
                    failure: failure.clone(),
                };
                let reason = Some(failure.message.clone());
                self.close_session(&operation, &step, vec![failed.into()], reason)
                    .await?;
            }
            Ended::Unreachable(_) => {}
        }
        Ok(ended)
    }

    /// Closes a session whose program died: it can't be taken up again, and nobody knows how it ended.
    pub(super) async fn settle_session(&self, operation: &Operation) -> Result<(), Error> {
        if operation.status == OperationStatus::Failed {
            return Ok(());
        }
        let reason = "the program that held it died; nobody recorded how it ended".to_owned();
        self.append(operation, OperationFailed { reason }).await
    }

    async fn append_step(
        &self,
        operation: &Operation,
        step: &PlannedStep,
        events: Vec<Event>,
    ) -> Result<(), Error> {
        let mut drafts = Vec::with_capacity(events.len());
        for event in events {
            let draft = draft(&step.subject, event)?
                .operation(operation.id, Some(operation.claim))
                .step(step.index, Attempt(1));
            drafts.push(draft);
        }
        let held = Condition::held(operation.id, operation.claim);
        self.log.append(drafts, held).await?;
        Ok(())
    }

    /// The step's last events, and the operation's end. A session that failed is over all the same: there is nothing
    /// to resume, so it ends as failed and taken back by nobody.
    async fn close_session(
        &self,
        operation: &Operation,
        step: &PlannedStep,
        events: Vec<Event>,
        failed: Option<String>,
    ) -> Result<(), Error> {
        if !events.is_empty() {
            self.append_step(operation, step, events).await?;
        }
        let operation = self.load(operation.id).await?;
        let claim = Some(operation.claim);
        let end = match failed {
            None => draft(
                &step.subject,
                OperationSucceeded {
                    events: operation.events + 1,
                },
            )?,
            Some(reason) => draft(&step.subject, OperationFailed { reason })?,
        };
        let held = Condition::held(operation.id, operation.claim);
        self.log
            .append(vec![end.operation(operation.id, claim)], held)
            .await?;
        Ok(())
    }
}

/// Whether an intent is a session.
pub const fn is_session(intent: &Intent) -> bool {
    matches!(
        intent,
        Intent::ContainerExec { .. } | Intent::ContainerShell { .. }
    )
}

async fn converse(
    conversation: &mut Conversation,
    request: SessionRequest,
    mut input: mpsc::Receiver<Input>,
    mut print: Printer,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let failed = |message: String| {
        Ended::Failed(StepFailure {
            class: FailureClass::Peer,
            message,
            hint: None,
            captured: Vec::new(),
        })
    };
    if let Err(error) = conversation.speaker.say(&Request::Session(request)).await {
        return failed(error.to_string());
    }
    let mut open = true;
    let mut told_to_stop = false;
    loop {
        tokio::select! {
            // The agent hangs up on the command, and still says how it ended.
            () = asked_to_stop(&mut stop), if !told_to_stop => {
                told_to_stop = true;
                let _gone = conversation.speaker.say(&Request::Stop).await;
            }
            reply = conversation.listener.hear() => match reply {
                Ok(Reply::Output { bytes, stderr }) => print(&bytes.0, stderr),
                Ok(Reply::SessionEnded(recorded)) => return Ended::Command(recorded),
                Ok(Reply::Refused(failure)) => return Ended::Failed(failure),
                Ok(_) => {}
                Err(error) => return failed(error.to_string()),
            },
            typed = input.recv(), if open => {
                let message = match typed {
                    Some(Input::Bytes(bytes)) => Request::Input(Blob(bytes)),
                    Some(Input::Resize(columns, rows)) => Request::Resize { columns, rows },
                    Some(Input::End) | None => {
                        open = false;
                        Request::InputEnd
                    }
                };
                // When the line is gone the listener says so.
                let _gone = conversation.speaker.say(&message).await;
            }
        }
    }
}
