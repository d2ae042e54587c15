//! Provisioning with secrets: which of them a command gets, and that no argument shows one.

use tallybook_agent::step::Step;
use tallybook_agent::steps::container_provision::Command;
use tallybook_agent::steps::container_provision_2::ContainerProvision2;
use tallybook_agent::steps::container_start::ContainerStart;

use crate::played::{created, host, name};

#[test]
fn a_secret_is_named_to_lxc_and_is_no_argument() {
    let dir = tempfile::tempdir().unwrap();
    let layout = host(dir.path());
    let mut operation = created(&layout, 1);
    let start = ContainerStart { container: name() };
    operation.forward(4, &start).unwrap();
    let provision = ContainerProvision2 {
        container: name(),
        entry: 0,
        command: Command::Script("true\n".to_owned()),
        secrets: vec!["db_password".parse().unwrap(), "token".parse().unwrap()],
        timeout_s: 60,
    };
    operation.forward(5, &provision).unwrap();
    let attach = operation
        .link
        .ran
        .iter()
        .position(|argv| argv[0] == "lxc-attach");
    let attach = attach.unwrap();
    let argv = operation.link.ran[attach].join(" ");
    let kept = "--keep-var DB_PASSWORD --keep-var TOKEN -- /bin/sh -s";
    assert!(
        argv.contains("--clear-env") && argv.ends_with(kept),
        "{argv}"
    );
    assert_eq!(operation.link.given[attach], provision.secrets());
    // The same without: nothing is given to a command that names nothing.
    let given: usize = operation.link.given.iter().map(Vec::len).sum();
    assert_eq!(given, 2);
}
