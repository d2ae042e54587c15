//! Hosts in this process: the real agent in a thread a conversation, behind a line that a test can cut.

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tallybook::engine::conversation::{self, Conversation};
use tallybook::engine::reach::{self, Opening, Reach};
use tallybook_agent::layout::Layout;
use tallybook_agent::protocol::{Batch, PROTOCOL, Reply, Request, Shown, read_frame, write_frame};
use tallybook_agent::receipts::Journal;
use tallybook_agent::serve::{Deeds, serve};
use tallybook_events::ids::{BootId, LogId};
use tallybook_events::name::HostName;
use tallybook_events::step::{FailureClass, Phase, Receipt, StepFailure};
use tokio::sync::{Semaphore, mpsc};

use crate::deed;

/// What befalls a line once; each is used up when it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The batch never gets to the host.
    RunLost,
    /// The batch gets to the host once the test says so.
    RunLate,
    /// The agent dies right after its receipt for the first step said started; with the step's effect, or without.
    AgentDies { effect: bool },
    /// The line is cut when the agent tells that a step begins; the agent goes on by itself.
    CutAtStarted,
    /// The line is cut when the agent tells that a step ended.
    CutAtFinished,
    /// The agent refuses the rest after it told that a step ended.
    RefuseAfterFinished,
    /// The agent says that the batch ended, and nothing else.
    EndAtOnce,
    /// The sending end dies after its first piece.
    SenderDies,
}

/// Whether a cut is seen at the controller, or the line falls silent (the test then ends the controller).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Breaks,
    FallsSilent,
}

/// An agent as a test plays it.
type Script = Arc<dyn Fn(UnixStream) + Send + Sync>;

pub(crate) struct Host {
    _temp: tempfile::TempDir,
    pub(crate) layout: Layout,
    down: AtomicBool,
    slow: AtomicBool,
    pub(crate) opened: AtomicU32,
    faults: Mutex<VecDeque<Fault>>,
    late: Mutex<Option<(Shown, Batch)>>,
    always: Mutex<Option<Fault>>,
    line: Mutex<Line>,
    slots: Mutex<Option<Arc<Semaphore>>>,
    script: Mutex<Option<Script>>,
    silence: Mutex<Duration>,
    hit: mpsc::UnboundedSender<Fault>,
    pub(crate) hits: tokio::sync::Mutex<mpsc::UnboundedReceiver<Fault>>,
}

impl Host {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (hit, hits) = mpsc::unbounded_channel();
        Host {
            layout: Layout::below(temp.path()),
            _temp: temp,
            down: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            opened: AtomicU32::new(0),
            faults: Mutex::default(),
            late: Mutex::default(),
            always: Mutex::default(),
            line: Mutex::new(Line::Breaks),
            slots: Mutex::default(),
            script: Mutex::default(),
            silence: Mutex::new(conversation::SILENCE_MAX),
            hit,
            hits: tokio::sync::Mutex::new(hits),
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        deed::notes(&self.layout)
    }

    pub(crate) fn signal(&self, name: &str) {
        deed::signal(&self.layout, name);
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// From now on a conversation takes for ever to open.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::SeqCst);
    }

    /// How many conversations its session has room for from now on.
    pub(crate) fn set_slots(&self, slots: usize) {
        *self.slots.lock().unwrap() = Some(Arc::new(Semaphore::new(slots)));
    }

    /// What is in the place of its agents from now on.
    pub(crate) fn play(&self, script: impl Fn(UnixStream) + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Some(Arc::new(script));
    }

    /// How long its agents may be silent from now on.
    pub(crate) fn set_silence(&self, silence: Duration) {
        *self.silence.lock().unwrap() = silence;
    }

    pub(crate) fn befall(&self, fault: Fault, line: Line) {
        self.faults.lock().unwrap().push_back(fault);
        *self.line.lock().unwrap() = line;
    }

    /// Befalls every line from now on.
    pub(crate) fn befall_always(&self, fault: Option<Fault>) {
        *self.always.lock().unwrap() = fault;
    }

