//! Operations on many hosts: so many at once, up to so many failures, and a row a host at the end.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::ground::{Ground, Run};

/// The row of a host.
fn row<'a>(end: &'a Value, host: &str) -> &'a Value {
    let mut rows = end["hosts"].as_array().unwrap().iter();
    rows.find(|row| row["host"] == host)
        .unwrap_or_else(|| panic!("{host} is not in {end}"))
}

#[test]
fn an_end_on_several_hosts_has_a_row_a_host() {
    let ground = Ground::new(4);
    ground.host(2).fail("host.packages", "disk_full");
    ground.host(3).set_down(true);
    let install = [
        "host",
        "install",
        "cn1",
        "cn2",
        "cn3",
        "cn4",
        "--serial",
        "1",
        "--max-fail",
        "1",
    ];
    let run = ground.json(&install).ends(3);
    let end = run.end();
    assert_eq!(end["outcome"], "failed");
    let reason = end["reasons"][0].as_str().unwrap();
    assert!(
        reason.contains("--max-fail 1") && reason.contains("not begun: cn4"),
        "{end}"
    );
    assert_eq!(
        row(&end, "cn1"),
        &json!({"host": "cn1", "status": "changed", "ok": 3, "changed": 3, "failed": 0, "in_doubt": 0, "not_begun": 0, "why": null})
    );
    let failed = row(&end, "cn2");
    assert_eq!(
        (&failed["status"], &failed["failed"]),
        (&json!("failed"), &json!(1))
    );
    assert!(
        failed["why"].as_str().unwrap().contains("was made to fail"),
        "{failed}"
    );
    let away = row(&end, "cn3");
    assert_eq!(
        (&away["status"], &away["not_begun"]),
        (&json!("unreachable"), &json!(3))
    );
    assert!(!away["why"].as_str().unwrap().is_empty());
    let untouched = row(&end, "cn4");
    assert_eq!(
        (&untouched["status"], &untouched["why"]),
        (&json!("not_begun"), &Value::Null)
    );
    assert!(ground.host(4).notes().is_empty());
    // Whoever looks later sees the same.
    let id = ground.newest();
    assert_eq!(ground.status(&id), "failed");
    let shown = ground.document(&["op", "show", &id]);
    assert_eq!(shown["hosts"], end["hosts"]);
    ground
        .run(&["op", "show", &id])
        .ends(0)
        .says("hosts: at most 1 at once, at most 1 may fail")
        .says("unreachable");
    let text = ground.run(&["op", "resume", &id, "--serial", "2"]).ends(3);
    for (host, status) in [("cn1", "changed"), ("cn2", "failed"), ("cn4", "not begun")] {
        let is_row = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some(host) && line.contains(status)
        };
        assert!(text.stdout.lines().any(is_row), "{host} {status}: {text}");
    }
    let text = text.says("HOST").says("NOT BEGUN");
    text.says("more than --max-fail 1 lets");
    ground.host(2).mend("host.packages");
    ground.host(3).set_down(false);
    let whole = ground.json(&["op", "resume", &id]).ends(0).end();
    assert!(
        whole["hosts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["status"] == "changed")
    );
}

#[test]
fn an_operation_on_one_host_has_no_rows() {
    let ground = Ground::new(1);
    let end = ground.json(&["host", "install", "cn1"]).ends(0).end();
    assert_eq!(end["hosts"], json!([]));
    let shown = ground.document(&["op", "show", &ground.newest()]);
    assert_eq!(shown["hosts"], json!([]));
}

#[test]
fn what_is_no_pace_is_refused() {
    let ground = Ground::new(2);
    for wrong in [
        ["--serial", "0"],
        ["--max-fail", "101%"],
        ["--max-fail", "some"],
    ] {
        let arguments = [&["host", "install", "cn1", "cn2"][..], &wrong[..]].concat();
        ground.run(&arguments).ends(2);
    }
}

/// When all are away the code says so, although it ends as failed.
#[test]
fn too_many_that_are_away_end_with_their_code() {
    let ground = Ground::new(2);
    for host in ground.hosts() {
        host.set_down(true);
    }
    let install = [
        "host",
        "install",
        "cn1",
        "cn2",
        "--serial",
        "1",
        "--max-fail",
        "0",
    ];
    let run = ground.json(&install).ends(6);
    assert_eq!(run.end()["outcome"], "failed");
    let attached = ground.json(&["op", "show", &ground.newest()]).ends(0);
    attached.says("--max-fail 0");
}

/// The program with these arguments, where a limit is set on the files that it may have open.
fn limited(ground: &Ground, limit: &str, arguments: &[&str]) -> Run {
    let program = ground.command(arguments);
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(program.get_current_dir().unwrap())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let variables: BTreeMap<_, _> = program.get_envs().collect();
    for (name, value) in variables {
        command.env(name, value.unwrap());
    }
    Ground::ended(command.spawn().unwrap())
}

/// It has no more sessions open at once than may be, and no more than it says that it needs: the kernel counts.
#[test]
fn two_hundred_hosts_need_no_more_descriptors_than_sixty_four() {
    let ground = Ground::new(200);
    let names: Vec<String> = (1..=200).map(|number| format!("cn{number}")).collect();
    let mut install = vec!["--format", "json", "host", "install"];
    install.extend(names.iter().map(String::as_str));
    let run = limited(&ground, "-n 160", &install).ends(0);
    let end = run.end();
    assert_eq!(end["hosts"].as_array().unwrap().len(), 200);
    // A soft limit that is lower than that is raised, and nothing is said.
    install[3] = "prepare";
    let run = limited(&ground, "-Sn 70", &install).ends(0);
    run.says_nothing_of("ulimit");
}

#[test]
fn a_limit_that_is_too_low_is_told() {
    let ground = Ground::new(2);
    limited(&ground, "-n 70", &["host", "install", "cn1", "cn2"])
        .ends(0)
        .says("this process may have 70 files open")
        .says("ulimit -n");
}
