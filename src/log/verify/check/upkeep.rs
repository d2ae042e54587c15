//! What the log's own upkeep says of other events: payloads that are erased or to be, and events that are lost; and what is
//! there of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use tallybook_events::event::{Event, SeqRange};
use tallybook_events::ids::Seq;

use super::super::{Class, Reach};
use super::{Check, Seen};
use crate::journal::Found;

impl Check {
    /// Takes in what an event says. A range that no log can have is a finding of its own.
    pub(super) fn upkeep(&mut self, seq: Seq, event: &Event) {
        match event {
            Event::ErasureAnnounced(announced) => {
                let ranges = announced.events.iter().copied();
                let ranges = ranges.filter(|range| range.is_before(seq)).collect();
                self.announced.insert(seq, ranges);
            }
            Event::ErasureCompleted(completed) => {
                self.completed.insert(completed.announced);
            }
            Event::LogRecovered(recovered) => {
                let losses = recovered.losses.iter();
                self.losses
                    .extend(losses.map(|loss| (loss.events, loss.hash)));
            }
            _ => {}
        }
    }

    /// Whether a place is behind the last event that is to be checked.
    pub(in super::super) fn is_behind(&self, to: Option<Seq>, found: &Found<Seen>) -> bool {
        let Some(to) = to else {
            return false;
        };
        self.is_behind
            || match found {
                Found::Record { seq, .. } => *seq > to,
                Found::Gap(gap) => gap.first > to,
                Found::Head
                | Found::DamagedFile(_)
                | Found::DamagedHead(_)
                | Found::Lost(_)
                | Found::Unreadable { .. } => self.head.seq >= to,
            }
    }

    /// Whether anything behind that event was read.
    pub(in super::super) const fn went_behind(&self) -> bool {
        self.is_behind
    }

    /// Takes of what is behind that event only what it says of those before it; breaks once nothing is open.
    pub(in super::super) fn behind(
        &mut self,
        to: Seq,
        found: Found<Seen>,
        place: &dyn Fn() -> String,
    ) -> ControlFlow<()> {
        let next = self.next();
        self.lacks_behind |= !matches!(found, Found::Head | Found::Record { wrong: None, .. });
        if !std::mem::replace(&mut self.is_behind, true) {
            if next <= to && !self.is_lost(next) && matches!(found, Found::Record { .. }) {
                let what = format!("events {next} to {to} are missing before it");
                self.find(next, &place(), Class::Missing, what);
            }
        } else if !says_of_others(&found) {
            return ControlFlow::Continue(());
        }
        if let Found::Record {
            seq,
            item,
            wrong: None,
            ..
        } = found
            && let Some(entry) = item.whole.and_then(|whole| whole.entry)
        {
            self.upkeep(seq, &entry.event);
        }
        match self.is_open() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    /// Whether something of what was read can only be judged by a later event.
    fn is_open(&self) -> bool {
        let is_announced = |seq: &Seq| {
            let mut ranges = self.announced.values().flatten();
            ranges.any(|range| range.contains(*seq))
        };
        let is_said = |(range, hash, _): &_| self.losses.contains(&(*range, *hash));
        match self.reach {
            Reach::Chain => false,
            Reach::Tail | Reach::Full => {
                !self.changed.is_empty()
                    || !self.erased.keys().all(is_announced)
                    || !self.gaps.iter().all(is_said)
            }
        }
    }

    pub(super) fn finish_erasures(&mut self) {
        let all: BTreeMap<Seq, Vec<SeqRange>> = std::mem::take(&mut self.announced);
        let mut ranges: Vec<(SeqRange, Seq)> = Vec::new();
        for (by, events) in &all {
            ranges.extend(events.iter().map(|range| (*range, *by)));
        }
        let mut announced: BTreeSet<Seq> = BTreeSet::new();
        // A record may be there twice, or at another place.
        let mut intact = std::mem::take(&mut self.intact);
        intact.sort();
        intact.dedup();
        for (range, by) in &ranges {
            let erased = self.erased.range(range.first..=range.last);
            announced.extend(erased.map(|(seq, _)| *seq));
            if !self.completed.contains(by) {
                // It is going on, or whoever opens the store next goes on with it.
                let before = self.changed.len();
                self.changed.retain(|seq, _| !range.contains(*seq));
                self.unfinished += (before - self.changed.len()) as u64;
            }
            if self.completed.contains(by) {
                let from = intact.partition_point(|seq| *seq < range.first);
                let still = intact.iter().skip(from);
                for seq in still.take_while(|seq| range.contains(**seq)) {
                    self.checks.erasures += 1;
                    let what = format!("event {by} had its payload erased, and it is still there");
                    self.find(*seq, "the journal", Class::Unerased, what);
                }
            }
        }
        self.checks.erasures += self.erased.len() as u64;
        let unannounced: Vec<(Seq, String)> = self
            .erased
            .iter()
            .filter(|(seq, _)| !announced.contains(*seq))
            .map(|(seq, place)| (*seq, place.clone()))
            .collect();
        for (seq, place) in unannounced {
            // What announced it came later, and may be among what a recovery went on without.
            if self.lacks_behind || self.are_out_of_reach(seq.next()) {
                self.unjudged += 1;
                continue;
            }
            let what = "its payload was erased; the header still commits to what it was";
            self.find(seq, &place, Class::Unannounced, what);
        }
    }

    pub(super) fn finish_gaps(&mut self) {
        for (range, hash, place) in self.gaps.clone() {
            self.checks.gaps += 1;
            // The recovery may be what can't be read.
            if self.unread.is_empty() && !self.losses.contains(&(range, hash)) {
                let what = format!(
                    "a gap stands for events {} to {}, and no log.recovered says so",
                    range.first, range.last
                );
                self.find(range.first, &place, Class::Gap, what);
            }
        }
    }
}

/// Whether something is an event that says of others what became of them.
fn says_of_others(found: &Found<Seen>) -> bool {
    let Found::Record { item, .. } = found else {
        return false;
    };
    let entry = item.whole.as_ref().and_then(|whole| whole.entry.as_ref());
    entry.is_some_and(|entry| {
        let kind = &*entry.header.kind;
        kind.starts_with("erasure.") || kind == "log.recovered"
    })
}
