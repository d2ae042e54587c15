//! Secrets that the controller tells: what the agent keeps and says is without them, from its receipts to its last word.

use std::collections::BTreeMap;

use tallybook_agent::protocol::{Reply, Request, SecretsTold};
use tallybook_agent::secret::{Secret, SecretName};

use crate::host::*;

const VALUE: &str = "Tr0ub4dor&3";

fn told() -> Request {
    let name = SecretName::new("db_password").unwrap();
    let value = Secret::new(VALUE.as_bytes().to_vec());
    Request::Secrets(SecretsTold {
        values: BTreeMap::from([(name, value)]),
    })
}

#[test]
fn what_programs_print_is_told_and_kept_without_secrets() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.say(&told());
    // To both streams, on one of them in two pieces.
    let script = "echo \"one $1\"; printf %s \"${1%??????}\" >&2; sleep 0.05; echo between; echo \"${1#?????} two\" >&2";
    let argv = ["sh", "-c", script, "sh", VALUE].map(str::to_owned);
    let argv = argv.to_vec();
    agent.run(vec![
        act(0, Deed::Run(argv)),
        act(1, Deed::Say(VALUE.to_owned())),
    ]);
    let phase = agent.finished();
    let captured = &done(&phase).captured[0];
    let text = captured.text.to_string();
    assert!(text.contains("one [secret db_password]\n"), "{text}");
    assert!(text.contains("[secret db_password] two\n"), "{text}");
    assert!(
        captured.command.ends_with(" sh [secret db_password]"),
        "{}",
        captured.command
    );
    let Reply::Started(_) = agent.hear() else {
        panic!()
    };
    let Reply::Progress { what, .. } = agent.hear() else {
        panic!()
    };
    assert_eq!(what, "at [secret db_password]");
    let phase = agent.finished();
    let failure = failed(&phase);
    assert_eq!(failure.message, "wrong: [secret db_password]");
    assert_eq!(failure.hint.as_deref(), Some("not [secret db_password]"));
    agent.unstarted();
    assert!(agent.end());
    let kept = format!("{:?}", host.report());
    assert!(kept.contains("[secret db_password]"), "{kept}");
    let mut places = vec![host.layout.state.clone()];
    let mut files = 0;
    while let Some(place) = places.pop() {
        if place.is_dir() {
            places.extend(
                std::fs::read_dir(&place)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let bytes = std::fs::read(&place).unwrap();
        files += 1;
        for part in ["Tr0ub", "4dor&3"] {
            let mut windows = bytes.windows(part.len());
            assert!(
                !windows.any(|window| window == part.as_bytes()),
                "{part} is in {}",
                place.display()
            );
        }
    }
    assert!(files > 0);
}

#[test]
fn what_is_told_anew_replaces_what_was_told_and_what_shows_is_nothing() {
    let request = told();
    assert!(!format!("{request:?}").contains("Tr0ub"));
    let host = Host::new();
    let mut agent = host.agent();
    agent.say(&request);
    agent.say(&Request::Secrets(SecretsTold::default()));
    agent.run(vec![act(
        0,
        Deed::Run(vec!["echo".to_owned(), VALUE.to_owned()]),
    )]);
    let phase = agent.finished();
    assert_eq!(
        done(&phase).captured[0].text.to_string(),
        format!("{VALUE}\n")
    );
    agent.unstarted();
    assert!(agent.end());
}
