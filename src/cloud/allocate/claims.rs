//! Who has which address, MAC and port while a cloud is compiled.
//!
//! A claim is never taken away again: what would be shared is noted as a conflict that names both sides.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use tallybook_events::ids::LogId;
use tallybook_events::name::HostName;

use super::{Allocation, Forward, Key, Target};
use crate::cloud::inventory::{Container, Inventory, Port};
use crate::cloud::network::{Mac, PortRange, Protocol, Subnet};

/// The context that keeps these hashes apart from any other (blake3, `derive_key`).
const MAC_CONTEXT: &str = "tallybook 2026-11-22 MAC address of a container";

/// How often a MAC address is derived anew when it is taken. With 2^24 of them, this many in a row are taken only when
/// nearly all are.
const MAC_ATTEMPTS_MAX: u32 = 65_536;

/// Why a cloud can't be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Things that two would share, or nobody can have; never empty.
    #[error("{}", lines(.0))]
    Conflicts(Vec<Conflict>),
    /// Every address is taken.
    #[error("no address is left in {subnet} for {}", shown(.key))]
    AddressesExhausted {
        /// The cloud's subnet.
        subnet: Subnet,
        /// Who would have had one.
        key: Key,
    },
    /// Every port of a host's range is taken.
    #[error("no port is left in {range} for {}", shown(.key))]
    PortsExhausted {
        /// The host's range.
        range: PortRange,
        /// Who would have had one.
        key: Key,
    },
    /// No free MAC address was found.
    #[error("no MAC address is left for {}; use another mac_prefix", shown(.key))]
    MacsExhausted {
        /// Who would have had one.
        key: Key,
    },
    /// An inventory names a host that it doesn't define, which reading one refuses.
    #[error("{} is on a host that the inventory does not define", shown(.key))]
    HostUnknown {
        /// Who is on it.
        key: Key,
    },
}

/// Something that one alone can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// An address, in the whole cloud.
    Address(Ipv4Addr),
    /// A MAC address, in the whole cloud.
    Mac(Mac),
    /// A port of a host.
    Port(HostName, Protocol, u16),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "address {address}"),
            Self::Mac(mac) => write!(f, "MAC address {mac}"),
            Self::Port(host, protocol, port) => {
                write!(f, "port {port}/{protocol} of host {:?}", host.as_str())
            }
        }
    }
}

/// Where a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The inventory says so.
    Inventory,
    /// It is recorded and not released.
    Recorded,
}

impl Claim {
    const fn verb(self) -> &'static str {
        match self {
            Self::Inventory => "given in the inventory to",
            Self::Recorded => "recorded for",
        }
    }
}

/// Why something can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// Two would have it.
    Shared {
        /// What.
        thing: Thing,
        /// Who has it.
        holder: (Claim, Key),
        /// Who would have it too.
        other: (Claim, Key),
    },
    /// It is recorded, and the inventory has since made it impossible.
    Unusable {
        /// What.
        thing: Thing,
        /// Who has it.
        key: Key,
        /// What is in the way.
        reason: String,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared {
                thing,
                holder,
                other,
            } => {
                let side = |(claim, key): &(Claim, Key)| format!("{} {}", claim.verb(), shown(key));
                write!(f, "{thing} is {} and {}", side(holder), side(other))
            }
            Self::Unusable { thing, key, reason } => {
                write!(f, "{thing}, recorded for {}, {reason}", shown(key))
            }
        }
    }
}

fn shown((host, name): &Key) -> String {
    format!("container {:?} on host {:?}", name.as_str(), host.as_str())
}

fn lines(conflicts: &[Conflict]) -> String {
    let lines: Vec<String> = conflicts.iter().map(Conflict::to_string).collect();
    lines.join("\n")
}

