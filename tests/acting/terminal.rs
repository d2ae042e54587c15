//! The operator's terminal, after a session that ended in no good order.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::ground::Ground;

#[test]
fn two_signals_leave_the_terminal_as_it_was() {
    let ground = Ground::prepared(1);
    ground.run(&["container", "create", "web"]).ends(0);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = || -> OwnedFd {
        open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY,
            Mode::empty(),
        )
        .unwrap()
    };
    let watched = slave();
    let echoes = || {
        tcgetattr(&watched)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
    };
    assert!(echoes());
    let mut child = ground
        .command(&["container", "shell", "web"])
        .stdin(Stdio::from(slave()))
        .stdout(Stdio::from(slave()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pause = || std::thread::sleep(Duration::from_millis(5));
    for _ in 0..4000 {
        if !echoes() {
            break;
        }
        pause();
    }
    assert!(!echoes(), "the terminal was never taken over");
    // Signals that come close together count once, so it is told until it has heard twice.
    let pid = Pid::from_child(&child);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let _gone = kill_process(pid, Signal::TERM);
        pause();
    };
    assert_eq!(status.code(), Some(75));
    assert!(echoes(), "the terminal was left as it was taken over");
}
