//! Which segments the log says are in the archive, and whether they are in any file.
//!
//! What is in no file may be there again once the archive is mounted: nobody may take it for lost until somebody says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tallybook_events::event::{Event, SeqRange};
use tallybook_events::ids::Seq;

use super::{Error, archive, holds, segments};

/// The segments in the archive, by the events that say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived(BTreeMap<Seq, SeqRange>);

impl Archived {
    /// Takes in what an event says; in the order of the log.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::SegmentsArchived(archived) => {
                let segments = archived.segments.iter();
                self.0.extend(segments.map(|one| (one.first, *one)));
            }
            Event::SegmentsRestored(restored) => {
                for one in &restored.segments {
                    self.0.remove(&one.first);
                }
            }
            // A segment that lost something was put aside, and what is left of it is in the journal.
            Event::LogRecovered(recovered) => {
                let losses = &recovered.losses;
                let is_lost = |one: &SeqRange| losses.iter().any(|loss| meet(one, &loss.events));
                self.0.retain(|_, one| !is_lost(one));
            }
            _ => {}
        }
    }

    /// Those that no file is named for. What is in them may still be in another one.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub(super) fn unnamed(&self, journal: &Path) -> Result<Vec<SeqRange>, Error> {
        let named = segments(journal)?;
        let all = self.0.values().copied();
        Ok(all.filter(|one| !named.contains(&one.first)).collect())
    }

    /// Those that are in no file.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub fn in_no_file(&self, journal: &Path) -> Result<Vec<SeqRange>, Error> {
        let mut away = self.unnamed(journal)?;
        // A recovery may have put what is in them behind another segment's.
        away.retain(|one| !matches!(holds(journal, one.first), Ok((_, Some(_)))));
        Ok(away)
    }
}

fn meet(one: &SeqRange, other: &SeqRange) -> bool {
    one.first <= other.last && other.first <= one.last
}

/// Where the archive leads to, when that is nothing.
pub(super) fn dangles(journal: &Path) -> Option<PathBuf> {
    let directory = archive::directory(journal);
    let leads = std::fs::read_link(&directory).ok()?;
    (!directory.exists()).then_some(leads)
}

/// Segments that are in no file, for people.
pub fn shown(away: &[SeqRange]) -> String {
    let events = |one: &SeqRange| format!("{} to {}", one.first, one.last);
    let all: Vec<String> = away.iter().map(events).collect();
    format!("events {} are in no file", all.join(", "))
}
