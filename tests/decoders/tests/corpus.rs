//! Every committed input of the fuzz targets, and every seed, through the same bodies in the ordinary test run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tallybook_decoders::{Body, TARGETS, seeds, selftest};

/// The bodies measure the memory of the process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn body(target: &str) -> Body {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    found.expect("a target of this name").1
}

fn run(target: &str) {
    let _alone = ALONE.lock();
    let body = body(target);
    let seeds = seeds::of(target);
    assert!(!seeds.is_empty(), "{target} has seeds");
    seeds.iter().for_each(|seed| body(seed));
    let corpus = files(&fuzz().join("corpus").join(target));
    assert!(!corpus.is_empty(), "{target} has a corpus");
    let regressions = files(&fuzz().join("regressions").join(target));
    for file in corpus.iter().chain(&regressions) {
        let bytes = fs::read(file).unwrap();
        let ran = std::panic::catch_unwind(|| body(&bytes));
        assert!(
            ran.is_ok(),
            "{} breaks a promise; what it said is above",
            file.display()
        );
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|(name, _)| tested.contains(name)), "{tested:?}");
        }
    };
}

targets! {
    guest_text host_text inventory journal line manifest payload receipts record ssh store transfer
}

#[test]
fn the_planted_bug_is_planted() {
    selftest::run(b"1FBT");
    selftest::run(b"1FBTx");
    selftest::run(b"1FBUxx");
    assert!(std::panic::catch_unwind(|| selftest::run(b"1FBTxx")).is_err());
}
