//! The steps against played programs and a temporary directory: repeated, cut, taken back, and on hostile trees.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tallybook_agent::base::{Base, Release};
use tallybook_agent::layout::Layout;
use tallybook_agent::lxc_config::{self, Rootfs};
use tallybook_agent::mark;
use tallybook_agent::step::{OutputOf, Step};
use tallybook_agent::steps::base_bootstrap::BaseBootstrap;
use tallybook_agent::steps::container_build::{Built, ContainerBuild, Source, USERS};
use tallybook_agent::steps::container_configure::{ContainerConfigure, Identity};
use tallybook_agent::steps::container_publish::ContainerPublish;
use tallybook_agent::steps::container_retire::ContainerRetire;
use tallybook_agent::steps::container_start::ContainerStart;
use tallybook_agent::steps::trash_purge::TrashPurge;
use tallybook_events::codec;
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::{Generation, Hash, StepIndex};
use tallybook_events::name::{ContainerName, TemplateName};
use tallybook_events::step::{FailureClass, Seen};

use crate::links::{Operation, Played};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIabcdefghijklmnop me@here";

pub(crate) fn name() -> ContainerName {
    ContainerName::new("web").unwrap()
}

fn debian() -> Base {
    Base::Debian {
        release: Release::try_from("bookworm".to_owned()).unwrap(),
        mirror: None,
        packages: Vec::new(),
    }
}

/// A host with debootstrap and a keyring.
pub(crate) fn host(dir: &Path) -> Layout {
    for file in [
        "usr/sbin/debootstrap",
        "usr/share/debootstrap/scripts/bookworm",
        "usr/share/keyrings/debian-archive-keyring.gpg",
    ] {
        fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        fs::write(dir.join(file), "").unwrap();
    }
    let layout = Layout::below(dir);
    fs::create_dir_all(&layout.lxc).unwrap();
    layout
}

pub(crate) fn operation(layout: &Layout, number: u8) -> Operation<Played> {
    Operation::new(layout.clone(), Played::new(layout), number)
}

fn build(source: Source, backing: Option<Backing>) -> ContainerBuild {
    ContainerBuild {
        container: name(),
        source,
        backing,
    }
}

pub(crate) fn configure() -> ContainerConfigure {
    ContainerConfigure {
        container: name(),
        staged: StepIndex(1),
        built: OutputOf::step(StepIndex(1)),
        mac: "00:16:3e:00:00:01".parse().unwrap(),
        address: "10.5.0.9".parse().unwrap(),
        bridge: "tally0".to_owned(),
        gateway: "10.5.0.1".parse().unwrap(),
        prefix: 24,
        autostart: true,
        domain: Some("lab.test".to_owned()),
        keys: vec![KEY.to_owned()],
    }
}

pub(crate) fn publish() -> ContainerPublish {
    ContainerPublish {
        container: name(),
        staged: StepIndex(1),
        built: OutputOf::step(StepIndex(1)),
        identity: OutputOf::step(StepIndex(2)),
    }
}

pub(crate) fn bootstrap() -> BaseBootstrap {
    BaseBootstrap {
        distribution: debian(),
        cache_dir: None,
    }
}

pub(crate) fn from_base() -> ContainerBuild {
    build(Source::Base(debian()), Some(Backing::Dir))
}

