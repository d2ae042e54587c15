//! The damage matrix of the databases: whatever is done to sled's files, `tallybook verify` ends, and either names it or
//! has held everything that the databases say against the journal.
//!
//! Each cell is a process of its own with a time limit: sled has been seen to spin on damage.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tallybook::log::{INDEX, PROJECTION};
use tallybook::store::BLOCK_EVENTS;
use tallybook_events::record::Record;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

use crate::action::{self, Action, Others, PLACES, TO_BYTES, TO_FILES, TO_PARTS};
use crate::ground::{self, Run, copy_tree, tallybook};
use crate::table::{Outcome, Table};

/// What sled reads and writes at once.
const BLOCK: usize = 4096;
const UNUSED: &str =
    "sled gives out the same without these bytes: all of it was held against the journal";
const SHORTER: &str =
    "sled went back to an earlier state that is sound, as after a loss of power; it is caught up";

struct Ground {
    store: TempDir,
    branch: TempDir,
    other_log: TempDir,
    /// The files of the databases.
    files: Vec<PathBuf>,
    /// How many events a whole index has.
    events: u64,
}

impl Ground {
    fn new() -> Self {
        let begun = Story::of(23, 40);
        let story = |choices| begun.branch(choices, 1100).records;
        let records = story(5);
        let used = |records: &[Record]| {
            let store = ground::journal_of(records, 1 << 30);
            ground::use_it(store.path());
            store
        };
        let store = used(&records);
        let mut files = Vec::new();
        for name in [INDEX, PROJECTION] {
            let all = ground::content(&store.path().join(name));
            let inside = all.iter().filter(|(_, bytes)| !bytes.is_empty());
            files.extend(
                inside.map(|(path, _)| path.strip_prefix(store.path()).unwrap().to_owned()),
            );
        }
        let whole = verify(store.path());
        assert_eq!(whole.code, Some(0), "{whole:?}");
        let told: Value = serde_json::from_str(&whole.stdout).unwrap();
        let events = told["store"]["events"].as_u64().unwrap();
        assert_eq!(events, BLOCK_EVENTS, "{told}");
        Ground {
            branch: used(&story(7)),
            other_log: used(&ground::of_another_log(&records)),
            store,
            files,
            events,
        }
    }

    fn outcome(&self, run: &Run) -> Outcome {
        let Some(code) = run.code else {
            return Outcome::Failed(format!("it hangs: {}", run.stderr));
        };
        let told: Value = serde_json::from_str(&run.stdout).unwrap_or_default();
        let found = &told["store"]["findings"][0];
        match (code, found["what"].as_str(), run.stderr.as_str()) {
            (4, Some(what), _) => Outcome::Named(format!("{}: {what}", found["class"])),
            (4, None, refused) if refused.contains("event ") => {
                Outcome::Named(format!("refused: {refused}"))
            }
            (0, None, _) if told["store"]["projections"] == true => {
                match told["store"]["events"].as_u64() {
                    Some(events) if events == self.events => Outcome::Nothing(UNUSED),
                    Some(events) if events < self.events => Outcome::Nothing(SHORTER),
                    _ => Outcome::Failed(format!("{told}")),
                }
            }
            _ => Outcome::Failed(format!("{run:?}")),
        }
    }

    /// The same file of another store; sled gives some of them names of their own.
    fn same_file(&self, other: &Path, file: &Path) -> PathBuf {
        let stem = |path: &Path| path.file_stem().unwrap().to_owned();
        let there = ground::content(&other.join(file.parent().unwrap()));
        let same = there.iter().find(|(path, _)| stem(path) == stem(file));
        same.map_or_else(|| other.join(file), |(path, _)| path.clone())
    }

