//! A host: what its steps made, its disk, and the agents that run on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tallybook_agent::layout::Layout;
use tallybook_agent::protocol::{Call, Reply, Request, encode_frame};
use tallybook_agent::receipts::RESERVE_LEN;
use tallybook_agent::step::fail;
use tallybook_events::ids::{LogId, OperationId, StepIndex};
use tallybook_events::step::{Action, FailureClass, PlannedStep, Seen, StepFailure, StepKey};
use tallybook_testkit::files::copy_tree;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::agent::{self, Act, Answer, Asked, Deed, Said, done};
use crate::line::{Line, Standing, copy};

/// How long a thread may take, by the clock of this machine, for what takes no time at all in the simulation.
const PATIENCE: Duration = Duration::from_secs(60);
/// By that clock, how long an agent is listened to that must wait.
const AT_ONCE: Duration = Duration::from_millis(5);

/// What agents call the file that sets room aside.
const RESERVE: &str = "reserve";

/// A file of this length that takes no room.
pub(crate) fn hole(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
}

/// A forward step of an operation: what it makes is named by it.
pub(crate) type Origin = (OperationId, StepIndex);

/// How a thing stands on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its step was cut while it made it.
    Half,
    /// Its step made it.
    Whole,
    /// Somebody else's.
    Foreign,
}

/// What an agent does.
enum Doing {
    /// It waits for a request.
    Nothing,
    /// It waits for the first of these locks, which others have; then it takes the rest.
    Blocked(VecDeque<OperationId>),
    /// Another waits for what it needs: of two that wait for the same lock, the first one to come takes it.
    Queued(Request),
    /// A step of it waits to be told what it did.
    Step(Asked),
    /// It waits for the other end of a transfer.
    Peer,
    /// It waits for a proof.
    Proof,
}

struct Agent {
    input: Option<Sender<Vec<u8>>>,
    said: Receiver<Said>,
    hears: Receiver<()>,
    /// To its line.
    replies: UnboundedSender<Reply>,
    line: Arc<Line>,
    doing: Doing,
    locks: BTreeSet<OperationId>,
    /// Probes that it still owes.
    probes: usize,
    /// What its peer sent and it did not take.
    from_peer: usize,
    /// Whether it was asked to stop: it waits for no peer any more.
    is_stopped: bool,
}

/// Names an agent on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AgentId(u64);

pub(crate) struct Host {
    temp: TempDir,
    /// How often its disk was taken from agents that were killed.
    disk: u32,
    /// The log for which nothing is set aside on it.
    reserve: Option<LogId>,
    agents: BTreeMap<AgentId, Agent>,
    next_agent: u64,
    pub(crate) things: BTreeMap<Origin, Effect>,
    pub(crate) down_until: Option<Instant>,
    /// All that was done here, in order.
    pub(crate) acts: Vec<Act>,
    /// Starts whose receipt says how they ended.
    ended: BTreeSet<StepKey>,
    /// Those of them that were carried out again all the same.
    pub(crate) repeated: BTreeSet<StepKey>,
    /// How often an agent did not wait for another that carries out a step of the same operation.
    pub(crate) unwaited: u32,
    /// Steps that are about to act, and whose effect is somebody else's to begin.
    begun: Vec<AgentId>,
}

impl Host {
    pub(crate) fn new(place: &Path) -> Self {
        Host {
            temp: TempDir::new_in(place).unwrap(),
            disk: 0,
            reserve: None,
            agents: BTreeMap::new(),
            next_agent: 0,
            things: BTreeMap::new(),
            down_until: None,
            acts: Vec::new(),
            ended: BTreeSet::new(),
            repeated: BTreeSet::new(),
            unwaited: 0,
            begun: Vec::new(),
        }
    }

    fn disk(&self) -> PathBuf {
        self.temp.path().join(self.disk.to_string())
    }

    /// Has the room that agents set aside for this log take none: the disks here are memory.
    pub(crate) fn set_nothing_aside(&mut self, log: LogId) {
        let receipts = Layout::below(&self.disk()).receipts(log);
        tallybook_agent::durable::create_dirs(&receipts).unwrap();
        self.reserve = Some(log);
        hole(&receipts.join(RESERVE), RESERVE_LEN);
    }

    pub(crate) fn is_down(&self) -> bool {
        self.down_until.is_some_and(|until| Instant::now() < until)
    }

