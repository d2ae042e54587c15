//! `tallybook cloud …`: the inventory, and what is allocated from it.

mod check;
mod refresh;
mod show;

use super::{Context, Error, Exit, commands};
use crate::render::Output;

/// The inventory, and the addresses and ports that containers are given
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
    Check(check::Args),
    Show(show::Args),
    Refresh(refresh::Args),
}
