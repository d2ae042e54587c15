//! `tallybook container shell`.

use super::super::{ContainerArgument, Context, Error, Exit};
use crate::render::Output;

/// Work in a container as root; what the terminal shows and what changes is recorded, what is typed is not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook container shell shop")]
pub(super) struct Args {
    /// The container: NAME or HOST/NAME
    container: ContainerArgument,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        super::session::run(context, out, &self.container, Vec::new()).await
    }
}
