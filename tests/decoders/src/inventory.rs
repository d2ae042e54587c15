//! What operators write: `cloud.toml`, limits, names and numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::str::FromStr;

use tallybook::cloud::limit::{Limit, Selection};
use tallybook::cloud::network::{CardMac, MacPrefix, PortRange, Subnet};
use tallybook::cloud::{self, Inventory};
use tallybook::render::time::Time;
use tallybook_agent::network::{Bridge, Domain, Gateway};
use tallybook_agent::packages::Package;
use tallybook_events::allocation::Mac;
use tallybook_events::ids::{Hash, OperationId};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;

use crate::memory::bounded;
use crate::{chosen, part};

/// One of the decoders.
pub fn run(bytes: &[u8]) {
    let Some((which, mut bytes)) = chosen(bytes) else {
        return;
    };
    match which % 4 {
        0 => drop(compiled(&String::from_utf8_lossy(bytes))),
        1 => limited(&String::from_utf8_lossy(bytes)),
        2 => {
            let limit = String::from_utf8_lossy(part(&mut bytes)).into_owned();
            if let Some(inventory) = compiled(&String::from_utf8_lossy(bytes))
                && let Ok(limit) = Limit::parse(&limit)
                && let Ok(selection) = limit.select(&inventory)
            {
                assert!(
                    !selection.is_empty(),
                    "a limit that leaves nothing is an error"
                );
            }
        }
        _ => names(&String::from_utf8_lossy(bytes)),
    }
}

fn compiled(text: &str) -> Option<Inventory> {
    let parsed = bounded(text.len(), || cloud::parse("cloud.toml", text));
    let inventory = match parsed {
        Ok(inventory) => inventory,
        Err(diagnostics) => {
            let lines = text.lines().count() + 1;
            assert!(!diagnostics.as_slice().is_empty());
            assert!(
                diagnostics
                    .as_slice()
                    .iter()
                    .all(|found| found.line <= lines)
            );
            assert!(!diagnostics.to_string().is_empty());
            return None;
        }
    };
    assert_eq!(
        format!(
            "{:?}",
            cloud::parse("cloud.toml", text).expect("it was read before")
        ),
        format!("{inventory:?}"),
        "the same text is the same inventory"
    );
    let everything = Selection::everything(&inventory);
    let (none, nowhere) = (BTreeMap::new(), BTreeSet::new());
    if let Ok(compiled) = cloud::compile(&inventory, &none, &nowhere, &everything, &samples::log())
    {
        let addresses: BTreeSet<_> = compiled
            .entries
            .values()
            .map(|entry| entry.allocation.address)
            .collect();
        assert!(addresses.len() <= compiled.entries.len());
    }
    Some(inventory)
}

fn limited(text: &str) {
    match bounded(text.len(), || Limit::parse(text)) {
        Ok(limit) => drop(format!("{limit:?}")),
        Err(diagnostics) => assert!(!diagnostics.to_string().is_empty()),
    }
}

/// A text that is taken is shown as itself, or as one that means the same.
fn same<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<String> {
    let value: T = text.parse().ok()?;
    let shown = value.to_string();
    let read = shown.parse::<T>();
    assert!(
        read.is_ok_and(|read| read == value),
        "{text:?} is shown as {shown:?}"
    );
    Some(shown)
}

fn names(text: &str) {
    for shown in [
        same::<HostName>(text),
        same::<ContainerName>(text),
        same::<TemplateName>(text),
        same::<Subject>(text),
        same::<Package>(text),
        same::<Bridge>(text),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(shown, text, "a name has one form");
    }
    same::<OperationId>(text);
    same::<Hash>(text);
    same::<Mac>(text);
    same::<Gateway>(text);
    same::<Domain>(text);
    same::<Subnet>(text);
    same::<MacPrefix>(text);
    same::<PortRange>(text);
    drop(text.parse::<CardMac>());
    drop(text.parse::<Time>());
    for shown in tallybook::cli::fuzzing::arguments(text) {
        let _again = tallybook::cli::fuzzing::arguments(&shown);
    }
}
