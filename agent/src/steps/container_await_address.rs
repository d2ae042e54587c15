//! `container.await_address`: a container has its address and answers for it. One that something stopped meanwhile is
//! started again; besides that it only looks, and nothing is entered.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::layout::Layout;
use crate::lxc;
use crate::step::{Context, Done, Program, Step, fail};
use crate::steps::container_start::keep_running;

/// How often is looked.
const POLL: Duration = Duration::from_millis(50);
/// How often LXC is asked whether the container still runs.
const ASK_LXC_EVERY: u32 = 20;

/// Waits for a container's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerAwaitAddress {
    /// The container.
    pub container: ContainerName,
    /// The address it must have.
    pub address: Ipv4Addr,
    /// How long to wait, in seconds.
    pub timeout_s: u32,
}

/// How long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressed {
    /// Milliseconds from the first look until it answered.
    pub waited_ms: u64,
}

/// The local addresses in a `fib_trie` (a leaf `|-- A` followed by `/32 host LOCAL`), without loopback's.
pub(crate) fn local_addresses(fib_trie: &str) -> Vec<Ipv4Addr> {
    let mut leaf = None;
    let mut found = Vec::new();
    for line in fib_trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line.ends_with("host LOCAL")
            && let Some(address) = leaf
            && !address.is_loopback()
        {
            found.push(address);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The addresses in the network of a process.
fn addresses(layout: &Layout, pid: u32) -> Option<Vec<Ipv4Addr>> {
    let path = layout.root.join(format!("proc/{pid}/net/fib_trie"));
    fs::read_to_string(path)
        .ok()
        .map(|text| local_addresses(&text))
}

/// Whether there is any address in the network of a process, besides loopback's.
pub(crate) fn has_address(layout: &Layout, pid: u32) -> bool {
    addresses(layout, pid).is_some_and(|found| !found.is_empty())
}

impl ContainerAwaitAddress {
    /// Whether it answers: to an echo request where the host has `ping`, else to the host's ARP request.
    fn answers(&self, context: &mut Context<'_>) -> Result<bool, StepFailure> {
        let root = &context.layout.root;
        if ["bin/ping", "usr/bin/ping"]
            .iter()
            .any(|path| root.join(path).exists())
        {
            let ping = Program::new([
                "ping",
                "-n",
                "-q",
                "-c",
                "1",
                "-W",
                "1",
                &self.address.to_string(),
            ]);
            let ended = context.link.run(&ping.timeout(Duration::from_secs(10)))?;
            return Ok(ended.exit == Some(0));
        }
        // Any datagram makes the kernel ask who has the address; port 9 discards it (RFC 863).
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
            // Whether it can be sent shows in the table.
            let _sent = socket.send_to(b"", (self.address, 9));
        }
        let table = fs::read_to_string(root.join("proc/net/arp")).unwrap_or_default();
        Ok(is_resolved(&table, self.address))
    }

    fn done(&self, context: &Context<'_>, begun: Instant) -> Done<Addressed> {
        let fact = Fact::ContainerAddressed {
            host: context.host.clone(),
            container: self.container.clone(),
            address: self.address.to_string(),
        };
        let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Done {
            changed: false,
            output: Addressed { waited_ms },
            facts: vec![fact],
        }
    }

    fn timed_out(&self, seen: Option<&[Ipv4Addr]>) -> StepFailure {
        let saw = match seen {
            None | Some([]) => "it has no address yet".to_owned(),
            Some(found) if found.contains(&self.address) => {
                "it has the address and does not answer".to_owned()
            }
            Some(found) => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                format!("it has {}", found.join(", "))
            }
        };
        StepFailure {
            hint: Some(
                "look at the DHCP server's reservations and the bridge on the host, then resume"
                    .to_owned(),
            ),
            ..fail(
                FailureClass::Timeout,
                format!(
                    "container {} does not have {} after {} s: {saw}",
                    self.container, self.address, self.timeout_s
                ),
            )
        }
    }
}

/// Whether the ARP table knows who has an address (flag `ATF_COM`, 0x2).
pub(crate) fn is_resolved(table: &str, address: Ipv4Addr) -> bool {
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().and_then(|word| word.parse().ok()) == Some(address)
            && words
                .nth(1)
                .and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok())
                .is_some_and(|flags| flags & 2 != 0)
    })
}

impl Step for ContainerAwaitAddress {
    const KIND: &'static str = "container.await_address";
    type Output = Addressed;

    fn summary(&self) -> String {
        format!("wait until {} answers on {}", self.container, self.address)
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "it waits, and that the container runs is another step's doing".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let begun = Instant::now();
        if let Some(pid) = lxc::init_pid(context, &self.container)?
            && let Some(seen) = addresses(context.layout, pid)
            && seen.contains(&self.address)
            && self.answers(context)?
        {
            return self.done(context, begun).seen();
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Addressed>, StepFailure> {
        let mut facts = keep_running(context, &self.container)?;
        let begun = Instant::now();
        let timeout = Duration::from_secs(u64::from(self.timeout_s));
        let mut pid = None;
        let mut seen = None;
        let mut looks: u32 = 0;
        loop {
            if pid.is_none() || looks.is_multiple_of(ASK_LXC_EVERY) {
                pid = lxc::init_pid(context, &self.container)?;
                if pid.is_none() {
                    return Err(StepFailure {
                        hint: Some(format!(
                            "start it in the foreground to see why: lxc-start -F -n {}",
                            self.container
                        )),
                        ..fail(
                            FailureClass::Host,
                            format!(
                                "container {} does not run, so it can't get {}",
                                self.container, self.address
                            ),
                        )
                    });
                }
            }
            seen = pid.and_then(|pid| addresses(context.layout, pid)).or(seen);
            let has_it = seen
                .as_ref()
                .is_some_and(|seen| seen.contains(&self.address));
            if has_it && self.answers(context)? {
                let mut done = self.done(context, begun);
                facts.append(&mut done.facts);
                return Ok(Done { facts, ..done });
            }
            if begun.elapsed() >= timeout {
                return Err(self.timed_out(seen.as_deref()));
            }
            if context.link.stop_requested() {
                return Err(fail(
                    FailureClass::Interrupted,
                    "stopped while waiting for an address",
                ));
            }
            looks += 1;
            thread::sleep(POLL);
        }
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Addressed>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_and_broadcasts_are_not() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
            +-- 10.5.0.0/24 2 0 2\n        |-- 10.5.0.0\n           /24 link UNICAST\n        |-- 10.5.0.9\n           \
            /32 host LOCAL\n        |-- 10.5.0.255\n           /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(local_addresses(trie), [Ipv4Addr::new(10, 5, 0, 9)]);
        assert!(local_addresses("").is_empty());
    }

    #[test]
    fn only_a_complete_entry_of_the_arp_table_counts() {
        let table = "IP address HW type Flags HW address Mask Device\n\
            10.5.0.9 0x1 0x2 00:16:3e:00:00:01 * tally0\n10.5.0.8 0x1 0x0 00:00:00:00:00:00 * tally0\n";
        assert!(is_resolved(table, Ipv4Addr::new(10, 5, 0, 9)));
        assert!(!is_resolved(table, Ipv4Addr::new(10, 5, 0, 8)));
        assert!(!is_resolved(table, Ipv4Addr::new(10, 5, 0, 7)));
    }
}
