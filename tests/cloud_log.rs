//! Allocation through the log: many at once never give one thing to two.

use std::collections::BTreeSet;
use std::path::Path;

use tallybook::cloud::{Inventory, Limit, Selection, parse};
use tallybook::cloud_log::{self, Error};
use tallybook::log::{Log, Open};
use tallybook_events::ids::Seq;
use tallybook_replay::state::State;

/// An inventory with containers of these names, all on one host and all with a port.
fn inventory(names: &[String]) -> (String, Inventory) {
    let mut text = "[network]\nsubnet = \"10.5.0.0/24\"\n[hosts.cn1]\n".to_owned();
    for name in names {
        text.push_str(&format!(
            "[containers.{name}]\nhost = \"cn1\"\nforward_ssh = true\n"
        ));
    }
    let inventory = parse("cloud.toml", &text).unwrap();
    (text, inventory)
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number}"))
        .collect()
}

fn only(inventory: &Inventory, name: &str) -> Selection {
    Limit::parse(name).unwrap().select(inventory).unwrap()
}

#[track_caller]
fn nothing_is_shared(state: &State, expected: usize) {
    let all = state.allocations.values();
    let addresses: BTreeSet<_> = all.clone().map(|one| one.address).collect();
    let macs: BTreeSet<_> = all.clone().map(|one| one.mac).collect();
    let ports: BTreeSet<_> = all.map(|one| one.forwards[0].host_port).collect();
    assert_eq!(state.allocations.len(), expected);
    assert_eq!(
        (addresses.len(), macs.len(), ports.len()),
        (expected, expected, expected)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_that_allocate_at_once_share_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(&directory.path().join("store"), Open::Create, |_| ())
        .await
        .unwrap();
    let names = names("c", 12);
    let (text, inventory) = inventory(&names);
    let mut tasks = tokio::task::JoinSet::new();
    for name in names {
        let (log, text, inventory) = (log.clone(), text.clone(), inventory.clone());
        tasks.spawn(async move {
            let selection = only(&inventory, &name);
            let path = Path::new("cloud.toml");
            cloud_log::refresh(&log, path, &text, &inventory, &selection)
                .await
                .map(|_| ())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let state = log.state().await.unwrap();
    nothing_is_shared(&state, 12);
    // One inventory, recorded once, however many came with it.
    assert_eq!(state.inventory.unwrap().0, Seq(2));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_inventories_that_know_nothing_of_each_other_share_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(&directory.path().join("store"), Open::Create, |_| ())
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for prefix in ["a", "b"] {
        let log = log.clone();
        tasks.spawn(async move {
            for number in 1..=8 {
                // Each knows its own containers only; what the other one has is held by the log.
                let (text, inventory) = inventory(&names(prefix, number));
                let selection = only(&inventory, &format!("{prefix}{}", number - 1));
                let path = Path::new("cloud.toml");
                let done = cloud_log::refresh(&log, path, &text, &inventory, &selection).await;
                match done {
                    Ok(_) => {}
                    // Giving up is an answer; sharing is not.
                    Err(Error::InventoryReplaced { .. } | Error::Contended(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let state = log.state().await.unwrap();
    let count = state.allocations.len();
    assert!(count > 8, "only {count} were allocated");
    nothing_is_shared(&state, count);
    log.close().await;
}

#[tokio::test]
async fn an_old_inventory_is_not_allocated_from() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(&directory.path().join("store"), Open::Create, |_| ())
        .await
        .unwrap();
    let path = Path::new("cloud.toml");
    let (old_text, old) = inventory(&names("a", 1));
    let (new_text, new) = inventory(&names("b", 1));
    let used = cloud_log::record_inventory(&log, path, &old_text)
        .await
        .unwrap();
    let newest = cloud_log::record_inventory(&log, path, &new_text)
        .await
        .unwrap();
    assert_eq!(
        cloud_log::record_inventory(&log, path, &new_text)
            .await
            .unwrap(),
        newest
    );
    let everything = Selection::everything(&old);
    let refused = cloud_log::allocate(&log, &old, &everything, used).await;
    assert!(
        matches!(refused, Err(Error::InventoryReplaced { used: u, newest: n }) if (u, n) == (used, newest)),
        "{refused:?}"
    );
    let everything = Selection::everything(&new);
    let outcome = cloud_log::allocate(&log, &new, &everything, newest)
        .await
        .unwrap();
    assert_eq!(outcome.allocations().len(), 1);
    assert_eq!(
        log.state().await.unwrap().allocations,
        outcome.allocations()
    );
    log.close().await;
}
