//! Carries out a batch: receipt, effect, receipt, step by step, and stops at the first that fails.
//!
//! Nothing is begun before the receipt that says so is on the disk, nothing is told before its receipt is, and
//! nothing that a receipt says ended is done again.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tallybook_events::ids::{Blob, OperationId, StepIndex};
use tallybook_events::step::{
    Action, FailureClass, Fence, Phase, Receipt, Seen, StepDone, StepFailure, StepKey,
};

use crate::admission;
use crate::keeper;
use crate::line::Line;
use crate::link::LineLink;
use crate::lock;
use crate::protocol::{Batch, Call, Reply, Shown};
use crate::receipts::{self, Journal};
use crate::serve::Site;
use crate::set_aside;
use crate::step::{Context, StepKind, fail, failure};

/// How long another agent that still carries out a step of the same operation is waited for without a word.
const WAITING_UNSAID: Duration = Duration::from_secs(1);
/// How often it is said from then on.
const WAITING_SAID: Duration = Duration::from_secs(10);
/// The most bytes that a step may report, below the limit of a receipt.
const DONE_LEN_MAX: usize = 6 * 1024 * 1024;

/// What earlier processes wrote of the starts of this operation's steps: the newest receipt of each.
type Known = BTreeMap<StepKey, Receipt>;

/// Carries out a batch and says how it went.
///
/// A failure here is the host's or the request's, not a step's: the step that was to be begun was not, or, where
/// the message says so, it ran and its outcome could not be kept.
pub(crate) fn run(
    site: &Site<'_>,
    line: &Line,
    shown: &Shown,
    batch: Batch,
) -> Result<(), StepFailure> {
    let Some(operation) = check(site, &batch)? else {
        line.say(&Reply::BatchEnded {
            unstarted: Vec::new(),
        });
        return Ok(());
    };
    // Its own first, then those whose steps it takes back: what a controller that died left running of them must end
    // before it is undone. An operation that is taken back takes nothing back, so nobody waits in a circle.
    let _busy = keeper::Busy::begin();
    let mut locks = Vec::new();
    for operation in std::iter::once(operation).chain(taken_back(&batch)) {
        locks.push(lock_operation(site, line, operation)?);
    }
    let undoes = |call: &Call| call.action != Action::Forward;
    let undoes = batch.calls.iter().all(undoes);
    // An undo makes room, so its fence is kept on a full disk too.
    let pass = match undoes {
        true => admission::pass_on_full_disk,
        false => admission::pass,
    };
    let mut standing = admission::standing(site.log, shown)?;
    if standing.epoch() != batch.fence.epoch {
        let message = "the batch is of another epoch than what is shown";
        return Err(fail(FailureClass::Unknown, message));
    }
    // Before the fence is passed: what is left out of the receipts later was over for who showed something newer, and then
    // the fence refuses this batch.
    let mut known = Known::new();
    let journal = Journal::open(site.layout, site.log, &mut |receipt| {
        if receipt.key.operation == operation {
            known.insert(receipt.key, receipt);
        }
    })
    .map_err(|error| receipt_failure("no step was begun", &error))?;
    pass(site, line, &mut standing)?;
    check_given_up(&batch, &known)?;
    check_once(site, &batch, &known)?;
    check_newest(&batch, &known)?;
    let mut runner = Runner {
        site,
        line,
        journal,
        fence: batch.fence,
        outputs: batch.outputs,
        running: locks.iter().map(lock::Held::running).collect(),
    };
    let mut left = batch.calls.as_slice();
    let mut unstarted = Vec::new();
    while let Some((call, rest)) = left.split_first() {
        if line.is_gone() {
            // Nobody hears what was not begun: it is asked for.
            return Ok(());
        }
        if line.is_stopped() {
            unstarted = runner.give_up(left, &known);
            left = &[];
            break;
        }
        if left.len() < batch.calls.len() {
            // Somebody else may have acted meanwhile.
            pass(site, line, &mut standing)?;
        }
        left = rest;
        if !runner.step(call, known.remove(&call.key))? {
            // The receipt of one that failed keeps what follows it from being begun, should this batch come again.
            break;
        }
    }
    unstarted.extend(left.iter().map(|call| call.key));
    line.say(&Reply::BatchEnded { unstarted });
    Ok(())
}

