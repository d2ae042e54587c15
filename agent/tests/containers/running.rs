//! What runs, stops, freezes and is run in containers, against played programs.

use std::fs;
use std::os::unix::fs::symlink;

use tallybook_agent::layout::Layout;
use tallybook_agent::receipts::Journal;
use tallybook_agent::step::Step as _;
use tallybook_agent::steps::container_await_address::ContainerAwaitAddress;
use tallybook_agent::steps::container_provision::{
    Command, ContainerProvision, ContainerProvisionUntil,
};
use tallybook_agent::steps::container_retire::{ContainerCheckRetire, ContainerRetire};
use tallybook_agent::steps::container_start::{ContainerStart, Started};
use tallybook_agent::steps::container_stop::{ContainerStop, Stopped};
use tallybook_events::codec;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{
    Attempt, Blob, BootId, Epoch, Hash, LogId, OperationId, Seq, StepIndex,
};
use tallybook_events::step::{FailureClass, Fence, Phase, Receipt, Seen, StepDone, StepKey};

use crate::links::{Operation, Played};
use crate::played::{created, host, is_done, name, operation, publish};

#[test]
fn a_container_that_others_lie_on_stays_and_one_that_its_host_started_again_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let retire = ContainerRetire {
        container: name(),
        adopted: false,
    };
    operation
        .forward(4, &ContainerStart { container: name() })
        .unwrap();
    let other = layout.lxc.join("clone");
    fs::create_dir_all(&other).unwrap();
    let lower = layout.container(&name()).join("rootfs");
    fs::write(
        other.join("config"),
        format!("lxc.rootfs.path = overlay:{}:/x\n", lower.display()),
    )
    .unwrap();
    let failure = operation.forward(5, &retire).unwrap_err();
    assert!(
        failure.message.contains("lie on web: clone"),
        "{}",
        failure.message
    );
    assert!(layout.container(&name()).is_dir());
    assert!(!operation.link.running.is_empty());
    fs::remove_dir_all(other).unwrap();
    let refused = |operation: &mut Operation<Played>| {
        let failure = operation.forward(5, &retire).unwrap_err();
        assert!(
            failure.message.contains("somebody has started"),
            "{failure:?}"
        );
        assert!(!operation.link.running.is_empty());
    };
    refused(&mut operation);
    // Stopped by this operation in this boot, so it was not the host that started it.
    let this_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    stopped(&layout, operation.id, this_boot.trim().parse().unwrap());
    refused(&mut operation);
    // Stopped before the host lost power, and started when it booted.
    stopped(&layout, operation.id, BootId::from_bytes([7; 16]));
    operation.forward(5, &retire).unwrap();
    assert!(!layout.container(&name()).exists());
    assert!(operation.link.running.is_empty());
}

/// The receipt of a step of the operation that stopped the container, in that boot.
fn stopped(layout: &Layout, operation: OperationId, boot: BootId) {
    let log = LogId::new(1, [1; 10]);
    let mut journal = Journal::open(layout, log, &mut |_| {}).unwrap();
    let receipt = Receipt {
        key: StepKey {
            log,
            operation,
            step: StepIndex(4),
            attempt: Attempt(1),
        },
        fence: Fence {
            log,
            epoch: Epoch(1),
            claim: ClaimRef {
                seq: Seq(1),
                hash: Hash::ZERO,
            },
        },
        kind: ContainerStop::KIND.to_owned(),
        boot,
        // Later than any first process began.
        time_unix_us: u64::MAX,
        phase: Phase::Succeeded(StepDone {
            changed: true,
            output: Blob::default(),
            facts: Vec::new(),
            captured: Vec::new(),
        }),
    };
    journal.append(&receipt).unwrap();
}

