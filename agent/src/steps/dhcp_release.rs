//! `dhcp.release`: a container's address is nobody's again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Allocation;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::network::lock;
use crate::network::managed::{self, Taken};
use crate::network::reservation::{self, Reservation};
use crate::step::{Context, Done, Step, fail};
use crate::steps::dhcp_reserve::{follow, forget, look};

/// Gives up a container's reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpRelease {
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

impl Step for DhcpRelease {
    const KIND: &'static str = "dhcp.release";
    type Output = Taken;

    fn summary(&self) -> String {
        format!(
            "give up the reservation of {} for {}",
            self.allocation.address, self.container
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let wanted = Reservation::from(&self.allocation);
        let there = reservation::of(context.layout, &self.container)?;
        Ok(match there {
            Some(there) if there != wanted => Seen::Conflict {
                what: format!("{} has {} ({})", self.container, there.address, there.mac),
            },
            Some(_) => Seen::Absent,
            None => match look(context.layout, &self.container, &wanted)? {
                Seen::Partial { .. } => Seen::Partial {
                    what: format!("{} still has a name", self.container),
                },
                // Another container has the address by now: released all the same.
                Seen::Absent | Seen::Conflict { .. } | Seen::Done(_) => {
                    let path = context.layout.reservation(&self.container);
                    done(false, managed::taken(&path, context.origin)?).seen()?
                }
                other @ Seen::Unknown { .. } => other,
            },
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Taken>, StepFailure> {
        let _lock = lock(context.layout)?;
        let wanted = Reservation::from(&self.allocation);
        let there = reservation::of(context.layout, &self.container)?;
        if let Some(there) = there.filter(|there| *there != wanted) {
            return Err(fail(
                FailureClass::Exists,
                format!(
                    "the reservation of {} is for {} ({}), not for {} ({})",
                    self.container, there.address, there.mac, wanted.address, wanted.mac
                ),
            ));
        }
        let path = context.layout.reservation(&self.container);
        let (removed, taken) = managed::take_away(&path, context.origin)?;
        let followed = follow(context.layout, &self.container)?;
        reservation::tell_dnsmasq(context)?;
        forget(context, &wanted)?;
        Ok(done(removed || followed, taken))
    }

    /// Puts the file back as it was, under the mark of whoever reserved: that one's undo must still know it as its own.
    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([
            layout.reservation(&self.container),
            layout.name(&self.container),
        ])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Taken>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.reservation(&self.container);
        let taken = match output {
            Some(taken) => taken,
            None => managed::taken(&path, context.origin)?,
        };
        let Some(text) = taken.text else {
            return Ok(done(false, ()));
        };
        let wanted = Reservation::from(&self.allocation);
        if let Some(what) = reservation::conflict(context.layout, &self.container, &wanted)? {
            return Err(fail(FailureClass::Exists, what));
        }
        let given = managed::give_back(&path, context.origin, &text)?;
        let followed = follow(context.layout, &self.container)?;
        reservation::tell_dnsmasq(context)?;
        reservation::give_back(context, wanted.address, Some(wanted.mac))?;
        Ok(done(given || followed, ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::{Simulated, allocation};
    use crate::steps::dhcp_reserve::DhcpReserve;

    #[test]
    fn releases_once_and_reserves_again() {
        let container = ContainerName::new("d.foo.net").unwrap();
        let allocation_ = allocation(2, &[]);
        let reserve = DhcpReserve {
            container: container.clone(),
            allocation: allocation_.clone(),
        };
        let release = DhcpRelease {
            container,
            allocation: allocation_,
        };
        let mut sim = Simulated::prepared();
        sim.forward(1, &reserve).unwrap();
        assert!(matches!(sim.probe(2, &release), Seen::Absent));
        assert!(sim.forward(2, &release).unwrap().changed);
        assert!(matches!(sim.probe(2, &release), Seen::Done(_)));
        assert!(matches!(sim.probe(1, &reserve), Seen::Absent));
        assert!(!sim.forward(2, &release).unwrap().changed);
        assert!(sim.undo(2, &release, None).unwrap().changed);
        assert!(!sim.undo(2, &release, None).unwrap().changed);
        assert!(matches!(sim.probe(1, &reserve), Seen::Done(_)));
        // Whoever reserved it can still take it back.
        assert!(sim.undo(1, &reserve, None).unwrap().changed);
        assert!(matches!(sim.probe(1, &reserve), Seen::Absent));
        sim.forward(1, &reserve).unwrap();
        let taken = sim.forward(2, &release).unwrap().output;
        assert!(sim.undo(2, &release, Some(taken)).unwrap().changed);
        assert!(sim.undo(1, &reserve, None).unwrap().changed);
        sim.forward(1, &reserve).unwrap();

        let other = DhcpRelease {
            allocation: allocation(3, &[]),
            ..release
        };
        assert_eq!(
            sim.forward(3, &other).unwrap_err().class,
            FailureClass::Exists
        );
        assert!(matches!(sim.probe(3, &other), Seen::Conflict { .. }));
    }
}
