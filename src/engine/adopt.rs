//! Taking over what is there as what a step was to make. The host is looked at and not changed; what it says is recorded, with
//! who decided that and why.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_agent::protocol::{Reply, Request};
use tallybook_events::event::StepAdopted;
use tallybook_events::ids::{Attempt, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep, StepDone, StepFailure};
use tallybook_replay::operation::{Operation, Step, StepStatus};

use super::chain::{self, Crew, Cut};
use super::{Engine, Error, Once, conversation};

/// What was taken over: each step, as its host described what is there.
pub type Adopted = Vec<(PlannedStep, StepDone)>;

/// Why a step can't be adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The plan has no such step.
    #[error("the operation has no step {0}")]
    Missing(StepIndex),
    /// It stands where nothing is to be decided.
    #[error("step {step} is {status}; only one that failed, is in doubt or drifted can be adopted")]
    Standing {
        /// The step.
        step: StepIndex,
        /// Where it stands.
        status: &'static str,
    },
    /// It takes something back.
    #[error("step {0} is an undo: what is there is what it was to take away")]
    Undo(StepIndex),
    /// No step can be.
    #[error("no step of it failed, is in doubt or drifted")]
    None,
    /// The host has no words for what is there.
    #[error("step {} ({}) on {}: {}", .0.index, .0.summary, .0.host, .1.message)]
    Refused(Box<PlannedStep>, Box<StepFailure>),
    /// A host did not answer.
    #[error("{host}: {why}")]
    Host {
        /// The host.
        host: HostName,
        /// Why not.
        why: String,
    },
}

impl Engine {
    /// Takes over what is there as what these steps were to make; all that can be, where none is named. All of them, or none.
    ///
    /// # Errors
    /// When the operation is finished or carried out by others, or a host has no words for what is there.
    pub async fn adopt(
        &self,
        id: OperationId,
        steps: &BTreeSet<StepIndex>,
        reason: &str,
    ) -> Result<Adopted, Error> {
        let operation = self.unfinished(id).await?;
        let chosen = chosen(&operation, steps)?;
        let crew = self.crew(&operation, Once::Ask).await?;
        let mut hosts: BTreeMap<&HostName, Vec<(PlannedStep, Attempt)>> = BTreeMap::new();
        for step in &chosen {
            let on_host = hosts.entry(&step.plan.host).or_default();
            on_host.push((step.plan.clone(), step.attempts));
        }
        let mut adopted = Adopted::new();
        for (host, steps) in hosts {
            adopted.extend(describe(&crew, &operation, host, &steps).await?);
        }
        let mut drafts = Vec::with_capacity(adopted.len());
        for (plan, done) in &adopted {
            let attempt = chosen.iter().find(|step| step.plan.index == plan.index);
            let attempt = attempt.map_or(Attempt(0), |step| step.attempts);
            let event = StepAdopted {
                reason: reason.to_owned(),
                done: done.clone(),
            };
            drafts.push(crew.draft(&operation, plan, attempt, event)?);
        }
        self.log.append(drafts, crew.held(&operation)).await?;
        Ok(adopted)
    }
}

/// The steps that are to be adopted.
fn chosen<'a>(
    operation: &'a Operation,
    wanted: &BTreeSet<StepIndex>,
) -> Result<Vec<&'a Step>, Unfit> {
    let is_open = |step: &Step| match step.status {
        StepStatus::Failed(_) | StepStatus::Doubted { .. } | StepStatus::Drifted { .. } => true,
        StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded { .. } => false,
    };
    if let Some(missing) = wanted
        .iter()
        .find(|index| index.0 as usize >= operation.steps.len())
    {
        return Err(Unfit::Missing(*missing));
    }
    let of = |step: &&Step| match wanted.is_empty() {
        true => is_open(step),
        false => wanted.contains(&step.plan.index),
    };
    let chosen: Vec<&Step> = operation.steps.iter().filter(of).collect();
    for step in &chosen {
        let index = step.plan.index;
        if !is_open(step) {
            return Err(Unfit::Standing {
                step: index,
                status: step.status.label(),
            });
        }
        if step.plan.action != Action::Forward {
            return Err(Unfit::Undo(index));
        }
    }
    match chosen.is_empty() {
        true => Err(Unfit::None),
        false => Ok(chosen),
    }
}

/// Has a host describe what is in the place of steps.
async fn describe(
    crew: &Crew,
    operation: &Operation,
    host: &HostName,
    steps: &[(PlannedStep, Attempt)],
) -> Result<Adopted, Error> {
    let silent = |why: String| Unfit::Host {
        host: host.clone(),
        why,
    };
    let opened = chain::open(crew, host).await;
    let mut conversation = opened.map_err(|cut| cut_off(cut, &silent))?;
    let batch = crew.batch(operation, steps, crew.fence.epoch);
    let lost = |error: conversation::Error| silent(error.to_string());
    let asked = conversation.speaker.say(&Request::Adopt(batch)).await;
    asked.map_err(lost)?;
    let mut adopted = Adopted::new();
    while adopted.len() < steps.len() {
        let plan_of = |index: StepIndex| steps.iter().find(|(plan, _)| plan.index == index);
        match conversation.listener.hear().await.map_err(lost)? {
            Reply::Adopted { key, done } => {
                adopted.extend(plan_of(key.step).map(|(plan, _)| (plan.clone(), done)));
            }
            Reply::NotAdopted { key, failure } => {
                if let Some((plan, _)) = plan_of(key.step) {
                    return Err(Unfit::Refused(Box::new(plan.clone()), Box::new(failure)).into());
                }
            }
            Reply::Refused(failure) => return Err(silent(failure.message).into()),
            _ => {}
        }
    }
    Ok(adopted)
}

fn cut_off(cut: Cut, silent: &impl Fn(String) -> Unfit) -> Error {
    match cut {
        Cut::Unreachable(_, error) => silent(crate::causes::in_line(&error)).into(),
        Cut::Lost(error) => silent(error.to_string()).into(),
        Cut::Refused(failure) => silent(failure.message).into(),
        Cut::Stopped => silent("stopped by the operator".to_owned()).into(),
        Cut::Fenced(host, seen) => Error::Fenced { host, seen },
        Cut::Log(error) => error.into(),
    }
}
