//! What the two ends of a transfer say to each other. Versioned; a version that is not known is refused.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::{Blob, Hash};
use tallybook_events::step::{FailureClass, StepFailure};

pub use super::pieces::Ranges;
use crate::step::{Link, fail, failure};

/// The version of these messages.
pub const VERSION: u16 = 1;
/// The most content that one pack carries, in bytes.
pub const PACK_LEN_MAX: usize = 1024 * 1024;
/// The most ranges in one message.
pub const RANGES_MAX: usize = 50_000;
/// How much of a manifest one message carries, in bytes.
pub const MANIFEST_CHUNK_LEN: usize = 1024 * 1024;

/// What the sending end says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSender {
    /// First: what there is to send.
    Offer {
        /// The manifest's id.
        manifest: Hash,
        /// The length of the manifest's bytes.
        manifest_len: u64,
    },
    /// A part of the manifest's bytes; the parts come in order.
    Manifest {
        /// How long this part is when it is decompressed.
        len: u32,
        /// The part, compressed with zstd.
        bytes: Blob,
    },
    /// Content.
    Pack(Pack),
    /// Still at it; nothing to say yet.
    Working,
    /// It can't go on.
    Failed(Failed),
}

/// Several pieces, one after the other in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// BLAKE3 of `bytes` as they are.
    pub id: Hash,
    /// Which pieces.
    pub pieces: Ranges,
    /// Whether `bytes` are compressed with zstd.
    pub zstd: bool,
    /// Their content.
    pub bytes: Blob,
}

/// What the receiving end says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromReceiver {
    /// Send the manifest.
    WantManifest,
    /// Send these pieces, as far as there is credit.
    Want {
        /// Which.
        pieces: Ranges,
        /// Whether another `Want` follows; the sender begins after the last.
        more: bool,
    },
    /// So many more packs may be sent.
    Credit {
        /// How many.
        packs: u32,
    },
    /// Still at it; nothing to say yet.
    Working,
    /// Everything is here.
    Done,
    /// It can't go on.
    Failed(Failed),
}

/// Why an end can't go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What sort of failure.
    pub class: FailureClass,
    /// What happened.
    pub message: String,
}

impl Failed {
    /// What is told to the other end of a failure of this one.
    pub fn of(failure: &StepFailure) -> Self {
        Failed {
            class: failure.class,
            message: failure.message.clone(),
        }
    }

    /// The failure that this end reports.
    pub fn failure(self, end: &str) -> StepFailure {
        // What is wrong with the other end's disk or content is said as it is; all else is its own affair.
        let class = match self.class {
            FailureClass::Verification | FailureClass::Missing => self.class,
            FailureClass::Exists
            | FailureClass::DiskFull
            | FailureClass::Permission
            | FailureClass::Command
            | FailureClass::Timeout
            | FailureClass::Host
            | FailureClass::Peer
            | FailureClass::Interrupted
            | FailureClass::Fenced
            | FailureClass::Unknown
            | FailureClass::Other => FailureClass::Peer,
        };
        fail(
            class,
            format!("the {end} end of the transfer: {}", self.message),
        )
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u16,
    message: T,
}

/// The bytes of a message.
///
/// # Errors
/// When it has no encoding.
pub fn encode<T: Serialize>(message: T) -> Result<Vec<u8>, StepFailure> {
    let version = VERSION;
    codec::encode(&Envelope { version, message }).map_err(|e| failure(FailureClass::Unknown, &e))
}

/// The message that these bytes are.
///
/// # Errors
/// When they are none, or one of another version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StepFailure> {
    #[derive(Deserialize)]
    struct Version {
        version: u16,
    }
    let malformed = |e: codec::Error| {
        let mut failure = failure(FailureClass::Peer, &e);
        failure.message = format!(
            "a message of the other end can't be read: {}",
            failure.message
        );
        failure
    };
    let version = codec::decode::<Version>(bytes).map_err(malformed)?.version;
    if version != VERSION {
        return Err(fail(
            FailureClass::Peer,
            format!("the other end speaks version {version} of transfers, this one {VERSION}"),
        ));
    }
    let envelope: Envelope<T> = codec::decode(bytes).map_err(malformed)?;
    Ok(envelope.message)
}

/// Sends a message to the other end.
///
/// # Errors
/// When the line is gone.
pub fn send<T: Serialize>(link: &mut dyn Link, message: T) -> Result<(), StepFailure> {
    link.send_peer(encode(message)?)
}

/// Waits for a message of the other end.
///
/// # Errors
/// When the line is gone, or what came can't be read.
pub fn receive<T: DeserializeOwned>(link: &mut dyn Link) -> Result<T, StepFailure> {
    decode(&link.receive_peer()?)
}
