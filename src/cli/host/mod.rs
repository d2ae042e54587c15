//! `tallybook host …`: hosts, as the log knows them.

mod check;
mod install;
mod list;
mod prepare;
mod show;
mod trust;

use super::{Context, Error, Exit, commands};
use crate::render::Output;
pub(super) use list::table;

/// Hosts, as the log knows them
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
    Install(install::Args),
    Prepare(prepare::Args),
    Check(check::Args),
    Trust(trust::Args),
    List(list::Args),
    Show(show::Args),
}
