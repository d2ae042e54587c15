//! `host.nftables`: the tool's own table: containers reach the world, and the world their forwarded ports.
//!
//! It never touches another table. A policy of another table that drops what is passed on still drops it: nftables
//! lets every table have its say.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::step::{Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Found, Replaced};
use crate::network::ruleset::{self, Nat};
use crate::network::{Bridge, Gateway, NFTABLES_UNIT, lock, refuse_used, unit};
use crate::step::{Context, Done, Step};
use crate::steps::host_directories;

/// Sets up the tool's own table; the last step of preparing a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNftables {
    /// The bridge.
    pub bridge: Bridge,
    /// Its address, and with it the subnet.
    pub gateway: Gateway,
    /// The address whose ports are forwarded; every address of the host unless given.
    pub forward_address: Option<Ipv4Addr>,
}

/// The unit's text. It is bound to the distribution's own unit, which flushes every table when it starts or stops,
/// and comes after other programs that load rules.
fn unit_body(layout: &Layout) -> String {
    format!(
        "[Unit]\n\
         Description=Forwarded ports of containers, by tallybook\n\
         Documentation=man:nft(8)\n\
         After=nftables.service netfilter-persistent.service ufw.service firewalld.service\n\
         PartOf=nftables.service\n\
         ReloadPropagatedFrom=nftables.service\n\
         Before=lxc.service\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/usr/sbin/nft --file {path}\n\
         ExecReload=/usr/sbin/nft --file {path}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target nftables.service\n",
        path = layout.ruleset().display()
    )
}

fn follow(context: &mut Context<'_>) -> Result<bool, StepFailure> {
    let applied = ruleset::apply(context)?;
    let path = context.layout.unit(NFTABLES_UNIT);
    let written = managed::derive(&path, &unit_body(context.layout))?;
    let (state, enabled) = unit::settle(context, NFTABLES_UNIT, written)?;
    if !state.active {
        unit::start(context, "start", NFTABLES_UNIT)?;
    }
    Ok(applied || written || enabled || !state.active)
}

impl HostNftables {
    fn nat(&self) -> Nat {
        Nat {
            bridge: self.bridge.clone(),
            gateway: self.gateway,
            forward_address: self.forward_address,
        }
    }
}

fn prepared(context: &Context<'_>, nat: &Nat) -> Fact {
    Fact::HostPrepared {
        host: context.host.clone(),
        bridge: nat.bridge.to_string(),
        gateway: nat.gateway.to_string(),
    }
}

impl Step for HostNftables {
    const KIND: &'static str = "host.nftables";
    type Output = Replaced;

