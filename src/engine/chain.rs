//! One batch on one host: durable `started` for all its steps, then the agent acts, then each outcome is recorded.
//!
//! A step's outcome is never invented here: it is what the agent reported, or it stays unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tallybook_agent::protocol::{Batch, Begun, Call, Reply, Request, Shown};
use tallybook_agent::secret::SecretName;
use tallybook_events::event::{
    Event, OutputCaptured, Resolution, StepFailed, StepStarted, StepSucceeded, StepUnstarted,
};
use tallybook_events::ids::{Attempt, Blob, Epoch, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{
    Action, FailureClass, Fence, Mark, Phase, PlannedStep, Receipt, SendSource, StepFailure,
    StepKey,
};
use tallybook_replay::operation::Operation;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use super::Once;
use super::conversation::{self, Conversation, Outbox, Speaker};
use super::crash::{self, Moment};
use super::net;
use super::reach::{self, Reach};
use super::standing::{self, Unproven};
use super::watch::{Notice, Watch};
use crate::host;
use crate::log::{self, Condition, Draft, Log, Refusal};
use crate::secrets::Declared;

/// Why a chain ended before all its outcomes were known.
#[derive(Debug)]
pub(super) enum Cut {
    /// This host could not be reached: nothing was started. It may be the sending end of a transfer.
    Unreachable(HostName, reach::Error),
    /// We were asked to stop before anything was started.
    Stopped,
    /// The line was lost: what was started is in doubt.
    Lost(conversation::Error),
    /// The host refused the batch as a whole: nothing was done.
    Refused(StepFailure),
    /// This host was shown an event that this log does not have: nothing may be done anywhere.
    Fenced(HostName, Mark),
    /// The log could not be written: nothing may go on.
    Log(log::Error),
}

impl From<log::Error> for Cut {
    fn from(error: log::Error) -> Self {
        match error {
            log::Error::Refused(Refusal::Fenced { host, seen }) => Cut::Fenced(host, seen),
            other => Cut::Log(other),
        }
    }
}

/// Everything a chain needs; shared by all of an operation's.
#[derive(Clone)]
pub(super) struct Crew {
    pub log: Log,
    pub reach: Arc<dyn Reach>,
    pub watch: Watch,
    pub fence: Fence,
    /// Whether we were asked to stop.
    pub stop: watch::Receiver<bool>,
    /// What may be done about a step that is in doubt and can be started only once.
    pub once: Once,
    /// What is declared, as far as it could be read.
    pub secrets: Arc<Declared>,
    /// Which of it each host is told.
    pub needs: Arc<BTreeMap<HostName, BTreeSet<SecretName>>>,
    /// Hosts whose receipts journals have become long.
    pub long: Arc<Mutex<BTreeSet<HostName>>>,
    /// From how many bytes on one is long.
    pub journal_len_max: u64,
}

/// A chain of steps of one host, to be started.
pub(super) struct Chain {
    pub host: HostName,
    pub steps: Vec<(PlannedStep, Attempt)>,
}

impl Chain {
    /// The step of ours that a key names: a host that names another step, or another start, is not believed.
    fn plan_of(&self, crew: &Crew, operation: &Operation, key: &StepKey) -> Option<&PlannedStep> {
        self.steps
            .iter()
            .find(|(plan, attempt)| crew.key(operation, plan.index, *attempt) == *key)
            .map(|(plan, _)| plan)
    }
}

impl Crew {
    /// The condition under which this operation's events are written.
    pub(super) fn held(&self, operation: &Operation) -> Condition {
        Condition::held(operation.id, operation.claim)
    }

    /// The batch that asks for these steps.
    pub(super) fn batch(
        &self,
        operation: &Operation,
        steps: &[(PlannedStep, Attempt)],
        epoch: Epoch,
    ) -> Batch {
        Batch {
            fence: Fence {
                epoch,
                ..self.fence
            },
            calls: steps
                .iter()
                .map(|(plan, attempt)| Call {
                    key: self.key(operation, plan.index, *attempt),
                    kind: plan.kind.clone(),
                    params: plan.params.clone(),
                    action: plan.action.clone(),
                    set_aside: is_forced(operation, plan),
                })
                .collect(),
            outputs: operation.outputs(),
        }
    }

    /// What shows a host that this log has what it was shown before.
    pub(super) async fn prove(&self, host: &HostName, seen: Mark) -> Result<Option<Blob>, Cut> {
        let proof = standing::prove(&self.log, host, seen).await;
        proof.map_err(|error| match error {
            Unproven::Lacking(seen) => Cut::Fenced(host.clone(), seen),
            Unproven::Unlikely(error) => Cut::Unreachable(host.clone(), error.into()),
            // The log may well be written all the same, and other hosts were shown other events.
            Unproven::Log(source) => {
                let (host, source) = (host.clone(), Box::new(source));
                Cut::Unreachable(host.clone(), reach::Error::Unshown { host, source })
            }
        })
    }

    pub(super) fn key(&self, operation: &Operation, step: StepIndex, attempt: Attempt) -> StepKey {
        StepKey {
            log: self.fence.log,
            operation: operation.id,
            step,
            attempt,
        }
    }

    /// What a step is named by in messages: each of its own, for a chain has several.
    pub(super) fn span(&self, operation: &Operation, plan: &PlannedStep, attempt: Attempt) -> Span {
        tracing::info_span!(
            "step",
            operation = %operation.id.short(),
            step = %plan.index,
            %attempt,
            host = %plan.host,
        )
    }

    /// Records what a receipt says of a step: what its programs printed, then its outcome.
    pub(super) async fn record(
        &self,
        operation: &Operation,
        plan: &PlannedStep,
        receipt: Receipt,
        resolution: Resolution,
    ) -> Result<(), log::Error> {
        let span = self.span(operation, plan, receipt.key.attempt);
        let recording = self.record_in_span(operation, plan, receipt, resolution);
        recording.instrument(span).await
    }

    async fn record_in_span(
        &self,
        operation: &Operation,
        plan: &PlannedStep,
        receipt: Receipt,
        resolution: Resolution,
    ) -> Result<(), log::Error> {
        let (event, captured, ending): (Event, _, _) = match receipt.phase {
            Phase::Started | Phase::GivenUp => return Ok(()),
            Phase::Succeeded(mut done) => {
                let captured = std::mem::take(&mut done.captured);
                let changed = done.changed;
                let event = StepSucceeded { resolution, done };
                (event.into(), captured, Ending::Succeeded { changed })
            }
            Phase::Failed(mut failure) => {
                let captured = std::mem::take(&mut failure.captured);
                let message = failure.message.clone();
                let event = StepFailed {
                    resolution,
                    failure,
                };
                (event.into(), captured, Ending::Failed { message })
            }
        };
        let attempt = receipt.key.attempt;
        let mut drafts = Vec::with_capacity(captured.len() + 1);
        for captured in captured {
            drafts.push(self.draft(operation, plan, attempt, OutputCaptured { captured })?);
        }
        drafts.push(self.draft(operation, plan, attempt, event)?);
        self.log.append(drafts, self.held(operation)).await?;
        crash::pass(Moment::Recorded);
        tracing::info!(kind = plan.kind, ?resolution, "outcome recorded");
        self.tell(plan, &ending);
        Ok(())
    }

    /// An event of a step of this operation, without secrets.
    pub(super) fn draft(
        &self,
        operation: &Operation,
        plan: &PlannedStep,
        attempt: Attempt,
        event: impl Into<Event>,
    ) -> Result<Draft, log::Error> {
        let event = net::event(self.secrets.mask(), event.into());
        Draft::new(plan.subject.clone(), event)
            .map(|draft| {
                draft
                    .operation(operation.id, Some(operation.claim))
                    .step(plan.index, attempt)
            })
            .map_err(|source| log::Error::Payload {
                seq: operation.last,
                source,
            })
    }

    fn tell(&self, plan: &PlannedStep, ending: &Ending) {
        let (step, host, summary) = (plan.index, plan.host.clone(), plan.summary.clone());
        (self.watch)(&match ending {
            Ending::Succeeded { changed } => Notice::Succeeded {
                step,
                host,
                summary,
                changed: *changed,
            },
            Ending::Failed { message } => Notice::Failed {
                step,
                host,
                summary,
                message: message.clone(),
            },
        });
    }
}

/// Whether what others have in a step's place is set aside when it starts.
pub(super) fn is_forced(operation: &Operation, plan: &PlannedStep) -> bool {
    let step = operation.steps.get(plan.index.0 as usize);
    plan.action == Action::Forward && step.is_some_and(|step| step.forced)
}

/// How a step ended, as far as people are told.
enum Ending {
    Succeeded { changed: bool },
    Failed { message: String },
}

/// Carries a chain out; `finished` gets the steps whose outcomes were recorded. On `Ok` every step of it has a
/// recorded outcome, is recorded as never started, or is in doubt.
#[tracing::instrument(
    skip_all,
    fields(operation = %operation.id.short(), host = %chain.host)
)]
pub(super) async fn carry_out(
    crew: &Crew,
    operation: &Operation,
    chain: &Chain,
    finished: &mut BTreeSet<StepIndex>,
) -> Result<(), Cut> {
    let mut stop = crew.stop.clone();
    let (mut conversation, sender) = tokio::select! {
        biased;
        // Nothing was begun, so nothing is to be finished.
        () = asked_to_stop(&mut stop) => return Err(Cut::Stopped),
        opened = open_ends(crew, chain) => opened?,
    };
    let journal = conversation.journal;
    let mut started = Vec::with_capacity(chain.steps.len());
    for (plan, attempt) in &chain.steps {
        let kind = plan.kind.clone();
        started.push(crew.draft(operation, plan, *attempt, StepStarted { kind, journal })?);
    }
    // Crash boundary: until this returns, nothing on the host may change.
    let started = crew.log.append(started, crew.held(operation)).await?;
    crash::pass(Moment::Started);
    let newest = started.last().map_or(operation.last, |last| last.seq);
    for (plan, attempt) in &chain.steps {
        let span = crew.span(operation, plan, *attempt);
        span.in_scope(|| tracing::info!(kind = plan.kind, "handed to the host"));
    }
    let (shown, epoch) = standing::shown(&crew.log, newest, conversation.proof.take()).await?;
    let sender = match sender {
        Some((mut sender, source)) => {
            let proof = sender.proof.take();
            let shown = Shown {
                proof,
                ..shown.clone()
            };
            Some((sender, Request::Send { shown, source }))
        }
        None => None,
    };
    let batch = crew.batch(operation, &chain.steps, epoch);
    conversation
        .speaker
        .say(&Request::Run { shown, batch })
        .await
        .map_err(Cut::Lost)?;
    follow(crew, operation, chain, &mut conversation, sender, finished).await
}

