//! Keys of hosts and of jump hosts: shown, compared, taken in; and never called known on a guess.

use std::os::unix::fs::PermissionsExt;

use crate::ground::Ground;
use crate::sshd::new_key;

/// The fingerprint that a run shows.
fn fingerprint(text: &str) -> String {
    let start = text.find("SHA256:").unwrap();
    let rest = &text[start..];
    let end = rest.find(|c: char| c.is_whitespace() || c == '"');
    rest[..end.unwrap_or(rest.len())].to_owned()
}

#[test]
fn a_key_is_taken_in_once_it_was_compared() {
    let ground = Ground::new(1);
    ground
        .run(&["host", "trust", "cn1"])
        .ends(0)
        .says("is known already");
    ground.trust_nobody();
    let trust = ["host", "trust", "cn1"];
    ground
        .run(&["host", "install", "cn1"])
        .ends(7)
        .says("`tallybook host trust cn1`");
    let shown = ground.json(&trust).ends(7).end();
    assert_eq!(shown["key"], "unknown");
    assert_eq!(shown["code"], 7);
    let print = shown["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(fingerprint(&ground.run(&trust).ends(7).stdout), print);
    let wrong = ground.json(&[&trust[..], &["--fingerprint", "SHA256:AAAA"]].concat());
    assert_eq!(wrong.ends(7).end()["key"], "another");
    let right = ground.json(&[&trust[..], &["--fingerprint", &print]].concat());
    assert_eq!(right.ends(0).end()["key"], "accepted");
    assert_eq!(ground.json(&trust).ends(0).end()["key"], "known");
    // One that does not let us in has proved who it is.
    ground.host(1).refuse();
    ground
        .run(&trust)
        .ends(0)
        .says("is known already")
        .says("is not let in");
    ground.host(1).set_down(true);
    ground.run(&trust).ends(6).says_nothing_of("known already");
    ground.host(1).set_down(false);
    ground.host(1).change_key();
    ground
        .run(&trust)
        .ends(7)
        .says("CHANGED")
        .says_nothing_of("known already");
}

#[test]
fn a_configuration_that_can_not_be_used_says_nothing_of_keys() {
    let ground = Ground::new(1);
    let ssh = ground.path("bin/ssh");
    for script in [
        "echo 'proxycommand nc %h %p'",
        "echo 'no such option' >&2; exit 255",
    ] {
        std::fs::write(&ssh, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o700)).unwrap();
        ground
            .run(&["host", "trust", "cn1"])
            .ends(1)
            .says("SSH configuration could not be resolved")
            .says_nothing_of("known");
    }
}

#[test]
fn hosts_on_the_way_are_trusted_one_by_one_and_have_keys_of_their_own() {
    let ground = Ground::new(2);
    // The gate lets in another key than the host behind it.
    let gate = new_key();
    ground.write_key("home/.ssh/gate", &gate);
    ground.host(1).let_in(&gate);
    let inventory = ground.inventory();
    let inventory = inventory
        .replacen(
            "user = \"root\"\n",
            "user = \"root\"\nidentity = \"~/.ssh/gate\"\n",
            1,
        )
        .replace("[hosts.cn2]\n", "[hosts.cn2]\njump = \"cn1\"\n");
    ground.set_inventory(&inventory);
    ground.run(&["host", "install", "cn2"]).ends(0);
    ground.trust_nobody();
    ground
        .run(&["host", "install", "cn2"])
        .ends(7)
        .says("its jump host cn1 could not be used")
        .says("`tallybook host trust cn2`");
    let trust = ["host", "trust", "cn2"];
    let shown = ground.json(&trust).ends(7).end();
    assert_eq!(shown["of"], "cn1");
    let print = shown["fingerprint"].as_str().unwrap().to_owned();
    let lines = ground
        .json(&[&trust[..], &["--fingerprint", &print]].concat())
        .ends(7)
        .lines();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (&line["of"], &line["key"]))
        .collect();
    assert_eq!(
        told,
        [
            (&"cn1".into(), &"accepted".into()),
            (&"cn2".into(), &"unknown".into())
        ]
    );
    let print = lines[1]["fingerprint"].as_str().unwrap().to_owned();
    ground
        .run(&[&trust[..], &["--fingerprint", &print]].concat())
        .ends(0);
    ground.run(&["host", "install", "cn2"]).ends(0);
    // What befalls the gate befalls what is behind it.
    ground.host(1).set_down(true);
    ground.run(&["host", "install", "cn2"]).ends(6);
    ground.host(1).set_down(false);
    ground.host(1).change_key();
    ground
        .run(&["host", "install", "cn2"])
        .ends(7)
        .says("CHANGED");
}
