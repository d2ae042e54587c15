//! `tallybook log expire`: captured output that was kept long enough.

use tallybook_events::event::ErasureCause;

use super::super::redact;
use super::super::{Context, Error, Exit};
use crate::clock;
use crate::log::Open;
use crate::render::Output;
use crate::render::time::Time;

/// Erase what programs printed and sessions showed before a time, of operations that are over
///
/// Headers stay, and with them that it was printed, when and by which step. What was in it can't be had again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook log expire --before 90days --dry-run")]
pub(super) struct Args {
    /// What is from before this time: 2026-11-22, or how long ago (90days)
    #[arg(long, value_name = "TIME")]
    before: Time,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT", default_value = "it was kept long enough")]
    reason: String,
    /// Show what would be erased, and erase nothing
    #[arg(long)]
    dry_run: bool,
    /// Erase it: that can't be undone
    #[arg(long, required_unless_present = "dry_run")]
    yes: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let before = self.before.unix_us(clock::now_unix_us());
        let records = log.output_before(before).await?;
        let cause = ErasureCause::Retention;
        redact::erase(log, records, cause, &self.reason, self.dry_run, out).await
    }
}
