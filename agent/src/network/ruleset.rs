//! The tool's own nftables table, made as a whole from one setting and a fragment a container.
//!
//! It must never name another table than `ip tallybook`, and never leaves a moment without a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use tallybook_events::allocation::{Allocation, Protocol};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::layout::Layout;
use crate::network::{Bridge, Gateway, managed};
use crate::step::{Context, Program, fail};

/// What the table is for: the content of `nat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat {
    /// The bridge.
    pub bridge: Bridge,
    /// Its address, and with it the subnet.
    pub gateway: Gateway,
    /// The address whose ports are forwarded; every address of the host unless given.
    pub forward_address: Option<Ipv4Addr>,
}

/// A forwarded port and where it goes.
type Forwards = BTreeMap<(Protocol, u16), (Ipv4Addr, u16, String)>;

impl Nat {
    /// As it is written.
    pub fn body(&self) -> String {
        let mut body = format!("bridge {}\ngateway {}\n", self.bridge, self.gateway);
        if let Some(address) = self.forward_address {
            let _ = writeln!(body, "forward-address {address}");
        }
        body
    }

    /// What a whole file says, with what precedes the body.
    pub fn of_file(text: &str) -> Option<Self> {
        let body: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        Self::parse(&body.join("\n"))
    }

    fn parse(body: &str) -> Option<Self> {
        let value = |key| body.lines().find_map(|line| line.strip_prefix(key));
        Some(Nat {
            bridge: value("bridge ")?.parse().ok()?,
            gateway: value("gateway ")?.parse().ok()?,
            forward_address: value("forward-address ").map(str::parse).transpose().ok()?,
        })
    }
}

/// What the host was prepared with; `None` when it was not.
///
/// # Errors
/// When the file can't be read or understood.
pub fn nat(layout: &Layout) -> Result<Option<Nat>, StepFailure> {
    let path = layout.nat();
    let understand = |body: String| {
        Nat::parse(&body).ok_or_else(|| {
            let message = format!("{} does not name a bridge and a gateway", path.display());
            fail(FailureClass::Verification, message)
        })
    };
    managed::body(&path)?.map(understand).transpose()
}

/// A container's fragment: a line a forwarded port.
///
/// # Errors
/// When a port is 0 or given twice.
pub fn fragment(allocation: &Allocation) -> Result<String, StepFailure> {
    let mut lines = BTreeMap::new();
    for forward in &allocation.forwards {
        let key = (forward.protocol, forward.host_port);
        let line = format!(
            "{} {} {} {}\n",
            forward.protocol, forward.host_port, allocation.address, forward.container_port
        );
        let twice = lines.insert(key, line).is_some();
        if twice || forward.host_port == 0 || forward.container_port == 0 {
            return Err(fail(
                FailureClass::Unknown,
                format!(
                    "forwarding {} port {} to port {} can't be done: a port is 0 or is given twice",
                    forward.protocol, forward.host_port, forward.container_port
                ),
            ));
        }
    }
    Ok(lines.into_values().collect())
}

/// Every forwarded port of the host by the fragments of all containers but this one.
///
/// # Errors
/// When a fragment can't be read or understood, or two have the same port.
pub fn forwards(layout: &Layout, but: Option<&ContainerName>) -> Result<Forwards, StepFailure> {
    let mut forwards = Forwards::new();
    for name in managed::list(&layout.forwards())? {
        if but.is_some_and(|but| but.as_str() == name) {
            continue;
        }
        let path = layout.forwards().join(&name);
        for line in managed::body(&path)?.unwrap_or_default().lines() {
            let (key, (address, port)) = parse_line(line).ok_or_else(|| {
                let message = format!("{} has a line that is no forward: {line:?}", path.display());
                fail(FailureClass::Verification, message)
            })?;
            if let Some((_, _, other)) = forwards.insert(key, (address, port, name.clone())) {
                return Err(fail(
                    FailureClass::Exists,
                    format!(
                        "{} port {} is forwarded to both {other} and {name}",
                        key.0, key.1
                    ),
                ));
            }
        }
    }
    Ok(forwards)
}

