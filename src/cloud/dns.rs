//! DNS: names, records, and what an inventory says of zones.
//!
//! Values only: which records a zone has in the end is computed in [`super::zones`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
pub use tallybook_agent::dns::{DomainName, View};
use tallybook_agent::secret::SecretName;
use tallybook_events::name::HostName;

use super::network::Subnet;

/// Why a text is no name, or no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a DNS name.
    #[error(transparent)]
    Name(#[from] tallybook_agent::dns::Error),
    /// Not of this kind.
    #[error("{kind} records are written {form}")]
    Form {
        /// The kind, such as `MX`.
        kind: &'static str,
        /// How its value is written.
        form: &'static str,
    },
    /// Text that could end a line, or a record, of a zone's file.
    #[error(
        "a record has no control characters, parentheses and semicolons only between quotation marks, and those in pairs"
    )]
    Text,
    /// Longer than a message can be.
    #[error("a record has at most {RECORD_LEN_MAX} bytes")]
    Length,
}

/// The longest value of a record that is taken, in bytes: a TXT record of 16 strings.
const RECORD_LEN_MAX: usize = 4096;
/// The longest string inside a TXT record, in bytes (RFC 1035, 3.3.14).
const STRING_LEN_MAX: usize = 255;

/// A host that a record leads to; or `.`: that there is none (RFC 7505; RFC 2782), or for a service that it is the record's own
/// name (RFC 9460, 2.5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target(Option<DomainName>);

impl Target {
    /// The host; none where it is `.`.
    pub const fn host(&self) -> Option<&DomainName> {
        self.0.as_ref()
    }

    fn within(text: &str, zone: &DomainName) -> Result<Self, Error> {
        Ok(Target(match text {
            "." => None,
            _ => Some(DomainName::within(text, zone)?),
        }))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(host) => write!(f, "{host}."),
            None => f.write_str("."),
        }
    }
}

