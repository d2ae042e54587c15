//! `dhcp.reserve`: a container's MAC gets its address, and its name answers with it.
//!
//! It never gives a MAC or an address to two containers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Allocation;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Replaced, TakenBack};
use crate::network::reservation::{self, Reservation};
use crate::network::{lock, ruleset};
use crate::step::{Context, Done, Step, fail};

/// Reserves a container's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpReserve {
    /// The container.
    pub container: ContainerName,
    /// What was handed out to it.
    pub allocation: Allocation,
}

/// Makes the container's name say what its reservation says, or nothing; says whether it was different.
pub(super) fn follow(layout: &Layout, container: &ContainerName) -> Result<bool, StepFailure> {
    let path = layout.name(container);
    match reservation::of(layout, container)? {
        Some(there) => managed::derive(&path, &reservation::name_line(container, there.address)),
        None => managed::remove_ours(&path),
    }
}

/// Looks at a reservation: whether it is wanted and whole, absent, or another.
pub(super) fn look(
    layout: &Layout,
    container: &ContainerName,
    wanted: &Reservation,
) -> Result<Seen, StepFailure> {
    if let Some(what) = reservation::conflict(layout, container, wanted)? {
        return Ok(Seen::Conflict { what });
    }
    let name = managed::body(&layout.name(container))?;
    let line = reservation::name_line(container, wanted.address);
    Ok(match reservation::of(layout, container)? {
        None if name.is_none() => Seen::Absent,
        Some(there) if there == *wanted && name.is_some_and(|name| name == line) => Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        }
        .seen()?,
        Some(_) | None => Seen::Partial {
            what: format!("{container} has another reservation, or only part of one"),
        },
    })
}

/// Reserves, in the name of the step of the context. The caller holds the network's lock.
fn reserve(
    context: &mut Context<'_>,
    container: &ContainerName,
    wanted: &Reservation,
) -> Result<(bool, Replaced), StepFailure> {
    let layout = context.layout;
    if managed::body(&layout.dnsmasq())?.is_none() {
        let mut failure = fail(
            FailureClass::Missing,
            format!("{} has no DHCP server of tallybook's", context.host),
        );
        failure.hint = Some(format!("tallybook host prepare {}", context.host));
        return Err(failure);
    }
    if let Some(nat) = ruleset::nat(layout)?.filter(|nat| !nat.gateway.serves(wanted.address)) {
        return Err(fail(
            FailureClass::Host,
            format!(
                "{} can't be a container's address on {}, whose bridge {} has {}",
                wanted.address, context.host, nat.bridge, nat.gateway
            ),
        ));
    }
    if let Some(what) = reservation::conflict(layout, container, wanted)? {
        return Err(fail(FailureClass::Exists, what));
    }
    let path = layout.reservation(container);
    let there = reservation::of(layout, container)?;
    let (written, replaced) = if there.as_ref() == Some(wanted) {
        (false, managed::replaced(&path, context.origin)?)
    } else {
        managed::write(&path, context.origin, &wanted.line(container))?
    };
    let followed = follow(layout, container)?;
    // Told also when nothing is different: a run before this one may have been cut just here.
    reservation::tell_dnsmasq(context)?;
    reservation::give_back(context, wanted.address, Some(wanted.mac))?;
    Ok((written || followed, replaced))
}

/// Once a container's reservation is gone: its lease as well, unless somebody has the address by now.
pub(super) fn forget(context: &mut Context<'_>, was: &Reservation) -> Result<(), StepFailure> {
    let holder = reservation::holder(context.layout, was.address)?;
    reservation::give_back(context, was.address, holder)
}

impl Step for DhcpReserve {
    const KIND: &'static str = "dhcp.reserve";
    type Output = Replaced;

