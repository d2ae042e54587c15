//! Handing over and following: terminals come and go, and what was begun goes on.

use rustix::process::{Pid, Signal, kill_process};

use super::{Daemon, Follower, events, kill, start, until, until_status, until_waits};
use crate::ground::Ground;

#[test]
fn what_is_detached_goes_on_and_can_be_followed() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let _daemon = Daemon::start(&ground, &[]);
    host.hold("container.start");
    let told = ground.json(&["container", "create", "web", "--detach"]);
    let create = ground.newest();
    let attach = format!("tallybook op attach {create}");
    assert_eq!(told.end()["outcome"], "detached");
    assert_eq!(told.ends(0).end()["attach"], attach);
    let follow = format!("`{attach}` follows it");
    host.until_noted("waits: start web");
    assert_eq!(ground.status(&create), "running");
    let attached = start(&ground, &["op", "attach", &create]);
    let as_json = start(&ground, &["--format", "json", "op", "attach", &create]);
    // Ctrl-C leaves an operation that somebody else began alone.
    let leaves = start(&ground, &["op", "attach", &create]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill_process(Pid::from_child(&leaves), Signal::INT).unwrap();
    Ground::ended(leaves).ends(75).says(&follow);
    // One that reads nothing is in nobody's way.
    let slow = start(&ground, &["op", "attach", &create]);
    kill_process(Pid::from_child(&slow), Signal::STOP).unwrap();
    host.release("container.start");
    let told = Ground::ended(attached).ends(0);
    let ended = "container create web --on cn1 succeeded";
    drop(told.says(ended).says("start web"));
    assert_eq!(Ground::ended(as_json).ends(0).end()["outcome"], "succeeded");
    assert_eq!(ground.status(&create), "succeeded");
    kill_process(Pid::from_child(&slow), Signal::CONT).unwrap();
    Ground::ended(slow).ends(0).says(ended);
    // Once it is over, the log says how it ended.
    ground.run(&["op", "attach", &create]).ends(0).says(ended);
}

#[test]
fn without_a_daemon_nothing_is_detached() {
    let ground = Ground::prepared(1);
    let before = events(&ground, "");
    ground
        .run(&["container", "create", "web", "--detach"])
        .ends(2)
        .says("no daemon serves the store")
        .says("tallybook daemon");
    assert_eq!(events(&ground, ""), before);
    let ground = Ground::new(1);
    ground.run(&["host", "install", "cn1", "--detach"]).ends(2);
    assert!(!ground.path("store").exists());
}

#[test]
fn a_client_that_is_killed_changes_nothing() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let _daemon = Daemon::start(&ground, &[]);
    host.hold("container.start");
    let client = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: start web");
    let create = ground.newest();
    kill(client);
    host.release("container.start");
    until_status(&ground, &create, "succeeded");
    // One that is killed as soon as the log has its operation, before it hands that over: also what is to be done about
    // a failure is known.
    host.fail("container.publish", "host");
    let mut command = ground.command(&["container", "create", "db"]);
    let killed = command.env("TALLYBOOK_CRASH_AT", "planned").status();
    assert_eq!(killed.unwrap().code(), None);
    until("it is taken back", || {
        ground.status(&ground.newest()) == "succeeded"
    });
    let list = ground.document(&["op", "list", "--all"]);
    let made = list.as_array().unwrap().iter();
    let made = made.filter(|one| one["intent"] == "container create db --on cn1");
    let status: Vec<_> = made.map(|one| one["status"].clone()).collect();
    assert_eq!(status, ["rolled_back"]);
}

