//! `rollback --to`: what was begun since a point is shown, asked about, and taken back as one.

use serde_json::Value;

use crate::ground::Ground;

fn newest_event(ground: &Ground) -> String {
    let state = ground.document(&["state"]);
    state["head"]["seq"].to_string()
}

fn containers(ground: &Ground) -> Vec<String> {
    let list = ground.document(&["container", "list"]);
    let names = list.as_array().unwrap().iter();
    names
        .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn texts(list: &Value, field: &str) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one[field].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn everything_since_is_shown_and_then_taken_back_as_one() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let web = ground.newest();
    let to = newest_event(&ground);
    let copy = ["container", "copy", "web", "--to", "cn1", "--as", "new"];
    ground.run(&copy).ends(0);
    ground.run(&["container", "stop", "web"]).ends(0);
    ground.run(&["container", "exec", "web", "--", "true"]);
    assert_eq!(ground.allocated(), ["cn1/new", "cn1/web"]);
    let before = ground.host(1).notes();

    let plan = ground.document(&["rollback", "--to", &to, "--dry-run"]);
    assert_eq!(plan["intent"], format!("rollback --to {to}"));
    assert_eq!(
        texts(&plan["takes_back"], "intent")[1],
        "container copy cn1/web --to cn1 --as new"
    );
    assert_eq!(
        texts(&plan["takes_back"], "intent")[0],
        "container stop cn1/web"
    );
    assert_eq!(
        texts(&plan["stays"], "why"),
        ["a session in a container is not undone"]
    );
    let by_operation = ground.document(&["rollback", "--to", &web, "--dry-run"]);
    assert_eq!(by_operation["steps"], plan["steps"]);
    // Nobody is there to be asked, and nothing was done.
    ground
        .run(&["rollback", "--to", &to])
        .ends(2)
        .says("stays: operation")
        .says("--yes does it without asking");
    ground.json(&["rollback", "--to", &to]).ends(2);
    assert_eq!(ground.host(1).notes(), before);

    let run = ground.run(&["rollback", "--to", &to, "--yes"]).ends(0);
    let run = run
        .says("container copy cn1/web --to cn1 --as new")
        .says(&format!("rollback --to {to} succeeded"));
    drop(run.says("kept: "));
    assert_eq!(ground.allocated(), ["cn1/web"]);
    assert_eq!(containers(&ground), ["web"]);
    let undo = ground.newest();
    let shown = ground.document(&["op", "show", &undo]);
    assert_eq!(shown["intent"], format!("rollback --to {to}"));
    let list = ground.document(&["op", "list", "--all"]);
    let statuses = texts(&list, "status");
    assert_eq!(
        statuses
            .iter()
            .filter(|status| *status == "rolled_back")
            .count(),
        2
    );
    ground.run(&["verify"]).ends(0);
    ground
        .run(&["rollback", "--to", &to, "--yes"])
        .ends(0)
        .says("nothing to do");
    ground
        .run(&["op", "rollback", &undo])
        .ends(1)
        .says("is a rollback");
}

#[test]
fn half_way_there_are_ways_out_of_it() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    let to = newest_event(&ground);
    ground.run(&["container", "create", "web"]).ends(0);
    let web = ground.newest();
    ground.run(&["container", "create", "db"]).ends(0);
    let db = ground.newest();
    host.fail("undo-container.build", "host");
    ground
        .run(&["rollback", "--to", &to, "--yes"])
        .ends(1)
        .says("op resume");
    let undo = ground.newest();
    for id in [&web, &db] {
        assert_eq!(ground.status(id), "rolling_back");
        let by = format!("is being taken back by operation {undo}");
        ground.run(&["op", "rollback", id]).ends(5).says(&by);
        ground.run(&["op", "resume", id]).ends(5).says(&by);
    }
    ground
        .run(&["rollback", "--to", &to, "--yes"])
        .ends(5)
        .says(&format!("is being taken back by operation {undo}"));
    let next = ground.document(&["op", "show", &undo])["next"].clone();
    let commands = texts(&next, "command");
    assert_eq!(
        commands,
        [
            format!("tallybook op resume {undo}"),
            format!("tallybook op abandon {undo} --reason TEXT"),
        ]
    );
    let next = ground.document(&["op", "show", &web])["next"].clone();
    assert_eq!(
        texts(&next, "command")[0],
        format!("tallybook op retry-undo {web}")
    );
    host.mend("undo-container.build");
    ground.run(&["op", "retry-undo", &web]).ends(0);
    assert_eq!(ground.status(&web), "rolled_back");
    assert_eq!(ground.status(&db), "rolled_back");
    ground.run(&["verify"]).ends(0);
}

#[test]
fn what_can_not_be_undone_is_said_and_what_is_not_done_is_not_gone_back_to() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let to = newest_event(&ground);
    ground.run(&["container", "stop", "web"]).ends(0);
    ground.run(&["container", "destroy", "web"]).ends(0);
    let run = ground.run(&["rollback", "--to", &to, "--dry-run"]).ends(0);
    let run = run.says("(container destroy cn1/web): ");
    drop(run.says("undo: stop web"));
    host.fail("container.publish", "host");
    ground.run(&["container", "create", "web", "--keep-failed"]);
    let failed = ground.newest();
    ground
        .run(&["rollback", "--to", &failed, "--dry-run"])
        .ends(1)
        .says("is not done, so there is no state just after it");
    ground
        .run(&["rollback", "--to", "99999", "--dry-run"])
        .ends(9);
    host.mend("container.publish");
    ground.run(&["rollback", "--to", &to, "--yes"]).ends(0);
    assert_eq!(ground.status(&failed), "rolled_back");
}

#[test]
fn what_an_older_one_holds_is_waited_for_where_that_is_wanted() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let create = ground.newest();
    let to = newest_event(&ground);
    ground.run(&["container", "stop", "web"]).ends(0);
    host.fail("undo-container.build", "host");
    ground.run(&["op", "rollback", &create]).ends(1);
    let undo = ground.newest();
    let held = format!("container:cn1/web is held by operation {undo}");
    ground
        .run(&["rollback", "--to", &to, "--yes"])
        .ends(5)
        .says(&held);
    ground
        .run(&["rollback", "--to", &to, "--yes", "--wait=200ms"])
        .ends(5)
        .says(&held);
    ground
        .run(&["op", "abandon", &undo, "--reason", "not now"])
        .ends(0);
    ground
        .run(&["rollback", "--to", &to, "--yes", "--wait=20s"])
        .ends(0);
}
