//! The transfer of a tree from one agent to another, relayed by the controller as opaque frames.
//!
//! The sending end offers a manifest; the receiving end asks for the manifest and for the pieces it can find
//! nowhere else; they come in packs. Neither end trusts the other: the sender shows nothing but the tree it was
//! told to serve, and the receiver writes nothing that the manifest, whose id the controller knows from the log,
//! does not vouch for. Memory is bounded by credit: no more packs are under way than the receiver allowed.

mod each;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod local;
pub mod message;
mod pieces;
pub mod receive;
pub mod send;
mod staged;
mod wire;

#[cfg(test)]
mod tests;
