//! A segment that the system does not give: named, and nothing else is made of it.

use std::path::Path;

use tallybook::log::verify::{self, Class, Reach, Scope};
use tallybook::log::{Filter, Log, Open};
use tallybook_events::ids::Seq;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

use crate::ground::{self, content, tallybook};

/// What can be in the place of a file: root reads whatever has no permissions.
fn put_in_place(path: &Path, what: &str) {
    std::fs::remove_file(path).unwrap();
    match what {
        "a directory" => std::fs::create_dir(path).unwrap(),
        "a dangling link" => std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap(),
        "a link to itself" => std::os::unix::fs::symlink(path, path).unwrap(),
        // A read of its first page is an I/O error.
        "memory of a process" => std::os::unix::fs::symlink("/proc/self/mem", path).unwrap(),
        _ => unreachable!(),
    }
}

const WHATS: [&str; 4] = [
    "a directory",
    "a dangling link",
    "a link to itself",
    "memory of a process",
];

fn journal() -> TempDir {
    let store = ground::journal_of(&Story::of(5, 160).records, 9_000);
    assert!(ground::segments(store.path()).len() > 4);
    store
}

#[test]
fn a_segment_that_can_not_be_read_is_named_and_the_others_are_checked() {
    let sound = journal();
    let all = ground::segments(sound.path());
    let checked = verify::journal(sound.path()).unwrap().0;
    for what in WHATS {
        for number in [0, 2, all.len() - 1] {
            for is_archived in [false, true] {
                if is_archived && number == all.len() - 1 {
                    continue;
                }
                let store = journal();
                let path = match is_archived {
                    true => {
                        ground::archive_segment(store.path(), all[number]);
                        ground::archive_file(store.path(), all[number])
                    }
                    false => ground::segment_file(store.path(), all[number]),
                };
                put_in_place(&path, what);
                for reach in [Reach::Full, Reach::Chain, Reach::Tail] {
                    let scope = Scope {
                        reach,
                        threads: 2,
                        ..Scope::default()
                    };
                    let (report, _) = verify::journal_within(store.path(), scope, |_| {}).unwrap();
                    let found = report.findings;
                    let case = format!("{what}, segment {number}, {reach:?}: {found:?}");
                    if reach == Reach::Tail && number + 1 < all.len() {
                        assert_eq!(found, vec![], "{case}");
                        continue;
                    }
                    assert_eq!(found.len(), 1, "{case}");
                    assert_eq!(
                        (found[0].class, found[0].seq),
                        (Class::Unreadable, all[number])
                    );
                    if number + 1 < all.len() {
                        let head = (report.head.seq, report.head.hash);
                        assert_eq!(head, (checked.head.seq, checked.head.hash), "{case}");
                        assert_eq!(report.checks.segments as usize, all.len() - 1, "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_behind_it_is_named_too() {
    let store = journal();
    let all = ground::segments(store.path());
    put_in_place(&ground::segment_file(store.path(), all[1]), "a directory");
    let behind = ground::segment_file(store.path(), all[3]);
    let mut bytes = std::fs::read(&behind).unwrap();
    let frame = ground::frames(&bytes)[1].clone();
    bytes[frame.start + 40] ^= 1;
    std::fs::write(&behind, bytes).unwrap();
    let found = verify::journal(store.path()).unwrap().0.findings;
    let classes: Vec<(Class, Seq)> = found.iter().map(|one| (one.class, one.seq)).collect();
    let expected = [(Class::Unreadable, all[1]), (Class::Altered, all[3].next())];
    assert_eq!(classes, expected, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_ends_with_4_and_opening_is_an_error() {
    let store = journal();
    let all = ground::segments(store.path());
    put_in_place(&ground::segment_file(store.path(), all[1]), "a directory");
    let before = content(store.path());
    let run = tallybook(store.path(), &["verify"]);
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(run.stdout.contains("its segment can't be read"), "{run:?}");
    assert!(
        run.stdout.contains("nothing is known to be lost"),
        "{run:?}"
    );
    assert!(run.stdout.contains("verify: 1 finding"), "{run:?}");
    assert_eq!(content(store.path()), before);
    let refused = Log::open(store.path(), Open::Existing, |_| {}).await;
    let refused = match refused {
        Ok(log) => log.records(&Filter::default()).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(refused.is_err());
    let recover = ["log", "recover", "--reason", "it can't be read", "--yes"];
    let run = tallybook(store.path(), &recover);
    assert_eq!(run.code, Some(1), "{run:?}");
}
