//! A template from a container to its publication, step by step, with every step repeated, probed and taken back.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use tallybook_events::codec;
use tallybook_events::fact::Fact;
use tallybook_events::ids::{Attempt, Blob, Generation, Hash, LogId, OperationId, StepIndex};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::{Captured, FailureClass, Seen, StepDone, StepFailure, StepKey};

use super::find;
use super::template_publish::{Published, TemplatePublish};
use super::template_scan::TemplateScan;
use super::template_scrub::{Scrubbed, TemplateScrub};
use super::tree_stage::{Staged, TreeStage};
use crate::layout::Layout;
use crate::step::{Context, Ended, FrozenWatch, Link, Program, Step, fail, params};
use crate::template::Source;
use crate::tree::Root;
use crate::tree::manifest::{Aspect, build, differences};

/// A host with LXC and one container.
struct Lxc {
    state: &'static str,
    pid: u32,
    stop: bool,
    /// What happens while the container is copied.
    meanwhile: Option<fn(&mut Lxc)>,
    /// What LXC was told to do, and that somebody watches.
    did: Vec<&'static str>,
    /// LXC says FREEZING, and nothing helps.
    sticks: bool,
    /// Nothing can watch.
    unwatched: bool,
}

impl Link for Lxc {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        let said = match program.argv[0].as_str() {
            "lxc-info" if program.argv.contains(&"-p".to_owned()) => match self.state {
                "STOPPED" => String::new(),
                _ => self.pid.to_string(),
            },
            "lxc-info" => self.state.to_owned(),
            "lxc-freeze" => {
                self.did.push("freeze");
                self.state = "FROZEN";
                String::new()
            }
            "lxc-unfreeze" => {
                self.did.push("thaw");
                if !self.sticks {
                    self.state = "RUNNING";
                }
                String::new()
            }
            other => panic!("nobody plays {other}"),
        };
        Ok(Ended {
            exit: Some(0),
            stdout: format!("{said}\n").into_bytes(),
            stderr: Vec::new(),
        })
    }

    fn watch_frozen(&mut self, watch: &FrozenWatch) -> Result<Box<dyn Any>, StepFailure> {
        if self.unwatched {
            return Err(fail(FailureClass::Host, "nothing can watch"));
        }
        // The mark is durable before anybody watches for it.
        assert_eq!(fs::read_to_string(&watch.mark).expect("mark"), watch.text);
        self.did.push("watch");
        Ok(Box::new(()))
    }

    fn progress(&mut self, _: &str, _: u64, _: u64) {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile(self);
        }
    }

    fn stop_requested(&mut self) -> bool {
        self.stop
    }

    fn send_peer(&mut self, _: Vec<u8>) -> Result<(), StepFailure> {
        Err(fail(FailureClass::Peer, "no peer"))
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        Err(fail(FailureClass::Peer, "no peer"))
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}

struct Host {
    temp: tempfile::TempDir,
    layout: Layout,
    lxc: Lxc,
    operation: OperationId,
}

