//! Hosts: what the tool itself needs on them, and what containers need.

use std::net::IpAddr;

use tallybook_agent::network::{Bridge, Domain, Gateway};
use tallybook_agent::steps::host_bridge::HostBridge;
use tallybook_agent::steps::host_directories::HostDirectories;
use tallybook_agent::steps::host_dnsmasq::HostDnsmasq;
use tallybook_agent::steps::host_forwarding::HostForwarding;
use tallybook_agent::steps::host_nftables::HostNftables;
use tallybook_agent::steps::host_observe::HostObserve;
use tallybook_agent::steps::host_packages::HostPackages;
use tallybook_events::name::HostName;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::{Error, Plan, value};
use crate::cloud::{Inventory, inventory};

/// What the agent's own steps call on a host, besides what every Debian has.
const PACKAGES_INSTALL: [&str; 3] = ["ca-certificates", "iproute2", "openssh-client"];
/// What containers need on a host.
const PACKAGES_PREPARE: [&str; 8] = [
    "busybox-static",
    "debootstrap",
    "dnsmasq-base",
    "dnsmasq-utils",
    "iputils-ping",
    "lxc",
    "nftables",
    "uidmap",
];

/// `host install`.
///
/// # Errors
/// When a host is not in the inventory.
pub fn install(inventory: &Inventory, hosts: &[HostName]) -> Result<Vec<PlannedStep>, Error> {
    let mut plan = Plan::default();
    for name in hosts {
        host(inventory, name)?;
        let subject = Subject::Host(name.clone());
        plan.then(name, &subject, &HostObserve {})?;
        plan.then(name, &subject, &packages(&PACKAGES_INSTALL)?)?;
        plan.then(name, &subject, &HostDirectories {})?;
    }
    Ok(plan.finish())
}

/// `host prepare`.
///
/// # Errors
/// When a host is not in the inventory, or was not installed.
pub fn prepare(
    inventory: &Inventory,
    state: &State,
    hosts: &[HostName],
) -> Result<Vec<PlannedStep>, Error> {
    let mut plan = Plan::default();
    for name in hosts {
        let host = host(inventory, name)?;
        if !state.hosts.get(name).is_some_and(|known| known.installed) {
            return Err(Error::NotInstalled(name.clone()));
        }
        let subject = Subject::Host(name.clone());
        let bridge: Bridge = value("bridge", &host.network.bridge)?;
        let gateway = gateway(inventory)?;
        let domain = host.network.domain.as_deref();
        let forward_address = match host.network.forward_address {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(address)) => {
                return Err(Error::Value {
                    what: "forward_address",
                    value: address.to_string(),
                });
            }
            None => None,
        };
        plan.then(name, &subject, &HostObserve {})?;
        plan.then(name, &subject, &packages(&PACKAGES_PREPARE)?)?;
        plan.then(name, &subject, &HostForwarding {})?;
        plan.then(
            name,
            &subject,
            &HostBridge {
                bridge: bridge.clone(),
                gateway,
            },
        )?;
        plan.then(
            name,
            &subject,
            &HostDnsmasq {
                bridge: bridge.clone(),
                gateway,
                domain: domain
                    .map(|domain| value::<Domain>("domain", domain))
                    .transpose()?,
                lease_s: host.network.dhcp_lease_s,
                dns: host.network.dns.clone(),
            },
        )?;
        plan.then(
            name,
            &subject,
            &HostNftables {
                bridge,
                gateway,
                forward_address,
            },
        )?;
    }
    Ok(plan.finish())
}

/// A host of the inventory.
pub(super) fn host<'a>(
    inventory: &'a Inventory,
    name: &HostName,
) -> Result<&'a inventory::Host, Error> {
    inventory
        .hosts
        .get(name)
        .ok_or_else(|| Error::HostUnknown(name.clone()))
}

/// The bridge's own address on every host.
pub(super) fn gateway(inventory: &Inventory) -> Result<Gateway, Error> {
    let network = &inventory.network;
    Gateway::new(network.gateway, network.subnet.bits()).map_err(|_| Error::Value {
        what: "gateway",
        value: network.gateway.to_string(),
    })
}

fn packages(names: &[&str]) -> Result<HostPackages, Error> {
    let packages = names.iter().map(|name| value("package", name));
    Ok(HostPackages {
        packages: packages.collect::<Result<_, _>>()?,
    })
}
