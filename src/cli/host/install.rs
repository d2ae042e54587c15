//! `tallybook host install`.

use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::subject::Subject;

use super::super::act::{self, ActOptions, PaceOptions, Wish};
use super::super::argument::distinct;
use super::super::{Context, Error, Exit};
use crate::plan;
use crate::render::Output;

/// Put what tallybook itself needs on hosts: checks, packages, directories, the agent
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook host install cn1 cn2\n  tallybook host install cn1 cn2 cn3 --serial 1 --max-fail 0"
)]
pub(super) struct Args {
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<HostName>,
    #[command(flatten)]
    pace: PaceOptions,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let hosts = distinct(self.hosts);
        let options = self.options.paced(&self.pace);
        act::operate(context, out, &options, &loaded, None, |_, _| {
            Ok(Wish {
                steps: plan::host::install(&loaded.inventory, &hosts)?,
                claims: hosts.iter().cloned().map(Subject::Host).collect(),
                intent: Intent::HostInstall {
                    hosts: hosts.clone(),
                },
            })
        })
        .await
    }
}
