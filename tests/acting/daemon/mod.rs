//! The daemon: who hands over, who follows, what goes on without them, and what is left of it when it ends.

mod endings;
mod handing;
mod left;
mod rights;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::ground::{Ground, Run};
use crate::sshd::Host;

/// A daemon of a ground's store, which ends with the test.
pub(crate) struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    /// One that can be asked.
    pub(crate) fn start(ground: &Ground, more: &[&str]) -> Self {
        Self::with(ground, more, &[])
    }

    pub(crate) fn with(ground: &Ground, more: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = ground.command(&[&["daemon"], more].concat());
        command.envs(variables.iter().copied());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // Its standard output stays open: it says nothing more there.
        let mut said = BufReader::new(child.stdout.as_mut().unwrap());
        said.read_line(&mut line).unwrap();
        if !line.starts_with("serves the store in ") {
            panic!("{}", Ground::ended(child));
        }
        Daemon { child: Some(child) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().unwrap());
        kill_process(pid, signal).unwrap();
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(mut self) {
        kill(self.child.take().unwrap());
    }

    /// Waits until it died by itself.
    pub(crate) fn died(mut self) {
        let mut child = self.child.take().unwrap();
        let mut status = None;
        until("it died", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), None, "it ended by itself");
    }

    /// How it ended.
    pub(crate) fn ended(mut self) -> Run {
        Ground::ended(self.child.take().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            kill(child);
        }
    }
}

/// Somebody who follows an operation, to see that a stop has come to where it runs.
pub(crate) struct Follower {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Follower {
    pub(crate) fn of(ground: &Ground, id: &str) -> Self {
        let mut child = start(ground, &["--format", "json", "op", "attach", id]);
        let said = BufReader::new(child.stdout.take().unwrap());
        Follower { child, said }
    }

    /// Waits until the operation was told to stop, and its host as well.
    pub(crate) fn until_stopping(&mut self) {
        let mut line = String::new();
        while !line.contains("\"stopping\"") {
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "it ended");
        }
        // That far the program tells; its agent hears it next.
        std::thread::sleep(Duration::from_millis(300));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Waits until something is so; a test that waits in vain fails.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that goes on by itself.
pub(crate) fn start(ground: &Ground, arguments: &[&str]) -> Child {
    let mut command = ground.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Kills a program, as a terminal that goes away may.
pub(crate) fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits until an operation stands so.
pub(crate) fn until_status(ground: &Ground, id: &str, status: &str) {
    until(&format!("{id} is {status}"), || ground.status(id) == status);
}

/// The events of a kind that the log has; of all kinds for an empty one.
pub(crate) fn events(ground: &Ground, kind: &str) -> Vec<Value> {
    let of_kind: &[&str] = match kind {
        "" => &[],
        kind => &["--kind", kind],
    };
    ground.json(&[&["log"], of_kind].concat()).ends(0).lines()
}

/// Waits until so many steps of a host wait, or did.
pub(crate) fn until_waits(host: &Host, count: usize) {
    until("steps wait", || {
        let notes = host.notes();
        notes
            .iter()
            .filter(|line| line.starts_with("waits: "))
            .count()
            >= count
    });
}
