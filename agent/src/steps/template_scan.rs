//! `template.scan`: looks for what must not be published in a staged tree, and fails when it finds something.
//!
//! It changes nothing, and reports where a secret is, never the secret.

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Mac;
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::step::{Context, Done, Step, fail, failure};
use crate::template::leaks::{Scan, Scanned, check_allow};
use crate::template::staged::{self, Identity, Staged};
use crate::template::{Source, config};

/// Scans a staged tree for leaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateScan {
    /// The step of this operation that staged it.
    pub staged: StepIndex,
    /// What identifies the container it was copied from.
    pub source: Source,
    /// Exceptions: a rule, or `RULE:/PATH`.
    pub allow: Vec<String>,
}

/// How many findings the failure's message names.
const SHOWN_MAX: usize = 20;

impl TemplateScan {
    /// What the cloud knows of the source, and what its configuration says.
    fn whole_source(&self, tree: &Staged) -> Result<Source, StepFailure> {
        let mut source = self.source.clone();
        let text = tree.read(staged::CONFIG_SOURCE)?.unwrap_or_default();
        for value in config::identifying(&String::from_utf8_lossy(&text)) {
            if let Ok(mac) = value.parse::<Mac>() {
                source.macs.push(mac);
            } else if let Ok(address) = value.parse() {
                source.addresses.push(address);
            } else {
                source.names.push(value);
            }
        }
        Ok(source)
    }

    fn scan(&self, context: &mut Context<'_>) -> Result<Scanned, StepFailure> {
        check_allow(&self.allow).map_err(|e| failure(FailureClass::Unknown, &e))?;
        let tree = Staged::open(context, self.staged)?;
        let source = self.whole_source(&tree)?;
        let identity: Identity = tree.load(staged::IDENTITY)?.unwrap_or_default();
        let mut scan = Scan::new(&source, &identity, &self.allow)
            .map_err(|e| failure(FailureClass::Other, &e))?;
        let link = &mut *context.link;
        scan.tree(&tree.root, &mut |_, bytes| {
            link.progress("scanning for leaks", bytes, 0);
            !link.stop_requested()
        })
        .map_err(|error| error.failure(tree.root.label()))?;
        if let Some(text) = tree.read(staged::CONFIG)? {
            scan.text("config of the template", &text)
                .map_err(|error| error.failure(&tree.dir))?;
        }
        Ok(scan.finish())
    }
}

impl Step for TemplateScan {
    const KIND: &'static str = "template.scan";
    type Output = Scanned;

    fn summary(&self) -> String {
        "scan for what must not be published".to_owned()
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "it changes nothing".to_owned(),
        }
    }

    /// Scanning leaves no trace, so it is done again.
    fn probe(&self, _: &mut Context<'_>) -> Result<Seen, StepFailure> {
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Scanned>, StepFailure> {
        let scanned = self.scan(context)?;
        if scanned.findings.is_empty() {
            return Ok(Done {
                changed: false,
                output: scanned,
                facts: Vec::new(),
            });
        }
        Err(StepFailure {
            hint: Some(
                "remove them in the container, or allow them by rule or RULE:/PATH if they may be published"
                    .to_owned(),
            ),
            ..fail(FailureClass::Verification, message(&scanned))
        })
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<Scanned>) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

fn message(scanned: &Scanned) -> String {
    let shown: Vec<String> = scanned
        .findings
        .iter()
        .take(SHOWN_MAX)
        .map(|finding| format!("{} ({}: {})", finding.path, finding.rule, finding.what))
        .collect();
    let more = scanned.findings.len().saturating_sub(SHOWN_MAX) as u64 + scanned.findings_unnamed;
    let more = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    format!("the tree must not be published: {}{more}", shown.join(", "))
}
