//! One value of every kind of event, intent and fact, with fixed contents: what the golden files pin.
//!
//! The contents never change; a new kind or variant is added at the end of its list.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use tallybook_events::actor::{Actor, ActorClaim, ClaimSource};
use tallybook_events::allocation::{Allocation, Forward, Mac, Protocol};
use tallybook_events::event::{
    AllocationMade, AllocationReleased, ChangeKind, ErasureAnnounced, ErasureCause,
    ErasureCompleted, Event, InventoryRecorded, Lack, LackKind, LogCreated, LogFenced,
    LogRecovered, Loss, OperationAbandoned, OperationFailed, OperationIntended,
    OperationInterrupted, OperationLacked, OperationPaced, OperationPlanned, OperationResumed,
    OperationRolledBack, OperationStuck, OperationSucceeded, OutputCaptured, PathChange,
    Resolution, SegmentsArchived, SegmentsRestored, SeqRange, SessionRecorded, StepAdopted,
    StepDoubted, StepDrifted, StepFailed, StepForced, StepStarted, StepSucceeded, StepUnstarted,
    fixed,
};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::header::{ClaimRef, Header, Writer};
use tallybook_events::ids::{
    Attempt, Blob, BootId, Epoch, EventId, Generation, Hash, JournalId, LogId, OperationId, Seq,
    StepIndex,
};
use tallybook_events::intent::{Intent, Source};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::pace::{MaxFail, Pace};
use tallybook_events::step::{
    Action, Captured, FailureClass, Fence, Mark, Peer, Phase, PlannedStep, Receipt, Reversal,
    SendSource, StepDone, StepFailure, StepKey,
};
use tallybook_events::subject::Subject;

/// A host's name.
///
/// # Panics
/// When the text is none.
pub fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

/// A container's name.
///
/// # Panics
/// When the text is none.
pub fn container(name: &str) -> ContainerName {
    ContainerName::new(name).unwrap()
}

/// A template's name.
///
/// # Panics
/// When the text is none.
pub fn template(name: &str) -> TemplateName {
    TemplateName::new(name).unwrap()
}

/// An operation's id.
pub fn operation(number: u8) -> OperationId {
    OperationId::new(1_795_000_000_000, [number; 10])
}

/// What the samples belong to.
pub fn log() -> LogId {
    LogId::new(1_794_000_000_000, [7; 10])
}

/// Who made the samples happen.
pub fn actor() -> Actor {
    let claim = |name: &str, value: &str, source| ActorClaim {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    };
    Actor(vec![
        claim("uid", "0", ClaimSource::Kernel),
        claim("user", "root", ClaimSource::Derived),
        claim("sudo_user", "ada", ClaimSource::Asserted),
    ])
}

/// The process that wrote the samples.
pub fn writer() -> Writer {
    Writer {
        controller: "ctl".to_owned(),
        boot: BootId::from_bytes([9; 16]),
    }
}

fn allocation() -> Allocation {
    Allocation {
        address: Ipv4Addr::new(10, 5, 0, 9),
        mac: Mac([0, 0x16, 0x3e, 1, 2, 0xff]),
        forwards: vec![
            Forward {
                name: "ssh".to_owned(),
                protocol: Protocol::Tcp,
                host_port: 40_001,
                container_port: 22,
            },
            Forward {
                name: "dns".to_owned(),
                protocol: Protocol::Udp,
                host_port: 53,
                container_port: 53,
            },
        ],
    }
}

fn captured() -> Captured {
    Captured {
        command: "lxc-start -n web".to_owned(),
        exit: Some(-1),
        text: Blob(b"line\n\xff\x00".to_vec()),
        dropped_bytes: 70_000,
    }
}

/// What a step that starts a container is told: the map of `container.start`, and of no other kind.
fn start_params() -> Blob {
    Blob(b"\x81\xa9container\xa3web".to_vec())
}

/// What such a step reports, likewise.
fn start_output() -> Blob {
    Blob(b"\x81\xabwas_running\xc2".to_vec())
}

/// A step that is planned forward.
pub fn planned(index: u32, after: &[u32]) -> PlannedStep {
    PlannedStep {
        index: StepIndex(index),
        host: host("cn1"),
        subject: Subject::Container(host("cn1"), container("web")),
        kind: "container.start".to_owned(),
        params: start_params(),
        summary: format!("step {index}"),
        action: Action::Forward,
        reversal: Reversal::Undo,
        once: false,
        after: after.iter().copied().map(StepIndex).collect(),
        peer: None,
    }
}

