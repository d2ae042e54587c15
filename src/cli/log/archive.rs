//! `tallybook log archive`.

use std::path::PathBuf;

use serde::Serialize;

use super::super::argument::Point;
use super::super::{Context, Error, Exit};
use crate::clock;
use crate::log::Open;
use crate::log::retention::{Archiving, Before, Moved};
use crate::render::{Cell, Column, Format, Output, Table, Written, bytes};

/// Move whole, closed segments of the journal to the archive, compressed
///
/// A segment's file goes only once it was read back from there. All commands read it there as before; `tallybook log
/// restore` brings it back. Interrupted, run it again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook log archive --before 90days --dry-run\n  tallybook log archive --to /mnt/archive"
)]
pub(super) struct Args {
    /// Only segments all of whose events are older than this event or time
    #[arg(long, value_name = "SEQ|TIME")]
    before: Option<Point>,
    /// How many of the newest closed segments stay
    #[arg(long, value_name = "N", default_value_t = 1)]
    keep: usize,
    /// Where the archive is to be, at its first use: a directory that is there, also on another file system [default:
    /// `archive` in the store]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let log = context.open_log(Open::Existing).await?;
        let before = self.before.map(|before| match before {
            Point::Seq(seq) => Before::Seq(seq),
            Point::Time(time) => Before::Time {
                unix_us: time.unix_us(clock::now_unix_us()),
            },
        });
        let archiving = Archiving {
            before,
            keep: self.keep,
            to: self.to,
            dry_run: self.dry_run,
        };
        let moved = log.archive(archiving).await?;
        show(self.dry_run, &moved, out)?;
        Ok(Exit::Ok)
    }
}

/// What was moved, as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    dry_run: bool,
    segments: Vec<Segment<'a>>,
}

#[derive(Debug, Serialize)]
struct Segment<'a> {
    first: u64,
    last: u64,
    size_bytes: u64,
    packed_bytes: Option<u64>,
    to: &'a std::path::Path,
}

/// Shows what was moved, or would be.
pub(super) fn show(dry_run: bool, moved: &[Moved], out: &mut Output) -> Result<(), Error> {
    match out.format() {
        Format::Json => {
            let segments = moved.iter().map(|one| Segment {
                first: one.events.first.0,
                last: one.events.last.0,
                size_bytes: one.len,
                packed_bytes: one.packed_len,
                to: &one.to,
            });
            out.json(&Shown {
                dry_run,
                segments: segments.collect(),
            })?;
        }
        Format::Table => table(dry_run, moved, out)?,
    }
    Ok(())
}

fn table(dry_run: bool, moved: &[Moved], out: &mut Output) -> Written {
    if moved.is_empty() {
        return out.line("no segment is to be moved");
    }
    let mut table = Table::new([
        Column::left("EVENTS"),
        Column::right("SIZE"),
        Column::right("PACKED"),
        Column::right("RATIO"),
        Column::left("TO"),
    ]);
    for one in moved {
        let ratio = one.packed_len.filter(|len| *len > 0).map(|packed| {
            let tenths = one.len.saturating_mul(10) / packed;
            format!("{}.{}", tenths / 10, tenths % 10)
        });
        table.row([
            format!("{}-{}", one.events.first, one.events.last).into(),
            bytes(one.len).into(),
            Cell::or_dash(one.packed_len.map(bytes)),
            Cell::or_dash(ratio),
            one.to.display().to_string().into(),
        ]);
    }
    out.table(&table)?;
    match dry_run {
        true => out.line("dry run: nothing was moved"),
        false => Ok(()),
    }
}
