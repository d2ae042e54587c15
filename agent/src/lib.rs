//! What runs on a host: the steps, their receipts, the host's end of transfers and of terminals.
//!
//! The controller links this crate too, to plan and to describe steps; it never calls `forward`, `undo` or
//! `probe` itself. No SSH, no store, no name-service calls, and nothing of a guest is ever executed outside it.

mod admission;
pub mod base;
mod batch;
mod before;
mod boot;
pub mod capture;
mod changes;
mod deadline;
pub mod dns;
pub mod durable;
pub mod fence;
mod frozen;
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
pub mod keeper;
pub mod layout;
mod line;
mod link;
pub mod lock;
pub mod lxc;
pub mod lxc_config;
pub mod mark;
pub mod mask;
pub mod network;
pub mod packages;
pub mod process;
pub mod program;
pub mod protocol;
mod queue;
pub mod receipts;
pub mod scrub;
pub mod secret;
pub mod serve;
pub mod set_aside;
pub mod staging;
pub mod step;
pub mod steps;
pub mod template;
mod terminal;
mod text;
pub mod transfer;
pub mod tree;
