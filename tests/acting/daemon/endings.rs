//! The daemon's own end, in good order and by force; what a service manager is told; and a second one.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use super::{Daemon, Follower, start, until, until_status, until_waits};
use crate::ground::Ground;

impl Ground {
    /// Waits until a daemon takes nothing more.
    fn refused_while_ending(&self) {
        until("it takes nothing more", || {
            let run = self.run(&["op", "resume", &self.newest()]);
            run.code == 5 && run.stderr.contains("the daemon is ending")
        });
    }
}

#[test]
fn it_ends_in_good_order_and_the_next_goes_on() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let daemon = Daemon::start(&ground, &[]);
    host.hold("container.build");
    let client = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: ");
    let create = ground.newest();
    let mut follows = Follower::of(&ground, &create);
    daemon.signal(Signal::TERM);
    follows.until_stopping();
    // Nothing new is taken, and that is said before anything is in the log.
    ground.refused_while_ending();
    assert_eq!(ground.newest(), create);
    host.release("container.build");
    daemon.ended().ends(0);
    Ground::ended(client)
        .ends(75)
        .says("the daemon ends; its next start goes on with this");
    // What ran came to its end, and nothing else was begun.
    let shown = ground.document(&["op", "show", &create]);
    let of = |status: &str| {
        let steps = shown["steps"].as_array().unwrap().iter();
        steps.filter(|step| step["status"] == status).count()
    };
    assert_eq!(shown["status"], "running");
    assert_eq!(of("started") + of("failed"), 0, "{shown}");
    assert!(of("succeeded") > 0 && of("pending") > 0, "{shown}");
    let before = host.notes().len();
    let _daemon = Daemon::start(&ground, &[]);
    until_status(&ground, &create, "succeeded");
    assert!(host.notes().len() > before);
    let built = host.notes();
    let built = built
        .iter()
        .filter(|line| line.starts_with("build the root"));
    assert_eq!(built.count(), 1, "nothing was done twice");
}

#[test]
fn a_second_signal_or_a_limit_ends_it_at_once() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    for (count, step, more) in [
        (1, "host.bridge", &[][..]),
        (2, "host.nftables", &["--drain-timeout", "50ms"]),
    ] {
        host.hold(step);
        let daemon = Daemon::start(&ground, more);
        ground.run(&["host", "prepare", "cn1", "--detach"]).ends(0);
        let prepare = ground.newest();
        until_waits(host, count);
        daemon.signal(Signal::TERM);
        if more.is_empty() {
            // Both are not taken for one.
            ground.refused_while_ending();
            daemon.signal(Signal::INT);
        }
        daemon.ended().ends(75).says("left as it was: 1 operation");
        host.release(step);
        let next = Daemon::start(&ground, &[]);
        until_status(&ground, &prepare, "succeeded");
        next.signal(Signal::TERM);
        next.ended().ends(0);
    }
}

#[test]
fn it_is_killed_and_the_next_goes_on() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let sockets = ground.path("sockets");
    let sockets = sockets.to_str().unwrap();
    let groups = [
        "--socket-dir",
        sockets,
        "--read-group",
        "0",
        "--act-group",
        "0",
    ];
    let daemon = Daemon::start(&ground, &groups);
    host.hold("container.start");
    let client = start(&ground, &["container", "create", "web"]);
    host.until_noted("waits: start web");
    let create = ground.newest();
    daemon.kill();
    Ground::ended(client)
        .ends(75)
        .says("can't be followed any more")
        .says(&format!("`tallybook op attach {create}` follows it"));
    host.release("container.start");
    // Its sockets and locks are still there.
    assert!(ground.path("sockets/act").exists());
    assert!(ground.path("store/socket").exists());
    let daemon = Daemon::start(&ground, &groups);
    until_status(&ground, &create, "succeeded");
    ground
        .run(&["--daemon", sockets, "op", "list"])
        .ends(0)
        .says("container create web");
    daemon.signal(Signal::TERM);
    daemon.ended().ends(0);
    assert!(!ground.path("sockets/act").exists());
    let gone = ground.run(&["--daemon", sockets, "op", "list"]);
    gone.ends(9).says("no daemon answers in");
}

#[test]
fn it_may_die_at_any_moment() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    for (count, moment) in (1..).zip(["started", "effect:3", "ended:2", "recorded:4"]) {
        let daemon = Daemon::with(&ground, &[], &[("TALLYBOOK_CRASH_AT", moment)]);
        ground
            .run(&["container", "create", "web", "--detach"])
            .ends(0);
        let create = ground.newest();
        daemon.died();
        let next = Daemon::start(&ground, &[]);
        until_status(&ground, &create, "succeeded");
        let built = host.notes();
        let built = built
            .iter()
            .filter(|line| line.starts_with("build the root"));
        assert_eq!(built.count(), count, "once each, also at {moment}");
        ground.run(&["container", "destroy", "web"]).ends(0);
        next.signal(Signal::TERM);
        next.ended().ends(0);
    }
}

#[test]
fn a_second_one_is_refused() {
    let ground = Ground::prepared(1);
    let _daemon = Daemon::start(&ground, &[]);
    ground
        .run(&["daemon"])
        .ends(5)
        .says("another daemon serves the store");
    ground.run(&["op", "list"]).ends(0);
}

#[test]
fn a_service_manager_is_told() {
    let ground = Ground::prepared(1);
    let path = ground.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let heard = || {
        let mut bytes = [0; 512];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let until_heard = |wanted: &str| {
        let mut before = Vec::new();
        loop {
            let said = heard();
            if said == wanted {
                return before;
            }
            before.push(said);
        }
    };
    let variables = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "300000"),
    ];
    let daemon = Daemon::with(&ground, &[], &variables);
    let before = until_heard("READY=1\n");
    assert!(before.is_empty(), "{before:?}");
    for _ in 0..3 {
        until_heard("WATCHDOG=1\n");
    }
    // Also while it ends.
    ground.host(1).hold("host.bridge");
    ground.run(&["host", "prepare", "cn1", "--detach"]).ends(0);
    ground.host(1).until_noted("waits: ");
    until_heard("STATUS=operations that run or wait: 1\n");
    daemon.signal(Signal::TERM);
    until_heard("STOPPING=1\n");
    for _ in 0..3 {
        until_heard("WATCHDOG=1\n");
    }
    ground.host(1).release("host.bridge");
    daemon.ended().ends(0);
}
