//! What others did on hosts: told as drift, set aside or taken over by who says why, and looked for by `host check`.

use serde_json::Value;

use crate::ground::Ground;

fn found(checked: &Value, what: &str) -> (String, Option<String>) {
    let mut all = checked["checked"].as_array().unwrap().iter();
    let one = all
        .find(|one| one["what"].as_str().unwrap().starts_with(what))
        .unwrap_or_else(|| panic!("nothing of {what} in {checked}"));
    let detail = one["detail"].as_str().map(str::to_owned);
    (one["found"].as_str().unwrap().to_owned(), detail)
}

fn commands(ground: &Ground, id: &str) -> Vec<String> {
    let next = ground.document(&["op", "show", id])["next"].clone();
    let next = next.as_array().unwrap().iter();
    next.map(|way| way["command"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_in_the_way_is_set_aside_by_who_says_why() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.intrude("container.publish", "of others");
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(8);
    let create = ground.newest();
    let ways = commands(&ground, &create);
    assert_eq!(
        ways[1..3],
        [
            format!("tallybook op resume --force --reason TEXT {create}"),
            format!("tallybook op adopt {create} --reason TEXT"),
        ]
    );
    ground.run(&["op", "resume", &create]).ends(8);
    ground.run(&["op", "resume", "--force", &create]).ends(2);
    ground
        .run(&["op", "resume", "--reason", "why", &create])
        .ends(2);
    assert_eq!(host.intruder("container.publish").unwrap(), "of others");
    ground
        .run(&[
            "op",
            "resume",
            "--force",
            "--reason",
            "made by hand",
            &create,
        ])
        .ends(0);
    assert_eq!(host.intruder("container.publish"), None);
    ground
        .run(&["log", "--kind", "step.forced"])
        .ends(0)
        .says("what is in the way is set aside: made by hand");
    ground
        .run(&["op", "show", "--output", &create])
        .ends(0)
        .says("is set aside as ");
    ground.run(&["op", "rollback", &create]).ends(0);
    assert_eq!(host.intruder("container.publish").unwrap(), "of others");
    ground.run(&["verify"]).ends(0);
}

#[test]
fn what_is_there_is_taken_over_by_who_says_why() {
    let ground = Ground::prepared(1);
    let host = ground.host(1);
    host.intrude("container.publish", "of others");
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(8);
    let create = ground.newest();
    ground.run(&["op", "adopt", &create]).ends(2);
    let refused = ground.run(&["op", "adopt", &create, "--reason", "it will do"]);
    drop(
        refused
            .ends(11)
            .says("it is not what is wanted (foreign-container.publish is of others)"),
    );
    host.intrude("container.publish", "wanted");
    let adopted = ground.document(&["op", "adopt", &create, "--reason", "it will do"]);
    assert_eq!(adopted["outcome"], "adopted");
    let steps = adopted["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0]["what"], "put web in place");
    assert!(!steps[0]["facts"].as_array().unwrap().is_empty());
    let shown = ground.document(&["op", "show", &create]);
    let shown = shown["steps"].as_array().unwrap().iter();
    let shown = shown.filter(|step| step["status"] == "adopted");
    assert_eq!(shown.count(), 1);
    ground
        .run(&["op", "adopt", &create, "--reason", "again"])
        .ends(1);
    ground.run(&["op", "resume", &create]).ends(0);
    ground
        .run(&["log", "--kind", "step.adopted"])
        .ends(0)
        .says("what is there is taken over: it will do");
    ground
        .run(&["why", "web"])
        .ends(0)
        .says("container create web");
    ground
        .run(&["op", "rollback", &create])
        .ends(0)
        .says("kept: put web in place: what is there was taken over");
    assert_eq!(host.intruder("container.publish").unwrap(), "wanted");
    ground.run(&["verify"]).ends(0);
}

#[test]
fn hosts_are_held_against_the_log() {
    let ground = Ground::prepared(2);
    let host = ground.host(1);
    ground.run(&["container", "create", "web"]).ends(0);
    ground.run(&["container", "create", "db"]).ends(0);
    ground.run(&["container", "stop", "web"]).ends(0);
    let before = (host.notes(), ground.document(&["state"])["head"].clone());
    let checked = ground.document(&["host", "check", "cn1", "cn2"]);
    for what in [
        "make the bridge",
        "put web in place",
        "stop web",
        "start db",
        "reserve",
    ] {
        assert_eq!(
            found(&checked, what),
            ("as_recorded".to_owned(), None),
            "{what}"
        );
    }
    let steps = checked["checked"].as_array().unwrap();
    let what = |what: &str| steps.iter().any(|one| one["what"] == what);
    assert!(!what("start web"), "it was stopped since");
    assert!(steps.iter().any(|one| one["host"] == "cn2"));

    host.intrude("host.nftables", "of others");
    let drifted = ground.json(&["host", "check", "cn1", "cn2"]).ends(11);
    let drifted: Value = serde_json::from_str(&drifted.stdout).unwrap();
    assert_eq!(drifted["exit"], "drift");
    let (is, detail) = found(&drifted, "forward ports to containers");
    assert_eq!(
        (is.as_str(), detail.as_deref()),
        ("drift", Some("foreign-host.nftables is of others"))
    );
    assert_eq!(found(&drifted, "make the bridge").0, "as_recorded");
    ground
        .run(&["host", "check", "cn1"])
        .ends(11)
        .says("1 drifted; nothing was changed");
    assert_eq!(
        before,
        (host.notes(), ground.document(&["state"])["head"].clone())
    );
    assert_eq!(host.intruder("host.nftables").unwrap(), "of others");

    // What was destroyed, or is not done, is not claimed to be there.
    ground.run(&["container", "destroy", "web"]).ends(0);
    host.fail("container.stop", "host");
    ground.run(&["container", "stop", "db"]).ends(1);
    let checked = ground.json(&["host", "check", "cn1"]).ends(11);
    let checked: Value = serde_json::from_str(&checked.stdout).unwrap();
    let of_web = |one: &&Value| one["subject"] == "container:cn1/web";
    assert_eq!(
        checked["checked"]
            .as_array()
            .unwrap()
            .iter()
            .filter(of_web)
            .count(),
        0
    );
    let (is, why) = found(&checked, "stop db");
    assert_eq!(is, "unknown");
    assert!(why.unwrap().ends_with("is failed"));
    ground.run(&["host", "check", "cn9"]).ends(9);
}