    /// Starts an agent that says what it says to `replies`, for the line to tell.
    pub(crate) fn start_agent(
        &mut self,
        line: Arc<Line>,
        replies: UnboundedSender<Reply>,
    ) -> AgentId {
        let id = AgentId(self.next_agent);
        self.next_agent += 1;
        let process = agent::start(&Layout::below(&self.disk()));
        process.hears.recv_timeout(PATIENCE).unwrap();
        let agent = Agent {
            input: Some(process.input),
            said: process.said,
            hears: process.hears,
            replies,
            line,
            doing: Doing::Nothing,
            locks: BTreeSet::new(),
            probes: 0,
            from_peer: 0,
            is_stopped: false,
        };
        self.agents.insert(id, agent);
        id
    }

    pub(crate) fn is_alive(&self, id: AgentId) -> bool {
        self.agents.contains_key(&id)
    }

    /// Every agent is killed: what is on the disk by now is all that is left of them.
    pub(crate) fn kill_agents(&mut self) {
        let before = self.disk();
        if let Some(log) = self.reserve {
            // A copy would have no holes.
            fs::remove_file(Layout::below(&before).receipts(log).join(RESERVE)).unwrap();
        }
        self.disk += 1;
        if before.exists() {
            copy_tree(&before, &self.disk());
        }
        if let Some(log) = self.reserve {
            self.set_nothing_aside(log);
        }
        self.agents.clear();
    }

    /// Somebody takes what is about to act.
    pub(crate) fn take_begun(&mut self) -> Vec<AgentId> {
        std::mem::take(&mut self.begun)
    }

    /// A request arrives.
    pub(crate) fn deliver(&mut self, id: AgentId, request: &Request, plans: &Plans) {
        let needed = locks_of(request);
        let is_awaited = self.agents.iter().any(|(other, agent)| match &agent.doing {
            Doing::Blocked(rest) => *other != id && rest.iter().any(|lock| needed.contains(lock)),
            _ => false,
        });
        if is_awaited && let Some(agent) = self.agents.get_mut(&id) {
            agent.doing = Doing::Queued(copy(request));
            return;
        }
        self.hand_in(id, request, plans);
    }

    /// An agent reads a request.
    fn hand_in(&mut self, id: AgentId, request: &Request, plans: &Plans) {
        self.hand_in_queued(id, plans);
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        let Some(input) = &agent.input else { return };
        if input.send(encode_frame(request).unwrap()).is_err() {
            return;
        }
        if agent.hears.recv_timeout(PATIENCE).is_err() {
            // It understands nothing more.
            return;
        }
        match request {
            Request::Secrets(_) => return,
            Request::Stop => {
                agent.is_stopped = true;
                if matches!(agent.doing, Doing::Peer | Doing::Blocked(_) | Doing::Proof) {
                    self.settle(id, plans);
                }
                return;
            }
            Request::Peer(_) | Request::PeerLost(_) => {
                agent.from_peer += 1;
                if matches!(agent.doing, Doing::Peer) {
                    agent.from_peer -= 1;
                    self.settle(id, plans);
                }
                return;
            }
            Request::Probe(batch) | Request::Adopt(batch) => agent.probes = batch.calls.len(),
            Request::Hello { .. }
            | Request::Run { .. }
            | Request::Receipts { .. }
            | Request::Operations
            | Request::Forget { .. }
            | Request::MakeJournal
            | Request::Proof(_)
            | Request::Send { .. } => {}
            Request::Session { .. }
            | Request::Input(_)
            | Request::InputEnd
            | Request::Resize { .. } => unreachable!("nobody has sessions here"),
        }
        if self.take(id, locks_of(request)) {
            self.settle(id, plans);
        } else if let Some(agent) = self.agents.get_mut(&id) {
            // One that waits says nothing: who goes on is heard at once.
            if agent.said.recv_timeout(AT_ONCE).is_ok() {
                self.unwaited += 1;
            }
        }
    }

    /// What an agent was to read before it reads anything else, or sees the end.
    fn hand_in_queued(&mut self, id: AgentId, plans: &Plans) {
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        if matches!(agent.doing, Doing::Queued(_))
            && let Doing::Queued(request) = std::mem::replace(&mut agent.doing, Doing::Nothing)
        {
            self.hand_in(id, &request, plans);
        }
    }

