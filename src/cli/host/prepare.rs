//! `tallybook host prepare`.

use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::subject::Subject;

use super::super::act::{self, ActOptions, PaceOptions, Wish};
use super::super::argument::distinct;
use super::super::{Context, Error, Exit};
use crate::plan;
use crate::render::Output;

/// Make hosts able to run containers: LXC, bridge, DHCP, NAT, forwarded ports; running containers keep their network
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook host prepare cn1 --dry-run\n  tallybook host prepare cn1 cn2"
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
        act::operate(context, out, &options, &loaded, None, |state, _| {
            Ok(Wish {
                steps: plan::host::prepare(&loaded.inventory, state, &hosts)?,
                claims: hosts.iter().cloned().map(Subject::Host).collect(),
                intent: Intent::HostPrepare {
                    hosts: hosts.clone(),
                },
            })
        })
        .await
    }
}