/// Waits until no other agent carries out a step of the operation, for as long as it takes, and says so meanwhile:
/// that a step still runs is no failure of anything.
pub(crate) fn lock_operation(
    site: &Site<'_>,
    line: &Line,
    operation: OperationId,
) -> Result<lock::Held, StepFailure> {
    let mut due = Instant::now() + WAITING_UNSAID;
    let lock = lock::operation(site.layout, operation, &mut || {
        if Instant::now() >= due {
            due = Instant::now() + WAITING_SAID;
            // What can't be read is told as such by whoever needs it.
            let begun = receipts::begun(site.layout, site.log, operation).unwrap_or_default();
            line.mention(&Reply::Waiting(begun));
        }
        line.is_gone() || line.is_stopped()
    });
    lock.map_err(|error| lock_failure(&error))
}

/// Looks at the effect of each step, and changes nothing.
pub(crate) fn probe(site: &Site<'_>, line: &Line, batch: &Batch) -> Result<(), StepFailure> {
    check(site, batch)?;
    for call in &batch.calls {
        if line.is_gone() || line.is_stopped() {
            break;
        }
        let row = row(site, call)?;
        let mut link = LineLink::new(line, &site.secrets, Some(call.key));
        let mut context = context(site, call, &batch.outputs, &mut link);
        let seen = caught(|| (row.probe)(&call.params, &mut context));
        link.end();
        let seen = seen.unwrap_or_else(|failure| Seen::Unknown {
            why: failure.message,
        });
        let seen = cleaned(site, seen);
        line.say(&Reply::Probed {
            key: call.key,
            seen,
        });
    }
    Ok(())
}

/// Describes what is in the place of each step, and changes nothing.
pub(crate) fn adopt(site: &Site<'_>, line: &Line, batch: &Batch) -> Result<(), StepFailure> {
    check(site, batch)?;
    for call in &batch.calls {
        let row = row(site, call)?;
        let mut link = LineLink::new(line, &site.secrets, Some(call.key));
        let mut context = context(site, call, &batch.outputs, &mut link);
        let adopted = caught(|| match call.action {
            Action::Forward => (row.adopt)(&call.params, &mut context),
            Action::Undo { .. } => Err(fail(FailureClass::Unknown, "an undo takes over nothing")),
        });
        link.end();
        let key = call.key;
        line.say(&match adopted {
            Ok(done) => Reply::Adopted { key, done },
            Err(failure) => Reply::NotAdopted {
                key,
                failure: site.cleaned(failure),
            },
        });
    }
    Ok(())
}

/// The operation that all calls are of; `None` without calls. Refuses before anything is done.
fn check(site: &Site<'_>, batch: &Batch) -> Result<Option<OperationId>, StepFailure> {
    let refused = |message: String| Err(fail(FailureClass::Unknown, message));
    if batch.fence.log != site.log {
        return refused(format!(
            "the fence is of log {}, the conversation of log {}",
            batch.fence.log, site.log
        ));
    }
    let Some(first) = batch.calls.first() else {
        return Ok(None);
    };
    for call in &batch.calls {
        if call.key.log != site.log || call.key.operation != first.key.operation {
            return refused(format!(
                "step {} is of another log or operation than the rest of its batch",
                call.key.step
            ));
        }
        row(site, call)?;
    }
    Ok(Some(first.key.operation))
}

/// A step that can be started only once and that was started, without an end, is not started again under the
/// same key: nothing could tell whether it happened.
fn check_once(site: &Site<'_>, batch: &Batch, known: &Known) -> Result<(), StepFailure> {
    for call in &batch.calls {
        let in_doubt = known
            .get(&call.key)
            .is_some_and(|receipt| receipt.phase == Phase::Started);
        if in_doubt && row(site, call)?.once {
            return Err(StepFailure {
                hint: Some("look on the host whether it happened, then decide".to_owned()),
                ..fail(
                    FailureClass::Other,
                    format!(
                        "step {} ({}) was started before and can be started only once",
                        call.key.step, call.kind
                    ),
                )
            });
        }
    }
    Ok(())
}

/// A start that comes late, after a controller was told that it was never begun, is not begun.
fn check_given_up(batch: &Batch, known: &Known) -> Result<(), StepFailure> {
    for call in &batch.calls {
        let receipt = known.get(&call.key);
        if receipt.is_some_and(|receipt| receipt.phase == Phase::GivenUp) {
            let message = format!(
                "start {} of step {} comes after it was given up",
                call.key.attempt, call.key.step
            );
            return Err(fail(FailureClass::Other, message));
        }
    }
    Ok(())
}