/// A generation of a template as the template steps publish it, as far as a build looks.
fn generation(layout: &Layout) -> (Source, PathBuf) {
    let template = TemplateName::new("base").unwrap();
    let dir = layout.generation(&template, Generation(3));
    for sub in ["rootfs/etc/ssh", "rootfs/root", "rootfs/usr/lib/systemd"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    fs::write(dir.join("rootfs/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(dir.join("rootfs/usr/lib/systemd/systemd"), "").unwrap();
    fs::set_permissions(dir.join("rootfs/root"), fs::Permissions::from_mode(0o700)).unwrap();
    let source = Source::Template {
        template,
        generation: Generation(3),
        manifest: Hash([9; 32]),
    };
    (source, dir)
}

pub(crate) fn created(layout: &Layout, number: u8) -> Operation<Played> {
    let mut operation = operation(layout, number);
    operation.forward(0, &bootstrap()).unwrap();
    operation.forward(1, &from_base()).unwrap();
    operation.forward(2, &configure()).unwrap();
    operation.forward(3, &publish()).unwrap();
    operation
}

pub(crate) fn is_done<S: Step>(operation: &mut Operation<Played>, index: u32, step: &S) -> bool {
    matches!(operation.probe(index, step), Seen::Done(_))
}

#[test]
fn a_create_is_whole_step_by_step_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = operation(&layout, 1);
    assert_eq!(operation.probe(0, &bootstrap()), Seen::Absent);
    assert!(operation.forward(0, &bootstrap()).unwrap().changed);
    assert!(!operation.forward(0, &bootstrap()).unwrap().changed);
    assert!(is_done(&mut operation, 0, &bootstrap()));
    assert_eq!(operation.link.count("flock"), 1);

    assert_eq!(operation.probe(1, &from_base()), Seen::Absent);
    assert!(operation.forward(1, &from_base()).unwrap().changed);
    assert!(!operation.forward(1, &from_base()).unwrap().changed);
    assert!(is_done(&mut operation, 1, &from_base()));

    assert_eq!(operation.probe(2, &configure()), Seen::Absent);
    let first = operation.forward(2, &configure()).unwrap();
    let again = operation.forward(2, &configure()).unwrap();
    assert_eq!((first.output, first.facts), (again.output, again.facts));

    assert_eq!(operation.probe(3, &publish()), Seen::Absent);
    let published = operation.forward(3, &publish()).unwrap();
    let identity: Identity = codec::decode(&operation.outputs[&StepIndex(2)].0).unwrap();
    let host: tallybook_events::name::HostName = "cn1".parse().unwrap();
    assert_eq!(
        published.facts,
        [
            Fact::ContainerCreated {
                host: host.clone(),
                container: name(),
                origin: Origin::Scratch {
                    distribution: "debian".into(),
                    release: "bookworm".into()
                },
                backing: Backing::Dir,
            },
            Fact::ContainerIdentified {
                host: host.clone(),
                container: name(),
                machine_id: identity.machine_id,
                host_keys: identity.host_keys,
            },
            Fact::KeysAuthorized {
                host,
                container: name(),
                keys: identity.authorized,
            },
        ]
    );
    assert!(!operation.forward(3, &publish()).unwrap().changed);
    // What earlier steps made is seen where it went.
    assert!(is_done(&mut operation, 1, &from_base()));
    assert!(is_done(&mut operation, 2, &configure()));
    assert!(is_done(&mut operation, 3, &publish()));
}

#[test]
fn a_container_has_an_identity_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let home = layout.container(&name());
    let rootfs = home.join("rootfs");
    let identity: Identity = codec::decode(&operation.outputs[&StepIndex(2)].0).unwrap();
    let read = |path: &str| fs::read_to_string(rootfs.join(path)).unwrap();
    let mode = |path: &str| {
        fs::metadata(rootfs.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(read("etc/hostname"), "web\n");
    assert_eq!(
        read("etc/hosts"),
        "127.0.0.1 localhost\n127.0.1.1 web.lab.test web\n"
    );
    assert_eq!(read("etc/machine-id").trim(), identity.machine_id);
    assert_eq!(
        fs::read_link(rootfs.join("var/lib/dbus/machine-id")).unwrap(),
        Path::new("/etc/machine-id")
    );
    assert_eq!(read("root/.ssh/authorized_keys"), format!("{KEY}\n"));
    assert_eq!(
        (mode("root/.ssh"), mode("root/.ssh/authorized_keys")),
        (0o700, 0o600)
    );
    assert_eq!(
        (
            mode("etc/ssh/ssh_host_ed25519_key"),
            identity.host_keys.len()
        ),
        (0o600, 3)
    );
    assert!(
        read("etc/ssh/ssh_host_rsa_key").starts_with("private"),
        "the base's key is gone"
    );
    assert!(
        !home.join("host-keys").exists(),
        "no private key lies around"
    );
    assert_eq!(identity.authorized, ["me@here"]);
    let config = fs::read_to_string(home.join("config")).unwrap();
    assert_eq!(lxc_config::rootfs_of(&config), Some(Rootfs::Dir(rootfs)));

    // The operator's own settings are not written again.
    fs::write(home.join("operator.conf"), "lxc.prlimit.nofile = 9\n").unwrap();
    operation.undo(3, &publish()).unwrap();
    operation.undo(2, &configure()).unwrap();
    operation.forward(2, &configure()).unwrap();
    operation.forward(3, &publish()).unwrap();
    assert_eq!(
        fs::read_to_string(home.join("operator.conf")).unwrap(),
        "lxc.prlimit.nofile = 9\n"
    );
    assert_ne!(
        fs::read_to_string(home.join("rootfs/etc/machine-id"))
            .unwrap()
            .trim(),
        identity.machine_id
    );
}

#[test]
fn taking_a_create_back_leaves_the_cache_only_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let start = ContainerStart { container: name() };
    operation.forward(4, &start).unwrap();
    for _ in 0..2 {
        operation.undo(4, &start).unwrap();
        operation.undo(3, &publish()).unwrap();
        operation.undo(2, &configure()).unwrap();
        operation.undo(1, &from_base()).unwrap();
    }
    assert!(operation.link.running.is_empty());
    assert!(!layout.container(&name()).exists());
    assert!(!layout.own().join("staging").exists());
    assert!(debian().cached(&layout).join("rootfs").is_dir());
}

#[test]
fn a_foreign_container_is_neither_replaced_nor_removed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let home = layout.container(&name());
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("config"), "theirs\n").unwrap();
    let mut operation = operation(&layout, 1);
    operation.forward(0, &bootstrap()).unwrap();
    operation.forward(1, &from_base()).unwrap();
    operation.forward(2, &configure()).unwrap();
    assert!(matches!(
        operation.probe(3, &publish()),
        Seen::Conflict { .. }
    ));
    assert_eq!(
        operation.forward(3, &publish()).unwrap_err().class,
        FailureClass::Exists
    );
    assert!(!operation.undo(3, &publish()).unwrap().changed);
    operation.undo(1, &from_base()).unwrap();
    assert_eq!(fs::read(home.join("config")).unwrap(), b"theirs\n");

    let retire = ContainerRetire {
        container: name(),
        adopted: false,
    };
    assert_eq!(
        operation.forward(5, &retire).unwrap_err().class,
        FailureClass::Exists
    );
    assert!(home.exists());
    let adopted = ContainerRetire {
        container: name(),
        adopted: true,
    };
    operation.forward(5, &adopted).unwrap();
    assert!(!home.exists());
}

