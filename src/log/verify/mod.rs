//! Checking the whole log: every frame, header, link and commitment of the journal, and the store against it.
//!
//! It changes nothing, needs no lock for the journal, and counts every check it made. Several threads read; what follows
//! what is judged in order, by one.

mod check;
mod finding;
mod index;

use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use tallybook_events::header::Common;
use tallybook_events::ids::Seq;
use tallybook_replay::state::{Head, State};

use super::{Error, JOURNAL, chain};
use crate::journal::{self, Damage, Depth, Found, Inspect, Progress, Tail};
use check::{Check, Seen};

pub use finding::{Class, Finding};
pub use index::{IndexReport, index};

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// The last segment, whole. What is before it is believed.
    Tail,
    /// Every frame and header, and the chain that they make; no payload.
    Chain,
    /// All.
    Full,
}

/// What is to be checked, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// How much.
    pub reach: Reach,
    /// Only up to this event.
    pub to: Option<Seq>,
    /// How many threads read.
    pub threads: usize,
}

impl Default for Scope {
    fn default() -> Self {
        Scope {
            reach: Reach::Full,
            to: None,
            threads: Inspect::default().threads,
        }
    }
}

/// How often each check was made. What could not be compared, because the other side is lost, erased or of a kind that
/// this program does not know, is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Checks {
    /// Heads of segments, against their check and what is before and behind them.
    pub segments: u64,
    /// Records read whole with the hash that follows them.
    pub records: u64,
    /// Records against the one before: its hash, its append and its write.
    pub chain: u64,
    /// Epochs against the one before and what may raise it.
    pub epochs: u64,
    /// Links to the previous event of the same subject.
    pub subjects: u64,
    /// Payloads against their commitment.
    pub commitments: u64,
    /// Payloads decoded, and encoded to the same bytes again.
    pub payloads: u64,
    /// Headers against what their kind fixes.
    pub kinds: u64,
    /// Claims against the event that made them.
    pub claims: u64,
    /// Events of operations against what their operation allows.
    pub operations: u64,
    /// Operations that say how many events they have.
    pub complete: u64,
    /// Erased payloads, and those that were to be, against what announced it.
    pub erasures: u64,
    /// Gaps against the recovery that wrote them.
    pub gaps: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How much was checked.
    pub reach: Reach,
    /// Where the journal ends, as far as it was read.
    pub head: Head,
    /// How often each check was made.
    pub checks: Checks,
    /// Bytes behind the last record, of one that was never acknowledged.
    pub torn_bytes: u64,
    /// Everything that is wrong, in order.
    pub findings: Vec<Finding>,
    /// Events of kinds that this program does not know.
    pub unknown: u64,
    /// Events whose payload was erased, as announced.
    pub erased: u64,
    /// Events that a recovery went on without, as it said.
    pub lost: u64,
    /// Events of operations that can't be judged, because such events are missing before them.
    pub unjudged: u64,
    /// Payloads that are being erased.
    pub unfinished: u64,
}

/// Reads the journal of a store from its first byte to its last, in every respect.
///
/// # Errors
/// When the files themselves can't be read.
pub fn journal(store: &Path) -> Result<(Report, State), Error> {
    journal_within(store, Scope::default(), |_| {})
}

/// Reads the journal of a store, as far as that is asked for. The state is whole only where all is checked.
///
/// # Errors
/// When the files themselves can't be read.
pub fn journal_within(
    store: &Path,
    scope: Scope,
    progress: impl FnMut(Progress),
) -> Result<(Report, State), Error> {
    let mut check = Check::new(scope.reach);
    let how = Inspect {
        depth: match scope.reach {
            Reach::Chain => Depth::Chain,
            Reach::Tail | Reach::Full => Depth::Payloads,
        },
        threads: scope.threads,
        only_last: scope.reach == Reach::Tail,
        past_unreadable: true,
    };
    let reach = scope.reach;
    let tail = journal::scan(
        &store.join(JOURNAL),
        how,
        || {
            let mut common = Common::default();
            move |frame: &_, header: &_| Seen::of(reach, frame, header, &mut common)
        },
        |at, found| {
            if let (Some(to), Found::Record { seq, .. }) = (scope.to, &found)
                && *seq > to
            {
                return ControlFlow::Break(());
            }
            let place = || format!("{} byte {}", at.path.display(), at.offset);
            match found {
                Found::Head => check.checks.segments += 1,
                Found::Record {
                    item,
                    follows,
                    wrong,
                    ..
                } => check.record(item, follows, wrong, &place),
                Found::Gap(gap) => check.gap(&gap, &place),
                Found::DamagedFile(damage) => check.file(&damage, &place()),
                Found::DamagedHead(damage) => check.head(&damage, &place()),
                Found::Lost(damage) => check.lost(&damage, &place()),
                Found::Unreadable { error, next } => {
                    check.unreadable(
                        &Damage::Unreadable(chain(&error)),
                        at.segment,
                        next,
                        &place(),
                    );
                }
            }
            ControlFlow::Continue(())
        },
        progress,
    )?;
    let torn_bytes = match tail {
        Tail::Whole => 0,
        Tail::Torn { bytes, .. } => bytes,
    };
    Ok(check.finish(torn_bytes))
}
