//! `tallybook op adopt`: what is there is taken for what a step was to make.

use std::collections::BTreeSet;

use serde::Serialize;
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{PlannedStep, StepDone};

use super::super::{Context, Error, Exit, OperationArgument, act, resolve};
use crate::log::Open;
use crate::render::{Format, Output, plain, summary};

/// Take what is there for what a step was to make: the host describes it, and nothing of it is changed or ever undone
///
/// For steps that failed, are in doubt or drifted. Those that can't be described are refused, and then none is taken. Afterwards
/// `op resume` goes on behind them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook op adopt 4c0c2a55 --step 3 --reason 'made by hand, and right'"
)]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
    /// Only this step; may be given more than once
    #[arg(long, value_name = "N", value_parser = step)]
    step: Vec<StepIndex>,
    /// Why, for whoever reads the log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn step(text: &str) -> Result<StepIndex, std::num::ParseIntError> {
    text.parse().map(StepIndex)
}

/// What was taken over, as JSON.
#[derive(Debug, Serialize)]
struct Adopted<'a> {
    operation: OperationId,
    outcome: &'static str,
    steps: Vec<AdoptedStep<'a>>,
}

#[derive(Debug, Serialize)]
struct AdoptedStep<'a> {
    step: StepIndex,
    host: &'a HostName,
    what: &'a str,
    facts: Vec<String>,
}

impl<'a> From<&'a (PlannedStep, StepDone)> for AdoptedStep<'a> {
    fn from((plan, done): &'a (PlannedStep, StepDone)) -> Self {
        AdoptedStep {
            step: plan.index,
            host: &plan.host,
            what: &plan.summary,
            facts: done.facts.iter().map(summary::fact).collect(),
        }
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        let steps: BTreeSet<StepIndex> = self.step.into_iter().collect();
        let adopted = act::adopt(context, out, id, &steps, &self.reason).await?;
        let steps: Vec<AdoptedStep<'_>> = adopted.iter().map(AdoptedStep::from).collect();
        let short = id.short();
        if out.format() == Format::Json {
            out.json(&Adopted {
                operation: id,
                outcome: "adopted",
                steps,
            })?;
            return Ok(Exit::Ok);
        }
        for adopted in &steps {
            let said = match adopted.facts.is_empty() {
                true => String::new(),
                false => format!(": {}", adopted.facts.join("; ")),
            };
            let (step, host, what) = (adopted.step, adopted.host, adopted.what);
            out.line(plain(&format!(
                "step {step} on {host} is adopted ({what}){said}"
            )))?;
        }
        out.line(format!(
            "  hint: `tallybook op resume {short}` goes on behind it"
        ))?;
        Ok(Exit::Ok)
    }
}
