//! The inventory, typed, with defaults applied: what an operator wants, never what is.
//!
//! Holds nothing secret: public keys, the paths of private ones, and where secrets live.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::Serialize;
use tallybook_agent::secret::SecretName;
use tallybook_events::name::{ContainerName, HostName, TemplateName};

use super::dns::{Dns, DomainName, View, Zone};
use super::key::PublicKey;
use super::network::{Mac, MacPrefix, PortRange, Protocol, Subnet};

/// A whole `cloud.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The file as the operator named it; lines below are lines of it.
    pub file: String,
    /// What the operator calls this cloud.
    pub name: Option<String>,
    /// The host this tool runs on.
    pub controller: Option<HostName>,
    /// What the whole cloud shares.
    pub network: Network,
    /// Hosts.
    pub hosts: BTreeMap<HostName, Host>,
    /// Groups of hosts.
    pub groups: BTreeMap<Label, Group>,
    /// Public keys, by the name of who holds them.
    pub keys: BTreeMap<Label, Vec<PublicKey>>,
    /// Secrets: where each lives.
    pub secrets: BTreeMap<SecretName, DeclaredSecret>,
    /// Containers; a name is used once in the cloud.
    pub containers: BTreeMap<ContainerName, Container>,
    /// Templates.
    pub templates: BTreeMap<TemplateName, Template>,
    /// The DNS servers.
    pub dns: Dns,
    /// DNS zones.
    pub zones: BTreeMap<DomainName, Zone>,
}

/// The name of a group, of a key's holder or of a forward: letters, digits, `-`, `_` and `.`, starting with a letter
/// or a digit, at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Label(String);

impl Label {
    /// Checks and takes a label.
    pub fn new(text: &str) -> Option<Self> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let good = first && text.len() <= 64 && text.bytes().all(rest);
        good.then(|| Self(text.to_owned()))
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all"
)]
pub struct NoLabel;

impl FromStr for Label {
    type Err = NoLabel;

    fn from_str(text: &str) -> Result<Self, NoLabel> {
        Label::new(text).ok_or(NoLabel)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A secret that is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeclaredSecret {
    /// Where the inventory declares it.
    pub line: usize,
    /// Where it lives.
    pub source: SecretSource,
}

/// Where a secret lives, on the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// In a file that only its owner may read: its absolute path.
    File(String),
    /// In a variable of the environment that `tallybook` is run in.
    Env(String),
}

/// What every host and container of the cloud shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Where container addresses come from; each is used once in the whole cloud.
    pub subnet: Subnet,
    /// The bridge's own address, the same on each host.
    pub gateway: Ipv4Addr,
    /// How allocated MAC addresses begin.
    pub mac_prefix: MacPrefix,
}

/// How to become root on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Become {
    /// The user is root already.
    None,
    /// By `sudo`, without a password.
    Sudo,
}

/// A machine that runs containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Where the inventory defines it.
    pub line: usize,
    /// A DNS name or an IP address; the host's name unless given.
    pub address: String,
    /// The port of its SSH daemon; else what the SSH configuration says.
    pub port: Option<u16>,
    /// Who logs in; else what the SSH configuration says.
    pub user: Option<String>,
    /// The path of the private key to offer; else what the SSH agent and configuration say.
    pub identity: Option<String>,
    /// How that user becomes root.
    #[serde(rename = "become")]
    pub become_root: Become,
    /// The host to go through.
    pub jump: Option<HostName>,
    /// Whether it is the machine this tool runs on, reached without SSH.
    pub local: bool,
    /// A directory on it that keeps downloaded packages for bootstrapping.
    pub package_cache: Option<String>,
    /// Addresses by which others than hosts and containers reach it.
    pub public: BTreeSet<IpAddr>,
    /// DNS names that lead to it; its address has the first one.
    pub domains: Vec<DomainName>,
    /// The groups it is in, also through other groups.
    pub groups: BTreeSet<Label>,
    /// Its bridge, and what it does for the containers behind it.
    pub network: HostNetwork,
}

impl Host {
    /// By which addresses it is reached: what is said of that, or else its own address, from outside only where that is one that can
    /// be reached from everywhere.
    pub fn seen_from(&self, view: View) -> BTreeSet<IpAddr> {
        if !self.public.is_empty() {
            return self.public.clone();
        }
        let address: Option<IpAddr> = self.address.parse().ok();
        let is_public = |address: &IpAddr| match address {
            IpAddr::V4(address) => {
                let [first, second, ..] = address.octets();
                // Behind the translation of a provider (RFC 6598), or for measurements (RFC 2544).
                let is_shared = first == 100 && second & 0xc0 == 64;
                let is_measured = first == 198 && second & 0xfe == 18;
                let is_of_a_machine = (1..224).contains(&first);
                is_of_a_machine
                    && !address.is_private()
                    && !address.is_loopback()
                    && !address.is_link_local()
                    && !is_shared
                    && !is_measured
            }
            IpAddr::V6(address) => {
                !address.is_loopback()
                    && !address.is_unique_local()
                    && !address.is_unicast_link_local()
                    && !address.is_unspecified()
                    && !address.is_multicast()
            }
        };
        let is_seen = |address: &IpAddr| match view {
            View::Inside => !address.is_loopback() && !address.is_unspecified(),
            View::Outside => is_public(address),
        };
        let address = address.map(|address| address.to_canonical());
        address.filter(is_seen).into_iter().collect()
    }

