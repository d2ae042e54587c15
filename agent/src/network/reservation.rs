//! Which container has which MAC and address on this host: a file a container, read by dnsmasq.
//!
//! It must never hold two containers with the same MAC or address. dnsmasq's own lease file is only read: a lease is given back
//! as its holder would, by a message.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tallybook_events::allocation::{Allocation, Mac};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::layout::Layout;
use crate::network::{DNSMASQ_UNIT, managed, ruleset, unit};
use crate::step::{Context, Program, fail};

/// How long dnsmasq may take to forget a lease that was given back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL: Duration = Duration::from_millis(20);

/// One reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The container's MAC.
    pub mac: Mac,
    /// The container's address.
    pub address: Ipv4Addr,
}

impl From<&Allocation> for Reservation {
    fn from(allocation: &Allocation) -> Self {
        Reservation {
            mac: allocation.mac,
            address: allocation.address,
        }
    }
}

impl Reservation {
    /// The line of `dhcp-hostsdir`, dnsmasq(8). A name with dots is left to [`name_line`]: dnsmasq would take what
    /// follows the first dot for the lease's domain.
    pub fn line(&self, container: &ContainerName) -> String {
        let mut line = format!("{},{}", self.mac, self.address);
        if !container.as_str().contains('.') {
            line.push_str(&format!(",{container}"));
        }
        line.push('\n');
        line
    }

    /// What a line says; `None` for one that the tool did not write.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.trim_end().split(',');
        let mac = fields.next()?.parse().ok()?;
        let address = fields.find_map(|field| field.parse().ok())?;
        Some(Reservation { mac, address })
    }
}

/// The line of `hostsdir`, which answers for the name and for the address.
pub fn name_line(container: &ContainerName, address: Ipv4Addr) -> String {
    format!("{address} {container}\n")
}

/// A container's reservation.
///
/// # Errors
/// When its file can't be read or understood.
pub fn of(layout: &Layout, container: &ContainerName) -> Result<Option<Reservation>, StepFailure> {
    let path = layout.reservation(container);
    managed::body(&path)?
        .map(|body| Reservation::parse(&body).ok_or_else(|| not_understood(&path)))
        .transpose()
}

/// The container, other than this one, that has the MAC or the address.
///
/// # Errors
/// When reservations can't be read or understood.
pub fn conflict(
    layout: &Layout,
    container: &ContainerName,
    wanted: &Reservation,
) -> Result<Option<String>, StepFailure> {
    for name in managed::list(&layout.reservations())? {
        if name == container.as_str() {
            continue;
        }
        let path = layout.reservations().join(&name);
        let body = managed::body(&path)?.unwrap_or_default();
        let there = Reservation::parse(&body).ok_or_else(|| not_understood(&path))?;
        if there.mac == wanted.mac {
            return Ok(Some(format!(
                "{} is reserved for container {name}",
                there.mac
            )));
        }
        if there.address == wanted.address {
            return Ok(Some(format!(
                "{} is reserved for container {name}",
                there.address
            )));
        }
    }
    Ok(None)
}

/// The MAC that an address is reserved for.
///
/// # Errors
/// When reservations can't be read or understood.
pub fn holder(layout: &Layout, address: Ipv4Addr) -> Result<Option<Mac>, StepFailure> {
    for name in managed::list(&layout.reservations())? {
        let path = layout.reservations().join(&name);
        if let Some(body) = managed::body(&path)? {
            let there = Reservation::parse(&body).ok_or_else(|| not_understood(&path))?;
            if there.address == address {
                return Ok(Some(there.mac));
            }
        }
    }
    Ok(None)
}

/// Who has a lease on an address, as dnsmasq last wrote it down; what can't be read is as if there were none.
fn leased_to(layout: &Layout, address: Ipv4Addr) -> Option<Mac> {
    holder_in(
        &fs::read_to_string(layout.leases()).unwrap_or_default(),
        address,
    )
}

/// Who has a lease on an address in a file of leases: `expiry mac address name client-id`, one a line.
pub(crate) fn holder_in(leases: &str, address: Ipv4Addr) -> Option<Mac> {
    let address = address.to_string();
    leases.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (*fields.get(2)? == address).then(|| fields[1].parse().ok())?
    })
}

/// Gives back a lease on an address, whose holder is gone and did not do it: one that was killed, or whose host lost
/// power. dnsmasq would keep the address from everybody else until the lease runs out. A lease of `keep` stays.
///
/// # Errors
/// When dnsmasq can't be told, or keeps the lease all the same.
pub fn give_back(
    context: &mut Context<'_>,
    address: Ipv4Addr,
    keep: Option<Mac>,
) -> Result<(), StepFailure> {
    let Some(holder) = leased_to(context.layout, address).filter(|mac| Some(*mac) != keep) else {
        return Ok(());
    };
    let Some(nat) = ruleset::nat(context.layout)? else {
        return Ok(());
    };
    if !unit::look(context, DNSMASQ_UNIT)?.active {
        return Ok(());
    }
    // One packet, which dnsmasq does not answer.
    context.run(&Program::new([
        "dhcp_release".to_owned(),
        nat.bridge.to_string(),
        address.to_string(),
        holder.to_string(),
    ]))?;
    let begun = Instant::now();
    while leased_to(context.layout, address) == Some(holder) {
        if begun.elapsed() >= RELEASE_TIMEOUT {
            return Err(fail(
                FailureClass::Host,
                format!("dnsmasq keeps the lease of {holder}, which is gone, on {address}"),
            ));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Has dnsmasq read the reservations and names again. It notices new files by itself, but not that one is gone.
/// Where it does not run there is nothing to tell: it reads everything when it starts.
///
/// # Errors
/// When systemd can't be asked, or the signal can't be sent.
pub fn tell_dnsmasq(context: &mut Context<'_>) -> Result<(), StepFailure> {
    if unit::look(context, DNSMASQ_UNIT)?.active {
        context.run(&Program::new([
            "systemctl",
            "kill",
            "--signal=HUP",
            "--kill-who=main",
            DNSMASQ_UNIT,
        ]))?;
    }
    Ok(())
}

fn not_understood(path: &Path) -> StepFailure {
    let message = format!("{} does not hold a reservation", path.display());
    fail(FailureClass::Verification, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        let wanted = Reservation {
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            address: [10, 5, 0, 2].into(),
        };
        let plain = ContainerName::new("web1").unwrap();
        let dotted = ContainerName::new("d.foo.net").unwrap();
        assert_eq!(wanted.line(&plain), "00:16:3e:00:00:01,10.5.0.2,web1\n");
        assert_eq!(wanted.line(&dotted), "00:16:3e:00:00:01,10.5.0.2\n");
        for line in [wanted.line(&plain), wanted.line(&dotted)] {
            assert_eq!(Reservation::parse(&line).unwrap(), wanted);
        }
        for bad in [
            "",
            "web1",
            "00:16:3e:00:00:01",
            "10.5.0.2,00:16:3e:00:00:01",
            "\n",
        ] {
            assert_eq!(Reservation::parse(bad), None, "{bad:?}");
        }
    }
}
