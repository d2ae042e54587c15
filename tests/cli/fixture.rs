//! A log with a small story in it, made through the library, and a way to run the program on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::Value;
use tallybook::cloud::{Selection, parse};
use tallybook::cloud_log;
use tallybook::log::{Condition, Draft, Log, Open};
use tallybook_events::codec;
use tallybook_events::event::{
    Event, OperationFailed, OperationIntended, OperationPlanned, OperationSucceeded,
    OutputCaptured, Resolution, SessionRecorded, StepFailed, StepStarted, StepSucceeded,
};
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Blob, Generation, Hash, OperationId, Seq, StepIndex};
use tallybook_events::intent::{Intent, Source};
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::step::{
    Action, Captured, FailureClass, PlannedStep, Reversal, StepDone, StepFailure,
};
use tallybook_events::subject::Subject;

/// An inventory whose every address is given, so that nothing in it depends on the log's id.
pub(crate) const INVENTORY: &str = r#"
[network]
subnet = "10.5.0.0/24"

[hosts.cn1]
address = "192.0.2.11"

[hosts.cn2]
address = "192.0.2.12"

[groups.compute]
members = ["cn1", "cn2"]

[containers.builder]
host = "cn1"
mac = "00:16:3e:00:00:02"

[containers.web]
host = "cn1"
mac = "00:16:3e:00:00:03"
template = "base"
ports = [{ container = 80, host = 8080, name = "web" }]

[templates.base]
builder = "builder"
"#;

/// A store, an inventory and the program.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
}

/// How a run of the program ended.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fixture {
    /// No log, and an inventory.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cloud.toml"), INVENTORY).unwrap();
        Fixture { directory }
    }

    /// A log with the story in it.
    pub(crate) fn story() -> Self {
        let fixture = Fixture::empty();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(tell(&fixture.store()));
        fixture
    }

    /// Begins the log with the inventory, and goes on until a block of 1024 events is sealed into the index.
    pub(crate) fn seal(&self) {
        assert_eq!(self.run(&["cloud", "refresh"]).code, 0);
        let captured = Captured {
            command: "true".to_owned(),
            exit: Some(0),
            text: Blob(Vec::new()),
            dropped_bytes: 0,
        };
        let drafts = (0..1100).map(|_| {
            let output = OutputCaptured {
                captured: captured.clone(),
            };
            Draft::new(Subject::Cloud, output).unwrap()
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let log = Log::open(&self.store(), Open::Existing, |_| {})
                .await
                .unwrap();
            log.append(drafts.collect(), Condition::none())
                .await
                .unwrap();
            log.close().await;
        });
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// The program with these arguments, away from the environment of whoever runs the tests.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallybook"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("TALLYBOOK_STORE", self.store())
            .env("HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output().unwrap();
        Run {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What somebody at a terminal would have seen, with all that differs from run to run replaced.
    pub(crate) fn transcript(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments);
        let show = |text: &str| {
            let text = normal(text);
            text.replace(&self.path().display().to_string(), "DIR")
        };
        let mut text = format!("$ tallybook {}\n{}", arguments.join(" "), show(&run.stdout));
        if !run.stderr.is_empty() {
            text.push_str("--- standard error\n");
            text.push_str(&show(&run.stderr));
        }
        text.push_str(&format!("--- exit {}\n", run.code));
        text
    }
}

/// Replaces ids, hashes, times and the actor; joins runs of spaces, because widths depend on the actor's name.
fn normal(text: &str) -> String {
    if let Ok(document) = serde_json::from_str::<Value>(text) {
        return format!("{:#}\n", normal_value(document));
    }
    let lines: Vec<Value> = text
        .lines()
        .map_while(|line| serde_json::from_str(line).ok())
        .collect();
    if !lines.is_empty() && lines.len() == text.lines().count() {
        let lines = lines
            .into_iter()
            .map(|line| format!("{}\n", normal_value(line)));
        return lines.collect();
    }
    text.lines().map(|line| normal_line(line) + "\n").collect()
}

fn normal_value(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| {
                    let value = match name.as_str() {
                        "actor" | "by" => "ACTOR".into(),
                        "writer" => "WRITER".into(),
                        "time_unix_us" => 0.into(),
                        _ => normal_value(value),
                    };
                    (name, value)
                })
                .collect(),
        ),
        Value::Array(values) => values.into_iter().map(normal_value).collect(),
        Value::String(text) => text
            .split('\n')
            .map(normal_words)
            .collect::<Vec<_>>()
            .join("\n")
            .into(),
        other => other,
    }
}

