//! `forward.open`: ports of the host lead to ports of a container.
//!
//! It never takes a port that something of the host listens on, or that leads to another container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::{Allocation, Protocol};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Replaced, TakenBack};
use crate::network::ruleset::{self, Nat};
use crate::network::{lock, ports};
use crate::step::{Context, Done, Step, fail};

/// Opens a container's forwarded ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardOpen {
    /// The container.
    pub container: ContainerName,
    /// What was handed out to it.
    pub allocation: Allocation,
}

/// The ports of an allocation, for people: `tcp 40001 → 22`.
pub(super) fn list(allocation: &Allocation) -> String {
    let ports: Vec<String> = allocation
        .forwards
        .iter()
        .map(|f| format!("{} {} → {}", f.protocol, f.host_port, f.container_port))
        .collect();
    if ports.is_empty() {
        "no ports".to_owned()
    } else {
        ports.join(", ")
    }
}

/// What is in the way of a container's ports.
pub(super) fn in_the_way(
    layout: &Layout,
    container: &ContainerName,
    allocation: &Allocation,
    nat: &Nat,
) -> Result<Option<String>, StepFailure> {
    let others = ruleset::forwards(layout, Some(container))?;
    for forward in &allocation.forwards {
        if let Some((_, _, other)) = others.get(&(forward.protocol, forward.host_port)) {
            return Ok(Some(format!(
                "{} port {} leads to container {other}",
                forward.protocol, forward.host_port
            )));
        }
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let wanted = |port: u16| {
            let mut forwards = allocation.forwards.iter();
            forwards.any(|f| f.protocol == protocol && f.host_port == port)
        };
        for listener in ports::listeners(layout, protocol)? {
            if wanted(listener.port) && listener.meets(nat.forward_address) {
                return Ok(Some(format!(
                    "{} listens on {protocol} port {} of the host",
                    listener.holder(layout),
                    listener.port
                )));
            }
        }
    }
    Ok(None)
}

/// Opens, in the name of the step of the context. The caller holds the network's lock.
fn open(
    context: &mut Context<'_>,
    container: &ContainerName,
    allocation: &Allocation,
) -> Result<(bool, Replaced), StepFailure> {
    let layout = context.layout;
    let Some(nat) = ruleset::nat(layout)? else {
        let mut failure = fail(
            FailureClass::Missing,
            format!(
                "{} has no table of tallybook's to forward ports with",
                context.host
            ),
        );
        failure.hint = Some(format!("tallybook host prepare {}", context.host));
        return Err(failure);
    };
    if !nat.gateway.serves(allocation.address) {
        return Err(fail(
            FailureClass::Host,
            format!(
                "{} can't be a container's address on {}, whose bridge {} has {}",
                allocation.address, context.host, nat.bridge, nat.gateway
            ),
        ));
    }
    let path = layout.forward(container);
    let wanted = ruleset::fragment(allocation)?;
    let there = managed::body(&path)?;
    let (written, replaced) = if there.as_ref().is_none_or(|there| *there != wanted)
        && !(there.is_none() && wanted.is_empty())
    {
        if let Some(what) = in_the_way(layout, container, allocation, &nat)? {
            let mut failure = fail(FailureClass::Exists, format!("{container}: {what}"));
            failure.hint = Some("free the port, or give the container another one".to_owned());
            return Err(failure);
        }
        managed::write(&path, context.origin, &wanted)?
    } else {
        (false, managed::replaced(&path, context.origin)?)
    };
    // Crash boundary: the fragment is there and not in effect; making the ruleset again, by whomever, completes it.
    let applied = ruleset::apply(context)?;
    Ok((written || applied, replaced))
}

/// Looks at a container's forwarded ports.
fn look(
    context: &mut Context<'_>,
    container: &ContainerName,
    allocation: &Allocation,
) -> Result<Seen, StepFailure> {
    let path = context.layout.forward(container);
    let wanted = ruleset::fragment(allocation)?;
    let there = managed::body(&path)?;
    if there.as_deref().unwrap_or("") == wanted && (there.is_some() || wanted.is_empty()) {
        if !ruleset::is_current(context)? {
            return Ok(Seen::Partial {
                what: format!("{} is there and not in effect", path.display()),
            });
        }
        return Done {
            changed: false,
            output: managed::replaced(&path, context.origin)?,
            facts: Vec::new(),
        }
        .seen();
    }
    if let Some(nat) = ruleset::nat(context.layout)?
        && let Some(what) = in_the_way(context.layout, container, allocation, &nat)?
    {
        return Ok(Seen::Conflict { what });
    }
    Ok(if there.is_some() {
        Seen::Partial {
            what: format!("{} says other ports", path.display()),
        }
    } else {
        Seen::Absent
    })
}

