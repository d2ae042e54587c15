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

/// What is tried, from `TALLYBOOK_TRY_*`.
struct Trial {
    container: ContainerName,
    base: Base,
    backing: Option<Backing>,
    address: Ipv4Addr,
}

#[test]
#[ignore = "needs root, LXC, and a bridge with a DHCP reservation"]
fn a_container_lives_and_dies() {
    let trial = Trial::from_settings();
    let mut operation = Operation::new(Layout::default(), Real, odd_number());
    timed(
        &mut operation,
        0,
        &BaseBootstrap {
            distribution: trial.base.clone(),
            cache_dir: None,
        },
    );
    trial.create(&mut operation);
    let begun = Instant::now();
    timed(&mut operation, 4, &trial.start());
    timed(&mut operation, 5, &trial.wait());
    println!(
        "{:>8.3} s  from start to an answering address",
        begun.elapsed().as_secs_f64()
    );
    trial.provision(&mut operation);
    trial.freeze_and_thaw(&mut operation);
    if let Ok(seconds) = env::var("TALLYBOOK_TRY_HOLD_S") {
        println!("holding {} for {seconds} s", trial.container);
        std::thread::sleep(Duration::from_secs(seconds.parse().unwrap()));
    }
    trial.stop_and_undo(&mut operation);
    trial.roll_back(&mut operation);
    trial.create(&mut operation);
    timed(&mut operation, 4, &trial.start());
    trial.destroy(&mut operation);
}

impl Trial {
    fn from_settings() -> Self {
        Trial {
            container: ContainerName::new(&setting("NAME", "trial")).unwrap(),
            base: match setting("BASE", "busybox").as_str() {
                "busybox" => Base::Busybox,
                release => Base::Debian {
                    release: Release::try_from(release.to_owned()).unwrap(),
                    mirror: None,
                    packages: Vec::new(),
                },
            },
            backing: match setting("BACKING", "").as_str() {
                "" => None,
                "dir" => Some(Backing::Dir),
                "reflink" => Some(Backing::Reflink),
                "overlay" => Some(Backing::Overlay),
                other => panic!("no such backing to try: {other}"),
            },
            address: setting("ADDRESS", "10.77.0.9").parse().unwrap(),
        }
    }

    fn build(&self) -> ContainerBuild {
        ContainerBuild {
            container: self.container.clone(),
            source: Source::Base(self.base.clone()),
            backing: self.backing,
        }
    }

    fn configure(&self) -> ContainerConfigure {
        ContainerConfigure {
            container: self.container.clone(),
            staged: StepIndex(1),
            built: OutputOf::step(StepIndex(1)),
            mac: setting("MAC", "00:16:3e:77:00:09").parse().unwrap(),
            address: self.address,
            bridge: setting("BRIDGE", "try0"),
            gateway: setting("GATEWAY", "10.77.0.1").parse().unwrap(),
            prefix: 24,
            autostart: false,
            domain: Some("lab.test".into()),
            keys: vec![setting(
                "KEY",
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG7qPtR0ZyVHvhYUUgbuVTUFWSVcxCAkOSKxhYZoHRJc trial",
            )],
        }
    }

    fn publish(&self) -> ContainerPublish {
        ContainerPublish {
            container: self.container.clone(),
            staged: StepIndex(1),
            built: OutputOf::step(StepIndex(1)),
            identity: OutputOf::step(StepIndex(2)),
        }
    }

    fn start(&self) -> ContainerStart {
        ContainerStart {
            container: self.container.clone(),
        }
    }

    fn stop(&self) -> ContainerStop {
        ContainerStop {
            container: self.container.clone(),
            timeout_s: 20,
        }
    }

    fn wait(&self) -> ContainerAwaitAddress {
        ContainerAwaitAddress {
            container: self.container.clone(),
            address: self.address,
            timeout_s: 30,
        }
    }

    fn create(&self, operation: &mut Operation<Real>) {
        timed(operation, 1, &self.build());
        timed(operation, 2, &self.configure());
        timed(operation, 3, &self.publish());
    }

    fn provision(&self, operation: &mut Operation<Real>) {
        let argv = ContainerProvision {
            container: self.container.clone(),
            entry: 0,
            command: Command::Argv(vec![
                "sh".into(),
                "-c".into(),
                "test -z \"$SSH_CONNECTION\" && hostname".into(),
            ]),
            timeout_s: 60,
        };
        timed(operation, 6, &argv);
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
            container: self.container.clone(),
            entry: 1,
            command: Command::Script("mkdir -p /run/x\necho \"$HOME\" > /run/x/done\n".into()),
            creates: match self.base {
                // Through a symlink of the guest's.
                Base::Debian { .. } => "/var/run/x/done".into(),
                Base::Busybox => "/run/x/done".into(),
            },
            timeout_s: 60,
        };
        assert_eq!(operation.probe(8, &until), Seen::Absent);
        assert!(timed(operation, 8, &until).changed);
        assert!(!timed(operation, 8, &until).changed);
    }

    fn freeze_and_thaw(&self, operation: &mut Operation<Real>) {
        let freeze = ContainerFreeze {
            container: self.container.clone(),
        };
        assert!(timed(operation, 9, &freeze).changed);
        let thaw = ContainerThaw {
            container: self.container.clone(),
            froze: OutputOf::step(StepIndex(9)),
        };
        assert!(timed(operation, 10, &thaw).changed);
    }

    fn stop_and_undo(&self, operation: &mut Operation<Real>) {
        timed(operation, 11, &self.stop());
        let begun = Instant::now();
        operation.undo(11, &self.stop()).unwrap();
        operation.forward(12, &self.wait()).unwrap();
        println!(
            "{:>8.3} s  second boot to an answering address",
            begun.elapsed().as_secs_f64()
        );
    }

    /// A rollback of the whole create leaves nothing but the cache, and can be repeated.
    fn roll_back(&self, operation: &mut Operation<Real>) {
        for _ in 0..2 {
            operation.undo(4, &self.start()).unwrap();
            operation.undo(3, &self.publish()).unwrap();
            operation.undo(2, &self.configure()).unwrap();
            operation.undo(1, &self.build()).unwrap();
        }
        assert!(!operation.layout.container(&self.container).exists());
        assert!(
            !operation
                .layout
                .staging(operation.id, StepIndex(1))
                .exists()
        );
    }

    fn destroy(&self, operation: &mut Operation<Real>) {
        let retire = ContainerRetire {
            container: self.container.clone(),
            adopted: false,
        };
        let failure = operation.forward(13, &retire).unwrap_err();
        assert!(failure.message.contains("runs"), "{}", failure.message);
        timed(operation, 11, &self.stop());
        timed(operation, 13, &retire);
        operation.undo(13, &retire).unwrap();
        timed(operation, 13, &retire);
        let purge = TrashPurge {
            container: self.container.clone(),
            retired: StepIndex(13),
        };
        timed(operation, 14, &purge);
        assert!(!operation.layout.container(&self.container).exists());
        let trash = operation.layout.own().join("trash");
        assert!(trash.read_dir().unwrap().next().is_none());
    }
}

/// A number for the operation that differs between two runs.
fn odd_number() -> u8 {
    std::process::id().to_le_bytes()[0] | 1
}
