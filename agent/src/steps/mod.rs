//! The table of all steps. A new step is one file here and one row below; nothing else needs to know of it.

use crate::step::StepKind;

pub mod base_bootstrap;
pub mod container_await_address;
pub mod container_build;
pub mod container_configure;
pub mod container_freeze;
pub mod container_provision;
pub mod container_publish;
pub mod container_retire;
pub mod container_start;
pub mod container_stop;
pub mod trash_purge;

/// Every kind of step, in alphabetical order.
pub const TABLE: &[StepKind] = &[
    StepKind::of::<base_bootstrap::BaseBootstrap>(),
    StepKind::of::<container_await_address::ContainerAwaitAddress>(),
    StepKind::of::<container_build::ContainerBuild>(),
    StepKind::of::<container_configure::ContainerConfigure>(),
    StepKind::of::<container_freeze::ContainerFreeze>(),
    StepKind::of::<container_provision::ContainerProvision>(),
    StepKind::of::<container_provision::ContainerProvisionUntil>(),
    StepKind::of::<container_publish::ContainerPublish>(),
    StepKind::of::<container_retire::ContainerRetire>(),
    StepKind::of::<container_start::ContainerStart>(),
    StepKind::of::<container_stop::ContainerStop>(),
    StepKind::of::<container_freeze::ContainerThaw>(),
    StepKind::of::<trash_purge::TrashPurge>(),
];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static StepKind> {
    TABLE.iter().find(|row| row.kind == kind)
}
