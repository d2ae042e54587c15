//! Sessions: what is shown, what is stopped, and what is known when the line is lost. The agent is played.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tallybook::cloud::parse;
use tallybook::engine::session::{self, Ended, Input};
use tallybook::engine::{Engine, Error, Proposal, new_operation};
use tallybook::log::Filter;
use tallybook::secrets::Declared;
use tallybook_agent::protocol::{
    self, PROTOCOL, Reply, Request, SessionRequest, read_frame, write_frame,
};
use tallybook_events::event::{Event, SessionRecorded};
use tallybook_events::ids::{Attempt, Blob, BootId, OperationId};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::record::header_hash;
use tallybook_events::step::Mark;
use tallybook_replay::operation::{OperationStatus, StepStatus};
use tallybook_testkit::samples;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::stage::{Stage, subject, within};

/// What a session printed, and the end from which a test types.
struct Shown {
    id: OperationId,
    text: Arc<Mutex<Vec<u8>>>,
    taken: Arc<AtomicBool>,
    typing: mpsc::Sender<Input>,
    run: JoinHandle<Result<Ended, Error>>,
}

impl Shown {
    fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }
}

async fn begin(stage: &Stage, engine: Engine) -> Shown {
    let request = SessionRequest {
        container: samples::container("web1"),
        argv: vec!["cat".to_owned()],
        terminal: None,
        term: "dumb".to_owned(),
    };
    let host = HostName::new("a").unwrap();
    let id = new_operation();
    let proposal = Proposal {
        id,
        intent: Intent::ContainerExec {
            container: request.container.clone(),
            host: host.clone(),
            argv: request.argv.clone(),
        },
        inventory: tallybook_events::ids::Seq::NONE,
        claims: Vec::new(),
        steps: vec![session::plan(&host, &subject(), &request)],
        planned_at: Some(stage.log.head().await.unwrap().seq),
        alongside: None,
        instead_of: Vec::new(),
        pace: Pace::default(),
    };
    let (typing, input) = mpsc::channel(16);
    let text = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::new(AtomicBool::new(false));
    let (printed, took) = (Arc::clone(&text), Arc::clone(&taken));
    let run = tokio::spawn(async move {
        let take_over = || -> session::Terminal {
            took.store(true, Ordering::SeqCst);
            let print = move |bytes: &[u8], _: bool| printed.lock().unwrap().extend(bytes);
            (input, Box::new(print))
        };
        engine.session(proposal, request, take_over).await
    });
    Shown {
        id,
        text,
        taken,
        typing,
        run,
    }
}

/// Answers the greeting, and takes the session.
fn greet(line: &UnixStream) {
    take(line, None);
    write_frame(line, &Reply::Admitted).unwrap();
}

