//! `host.bridge`: the bridge that containers are attached to, now and after a boot.
//!
//! It never deletes or remakes a bridge that anything is attached to, and never touches one it did not make.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Found, Replaced};
use crate::network::{BRIDGE_UNIT, Bridge, Gateway, attached, lock, refuse_used, unit};
use crate::step::{Context, Done, Program, Step, fail, failure};

/// Makes a bridge with an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBridge {
    /// Its interface name.
    pub bridge: Bridge,
    /// Its address.
    pub gateway: Gateway,
}

/// An interface as `ip -json address show` lists it.
#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    local: Option<Ipv4Addr>,
    #[serde(default)]
    prefixlen: u8,
}

/// Every IPv4 address of the host: interface, address, prefix length.
fn addresses(context: &mut Context<'_>) -> Result<Vec<(String, Ipv4Addr, u8)>, StepFailure> {
    let list = Program::new(["ip", "-json", "-family", "inet", "address", "show"]);
    let ended = context.run(&list)?;
    addresses_in(&ended.stdout).map_err(|e| failure(FailureClass::Command, &e))
}

/// The same, in what `ip` prints.
pub(crate) fn addresses_in(
    printed: &[u8],
) -> Result<Vec<(String, Ipv4Addr, u8)>, serde_json::Error> {
    let interfaces: Vec<Interface> = serde_json::from_slice(printed)?;
    let mut found = Vec::new();
    for Interface { ifname, addr_info } in interfaces {
        for address in addr_info {
            found.extend(
                address
                    .local
                    .map(|local| (ifname.clone(), local, address.prefixlen)),
            );
        }
    }
    Ok(found)
}

/// The unit's text. `ip link add` may fail: the bridge is there when the unit is started again. The bridge has an
/// Ethernet address of its own, since it would else take over that of whichever container is attached.
fn unit_body(bridge: &Bridge, gateway: Gateway) -> String {
    let [a, b, c, d] = gateway.address().octets();
    format!(
        "# bridge {bridge} {gateway}\n\
         [Unit]\n\
         Description=Bridge of containers, made by tallybook\n\
         After=network-pre.target\n\
         Before=network.target lxc.service\n\
         Wants=network-pre.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=-/sbin/ip link add name {bridge} address 02:74:{a:02x}:{b:02x}:{c:02x}:{d:02x} type bridge\n\
         ExecStart=/sbin/ip address replace {gateway} broadcast + dev {bridge}\n\
         ExecStart=/sbin/ip link set dev {bridge} up\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// Which bridge and address a unit of ours is for.
pub(crate) fn unit_is_for(text: &str) -> Option<(Bridge, Gateway)> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("# bridge "))?;
    let (bridge, gateway) = line.split_once(' ')?;
    Some((bridge.parse().ok()?, gateway.parse().ok()?))
}

/// How the host is, before anything is done about it.
struct Looked {
    /// What the unit of ours is for, where there is one.
    unit: Option<(Bridge, Gateway)>,
    /// Whether the bridge is there.
    present: bool,
    /// Whether it has the wanted address.
    right: bool,
}

/// Makes the bridge what the unit of ours says, where there is one; says whether it was different.
fn follow(context: &mut Context<'_>) -> Result<bool, StepFailure> {
    let path = context.layout.unit(BRIDGE_UNIT);
    let Found::Ours { body, .. } = managed::read(&path)? else {
        return Ok(false);
    };
    let Some((bridge, gateway)) = unit_is_for(&body) else {
        return Ok(false);
    };
    let (state, enabled) = unit::settle(context, BRIDGE_UNIT, false)?;
    let right =
        addresses(context)?.contains(&(bridge.to_string(), gateway.address(), gateway.prefix()));
    let acts = !state.active || !right;
    if acts {
        unit::start(context, "restart", BRIDGE_UNIT)?;
    }
    Ok(enabled || acts)
}

fn conflict(message: String, hint: &str) -> StepFailure {
    let mut failure = fail(FailureClass::Exists, message);
    failure.hint = Some(hint.to_owned());
    failure
}

