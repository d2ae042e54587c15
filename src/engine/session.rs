//! Work in a container: a command, or a shell at a terminal, recorded as an operation with one step.
//!
//! What the terminal shows is recorded, bounded; what is typed never is. A session can't be taken up again.

use std::time::Duration;

use tallybook_agent::capture::{Capture, SESSION_HALF};
use tallybook_agent::mask::{self, Mask};
use tallybook_agent::protocol::{Reply, Request, SessionRequest};
use tallybook_agent::step::fail;
use tallybook_events::event::{
    Event, OperationFailed, OperationInterrupted, OperationSucceeded, Resolution, SessionRecorded,
    StepDoubted, StepFailed, StepStarted, StepSucceeded,
};
use tallybook_events::ids::{Attempt, Blob, Seq, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{
    Action, FailureClass, Mark, PlannedStep, Reversal, StepDone, StepFailure,
};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, StepStatus};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::chain::asked_to_stop;
use super::conversation::{self, Conversation, Outbox};
use super::standing::{self, Unproven};
use super::{Engine, Error, Proposal, reach};
use crate::clock;
use crate::log::{Condition, Log};

/// The kind of a session's one step. It is carried out by a conversation, so no agent has it in its table.
const KIND: &str = "container.session";
/// How long a host that was asked to hang up may take to say how the command ended: it looks at what changed.
const HANG_UP_MAX: Duration = Duration::from_secs(60);

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

/// What an operator types, and where what is printed goes.
pub type Terminal = (mpsc::Receiver<Input>, Printer);

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The command ended.
    Command(SessionRecorded),
    /// It could not be started.
    Failed(StepFailure),
    /// The line was lost: nobody knows how the command ended.
    Lost(conversation::Error),
    /// The host can't be reached; nothing was begun.
    Unreachable(reach::Error),
    /// It was asked to stop before anything was begun.
    Stopped,
}

/// What the operation of a session ends as.
enum Close {
    Succeeded,
    Failed(String),
    Unknown(String),
}