impl Step for ForwardOpen {
    const KIND: &'static str = "forward.open";
    type Output = Replaced;

    fn summary(&self) -> String {
        format!("forward to {}: {}", self.container, list(&self.allocation))
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        look(context, &self.container, &self.allocation)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let _lock = lock(context.layout)?;
        let (changed, output) = open(context, &self.container, &self.allocation)?;
        Ok(Done {
            changed,
            output,
            facts: Vec::new(),
        })
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([layout.forward(&self.container), layout.ruleset()])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.forward(&self.container);
        let taken = managed::take_back(&path, context.origin, output.as_ref())?;
        let applied = ruleset::apply(context)?;
        Ok(Done {
            changed: applied || taken != TakenBack::Nothing,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::{Simulated, allocation};

    fn step(name: &str, last: u8, ports: &[(u16, u16)]) -> ForwardOpen {
        ForwardOpen {
            container: ContainerName::new(name).unwrap(),
            allocation: allocation(last, ports),
        }
    }

    #[test]
    fn opens_once_and_takes_it_back() {
        let mut sim = Simulated::prepared();
        let empty = sim.link.table.clone();
        let web1 = step("web1", 2, &[(40000, 22), (40001, 80)]);
        sim.makes_once_and_takes_back(&web1);
        assert_eq!(sim.link.table, empty);
        sim.survives_cuts(Simulated::prepared, &web1);
        sim.forward(1, &web1).unwrap();
        let table = sim.link.table.clone().unwrap();
        assert!(
            table.contains("{ 40000 : 10.5.0.2 . 22, 40001 : 10.5.0.2 . 80 }"),
            "{table}"
        );
    }

    #[test]
    fn refuses_a_port_that_is_taken() {
        let mut sim = Simulated::prepared();
        sim.forward(1, &step("web1", 2, &[(40000, 22)])).unwrap();
        let failure = sim
            .forward(2, &step("web2", 3, &[(40000, 22)]))
            .unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(
            failure
                .message
                .contains("tcp port 40000 leads to container web1")
        );
        // 0.0.0.0:22
        sim.listen("tcp", "00000000:0016 00000000:0000 0A");
        let failure = sim.forward(2, &step("web2", 3, &[(22, 22)])).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(
            failure.message.contains("listens on tcp port 22"),
            "{}",
            failure.message
        );
        assert!(matches!(
            sim.probe(2, &step("web2", 3, &[(22, 22)])),
            Seen::Conflict { .. }
        ));
        assert!(sim.forward(2, &step("web2", 3, &[(0, 22)])).is_err());
        assert!(
            sim.forward(2, &step("web2", 3, &[(5, 22), (5, 23)]))
                .is_err()
        );
        assert!(!sim.layout.forwards().join("web2").exists());
    }

    #[test]
    fn what_nft_refuses_can_be_taken_back() {
        let mut sim = Simulated::prepared();
        let before = sim.link.table.clone();
        let web1 = step("web1", 2, &[(40000, 22)]);
        sim.link.refuse = Some("nft --check");
        assert_eq!(
            sim.forward(1, &web1).unwrap_err().class,
            FailureClass::Command
        );
        assert_eq!(sim.link.table, before);
        sim.link.refuse = None;
        assert!(sim.undo(1, &web1, None).unwrap().changed);
        assert!(matches!(sim.probe(1, &web1), Seen::Absent));
    }

    #[test]
    fn a_container_without_ports_needs_nothing() {
        let mut sim = Simulated::prepared();
        assert!(!sim.forward(1, &step("web1", 2, &[])).unwrap().changed);
        assert!(matches!(sim.probe(1, &step("web1", 2, &[])), Seen::Done(_)));
    }
}
