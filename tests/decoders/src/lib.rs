//! What every decoder of bytes from disk or network must hold to, whatever the bytes: each module is one fuzz target's
//! body, a function of bytes that panics where a promise is broken.
//!
//! Fuzzers (`tests/fuzz`) and the ordinary tests of this crate call the same functions. They touch nothing but files
//! below a temporary directory of their own.

pub mod guest_text;
pub mod host_text;
pub mod inventory;
pub mod journal;
pub mod line;
pub mod manifest;
pub mod memory;
pub mod payload;
pub mod receipts;
pub mod record;
pub mod seeds;

pub mod selftest;
pub mod ssh;
pub mod store;
pub mod transfer;

use std::path::PathBuf;

/// A fuzz target's body.
pub type Body = fn(&[u8]);

/// Every target but the one that is to fail, by name.
pub const TARGETS: &[(&str, Body)] = &[
    ("guest_text", guest_text::run),
    ("host_text", host_text::run),
    ("inventory", inventory::run),
    ("journal", journal::run),
    ("line", line::run),
    ("manifest", manifest::run),
    ("payload", payload::run),
    ("receipts", receipts::run),
    ("record", record::run),
    ("ssh", ssh::run),
    ("store", store::run),
    ("transfer", transfer::run),
];

/// The first byte, which chooses among the decoders of a target, and the rest.
fn chosen(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((*first, rest))
}

/// Takes a part off the front: two bytes of length, little-endian, and as many bytes as there are of it.
fn part<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
        return std::mem::take(bytes);
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (part, rest) = rest.split_at(len);
    *bytes = rest;
    part
}

/// A directory in memory that is this process's own, and goes with it as far as possible.
fn directory(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let base = match memory.is_dir() {
        true => memory,
        false => std::env::temp_dir(),
    };
    let path = base.join(format!("tallybook-decoders-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory in memory can be made");
    path
}
