//! What others left: operations of programs that were killed, and hosts that were away.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Daemon, events, kill, start, until, until_status};
use crate::ground::Ground;

#[test]
fn what_a_killed_program_left_is_taken_up() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.hold("container.start");
    let alone = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: start web");
    let create = ground.newest();
    // It holds the store, and the daemon waits for that.
    let daemon = std::thread::scope(|scope| {
        let starts = scope.spawn(|| Daemon::start(&ground, &[]));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(ground.status(&create), "running");
        kill(alone);
        starts.join().unwrap()
    });
    host.release("container.start");
    until_status(&ground, &create, "succeeded");
    daemon.signal(Signal::TERM);
    daemon.ended().ends(0);
}

#[test]
fn what_is_left_while_it_runs_is_taken_up() {
    let ground = Ground::prepared(2);
    let host = ground.host(1);
    // Begun before there is a daemon; carried on beside it.
    host.hold("container.start");
    let alone = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: start web");
    let create = ground.newest();
    kill_process(Pid::from_child(&alone), Signal::STOP).unwrap();
    let daemon = std::thread::scope(|scope| {
        let starts = scope.spawn(|| Daemon::start(&ground, &[]));
        kill_process(Pid::from_child(&alone), Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        kill(alone);
        starts.join().unwrap()
    });
    host.release("container.start");
    until_status(&ground, &create, "succeeded");
    // What an operator gave up, and what failed, is left alone.
    host.fail("container.start", "host");
    ground
        .run(&["container", "create", "db", "--keep-failed"])
        .ends(1);
    let failed = ground.newest();
    host.mend("container.start");
    daemon.kill();
    let _daemon = Daemon::start(&ground, &[]);
    ground.run(&["host", "prepare", "cn2"]).ends(0);
    assert_eq!(ground.status(&failed), "failed");
    ground
        .run(&["op", "abandon", &failed, "--reason", "made by hand"])
        .ends(0);
    assert_eq!(ground.status(&failed), "abandoned");
}

#[test]
fn what_had_failed_before_is_not_tried_again() {
    let ground = Ground::prepared(2);
    ground.host(1).fail("host.bridge", "host");
    ground.host(2).hold("host.bridge");
    let daemon = Daemon::start(&ground, &[]);
    ground
        .run(&["host", "prepare", "cn1", "cn2", "--detach"])
        .ends(0);
    let prepare = ground.newest();
    ground.host(2).until_noted("waits: ");
    let failed = || events(&ground, "step.failed").len();
    until("a step failed", || failed() == 1);
    daemon.kill();
    ground.host(1).mend("host.bridge");
    let _daemon = Daemon::start(&ground, &[]);
    ground.host(2).release("host.bridge");
    until_status(&ground, &prepare, "failed");
    assert_eq!(failed(), 1);
    ground.run(&["op", "attach", &prepare]).ends(3);
    ground.run(&["op", "resume", &prepare]).ends(0);
}

#[test]
fn a_host_that_was_away_is_tried_again() {
    let ground = Ground::prepared(1);
    let _daemon = Daemon::start(&ground, &["--retry-pause", "100ms"]);
    ground.host(1).set_down(true);
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(6)
        .says("the daemon tries again in 100ms");
    let create = ground.newest();
    // It tries again, and is refused again.
    let resumed = || events(&ground, "operation.resumed").len();
    until("it was tried twice", || resumed() >= 2);
    ground.host(1).set_down(false);
    until_status(&ground, &create, "succeeded");
    // One that an operator has taken into their own hands meanwhile is theirs.
    ground.host(1).set_down(true);
    ground
        .run(&["container", "create", "db", "--keep-failed"])
        .ends(6);
    let create = ground.newest();
    until("it was abandoned", || {
        let given_up = ground.run(&["op", "abandon", &create, "--reason", "not wanted"]);
        given_up.code == 0
    });
    ground.host(1).set_down(false);
    let before = resumed();
    ground.run(&["host", "prepare", "cn1"]).ends(0);
    assert_eq!(ground.status(&create), "abandoned");
    assert_eq!(resumed(), before);
}
