//! `tallybook op resume`.

use super::super::act::{self, PaceOptions};
use super::super::{Context, Error, Exit, OperationArgument, resolve};
use crate::engine::Once;
use crate::log::Open;
use crate::render::Output;

/// Go on with an operation that was interrupted, failed, or left behind: what is in doubt is looked at first
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
    /// Start steps again that can be started only once and are in doubt: you looked, and want them once more
    #[arg(long)]
    once_again: bool,
    #[command(flatten)]
    pace: PaceOptions,
    /// Have the daemon carry it out, and end here as soon as it has it; `op attach` follows it
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        let once = if self.once_again {
            Once::Again
        } else {
            Once::Ask
        };
        act::resume(context, out, id, once, self.pace.given(), self.detach).await
    }
}