/// A start that comes late, after a newer start of the same step was begun, is not begun: the controller gave it up.
fn check_newest(batch: &Batch, known: &Known) -> Result<(), StepFailure> {
    for call in &batch.calls {
        let newer = known
            .keys()
            .find(|key| key.step == call.key.step && key.attempt > call.key.attempt);
        if let Some(newer) = newer {
            let message = format!(
                "start {} of step {} comes after its start {}",
                call.key.attempt, call.key.step, newer.attempt
            );
            return Err(fail(FailureClass::Other, message));
        }
    }
    Ok(())
}

/// The operations whose steps a batch takes back.
fn taken_back(batch: &Batch) -> BTreeSet<OperationId> {
    let of = |call: &Call| match call.action {
        Action::Forward => None,
        Action::Undo { operation, .. } => (operation != call.key.operation).then_some(operation),
    };
    batch.calls.iter().filter_map(of).collect()
}

fn row(site: &Site<'_>, call: &Call) -> Result<&'static StepKind, StepFailure> {
    site.deeds
        .table
        .iter()
        .find(|row| row.kind == call.kind)
        .ok_or_else(|| {
            fail(
                FailureClass::Unknown,
                format!("this agent knows no step of kind {:?}", call.kind),
            )
        })
}

struct Runner<'a> {
    site: &'a Site<'a>,
    line: &'a Line,
    journal: Journal,
    fence: Fence,
    outputs: BTreeMap<StepIndex, Blob>,
    /// What a lasting program holds until it ends.
    running: Vec<PathBuf>,
}

impl Runner<'_> {
    /// Carries out one step, or answers with what its receipt says. Whether the batch goes on.
    fn step(&mut self, call: &Call, known: Option<Receipt>) -> Result<bool, StepFailure> {
        let ended = known.filter(|receipt| receipt.phase != Phase::Started);
        let receipt = match ended {
            Some(receipt) => receipt,
            None => self.act(call)?,
        };
        let goes_on = match &receipt.phase {
            Phase::Succeeded(done) => {
                self.outputs.insert(call.key.step, done.output.clone());
                true
            }
            Phase::Started | Phase::Failed(_) | Phase::GivenUp => false,
        };
        self.line.say(&Reply::Finished(receipt));
        Ok(goes_on)
    }

    /// Sees to it that those of these steps that were not begun never are, should this batch come again. Those of which
    /// that can't be kept are left out of the answer: whoever wants to know of them asks for the receipts.
    fn give_up(&mut self, calls: &[Call], known: &Known) -> Vec<StepKey> {
        let unbegun = calls.iter().filter(|call| !known.contains_key(&call.key));
        let kept = unbegun.map_while(|call| {
            let receipt = self.receipt(call, Phase::GivenUp);
            let kept = self.journal.append_from_reserve(&receipt);
            kept.is_ok().then_some(call.key)
        });
        kept.collect()
    }

    fn act(&mut self, call: &Call) -> Result<Receipt, StepFailure> {
        let row = row(self.site, call)?;
        let not_begun = format!("step {} was not begun", call.key.step);
        let started = self.receipt(call, Phase::Started);
        let begun = match &call.action {
            Action::Forward => self
                .journal
                .reserve()
                .and_then(|()| self.journal.append(&started)),
            Action::Undo { .. } => self.journal.append_from_reserve(&started),
        };
        begun.map_err(|error| receipt_failure(&not_begun, &error))?;
        // Crash boundary: from here on the journal says that it was started.
        self.line.open_peer();
        self.line.say(&Reply::Started(call.key));
        let phase = match self.carry_out(row, call) {
            Ok(done) => Phase::Succeeded(done),
            Err(failure) => Phase::Failed(self.site.cleaned(failure)),
        };
        let receipt = self.receipt(call, phase);
        let unkept = format!("step {} ran, but its outcome can't be kept", call.key.step);
        self.journal
            .append_from_reserve(&receipt)
            .map_err(|error| receipt_failure(&unkept, &error))?;
        // Crash boundary: from here on it is never carried out again under this key.
        Ok(receipt)
    }

    fn carry_out(&self, row: &StepKind, call: &Call) -> Result<StepDone, StepFailure> {
        let link = LineLink::new(self.line, &self.site.secrets, Some(call.key));
        let mut link = link.outlived_by(self.running.clone());
        let mut context = context(self.site, call, &self.outputs, &mut link);
        let mut moved = Vec::new();
        let result = caught(|| match &call.action {
            Action::Forward => {
                if call.set_aside {
                    let paths = (row.in_the_way)(&call.params, &mut context)?;
                    moved = set_aside::clear(&mut context, &paths)?;
                }
                (row.forward)(&call.params, &mut context)
            }
            Action::Undo { output, .. } => {
                let done = (row.undo)(&call.params, &mut context, output.as_ref())?;
                moved = set_aside::put_back(&mut context)?;
                Ok(done)
            }
        });
        link.end();
        let has_moved = !moved.is_empty();
        let mut captured = crate::step::Link::take_captured(&mut link);
        captured.extend(moved);
        let mut done = result.map_err(|mut failure| {
            failure.captured.append(&mut captured);
            failure
        })?;
        done.changed |= has_moved;
        done.captured.extend(captured);
        let len = done.output.0.len()
            + done
                .captured
                .iter()
                .map(|it| it.text.0.len())
                .sum::<usize>();
        if len > DONE_LEN_MAX {
            let message = format!("the step reported {len} bytes, more than can be kept");
            return Err(fail(FailureClass::Other, message));
        }
        Ok(done)
    }

    fn receipt(&self, call: &Call, phase: Phase) -> Receipt {
        Receipt {
            key: call.key,
            fence: self.fence,
            kind: call.kind.clone(),
            boot: self.site.boot,
            time_unix_us: crate::serve::now_unix_us(),
            phase,
        }
    }
}

