//! Commands that act, as their users run them: the program itself, over SSH, on hosts in this process.
//!
//! The hosts speak SSH and the agent's protocol; the steps are played, so nothing on this machine is touched.

mod allocations;
mod commands;
mod daemon;
mod drift;
mod failures;
mod fleet;
mod full;
mod ground;
mod hosts;
mod messages;
mod played;
mod rollback_to;
mod secrets;
mod sshd;
mod terminal;
mod terminals;
mod trust;
mod ways_out;
