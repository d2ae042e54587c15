//! A link for tests of steps: it plays LXC and the other programs that the steps of containers run, against a
//! temporary directory.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tallybook_agent::layout::Layout;
use tallybook_agent::secret::SecretName;
use tallybook_agent::step::{Context, Ended, FrozenWatch, Link, Program, Step, fail};
use tallybook_agent::{set_aside, steps};
use tallybook_events::codec;
use tallybook_events::ids::{Attempt, Blob, LogId, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Captured, FailureClass, Seen, StepDone, StepFailure, StepKey};

/// Plays LXC, `busybox --list-full`, `ssh-keygen`, `unshare` and debootstrap.
#[derive(Default)]
pub(crate) struct Played {
    /// LXC's path.
    pub(crate) lxc: PathBuf,
    /// What runs, and whether it is frozen.
    pub(crate) running: BTreeMap<String, bool>,
    /// Containers that do not stop when they are asked.
    pub(crate) deaf: BTreeSet<String>,
    /// Every program that was run.
    pub(crate) ran: Vec<Vec<String>>,
    /// The secrets that each was given.
    pub(crate) given: Vec<Vec<SecretName>>,
    /// Programs that fail, with what they print.
    pub(crate) failing: BTreeMap<String, String>,
    keys_made: u32,
}

impl Played {
    /// With LXC's path of this layout.
    pub(crate) fn new(layout: &Layout) -> Self {
        Played {
            lxc: layout.lxc.clone(),
            ..Played::default()
        }
    }

    /// How often a program was run.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.ran.iter().filter(|argv| argv[0] == name).count()
    }

    fn lxc(&mut self, program: &Program) -> (i32, String) {
        let argv = &program.argv;
        let name = argv[argv.iter().position(|arg| arg == "-n").unwrap() + 1].clone();
        assert_eq!(
            argv[1..3],
            ["-P".to_owned(), self.lxc.display().to_string()]
        );
        let known = self.lxc.join(&name).join("config").exists();
        let frozen = self.running.get(&name).copied();
        let flag = |flag: &str| argv.iter().any(|arg| arg == flag);
        match argv[0].as_str() {
            _ if !known => (1, format!("{name} doesn't exist")),
            "lxc-info" if flag("-p") => {
                if frozen.is_some() {
                    (0, "4242".into())
                } else {
                    (1, String::new())
                }
            }
            "lxc-info" => (
                0,
                match frozen {
                    None => "STOPPED".into(),
                    Some(false) => "RUNNING".into(),
                    Some(true) => "FROZEN".into(),
                },
            ),
            "lxc-start" => {
                self.running.insert(name, false);
                (0, String::new())
            }
            "lxc-stop" => {
                if flag("--kill") || !self.deaf.contains(&name) {
                    self.running.remove(&name);
                }
                (0, String::new())
            }
            "lxc-freeze" => {
                self.running.insert(name, true);
                (0, String::new())
            }
            "lxc-unfreeze" => {
                self.running.insert(name, false);
                (0, String::new())
            }
            "lxc-attach" => (0, String::new()),
            other => panic!("LXC has no {other}"),
        }
    }

    fn ssh_keygen(&mut self, argv: &[String]) -> (i32, String) {
        if argv.iter().any(|arg| arg == "-l") {
            return (
                0,
                format!("256 SHA256:print{} root@x (ED25519)", self.keys_made),
            );
        }
        self.keys_made += 1;
        let path = Path::new(argv.last().unwrap());
        fs::write(path, format!("private {}", self.keys_made)).unwrap();
        fs::write(
            path.with_extension("pub"),
            format!("public {}", self.keys_made),
        )
        .unwrap();
        (0, String::new())
    }

    fn debootstrap(argv: &[String]) -> (i32, String) {
        let rootfs = Path::new(&argv[argv.len() - 2]);
        for dir in [
            "etc/network",
            "etc/apt",
            "etc/ssh",
            "etc/systemd/system",
            "usr/lib/systemd",
            "var/lib/dbus",
            "root",
        ] {
            fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        fs::write(rootfs.join("usr/lib/systemd/systemd"), "init").unwrap();
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(rootfs.join("etc/ssh/ssh_host_rsa_key"), "everyone's").unwrap();
        (0, "I: Base system installed successfully.".into())
    }
}

