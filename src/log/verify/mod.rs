//! Checking the whole log: every frame, header, link and commitment of the journal, and the store against it.
//!
//! It changes nothing, needs no lock for the journal, and counts every check it made. Several threads read; what follows
//! what is judged in order, by one.

mod check;
mod finding;
mod index;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tallybook_events::header::Common;
use tallybook_events::ids::Seq;
use tallybook_replay::state::{Head, State};

use super::{Error, JOURNAL, KeptHead, chain};
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
    /// Only up to this event. What is behind it is read only where an event up to there was erased or is lost: what explains
    /// that comes later.
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

/// How long to wait before what was found is believed: another process may be writing.
const SETTLE: Duration = Duration::from_millis(100);
/// How often is looked in all, while the log grows.
const LOOKS_MAX: u32 = 4;

/// Reads the journal of a store beside whoever may be writing to it: again where what was found may come of that, or of
/// payloads that were erased between being read and being said to be. Gives the last look, and what the file `head` said
/// before it.
///
/// # Errors
/// When the files themselves can't be read.
pub fn settled(
    store: &Path,
    scope: Scope,
    mut progress: impl FnMut(Progress),
) -> Result<(KeptHead, Report), Error> {
    let mut looks = 1;
    loop {
        // Before the journal: that may grow meanwhile.
        let kept = KeptHead::of(store)?;
        let report = journal_within(store, scope, &mut progress)?.0;
        let is_clean = report.findings.is_empty() && report.torn_bytes == 0;
        if is_clean || looks == LOOKS_MAX {
            return Ok((kept, report));
        }
        let segments = journal::segments(&store.join(JOURNAL))?;
        let last = segments.last().copied().unwrap_or(Seq::NONE);
        let mut findings = report.findings.iter();
        let is_at_end = report.torn_bytes > 0 || findings.any(|finding| finding.seq >= last);
        let has_grown = KeptHead::of(store)? != kept;
        // What is wrong with a log that is at rest is wrong twice.
        let is_doubtful = has_grown || (is_at_end && looks == 1);
        if !is_doubtful {
            return Ok((kept, report));
        }
        looks += 1;
        std::thread::sleep(SETTLE);
    }
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
            let place = || format!("{} byte {}", at.path.display(), at.offset);
            if let Some(to) = scope.to.filter(|_| check.is_behind(scope.to, &found)) {
                return check.behind(to, found, &place);
            }
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
        Tail::Torn { bytes, .. } if !check.went_behind() => bytes,
        Tail::Whole | Tail::Torn { .. } => 0,
    };
    Ok(check.finish(torn_bytes))
}
