//! Messages on standard error: which are shown, how, and what of them is left out.

use serde_json::Value;

use crate::ground::{Ground, Run};

fn logged(ground: &Ground, wanted: &str) -> Run {
    let mut command = ground.command(&["host", "install", "cn1", "--log-format", "json"]);
    command.env("TALLYBOOK_LOG", wanted);
    let piped = command.stdout(std::process::Stdio::piped());
    Ground::ended(piped.stderr(std::process::Stdio::piped()).spawn().unwrap())
}

/// The messages of a run, those lines left out that tell how far it is.
fn messages(run: &Run) -> Vec<Value> {
    let lines = run.stderr.lines();
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[test]
fn what_libraries_say_is_left_out_unless_they_are_named() {
    let ground = Ground::new(1);
    let run = logged(&ground, "trace").ends(0);
    let told = messages(&run);
    let targets: Vec<&str> = told
        .iter()
        .map(|line| line["target"].as_str().unwrap())
        .collect();
    assert!(
        targets
            .iter()
            .any(|target| target.starts_with("tallybook::host")),
        "{run}"
    );
    assert!(
        targets.iter().all(|target| target.starts_with("tallybook")),
        "{targets:?}"
    );
    let silent = logged(&ground, "off").ends(0);
    assert_eq!(messages(&silent), Vec::<Value>::new());
    let some = ground.run(&["-v", "host", "install", "cn1"]).ends(0);
    some.says("outcome recorded").says_nothing_of("russh");
}

#[test]
fn an_outcome_names_its_operation_step_start_and_host() {
    let ground = Ground::new(1);
    let run = logged(&ground, "info").ends(0);
    let told = messages(&run);
    let recorded = told
        .iter()
        .find(|line| line["fields"]["message"] == "outcome recorded")
        .unwrap_or_else(|| panic!("{run}"));
    let text = recorded.to_string();
    for name in ["operation", "host", "step", "attempt"] {
        assert!(
            text.contains(&format!("\"{name}\":")),
            "{name} is not in {text}"
        );
    }
}

#[test]
fn a_filter_that_can_not_be_understood_is_refused() {
    let ground = Ground::new(1);
    logged(&ground, "tallybook=loud")
        .ends(2)
        .says("TALLYBOOK_LOG is \"tallybook=loud\"");
    assert!(!ground.path("store").exists());
}
