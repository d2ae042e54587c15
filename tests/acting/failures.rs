//! Steps that fail: what is taken back, what stays, and what the last word says.

use tallybook_testkit::files::position;

use crate::ground::Ground;

#[test]
fn what_can_not_be_taken_back_either_ends_with_75_and_says_so_last() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.fail("container.publish", "disk_full");
    host.fail("undo-container.build", "host");
    let run = ground.json(&["container", "create", "web"]).ends(75);
    let ends: Vec<_> = run
        .lines()
        .into_iter()
        .filter(|line| line["outcome"].is_string())
        .collect();
    assert_eq!(ends.len(), 2, "{run}");
    assert_eq!(ends[0]["exit"], "disk_full");
    assert_eq!(ends[1]["exit"], "interrupted");
    assert_eq!(ends[1]["code"], 75);
    let undo = ground.newest();
    let hints = ends[1]["hints"].to_string();
    assert!(
        hints.contains(&format!("tallybook op resume {undo}")),
        "{hints}"
    );
    host.mend("undo-container.build");
    ground.run(&["op", "resume", &undo]).ends(0);
    // The failure's own code, when it was taken back.
    let end = ground.json(&["container", "create", "web"]).ends(10).end();
    assert_eq!(end["exit"], "disk_full");
    assert!(end["rolled_back_by"].is_string());
}

#[test]
fn no_secret_of_a_dying_agent_is_shown_or_recorded() {
    let ground = Ground::new(1);
    ground
        .host(1)
        .die_saying("panicked: password=hunter2 in a line\n");
    let run = ground.run(&["-vv", "host", "install", "cn1"]).ends(6);
    let run = run
        .says("password=[removed] in a line")
        .says_nothing_of("hunter2");
    drop(run);
    let log = ground.json(&["log"]).ends(0);
    let install = ground.newest();
    let shown = ground.run(&["op", "show", &install]).ends(0);
    log.says_nothing_of("hunter2");
    shown.says_nothing_of("hunter2");
    for file in std::fs::read_dir(ground.path("store/journal")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(position(&bytes, b"hunter2").is_none());
    }
}
