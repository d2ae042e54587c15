//! A host for the tests of the conversation: a temporary directory, a table of steps that note what they do, and
//! the real agent on a pair of pipes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tallybook_agent::fence;
use tallybook_agent::layout::Layout;
use tallybook_agent::protocol::{
    Batch, Call, PROTOCOL, ReceiptReport, Reply, Request, SendSource, Shown, Start, read_frame,
    write_frame,
};
use tallybook_agent::receipts::{self};
use tallybook_agent::serve::{Deeds, serve};
use tallybook_agent::step::{Context, Done, Link, OutputOf, Program, Step, StepKind, fail, params};
use tallybook_events::event::{Event, OperationResumed};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{
    Attempt, Blob, Epoch, Hash, JournalId, LogId, OperationId, Seq, StepIndex,
};
use tallybook_events::step::{
    Action, FailureClass, Fence, Mark, Phase, Receipt, Seen, StepDone, StepFailure, StepKey,
};
use tallybook_testkit::samples;

pub(crate) const LOG: LogId = LogId::from_bytes([1; 16]);
pub(crate) const OPERATION: OperationId = OperationId::from_bytes([2; 16]);

/// Appends a line to a file, and says how many lines it has then.
#[derive(Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) file: PathBuf,
    pub(crate) text: String,
}

impl Step for Note {
    const KIND: &'static str = "test.note";
    type Output = usize;

    fn summary(&self) -> String {
        "note".to_owned()
    }

    fn probe(&self, _: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if !self.file.exists() {
            return Ok(Seen::Absent);
        }
        let done = Done {
            changed: false,
            output: lines(&self.file).len(),
            facts: Vec::new(),
        };
        done.seen()
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<usize>, StepFailure> {
        // The order that everything rests on: the receipt is in the journal before the effect.
        let report = receipts::report(context.layout, context.key.log, context.key.operation);
        let report = report.map_err(|error| fail(FailureClass::Other, error.to_string()))?;
        let is_started = |it: &Receipt| it.key == context.key && it.phase == Phase::Started;
        if !report.receipts.iter().any(is_started) {
            return Err(fail(FailureClass::Other, "no receipt before the effect"));
        }
        write_line(&self.file, &self.text);
        Ok(Done {
            changed: true,
            output: lines(&self.file).len(),
            facts: Vec::new(),
        })
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<usize>,
    ) -> Result<Done<()>, StepFailure> {
        let (operation, step) = context.origin;
        let line = format!("undo {} {step} {output:?}", operation == OPERATION);
        write_line(&self.file, &line);
        Ok(Done {
            changed: true,
            output: (),
            facts: Vec::new(),
        })
    }
}

/// What a step does that misbehaves, waits, or talks.
#[derive(Serialize, Deserialize)]
pub(crate) enum Deed {
    Fail,
    Panic,
    /// Waits until the file is there, whatever becomes of the line.
    Await(PathBuf),
    /// Waits until it is asked to stop.
    Obey,
    /// Waits until it is asked to stop, and ends well all the same.
    Outlast,
    /// Tells the output of another step.
    Repeat(OutputOf<usize>),
    Run(Vec<String>),
    /// Tells this as progress, and fails of it.
    Say(String),
    Progress(u64),
    /// Sends back what the peer sends until it says `end`.
    Echo,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Act {
    pub(crate) deed: Deed,
}

impl Step for Act {
    const KIND: &'static str = "test.act";
    type Output = usize;

    fn summary(&self) -> String {
        "act".to_owned()
    }

