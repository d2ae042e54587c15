//! What differs between two states: between two points of one log, or between a fold and a stored projection.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::state::State;

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What: `host cn1`, `container cn1/web`, `template base 3`, `allocation cn1/web`, `operation …`, `claim …`.
    pub what: String,
    /// How it was, in one line; `None` when it was not there.
    pub before: Option<String>,
    /// How it is, in one line; `None` when it is not there.
    pub after: Option<String>,
}

/// Every difference from `before` to `after`, in a fixed order. The heads are not compared.
pub fn states(before: &State, after: &State) -> Vec<Difference> {
    let mut found = Vec::new();
    maps(&mut found, &before.hosts, &after.hosts, |host| {
        format!("host {host}")
    });
    maps(
        &mut found,
        &before.containers,
        &after.containers,
        |(host, container)| format!("container {host}/{container}"),
    );
    maps(
        &mut found,
        &before.templates,
        &after.templates,
        |(template, generation)| format!("template {template} generation {generation}"),
    );
    maps(
        &mut found,
        &before.allocations,
        &after.allocations,
        |(host, container)| format!("allocation {host}/{container}"),
    );
    maps(&mut found, &before.operations, &after.operations, |id| {
        format!("operation {}", id.short())
    });
    maps(&mut found, &before.claims, &after.claims, |subject| {
        format!("claim {subject}")
    });
    found
}

fn maps<K: Ord, V: PartialEq + std::fmt::Debug>(
    found: &mut Vec<Difference>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    name: impl Fn(&K) -> String,
) {
    let line = |value: &V| format!("{value:?}");
    for (key, old) in before {
        let new = after.get(key);
        if new != Some(old) {
            found.push(Difference {
                what: name(key),
                before: Some(line(old)),
                after: new.map(line),
            });
        }
    }
    for (key, new) in after {
        if !before.contains_key(key) {
            found.push(Difference {
                what: name(key),
                before: None,
                after: Some(line(new)),
            });
        }
    }
}
