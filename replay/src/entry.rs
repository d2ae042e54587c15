//! An event with its header: what every fold takes.

use serde::Serialize;
use tallybook_events::event::{self, Event};
use tallybook_events::header::Header;
use tallybook_events::ids::Hash;
use tallybook_events::record::{Body, Record};

/// One event of the log, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its header.
    pub header: Header,
    /// The hash of its header's bytes.
    pub hash: Hash,
    /// What happened. `Unknown` for kinds of a later program and for erased payloads.
    pub event: Event,
    /// Whether the payload was overwritten with zeros, in a kind that may be.
    pub is_erased: bool,
}

impl Entry {
    /// Decodes a record. An erased payload is kept as an unknown event: its header still counts.
    ///
    /// # Errors
    /// When the payload is not what its kind and version say.
    pub fn from_record(record: &Record) -> Result<Self, event::Error> {
        let is_erased = record.body() == Body::Erased;
        let event = if is_erased {
            Event::Unknown(record.payload.clone().into())
        } else {
            Event::decode(
                &record.header.kind,
                record.header.kind_version,
                &record.payload,
            )?
        };
        Ok(Entry {
            header: record.header.clone(),
            hash: record.hash,
            event,
            is_erased,
        })
    }
}