    /// Lets a batch arrive that was late: what is made of it.
    pub(crate) fn arrive(&self) -> Reply {
        let (shown, batch) = self.late.lock().unwrap().take().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let hello = Request::Hello {
            protocol: PROTOCOL,
            log: batch.fence.log,
            host: HostName::new("late").unwrap(),
        };
        write_frame(&near, &hello).unwrap();
        write_frame(&near, &Request::Run { shown, batch }).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let deeds = Deeds {
            table: &deed::TABLE,
            send: None,
            program: None,
        };
        serve(far.try_clone().unwrap(), far, &self.layout, deeds);
        loop {
            match read_frame(&near).unwrap().unwrap() {
                Reply::Hello { .. } | Reply::Alive => {}
                reply => return reply,
            }
        }
    }

    /// Takes the next fault, when it is one of these.
    fn fault(&self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let always = self.always.lock().unwrap().clone().filter(&wanted);
        if always.is_some() {
            return always;
        }
        let mut faults = self.faults.lock().unwrap();
        if !faults.front().is_some_and(wanted) {
            return None;
        }
        faults.pop_front()
    }

    /// The line's end towards the controller.
    fn lose(&self, controller: &UnixStream, fault: Fault) {
        let _gone = self.hit.send(fault);
        if *self.line.lock().unwrap() == Line::Breaks {
            let _gone = controller.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) struct World {
    pub(crate) hosts: BTreeMap<HostName, Arc<Host>>,
}

impl World {
    pub(crate) fn new(names: &[&str]) -> Arc<Self> {
        Arc::new(World {
            hosts: names
                .iter()
                .map(|name| (HostName::new(name).unwrap(), Arc::new(Host::new())))
                .collect(),
        })
    }

    pub(crate) fn host(&self, name: &str) -> &Arc<Host> {
        &self.hosts[&HostName::new(name).unwrap()]
    }
}

impl Reach for World {
    fn open<'a>(&'a self, name: &'a HostName, log: LogId) -> Opening<'a> {
        Box::pin(async move {
            let host = self.hosts.get(name);
            let host = host.ok_or_else(|| reach::Error::Unknown(name.clone()))?;
            host.opened.fetch_add(1, Ordering::SeqCst);
            if host.slow.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if host.down.load(Ordering::SeqCst) {
                return Err(conversation::Error::Lost {
                    host: name.clone(),
                    why: "it is switched off".to_owned(),
                }
                .into());
            }
            let slots = host.slots.lock().unwrap().clone();
            let slot = match slots.map(|slots| slots.try_acquire_owned()) {
                Some(Err(_full)) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    return Err(reach::Error::Host(tallybook::host::Error::ChannelLimit {
                        host: name.to_string(),
                        max: 0,
                        waited: Duration::ZERO,
                    }));
                }
                Some(Ok(slot)) => Some(slot),
                None => None,
            };
            let (ours, theirs) = UnixStream::pair().unwrap();
            let script = host.script.lock().unwrap().clone();
            match script {
                Some(script) => drop(thread::spawn(move || script(theirs))),
                None => agent(host, theirs),
            }
            ours.set_nonblocking(true).unwrap();
            let stream = tokio::net::UnixStream::from_std(ours).unwrap();
            let (stdout, stdin) = stream.into_split();
            let end = Box::pin(async move {
                let _slot = slot;
                "cut by the test".to_owned()
            });
            let silence = *host.silence.lock().unwrap();
            let mut conversation = Conversation::new(name, stdin, stdout, end, silence);
            conversation.hello(log).await?;
            Ok(conversation)
        })
    }
}

/// An agent, and two threads that carry frames between it and the controller.
fn agent(host: &Arc<Host>, controller: UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let layout = host.layout.clone();
    let deeds = Deeds {
        table: &deed::TABLE,
        send: Some(deed::send),
        program: None,
    };
    let input = far.try_clone().unwrap();
    thread::spawn(move || {
        let output = far.try_clone().unwrap();
        serve(input, output, &layout, deeds);
        let _gone = far.shutdown(Shutdown::Both);
    });
    let (to_agent, from_controller) = (near.try_clone().unwrap(), controller.try_clone().unwrap());
    let there = Arc::clone(host);
    thread::spawn(move || {
        carry_requests(&there, &from_controller, &to_agent);
        let _gone = to_agent.shutdown(Shutdown::Write);
    });
    let here = Arc::clone(host);
    thread::spawn(move || {
        carry_replies(&here, &near, &controller);
        if *here.line.lock().unwrap() == Line::Breaks {
            let _gone = controller.shutdown(Shutdown::Both);
        }
        // The agent sees the line's end, too.
        let _gone = near.shutdown(Shutdown::Both);
    });
}

fn carry_requests(host: &Host, controller: &UnixStream, agent: &UnixStream) {
    while let Ok(Some(mut request)) = read_frame::<Request>(controller) {
        let refuses = host.faults.lock().unwrap().front() == Some(&Fault::RefuseAfterFinished);
        if let Request::Run { batch, .. } = &mut request
            && refuses
        {
            // What it refuses it does not begin.
            batch.calls.truncate(1);
        }
        if let Request::Run { batch, shown } = &request {
            let fault = host.fault(|fault| {
                matches!(
                    fault,
                    Fault::RunLost | Fault::RunLate | Fault::AgentDies { .. } | Fault::EndAtOnce
                )
            });
            match fault {
                None => {}
                Some(Fault::EndAtOnce) => {
                    let unstarted = Vec::new();
                    let _gone = write_frame(controller, &Reply::BatchEnded { unstarted });
                    continue;
                }
                Some(fault) => {
                    if let Fault::AgentDies { effect } = &fault {
                        die(host, batch, *effect);
                    }
                    if fault == Fault::RunLate {
                        *host.late.lock().unwrap() = Some((shown.clone(), batch.clone()));
                    }
                    host.lose(controller, fault);
                    return;
                }
            }
        }
        if write_frame(agent, &request).is_err() {
            return;
        }
    }
}

/// What an agent leaves that was killed in its first step.
fn die(host: &Host, batch: &Batch, effect: bool) {
    let call = &batch.calls[0];
    let mut journal = Journal::open(&host.layout, batch.fence.log, &mut |_| {}).unwrap();
    let receipt = Receipt {
        key: call.key,
        fence: batch.fence,
        kind: call.kind.clone(),
        boot: BootId::from_bytes([9; 16]),
        time_unix_us: 1,
        phase: Phase::Started,
    };
    journal.append(&receipt).unwrap();
    if effect {
        let act: deed::Act = tallybook_events::codec::decode(&call.params.0).unwrap();
        deed::note(&host.layout, &act.text);
    }
}

fn carry_replies(host: &Host, agent: &UnixStream, controller: &UnixStream) {
    while let Ok(Some(reply)) = read_frame::<Reply>(agent) {
        let is_end = matches!(reply, Reply::BatchEnded { .. });
        if is_end && host.fault(|it| *it == Fault::RefuseAfterFinished).is_some() {
            let failure = StepFailure {
                class: FailureClass::DiskFull,
                message: "no receipt can be kept".to_owned(),
                hint: None,
                captured: Vec::new(),
            };
            let _gone = write_frame(controller, &Reply::Refused(failure));
            return;
        }
        let fault = match &reply {
            Reply::Started(_) => host.fault(|fault| *fault == Fault::CutAtStarted),
            Reply::Finished(_) => host.fault(|fault| *fault == Fault::CutAtFinished),
            _ => None,
        };
        match fault {
            None => {}
            Some(fault) => {
                host.lose(controller, fault);
                return;
            }
        }
        if write_frame(controller, &reply).is_err() {
            return;
        }
        let is_piece = matches!(reply, Reply::Peer(_));
        if let Some(fault) = host.fault(|fault| is_piece && *fault == Fault::SenderDies) {
            host.lose(controller, fault);
            return;
        }
    }
}
