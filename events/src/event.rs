//! Events: what happened, in the past tense. A kind and its version name a payload's shape for ever.
//!
//! Decoding is per version; what a later program wrote stays opaque here and is shown as such.

use serde::{Deserialize, Serialize};

use crate::allocation::Allocation;
use crate::codec;
use crate::header::Outcome;
use crate::ids::{Blob, Hash, JournalId, OperationId, Seq};
use crate::intent::Intent;
use crate::name::HostName;
use crate::pace::Pace;
use crate::step::{Captured, Mark, PlannedStep, StepDone, StepFailure};
use crate::subject::Subject;

/// The log began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCreated {
    /// The version of the program that made it.
    pub tool_version: String,
}

/// An inventory was read, and is kept whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryRecorded {
    /// The file's path as given.
    pub path: String,
    /// BLAKE3 of the text.
    pub hash: Hash,
    /// The text.
    pub text: Blob,
}

/// A container was given an address, a MAC and ports, or what it has was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationMade {
    /// All it has now.
    pub allocation: Allocation,
}

/// A container's address, MAC and ports are free again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationReleased {
    /// All it had.
    pub allocation: Allocation,
}

/// An operation began: what was asked, and what it claims. The fence of its steps is this event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationIntended {
    /// What was asked.
    pub intent: Intent,
    /// The `inventory.recorded` it runs with.
    pub inventory: Seq,
    /// What nobody else may change while it runs.
    pub claims: Vec<Subject>,
}

/// The plan of an operation, fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationPlanned {
    /// Its steps; their positions are their indices.
    pub steps: Vec<PlannedStep>,
}

/// Somebody took an unfinished operation up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationResumed {}

/// The program stopped on purpose with the operation unfinished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationInterrupted {
    /// Why, for people.
    pub reason: String,
}

/// All steps succeeded. Its claims are free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSucceeded {
    /// How many events the operation has, this one included: a gap shows.
    pub events: u64,
}

/// A step failed; the operation can be resumed or rolled back, and keeps its claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationFailed {
    /// Why, for people.
    pub reason: String,
}

/// All of it was taken back. Its claims are free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRolledBack {
    /// The operation that did so.
    pub by: OperationId,
}

/// A step's outcome can't be told or its undo failed; somebody has to decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStuck {
    /// Why, for people.
    pub reason: String,
}

/// Somebody gave an operation up: nobody goes on with it, and it claims nothing any more. What it left stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationAbandoned {
    /// Why, for people.
    pub reason: String,
}

/// How an operation goes over its hosts from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationPaced {
    /// All of it.
    pub pace: Pace,
}

/// Hosts that an operation could not have to the end: steps of theirs were left as they are, and say nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationLacked {
    /// The hosts.
    pub hosts: Vec<Lack>,
}

/// A host that an operation could not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The host.
    pub host: HostName,
    /// What it did not do.
    pub kind: LackKind,
    /// Why, for people.
    pub why: String,
}

/// In which way a host could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LackKind {
    /// It could not be reached, or did not let us in.
    Unreachable,
    /// It was there, and took none of its steps.
    Refused,
}

/// A step is about to act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStarted {
    /// Its kind.
    pub kind: String,
    /// The receipts journal that its host had by then: only there does a missing receipt say that it never acted.
    /// `None` where the host keeps none of it, or has a damaged one.
    pub journal: Option<JournalId>,
}

/// How the outcome of a step became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Resolution {
    /// The agent reported it as it happened.
    Reported,
    /// It was read from the agent's receipt afterwards.
    Receipt,
    /// It was seen by looking at the host.
    Probe,
}

/// A step ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSucceeded {
    /// How that is known.
    pub resolution: Resolution,
    /// What it reported. Captured output has events of its own.
    pub done: StepDone,
}

/// A step failed, and that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailed {
    /// How that is known.
    pub resolution: Resolution,
    /// What it reported. Captured output has events of its own.
    pub failure: StepFailure,
}

/// Whether a started step had its effect is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDoubted {
    /// Why, and what was seen.
    pub why: String,
}

/// Somebody else changed what a step in doubt is about: what is there is neither nothing, nor what the step makes, nor a part
/// of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDrifted {
    /// What was seen.
    pub what: String,
}

