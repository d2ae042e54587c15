//! The limits of the scan, and what it looks at besides contents.

use std::fs;
use std::path::Path;

use super::*;

const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIEogIBAAKCAQEA6yCvplantedplantedplanted\n";

fn scanned(dir: &Path, allow: &[&str]) -> Scanned {
    let source = Source {
        names: vec!["web-1".to_owned()],
        ..Source::default()
    };
    let allow: Vec<String> = allow.iter().map(|text| (*text).to_owned()).collect();
    let mut scan = Scan::new(&source, &Identity::default(), &allow).unwrap();
    let root = Root::open(dir).unwrap();
    scan.tree(&root, &mut |_, _| true).unwrap();
    scan.finish()
}

#[test]
fn what_is_allowed_takes_no_room_from_what_is_not() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    fs::create_dir_all(at("srv/a")).unwrap();
    for number in 0..FINDINGS_MAX + 3 {
        fs::write(at(&format!("srv/a/{number:04}")), "web-1\n").unwrap();
    }
    fs::write(at("srv/key.pem"), KEY).unwrap();
    let found = scanned(temp.path(), &["name"]);
    assert_eq!(
        (found.allowed.len(), found.allowed_unnamed),
        (FINDINGS_MAX, 3)
    );
    let paths: Vec<&str> = found.findings.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["/srv/key.pem"]);
    let found = scanned(temp.path(), &["private-key"]);
    assert_eq!(
        (found.findings.len(), found.findings_unnamed),
        (FINDINGS_MAX, 3)
    );
    assert_eq!(found.allowed.len(), 1);
}

#[test]
fn a_history_is_known_by_its_name() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join("root")).unwrap();
    for name in [".histfile", ".zsh_history", "histfile"] {
        fs::write(temp.path().join("root").join(name), "ls\n").unwrap();
    }
    let found = scanned(temp.path(), &[]).findings;
    let paths: Vec<&str> = found.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["/root/.histfile", "/root/.zsh_history"]);
}

#[test]
fn attributes_are_looked_at_like_contents() {
    let temp = tempfile::tempdir().unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        let path = temp.path().join(path);
        rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::CREATE).unwrap();
    };
    fs::create_dir_all(temp.path().join("srv/dir")).unwrap();
    fs::write(temp.path().join("srv/empty"), "").unwrap();
    fs::write(temp.path().join("srv/plain"), "").unwrap();
    set("srv/empty", "user.note", KEY.as_bytes());
    set("srv/dir", "user.web-1", b"x");
    set("srv/plain", "user.note", b"x");
    let found = scanned(temp.path(), &[]).findings;
    let told: Vec<_> = found
        .iter()
        .map(|it| (it.path.as_str(), it.rule.as_str()))
        .collect();
    assert_eq!(told, [("/srv/dir", "name"), ("/srv/empty", "private-key")]);
    assert!(found[1].what.ends_with("in its attribute user.note"));
}
