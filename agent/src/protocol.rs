//! What controller and agent say to each other: frames of MessagePack on the agent's stdin and stdout.
//!
//! A frame is a length (u32, little endian) and that many bytes. The controller speaks first with `Hello`; what
//! it asks for next decides what the rest of the conversation is: a batch of steps, probes, receipts, the
//! sending end of a transfer, or a session in a container. One conversation a process.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tallybook_events::codec;
use tallybook_events::event::SessionRecorded;
use tallybook_events::ids::{Blob, BootId, Hash, JournalId, LogId, OperationId, StepIndex};
use tallybook_events::name::{ContainerName, HostName};
pub use tallybook_events::step::SendSource;
use tallybook_events::step::{Action, Fence, Mark, Receipt, Seen, StepDone, StepFailure, StepKey};

use zeroize::Zeroize;

use crate::secret::{self, Secret, SecretName, Values};

/// The version of this protocol. Both ends must have the same: the agent is pushed by its hash.
pub const PROTOCOL: u16 = 6;
/// The most bytes a frame may have.
pub const FRAME_LEN_MAX: usize = 16 * 1024 * 1024;

/// One step to carry out or to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Which start of which step.
    pub key: StepKey,
    /// Its kind.
    pub kind: String,
    /// Its parameters.
    pub params: Blob,
    /// Which way.
    pub action: Action,
    /// Whether what others have in its place is set aside before: only of one that goes forward.
    pub set_aside: bool,
}

/// What a controller shows of its log before it acts: see [`crate::fence`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The header of the newest event that it has.
    pub newest: Blob,
    /// The header of the event that the host said in its `Hello` it was shown last; `None` where none is to be shown.
    pub proof: Option<Blob>,
}

/// A start of a step whose outcome a controller does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Which start of which step.
    pub key: StepKey,
    /// The kind of step.
    pub kind: String,
}

/// Steps of one operation, to be carried out in order; the first failure ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The claim they are carried out under.
    pub fence: Fence,
    /// The steps.
    pub calls: Vec<Call>,
    /// What earlier steps of the operation reported, on this host or another.
    pub outputs: BTreeMap<StepIndex, Blob>,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRequest {
    /// The container.
    pub container: ContainerName,
    /// The argument vector; empty means the login shell of root.
    pub argv: Vec<String>,
    /// Columns and rows, when a terminal is to be attached.
    pub terminal: Option<(u16, u16)>,
    /// The terminal's type, for `TERM`.
    pub term: String,
}

/// Secrets on the line to a host: the one form in which they leave a process. It is not stored, and shows no value.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SecretsTold {
    /// By name.
    #[serde(serialize_with = "tell_values", deserialize_with = "hear_values")]
    pub values: Values,
}

fn tell_values<S: Serializer>(values: &Values, serializer: S) -> Result<S::Ok, S::Error> {
    let told = |(name, value): (&SecretName, &Secret<Vec<u8>>)| {
        (
            name.clone(),
            serde_bytes::ByteBuf::from(value.expose().clone()),
        )
    };
    let mut told: BTreeMap<SecretName, serde_bytes::ByteBuf> = values.iter().map(told).collect();
    let done = told.serialize(serializer);
    told.values_mut().for_each(|value| value.zeroize());
    done
}

fn hear_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Values, D::Error> {
    let told = BTreeMap::<SecretName, serde_bytes::ByteBuf>::deserialize(deserializer)?;
    let heard = |(name, value): (SecretName, serde_bytes::ByteBuf)| {
        let value = Secret::new(value.into_vec());
        match secret::check(value.expose()) {
            Ok(()) => Ok((name, value)),
            Err(unfit) => Err(D::Error::custom(format!("secret {name}: {unfit}"))),
        }
    };
    told.into_iter().map(heard).collect()
}

/// What the controller says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First of all.
    Hello {
        /// The controller's [`PROTOCOL`].
        protocol: u16,
        /// Its log.
        log: LogId,
        /// What it calls this host.
        host: HostName,
    },
    /// Make sure that there is a receipts journal, and say which.
    MakeJournal,
    /// Know these secrets from now on, and no others: steps may need them, and what is told of anything leaves them out.
    /// Held in memory only. Not answered.
    Secrets(SecretsTold),
    /// Carry out a batch. Waits while another agent still carries out a step of the same operation.
    Run {
        /// For the fence.
        shown: Shown,
        /// The batch.
        batch: Batch,
    },
    /// Answer to `Prove`: the header of that event.
    Proof(Blob),
    /// Look at the effect of steps, and change nothing.
    Probe(Batch),
    /// Describe what is there as if these steps had made it, and change nothing.
    Adopt(Batch),
    /// Say what receipts there are of an operation, and give up those of these starts that have none: what of them is still
    /// under way is not begun when it comes. Waits while another agent still carries out a step of the operation.
    Receipts {
        /// For the fence.
        shown: Shown,
        /// The claim that the starts are of.
        fence: Fence,
        /// The operation.
        operation: OperationId,
        /// The starts.
        starts: Vec<Start>,
    },
    /// Say which operations there are receipts of.
    Operations,
    /// Leave out the receipts of these operations: they are over, and what is shown came behind their ends.
    Forget {
        /// For the fence.
        shown: Shown,
        /// The operations.
        operations: BTreeSet<OperationId>,
    },
    /// Be the sending end of a transfer.
    Send {
        /// For the fence.
        shown: Shown,
        /// What to send.
        source: SendSource,
    },
    /// Bytes from the other end of a transfer: after `Send`, or once the step that takes part was told as
    /// started. Dropped at any other time.
    Peer(Blob),
    /// The other end of a transfer is gone; why.
    PeerLost(String),
    /// Run a command in a container. What is typed for it comes after `Admitted`.
    Session {
        /// For the fence.
        shown: Shown,
        /// The command.
        request: SessionRequest,
    },
    /// What was typed.
    Input(Blob),
    /// Nothing more will be typed.
    InputEnd,
    /// The terminal has another size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Finish the step that runs, begin no other.
    Stop,
}

