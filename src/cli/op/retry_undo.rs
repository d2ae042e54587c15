//! `op retry-undo`: the rollback of an operation is gone on with.

use tallybook_events::pace::Pace;

use super::super::{Context, Error, Exit, OperationArgument, act, resolve};
use crate::engine::Once;
use crate::log::Open;
use crate::render::Output;

/// Go on with taking an operation back, where that failed or was left: what was undone stays undone
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op retry-undo 4c0c2a55")]
pub(super) struct Args {
    /// The operation that is taken back, or the one that takes it back
    operation: OperationArgument,
    /// Have the daemon carry it out, and end here as soon as it has it; `op attach` follows it
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        let known = log.summary(id).await?;
        let undo = match known.map(|known| known.intent) {
            Some(intent) if intent.is_rollback() => id,
            Some(_) | None => {
                let by = log.taken_back_by(id).await?;
                by.ok_or(Error::NotTakenBack(id))?
            }
        };
        let pace = Pace::default();
        act::resume(context, out, undo, Once::Ask, None, pace, self.detach).await
    }
}
