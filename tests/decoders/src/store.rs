//! What the databases hold, what comes through the holder's sockets and over a daemon's lines, and the file `head`.

use tallybook::daemon::protocol::fuzzing as daemon;
use tallybook::log::fuzzing as log;
use tallybook::store::fuzzing as store;
use tallybook_events::ids::Hash;

use crate::chosen;
use crate::memory::bounded;

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    match which {
        0 => again(bytes, |bytes| log::message(bytes, true)),
        1 => again(bytes, |bytes| log::message(bytes, false)),
        2 => again(bytes, store::sealed),
        3 => head(bytes),
        4 => head(&checked_head(bytes)),
        5 => again(bytes, store::places),
        6 => again(bytes, |bytes| store::projected(0, bytes)),
        which @ 253..=255 => again(bytes, |bytes| daemon::message(bytes, which - 253)),
        class => again(bytes, |bytes| store::projected(class, bytes)),
    }
}

/// What is decoded and encoded again is a fixed point from then on.
fn again(bytes: &[u8], reread: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    if let Some(once) = bounded(bytes.len(), || reread(bytes)) {
        assert_eq!(reread(&once).as_ref(), Some(&once));
    }
}

fn head(bytes: &[u8]) {
    if let Some(again) = log::head(bytes) {
        assert_eq!(again, bytes, "the line has one form");
    }
}

fn checked_head(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let said = text.lines().next().unwrap_or_default();
    let check = Hash(blake3::derive_key(
        "tallybook 2026-11 head file",
        said.as_bytes(),
    ));
    format!("{said} {check}\n").into_bytes()
}
