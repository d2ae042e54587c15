//! What the inventory promises: its example, a corpus of mistakes, limits, allocation, and properties of all.

mod allocation;
mod example;
mod limits;
mod mistakes;
mod properties;
mod zone_mistakes;
mod zones;

use super::inventory::Inventory;
use super::parse;

/// A public key that no one holds: its 32 bytes count from 0.
const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody";

#[track_caller]
fn good(text: &str) -> Inventory {
    match parse("cloud.toml", text) {
        Ok(inventory) => inventory,
        Err(diagnostics) => panic!("refused:\n{diagnostics}\nin:\n{text}"),
    }
}
