//! The table of all steps. A new step is one file here and one row below; nothing else needs to know of it.

use crate::step::StepKind;

pub mod base_bootstrap;

/// Every kind of step, in alphabetical order.
pub const TABLE: &[StepKind] = &[StepKind::of::<base_bootstrap::BaseBootstrap>()];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static StepKind> {
    TABLE.iter().find(|row| row.kind == kind)
}
