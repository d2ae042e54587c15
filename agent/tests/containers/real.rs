//! A container's whole life with real LXC, on a host that has a bridge with a DHCP server that reserves the
//! address. Ignored by default: it needs root and such a host, named by `TALLYBOOK_TRY_*`.

use std::env;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::links::{Operation, Real};
use tallybook_agent::base::{Base, Release};
use tallybook_agent::layout::Layout;
use tallybook_agent::step::{OutputOf, Step};
use tallybook_agent::steps::base_bootstrap::BaseBootstrap;
use tallybook_agent::steps::container_await_address::ContainerAwaitAddress;
use tallybook_agent::steps::container_build::{ContainerBuild, Source};
use tallybook_agent::steps::container_configure::ContainerConfigure;
use tallybook_agent::steps::container_freeze::{ContainerFreeze, ContainerThaw};
use tallybook_agent::steps::container_provision::{
    Command, ContainerProvision, ContainerProvisionUntil,
};
use tallybook_agent::steps::container_publish::ContainerPublish;
use tallybook_agent::steps::container_retire::ContainerRetire;
use tallybook_agent::steps::container_start::ContainerStart;
use tallybook_agent::steps::container_stop::ContainerStop;
use tallybook_agent::steps::trash_purge::TrashPurge;
use tallybook_events::fact::Backing;
use tallybook_events::ids::StepIndex;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{Seen, StepDone};

fn setting(name: &str, default: &str) -> String {
    env::var(format!("TALLYBOOK_TRY_{name}")).unwrap_or_else(|_| default.to_owned())
}

fn timed<S: Step>(operation: &mut Operation<Real>, index: u32, step: &S) -> StepDone {
    let begun = Instant::now();
    let done = operation
        .forward(index, step)
        .unwrap_or_else(|failure| panic!("{}: {failure:?}", step.summary()));
    println!(
        "{:>8.3} s  {}",
        begun.elapsed().as_secs_f64(),
        step.summary()
    );
    match S::KIND {
        // Declared to be beyond looking at.
        "container.provision" => {}
        kind => assert!(
            matches!(operation.probe(index, step), Seen::Done(_)),
            "{kind}"
        ),
    }
    done
}

