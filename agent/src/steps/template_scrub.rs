//! `template.scrub`: takes out of a staged tree what belongs to the container it was copied from.
//!
//! It changes nothing but the staged copy.

use serde::{Deserialize, Serialize};
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::durable;
use crate::step::{Context, Done, Step, failure};
use crate::template::scrub::{self, Report};
use crate::template::staged::{self, Staged};
use crate::template::{Source, config};

/// Scrubs a staged tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateScrub {
    /// The step of this operation that staged it.
    pub staged: StepIndex,
    /// Operations to leave out, by name.
    pub keep: Vec<String>,
    /// What identifies the container it was copied from.
    pub source: Source,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// What each operation did, those that found nothing left out.
    pub reports: Vec<Report>,
    /// Operations left out on demand.
    pub kept: Vec<String>,
    /// Whether an earlier attempt was cut: what it did is not in the reports.
    pub repeated: bool,
}

const BEGUN: &str = "scrub.begun";
const OUTPUT: &str = "scrub.output";

impl Step for TemplateScrub {
    const KIND: &'static str = "template.scrub";
    type Output = Scrubbed;

    fn summary(&self) -> String {
        if self.keep.is_empty() {
            "scrub identity, secrets, logs and caches".to_owned()
        } else {
            format!("scrub all but {}", self.keep.join(", "))
        }
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "it changes a staged copy, which goes with the step that staged it".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let dir = context.layout.staging(context.origin.0, self.staged);
        if let Some(output) = staged::load(&dir, OUTPUT)? {
            return done(false, output).seen();
        }
        match staged::read(&dir, BEGUN)? {
            Some(_) => Ok(Seen::Partial {
                what: format!("a scrub of {} was begun", dir.display()),
            }),
            None => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Scrubbed>, StepFailure> {
        let keep = scrub::check_keep(&self.keep).map_err(|e| failure(FailureClass::Unknown, &e))?;
        let tree = Staged::open(context, self.staged)?;
        if let Some(output) = tree.load(OUTPUT)? {
            return Ok(done(false, output));
        }
        let repeated = tree.read(BEGUN)?.is_some();
        staged::write(&tree.dir, BEGUN, b"")?;
        let total = scrub::names().len() as u64;
        let mut count = 0;
        let link = &mut *context.link;
        let mut reports = scrub::scrub(&tree.root, &self.source, &keep, &mut |name| {
            count += 1;
            link.progress(&format!("scrubbing: {name}"), count, total);
        })
        .map_err(|error| error.failure(tree.root.label()))?;
        self.configuration(&tree, !keep.contains(config::OPERATION), &mut reports)?;
        durable::sync_file_system(&tree.dir)?;
        let output = Scrubbed {
            reports,
            kept: self.keep.clone(),
            repeated,
        };
        // Crash boundary: before this file is there, a repeat scrubs again, which finds less and harms nothing.
        staged::store(&tree.dir, OUTPUT, &output)?;
        Ok(done(true, output))
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<Scrubbed>) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

impl TemplateScrub {
    /// Writes the configuration of the template.
    fn configuration(
        &self,
        tree: &Staged,
        is_neutral: bool,
        reports: &mut Vec<Report>,
    ) -> Result<(), StepFailure> {
        let Some(source) = tree.read(staged::CONFIG_SOURCE)? else {
            return Ok(());
        };
        if !is_neutral {
            return staged::write(&tree.dir, staged::CONFIG, &source);
        }
        let (text, report) = config::neutral(&String::from_utf8_lossy(&source));
        if report.count > 0 {
            reports.push(report);
        }
        staged::write(&tree.dir, staged::CONFIG, text.as_bytes())
    }
}

fn done(changed: bool, output: Scrubbed) -> Done<Scrubbed> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}
