//! Hosts that are down, or not whom they should be, while something is taken back, resumed, or done on several.

use crate::ground::Ground;

#[test]
fn taking_back_on_a_host_that_is_down_waits_for_it() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let create = ground.newest();
    ground.host(1).set_down(true);
    ground
        .run(&["op", "rollback", &create])
        .ends(6)
        .says("tallybook op resume")
        .says_nothing_of("which can't be rolled back");
    let undo = ground.newest();
    assert_eq!(ground.status(&undo), "interrupted");
    assert_eq!(ground.status(&create), "rolling_back");
    let again = ground.json(&["op", "resume", &undo]).ends(6);
    assert_eq!(again.end()["outcome"], "unreachable");
    ground.host(1).set_down(false);
    ground.run(&["op", "resume", &undo]).ends(0);
    assert_eq!(ground.status(&create), "rolled_back");
}

#[test]
fn what_was_asked_to_stay_stays_when_a_host_is_down() {
    let ground = Ground::prepared(1);
    ground.host(1).set_down(true);
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(6)
        .says("tallybook op rollback");
    let kept = ground.newest();
    assert_eq!(ground.status(&kept), "interrupted");
    ground.run(&["op", "resume", &kept]).ends(6);
    assert_eq!(ground.status(&kept), "interrupted");
    ground.host(1).set_down(false);
    ground.run(&["op", "resume", &kept]).ends(0);
    // Without being asked, what was never begun is closed at once.
    ground.host(1).set_down(true);
    ground
        .run(&["container", "create", "db"])
        .ends(6)
        .says("nothing was done, and operation");
    assert_eq!(
        ground.document(&["op", "list", "--unfinished"]),
        serde_json::json!([])
    );
}

#[test]
fn a_key_that_changed_is_not_gone_on_with() {
    let ground = Ground::new(2);
    ground.host(2).change_key();
    let run = ground.json(&["host", "install", "cn1", "cn2"]).ends(3);
    let end = run.end();
    assert_eq!(
        (&end["exit"], &end["code"]),
        (&"some_hosts".into(), &3.into())
    );
    assert!(
        end["reasons"][0].as_str().unwrap().contains("CHANGED"),
        "{end}"
    );
    let half = ground.newest();
    ground.run(&["op", "resume", &half]).ends(3).says("CHANGED");
    ground.trust_nobody();
    ground.trust(ground.host(1));
    ground.trust(ground.host(2));
    ground.run(&["op", "resume", &half]).ends(0);
    // On the only host, in the middle of things.
    ground.run(&["host", "prepare", "cn1"]).ends(0);
    ground.host(1).fail("container.start", "host");
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(1);
    let failed = ground.newest();
    ground.host(1).change_key();
    ground
        .run(&["op", "resume", &failed])
        .ends(7)
        .says("CHANGED");
    ground
        .run(&["op", "rollback", &failed])
        .ends(7)
        .says("CHANGED");
    let undo = ground.newest();
    ground.json(&["op", "resume", &undo]).ends(7);
}

#[test]
fn a_step_that_fails_on_one_of_several_hosts_is_told_by_the_code() {
    let ground = Ground::new(2);
    ground.host(2).fail("host.packages", "disk_full");
    let run = ground.json(&["host", "install", "cn1", "cn2"]).ends(3);
    assert_eq!(run.end()["exit"], "some_hosts");
    // Where none is done, it is the failure's own.
    ground.host(1).fail("host.packages", "disk_full");
    let ground = Ground::new(1);
    ground.host(1).fail("host.packages", "disk_full");
    ground.run(&["host", "install", "cn1"]).ends(10);
}

#[test]
fn one_that_is_not_let_in_is_told() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let create = ground.newest();
    ground.host(1).refuse();
    ground
        .run(&["container", "stop", "web"])
        .ends(7)
        .says("is not let in");
    ground
        .run(&["op", "rollback", &create])
        .ends(7)
        .says("is not let in");
    let undo = ground.newest();
    ground.host(1).let_in(&ground.key);
    ground.run(&["op", "resume", &undo]).ends(0);
}
