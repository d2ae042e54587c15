//! What a log is made of: ids, names, subjects, intents, events, facts, and the exact bytes of each.
//!
//! Pure: no clock, file, process, environment or randomness is reachable from here (`clippy.toml` forbids
//! them). Whoever needs a time or a random byte passes it in. Bytes once written are never reinterpreted.

pub mod ids;
pub mod name;