impl Link for Played {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        self.ran.push(program.argv.clone());
        self.given.push(program.secrets.iter().cloned().collect());
        let name = program.argv[0].clone();
        let (exit, said) = if let Some(said) = self.failing.get(&name) {
            (1, said.clone())
        } else {
            match name.as_str() {
                "busybox" => (0, "bin/ls\nbin/sh\nsbin/init\nsbin/udhcpc\n".into()),
                "ssh-keygen" => self.ssh_keygen(&program.argv),
                "flock" => Self::debootstrap(&program.argv),
                "unshare" | "apt-config" => (0, String::new()),
                name if name.starts_with("lxc-") => self.lxc(program),
                other => panic!("nobody plays {other}"),
            }
        };
        Ok(Ended {
            exit: Some(exit),
            stdout: said.into_bytes(),
            stderr: Vec::new(),
        })
    }

    fn progress(&mut self, _what: &str, _done: u64, _total: u64) {}

    fn stop_requested(&mut self) -> bool {
        false
    }

    fn send_peer(&mut self, _bytes: Vec<u8>) -> Result<(), StepFailure> {
        Err(fail(FailureClass::Peer, "there is no other end"))
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        Err(fail(FailureClass::Peer, "there is no other end"))
    }

    fn watch_frozen(&mut self, _: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure> {
        Ok(Box::new(()))
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}

/// One operation on one host, its steps run through the table as the agent runs them.
pub(crate) struct Operation<L> {
    /// Where things are.
    pub(crate) layout: Layout,
    /// What runs programs.
    pub(crate) link: L,
    /// What was reported so far.
    pub(crate) outputs: BTreeMap<StepIndex, Blob>,
    /// The operation.
    pub(crate) id: OperationId,
}

impl<L: Link> Operation<L> {
    /// An operation with this number.
    pub(crate) fn new(layout: Layout, link: L, number: u8) -> Self {
        let id = OperationId::new(1_790_000_000_000, [number; 10]);
        Operation {
            layout,
            link,
            outputs: BTreeMap::new(),
            id,
        }
    }

    fn with<T>(&mut self, index: u32, act: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let host = HostName::new("cn1").unwrap();
        let step = StepIndex(index);
        let key = StepKey {
            log: LogId::new(1, [1; 10]),
            operation: self.id,
            step,
            attempt: Attempt(1),
        };
        act(&mut Context {
            host: &host,
            layout: &self.layout,
            key,
            origin: (self.id, step),
            outputs: &self.outputs,
            link: &mut self.link,
        })
    }

    /// Carries a step out and keeps its output.
    pub(crate) fn forward<S: Step>(
        &mut self,
        index: u32,
        step: &S,
    ) -> Result<StepDone, StepFailure> {
        let row = steps::find(S::KIND).unwrap();
        let params = Blob(codec::encode(step).unwrap());
        let done = self.with(index, |context| (row.forward)(&params, context))?;
        self.outputs.insert(StepIndex(index), done.output.clone());
        Ok(done)
    }

    /// Looks at a step.
    pub(crate) fn probe<S: Step>(&mut self, index: u32, step: &S) -> Seen {
        let row = steps::find(S::KIND).unwrap();
        let params = Blob(codec::encode(step).unwrap());
        self.with(index, |context| (row.probe)(&params, context))
            .unwrap()
    }

    /// Moves what others have in a step's place out of its way; how many things.
    pub(crate) fn set_aside<S: Step>(
        &mut self,
        index: u32,
        step: &S,
    ) -> Result<usize, StepFailure> {
        let row = steps::find(S::KIND).unwrap();
        let params = Blob(codec::encode(step).unwrap());
        self.with(index, |context| {
            let paths = (row.in_the_way)(&params, context)?;
            Ok(set_aside::clear(context, &paths)?.len())
        })
    }

    /// Puts back what a step set aside; how many things were to be.
    pub(crate) fn put_back(&mut self, index: u32) -> usize {
        self.with(index, set_aside::put_back).unwrap().len()
    }

    /// Describes what is in a step's place, and keeps that as its output.
    pub(crate) fn adopt<S: Step>(&mut self, index: u32, step: &S) -> Result<StepDone, StepFailure> {
        let row = steps::find(S::KIND).unwrap();
        let params = Blob(codec::encode(step).unwrap());
        let done = self.with(index, |context| (row.adopt)(&params, context))?;
        self.outputs.insert(StepIndex(index), done.output.clone());
        Ok(done)
    }

    /// Takes a step back, with its recorded output if there is one.
    pub(crate) fn undo<S: Step>(&mut self, index: u32, step: &S) -> Result<StepDone, StepFailure> {
        let row = steps::find(S::KIND).unwrap();
        let params = Blob(codec::encode(step).unwrap());
        let output = self.outputs.get(&StepIndex(index)).cloned();
        self.with(index, |context| {
            (row.undo)(&params, context, output.as_ref())
        })
    }
}
