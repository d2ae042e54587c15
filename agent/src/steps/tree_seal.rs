//! `tree.seal`: what a staged tree is, as a manifest beside it, so that another host can ask for exactly that.

use std::ops::ControlFlow;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use super::template_publish::Published;
use crate::step::{Context, Done, Step, failure};
use crate::template::staged::{self, Staged};
use crate::tree::manifest::{Manifest, build};

/// Writes the manifest of a staged tree beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeSeal {
    /// The step that staged the tree.
    pub staged: StepIndex,
}

fn described(manifest: &Manifest) -> Published {
    Published {
        manifest: manifest.id(),
        entries: manifest.entries().len() as u64,
        size_bytes: manifest.content_len(),
    }
}

impl Step for TreeSeal {
    const KIND: &'static str = "tree.seal";
    type Output = Published;

    fn summary(&self) -> String {
        "hash what was staged".to_owned()
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "the manifest goes with the staged tree".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let tree = Staged::open(context, self.staged)?;
        let Some(bytes) = tree.read(staged::MANIFEST)? else {
            return Ok(Seen::Absent);
        };
        let manifest =
            Manifest::decode(&bytes).map_err(|e| failure(FailureClass::Verification, &e))?;
        Done {
            changed: true,
            output: described(&manifest),
            facts: Vec::new(),
        }
        .seen()
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let tree = Staged::open(context, self.staged)?;
        let link = &mut *context.link;
        let manifest = build(tree.root.as_fd(), &mut |hashed| {
            link.progress("hashing the tree", hashed.done, hashed.total);
            if link.stop_requested() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| error.failure(tree.root.label()))?;
        let bytes = manifest.encode();
        let changed = tree
            .read(staged::MANIFEST)?
            .is_none_or(|before| before != bytes);
        // Also where it is the same: an agent that died may not have made it durable.
        staged::write(&tree.dir, staged::MANIFEST, &bytes)?;
        Ok(Done {
            changed,
            output: described(&manifest),
            facts: Vec::new(),
        })
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Published>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}
