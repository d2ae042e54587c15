//! A full disk: an append is refused, nothing is lost, and it goes on once there is space. A sync that fails: the
//! journal stops, and the next start tells what is there. Needs root, for a tmpfs and a loop mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use tallybook::journal;
use tallybook::log::{Condition, Draft, Error, Filter, Limits, Log, Open, verify};
use tallybook_events::event::{OperationIntended, OutputCaptured};
use tallybook_events::ids::Blob;
use tallybook_events::intent::Intent;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;

/// A small file system of its own, gone with this value.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "this test needs root, to mount a tmpfs");
        Small(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A file system whose blocks lie in a file of another one: where that is full, writes succeed and syncs fail.
struct Looped(tempfile::TempDir);

impl Looped {
    fn mount(image: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(image).arg(directory.path());
        assert!(
            mount.status().unwrap().success(),
            "this test needs root, to mount an image"
        );
        Looped(directory)
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_the_journal() {
    let below = Small::mount("12m");
    let image = below.0.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-O", "^has_journal", "-E", "nodiscard"])
        .arg(&image);
    assert!(mkfs.status().unwrap().success());
    let disk = Looped::mount(&image);
    let store = disk.0.path().join("store");
    let log = Log::open(&store, Open::Create, |_| {}).await.unwrap();
    for _ in 0..10 {
        log.append(vec![draft(300)], Condition::none())
            .await
            .unwrap();
    }
    let filler = fill(below.0.path(), 0);
    let mut acknowledged = 11;
    // Blocks that the image used before have their place; sooner or later a new one is needed.
    let error = loop {
        match log.append(vec![draft(2_000_000)], Condition::none()).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, Error::Journal(journal::Error::Unsynced { .. })),
        "{error:?}"
    );
    assert!(error.is_in_doubt());
    let head = log.head().await.unwrap().seq.0;
    assert_eq!(head, acknowledged, "what was not acknowledged is not seen");
    std::fs::remove_file(filler).unwrap();
    // There is space again, and still: nobody knows what of the file is on the disk.
    let error = log
        .append(vec![draft(10)], Condition::none())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Journal(journal::Error::Stopped)),
        "{error:?}"
    );
    log.close().await;
    // The kernel has in memory what it could not write, and counts it as written. The next start goes by the disk.
    let log = Log::open(&store, Open::Existing, |_| {}).await.unwrap();
    let seen = log.records(&Filter::default()).await.unwrap().len() as u64;
    assert!(
        (acknowledged..=acknowledged + 1).contains(&seen),
        "{seen} of {acknowledged}"
    );
    log.close().await;
    // The first of these is told of the error that the journal met; the second finds nothing left to fail.
    let sync = || Command::new("sync").arg("-f").arg(&store).status().unwrap();
    let _told = sync();
    assert!(sync().success());
    drop(disk);

    let disk = Looped::mount(&image);
    let store = disk.0.path().join("store");
    let log = Log::open(&store, Open::Existing, |_| {}).await.unwrap();
    let found = log.records(&Filter::default()).await.unwrap().len() as u64;
    assert_eq!(found, seen, "what the start before this one saw");
    log.append(vec![draft(10)], Condition::none())
        .await
        .unwrap();
    log.close().await;
    assert_eq!(verify::journal(&store).unwrap().0.findings, vec![]);
}

/// Takes all space but so many bytes; returns the file that has it.
fn fill(directory: &Path, leave: u64) -> PathBuf {
    use std::io::Write;
    let path = directory.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let len = file.metadata().unwrap().len();
    file.set_len(len.saturating_sub(leave)).unwrap();
    path
}