impl Host {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("tempdir");
        let layout = Layout::below(temp.path());
        let home = layout.lxc.join("web-1");
        fs::create_dir_all(home.join("rootfs/etc/ssh")).expect("mkdir");
        let rootfs = home.join("rootfs");
        fs::write(rootfs.join("etc/hostname"), "web-1\n").expect("write");
        fs::write(
            rootfs.join("etc/machine-id"),
            "0123456789abcdef0123456789abcdef\n",
        )
        .expect("write");
        fs::write(rootfs.join("etc/ssh/ssh_host_rsa_key"), "key\n").expect("write");
        fs::write(rootfs.join("etc/kept"), "content\n").expect("write");
        let config = format!(
            "lxc.arch = amd64\nlxc.net.0.hwaddr = 00:16:3e:01:02:03\nlxc.uts.name = web-1\nlxc.rootfs.path = dir:{}\n",
            rootfs.display()
        );
        fs::write(home.join("config"), config).expect("write");
        Host {
            temp,
            layout,
            lxc: Lxc {
                state: "STOPPED",
                pid: 4242,
                stop: false,
                meanwhile: None,
                did: Vec::new(),
                sticks: false,
                unwatched: false,
            },
            operation: OperationId::new(1, [1; 10]),
        }
    }

    /// Calls one function of a step as the agent does: by its row, with encoded parameters.
    fn with<S: Step, T>(
        &mut self,
        index: u32,
        step: &S,
        call: impl FnOnce(&crate::step::StepKind, &Blob, &mut Context<'_>) -> T,
    ) -> T {
        let host = HostName::new("host1").expect("name");
        let (outputs, index) = (BTreeMap::new(), StepIndex(index));
        let mut context = Context {
            host: &host,
            layout: &self.layout,
            key: StepKey {
                log: LogId::new(1, [2; 10]),
                operation: self.operation,
                step: index,
                attempt: Attempt(1),
            },
            origin: (self.operation, index),
            outputs: &outputs,
            link: &mut self.lxc,
        };
        call(
            find(S::KIND).expect("a row"),
            &params(step).expect("params"),
            &mut context,
        )
    }

    fn forward<S: Step>(&mut self, index: u32, step: &S) -> Result<StepDone, StepFailure> {
        self.with(index, step, |row, params, context| {
            (row.forward)(params, context)
        })
    }

    fn undo<S: Step>(&mut self, index: u32, step: &S) -> Result<StepDone, StepFailure> {
        self.with(index, step, |row, params, context| {
            (row.undo)(params, context, None)
        })
    }

    fn probe<S: Step>(&mut self, index: u32, step: &S) -> Seen {
        self.with(index, step, |row, params, context| {
            (row.probe)(params, context)
        })
        .expect("probe")
    }

    fn staging(&self) -> std::path::PathBuf {
        self.layout.staging(self.operation, StepIndex(0))
    }

    /// Stage and scrub, as a plan would.
    fn scrubbed(&mut self) {
        self.forward(0, &stage()).expect("stage");
        self.forward(1, &scrub(&[])).expect("scrub");
    }
}

fn stage() -> TreeStage {
    TreeStage {
        container: ContainerName::new("web-1").expect("name"),
    }
}

fn source() -> Source {
    Source {
        names: vec!["web-1".to_owned()],
        ..Source::default()
    }
}

fn scrub(keep: &[&str]) -> TemplateScrub {
    TemplateScrub {
        staged: StepIndex(0),
        keep: keep.iter().map(|name| (*name).to_owned()).collect(),
        source: source(),
    }
}

fn scan() -> TemplateScan {
    TemplateScan {
        staged: StepIndex(0),
        source: source(),
        allow: Vec::new(),
    }
}

fn publish(generation: u32) -> TemplatePublish {
    TemplatePublish {
        template: TemplateName::new("base").expect("name"),
        generation: Generation(generation),
        staged: StepIndex(0),
        expect: None,
    }
}

fn output<T: serde::de::DeserializeOwned>(done: &StepDone) -> T {
    codec::decode(&done.output.0).expect("output")
}

