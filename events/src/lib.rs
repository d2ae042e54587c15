//! What a log is made of: ids, names, subjects, intents, events, facts, and the exact bytes of each.
//!
//! Pure: no clock, file, process, environment or randomness is reachable from here (`clippy.toml` forbids
//! them). Whoever needs a time or a random byte passes it in. Bytes once written are never reinterpreted.

pub mod actor;
pub mod allocation;
pub mod archive;
pub mod argv;
pub mod codec;
pub mod event;
pub mod fact;
pub mod gap;
pub mod header;
pub mod ids;
pub mod intent;
pub mod name;
pub mod pace;
pub mod record;
pub mod segment;
pub mod step;
pub mod subject;