/// What a record says (RFC 1035, 3.3; RFC 3596; RFC 2782; RFC 6672; RFC 9460). As JSON it has a `type` and a `value`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for it.
    Cname(DomainName),
    /// Another name for all that is below it.
    Dname(DomainName),
    /// Who receives its mail; the lowest priority first.
    Mx(u16, Target),
    /// A server of its zone.
    Ns(DomainName),
    /// The name of an address.
    Ptr(DomainName),
    /// Where a service is: priority, weight, port and host.
    Srv(u16, u16, u16, Target),
    /// How a service is reached, `HTTPS` or `SVCB`: priority, host, and parameters as they stand in a zone's file.
    Svcb(&'static str, u16, Target, String),
    /// Text.
    Txt(String),
    /// One of another kind: the kind, and its value as it stands in a zone's file. The server's own checker judges it.
    Other(&'static str, String),
}

/// Kinds that say how a service is reached.
const SERVICE: [&str; 2] = ["HTTPS", "SVCB"];
/// Kinds that are taken as they are written: none has a name in it, which would mean another one in another zone.
const OTHER: [&str; 5] = ["CAA", "DS", "LOC", "SSHFP", "TLSA"];

impl Data {
    /// Every kind that may be given.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        let own = [
            "A", "AAAA", "CNAME", "DNAME", "MX", "NS", "PTR", "SRV", "TXT",
        ];
        own.into_iter().chain(SERVICE).chain(OTHER)
    }

    /// Reads a value of a kind, in a zone. `None` for a kind that there is not.
    ///
    /// # Errors
    /// When it is not written as that kind is.
    pub fn read(kind: &str, value: &str, zone: &DomainName) -> Option<Result<Self, Error>> {
        let name = |text: &str| DomainName::within(text, zone).map_err(Error::from);
        let words: Vec<&str> = value.split_ascii_whitespace().collect();
        let form = |kind, form| Error::Form { kind, form };
        let is_text = value.chars().all(|c| !c.is_control());
        if value.len() > RECORD_LEN_MAX {
            return Some(Err(Error::Length));
        }
        Some(match kind {
            _ if !is_text => Err(Error::Text),
            "A" => value
                .parse()
                .map(Data::A)
                .map_err(|_| form("A", "as an IPv4 address")),
            "AAAA" => value
                .parse()
                .map(Data::Aaaa)
                .map_err(|_| form("AAAA", "as an IPv6 address")),
            "CNAME" => name(value).map(Data::Cname),
            "DNAME" => name(value).map(Data::Dname),
            "NS" => name(value).map(Data::Ns),
            "PTR" => name(value).map(Data::Ptr),
            "TXT" => Ok(Data::Txt(value.to_owned())),
            "MX" => {
                let wrong = || form("MX", "PRIORITY HOST, such as 10 mx1.example.net");
                match words.as_slice() {
                    [priority, host] => priority
                        .parse()
                        .map_err(|_| wrong())
                        .and_then(|priority| Ok(Data::Mx(priority, Target::within(host, zone)?))),
                    _ => Err(wrong()),
                }
            }
            "SRV" => srv(&words, zone),
            kind if SERVICE.contains(&kind) => {
                let kind = *SERVICE.iter().find(|known| **known == kind)?;
                svcb(kind, value, zone)
            }
            kind => {
                let kind = *OTHER.iter().find(|known| **known == kind)?;
                let value = value.trim();
                match !value.is_empty() && stays_on_its_line(value) {
                    true => Ok(Data::Other(kind, value.to_owned())),
                    false => Err(Error::Text),
                }
            }
        })
    }

    /// Whether it is an address.
    pub const fn is_address(&self) -> bool {
        matches!(self, Data::A(_) | Data::Aaaa(_))
    }

    /// Whether, in a zone, this record of `owner` sends who asks for a name elsewhere: to other servers, or to another name.
    pub fn takes_away(&self, owner: &DomainName, zone: &DomainName, name: &DomainName) -> bool {
        match self {
            Data::Ns(_) => owner != zone && name.is_within(owner),
            Data::Dname(_) => owner != name && name.is_within(owner),
            Data::A(_)
            | Data::Aaaa(_)
            | Data::Cname(_)
            | Data::Mx(..)
            | Data::Ptr(_)
            | Data::Srv(..)
            | Data::Svcb(..)
            | Data::Txt(_)
            | Data::Other(..) => false,
        }
    }

    /// The host that it leads to.
    pub const fn leads_to(&self) -> Option<&DomainName> {
        match self {
            Data::Ns(host) | Data::Ptr(host) => Some(host),
            Data::Mx(_, target) | Data::Srv(_, _, _, target) => target.host(),
            Data::A(_)
            | Data::Aaaa(_)
            | Data::Cname(_)
            | Data::Dname(_)
            | Data::Svcb(..)
            | Data::Txt(_)
            | Data::Other(..) => None,
        }
    }

    /// Its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Data::A(_) => "A",
            Data::Aaaa(_) => "AAAA",
            Data::Cname(_) => "CNAME",
            Data::Dname(_) => "DNAME",
            Data::Mx(..) => "MX",
            Data::Ns(_) => "NS",
            Data::Ptr(_) => "PTR",
            Data::Srv(..) => "SRV",
            Data::Txt(_) => "TXT",
            Data::Svcb(kind, ..) | Data::Other(kind, _) => kind,
        }
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("Data", 2)?;
        shown.serialize_field("type", self.kind())?;
        shown.serialize_field("value", &self.to_string())?;
        shown.end()
    }
}

/// As a zone's file has it (RFC 1035, 5.1).
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::A(address) => write!(f, "{address}"),
            Data::Aaaa(address) => write!(f, "{address}"),
            Data::Cname(name) | Data::Dname(name) | Data::Ns(name) | Data::Ptr(name) => {
                write!(f, "{name}.")
            }
            Data::Mx(priority, host) => write!(f, "{priority} {host}"),
            Data::Srv(priority, weight, port, host) => {
                write!(f, "{priority} {weight} {port} {host}")
            }
            Data::Svcb(_, priority, host, parameters) => {
                write!(f, "{priority} {host}")?;
                match parameters.is_empty() {
                    true => Ok(()),
                    false => write!(f, " {parameters}"),
                }
            }
            Data::Txt(text) => {
                let strings: Vec<String> = strings(text).map(quoted).collect();
                f.write_str(&strings.join(" "))
            }
            Data::Other(_, text) => f.write_str(text),
        }
    }
}