/// Answers the greeting with what the host was shown, and hears what is asked for.
fn take(line: &UnixStream, seen: Option<Mark>) -> Option<protocol::Shown> {
    let hello = read_frame::<Request>(line).unwrap();
    assert!(matches!(hello, Some(Request::Hello { .. })), "{hello:?}");
    let reply = Reply::Hello {
        protocol: PROTOCOL,
        program: None,
        boot: BootId::from_bytes([3; 16]),
        hostname: "a".to_owned(),
        time_unix_us: 1,
        journal: None,
        journal_len: 0,
        seen,
    };
    write_frame(line, &reply).unwrap();
    match read_frame::<Request>(line).unwrap() {
        Some(Request::Session { shown, .. }) => Some(shown),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn say(line: &UnixStream, text: &str) {
    let reply = Reply::Output {
        bytes: Blob(text.as_bytes().to_vec()),
        stderr: false,
    };
    write_frame(line, &reply).unwrap();
}

fn end(line: &UnixStream, exit: Option<i32>) {
    end_saying(line, exit, "");
}

fn end_saying(line: &UnixStream, exit: Option<i32>, output: &str) {
    let recorded = SessionRecorded {
        argv: vec!["cat".to_owned()],
        terminal: false,
        started_unix_us: 1,
        ended_unix_us: 2,
        exit,
        output: Blob(output.as_bytes().to_vec()),
        dropped_bytes: 0,
        changes: Vec::new(),
        changes_dropped: 0,
    };
    write_frame(line, &Reply::SessionEnded(recorded)).unwrap();
}

fn until(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Types until nothing more is taken.
async fn fill(shown: &Shown) {
    let chunk = || Input::Bytes(vec![b'x'; 64 * 1024]);
    let wait = Duration::from_millis(300);
    while let Ok(sent) = tokio::time::timeout(wait, shown.typing.send(chunk())).await {
        sent.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_says_is_heard_while_it_takes_no_input() {
    let stage = Stage::new(&["a"]).await;
    let full = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&full);
    stage.world.host("a").play(move |line| {
        greet(&line);
        until(&now);
        say(&line, "late");
        end(&line, Some(3));
        // The line stays: its end is not what frees whoever speaks.
        until(&AtomicBool::new(false));
    });
    let shown = begin(&stage, stage.engine()).await;
    fill(&shown).await;
    full.store(true, Ordering::SeqCst);
    stage.until(|_| shown.text() == "late").await;
    let ended = within(shown.run).await.unwrap().unwrap();
    assert!(
        matches!(&ended, Ended::Command(recorded) if recorded.exit == Some(3)),
        "{ended:?}"
    );
    assert_eq!(stage.status(shown.id).await, OperationStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_stop_hangs_up_and_the_end_is_still_told() {
    let stage = Stage::new(&["a"]).await;
    stage.world.host("a").play(|line| {
        greet(&line);
        say(&line, "ready");
        while let Ok(Some(request)) = read_frame::<Request>(&line) {
            if matches!(request, Request::Stop) {
                end(&line, None);
            }
        }
    });
    let shown = begin(&stage, stage.engine()).await;
    stage.until(|_| shown.text() == "ready").await;
    stage.stop.send_replace(true);
    let ended = within(shown.run).await.unwrap().unwrap();
    assert!(
        matches!(&ended, Ended::Command(recorded) if recorded.exit.is_none()),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_there_is_a_host_to_talk_to_runs_nothing() {
    let stage = Stage::new(&["a"]).await;
    let host = stage.world.host("a");
    host.set_slow(true);
    let shown = begin(&stage, stage.engine()).await;
    stage
        .until(|_| host.opened.load(Ordering::SeqCst) == 1)
        .await;
    stage.stop.send_replace(true);
    let ended = within(shown.run).await.unwrap().unwrap();
    assert!(matches!(ended, Ended::Stopped), "{ended:?}");
    assert!(
        !shown.taken.load(Ordering::SeqCst),
        "the terminal was left alone"
    );
    let operation = stage.operation(shown.id).await;
    assert_eq!(operation.steps[0].attempts, Attempt(0));
    assert_eq!(operation.status, OperationStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_line_leaves_the_end_unknown_and_keeps_what_was_shown() {
    let stage = Stage::new(&["a"]).await;
    stage.world.host("a").play(|line| {
        greet(&line);
        say(&line, "so far password=tulip");
    });
    let shown = begin(&stage, stage.engine()).await;
    let ended = within(shown.run).await.unwrap().unwrap();
    assert!(matches!(ended, Ended::Lost(_)), "{ended:?}");
    let operation = stage.operation(shown.id).await;
    assert!(
        matches!(operation.steps[0].status, StepStatus::Doubted { .. }),
        "{:?}",
        operation.steps[0].status
    );
    assert_eq!(operation.status, OperationStatus::Interrupted);
    let recorded = &operation.sessions[0];
    assert_eq!(recorded.exit, None);
    assert_eq!(recorded.output.to_string(), "so far password=[removed]");
    over(&stage, shown.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_program_died_is_closed_as_unknown_and_once() {
    let stage = Stage::new(&["a"]).await;
    stage.world.host("a").play(|line| {
        greet(&line);
        say(&line, "ready");
        while let Ok(Some(_)) = read_frame::<Request>(&line) {}
    });
    let shown = begin(&stage, stage.engine()).await;
    stage.until(|_| shown.text.lock().unwrap().len() == 5).await;
    shown.run.abort();
    assert!(shown.run.await.unwrap_err().is_cancelled());
    assert_eq!(stage.status(shown.id).await, OperationStatus::Running);
    let resumed = stage.resume(shown.id).await;
    assert!(matches!(resumed, Err(Error::Session(_))), "{resumed:?}");
    let operation = stage.operation(shown.id).await;
    assert!(matches!(
        operation.steps[0].status,
        StepStatus::Doubted { .. }
    ));
    assert_eq!(operation.status, OperationStatus::Interrupted);
    over(&stage, shown.id).await;
}

/// Nobody has to do anything about it, and resuming it adds nothing.
async fn over(stage: &Stage, id: OperationId) {
    let state = stage.log.state().await.unwrap();
    assert!(!state.operations.contains_key(&id), "it is over");
    let resumed = stage.resume(id).await;
    assert!(matches!(resumed, Err(Error::Session(_))), "{resumed:?}");
    assert_eq!(stage.log.head().await.unwrap().seq, state.head.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_the_host_does_not_know_is_shown_and_not_recorded() {
    let declared = || {
        let inventory = parse("cloud.toml", "[secrets.pw]\nenv = \"PW\"\n").unwrap();
        Arc::new(Declared::read(&inventory, |_| Some("correct horse".into())))
    };
    for is_lost in [true, false] {
        let stage = Stage::new(&["a"]).await;
        stage.world.host("a").play(move |line| {
            // The host is told of no secret: no container there names one.
            greet(&line);
            say(&line, "it is corre");
            say(&line, "ct horse, and cor");
            if !is_lost {
                end_saying(&line, Some(0), "it is correct horse, and cor");
                until(&AtomicBool::new(false));
            }
        });
        let shown = begin(&stage, stage.engine().with_secrets(declared())).await;
        let id = shown.id;
        stage
            .until(|_| shown.text() == "it is correct horse, and cor")
            .await;
        let ended = within(shown.run).await.unwrap().unwrap();
        assert_eq!(matches!(ended, Ended::Lost(_)), is_lost, "{ended:?}");
        let entries = stage.log.entries(&Filter::of_operation(id)).await.unwrap();
        let recorded: Vec<String> = entries
            .into_iter()
            .filter_map(|entry| match entry.event {
                Event::SessionRecorded(recorded) => Some(recorded.output.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(recorded, ["it is [secret pw], and cor"]);
    }
}

/// An event of the log, as a host keeps it.
async fn mark(stage: &Stage, seq: u64) -> Mark {
    let filter = Filter::at(tallybook_events::ids::Seq(seq));
    let record = stage.log.records(&filter).await.unwrap().remove(0);
    Mark {
        epoch: record.header.epoch,
        seq: record.header.seq,
        hash: record.hash,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_shown_what_it_was_shown_before_and_nothing_is_typed_until_then() {
    let stage = Stage::new(&["a"]).await;
    let first = mark(&stage, 1).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    stage.world.host("a").play(move |line| {
        let shown = take(&line, Some(first)).unwrap();
        assert_eq!(header_hash(&shown.proof.unwrap().0), first.hash);
        assert_ne!(header_hash(&shown.newest.0), first.hash);
        // Somebody else acted meanwhile: it asks once more.
        write_frame(&line, &Reply::Prove(first)).unwrap();
        let next = read_frame::<Request>(&line).unwrap().unwrap();
        let Request::Proof(proof) = next else {
            panic!("{next:?}");
        };
        assert_eq!(header_hash(&proof.0), first.hash);
        write_frame(&line, &Reply::Admitted).unwrap();
        while let Ok(Some(request)) = read_frame::<Request>(&line) {
            if let Request::Input(bytes) = request {
                hears.lock().unwrap().extend(bytes.0);
                end(&line, Some(0));
            }
        }
    });
    let session = begin(&stage, stage.engine()).await;
    let typed = Input::Bytes(b"typed".to_vec());
    session.typing.send(typed).await.unwrap();
    let ended = within(session.run).await.unwrap().unwrap();
    assert!(matches!(ended, Ended::Command(_)), "{ended:?}");
    assert_eq!(*heard.lock().unwrap(), b"typed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_shown_more_runs_nothing() {
    for asks_late in [false, true] {
        let stage = Stage::new(&["a"]).await;
        let other = Mark {
            hash: samples::mark().hash,
            ..mark(&stage, 1).await
        };
        stage.world.host("a").play(move |line| {
            let asked = take(&line, Some(other).filter(|_| !asks_late));
            assert_eq!(asked.is_some(), asks_late);
            let _gone = write_frame(&line, &Reply::Prove(other));
            let next = read_frame::<Request>(&line);
            assert!(matches!(next, Ok(None)), "{next:?}");
        });
        let session = begin(&stage, stage.engine()).await;
        let refused = within(session.run).await.unwrap();
        assert!(
            matches!(&refused, Err(Error::Fenced { seen, .. }) if *seen == other),
            "{refused:?}"
        );
        assert_eq!(session.taken.load(Ordering::SeqCst), asks_late);
        let operation = stage.operation(session.id).await;
        assert_eq!(operation.status, OperationStatus::Failed);
        let fenced = stage.log.state().await.unwrap().fenced;
        assert_eq!(fenced.map(|(_, seen)| seen), Some(other));
    }
}
