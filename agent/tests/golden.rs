//! The parameters and the output of every kind of step, byte for byte: `agent/tests/golden/` has a file a kind, and these
//! tests compare.
//!
//! A kind's name fixes the shape of both for ever: plans and receipts hold them, and a newer agent reads an older one's.
//! What needs another shape gets another name. `GOLDEN_WRITE=1 cargo nextest run -p tallybook-agent --test golden` writes
//! what is missing; it never replaces a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use tallybook_agent::base::Base;
use tallybook_agent::dns::{AsOf, Entry, Record, Role, Service, Soa, View, Zone};
use tallybook_agent::network::managed::{Replaced, Taken};
use tallybook_agent::step::{OutputOf, Step};
use tallybook_agent::steps::base_bootstrap::{BaseBootstrap, Bootstrapped};
use tallybook_agent::steps::container_await_address::{Addressed, ContainerAwaitAddress};
use tallybook_agent::steps::container_build::{Built, ContainerBuild, Source as BuildSource};
use tallybook_agent::steps::container_configure::{ContainerConfigure, Identity};
use tallybook_agent::steps::container_provision::{
    Command, ContainerProvision, ContainerProvisionUntil, Provisioned,
};
use tallybook_agent::steps::container_provision_2::{
    ContainerProvision2, ContainerProvisionUntil2,
};
use tallybook_agent::steps::container_publish::{ContainerPublish, Published as Placed};
use tallybook_agent::steps::container_retire::{
    ContainerCheckRetire, ContainerRetire, Retirable, Retired,
};
use tallybook_agent::steps::container_start::{ContainerStart, Started};
use tallybook_agent::steps::container_stop::{ContainerStop, Stopped};
use tallybook_agent::steps::dhcp_release::DhcpRelease;
use tallybook_agent::steps::dhcp_reserve::DhcpReserve;
use tallybook_agent::steps::dns_follow::DnsFollow;
use tallybook_agent::steps::dns_serve::{DnsServe, Served};
use tallybook_agent::steps::forward_close::ForwardClose;
use tallybook_agent::steps::forward_open::ForwardOpen;
use tallybook_agent::steps::host_bridge::HostBridge;
use tallybook_agent::steps::host_directories::HostDirectories;
use tallybook_agent::steps::host_dnsmasq::HostDnsmasq;
use tallybook_agent::steps::host_forwarding::{HostForwarding, Switched};
use tallybook_agent::steps::host_nftables::HostNftables;
use tallybook_agent::steps::host_observe::HostObserve;
use tallybook_agent::steps::host_packages::{HostPackages, Installed};
use tallybook_agent::steps::template_publish::{Published, TemplatePublish};
use tallybook_agent::steps::template_scan::TemplateScan;
use tallybook_agent::steps::template_scrub::{Scrubbed, TemplateScrub};
use tallybook_agent::steps::trash_purge::{Purged, TrashPurge};
use tallybook_agent::steps::tree_discard::TreeDiscard;
use tallybook_agent::steps::tree_receive::{Expect, TreeReceive};
use tallybook_agent::steps::tree_seal::TreeSeal;
use tallybook_agent::steps::tree_stage::{Staged, TreeStage};
use tallybook_agent::steps::{TABLE, find};
use tallybook_agent::template::Source;
use tallybook_agent::template::leaks::{Finding, Scanned};
use tallybook_agent::template::scrub::{Change, Report};
use tallybook_agent::transfer::receive::Received;
use tallybook_events::allocation::{Allocation, Forward, Protocol};
use tallybook_events::codec;
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::ids::{Blob, Epoch, Generation, Hash, OperationId, Seq, StepIndex};

