//! `tallybook container stop`.

use tallybook_events::intent::Intent;

use super::super::{Context, Error, Exit};
use super::deed::Deed;
use crate::plan::container::stop;
use crate::render::Output;

/// Stop a container: it is asked, and only after a minute made to
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container stop shop")]
pub(super) struct Args {
    #[command(flatten)]
    deed: Deed,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let intent = |container, host| Intent::ContainerStop { container, host };
        self.deed.run(context, out, stop, intent).await
    }
}
