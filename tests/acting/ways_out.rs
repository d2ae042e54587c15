//! What people do about operations that stand in each other's way, or are not done: wait, go on, take back, give up.

use std::process::{Child, Stdio};

use crate::ground::Ground;

fn start(ground: &Ground, arguments: &[&str]) -> Child {
    let mut command = ground.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn who_holds_a_claim_is_waited_for_where_that_is_wanted() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    ground.run(&["container", "create", "web"]).ends(0);
    host.hold("container.start");
    let first = start(&ground, &["container", "restart", "web"]);
    host.until_noted("waits: start web");
    let restart = ground.newest();
    let held = format!("container:cn1/web is held by operation {restart}");
    ground
        .run(&["container", "stop", "web"])
        .ends(5)
        .says(&held);
    let refused = ground.run(&["container", "stop", "web", "--wait=300ms"]);
    refused.ends(5).says(&format!("wait  {held}")).says("error");
    // Another container is no matter of theirs.
    ground
        .run(&["container", "create", "db", "--keep-failed", "--dry-run"])
        .ends(0);
    let second = start(&ground, &["container", "stop", "web", "--wait"]);
    let asked_to_stop = start(&ground, &["container", "stop", "web", "--wait"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&asked_to_stop);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    Ground::ended(asked_to_stop)
        .ends(75)
        .says("stopped before anything was begun");
    host.release("container.start");
    Ground::ended(first).ends(0);
    Ground::ended(second).ends(0).says(&format!("wait  {held}"));
    let operations = ground.document(&["op", "list", "--all"]);
    let stops = operations.as_array().unwrap().iter();
    let stops = stops.filter(|one| one["intent"] == "container stop cn1/web");
    assert_eq!(stops.count(), 1);
}

#[test]
fn a_rollback_that_failed_is_tried_again_by_either_name() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.fail("container.publish", "disk_full");
    host.fail("undo-container.build", "host");
    for by_the_undo in [false, true] {
        ground.run(&["container", "create", "web"]).ends(75);
        let undo = ground.newest();
        let list = ground.document(&["op", "list", "--all"]);
        let list = list.as_array().unwrap();
        let create = list[list.len() - 2]["short"].as_str().unwrap().to_owned();
        let shown = ground.document(&["op", "show", &create]);
        let next = shown["next"].as_array().unwrap();
        assert_eq!(
            next[0]["command"],
            format!("tallybook op retry-undo {create}")
        );
        assert_eq!(
            next[1]["command"],
            format!("tallybook op abandon {undo} --reason TEXT")
        );
        ground.run(&["op", "retry-undo", &create]).ends(1);
        host.mend("undo-container.build");
        let named = if by_the_undo { &undo } else { &create };
        ground.run(&["op", "retry-undo", named]).ends(0);
        assert_eq!(ground.status(&create), "rolled_back");
        ground
            .run(&["op", "retry-undo", &create])
            .ends(1)
            .says("is not being taken back");
        host.fail("undo-container.build", "host");
    }
}

#[test]
fn what_is_given_up_stands_in_nobodys_way() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.fail("container.publish", "disk_full");
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(10);
    let create = ground.newest();
    ground.run(&["container", "create", "web"]).ends(5);
    let shown = ground.run(&["op", "show", &create]).ends(0);
    let shown = shown.says(&format!(
        "`tallybook op resume {create}` tries 1 step again that failed"
    ));
    let shown = shown.says(&format!("`tallybook op rollback {create}` undoes"));
    let give_up = format!(
        "`tallybook op abandon {create} --reason TEXT` frees container:cn1/web; hosts stay as they are"
    );
    drop(shown.says(&give_up));
    let before = host.notes();
    ground.run(&["op", "abandon", &create]).ends(2);
    let abandoned = ground.document(&["op", "abandon", &create, "--reason", "made by hand"]);
    assert_eq!(abandoned["outcome"], "abandoned");
    let left = abandoned["left"].as_array().unwrap();
    assert!(left.iter().any(|one| one["status"] == "failed"), "{left:?}");
    assert!(left.len() > 1, "{left:?}");
    assert_eq!(host.notes(), before, "no host was asked");
    assert_eq!(ground.status(&create), "abandoned");
    let shown = ground.document(&["op", "show", &create]);
    assert_eq!(shown["reason"], "made by hand");
    let next = shown["next"].as_array().unwrap();
    assert_eq!(next.len(), 1);
    assert_eq!(
        next[0]["command"],
        format!("tallybook op rollback {create}")
    );
    ground.run(&["op", "resume", &create]).ends(1);
    ground
        .run(&["op", "abandon", &create, "--reason", "again"])
        .ends(1);
    host.mend("container.publish");
    ground.run(&["op", "rollback", &create]).ends(0);
    assert_eq!(ground.status(&create), "rolled_back");
    ground.run(&["container", "create", "web"]).ends(0);
}
