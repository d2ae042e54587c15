//! `tallybook op rollback`.

use super::super::{Context, Error, Exit, OperationArgument, act, resolve};
use crate::log::Open;
use crate::render::Output;

/// Take an operation back: its steps in reverse, with what they recorded, as an operation of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op rollback 4c0c2a55")]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
    /// Show what would be undone; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Have the daemon carry it out, and end here as soon as it has it; `op attach` follows it
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        act::rollback(context, out, id, self.dry_run, self.detach).await
    }
}