/// Somebody decided that what others have in a step's place is set aside when it is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepForced {
    /// Why, for people.
    pub reason: String,
}

/// Somebody decided that what is there stands for what a step was to make. Whoever made it, it was not the step: nothing takes
/// it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAdopted {
    /// Why, for people.
    pub reason: String,
    /// What the host says of it in the step's own words; it changed nothing.
    pub done: StepDone,
}

/// A started step is known never to have acted: the agent's receipts, or the batch it was in, say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUnstarted {
    /// How that is known.
    pub why: String,
}

/// What a program printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputCaptured {
    /// The output.
    pub captured: Captured,
}

/// How a path differs after a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there before.
    Added,
    /// It is different.
    Modified,
    /// It is gone.
    Removed,
}

/// One path that a session changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChange {
    /// How.
    pub change: ChangeKind,
    /// The path in the container.
    pub path: Blob,
}

/// Somebody worked in a container; this is what can be told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecorded {
    /// The argument vector that ran.
    pub argv: Vec<String>,
    /// Whether a terminal was attached.
    pub terminal: bool,
    /// Microseconds since 1970-01-01 UTC, by the host's clock; by the controller's where the line was lost.
    pub started_unix_us: u64,
    /// Likewise.
    pub ended_unix_us: u64,
    /// Exit status; `None` when a signal or a lost line ended it.
    pub exit: Option<i32>,
    /// What the terminal showed (never what was typed), up to a bound.
    pub output: Blob,
    /// How many bytes beyond the bound were dropped.
    pub dropped_bytes: u64,
    /// What changed in the root file system, up to a bound.
    pub changes: Vec<PathChange>,
    /// How many more changes there were.
    pub changes_dropped: u64,
}

/// Events from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeqRange {
    /// The first.
    pub first: Seq,
    /// The last; not before the first.
    pub last: Seq,
}

impl SeqRange {
    /// Whether an event is one of them.
    pub fn contains(&self, seq: Seq) -> bool {
        (self.first..=self.last).contains(&seq)
    }

    /// How many there are.
    pub const fn count(&self) -> u64 {
        (self.last.0.saturating_add(1)).saturating_sub(self.first.0)
    }

    /// Whether they are events of a log that all come before this one. What an event says of others has to be so; a
    /// forged one may say anything.
    pub const fn is_before(&self, seq: Seq) -> bool {
        self.first.0 >= 1 && self.first.0 <= self.last.0 && self.last.0 < seq.0
    }

    /// The fewest ranges that hold these, which must be in order.
    pub fn of(seqs: impl IntoIterator<Item = Seq>) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        for seq in seqs {
            match ranges.last_mut() {
                Some(range) if range.last.next() == seq => range.last = seq,
                Some(_) | None => ranges.push(SeqRange {
                    first: seq,
                    last: seq,
                }),
            }
        }
        ranges
    }
}

/// Why payloads are overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErasureCause {
    /// Somebody asked for just these: they hold what nobody must read.
    Redaction,
    /// They are captured output that is older than it was to be kept.
    Retention,
}

/// Payloads will be overwritten with zeros, in every copy. From here on nobody may rely on them, and whoever opens the
/// store goes on with it until [`ErasureCompleted`] says that it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureAnnounced {
    /// Why.
    pub cause: ErasureCause,
    /// Why, for people.
    pub reason: String,
    /// Whose payloads: of kinds that may be erased, all before this event, in order.
    pub events: Vec<SeqRange>,
}

/// All that was announced is overwritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureCompleted {
    /// The `erasure.announced`.
    pub announced: Seq,
    /// How many payloads that is, those that were erased before included.
    pub payloads: u64,
}

/// Segments were put into the archive, and are there whole. Their copies beside the others may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsArchived {
    /// The archive's directory, as it was then.
    pub directory: String,
    /// The events in each of them.
    pub segments: Vec<SeqRange>,
}

/// Segments came back from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsRestored {
    /// The events in each of them.
    pub segments: Vec<SeqRange>,
}

/// What a recovery could not keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Which events.
    pub events: SeqRange,
    /// The header hash of the last of them: what the chain goes on from.
    pub hash: Hash,
    /// Whether the header is there and only the payload is lost.
    pub header_kept: bool,
    /// What was found in their place, for people.
    pub why: String,
}