fn draft(len: usize) -> Draft {
    Draft::new(
        Subject::Cloud,
        OutputCaptured {
            captured: Captured {
                command: String::new(),
                exit: None,
                text: Blob(vec![b'x'; len]),
                dropped_bytes: 0,
            },
        },
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_loses_nothing() {
    let small = Small::mount("6m");
    let store = small.0.path().join("store");
    // Segments so short that a new one is needed while the disk is full.
    let limits = Limits { segment_len: 9_000 };
    let log = Log::open_within(&store, Open::Create, limits, |_| {})
        .await
        .unwrap();
    for _ in 0..20 {
        log.append(vec![draft(300)], Condition::none())
            .await
            .unwrap();
    }
    let mut events = 21;
    for round in 0..3 {
        let filler = fill(small.0.path(), 16_384);
        let mut refused = 0;
        for _ in 0..60 {
            match log
                .append(vec![draft(300), draft(700)], Condition::none())
                .await
            {
                Ok(appended) => {
                    events += 2;
                    assert_eq!(appended[1].seq.0, events);
                }
                Err(error) => {
                    assert!(error.is_disk_full(), "{error:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "the disk was not full in round {round}");
        assert_eq!(
            log.records(&Filter::default()).await.unwrap().len() as u64,
            events
        );
        std::fs::remove_file(filler).unwrap();
        let appended = log
            .append(vec![draft(10)], Condition::none())
            .await
            .unwrap();
        events += 1;
        assert_eq!(appended[0].seq.0, events, "it goes on, without a gap");
    }
    log.close().await;
    let (report, _) = verify::journal(&store).unwrap();
    assert_eq!(
        (report.findings, report.torn_bytes, report.head.seq.0),
        (vec![], 0, events)
    );
    // And on a full disk the log can still be opened and read.
    let _full = fill(small.0.path(), 0);
    let log = Log::open_within(&store, Open::Existing, limits, |what| println!("{what}"))
        .await
        .unwrap();
    assert_eq!(
        log.records(&Filter::default()).await.unwrap().len() as u64,
        events
    );
    // Opening may have given space back: what of the databases the full disk had spoilt is built again.
    let filler = fill(small.0.path(), 0);
    assert!(
        log.append(vec![draft(5000)], Condition::none())
            .await
            .unwrap_err()
            .is_disk_full()
    );
    std::fs::remove_file(filler).unwrap();
    log.append(vec![draft(10)], Condition::none())
        .await
        .unwrap();
    log.close().await;
}

/// What runs must be recorded although the disk is full; nothing new begins until there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_is_new_and_records_what_runs() {
    let disk = Small::mount("24m");
    let store = disk.0.path().join("store");
    let log = Log::open(&store, Open::Create, |_| {}).await.unwrap();
    let id = tallybook_events::ids::OperationId::new(1_795_000_000_000, [7; 10]);
    let subject = Subject::Container(
        tallybook_testkit::samples::host("cn1"),
        tallybook_testkit::samples::container("web"),
    );
    let intended = |intent| OperationIntended {
        intent,
        inventory: tallybook_events::ids::Seq(0),
        claims: vec![subject.clone()],
    };
    let start = Intent::ContainerStart {
        container: tallybook_testkit::samples::container("web"),
        host: tallybook_testkit::samples::host("cn1"),
    };
    let begin = Draft::new(subject.clone(), intended(start.clone()))
        .unwrap()
        .operation(id, None);
    let begun = log.append(vec![begin], Condition::none()).await.unwrap()[0];
    let claim = Some(tallybook_events::header::ClaimRef {
        seq: begun.seq,
        hash: begun.hash,
    });
    assert!(store.join("reserve").metadata().unwrap().len() > 100_000);
    let filler = fill(disk.0.path(), 0);
    let large = |bytes: usize| {
        let captured = Captured {
            command: "cat".to_owned(),
            exit: Some(0),
            text: Blob(vec![b'x'; bytes]),
            dropped_bytes: 0,
        };
        let draft = Draft::new(subject.clone(), OutputCaptured { captured }).unwrap();
        draft.operation(id, claim)
    };
    // Until what was laid out ahead is used up, and then some: by what runs.
    for _ in 0..14 {
        log.append(vec![large(90_000)], Condition::none())
            .await
            .unwrap();
    }
    let other = tallybook_events::ids::OperationId::new(1_795_000_000_000, [8; 10]);
    let new = Draft::new(subject.clone(), intended(start))
        .unwrap()
        .operation(other, None);
    let error = log.append(vec![new.clone()], Condition::none()).await.err();
    assert!(error.as_ref().is_some_and(Error::is_disk_full), "{error:?}");
    // How it ended, and taking it back, still find room.
    let failed = tallybook_events::event::OperationFailed {
        reason: "the disk is full".to_owned(),
    };
    let failed = Draft::new(subject.clone(), failed)
        .unwrap()
        .operation(id, claim);
    log.append(vec![failed], Condition::none()).await.unwrap();
    let back = Draft::new(
        subject.clone(),
        intended(Intent::Rollback { operation: id }),
    )
    .unwrap()
    .operation(
        tallybook_events::ids::OperationId::new(1_795_000_000_000, [9; 10]),
        None,
    );
    log.append(vec![back], Condition::none()).await.unwrap();
    std::fs::remove_file(filler).unwrap();
    // There is room again: the reserve is made whole by itself.
    log.append(vec![new], Condition::none()).await.unwrap();
    assert!(store.join("reserve").metadata().unwrap().len() > 100_000);
    log.close().await;
    assert_eq!(verify::journal(&store).unwrap().0.findings, vec![]);
}
