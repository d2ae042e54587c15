//! `[network]`, and the part of it that a host may set for itself.

use std::net::{IpAddr, Ipv4Addr};

use crate::cloud::dns::DomainName;
use crate::cloud::inventory::{HostNetwork, Network};
use crate::cloud::network::{MacPrefix, PortRange, Subnet};
use crate::cloud::section::{Report, Section};

/// A lease shorter than this is refused by dnsmasq (its manual, `--dhcp-range`).
const LEASE_S_MIN: u64 = 120;
const LEASE_S_MAX: u64 = 365 * 24 * 3600;
const LEASE_S_DEFAULT: u32 = 12 * 3600;
const BRIDGE_DEFAULT: &str = "tbbr0";
const FORWARD_PORTS_DEFAULT: (u16, u16) = (40_000, 60_000);

const LATER: [&str; 8] = [
    "gateway6", "ipv6", "mtu", "nat", "proxy", "search", "subnet6", "vlan",
];

/// What a host's end of the network is told so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    bridge: Option<String>,
    domain: Option<String>,
    dhcp_lease_s: Option<u32>,
    forward_ports: Option<PortRange>,
    forward_address: Option<IpAddr>,
    dns: Option<Vec<IpAddr>>,
}

impl Settings {
    /// These, and where they are silent, those.
    pub(super) fn or(self, general: &Self) -> Self {
        let general = general.clone();
        Self {
            bridge: self.bridge.or(general.bridge),
            domain: self.domain.or(general.domain),
            dhcp_lease_s: self.dhcp_lease_s.or(general.dhcp_lease_s),
            forward_ports: self.forward_ports.or(general.forward_ports),
            forward_address: self.forward_address.or(general.forward_address),
            dns: self.dns.or(general.dns),
        }
    }

    pub(super) fn complete(self) -> HostNetwork {
        let (first, last) = FORWARD_PORTS_DEFAULT;
        HostNetwork {
            bridge: self.bridge.unwrap_or_else(|| BRIDGE_DEFAULT.to_owned()),
            domain: self.domain,
            dhcp_lease_s: self.dhcp_lease_s.unwrap_or(LEASE_S_DEFAULT),
            forward_ports: self.forward_ports.unwrap_or_else(|| {
                PortRange::new(first, last).expect("the default range is in order")
            }),
            forward_address: self.forward_address,
            dns: self.dns.unwrap_or_default(),
        }
    }

    fn read(section: &Section<'_>) -> Self {
        Self {
            bridge: bridge(section),
            domain: domain(section),
            dhcp_lease_s: lease(section),
            forward_ports: section.parsed("forward_ports").map(|range| range.value),
            forward_address: None,
            dns: addresses(section, "dns"),
        }
    }
}

/// Reads `[network]`: what the cloud shares, and what its hosts begin with.
pub(super) fn read(section: Option<Section<'_>>, report: &Report<'_>) -> (Network, Settings) {
    let default = Subnet::holding(Ipv4Addr::new(10, 5, 0, 0), 16);
    let default = default.expect("16 bits are within 8 to 30");
    let first_of = |subnet: Subnet| subnet.nth(1).unwrap_or(subnet.network());
    let Some(section) = section else {
        let network = Network {
            subnet: default,
            gateway: first_of(default),
            mac_prefix: MacPrefix::XEN,
        };
        return (network, Settings::default());
    };
    let subnet = section.parsed::<Subnet>("subnet");
    let subnet_given = subnet.map(|subnet| subnet.value);
    let subnet = subnet_given.unwrap_or(default);
    let gateway = section.parsed::<Ipv4Addr>("gateway");
    // A subnet that could not be read says nothing about the gateway.
    let subnet_read = subnet_given.is_some() || section.position("subnet").is_none();
    if let Some(gateway) = gateway.filter(|_| subnet_read) {
        let inside = subnet.contains(gateway.value);
        let edge = [subnet.network(), subnet.broadcast()].contains(&gateway.value);
        if !inside || edge {
            let message = format!(
                "gateway {} is not a machine's address in {subnet}",
                gateway.value
            );
            report.error(gateway.at, message);
        }
    }
    let mac_prefix = section.parsed("mac_prefix").map(|prefix| prefix.value);
    let settings = Settings::read(&section);
    let network = Network {
        subnet,
        gateway: gateway.map_or(first_of(subnet), |gateway| gateway.value),
        mac_prefix: mac_prefix.unwrap_or(MacPrefix::XEN),
    };
    let elsewhere = [(
        "forward_address",
        "each host has its own: set it in [hosts.NAME.network]",
    )];
    section.finish(&LATER, &elsewhere);
    (network, settings)
}

/// Reads the `network` table of a host, or of the defaults of all.
pub(super) fn read_host(section: Section<'_>, of_one_host: bool) -> Settings {
    const SHARED: &str = "the whole cloud shares one: set it in [network]";
    let mut settings = Settings::read(&section);
    if of_one_host {
        let address = section.parsed("forward_address");
        settings.forward_address = address.map(|address| address.value);
    }
    let elsewhere = [
        ("subnet", SHARED),
        ("gateway", SHARED),
        ("mac_prefix", SHARED),
        (
            "forward_address",
            "each host has its own: set it in [hosts.NAME.network]",
        ),
    ];
    section.finish(&LATER, &elsewhere);
    settings
}

/// An interface name: 15 bytes and no `/` (linux/if.h, IFNAMSIZ), kept to what every tool reads as one word.
fn bridge(section: &Section<'_>) -> Option<String> {
    let text = section.text("bridge")?;
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first = text.value.starts_with(|c: char| c.is_ascii_alphabetic());
    if !first || text.value.len() > 15 || !text.value.chars().all(word) {
        let message = "bridge must be an interface name: a letter, then at most 14 letters, digits, '-', '_' and '.'";
        section.report().error(text.at, message);
        return None;
    }
    Some(text.value.to_owned())
}

fn domain(section: &Section<'_>) -> Option<String> {
    let text = section.text("domain")?;
    let domain = DomainName::new(text.value).ok();
    let domain = domain.filter(|domain| !domain.is_wildcard());
    if domain.is_none() {
        section.report().error(text.at, "domain must be a DNS name");
    }
    domain.map(|domain| domain.to_string())
}

fn lease(section: &Section<'_>) -> Option<u32> {
    let text = section.text("dhcp_lease")?;
    let lease = humantime::parse_duration(text.value).ok();
    let seconds = lease.map(|lease| lease.as_secs());
    let seconds = seconds.filter(|seconds| (LEASE_S_MIN..=LEASE_S_MAX).contains(seconds));
    if seconds.is_none() {
        let message = "dhcp_lease must be a duration such as \"12h\", from 2 minutes to 365 days";
        section.report().error(text.at, message);
    }
    seconds.and_then(|seconds| u32::try_from(seconds).ok())
}

fn addresses(section: &Section<'_>, key: &'static str) -> Option<Vec<IpAddr>> {
    let report = section.report();
    let address = |text: crate::cloud::section::At<&str>| {
        let address = text.value.parse();
        if address.is_err() {
            report.error(text.at, format_args!("{key} must list IP addresses"));
        }
        address.ok()
    };
    let texts = section.texts(key)?;
    Some(texts.into_iter().filter_map(address).collect())
}
