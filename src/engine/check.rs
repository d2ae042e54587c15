//! Whether hosts are as the log says: the newest steps whose effect lasts are looked at again. Nothing is changed and nothing is
//! recorded; what a kind can't see is not claimed to be so.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tallybook_agent::protocol::{Reply, Request};
use tallybook_events::ids::{Attempt, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep, Seen};
use tallybook_events::subject::Subject;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};

use super::chain::{self, Cut};
use super::{Engine, Error, Once, conversation, reach};
use crate::log::Filter;

/// What was found of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It is as the log says, as far as its kind can see.
    AsRecorded,
    /// Somebody else changed it.
    Drift(String),
    /// It can't be told.
    Unknown(String),
}

/// A step that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The operation that it is of.
    pub operation: OperationId,
    /// The step.
    pub plan: PlannedStep,
    /// What was found.
    pub found: Found,
}

/// What a look at a host gave.
pub type OfHost = Result<Vec<Looked>, reach::Error>;

/// Which side of its subject the effect of a step is, where it lasts and can be seen: the newest step of each side says what is
/// there.
fn side(plan: &PlannedStep) -> Option<&str> {
    match plan.kind.as_str() {
        "container.start" | "container.stop" => Some("running"),
        "dhcp.reserve" | "dhcp.release" => Some("address"),
        "forward.open" | "forward.close" => Some("ports"),
        "container.publish" | "container.retire" => Some("presence"),
        kind @ ("dns.serve" | "host.bridge" | "host.directories" | "host.dnsmasq"
        | "host.forwarding" | "host.nftables") => Some(kind),
        // Several of these are about one subject, each something else.
        "host.packages" | "template.publish" => Some(&plan.summary),
        _ => None,
    }
}

/// The steps that say what is there on a host: of each side the newest, and none of what was destroyed since.
fn newest<'a>(
    operations: &'a BTreeMap<OperationId, Operation>,
    host: &HostName,
) -> Vec<(&'a Operation, &'a Step)> {
    let mut in_order: Vec<(&Operation, &Step)> = Vec::new();
    for operation in operations.values() {
        // What is taken back is not there; and what took it back says only what is not.
        if operation.intent.is_rollback() || operation.status == OperationStatus::RolledBack {
            continue;
        }
        let steps = operation.steps.iter();
        in_order.extend(
            steps
                .filter(|step| step.plan.host == *host && step.plan.action == Action::Forward)
                .filter(|step| step.may_have_acted())
                .map(|step| (operation, step)),
        );
    }
    in_order.sort_by_key(|(_, step)| step.last);
    let mut newest: BTreeMap<(&Subject, &str), (&Operation, &Step)> = BTreeMap::new();
    for (operation, step) in in_order {
        if let Some(side) = side(&step.plan) {
            newest.insert((&step.plan.subject, side), (operation, step));
        }
        if step.plan.kind == "container.retire" {
            newest.retain(|(subject, _), _| **subject != step.plan.subject);
        }
    }
    newest.into_values().collect()
}

/// Why a step is not looked at: it does not say for sure what must be there.
fn unjudged(operation: &Operation, step: &Step) -> Option<String> {
    if step.is_adopted() {
        return Some("it was taken over: nothing says what must be there".to_owned());
    }
    let is_done = matches!(step.status, StepStatus::Succeeded { .. });
    let is_whole = operation.status == OperationStatus::Succeeded;
    (!is_done || !is_whole).then(|| {
        format!(
            "operation {} is {}",
            operation.id.short(),
            operation.status.label()
        )
    })
}