/// An operator decided to go on with a log that had lost something. Begins a new epoch: hosts refuse older ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecovered {
    /// Why, for people.
    pub reason: String,
    /// All that is lost, in order. Gaps in the journal stand in its place.
    pub losses: Vec<Loss>,
}

/// A host was shown an event of this log that this log does not have: this one is not the newest line of its history.
/// Nothing may be done to any host with it until a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFenced {
    /// The host.
    pub host: HostName,
    /// What it was shown.
    pub seen: Mark,
}

/// A payload that could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[error("payload of kind {kind:?} version {version}")]
pub struct Error {
    /// The kind.
    pub kind: String,
    /// Its version.
    pub version: u16,
    /// Why.
    #[source]
    pub source: codec::Error,
}

/// What a kind fixes in the header of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// The kind's name.
    pub kind: &'static str,
    /// How what it reports ended.
    pub outcome: Outcome,
    /// Whether its payload may be overwritten with zeros.
    pub erasable: bool,
}

/// What may become of a kind's payload. Those may be erased that hold the text of others, and from which nothing is
/// folded that decides what may be done.
enum Payload {
    Kept,
    Erasable,
}

impl OperationIntended {
    /// Whether only version 2 of its kind can say it: the first program knew no rollback of several.
    const fn is_second(&self) -> bool {
        matches!(self.intent, Intent::RollbackTo { .. })
    }
}

// A kind may have a later version with more to say: that is written where the earlier one has no words for it, so that all
// that an earlier program can read keeps its bytes.
macro_rules! events {
    ($(
        $variant:ident = $kind:literal @ $version:literal $(, $later:literal if $is_later:path)?
            => $outcome:ident, $payload:ident;
    )*) => {
        /// Something that happened.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Event {
            $(
                #[doc = concat!("`", $kind, "`")]
                $variant($variant),
            )*
            /// Of a kind or a version that this program does not know.
            Unknown(Blob),
        }

        /// Every kind with each of its versions.
        pub const KINDS: &[(&str, u16)] = &[$(($kind, $version), $(($kind, $later),)?)*];

        /// What the header of a kind and version says for it; `None` for one that this program does not know.
        pub fn fixed(kind: &str, version: u16) -> Option<Fixed> {
            match (kind, version) {
                $(($kind, $version $(| $later)?) => Some(Fixed {
                    kind: $kind,
                    outcome: Outcome::$outcome,
                    erasable: matches!(Payload::$payload, Payload::Erasable),
                }),)*
                _ => None,
            }
        }

        impl Event {
            /// What stands for a payload that nobody looks into.
            pub const fn nothing() -> Self {
                Event::Unknown(Blob(Vec::new()))
            }

            /// The kind and version to store; `None` for an unknown one, which is never written.
            pub const fn kind(&self) -> Option<(&'static str, u16)> {
                match self {
                    $(Event::$variant(_payload) => {
                        $(if $is_later(_payload) {
                            return Some(($kind, $later));
                        })?
                        Some(($kind, $version))
                    })*
                    Event::Unknown(_) => None,
                }
            }

            /// The outcome that the header carries.
            pub const fn outcome(&self) -> Outcome {
                match self {
                    $(Event::$variant(_) => Outcome::$outcome,)*
                    Event::Unknown(_) => Outcome::None,
                }
            }

            /// The payload's bytes.
            ///
            /// # Errors
            /// When it has no MessagePack form.
            pub fn encode(&self) -> Result<Vec<u8>, Error> {
                match self {
                    $(Event::$variant(payload) => {
                        codec::encode(payload).map_err(|source| self.error(source))
                    })*
                    Event::Unknown(bytes) => Ok(bytes.0.clone()),
                }
            }

            /// Whether these are the payload's bytes.
            ///
            /// # Errors
            /// When it has no MessagePack form.
            pub fn is_encoded_as(&self, bytes: &[u8]) -> Result<bool, Error> {
                match self {
                    $(Event::$variant(payload) => {
                        codec::is_encoded_as(payload, bytes).map_err(|source| self.error(source))
                    })*
                    Event::Unknown(kept) => Ok(kept.0 == bytes),
                }
            }

            /// Reads a payload of the given kind and version.
            ///
            /// # Errors
            /// When the kind and version are known and the bytes are not such a payload.
            pub fn decode(kind: &str, version: u16, payload: &[u8]) -> Result<Self, Error> {
                let error = |source| Error { kind: kind.to_owned(), version, source };
                let event = match (kind, version) {
                    $(($kind, $version $(| $later)?) => {
                        codec::decode(payload).map(Event::$variant).map_err(error)?
                    })*
                    _ => return Ok(Event::Unknown(Blob(payload.to_vec()))),
                };
                // What a version says that it has no words for, or leaves to an earlier one, is not written by anybody.
                match event.kind() == Some((kind, version)) {
                    true => Ok(event),
                    false => Err(error(codec::Error::Form)),
                }
            }

            fn error(&self, source: codec::Error) -> Error {
                let (kind, version) = self.kind().unwrap_or_default();
                Error { kind: kind.to_owned(), version, source }
            }

            /// Reads a payload that must be written exactly as a writer writes it. Decoding alone also takes wider
            /// integers, arrays for maps, and fields twice or unheard of.
            ///
            /// # Errors
            /// When the kind and version are known and the bytes are not such a payload, or not in its one form.
            pub fn decode_exact(kind: &str, version: u16, payload: &[u8]) -> Result<Self, Error> {
                let event = Event::decode(kind, version, payload)?;
                if event.is_encoded_as(payload)? {
                    return Ok(event);
                }
                let source = codec::Error::Form;
                Err(Error { kind: kind.to_owned(), version, source })
            }
        }

        $(
            impl From<$variant> for Event {
                fn from(payload: $variant) -> Event {
                    Event::$variant(payload)
                }
            }
        )*
    };
}

