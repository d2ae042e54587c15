//! Making a template of a staged root file system: what is taken out of it, and what must not be left in it.
//!
//! Nothing of a guest is ever executed, and nothing outside the staged tree is read or changed.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Mac;

pub mod config;
pub mod leaks;
pub mod overlay;
pub mod scrub;
pub mod staged;

/// What identifies the container that a template is made from, as its cloud knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Source {
    /// Its names: the container's own, host names, with domains where they are known.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC addresses.
    pub macs: Vec<Mac>,
}