fn normal_line(line: &str) -> String {
    let me = tallybook::identity::actor_here().label();
    let trimmed = line.trim_start();
    let indent = &line[..line.len() - trimmed.len()];
    let indent = if indent.len() > 2 { "  " } else { indent };
    let cells: Vec<String> = trimmed
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .map(|cell| {
            if cell == me {
                "ACTOR".to_owned()
            } else {
                normal_words(cell)
            }
        })
        .collect();
    match cells.first().map(String::as_str) {
        Some(first @ ("actor" | "writer")) => format!("{first}  {}", first.to_uppercase()),
        _ => format!("{indent}{}", cells.join("  ")),
    }
}

fn normal_words(text: &str) -> String {
    if let Some((before, _)) = text.split_once(" (after ") {
        return format!("{} (after SOME TIME)", normal_words(before));
    }
    let words: Vec<String> = text.split(' ').map(normal_word).collect();
    words.join(" ")
}

fn normal_word(word: &str) -> String {
    let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let hex = core.len() == 64 && core.bytes().all(|byte| byte.is_ascii_hexdigit());
    let own = |core: &str| {
        STORY
            .iter()
            .any(|number| operation(*number).to_string() == core)
    };
    let repeated = hex && core.bytes().all(|byte| byte == core.as_bytes()[0]);
    if hex && !repeated {
        word.replace(core, "HASH")
    } else if uuid::Uuid::try_parse(core).is_ok() && core.contains('-') && !own(core) {
        word.replace(core, "ID")
    } else if core.len() == 20 && core.ends_with('Z') && core.as_bytes()[10] == b'T' {
        word.replace(core, "TIME")
    } else {
        word.to_owned()
    }
}

/// The numbers of the story's operations.
const STORY: [u8; 6] = [1, 2, 3, 4, 5, 6];

fn operation(number: u8) -> OperationId {
    let mut random = [0xa0; 10];
    random[4..].fill(number * 0x11);
    OperationId::new(1_700_000_000_000 + u64::from(number), random)
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn container(name: &str) -> ContainerName {
    name.parse().unwrap()
}

#[derive(Serialize)]
struct Params<'a> {
    name: &'a str,
    autostart: bool,
}

/// One step of the story.
struct Told {
    kind: &'static str,
    summary: &'static str,
    facts: Vec<Fact>,
    printed: Option<&'static str>,
    failure: Option<StepFailure>,
}

fn step(kind: &'static str, summary: &'static str, facts: Vec<Fact>) -> Told {
    Told {
        kind,
        summary,
        facts,
        printed: None,
        failure: None,
    }
}

async fn append(log: &Log, drafts: Vec<Draft>) -> Seq {
    let appended = log.append(drafts, Condition::none()).await.unwrap();
    appended.last().unwrap().seq
}

fn plan(on: &HostName, subject: &Subject, position: usize, told: &Told) -> PlannedStep {
    let index = StepIndex(u32::try_from(position).unwrap());
    let params = Params {
        name: told.summary,
        autostart: true,
    };
    PlannedStep {
        index,
        host: on.clone(),
        subject: subject.clone(),
        kind: told.kind.to_owned(),
        params: Blob(codec::encode(&params).unwrap()),
        summary: told.summary.to_owned(),
        action: Action::Forward,
        reversal: Reversal::Undo,
        once: false,
        after: index.0.checked_sub(1).map(StepIndex).into_iter().collect(),
        peer: None,
    }
}

fn succeeded(told: &Told) -> StepSucceeded {
    let output = Params {
        name: told.kind,
        autostart: false,
    };
    StepSucceeded {
        resolution: Resolution::Reported,
        done: StepDone {
            changed: true,
            output: Blob(codec::encode(&output).unwrap()),
            facts: told.facts.clone(),
            captured: Vec::new(),
        },
    }
}

