//! Where secrets are read from, and who is told them.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::causes;
use crate::cloud::parse;

/// Why a secret can't be had from a file of this content and mode.
fn fault(content: &[u8], mode: u32) -> Option<String> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("pw");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    let text = format!("[secrets.pw]\nfile = \"{}\"\n", path.display());
    let declared = Declared::read(&parse("cloud.toml", &text).unwrap(), |_| None);
    let error = declared.unread().next()?;
    let shown = causes::in_line(&error);
    assert!(
        shown.contains("secret pw") && shown.contains(&path.display().to_string()),
        "{shown}"
    );
    Some(shown.replace(&path.display().to_string(), "PATH"))
}

#[test]
fn a_file_of_its_owner_alone_holds_a_secret() {
    assert_eq!(fault(b"hunter2\n", 0o600), None);
    assert_eq!(fault(b"hunter2\r\n", 0o400), None);
    let said = fault(b"hunter2\n", 0o640).unwrap();
    assert_eq!(
        said,
        "secret pw can't be had from the file PATH: others than its owner may use the file: its mode is 0640"
    );
    assert!(fault(b"hunter2\n", 0o604).is_some());
    for (content, why) in [
        (&b""[..], "it is empty"),
        (b"\n", "it is empty"),
        (b"12345\n", "it has 5 bytes"),
        (b"1234567\0", "NUL"),
        (&[b'x'; VALUE_LEN_MAX + 10], "more than 8192 bytes"),
    ] {
        let said = fault(content, 0o600).unwrap();
        assert!(said.contains(why), "{said}");
    }
    let largest = [&[b'x'; VALUE_LEN_MAX][..], b"\n"].concat();
    assert_eq!(fault(&largest, 0o600), None);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let pipe = temp.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    for (path, why) in [
        (&pipe, "no plain file"),
        (&temp.path().join("no"), "No such file"),
    ] {
        let text = format!("[secrets.pw]\nfile = \"{}\"\n", path.display());
        let declared = Declared::read(&parse("cloud.toml", &text).unwrap(), |_| None);
        let said = causes::in_line(&declared.unread().next().unwrap());
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn hosts_are_told_what_their_containers_name_and_no_more() {
    let text = "[secrets.a]\nenv = \"A_VALUE\"\n[secrets.b]\nenv = \"B_VALUE\"\n[secrets.c]\nenv = \"C_VALUE\"\n\
                [hosts.h1]\n[hosts.h2]\n\
                [containers.x]\nhost = \"h1\"\nprovision = [{ run = [\"true\"], secrets = [\"a\", \"c\"] }]\n\
                [containers.y]\nhost = \"h2\"\nprovision = [{ run = [\"true\"], secrets = [\"b\"] }]\n";
    let inventory = parse("cloud.toml", text).unwrap();
    let declared = Declared::read(&inventory, |name| {
        (name != "C_VALUE").then(|| format!("value of {name}").into())
    });
    let needs = declared.needs([]);
    let told = |host: &str| {
        let told = declared.told(&needs[&host.parse().unwrap()]);
        let told: Vec<String> = told.values.keys().map(ToString::to_string).collect();
        told.join(" ")
    };
    assert_eq!((told("h1").as_str(), told("h2").as_str()), ("a", "b"));
    let unread: Vec<String> = declared
        .unread()
        .map(|error| causes::in_line(&error))
        .collect();
    assert_eq!(
        unread,
        ["secret c can't be had from the variable C_VALUE: it is not set"]
    );
    assert_eq!(declared.mask().apply_text("value of B_VALUE"), "[secret b]");
}
