//! The table of all steps. A new step is one file here and one row below; nothing else needs to know of it.

pub mod base_bootstrap;
pub mod container_await_address;
pub mod container_build;
pub mod container_configure;
pub mod container_provision;
pub mod container_provision_2;
pub mod container_publish;
pub mod container_retire;
pub mod container_start;
pub mod container_stop;
pub mod dhcp_release;
pub mod dhcp_reserve;
pub mod dns_follow;
pub mod dns_serve;
pub mod forward_close;
pub mod forward_open;
pub mod host_bridge;
pub mod host_directories;
pub mod host_dnsmasq;
pub mod host_forwarding;
pub mod host_nftables;
pub mod host_observe;
pub mod host_packages;
pub mod template_publish;
pub mod template_scan;
pub mod template_scrub;
#[cfg(test)]
mod template_tests;
pub mod trash_purge;
pub mod tree_discard;
pub mod tree_receive;
pub mod tree_seal;
pub mod tree_stage;

use crate::step::StepKind;

/// Every kind of step, in alphabetical order.
pub const TABLE: &[StepKind] = &[
    StepKind::of::<base_bootstrap::BaseBootstrap>(),
    StepKind::of::<container_await_address::ContainerAwaitAddress>(),
    StepKind::of::<container_build::ContainerBuild>(),
    StepKind::of::<container_retire::ContainerCheckRetire>(),
    StepKind::of::<container_configure::ContainerConfigure>(),
    StepKind::of::<container_provision::ContainerProvision>(),
    StepKind::of::<container_provision_2::ContainerProvision2>(),
    StepKind::of::<container_provision::ContainerProvisionUntil>(),
    StepKind::of::<container_provision_2::ContainerProvisionUntil2>(),
    StepKind::of::<container_publish::ContainerPublish>(),
    StepKind::of::<container_retire::ContainerRetire>(),
    StepKind::of::<container_start::ContainerStart>(),
    StepKind::of::<container_stop::ContainerStop>(),
    StepKind::of::<dhcp_release::DhcpRelease>(),
    StepKind::of::<dhcp_reserve::DhcpReserve>(),
    StepKind::of::<dns_follow::DnsFollow>(),
    StepKind::of::<dns_serve::DnsServe>(),
    StepKind::of::<forward_close::ForwardClose>(),
    StepKind::of::<forward_open::ForwardOpen>(),
    StepKind::of::<host_bridge::HostBridge>(),
    StepKind::of::<host_directories::HostDirectories>(),
    StepKind::of::<host_dnsmasq::HostDnsmasq>(),
    StepKind::of::<host_forwarding::HostForwarding>(),
    StepKind::of::<host_nftables::HostNftables>(),
    StepKind::of::<host_observe::HostObserve>(),
    StepKind::of::<host_packages::HostPackages>(),
    StepKind::of::<template_publish::TemplatePublish>(),
    StepKind::of::<template_scan::TemplateScan>(),
    StepKind::of::<template_scrub::TemplateScrub>(),
    StepKind::of::<trash_purge::TrashPurge>(),
    StepKind::of::<tree_discard::TreeDiscard>(),
    StepKind::of::<tree_receive::TreeReceive>(),
    StepKind::of::<tree_seal::TreeSeal>(),
    StepKind::of::<tree_stage::TreeStage>(),
];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static StepKind> {
    TABLE.iter().find(|row| row.kind == kind)
}
