//! Two ends in one process, joined by channels that can be cut and bent.

mod damage;
mod fidelity;
mod hostile;
mod interruption;
mod messages;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tallybook_events::ids::{Attempt, Blob, Generation, Hash, LogId, OperationId, StepIndex};
use tallybook_events::name::{HostName, TemplateName};
use tallybook_events::step::{Captured, FailureClass, Seen, StepFailure, StepKey};

use super::message::FromSender;
use super::receive::Received;
use super::send::{Sent, serve};
use crate::layout::Layout;
use crate::protocol::SendSource;
use crate::step::{Context, Ended, Link, Program, Step, fail};
use crate::steps::tree_receive::{Expect, TreeReceive};
use crate::tree::Root;
use crate::tree::manifest::{self, Manifest};

/// What happens to a frame on its way.
enum Fate {
    Arrives(Vec<u8>),
    /// This much of it arrives, and then nothing ever again.
    Cut(Option<Vec<u8>>),
}

/// How the sending and the receiving end ended.
type Outcome = (Result<Sent, StepFailure>, Result<Received, StepFailure>);

type Bend = Box<dyn FnMut(Vec<u8>) -> Fate + Send>;

struct ChannelLink {
    to: Option<Sender<Vec<u8>>>,
    from: Receiver<Vec<u8>>,
    bend: Bend,
    /// The lengths of the frames this end sent.
    sent: Vec<usize>,
    progress: Vec<(String, u64, u64)>,
    /// Whether a stop is asked for once content is being received.
    stop_when_receiving: bool,
}

fn lost() -> StepFailure {
    fail(FailureClass::Peer, "the other end is gone")
}

impl Link for ChannelLink {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        Err(fail(
            FailureClass::Command,
            format!("no program runs here: {:?}", program.argv),
        ))
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.progress.push((what.to_owned(), done, total));
    }

    fn stop_requested(&mut self) -> bool {
        self.stop_when_receiving && self.progress.iter().any(|told| told.0 == "receiving")
    }

    fn send_peer(&mut self, bytes: Vec<u8>) -> Result<(), StepFailure> {
        self.sent.push(bytes.len());
        let to = self.to.as_ref().ok_or_else(lost)?;
        match (self.bend)(bytes) {
            Fate::Arrives(bytes) => to.send(bytes).map_err(|_| lost()),
            Fate::Cut(rest) => {
                if let Some(rest) = rest {
                    to.send(rest).map_err(|_| lost())?;
                }
                self.to = None;
                Err(lost())
            }
        }
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        // As the real one: a stop ends a wait.
        if self.stop_requested() {
            return Err(fail(FailureClass::Interrupted, "it was asked to stop"));
        }
        self.from
            .recv_timeout(Duration::from_secs(30))
            .map_err(|_| lost())
    }

    fn watch_frozen(
        &mut self,
        _: &crate::step::FrozenWatch,
    ) -> Result<Box<dyn std::any::Any>, StepFailure> {
        Err(fail(FailureClass::Other, "nothing is frozen here"))
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}

fn straight() -> Bend {
    Box::new(Fate::Arrives)
}

fn links(sender_bend: Bend) -> (ChannelLink, ChannelLink) {
    let (to_receiver, from_sender) = channel();
    let (to_sender, from_receiver) = channel();
    let link = |to, from, bend| ChannelLink {
        to: Some(to),
        from,
        bend,
        sent: Vec::new(),
        progress: Vec::new(),
        stop_when_receiving: false,
    };
    (
        link(to_receiver, from_receiver, sender_bend),
        link(to_sender, from_sender, straight()),
    )
}

/// Two hosts, each a directory.
struct Hosts {
    dir: tempfile::TempDir,
    source: Layout,
    dest: Layout,
}

const OPERATION: OperationId = OperationId::from_bytes([3; 16]);
const STEP: StepIndex = StepIndex(4);

fn web() -> TemplateName {
    TemplateName::new("web").unwrap()
}

fn sent_generation() -> SendSource {
    SendSource::Template {
        template: web(),
        generation: Generation(1),
    }
}

