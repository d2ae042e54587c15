//! The table of all steps. A new step is one file here and one row below; nothing else needs to know of it.

use crate::step::StepKind;

pub mod dhcp_release;
pub mod dhcp_reserve;
pub mod forward_close;
pub mod forward_open;
pub mod host_bridge;
pub mod host_directories;
pub mod host_dnsmasq;
pub mod host_forwarding;
pub mod host_nftables;
pub mod host_observe;
pub mod host_packages;

/// Every kind of step, in alphabetical order.
pub const TABLE: &[StepKind] = &[
    StepKind::of::<dhcp_release::DhcpRelease>(),
    StepKind::of::<dhcp_reserve::DhcpReserve>(),
    StepKind::of::<forward_close::ForwardClose>(),
    StepKind::of::<forward_open::ForwardOpen>(),
    StepKind::of::<host_bridge::HostBridge>(),
    StepKind::of::<host_directories::HostDirectories>(),
    StepKind::of::<host_dnsmasq::HostDnsmasq>(),
    StepKind::of::<host_forwarding::HostForwarding>(),
    StepKind::of::<host_nftables::HostNftables>(),
    StepKind::of::<host_observe::HostObserve>(),
    StepKind::of::<host_packages::HostPackages>(),
];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static StepKind> {
    TABLE.iter().find(|row| row.kind == kind)
}