async fn carry_out(log: &Log, number: u8, subject: Subject, intent: Intent, steps: Vec<Told>) {
    let id = operation(number);
    let on = subject.host().cloned().unwrap_or_else(|| host("cn1"));
    let intended = OperationIntended {
        intent,
        inventory: Seq(2),
        claims: vec![subject.clone()],
    };
    let draft = Draft::new(subject.clone(), intended).unwrap();
    let appended = log
        .append(vec![draft.operation(id, None)], Condition::none())
        .await
        .unwrap()[0];
    let claim = ClaimRef {
        seq: appended.seq,
        hash: appended.hash,
    };
    let make = |event: Event| {
        let draft = Draft::new(subject.clone(), event).unwrap();
        draft.operation(id, Some(claim))
    };
    let planned = steps.iter().enumerate();
    let planned = planned.map(|(position, told)| plan(&on, &subject, position, told));
    let planned = OperationPlanned {
        steps: planned.collect(),
    };
    append(log, vec![make(planned.into())]).await;
    let mut failed = None;
    let mut events = 2;
    for (position, told) in steps.into_iter().enumerate() {
        let index = StepIndex(u32::try_from(position).unwrap());
        let of_step = |event: Event| make(event).step(index, Attempt(1));
        let started = StepStarted {
            kind: told.kind.to_owned(),
            journal: None,
        };
        let mut drafts = vec![of_step(started.into())];
        if let Some(text) = told.printed {
            let captured = Captured {
                command: "debootstrap bookworm".to_owned(),
                exit: Some(0),
                text: Blob(text.as_bytes().to_vec()),
                dropped_bytes: 7,
            };
            drafts.push(of_step(OutputCaptured { captured }.into()));
        }
        drafts.push(match told.failure.clone() {
            Some(failure) => {
                failed = Some(failure.message.clone());
                let resolution = Resolution::Reported;
                of_step(
                    StepFailed {
                        resolution,
                        failure,
                    }
                    .into(),
                )
            }
            None => of_step(succeeded(&told).into()),
        });
        events += drafts.len() as u64;
        append(log, drafts).await;
    }
    if number == 6 {
        events += 1;
        append(log, vec![make(session().into())]).await;
    }
    let end: Event = match failed {
        Some(reason) => OperationFailed { reason }.into(),
        None => OperationSucceeded { events: events + 1 }.into(),
    };
    append(log, vec![make(end)]).await;
}

fn session() -> SessionRecorded {
    SessionRecorded {
        argv: vec!["ls".to_owned(), "/".to_owned()],
        terminal: true,
        started_unix_us: 1,
        ended_unix_us: 2,
        exit: Some(0),
        output: Blob(b"bin\r\n\x1b[31metc\x1b[0m\r\n".to_vec()),
        dropped_bytes: 0,
        changes: vec![tallybook_events::event::PathChange {
            change: tallybook_events::event::ChangeKind::Added,
            path: Blob(b"/root/.history".to_vec()),
        }],
        changes_dropped: 2,
    }
}

fn created(on: &str, name: &str, origin: Origin) -> Vec<Fact> {
    vec![
        Fact::ContainerCreated {
            host: host(on),
            container: container(name),
            origin,
            backing: Backing::Dir,
        },
        Fact::ContainerIdentified {
            host: host(on),
            container: container(name),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            host_keys: vec!["SHA256:abc".to_owned()],
        },
    ]
}

