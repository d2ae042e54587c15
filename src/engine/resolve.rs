//! Steps in doubt: started, and nobody recorded how they ended. Asks the host's receipts, then looks.
//!
//! It adopts what was done, and says what may be done again; it never guesses and never deletes.

use std::collections::BTreeMap;

use tallybook_agent::protocol::{ReceiptReport, Reply, Request, Start};
use tallybook_events::event::{
    Event, Resolution, StepDoubted, StepDrifted, StepSucceeded, StepUnstarted,
};
use tallybook_events::ids::{Attempt, JournalId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, Fence, Phase, PlannedStep, Receipt, Seen};
use tallybook_replay::operation::Operation;
use tracing::Instrument;

use super::Once;
use super::chain::{self, Crew, Cut, Waiting};
use super::standing;
use super::watch::Notice;

/// What became of the steps of one host.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// May be started again, and what was seen.
    pub again: Vec<(StepIndex, String)>,
    /// Can't be told, or something foreign is in the way: somebody has to decide.
    pub stuck: Vec<(StepIndex, String)>,
}

/// What a step in doubt turned out to be.
enum Verdict {
    Receipt(Box<Receipt>),
    Unstarted(String),
    Seen(Seen),
}

/// Resolves the doubtful steps of a host.
#[tracing::instrument(skip_all, fields(operation = %operation.id.short(), host = %host))]
pub(super) async fn host(
    crew: &Crew,
    operation: &Operation,
    host: &HostName,
    steps: &[(PlannedStep, Attempt)],
) -> Result<Resolved, Cut> {
    let report = receipts(crew, operation, host, steps).await?;
    let mut resolved = Resolved::default();
    let mut to_probe = Vec::new();
    let mut verdicts: BTreeMap<StepIndex, Verdict> = BTreeMap::new();
    for (plan, attempt) in steps {
        let receipt = report
            .receipts
            .iter()
            .find(|receipt| receipt.key.step == plan.index && receipt.key.attempt == *attempt);
        // Only the journal that was there before it was to start: one that was made since knows nothing of it.
        let is_the_one = report.journal.is_some() && report.journal == journal(operation, plan);
        match receipt.map(|receipt| (&receipt.phase, receipt)) {
            Some((Phase::Succeeded(_) | Phase::Failed(_), receipt)) => {
                verdicts.insert(plan.index, Verdict::Receipt(Box::new(receipt.clone())));
            }
            Some((Phase::GivenUp, _)) if is_the_one => {
                let why = "the host had not begun it, and will not".to_owned();
                verdicts.insert(plan.index, Verdict::Unstarted(why));
            }
            Some((Phase::Started | Phase::GivenUp, _)) | None => {
                to_probe.push((plan.clone(), *attempt));
            }
        }
    }
    for (index, seen) in probe(crew, operation, host, &to_probe).await? {
        verdicts.insert(index, Verdict::Seen(seen));
    }
    for (plan, attempt) in steps {
        let Some(verdict) = verdicts.remove(&plan.index) else {
            let why = "the host did not say".to_owned();
            resolved.stuck.push((plan.index, why));
            continue;
        };
        let span = crew.span(operation, plan, *attempt);
        let settling = settle(crew, operation, plan, *attempt, verdict, &mut resolved);
        settling.instrument(span).await?;
    }
    Ok(resolved)
}

/// The receipts journal that the host had before it was asked to start the step.
fn journal(operation: &Operation, plan: &PlannedStep) -> Option<JournalId> {
    let step = operation.steps.get(plan.index.0 as usize);
    step.and_then(|step| step.journal)
}