fn srv(words: &[&str], zone: &DomainName) -> Result<Data, Error> {
    let wrong = || Error::Form {
        kind: "SRV",
        form: "PRIORITY WEIGHT PORT HOST, such as 10 5 5060 sip.example.net",
    };
    let [priority, weight, port, host] = words else {
        return Err(wrong());
    };
    let number = |text: &str| text.parse().map_err(|_| wrong());
    Ok(Data::Srv(
        number(priority)?,
        number(weight)?,
        number(port)?,
        Target::within(host, zone)?,
    ))
}

/// `PRIORITY HOST PARAMETER...`.
fn svcb(kind: &'static str, value: &str, zone: &DomainName) -> Result<Data, Error> {
    let form = "PRIORITY HOST PARAMETERS, such as 1 . alpn=h2";
    let wrong = || Error::Form { kind, form };
    let (priority, rest) = value.trim().split_once(' ').ok_or_else(wrong)?;
    let rest = rest.trim_start();
    let (host, parameters) = rest.split_once(' ').unwrap_or((rest, ""));
    let parameters = parameters.trim();
    let priority: u16 = priority.parse().map_err(|_| wrong())?;
    if priority == 0 && !parameters.is_empty() {
        let form = "without parameters where the priority is 0, which stands for another name";
        return Err(Error::Form { kind, form });
    }
    if !stays_on_its_line(parameters) {
        return Err(Error::Text);
    }
    Ok(Data::Svcb(
        kind,
        priority,
        Target::within(host, zone)?,
        parameters.to_owned(),
    ))
}

/// Whether a value is one record to whoever reads a zone's file: quotation marks close, and nothing outside them goes on in
/// the next line or begins a comment.
fn stays_on_its_line(text: &str) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for c in text.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '(' | ')' | ';' if !is_quoted => return false,
            _ => {}
        }
    }
    !is_quoted && !is_escaped
}

/// The strings of a TXT record, none cut inside a character.
fn strings(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut ends = (0..=text.len().min(STRING_LEN_MAX)).rev();
        let end = ends.find(|end| text.is_char_boundary(*end));
        let (first, more) = text.split_at(end.unwrap_or_default());
        rest = (!more.is_empty()).then_some(more);
        Some(first)
    })
}

/// A string between quotation marks; what is not printable ASCII as `\DDD`.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => quoted.push_str(&format!("\\{byte:03}")),
        }
    }
    quoted.push('"');
    quoted
}

/// How long what a zone says counts, in seconds (RFC 1035, 3.3.13; RFC 2308, 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Times {
    /// A record, unless it says otherwise.
    pub ttl_s: u32,
    /// Until a secondary asks for changes.
    pub refresh_s: u32,
    /// Until it asks again where it had no answer.
    pub retry_s: u32,
    /// Until it answers no more.
    pub expire_s: u32,
    /// That there is no such name.
    pub minimum_s: u32,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            ttl_s: 330,
            refresh_s: 300,
            retry_s: 300,
            expire_s: 28 * 24 * 3600,
            minimum_s: 299,
        }
    }
}

/// What `[dns]` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Hosts whose servers answer for the zones: the first is the primary, the others have it from there.
    pub servers: Vec<HostName>,
    /// Networks from which names are asked for as from inside.
    pub inside: Vec<Subnet>,
    /// The secret that the servers know each other by.
    pub key: Option<SecretName>,
}

/// A zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Where the inventory defines it.
    pub line: usize,
    /// As [`Dns::servers`], of this zone.
    pub servers: Vec<HostName>,
    /// The names of the servers, as its NS records have them.
    pub nameservers: Vec<DomainName>,
    /// The mailbox of who is responsible, with a dot for the `@`.
    pub contact: DomainName,
    /// How long what it says counts.
    pub times: Times,
    /// Other servers, that may have all of it and are told of changes.
    pub transfer: Vec<IpAddr>,
    /// The zone whose records it has as well, under its own name.
    pub alias: Option<DomainName>,
    /// Its records that the inventory gives.
    pub records: Vec<Record>,
}

