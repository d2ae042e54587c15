//! `tallybook container exec`.

use super::super::{ContainerArgument, Context, Error, Exit};
use crate::render::Output;

/// Run a command in a container; what it prints and what it changes is recorded. Ends with its exit status
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container exec shop -- systemctl status nginx")]
pub(super) struct Args {
    /// The container: NAME or HOST/NAME
    container: ContainerArgument,
    /// The command and its arguments; no shell reads them
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        super::session::run(context, out, &self.container, self.argv).await
    }
}