fn context<'a>(
    site: &'a Site<'_>,
    call: &Call,
    outputs: &'a BTreeMap<StepIndex, Blob>,
    link: &'a mut LineLink<'_>,
) -> Context<'a> {
    Context {
        host: site.host,
        layout: site.layout,
        key: call.key,
        origin: match &call.action {
            Action::Forward => (call.key.operation, call.key.step),
            Action::Undo {
                operation, step, ..
            } => (*operation, *step),
        },
        outputs,
        link,
    }
}

/// A panic in a step is a bug of that step, and its failure: what it changed so far is told by its probe.
fn caught<T>(act: impl FnOnce() -> Result<T, StepFailure>) -> Result<T, StepFailure> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic_message(panic.as_ref());
        let message = format!("the step panicked, which is a bug: {said}");
        Err(fail(FailureClass::Other, message))
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// What was seen, as it may be told: without secrets.
fn cleaned(site: &Site<'_>, seen: Seen) -> Seen {
    let clean = |text: String| site.secrets.mask().clean_text(&text);
    match seen {
        Seen::Done(done) => Seen::Done(done),
        Seen::Absent => Seen::Absent,
        Seen::Partial { what } => Seen::Partial { what: clean(what) },
        Seen::Conflict { what } => Seen::Conflict { what: clean(what) },
        Seen::Unknown { why } => Seen::Unknown { why: clean(why) },
    }
}

/// Why a lock was not had.
pub(crate) fn lock_failure(error: &lock::Error) -> StepFailure {
    let (class, hint) = match error {
        lock::Error::Held { .. } => (
            FailureClass::Timeout,
            Some("another agent on the host has it; try again later".to_owned()),
        ),
        lock::Error::GivenUp { .. } => (FailureClass::Interrupted, None),
        lock::Error::Directory(_) | lock::Error::File { .. } => (io_class(error), None),
    };
    StepFailure {
        hint,
        ..failure(class, error)
    }
}

fn receipt_failure(what: &str, error: &receipts::Error) -> StepFailure {
    let cause = failure(io_class(error), error);
    let hint = match error {
        receipts::Error::Reserve { path, .. } => Some(format!(
            "free {} MiB on the file system of {}; undoing needs no room",
            receipts::RESERVE_LEN >> 20,
            path.display()
        )),
        receipts::Error::Unsynced { path, .. } | receipts::Error::Stopped(path) => Some(format!(
            "look at the disk that has {}, then resume the operation",
            path.display()
        )),
        receipts::Error::Durable(_)
        | receipts::Error::File { .. }
        | receipts::Error::Codec(_)
        | receipts::Error::TooLong(_) => None,
    };
    StepFailure {
        message: format!("{what}: {}", cause.message),
        hint,
        ..cause
    }
}

/// The class of the file system's error at the end of a chain.
pub(crate) fn io_class(error: &(dyn std::error::Error + 'static)) -> FailureClass {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return crate::step::io_failure("", std::path::Path::new(""), io).class;
        }
        at = error.source();
    }
    FailureClass::Other
}
