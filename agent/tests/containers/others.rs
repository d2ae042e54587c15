//! What others have where a container, a base system or a provisioning belongs: set aside and put back, or taken over.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tallybook_agent::layout::Layout;
use tallybook_agent::steps::container_provision::{Command, ContainerProvision, Provisioned};
use tallybook_events::codec;
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::name::HostName;
use tallybook_events::step::FailureClass;

use crate::links::Operation;
use crate::links::Played;
use crate::played::{bootstrap, configure, created, from_base, host, name, operation, publish};

const MACHINE: &str = "0123456789abcdef0123456789abcdef";

/// A container that somebody made by hand.
fn by_hand(layout: &Layout) {
    let home = layout.container(&name());
    let root = home.join("rootfs");
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(
        root.join("usr/lib/os-release"),
        "NAME=x\nID=debian\nVERSION_CODENAME=\"trixie\"\n",
    )
    .unwrap();
    fs::write(root.join("etc/machine-id"), format!("{MACHINE}\n")).unwrap();
    let config = format!("lxc.rootfs.path = dir:{}\n", root.display());
    fs::write(home.join("config"), config).unwrap();
}

/// An operation that has all but the last step of a create behind it.
fn about_to_publish(layout: &Layout) -> Operation<Played> {
    let mut operation = operation(layout, 1);
    operation.forward(0, &bootstrap()).unwrap();
    operation.forward(1, &from_base()).unwrap();
    operation.forward(2, &configure()).unwrap();
    operation
}

fn is_by_hand(path: &Path) -> bool {
    fs::read_to_string(path.join("rootfs/etc/machine-id")).is_ok_and(|id| id.trim() == MACHINE)
}

#[test]
fn a_container_of_others_is_set_aside_and_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = about_to_publish(&layout);
    by_hand(&layout);
    let home = layout.container(&name());
    operation.forward(3, &publish()).unwrap_err();
    operation.link.running.insert("web".to_owned(), false);
    let refused = operation.set_aside(3, &publish()).unwrap_err();
    assert!(
        refused.message.ends_with("runs: stop it first"),
        "{refused:?}"
    );
    assert!(is_by_hand(&home));
    operation.link.running.clear();
    assert_eq!(operation.set_aside(3, &publish()).unwrap(), 1);
    assert!(operation.forward(3, &publish()).unwrap().changed);
    assert!(!is_by_hand(&home));
    // LXC passes over what is hidden.
    let names: Vec<String> = fs::read_dir(&layout.lxc)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(names, ["web"]);
    assert_eq!(
        operation.set_aside(3, &publish()).unwrap(),
        0,
        "its own is not"
    );
    operation.undo(3, &publish()).unwrap();
    assert_eq!(operation.put_back(3), 1);
    assert!(is_by_hand(&home));
}

#[test]
fn what_an_operation_made_is_no_others_and_neither_is_what_somebody_lies_on() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    created(&layout, 2);
    let mut operation = about_to_publish(&layout);
    for refused in [
        operation.set_aside(3, &publish()).unwrap_err(),
        operation.adopt(3, &publish()).unwrap_err(),
    ] {
        assert_eq!(refused.class, FailureClass::Exists);
        assert!(
            refused.message.contains("was made by step 1 of operation"),
            "{refused:?}"
        );
    }
    fs::remove_dir_all(layout.container(&name())).unwrap();
    by_hand(&layout);
    let lower = layout.container(&name()).join("rootfs");
    let upper = layout.lxc.join("upper");
    fs::create_dir_all(&upper).unwrap();
    let config = format!(
        "lxc.rootfs.path = overlay:{}:{}\n",
        lower.display(),
        upper.display()
    );
    fs::write(upper.join("config"), config).unwrap();
    let refused = operation.set_aside(3, &publish()).unwrap_err();
    assert!(refused.message.ends_with("upper lies on it"), "{refused:?}");
}

#[test]
fn a_container_is_taken_over_as_what_it_shows_itself_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = about_to_publish(&layout);
    let home = layout.container(&name());
    operation
        .adopt(3, &publish())
        .expect_err("nothing is there");
    by_hand(&layout);
    operation.link.running.insert("web".to_owned(), false);
    let done = operation.adopt(3, &publish()).unwrap();
    assert!(!done.changed);
    let on = || (HostName::new("cn1").unwrap(), name());
    let ((h1, c1), (h2, c2), (h3, c3)) = (on(), on(), on());
    let expected = [
        Fact::ContainerCreated {
            host: h1,
            container: c1,
            origin: Origin::Scratch {
                distribution: "debian".to_owned(),
                release: "trixie".to_owned(),
            },
            backing: Backing::Dir,
        },
        Fact::ContainerIdentified {
            host: h2,
            container: c2,
            machine_id: MACHINE.to_owned(),
            host_keys: Vec::new(),
        },
        Fact::ContainerStarted {
            host: h3,
            container: c3,
        },
    ];
    assert_eq!(done.facts, expected);
    // Even if it were asked for, an undo leaves it.
    assert!(!operation.undo(3, &publish()).unwrap().changed);
    assert!(is_by_hand(&home));
    // What does not say what it is, or lies elsewhere, is not described.
    fs::remove_file(home.join("rootfs/usr/lib/os-release")).unwrap();
    operation.adopt(3, &publish()).unwrap_err();
    symlink("/etc/os-release", home.join("rootfs/etc/os-release")).unwrap();
    operation
        .adopt(3, &publish())
        .expect_err("what a link of its own leads to is the host's");
    fs::write(home.join("config"), "lxc.rootfs.path = dir:/srv/web\n").unwrap();
    operation.adopt(3, &publish()).unwrap_err();
}

#[test]
fn a_base_system_of_others_is_taken_over_and_never_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = operation(&layout, 1);
    operation.forward(0, &bootstrap()).unwrap();
    let mut cached = fs::read_dir(layout.cache()).unwrap();
    let cached = cached
        .find_map(|it| Some(it.unwrap().path()).filter(|it| it.is_dir()))
        .unwrap();
    fs::remove_file(cached.join("made-by")).unwrap();
    operation.forward(0, &bootstrap()).unwrap_err();
    operation
        .adopt(0, &bootstrap())
        .expect_err("it does not say what it is");
    fs::create_dir_all(cached.join("rootfs/usr/lib")).unwrap();
    let says = cached.join("rootfs/usr/lib/os-release");
    fs::write(&says, "ID=debian\nVERSION_CODENAME=trixie\n").unwrap();
    operation
        .adopt(0, &bootstrap())
        .expect_err("another release");
    fs::write(&says, "ID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
    assert!(!operation.adopt(0, &bootstrap()).unwrap().changed);
    // And what was taken over is what a container is made from.
    operation.forward(1, &from_base()).unwrap();
    // No undo of this step would put it back.
    operation.set_aside(0, &bootstrap()).unwrap_err();
    assert!(says.exists());
}

#[test]
fn of_what_can_not_be_seen_somebody_s_word_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let provision = ContainerProvision {
        container: name(),
        entry: 2,
        command: Command::Script("true\n".to_owned()),
        timeout_s: 60,
    };
    let done = operation.adopt(5, &provision).unwrap();
    assert!(!done.changed);
    let output: Provisioned = codec::decode(&done.output.0).unwrap();
    assert!(output.ran);
    assert!(matches!(
        done.facts[..],
        [Fact::Provisioned { entry: 2, .. }]
    ));
    let refused = operation.set_aside(5, &provision).unwrap_err();
    assert!(
        refused.message.contains("sets nothing aside"),
        "{refused:?}"
    );
}