    /// The name that a container here has in DNS without anybody saying so: its own, where that has a dot, else its own in the
    /// host's domain.
    pub fn own_domain(&self, container: &ContainerName) -> Option<DomainName> {
        match container.as_str().contains('.') {
            true => DomainName::new(container.as_str()).ok(),
            false => {
                let domain = self.network.domain.as_ref()?;
                DomainName::new(&format!("{container}.{domain}")).ok()
            }
        }
    }

    /// The port of its SSH daemon, as far as the inventory knows it.
    pub fn ssh_port(&self) -> u16 {
        self.port.unwrap_or(22)
    }
}

/// A host's end of the container network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostNetwork {
    /// The bridge's interface name.
    pub bridge: String,
    /// The DNS domain of the containers.
    pub domain: Option<String>,
    /// How long a DHCP lease lasts, in seconds.
    pub dhcp_lease_s: u32,
    /// Host ports that forwards are allocated from.
    pub forward_ports: PortRange,
    /// The address that forwarded ports listen on; every address of the host unless given.
    pub forward_address: Option<IpAddr>,
    /// Upstream resolvers; the host's own unless given.
    pub dns: Vec<IpAddr>,
}

/// A set of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Where the inventory defines it.
    pub line: usize,
    /// Its hosts, also through other groups.
    pub hosts: BTreeSet<HostName>,
}

/// What a container's root filesystem is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The newest generation of a template.
    Template(TemplateName),
    /// Debian, bootstrapped.
    Debian(Debian),
    /// A static busybox and nothing else.
    Busybox,
}

/// How Debian is bootstrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Debian {
    /// The suite, such as `trixie`.
    pub release: String,
    /// Where packages come from; where the host itself has them from unless given.
    pub mirror: Option<String>,
    /// What is installed besides `packages`.
    pub variant: Variant,
    /// More packages to install.
    pub packages: BTreeSet<String>,
}

/// What a bootstrapped Debian begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Essential packages and apt.
    Minbase,
}

/// How a root filesystem is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// The cheapest that the host's filesystem can do.
    Auto,
    /// A directory, copied in full.
    Dir,
    /// An overlay above a template's generation.
    Overlay,
    /// A directory whose files share their blocks with the source.
    Reflink,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Where the inventory defines it.
    pub line: usize,
    /// The host it runs on.
    pub host: HostName,
    /// What it is made from.
    pub source: Source,
    /// How it is stored.
    pub backing: Backing,
    /// Whether it starts with its host.
    pub autostart: bool,
    /// Its address, if the operator chose it; allocated otherwise.
    pub address: Option<Ipv4Addr>,
    /// Its MAC address, if the operator chose it; derived otherwise.
    pub mac: Option<Mac>,
    /// Ports of the host that reach it, in the order given.
    pub ports: Vec<Port>,
    /// Whose public keys may log in.
    pub keys: BTreeSet<Label>,
    /// What is run inside, in this order, once it has an address.
    pub provision: Vec<Provision>,
    /// DNS names that lead to it; its address has the first one.
    pub domains: Vec<DomainName>,
}

/// A port of a container that is reachable on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Where the inventory defines it.
    pub line: usize,
    /// What it is called, once in its container; `tcp-80` and the like unless given, `ssh` for 22.
    pub name: Label,
    /// The protocol.
    pub protocol: Protocol,
    /// The port inside.
    pub container: u16,
    /// The port on the host, if the operator chose it; allocated otherwise.
    pub host: Option<u16>,
}

/// One thing to run inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Provision {
    /// Where the inventory defines it.
    pub line: usize,
    /// What to run.
    pub action: Action,
    /// Skipped when this path exists inside.
    pub creates: Option<String>,
    /// The secrets that it finds in its environment, in variables of their names in capitals.
    pub secrets: BTreeSet<SecretName>,
    /// How long it may take, in seconds.
    pub timeout_s: u32,
}

/// What provisioning runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A program and its arguments; no shell reads them.
    Run(Vec<String>),
    /// A script: by its `#!` line, or by `/bin/sh -e`.
    Script(String),
}

/// A template: an offline image that containers are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Template {
    /// Where the inventory defines it.
    pub line: usize,
    /// The container it is a snapshot of; none for one that is only received.
    pub builder: Option<ContainerName>,
    /// Scrub operations to leave out.
    pub scrub_keep: BTreeSet<Label>,
    /// How many generations are kept.
    pub retain: u32,
}
