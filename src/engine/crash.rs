//! Named moments at which a test can have this process killed: the crash boundaries of an operation.
//!
//! `TALLYBOOK_CRASH_AT=effect:3` kills the process with SIGKILL when it passes the moment `effect` for the third
//! time. Without the variable a moment costs one comparison.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A crash boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The plan is durable; no step has started.
    Planned,
    /// Steps are durably started; no agent was told.
    Started,
    /// An agent says that a step's effect begins.
    Effect,
    /// An agent says that a step ended; its outcome is not recorded here.
    Ended,
    /// A step's outcome is durable.
    Recorded,
    /// A piece of a transfer was relayed.
    Relayed,
    /// An agent says that the effect of an undo begins.
    UndoEffect,
    /// An agent says that an undo ended; its outcome is not recorded here.
    UndoEnded,
}

impl Moment {
    const fn name(self) -> &'static str {
        match self {
            Moment::Planned => "planned",
            Moment::Started => "started",
            Moment::Effect => "effect",
            Moment::Ended => "ended",
            Moment::Recorded => "recorded",
            Moment::Relayed => "relayed",
            Moment::UndoEffect => "undo-effect",
            Moment::UndoEnded => "undo-ended",
        }
    }
}

struct Wanted {
    moment: String,
    count: u32,
}

fn wanted() -> Option<&'static Wanted> {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    WANTED
        .get_or_init(|| {
            let text = std::env::var("TALLYBOOK_CRASH_AT").ok()?;
            let (moment, count) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Wanted {
                moment: moment.to_owned(),
                count: count.parse().ok()?,
            })
        })
        .as_ref()
}

/// Passes a moment.
pub fn pass(moment: Moment) {
    static PASSED: Mutex<BTreeMap<Moment, u32>> = Mutex::new(BTreeMap::new());
    let Some(wanted) = wanted() else { return };
    if wanted.moment != moment.name() {
        return;
    }
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let count = passed.entry(moment).or_default();
    *count += 1;
    if *count == wanted.count {
        eprintln!("crash: SIGKILL at {}:{}", moment.name(), wanted.count);
        let _unreachable =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