/// The one step of a session's operation.
pub fn plan(host: &HostName, subject: &Subject, request: &SessionRequest) -> PlannedStep {
    let what = if request.argv.is_empty() {
        "a shell".to_owned()
    } else {
        tallybook_events::argv::text(&request.argv)
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

/// What the command printed, bounded, without secrets.
struct Printed<'a> {
    kept: Capture,
    stdout: mask::Stream<'a>,
    stderr: mask::Stream<'a>,
}

impl<'a> Printed<'a> {
    fn new(mask: &'a Mask) -> Self {
        Printed {
            kept: Capture::new(SESSION_HALF, SESSION_HALF),
            stdout: mask::Stream::new(mask),
            stderr: mask::Stream::new(mask),
        }
    }

    fn push(&mut self, bytes: &[u8], stderr: bool) {
        let stream = if stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        self.kept.push(&stream.push(bytes));
    }

    fn finish(mut self) -> Capture {
        self.kept.push(&self.stdout.finish());
        self.kept.push(&self.stderr.finish());
        self.kept
    }
}

impl Engine {
    /// Runs a session as an operation. `take_over` takes the operator's terminal, once there is a host to talk to:
    /// until then Ctrl-C is theirs.
    ///
    /// # Errors
    /// When the log can't be written. What the session did is then not recorded, and the caller must say so.
    #[tracing::instrument(name = "step", skip_all, fields(operation = %proposal.id.short(), step = 0, attempt = 1, host))]
    pub async fn session(
        &self,
        proposal: Proposal,
        request: SessionRequest,
        take_over: impl FnOnce() -> Terminal,
    ) -> Result<Ended, Error> {
        let id = self.begin(proposal).await?;
        let operation = self.load(id).await?;
        let Some(step) = operation.steps.first().map(|step| step.plan.clone()) else {
            return Err(Error::Unplanned(id));
        };
        tracing::Span::current().record("host", tracing::field::display(&step.host));
        let log = self.log.head().await?.log.ok_or(Error::Missing(id))?;
        let mut stop = self.stop.clone();
        let opened = tokio::select! {
            opened = self.reach.open(&step.host, log) => Some(opened),
            () = asked_to_stop(&mut stop) => None,
        };
        let unbegun = match opened {
            _ if *self.stop.borrow() => Err(Ended::Stopped),
            None => Err(Ended::Stopped),
            Some(Err(error)) => Err(Ended::Unreachable(error)),
            Some(Ok(mut conversation)) => {
                let needs = self.secrets.needs([]);
                let needs = needs.get(&step.host).cloned().unwrap_or_default();
                match conversation.guard(&self.secrets, &needs).await {
                    Ok(()) => Ok(conversation),
                    Err(error) => Err(Ended::Unreachable(error.into())),
                }
            }
        };
        let mut conversation = match unbegun {
            Ok(conversation) => conversation,
            Err(ended) => {
                let reason = match &ended {
                    Ended::Unreachable(error) => error.to_string(),
                    _ => "stopped by the operator before anything was begun".to_owned(),
                };
                self.close_session(&operation, &step, Vec::new(), Close::Failed(reason))
                    .await?;
                return Ok(ended);
            }
        };
        let prover = Prover {
            log: &self.log,
            host: &step.host,
        };
        let proof = match conversation.seen {
            Some(seen) => match prover.prove(seen).await {
                Ok(proof) => proof,
                Err(why) => return self.shut_out(&operation, &step, Vec::new(), why).await,
            },
            None => None,
        };
        let started = StepStarted {
            kind: KIND.to_owned(),
            // A session leaves no receipt anywhere.
            journal: None,
        };
        let begun = self
            .append_step(&operation, &step, vec![started.into()])
            .await?;
        let (shown, _) = standing::shown(&self.log, begun, proof).await?;
        let argv = request.argv.clone();
        let terminal = request.terminal.is_some();
        let started_unix_us = clock::now_unix_us();
        let mut printed = Printed::new(self.secrets.mask());
        let asked = Request::Session { shown, request };
        let ended = prover
            .converse(&mut conversation, asked, take_over(), stop, &mut printed)
            .await;
        let resolution = Resolution::Reported;
        match ended {
            Ok(Ok(recorded)) => {
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
                self.close_session(&operation, &step, events, Close::Succeeded)
                    .await?;
                Ok(Ended::Command(recorded))
            }
            Ok(Err(failure)) => {
                let failed = StepFailed {
                    resolution,
                    failure: failure.clone(),
                };
                let reason = failure.message.clone();
                let events = vec![failed.into()];
                self.close_session(&operation, &step, events, Close::Failed(reason))
                    .await?;
                Ok(Ended::Failed(failure))
            }
            Err(Over::Unproven(why)) => {
                let failure = fail(FailureClass::Fenced, why.text(&step.host));
                let failed = StepFailed {
                    resolution,
                    failure,
                };
                let events = vec![failed.into()];
                self.shut_out(&operation, &step, events, why).await
            }
            Err(Over::Lost(error)) => {
                let error = match error {
                    conversation::Error::Lost { host, why } => conversation::Error::Lost {
                        host,
                        why: format!("{why}; nobody knows how the command ended"),
                    },
                    error @ (conversation::Error::Frame { .. }
                    | conversation::Error::Unexpected { .. }) => error,
                };
                let why = error.to_string();
                let printed = printed.finish();
                let recorded = SessionRecorded {
                    argv,
                    terminal,
                    started_unix_us,
                    ended_unix_us: clock::now_unix_us(),
                    exit: None,
                    dropped_bytes: printed.dropped(),
                    output: Blob(self.secrets.mask().clean(&printed.into_bytes())),
                    changes: Vec::new(),
                    changes_dropped: 0,
                };
                let doubted = StepDoubted { why: why.clone() };
                let events = vec![recorded.into(), doubted.into()];
                self.close_session(&operation, &step, events, Close::Unknown(why))
                    .await?;
                Ok(Ended::Lost(error))
            }
        }
    }

    /// Ends a session that the host is not asked for, or refuses, because of what it was shown before.
    async fn shut_out(
        &self,
        operation: &Operation,
        step: &PlannedStep,
        events: Vec<Event>,
        why: Unproven,
    ) -> Result<Ended, Error> {
        let reason = why.text(&step.host);
        match why {
            Unproven::Log(error) => Err(error.into()),
            Unproven::Lacking(seen) => {
                self.close_session(operation, step, events, Close::Failed(reason))
                    .await?;
                self.freeze(&step.host, seen).await?;
                let host = step.host.clone();
                Err(Error::Fenced { host, seen })
            }
            Unproven::Unlikely(error) => {
                self.close_session(operation, step, events, Close::Failed(reason))
                    .await?;
                Ok(Ended::Unreachable(error.into()))
            }
        }
    }

    /// Closes a session whose program died: it can't be taken up again, and nobody knows how it ended.
    pub(super) async fn settle_session(&self, operation: &Operation) -> Result<(), Error> {
        if matches!(
            operation.status,
            OperationStatus::Failed | OperationStatus::Interrupted
        ) {
            return Ok(());
        }
        let begun = operation
            .steps
            .first()
            .filter(|step| step.status == StepStatus::Started);
        let Some(step) = begun else {
            let reason = "the program that held it died before anything was begun".to_owned();
            return self
                .append(operation, vec![OperationFailed { reason }.into()])
                .await;
        };
        let why = "the program that held it died; nobody recorded how it ended".to_owned();
        let doubted = StepDoubted { why: why.clone() };
        let events = vec![doubted.into()];
        self.close_session(operation, &step.plan, events, Close::Unknown(why))
            .await
    }

    async fn append_step(
        &self,
        operation: &Operation,
        step: &PlannedStep,
        events: Vec<Event>,
    ) -> Result<Seq, Error> {
        let mut drafts = Vec::with_capacity(events.len());
        for event in events {
            let draft = self
                .draft(&step.subject, event)?
                .operation(operation.id, Some(operation.claim))
                .step(step.index, Attempt(1));
            drafts.push(draft);
        }
        let held = Condition::held(operation.id, operation.claim);
        let appended = self.log.append(drafts, held).await?;
        Ok(appended.last().map_or(operation.last, |last| last.seq))
    }

    /// The step's last events, and the operation's end. A session that failed, or of which nobody knows how it ended,
    /// is over all the same: there is nothing to resume, and it is taken back by nobody.
    async fn close_session(
        &self,
        operation: &Operation,
        step: &PlannedStep,
        events: Vec<Event>,
        close: Close,
    ) -> Result<(), Error> {
        if !events.is_empty() {
            self.append_step(operation, step, events).await?;
        }
        let operation = self.load(operation.id).await?;
        let claim = Some(operation.claim);
        let end = match close {
            Close::Succeeded => self.draft(
                &step.subject,
                OperationSucceeded {
                    events: operation.events + 1,
                },
            )?,
            Close::Failed(reason) => self.draft(&step.subject, OperationFailed { reason })?,
            Close::Unknown(reason) => self.draft(&step.subject, OperationInterrupted { reason })?,
        };
        let held = Condition::held(operation.id, operation.claim);
        self.log
            .append(vec![end.operation(operation.id, claim)], held)
            .await?;
        Ok(())
    }
}

/// Why a session is over before the host said so.
enum Over {
    /// The line was lost.
    Lost(conversation::Error),
    /// The host wants to be shown what can't be.
    Unproven(Unproven),
}

impl From<conversation::Error> for Over {
    fn from(error: conversation::Error) -> Self {
        Over::Lost(error)
    }
}

/// Shows a host what it was shown before.
struct Prover<'a> {
    log: &'a Log,
    host: &'a HostName,
}