#[test]
fn what_fails_half_made_is_taken_back_without_a_terminal() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let _daemon = Daemon::start(&ground, &[]);
    host.fail("container.publish", "disk_full");
    host.hold("container.configure");
    let client = start(&ground, &["container", "create", "web"]);
    let asks_to_keep = start(&ground, &["container", "create", "db", "--keep-failed"]);
    until_waits(host, 2);
    let list = ground.document(&["op", "list", "--unfinished"]);
    let id_of = |what: &str| {
        let mut all = list.as_array().unwrap().iter();
        let found = all.find(|one| one["intent"].as_str().unwrap().contains(what));
        found.unwrap()["short"].as_str().unwrap().to_owned()
    };
    let (web, db) = (id_of("create web"), id_of("create db"));
    kill(client);
    kill(asks_to_keep);
    host.release("container.configure");
    until_status(&ground, &web, "rolled_back");
    until_status(&ground, &db, "failed");
    // Whoever asks later is told the same as who would have waited.
    ground
        .run(&["op", "attach", &web])
        .ends(10)
        .says("container.publish was made to fail")
        .says("it was taken back by operation");
    ground.run(&["op", "attach", &db]).ends(10);
    // And who waits is told as without a daemon.
    ground
        .run(&["container", "create", "web"])
        .ends(10)
        .says("it was taken back by operation")
        .says("--keep-failed would have left it");
}

#[test]
fn one_that_fails_holds_up_no_other() {
    let ground = Ground::prepared(2);
    let _daemon = Daemon::start(&ground, &[]);
    ground.host(2).hold("host.bridge");
    ground.host(1).fail("container.publish", "host");
    ground.run(&["host", "prepare", "cn2", "--detach"]).ends(0);
    let prepare = ground.newest();
    ground.host(2).until_noted("waits: ");
    ground
        .run(&["container", "create", "web"])
        .ends(1)
        .says("it was taken back");
    assert_eq!(ground.status(&prepare), "running");
    ground.host(2).release("host.bridge");
    until_status(&ground, &prepare, "succeeded");
}

#[test]
fn what_is_gone_on_with_or_taken_back_is_handed_over_too() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let _daemon = Daemon::start(&ground, &[]);
    host.fail("container.start", "host");
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(1);
    let create = ground.newest();
    ground.run(&["op", "resume", &create]).ends(1);
    host.mend("container.start");
    ground.run(&["op", "resume", &create]).ends(0);
    ground.run(&["op", "resume", &create]).ends(1);
    host.fail("undo-container.build", "host");
    ground.run(&["op", "rollback", &create]).ends(1);
    host.mend("undo-container.build");
    let retried = ground.run(&["op", "retry-undo", &create, "--detach"]);
    retried.ends(0).says("follows it");
    until_status(&ground, &create, "rolled_back");
    // Who is busy is named, and by whom it can be followed.
    host.hold("container.build");
    ground
        .run(&["container", "create", "web", "--detach"])
        .ends(0);
    let create = ground.newest();
    host.until_noted("waits: ");
    for command in ["resume", "rollback"] {
        ground
            .run(&["op", command, &create])
            .ends(5)
            .says("another process is carrying out operation")
            .says(&format!("`tallybook op attach {create}` follows it"));
    }
    host.release("container.build");
    until_status(&ground, &create, "succeeded");
}

#[test]
fn one_that_is_stopped_stays_stopped() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let daemon = Daemon::start(&ground, &[]);
    host.hold("container.build");
    let began = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: ");
    let first = ground.newest();
    // The first Ctrl-C of who began it.
    let mut follows = Follower::of(&ground, &first);
    kill_process(Pid::from_child(&began), Signal::INT).unwrap();
    follows.until_stopping();
    let detached = ground.run(&["container", "create", "db", "--detach"]);
    let second = ground.newest();
    drop(detached.ends(0));
    until_waits(host, 2);
    let mut follows = Follower::of(&ground, &second);
    ground
        .run(&["op", "stop", &second])
        .ends(0)
        .says("ends in good order");
    follows.until_stopping();
    host.release("container.build");
    Ground::ended(began).ends(75).says("tallybook op resume");
    until_status(&ground, &second, "interrupted");
    let shown = ground.document(&["op", "show", &second]);
    let reason = shown["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("stopped by root (uid 0)"), "{reason}");
    ground
        .run(&["op", "stop", &second])
        .ends(5)
        .says("does not carry out");
    // The next one leaves both alone.
    daemon.kill();
    let _daemon = Daemon::start(&ground, &[]);
    ground.run(&["host", "prepare", "cn1"]).ends(0);
    assert_eq!(ground.status(&first), "interrupted");
    assert_eq!(ground.status(&second), "interrupted");
}