#[test]
fn a_container_becomes_a_template_and_the_container_stays_as_it_was() {
    let mut host = Host::new();
    assert_eq!(host.probe(0, &stage()), Seen::Absent);
    let staged = host.forward(0, &stage()).expect("stage");
    assert_eq!(output::<Staged>(&staged).entries, 7);
    assert!(matches!(host.probe(0, &stage()), Seen::Done(_)));
    assert!(!host.forward(0, &stage()).expect("again").changed);
    let scrubbed = host.forward(1, &scrub(&[])).expect("scrub");
    let reports = output::<Scrubbed>(&scrubbed).reports;
    assert!(
        reports
            .iter()
            .any(|report| report.operation == "ssh-host-keys"),
        "{reports:?}"
    );
    assert!(
        reports
            .iter()
            .any(|report| report.operation == "lxc-config"),
        "{reports:?}"
    );
    assert_eq!(
        host.probe(1, &scrub(&[])),
        Seen::Done(StepDone {
            changed: false,
            ..scrubbed
        })
    );
    host.forward(2, &scan()).expect("scan");
    let published = host.forward(3, &publish(1)).expect("publish");
    let place = host.layout.generation(&publish(1).template, Generation(1));
    let mut names: Vec<_> = fs::read_dir(&place)
        .expect("list")
        .map(|e| e.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["config", "made-by", "manifest", "rootfs"]);
    assert_eq!(
        fs::read_to_string(place.join("config")).expect("config"),
        "lxc.arch = amd64\n"
    );
    assert_eq!(
        fs::read_to_string(place.join("rootfs/etc/machine-id")).expect("id"),
        ""
    );
    assert!(!host.staging().exists());
    let Fact::TemplatePresent { manifest, .. } = &published.facts[0] else {
        panic!("{:?}", published.facts)
    };
    assert_eq!(*manifest, output::<Published>(&published).manifest);
    let again = host.forward(3, &publish(1)).expect("again");
    assert_eq!(
        again,
        StepDone {
            changed: false,
            ..published.clone()
        }
    );
    assert_eq!(host.probe(3, &publish(1)), Seen::Done(again));
    let home = host.layout.lxc.join("web-1/rootfs");
    assert_eq!(
        fs::read_to_string(home.join("etc/hostname")).expect("source"),
        "web-1\n"
    );
    assert!(home.join("etc/ssh/ssh_host_rsa_key").exists());

    let undone = host.undo(3, &publish(1)).expect("undo");
    assert!(undone.changed && !place.exists());
    assert!(!host.undo(3, &publish(1)).expect("again").changed);
}

#[test]
fn a_running_container_is_frozen_while_it_is_copied_and_never_longer() {
    let mut host = Host::new();
    let frozen = host.layout.state.join("frozen");
    let marks = || fs::read_dir(&frozen).map_or(0, |marks| marks.count());
    host.lxc.state = "RUNNING";
    host.forward(0, &stage()).expect("stage");
    assert_eq!(host.lxc.did, ["watch", "freeze", "thaw"]);
    assert_eq!((host.lxc.state, marks()), ("RUNNING", 0));
    assert!(host.undo(0, &stage()).expect("undo").changed && !host.staging().exists());
    assert!(!host.undo(0, &stage()).expect("again").changed);

    // Also when it is asked to stop, when the copy fails, and when nothing can watch: then it is not frozen at all.
    host.lxc.did.clear();
    host.lxc.stop = true;
    let etc = host.layout.lxc.join("web-1/rootfs/etc");
    for n in 0..300 {
        fs::write(etc.join(format!("f{n}")), "x").expect("write");
    }
    let failed = host.forward(0, &stage()).expect_err("stopped");
    assert_eq!(failed.class, FailureClass::Interrupted);
    assert_eq!(host.lxc.did, ["watch", "freeze", "thaw"]);
    assert_eq!((host.lxc.state, marks()), ("RUNNING", 0));
    host.lxc.stop = false;
    let config = host.layout.lxc.join("web-1/config");
    let text = fs::read(&config).expect("read");
    fs::remove_file(&config).expect("remove");
    host.forward(0, &stage()).expect_err("no configuration");
    assert_eq!((host.lxc.state, marks()), ("RUNNING", 0));
    fs::write(&config, text).expect("write");
    host.lxc.did.clear();
    host.lxc.unwatched = true;
    host.forward(0, &stage()).expect_err("unwatched");
    assert!(host.lxc.did.is_empty());
    assert_eq!(host.lxc.state, "RUNNING");
}

