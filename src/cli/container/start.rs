//! `tallybook container start`.

use tallybook_events::intent::Intent;

use super::super::{Context, Error, Exit};
use super::deed::Deed;
use crate::plan::container::start;
use crate::render::Output;

/// Start a container and wait for its address
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container start shop")]
pub(super) struct Args {
    #[command(flatten)]
    deed: Deed,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let intent = |container, host| Intent::ContainerStart { container, host };
        self.deed.run(context, out, start, intent).await
    }
}