#[test]
fn starting_and_stopping_put_back_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    created(&layout, 1);
    let mut operation = operation(&layout, 2);
    let (start, stop) = (
        ContainerStart { container: name() },
        ContainerStop {
            container: name(),
            timeout_s: 1,
        },
    );
    operation.link.running.insert("web".into(), false);
    assert!(!operation.forward(0, &start).unwrap().changed);
    operation.undo(0, &start).unwrap();
    assert!(operation.link.running.contains_key("web"), "it ran before");
    operation.forward(1, &stop).unwrap();
    assert!(operation.link.running.is_empty());
    operation.undo(1, &stop).unwrap();
    assert!(operation.link.running.contains_key("web"));
    // With neither a recorded outcome nor what was kept on the host nobody knows, and nothing is guessed.
    operation.outputs.clear();
    assert!(!layout.state.join("before/web").exists());
    assert!(operation.undo(0, &start).is_err());
    assert!(operation.link.running.contains_key("web"));
    operation.link.running.clear();
    assert!(operation.undo(1, &stop).is_err());
    assert!(!operation.undo(0, &start).unwrap().changed);
}

#[test]
fn what_was_before_is_known_to_a_second_start_of_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    created(&layout, 1);
    let mut operation = operation(&layout, 2);
    let start = ContainerStart { container: name() };
    let stop = ContainerStop {
        container: name(),
        timeout_s: 1,
    };
    // The agent dies when it had asked it to stop: the second start finds it stopped, and the undo starts it.
    operation.link.running.insert("web".into(), false);
    operation.forward(0, &stop).unwrap();
    operation.outputs.clear();
    assert!(!operation.forward(0, &stop).unwrap().changed);
    let output: Stopped = codec::decode(&operation.outputs[&StepIndex(0)].0).unwrap();
    assert_eq!(output.was_running, Some(true));
    operation.undo(0, &stop).unwrap();
    assert!(operation.link.running.contains_key("web"));
    // The same without any outcome, and when it was only looked at.
    operation.forward(0, &stop).unwrap();
    operation.outputs.clear();
    let Seen::Done(done) = operation.probe(0, &stop) else {
        panic!("it is stopped");
    };
    let output: Stopped = codec::decode(&done.output.0).unwrap();
    assert_eq!(output.was_running, Some(true));
    operation.undo(0, &stop).unwrap();
    assert!(operation.link.running.contains_key("web"));

    // The mirror.
    operation.link.running.clear();
    operation.forward(1, &start).unwrap();
    operation.outputs.clear();
    operation.forward(1, &start).unwrap();
    let output: Started = codec::decode(&operation.outputs[&StepIndex(1)].0).unwrap();
    assert_eq!(output.was_running, Some(false));
    operation.undo(1, &start).unwrap();
    assert!(operation.link.running.is_empty());
    assert!(!layout.state.join("before/web").exists());
}

#[test]
fn what_a_host_started_by_itself_of_an_operation_is_the_operations_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    // The host lost power when the container was in place, and started it when it booted.
    let mut operation = created(&layout, 1);
    operation.link.running.insert("web".into(), false);
    let start = ContainerStart { container: name() };
    assert!(operation.forward(4, &start).unwrap().changed);
    let output: Started = codec::decode(&operation.outputs[&StepIndex(4)].0).unwrap();
    assert_eq!(output.was_running, Some(false));
    assert!(!operation.forward(4, &start).unwrap().changed);
    operation.undo(4, &start).unwrap();
    assert!(operation.link.running.is_empty());
    assert!(!layout.state.join("before/web").exists());
}

#[test]
fn what_was_before_a_start_goes_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    operation
        .forward(4, &ContainerStart { container: name() })
        .unwrap();
    assert!(layout.state.join("before/web").exists());
    operation.undo(3, &publish()).unwrap();
    assert!(!layout.state.join("before/web").exists());
}