async fn tell(store: &Path) {
    let log = Log::open(store, Open::Create, |_| ()).await.unwrap();
    let inventory = parse("cloud.toml", INVENTORY).unwrap();
    let everything = Selection::everything(&inventory);
    cloud_log::refresh(
        &log,
        Path::new("cloud.toml"),
        INVENTORY,
        &inventory,
        &everything,
    )
    .await
    .unwrap();
    prepare(&log).await;
    build(&log).await;
    let manifest = Hash([0xcc; 32]);
    let generation = Generation(1);
    let present = Fact::TemplatePresent {
        host: host("cn1"),
        template: "base".parse().unwrap(),
        generation,
        manifest,
        entries: 1200,
        size_bytes: 300 << 20,
    };
    let snapshot = Intent::TemplateSnapshot {
        template: "base".parse().unwrap(),
        container: container("builder"),
        host: host("cn1"),
        generation,
    };
    let subject = Subject::Template("base".parse().unwrap());
    let publish = step("template.publish", "publish base", vec![present]);
    carry_out(&log, 3, subject, snapshot, vec![publish]).await;
    let web = Intent::ContainerCreate {
        container: container("web"),
        host: host("cn1"),
        source: Source::Template {
            template: "base".parse().unwrap(),
            generation: None,
        },
        backing: None,
    };
    let origin = Origin::Template {
        template: "base".parse().unwrap(),
        generation,
        manifest,
    };
    let mut facts = created("cn1", "web", origin.clone());
    // The same name on another host, as a copy would leave it.
    facts.extend(created("cn2", "web", origin));
    let subject = Subject::Container(host("cn1"), container("web"));
    let steps = vec![step("container.publish", "publish web", facts)];
    carry_out(&log, 4, subject.clone(), web, steps).await;
    stop_and_exec(&log, subject).await;
    log.close().await;
}

async fn stop_and_exec(log: &Log, subject: Subject) {
    let stop = Intent::ContainerStop {
        container: container("web"),
        host: host("cn1"),
    };
    let failure = StepFailure {
        class: FailureClass::Timeout,
        message: "web did not stop within 60 s".to_owned(),
        hint: Some("look at it with `container exec`".to_owned()),
        captured: Vec::new(),
    };
    let mut steps = vec![step("container.stop", "stop web", Vec::new())];
    steps[0].failure = Some(failure);
    carry_out(log, 5, subject, stop, steps).await;
    let exec = Intent::ContainerExec {
        container: container("builder"),
        host: host("cn1"),
        argv: vec!["ls".to_owned(), "/".to_owned()],
    };
    let subject = Subject::Container(host("cn1"), container("builder"));
    carry_out(log, 6, subject, exec, Vec::new()).await;
}

async fn prepare(log: &Log) {
    let observed = Fact::HostObserved {
        host: host("cn1"),
        properties: [("os", "Debian 12"), ("kernel", "6.1.0")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    };
    let installed = Fact::HostInstalled { host: host("cn1") };
    let prepared = Fact::HostPrepared {
        host: host("cn1"),
        bridge: "tbbr0".to_owned(),
        gateway: "10.5.0.1/24".to_owned(),
    };
    let intent = Intent::HostPrepare {
        hosts: vec![host("cn1")],
    };
    let steps = vec![
        step("host.observe", "look at cn1", vec![observed, installed]),
        step("host.bridge", "make bridge tbbr0", vec![prepared]),
    ];
    carry_out(log, 1, Subject::Host(host("cn1")), intent, steps).await;
}

async fn build(log: &Log) {
    let intent = Intent::ContainerCreate {
        container: container("builder"),
        host: host("cn1"),
        source: Source::Scratch,
        backing: Some(Backing::Dir),
    };
    let origin = Origin::Scratch {
        distribution: "debian".to_owned(),
        release: "bookworm".to_owned(),
    };
    let mut bootstrap = step("base.bootstrap", "bootstrap debian bookworm", Vec::new());
    bootstrap.printed = Some("I: Retrieving\tpackages\n\u{1b}[2JI: Done\n");
    let running = vec![
        Fact::ContainerStarted {
            host: host("cn1"),
            container: container("builder"),
        },
        Fact::ContainerAddressed {
            host: host("cn1"),
            container: container("builder"),
            address: "10.5.0.2".to_owned(),
        },
    ];
    let steps = vec![
        bootstrap,
        step(
            "container.publish",
            "publish builder",
            created("cn1", "builder", origin),
        ),
        step("container.start", "start builder", running),
    ];
    let subject = Subject::Container(host("cn1"), container("builder"));
    carry_out(log, 2, subject, intent, steps).await;
}