/// Steps of every action and reversal.
pub fn planned_all() -> Vec<PlannedStep> {
    let undo = |output| Action::Undo {
        operation: operation(3),
        step: StepIndex(4),
        output,
    };
    vec![
        planned(0, &[]),
        PlannedStep {
            action: undo(Some(start_output())),
            reversal: Reversal::Keep {
                why: "shared".to_owned(),
            },
            peer: Some(Peer {
                host: host("cn2"),
                source: SendSource::Template {
                    template: template("base"),
                    generation: Generation(2),
                },
            }),
            ..planned(1, &[0])
        },
        PlannedStep {
            action: undo(None),
            reversal: Reversal::Irreversible {
                why: "gone".to_owned(),
            },
            once: true,
            peer: Some(Peer {
                host: host("cn2"),
                source: SendSource::Staged {
                    operation: operation(3),
                    step: StepIndex(5),
                },
            }),
            ..planned(2, &[0, 1])
        },
    ]
}

/// What a step reported that ended well.
pub fn done() -> StepDone {
    StepDone {
        changed: true,
        output: start_output(),
        facts: vec![Fact::ContainerStarted {
            host: host("cn1"),
            container: container("web"),
        }],
        captured: vec![captured()],
    }
}

fn failure(class: FailureClass) -> StepFailure {
    StepFailure {
        class,
        message: "no space left on /var".to_owned(),
        hint: Some("free some".to_owned()),
        captured: Vec::new(),
    }
}

/// Every class of failure.
pub const FAILURE_CLASSES: &[FailureClass] = &[
    FailureClass::Exists,
    FailureClass::Missing,
    FailureClass::DiskFull,
    FailureClass::Permission,
    FailureClass::Verification,
    FailureClass::Command,
    FailureClass::Timeout,
    FailureClass::Host,
    FailureClass::Peer,
    FailureClass::Interrupted,
    FailureClass::Fenced,
    FailureClass::Unknown,
    FailureClass::Other,
];

/// One event of every kind.
pub fn events() -> Vec<Event> {
    let reason = || "the line dropped".to_owned();
    vec![
        LogCreated {
            tool_version: "0.1.0".to_owned(),
        }
        .into(),
        InventoryRecorded {
            path: "/etc/tallybook/cloud.toml".to_owned(),
            hash: Hash([0xab; 32]),
            text: Blob(b"[hosts.cn1]\n".to_vec()),
        }
        .into(),
        AllocationMade {
            allocation: allocation(),
        }
        .into(),
        AllocationReleased {
            allocation: allocation(),
        }
        .into(),
        OperationIntended {
            intent: intents()[2].clone(),
            inventory: Seq(2),
            claims: vec![
                Subject::Cloud,
                Subject::Host(host("cn1")),
                Subject::Container(host("cn1"), container("web")),
                Subject::Template(template("base")),
            ],
        }
        .into(),
        OperationPlanned {
            steps: planned_all(),
        }
        .into(),
        OperationResumed {}.into(),
        OperationInterrupted { reason: reason() }.into(),
        OperationSucceeded { events: 12 }.into(),
        OperationFailed { reason: reason() }.into(),
        OperationRolledBack { by: operation(2) }.into(),
        OperationStuck { reason: reason() }.into(),
        StepStarted {
            kind: "container.start".to_owned(),
            journal: Some(JournalId::from_bytes([0x4a; 16])),
        }
        .into(),
        StepSucceeded {
            resolution: Resolution::Reported,
            done: done(),
        }
        .into(),
        StepFailed {
            resolution: Resolution::Receipt,
            failure: failure(FailureClass::DiskFull),
        }
        .into(),
        StepDoubted {
            why: "no receipt".to_owned(),
        }
        .into(),
        StepUnstarted {
            why: "never sent".to_owned(),
        }
        .into(),
        OutputCaptured {
            captured: captured(),
        }
        .into(),
        SessionRecorded {
            argv: vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()],
            terminal: true,
            started_unix_us: 1_795_000_000_000_000,
            ended_unix_us: 1_795_000_060_000_000,
            exit: None,
            output: Blob(b"$ \x1b[0m".to_vec()),
            dropped_bytes: 3,
            changes: [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Removed]
                .map(|change| PathChange {
                    change,
                    path: Blob(b"etc/\xfe".to_vec()),
                })
                .to_vec(),
            changes_dropped: 1,
        }
        .into(),
        ErasureAnnounced {
            cause: ErasureCause::Redaction,
            reason: "a password was printed".to_owned(),
            events: vec![range(3, 3), range(7, 9)],
        }
        .into(),
        ErasureCompleted {
            announced: Seq(21),
            payloads: 4,
        }
        .into(),
        SegmentsArchived {
            directory: "/srv/archive".to_owned(),
            segments: vec![range(1, 5), range(6, 10)],
        }
        .into(),
        SegmentsRestored {
            segments: vec![range(1, 5)],
        }
        .into(),
        LogRecovered {
            reason: "the disk lost a block".to_owned(),
            losses: vec![
                Loss {
                    events: range(4, 6),
                    hash: Hash([0x44; 32]),
                    header_kept: false,
                    why: "the record can't be read".to_owned(),
                },
                Loss {
                    events: range(9, 9),
                    hash: Hash([0x55; 32]),
                    header_kept: true,
                    why: "the payload is another".to_owned(),
                },
            ],
        }
        .into(),
        LogFenced {
            host: host("cn1"),
            seen: mark(),
        }
        .into(),
        OperationAbandoned { reason: reason() }.into(),
        OperationIntended {
            intent: Intent::RollbackTo {
                to: Seq(17),
                operations: vec![operation(3), operation(2)],
            },
            inventory: Seq(2),
            claims: vec![Subject::Container(host("cn1"), container("web"))],
        }
        .into(),
        StepDrifted {
            what: "/etc/tallybook/nat was not written by tallybook".to_owned(),
        }
        .into(),
        StepForced { reason: reason() }.into(),
        StepAdopted {
            reason: reason(),
            done: done(),
        }
        .into(),
        OperationPaced {
            pace: Pace {
                serial: NonZeroU32::new(2),
                max_fail: Some(MaxFail::Percent(30)),
            },
        }
        .into(),
        OperationLacked {
            hosts: vec![Lack {
                host: host("cn1"),
                kind: LackKind::Unreachable,
                why: reason(),
            }],
        }
        .into(),
    ]
}

