//! Commands on the controller itself, which may be a host too: plain child processes, no SSH.
//!
//! Must never put a child into our process group: an interrupt at the terminal is for us to handle.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{oneshot, watch};

use super::command::Command;
use super::error::Error;
use super::stream::{
    Exit, Process, Status, Stdin, StdinPipe, Stdout, StdoutPipe, Stream, Tail, Wish, given_up,
};
use crate::huge_pages;

/// How long standard error may stay open after the process ended (something it started may still hold it).
const STDERR_GRACE: Duration = Duration::from_secs(1);

pub(super) fn open(host: &str, command: &Command, sudo: bool) -> Result<Stream, Error> {
    let failed = |source| Error::Local {
        host: host.to_owned(),
        source,
    };
    let argv = command.argv(sudo);
    let mut program = tokio::process::Command::new(argv[0]);
    program
        .args(&argv[1..])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = huge_pages::spawn(|| program.spawn()).map_err(failed)?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(failed(std::io::Error::other("the child has no pipes")));
    };
    let (wish, wishes) = watch::channel(Wish::Run);
    let (ended, end) = oneshot::channel();
    let owner = host.to_owned();
    tokio::spawn(async move {
        let result = attend(child, stderr, wishes).await;
        // Nobody may be waiting any more.
        let _ = ended.send(result.map_err(|source| Error::Local {
            host: owner,
            source,
        }));
    });
    Ok(Stream {
        stdin: Stdin(StdinPipe::Local(stdin)),
        stdout: Stdout(StdoutPipe::Local(stdout)),
        process: Process {
            host: host.to_owned(),
            wish,
            end,
        },
    })
}

async fn attend(
    mut child: Child,
    mut stderr: ChildStderr,
    mut wishes: watch::Receiver<Wish>,
) -> std::io::Result<Exit> {
    let mut tail = Tail::default();
    let mut buffer = vec![0; 8192];
    let (mut open, mut wanted) = (true, true);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            read = stderr.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(length) => tail.push(&buffer[..length]),
            },
            wish = given_up(&mut wishes), if wanted => {
                wanted = false;
                if wish == Some(Wish::Terminate) {
                    terminate(&child);
                }
            }
        }
    };
    let rest = async {
        while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
            tail.push(&buffer[..length]);
        }
    };
    if open {
        // Running out of grace loses nothing but the words of something that outlives the command.
        let _ = tokio::time::timeout(STDERR_GRACE, rest).await;
    }
    Ok(tail.exit(translate(status)))
}

/// The child leads a process group of its own: what it started ends with it.
fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = kill_process_group(pid, Signal::TERM)
    {
        tracing::debug!(%error, "a local command could not be told to end");
    }
}

fn translate(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(code.cast_unsigned()),
        (None, Some(15)) => Status::Signal("TERM".to_owned()),
        (None, Some(9)) => Status::Signal("KILL".to_owned()),
        (None, Some(number)) => Status::Signal(number.to_string()),
        (None, None) => Status::Signal("unknown".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_is_started_may_have_huge_pages_where_we_may() {
        let of = |status: &str| {
            let line = status.lines().find(|line| line.starts_with("THP_enabled"));
            line.map(|line| line.ends_with('1'))
        };
        let before = of(&std::fs::read_to_string("/proc/self/status").unwrap());
        huge_pages::turn_off();
        let ours = of(&std::fs::read_to_string("/proc/self/status").unwrap());
        assert_eq!(ours, before.map(|_| false));
        let mut stream = open("here", &Command::new("cat /proc/self/status"), false).unwrap();
        let mut said = String::new();
        stream.stdout.read_to_string(&mut said).await.unwrap();
        assert_eq!(of(&said), before);
        let after = of(&std::fs::read_to_string("/proc/self/status").unwrap());
        assert_eq!(after, ours);
    }
}
