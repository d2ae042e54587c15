//! Goes through a trace, lets power fail at every point of it, and asks the real recovery what is left.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::calls::{self, Traced};
use crate::disk::{Disk, State};
use crate::ops::{self, Op, What};

/// What is held against a loss of power: the real code, a recovery of it, and what must be true then.
pub(crate) trait Subject {
    /// What a recovery shows.
    type Shown: Clone + std::fmt::Debug;
    /// How many crash states are made at one point.
    const STATES_MAX: usize;

    /// The test that drives it, as the test runner names it.
    fn driver(&self) -> &'static str;

    /// Recovers what is in a directory, goes on with it, and recovers it again.
    ///
    /// # Errors
    /// When anything but a loss of power is found.
    fn recover(&self, root: &Path) -> Result<Self::Shown, String>;

    /// Whether that is what a loss of power may leave, after the driver said so much.
    ///
    /// # Errors
    /// When it is not: why.
    fn judge(&self, shown: &Self::Shown, said: &Said) -> Result<(), String>;
}

/// What a driver had said: the newest number behind each word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said(BTreeMap<String, u64>);

impl Said {
    /// The number behind a word; 0 while it was not said.
    pub(crate) fn of(&self, word: &str) -> u64 {
        self.0.get(word).copied().unwrap_or(0)
    }

    /// Whether it was said.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.0.contains_key(word)
    }

    fn hear(&mut self, line: &str) {
        if let Some((word, number)) = word(line) {
            self.0.insert(word.to_owned(), number);
        }
    }
}

/// A line of a driver's, and not one of the test runner's.
fn word(line: &str) -> Option<(&str, u64)> {
    let (word, number) = line.split_once(' ')?;
    Some((word, number.parse().ok()?))
}

/// A crash state after which something is not as it must be.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) call: String,
    pub(crate) left: String,
    pub(crate) what: String,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) points: usize,
    pub(crate) states: usize,
}

/// Runs recoveries, each state once.
pub(crate) struct Judge<S: Subject> {
    pub(crate) subject: S,
    known: BTreeMap<[u8; 32], Result<S::Shown, String>>,
    temp: PathBuf,
    pub(crate) recoveries: usize,
}

impl<S: Subject> Judge<S> {
    pub(crate) fn new(subject: S) -> Self {
        Judge {
            subject,
            known: BTreeMap::new(),
            temp: memory(),
            recoveries: 0,
        }
    }

    /// The driver's trace and what it did beneath its directory.
    pub(crate) fn drive(&self, inject: Option<&str>) -> (Traced, Vec<Op>) {
        let root = tempfile::tempdir_in(&self.temp).unwrap();
        let traced = calls::trace(self.subject.driver(), root.path(), inject);
        let ops = ops::ops(&traced.calls, root.path());
        (traced, ops)
    }

    /// Lets power fail after each operation but the one left out, as if that had not been called; up to so many
    /// violations.
    pub(crate) fn hold(
        &mut self,
        ops: &[Op],
        without: Option<usize>,
        violations_max: usize,
    ) -> (Vec<Violation>, Count) {
        let (mut disk, mut said) = (Disk::new(), Said::default());
        let (mut violations, mut count) = (Vec::new(), Count::default());
        for (point, op) in ops.iter().enumerate() {
            if Some(point) == without {
                continue;
            }
            disk.play(op);
            if let What::Said(line) = &op.what {
                said.hear(line);
            }
            // Before the sync that is left out, all is as it was; a name comes with the inode before it.
            if without.is_some_and(|without| point < without) || matches!(op.what, What::Made(_)) {
                continue;
            }
            count.points += 1;
            for state in disk.states(S::STATES_MAX) {
                count.states += 1;
                let held = self.shown(&state);
                let held = held.and_then(|shown| self.subject.judge(&shown, &said));
                if let Err(what) = held {
                    violations.push(Violation {
                        call: op.call.clone(),
                        left: state.left,
                        what,
                    });
                    if violations.len() >= violations_max {
                        return (violations, count);
                    }
                }
            }
        }
        (violations, count)
    }