/// What a host was shown of a log.
pub fn mark() -> Mark {
    Mark {
        epoch: Epoch(2),
        seq: Seq(130),
        hash: Hash([0x66; 32]),
    }
}

/// Events from one to another.
pub fn range(first: u64, last: u64) -> SeqRange {
    SeqRange {
        first: Seq(first),
        last: Seq(last),
    }
}

/// Every variant of [`Intent`], with every variant inside.
pub fn intents() -> Vec<Intent> {
    let create = |source, backing| Intent::ContainerCreate {
        container: container("web"),
        host: host("cn1"),
        source,
        backing,
    };
    let (web, cn1) = (container("web"), host("cn1"));
    vec![
        Intent::HostInstall {
            hosts: vec![host("cn1"), host("cn2")],
        },
        Intent::HostPrepare { hosts: vec![] },
        create(
            Source::Template {
                template: template("base"),
                generation: Some(Generation(2)),
            },
            Some(Backing::Reflink),
        ),
        create(Source::Scratch, None),
        create(
            Source::Container {
                container: container("db"),
            },
            Some(Backing::Dir),
        ),
        create(
            Source::Template {
                template: template("base"),
                generation: None,
            },
            Some(Backing::Overlay),
        ),
        Intent::ContainerStart {
            container: web.clone(),
            host: cn1.clone(),
        },
        Intent::ContainerStop {
            container: web.clone(),
            host: cn1.clone(),
        },
        Intent::ContainerRestart {
            container: web.clone(),
            host: cn1.clone(),
        },
        Intent::ContainerDestroy {
            container: web.clone(),
            host: cn1.clone(),
        },
        Intent::ContainerExec {
            container: web.clone(),
            host: cn1.clone(),
            argv: vec!["true".to_owned()],
        },
        Intent::ContainerShell {
            container: web.clone(),
            host: cn1.clone(),
        },
        Intent::ContainerCopy {
            container: web.clone(),
            from: cn1.clone(),
            to: host("cn2"),
            copy: container("web2"),
        },
        Intent::TemplateSnapshot {
            template: template("base"),
            container: web,
            host: cn1.clone(),
            generation: Generation(3),
        },
        Intent::TemplateSync {
            template: template("base"),
            generation: Generation(3),
            from: cn1.clone(),
            to: vec![host("cn2")],
        },
        Intent::TemplateRemove {
            template: template("base"),
            generation: Generation(3),
            hosts: vec![cn1],
        },
        Intent::Rollback {
            operation: operation(1),
        },
        Intent::RollbackTo {
            to: Seq(17),
            operations: vec![operation(3), operation(2)],
        },
        Intent::DnsApply {
            hosts: vec![host("cn1")],
        },
    ]
}

