//! The inventory's hosts, and how each is reached.
//!
//! It connects to none of them.

use std::path::PathBuf;

use tallybook_events::name::HostName;

use super::super::Error;
use crate::cloud::inventory::{Become, Host, Inventory};
use crate::descriptors;
use crate::engine::reach::{AgentProgram, Fleet, SESSIONS_MAX};
use crate::host::{Jump, Settings, Target};

/// The inventory's hosts, and how each is reached.
pub(in crate::cli) fn fleet(inventory: &Inventory) -> Result<Fleet, Error> {
    fleet_with(inventory, AgentProgram::beside_this_program()?)
}

/// The same, with an agent that was read before.
pub(super) fn fleet_with(inventory: &Inventory, agent: AgentProgram) -> Result<Fleet, Error> {
    let settings = settings();
    let targets = inventory
        .hosts
        .keys()
        .map(|name| target(inventory, name, &settings))
        .collect::<Result<Vec<_>, _>>()?;
    // Hosts that can be reached are: that some may not be is no reason to begin nothing.
    if let Err(error) = descriptors::make_room(targets.len().min(SESSIONS_MAX)) {
        tracing::warn!("{error}");
    }
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
    while let Some((name, jump)) = next.and_then(|name| inventory.hosts.get_key_value(name)) {
        jumps.insert(
            0,
            Jump {
                label: name.to_string(),
                address: jump.address.clone(),
                port: jump.port,
                user: jump.user.clone(),
                identity_files: identity_files(jump, settings),
            },
        );
        next = jump.jump.as_ref();
    }
    Ok(Target {
        name: name.clone(),
        address: host.address.clone(),
        port: host.port,
        user: host.user.clone(),
        identity_files: identity_files(host, settings),
        jumps,
        become_root: host.become_root == Become::Sudo,
        local: host.local,
    })
}

/// The private keys that the inventory names for a host.
fn identity_files(host: &Host, settings: &Settings) -> Vec<PathBuf> {
    let path = host
        .identity
        .as_deref()
        .map(|path| match path.strip_prefix("~/") {
            Some(rest) => settings.home.clone().unwrap_or_default().join(rest),
            None => PathBuf::from(path),
        });
    path.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::parse;

    #[test]
    fn jump_hosts_are_reached_as_the_inventory_says_of_them() {
        let text = "[hosts.gate]\naddress = \"2001:db8::1\"\nport = 2222\nuser = \"ops\"\nidentity = \"~/.ssh/gate\"\n\
                    [hosts.cn1]\naddress = \"192.0.2.1\"\njump = \"gate\"\n";
        let inventory = parse("cloud.toml", text).unwrap();
        let settings = Settings {
            home: Some(PathBuf::from("/home/op")),
            ..Settings::default()
        };
        let target = target(&inventory, &"cn1".parse().unwrap(), &settings).unwrap();
        let gate = Jump {
            label: "gate".to_owned(),
            address: "2001:db8::1".to_owned(),
            port: Some(2222),
            user: Some("ops".to_owned()),
            identity_files: vec![PathBuf::from("/home/op/.ssh/gate")],
        };
        assert_eq!(target.jumps, [gate]);
    }
}
