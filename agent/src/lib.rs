//! What runs on a host: the steps, their receipts, the host's end of transfers and of terminals.
//!
//! The controller links this crate too, to plan and to describe steps; it never calls `forward`, `undo` or
//! `probe` itself. No SSH, no store, no name-service calls, and nothing of a guest is ever executed outside it.

pub mod layout;
pub mod protocol;
pub mod step;
pub mod steps;
pub mod template;
pub mod transfer;
pub mod tree;