#[test]
fn what_a_cut_attempt_left_is_built_anew() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = operation(&layout, 1);
    let staging = |step| layout.staging(operation.id, StepIndex(step));
    let (half_base, half_tree) = (staging(0), staging(1));
    fs::create_dir_all(half_base.join("rootfs/half")).unwrap();
    fs::create_dir_all(half_tree.join("rootfs/half")).unwrap();
    assert!(matches!(
        operation.probe(0, &bootstrap()),
        Seen::Partial { .. }
    ));
    operation.forward(0, &bootstrap()).unwrap();
    assert!(matches!(
        operation.probe(1, &from_base()),
        Seen::Partial { .. }
    ));
    operation.forward(1, &from_base()).unwrap();
    assert!(!half_base.exists());
    assert!(!half_tree.join("rootfs/half").exists());
    assert!(!debian().cached(&layout).join("rootfs/half").exists());
}

#[test]
fn a_failed_bootstrap_leaves_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = operation(&layout, 1);
    operation.link.failing.insert(
        "flock".into(),
        "E: Failed getting release file http://x/\n".into(),
    );
    let failure = operation.forward(0, &bootstrap()).unwrap_err();
    assert!(
        failure
            .message
            .contains("can't be had from http://deb.debian.org"),
        "{}",
        failure.message
    );
    assert!(!layout.staging(operation.id, StepIndex(0)).exists());
    assert!(!debian().cached(&layout).exists());
    let missing = operation.forward(1, &from_base()).unwrap_err();
    assert_eq!(missing.class, FailureClass::Missing);
    fs::remove_file(dir.path().join("usr/sbin/debootstrap")).unwrap();
    let failure = operation.forward(0, &bootstrap()).unwrap_err();
    assert_eq!(
        (failure.class, failure.hint.as_deref()),
        (FailureClass::Missing, Some("apt-get install debootstrap"))
    );
}