/// The line to the host, and to the sending end of its transfer where it has one.
async fn open_ends(
    crew: &Crew,
    chain: &Chain,
) -> Result<(Conversation, Option<(Conversation, SendSource)>), Cut> {
    let mut conversation = open(crew, &chain.host).await?;
    let made = conversation.make_journal().await;
    made.map_err(|error| Cut::Unreachable(chain.host.clone(), error.into()))?;
    let peer = chain.steps.first().and_then(|(plan, _)| plan.peer.as_ref());
    let sender = match peer {
        Some(peer) => Some((open(crew, &peer.host).await?, peer.source.clone())),
        None => None,
    };
    Ok((conversation, sender))
}

/// A conversation with the agent on a host, which was shown nothing that this log does not have. One whose session is
/// full is busy and not gone: it is waited for. All
/// that fills it is ours, and ends; each try takes as long as the session waits for room.
pub(super) async fn open(crew: &Crew, host: &HostName) -> Result<Conversation, Cut> {
    let opened = open_guarded(crew, host).await;
    let mut conversation = opened.map_err(|error| Cut::Unreachable(host.clone(), error))?;
    if conversation.journal_len > crew.journal_len_max {
        let mut long = crew.long.lock().unwrap_or_else(PoisonError::into_inner);
        long.insert(host.clone());
    }
    if let Some(seen) = conversation.seen {
        conversation.proof = crew.prove(host, seen).await?;
    }
    Ok(conversation)
}