/// Every variant of [`Fact`], with every variant inside.
pub fn facts() -> Vec<Fact> {
    let (cn1, web) = (host("cn1"), container("web"));
    let created = |origin, backing| Fact::ContainerCreated {
        host: host("cn1"),
        container: container("web"),
        origin,
        backing,
    };
    vec![
        Fact::HostObserved {
            host: cn1.clone(),
            properties: BTreeMap::from([
                ("cpus".to_owned(), "4".to_owned()),
                ("os".to_owned(), "debian 12".to_owned()),
            ]),
        },
        Fact::HostInstalled { host: cn1.clone() },
        Fact::HostUninstalled { host: cn1.clone() },
        Fact::HostPrepared {
            host: cn1.clone(),
            bridge: "lxcbr1".to_owned(),
            gateway: "10.5.0.1/16".to_owned(),
        },
        Fact::HostUnprepared { host: cn1.clone() },
        created(
            Origin::Scratch {
                distribution: "debian".to_owned(),
                release: "bookworm".to_owned(),
            },
            Backing::Dir,
        ),
        created(
            Origin::Template {
                template: template("base"),
                generation: Generation(2),
                manifest: Hash([0xcd; 32]),
            },
            Backing::Reflink,
        ),
        created(
            Origin::Container {
                host: cn1.clone(),
                container: container("db"),
            },
            Backing::Overlay,
        ),
        Fact::ContainerIdentified {
            host: cn1.clone(),
            container: web.clone(),
            machine_id: "00112233445566778899aabbccddeeff".to_owned(),
            host_keys: vec!["SHA256:abc".to_owned()],
        },
        Fact::ContainerStarted {
            host: cn1.clone(),
            container: web.clone(),
        },
        Fact::ContainerAddressed {
            host: cn1.clone(),
            container: web.clone(),
            address: "10.5.0.9".to_owned(),
        },
        Fact::ContainerStopped {
            host: cn1.clone(),
            container: web.clone(),
        },
        Fact::ContainerDestroyed {
            host: cn1.clone(),
            container: web.clone(),
        },
        Fact::KeysAuthorized {
            host: cn1.clone(),
            container: web.clone(),
            keys: vec!["ada@desk".to_owned()],
        },
        Fact::Provisioned {
            host: cn1.clone(),
            container: web,
            entry: 1,
        },
        Fact::TemplatePresent {
            host: cn1.clone(),
            template: template("base"),
            generation: Generation(2),
            manifest: Hash([0xcd; 32]),
            entries: 12_345,
            size_bytes: 5_000_000_000,
        },
        Fact::TemplateAbsent {
            host: cn1,
            template: template("base"),
            generation: Generation(2),
        },
    ]
}

/// A receipt in every phase, the failed one in every class of failure.
pub fn receipts() -> Vec<Receipt> {
    let receipt = |phase| Receipt {
        key: StepKey {
            log: log(),
            operation: operation(1),
            step: StepIndex(2),
            attempt: Attempt(1),
        },
        fence: Fence {
            log: log(),
            epoch: Epoch(1),
            claim: ClaimRef {
                seq: Seq(5),
                hash: Hash([5; 32]),
            },
        },
        kind: "container.start".to_owned(),
        boot: BootId::from_bytes([9; 16]),
        time_unix_us: 1_795_000_000_000_000,
        phase,
    };
    let mut all = vec![receipt(Phase::Started), receipt(Phase::Succeeded(done()))];
    all.extend(
        FAILURE_CLASSES
            .iter()
            .map(|class| receipt(Phase::Failed(failure(*class)))),
    );
    all.push(receipt(Phase::GivenUp));
    all
}

/// A header with every field set, for an event.
///
/// # Panics
/// When the event is of an unknown kind.
pub fn header(event: &Event, seq: u64) -> Header {
    let (kind, kind_version) = event.kind().unwrap();
    Header {
        log: log(),
        epoch: Epoch(1),
        seq: Seq(seq),
        previous: Hash([0x11; 32]),
        subject: Subject::Container(host("cn1"), container("web")),
        subject_previous_seq: Seq(seq - 1),
        subject_previous: Hash([0x22; 32]),
        event: EventId::new(1_795_000_000_000, [seq as u8; 10]),
        kind: kind.into(),
        kind_version,
        time_unix_us: 1_795_000_000_000_000 + seq,
        actor: actor().into(),
        writer: writer().into(),
        claim: Some(ClaimRef {
            seq: Seq(5),
            hash: Hash([0x55; 32]),
        }),
        operation: Some(operation(1)),
        step: Some(StepIndex(3)),
        attempt: Attempt(2),
        more: 0,
        write: Seq(seq),
        cause: Seq(5),
        outcome: event.outcome(),
        erasable: fixed(kind, kind_version).unwrap().erasable,
        payload_len: 0,
        commitment: Hash::ZERO,
    }
}
