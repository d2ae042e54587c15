//! A host whose disk is full: what was set aside is there for the ends of running steps and for undos, and no step begins.
//! Needs root, for a tmpfs and a loop mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use tallybook_agent::receipts::{Error, RESERVE_LEN};

use super::*;
use tallybook_agent::protocol::SessionRequest;

/// A small file system on a directory, gone with this value.
struct Small(PathBuf);

impl Small {
    fn mount(on: &Path, what: &[&str]) -> Self {
        fs::create_dir_all(on).unwrap();
        let status = Command::new("mount").args(what).arg(on).status().unwrap();
        assert!(status.success(), "this test needs root, to mount {what:?}");
        Small(on.to_owned())
    }

    /// Takes all space; returns the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        for len in [1 << 16, 1 << 12, 1] {
            let bytes = vec![1; len];
            while file
                .write_all(&bytes)
                .and_then(|()| file.sync_all())
                .is_ok()
            {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn on_tmpfs(host: &Host) -> Small {
    Small::mount(
        &host.layout.state,
        &["-t", "tmpfs", "-o", "size=40m", "tmpfs"],
    )
}

fn on_ext4(host: &Host) -> Small {
    let image = host.file("image");
    fs::File::create(&image).unwrap().set_len(60 << 20).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-m", "0"]).arg(&image);
    assert!(mkfs.status().unwrap().success());
    let image = image.to_str().unwrap();
    Small::mount(&host.layout.state, &["-o", "loop", image])
}

fn reserve_len(host: &Host) -> u64 {
    let path = host.layout.receipts(LOG).join("reserve");
    fs::metadata(path).unwrap().len()
}

fn undo(host: &Host) -> tallybook_agent::protocol::Call {
    let mut undo = host.note(0, "");
    undo.key.operation = OperationId::from_bytes([7; 16]);
    undo.action = Action::Undo {
        operation: OPERATION,
        step: StepIndex(0),
        output: None,
    };
    undo
}

#[test]
fn a_full_disk_begins_no_step_and_records_what_runs_and_undoes() {
    for mount in [on_tmpfs, on_ext4] {
        let host = Host::new();
        let disk = mount(&host);
        let mut agent = host.agent();
        agent.say(&Request::MakeJournal);
        assert!(matches!(agent.hear(), Reply::Journal(Some(_))));
        assert_eq!(reserve_len(&host), RESERVE_LEN);
        let go = host.file("go");
        agent.run(vec![act(0, Deed::Await(go.clone()))]);
        assert_eq!(agent.hear(), Reply::Started(key(0)));
        let filler = disk.fill();
        fs::write(&go, "").unwrap();
        done(&agent.finished());
        agent.unstarted();
        // Another operation: its fence has to be kept, too.
        agent.say(&run_later(batch(vec![undo(&host)])));
        done(&agent.finished());
        agent.unstarted();
        assert_eq!(host.notes(), ["undo true 0 None"]);
        assert!(reserve_len(&host) < RESERVE_LEN);
        disk.fill();
        agent.say(&run_later(batch(vec![host.note(1, "never")])));
        let refused = agent.refused();
        assert_eq!(refused.class, FailureClass::DiskFull, "{refused:?}");
        let path = host.layout.receipts(LOG).join("reserve");
        let path = path.to_str().unwrap();
        let message = format!("step 1 was not begun: can't set 16 MiB aside in {path}");
        assert!(refused.message.starts_with(&message), "{refused:?}");
        let hint = refused.hint.unwrap();
        assert!(
            hint.contains("free 16 MiB") && hint.contains(path),
            "{hint}"
        );
        assert_eq!(host.phase(1), None);
        fs::remove_file(filler).unwrap();
        let mut agent = host.agent();
        agent.say(&run_later(batch(vec![host.note(1, "again")])));
        done(&agent.finished());
        assert_eq!(reserve_len(&host), RESERVE_LEN);
        assert!(host.report().journal.is_some());
    }
}

/// Somebody who looks into a container is who makes room.
#[test]
fn a_session_is_let_in_on_a_full_disk() {
    for mount in [on_tmpfs, on_ext4] {
        let host = Host::new();
        let disk = mount(&host);
        let mut agent = host.agent();
        agent.say(&Request::MakeJournal);
        assert!(matches!(agent.hear(), Reply::Journal(Some(_))));
        agent.run(vec![act(0, Deed::Progress(1))]);
        done(&agent.finished());
        agent.unstarted();
        disk.fill();
        let Request::Run { shown, .. } = run_later(batch(Vec::new())) else {
            unreachable!("it runs a batch");
        };
        agent.say(&Request::Session {
            shown,
            request: SessionRequest {
                container: "web".parse().unwrap(),
                argv: Vec::new(),
                terminal: None,
                term: String::new(),
            },
        });
        assert_eq!(agent.hear(), Reply::Admitted);
        assert_eq!(agent.refused().class, FailureClass::Missing);
        assert!(reserve_len(&host) < RESERVE_LEN);
    }
}

#[test]
fn the_longest_end_of_a_step_finds_room() {
    for mount in [on_tmpfs, on_ext4] {
        let host = Host::new();
        let disk = mount(&host);
        let (mut journal, mut ended) = (open(&host), start(&host, 0));
        journal.reserve().unwrap();
        journal.append(&ended).unwrap();
        let filler = disk.fill();
        ended.phase = Phase::Succeeded(StepDone {
            changed: true,
            output: Blob(vec![7; 6 << 20]),
            facts: Vec::new(),
            captured: Vec::new(),
        });
        journal.append_from_reserve(&ended).unwrap();
        assert!(reserve_len(&host) < RESERVE_LEN);
        // More than is left of it is refused, and nothing of it stays.
        disk.fill();
        let len = fs::metadata(receipts::path(&host.layout, LOG))
            .unwrap()
            .len();
        let error = loop {
            ended.key.step.0 += 1;
            if let Err(error) = journal.append_from_reserve(&ended) {
                break error;
            }
        };
        assert!(error.is_disk_full(), "{error:?}");
        assert_eq!(reserve_len(&host), 0);
        disk.fill();
        let error = journal.reserve().unwrap_err();
        assert!(matches!(error, Error::Reserve { .. }), "{error:?}");
        assert_eq!(open(&host).live(), journal.live());
        assert!(
            fs::metadata(receipts::path(&host.layout, LOG))
                .unwrap()
                .len()
                >= len
        );
        fs::remove_file(filler).unwrap();
        journal.reserve().unwrap();
        assert_eq!(reserve_len(&host), RESERVE_LEN);
        ended.key.step.0 += 1;
        journal.append(&ended).unwrap();
        assert!(host.report().journal.is_some());
        assert_eq!(
            host.phase(0).map(|phase| done(&phase).output.0.len()),
            Some(6 << 20)
        );
    }
}

fn open(host: &Host) -> Journal {
    Journal::open(&host.layout, LOG, &mut |_| {}).unwrap()
}

fn start(host: &Host, step: u32) -> Receipt {
    let call = host.note(step, "");
    Receipt {
        key: call.key,
        fence: batch(Vec::new()).fence,
        kind: call.kind,
        boot: tallybook_events::ids::BootId::from_bytes([4; 16]),
        time_unix_us: 1,
        phase: Phase::Started,
    }
}

/// A disk whose blocks lie in a file of a full one: writes to it succeed, and syncs fail.
#[test]
fn after_a_failed_sync_the_next_agent_goes_by_the_disk() {
    let host = Host::new();
    let below = host.file("below");
    let disk = Small::mount(&below, &["-t", "tmpfs", "-o", "size=12m", "tmpfs"]);
    let image = below.join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-O", "^has_journal", "-E", "nodiscard"]);
    assert!(mkfs.arg(&image).status().unwrap().success());
    let looped = ["-o", "loop", image.to_str().unwrap()];
    let upper = Small::mount(&host.layout.state, &looped);
    let mut journal = open(&host);
    let id = journal.live();
    let mut receipt = start(&host, 0);
    journal.append(&receipt).unwrap();
    let filler = disk.fill();
    receipt.phase = Phase::Succeeded(StepDone {
        changed: true,
        output: Blob(vec![7; 2_000_000]),
        facts: Vec::new(),
        captured: Vec::new(),
    });
    let mut kept = 1;
    let error = loop {
        receipt.key.step.0 = kept;
        match journal.append(&receipt) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unsynced { .. }), "{error:?}");
    fs::remove_file(filler).unwrap();
    let again = journal.append_from_reserve(&start(&host, 99)).unwrap_err();
    assert!(matches!(again, Error::Stopped(_)), "{again:?}");
    // What the next one sees, and what it writes behind that, is there after the disk was away.
    let seen = host.report().receipts.len();
    assert!(
        (kept as usize..=kept as usize + 1).contains(&seen),
        "{seen} of {kept}"
    );
    {
        // The disk as it is at this moment: what was told is on it.
        let other = Host::new();
        let copy = other.file("image");
        fs::copy(&image, &copy).unwrap();
        let looped = ["-o", "loop", copy.to_str().unwrap()];
        let _disk = Small::mount(&other.layout.state, &looped);
        let report = other.report();
        assert_eq!((report.journal, report.receipts.len()), (id, seen));
    }
    let mut journal = open(&host);
    assert_eq!(journal.live(), id);
    journal.append(&start(&host, 100)).unwrap();
    drop(journal);
    let sync = || {
        Command::new("sync")
            .arg("-f")
            .arg(&host.layout.state)
            .status()
    };
    let _told = sync().unwrap();
    assert!(sync().unwrap().success());
    drop(upper);
    let _upper = Small::mount(&host.layout.state, &looped);
    let report = host.report();
    assert_eq!((report.journal, report.receipts.len()), (id, seen + 1));
    assert_eq!(host.phase(100), Some(Phase::Started));
}
