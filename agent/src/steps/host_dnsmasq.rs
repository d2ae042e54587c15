//! `host.dnsmasq`: a dnsmasq of the tool's own that gives the containers of one bridge their addresses and names.
//!
//! It never touches another dnsmasq of the host or its configuration, and is restarted only when its own changed.
//! Containers keep their network meanwhile: their leases are in a file.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Protocol;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Found, Replaced, TakenBack};
use crate::network::{Bridge, DNSMASQ_UNIT, Domain, Gateway, lock, ports, refuse_used, unit};
use crate::step::{Context, Done, Program, Step, fail, io_failure};
use crate::steps::host_directories;

/// dnsmasq gives no lease for less, dnsmasq(8).
const LEASE_S_MIN: u32 = 120;

/// Sets up the tool's own dnsmasq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDnsmasq {
    /// The bridge it serves.
    pub bridge: Bridge,
    /// The bridge's address: what containers ask for names and send packets to.
    pub gateway: Gateway,
    /// The domain of the containers' names.
    pub domain: Option<Domain>,
    /// How long a lease lasts, in seconds.
    pub lease_s: u32,
    /// Upstream resolvers; the host's own when there are none.
    pub dns: Vec<IpAddr>,
}

fn config(step: &HostDnsmasq, layout: &Layout) -> String {
    let mut lines = vec![
        format!("interface={}", step.bridge),
        "except-interface=lo".to_owned(),
        "bind-interfaces".to_owned(),
        format!("pid-file={PID_FILE}"),
        format!("dhcp-leasefile={}", layout.leases().display()),
        // Only containers with a reservation get an address, each its own.
        format!(
            "dhcp-range={},static,{},{}",
            step.gateway.network(),
            step.gateway.mask(),
            step.lease_s.max(LEASE_S_MIN)
        ),
        format!("dhcp-hostsdir={}", layout.reservations().display()),
        format!("hostsdir={}", layout.names().display()),
        "dhcp-authoritative".to_owned(),
        // Copies of one system may send the same client identifier; the MAC is what the log handed out.
        "dhcp-ignore-clid".to_owned(),
        "no-ping".to_owned(),
        "no-hosts".to_owned(),
        "domain-needed".to_owned(),
        "expand-hosts".to_owned(),
    ];
    // Debian's package makes this user; built otherwise, dnsmasq has a default of its own.
    let passwd = fs::read_to_string(layout.root.join("etc/passwd")).unwrap_or_default();
    if passwd.lines().any(|line| line.starts_with("dnsmasq:")) {
        lines.push("user=dnsmasq".to_owned());
    }
    lines.extend(step.domain.iter().map(|domain| format!("domain={domain}")));
    if !step.dns.is_empty() {
        lines.push("no-resolv".to_owned());
        lines.extend(step.dns.iter().map(|server| format!("server={server}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

const PID_FILE: &str = "/run/tallybook-dnsmasq.pid";

/// What a process carries that was started with this configuration.
fn assignment(config: &str) -> String {
    format!(
        "TALLYBOOK_CONFIG={}",
        &blake3::hash(config.as_bytes()).to_hex()[..24]
    )
}

/// The unit's text. `forking`, so that a port in use fails the start and is not found out later.
fn unit_body(layout: &Layout, config: &str) -> String {
    format!(
        "[Unit]\n\
         Description=Addresses and names of containers, by tallybook\n\
         Documentation=man:dnsmasq(8)\n\
         Wants=tallybook-bridge.service\n\
         After=tallybook-bridge.service network.target\n\
         Before=lxc.service\n\
         \n\
         [Service]\n\
         Type=forking\n\
         PIDFile={PID_FILE}\n\
         Environment={}\n\
         ExecStart=/usr/sbin/dnsmasq --conf-file={}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        assignment(config),
        layout.dnsmasq().display()
    )
}

/// Makes unit and process follow the configuration that is written; says whether anything was different.
fn follow(context: &mut Context<'_>, config: &str) -> Result<bool, StepFailure> {
    let written = managed::derive(
        &context.layout.unit(DNSMASQ_UNIT),
        &unit_body(context.layout, config),
    )?;
    let (state, enabled) = unit::settle(context, DNSMASQ_UNIT, written)?;
    let runs = state.active && unit::started_with(context, state, &assignment(config));
    if !runs {
        unit::start(context, "restart", DNSMASQ_UNIT)?;
    }
    Ok(written || enabled || !runs)
}

impl HostDnsmasq {
    /// Refuses where another program has the DNS port of the bridge's address.
    fn refuse_taken_port(&self, context: &mut Context<'_>) -> Result<(), StepFailure> {
        if unit::look(context, DNSMASQ_UNIT)?.active {
            return Ok(());
        }
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            for listener in ports::listeners(context.layout, protocol)? {
                if listener.port == 53 && listener.meets(Some(self.gateway.address())) {
                    let holder = listener.holder(context.layout);
                    let mut failure = fail(
                        FailureClass::Exists,
                        format!(
                            "{holder} listens on {protocol} port 53 of {}, where containers ask for names",
                            listener.address
                        ),
                    );
                    failure.hint = Some(format!(
                        "make {holder} listen on the host's other addresses only (dnsmasq: bind-interfaces)"
                    ));
                    return Err(failure);
                }
            }
        }
        Ok(())
    }
}

impl Step for HostDnsmasq {
    const KIND: &'static str = "host.dnsmasq";
    type Output = Replaced;

    fn summary(&self) -> String {
        format!("give addresses and names to containers on {}", self.bridge)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let wanted = config(self, context.layout);
        let path = context.layout.dnsmasq();
        for path in [&path, &context.layout.unit(DNSMASQ_UNIT)] {
            if managed::read(path)? == Found::Foreign {
                let what = format!("{} was not written by tallybook", path.display());
                return Ok(Seen::Conflict { what });
            }
        }
        let Some(there) = managed::body(&path)? else {
            return Ok(Seen::Absent);
        };
        let state = unit::look(context, DNSMASQ_UNIT)?;
        let runs = state.active && unit::started_with(context, state, &assignment(&wanted));
        if there == wanted && runs && state.enabled {
            return Done {
                changed: false,
                output: managed::replaced(&path, context.origin)?,
                facts: Vec::new(),
            }
            .seen();
        }
        Ok(Seen::Partial {
            what: format!(
                "{} is there, and {DNSMASQ_UNIT} does not run with what is wanted",
                path.display()
            ),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Replaced>, StepFailure> {
        let _lock = lock(context.layout)?;
        let wanted = config(self, context.layout);
        self.refuse_taken_port(context)?;
        let mut changed = false;
        for directory in [context.layout.reservations(), context.layout.names()] {
            changed |= host_directories::make(&directory, 0o755)?;
        }
        let path = context.layout.dnsmasq();
        if managed::body(&path)?.is_none_or(|there| there != wanted) {
            let test = Program::new(["dnsmasq", "--test", "--conf-file=-"]);
            context.run(&test.stdin(wanted.as_str()))?;
        }
        let (written, replaced) = managed::write(&path, context.origin, &wanted)?;
        // Crash boundary: what runs tells by its environment which configuration it was started with.
        let followed = follow(context, &wanted)?;
        Ok(Done {
            changed: changed || written || followed,
            output: replaced,
            facts: Vec::new(),
        })
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([layout.dnsmasq(), layout.unit(DNSMASQ_UNIT)])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Replaced>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.dnsmasq();
        let mut done = Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        };
        if !managed::is_made_by(&path, context.origin)? {
            if let Found::Ours { body, .. } = managed::read(&path)? {
                // What it had replaced may be back, and an undo before this one cut there.
                done.changed = follow(context, &body)?;
            }
            return Ok(done);
        }
        let previous = managed::previous(&path, output.as_ref())?;
        let serves = |text: &str| {
            let line = |begin: &str| {
                let mut lines = text.lines();
                lines
                    .find(|line| line.starts_with(begin))
                    .map(str::to_owned)
            };
            // Where, and for which addresses; how long a lease is does not matter to who has one.
            let range = line("dhcp-range=").map(|range| {
                range
                    .rsplit_once(',')
                    .map_or(range.clone(), |(range, _)| range.to_owned())
            });
            (line("interface="), range)
        };
        let now = managed::body(&path)?.unwrap_or_default();
        if previous.as_deref().map(serves) != Some(serves(&now)) {
            refuse_used(context.layout, &self.bridge)?;
        }
        done.changed = true;
        if previous.is_none() {
            // Crash boundary: the configuration goes last, since its mark shows the unit to be ours to remove.
            unit::remove(context, DNSMASQ_UNIT)?;
        }
        match managed::take_back(&path, context.origin, output.as_ref())? {
            // What dnsmasq wrote under the name that we gave it; nobody reads it any more. A cut here leaves it.
            TakenBack::Restored => {
                // Crash boundary: a repeat finds the old configuration, and lets the process follow it.
                let body = managed::body(&path)?.unwrap_or_default();
                follow(context, &body)?;
            }
            TakenBack::Removed => {
                let leases = context.layout.leases();
                match fs::remove_file(&leases) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(io_failure("removing", &leases, &error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            TakenBack::Nothing => {}
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::Simulated;

    fn step() -> HostDnsmasq {
        HostDnsmasq {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
            domain: Some("lxc.example".parse().unwrap()),
            lease_s: 3600,
            dns: vec!["192.0.2.1".parse().unwrap()],
        }
    }

    #[test]
    fn sets_it_up_once_and_takes_it_back() {
        let mut sim = Simulated::installed();
        sim.makes_once_and_takes_back(&step());
        sim.survives_cuts(Simulated::installed, &step());
    }

    #[test]
    fn restarts_only_for_a_changed_configuration() {
        let mut sim = Simulated::installed();
        sim.forward(1, &step()).unwrap();
        assert_eq!(sim.link.count("systemctl restart"), 1);
        sim.forward(2, &step()).unwrap();
        assert_eq!(sim.link.count("systemctl restart"), 1);
        let longer = HostDnsmasq {
            lease_s: 7200,
            ..step()
        };
        let done = sim.forward(3, &longer).unwrap();
        assert_eq!(sim.link.count("systemctl restart"), 2);
        sim.undo(3, &longer, Some(done.output)).unwrap();
        assert!(matches!(sim.probe(1, &step()), Seen::Done(_)));
    }

    #[test]
    fn what_it_replaced_comes_back_wherever_the_undo_is_cut() {
        let longer = HostDnsmasq {
            lease_s: 7200,
            ..step()
        };
        Simulated::restores_wherever_cut(Simulated::installed, &step(), &longer, &|_| {});
    }

    #[test]
    fn the_configuration_holds_what_it_must() {
        let sim = Simulated::installed();
        let text = config(&step(), &sim.layout);
        for line in [
            "interface=tb0",
            "bind-interfaces",
            "dhcp-range=10.5.0.0,static,255.255.0.0,3600",
            "domain=lxc.example",
            "no-resolv",
            "server=192.0.2.1",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in {text}"
            );
        }
        let own = HostDnsmasq {
            dns: Vec::new(),
            domain: None,
            lease_s: 1,
            ..step()
        };
        let text = config(&own, &sim.layout);
        assert!(
            !text.contains("no-resolv") && !text.contains("domain=") && text.contains(",120\n")
        );
    }

    #[test]
    fn refuses_a_taken_port_and_a_wrong_configuration() {
        let mut sim = Simulated::installed();
        sim.listen("udp", "00000000:0035 00000000:0000 07");
        let failure = sim.forward(1, &step()).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(
            failure.message.contains("udp port 53"),
            "{}",
            failure.message
        );

        let mut sim = Simulated::installed();
        sim.link.refuse = Some("dnsmasq --test");
        assert_eq!(
            sim.forward(1, &step()).unwrap_err().class,
            FailureClass::Command
        );
        assert!(!sim.layout.dnsmasq().exists());
    }
}
