//! `tallybook log recover`: goes on with a damaged log, in a new epoch, and records what is lost.

use serde::Serialize;
use tallybook_events::event::Loss;
use tallybook_events::ids::{Epoch, Seq};

use super::super::confirmation::is_wanted;
use super::super::{Context, Error, Exit};
use crate::log;
use crate::log::recover::{Away, Recovered, Recovery};
use crate::render::{Column, Format, Output, Table, count, plain};

/// Go on with a damaged log without what is lost of it, in a new epoch; what is lost is shown first, and recorded
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook log recover --reason 'the disk lost a sector' --dry-run"
)]
pub(super) struct Args {
    /// Why, for whoever reads the log
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Show what is lost, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The archive is gone for good: events that are in no other file are lost
    #[arg(long)]
    archive_lost: bool,
}

/// What is lost, and what became of it, as JSON.
#[derive(Debug, Serialize)]
struct RecoveredView<'a> {
    dry_run: bool,
    epoch: Epoch,
    losses: Vec<LossView<'a>>,
    contradicted: &'a [Seq],
    moves: Vec<MoveView>,
    /// The event that says it.
    seq: Option<Seq>,
}

#[derive(Debug, Serialize)]
struct LossView<'a> {
    first: Seq,
    last: Seq,
    header_kept: bool,
    why: &'a str,
}

#[derive(Debug, Serialize)]
struct MoveView {
    file: String,
    kept: String,
    replaced: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let store = context.store()?.to_owned();
        let away = match self.archive_lost {
            true => Away::Lost,
            false => Away::Awaited,
        };
        let recovery = blocking(move || Recovery::plan(&store, away)).await?;
        let losses = recovery.losses.clone();
        let is_json = out.format() == Format::Json;
        if !is_json {
            show(out, &recovery)?;
        }
        if self.dry_run {
            match is_json {
                true => out.json(&view(&recovery, &losses, None))?,
                false => out.line("dry run: nothing was changed")?,
            }
            return Ok(Exit::Ok);
        }
        if !self.yes && !is_wanted(out, "go on without what is lost?")? {
            out.line("nothing was changed")?;
            return Ok(Exit::Failed);
        }
        let told = is_json.then(|| serde_json::to_value(view(&recovery, &losses, None)));
        let reason = self.reason;
        let Recovered { seq, epoch } = blocking(move || recovery.carry_out(&reason)).await?;
        match told {
            Some(told) => {
                let mut told = told?;
                if let Some(fields) = told.as_object_mut() {
                    fields.insert("dry_run".to_owned(), false.into());
                    fields.insert("seq".to_owned(), seq.0.into());
                }
                out.json(&told)?;
            }
            None => out.line(format!(
                "the log goes on in epoch {epoch}; event {seq} says what is lost"
            ))?,
        }
        Ok(Exit::Ok)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, log::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::Start(std::io::Error::other(error)))??)
}

fn view<'a>(recovery: &'a Recovery, losses: &'a [Loss], seq: Option<Seq>) -> RecoveredView<'a> {
    let of_losses = losses.iter().map(|loss| LossView {
        first: loss.events.first,
        last: loss.events.last,
        header_kept: loss.header_kept,
        why: &loss.why,
    });
    let moves = recovery.moves().iter().map(|moved| MoveView {
        file: moved.path.display().to_string(),
        kept: moved.kept.display().to_string(),
        replaced: moved.is_replaced,
    });
    RecoveredView {
        dry_run: true,
        epoch: recovery.epoch(),
        losses: of_losses.collect(),
        contradicted: recovery.contradicted(),
        moves: moves.collect(),
        seq,
    }
}

fn show(out: &mut Output, recovery: &Recovery) -> Result<(), Error> {
    let columns = ["EVENTS", "HEADER", "WHAT WAS FOUND THERE"];
    let mut table = Table::new(columns.map(Column::left));
    let mut lost = 0;
    for loss in &recovery.losses {
        lost += loss.events.count();
        let events = match loss.events.first == loss.events.last {
            true => loss.events.first.to_string(),
            false => format!("{} to {}", loss.events.first, loss.events.last),
        };
        let header = if loss.header_kept { "kept" } else { "lost" };
        table.row([
            events.into(),
            header.into(),
            plain(&loss.why).to_string().into(),
        ]);
    }
    match recovery.losses.is_empty() {
        true => out.line("nothing is lost")?,
        false => {
            out.table(&table)?;
            let lost = usize::try_from(lost).unwrap_or(usize::MAX);
            out.line(format!("{} lost", count(lost, "event")))?;
        }
    }
    for seq in recovery.contradicted() {
        out.line(format!(
            "event {seq} is not the one that was recorded here before: this is another copy of the log"
        ))?;
    }
    for moved in recovery.moves() {
        let what = if moved.is_replaced {
            "written again"
        } else {
            "removed"
        };
        let (path, kept) = (moved.path.display(), moved.kept.display());
        out.line(format!(
            "{path}: {what}; as it is now, it is kept as {kept}"
        ))?;
    }
    out.line(format!("the log would go on in epoch {}", recovery.epoch()))?;
    Ok(())
}
