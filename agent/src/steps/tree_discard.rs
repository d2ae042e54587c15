//! `tree.discard`: what was staged only to be carried on goes away once it has arrived.

use serde::{Deserialize, Serialize};
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{Reversal, Seen, StepFailure};

use crate::staging;
use crate::step::{Context, Done, Step};

/// Removes what a step of this operation staged.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeDiscard {
    /// The step.
    pub staged: StepIndex,
}

fn done(changed: bool) -> Done<()> {
    Done {
        changed,
        output: (),
        facts: Vec::new(),
    }
}

impl Step for TreeDiscard {
    const KIND: &'static str = "tree.discard";
    type Output = ();

    fn summary(&self) -> String {
        "remove what was staged for it".to_owned()
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "it was needed only on the way".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let staged = context.layout.staging(context.origin.0, self.staged);
        if staged.exists() {
            return Ok(Seen::Absent);
        }
        done(true).seen()
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<()>, StepFailure> {
        // Its name holds the operation and the step: it is this operation's own.
        let staged = context.layout.staging(context.origin.0, self.staged);
        staging::remove_dir(&staged).map(done)
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<()>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(done(false))
    }
}
