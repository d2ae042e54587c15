//! What a step is: parameters with a probe, a forward and an undo, and the row it has in the table of all steps.
//!
//! `probe` changes nothing. `forward` and `undo` are safe to repeat, whole or after being cut at any point.
//! A step never deletes what it can't show to be its own.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::fact::Fact;
use tallybook_events::ids::{Blob, OperationId, StepIndex};
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::step::{
    Captured, FailureClass, Reversal, Seen, StepDone, StepFailure, StepKey,
};

use crate::layout::Layout;
use crate::secret::SecretName;

/// One kind of step.
pub trait Step: Serialize + DeserializeOwned {
    /// Its name, for ever: `noun.verb`.
    const KIND: &'static str;
    /// Whether it can be started only once, because nothing could tell afterwards whether it happened.
    const ONCE: bool = false;
    /// What undo and later steps need to know of it.
    type Output: Serialize + DeserializeOwned;

    /// One line for people: what it will do.
    fn summary(&self) -> String;

    /// What a rollback can do about it.
    fn reversal(&self) -> Reversal {
        Reversal::Undo
    }

    /// The secrets that `forward` needs.
    fn secrets(&self) -> Vec<SecretName> {
        Vec::new()
    }

    /// Looks whether the effect of `forward` is there.
    ///
    /// # Errors
    /// When looking failed.
    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure>;

    /// Makes it so.
    ///
    /// # Errors
    /// When it can't be done; what was begun is then ours to take back or to complete later.
    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Self::Output>, StepFailure>;

    /// What is in the step's place that it did not make, and that can be moved away: the step acts once it is beside.
    /// Nothing where nothing of that sort is in the way.
    ///
    /// # Errors
    /// When looking failed, or what is in the way must not be moved.
    fn in_the_way(&self, _context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let message = format!("a step of kind {} sets nothing aside", Self::KIND);
        Err(fail(FailureClass::Exists, message))
    }

    /// Describes what somebody else made in the step's place as what the step would have reported. Asked only where `probe`
    /// does not see the whole effect; changes nothing.
    ///
    /// # Errors
    /// When looking failed, or the step has no words for what is there: later steps could not rely on it.
    fn adopt(&self, _context: &mut Context<'_>) -> Result<Done<Self::Output>, StepFailure> {
        let message = format!("a step of kind {} takes over nothing of others", Self::KIND);
        Err(fail(FailureClass::Exists, message))
    }

    /// Takes back what `forward` did. `output` is `None` where the outcome was never known.
    ///
    /// # Errors
    /// When it can't be taken back.
    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Self::Output>,
    ) -> Result<Done<()>, StepFailure>;
}

/// How a step ended well, before its output is encoded.
#[derive(Debug)]
pub struct Done<T> {
    /// Whether anything is different now.
    pub changed: bool,
    /// For undo and later steps.
    pub output: T,
    /// What became true.
    pub facts: Vec<Fact>,
}

impl<T: Serialize> Done<T> {
    /// As it is recorded, with what the programs that ran printed.
    ///
    /// # Errors
    /// When the output has no encoding.
    pub fn record(self, captured: Vec<Captured>) -> Result<StepDone, StepFailure> {
        Ok(StepDone {
            changed: self.changed,
            output: Blob(
                codec::encode(&self.output).map_err(|e| failure(FailureClass::Unknown, &e))?,
            ),
            facts: self.facts,
            captured,
        })
    }

    /// As a probe reports it: the effect is whole.
    ///
    /// # Errors
    /// When the output has no encoding.
    pub fn seen(self) -> Result<Seen, StepFailure> {
        self.record(Vec::new()).map(Seen::Done)
    }
}

/// A reference to what an earlier step of the same operation reported.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutputOf<T> {
    step: StepIndex,
    #[serde(skip)]
    of: PhantomData<fn() -> T>,
}

impl<T> OutputOf<T> {
    /// The output of that step.
    pub const fn step(step: StepIndex) -> Self {
        OutputOf {
            step,
            of: PhantomData,
        }
    }
}

/// A program to run: an argument vector, never a shell line.
#[derive(Debug, Clone)]
pub struct Program {
    /// The argument vector; the first is looked up in a fixed `PATH`.
    pub argv: Vec<String>,
    /// What it reads.
    pub stdin: Vec<u8>,
    /// Added to a clean environment (`PATH`, `LC_ALL=C.UTF-8`, `HOME=/root`).
    pub env: BTreeMap<String, String>,
    /// Secrets that it finds in its environment, by name only: who runs it has the values.
    pub secrets: BTreeSet<SecretName>,
    /// After this long it is asked to stop, then killed.
    pub timeout: Duration,
    /// Looks at each line it prints; what it answers is told as progress.
    pub watch: Option<fn(&str) -> Option<String>>,
    /// Whether the operation's lock stays held until it ends, even where the agent dies before: for what may run long,
    /// and must not run twice at once.
    pub lasting: bool,
}