    /// An agent takes one lock after the other, until another has one of them; whether it has them all.
    fn take(&mut self, id: AgentId, mut needed: VecDeque<OperationId>) -> bool {
        while let Some(lock) = needed.front() {
            let mut others = self.agents.iter().filter(|(other, _)| **other != id);
            let is_free = others.all(|(_, other)| !other.locks.contains(lock));
            let Some(agent) = self.agents.get_mut(&id) else {
                return false;
            };
            if !is_free {
                agent.doing = Doing::Blocked(needed);
                return false;
            }
            agent.locks.extend(needed.pop_front());
        }
        true
    }

    /// The line to an agent is gone, as it sees it.
    pub(crate) fn hang_up(&mut self, id: AgentId, plans: &Plans) {
        self.hand_in_queued(id, plans);
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        agent.input = None;
        let ended = agent.hears.recv_timeout(PATIENCE);
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "it hears on");
        match agent.doing {
            // It ends what it does; nobody will ask it for anything else.
            Doing::Step(_) => {}
            Doing::Nothing => drop(self.agents.remove(&id)),
            Doing::Blocked(_) | Doing::Proof | Doing::Peer => self.settle(id, plans),
            Doing::Queued(_) => unreachable!("it was handed in"),
        }
    }

    /// Tells a step what it did, and waits for what its agent makes of it.
    pub(crate) fn answer(&mut self, id: AgentId, answer: Answer, plans: &Plans) {
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        let Doing::Step(asked) = std::mem::replace(&mut agent.doing, Doing::Nothing) else {
            unreachable!("nobody asked");
        };
        let ends = !matches!(answer, Answer::Receive);
        asked.answer.send(answer).unwrap();
        self.settle(id, plans);
        if ends {
            self.ended.insert(asked.act.key);
        }
    }

    /// What befalls the line of an agent.
    pub(crate) fn lose_line(&self, id: AgentId, how: Standing) {
        if let Some(agent) = self.agents.get(&id) {
            agent.line.set(how);
        }
    }

    /// What befalls the lines of all agents.
    pub(crate) fn lose_lines(&self, how: Standing) {
        self.agents.values().for_each(|agent| agent.line.set(how));
    }

    /// What an agent is about to do.
    pub(crate) fn asked(&self, id: AgentId) -> Option<Act> {
        match &self.agents.get(&id)?.doing {
            Doing::Step(asked) => Some(asked.act),
            Doing::Nothing | Doing::Blocked(_) | Doing::Queued(_) | Doing::Peer | Doing::Proof => {
                None
            }
        }
    }

    /// Waits until an agent has nothing more to do by itself; then whoever waited for its locks is next.
    fn settle(&mut self, id: AgentId, plans: &Plans) {
        self.settle_one(id, plans);
        let agents: Vec<AgentId> = self.agents.keys().copied().collect();
        for other in &agents {
            let Some(agent) = self.agents.get(other) else {
                continue;
            };
            if let Doing::Blocked(rest) = &agent.doing {
                let rest = rest.clone();
                if self.take(*other, rest) {
                    return self.settle(*other, plans);
                }
            }
        }
        for other in agents {
            if let Some(agent) = self.agents.get_mut(&other)
                && matches!(agent.doing, Doing::Queued(_))
                && let Doing::Queued(request) = std::mem::replace(&mut agent.doing, Doing::Nothing)
            {
                self.deliver(other, &request, plans);
            }
        }
    }

    fn settle_one(&mut self, id: AgentId, plans: &Plans) {
        // Whatever it says of being alive meanwhile.
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let Some(agent) = self.agents.get_mut(&id) else {
                return;
            };
            agent.doing = Doing::Nothing;
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match agent.said.recv_timeout(left).expect("an agent hangs") {
                Said::Reply(Reply::Alive | Reply::Waiting(_)) => {}
                Said::Reply(reply) => {
                    let ends = match &reply {
                        Reply::Hello { .. }
                        | Reply::Journal(_)
                        | Reply::Operations(_)
                        | Reply::Forgotten(_)
                        | Reply::Admitted => true,
                        Reply::Prove(_) => {
                            agent.doing = Doing::Proof;
                            true
                        }
                        Reply::BatchEnded { .. }
                        | Reply::Refused(_)
                        | Reply::Receipts(_)
                        | Reply::SendEnded => {
                            agent.locks.clear();
                            true
                        }
                        Reply::Probed { .. } | Reply::Adopted { .. } | Reply::NotAdopted { .. } => {
                            agent.probes -= 1;
                            agent.probes == 0
                        }
                        Reply::Alive
                        | Reply::Waiting(_)
                        | Reply::Started(_)
                        | Reply::Progress { .. }
                        | Reply::Finished(_)
                        | Reply::Peer(_)
                        | Reply::Output { .. }
                        | Reply::SessionEnded(_) => false,
                    };
                    // Where nobody hears it, its line is gone.
                    let _gone = agent.replies.send(reply);
                    let is_asked = matches!(agent.doing, Doing::Proof);
                    if ends && agent.input.is_none() && !is_asked {
                        self.agents.remove(&id);
                    }
                    if ends {
                        return;
                    }
                }
                Said::Step(asked) if asked.act.deed == Deed::Probe => {
                    let seen = self.probe(asked.act.origin, &plans[&asked.act.origin]);
                    asked.answer.send(Answer::Seen(seen)).unwrap();
                }
                Said::Step(asked) => {
                    if self.ended.contains(&asked.act.key) {
                        self.repeated.insert(asked.act.key);
                    }
                    agent.doing = Doing::Step(asked);
                    self.begun.push(id);
                    return;
                }
                Said::AtPeer if agent.from_peer > 0 => agent.from_peer -= 1,
                Said::AtPeer => {
                    agent.doing = Doing::Peer;
                    if agent.input.is_some() && !agent.is_stopped {
                        return;
                    }
                }
                Said::Ended => {
                    self.agents.remove(&id);
                    return;
                }
            }
        }
    }

    fn probe(&self, origin: Origin, step: &PlannedStep) -> Seen {
        if step.once {
            let why = "it leaves no trace".to_owned();
            return Seen::Unknown { why };
        }
        match self.things.get(&origin) {
            None => Seen::Absent,
            Some(Effect::Whole) => Seen::Done(done(false)),
            Some(Effect::Half) => Seen::Partial {
                what: "half of it".to_owned(),
            },
            Some(Effect::Foreign) => Seen::Conflict {
                what: "somebody else's".to_owned(),
            },
        }
    }

    /// A step acts: what it reports.
    pub(crate) fn act(&mut self, asked: Act, step: &PlannedStep) -> Answer {
        let there = self.things.get(&asked.origin).copied();
        let result = match (asked.deed, there) {
            (Deed::Probe, _) => unreachable!("a probe does not act"),
            (Deed::Forward, _) if step.peer.is_some() => return Answer::Receive,
            (Deed::Forward | Deed::Arrived, Some(Effect::Foreign)) => Err(foreign()),
            (Deed::Forward | Deed::Arrived, Some(Effect::Whole)) if !step.once => Ok(done(false)),
            (Deed::Forward | Deed::Arrived, _) => {
                self.things.insert(asked.origin, Effect::Whole);
                Ok(done(true))
            }
            (Deed::Undo, Some(Effect::Whole | Effect::Half)) => {
                self.things.remove(&asked.origin);
                Ok(done(true))
            }
            // What others put there is left.
            (Deed::Undo, _) => Ok(done(false)),
        };
        self.acts.push(asked);
        Answer::Done(result)
    }

    /// A step is cut while it acts.
    pub(crate) fn act_half_way(&mut self, asked: Act) {
        match (asked.deed, self.things.get(&asked.origin)) {
            (Deed::Forward | Deed::Arrived, None | Some(Effect::Half))
            | (Deed::Undo, Some(Effect::Whole)) => {
                self.things.insert(asked.origin, Effect::Half);
                self.acts.push(asked);
            }
            (Deed::Probe | Deed::Forward | Deed::Arrived | Deed::Undo, _) => {}
        }
    }
}

/// The forward steps of all operations.
pub(crate) type Plans = BTreeMap<Origin, PlannedStep>;

fn foreign() -> StepFailure {
    fail(
        FailureClass::Exists,
        "something of somebody else's is in the way",
    )
}

/// The operations whose locks a request takes, in the order in which it takes them.
fn locks_of(request: &Request) -> VecDeque<OperationId> {
    match request {
        Request::Run { batch, .. } => {
            let own = batch.calls.first().map(|call| call.key.operation);
            let taken_back = |call: &Call| match call.action {
                Action::Undo { operation, .. } if Some(operation) != own => Some(operation),
                Action::Undo { .. } | Action::Forward => None,
            };
            let taken_back: BTreeSet<OperationId> =
                batch.calls.iter().filter_map(taken_back).collect();
            own.into_iter().chain(taken_back).collect()
        }
        Request::Receipts { operation, .. } => [*operation].into(),
        _ => VecDeque::new(),
    }
}
