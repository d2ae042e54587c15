//! The table of all steps. A new step is one file here and one row below; nothing else needs to know of it.

use crate::step::StepKind;

pub mod template_publish;
pub mod template_retire;
pub mod template_scan;
pub mod template_scrub;
#[cfg(test)]
mod template_tests;
pub mod tree_receive;
pub mod tree_stage;

/// Every kind of step, in alphabetical order.
pub const TABLE: &[StepKind] = &[
    StepKind::of::<template_publish::TemplatePublish>(),
    StepKind::of::<template_retire::TemplateRetire>(),
    StepKind::of::<template_scan::TemplateScan>(),
    StepKind::of::<template_scrub::TemplateScrub>(),
    StepKind::of::<tree_receive::TreeReceive>(),
    StepKind::of::<tree_stage::TreeStage>(),
];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static StepKind> {
    TABLE.iter().find(|row| row.kind == kind)
}
