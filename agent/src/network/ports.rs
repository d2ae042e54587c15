//! Which ports the host itself listens on, and whose they are, read from `/proc`.
//!
//! It only reads. Ports of other network namespaces (the containers') do not show there.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use tallybook_events::allocation::Protocol;
use tallybook_events::step::StepFailure;

use crate::layout::Layout;
use crate::step::io_failure;

/// A socket that takes what is sent to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The address it is bound to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its inode, by which its process is found.
    inode: u64,
}

impl Listener {
    /// Whether it would be in the way of something else at this address (`None`: at each of the host's IPv4
    /// addresses but the loopback ones).
    pub fn meets(&self, address: Option<Ipv4Addr>) -> bool {
        let own = match self.address {
            IpAddr::V4(own) => own,
            IpAddr::V6(own) if own == Ipv6Addr::UNSPECIFIED => Ipv4Addr::UNSPECIFIED,
            IpAddr::V6(own) => match own.to_ipv4_mapped() {
                Some(own) => own,
                None => return false,
            },
        };
        own.is_unspecified() || address.map_or(!own.is_loopback(), |address| address == own)
    }

    /// The process that has it: `name (pid)`, or that none was found.
    pub fn holder(&self, layout: &Layout) -> String {
        let wanted = format!("socket:[{}]", self.inode);
        let proc = layout.root.join("proc");
        let Ok(entries) = fs::read_dir(&proc) else {
            return "an unknown process".to_owned();
        };
        let mut pids: Vec<u32> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        for pid in pids {
            let Ok(fds) = fs::read_dir(proc.join(format!("{pid}/fd"))) else {
                continue;
            };
            let has = |fd: fs::DirEntry| {
                fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&wanted))
            };
            if fds.flatten().any(has) {
                let name = fs::read_to_string(proc.join(format!("{pid}/comm"))).unwrap_or_default();
                return format!("{} (pid {pid})", name.trim_end());
            }
        }
        "an unknown process".to_owned()
    }
}

/// Every socket of the host that takes what is sent to its port.
///
/// # Errors
/// When the kernel's tables can't be read.
pub fn listeners(layout: &Layout, protocol: Protocol) -> Result<Vec<Listener>, StepFailure> {
    let (names, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], "0A"),
        Protocol::Udp => (["udp", "udp6"], "07"),
    };
    let mut found = Vec::new();
    for name in names {
        // Through `self`: a process sees the sockets of its own network namespace.
        let path = layout.root.join("proc/self/net").join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A kernel without IPv6 has no such table.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_failure("reading", &path, &error)),
        };
        found.extend(text.lines().skip(1).filter_map(|line| parse(line, state)));
    }
    Ok(found)
}

/// A line of `/proc/net/tcp` and its like, proc(5): `sl local remote st … inode`.
pub(crate) fn parse(line: &str, state: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    // Each word is in the machine's own byte order, printed as a number.
    let address = if address.len() == 8 {
        IpAddr::from(word(0)?.to_ne_bytes())
    } else {
        let mut bytes = [0; 16];
        for (at, chunk) in bytes.chunks_mut(4).enumerate() {
            chunk.copy_from_slice(&word(at * 8)?.to_ne_bytes());
        }
        IpAddr::from(bytes)
    };
    Some(Listener {
        address,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_real_listener_and_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let layout = Layout::default();
        let found = listeners(&layout, Protocol::Tcp).unwrap();
        let ours = found.iter().find(|l| l.port == port).unwrap();
        assert_eq!(ours.address, socket.local_addr().unwrap().ip());
        assert!(
            ours.holder(&layout)
                .contains(&format!("(pid {})", std::process::id()))
        );
        assert!(!ours.meets(None), "a loopback listener is in nobody's way");

        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listeners(&layout, Protocol::Udp).unwrap();
        assert!(found.iter().any(|l| l.port == port && l.meets(None)));
    }

    #[test]
    fn survives_lines_it_does_not_know() {
        for line in [
            "",
            "x",
            "0: zz:12 0 0A",
            "0: 0100007F:zz 0 0A 0 0 0 0 0 7",
            "1: ä100007F:0016 0 0A 0 0 0 0 0 7",
        ] {
            assert_eq!(parse(line, "0A"), None, "{line:?}");
        }
    }
}
