//! `tallybook dns …`: the zones of the inventory.

mod apply;
mod show;

use super::{Context, Error, Exit, commands};
use crate::render::Output;

/// DNS zones: what they hold, from the inventory and what is allocated
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        self.command.run(context, out).await
    }
}

commands! {
    Show(show::Args),
    Apply(apply::Args),
}