impl Prover<'_> {
    async fn prove(&self, seen: Mark) -> Result<Option<Blob>, Unproven> {
        standing::prove(self.log, self.host, seen).await
    }

    /// Relays until the command ends, or could not be started. `printed` gets what it printed.
    async fn converse(
        &self,
        conversation: &mut Conversation,
        request: Request,
        (mut input, mut print): Terminal,
        mut stop: watch::Receiver<bool>,
        printed: &mut Printed<'_>,
    ) -> Result<Result<SessionRecorded, StepFailure>, Over> {
        conversation.speaker.say(&request).await?;
        // What is said waits here for room, and never keeps us from hearing: the host may wait for that.
        let mut outbox = Outbox::new(conversation.speaker.clone());
        let mut open = true;
        let mut admitted = false;
        let mut hang_up: Option<Instant> = None;
        loop {
            tokio::select! {
                // The agent hangs up on the command, and still says how it ended.
                () = asked_to_stop(&mut stop), if hang_up.is_none() => {
                    hang_up = Some(Instant::now() + HANG_UP_MAX);
                    outbox.put_instead(&Request::Stop)?;
                }
                () = tokio::time::sleep_until(hang_up.unwrap_or_else(Instant::now)), if hang_up.is_some() => {
                    return Err(Over::Lost(conversation.speaker.given_up("it was asked to hang up, and did not")));
                }
                reply = conversation.listener.hear() => match reply? {
                    Reply::Admitted => admitted = true,
                    Reply::Prove(seen) => {
                        let proof = self.prove(seen).await.map_err(Over::Unproven)?;
                        outbox.put(&Request::Proof(proof.unwrap_or_default()))?;
                    }
                    Reply::Output { bytes, stderr } => {
                        printed.push(&bytes.0, stderr);
                        print(&bytes.0, stderr);
                    }
                    Reply::SessionEnded(recorded) => return Ok(Ok(recorded)),
                    Reply::Refused(failure) => return Ok(Err(failure)),
                    _ => {}
                },
                // When the line is gone the listener says so.
                _gone = outbox.hand_over(), if !outbox.is_empty() => {}
                typed = input.recv(), if open && admitted && outbox.is_empty() => {
                    outbox.put(&match typed {
                        Some(Input::Bytes(bytes)) => Request::Input(Blob(bytes)),
                        Some(Input::Resize(columns, rows)) => Request::Resize { columns, rows },
                        Some(Input::End) | None => {
                            open = false;
                            Request::InputEnd
                        }
                    })?;
                }
            }
        }
    }
}
