//! `tallybook op …`: operations, what they did and where they stand.

mod abandon;
mod adopt;
mod attach;
mod list;
mod resume;
mod retry_undo;
mod rollback;
mod show;
mod stop;
mod ways;

use super::{Context, Error, Exit, commands};
use crate::render::Output;
pub(super) use list::table;

/// Operations: what they did and where they stand
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
    List(list::Args),
    Show(show::Args),
    Attach(attach::Args),
    Stop(stop::Args),
    Resume(resume::Args),
    Rollback(rollback::Args),
    RetryUndo(retry_undo::Args),
    Adopt(adopt::Args),
    Abandon(abandon::Args),
}