async fn settle(
    crew: &Crew,
    operation: &Operation,
    plan: &PlannedStep,
    attempt: Attempt,
    verdict: Verdict,
    resolved: &mut Resolved,
) -> Result<(), Cut> {
    let held = crew.held(operation);
    let how = match verdict {
        Verdict::Receipt(receipt) => {
            let failed = matches!(receipt.phase, Phase::Failed(_));
            crew.record(operation, plan, *receipt, Resolution::Receipt)
                .await?;
            let how = "its receipt says how it ended".to_owned();
            if failed && !plan.once {
                resolved.again.push((plan.index, how.clone()));
            }
            how
        }
        Verdict::Unstarted(why) => {
            let event = StepUnstarted { why: why.clone() };
            let draft = crew.draft(operation, plan, attempt, event)?;
            crew.log.append(vec![draft], held).await?;
            why
        }
        Verdict::Seen(Seen::Done(done)) => {
            let event = StepSucceeded {
                resolution: Resolution::Probe,
                done,
            };
            let draft = crew.draft(operation, plan, attempt, event)?;
            crew.log.append(vec![draft], held).await?;
            "its effect is there".to_owned()
        }
        Verdict::Seen(seen) => {
            let (why, drift) = match seen {
                Seen::Absent | Seen::Done(_) => ("nothing of it is there".to_owned(), None),
                Seen::Partial { what } => (format!("some of it is there: {what}"), None),
                Seen::Conflict { what } => (format!("drift: {what}"), Some(what)),
                Seen::Unknown { why } => (format!("it can't be told: {why}"), None),
            };
            let foreign = drift.is_some() && !chain::is_forced(operation, plan);
            let event: Event = match drift {
                Some(what) => StepDrifted { what }.into(),
                None => StepDoubted { why: why.clone() }.into(),
            };
            let draft = crew.draft(operation, plan, attempt, event)?;
            crew.log.append(vec![draft], held).await?;
            if foreign || (plan.once && crew.once == Once::Ask) {
                resolved.stuck.push((plan.index, why.clone()));
            } else {
                resolved.again.push((plan.index, why.clone()));
            }
            why
        }
    };
    tracing::info!(kind = plan.kind, "looked at: {how}");
    (crew.watch)(&Notice::Resolved {
        step: plan.index,
        host: plan.host.clone(),
        how,
    });
    Ok(())
}

async fn receipts(
    crew: &Crew,
    operation: &Operation,
    host: &HostName,
    steps: &[(PlannedStep, Attempt)],
) -> Result<ReceiptReport, Cut> {
    let mut conversation = chain::open(crew, host).await?;
    let newest = crew.log.head().await?.seq;
    let (shown, epoch) = standing::shown(&crew.log, newest, conversation.proof.take()).await?;
    let start = |(plan, attempt): &(PlannedStep, Attempt)| Start {
        key: crew.key(operation, plan.index, *attempt),
        kind: plan.kind.clone(),
    };
    conversation
        .speaker
        .say(&Request::Receipts {
            shown,
            fence: Fence {
                epoch,
                ..crew.fence
            },
            operation: operation.id,
            starts: steps.iter().map(start).collect(),
        })
        .await
        .map_err(Cut::Lost)?;
    let mut waiting = Waiting::default();
    loop {
        match conversation.listener.hear().await.map_err(Cut::Lost)? {
            Reply::Waiting(begun) => waiting.tell(crew, host, operation, begun),
            Reply::Receipts(report) => return Ok(report),
            Reply::Prove(seen) => {
                let proof = crew.prove(host, seen).await?;
                let proof = Request::Proof(proof.unwrap_or_default());
                conversation.speaker.say(&proof).await.map_err(Cut::Lost)?;
            }
            Reply::Refused(failure) => return Err(Cut::Refused(failure)),
            _ => {}
        }
    }
}

async fn probe(
    crew: &Crew,
    operation: &Operation,
    host: &HostName,
    steps: &[(PlannedStep, Attempt)],
) -> Result<Vec<(StepIndex, Seen)>, Cut> {
    // An undo is safe to repeat, so whether it is done need not be told: it is done again.
    let (forward, undo): (Vec<_>, Vec<_>) = steps
        .iter()
        .cloned()
        .partition(|(plan, _)| matches!(plan.action, Action::Forward));
    let mut seen: Vec<(StepIndex, Seen)> = undo
        .iter()
        .map(|(plan, _)| {
            let what = "the undo was begun".to_owned();
            (plan.index, Seen::Partial { what })
        })
        .collect();
    if forward.is_empty() {
        return Ok(seen);
    }
    let mut conversation = chain::open(crew, host).await?;
    conversation
        .speaker
        .say(&Request::Probe(crew.batch(
            operation,
            &forward,
            crew.fence.epoch,
        )))
        .await
        .map_err(Cut::Lost)?;
    let wanted = seen.len() + forward.len();
    while seen.len() < wanted {
        match conversation.listener.hear().await.map_err(Cut::Lost)? {
            Reply::Probed { key, seen: found } => seen.push((key.step, found)),
            Reply::Refused(failure) => return Err(Cut::Refused(failure)),
            Reply::BatchEnded { .. } => break,
            _ => {}
        }
    }
    Ok(seen)
}
