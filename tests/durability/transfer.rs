//! The journal of a tree that is being received, and the tree that it speaks of.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tallybook_agent::layout::Layout;
use tallybook_agent::step::{Context, Ended, FrozenWatch, Link, Program, Step, fail};
use tallybook_agent::steps::tree_receive::{Expect, TreeReceive};
use tallybook_agent::transfer::message::{self, FromReceiver, FromSender, Pack};
use tallybook_agent::transfer::receive::Received;
use tallybook_agent::tree::Root;
use tallybook_agent::tree::manifest::{self, Entry, Manifest};
use tallybook_events::codec;
use tallybook_events::ids::{Attempt, Blob, Hash, StepIndex};
use tallybook_events::step::{Captured, FailureClass, Seen, StepFailure, StepKey};
use tallybook_testkit::samples;

use crate::calls::{driven, say};
use crate::judge::{Failure, Judge, Said, Subject, calls_before, failures, unsynced_at};

/// How many packs come before the line is cut, in one attempt after the other.
const CUTS: [usize; 3] = [2, 3, usize::MAX];
/// One more than the attempts that the driver needs when one call fails.
const ATTEMPTS_MAX: usize = 5;

/// A tree and the bytes of its pieces: the sending end.
struct Source {
    manifest: Manifest,
    pieces: Vec<(Hash, Vec<u8>)>,
    _dir: tempfile::TempDir,
}