#[test]
fn taking_back_leaves_another_container_of_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut old = created(&layout, 1);
    let start = ContainerStart { container: name() };
    let stop = ContainerStop {
        container: name(),
        timeout_s: 1,
    };
    old.forward(4, &start).unwrap();
    old.forward(5, &stop).unwrap();
    fs::remove_dir_all(layout.container(&name())).unwrap();
    created(&layout, 3);
    assert!(!old.undo(5, &stop).unwrap().changed);
    assert!(old.link.running.is_empty(), "the other one was not started");
    old.link.running.insert("web".into(), false);
    assert!(!old.undo(4, &start).unwrap().changed);
    assert!(old.link.running.contains_key("web"), "nor stopped");
}

#[test]
fn what_could_not_be_taken_out_of_use_is_refused_before_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let check = ContainerCheckRetire {
        container: name(),
        adopted: false,
    };
    operation.link.running.insert("web".into(), false);
    assert!(!operation.forward(4, &check).unwrap().changed);
    let other = layout.lxc.join("clone");
    fs::create_dir_all(&other).unwrap();
    let lower = layout.container(&name()).join("rootfs");
    fs::write(
        other.join("config"),
        format!("lxc.rootfs.path = overlay:{}:/x\n", lower.display()),
    )
    .unwrap();
    let failure = operation.forward(4, &check).unwrap_err();
    assert!(failure.message.contains("lie on web: clone"));
    fs::remove_dir_all(&other).unwrap();
    fs::remove_file(layout.container(&name()).join("made-by")).unwrap();
    let failure = operation.forward(4, &check).unwrap_err();
    assert!(failure.message.contains("not made by this tool"));
    assert!(operation.link.running.contains_key("web"));
}

#[test]
fn provisioning_stays_in_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let script = ContainerProvision {
        container: name(),
        entry: 0,
        command: Command::Script("rm -rf /; $(evil)".into()),
        timeout_s: 5,
    };
    operation.link.running.insert("web".into(), true);
    let failure = operation.forward(4, &script).unwrap_err();
    assert_eq!(failure.class, FailureClass::Host, "it is frozen");
    operation.link.running.insert("web".into(), false);
    operation.forward(4, &script).unwrap();
    let mut ran = operation.link.ran.iter().rev();
    let argv = ran.find(|argv| argv[0] == "lxc-attach").unwrap();
    assert!(argv.contains(&"--clear-env".to_owned()));
    assert_eq!(
        argv[argv.len() - 3..],
        ["--", "/bin/sh", "-s"].map(str::to_owned)
    );
    assert!(matches!(operation.probe(4, &script), Seen::Unknown { .. }));

    // Its root as the kernel shows it, with a symlink that a process in the container would follow within it.
    let root = dir.path().join("proc/4242/root");
    fs::create_dir_all(root.join("run")).unwrap();
    symlink("/run", root.join("lock")).unwrap();
    fs::write(dir.path().join("outside"), "").unwrap();
    symlink("../../../outside", root.join("up")).unwrap();
    let until = |creates: &str| ContainerProvisionUntil {
        container: name(),
        entry: 1,
        command: Command::Argv(vec!["true".into()]),
        creates: creates.into(),
        timeout_s: 5,
    };
    assert_eq!(operation.probe(5, &until("/lock/done")), Seen::Absent);
    assert_eq!(
        operation
            .forward(5, &until("/lock/done"))
            .unwrap_err()
            .class,
        FailureClass::Command
    );
    fs::write(root.join("run/done"), "").unwrap();
    assert!(!operation.forward(5, &until("/lock/done")).unwrap().changed);
    assert_eq!(operation.probe(5, &until("/up/x")), Seen::Absent);
    assert_eq!(
        operation
            .forward(5, &until("/../outside"))
            .unwrap_err()
            .class,
        FailureClass::Unknown
    );
}

