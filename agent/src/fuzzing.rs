//! Doors for the fuzz targets (`tests/fuzz`): decoders of what programs, files and tables of a host and of a guest hold
//! that have no public caller. Nothing else may use them, and each is as thin as it can be.

use std::net::Ipv4Addr;

use tallybook_events::allocation::{Mac, Protocol};
use tallybook_events::codec;
use tallybook_events::step::StepFailure;

use crate::base::apt::{self, Source};
use crate::before::Before;
use crate::network::managed::{self, Found};
use crate::network::ports::{self, Listener};
use crate::network::{Bridge, Gateway, reservation, ruleset};
use crate::packages;
use crate::step::Ended;
use crate::steps::{container_await_address, container_configure, host_bridge, host_observe};

/// What was before a step acted, encoded again.
pub fn before(bytes: &[u8]) -> Option<Vec<u8>> {
    codec::encode(&codec::decode::<Before>(bytes).ok()?).ok()
}

/// A line of `/proc/net/tcp`.
pub fn listener(line: &str, state: &str) -> Option<Listener> {
    ports::parse(line, state)
}

/// A line of a container's fragment of forwarded ports.
pub fn forward(line: &str) -> Option<((Protocol, u16), (Ipv4Addr, u16))> {
    ruleset::parse_line(line)
}

/// How many rules a table of `nft` has, chain by chain.
pub fn rules(table: &str) -> usize {
    ruleset::shape(table).values().sum()
}

/// A file that the tool may have generated.
pub fn generated(text: &str) -> Found {
    managed::parse(text)
}

/// Who has a lease, in a file of leases of dnsmasq.
pub fn lease_holder(leases: &str, address: Ipv4Addr) -> Option<Mac> {
    reservation::holder_in(leases, address)
}

/// A line of `sources.list`.
pub fn apt_line(line: &str) -> Option<Source> {
    apt::one_line(line)
}

/// The stanzas of a `.sources` file.
pub fn apt_stanzas(text: &str) -> Vec<Source> {
    apt::stanzas(text)
}

/// What apt and dpkg say when they fail.
///
/// # Errors
/// The failure that it is taken for.
pub fn apt_failure(ended: &Ended) -> Result<(), StepFailure> {
    packages::judge("apt-get", ended)
}

/// The type of the file system that holds a path, by `mountinfo`.
pub fn filesystem(mountinfo: &str, path: &str) -> Option<String> {
    host_observe::filesystem(mountinfo, path.as_ref())
}

/// The size of the memory in `meminfo`.
pub fn memory_bytes(meminfo: &str) -> Option<u64> {
    host_observe::memory_bytes(meminfo)
}

/// Local addresses in a `fib_trie`.
pub fn local_addresses(fib_trie: &str) -> Vec<Ipv4Addr> {
    container_await_address::local_addresses(fib_trie)
}

/// Whether an ARP table knows who has an address.
pub fn is_resolved(table: &str, address: Ipv4Addr) -> bool {
    container_await_address::is_resolved(table, address)
}

/// What `ip -json address show` prints; `None` when it is not that.
pub fn addresses(printed: &[u8]) -> Option<Vec<(String, Ipv4Addr, u8)>> {
    host_bridge::addresses_in(printed).ok()
}

/// Which bridge and address a unit is for.
pub fn bridge_unit(text: &str) -> Option<(Bridge, Gateway)> {
    host_bridge::unit_is_for(text)
}

/// `/etc/hosts` of a guest with its own name.
pub fn guest_hosts(old: &str, name: &str, domain: Option<&str>) -> String {
    container_configure::hosts(old, name, domain)
}

/// Type and content of a public key within its line.
pub fn public_key(line: &str) -> Option<(&str, &str)> {
    container_configure::key_of(line)
}

/// `authorized_keys` of a guest with these keys among it.
pub fn authorized_keys(old: &[u8], keys: &[String]) -> Vec<u8> {
    container_configure::with_keys(old, keys)
}

/// The fingerprint in what `ssh-keygen -l` prints.
pub fn fingerprint(printed: &[u8]) -> Option<String> {
    container_configure::fingerprint(printed)
}
