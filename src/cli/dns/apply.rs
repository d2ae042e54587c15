//! `tallybook dns apply`.

use tallybook_events::intent::Intent;
use tallybook_events::subject::Subject;

use super::super::act::{self, ActOptions, PaceOptions, Wish};
use super::super::{Context, Error, Exit};
use crate::plan;
use crate::render::Output;

/// Have the DNS servers of the cloud answer for its zones
///
/// On the hosts that `servers` names: BIND, configured and checked before anything live changes, reloaded and asked
/// afterwards. A zone's serial rises only when what it says changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook dns apply --dry-run\n  tallybook dns apply")]
pub(super) struct Args {
    #[command(flatten)]
    pace: PaceOptions,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let hosts = plan::dns::servers(&loaded.inventory);
        let options = self.options.paced(&self.pace);
        act::operate(context, out, &options, &loaded, None, |state, _| {
            Ok(Wish {
                steps: plan::dns::apply(&loaded.inventory, state)?,
                claims: hosts.iter().cloned().map(Subject::Host).collect(),
                intent: Intent::DnsApply {
                    hosts: hosts.iter().cloned().collect(),
                },
            })
        })
        .await
    }
}