/// A kind's golden bytes, and how what is read from them is written again.
struct Sample {
    kind: &'static str,
    /// Parameters and outputs, with what tells them apart.
    parts: Vec<(&'static str, Vec<u8>)>,
    again: fn(&str, &[u8]) -> Vec<u8>,
}

fn sample<S: Step>(params: Vec<S>, outputs: Vec<S::Output>) -> Sample {
    let mut parts = Vec::new();
    for step in &params {
        parts.push(("params", codec::encode(step).unwrap()));
    }
    for output in &outputs {
        parts.push(("output", codec::encode(output).unwrap()));
    }
    Sample {
        kind: S::KIND,
        parts,
        again: |part, bytes| match part {
            "params" => codec::encode(&codec::decode::<S>(bytes).unwrap()).unwrap(),
            _ => codec::encode(&codec::decode::<S::Output>(bytes).unwrap()).unwrap(),
        },
    }
}

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn hash() -> Hash {
    Hash([0x5a; 32])
}

fn allocation() -> Allocation {
    Allocation {
        address: [10, 5, 0, 2].into(),
        mac: name("00:16:3e:00:00:02"),
        forwards: vec![Forward {
            name: "ssh".to_owned(),
            protocol: Protocol::Tcp,
            host_port: 40001,
            container_port: 22,
        }],
    }
}

fn replaced() -> Vec<Replaced> {
    let some = Replaced {
        previous: Some("what was there\n".to_owned()),
    };
    vec![Replaced { previous: None }, some]
}

fn taken() -> Vec<Taken> {
    let some = Taken {
        text: Some("what was there\n".to_owned()),
    };
    vec![Taken { text: None }, some]
}

fn identifying() -> Source {
    Source {
        names: vec!["web".to_owned()],
        addresses: vec!["10.5.0.2".parse().unwrap()],
        macs: vec![name("00:16:3e:00:00:02")],
    }
}

fn published() -> Published {
    Published {
        manifest: hash(),
        entries: 3,
        size_bytes: 4096,
    }
}

fn hosts() -> Vec<Sample> {
    let gateway = || "10.5.0.1/16".parse().unwrap();
    vec![
        sample(
            vec![HostBridge {
                bridge: name("tbbr0"),
                gateway: gateway(),
            }],
            replaced(),
        ),
        sample(vec![HostDirectories {}], replaced()),
        sample(
            vec![HostDnsmasq {
                bridge: name("tbbr0"),
                gateway: gateway(),
                domain: Some(name("lxc.example.net")),
                lease_s: 3600,
                dns: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            }],
            replaced(),
        ),
        sample(
            vec![HostForwarding {}],
            vec![Switched {
                was_on: true,
                file: Replaced { previous: None },
            }],
        ),
        sample(
            vec![HostNftables {
                bridge: name("tbbr0"),
                gateway: gateway(),
                forward_address: Some([192, 0, 2, 7].into()),
            }],
            replaced(),
        ),
        sample(vec![HostObserve {}], vec![()]),
        sample(
            vec![HostPackages {
                packages: vec![name("lxc"), name("nftables")],
            }],
            vec![Installed {
                installed: BTreeMap::from([("lxc".to_owned(), "1:5.0.2-1".to_owned())]),
            }],
        ),
    ]
}

fn made() -> Vec<Sample> {
    let debian = || Base::Debian {
        release: "bookworm".to_owned().try_into().unwrap(),
        mirror: Some(
            "http://mirror.example/debian"
                .to_owned()
                .try_into()
                .unwrap(),
        ),
        packages: vec!["curl".to_owned().try_into().unwrap()],
    };
    let origins = || {
        [
            Origin::Scratch {
                distribution: "debian".to_owned(),
                release: "bookworm".to_owned(),
            },
            Origin::Template {
                template: name("base"),
                generation: Generation(2),
                manifest: hash(),
            },
            Origin::Container {
                host: name("cn1"),
                container: name("db"),
            },
        ]
    };
    let build = |source, backing| ContainerBuild {
        container: name("web"),
        source,
        backing,
    };
    let backings = [Backing::Dir, Backing::Overlay, Backing::Reflink];
    let built = backings
        .into_iter()
        .zip(origins())
        .map(|(backing, origin)| Built {
            backing,
            origin,
            lower: (backing == Backing::Overlay).then(|| "/lower".into()),
        });
    let [_, _, container] = origins();
    vec![
        sample(
            vec![
                BaseBootstrap {
                    distribution: debian(),
                    cache_dir: Some("/var/cache/debs".into()),
                },
                BaseBootstrap {
                    distribution: Base::Busybox,
                    cache_dir: None,
                },
            ],
            vec![Bootstrapped {
                key: "debian-bookworm".to_owned(),
            }],
        ),
        sample(
            vec![
                build(BuildSource::Base(debian()), None),
                build(
                    BuildSource::Template {
                        template: name("base"),
                        generation: Generation(2),
                        manifest: hash(),
                    },
                    Some(Backing::Overlay),
                ),
                build(
                    BuildSource::Staged {
                        staged: StepIndex(0),
                        origin: container,
                    },
                    Some(Backing::Dir),
                ),
            ],
            built.collect(),
        ),
        sample(
            vec![ContainerConfigure {
                container: name("web"),
                staged: StepIndex(1),
                built: OutputOf::step(StepIndex(1)),
                mac: name("00:16:3e:00:00:02"),
                address: [10, 5, 0, 2].into(),
                bridge: "tbbr0".to_owned(),
                gateway: [10, 5, 0, 1].into(),
                prefix: 16,
                autostart: true,
                domain: Some("lxc.example.net".to_owned()),
                keys: vec!["ssh-ed25519 AAAA operator".to_owned()],
            }],
            vec![Identity {
                machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
                host_keys: vec!["SHA256:host".to_owned()],
                authorized: vec!["SHA256:operator".to_owned()],
            }],
        ),
        sample(
            vec![ContainerPublish {
                container: name("web"),
                staged: StepIndex(1),
                built: OutputOf::step(StepIndex(1)),
                identity: OutputOf::step(StepIndex(2)),
            }],
            vec![Placed {}],
        ),
    ]
}

fn running() -> Vec<Sample> {
    let maker = Some((OperationId::from_bytes([7; 16]), StepIndex(3)));
    let command = || Command::Argv(vec!["apt-get".to_owned(), "update".to_owned()]);
    let script = || Command::Script("echo done >/done\n".to_owned());
    vec![
        sample(
            vec![ContainerAwaitAddress {
                container: name("web"),
                address: [10, 5, 0, 2].into(),
                timeout_s: 120,
            }],
            vec![Addressed { waited_ms: 250 }],
        ),
        sample(
            [command(), script()]
                .map(|command| ContainerProvision {
                    container: name("web"),
                    entry: 0,
                    command,
                    timeout_s: 600,
                })
                .into(),
            vec![Provisioned { ran: true }],
        ),
        sample(
            [command(), script()]
                .map(|command| ContainerProvision2 {
                    container: name("web"),
                    entry: 0,
                    command,
                    secrets: vec![name("db_password"), name("token")],
                    timeout_s: 600,
                })
                .into(),
            vec![Provisioned { ran: true }],
        ),
        sample(
            [command(), script()]
                .map(|command| ContainerProvisionUntil {
                    container: name("web"),
                    entry: 1,
                    command,
                    creates: "/done".to_owned(),
                    timeout_s: 600,
                })
                .into(),
            vec![Provisioned { ran: false }],
        ),
        sample(
            [command(), script()]
                .map(|command| ContainerProvisionUntil2 {
                    container: name("web"),
                    entry: 1,
                    command,
                    secrets: vec![name("db_password"), name("token")],
                    creates: "/done".to_owned(),
                    timeout_s: 600,
                })
                .into(),
            vec![Provisioned { ran: false }],
        ),
        sample(
            vec![ContainerCheckRetire {
                container: name("web"),
                adopted: false,
            }],
            vec![Retirable {}],
        ),
        sample(
            vec![ContainerRetire {
                container: name("web"),
                adopted: true,
            }],
            vec![Retired {}],
        ),
        sample(
            vec![ContainerStart {
                container: name("web"),
            }],
            vec![
                Started {
                    was_running: Some(false),
                    maker,
                },
                Started {
                    was_running: None,
                    maker: None,
                },
            ],
        ),
        sample(
            vec![ContainerStop {
                container: name("web"),
                timeout_s: 60,
            }],
            vec![
                Stopped {
                    was_running: Some(true),
                    killed: false,
                    maker,
                },
                Stopped {
                    was_running: None,
                    killed: true,
                    maker: None,
                },
            ],
        ),
        sample(
            vec![TrashPurge {
                container: name("web"),
                retired: StepIndex(3),
            }],
            vec![Purged {}],
        ),
    ]
}

fn network() -> Vec<Sample> {
    vec![
        sample(
            vec![DhcpRelease {
                container: name("web"),
                allocation: allocation(),
            }],
            taken(),
        ),
        sample(
            vec![DhcpReserve {
                container: name("web"),
                allocation: allocation(),
            }],
            replaced(),
        ),
        sample(
            vec![ForwardClose {
                container: name("web"),
                allocation: allocation(),
            }],
            taken(),
        ),
        sample(
            vec![ForwardOpen {
                container: name("web"),
                allocation: allocation(),
            }],
            replaced(),
        ),
    ]
}

fn dns() -> Vec<Sample> {
    let soa = Soa {
        server: name("ns1.example.net"),
        contact: name("hostmaster.example.net"),
        ttl_s: 330,
        refresh_s: 300,
        retry_s: 301,
        expire_s: 2_419_200,
        minimum_s: 299,
    };
    let primary = Role::Primary {
        soa,
        secondaries: vec![name("192.0.2.2")],
        others: vec![name("198.51.100.1")],
    };
    let zone = |zone: &str, role| Zone {
        name: name(zone),
        role,
    };
    let service = Service {
        as_of: AsOf {
            epoch: Epoch(1),
            seq: Seq(2),
        },
        inside: vec![name("10.5.0.0/16")],
        not_at: vec![[10, 5, 0, 1].into()],
        forwarders: vec![name("2001:db8::53")],
        zones: vec![
            zone("example.net", primary),
            zone(
                "example.org",
                Role::Secondary {
                    primary: name("192.0.2.2"),
                },
            ),
        ],
        records: vec![Entry {
            record: Record {
                zone: name("example.net"),
                view: View::Inside,
                name: name("*.web.example.net"),
                ttl_s: Some(60),
                kind: name("A"),
                value: name("10.5.0.2"),
            },
            container: Some(name("web")),
        }],
    };
    let serials = BTreeMap::from([(View::Inside, 2_026_112_800), (View::Outside, 1)]);
    let serve = |key| DnsServe {
        packages: OutputOf::step(StepIndex(0)),
        service: service.clone(),
        key,
    };
    vec![
        sample(
            vec![serve(None), serve(Some(name("dns")))],
            vec![Served {
                replaced: replaced().remove(1),
                serials: BTreeMap::from([(name("example.net"), serials)]),
            }],
        ),
        sample(
            vec![DnsFollow {
                primary: name("cn1"),
                served: OutputOf::step(StepIndex(3)),
                zones: vec![name("example.net")],
            }],
            vec![()],
        ),
    ]
}

fn trees() -> Vec<Sample> {
    let receive = |expect| TreeReceive {
        expect,
        what: "template base generation 2".to_owned(),
    };
    let finding = || Finding {
        path: "/root/.aws/credentials".to_owned(),
        rule: "aws-credentials".to_owned(),
        what: "a file of credentials".to_owned(),
    };
    let changes = [
        Change::Removed,
        Change::Emptied,
        Change::Changed,
        Change::Noticed,
    ];
    vec![
        sample(
            vec![TemplatePublish {
                template: name("base"),
                generation: Generation(2),
                staged: StepIndex(0),
                expect: Some(hash()),
            }],
            vec![published()],
        ),
        sample(
            vec![TemplateScan {
                staged: StepIndex(0),
                source: identifying(),
                allow: vec!["private-key:/etc/x".to_owned()],
            }],
            vec![Scanned {
                entries: 3,
                size_bytes: 4096,
                allowed: vec![finding()],
                allowed_unnamed: 1,
                findings: vec![finding()],
                findings_unnamed: 2,
            }],
        ),
        sample(
            vec![TemplateScrub {
                staged: StepIndex(0),
                keep: vec!["ssh-host-keys".to_owned()],
                source: identifying(),
            }],
            vec![Scrubbed {
                reports: vec![Report {
                    operation: "machine-id".to_owned(),
                    count: 4,
                    paths: changes
                        .map(|change| (change, "/etc/machine-id".to_owned()))
                        .into(),
                }],
                kept: vec!["ssh-host-keys".to_owned()],
                repeated: true,
            }],
        ),
        sample(
            vec![TreeDiscard {
                staged: StepIndex(0),
            }],
            vec![()],
        ),
        sample(
            vec![
                receive(Expect::Id(hash())),
                receive(Expect::Output(OutputOf::step(StepIndex(1)))),
            ],
            vec![Received {
                manifest: hash(),
                entries: 3,
                size_bytes: 4096,
                resumed_pieces: 1,
                resumed_bytes: 2,
                local_pieces: 3,
                local_bytes: 4,
                received_pieces: 5,
                received_bytes: 6,
                wire_bytes: 5,
                repaired: Some("a torn piece".to_owned()),
            }],
        ),
        sample(
            vec![TreeSeal {
                staged: StepIndex(0),
            }],
            vec![published()],
        ),
        sample(
            vec![TreeStage {
                container: name("web"),
            }],
            vec![Staged {
                entries: 3,
                size_bytes: 4096,
                sockets_skipped: 1,
                layers: 2,
            }],
        ),
    ]
}

fn samples() -> Vec<Sample> {
    let all = [hosts(), made(), running(), network(), dns(), trees()];
    all.into_iter().flatten().collect()
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.as_bytes().chunks(2).map(pair).collect()
}

#[test]
fn every_kind_of_step_is_stored_as_it_always_was() {
    for Sample { kind, parts, again } in samples() {
        let mut text = String::new();
        for (part, bytes) in &parts {
            writeln!(text, "{part} {}", hex(bytes)).unwrap();
        }
        let path = directory().join(format!("{kind}.hex"));
        if !path.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{kind} has no golden file ({error}); see the head of this test")
        });
        assert_eq!(
            golden, text,
            "{kind}: its stored bytes changed; a new shape is a new kind"
        );
        for line in golden.lines() {
            let (part, digits) = line.split_once(' ').unwrap();
            let bytes = unhex(digits);
            assert_eq!(again(part, &bytes), bytes, "{kind}: {part}");
            if part == "params" {
                (find(kind).unwrap().summary)(&Blob(bytes)).unwrap();
            }
        }
    }
}

#[test]
fn every_kind_has_a_golden_file() {
    let samples = samples();
    let covered: BTreeSet<&str> = samples.iter().map(|sample| sample.kind).collect();
    assert_eq!(covered.len(), samples.len(), "a kind has one file");
    let kinds: BTreeSet<&str> = TABLE.iter().map(|row| row.kind).collect();
    assert_eq!(covered, kinds);
    for sample in &samples {
        for part in ["params", "output"] {
            assert!(sample.parts.iter().any(|(of, _)| *of == part));
        }
    }
    // Also those of kinds that are gone: their names are never used again for another shape.
    for entry in fs::read_dir(directory()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let kind = file.strip_suffix(".hex").unwrap();
        assert!(kinds.contains(kind), "{kind} is no kind of step any more");
    }
}
