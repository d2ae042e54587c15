//! The inventory's hosts, and how each is reached.
//!
//! It connects to none of them.

use std::path::PathBuf;

use tallybook_events::name::HostName;

use super::super::Error;
use crate::cloud::inventory::{Become, Inventory};
use crate::engine::reach::{AgentProgram, Fleet};
use crate::host::{Settings, Target};

/// The inventory's hosts, and how each is reached.
pub(in crate::cli) fn fleet(inventory: &Inventory) -> Result<Fleet, Error> {
    let agent = AgentProgram::beside_this_program()?;
    let settings = settings();
    let targets = inventory
        .hosts
        .keys()
        .map(|name| target(inventory, name, &settings))
        .collect::<Result<_, _>>()?;
    Ok(Fleet::new(targets, settings, agent))
}

/// How hosts are reached from here.
pub(in crate::cli) fn settings() -> Settings {
    Settings::with_environment(|name| std::env::var_os(name))
}

/// One host of the inventory, and how it is reached.
///
/// # Errors
/// When the inventory does not have it.
pub(in crate::cli) fn target(
    inventory: &Inventory,
    name: &HostName,
    settings: &Settings,
) -> Result<Target, Error> {
    let host = inventory
        .hosts
        .get(name)
        .ok_or_else(|| crate::plan::Error::HostUnknown(name.clone()))?;
    let mut jumps = Vec::new();
    let mut next = host.jump.as_ref();
    // The inventory has refused cycles.
    while let Some(jump) = next.and_then(|name| inventory.hosts.get(name)) {
        let user = jump.user.as_ref().map(|user| format!("{user}@"));
        let port = jump.port.map(|port| format!(":{port}"));
        let address = [user, Some(jump.address.clone()), port];
        jumps.insert(0, address.into_iter().flatten().collect::<String>());
        next = jump.jump.as_ref();
    }
    let identity = host
        .identity
        .as_ref()
        .map(|path| match path.strip_prefix("~/") {
            Some(rest) => settings.home.clone().unwrap_or_default().join(rest),
            None => PathBuf::from(path),
        });
    Ok(Target {
        name: name.clone(),
        address: host.address.clone(),
        port: host.port,
        user: host.user.clone(),
        identity_files: identity.into_iter().collect(),
        jump: (!jumps.is_empty()).then(|| jumps.join(",")),
        become_root: host.become_root == Become::Sudo,
        local: host.local,
    })
}
