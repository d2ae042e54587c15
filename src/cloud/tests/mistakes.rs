//! A corpus of bad inventories, and exactly what is said about each.

use crate::cloud::parse;

const CASES: &[(&str, &str)] = &[];

#[test]
fn every_mistake_is_named_with_its_place() {
    for (text, expected) in CASES {
        let shown = match parse("cloud.toml", text) {
            Ok(_) => "taken".to_owned(),
            Err(diagnostics) => diagnostics.to_string(),
        };
        assert_eq!(shown, expected.trim(), "in:\n{text}");
    }
}
