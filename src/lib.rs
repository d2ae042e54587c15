//! The controller: reads the inventory, appends intents, carries operations out on hosts, and reads the log back.
//!
//! Effects on the world happen here and only in `journal`, `store`, `log`, `host`, `engine` and the clock; what is to be
//! done is decided by `tallybook-replay` from the events.

pub mod causes;
pub mod cli;
pub mod clock;
pub mod cloud;
pub mod cloud_log;
pub mod daemon;
pub mod descriptors;
pub mod engine;
pub mod host;
pub mod huge_pages;
pub mod identity;
pub mod journal;
pub mod log;
pub mod plan;
pub mod render;
pub mod secrets;
pub mod store;