#[test]
fn two_creates_make_a_base_once() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let made: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = [1, 2]
            .map(|number| {
                let mut operation = operation(&layout, number);
                scope.spawn(move || {
                    operation.forward(0, &bootstrap()).unwrap();
                    operation.link.count("flock")
                })
            })
            .into_iter()
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
}

#[test]
fn an_overlay_holds_its_generation_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let (source, generation) = generation(&layout);
    let mut operation = operation(&layout, 1);
    // The played `unshare` says that it can be mounted; a reflink can't be had on every file system.
    let build = build(source, Some(Backing::Overlay));
    let done = operation.forward(1, &build).unwrap();
    let built: Built = codec::decode(&done.output.0).unwrap();
    assert_eq!(
        (built.backing, built.lower.as_deref()),
        (Backing::Overlay, Some(generation.join("rootfs").as_path()))
    );
    let user = generation.join(USERS).join("web");
    assert_eq!(
        mark::read_file(&user).unwrap(),
        Some((operation.id, StepIndex(1)))
    );
    operation.forward(2, &configure()).unwrap();
    operation.forward(3, &publish()).unwrap();
    let upper = layout.container(&name()).join("overlay/delta");
    assert_eq!(
        fs::read_to_string(upper.join("etc/hostname")).unwrap(),
        "web\n"
    );
    assert_eq!(
        fs::metadata(upper.join("root"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
    assert!(
        !generation.join("rootfs/etc/hostname").exists(),
        "the generation is not written to"
    );

    let retire = ContainerRetire {
        container: name(),
        adopted: false,
    };
    operation.forward(4, &retire).unwrap();
    assert!(user.exists(), "what can come back still needs it");
    operation.undo(4, &retire).unwrap();
    assert!(layout.container(&name()).is_dir());
    operation.forward(4, &retire).unwrap();
    operation
        .forward(
            5,
            &TrashPurge {
                container: name(),
                retired: StepIndex(4),
            },
        )
        .unwrap();
    assert!(!user.exists());

    let mut other = Operation::new(layout.clone(), Played::new(&layout), 2);
    other.forward(1, &build).unwrap();
    other.undo(1, &build).unwrap();
    assert!(!user.exists());
}

#[test]
fn a_staged_tree_is_taken_and_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = operation(&layout, 1);
    let from = layout.staging(operation.id, StepIndex(0));
    fs::create_dir_all(from.join("rootfs/etc")).unwrap();
    let origin = Origin::Container {
        host: "cn2".parse().unwrap(),
        container: name(),
    };
    let build = build(
        Source::Staged {
            staged: StepIndex(0),
            origin: origin.clone(),
        },
        None,
    );
    let built: Built = codec::decode(&operation.forward(1, &build).unwrap().output.0).unwrap();
    assert_eq!((built.backing, built.origin), (Backing::Dir, origin));
    assert!(!from.join("rootfs").exists());
    // Cut right after the tree was taken: it is completed, not looked for where it was.
    let staging = layout.staging(operation.id, StepIndex(1));
    fs::remove_file(staging.join("built")).unwrap();
    operation.forward(1, &build).unwrap();
    assert!(staging.join("rootfs/etc").is_dir());
}

#[test]
fn a_copy_under_a_new_name_lets_in_who_is_meant_to_and_nobody_else() {
    const OLD: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIzyxwvutsrqponml them@there";
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    for (number, original, keys, expected) in [
        (1, "old", vec![KEY.to_owned()], vec!["me@here"]),
        (2, "old", vec![], vec![]),
        (
            3,
            "web",
            vec![KEY.to_owned()],
            vec!["them@there", "me@here", "them@there"],
        ),
        (4, "web", vec![], vec!["them@there", "them@there"]),
    ] {
        let mut operation = operation(&layout, number);
        let from = layout.staging(operation.id, StepIndex(0));
        fs::create_dir_all(from.join("rootfs/root/.ssh")).unwrap();
        fs::create_dir_all(from.join("rootfs/etc")).unwrap();
        let ssh = from.join("rootfs/root/.ssh");
        fs::write(ssh.join("authorized_keys"), format!("# theirs\n{OLD}\n")).unwrap();
        fs::write(ssh.join("authorized_keys2"), OLD).unwrap();
        let source = Source::Staged {
            staged: StepIndex(0),
            origin: Origin::Container {
                host: "cn2".parse().unwrap(),
                container: original.parse().unwrap(),
            },
        };
        operation.forward(1, &build(source, None)).unwrap();
        let configure = ContainerConfigure {
            keys,
            ..configure()
        };
        let done = operation.forward(2, &configure).unwrap();
        let identity: Identity = codec::decode(&done.output.0).unwrap();
        assert_eq!(identity.authorized, expected, "from {original}");
        let rootfs = layout.staging(operation.id, StepIndex(1)).join("rootfs");
        let there = ["authorized_keys", "authorized_keys2"].map(|file| {
            fs::read_to_string(rootfs.join("root/.ssh").join(file)).unwrap_or_default()
        });
        let lets_them_in = there.concat().contains(OLD);
        assert_eq!(lets_them_in, expected.contains(&"them@there"));
    }
}

#[test]
fn a_hostile_tree_reaches_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let outside = dir.path().join("outside");
    fs::create_dir_all(outside.join(".ssh")).unwrap();
    for (link, target) in [("rootfs/root", ""), ("rootfs/etc/ssh", ".ssh")] {
        let mut operation = operation(&layout, 1);
        let from = layout.staging(operation.id, StepIndex(0));
        fs::create_dir_all(from.join("rootfs/etc")).unwrap();
        symlink(outside.join(target), from.join(link)).unwrap();
        let origin = Origin::Container {
            host: "cn2".parse().unwrap(),
            container: name(),
        };
        let build = build(
            Source::Staged {
                staged: StepIndex(0),
                origin,
            },
            None,
        );
        operation.forward(1, &build).unwrap();
        let failure = operation.forward(2, &configure()).unwrap_err();
        assert!(failure.message.contains("symlink"), "{}", failure.message);
        operation.undo(2, &configure()).unwrap();
        operation.undo(1, &build).unwrap();
        assert_eq!(fs::read_dir(outside.join(".ssh")).unwrap().count(), 0);
        assert!(outside.join(".ssh").is_dir());
    }
}

#[test]
fn the_host_is_asked_what_a_template_can_share() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let (source, generation) = generation(&layout);
    let build = build(source, None);
    let chosen = |number: u8, refuse: bool| {
        let mut operation = operation(&layout, number);
        if refuse {
            operation
                .link
                .failing
                .insert("unshare".into(), "mount: denied".into());
        }
        let done = operation.forward(1, &build).unwrap();
        let built: Built = codec::decode(&done.output.0).unwrap();
        let left = fs::read_dir(layout.staging(operation.id, StepIndex(1)))
            .unwrap()
            .any(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains("trial")
            });
        assert!(!left, "a trial leaves nothing");
        operation.undo(1, &build).unwrap();
        built.backing
    };
    // A file system that shares extents is always preferred; which one the test runs on is not ours to say.
    let (overlay, plain) = (chosen(1, false), chosen(2, true));
    assert!(
        (overlay, plain) == (Backing::Overlay, Backing::Dir)
            || (overlay, plain) == (Backing::Reflink, Backing::Reflink),
        "{overlay} {plain}"
    );
    assert!(!generation.join(USERS).join("web").exists());
}
