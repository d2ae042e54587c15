//! `tallybook container restart`.

use tallybook_events::intent::Intent;

use super::super::{Context, Error, Exit};
use super::deed::Deed;
use crate::plan::container::restart;
use crate::render::Output;

/// Stop a container and start it again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container restart shop")]
pub(super) struct Args {
    #[command(flatten)]
    deed: Deed,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let intent = |container, host| Intent::ContainerRestart { container, host };
        self.deed.run(context, out, restart, intent).await
    }
}