impl Program {
    /// A program with arguments, no input and five minutes.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Program {
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: Vec::new(),
            env: BTreeMap::new(),
            secrets: BTreeSet::new(),
            timeout: Duration::from_secs(300),
            watch: None,
            lasting: false,
        }
    }

    /// With this input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With this secret, in the variable of its name.
    #[must_use]
    pub fn secret(mut self, name: &SecretName) -> Self {
        self.secrets.insert(name.clone());
        self
    }

    /// With its lines told as progress, as far as `watch` answers something for them.
    #[must_use]
    pub fn watch(mut self, watch: fn(&str) -> Option<String>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// As one that must not run twice at once, see [`Program::lasting`].
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// With this much time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit status; `None` when a signal ended it.
    pub exit: Option<i32>,
    /// Standard output, bounded.
    pub stdout: Vec<u8>,
    /// Standard error, bounded, without declared secrets: it is for people.
    pub stderr: Vec<u8>,
}

/// A container that must not stay frozen when the agent is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenWatch {
    /// LXC's path.
    pub lxc: PathBuf,
    /// The container.
    pub container: ContainerName,
    /// The file that says who froze it.
    pub mark: PathBuf,
    /// What that file holds while the freeze is ours.
    pub text: String,
}

/// What a step can do besides the file system: run programs, tell how far it is, talk to the other end of a
/// transfer, and be asked to stop. The agent implements it; tests have their own.
pub trait Link {
    /// Runs a program to its end; its output is captured, bounded.
    ///
    /// # Errors
    /// When it can't be started or takes too long. A non-zero exit status is not an error here.
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure>;

    /// Tells how far the step is: `what` for people, `done` of `total` (0 when unknown).
    fn progress(&mut self, what: &str, done: u64, total: u64);

    /// Whether the step was asked to stop, or the line to the controller is gone for a transfer.
    fn stop_requested(&mut self) -> bool;

    /// Sends bytes to the other end of the transfer.
    ///
    /// # Errors
    /// When the line is gone ([`FailureClass::Peer`]).
    fn send_peer(&mut self, bytes: Vec<u8>) -> Result<(), StepFailure>;

    /// Waits for bytes from the other end.
    ///
    /// # Errors
    /// When the line or the other end is gone ([`FailureClass::Peer`]), or nothing came for too long.
    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure>;

    /// Has another process watch a container: should this one be gone while the mark is there, it lets the container
    /// go on. It watches when this returns, and until what is returned is dropped.
    ///
    /// # Errors
    /// When nothing can watch.
    fn watch_frozen(&mut self, watch: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure>;

    /// What was captured since this was last asked for.
    fn take_captured(&mut self) -> Vec<Captured>;
}

/// What a step is given.
pub struct Context<'a> {
    /// What the controller calls this host.
    pub host: &'a HostName,
    /// Where things are.
    pub layout: &'a Layout,
    /// Which start of which step this is.
    pub key: StepKey,
    /// The operation and step whose *forward* this is about: for an undo, not the ones of `key`. What the step
    /// makes is marked with these, and staged under these.
    pub origin: (OperationId, StepIndex),
    /// What earlier steps of the operation reported.
    pub outputs: &'a BTreeMap<StepIndex, Blob>,
    /// Programs, progress, the other end.
    pub link: &'a mut dyn Link,
}

impl Context<'_> {
    /// What an earlier step reported.
    ///
    /// # Errors
    /// When it reported nothing yet, or something else.
    pub fn output<T: DeserializeOwned>(&self, of: &OutputOf<T>) -> Result<T, StepFailure> {
        let bytes = self.outputs.get(&of.step).ok_or_else(|| StepFailure {
            class: FailureClass::Unknown,
            message: format!("step {} has reported nothing yet", of.step),
            hint: None,
            captured: Vec::new(),
        })?;
        codec::decode(&bytes.0).map_err(|e| failure(FailureClass::Unknown, &e))
    }

    /// Runs a program; a non-zero exit status is a failure that quotes the end of what it printed.
    ///
    /// # Errors
    /// When it can't be started, takes too long, or ends with another status than 0.
    pub fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        let ended = self.link.run(program)?;
        if ended.exit == Some(0) {
            return Ok(ended);
        }
        let text = String::from_utf8_lossy(&ended.stderr);
        let tail: Vec<&str> = text.trim_end().lines().rev().take(3).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let status = ended
            .exit
            .map_or_else(|| "a signal".to_owned(), |code| format!("status {code}"));
        Err(StepFailure {
            class: FailureClass::Command,
            message: format!(
                "{} ended with {status}: {}",
                tallybook_events::argv::text(&program.argv),
                tail.join(" | ")
            ),
            hint: None,
            captured: Vec::new(),
        })
    }

    /// This step's staging directory.
    pub fn staging(&self) -> PathBuf {
        self.layout.staging(self.origin.0, self.origin.1)
    }
}

