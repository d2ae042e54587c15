//! `container.provision` and `container.provision_until`: a command of the inventory's, run inside a container.
//!
//! It runs in the container and nowhere else: an argument vector, or a script on the standard input of the
//! guest's shell. The host's environment does not reach it.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::deadline;
use crate::durable;
use crate::lxc;
use crate::secret::SecretName;
use crate::step::{Context, Done, Program, Step, fail, io_failure};
use crate::steps::container_await_address::has_address;
use crate::steps::container_start::keep_running;

/// How long a container that was started again may take to have an address. Without one it is provisioned all the same.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a look into the container may take.
const LOOK_TIME: Duration = Duration::from_secs(30);
/// How long it may take until what was written in the container is on the disk.
const SYNC_TIME: Duration = Duration::from_secs(600);
/// How often is looked.
const POLL: Duration = Duration::from_millis(50);

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// An argument vector.
    Argv(Vec<String>),
    /// A script for `/bin/sh`.
    Script(String),
}

/// Runs a command in a container, once: nothing could tell afterwards whether it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProvision {
    /// The container.
    pub container: ContainerName,
    /// Which entry of the inventory's list, from 0.
    pub entry: u32,
    /// What is run.
    pub command: Command,
    /// How long it may take, in seconds.
    pub timeout_s: u32,
}

/// Runs a command in a container unless what it creates is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProvisionUntil {
    /// The container.
    pub container: ContainerName,
    /// Which entry of the inventory's list, from 0.
    pub entry: u32,
    /// What is run.
    pub command: Command,
    /// The absolute path, in the container, of what it creates.
    pub creates: String,
    /// How long it may take, in seconds.
    pub timeout_s: u32,
}

/// Whether it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// False when there was nothing to do.
    pub ran: bool,
}

pub(super) const GOES_WITH_IT: &str = "what it did goes with its container";

fn provisioned(
    context: &Context<'_>,
    container: &ContainerName,
    entry: u32,
    ran: bool,
) -> Done<Provisioned> {
    let fact = Fact::Provisioned {
        host: context.host.clone(),
        container: container.clone(),
        entry,
    };
    Done {
        changed: ran,
        output: Provisioned { ran },
        facts: vec![fact],
    }
}

/// The program on the host that runs a command in a container. The command finds secrets in variables; the program is
/// told which of its own to keep, so that no value is among its arguments.
fn attach(
    context: &Context<'_>,
    container: &ContainerName,
    command: &Command,
    secrets: &[SecretName],
    timeout_s: u32,
) -> Result<Program, StepFailure> {
    let mut program = lxc::program(context.layout, "lxc-attach", container);
    let environment = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "USER=root",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
    ];
    program.argv.push("--clear-env".to_owned());
    for variable in environment {
        program
            .argv
            .extend(["--set-var".to_owned(), variable.to_owned()]);
    }
    for secret in secrets {
        program
            .argv
            .extend(["--keep-var".to_owned(), secret.variable()]);
        program = program.secret(secret);
    }
    program.argv.push("--".to_owned());
    match command {
        Command::Argv(argv) if argv.first().is_none_or(String::is_empty) => {
            return Err(fail(
                FailureClass::Unknown,
                "a provisioning command is empty",
            ));
        }
        Command::Argv(argv) => program.argv.extend(argv.iter().cloned()),
        Command::Script(script) => {
            program.argv.extend(["/bin/sh".to_owned(), "-s".to_owned()]);
            program = program.stdin(script.as_bytes());
        }
    }
    Ok(program
        .timeout(Duration::from_secs(u64::from(timeout_s).max(1)))
        .lasting())
}

fn run(
    context: &mut Context<'_>,
    container: &ContainerName,
    command: &Command,
    secrets: &[SecretName],
    timeout_s: u32,
) -> Result<(), StepFailure> {
    let program = attach(context, container, command, secrets, timeout_s)?;
    context.run(&program).map(drop)
}

