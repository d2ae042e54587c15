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
