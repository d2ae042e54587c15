//! `tallybook op resume`.

use super::super::act::{self, PaceOptions};
use super::super::{Context, Error, Exit, OperationArgument, resolve};
use crate::engine::Once;
use crate::log::Open;
use crate::render::Output;

/// Go on with an operation that was interrupted, failed, or left behind: what is in doubt is looked at first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op resume 4c0c2a55")]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
    /// Start steps again that can be started only once and are in doubt: you looked, and want them once more
    #[arg(long)]
    once_again: bool,
    #[command(flatten)]
    pace: PaceOptions,
    /// Set aside what others have in the place of a step, never delete it, then go on; undoing the step puts it back
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why, for whoever reads the log
    #[arg(long, value_name = "TEXT", requires = "force")]
    reason: Option<String>,
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
        let forced = self.reason.as_deref().filter(|_| self.force);
        let pace = self.pace.given();
        act::resume(context, out, id, once, forced, pace, self.detach).await
    }
}