impl Hosts {
    /// With an empty generation 1 of the template `web` on the source.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Layout::below(&dir.path().join("source"));
        let dest = Layout::below(&dir.path().join("dest"));
        fs::create_dir_all(source.generation(&web(), Generation(1)).join("rootfs")).unwrap();
        Hosts { dir, source, dest }
    }

    fn rootfs(&self) -> PathBuf {
        self.source.generation(&web(), Generation(1)).join("rootfs")
    }

    fn staging(&self) -> PathBuf {
        self.dest.staging(OPERATION, STEP)
    }

    fn received(&self) -> PathBuf {
        self.staging().join("rootfs")
    }

    /// Writes the manifest of the source's tree.
    fn seal(&self) -> Hash {
        seal(&self.source.generation(&web(), Generation(1)))
    }

    fn transfer(&self, expect: Hash) -> Outcome {
        self.transfer_bent(expect, straight()).0
    }

    fn transfer_bent(&self, expect: Hash, bend: Bend) -> (Outcome, ChannelLink) {
        let (mut sender, mut receiver) = links(bend);
        let step = step(expect);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let sent = serve(&mut sender, &sent_generation(), &self.source);
                // Dropping it is what the other end sees of a line that is gone.
                drop(sender);
                sent
            });
            let received = forward(&step, &self.dest, &mut receiver);
            receiver.to = None;
            let outcome = (sending.join().unwrap(), received);
            (outcome, receiver)
        })
    }
}

fn step(expect: Hash) -> TreeReceive {
    TreeReceive {
        expect: Expect::Id(expect),
        what: "generation 1 of template web".to_owned(),
    }
}

fn with_context<T>(
    layout: &Layout,
    link: &mut dyn Link,
    act: impl FnOnce(&mut Context<'_>) -> T,
) -> T {
    with_outputs(layout, link, &BTreeMap::new(), act)
}

fn with_outputs<T>(
    layout: &Layout,
    link: &mut dyn Link,
    outputs: &BTreeMap<StepIndex, Blob>,
    act: impl FnOnce(&mut Context<'_>) -> T,
) -> T {
    let host = HostName::new("dest").unwrap();
    act(&mut Context {
        host: &host,
        layout,
        key: StepKey {
            log: LogId::from_bytes([1; 16]),
            operation: OPERATION,
            step: STEP,
            attempt: Attempt(1),
        },
        origin: (OPERATION, STEP),
        outputs,
        link,
    })
}

fn forward(
    step: &TreeReceive,
    layout: &Layout,
    link: &mut dyn Link,
) -> Result<Received, StepFailure> {
    with_context(layout, link, |context| {
        step.forward(context).map(|done| done.output)
    })
}

fn probe(step: &TreeReceive, layout: &Layout) -> Seen {
    let (mut link, _other) = links(straight());
    with_context(layout, &mut link, |context| step.probe(context).unwrap())
}

fn build(rootfs: &Path) -> Manifest {
    let root = Root::open(rootfs).unwrap();
    manifest::build(root.as_fd(), &mut |_| ControlFlow::Continue(())).unwrap()
}

fn seal(generation: &Path) -> Hash {
    let manifest = build(&generation.join("rootfs"));
    fs::write(generation.join("manifest"), manifest.encode()).unwrap();
    manifest.id()
}

/// A message of the sending end, if these bytes are one.
fn peek(bytes: &[u8]) -> Option<FromSender> {
    super::message::decode(bytes).ok()
}

fn run(dir: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("LC_ALL", "C")
        .current_dir(dir)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Bytes that hardly compress, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// What independent programs say of a tree.
fn observed(dir: &Path) -> String {
    run(
        dir,
        r#"
        find . -type d -printf '%p|%y|%m|%U|%G|%T@\n' | sort
        find . ! -type d -printf '%p|%y|%m|%U|%G|%s|%T@|%l|%n\n' | sort
        find . \( -type b -o -type c \) -exec stat -c '%n %t %T' {} + | sort
        find . -type f -links +1 -printf '%i %p\n' | sort -k2 | awk '{ if (!($1 in first)) first[$1] = $2; print $2, first[$1] }'
        find . -type f -print0 | sort -z | xargs -0 -r sha256sum
        find . -print0 | sort -z | xargs -0 -r getfattr -h -d -m - -e hex
        "#,
    )
}