/// What an agent knows of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptReport {
    /// The receipts journal of this log, where it is there and whole. That a start was given up proves that it was never
    /// begun only when this is the journal that was there before it was to start.
    pub journal: Option<JournalId>,
    /// The newest receipt of each start of each step of the operation.
    pub receipts: Vec<Receipt>,
}

/// A step that an agent carries out, as its receipt says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Which start of which step.
    pub key: StepKey,
    /// When, in microseconds since 1970-01-01 UTC by the host's clock.
    pub since_unix_us: u64,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Answer to `Hello`.
    Hello {
        /// The agent's [`PROTOCOL`].
        protocol: u16,
        /// The BLAKE3 of the program that answers; `None` where it can't read itself.
        program: Option<Hash>,
        /// The host's boot.
        boot: BootId,
        /// The host name by its kernel.
        hostname: String,
        /// Microseconds since 1970-01-01 UTC by the host's clock.
        time_unix_us: u64,
        /// The receipts journal of this log, where there is one.
        journal: Option<JournalId>,
        /// How many bytes that journal has.
        journal_len: u64,
        /// The newest event of this log that the host was shown; `None` where there is none, or it can't be read.
        seen: Option<Mark>,
    },
    /// Nothing else was to be said for a while. Comes at any time after `Hello`, and means that the agent is there.
    Alive,
    /// Answer to `MakeJournal`; `None` where it is damaged.
    Journal(Option<JournalId>),
    /// What was asked for is done only once it is shown that the log has this event. Comes before anything is done, and
    /// before each further step of a batch where somebody else acted meanwhile.
    Prove(Mark),
    /// A session passed the fence.
    Admitted,
    /// Another agent still carries out this step of the operation, and what was asked for waits until it ends. Said
    /// again now and then. `None` where it is between two steps.
    Waiting(Option<Begun>),
    /// A step's receipt says started; its first effect follows.
    Started(StepKey),
    /// How far the running step is.
    Progress {
        /// The step.
        key: StepKey,
        /// What it is doing, for people.
        what: String,
        /// How much is done, in bytes or pieces.
        done: u64,
        /// How much there is to do; 0 when that is not known.
        total: u64,
    },
    /// A step ended; this is its receipt, durable on the host before it is sent.
    Finished(Receipt),
    /// The batch ended; these steps were never started.
    BatchEnded {
        /// Their keys.
        unstarted: Vec<StepKey>,
    },
    /// What a probe saw.
    Probed {
        /// The step.
        key: StepKey,
        /// What was seen.
        seen: Seen,
    },
    /// What is there instead of what a step was to make, in its own words.
    Adopted {
        /// The step.
        key: StepKey,
        /// As the step would have reported it.
        done: StepDone,
    },
    /// It has no words for what is there.
    NotAdopted {
        /// The step.
        key: StepKey,
        /// Why not.
        failure: StepFailure,
    },
    /// Answer to `Receipts`.
    Receipts(ReceiptReport),
    /// Answer to `Operations`.
    Operations(BTreeSet<OperationId>),
    /// Answer to `Forget`: how many receipts were left out.
    Forgotten(u64),
    /// Bytes for the other end of a transfer.
    Peer(Blob),
    /// The transfer's sending end has nothing more to say.
    SendEnded,
    /// What the command in the container printed.
    Output {
        /// The bytes.
        bytes: Blob,
        /// Whether they came on standard error (never with a terminal).
        stderr: bool,
    },
    /// The command in the container ended.
    SessionEnded(SessionRecorded),
    /// The request can't be carried out; nothing was done.
    Refused(StepFailure),
}

/// A frame that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The line is gone.
    #[error("the line to the other end failed")]
    Io(#[from] io::Error),
    /// The frame's length is beyond the limit.
    #[error("a frame of {0} bytes is longer than {FRAME_LEN_MAX}")]
    TooLong(usize),
    /// The frame does not hold what it should.
    #[error("a frame can't be understood")]
    Codec(#[from] codec::Error),
}

/// The bytes of one frame.
///
/// # Errors
/// When the message has no encoding, or is too long.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let body = codec::encode(message)?;
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > FRAME_LEN_MAX {
        return Err(Error::TooLong(body.len()));
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The body length that a frame's first four bytes give.
///
/// # Errors
/// When it is beyond the limit.
pub fn frame_len(head: [u8; 4]) -> Result<usize, Error> {
    let len = u32::from_le_bytes(head) as usize;
    if len > FRAME_LEN_MAX {
        return Err(Error::TooLong(len));
    }
    Ok(len)
}

/// Writes one frame and flushes.
///
/// # Errors
/// When the line fails, or the message can't be encoded.
pub fn write_frame<T: Serialize>(mut to: impl Write, message: &T) -> Result<(), Error> {
    to.write_all(&encode_frame(message)?)?;
    to.flush()?;
    Ok(())
}

/// Reads one frame; `None` when the other end closed the line between frames.
///
/// # Errors
/// When the line fails inside a frame, or the frame can't be understood.
pub fn read_frame<T: for<'de> Deserialize<'de>>(mut from: impl Read) -> Result<Option<T>, Error> {
    let mut head = [0; 4];
    let mut have = 0;
    while have < head.len() {
        match from.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let len = frame_len(head)?;
    // Not reserved at once: a length is only a claim until the bytes are here.
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(codec::decode(&body)?))
}
