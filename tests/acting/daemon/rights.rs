//! Who may what: the socket decides, and the kernel says who it was. Other users are played by root, who alone can.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use super::{Daemon, Follower, events, until, until_status};
use crate::ground::{Ground, Run};

/// A user who owns nothing here, and whose only group this is.
struct User<'a> {
    ground: &'a Ground,
    uid: u32,
    gid: u32,
}

impl User<'_> {
    fn run(&self, arguments: &[&str]) -> Run {
        let mut command = self.ground.command(arguments);
        command
            .uid(self.uid)
            .gid(self.gid)
            .env_remove("TALLYBOOK_STORE")
            .env("TALLYBOOK_DAEMON", self.ground.path("sockets"))
            .env("SUDO_USER", "somebody else")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ground::ended(command.spawn().unwrap())
    }
}

const READERS: u32 = 64_101;
const ACTORS: u32 = 64_102;

/// A ground that others can look into, with a daemon for both groups. `None` where nobody else can be played.
fn shared() -> Option<(Ground, Daemon)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root can play other users");
        return None;
    }
    let ground = Ground::prepared(1);
    for name in ["", "home"] {
        let path = ground.path(name);
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let sockets = ground.path("sockets");
    let (readers, actors) = (READERS.to_string(), ACTORS.to_string());
    let daemon = Daemon::start(
        &ground,
        &[
            "--socket-dir",
            sockets.to_str().unwrap(),
            "--read-group",
            &readers,
            "--act-group",
            &actors,
        ],
    );
    Some((ground, daemon))
}

#[test]
fn who_may_read_has_nothing_done() {
    let Some((ground, _daemon)) = shared() else {
        return;
    };
    let reader = User {
        ground: &ground,
        uid: 64_001,
        gid: READERS,
    };
    ground.host(1).hold("container.start");
    ground
        .run(&["container", "create", "web", "--detach"])
        .ends(0);
    ground.host(1).until_noted("waits: start web");
    let create = ground.newest();
    // All that is asked.
    reader.run(&["op", "list"]).ends(0).says(&create);
    reader.run(&["op", "show", &create]).ends(0);
    reader.run(&["container", "list"]).ends(0);
    reader.run(&["log"]).ends(0).says("operation.planned");
    let before = events(&ground, "").len();
    // Nothing that would change anything: not the log, and not what runs.
    let changed = format!("{}\n# changed\n", ground.inventory());
    ground.set_inventory(&changed);
    for (arguments, why) in [
        (&["cloud", "refresh"][..], "not append to the log"),
        (&["container", "create", "db"], "not have anything done"),
        (
            &["container", "create", "db", "--detach"],
            "not have anything done",
        ),
        (&["op", "stop", &create], "not have anything done"),
        (&["op", "resume", &create], "not have anything done"),
        (&["op", "rollback", &create], "not have anything done"),
        (
            &["op", "abandon", &create, "--reason", "x"],
            "not have anything done",
        ),
        (&["redact", "1", "--reason", "x", "--yes"], ""),
        (&["log", "archive"], "only the owner"),
    ] {
        let run = reader.run(arguments);
        assert_ne!(run.code, 0, "{arguments:?}: {run}");
        if !why.is_empty() {
            drop(run.ends(12).says(why));
        }
    }
    let now = events(&ground, "").len();
    assert_eq!(now, before);
    assert_eq!(ground.status(&create), "running");
    // They may look on.
    let follows = std::thread::scope(|scope| {
        let follows = scope.spawn(|| reader.run(&["op", "attach", &create]));
        std::thread::sleep(std::time::Duration::from_millis(200));
        ground.host(1).release("container.start");
        follows.join().unwrap()
    });
    follows.ends(0).says("succeeded");
    // What is about the files themselves is nobody's but the owner's.
    reader
        .run(&["verify"])
        .ends(2)
        .says("this needs the store itself");
    // Who is in neither group gets nothing at all.
    let stranger = User {
        ground: &ground,
        uid: 64_003,
        gid: 64_103,
    };
    stranger
        .run(&["op", "list"])
        .ends(12)
        .says("is closed to you");
}

/// What a socket lets in does not depend on who is there: this test is root, and may only read at that one.
#[test]
fn who_may_read_can_not_fill_the_memory() {
    let Some((ground, _daemon)) = shared() else {
        return;
    };
    let said = |socket: &str, len: u32| {
        let mut line = UnixStream::connect(ground.path(&format!("sockets/{socket}"))).unwrap();
        let mut greeting = [0; 6];
        line.read_exact(&mut greeting).unwrap();
        line.write_all(&greeting).unwrap();
        line.set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        line.write_all(&len.to_le_bytes()).unwrap();
        // Where it was hung up on by then, this fails.
        line.write_all(&vec![0; 32 * 1024])?;
        line.read(&mut greeting)
    };
    // Hung up on as soon as it says how much it is going to say; where that may be, the rest is waited for.
    assert!(!said("read", 128 * 1024).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    assert!(said("act", 128 * 1024).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    ground.run(&["op", "list"]).ends(0);
}

#[test]
fn who_acts_is_whom_the_kernel_says() {
    let Some((ground, _daemon)) = shared() else {
        return;
    };
    let actor = User {
        ground: &ground,
        uid: 64_002,
        gid: ACTORS,
    };
    actor
        .run(&["container", "create", "web"])
        .ends(0)
        .says("container create web --on cn1 succeeded");
    let intended = events(&ground, "operation.intended");
    let seq = intended.last().unwrap()["seq"].to_string();
    let shown = ground.run(&["show", &seq]).ends(0);
    let said = |name: &str, source: &str| {
        let mut lines = shown.stdout.lines();
        lines
            .find(|line| line.contains(name) && line.contains(source))
            .map(str::to_owned)
            .unwrap_or_else(|| panic!("no {name} that {source} in {shown}"))
    };
    assert!(said("uid", "says the kernel").contains("64002"));
    assert!(said("gid", "says the kernel").contains("64102"));
    assert!(said("sudo_user", "").contains("somebody else"));
    let list = ground.document(&["op", "list", "--all"]);
    let by = list.as_array().unwrap().last().unwrap()["by"].clone();
    assert!(by.as_str().unwrap().contains("64002"), "{by}");
    // Who has it stopped is named.
    ground.host(1).hold("container.stop");
    actor
        .run(&["container", "restart", "web", "--detach"])
        .ends(0);
    let restart = ground.newest();
    ground.host(1).until_noted("waits: stop web");
    let mut follows = Follower::of(&ground, &restart);
    actor.run(&["op", "stop", &restart]).ends(0);
    follows.until_stopping();
    ground.host(1).release("container.stop");
    until_status(&ground, &restart, "interrupted");
    let reason = ground.document(&["op", "show", &restart])["reason"].clone();
    let reason = reason.as_str().unwrap();
    assert!(reason.starts_with("stopped by uid 64002"), "{reason}");
    actor.run(&["op", "resume", &restart]).ends(0);
    let resumed = events(&ground, "operation.resumed");
    let by = resumed[0]["actor"].as_str().unwrap().to_owned();
    assert!(by.contains("64002"), "{resumed:?}");
    // A session is carried out by who has it, and held for them.
    actor.run(&["container", "exec", "web", "--", "true"]);
    until("the session is over", || {
        ground.document(&["op", "list", "--unfinished"]) == serde_json::json!([])
    });
    actor
        .run(&["op", "abandon", &restart, "--reason", "x"])
        .ends(1);
    actor
        .run(&["log", "archive"])
        .ends(12)
        .says("only the owner");
}
