//! `forward.close`: a container's forwarded ports lead nowhere any more.
//!
//! It never closes ports other than those of the allocation it was given.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Allocation;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::network::managed::{self, Taken};
use crate::network::{lock, ruleset};
use crate::step::{Context, Done, Step, fail};
use crate::steps::forward_open::{in_the_way, list};

/// Closes a container's forwarded ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardClose {
    /// The container.
    pub container: ContainerName,
    /// What was handed out to it.
    pub allocation: Allocation,
}

fn done<T>(changed: bool, output: T) -> Done<T> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}

impl Step for ForwardClose {
    const KIND: &'static str = "forward.close";
    type Output = Taken;

    fn summary(&self) -> String {
        format!(
            "forward no more to {}: {}",
            self.container,
            list(&self.allocation)
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let wanted = ruleset::fragment(&self.allocation)?;
        let there = managed::body(&context.layout.forward(&self.container))?;
        let prepared = ruleset::nat(context.layout)?.is_some();
        match there {
            Some(there) if there == wanted => Ok(Seen::Absent),
            Some(_) => Ok(Seen::Conflict {
                what: format!("other ports lead to {}", self.container),
            }),
            None if prepared && !ruleset::is_current(context)? => Ok(Seen::Partial {
                what: "the loaded ruleset is not the written one".to_owned(),
            }),
            None => {
                let path = context.layout.forward(&self.container);
                done(false, managed::taken(&path, context.origin)?).seen()
            }
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Taken>, StepFailure> {
        let _lock = lock(context.layout)?;
        let wanted = ruleset::fragment(&self.allocation)?;
        let path = context.layout.forward(&self.container);
        if managed::body(&path)?.is_some_and(|there| there != wanted) {
            return Err(fail(
                FailureClass::Exists,
                format!(
                    "{} says other ports for {} than {}",
                    path.display(),
                    self.container,
                    list(&self.allocation)
                ),
            ));
        }
        let (removed, taken) = managed::take_away(&path, context.origin)?;
        let applied = ruleset::apply(context)?;
        Ok(done(removed || applied, taken))
    }

    /// Puts the file back as it was, under the mark of whoever opened them: that one's undo must still know it as its own.
    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([layout.forward(&self.container), layout.ruleset()])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Taken>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.forward(&self.container);
        let taken = match output {
            Some(taken) => taken,
            None => managed::taken(&path, context.origin)?,
        };
        let Some(text) = taken.text else {
            return Ok(done(false, ()));
        };
        let is_there = managed::body(&path)?.is_some();
        if !is_there
            && let Some(nat) = ruleset::nat(context.layout)?
            && let Some(what) = in_the_way(context.layout, &self.container, &self.allocation, &nat)?
        {
            return Err(fail(
                FailureClass::Exists,
                format!("{}: {what}", self.container),
            ));
        }
        let given = managed::give_back(&path, context.origin, &text)?;
        // Crash boundary: as in opening them, making the ruleset again completes it.
        let applied = ruleset::apply(context)?;
        Ok(done(given || applied, ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::{Simulated, allocation};
    use crate::steps::forward_open::ForwardOpen;

    #[test]
    fn closes_once_and_opens_again() {
        let container = ContainerName::new("web1").unwrap();
        let open = ForwardOpen {
            container: container.clone(),
            allocation: allocation(2, &[(40000, 22)]),
        };
        let close = ForwardClose {
            container,
            allocation: allocation(2, &[(40000, 22)]),
        };
        let mut sim = Simulated::prepared();
        let empty = sim.link.table.clone();
        sim.forward(1, &open).unwrap();
        assert!(matches!(sim.probe(2, &close), Seen::Absent));
        assert!(sim.forward(2, &close).unwrap().changed);
        assert_eq!(sim.link.table, empty);
        assert!(matches!(sim.probe(2, &close), Seen::Done(_)));
        assert!(!sim.forward(2, &close).unwrap().changed);
        assert!(sim.undo(2, &close, None).unwrap().changed);
        assert!(matches!(sim.probe(1, &open), Seen::Done(_)));
        assert!(!sim.undo(2, &close, None).unwrap().changed);
        // Whoever opened them can still take it back.
        assert!(sim.undo(1, &open, None).unwrap().changed);
        assert_eq!(sim.link.table, empty);
        sim.forward(1, &open).unwrap();

        let other = ForwardClose {
            allocation: allocation(2, &[(40001, 22)]),
            ..close
        };
        assert_eq!(
            sim.forward(3, &other).unwrap_err().class,
            FailureClass::Exists
        );
        assert!(matches!(sim.probe(3, &other), Seen::Conflict { .. }));
    }
}