#[test]
fn what_a_command_wrote_is_on_the_disk_before_it_counts_as_done() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    operation.link.running.insert("web".into(), false);
    let once = ContainerProvision {
        container: name(),
        entry: 0,
        command: Command::Argv(vec!["true".into()]),
        timeout_s: 5,
    };
    let proc = dir.path().join("proc/4242");
    fs::create_dir_all(&proc).unwrap();
    // Something that can't be synced as a file system's root.
    fs::write(proc.join("root"), "").unwrap();
    let failure = operation.forward(4, &once).unwrap_err();
    assert!(
        failure.message.contains("syncing the file system of"),
        "{}",
        failure.message
    );
    fs::remove_file(proc.join("root")).unwrap();
    fs::create_dir(proc.join("root")).unwrap();
    fs::write(proc.join("root/made"), "").unwrap();
    assert!(operation.forward(5, &once).unwrap().changed);
    let until = ContainerProvisionUntil {
        container: name(),
        entry: 1,
        command: Command::Argv(vec!["true".into()]),
        creates: "/made".into(),
        timeout_s: 5,
    };
    assert!(!operation.forward(6, &until).unwrap().changed);
}

#[test]
fn an_address_is_waited_for_and_what_was_seen_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    operation.link.running.insert("web".into(), false);
    let net = dir.path().join("proc/4242/net");
    fs::create_dir_all(&net).unwrap();
    let trie = |address: &str| {
        fs::write(
            net.join("fib_trie"),
            format!("|-- {address}\n   /32 host LOCAL\n"),
        )
        .unwrap()
    };
    trie("10.5.0.77");
    let wait = ContainerAwaitAddress {
        container: name(),
        address: "10.5.0.9".parse().unwrap(),
        timeout_s: 0,
    };
    let failure = operation.forward(4, &wait).unwrap_err();
    assert_eq!(failure.class, FailureClass::Timeout);
    assert!(
        failure.message.ends_with("it has 10.5.0.77"),
        "{}",
        failure.message
    );
    trie("10.5.0.9");
    let failure = operation.forward(4, &wait).unwrap_err();
    assert!(
        failure.message.ends_with("does not answer"),
        "{}",
        failure.message
    );
    fs::create_dir_all(dir.path().join("proc/net")).unwrap();
    fs::write(
        dir.path().join("proc/net/arp"),
        "10.5.0.9 0x1 0x2 00:16:3e:00:00:01 * tally0\n",
    )
    .unwrap();
    assert_eq!(operation.forward(4, &wait).unwrap().facts.len(), 1);
    assert!(is_done(&mut operation, 4, &wait));
    // Something stopped it meanwhile: it is started again, which is told.
    operation.link.running.clear();
    assert_eq!(operation.forward(4, &wait).unwrap().facts.len(), 2);
    assert!(operation.link.running.contains_key("web"));
}

#[test]
fn a_container_is_asked_before_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    operation.link.running.insert("web".into(), true);
    operation.link.deaf.insert("web".to_owned());
    let stop = ContainerStop {
        container: name(),
        timeout_s: 1,
    };
    operation.forward(4, &stop).unwrap();
    let stopped: Stopped = codec::decode(&operation.outputs[&StepIndex(4)].0).unwrap();
    assert_eq!(
        stopped,
        Stopped {
            was_running: Some(true),
            killed: true,
            maker: stopped.maker,
        }
    );
    let words: Vec<&str> = operation
        .link
        .ran
        .iter()
        .map(|argv| argv[0].as_str())
        .collect();
    let thawed = words
        .iter()
        .position(|word| *word == "lxc-unfreeze")
        .unwrap();
    let asked = words.iter().position(|word| *word == "lxc-stop").unwrap();
    assert!(thawed < asked, "a frozen one could not hear: {words:?}");
    let kills: Vec<bool> = operation
        .link
        .ran
        .iter()
        .filter(|argv| argv[0] == "lxc-stop")
        .map(|argv| argv.iter().any(|arg| arg == "--kill"))
        .collect();
    assert!(kills.len() >= 2 && kills.last() == Some(&true), "{kills:?}");
    assert_eq!(kills.iter().filter(|kill| **kill).count(), 1);
}
