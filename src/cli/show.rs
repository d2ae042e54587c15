//! `tallybook show`: one event, whole.

use tallybook_events::actor::ClaimSource;
use tallybook_events::event::{ChangeKind, Event};
use tallybook_events::ids::Seq;
use tallybook_replay::entry::Entry;

use super::argument::seq;
use super::{Context, Error, Exit, resolve};
use crate::log::{Filter, Open};
use crate::render::json::EventView;
use crate::render::{Cell, Column, Format, Ink, Output, Table, Written, plain, plain_lines};

/// Show an event: its header, its links, and what it says
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook show 204\n  tallybook show 204 --format json")]
pub(super) struct Args {
    /// The event's number
    #[arg(value_parser = seq)]
    seq: Seq,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let log = context.open_log(Open::Existing).await?;
        let state = log.state().await?;
        let seq = resolve::event(&state, self.seq)?;
        let entries = log.entries(&Filter::at(seq)).await?;
        let Some(entry) = entries.first() else {
            return Err(Error::NoEvent {
                seq,
                head: state.head.seq,
            });
        };
        let view = EventView::new(entry)?;
        match out.format() {
            Format::Json => out.json(&view)?,
            Format::Table => {
                out.table(&header(entry, &view.time))?;
                out.line("")?;
                payload(entry, &view, out)?;
            }
        }
        Ok(Exit::Ok)
    }
}

fn header(entry: &Entry, time: &str) -> Table {
    let header = &entry.header;
    let mut table = Table::new([Column::left("EVENT"), Column::left("")]);
    let mut row = |name: &str, cell: Cell| table.row([name.into(), cell]);
    row("seq", header.seq.into());
    row(
        "kind",
        format!("{} version {}", header.kind, header.kind_version).into(),
    );
    row("subject", Cell::from(&header.subject));
    row("time", time.into());
    for claim in &header.actor.0 {
        let source = match claim.source {
            ClaimSource::Kernel => "says the kernel",
            ClaimSource::Asserted => "says the environment",
            ClaimSource::Derived => "looked up",
        };
        row(
            "actor",
            format!("{} {} ({source})", claim.name, claim.value).into(),
        );
    }
    if let Some(operation) = header.operation {
        row("operation", operation.into());
    }
    if let Some(step) = header.step {
        row("step", format!("{step}, start {}", header.attempt).into());
    }
    if let Some(claim) = header.claim {
        row(
            "claim",
            format!("event {} {}", claim.seq, claim.hash).into(),
        );
    }
    if header.cause != Seq::NONE {
        row("cause", format!("event {}", header.cause).into());
    }
    let writer = &header.writer;
    row(
        "writer",
        format!("{} in boot {}", writer.controller, writer.boot).into(),
    );
    row(
        "log",
        format!("{} epoch {}", header.log, header.epoch).into(),
    );
    row("event", header.event.into());
    row("hash", entry.hash.into());
    row("previous", header.previous.into());
    let of_subject = match header.subject_previous_seq {
        Seq::NONE => "none of this subject".to_owned(),
        seq => format!("event {seq} {}", header.subject_previous),
    };
    row("of subject", of_subject.into());
    row("commitment", header.commitment.into());
    table
}

fn payload(entry: &Entry, view: &EventView, out: &mut Output) -> Result<(), Error> {
    match &entry.event {
        Event::InventoryRecorded(recorded) => {
            let path = plain(&recorded.path);
            out.inked(Ink::Head, &format!("inventory {path} {}", recorded.hash))?;
            text(&recorded.text.0, out)?;
        }
        Event::OutputCaptured(output) => {
            let captured = &output.captured;
            let exit = exit(captured.exit);
            let command = plain(&captured.command);
            out.inked(Ink::Head, &format!("{command} ({exit})"))?;
            text(&captured.text.0, out)?;
            dropped(captured.dropped_bytes, "bytes from the middle", out)?;
        }
        Event::SessionRecorded(session) => {
            let argv = plain(&tallybook_events::argv::text(&session.argv));
            out.inked(Ink::Head, &format!("{argv} ({})", exit(session.exit)))?;
            text(&session.output.0, out)?;
            dropped(session.dropped_bytes, "bytes", out)?;
            for change in &session.changes {
                let how = match change.change {
                    ChangeKind::Added => "added",
                    ChangeKind::Modified => "modified",
                    ChangeKind::Removed => "removed",
                };
                out.line(format!("{how} {}", plain(&change.path.to_string())))?;
            }
            dropped(session.changes_dropped, "changes", out)?;
        }
        Event::LogCreated(_)
        | Event::AllocationMade(_)
        | Event::AllocationReleased(_)
        | Event::OperationIntended(_)
        | Event::OperationPlanned(_)
        | Event::OperationResumed(_)
        | Event::OperationInterrupted(_)
        | Event::OperationSucceeded(_)
        | Event::OperationFailed(_)
        | Event::OperationRolledBack(_)
        | Event::OperationStuck(_)
        | Event::OperationAbandoned(_)
        | Event::OperationPaced(_)
        | Event::OperationLacked(_)
        | Event::StepStarted(_)
        | Event::StepSucceeded(_)
        | Event::StepFailed(_)
        | Event::StepDoubted(_)
        | Event::StepUnstarted(_)
        | Event::StepDrifted(_)
        | Event::StepForced(_)
        | Event::StepAdopted(_)
        | Event::ErasureAnnounced(_)
        | Event::ErasureCompleted(_)
        | Event::SegmentsArchived(_)
        | Event::SegmentsRestored(_)
        | Event::LogRecovered(_)
        | Event::LogFenced(_)
        | Event::Unknown(_) => {
            let head = match view.payload_is {
                "redacted" => "payload: redacted; the header still commits to what it was",
                "unknown" => "payload, of a kind or version that this program does not know",
                _ => "payload",
            };
            out.inked(Ink::Head, head)?;
            if view.payload_is != "redacted" {
                out.json(&view.payload)?;
            }
        }
    }
    Ok(())
}

fn text(bytes: &[u8], out: &mut Output) -> Written {
    let text = String::from_utf8_lossy(bytes);
    plain_lines(text.trim_end_matches('\n'))
        .into_iter()
        .try_for_each(|line| out.line(line))
}

fn dropped(number: u64, what: &str, out: &mut Output) -> Written {
    match number {
        0 => Ok(()),
        number => out.inked(Ink::Faint, &format!("({number} more {what} were dropped)")),
    }
}

fn exit(exit: Option<i32>) -> String {
    exit.map_or_else(
        || "no exit status".to_owned(),
        |exit| format!("exit {exit}"),
    )
}
