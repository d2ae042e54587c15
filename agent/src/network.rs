//! What a host's container network is called, where its generated files are, and who may change them at a time.
//!
//! Everything here is about files and names of the tool's own. It must never touch a file, a unit, a bridge or a
//! table that it can't show to be the tool's.

use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::durable;
use crate::layout::Layout;
use crate::step::{fail, io_failure};
use crate::text::{shown_as_text, stored_as_text};

pub mod managed;
pub mod ports;
pub mod reservation;
pub mod ruleset;
pub mod unit;

#[cfg(test)]
pub(crate) mod simulated;

/// The unit that makes the bridge at boot.
pub const BRIDGE_UNIT: &str = "tallybook-bridge.service";
/// The unit of the tool's own dnsmasq.
pub const DNSMASQ_UNIT: &str = "tallybook-dnsmasq.service";
/// The unit that loads the tool's table at boot.
pub const NFTABLES_UNIT: &str = "tallybook-nftables.service";

/// How long another process may hold the network's lock before we give up.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// A value that can't be used for a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not an interface name that is safe everywhere it is written.
    #[error("{0:?} is not a bridge name: 1 to 15 of a-z, 0-9 and '-', the first a letter")]
    Bridge(String),
    /// Not an address of a machine in a subnet.
    #[error("{0:?} is not a gateway: an IPv4 address that a machine can have, '/', 8 to 30")]
    Gateway(String),
    /// Not a DNS domain.
    #[error("{0:?} is not a domain: labels of a-z, 0-9 and '-', with dots between")]
    Domain(String),
}

/// The interface name of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bridge(String);

impl Bridge {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Bridge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        // 15 bytes is the kernel's IFNAMSIZ less its terminating zero.
        let good = (1..=15).contains(&text.len())
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_lowercase();
        good.then(|| Bridge(text.to_owned()))
            .ok_or_else(|| Error::Bridge(text.to_owned()))
    }
}

/// The bridge's own address and how many bits of it name the subnet. Written `10.5.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Gateway {
    address: Ipv4Addr,
    prefix: u8,
}

impl Gateway {
    /// An address with a prefix length.
    ///
    /// # Errors
    /// When the prefix is not in 8 to 30, or the address is no machine's.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, Error> {
        let gateway = Gateway { address, prefix };
        let odd = address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || address.is_broadcast();
        if !(8..=30).contains(&prefix)
            || odd
            || address == gateway.network()
            || address == gateway.broadcast()
        {
            return Err(Error::Gateway(gateway.to_string()));
        }
        Ok(gateway)
    }

    /// The bridge's address.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix length.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    fn mask_bits(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// The netmask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask_bits())
    }

    /// The subnet's first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask_bits())
    }

    /// The subnet's last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask_bits())
    }

    /// The subnet, as `10.5.0.0/16`.
    pub fn subnet(self) -> String {
        format!("{}/{}", self.network(), self.prefix)
    }

    /// Whether a container could have this address.
    pub fn serves(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask_bits() == self.network().to_bits()
            && address != self.address
            && address != self.network()
            && address != self.broadcast()
    }

    /// Whether the two subnets have an address in common.
    pub fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        let bits = self.prefix.min(prefix).min(32);
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        (self.address.to_bits() ^ address.to_bits()) & mask == 0
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.prefix))
    }
}

impl FromStr for Gateway {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Gateway(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address = address.parse().map_err(|_| error())?;
        let prefix = prefix.parse().map_err(|_| error())?;
        Gateway::new(address, prefix)
    }
}

/// The DNS domain that containers' names are in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// The domain, without a dot at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        (text.len() <= 253 && text.split('.').all(label))
            .then(|| Domain(text.to_owned()))
            .ok_or_else(|| Error::Domain(text.to_owned()))
    }
}

shown_as_text!(Bridge, Domain);
stored_as_text!(Bridge, Domain, Gateway);

/// Where the network's files are.
impl Layout {
    /// A reservation of an address a container, read by dnsmasq.
    pub fn reservations(&self) -> PathBuf {
        self.etc.join("reservations")
    }

    /// A container's reservation.
    pub fn reservation(&self, container: &ContainerName) -> PathBuf {
        self.reservations().join(container.as_str())
    }

    /// A name a container, read by dnsmasq.
    pub fn names(&self) -> PathBuf {
        self.etc.join("names")
    }

    /// A container's name and address.
    pub fn name(&self, container: &ContainerName) -> PathBuf {
        self.names().join(container.as_str())
    }

    /// The forwarded ports a container.
    pub fn forwards(&self) -> PathBuf {
        self.etc.join("forwards")
    }

    /// A container's forwarded ports.
    pub fn forward(&self, container: &ContainerName) -> PathBuf {
        self.forwards().join(container.as_str())
    }

    /// Which bridge and subnet the ruleset is for.
    pub fn nat(&self) -> PathBuf {
        self.etc.join("nat")
    }