pub(crate) fn parse_line(line: &str) -> Option<((Protocol, u16), (Ipv4Addr, u16))> {
    let mut fields = line.split(' ');
    let protocol = match fields.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let host_port = fields.next()?.parse().ok()?;
    let address = fields.next()?.parse().ok()?;
    let port = fields.next()?.parse().ok()?;
    (fields.next().is_none()).then_some(((protocol, host_port), (address, port)))
}

/// The whole ruleset. Its table's comment names its content, so that what is loaded can be told by looking.
pub fn text(nat: &Nat, forwards: &Forwards) -> String {
    let body = table_body(nat, forwards);
    // Declared, deleted and declared anew in one transaction: no packet meets half a table, and a host that had
    // none yet takes the same lines.
    format!(
        "table ip tallybook {{}}\ndelete table ip tallybook\ntable ip tallybook {{\n  comment \"{}\"\n{body}}}\n",
        content(&body)
    )
}

fn content(body: &str) -> String {
    format!("content {}", &blake3::hash(body.as_bytes()).to_hex()[..24])
}

fn table_body(nat: &Nat, forwards: &Forwards) -> String {
    let mut text = String::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let _ = writeln!(
            text,
            "  map forwards_{protocol} {{\n    type inet_service : ipv4_addr . inet_service"
        );
        let elements: Vec<String> = forwards
            .iter()
            .filter(|((of, _), _)| *of == protocol)
            .map(|((_, host_port), (address, port, _))| format!("{host_port} : {address} . {port}"))
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
        }
        text.push_str("  }\n");
    }
    let own = nat.forward_address.map_or_else(
        // Connections to the loopback addresses stay: the container could not answer them.
        || "fib daddr type local ip daddr != 127.0.0.0/8".to_owned(),
        |address| format!("ip daddr {address}"),
    );
    // Priority -100 is `dstnat`, a name that nft does not take in the output hook.
    for (chain, hook) in [("incoming", "prerouting"), ("from_host", "output")] {
        let _ = writeln!(
            text,
            "  chain {chain} {{\n    type nat hook {hook} priority -100; policy accept;"
        );
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let _ = writeln!(
                text,
                "    {own} dnat ip to {protocol} dport map @forwards_{protocol}"
            );
        }
        text.push_str("  }\n");
    }
    let (bridge, subnet) = (&nat.bridge, nat.gateway.subnet());
    // The first rule is for a container that reaches another through the host's address: the answer must come
    // back through the host. (Where br_netfilter has bridged packets pass these chains, a container still can't
    // reach itself so: the kernel does not send a frame back out of the port it came in by.)
    let _ = write!(
        text,
        "  chain outgoing {{\n    type nat hook postrouting priority 100; policy accept;\n\
        \x20   ip saddr {subnet} ip daddr {subnet} ct status dnat masquerade\n\
        \x20   ip saddr {subnet} ip daddr != {subnet} oifname != \"{bridge}\" masquerade\n  }}\n\
        \x20 chain through {{\n    type filter hook forward priority 0; policy accept;\n\
        \x20   iifname \"{bridge}\" accept\n    oifname \"{bridge}\" accept\n  }}\n"
    );
    text
}

/// How many rules each chain of a table has, and how many elements each map: nft has its own words for them, which
/// differ between its versions, and `nft flush` leaves the comment.
pub(crate) fn shape(table: &str) -> BTreeMap<&str, usize> {
    let (mut shape, mut block) = (BTreeMap::new(), None);
    for line in table.lines().map(str::trim) {
        let opened = line
            .strip_suffix(" {")
            .filter(|name| name.starts_with("chain ") || name.starts_with("map "));
        if let Some(name) = opened {
            shape.insert(name, 0);
            block = Some(name);
        } else if line == "}" {
            block = None;
        } else if let Some(name) = block
            && !line.starts_with("type ")
        {
            let count = match name.starts_with("chain ") {
                true => usize::from(!line.is_empty()),
                false => line.matches(" : ").count(),
            };
            *shape.entry(name).or_default() += count;
        }
    }
    shape
}

