//! Identifiers, sequence numbers and hashes: one newtype each, so that no two can be mixed up.
//!
//! Nothing here draws randomness or reads a clock: whoever makes an id passes both in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// An identifier or a hash that could not be read from text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct Error {
    /// What was expected, for example `operation id`.
    pub what: &'static str,
    /// The text as given.
    pub text: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A UUIDv7 from a Unix time in milliseconds and ten random bytes.
            pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
            }

            /// The id whose 16 bytes these are.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes, as stored.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.hyphenated(), f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| Error { what: $what, text: text.to_owned() })
            }
        }
    };
}

uuid_id!(
    /// One log, for as long as it lives: made once by `log.created`.
    LogId,
    "log id"
);
uuid_id!(
    /// One event, chosen by whoever submits it, so that a repeated submission is recognised.
    EventId,
    "event id"
);
uuid_id!(
    /// One operation: an intent being carried out.
    OperationId,
    "operation id"
);
uuid_id!(
    /// One boot of a machine, as its kernel names it.
    BootId,
    "boot id"
);
uuid_id!(
    /// One receipts journal of a host, drawn when it was made: one that was lost and made anew has another.
    JournalId,
    "receipts journal id"
);

impl EventId {
    /// When it was chosen, in milliseconds since 1970 by the chooser's clock: the first six bytes.
    pub fn unix_ms(&self) -> u64 {
        let mut time = [0; 8];
        time[2..].copy_from_slice(&self.as_bytes()[..6]);
        u64::from_be_bytes(time)
    }
}

impl OperationId {
    /// How many of its last bytes [`OperationId::short`] shows.
    pub const SHORT_LEN: usize = 6;

    /// The last twelve hex digits: what tables show, and enough to name an operation on the command line.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 12..].to_owned()
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A position in the log: the first event is 1, and there are no gaps. 0 means "none yet".
    Seq,
    u64
);
number!(
    /// Rises only when a decision of an operator breaks the line of history (`log recover`).
    Epoch,
    u32
);
number!(
    /// The position of a step in its operation's plan, from 0.
    StepIndex,
    u32
);
number!(
    /// How many times a step was started, from 1.
    Attempt,
    u32
);
number!(
    /// A generation of a template, from 1.
    Generation,
    u32
);

impl Seq {
    /// No event: what precedes the first one.
    pub const NONE: Seq = Seq(0);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

/// A BLAKE3 hash of 32 bytes. Stored as bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// All zero: the link of an event that has no predecessor.
    pub const ZERO: Hash = Hash([0; 32]);

    /// The first twelve hex digits, for tables.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl From<blake3::Hash> for Hash {
    fn from(hash: blake3::Hash) -> Self {
        Hash(*hash.as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        blake3::Hash::from_hex(text)
            .map(Hash::from)
            .map_err(|_| Error {
                what: "hash of 64 hex digits",
                text: text.to_owned(),
            })
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            serde_bytes::ByteArray::<32>::deserialize(deserializer)
                .map(|bytes| Hash(bytes.into_array()))
        }
    }
}

/// Opaque bytes. Stored as bytes; shown as text where they are UTF-8, else as `hex:` and digits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return f.write_str(text);
        }
        f.write_str("hex:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Blob(bytes)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Blob(bytes.into_vec()))
    }
}
