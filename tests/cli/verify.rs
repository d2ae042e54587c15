//! `verify` sees what is wrong with the databases, although everything else mends it or does without.

use crate::fixture::{Fixture, Run};

/// More than a block of 1024 events, so that some are sealed into the index.
fn sealed() -> Fixture {
    let fixture = Fixture::empty();
    fixture.seal();
    assert_eq!(fixture.run(&["verify"]).code, 0);
    fixture
}

fn change(fixture: &Fixture, database: &str, tree: &str, run: impl FnOnce(&sled::Tree)) {
    let database = sled::open(fixture.store().join(database)).unwrap();
    run(&database.open_tree(tree).unwrap());
    database.flush().unwrap();
}

fn is_found(run: &Run, what: &str) {
    assert_eq!(run.code, 4, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains(what), "{}", run.stdout);
    assert!(!run.stdout.contains("verify: ok"), "{}", run.stdout);
}

/// Found, also a second time: looking did not mend it. Then mended by a command that needs it, and no longer found.
fn found_until_mended(fixture: &Fixture, what: &str) {
    is_found(&fixture.run(&["verify"]), what);
    is_found(&fixture.run(&["verify"]), what);
    for _ in 0..2 {
        let run = fixture.run(&["log", "--newest", "1200"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    assert!(
        run.stdout.contains("verify: ok at event "),
        "{}",
        run.stdout
    );
}

#[test]
fn a_sealed_block_that_is_gone_or_another_is_found() {
    for newest in [false, true] {
        for remove in [true, false] {
            let fixture = sealed();
            change(&fixture, "index", "places", |blocks| {
                let one = if newest {
                    blocks.last()
                } else {
                    blocks.first()
                };
                let (key, block) = one.unwrap().unwrap();
                let mut block = block.to_vec();
                // The first event's check.
                block[24] ^= 1;
                match remove {
                    true => drop(blocks.remove(key).unwrap()),
                    false => drop(blocks.insert(key, block).unwrap()),
                }
            });
            let what = match remove {
                true => "(the index): its block can't be read",
                false => "(the index): it is not the event of the journal",
            };
            found_until_mended(&fixture, what);
        }
    }
}

#[test]
fn databases_that_can_not_be_opened_or_were_given_up_are_found() {
    for name in ["index", "projection"] {
        let fixture = sealed();
        std::fs::remove_dir_all(fixture.store().join(name)).unwrap();
        std::fs::write(fixture.store().join(name), "no database").unwrap();
        found_until_mended(&fixture, "(the databases): the database in ");
    }
    let fixture = sealed();
    std::fs::write(fixture.store().join("rebuild"), "sled said so\n").unwrap();
    found_until_mended(
        &fixture,
        "(the databases): they were given up: sled said so",
    );
}

#[test]
fn databases_of_another_log_are_found() {
    let (fixture, other) = (sealed(), Fixture::story());
    assert_eq!(other.run(&["verify"]).code, 0);
    let path = fixture.store().join("projection");
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(other.store().join("projection"), &path).unwrap();
    found_until_mended(&fixture, "it belongs to another log");
}

#[test]
fn what_was_not_checked_is_not_ok() {
    let fixture = sealed();
    let lock = fixture.store().join("lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stdout.contains("the store was not checked: "));
    assert!(
        run.stdout.ends_with("verify: not everything was checked\n"),
        "{}",
        run.stdout
    );
    let run = fixture.run(&["verify", "--format", "json"]);
    let verified: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &verified["ok"]), (1, &false.into()));
    // Nobody asked for more.
    assert_eq!(fixture.run(&["verify", "--journal-only"]).code, 0);
}

#[test]
fn a_lost_end_and_a_lost_journal_are_found_without_the_databases() {
    let fixture = sealed();
    for name in ["index", "projection"] {
        std::fs::remove_dir_all(fixture.store().join(name)).unwrap();
    }
    let journal = fixture.store().join("journal");
    let entry = std::fs::read_dir(&journal).unwrap().next();
    let segment = entry.unwrap().unwrap().path();
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &whole[..whole.len() - 3000]).unwrap();
    for command in [&["verify"][..], &["verify", "--journal-only"]] {
        is_found(&fixture.run(command), "was recorded here before");
    }
    std::fs::remove_dir_all(&journal).unwrap();
    for command in [&["verify"][..], &["log"], &["state"], &["cloud", "refresh"]] {
        let run = fixture.run(command);
        assert_eq!(run.code, 4, "{command:?}: {}", run.stderr);
        assert!(run.stderr.contains("was recorded here before"));
    }
    assert!(!journal.exists() || std::fs::read_dir(&journal).unwrap().next().is_none());
}

#[test]
fn a_head_that_can_not_be_understood_is_found() {
    let fixture = sealed();
    std::fs::write(fixture.store().join("head"), "somewhere\n").unwrap();
    found_until_mended(&fixture, "it can't be understood");
}
