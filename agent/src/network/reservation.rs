//! Which container has which MAC and address on this host: a file a container, read by dnsmasq.
//!
//! It must never hold two containers with the same MAC or address, and never touches dnsmasq's own lease file.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use tallybook_events::allocation::{Allocation, Mac};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::layout::Layout;
use crate::network::{DNSMASQ_UNIT, managed, unit};
use crate::step::{Context, Program, fail};

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
    /// The line of `dhcp-hostsdir`, dnsmasq(8). A second MAC lets dnsmasq give up the lease which that one still
    /// has on the address, which it would else keep from its new owner until it runs out. A name with dots is
    /// left to [`name_line`]: dnsmasq would take what follows the first dot for the lease's domain.
    pub fn line(&self, container: &ContainerName, gone: Option<Mac>) -> String {
        let mut line = self.mac.to_string();
        if let Some(gone) = gone {
            line.push_str(&format!(",{gone}"));
        }
        line.push_str(&format!(",{}", self.address));
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

/// The MAC that still has a lease on the address and no reservation any more: a container that is gone.
pub fn leased_to_gone(layout: &Layout, wanted: &Reservation) -> Option<Mac> {
    // `expiry mac address name client-id`, one a line. What can't be read is as if there were no lease.
    let leases = fs::read_to_string(layout.leases()).unwrap_or_default();
    let address = wanted.address.to_string();
    let holder = leases.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (*fields.get(2)? == address).then(|| fields[1].parse::<Mac>().ok())?
    })?;
    let lives = |name: &String| {
        let body = managed::body(&layout.reservations().join(name));
        let there = body
            .ok()
            .flatten()
            .and_then(|body| Reservation::parse(&body));
        there.is_some_and(|there| there.mac == holder)
    };
    let reserved = managed::list(&layout.reservations()).unwrap_or_default();
    (holder != wanted.mac && !reserved.iter().any(lives)).then_some(holder)
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
        let gone = "00:16:3e:00:00:09".parse().unwrap();
        let plain = ContainerName::new("web1").unwrap();
        let dotted = ContainerName::new("d.foo.net").unwrap();
        assert_eq!(
            wanted.line(&plain, None),
            "00:16:3e:00:00:01,10.5.0.2,web1\n"
        );
        assert_eq!(wanted.line(&dotted, None), "00:16:3e:00:00:01,10.5.0.2\n");
        for line in [wanted.line(&plain, Some(gone)), wanted.line(&dotted, None)] {
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
