//! Addresses, MACs, ports and the ranges they come from.
//!
//! Values only: what is free or taken is decided in [`super::allocate`].

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
pub use tallybook_events::allocation::{Mac, Protocol};

/// Why a text is not an address, a MAC, a subnet or a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not `ADDRESS/BITS`.
    #[error("a subnet is written ADDRESS/BITS, such as 10.5.0.0/16")]
    Subnet,
    /// Too small for a gateway and a container, or too large to be meant.
    #[error("a subnet has 8 to 30 bits, not {0}")]
    SubnetBits(u8),
    /// Bits set after the prefix.
    #[error("{0} is an address inside the subnet {1}, not the subnet")]
    SubnetHostBits(String, Subnet),
    /// Not six pairs of hexadecimal digits.
    #[error("a MAC address is six pairs of hexadecimal digits, such as 00:16:3e:12:34:56")]
    Mac,
    /// Not three pairs of hexadecimal digits.
    #[error("a MAC prefix is three pairs of hexadecimal digits, such as 00:16:3e")]
    MacPrefix,
    /// The group bit is set: such an address can't be a card's own.
    #[error("{0} is a multicast MAC address; the first byte must be even")]
    MacMulticast(String),
    /// Six zeros.
    #[error("00:00:00:00:00:00 can't be a card's MAC address")]
    MacZero,
    /// Not `FIRST-LAST`.
    #[error("a port range is written FIRST-LAST, such as 40000-60000, with ports from 1 to 65535")]
    PortRange,
    /// The last comes before the first.
    #[error("the port range {0}-{1} ends before it starts")]
    PortRangeOrder(u16, u16),
}

macro_rules! text_serde {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

/// An IPv4 subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    bits: u8,
}

impl Subnet {
    /// The subnet of this many bits that holds an address.
    ///
    /// # Errors
    /// When the bits are not within 8 to 30.
    pub fn holding(address: Ipv4Addr, bits: u8) -> Result<Self, Error> {
        if !(8..=30).contains(&bits) {
            return Err(Error::SubnetBits(bits));
        }
        let mask = u32::MAX << (32 - u32::from(bits));
        Ok(Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask),
            bits,
        })
    }

    /// Its own address, which no machine may have.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Its prefix length.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Its last address, which reaches every machine and none may have.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | (u32::MAX >> u32::from(self.bits)))
    }

    /// The address this far from its own; `None` past the last that a machine may have.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        let bits = self.network.to_bits().checked_add(offset)?;
        (bits < self.broadcast().to_bits()).then(|| Ipv4Addr::from_bits(bits))
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.network..=self.broadcast()).contains(&address)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (address, bits) = text.split_once('/').ok_or(Error::Subnet)?;
        let address: Ipv4Addr = address.parse().map_err(|_| Error::Subnet)?;
        let bits: u8 = decimal(bits).ok_or(Error::Subnet)?;
        let subnet = Self::holding(address, bits)?;
        if subnet.network != address {
            return Err(Error::SubnetHostBits(format!("{address}/{bits}"), subnet));
        }
        Ok(subnet)
    }
}

text_serde!(Subnet);

/// Checks six bytes as a network card's own MAC address.
///
/// # Errors
/// When it is a multicast address or all zero.
pub fn card_mac(bytes: [u8; 6]) -> Result<Mac, Error> {
    let mac = Mac(bytes);
    if bytes[0] & 1 == 1 {
        return Err(Error::MacMulticast(mac.to_string()));
    }
    if bytes == [0; 6] {
        return Err(Error::MacZero);
    }
    Ok(mac)
}

/// A MAC address as an operator writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardMac(pub Mac);

impl FromStr for CardMac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        card_mac(hex_pairs(text).ok_or(Error::Mac)?).map(Self)
    }
}

/// The first three bytes of every MAC address that is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacPrefix([u8; 3]);

impl MacPrefix {
    /// The prefix registered for Xen's guests, which LXC's own configuration uses as well.
    pub const XEN: Self = Self([0x00, 0x16, 0x3e]);

    /// The address with this prefix and these last bytes.
    ///
    /// # Errors
    /// When that is all zero.
    pub fn with(&self, last: [u8; 3]) -> Result<Mac, Error> {
        let [a, b, c] = self.0;
        let [d, e, f] = last;
        card_mac([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}")
    }
}

impl FromStr for MacPrefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let prefix = Self(hex_pairs(text).ok_or(Error::MacPrefix)?);
        if prefix.0[0] & 1 == 1 {
            return Err(Error::MacMulticast(prefix.to_string()));
        }
        Ok(prefix)
    }
}

text_serde!(MacPrefix);

/// The host ports that forwards are allocated from, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Checks and takes both ends.
    ///
    /// # Errors
    /// When the first is 0 or comes after the last.
    pub fn new(first: u16, last: u16) -> Result<Self, Error> {
        if first == 0 {
            return Err(Error::PortRange);
        }
        if last < first {
            return Err(Error::PortRangeOrder(first, last));
        }
        Ok(Self { first, last })
    }

    /// Its first port.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// Its last port, which belongs to it.
    pub fn last(&self) -> u16 {
        self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (first, last) = text.split_once('-').ok_or(Error::PortRange)?;
        let end = |text: &str| decimal(text.trim()).ok_or(Error::PortRange);
        Self::new(end(first)?, end(last)?)
    }
}

text_serde!(PortRange);

/// Digits only: `str::parse` also takes a plus sign.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn hex_pairs<const N: usize>(text: &str) -> Option<[u8; N]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0; N];
    let mut pairs = text.split(separator);
    for byte in &mut bytes {
        let pair = pairs.next()?;
        let hex = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(pair, 16).ok().filter(|_| hex)?;
    }
    pairs.next().is_none().then_some(bytes)
}
