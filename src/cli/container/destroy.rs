//! `tallybook container destroy`.

use tallybook_events::intent::Intent;

use super::super::{Context, Error, Exit};
use super::deed::Deed;
use crate::plan::container::destroy;
use crate::render::Output;

/// Remove a container and all it was given; this can't be undone
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook container destroy shop --dry-run\n  tallybook container destroy cn1/shop"
)]
pub(super) struct Args {
    #[command(flatten)]
    deed: Deed,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let intent = |container, host| Intent::ContainerDestroy { container, host };
        self.deed.run(context, out, destroy, intent).await
    }
}
