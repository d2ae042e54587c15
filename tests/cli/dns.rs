//! The zones of an inventory.

use crate::fixture::{Fixture, INVENTORY};
use crate::snapshot;

#[test]
fn zones() {
    let fixture = Fixture::empty();
    let inventory = format!(
        "{}
[dns]
servers = [\"cn1\"]

[zones.\"example.net\"]
nameservers = [\"ns1\"]
records = [
    {{ name = \"ns1\", type = \"A\", value = \"192.0.2.11\" }},
    {{ type = \"MX\", value = \"10 mail.example.org\", ttl = \"1h\" }},
]
",
        INVENTORY.replace(
            "template = \"base\"",
            "template = \"base\"\ndomains = [\"web.example.net\", \"web.example.com\"]"
        )
    );
    std::fs::write(fixture.path().join("cloud.toml"), inventory).unwrap();
    snapshot(
        "dns",
        &fixture,
        &[
            &["dns", "show"],
            &["dns", "show", "example.net", "--view", "outside", "--file"],
            &["dns", "show", "--format", "json"],
            &["dns", "show", "exmaple.net"],
        ],
    );
    assert!(!fixture.store().exists(), "showing made a store");
    let offered = crate::terminal::offered(&fixture, &["dns", "show", "ex"]);
    assert_eq!(offered, ["example.net: zone"]);
}