#[test]
#[ignore = "needs root, LXC, and a bridge with a DHCP reservation"]
fn a_container_lives_and_dies() {
    let container = ContainerName::new(&setting("NAME", "trial")).unwrap();
    let base = match setting("BASE", "busybox").as_str() {
        "busybox" => Base::Busybox,
        release => Base::Debian {
            release: Release::try_from(release.to_owned()).unwrap(),
            mirror: None,
            packages: Vec::new(),
        },
    };
    let backing = match setting("BACKING", "").as_str() {
        "" => None,
        "dir" => Some(Backing::Dir),
        "overlay" => Some(Backing::Overlay),
        other => panic!("no such backing to try: {other}"),
    };
    let address: Ipv4Addr = setting("ADDRESS", "10.77.0.9").parse().unwrap();
    let layout = Layout::default();
    let mut operation = Operation::new(layout.clone(), Real, rand_number());
    let bootstrap = BaseBootstrap {
        distribution: base.clone(),
        cache_dir: None,
    };
    let build = ContainerBuild {
        container: container.clone(),
        source: Source::Base(base.clone()),
        backing,
    };
    let configure = ContainerConfigure {
        container: container.clone(),
        staged: StepIndex(1),
        built: OutputOf::step(StepIndex(1)),
        mac: setting("MAC", "00:16:3e:77:00:09").parse().unwrap(),
        address,
        bridge: setting("BRIDGE", "try0"),
        gateway: setting("GATEWAY", "10.77.0.1").parse().unwrap(),
        prefix: 24,
        autostart: false,
        domain: Some("lab.test".into()),
        keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG7qPtR0ZyVHvhYUUgbuVTUFWSVcxCAkOSKxhYZoHRJc trial".into()],
    };
    let publish = ContainerPublish {
        container: container.clone(),
        staged: StepIndex(1),
        built: OutputOf::step(StepIndex(1)),
    };
    let start = ContainerStart {
        container: container.clone(),
    };
    let wait = ContainerAwaitAddress {
        container: container.clone(),
        address,
        timeout_s: 30,
    };
    timed(&mut operation, 0, &bootstrap);
    timed(&mut operation, 1, &build);
    timed(&mut operation, 2, &configure);
    timed(&mut operation, 3, &publish);
    let begun = Instant::now();
    timed(&mut operation, 4, &start);
    timed(&mut operation, 5, &wait);
    println!(
        "{:>8.3} s  from start to an answering address",
        begun.elapsed().as_secs_f64()
    );

    let argv = ContainerProvision {
        container: container.clone(),
        entry: 0,
        command: Command::Argv(vec![
            "sh".into(),
            "-c".into(),
            "test -z \"$SSH_CONNECTION\" && hostname".into(),
        ]),
        timeout_s: 60,
    };
    timed(&mut operation, 6, &argv);
    let failing = ContainerProvision {
        command: Command::Script("echo oops >&2; exit 3".into()),
        ..argv
    };
    let failure = operation.forward(7, &failing).unwrap_err();
    assert!(
        failure.message.contains("status 3: oops"),
        "{}",
        failure.message
    );
    let until = ContainerProvisionUntil {
        container: container.clone(),
        entry: 1,
        command: Command::Script("mkdir -p /run/x\necho \"$HOME\" > /run/x/done\n".into()),
        creates: "/var/run/x/done".into(),
        timeout_s: 60,
    };
    let until = if base == Base::Busybox {
        ContainerProvisionUntil {
            creates: "/run/x/done".into(),
            ..until
        }
    } else {
        until
    };
    assert_eq!(operation.probe(8, &until), Seen::Absent);
    assert!(timed(&mut operation, 8, &until).changed);
    assert!(!timed(&mut operation, 8, &until).changed);

    let freeze = ContainerFreeze {
        container: container.clone(),
    };
    assert!(timed(&mut operation, 9, &freeze).changed);
    let thaw = ContainerThaw {
        container: container.clone(),
        froze: OutputOf::step(StepIndex(9)),
    };
    assert!(timed(&mut operation, 10, &thaw).changed);
    if let Ok(seconds) = env::var("TALLYBOOK_TRY_HOLD_S") {
        println!("holding {container} for {seconds} s");
        std::thread::sleep(Duration::from_secs(seconds.parse().unwrap()));
    }

    let stop = ContainerStop {
        container: container.clone(),
        timeout_s: 20,
    };
    timed(&mut operation, 11, &stop);
    let begun = Instant::now();
    operation.undo(11, &stop).unwrap();
    operation.forward(12, &wait).unwrap();
    println!(
        "{:>8.3} s  second boot to an answering address",
        begun.elapsed().as_secs_f64()
    );

    // A rollback of the whole create leaves nothing but the cache.
    for _ in 0..2 {
        operation.undo(4, &start).unwrap();
        operation.undo(3, &publish).unwrap();
        operation.undo(2, &configure).unwrap();
        operation.undo(1, &build).unwrap();
    }
    assert!(!layout.container(&container).exists());
    assert!(!layout.staging(operation.id, StepIndex(1)).exists());

    // And again, to its end.
    timed(&mut operation, 1, &build);
    timed(&mut operation, 2, &configure);
    timed(&mut operation, 3, &publish);
    timed(&mut operation, 4, &start);
    let retire = ContainerRetire {
        container: container.clone(),
        adopted: false,
    };
    assert!(
        operation
            .forward(13, &retire)
            .unwrap_err()
            .message
            .contains("runs")
    );
    timed(&mut operation, 11, &stop);
    timed(&mut operation, 13, &retire);
    operation.undo(13, &retire).unwrap();
    timed(&mut operation, 13, &retire);
    timed(
        &mut operation,
        14,
        &TrashPurge {
            container: container.clone(),
            retired: StepIndex(13),
        },
    );
    assert!(!layout.container(&container).exists());
    assert!(
        layout
            .own()
            .join("trash")
            .read_dir()
            .unwrap()
            .next()
            .is_none()
    );
}

/// A number for the operation that differs between two runs.
fn rand_number() -> u8 {
    std::process::id().to_le_bytes()[0] | 1
}