impl HostBridge {
    /// Looks at the host.
    ///
    /// # Errors
    /// [`FailureClass::Exists`] when something is in the way.
    fn look(&self, context: &mut Context<'_>) -> Result<Looked, StepFailure> {
        let path = context.layout.unit(BRIDGE_UNIT);
        let unit = managed::body(&path)?.map(|body| unit_is_for(&body));
        let unit = match unit {
            Some(None) => {
                let message = format!("{} does not say which bridge it is for", path.display());
                return Err(fail(FailureClass::Verification, message));
            }
            Some(Some(unit)) => Some(unit),
            None => None,
        };
        if let Some((other, _)) = unit.as_ref().filter(|(bridge, _)| *bridge != self.bridge) {
            return Err(conflict(
                format!("this host already has the bridge {other}, made by tallybook"),
                "roll back the preparation that made it, or keep its name in the inventory",
            ));
        }
        let link = context
            .layout
            .root
            .join("sys/class/net")
            .join(self.bridge.as_str());
        let present = fs::symlink_metadata(&link).is_ok();
        if present && !link.join("bridge").is_dir() {
            return Err(conflict(
                format!("{} is there and is not a bridge", self.bridge),
                "give the host another bridge name in the inventory",
            ));
        }
        let addresses = addresses(context)?;
        if let Some((other, address, prefix)) = addresses.iter().find(|(name, at, prefix)| {
            *name != self.bridge.as_str() && self.gateway.overlaps(*at, *prefix)
        }) {
            return Err(conflict(
                format!(
                    "{other} has {address}/{prefix}, which overlaps {}",
                    self.gateway.subnet()
                ),
                "give the containers another subnet in the inventory",
            ));
        }
        let own: Vec<String> = addresses
            .iter()
            .filter(|(name, _, _)| *name == self.bridge.as_str())
            .map(|(_, address, prefix)| format!("{address}/{prefix}"))
            .collect();
        let right = own.contains(&self.gateway.to_string());
        if present && !right {
            self.refuse_other_address(context.layout, unit.is_some(), &own)?;
        }
        Ok(Looked {
            unit,
            present,
            right,
        })
    }

    fn refuse_other_address(
        &self,
        layout: &Layout,
        ours: bool,
        own: &[String],
    ) -> Result<(), StepFailure> {
        let has = if own.is_empty() {
            "no address".to_owned()
        } else {
            own.join(", ")
        };
        if !ours {
            return Err(conflict(
                format!(
                    "the bridge {} was not made by tallybook and has {has}, not {}",
                    self.bridge, self.gateway
                ),
                "give it that address yourself, or name another bridge in the inventory",
            ));
        }
        let attached = attached(layout, &self.bridge);
        if !own.is_empty() && !attached.is_empty() {
            return Err(conflict(
                format!(
                    "the bridge {} has {has}, not {}, and {} is attached to it",
                    self.bridge,
                    self.gateway,
                    attached.join(", ")
                ),
                "stop this host's containers first: a new address cuts them off",
            ));
        }
        Ok(())
    }

    /// Drops the address that the bridge had before, where it still has it.
    fn drop_address(&self, context: &mut Context<'_>, old: Gateway) -> Result<(), StepFailure> {
        let there = addresses(context)?;
        if there.contains(&(self.bridge.to_string(), old.address(), old.prefix())) {
            context.run(&Program::new([
                "ip",
                "address",
                "delete",
                &old.to_string(),
                "dev",
                self.bridge.as_str(),
            ]))?;
        }
        Ok(())
    }

    /// Whether there is a bridge of that name with the address.
    fn is_right(&self, context: &mut Context<'_>) -> Result<bool, StepFailure> {
        let wanted = (
            self.bridge.to_string(),
            self.gateway.address(),
            self.gateway.prefix(),
        );
        let link = context.layout.root.join("sys/class/net");
        let is_bridge = link.join(self.bridge.as_str()).join("bridge").is_dir();
        Ok(is_bridge && addresses(context)?.contains(&wanted))
    }

    fn done(changed: bool, output: Replaced) -> Done<Replaced> {
        Done {
            changed,
            output,
            facts: Vec::new(),
        }
    }
}

impl Step for HostBridge {
    const KIND: &'static str = "host.bridge";
    type Output = Replaced;