/// Makes what was written in the container durable: on the file system that holds it, and on the one that it has for its
/// root, which may be another.
fn settle(context: &mut Context<'_>, container: &ContainerName) -> Result<(), StepFailure> {
    durable::sync_file_system(&context.layout.container(container))?;
    let Some(pid) = lxc::init_pid(context, container)? else {
        return Ok(());
    };
    let root = context.layout.root.join(format!("proc/{pid}/root"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |e: Errno| io_failure("syncing the file system of", &root, &e.into());
    let opened = match rustix::fs::open(&root, flags, Mode::empty()) {
        // It was stopped meanwhile; what it had mounted was written back by that.
        Err(Errno::NOENT | Errno::SRCH) => return Ok(()),
        other => other.map_err(failed)?,
    };
    match deadline::answer(SYNC_TIME, move || rustix::fs::syncfs(&opened)) {
        Some(synced) => synced.map_err(failed),
        None => Err(fail(
            FailureClass::Host,
            format!("the root file system of {container} does not answer"),
        )),
    }
}

/// The container runs, and where it has to be started again for that, has an address before it is provisioned.
fn bring_up(
    context: &mut Context<'_>,
    container: &ContainerName,
) -> Result<Vec<Fact>, StepFailure> {
    let facts = keep_running(context, container)?;
    let begun = Instant::now();
    while !facts.is_empty() && begun.elapsed() < ADDRESS_TIMEOUT {
        let pid = lxc::init_pid(context, container)?;
        if pid.is_some_and(|pid| has_address(context.layout, pid)) {
            break;
        }
        thread::sleep(POLL);
    }
    Ok(facts)
}

fn title(command: &Command) -> String {
    match command {
        Command::Argv(argv) => tallybook_events::argv::text(argv),
        Command::Script(script) => format!("a script of {} lines", script.lines().count()),
    }
}

impl ContainerProvision {
    /// Runs the command, with these secrets.
    pub(super) fn run_with(
        &self,
        context: &mut Context<'_>,
        secrets: &[SecretName],
    ) -> Result<Done<Provisioned>, StepFailure> {
        let (container, command) = (&self.container, &self.command);
        let mut facts = bring_up(context, container)?;
        run(context, container, command, secrets, self.timeout_s)?;
        // Crash boundary: what the receipt says was done is on the disk before it.
        settle(context, container)?;
        let mut done = provisioned(context, container, self.entry, true);
        facts.append(&mut done.facts);
        Ok(Done { facts, ..done })
    }
}

impl Step for ContainerProvision {
    const KIND: &'static str = "container.provision";
    const ONCE: bool = true;
    type Output = Provisioned;

    fn summary(&self) -> String {
        format!(
            "provision {} (entry {}): {}",
            self.container,
            self.entry,
            title(&self.command)
        )
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: GOES_WITH_IT.to_owned(),
        }
    }

    fn probe(&self, _context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        Ok(Seen::Unknown {
            why: "the command names nothing that it creates".to_owned(),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        self.run_with(context, &[])
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        // Nothing of it can be seen: whoever takes it over has looked, and says why.
        Ok(provisioned(context, &self.container, self.entry, true))
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Provisioned>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

/// Looks for a path within a root; `None` when what is mounted there, maybe by the container itself, does not answer.
fn look(root: OwnedFd, inside: PathBuf, within: Duration) -> Option<Result<(), Errno>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    deadline::answer(within, move || {
        openat2(&root, &inside, flags, Mode::empty(), resolve).map(drop)
    })
}

impl ContainerProvisionUntil {
    /// Whether what it creates is there, seen through the container's own root: resolved within it, as its own
    /// processes would, and only looked at.
    fn is_created(&self, context: &mut Context<'_>) -> Result<Option<bool>, StepFailure> {
        let path = Path::new(&self.creates);
        let Ok(inside) = path.strip_prefix("/") else {
            return Err(fail(
                FailureClass::Unknown,
                format!("{:?} is not an absolute path", self.creates),
            ));
        };
        if inside
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(fail(
                FailureClass::Unknown,
                format!("{:?} is not a plain path", self.creates),
            ));
        }
        let Some(pid) = lxc::init_pid(context, &self.container)? else {
            return Ok(None);
        };
        let root = context.layout.root.join(format!("proc/{pid}/root"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_dir = rustix::fs::open(&root, flags, Mode::empty())
            .map_err(|e| io_failure("opening", &root, &e.into()))?;
        match look(root_dir, inside.to_owned(), LOOK_TIME) {
            Some(Ok(())) => Ok(Some(true)),
            Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => Ok(Some(false)),
            Some(Err(e)) => Err(io_failure("looking in the container for", path, &e.into())),
            None => Err(fail(
                FailureClass::Host,
                format!(
                    "{} in {} lies on a file system that does not answer",
                    self.creates, self.container
                ),
            )),
        }
    }

    /// Runs the command unless what it creates is there, with these secrets.
    pub(super) fn run_with(
        &self,
        context: &mut Context<'_>,
        secrets: &[SecretName],
    ) -> Result<Done<Provisioned>, StepFailure> {
        let (container, command) = (&self.container, &self.command);
        let mut facts = bring_up(context, container)?;
        let ran = self.is_created(context)? != Some(true);
        if ran {
            run(context, container, command, secrets, self.timeout_s)?;
        }
        if !ran || self.is_created(context)? == Some(true) {
            // What an earlier start left may not be on the disk either.
            settle(context, container)?;
            let mut done = provisioned(context, container, self.entry, ran);
            facts.append(&mut done.facts);
            return Ok(Done { facts, ..done });
        }
        Err(StepFailure {
            hint: Some("correct `creates` in the inventory, or the command".to_owned()),
            ..fail(
                FailureClass::Command,
                format!(
                    "the command ended well, and {} is not there in {}",
                    self.creates, self.container
                ),
            )
        })
    }
}

impl Step for ContainerProvisionUntil {
    const KIND: &'static str = "container.provision_until";
    type Output = Provisioned;

    fn summary(&self) -> String {
        format!(
            "provision {} (entry {}) unless {} is there: {}",
            self.container,
            self.entry,
            self.creates,
            title(&self.command)
        )
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: GOES_WITH_IT.to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        match self.is_created(context)? {
            Some(true) => provisioned(context, &self.container, self.entry, false).seen(),
            Some(false) => Ok(Seen::Absent),
            None => Ok(Seen::Unknown {
                why: format!("container {} does not run", self.container),
            }),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        self.run_with(context, &[])
    }

    fn undo(
        &self,
        _context: &mut Context<'_>,
        _output: Option<Provisioned>,
    ) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_does_not_answer_is_not_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("srv")).unwrap();
        let open = || rustix::fs::open(temp.path(), OFlags::PATH, Mode::empty()).unwrap();
        let within = Duration::from_millis(300);
        let silent = deadline::tests::Silent::mount(&temp.path().join("srv"));
        assert_eq!(look(open(), "srv/made".into(), within), None);
        drop(silent);
        let within = Duration::from_secs(60);
        let missing = Some(Err(Errno::NOENT));
        assert_eq!(look(open(), "srv/made".into(), within), missing);
    }
}