async fn open_guarded(crew: &Crew, host: &HostName) -> Result<Conversation, reach::Error> {
    loop {
        match crew.reach.open(host, crew.fence.log).await {
            Err(reach::Error::Host(error @ host::Error::ChannelLimit { .. })) => {
                tracing::warn!(%host, "{error}; waiting for one to end");
            }
            Err(error) => return Err(error),
            Ok(mut conversation) => {
                let needs = crew.needs.get(host).cloned().unwrap_or_default();
                conversation.guard(&crew.secrets, &needs).await?;
                return Ok(conversation);
            }
        }
    }
}

/// The sending end of a transfer, and the task that relays what it says to the receiving end.
struct Transfer {
    to_sender: Outbox,
    relay: JoinHandle<()>,
}

impl Transfer {
    fn start(
        crew: &Crew,
        sender: Conversation,
        send: Request,
        to_receiver: Speaker,
        span: Span,
    ) -> Self {
        let to_sender = Outbox::new(sender.speaker.clone());
        let relay = relay(crew.clone(), sender, send, to_receiver);
        Transfer {
            to_sender,
            relay: tokio::spawn(relay.instrument(span)),
        }
    }

    /// Hands on what the receiving end said last. When the sender is gone its listener says so.
    async fn hand_over(transfer: &mut Option<Transfer>) {
        match transfer {
            Some(transfer) => drop(transfer.to_sender.hand_over().await),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn relay(crew: Crew, mut sender: Conversation, send: Request, to_receiver: Speaker) {
    // When its line is gone its listener says so.
    let _gone = sender.speaker.say(&send).await;
    loop {
        let why = match sender.listener.hear().await {
            Ok(Reply::Peer(bytes)) => {
                crash::pass(Moment::Relayed);
                if to_receiver.say(&Request::Peer(bytes)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Reply::SendEnded) => return,
            Ok(Reply::Prove(seen)) => {
                // Where it can't be shown, the next one who opens a line there finds out.
                let proof = crew.prove(sender.speaker.host(), seen).await;
                let proof = Request::Proof(proof.ok().flatten().unwrap_or_default());
                match sender.speaker.say(&proof).await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            }
            Ok(Reply::Refused(failure)) => failure.message,
            Ok(_) => continue,
            Err(error) => error.to_string(),
        };
        tracing::warn!("the sending end is gone: {why}");
        let _gone = to_receiver.say(&Request::PeerLost(why)).await;
        return;
    }
}

/// What a host has told of a batch so far.
#[derive(Default)]
struct Heard {
    /// Steps told as begun or as ended: everything else was never started.
    begun: BTreeSet<StepIndex>,
    told_to_stop: bool,
}

async fn follow(
    crew: &Crew,
    operation: &Operation,
    chain: &Chain,
    conversation: &mut Conversation,
    mut sender: Option<(Conversation, Request)>,
    finished: &mut BTreeSet<StepIndex>,
) -> Result<(), Cut> {
    let mut transfer: Option<Transfer> = None;
    let mut stop = crew.stop.clone();
    let mut heard = Heard::default();
    let mut waiting = Waiting::default();
    let mut to_host = Outbox::new(conversation.speaker.clone());
    loop {
        // Before what it said last went on to its peer nothing more is heard; a stop is heard always.
        let is_behind = transfer.as_ref().is_some_and(|it| !it.to_sender.is_empty());
        let reply = tokio::select! {
            biased;
            () = asked_to_stop(&mut stop), if !heard.told_to_stop => {
                heard.told_to_stop = true;
                // A transfer ends where it is: what its ends still have to say to each other is not waited for.
                sender = None;
                transfer = None;
                to_host.put(&Request::Stop).map_err(Cut::Lost)?;
                continue;
            }
            // When the line is gone the listener says so.
            _gone = to_host.hand_over(), if !to_host.is_empty() => continue,
            () = Transfer::hand_over(&mut transfer), if is_behind => continue,
            reply = conversation.listener.hear(), if !is_behind => reply.map_err(Cut::Lost)?,
        };
        match reply {
            Reply::Waiting(begun) => waiting.tell(crew, &chain.host, operation, begun),
            Reply::Started(key) => {
                // The receiving end takes nothing from its peer before it has started.
                let Some(plan) = chain.plan_of(crew, operation, &key) else {
                    continue;
                };
                let span = crew.span(operation, plan, key.attempt);
                if let Some((sender, send)) = sender.take() {
                    let to_host = conversation.speaker.clone();
                    transfer = Some(Transfer::start(crew, sender, send, to_host, span.clone()));
                }
                heard.begun.insert(plan.index);
                span.in_scope(|| begun(crew, plan));
            }
            Reply::Progress {
                key,
                what,
                done,
                total,
            } => (crew.watch)(&Notice::Progress {
                step: key.step,
                host: chain.host.clone(),
                what,
                done,
                total,
            }),
            Reply::Finished(receipt) => {
                let plan = chain.plan_of(crew, operation, &receipt.key);
                let plan = plan.filter(|plan| !finished.contains(&plan.index));
                let has_ended = match receipt.phase {
                    Phase::Succeeded(_) | Phase::Failed(_) => true,
                    Phase::Started | Phase::GivenUp => false,
                };
                if let Some(plan) = plan.filter(|_| has_ended) {
                    heard.begun.insert(plan.index);
                    // Crash boundary: the host knows the outcome, the log does not yet.
                    crash::pass(match plan.action {
                        Action::Forward => Moment::Ended,
                        Action::Undo { .. } => Moment::UndoEnded,
                    });
                    crew.record(operation, plan, receipt, Resolution::Reported)
                        .await?;
                    finished.insert(plan.index);
                }
            }
            Reply::Peer(bytes) => {
                if let Some(transfer) = &mut transfer {
                    let put = transfer.to_sender.put(&Request::Peer(bytes));
                    put.map_err(Cut::Lost)?;
                }
            }
            Reply::Prove(seen) => {
                let proof = crew.prove(&chain.host, seen).await?;
                let proof = Request::Proof(proof.unwrap_or_default());
                to_host.put(&proof).map_err(Cut::Lost)?;
            }
            Reply::BatchEnded { unstarted } => {
                let known = |plan: &PlannedStep| unstarted.iter().any(|key| key.step == plan.index);
                record_unstarted(crew, operation, chain, |plan| {
                    known(plan) && !heard.begun.contains(&plan.index)
                })
                .await?;
                if finished.is_empty() && !heard.told_to_stop {
                    return Err(Cut::Lost(conversation::Error::Unexpected {
                        host: chain.host.clone(),
                        what: "ended a batch without having ended any step of it".to_owned(),
                    }));
                }
                return Ok(());
            }
            Reply::Refused(failure) => {
                if heard.told_to_stop && failure.class == FailureClass::Interrupted {
                    // It waited for another agent, and can answer for nothing: whoever goes on asks for the receipts.
                    return Err(Cut::Stopped);
                }
                // What was told as begun before has an outcome, or is in doubt; only the rest was never started.
                record_unstarted(crew, operation, chain, |plan| {
                    !heard.begun.contains(&plan.index)
                })
                .await?;
                return Err(Cut::Refused(failure));
            }
            Reply::Hello { .. }
            | Reply::Alive
            | Reply::Journal(_)
            | Reply::Probed { .. }
            | Reply::Adopted { .. }
            | Reply::NotAdopted { .. }
            | Reply::Receipts(_)
            | Reply::Operations(_)
            | Reply::Forgotten(_)
            | Reply::SendEnded
            | Reply::Admitted
            | Reply::Output { .. }
            | Reply::SessionEnded(_) => {}
        }
    }
}

/// What was told last of a wait for another agent of a host: told again when it is for another step.
#[derive(Default)]
pub(super) struct Waiting {
    told: Option<Option<Begun>>,
}

impl Waiting {
    pub(super) fn tell(
        &mut self,
        crew: &Crew,
        host: &HostName,
        operation: &Operation,
        begun: Option<Begun>,
    ) {
        if self.told.as_ref() == Some(&begun) {
            return;
        }
        (crew.watch)(&Notice::Waiting {
            host: host.clone(),
            step: begun.as_ref().map(|begun| begun.key.step),
            operation: begun.as_ref().map_or(operation.id, |it| it.key.operation),
            since_unix_us: begun.as_ref().map_or(0, |begun| begun.since_unix_us),
        });
        self.told = Some(begun);
    }
}

fn begun(crew: &Crew, plan: &PlannedStep) {
    crash::pass(match plan.action {
        Action::Forward => Moment::Effect,
        Action::Undo { .. } => Moment::UndoEffect,
    });
    tracing::debug!(kind = plan.kind, "begun");
    (crew.watch)(&Notice::Started {
        step: plan.index,
        host: plan.host.clone(),
        summary: plan.summary.clone(),
    });
}

/// Resolves when we are asked to stop; never when nobody can ask any more.
pub(super) async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn record_unstarted(
    crew: &Crew,
    operation: &Operation,
    chain: &Chain,
    is_unstarted: impl Fn(&PlannedStep) -> bool,
) -> Result<(), log::Error> {
    let mut drafts = Vec::with_capacity(chain.steps.len());
    for (plan, attempt) in chain.steps.iter().filter(|(plan, _)| is_unstarted(plan)) {
        let why = "the batch ended before it".to_owned();
        drafts.push(crew.draft(operation, plan, *attempt, StepUnstarted { why })?);
    }
    if drafts.is_empty() {
        return Ok(());
    }
    crew.log.append(drafts, crew.held(operation)).await?;
    Ok(())
}