#[test]
fn what_an_agent_that_died_left_frozen_is_thawed_by_redo_and_undo() {
    let mut host = Host::new();
    let frozen = host.layout.state.join("frozen");
    let mark = frozen.join("web-1");
    let ours = format!("{} 0\nattempt 1\n", host.operation);
    fs::create_dir_all(&frozen).expect("mkdir");
    for state in ["FROZEN", "FREEZING"] {
        fs::write(&mark, &ours).expect("write");
        host.lxc.state = state;
        assert!(matches!(host.probe(0, &stage()), Seen::Partial { .. }));
        assert_eq!(host.lxc.state, state, "a probe changes nothing");
        assert!(host.undo(0, &stage()).expect("undo").changed);
        assert_eq!((host.lxc.state, mark.exists()), ("RUNNING", false));
    }
    fs::write(&mark, &ours).expect("write");
    host.lxc.state = "FREEZING";
    host.forward(0, &stage()).expect("again");
    assert_eq!((host.lxc.state, mark.exists()), ("RUNNING", false));

    // As long as it is held, the mark stays: whoever tries again knows that it is ours.
    fs::write(&mark, &ours).expect("write");
    host.lxc.state = "FREEZING";
    host.lxc.sticks = true;
    host.undo(0, &stage()).expect_err("it sticks");
    assert!(mark.exists());
    host.lxc.sticks = false;
    host.undo(0, &stage()).expect("undo");

    // Another's freeze is another's.
    let other = format!("{} 0\nattempt 1\n", OperationId::new(1, [9; 10]));
    fs::write(&mark, &other).expect("write");
    host.lxc.state = "FROZEN";
    let failed = host.forward(0, &stage()).expect_err("another's");
    assert!(failed.message.contains("another operation"), "{failed:?}");
    host.undo(0, &stage()).expect("undo");
    assert_eq!((host.lxc.state, mark.exists()), ("FROZEN", true));
}

#[test]
fn shifted_ids_in_an_included_file_are_seen() {
    let mut host = Host::new();
    let home = host.layout.lxc.join("web-1");
    fs::write(home.join("operator.conf"), "lxc.idmap = u 0 100000 65536\n").expect("write");
    let mut text = fs::read_to_string(home.join("config")).expect("read");
    text.push_str(&format!(
        "lxc.include = {}\n",
        home.join("operator.conf").display()
    ));
    fs::write(home.join("config"), text).expect("write");
    let failed = host.forward(0, &stage()).expect_err("unprivileged");
    assert!(failed.message.contains("shifted ids"), "{failed:?}");
}

