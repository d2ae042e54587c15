//! The disk of the store is full while an operation is carried out: how it ended is recorded all the same, and nothing new
//! begins. Needs root, for a tmpfs.

use std::io::Write;
use std::process::{Command, Stdio};

use tallybook::log::{Log, Open};

use crate::ground::Ground;

/// A store on a small file system of its own.
struct Small<'a>(&'a Ground);

impl<'a> Small<'a> {
    fn mount(ground: &'a Ground) -> Self {
        std::fs::create_dir_all(ground.path("store")).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(ground.path("store"))
            .status()
            .unwrap();
        assert!(status.success(), "this test needs root, to mount a tmpfs");
        Small(ground)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let _status = umount.arg("-l").arg(self.0.path("store")).status();
    }
}

#[test]
fn what_runs_is_recorded_and_nothing_new_begins() {
    for as_client in [true, false] {
        for json in [true, false] {
            on_a_full_disk(as_client, json);
        }
    }
}

fn on_a_full_disk(as_client: bool, json: bool) {
    let ground = Ground::new(1);
    let _small = Small::mount(&ground);
    ground.run(&["host", "install", "cn1"]).ends(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = as_client.then(|| {
        let store = ground.path("store");
        let opened = Log::open(&store, Open::Existing, |_| ());
        runtime.block_on(opened).unwrap()
    });
    let host = ground.host(1);
    host.hold("host.packages");
    let format = if json { "json" } else { "table" };
    let child = ground
        .command(&["host", "prepare", "cn1", "--format", format])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    host.until_noted("waits: ");
    let filler = ground.path("store/filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    host.release("host.packages");
    let run = Ground::ended(child);
    run.ends(0);
    if let Some(log) = held {
        runtime.block_on(log.close());
    }
    // As if what is set aside had been used up.
    let reserve = ground.path("store/reserve");
    let reserve = std::fs::File::options().write(true).open(reserve).unwrap();
    reserve.set_len(0).unwrap();
    let mut file = std::fs::File::options().append(true).open(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let before = ground.host(1).notes();
    let refused = ground
        .run(&["host", "prepare", "cn1", "--format", format])
        .ends(10)
        .says("free space");
    assert_eq!(ground.host(1).notes(), before, "nothing was begun");
    if json {
        refused.says("disk_full");
    }
    std::fs::remove_file(filler).unwrap();
    ground.run(&["host", "prepare", "cn1"]).ends(0);
}
