//! What containers are given: with the operation that makes them or not at all, and for no longer than they are meant.

use crate::ground::Ground;

#[test]
fn what_is_refused_is_given_nothing() {
    let ground = Ground::new(1);
    // No log yet, and the host is not prepared.
    ground
        .run(&["container", "create", "web"])
        .ends(1)
        .says("host cn1 is not prepared");
    assert!(!ground.path("store").exists(), "a refusal made a store");
    ground.run(&["host", "install", "cn1"]).ends(0);
    ground
        .run(&["container", "create", "web"])
        .ends(1)
        .says("host cn1 is not prepared");
    ground.run(&["host", "prepare", "cn1"]).ends(0);
    ground
        .run(&["container", "create", "web", "--from", "nothing"])
        .ends(9);
    assert_eq!(ground.allocated(), Vec::<String>::new());
}

#[test]
fn an_allocation_is_one_append_with_the_plan_that_needs_it() {
    let ground = Ground::prepared(1);
    let output = ground
        .command(&["container", "create", "web"])
        .env("TALLYBOOK_CRASH_AT", "planned")
        .output()
        .unwrap();
    assert!(output.status.code().is_none(), "{output:?}");
    assert_eq!(ground.allocated(), ["cn1/web"]);
    // The container is claimed from the event on that gave it something: nobody can release that.
    let inventory = ground.inventory();
    let (without, _) = inventory.split_once("[containers.web]").unwrap();
    ground.set_inventory(without);
    ground.run(&["cloud", "refresh"]).ends(0).says("kept");
    ground.set_inventory(&inventory);
    let create = ground.newest();
    ground.run(&["op", "resume", &create]).ends(0);
}

#[test]
fn a_copy_that_fails_gives_back_what_it_was_given() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    ground.host(1).fail("container.publish", "host");
    let copy = ["container", "copy", "web", "--to", "cn1", "--as", "x"];
    ground.run(&copy).ends(1).says("taken back by operation");
    assert_eq!(ground.allocated(), ["cn1/web"]);
    // One that the inventory lists keeps what it was given: it is given the same again.
    ground.run(&["container", "create", "db"]).ends(1);
    assert_eq!(ground.allocated(), ["cn1/db", "cn1/web"]);
    // Taken back by hand, later, it is the same.
    let kept = [&copy[..], &["--keep-failed"]].concat();
    ground.run(&kept).ends(1);
    assert_eq!(ground.allocated(), ["cn1/db", "cn1/web", "cn1/x"]);
    let failed = ground.newest();
    ground.run(&["op", "rollback", &failed]).ends(0);
    assert_eq!(ground.allocated(), ["cn1/db", "cn1/web"]);
}

#[test]
fn the_source_of_a_copy_is_nobody_elses_meanwhile() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    ground.host(1).fail("tree.stage", "host");
    let create = [
        "container",
        "create",
        "db",
        "--from",
        "web",
        "--keep-failed",
    ];
    ground.run(&create).ends(1);
    let held = ground.newest();
    for deed in ["stop", "destroy"] {
        ground
            .run(&["container", deed, "web"])
            .ends(5)
            .says(&format!("container:cn1/web is held by operation {held}"));
    }
}
