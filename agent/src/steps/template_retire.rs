//! `template.retire`: the first half of removing a generation of a template: out of reach, but still there, so that
//! undo can give it back; `trash.purge` is the second half.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::ids::Generation;
use tallybook_events::name::TemplateName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use super::template_publish::{Published, described, present, refuse_used};
use crate::step::{Context, Done, Step, fail};
use crate::{durable, staging};

/// Retires a generation of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRetire {
    /// The template.
    pub template: TemplateName,
    /// The generation.
    pub generation: Generation,
}

impl TemplateRetire {
    fn place(&self, context: &Context<'_>) -> PathBuf {
        context.layout.generation(&self.template, self.generation)
    }

    /// Where it lies afterwards: below the directory that `trash.purge` of the same step's index removes.
    fn trashed(&self, context: &Context<'_>) -> PathBuf {
        let (operation, step) = context.origin;
        let trash = context.layout.own().join("trash");
        trash
            .join(format!("{operation}-{step}"))
            .join(format!("{}-{}", self.template, self.generation))
    }

    fn done(&self, context: &Context<'_>, changed: bool, output: Published) -> Done<Published> {
        Done {
            changed,
            output,
            facts: vec![Fact::TemplateAbsent {
                host: context.host.clone(),
                template: self.template.clone(),
                generation: self.generation,
            }],
        }
    }
}

impl Step for TemplateRetire {
    const KIND: &'static str = "template.retire";
    type Output = Published;

    fn summary(&self) -> String {
        format!(
            "retire template {} generation {}",
            self.template, self.generation
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let trashed = self.trashed(context);
        if !trashed.exists() {
            return Ok(Seen::Absent);
        }
        let output = described(&trashed)?;
        self.done(context, false, output).seen()
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let (place, trashed) = (self.place(context), self.trashed(context));
        if trashed.exists() {
            let output = described(&trashed)?;
            return Ok(self.done(context, false, output));
        }
        if !place.exists() {
            return Err(fail(
                FailureClass::Missing,
                format!(
                    "template {} has no generation {} on {}",
                    self.template, self.generation, context.host
                ),
            ));
        }
        refuse_used(&place, &self.template, self.generation)?;
        let output = described(&place)?;
        if let Some(trash) = trashed.parent() {
            durable::create_dirs(trash)?;
        }
        // Crash boundary: it is in one place or the other, and whole in both.
        durable::rename_new(&place, &trashed)?;
        Ok(self.done(context, true, output))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Published>,
    ) -> Result<Done<()>, StepFailure> {
        let (place, trashed) = (self.place(context), self.trashed(context));
        if !trashed.exists() {
            if place.exists() {
                return Ok(Done {
                    changed: false,
                    output: (),
                    facts: Vec::new(),
                });
            }
            return Err(fail(
                FailureClass::Missing,
                format!("{} was purged and can't be given back", trashed.display()),
            ));
        }
        let output = described(&trashed)?;
        durable::create_dirs(&context.layout.template(&self.template))?;
        durable::rename_new(&trashed, &place)?;
        if let Some(trash) = trashed.parent() {
            staging::remove_dir(trash)?;
        }
        Ok(Done {
            changed: true,
            output: (),
            facts: vec![present(context, &self.template, self.generation, &output)],
        })
    }
}
