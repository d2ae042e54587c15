//! `tallybook template …`: templates and their generations, as the log knows them.

mod list;
mod show;
mod snapshot;
mod sync;

use super::{Context, Error, Exit, commands};
use crate::render::Output;
pub(super) use list::table;

/// Templates and their generations, as the log knows them
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
    Snapshot(snapshot::Args),
    Sync(sync::Args),
    List(list::Args),
    Show(show::Args),
}