    fn summary(&self) -> String {
        format!("forward ports to containers in {}", self.gateway.subnet())
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let path = context.layout.nat();
        for path in [
            &path,
            &context.layout.unit(NFTABLES_UNIT),
            &context.layout.ruleset(),
        ] {
            if managed::read(path)? == Found::Foreign {
                let what = format!("{} was not written by tallybook", path.display());
                return Ok(Seen::Conflict { what });
            }
        }
        let Some(there) = managed::body(&path)? else {
            return Ok(Seen::Absent);
        };
        let state = unit::look(context, NFTABLES_UNIT)?;
        let current = there == self.nat().body() && ruleset::is_current(context)?;
        if current && state.active && state.enabled {
            return Done {
                changed: false,
                output: managed::replaced(&path, context.origin)?,
                facts: vec![prepared(context, &self.nat())],
            }
            .seen();
        }
        Ok(Seen::Partial {
            what: format!("{} is there, and what is loaded differs", path.display()),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let _lock = lock(context.layout)?;
        let directory = host_directories::make(&context.layout.forwards(), 0o755)?;
        let (written, replaced) =
            managed::write(&context.layout.nat(), context.origin, &self.nat().body())?;
        let followed = follow(context)?;
        Ok(Done {
            changed: directory || written || followed,
            output: replaced,
            facts: vec![prepared(context, &self.nat())],
        })
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([layout.nat(), layout.unit(NFTABLES_UNIT), layout.ruleset()])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.nat();
        let mut done = Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        if !managed::is_made_by(&path, context.origin)? {
            // What it had replaced may be back, and an undo before this one cut there: what became true is told again.
            if let Found::Ours { .. } = managed::read(&path)? {
                done.changed = follow(context)?;
                let nat = ruleset::nat(context.layout)?;
                done.facts.extend(nat.map(|nat| prepared(context, &nat)));
            }
            return Ok(done);
        }
        let previous = managed::previous(&path, output.as_ref())?;
        let now = self.nat();
        let same = previous
            .as_deref()
            .and_then(Nat::of_file)
            .is_some_and(|before| {
                (before.bridge, before.gateway) == (now.bridge.clone(), now.gateway)
            });
        if !same {
            // The first that a rollback of `host prepare` takes back: refused here, nothing is harmed.
            refuse_used(context.layout, &self.bridge)?;
        }
        done.changed = true;
        if previous.is_some() {
            managed::take_back(&path, context.origin, output.as_ref())?;
            // Crash boundary: a repeat finds the old setting, and lets the table follow it.
            follow(context)?;
            let nat = ruleset::nat(context.layout)?;
            done.facts.extend(nat.map(|nat| prepared(context, &nat)));
            return Ok(done);
        }
        // Crash boundary: the setting goes last, since its mark shows the rest to be ours to remove.
        unit::remove(context, NFTABLES_UNIT)?;
        ruleset::remove(context)?;
        managed::take_back(&path, context.origin, output.as_ref())?;
        done.facts.push(Fact::HostUnprepared {
            host: context.host.clone(),
        });
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use tallybook_events::step::FailureClass;

    use super::*;
    use crate::network::simulated::{Simulated, allocation};
    use crate::steps::dhcp_reserve::DhcpReserve;
    use crate::steps::host_bridge::HostBridge;
    use crate::steps::host_dnsmasq::HostDnsmasq;
    use crate::steps::host_forwarding::HostForwarding;

    fn step() -> HostNftables {
        HostNftables {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
            forward_address: None,
        }
    }

    #[test]
    fn sets_it_up_once_and_takes_it_back() {
        let mut sim = Simulated::installed();
        sim.makes_once_and_takes_back(&step());
        assert_eq!(sim.link.table, None);
        sim.survives_cuts(Simulated::installed, &step());
        let done = sim.forward(5, &step()).unwrap();
        assert!(matches!(done.facts[..], [Fact::HostPrepared { .. }]));
        let done = sim.undo(5, &step(), Some(done.output)).unwrap();
        assert!(matches!(done.facts[..], [Fact::HostUnprepared { .. }]));
    }

    #[test]
    fn loads_again_what_was_flushed() {
        let mut sim = Simulated::installed();
        sim.forward(1, &step()).unwrap();
        sim.link.table = None;
        assert!(matches!(sim.probe(1, &step()), Seen::Partial { .. }));
        assert!(sim.forward(1, &step()).unwrap().changed);
        assert!(sim.link.table.is_some());
    }

    #[test]
    fn what_it_replaced_comes_back_wherever_the_undo_is_cut() {
        let other = HostNftables {
            gateway: "10.6.0.1/16".parse().unwrap(),
            ..step()
        };
        Simulated::restores_wherever_cut(Simulated::installed, &step(), &other, &|sim| {
            assert!(sim.link.table.as_ref().unwrap().contains("10.5.0.0/16"));
        });
    }

    #[test]
    fn nothing_is_taken_from_a_container_that_has_an_address() {
        let mut sim = Simulated::prepared();
        let reserve = DhcpReserve {
            container: "web1".parse().unwrap(),
            allocation: allocation(2, &[]),
        };
        sim.forward(1, &reserve).unwrap();
        let table = sim.link.table.clone();
        // Without forwarded ports, too; and by each of them, so that the first of a rollback refuses.
        let failure = sim.undo(202, &step(), None).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(
            failure.message.ends_with("host: web1"),
            "{}",
            failure.message
        );
        assert_eq!(sim.link.table, table);
        let dnsmasq = HostDnsmasq {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
            domain: None,
            lease_s: 3600,
            dns: Vec::new(),
        };
        assert_eq!(
            sim.undo(201, &dnsmasq, None).unwrap_err().class,
            FailureClass::Exists
        );
        let bridge = HostBridge {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
        };
        sim.forward(3, &bridge).unwrap();
        assert_eq!(
            sim.undo(3, &bridge, None).unwrap_err().class,
            FailureClass::Exists
        );
        sim.forward(4, &HostForwarding {}).unwrap();
        assert_eq!(
            sim.undo(4, &HostForwarding {}, None).unwrap_err().class,
            FailureClass::Exists
        );
    }

    #[test]
    fn another_subnet_and_back() {
        let mut sim = Simulated::installed();
        sim.forward(1, &step()).unwrap();
        let other = HostNftables {
            gateway: "10.6.0.1/16".parse().unwrap(),
            forward_address: Some("192.0.2.7".parse().unwrap()),
            ..step()
        };
        let done = sim.forward(2, &other).unwrap();
        let table = sim.link.table.clone().unwrap();
        assert!(table.contains("ip daddr 192.0.2.7 dnat") && table.contains("10.6.0.0/16"));
        assert!(!sim.undo(1, &step(), None).unwrap().changed);
        let done = sim.undo(2, &other, Some(done.output)).unwrap();
        assert!(
            matches!(&done.facts[..], [Fact::HostPrepared { gateway, .. }] if gateway == "10.5.0.1/16")
        );
        assert!(sim.link.table.as_ref().unwrap().contains("10.5.0.0/16"));
    }
}