    /// The ruleset made of [`Layout::nat`] and [`Layout::forwards`].
    pub fn ruleset(&self) -> PathBuf {
        self.etc.join("nftables.conf")
    }

    /// The configuration of the tool's own dnsmasq.
    pub fn dnsmasq(&self) -> PathBuf {
        self.etc.join("dnsmasq.conf")
    }

    /// The leases that dnsmasq keeps.
    pub fn leases(&self) -> PathBuf {
        self.state.join("dnsmasq.leases")
    }

    /// A unit of the tool's.
    pub fn unit(&self, name: &str) -> PathBuf {
        self.units.join(name)
    }
}

/// The containers that have an address or forwarded ports here.
fn reserved(layout: &Layout) -> Result<Vec<String>, StepFailure> {
    let mut names = managed::list(&layout.reservations())?;
    names.extend(managed::list(&layout.forwards())?);
    names.sort();
    names.dedup();
    Ok(names)
}

/// What is attached to a bridge.
pub fn attached(layout: &Layout, bridge: &Bridge) -> Vec<String> {
    let ports = layout
        .root
        .join("sys/class/net")
        .join(bridge.as_str())
        .join("brif");
    let mut names: Vec<String> = fs::read_dir(ports)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Refuses to take the network away while any container has an address or a port of it, or anything is attached.
///
/// # Errors
/// [`FailureClass::Exists`], with their names.
pub fn refuse_used(layout: &Layout, bridge: &Bridge) -> Result<(), StepFailure> {
    refuse_reserved(layout)?;
    refuse(
        "attached to the bridge of this host",
        &attached(layout, bridge),
    )
}

/// The same, by what is reserved alone.
///
/// # Errors
/// [`FailureClass::Exists`], with their names.
pub fn refuse_reserved(layout: &Layout) -> Result<(), StepFailure> {
    refuse("on the network of this host", &reserved(layout)?)
}

fn refuse(how: &str, users: &[String]) -> Result<(), StepFailure> {
    if users.is_empty() {
        return Ok(());
    }
    Err(StepFailure {
        hint: Some("stop, move or destroy this host's containers first".to_owned()),
        ..fail(
            FailureClass::Exists,
            format!("still {how}: {}", users.join(", ")),
        )
    })
}

/// The right to change the network's files of this host, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for the network's lock. The kernel drops it when its holder dies.
///
/// # Errors
/// When the lock file can't be made, or another process holds it for a minute.
pub fn lock(layout: &Layout) -> Result<Lock, StepFailure> {
    let directory = layout.locks();
    durable::create_dirs(&directory)?;
    let path = directory.join("network");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| io_failure("opening", &path, &e))?;
    let since = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io_failure("locking", &path, &error.into())),
        }
        if since.elapsed() > LOCK_PATIENCE {
            return Err(fail(
                FailureClass::Timeout,
                format!(
                    "another process changes the network of this host and holds {} for more than {} s",
                    path.display(),
                    LOCK_PATIENCE.as_secs()
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_names_that_are_safe_where_they_are_written() {
        for good in ["lxcbr1", "tb0", "a-b", "abcdefghijklmno"] {
            assert!(good.parse::<Bridge>().is_ok(), "{good:?} was refused");
        }
        for bad in [
            "",
            "Br0",
            "br 0",
            "br0;",
            "br\"0",
            "../x",
            "0br",
            "-br",
            "br.1",
            "br_0",
            "abcdefghijklmnop",
        ] {
            assert!(bad.parse::<Bridge>().is_err(), "{bad:?} was taken");
        }
        for bad in ["", ".", "a..b", "-a", "a b", "a/b", "a.b.", "A"] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?} was taken");
        }
        assert!("lxc.example.net".parse::<Domain>().is_ok());
    }

    #[test]
    fn a_gateway_is_an_address_a_machine_can_have() {
        let gateway: Gateway = "10.5.0.1/16".parse().unwrap();
        assert_eq!(gateway.subnet(), "10.5.0.0/16");
        assert_eq!(gateway.mask().to_string(), "255.255.0.0");
        assert!(gateway.serves([10, 5, 7, 9].into()));
        for no in [
            [10, 5, 0, 1],
            [10, 5, 0, 0],
            [10, 5, 255, 255],
            [10, 6, 0, 9],
        ] {
            assert!(!gateway.serves(no.into()), "{no:?} can't be a container's");
        }
        assert!(gateway.overlaps([10, 5, 3, 1].into(), 24));
        assert!(gateway.overlaps([10, 0, 0, 1].into(), 8));
        assert!(!gateway.overlaps([10, 6, 0, 1].into(), 16));
        for bad in [
            "10.5.0.1",
            "10.5.0.0/16",
            "10.5.255.255/16",
            "127.0.0.1/8",
            "10.5.0.1/31",
            "10.5.0.1/0",
            "0.0.0.0/8",
        ] {
            assert!(bad.parse::<Gateway>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn one_holder_of_the_lock_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::below(root.path());
        let held = lock(&layout).unwrap();
        let other = File::open(layout.locks().join("network")).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(held);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
