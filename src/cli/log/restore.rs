//! `tallybook log restore`.

use tallybook_events::ids::Seq;

use super::super::argument::seq;
use super::super::{Context, Error, Exit};
use super::archive::show;
use crate::log::Open;
use crate::log::retention::Restoring;
use crate::render::Output;

/// Bring segments back from the archive
///
/// All are checked before the first is moved. Interrupted, run it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook log restore 204\n  tallybook log restore --all")]
pub(super) struct Args {
    /// Those that these events are in
    #[arg(value_name = "SEQ", value_parser = seq, required_unless_present = "all")]
    events: Vec<Seq>,
    /// All of them
    #[arg(long, conflicts_with = "events")]
    all: bool,
    /// Check them, and show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let restoring = Restoring {
            events: self.events,
            dry_run: self.dry_run,
        };
        let moved = log.restore(restoring).await?;
        show(self.dry_run, &moved, out)?;
        Ok(Exit::Ok)
    }
}
