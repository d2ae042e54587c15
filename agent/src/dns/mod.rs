//! DNS: what a host's server is to answer, and the files from which it does.
//!
//! It comes in two pieces. The *service* says which zones a host has, and all records as they were known at an event of the log;
//! an *amendment* says which records one container has since a later event, be it none. The files of the server are made of the two
//! and of nothing else, see [`server`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::{Epoch, Seq};
use tallybook_events::name::ContainerName;

use crate::text::{shown_as_text, stored_as_text};

pub mod answers;
pub mod files;
pub mod server;
#[cfg(test)]
mod simulated;

/// A text that has no place in a server's files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a DNS name.
    #[error("{0:?} is not a DNS name")]
    Name(String),
    /// Not a network.
    #[error("{0:?} is not a network: an address, '/', and how many bits of it count")]
    Network(String),
    /// Not the kind of a record.
    #[error("{0:?} is not the kind of a record: letters and digits, the first a letter")]
    Kind(String),
    /// What a record says can't end its line.
    #[error("a record has no control characters")]
    Value,
}

/// A DNS name in lower case, without the dot at its end (RFC 1035 with RFC 1123; `_` too, as SRV and TXT owners have it). Its first
/// label may be `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

impl DomainName {
    /// Checks and takes a name; a dot at its end is taken off.
    ///
    /// # Errors
    /// When a label is empty, too long or has other than letters, digits, `_` and inner hyphens.
    pub fn new(text: &str) -> Result<Self, Error> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            let edge = !label.starts_with('-') && !label.ends_with('-');
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            (1..=63).contains(&label.len()) && edge && label.bytes().all(inner)
        };
        let labels = name.strip_prefix("*.").unwrap_or(name);
        if name.len() <= 253 && labels.split('.').all(is_label) {
            return Ok(Self(name.to_ascii_lowercase()));
        }
        Err(Error::Name(text.to_owned()))
    }

    /// The name that a value means inside a zone: `@` is the zone, a name without a dot is inside it, any other stands for
    /// itself.
    ///
    /// # Errors
    /// As [`DomainName::new`].
    pub fn within(text: &str, zone: &DomainName) -> Result<Self, Error> {
        match text {
            "@" => Ok(zone.clone()),
            "*" => DomainName::new(&format!("*.{zone}")),
            _ if text.contains('.') => DomainName::new(text),
            _ => DomainName::new(&format!("{text}.{zone}")),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that name, or lies below it.
    pub fn is_within(&self, zone: &DomainName) -> bool {
        let rest = self.0.strip_suffix(zone.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Whether it stands for all names in its place.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// Whether it is a wildcard, and a name is in its place.
    pub fn stands_for(&self, name: &DomainName) -> bool {
        let above = self.0.strip_prefix('*');
        above.is_some_and(|above| name.0.ends_with(above))
    }

    /// Whether hosts can have that name, or those that it stands for (RFC 1123, 2.1): it has no `_`.
    pub fn is_host_name(&self) -> bool {
        !self.0.contains('_')
    }

    /// The name by which an address is asked for (RFC 1035, 3.5; RFC 3596, 2.5).
    pub fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                Self(format!("{d}.{c}.{b}.{a}.in-addr.arpa"))
            }
            IpAddr::V6(address) => {
                let bytes = address.octets();
                let digits = bytes.iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
                let digits: Vec<String> = digits.map(|digit| format!("{digit:x}")).collect();
                Self(format!("{}.ip6.arpa", digits.join(".")))
            }
        }
    }
}

impl FromStr for DomainName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        DomainName::new(text)
    }
}

/// From where names are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// From hosts and containers of the cloud, and from networks that are said to be inside.
    Inside,
    /// From everywhere else.
    Outside,
}

impl View {
    /// Both, in order.
    pub const ALL: [View; 2] = [View::Inside, View::Outside];

    /// What it is called.
    pub const fn label(self) -> &'static str {
        match self {
            View::Inside => "inside",
            View::Outside => "outside",
        }
    }
}

/// Addresses that begin with the same bits. Written `10.5.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// One address.
    pub const fn of(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Network { address, bits }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Network(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits: u8 = bits.parse().map_err(|_| error())?;
        match bits <= Network::of(address).bits {
            true => Ok(Network { address, bits }),
            false => Err(error()),
        }
    }
}