    /// Lets each call fail, one at a time, and power behind each call that follows; `told` looks at what the driver
    /// said of it. How many there were of each call.
    pub(crate) fn fail_each(
        &mut self,
        own: &[&str],
        told: impl Fn(&Failure, &Traced),
    ) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        let (_, ops) = self.drive(None);
        for failure in failures(&ops, own) {
            let inject = &failure.inject;
            let (traced, ops) = self.drive(Some(inject));
            assert!(traced.succeeded, "{inject}: {}", traced.printed);
            let is_injected = traced.calls.iter().any(|call| call.injected);
            assert!(is_injected, "{inject}: it was not called");
            told(&failure, &traced);
            let (violations, _) = self.hold(&ops, None, 3);
            assert!(
                violations.is_empty(),
                "{inject}: {violations:#?}\n{}",
                traced.printed
            );
            let name = inject.split(':').next().unwrap_or_default();
            *count.entry(name.to_owned()).or_default() += 1;
        }
        println!("failed, each: {count:?}; {} recoveries", self.recoveries);
        count
    }

    fn shown(&mut self, state: &State) -> Result<S::Shown, String> {
        if let Some(known) = self.known.get(state.identity.as_bytes()) {
            return known.clone();
        }
        self.recoveries += 1;
        let root = tempfile::tempdir_in(&self.temp).unwrap();
        state.make(root.path());
        let recover = || self.subject.recover(root.path());
        let shown = catch_unwind(AssertUnwindSafe(recover))
            .unwrap_or_else(|_| Err("the recovery panicked".to_owned()));
        self.known.insert(*state.identity.as_bytes(), shown.clone());
        shown
    }

    /// Leaves out one sync after the other; those without which nothing is violated, and the first violation that
    /// each of the others prevents.
    pub(crate) fn syncs(&mut self, ops: &[Op]) -> Syncs {
        let mut syncs = Syncs::default();
        let mut disk = Disk::new();
        let mut doing = String::new();
        for (at, op) in ops.iter().enumerate() {
            let is_needed = disk.is_needed(op);
            disk.play(op);
            if let What::Said(line) = &op.what {
                doing = line.split(' ').next().unwrap_or_default().to_owned();
            }
            let (name, path) = op.call.split_once(' ').unwrap_or((&op.call, ""));
            let path = path.rsplit('/').next().unwrap_or_default();
            let call = format!("{name} {path} after {doing:?}");
            if !matches!(op.what, What::Synced { .. } | What::Dropped(_)) {
                continue;
            }
            if !is_needed {
                syncs.idle.push(call);
                continue;
            }
            match self.hold(ops, Some(at), 1).0.pop() {
                Some(violation) => syncs.red.push((call, violation)),
                None => syncs.redundant.push(call),
            }
        }
        syncs
    }
}

/// The syncs of a trace, each with the name of what it was of and what the driver had said last.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    /// Nothing waited for these.
    pub(crate) idle: Vec<String>,
    /// Without each of these, what must not be lost may be.
    pub(crate) red: Vec<(String, Violation)>,
    /// Something waited for these, and nothing is lost without them.
    pub(crate) redundant: Vec<String>,
}

impl Syncs {
    /// For people who look at what a test saw.
    pub(crate) fn print(&self) {
        for (call, violation) in &self.red {
            let Violation {
                call: at,
                left,
                what,
            } = violation;
            println!("without {call}: {what}, when power fails after {at} and leaves {left}");
        }
        println!("nothing waited for: {:#?}", self.idle);
        println!("nothing is lost without: {:#?}", self.redundant);
    }
}

/// At each word of the driver's that says that something is durable, nothing beneath the directory waits for a sync;
/// the lines where something did, otherwise.
pub(crate) fn unsynced_at(ops: &[Op], word: &str) -> Vec<String> {
    let mut unsynced = Vec::new();
    let mut disk = Disk::new();
    for op in ops {
        disk.play(op);
        if let What::Said(line) = &op.what
            && line.starts_with(word)
            && !disk.is_settled()
        {
            unsynced.push(line.clone());
        }
    }
    unsynced
}

/// The calls that made each line true that begins with a word: those since the line before it, each once in a row.
pub(crate) fn calls_before(ops: &[Op], word: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut calls: Vec<String> = Vec::new();
    for op in ops {
        match &op.what {
            What::Said(line) => {
                let calls = std::mem::take(&mut calls);
                if line.starts_with(word) {
                    found.push((line.clone(), calls));
                }
            }
            What::Made(_) => {}
            What::Changed(..) | What::Synced { .. } | What::Dropped(_) => {
                if calls.last() != Some(&op.call) {
                    calls.push(op.call.clone());
                }
            }
        }
    }
    found
}

/// A call that is to fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// As strace takes it.
    pub(crate) inject: String,
    /// What the driver had said last.
    pub(crate) doing: String,
}

/// Each call that changes or syncs something, one at a time. `own` are words of the driver behind which it does by
/// itself what the code under test does not.
pub(crate) fn failures(ops: &[Op], own: &[&str]) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut doing = String::new();
    // What a thread beside the driver's does is in another order each time.
    let said = |op: &&Op| matches!(&op.what, What::Said(line) if word(line).is_some());
    let thread = ops.iter().find(said).map(|op| &op.thread);
    for op in ops.iter().filter(|op| Some(&op.thread) == thread) {
        match &op.what {
            What::Said(line) => word(line).map_or("", |said| said.0).clone_into(&mut doing),
            What::Changed(..) | What::Synced { .. } if !own.contains(&doing.as_str()) => {
                let errors: &[&str] = match op.name.contains("write") {
                    true => &["ENOSPC", "EIO"],
                    false => &["EIO"],
                };
                failures.extend(errors.iter().map(|error| Failure {
                    inject: format!("{}:error={error}:when={}", op.name, op.number),
                    doing: doing.clone(),
                }));
            }
            What::Changed(..) | What::Synced { .. } | What::Made(_) | What::Dropped(_) => {}
        }
    }
    failures.dedup();
    failures
}

/// A directory in memory: crash states are many, and none must outlive anything.
fn memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    match shm.is_dir() {
        true => shm.to_owned(),
        false => std::env::temp_dir(),
    }
}
