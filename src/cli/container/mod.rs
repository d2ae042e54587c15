//! `tallybook container …`: containers, as the log knows them.

mod copy;
mod create;
mod deed;
mod destroy;
mod exec;
mod list;
mod restart;
mod session;
mod shell;
mod show;
mod start;
mod stop;

use super::{Context, Error, Exit, commands};
use crate::render::Output;
pub(super) use create::From;
pub(super) use list::table;

/// Containers, as the log knows them
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
    Create(create::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Destroy(destroy::Args),
    Copy(copy::Args),
    Exec(exec::Args),
    Shell(shell::Args),
    List(list::Args),
    Show(show::Args),
}