/// The kind of a record, such as `AAAA`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kind(String);

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let is_letter = |b: u8| b.is_ascii_uppercase();
        let first = text.bytes().next().is_some_and(is_letter);
        let rest = text.bytes().all(|b| is_letter(b) || b.is_ascii_digit());
        match first && rest && text.len() <= 16 {
            true => Ok(Kind(text.to_owned())),
            false => Err(Error::Kind(text.to_owned())),
        }
    }
}

/// What a record says, as a zone's file has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Value(String);

impl FromStr for Value {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.is_empty() || text.chars().any(char::is_control) {
            true => Err(Error::Value),
            false => Ok(Value(text.to_owned())),
        }
    }
}

shown_as_text!(DomainName, Kind, Value);
stored_as_text!(DomainName, Network, Kind, Value);

/// A record of a zone, as one of its views has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Its zone.
    pub zone: DomainName,
    /// Who sees it.
    pub view: View,
    /// Whose it is.
    pub name: DomainName,
    /// How long it counts, in seconds; as its zone says where that is not given.
    pub ttl_s: Option<u32>,
    /// Its kind.
    pub kind: Kind,
    /// What it says.
    pub value: Value,
}

/// What a zone's SOA says (RFC 1035, 3.3.13; RFC 2308), but its serial; times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soa {
    /// The server that is asked first.
    pub server: DomainName,
    /// The mailbox of who is responsible, with a dot for the `@`.
    pub contact: DomainName,
    /// How long records count.
    pub ttl_s: u32,
    /// Until a secondary asks for changes.
    pub refresh_s: u32,
    /// Until it asks again.
    pub retry_s: u32,
    /// Until it answers no more.
    pub expire_s: u32,
    /// How long it counts that there is no such name.
    pub minimum_s: u32,
}

/// Where a server has a zone from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// From its own files.
    Primary {
        /// What its SOA says.
        soa: Soa,
        /// The cloud's other servers of it: they have all of each view, by its key.
        secondaries: Vec<IpAddr>,
        /// Servers of others: they have all of what they see, by their address.
        others: Vec<IpAddr>,
    },
    /// From the primary at this address.
    Secondary {
        /// The address.
        primary: IpAddr,
    },
}

/// A zone that a server answers for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Its name.
    pub name: DomainName,
    /// Where the server has it from.
    pub role: Role,
}

/// A point of the log: what is known as of a later one goes before what is known as of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AsOf {
    /// The log's epoch.
    pub epoch: Epoch,
    /// The newest event.
    pub seq: Seq,
}

/// A record, and the container for which it is there; for none where it is there whatever containers there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The container.
    pub container: Option<ContainerName>,
}

/// What a server answers, as of a point of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As of when.
    pub as_of: AsOf,
    /// Who is inside, besides the host itself.
    pub inside: Vec<Network>,
    /// Addresses of the host where another server of the tool's answers.
    pub not_at: Vec<Ipv4Addr>,
    /// Who is asked for what is in none of the zones, by whoever is inside; the servers of the root where there is nobody.
    pub forwarders: Vec<IpAddr>,
    /// Its zones.
    pub zones: Vec<Zone>,
    /// Records of zones of which it is the primary.
    pub records: Vec<Entry>,
}

/// Which records a container has since a point of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amendment {
    /// Since when.
    pub as_of: AsOf,
    /// All of its records.
    pub records: Vec<Record>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_end_a_line_or_a_statement_is_refused() {
        for text in [
            "a b", "a;", "a\"", "-a", "a..b", "", "*", "a/b", "..", "a\n",
        ] {
            assert!(DomainName::new(text).is_err(), "{text:?} was taken");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "a/8", "10.0.0.0/8;"] {
            assert!(text.parse::<Network>().is_err(), "{text:?} was taken");
        }
        for text in ["", "a", "1A", "A A", "A;"] {
            assert!(text.parse::<Kind>().is_err(), "{text:?} was taken");
        }
        for text in ["", "1\n2", "\t"] {
            assert!(text.parse::<Value>().is_err(), "{text:?} was taken");
        }
        assert_eq!(
            "2001:DB8::/32".parse::<Network>().unwrap().to_string(),
            "2001:db8::/32"
        );
    }
}
