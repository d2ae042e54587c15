//! Doors for the fuzz targets (`tests/fuzz`): decoders of what `ssh` and hosts print that have no public caller. Nothing
//! else may use them.

use super::agent_push::{Placed, read_place};
use super::ssh_config::{self, Resolved};
use super::{Destination, Settings};

/// What `ssh -G` prints about a destination.
///
/// # Errors
/// Why it can't be followed.
pub fn ssh_config(asked: &str, text: &str, settings: &Settings) -> Result<Resolved, String> {
    ssh_config::parse(asked, text, settings)
}

/// Where a host says that the agent was placed, if it says so.
pub fn placed(text: &str) -> Option<String> {
    match read_place(text, &mut Vec::new()) {
        Placed::At(directory) => Some(directory),
        Placed::Lost(_) | Placed::Nowhere => None,
    }
}

/// A destination's user, host and port.
pub fn destination(text: &str) -> Option<(Option<&str>, &str, Option<u16>)> {
    Destination::parse(text).map(|found| (found.user, found.host, found.port))
}