/// Whether the kernel has the table with this content.
///
/// # Errors
/// When `nft` can't be run.
pub fn is_loaded(context: &mut Context<'_>, ruleset: &str) -> Result<bool, StepFailure> {
    let list = Program::new(["nft", "list", "table", "ip", "tallybook"]);
    let ended = context.link.run(&list)?;
    let wanted = ruleset
        .lines()
        .find(|line| line.starts_with("  comment "))
        .unwrap_or_default();
    let listed = String::from_utf8_lossy(&ended.stdout);
    Ok(ended.exit == Some(0)
        && listed.lines().any(|line| line.trim() == wanted.trim())
        && shape(&listed) == shape(ruleset))
}

/// Makes the ruleset anew, checks it, writes it and loads it; says whether anything was different. The caller holds
/// the network's lock.
///
/// # Errors
/// When a fragment is wrong, or `nft` refuses; then what is loaded stays as it was.
pub fn apply(context: &mut Context<'_>) -> Result<bool, StepFailure> {
    let Some(nat) = nat(context.layout)? else {
        return Ok(false);
    };
    let ruleset = text(&nat, &forwards(context.layout, None)?);
    let path = context.layout.ruleset();
    let written = managed::body(&path)?.is_some_and(|body| body == ruleset);
    if !written {
        context.run(&Program::new(["nft", "--check", "--file", "-"]).stdin(ruleset.as_str()))?;
        managed::derive(&path, &ruleset)?;
    }
    // Crash boundary: the file is what boot loads; the kernel may still have the old table, which looking tells.
    let loaded = is_loaded(context, &ruleset)?;
    if !loaded {
        context.run(&Program::new(["nft", "--file", "-"]).stdin(ruleset.as_str()))?;
    }
    Ok(!written || !loaded)
}

/// Whether the written and the loaded ruleset are what [`apply`] would make.
///
/// # Errors
/// When a fragment is wrong, or `nft` can't be run.
pub fn is_current(context: &mut Context<'_>) -> Result<bool, StepFailure> {
    let Some(nat) = nat(context.layout)? else {
        return Ok(false);
    };
    let ruleset = text(&nat, &forwards(context.layout, None)?);
    let written = managed::body(&context.layout.ruleset())?.is_some_and(|body| body == ruleset);
    Ok(written && is_loaded(context, &ruleset)?)
}

/// Takes the table out of the kernel and removes its file; says whether either was there.
///
/// # Errors
/// When `nft` fails.
pub fn remove(context: &mut Context<'_>) -> Result<bool, StepFailure> {
    let there = context.link.run(&Program::new([
        "nft",
        "--terse",
        "list",
        "table",
        "ip",
        "tallybook",
    ]))?;
    let loaded = there.exit == Some(0);
    if loaded {
        context.run(&Program::new(["nft", "delete", "table", "ip", "tallybook"]))?;
    }
    let written = managed::remove_ours(&context.layout.ruleset())?;
    Ok(loaded || written)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What `nft` itself lists, in a network namespace of its own, after it took a ruleset and did something.
    fn listed(ruleset: &str, then: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ruleset");
        std::fs::write(&path, ruleset).unwrap();
        let script = format!("nft -f \"$1\"; {then}; nft list table ip tallybook");
        let output = Command::new("unshare")
            .args(["--net", "sh", "-euc", &script, "sh"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_table_without_its_rules_or_elements_has_another_shape() {
        let nat = Nat {
            bridge: "tally0".parse().unwrap(),
            gateway: "10.5.0.1/24".parse().unwrap(),
            forward_address: None,
        };
        let forwards: Forwards = (0..40)
            .map(|n| {
                (
                    (Protocol::Tcp, 8000 + n),
                    ("10.5.0.9".parse().unwrap(), 80, "web".into()),
                )
            })
            .collect();
        let ruleset = text(&nat, &forwards);
        assert_eq!(shape(&listed(&ruleset, "true")), shape(&ruleset));
        for then in [
            "nft flush table ip tallybook",
            "nft flush map ip tallybook forwards_tcp",
            "nft flush chain ip tallybook outgoing",
        ] {
            assert_ne!(shape(&listed(&ruleset, then)), shape(&ruleset), "{then}");
        }
    }
}
