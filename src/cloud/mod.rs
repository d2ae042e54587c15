//! The cloud an operator describes: `cloud.toml` checked, and compiled into what its hosts need.
//!
//! Pure: text and earlier allocations in, a typed inventory, a selection or a compiled cloud out. Nothing here
//! opens a file, reads a clock or draws randomness, and nothing guesses: whatever is wrong is a
//! [`Diagnostic`] with its place, and all of them are reported together. `docs/CLOUD.md` documents every key.

pub mod allocate;
pub mod diagnostic;
pub mod dns;
pub mod inventory;
pub mod key;
pub mod limit;
pub mod network;
mod parse;
mod section;
pub mod zones;

#[cfg(test)]
mod tests;

pub use allocate::{Allocation, Compiled, Forward, compile};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use inventory::Inventory;
pub use limit::{Limit, Selection};
pub use network::{Mac, Protocol, Subnet};
pub use parse::parse;