/// A failure of a class, with an error's chain of causes as its message.
pub fn failure(class: FailureClass, error: &dyn std::error::Error) -> StepFailure {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    StepFailure {
        class,
        message,
        hint: None,
        captured: Vec::new(),
    }
}

/// A failure of a class, with a message.
pub fn fail(class: FailureClass, message: impl Into<String>) -> StepFailure {
    StepFailure {
        class,
        message: message.into(),
        hint: None,
        captured: Vec::new(),
    }
}

/// A failure of the file system: what was being done, to which path. "No space left" has a class of its own.
pub fn io_failure(doing: &str, path: &Path, error: &std::io::Error) -> StepFailure {
    use std::io::ErrorKind;
    let class = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => FailureClass::DiskFull,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FailureClass::Permission,
        ErrorKind::NotFound => FailureClass::Missing,
        ErrorKind::AlreadyExists => FailureClass::Exists,
        _ => FailureClass::Other,
    };
    StepFailure {
        class,
        message: format!("{doing} {}: {error}", path.display()),
        hint: matches!(class, FailureClass::DiskFull)
            .then(|| format!("free space on the file system of {}", path.display())),
        captured: Vec::new(),
    }
}

type InTheWayFn = fn(&Blob, &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure>;
type ProbeFn = fn(&Blob, &mut Context<'_>) -> Result<Seen, StepFailure>;
type ForwardFn = fn(&Blob, &mut Context<'_>) -> Result<StepDone, StepFailure>;
type ReversalFn = fn(&Blob) -> Result<Reversal, StepFailure>;
type SecretsFn = fn(&Blob) -> Result<Vec<SecretName>, StepFailure>;
type UndoFn = fn(&Blob, &mut Context<'_>, Option<&Blob>) -> Result<StepDone, StepFailure>;

/// A row of the table of all steps: a kind with its functions over encoded parameters.
pub struct StepKind {
    /// Its name.
    pub kind: &'static str,
    /// Whether it can be started only once.
    pub once: bool,
    /// See [`Step::summary`].
    pub summary: fn(&Blob) -> Result<String, StepFailure>,
    /// See [`Step::secrets`].
    pub secrets: SecretsFn,
    /// See [`Step::reversal`].
    pub reversal: ReversalFn,
    /// See [`Step::probe`].
    pub probe: ProbeFn,
    /// See [`Step::forward`].
    pub forward: ForwardFn,
    /// See [`Step::in_the_way`].
    pub in_the_way: InTheWayFn,
    /// What is there as the step's own, whoever made it: what `probe` sees whole, else [`Step::adopt`].
    pub adopt: ForwardFn,
    /// See [`Step::undo`].
    pub undo: UndoFn,
}

impl StepKind {
    /// The row of a step.
    pub const fn of<S: Step>() -> Self {
        StepKind {
            kind: S::KIND,
            once: S::ONCE,
            summary: |params| Ok(decode::<S>(params)?.summary()),
            secrets: |params| Ok(decode::<S>(params)?.secrets()),
            reversal: |params| Ok(decode::<S>(params)?.reversal()),
            probe: |params, context| decode::<S>(params)?.probe(context),
            forward: |params, context| {
                let done = decode::<S>(params)?.forward(context)?;
                let captured = context.link.take_captured();
                done.record(captured)
            },
            in_the_way: |params, context| decode::<S>(params)?.in_the_way(context),
            adopt: |params, context| adopted(&decode::<S>(params)?, context),
            undo: |params, context, output| {
                let output = output.map(decode::<S::Output>).transpose()?;
                let done = decode::<S>(params)?.undo(context, output)?;
                let captured = context.link.take_captured();
                done.record(captured)
            },
        }
    }
}

/// Nothing is changed by it, whatever a probe says of who made it.
fn adopted<S: Step>(step: &S, context: &mut Context<'_>) -> Result<StepDone, StepFailure> {
    let what = match step.probe(context)? {
        Seen::Done(done) => {
            return Ok(StepDone {
                changed: false,
                ..done
            });
        }
        Seen::Absent => "nothing of it is there".to_owned(),
        Seen::Partial { what } | Seen::Conflict { what } => what,
        Seen::Unknown { why } => why,
    };
    let described = step.adopt(context).map_err(|failure| StepFailure {
        message: format!("{} ({what})", failure.message),
        ..failure
    })?;
    Done {
        changed: false,
        ..described
    }
    .record(Vec::new())
}

fn decode<T: DeserializeOwned>(bytes: &Blob) -> Result<T, StepFailure> {
    codec::decode(&bytes.0).map_err(|e| failure(FailureClass::Unknown, &e))
}

/// A step's parameters as a plan stores them.
///
/// # Errors
/// When they have no encoding.
pub fn params<S: Step>(step: &S) -> Result<Blob, codec::Error> {
    codec::encode(step).map(Blob)
}
