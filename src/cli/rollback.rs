//! `tallybook rollback --to`: everything that was begun since a point is taken back, as one operation.

use std::str::FromStr;
use std::time::Duration;

use tallybook_events::ids::Seq;

use super::argument::{self, OperationArgument};
use super::{Context, Error, Exit, act, resolve};
use crate::log::{Log, Open};
use crate::render::Output;

/// Take back everything that was begun since a point, the newest first, as one operation
///
/// It is shown first: the operations, each step, and what stays and why. What is taken back already needs nothing. Operations
/// that are not done are taken back as they stand, as `op rollback` does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook rollback --to 120 --dry-run\n  tallybook rollback --to 4c0c2a55"
)]
pub(super) struct Args {
    /// The last event that stays as it is; or an operation that is done: the state just after it
    #[arg(long, value_name = "SEQ|OPERATION")]
    to: Target,
    /// Show what would be undone and what stays; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// While an older operation holds what this one needs, wait for that instead of being refused; at most for so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = humantime::parse_duration)]
    wait: Option<Option<Duration>>,
}

/// What is gone back to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Seq(Seq),
    Operation(OperationArgument),
}

/// How long the short id of an operation is. No log has events of numbers that long.
const SHORT_LEN: usize = 12;

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = argument::seq(text);
        match text.parse::<OperationArgument>() {
            Ok(operation) if number.is_err() || text.len() == SHORT_LEN => {
                Ok(Target::Operation(operation))
            }
            Ok(_) | Err(_) => number.map(Target::Seq).map_err(|_| {
                "expected the number of an event, as `tallybook log` shows it, or an operation"
                    .to_owned()
            }),
        }
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let to = end(log, &self.to).await?;
        let wanted = act::Wanted {
            dry_run: self.dry_run,
            yes: self.yes,
            wait: self.wait,
        };
        act::rollback_to(context, out, to, wanted).await
    }
}

/// The last event that stays.
async fn end(log: &Log, target: &Target) -> Result<Seq, Error> {
    match target {
        Target::Seq(seq) => resolve::event(&log.state().await?, *seq),
        Target::Operation(argument) => {
            let id = resolve::operation(log, argument).await?;
            match log.summary(id).await? {
                Some(known) if !known.is_open() => Ok(known.last),
                Some(_) | None => Err(Error::NotEnded(id)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_an_event_or_an_operation() {
        assert_eq!("17".parse(), Ok(Target::Seq(Seq(17))));
        assert_eq!("#17".parse(), Ok(Target::Seq(Seq(17))));
        assert_eq!("123456".parse(), Ok(Target::Seq(Seq(123_456))));
        for operation in [
            "123456789012",
            "12a4",
            "01990000-0000-7000-8000-0123456789ab",
        ] {
            assert!(
                matches!(operation.parse(), Ok(Target::Operation(_))),
                "{operation}"
            );
        }
        for bad in ["0", "-1", "", "yesterday"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?} was taken");
        }
    }
}
