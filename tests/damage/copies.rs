//! A store that is copied while it is used, by whoever does not know better: each copy opens, or says that it is older
//! than what it was told. None is damaged.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tallybook::log::{Condition, Draft, Error, Filter, Limits, Log, Open};
use tallybook_events::event::OutputCaptured;
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;

use crate::ground::{scratch, tallybook};

const COPIES: usize = 40;
/// About 20 MB.
const APPENDS_MAX: usize = 4000;
const PAUSE: Duration = Duration::from_millis(1);

fn draft(len: usize) -> Draft {
    let captured = Captured {
        command: String::new(),
        exit: None,
        text: Blob(vec![b'x'; len]),
        dropped_bytes: 0,
    };
    Draft::new(Subject::Cloud, OutputCaptured { captured }).unwrap()
}

/// Appends and asks, until it is told to stop; how many events there are then. What it writes is bounded: the copies may
/// be slower than it.
async fn write(log: &Log, stop: &AtomicBool) -> Seq {
    for number in 1..=APPENDS_MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let len = [10, 300, 2000, 9000][number % 4];
        let some = (0..1 + number % 3).map(|_| draft(len)).collect();
        log.append(some, Condition::none()).await.unwrap();
        if number.is_multiple_of(16) {
            log.records(&Filter::at(Seq(1))).await.unwrap();
        }
        tokio::time::sleep(PAUSE).await;
    }
    log.head().await.unwrap().seq
}

/// `None` when it opened and goes on.
async fn open(copy: &Path) -> Option<Error> {
    let log = match Log::open(copy, Open::Existing, |_| {}).await {
        Ok(log) => log,
        Err(error) => return Some(error),
    };
    let head = log.head().await.unwrap().seq;
    let all = log.records(&Filter::default()).await.unwrap();
    assert_eq!(all.len() as u64, head.0);
    log.append(vec![draft(5)], Condition::none()).await.unwrap();
    log.close().await;
    None
}

#[test]
fn a_copy_of_a_store_in_use_opens_or_says_that_its_end_is_missing() {
    let store = scratch();
    let stop = AtomicBool::new(false);
    let (mut opened, mut older) = (0, 0);
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            runtime().block_on(async {
                let limits = Limits {
                    segment_len: 100_000,
                };
                let log = Log::open_within(store.path(), Open::Create, limits, |_| {})
                    .await
                    .unwrap();
                let end = write(&log, &stop).await;
                log.close().await;
                end
            })
        });
        while !store.path().join("head").exists() {
            std::thread::yield_now();
        }
        for _ in 0..COPIES {
            let aside = scratch();
            let copy = aside.path().join("copy");
            let status = Command::new("cp")
                .arg("-a")
                .arg(store.path())
                .arg(&copy)
                .status();
            // A file of sled's may be gone by the time that it is copied.
            let _complete = status.unwrap().success();
            let run = tallybook(&copy, &["verify", "--journal-only"]);
            match runtime().block_on(open(&copy)) {
                None => {
                    opened += 1;
                    assert_eq!(run.code, Some(0), "it opened: {run:?}");
                }
                Some(Error::TailLost { .. }) => {
                    older += 1;
                    let is_said = run.stdout.contains("was recorded here before");
                    assert!(
                        is_said || run.code == Some(0),
                        "its end is missing: {run:?}"
                    );
                }
                Some(error) => panic!("{error}: {error:?}\n{run:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let end = writer.join().unwrap();
        println!("{opened} copies opened, {older} miss their end; the log came to event {end}");
        assert!(end > Seq(100), "{end}");
    });
    assert_eq!(opened + older, COPIES);
    assert!(opened > 0);
}