impl Engine {
    /// Looks whether hosts are as the log says.
    ///
    /// # Errors
    /// When the log can't be read. A host that can't be looked at is an answer.
    pub async fn check(&self, hosts: &[HostName]) -> Result<BTreeMap<HostName, OfHost>, Error> {
        self.check_not_fenced().await?;
        let mut answers = BTreeMap::new();
        for host in hosts {
            let filter = Filter {
                kind: Some("step".to_owned()),
                host: Some(host.clone()),
                ..Filter::default()
            };
            let records = self.log.records(&filter).await?;
            let ids: BTreeSet<OperationId> = records
                .iter()
                .filter_map(|record| record.header.operation)
                .collect();
            let mut operations = BTreeMap::new();
            for id in ids {
                operations.insert(id, self.load(id).await?);
            }
            let chosen = newest(&operations, host);
            answers.insert(host.clone(), self.look_at(host, chosen).await?);
        }
        Ok(answers)
    }

    async fn look_at(
        &self,
        host: &HostName,
        chosen: Vec<(&Operation, &Step)>,
    ) -> Result<OfHost, Error> {
        let mut looked = Vec::with_capacity(chosen.len());
        let mut asked: BTreeMap<OperationId, (&Operation, Vec<&Step>)> = BTreeMap::new();
        for (operation, step) in chosen {
            match unjudged(operation, step) {
                Some(why) => looked.push(Looked {
                    operation: operation.id,
                    plan: step.plan.clone(),
                    found: Found::Unknown(why),
                }),
                None => {
                    let of = asked.entry(operation.id).or_insert((operation, Vec::new()));
                    of.1.push(step);
                }
            }
        }
        for (operation, steps) in asked.into_values() {
            match self.ask(host, operation, &steps).await {
                Ok(found) => looked.extend(found),
                Err(Cut::Unreachable(_, error)) => return Ok(Err(error)),
                Err(Cut::Lost(error)) => return Ok(Err(error.into())),
                Err(Cut::Refused(failure)) => {
                    let what = failure.message;
                    let host = host.clone();
                    return Ok(Err(conversation::Error::Unexpected { host, what }.into()));
                }
                Err(Cut::Stopped) => return Ok(Ok(looked)),
                Err(Cut::Fenced(host, seen)) => return Err(Error::Fenced { host, seen }),
                Err(Cut::Log(error)) => return Err(error.into()),
            }
        }
        looked.sort_by(|one, other| {
            (&one.plan.subject, one.plan.index).cmp(&(&other.plan.subject, other.plan.index))
        });
        Ok(Ok(looked))
    }

    /// Has a host look at steps of one operation.
    async fn ask(
        &self,
        host: &HostName,
        operation: &Operation,
        steps: &[&Step],
    ) -> Result<Vec<Looked>, Cut> {
        let crew = match self.crew(operation, Once::Ask).await {
            Ok(crew) => crew,
            Err(Error::Log(error)) => return Err(Cut::Log(error)),
            Err(_) => return Ok(Vec::new()),
        };
        let mut conversation = chain::open(&crew, host).await?;
        let of = |step: &&Step| (step.plan.clone(), step.attempts);
        let calls: Vec<(PlannedStep, Attempt)> = steps.iter().map(of).collect();
        let batch = crew.batch(operation, &calls, crew.fence.epoch);
        let said = conversation.speaker.say(&Request::Probe(batch)).await;
        said.map_err(Cut::Lost)?;
        let mut seen: BTreeMap<StepIndex, Seen> = BTreeMap::new();
        while seen.len() < steps.len() {
            match conversation.listener.hear().await.map_err(Cut::Lost)? {
                Reply::Probed { key, seen: found } => drop(seen.insert(key.step, found)),
                Reply::Refused(failure) => return Err(Cut::Refused(failure)),
                _ => {}
            }
        }
        let looked = steps.iter().map(|step| Looked {
            operation: operation.id,
            plan: step.plan.clone(),
            found: match seen.remove(&step.plan.index) {
                Some(Seen::Done(_)) => Found::AsRecorded,
                Some(Seen::Absent) => Found::Drift("nothing of it is there".to_owned()),
                Some(Seen::Partial { what } | Seen::Conflict { what }) => Found::Drift(what),
                Some(Seen::Unknown { why }) => Found::Unknown(why),
                None => Found::Unknown("the host did not say".to_owned()),
            },
        });
        Ok(looked.collect())
    }
}
