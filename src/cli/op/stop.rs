//! `tallybook op stop`.

use super::super::{Context, Error, Exit, OperationArgument, resolve};
use crate::daemon::client;
use crate::log::Open;
use crate::render::{Format, Output};

/// Have an operation stop that the daemon carries out: what runs is finished, nothing else is begun
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook op stop 4c0c2a55")]
pub(super) struct Args {
    /// The operation
    operation: OperationArgument,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let id = resolve::operation(log, &self.operation).await?;
        if !client::stop(log, id).await? {
            return Err(Error::NotCarriedOut(id));
        }
        let short = id.short();
        match out.format() {
            Format::Json => out.json(&serde_json::json!({
                "operation": id,
                "outcome": "stopping",
            }))?,
            Format::Table => out.line(format!(
                "operation {short} ends in good order; `tallybook op attach {short}` follows it"
            ))?,
        }
        Ok(Exit::Ok)
    }
}