impl Source {
    /// The same tree each time, times and all.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("etc/empty")).unwrap();
        for n in 0..9 {
            // Some are shorter than a sector, some longer than a page.
            fs::write(at(&format!("etc/{n}")), noise(n, 200 + 1_700 * n as usize)).unwrap();
        }
        fs::write(at("copy"), noise(4, 200 + 1_700 * 4)).unwrap();
        fs::write(at("nothing"), b"").unwrap();
        fs::hard_link(at("etc/5"), at("link")).unwrap();
        std::os::unix::fs::symlink("etc/1", at("symlink")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let build = || manifest::build(root.as_fd(), &mut |_| ControlFlow::Continue(())).unwrap();
        for entry in build().entries().iter().rev() {
            let time = Timespec {
                tv_sec: 1_795_000_000,
                tv_nsec: 0,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            let path = dir.path().join(entry.path.as_path());
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let manifest = build();
        let mut pieces: Vec<(Hash, Vec<u8>)> = Vec::new();
        for entry in manifest.entries() {
            for piece in entry.content().into_iter().flat_map(|it| it.pieces()) {
                let bytes = fs::read(dir.path().join(entry.path.as_path())).unwrap();
                if !pieces.iter().any(|(hash, _)| *hash == piece.hash) {
                    pieces.push((piece.hash, bytes));
                }
            }
        }
        Source {
            manifest,
            pieces,
            _dir: dir,
        }
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// The sending end as the receiving one sees it: so many packs, a piece each, and then no line.
struct Sender<'a> {
    source: &'a Source,
    packs_max: usize,
    queue: VecDeque<Vec<u8>>,
    /// How many packs went out.
    sent: u64,
    /// Before which pack the line is slow, and for how long.
    pause: Option<(u64, Duration)>,
}

impl<'a> Sender<'a> {
    fn new(source: &'a Source, packs_max: usize) -> Self {
        let offer = FromSender::Offer {
            manifest: source.manifest.id(),
            manifest_len: source.manifest.encode().len() as u64,
        };
        Sender {
            source,
            packs_max,
            queue: VecDeque::from([message::encode(offer).unwrap()]),
            sent: 0,
            pause: None,
        }
    }

    fn answer(&mut self, said: FromReceiver) {
        match said {
            FromReceiver::WantManifest => {
                let bytes = self.source.manifest.encode();
                self.say(FromSender::Manifest {
                    len: bytes.len() as u32,
                    bytes: Blob(framed(&bytes)),
                });
            }
            FromReceiver::Want { pieces, .. } => {
                let numbers = pieces
                    .iter()
                    .flat_map(|(first, count)| *first..first + count);
                for number in numbers.take(self.packs_max) {
                    let bytes = self.source.pieces[number as usize].1.clone();
                    self.say(FromSender::Pack(Pack {
                        id: blake3::hash(&bytes).into(),
                        pieces: vec![(number, 1)],
                        zstd: false,
                        bytes: Blob(bytes),
                    }));
                }
            }
            FromReceiver::Credit { .. }
            | FromReceiver::Working
            | FromReceiver::Done
            | FromReceiver::Failed(_) => {}
        }
    }

    fn say(&mut self, message: FromSender) {
        self.queue.push_back(message::encode(message).unwrap());
    }
}

/// Bytes as a frame of zstd that compresses nothing (RFC 8878, 3.1.1): one raw block.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    assert!(len < 128 * 1024, "one block holds no more");
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&(len << 3 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(bytes);
    frame
}

fn lost() -> StepFailure {
    fail(FailureClass::Peer, "the line was cut")
}

impl Link for Sender<'_> {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        panic!("{program:?}")
    }

    fn progress(&mut self, _: &str, _: u64, _: u64) {}

    fn stop_requested(&mut self) -> bool {
        false
    }

    fn send_peer(&mut self, bytes: Vec<u8>) -> Result<(), StepFailure> {
        self.answer(message::decode(&bytes)?);
        Ok(())
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        let bytes = self.queue.pop_front().ok_or_else(lost)?;
        if let FromSender::Pack(_) = message::decode(&bytes)? {
            self.sent += 1;
            if let Some((_, pause)) = self.pause.take_if(|it| it.0 == self.sent) {
                std::thread::sleep(pause);
            }
        }
        Ok(bytes)
    }

    fn watch_frozen(&mut self, watch: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure> {
        panic!("{watch:?}")
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}

fn with<T>(
    root: &Path,
    link: &mut Sender<'_>,
    act: impl FnOnce(&TreeReceive, &mut Context<'_>) -> T,
) -> T {
    let step = TreeReceive {
        expect: Expect::Id(link.source.manifest.id()),
        what: "generation 1 of template web".to_owned(),
    };
    let (layout, host) = (Layout::below(root), samples::host("a"));
    let (operation, index) = (samples::operation(1), StepIndex(2));
    act(
        &step,
        &mut Context {
            host: &host,
            layout: &layout,
            key: StepKey {
                log: samples::log(),
                operation,
                step: index,
                attempt: Attempt(1),
            },
            origin: (operation, index),
            outputs: &BTreeMap::new(),
            link,
        },
    )
}

fn receive(root: &Path, link: &mut Sender<'_>) -> Result<Received, StepFailure> {
    with(root, link, |step, context| {
        step.forward(context).map(|done| done.output)
    })
}

/// What a step reported that is whole.
fn probe(root: &Path, source: &Source) -> Result<Option<Received>, String> {
    let mut link = Sender::new(source, 0);
    let seen = with(root, &mut link, |step, context| step.probe(context));
    match seen.map_err(|failure| failure.message)? {
        Seen::Done(done) => Ok(Some(codec::decode(&done.output.0).unwrap())),
        Seen::Absent | Seen::Partial { .. } => Ok(None),
        other @ (Seen::Conflict { .. } | Seen::Unknown { .. }) => Err(format!("{other:?}")),
    }
}

#[test]
fn drive() {
    act(None);
}

/// What has come is made durable every five seconds: here once amid the packs.
#[test]
fn drive_slowly() {
    act(Some((3, Duration::from_millis(5_100))));
}

fn act(pause: Option<(u64, Duration)>) {
    let Some(root) = driven() else {
        return;
    };
    let source = Source::new();
    let mut pause = pause;
    let mut cuts = CUTS.iter();
    let mut packs_max = cuts.next();
    let mut pieces = 0;
    for _ in 0..ATTEMPTS_MAX {
        let Some(packs) = packs_max else { break };
        say("receiving", 1);
        let mut link = Sender::new(&source, *packs);
        if *packs > 3 {
            link.pause = pause.take();
        }
        match receive(&root, &mut link) {
            Ok(received) => {
                assert_eq!(received.repaired, None);
                say("acked", received.resumed_pieces + received.received_pieces);
                say("whole", 1);
                packs_max = None;
            }
            Err(failure) if failure.message == lost().message => {
                // What has come is not asked for again.
                pieces += link.sent;
                say("acked", pieces);
                packs_max = cuts.next();
            }
            Err(failure) => {
                println!("why: {:?}: {}", failure.class, failure.message);
                say("refused", 1);
            }
        }
    }
    say("probing", 1);
    assert!(probe(&root, &source).unwrap().is_some());
}

struct Transfers {
    source: Source,
    driver: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    whole: bool,
    /// How many pieces were there.
    pieces: u64,
}

impl Transfers {
    fn new() -> Self {
        Transfers::driven_by("transfer::drive")
    }

    fn driven_by(driver: &'static str) -> Self {
        Transfers {
            source: Source::new(),
            driver,
        }
    }

    /// Compares the tree with its manifest, but for what the model of a disk does not have: owners, permissions, times.
    fn check_tree(&self, root: &Path) -> Result<(), String> {
        let staging = Layout::below(root).staging(samples::operation(1), StepIndex(2));
        for entry in self.source.manifest.entries() {
            let path = staging.join("rootfs").join(entry.path.as_path());
            let there = fs::symlink_metadata(&path).map_err(|e| format!("{path:?}: {e}"))?;
            let content = entry.content().or_else(|| self.linked(entry));
            if let Some(content) = content.filter(|_| there.is_file()) {
                let found = fs::read(&path).unwrap();
                let hashes: Vec<Hash> = match found.is_empty() {
                    true => Vec::new(),
                    false => vec![blake3::hash(&found).into()],
                };
                if hashes != content.pieces {
                    return Err(format!("{path:?} is not whole"));
                }
            }
        }
        Ok(())
    }

    fn linked(&self, entry: &Entry) -> Option<&manifest::Content> {
        let manifest::Node::Link { first } = &entry.node else {
            return None;
        };
        self.source.manifest.find(first).and_then(Entry::content)
    }
}

impl Subject for Transfers {
    type Shown = Shown;
    const STATES_MAX: usize = 60;

    fn driver(&self) -> &'static str {
        self.driver
    }

    fn recover(&self, root: &Path) -> Result<Shown, String> {
        let told = probe(root, &self.source)?;
        if told.is_some() {
            self.check_tree(root)?;
        }
        let mut link = Sender::new(&self.source, usize::MAX);
        let received = receive(root, &mut link).map_err(|failure| failure.message)?;
        if let Some(repaired) = received.repaired {
            return Err(format!("a loss of power is taken for damage: {repaired}"));
        }
        let again = probe(root, &self.source)?;
        if again.as_ref().map(|it| it.resumed_pieces) != Some(received.resumed_pieces) {
            return Err(format!("{again:?} after the recovery"));
        }
        Ok(Shown {
            whole: told.is_some(),
            pieces: received.resumed_pieces,
        })
    }

    fn judge(&self, shown: &Shown, said: &Said) -> Result<(), String> {
        if said.has("whole") && !shown.whole {
            return Err("it was said to be whole".to_owned());
        }
        match shown.pieces < said.of("acked") {
            true => Err(format!(
                "{} pieces; {} were there",
                shown.pieces,
                said.of("acked")
            )),
            false => Ok(()),
        }
    }
}

/// Syncs that this driver can't show to be needed, and why they are there.
///
/// All is on one file system here, and all of that is synced before the first piece is journalled.
const REDUNDANT: &[(&str, &str)] = &[
    ("fsync . after \"receiving\"", NAMES),
    ("fsync var after \"receiving\"", NAMES),
    ("fsync lib after \"receiving\"", NAMES),
    ("fsync lxc after \"receiving\"", NAMES),
    ("fsync .tallybook after \"receiving\"", NAMES),
    ("fsync staging after \"receiving\"", NAMES),
    (
        "fsync .made-by.new after \"receiving\"",
        "of the mark, which undo goes by before there is anything else",
    ),
    (
        "fsync STAGING after \"receiving\"",
        "of the mark's name, likewise",
    ),
    (
        "fsync STAGING after \"receiving\"",
        "of the manifest's name: without it, it is sent again",
    ),
    (
        "fsync received after \"receiving\"",
        "of the journal's head: one without records is begun anew",
    ),
    (
        "fsync STAGING after \"receiving\"",
        "of the journal's name, likewise",
    ),
    (
        "fsync received after \"receiving\"",
        "of the journal's end, where a torn record is cut off: it is cut off again",
    ),
    (
        "fsync received after \"receiving\"",
        "of the journal's end, likewise",
    ),
    (
        "fdatasync received after \"receiving\"",
        "of the last pieces: when none is missing, all is synced once more, for the tree that is whole",
    ),
];
const NAMES: &str = "of the directories above the tree";

#[test]
fn a_loss_of_power_takes_nothing_that_was_journalled() {
    let mut judge = Judge::new(Transfers::new());
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    assert!(!traced.printed.contains("refused"), "{}", traced.printed);
    let (violations, count) = judge.hold(&ops, None, 10);
    println!("{count:?}, {} recoveries", judge.recoveries);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(count.states > 300, "{count:?}");
    let syncs = judge.syncs(&ops);
    syncs.print();
    let staging = format!("{}-2", samples::operation(1));
    let redundant = syncs
        .redundant
        .iter()
        .map(|call| call.replace(&staging, "STAGING"));
    let named = REDUNDANT.iter().map(|(call, _)| call.to_string());
    assert_eq!(redundant.collect::<Vec<_>>(), named.collect::<Vec<_>>());
    let red = |name: &str| {
        syncs
            .red
            .iter()
            .filter(|(call, _)| call.starts_with(name))
            .count()
    };
    assert_eq!((red("syncfs"), red("fdatasync received")), (4, 3));
}

/// Nothing is journalled before what it speaks of is durable, and nothing is told before the journal is.
#[test]
fn what_is_journalled_was_synced_before() {
    let (_, ops) = Judge::new(Transfers::new()).drive(None);
    assert_eq!(unsynced_at(&ops, "acked"), Vec::<String>::new());
    let calls = calls_before(&ops, "acked");
    for (line, calls) in &calls {
        println!("{line}: {}", calls.join(", "));
        let is_journal = |call: &&String| call.ends_with("/received");
        let is_record = |call: &String| is_journal(&call) && call.starts_with("pwrite64");
        let synced = calls
            .iter()
            .rposition(|call| call.starts_with("syncfs"))
            .unwrap();
        let record = calls.iter().rposition(is_record).unwrap();
        // Between the two, and from there on, nothing but the journal is written.
        let is_other = |call: &&String| !call.contains("sync") && !is_journal(call);
        assert_eq!(calls[synced..].iter().find(is_other), None, "{line}");
        let is_kept = calls[record + 1..]
            .iter()
            .any(|call| call.starts_with("fdatasync"));
        assert!(synced < record && is_kept, "{line}: {calls:?}");
    }
    assert_eq!(calls.len(), CUTS.len());
    // The journal's own name, when it is born: before anything is written to the tree.
    let first = &calls[0].1;
    let born = first
        .iter()
        .position(|call| call.ends_with("/received"))
        .unwrap();
    let named = first[born..]
        .iter()
        .position(|call| call.starts_with("fsync") && call.ends_with("-2"));
    let tree = first.iter().position(|call| call.contains("/rootfs/"));
    assert!(
        named.map(|named| born + named) < tree && named.is_some(),
        "{first:?}"
    );
}

#[test]
fn a_failed_call_is_told_and_nothing_is_journalled_that_is_not_there() {
    let mut judge = Judge::new(Transfers::new());
    let count = judge.fail_each(&[], |Failure { inject, .. }, traced| {
        let printed = &traced.printed;
        // What an earlier process did not get written is told to the next one's first sync, which counts on it.
        let may_be_settled = inject.starts_with("fsync") || inject.starts_with("syncfs");
        assert!(
            printed.contains("why: ") || may_be_settled,
            "{inject}: {printed}"
        );
        if inject.starts_with("fdatasync") {
            assert!(printed.contains("syncing"), "{inject}: {printed}");
        }
        // Whatever failed, a later attempt has it all.
        assert!(printed.contains("whole 1"), "{inject}: {printed}");
    });
    assert!(count["fdatasync"] >= 3 && count["syncfs"] > 3 && count["fsync"] > 8);
}

/// After a failed sync, what is in memory and not on the disk is dropped before it is read or written again.
#[test]
fn what_a_failed_sync_left_in_memory_is_not_believed() {
    let mut judge = Judge::new(Transfers::new());
    let (_, ops) = judge.drive(None);
    let mut failures = failures(&ops, &[]);
    failures.retain(|it| it.inject.starts_with("syncfs") || it.inject.starts_with("fdatasync"));
    // The last sync of all is of names and of what they wear: every file's content was synced before.
    let last = failures
        .iter()
        .rposition(|it| it.inject.starts_with("syncfs"));
    failures.remove(last.unwrap());
    let mut told = 0;
    for failure in failures {
        let (traced, ops) = judge.drive(Some(&failure.inject));
        if !traced.printed.contains("why: ") {
            continue;
        }
        let syncs = judge.syncs(&ops);
        let dropped = |call: &&String| call.starts_with("fadvise64");
        let calls = syncs.red.iter().map(|(call, _)| call).filter(dropped);
        let calls: Vec<_> = calls.collect();
        println!("{failure:?}: {calls:#?}");
        assert!(!calls.is_empty(), "{failure:?}");
        told += 1;
    }
    assert!(told > 3, "{told}");
}

/// A sync amid the packs that failed is not made good by the one at their end: what was received before is not
/// journalled by this attempt.
#[test]
fn a_later_sync_does_not_make_a_failed_one_good() {
    let mut judge = Judge::new(Transfers::driven_by("transfer::drive_slowly"));
    let (traced, ops) = judge.drive(None);
    assert!(traced.succeeded, "{}", traced.printed);
    let mut failures = failures(&ops, &[]);
    failures.retain(|it| it.inject.starts_with("syncfs"));
    // One that settles and one at the end in each attempt, one more for the whole tree; and this one before the last two.
    assert_eq!(failures.len(), 8, "{failures:?}");
    let amid = &failures[5].inject;
    let (traced, ops) = judge.drive(Some(amid));
    let why = "why: Other: what was received may not be on the disk: syncing";
    assert!(traced.printed.contains(why), "{}", traced.printed);
    let (violations, _) = judge.hold(&ops, None, 3);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(traced.printed.contains("whole 1"), "{}", traced.printed);
}