/// Every claim, and where to go on looking for what is free.
pub(super) struct Claims<'a> {
    inventory: &'a Inventory,
    seed: &'a LogId,
    taken: BTreeMap<Thing, (Claim, Key)>,
    conflicts: Vec<Conflict>,
    /// The offset in the subnet below which nothing is free.
    address_next: u32,
    /// The same for each host's ports; `None` when none is left.
    port_next: BTreeMap<HostName, Option<u16>>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(inventory: &'a Inventory, seed: &'a LogId) -> Self {
        let hosts = inventory.hosts.iter();
        let port_next =
            hosts.map(|(name, host)| (name.clone(), Some(host.network.forward_ports.first())));
        Self {
            inventory,
            seed,
            taken: BTreeMap::new(),
            conflicts: Vec::new(),
            // The first is the gateway's by custom, whatever this cloud's gateway is.
            address_next: 2,
            port_next: port_next.collect(),
        }
    }

    /// Fails with every conflict noted so far.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        let conflicts = std::mem::take(&mut self.conflicts);
        if conflicts.is_empty() {
            return Ok(());
        }
        Err(Error::Conflicts(conflicts))
    }

    fn take(&mut self, thing: Thing, claim: Claim, key: &Key) {
        match self.taken.get(&thing) {
            // A name is one container, wherever it is recorded: one that moves is at two places for a while.
            Some((_, (_, holder))) if *holder == key.1 => {}
            Some(holder) => self.conflicts.push(Conflict::Shared {
                holder: holder.clone(),
                other: (claim, key.clone()),
                thing,
            }),
            None => {
                self.taken.insert(thing, (claim, key.clone()));
            }
        }
    }

    /// Holds what is recorded of a container that isn't compiled now, or not at that place.
    pub(super) fn hold(&mut self, key: &Key, held: &Allocation) {
        self.take(Thing::Address(held.address), Claim::Recorded, key);
        self.take(Thing::Mac(held.mac), Claim::Recorded, key);
        for forward in &held.forwards {
            let thing = Thing::Port(key.0.clone(), forward.protocol, forward.host_port);
            self.take(thing, Claim::Recorded, key);
        }
    }

    /// Takes what the inventory gives to a compiled container.
    pub(super) fn take_explicit(&mut self, target: &Target<'_>) {
        for thing in explicit(&target.key, target.container) {
            self.take(thing, Claim::Inventory, &target.key);
        }
    }

    /// Sets aside what the inventory gives to a container that isn't compiled now, unless somebody has it.
    pub(super) fn promise(&mut self, key: &Key, container: &Container) {
        for thing in explicit(key, container) {
            self.taken
                .entry(thing)
                .or_insert_with(|| (Claim::Inventory, key.clone()));
        }
    }

    /// Takes what a compiled container has had, where the inventory doesn't say otherwise.
    pub(super) fn take_kept(&mut self, target: &Target<'_>) {
        let Some(before) = target.before else {
            return;
        };
        if target.container.address.is_none() {
            let thing = Thing::Address(before.address);
            if let Some(reason) = self.why_unusable(before.address) {
                let key = target.key.clone();
                self.conflicts
                    .push(Conflict::Unusable { thing, key, reason });
            } else {
                self.take(thing, Claim::Recorded, &target.key);
            }
        }
        if target.container.mac.is_none() {
            self.take(Thing::Mac(before.mac), Claim::Recorded, &target.key);
        }
        if target.moved_from.is_some() {
            return;
        }
        for port in target
            .container
            .ports
            .iter()
            .filter(|port| port.host.is_none())
        {
            let Some(kept) = target.kept_port(port) else {
                continue;
            };
            let thing = Thing::Port(target.key.0.clone(), port.protocol, kept);
            if self.is_ssh_port(&target.key.0, port.protocol, kept) {
                let key = target.key.clone();
                let reason = "is now the port of the host's SSH daemon".to_owned();
                self.conflicts
                    .push(Conflict::Unusable { thing, key, reason });
            } else {
                self.take(thing, Claim::Recorded, &target.key);
            }
        }
    }

    fn why_unusable(&self, address: Ipv4Addr) -> Option<String> {
        let network = &self.inventory.network;
        let subnet = network.subnet;
        if !subnet.contains(address) {
            return Some(format!("is outside the subnet {subnet}"));
        }
        let edge = [subnet.network(), subnet.broadcast()].contains(&address);
        if address == network.gateway || edge {
            return Some("is now the gateway's, or no machine's".to_owned());
        }
        None
    }

    fn is_ssh_port(&self, host: &HostName, protocol: Protocol, port: u16) -> bool {
        let host = self.inventory.hosts.get(host);
        protocol == Protocol::Tcp && host.is_some_and(|host| host.ssh_port() == port)
    }

    /// What a container has from now on: what it was given, what it has had, and for the rest what is free.
    pub(super) fn allocate(&mut self, target: &Target<'_>) -> Result<Allocation, Error> {
        let (container, before) = (target.container, target.before);
        let address = container.address.or(before.map(|before| before.address));
        let address = match address {
            Some(address) => address,
            None => self.free_address(&target.key)?,
        };
        let mac = match container.mac.or(before.map(|before| before.mac)) {
            Some(mac) => mac,
            None => self.free_mac(&target.key)?,
        };
        let mut forwards = Vec::with_capacity(container.ports.len());
        for port in &container.ports {
            let host_port = match port.host.or_else(|| self.kept_port(target, port)) {
                Some(host_port) => host_port,
                None => self.free_port(&target.key, port.protocol)?,
            };
            forwards.push(Forward {
                name: port.name.to_string(),
                protocol: port.protocol,
                host_port,
                container_port: port.container,
            });
        }
        forwards.sort();
        Ok(Allocation {
            address,
            mac,
            forwards,
        })
    }

    /// The port a container has had; on a new host only if it is free there and within the host's range.
    fn kept_port(&mut self, target: &Target<'_>, port: &Port) -> Option<u16> {
        let kept = target.kept_port(port)?;
        if target.moved_from.is_none() {
            return Some(kept);
        }
        let host = &target.key.0;
        let range = self.inventory.hosts.get(host)?.network.forward_ports;
        let within = (range.first()..=range.last()).contains(&kept);
        let free = within && self.is_port_free(host, kept);
        if free {
            let thing = Thing::Port(host.clone(), port.protocol, kept);
            self.take(thing, Claim::Recorded, &target.key);
        }
        free.then_some(kept)
    }

    fn free_address(&mut self, key: &Key) -> Result<Ipv4Addr, Error> {
        let network = &self.inventory.network;
        while let Some(address) = network.subnet.nth(self.address_next) {
            self.address_next += 1;
            let thing = Thing::Address(address);
            if address != network.gateway && !self.taken.contains_key(&thing) {
                self.take(thing, Claim::Inventory, key);
                return Ok(address);
            }
        }
        Err(Error::AddressesExhausted {
            subnet: network.subnet,
            key: key.clone(),
        })
    }

    /// A port allocated for one protocol is left alone for the other: two services on one number confuse people.
    fn is_port_free(&self, host: &HostName, port: u16) -> bool {
        let taken = |protocol| {
            let thing = Thing::Port(host.clone(), protocol, port);
            self.taken.contains_key(&thing) || self.is_ssh_port(host, protocol, port)
        };
        !taken(Protocol::Tcp) && !taken(Protocol::Udp)
    }

    fn free_port(&mut self, key: &Key, protocol: Protocol) -> Result<u16, Error> {
        let host = self.inventory.hosts.get(&key.0);
        let range = host.map(|host| host.network.forward_ports);
        let range = range.ok_or_else(|| Error::HostUnknown { key: key.clone() })?;
        while let Some(port) = self.port_next.get(&key.0).copied().flatten() {
            let next = port.checked_add(1).filter(|next| *next <= range.last());
            self.port_next.insert(key.0.clone(), next);
            if self.is_port_free(&key.0, port) {
                self.take(
                    Thing::Port(key.0.clone(), protocol, port),
                    Claim::Inventory,
                    key,
                );
                return Ok(port);
            }
        }
        Err(Error::PortsExhausted {
            range,
            key: key.clone(),
        })
    }

    fn free_mac(&mut self, key: &Key) -> Result<Mac, Error> {
        for attempt in 0..MAC_ATTEMPTS_MAX {
            let last = derived(self.seed, key, attempt);
            let Ok(mac) = self.inventory.network.mac_prefix.with(last) else {
                continue;
            };
            let thing = Thing::Mac(mac);
            if !self.taken.contains_key(&thing) {
                self.take(thing, Claim::Inventory, key);
                return Ok(mac);
            }
        }
        Err(Error::MacsExhausted { key: key.clone() })
    }
}

fn derived(seed: &LogId, (host, name): &Key, attempt: u32) -> [u8; 3] {
    let mut hasher = blake3::Hasher::new_derive_key(MAC_CONTEXT);
    hasher.update(seed.as_bytes());
    for name in [host.as_str(), name.as_str()] {
        // A name has no zero byte, so that this ends it.
        hasher.update(name.as_bytes()).update(&[0]);
    }
    hasher.update(&attempt.to_le_bytes());
    let [a, b, c, ..] = *hasher.finalize().as_bytes();
    [a, b, c]
}

fn explicit(key: &Key, container: &Container) -> Vec<Thing> {
    let address = container.address.map(Thing::Address);
    let mac = container.mac.map(Thing::Mac);
    let ports = container.ports.iter().filter_map(|port| {
        let number = port.host?;
        Some(Thing::Port(key.0.clone(), port.protocol, number))
    });
    address.into_iter().chain(mac).chain(ports).collect()
}
