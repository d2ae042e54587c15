//! Payloads of every kind, receipts, and what steps are told and say: all that is MessagePack and stored.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tallybook_agent::steps;
use tallybook_events::codec;
use tallybook_events::event::{Event, KINDS};
use tallybook_events::fact::Fact;
use tallybook_events::ids::Blob;
use tallybook_events::intent::Intent;
use tallybook_events::step::{Fence, PlannedStep, Receipt, Seen, StepDone, StepFailure};

use crate::chosen;
use crate::memory::bounded;

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    let which = usize::from(which);
    if let Some((kind, version)) = KINDS.get(which) {
        return event(kind, *version, bytes);
    }
    match which - KINDS.len() {
        0 => again::<Receipt>(bytes),
        1 => again::<Intent>(bytes),
        2 => again::<Fact>(bytes),
        3 => again::<PlannedStep>(bytes),
        4 => again::<StepDone>(bytes),
        5 => again::<StepFailure>(bytes),
        6 => again::<Fence>(bytes),
        7 => again::<Seen>(bytes),
        8 => event("strange.kind", 1, bytes),
        9 => shown(bytes),
        row => {
            let params = Blob(bytes.to_vec());
            let kind = &steps::TABLE[row % steps::TABLE.len()];
            drop(bounded(bytes.len(), || (kind.summary)(&params)));
        }
    }
}

fn event(kind: &str, version: u16, bytes: &[u8]) {
    let exact = bounded(bytes.len(), || Event::decode_exact(kind, version, bytes));
    let Ok(event) = Event::decode(kind, version, bytes) else {
        assert!(exact.is_err());
        return;
    };
    let stored = event.encode().expect("what was decoded can be encoded");
    assert_eq!(exact.is_ok(), stored == bytes, "a payload has one form");
    let read = Event::decode_exact(kind, version, &stored).expect("what is encoded is in its form");
    assert_eq!(read, event);
}

/// A value that is decoded is the same after it was encoded and decoded again.
pub fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = bounded(bytes.len(), || codec::decode::<T>(bytes)) {
        let stored = codec::encode(&value).expect("what was decoded can be encoded");
        let read: T = codec::decode(&stored).expect("what was encoded can be decoded");
        assert_eq!(read, value);
    }
}

/// What a host said, as JSON for display.
fn shown(bytes: &[u8]) {
    let blob = Blob(bytes.to_vec());
    let value = bounded(bytes.len(), || tallybook::render::packed::value(&blob));
    let text = value.to_string();
    assert!(!text.is_empty());
}
