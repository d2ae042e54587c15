//! What the two ends of a transfer say to each other, a manifest that comes in parts, and the journal of what arrived.

use std::any::Any;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::LazyLock;

use tallybook_agent::step::{Ended, FrozenWatch, Link, Program, fail};
use tallybook_agent::transfer::fuzzing;
use tallybook_agent::transfer::message::{self, FromReceiver, FromSender};
use tallybook_agent::tree::manifest::id_of;
use tallybook_events::ids::Hash;
use tallybook_events::step::{Captured, FailureClass, StepFailure};

use crate::memory::bounded;
use crate::{chosen, directory, part};

static JOURNAL: LazyLock<PathBuf> = LazyLock::new(|| directory("transfer").join("received"));
const MANIFEST: Hash = Hash([7; 32]);

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    match which % 5 {
        0 => said::<FromSender>(bytes),
        1 => said::<FromReceiver>(bytes),
        2 => manifest(bytes),
        3 => journal(bytes),
        _ => journal(&checked(bytes)),
    }
}

fn said<T>(bytes: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Clone + std::fmt::Debug,
{
    if let Ok(said) = bounded(bytes.len(), || message::decode::<T>(bytes)) {
        let again = message::encode(said.clone()).expect("what was decoded can be encoded");
        assert_eq!(message::decode::<T>(&again).expect("it was encoded"), said);
    }
}

/// Another end that says what it was told to, and is gone.
struct Peer<'a>(VecDeque<&'a [u8]>);

fn gone() -> StepFailure {
    fail(FailureClass::Peer, "it is gone")
}

impl Link for Peer<'_> {
    fn run(&mut self, _: &Program) -> Result<Ended, StepFailure> {
        Err(gone())
    }

    fn progress(&mut self, _: &str, _: u64, _: u64) {}

    fn stop_requested(&mut self) -> bool {
        false
    }

    fn send_peer(&mut self, _: Vec<u8>) -> Result<(), StepFailure> {
        Ok(())
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        self.0.pop_front().map(<[u8]>::to_vec).ok_or_else(gone)
    }

    fn watch_frozen(&mut self, _: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure> {
        Err(gone())
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}

/// A manifest of up to 64 KiB, in whatever parts the other end sends it.
fn manifest(mut bytes: &[u8]) {
    let len = bytes.len();
    let Some((wanted, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    bytes = rest;
    let wanted = u64::from(u16::from_le_bytes(*wanted));
    let mut parts = VecDeque::new();
    while !bytes.is_empty() {
        parts.push_back(part(&mut bytes));
    }
    let expect = id_of(b"a manifest");
    // Compressed, the other end may well say more than it sends: that is bounded by what the manifest is to have.
    let got = bounded(len + 64, || {
        fuzzing::manifest(&mut Peer(parts), expect, wanted)
    });
    if let Ok(got) = got {
        assert_eq!((got.len() as u64, id_of(&got)), (wanted, expect));
    }
}

fn journal(bytes: &[u8]) {
    std::fs::write(&*JOURNAL, bytes).expect("memory can be written to");
    let read = bounded(bytes.len(), || fuzzing::read_journal(&JOURNAL, MANIFEST));
    let read = read.expect("it can be read");
    let opened = fuzzing::open_journal(&JOURNAL, MANIFEST).expect("it can be opened");
    if let Some(read) = read {
        assert_eq!(read, opened, "opening it finds what reading it finds");
    } else {
        assert!(
            opened.records.is_empty(),
            "one of something else is begun anew"
        );
    }
    let again = fuzzing::open_journal(&JOURNAL, MANIFEST).expect("it can be opened");
    assert_eq!(again.records, opened.records);
    assert!(!again.is_damaged, "what is cut off is cut off once");
}

/// A journal of whatever records, each with the sum that it must have.
fn checked(mut bytes: &[u8]) -> Vec<u8> {
    let mut journal = b"\x89TBRECV\n".to_vec();
    journal.extend_from_slice(&MANIFEST.0);
    while !bytes.is_empty() {
        let body = part(&mut bytes);
        let mut sum = blake3::Hasher::new_derive_key("tallybook 2026-11 transfer journal v1");
        sum.update(&MANIFEST.0);
        sum.update(&(journal.len() as u64).to_le_bytes());
        sum.update(body);
        journal.extend_from_slice(&(body.len() as u32).to_le_bytes());
        journal.extend_from_slice(sum.finalize().as_bytes());
        journal.extend_from_slice(body);
    }
    // The last one may have been cut.
    let cut = journal
        .len()
        .saturating_sub(usize::from(bytes.first().copied().unwrap_or(0)));
    journal.truncate(cut);
    journal
}