    fn summary(&self) -> String {
        format!("make the bridge {} with {}", self.bridge, self.gateway)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let path = context.layout.unit(BRIDGE_UNIT);
        if managed::read(&path)? == Found::Foreign {
            let what = format!("{} was not written by tallybook", path.display());
            return Ok(Seen::Conflict { what });
        }
        let looked = match self.look(context) {
            Ok(looked) => looked,
            Err(failure) if failure.class == FailureClass::Exists => {
                return Ok(Seen::Conflict {
                    what: failure.message,
                });
            }
            Err(failure) => return Err(failure),
        };
        if looked.unit.is_none() {
            // A bridge of another's that is as it must be needs nothing of us.
            return if looked.right {
                Self::done(false, Replaced { previous: None }).seen()
            } else {
                Ok(Seen::Absent)
            };
        }
        let state = unit::look(context, BRIDGE_UNIT)?;
        let current =
            managed::body(&path)?.is_some_and(|b| b == unit_body(&self.bridge, self.gateway));
        if current && looked.right && state.active && state.enabled {
            return Self::done(false, managed::replaced(&path, context.origin)?).seen();
        }
        Ok(Seen::Partial {
            what: format!(
                "the unit {BRIDGE_UNIT} is there and not in effect, or is for another address"
            ),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let _lock = lock(context.layout)?;
        let looked = self.look(context)?;
        if looked.present && looked.right && looked.unit.is_none() {
            return Ok(Self::done(false, Replaced { previous: None }));
        }
        let path = context.layout.unit(BRIDGE_UNIT);
        let body = unit_body(&self.bridge, self.gateway);
        let (written, replaced) = managed::write(&path, context.origin, &body)?;
        let (state, enabled) = unit::settle(context, BRIDGE_UNIT, written)?;
        let acts = !state.active || !looked.right;
        if acts {
            // Restarting it stops nothing: the unit has no ExecStop.
            unit::start(context, "restart", BRIDGE_UNIT)?;
        }
        let old = replaced.previous.as_deref().and_then(unit_is_for);
        if let Some((_, old)) = old.filter(|(_, old)| *old != self.gateway) {
            self.drop_address(context, old)?;
        }
        if !self.look(context)?.right {
            return Err(fail(
                FailureClass::Host,
                format!(
                    "{} does not have {} after {BRIDGE_UNIT} was started",
                    self.bridge, self.gateway
                ),
            ));
        }
        Ok(Self::done(written || enabled || acts, replaced))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let found = managed::of_others([context.layout.unit(BRIDGE_UNIT)])?;
        if !found.is_empty() && self.is_right(context)? {
            // Without its unit it would be gone after a boot, and as long as it is there this step makes none of its own.
            let message = format!(
                "the bridge {} is as it must be, by a unit of others: that can be adopted, and not be set aside",
                self.bridge
            );
            return Err(fail(FailureClass::Exists, message));
        }
        Ok(found)
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        // Whoever made it: a bridge that has the address is all that containers need of it.
        if self.is_right(context)? {
            return Ok(Self::done(false, Replaced { previous: None }));
        }
        let message = format!("there is no bridge {} with {}", self.bridge, self.gateway);
        Err(fail(FailureClass::Exists, message))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.unit(BRIDGE_UNIT);
        let mut done = Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        if !managed::is_made_by(&path, context.origin)? {
            // What it had replaced may be back, and an undo before this one cut there.
            done.changed = follow(context)?;
            return Ok(done);
        }
        let previous = managed::previous(&path, output.as_ref())?;
        let before = previous.as_deref().and_then(unit_is_for);
        if before != Some((self.bridge.clone(), self.gateway)) {
            refuse_used(context.layout, &self.bridge)?;
        }
        done.changed = true;
        if previous.is_some() {
            if before.is_some_and(|(_, gateway)| gateway != self.gateway) {
                // Crash boundary: once the old unit is back this step no longer owns it, so the new address goes first.
                self.drop_address(context, self.gateway)?;
            }
            managed::take_back(&path, context.origin, output.as_ref())?;
            // Crash boundary: a repeat finds the old unit, and lets the bridge follow it.
            follow(context)?;
            return Ok(done);
        }
        let link = context
            .layout
            .root
            .join("sys/class/net")
            .join(self.bridge.as_str());
        if link.join("bridge").is_dir() {
            context.run(&Program::new([
                "ip",
                "link",
                "delete",
                "dev",
                self.bridge.as_str(),
                "type",
                "bridge",
            ]))?;
        }
        // Crash boundary: the unit goes last, since its mark is what shows the bridge to be ours.
        unit::remove(context, BRIDGE_UNIT)?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::Simulated;

    fn step(bridge: &str, gateway: &str) -> HostBridge {
        HostBridge {
            bridge: bridge.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        }
    }

    #[test]
    fn makes_it_once_and_takes_it_back() {
        let mut sim = Simulated::installed();
        let step = step("tb0", "10.5.0.1/16");
        sim.makes_once_and_takes_back(&step);
        sim.survives_cuts(Simulated::installed, &step);
    }

    #[test]
    fn keeps_a_bridge_of_another_that_is_right_and_refuses_one_that_is_not() {
        let mut sim = Simulated::installed();
        sim.link.add_bridge("br0", &["10.5.0.1/16"], &[]);
        let right = step("br0", "10.5.0.1/16");
        assert!(matches!(sim.probe(1, &right), Seen::Done(_)));
        let done = sim.forward(1, &right).unwrap();
        assert!(!done.changed && !sim.layout.unit(BRIDGE_UNIT).exists());
        assert!(!sim.undo(1, &right, Some(done.output)).unwrap().changed);
        assert!(sim.layout.root.join("sys/class/net/br0").exists());

        let failure = sim.forward(2, &step("br0", "10.7.0.1/16")).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(failure.message.contains("not made by tallybook"));
        let failure = sim.forward(2, &step("tb0", "10.5.9.1/24")).unwrap_err();
        assert!(
            failure.message.contains("overlaps 10.5.9.0/24"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn changes_its_address_only_while_nothing_is_attached() {
        let mut sim = Simulated::installed();
        sim.forward(1, &step("tb0", "10.5.0.1/16")).unwrap();
        sim.link.attach("tb0", "veth1");
        let other = step("tb0", "10.6.0.1/16");
        let failure = sim.forward(2, &other).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(
            failure.message.contains("veth1 is attached"),
            "{}",
            failure.message
        );
        let failure = sim.undo(1, &step("tb0", "10.5.0.1/16"), None).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);

        sim.link.detach("tb0", "veth1");
        let done = sim.forward(2, &other).unwrap();
        assert_eq!(sim.link.addresses["tb0"], ["10.6.0.1/16"]);
        sim.undo(2, &other, Some(done.output)).unwrap();
        assert_eq!(sim.link.addresses["tb0"], ["10.5.0.1/16"]);
        let failure = sim.forward(3, &step("tb1", "10.8.0.1/16")).unwrap_err();
        assert!(failure.message.contains("already has the bridge tb0"));
    }

    #[test]
    fn what_it_replaced_comes_back_wherever_the_undo_is_cut() {
        let (first, second) = (step("tb0", "10.5.0.1/16"), step("tb0", "10.6.0.1/16"));
        Simulated::restores_wherever_cut(Simulated::installed, &first, &second, &|sim| {
            assert_eq!(sim.link.addresses["tb0"], ["10.5.0.1/16"]);
        });
    }

    #[test]
    fn makes_again_what_was_deleted_by_hand() {
        let mut sim = Simulated::installed();
        let step = step("tb0", "10.5.0.1/16");
        sim.forward(1, &step).unwrap();
        sim.link.delete("tb0");
        assert!(matches!(sim.probe(1, &step), Seen::Partial { .. }));
        assert!(sim.forward(1, &step).unwrap().changed);
        assert_eq!(sim.link.addresses["tb0"], ["10.5.0.1/16"]);
    }

    #[test]
    fn a_bridge_of_others_with_the_address_is_taken_over() {
        let mut sim = Simulated::installed();
        let path = sim.layout.unit(BRIDGE_UNIT);
        fs::write(&path, "[Unit]\n").unwrap();
        let step = HostBridge {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
        };
        let adopt = |sim: &mut Simulated| sim.with(1, |context| step.adopt(context));
        adopt(&mut sim).expect_err("there is none");
        sim.link.add_bridge("tb0", &["10.9.0.1/16"], &[]);
        adopt(&mut sim).expect_err("it has another address");
        sim.link.add_bridge("tb0", &["10.5.0.1/16"], &[]);
        assert!(!adopt(&mut sim).unwrap().changed);
        // Nothing else would make it at the next boot.
        let refused = sim.with(1, |context| step.in_the_way(context)).unwrap_err();
        assert!(refused.message.contains("can be adopted"), "{refused:?}");
        assert!(path.exists());
    }
}
