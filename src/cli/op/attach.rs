//! `tallybook op attach`.

use super::super::{Context, Error, Exit, OperationArgument, act, resolve};
use crate::daemon::client;
use crate::log::Open;
use crate::render::Output;

/// Follow an operation that the daemon carries out, or say how it ended; Ctrl-C leaves it to the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op attach 4c0c2a55")]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        match client::attach(log, id).await? {
            Some(following) => {
                let leave = async {
                    let _heard = tokio::signal::ctrl_c().await;
                };
                act::follow(log, out, id, following, leave).await
            }
            None => act::told(log, out, id).await,
        }
    }
}
