//! The cloud that the story is told of: its hosts, its kinds of containers, and what steps report of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use tallybook_events::allocation::{Allocation, Forward, Mac, Protocol};
use tallybook_events::codec;
use tallybook_events::ids::{Blob, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, Captured, PlannedStep, Reversal};
use tallybook_events::subject::Subject;

use crate::Failure;
use crate::choices::Choices;

/// Hosts of the cloud.
pub(crate) const HOSTS: usize = 20;

/// What containers there are: the template's name, and how many provisioning commands.
pub(crate) const KINDS: &[(&str, usize)] = &[("web", 8), ("db", 10), ("cache", 6), ("worker", 7)];

/// The part of the inventory that names hosts and keys.
pub(crate) fn hosts_text() -> String {
    let mut text =
        "[cloud]\nname = \"example\"\n\n[network]\nsubnet = \"10.5.0.0/16\"\n".to_owned();
    for host in 1..=HOSTS {
        let _ = write!(
            text,
            "\n[hosts.cn{host:02}]\naddress = \"192.0.2.{host}\"\n"
        );
    }
    text + "\n[keys]\nalice = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice\"\n"
}

/// The part that has templates, and a container of each kind.
pub(crate) fn kinds_text() -> String {
    let mut text = String::new();
    for (number, (name, provisions)) in KINDS.iter().enumerate() {
        let _ = write!(
            text,
            "\n[templates.{name}]\n\n[containers.kind{number}]\nhost = \"cn01\"\ntemplate = \"{name}\"\nkeys = [\"alice\"]\nprovision = [\n"
        );
        for entry in 0..*provisions {
            let _ = writeln!(
                text,
                "    {{ run = [\"apt-get\", \"install\", \"-y\", \"package-{entry}\"] }},"
            );
        }
        text.push_str("]\n");
    }
    text
}

/// What is seen on a host.
pub(crate) fn properties() -> BTreeMap<String, String> {
    let pairs = [
        ("os", "debian 12"),
        ("kernel", "6.1.0-18-amd64"),
        ("arch", "x86_64"),
        ("cpus", "16"),
        ("memory_bytes", "67108864000"),
        ("disk_free_bytes", "812000000000"),
        ("filesystem", "ext4"),
        ("systemd", "252"),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// What the container of this number is given.
pub(crate) fn allocation(number: u32) -> Allocation {
    let [_, _, high, low] = number.to_be_bytes();
    Allocation {
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 5, 0, 0)) + number),
        mac: Mac([0, 0x16, 0x3e, 1, high, low]),
        forwards: vec![Forward {
            name: "ssh".to_owned(),
            protocol: Protocol::Tcp,
            host_port: 40_000 + (number % 20_000) as u16,
            container_port: 22,
        }],
    }
}

/// A step that is not of the planner's making.
pub(crate) fn planned(host: &HostName, subject: &Subject, kind: &str, index: u32) -> PlannedStep {
    PlannedStep {
        index: StepIndex(index),
        host: host.clone(),
        subject: subject.clone(),
        kind: kind.to_owned(),
        params: Blob(vec![0x80]),
        summary: format!("look at {host}"),
        action: Action::Forward,
        reversal: Reversal::Undo,
        once: false,
        after: index.checked_sub(1).map(StepIndex).into_iter().collect(),
        peer: None,
    }
}

/// What a step's programs printed, where it runs any.
pub(crate) fn captured(choices: &mut Choices, step: &PlannedStep) -> Option<Captured> {
    let (command, len) = match step.kind.as_str() {
        "container.provision" | "container.provision_until" => (
            "apt-get install -y nginx-light".to_owned(),
            600 + choices.below(2_400),
        ),
        "container.start" => ("lxc-start -n container".to_owned(), 40 + choices.below(80)),
        "forward.open" | "forward.close" => ("nft -f -".to_owned(), 30 + choices.below(60)),
        _ => return None,
    };
    let text = Blob(choices.text(len));
    Some(Captured {
        command,
        exit: Some(0),
        text,
        dropped_bytes: 0,
    })
}

/// What a step reports for its undo: a map of a few fields.
pub(crate) fn output(choices: &mut Choices, step: &PlannedStep) -> Result<Blob, Failure> {
    let hash = format!("{:016x}{:016x}", choices.next(), choices.next());
    let map: BTreeMap<&str, &str> = match step.kind.as_str() {
        "container.build" | "container.configure" | "container.publish" => BTreeMap::from([
            ("backing", "overlay"),
            ("id", &hash),
            ("path", "/var/lib/lxc/container/rootfs"),
        ]),
        "container.provision" | "container.provision_until" => {
            BTreeMap::from([("exit", "0"), ("took_ms", "5120")])
        }
        _ => BTreeMap::from([("was", "absent")]),
    };
    Ok(Blob(codec::encode(&map)?))
}