    fn damage(&self, cell: &Cell, store: &Path) {
        let Cell {
            file,
            action,
            place,
        } = cell;
        let path = store.join(file);
        let branch = self.same_file(self.branch.path(), file);
        let other_log = self.same_file(self.other_log.path(), file);
        let Some(place) = *place else {
            let others = Others {
                another: &store.join(self.files.iter().find(|other| *other != file).unwrap()),
                branch: &branch,
                other_log: &other_log,
            };
            return action::to_file(*action, &path, &others);
        };
        let mut bytes = std::fs::read(&path).unwrap();
        // What sled wrote ends before the file does.
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(1, |at| at + 1);
        let block = BLOCK.min(used.div_ceil(4));
        let parts: Vec<_> = (0..used / block)
            .map(|at| at * block..(at + 1) * block)
            .collect();
        let number = place.among(parts.len());
        match action {
            Action::Double => action::double(&mut bytes, parts[number].clone()),
            Action::Swap => action::swap(&mut bytes, &parts, number),
            Action::FromBranch | Action::FromOtherLog => {
                let from = if *action == Action::FromBranch {
                    branch
                } else {
                    other_log
                };
                let foreign = std::fs::read(from).unwrap();
                // Theirs may be shorter.
                let part = parts[number].clone();
                let start = part.start.min(foreign.len().saturating_sub(block));
                let theirs = &foreign[start..(start + block).min(foreign.len())];
                bytes.splice(
                    part.start..part.start + theirs.len(),
                    theirs.iter().copied(),
                );
            }
            other => action::to_bytes(*other, place, &mut bytes, 0..used),
        }
        std::fs::write(path, bytes).unwrap();
    }
}

fn verify(store: &Path) -> Run {
    tallybook(store, &["verify", "--format", "json"])
}

struct Cell {
    file: PathBuf,
    action: Action,
    /// `None` for what is done to the whole file.
    place: Option<action::Place>,
}

/// Runs each cell on a copy of the store, a few at a time.
fn run(ground: &Ground, cells: &[Cell]) -> Table {
    let table = Mutex::new(Table::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let copy = ground::scratch();
                    copy_tree(ground.store.path(), copy.path());
                    ground.damage(cell, copy.path());
                    let found = ground.outcome(&verify(copy.path()));
                    let place = cell
                        .place
                        .map(|place| place.to_string())
                        .unwrap_or_default();
                    let file = cell.file.with_extension("");
                    let name = format!("{}, {:?} {place}", file.display(), cell.action);
                    table.lock().unwrap().put(name, found);
                }
            });
        }
    });
    table.into_inner().unwrap()
}

#[test]
fn files_of_the_databases() {
    let ground = Ground::new();
    let mut cells = Vec::new();
    for file in &ground.files {
        for action in TO_BYTES.into_iter().chain(TO_PARTS) {
            cells.extend(PLACES.map(|place| Cell {
                file: file.clone(),
                action,
                place: Some(place),
            }));
        }
        cells.extend(TO_FILES.map(|action| Cell {
            file: file.clone(),
            action,
            place: None,
        }));
    }
    assert!(ground.files.len() >= 4, "{:?}", ground.files);
    let table = run(&ground, &cells);
    // What sled does with a damaged page depends on when it wrote which: how many are named differs by a few.
    table.finish_all(ground.files.len() * 47);
}

/// The directories themselves: gone, something else, or of another store.
#[test]
fn whole_databases() {
    let ground = Ground::new();
    let mut table = Table::default();
    for name in [INDEX, PROJECTION] {
        for how in [
            "gone",
            "a file",
            "a link to nowhere",
            "of a branch",
            "of another log",
            "empty",
        ] {
            let copy = ground::scratch();
            copy_tree(ground.store.path(), copy.path());
            let path = copy.path().join(name);
            std::fs::remove_dir_all(&path).unwrap();
            match how {
                "gone" => {}
                "a file" => std::fs::write(&path, "no database").unwrap(),
                "a link to nowhere" => std::os::unix::fs::symlink("nowhere", &path).unwrap(),
                "of a branch" => copy_tree(&ground.branch.path().join(name), &path),
                "of another log" => copy_tree(&ground.other_log.path().join(name), &path),
                "empty" => std::fs::create_dir(&path).unwrap(),
                other => unreachable!("{other}"),
            }
            let found = ground.outcome(&verify(copy.path()));
            table.put(format!("{name}, {how}"), found);
        }
    }
    table.finish_all(12);
}
