//! Twenty terminals against one store: nothing is lost, nothing is done twice, and who only reads waits for nobody.

use std::process::{Child, Stdio};

use crate::ground::{Ground, Run};

const MORE: &str = r#"
[containers.c1]
host = "cn1"
[containers.c2]
host = "cn2"
[containers.c3]
host = "cn1"
[containers.c4]
host = "cn2"
[containers.c5]
host = "cn1"
[containers.c6]
host = "cn2"
"#;

fn start(ground: &Ground, arguments: &[&str]) -> Child {
    let mut command = ground.command(arguments);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

fn ended(terminals: Vec<Child>) -> Vec<Run> {
    terminals.into_iter().map(Ground::ended).collect()
}

#[test]
fn twenty_at_once_lose_nothing_and_do_nothing_twice() {
    let ground = Ground::prepared(2);
    ground.set_inventory(&format!("{}{MORE}", ground.inventory()));
    for container in ["web", "db"] {
        ground.run(&["container", "create", container]).ends(0);
    }
    let begun = |ground: &Ground| ground.host(1).notes().len();
    let before = begun(&ground);

    // Whoever starts something waits, while everybody else comes.
    ground.host(1).hold("container.start");
    let each = |names: &[&str], deed: &dyn Fn(&str) -> Child| -> Vec<Child> {
        names.iter().map(|name| deed(name)).collect()
    };
    let containers = ["c1", "c2", "c3", "c4", "c5", "c6"];
    let creating = each(&containers, &|name| {
        start(&ground, &["container", "create", name])
    });
    let waiting = each(&["web"; 5], &|name| {
        start(&ground, &["container", "restart", name, "--wait"])
    });
    let refused = each(&["db"; 5], &|name| {
        start(&ground, &["container", "restart", name])
    });
    ground.host(1).until_noted("waits: ");
    let reading = [
        start(&ground, &["op", "list", "--all"]),
        start(&ground, &["container", "list"]),
        start(&ground, &["log"]),
        start(&ground, &["state"]),
    ];
    // They end although nothing that acts on cn1 can.
    for run in ended(reading.into()) {
        run.ends(0);
    }
    ground.host(1).release("container.start");

    for run in ended(creating).into_iter().chain(ended(waiting)) {
        run.ends(0);
    }
    let refused = ended(refused);
    let done = refused.iter().filter(|run| run.code == 0).count();
    assert!(done > 0, "somebody is always first");
    for run in refused.into_iter().filter(|run| run.code != 0) {
        drop(run.ends(5).says("container:cn1/db is held by operation"));
    }

    let list = ground.document(&["op", "list", "--all"]);
    let of = |intent: &str| {
        let operations = list.as_array().unwrap().iter();
        let of_it = operations.filter(|one| one["intent"].as_str().unwrap().starts_with(intent));
        let of_it: Vec<_> = of_it.map(|one| one["status"].as_str().unwrap()).collect();
        assert!(of_it.iter().all(|status| *status == "succeeded"), "{list}");
        of_it.len()
    };
    assert_eq!(of("container create c"), containers.len());
    assert_eq!(of("container restart cn1/web"), 5);
    assert_eq!(of("container restart cn1/db"), done);
    // By what the hosts noted: each step once.
    let notes: Vec<String> = ground.host(1).notes().split_off(before);
    let noted = |text: &str| notes.iter().filter(|line| *line == text).count();
    assert_eq!(noted("start web"), 5);
    assert_eq!(noted("start db"), done);
    for name in ["c1", "c3", "c5"] {
        assert_eq!(noted(&format!("start {name}")), 1, "{notes:#?}");
    }
    ground.run(&["verify"]).ends(0);
}