#[test]
fn a_copy_of_what_moved_meanwhile_is_refused() {
    type Move = (&'static str, fn(&mut Lxc));
    let moves: [Move; 4] = [
        ("RUNNING", |lxc| lxc.state = "STOPPED"),
        ("RUNNING", |lxc| lxc.state = "RUNNING"),
        ("STOPPED", |lxc| lxc.state = "FROZEN"),
        ("FROZEN", |lxc| lxc.pid += 1),
    ];
    for (state, meanwhile) in moves {
        let mut host = Host::new();
        let etc = host.layout.lxc.join("web-1/rootfs/etc");
        for n in 0..300 {
            fs::write(etc.join(format!("f{n}")), "x").expect("write");
        }
        host.lxc.state = state;
        host.lxc.meanwhile = Some(meanwhile);
        let failed = host.forward(0, &stage()).expect_err("moved");
        assert!(host.lxc.meanwhile.is_none(), "nothing moved");
        assert!(failed.message.contains("not be consistent"), "{failed:?}");
        assert!(!host.staging().join("rootfs").exists());
    }
}

#[test]
fn a_cut_copy_is_partial_and_made_again_from_scratch() {
    let mut host = Host::new();
    let partial = host.staging().join("rootfs.partial");
    fs::create_dir_all(&partial).expect("mkdir");
    fs::write(partial.join("left-over"), "x").expect("write");
    assert!(matches!(host.probe(0, &stage()), Seen::Partial { .. }));
    host.forward(0, &stage()).expect("stage");
    assert!(!host.staging().join("rootfs/left-over").exists() && !partial.exists());
}

#[test]
fn an_overlay_is_flattened() {
    let mut host = Host::new();
    let home = host.layout.lxc.join("web-1");
    fs::create_dir_all(home.join("delta/etc")).expect("mkdir");
    fs::write(home.join("delta/etc/kept"), "changed\n").expect("write");
    let whiteout = Command::new("mknod")
        .args(["delta/etc/hostname", "c", "0", "0"])
        .current_dir(&home)
        .status();
    assert!(whiteout.expect("mknod").success());
    let config = format!(
        "lxc.rootfs.path = overlay:{0}/rootfs:{0}/delta\n",
        home.display()
    );
    fs::write(home.join("config"), config).expect("write");
    let staged = host.forward(0, &stage()).expect("stage");
    assert_eq!(output::<Staged>(&staged).layers, 2);
    let rootfs = host.staging().join("rootfs");
    assert_eq!(
        fs::read_to_string(rootfs.join("etc/kept")).expect("read"),
        "changed\n"
    );
    assert!(fs::symlink_metadata(rootfs.join("etc/hostname")).is_err());
    assert!(rootfs.join("etc/ssh/ssh_host_rsa_key").exists());
}

#[test]
fn a_leak_stops_publication_and_the_secret_is_not_told() {
    let mut host = Host::new();
    host.forward(0, &stage()).expect("stage");
    let unknown = host.forward(1, &scrub(&["nonsense"])).expect_err("unknown");
    assert!(unknown.message.contains("nonsense"), "{unknown:?}");
    host.forward(1, &scrub(&["machine-id"])).expect("scrub");
    let failed = host.forward(2, &scan()).expect_err("leak");
    assert_eq!(failed.class, FailureClass::Verification);
    assert!(
        failed.message.contains("/etc/machine-id") && failed.hint.is_some(),
        "{failed:?}"
    );
    assert!(!failed.message.contains("0123456789abcdef"), "{failed:?}");
    let allowed = TemplateScan {
        allow: vec!["machine-id:/etc/machine-id".to_owned()],
        ..scan()
    };
    host.forward(2, &allowed).expect("allowed");
}

#[test]
fn the_config_of_the_source_tells_the_scan_what_to_look_for() {
    let mut host = Host::new();
    let note = host.layout.lxc.join("web-1/rootfs/etc/note");
    fs::write(note, "mac is 00:16:3E:01:02:03.").expect("write");
    host.scrubbed();
    let failed = host.forward(2, &scan()).expect_err("leak");
    assert!(failed.message.contains("/etc/note (mac"), "{failed:?}");
}

#[test]
fn a_generation_is_never_replaced_and_never_removed_by_others_or_while_used() {
    let mut host = Host::new();
    host.scrubbed();
    let wrong = TemplatePublish {
        expect: Some(Hash([7; 32])),
        ..publish(1)
    };
    let failed = host.forward(3, &wrong).expect_err("not what was expected");
    assert_eq!(failed.class, FailureClass::Verification);
    host.forward(3, &publish(1)).expect("publish");
    let place = host.layout.generation(&publish(1).template, Generation(1));
    // Another operation: its steps have the same indices.
    host.operation = OperationId::new(2, [9; 10]);
    host.scrubbed();
    assert!(matches!(host.probe(3, &publish(1)), Seen::Conflict { .. }));
    assert_eq!(
        host.forward(3, &publish(1)).expect_err("taken").class,
        FailureClass::Exists
    );
    assert!(!host.undo(3, &publish(1)).expect("not its own").changed);
    assert!(place.join("rootfs/etc/kept").exists());
    fs::create_dir_all(place.join("users/web-2")).expect("user");
    host.operation = OperationId::new(1, [1; 10]);
    let failed = host.undo(3, &publish(1)).expect_err("in use");
    assert_eq!(failed.class, FailureClass::Exists);
    assert!(failed.message.contains("web-2"), "{failed:?}");
    fs::remove_dir(place.join("users/web-2")).expect("user gone");
    // What a power cut leaves of a mark that was being written.
    fs::write(place.join("users/.web-2.new"), "").expect("left");
    assert!(host.undo(3, &publish(1)).expect("undo").changed);
    assert!(!place.exists());
}

#[test]
fn a_generation_of_others_is_set_aside_or_taken_over_where_it_is_the_same() {
    let mut host = Host::new();
    host.scrubbed();
    let published = host.forward(3, &publish(1)).expect("publish");
    let id = output::<Published>(&published).manifest;
    let place = host.layout.generation(&publish(1).template, Generation(1));
    host.operation = OperationId::new(2, [9; 10]);
    host.scrubbed();
    let paths = |host: &mut Host, step: &TemplatePublish| {
        host.with(3, step, |row, params, context| {
            (row.in_the_way)(params, context)
        })
    };
    let adopt = |host: &mut Host, step: &TemplatePublish| {
        host.with(3, step, |row, params, context| (row.adopt)(params, context))
    };
    let expecting = |expect| TemplatePublish {
        expect: Some(expect),
        ..publish(1)
    };
    // What another operation made is the tool's: it is taken over where it is what was to be, and never set aside.
    let refused = paths(&mut host, &publish(1)).expect_err("made by another operation");
    assert!(
        refused.message.contains("was made by step 3"),
        "{refused:?}"
    );
    let adopted = adopt(&mut host, &expecting(id)).expect("the same");
    assert!(!adopted.changed && matches!(adopted.facts[..], [Fact::TemplatePresent { .. }]));
    adopt(&mut host, &publish(1)).expect_err("nobody knows what a snapshot would be");
    adopt(&mut host, &expecting(Hash([7; 32]))).expect_err("another");
    // Its manifest is not believed without the tree.
    fs::write(place.join("rootfs/etc/kept"), "changed\n").expect("write");
    adopt(&mut host, &expecting(id)).expect_err("the tree is another");
    fs::remove_file(place.join(crate::mark::NAME)).expect("the mark");
    assert_eq!(
        paths(&mut host, &publish(1)).expect("of others"),
        std::slice::from_ref(&place)
    );
    fs::create_dir_all(place.join("users/web-2")).expect("user");
    paths(&mut host, &publish(1)).expect_err("a container lies on it");
}

#[test]
fn a_tree_whose_holes_are_kept_elsewhere_is_published_as_what_it_came_as() {
    let mut host = Host::new();
    let kept = host.layout.lxc.join("web-1/rootfs/etc/kept");
    let sparse = fs::File::create(&kept).expect("create");
    sparse.set_len(1 << 20).expect("length");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 512 << 10).expect("write");
    host.scrubbed();
    let root = Root::open(&host.staging().join("rootfs")).expect("open");
    let mut go_on = |_| ControlFlow::Continue(());
    let came = build(root.as_fd(), &mut go_on).expect("build");
    fs::write(host.staging().join("manifest"), came.encode()).expect("write");
    // As a file system does that keeps no holes, or others.
    let there = host.staging().join("rootfs/etc/kept");
    let modified = fs::metadata(&there)
        .and_then(|it| it.modified())
        .expect("time");
    fs::write(&there, fs::read(&there).expect("read")).expect("write");
    let written = fs::File::options().write(true).open(&there).expect("open");
    written.set_modified(modified).expect("set the time");
    let now = build(root.as_fd(), &mut go_on).expect("build");
    let different = differences(&came, &now);
    let aspects: Vec<_> = different.iter().map(|it| &it.aspect).collect();
    assert_eq!(aspects, [&Aspect::Holes], "{different:?}");
    let expecting = TemplatePublish {
        expect: Some(came.id()),
        ..publish(1)
    };
    let published = host.forward(3, &expecting).expect("publish");
    assert_eq!(output::<Published>(&published).manifest, came.id());
    let place = host.layout.generation(&expecting.template, Generation(1));
    assert_eq!(
        fs::read(place.join("manifest")).expect("read"),
        came.encode()
    );
    assert!(matches!(host.probe(3, &expecting), Seen::Done(_)));
}

#[test]
fn a_stop_is_heard() {
    let mut host = Host::new();
    let etc = host.layout.lxc.join("web-1/rootfs/etc");
    for n in 0..300 {
        fs::write(etc.join(format!("f{n}")), "x").expect("write");
    }
    host.lxc.stop = true;
    assert_eq!(
        host.forward(0, &stage()).expect_err("stopped").class,
        FailureClass::Interrupted
    );
    assert!(!host.staging().join("rootfs").exists());
    host.lxc.stop = false;
    host.scrubbed();
    assert!(Path::new(host.temp.path()).exists());
}
