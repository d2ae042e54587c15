//! What goes on when the agent is gone, by the binary itself: this process is the agent that it is told of.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tallybook_agent::layout::Layout;
use tallybook_agent::lock;
use tallybook_events::ids::OperationId;

fn agent() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tallybook-agent"))
}

fn own_id() -> String {
    std::process::id().to_string()
}

/// Whether the operation's lock can be had now.
fn is_free(layout: &Layout, operation: OperationId) -> bool {
    lock::operation(layout, operation, &mut || true).is_ok()
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1500 {
        if is() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("not in time: {what}");
}

#[test]
fn the_lock_of_an_operation_is_free_only_when_what_it_left_running_ended() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::below(dir.path());
    let operation = OperationId::from_bytes([7; 16]);
    let held = lock::operation(&layout, operation, &mut || false).unwrap();
    // It leaves a daemon behind, which must not hold the lock, and ends with a status of its own.
    let script = "setsid sleep 20 >/dev/null 2>&1 & echo $!; read line; exit 7";
    let mut child = agent()
        .args(["hold", &own_id()])
        .arg(held.running())
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    // As if the agent died: the kernel drops its lock, and nobody removes the file of what runs.
    drop(held);
    assert!(!is_free(&layout, operation));
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(is_free(&layout, operation));
    let daemon = line.trim().to_owned();
    assert!(Path::new("/proc").join(&daemon).exists());
    let _ = Command::new("kill").arg(daemon).status();
}

#[test]
fn nothing_is_started_in_the_name_of_an_agent_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    let output = agent()
        .args(["hold", "1"])
        .arg(dir.path().join("running"))
        .args(["--", "touch"])
        .arg(&started)
        .output()
        .unwrap();
    assert!(!output.status.success() && !started.exists());
}

/// LXC with one container, whose state is in a file, and where a thaw takes two tries.
fn played_lxc(dir: &Path) {
    let info = "#!/bin/sh\ncat \"$0.state\"\n";
    let unfreeze = "#!/bin/sh\nd=${0%/*}\n\
        if [ -e $d/tried ]; then echo RUNNING >$d/lxc-info.state; fi\n: >$d/tried\n";
    for (name, text) in [("lxc-info", info), ("lxc-unfreeze", unfreeze)] {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all(dir.join("lxc/web")).unwrap();
    fs::write(dir.join("lxc-info.state"), "FROZEN\n").unwrap();
}

fn watch(dir: &Path, running: &Path) -> Child {
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let mut child = agent()
        .args(["thaw-when-gone", &own_id()])
        .arg(dir.join("lxc"))
        .arg("web")
        .arg(dir.join("mark"))
        .arg("ours\n")
        .arg(running)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 9];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"watching\n");
    child
}

#[test]
fn a_container_that_the_agent_froze_goes_on_when_the_agent_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let running = dir.join("running");
    played_lxc(dir);
    let state = || fs::read_to_string(dir.join("lxc-info.state")).unwrap();
    fs::write(dir.join("mark"), "ours\n").unwrap();
    let mut child = watch(dir, &running);
    assert_eq!(state(), "FROZEN\n");
    // Its input ends with the agent, however that ends.
    drop(child.stdin.take());
    wait_until("it runs", || state() == "RUNNING\n");
    wait_until("the mark is gone", || !dir.join("mark").exists());
    assert!(child.wait().unwrap().success());

    // What was let go already, and what another operation froze, is left.
    for mark in [None, Some("another's\n")] {
        fs::write(dir.join("lxc-info.state"), "FROZEN\n").unwrap();
        if let Some(mark) = mark {
            fs::write(dir.join("mark"), mark).unwrap();
        }
        let mut child = watch(dir, &running);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert_eq!(state(), "FROZEN\n");
        assert_eq!(fs::read_to_string(dir.join("mark")).ok().as_deref(), mark);
    }
}