    fn probe(&self, _: &mut Context<'_>) -> Result<Seen, StepFailure> {
        match self.deed {
            Deed::Panic => panic!("in a probe"),
            Deed::Fail => Err(fail(FailureClass::Host, "can't look")),
            _ => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<usize>, StepFailure> {
        let mut output = 0;
        match &self.deed {
            Deed::Fail => {
                context.run(&Program::new(["echo", "said before"]))?;
                return Err(fail(FailureClass::Host, "wrong: password=hunter2"));
            }
            Deed::Panic => panic!("on {}", "purpose"),
            Deed::Await(file) => {
                while !file.exists() {
                    assert!(
                        !context.link.stop_requested(),
                        "no transfer, so not stopped"
                    );
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Deed::Obey => {
                while !context.link.stop_requested() {
                    thread::sleep(Duration::from_millis(5));
                }
                return Err(fail(FailureClass::Interrupted, "obeyed"));
            }
            Deed::Outlast => {
                while !context.link.stop_requested() {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Deed::Repeat(of) => output = context.output(of)?,
            Deed::Run(argv) => {
                context.run(&Program::new(argv.clone()))?;
            }
            Deed::Say(text) => {
                context.link.progress(&format!("at {text}"), 0, 0);
                return Err(StepFailure {
                    hint: Some(format!("not {text}")),
                    ..fail(FailureClass::Host, format!("wrong: {text}"))
                });
            }
            Deed::Progress(count) => {
                for done in 1..=*count {
                    context.link.progress("counting", done, *count);
                }
            }
            Deed::Echo => loop {
                let bytes = context.link.receive_peer()?;
                if bytes == b"end" {
                    break;
                }
                output += bytes.len();
                context.link.send_peer(bytes)?;
            },
        }
        Ok(Done {
            changed: true,
            output,
            facts: Vec::new(),
        })
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<usize>) -> Result<Done<()>, StepFailure> {
        Err(fail(FailureClass::Other, "not undone in these tests"))
    }
}

/// A note that can be started only once.
#[derive(Serialize, Deserialize)]
pub(crate) struct Once {
    pub(crate) note: Note,
}

impl Step for Once {
    const KIND: &'static str = "test.once";
    const ONCE: bool = true;
    type Output = usize;

    fn summary(&self) -> String {
        "once".to_owned()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        self.note.probe(context)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<usize>, StepFailure> {
        self.note.forward(context)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<usize>,
    ) -> Result<Done<()>, StepFailure> {
        self.note.undo(context, output)
    }
}

pub(crate) static TABLE: [StepKind; 3] = [
    StepKind::of::<Act>(),
    StepKind::of::<Note>(),
    StepKind::of::<Once>(),
];

pub(crate) fn send_name(
    source: &SendSource,
    _: &Layout,
    link: &mut dyn Link,
) -> Result<(), StepFailure> {
    let asked = link.receive_peer()?;
    link.send_peer(asked)?;
    match source {
        SendSource::Template { template, .. } => link.send_peer(template.as_str().into()),
        SendSource::Staged { .. } => Err(fail(FailureClass::Missing, "nothing staged")),
    }
}

pub(crate) fn write_line(file: &PathBuf, text: &str) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    writeln!(file, "{text}").unwrap();
}

pub(crate) fn lines(file: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A host with its state; agents come and go.
pub(crate) struct Host {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) layout: Layout,
}

impl Host {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        Host {
            layout: Layout::below(temp.path()),
            temp,
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn note(&self, step: u32, text: &str) -> Call {
        let note = Note {
            file: self.file("notes"),
            text: text.to_owned(),
        };
        call(step, &note)
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        lines(&self.file("notes"))
    }

    pub(crate) fn report(&self) -> ReceiptReport {
        receipts::report(&self.layout, LOG, OPERATION).unwrap()
    }

    /// What it was shown of the log.
    pub(crate) fn seen(&self) -> Option<Mark> {
        let path = fence::path(&self.layout, LOG);
        fence::read(&path, LOG).unwrap().map(|seen| seen.mark)
    }

    pub(crate) fn phase(&self, step: u32) -> Option<Phase> {
        let mut found = self.report().receipts.into_iter();
        found.find(|it| it.key == key(step)).map(|it| it.phase)
    }

    /// An agent that was greeted.
    pub(crate) fn agent(&self) -> Agent {
        let mut agent = self.stranger();
        agent.greet();
        agent
    }

    pub(crate) fn stranger(&self) -> Agent {
        let (input, to_agent) = pipe().unwrap();
        let (from_agent, output) = pipe().unwrap();
        let layout = self.layout.clone();
        let deeds = Deeds {
            table: &TABLE,
            send: Some(send_name),
            program: None,
        };
        Agent {
            to: Some(to_agent),
            from: from_agent,
            thread: thread::spawn(move || serve(input, output, &layout, deeds)),
        }
    }
}

pub(crate) struct Agent {
    pub(crate) to: Option<PipeWriter>,
    pub(crate) from: PipeReader,
    pub(crate) thread: JoinHandle<bool>,
}

impl Agent {
    pub(crate) fn say(&mut self, request: &Request) {
        write_frame(self.to.as_mut().unwrap(), request).unwrap();
    }

    pub(crate) fn run(&mut self, calls: Vec<Call>) {
        self.say(&run(batch(calls)));
    }

    /// Greets it; the receipts journal that it tells.
    pub(crate) fn greet(&mut self) -> Option<JournalId> {
        self.say(&Request::Hello {
            protocol: PROTOCOL,
            log: LOG,
            host: "host1".parse().unwrap(),
        });
        match self.hear() {
            Reply::Hello {
                protocol: PROTOCOL,
                journal,
                ..
            } => journal,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn hear(&mut self) -> Reply {
        loop {
            match read_frame(&mut self.from).unwrap().expect("a reply") {
                Reply::Alive => {}
                reply => return reply,
            }
        }
    }

    pub(crate) fn finished(&mut self) -> Phase {
        loop {
            match self.hear() {
                Reply::Finished(receipt) => return receipt.phase,
                Reply::Started(_) | Reply::Progress { .. } | Reply::Waiting(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn unstarted(&mut self) -> Vec<u32> {
        match self.hear() {
            Reply::BatchEnded { unstarted } => unstarted.iter().map(|it| it.step.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn refused(&mut self) -> StepFailure {
        match self.hear() {
            Reply::Refused(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Hangs up, and waits for the end. Whether all went well.
    pub(crate) fn end(mut self) -> bool {
        self.to = None;
        self.thread.join().expect("the agent never panics")
    }
}

pub(crate) fn key(step: u32) -> StepKey {
    StepKey {
        log: LOG,
        operation: OPERATION,
        step: StepIndex(step),
        attempt: Attempt(1),
    }
}

pub(crate) fn call<S: Step>(step: u32, what: &S) -> Call {
    Call {
        key: key(step),
        kind: S::KIND.to_owned(),
        params: params(what).unwrap(),
        action: Action::Forward,
        set_aside: false,
    }
}

pub(crate) fn act(step: u32, deed: Deed) -> Call {
    call(step, &Act { deed })
}

pub(crate) fn batch(calls: Vec<Call>) -> Batch {
    Batch {
        fence: Fence {
            log: LOG,
            epoch: Epoch(2),
            claim: ClaimRef {
                seq: Seq(10),
                hash: Hash([9; 32]),
            },
        },
        calls,
        outputs: BTreeMap::new(),
    }
}

/// The header of an event of the log; `way` tells lines of its history apart.
pub(crate) fn header(epoch: u32, seq: u64, way: u8) -> Vec<u8> {
    let mut header = samples::header(&Event::from(OperationResumed {}), seq);
    header.log = LOG;
    header.epoch = Epoch(epoch);
    header.previous = Hash([way; 32]);
    header.encode().unwrap()
}

/// Shows this event as the newest of the log, and nothing else.
pub(crate) fn shown(newest: Vec<u8>) -> Shown {
    Shown {
        newest: Blob(newest),
        proof: None,
    }
}

/// Asks for a batch, as a controller does whose log has always been the same.
pub(crate) fn run(batch: Batch) -> Request {
    run_shown(shown(header(batch.fence.epoch.0, 10, 0)), batch)
}

pub(crate) fn run_shown(shown: Shown, batch: Batch) -> Request {
    Request::Run { shown, batch }
}

/// Asks for the operation's receipts, and gives up these starts.
pub(crate) fn receipts(starts: &[Call]) -> Request {
    let Batch { fence, .. } = batch(Vec::new());
    let start = |call: &Call| Start {
        key: call.key,
        kind: call.kind.clone(),
    };
    Request::Receipts {
        shown: shown(header(fence.epoch.0, 10, 0)),
        fence,
        operation: OPERATION,
        starts: starts.iter().map(start).collect(),
    }
}

/// The same once the log has gone on to event 12, with the event that [`run`] shows.
pub(crate) fn run_later(batch: Batch) -> Request {
    let mut shown = shown(header(batch.fence.epoch.0, 12, 0));
    shown.proof = Some(Blob(header(batch.fence.epoch.0, 10, 0)));
    Request::Run { shown, batch }
}

pub(crate) fn done(phase: &Phase) -> &StepDone {
    match phase {
        Phase::Succeeded(done) => done,
        Phase::Started | Phase::Failed(_) | Phase::GivenUp => panic!("{phase:?}"),
    }
}

pub(crate) fn failed(phase: &Phase) -> &StepFailure {
    match phase {
        Phase::Failed(failure) => failure,
        Phase::Started | Phase::Succeeded(_) | Phase::GivenUp => panic!("{phase:?}"),
    }
}

pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(5));
    }
}