/// A record that the inventory gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Where the inventory gives it.
    pub line: usize,
    /// Whose it is.
    pub name: DomainName,
    /// How long it counts, in seconds; as its zone says unless given.
    pub ttl_s: Option<u32>,
    /// Who sees it; everybody unless given.
    pub view: Option<View>,
    /// What it says.
    #[serde(flatten)]
    pub data: Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::new(text).unwrap()
    }

    fn read(kind: &str, value: &str) -> Result<Data, Error> {
        Data::read(kind, value, &name("example.net")).unwrap()
    }

    #[test]
    fn names_are_of_letters_digits_hyphens_and_underscores() {
        for (text, taken) in [
            ("Example.NET.", "example.net"),
            ("_sip._udp.example.net", "_sip._udp.example.net"),
            ("*.example.net", "*.example.net"),
        ] {
            assert_eq!(name(text).as_str(), taken);
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", "-a", "a-", "a b", "*", "a.*.b", "ä", &long] {
            assert!(DomainName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_name_is_within_its_own_zone_only() {
        let zone = name("example.net");
        assert!(name("example.net").is_within(&zone));
        assert!(name("a.b.example.net").is_within(&zone));
        assert!(!name("badexample.net").is_within(&zone));
        assert!(!name("net").is_within(&zone));
    }

    #[test]
    fn a_value_without_a_dot_is_inside_the_zone() {
        let within = |text| DomainName::within(text, &name("example.net")).map(|it| it.to_string());
        assert_eq!(within("@").unwrap(), "example.net");
        assert_eq!(within("www").unwrap(), "www.example.net");
        assert_eq!(within("*").unwrap(), "*.example.net");
        assert_eq!(within("mx.example.org").unwrap(), "mx.example.org");
    }

    #[test]
    fn addresses_are_asked_for_backwards() {
        let of = |address: &str| DomainName::of_address(address.parse().unwrap()).to_string();
        assert_eq!(of("10.5.0.2"), "2.0.5.10.in-addr.arpa");
        // The example of RFC 3596, 2.5.
        assert_eq!(
            of("4321:0:1:2:3:4:567:89ab"),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa"
        );
    }

    #[test]
    fn values_are_read_and_written_as_in_a_zones_file() {
        for (kind, value, written) in [
            ("A", "192.0.2.1", "192.0.2.1"),
            ("AAAA", "2001:DB8::1", "2001:db8::1"),
            ("CNAME", "www", "www.example.net."),
            ("MX", "10  mx1.example.org.", "10 mx1.example.org."),
            ("MX", "0 .", "0 ."),
            ("SRV", "1 2 5060 sip", "1 2 5060 sip.example.net."),
            ("SRV", "0 0 0 .", "0 0 0 ."),
            ("DNAME", "new.example.org", "new.example.org."),
            (
                "HTTPS",
                "1  .  alpn=h2,h3 port=8443",
                "1 . alpn=h2,h3 port=8443",
            ),
            ("SVCB", "0 www", "0 www.example.net."),
            ("TXT", "v=spf1 \"-all\" \\", "\"v=spf1 \\\"-all\\\" \\\\\""),
            ("TXT", "é", "\"\\195\\169\""),
            (
                "CAA",
                "0 issue \"ca.example (x); y\"",
                "0 issue \"ca.example (x); y\"",
            ),
        ] {
            assert_eq!(read(kind, value).unwrap().to_string(), written, "{value}");
        }
        let long = read("TXT", &"x".repeat(600)).unwrap().to_string();
        let lengths: Vec<usize> = long.split(' ').map(|it| it.len() - 2).collect();
        assert_eq!(lengths, [255, 255, 90]);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for (kind, value) in [
            ("A", "::1"),
            ("AAAA", "192.0.2.1"),
            ("A", "192.0.2.1\n@ A 192.0.2.2"),
            ("CNAME", "a b"),
            ("MX", "mx1"),
            ("MX", "70000 mx1"),
            ("SRV", "1 2 sip"),
            ("CNAME", "."),
            ("HTTPS", "1"),
            ("HTTPS", "one ."),
            ("HTTPS", "0 www alpn=h2"),
            ("HTTPS", "1 . alpn=\"h2"),
            ("CAA", "0 issue ("),
            ("CAA", "0 issue \"open"),
            ("TLSA", "3 1 1 ab ; cd"),
            ("LOC", "1\\"),
            ("LOC", "1\\ "),
            ("CAA", " "),
        ] {
            assert!(read(kind, value).is_err(), "{kind} {value:?} was taken");
        }
        assert!(Data::read("SPF", "x", &name("example.net")).is_none());
    }
}