    fn summary(&self) -> String {
        format!(
            "reserve {} for {} ({})",
            self.allocation.address, self.container, self.allocation.mac
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let wanted = Reservation::from(&self.allocation);
        match look(context.layout, &self.container, &wanted)? {
            Seen::Done(_) => Done {
                changed: false,
                output: managed::replaced(
                    &context.layout.reservation(&self.container),
                    context.origin,
                )?,
                facts: Vec::new(),
            }
            .seen(),
            other @ (Seen::Absent
            | Seen::Partial { .. }
            | Seen::Conflict { .. }
            | Seen::Unknown { .. }) => Ok(other),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let _lock = lock(context.layout)?;
        let (changed, output) = reserve(
            context,
            &self.container,
            &Reservation::from(&self.allocation),
        )?;
        Ok(Done {
            changed,
            output,
            facts: Vec::new(),
        })
    }

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
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.reservation(&self.container);
        let taken = managed::take_back(&path, context.origin, output.as_ref())?;
        let followed = follow(context.layout, &self.container)?;
        reservation::tell_dnsmasq(context)?;
        forget(context, &Reservation::from(&self.allocation))?;
        Ok(Done {
            changed: followed || taken != TakenBack::Nothing,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::network::simulated::{Simulated, allocation};

    fn step(name: &str, last: u8) -> DhcpReserve {
        DhcpReserve {
            container: ContainerName::new(name).unwrap(),
            allocation: allocation(last, &[]),
        }
    }

    #[test]
    fn reserves_once_and_takes_it_back() {
        let mut sim = Simulated::prepared();
        sim.makes_once_and_takes_back(&step("web1", 2));
        sim.survives_cuts(Simulated::prepared, &step("web1", 2));
        assert!(sim.link.count("systemctl kill --signal=HUP") > 0);
    }

    #[test]
    fn gives_nothing_twice_and_nothing_outside() {
        let mut sim = Simulated::prepared();
        sim.forward(1, &step("web1", 2)).unwrap();
        let failure = sim.forward(2, &step("web2", 2)).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(failure.message.ends_with("is reserved for container web1"));
        let mut same_address = step("web2", 3);
        same_address.allocation.address = [10, 5, 0, 2].into();
        assert_eq!(
            sim.forward(2, &same_address).unwrap_err().class,
            FailureClass::Exists
        );
        assert!(matches!(sim.probe(2, &same_address), Seen::Conflict { .. }));
        let mut outside = step("web3", 4);
        outside.allocation.address = [10, 6, 0, 2].into();
        assert_eq!(
            sim.forward(2, &outside).unwrap_err().class,
            FailureClass::Host
        );
        let failure = Simulated::installed()
            .forward(1, &step("web1", 2))
            .unwrap_err();
        assert_eq!(failure.class, FailureClass::Missing);
    }

    #[test]
    fn a_lease_of_a_container_that_is_gone_is_given_back() {
        let lease = |mac: &str| format!("1790000000 {mac} 10.5.0.2 gone *\n");
        let mut sim = Simulated::prepared();
        fs::write(sim.layout.leases(), lease("00:16:3e:00:00:99")).unwrap();
        sim.forward(1, &step("web1", 2)).unwrap();
        assert_eq!(
            sim.link
                .count("dhcp_release tb0 10.5.0.2 00:16:3e:00:00:99"),
            1
        );
        // Its own lease stays while it is reserved, and goes with the reservation.
        fs::write(sim.layout.leases(), lease("00:16:3e:00:00:02")).unwrap();
        sim.forward(1, &step("web1", 2)).unwrap();
        assert_eq!(sim.link.count("dhcp_release"), 1);
        sim.undo(1, &step("web1", 2), None).unwrap();
        assert_eq!(
            sim.link
                .count("dhcp_release tb0 10.5.0.2 00:16:3e:00:00:02"),
            1
        );
        assert_eq!(fs::read_to_string(sim.layout.leases()).unwrap(), "");
    }

    #[test]
    fn the_lease_of_who_has_the_address_now_is_left_alone() {
        let mut sim = Simulated::prepared();
        sim.forward(1, &step("web1", 2)).unwrap();
        sim.undo(1, &step("web1", 2), None).unwrap();
        let mut next = step("web2", 3);
        next.allocation.address = [10, 5, 0, 2].into();
        sim.forward(2, &next).unwrap();
        fs::write(
            sim.layout.leases(),
            "1790000000 00:16:3e:00:00:03 10.5.0.2 web2 *\n",
        )
        .unwrap();
        sim.undo(1, &step("web1", 2), None).unwrap();
        assert_eq!(sim.link.count("dhcp_release"), 0);
    }

    #[test]
    fn a_new_allocation_replaces_the_old_and_undo_brings_it_back() {
        let mut sim = Simulated::prepared();
        sim.forward(1, &step("web1", 2)).unwrap();
        let done = sim.forward(2, &step("web1", 7)).unwrap();
        assert!(!sim.undo(1, &step("web1", 2), None).unwrap().changed);
        sim.undo(2, &step("web1", 7), Some(done.output)).unwrap();
        assert!(matches!(sim.probe(1, &step("web1", 2)), Seen::Done(_)));
    }
}