events! {
    LogCreated = "log.created" @ 1 => None, Kept;
    InventoryRecorded = "inventory.recorded" @ 1 => None, Erasable;
    AllocationMade = "allocation.made" @ 1 => None, Kept;
    AllocationReleased = "allocation.released" @ 1 => None, Kept;
    OperationIntended = "operation.intended" @ 1, 2 if OperationIntended::is_second => None, Kept;
    OperationPlanned = "operation.planned" @ 1 => None, Kept;
    OperationResumed = "operation.resumed" @ 1 => None, Kept;
    OperationInterrupted = "operation.interrupted" @ 1 => InDoubt, Kept;
    OperationSucceeded = "operation.succeeded" @ 1 => Succeeded, Kept;
    OperationFailed = "operation.failed" @ 1 => Failed, Kept;
    OperationRolledBack = "operation.rolled_back" @ 1 => Succeeded, Kept;
    OperationStuck = "operation.stuck" @ 1 => InDoubt, Kept;
    StepStarted = "step.started" @ 1 => None, Kept;
    StepSucceeded = "step.succeeded" @ 1 => Succeeded, Kept;
    StepFailed = "step.failed" @ 1 => Failed, Kept;
    StepDoubted = "step.doubted" @ 1 => InDoubt, Kept;
    StepUnstarted = "step.unstarted" @ 1 => None, Kept;
    OutputCaptured = "output.captured" @ 1 => None, Erasable;
    SessionRecorded = "session.recorded" @ 1 => None, Erasable;
    ErasureAnnounced = "erasure.announced" @ 1 => None, Kept;
    ErasureCompleted = "erasure.completed" @ 1 => Succeeded, Kept;
    SegmentsArchived = "segments.archived" @ 1 => None, Kept;
    SegmentsRestored = "segments.restored" @ 1 => None, Kept;
    LogRecovered = "log.recovered" @ 1 => None, Kept;
    LogFenced = "log.fenced" @ 1 => None, Kept;
    OperationAbandoned = "operation.abandoned" @ 1 => InDoubt, Kept;
    StepDrifted = "step.drifted" @ 1 => InDoubt, Kept;
    StepForced = "step.forced" @ 1 => None, Kept;
    StepAdopted = "step.adopted" @ 1 => Succeeded, Kept;
    OperationPaced = "operation.paced" @ 1 => None, Kept;
    OperationLacked = "operation.lacked" @ 1 => None, Kept;
}
