//! The index against the journal: the place of every event, and every posting, in both directions.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tallybook_events::header::HeaderView;
use tallybook_events::ids::Seq;
use tallybook_events::record::Frame;

use super::super::{Error, JOURNAL};
use super::{Class, Finding};
use crate::journal::{self, Depth, Found, Inspect, Position};
use crate::store::{BLOCK_EVENTS, Index, Place, STRETCH_EVENTS, view_terms};

/// More findings than these are counted, not listed.
const FINDINGS_MAX: usize = 1000;

/// What holding the index against the journal found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IndexReport {
    /// Events of its blocks, each by its place and hash.
    pub events: u64,
    /// Terms that were looked up.
    pub terms: u64,
    /// Events found by these.
    pub postings: u64,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub findings_dropped: u64,
}

impl IndexReport {
    fn find(&mut self, seq: Seq, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                seq,
                place: "the index".to_owned(),
                class: Class::Index,
                what,
            });
        } else {
            self.findings_dropped += 1;
        }
    }
}

/// What was found of one event of the journal in the index.
struct Held {
    wrong: Vec<String>,
    /// Where the index has it.
    place: Option<Position>,
    is_compared: bool,
}

/// Holds the first so many blocks of an index against the journal beside it, up to an event.
///
/// # Errors
/// When the journal can't be read.
pub fn index(store: &Path, index: &Index, blocks: u64, to: Seq) -> Result<IndexReport, Error> {
    let mut report = IndexReport::default();
    let end = Seq(blocks * BLOCK_EVENTS).min(to);
    let (terms, pairs) = (AtomicU64::new(0), AtomicU64::new(0));
    let how = Inspect {
        depth: Depth::Chain,
        ..Inspect::default()
    };
    let inspector = || {
        let mut cursor = Cursor {
            index,
            end,
            terms: &terms,
            pairs: &pairs,
            block: None,
            stretch: None,
            postings: HashMap::new(),
        };
        move |frame: &Frame<'_>, header: &HeaderView<'_>| cursor.hold(frame, header)
    };
    journal::scan(
        &store.join(JOURNAL),
        how,
        inspector,
        |at, found| {
            let Found::Record { seq, item, .. } = found else {
                return ControlFlow::Continue(());
            };
            if seq > end {
                return ControlFlow::Break(());
            }
            report.events += u64::from(item.is_compared);
            let here = Position {
                segment: at.segment,
                offset: at.offset,
            };
            if item.place.is_some_and(|place| place != here) {
                report.find(seq, "it is at another place in the journal".to_owned());
            }
            for what in item.wrong {
                report.find(seq, what);
            }
            ControlFlow::Continue(())
        },
        |_| {},
    )?;
    report.terms = terms.into_inner();
    report.postings = pairs.into_inner();
    let mut stored = 0;
    let counted = index.postings(|_, stretch, positions| {
        let first = stretch * STRETCH_EVENTS + 1;
        let within = |position: &&u16| first + u64::from(**position) <= end.0;
        stored += positions.iter().filter(within).count() as u64;
    });
    if let Err(error) = counted {
        report.find(
            Seq(1),
            format!("its terms can't be read: {}", super::chain(&error)),
        );
    } else if stored > report.postings {
        let what = format!(
            "{} events are found by terms that they do not have",
            stored - report.postings
        );
        report.find(Seq(1), what);
    }
    Ok(report)
}

/// Goes through the records of one segment, and through the blocks that hold them.
struct Cursor<'a> {
    index: &'a Index,
    end: Seq,
    terms: &'a AtomicU64,
    pairs: &'a AtomicU64,
    /// The block at hand, and where its events are.
    block: Option<(u64, Vec<Place>)>,
    /// The stretch at hand, and its lists, as far as they were looked up.
    stretch: Option<u64>,
    postings: HashMap<Vec<u8>, Vec<u16>>,
}

impl Cursor<'_> {
    fn hold(&mut self, frame: &Frame<'_>, header: &HeaderView<'_>) -> Held {
        let seq = header.seq;
        let mut wrong = Vec::new();
        if seq > self.end || seq == Seq::NONE {
            return Held {
                wrong,
                place: None,
                is_compared: false,
            };
        }
        let number = (seq.0 - 1) / BLOCK_EVENTS;
        if self
            .block
            .as_ref()
            .is_none_or(|(at_hand, _)| *at_hand != number)
        {
            let places = self.index.places(number).unwrap_or_else(|error| {
                wrong.push(format!("its block can't be read: {}", super::chain(&error)));
                Vec::new()
            });
            self.block = Some((number, places));
        }
        let places = self.block.as_ref().map(|(_, places)| places.as_slice());
        let places = places.unwrap_or_default();
        let place = places.binary_search_by_key(&seq, |place| place.seq);
        let place = place.ok().and_then(|at| places.get(at)).copied();
        match place {
            None => wrong.push("it is missing there".to_owned()),
            Some(place) if place.is_of(seq, &frame.hash) && place.len as usize == frame.len() => {}
            Some(_) => wrong.push("it is not the event of the journal".to_owned()),
        }
        self.hold_terms(header, &mut wrong);
        Held {
            wrong,
            place: place.map(|place| place.at),
            is_compared: true,
        }
    }

    fn hold_terms(&mut self, header: &HeaderView<'_>, wrong: &mut Vec<String>) {
        let stretch = (header.seq.0 - 1) / STRETCH_EVENTS;
        if self.stretch != Some(stretch) {
            self.stretch = Some(stretch);
            self.postings.clear();
        }
        let position = ((header.seq.0 - 1) % STRETCH_EVENTS) as u16;
        let (mut looked_up, mut found) = (0, 0);
        view_terms(header, |term| {
            if !self.postings.contains_key(term) {
                looked_up += 1;
                let positions = self.index.positions(term, stretch);
                let positions = positions.unwrap_or_else(|error| {
                    wrong.push(super::chain(&error));
                    Vec::new()
                });
                self.postings.insert(term.to_vec(), positions);
            }
            let is_there = self
                .postings
                .get(term)
                .is_some_and(|positions| positions.binary_search(&position).is_ok());
            match is_there {
                true => found += 1,
                false => {
                    let term = String::from_utf8_lossy(term.get(1..).unwrap_or_default());
                    wrong.push(format!("it can't be found by {term:?}"));
                }
            }
        });
        self.terms.fetch_add(looked_up, Ordering::Relaxed);
        self.pairs.fetch_add(found, Ordering::Relaxed);
    }
}
