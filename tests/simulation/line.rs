//! The lines to hosts: frames take their time, get lost, come late, and an end is seen by one, both or neither.

use std::sync::Arc;
use std::time::Duration;

use tallybook::engine::conversation::{self, Conversation, SILENCE_MAX};
use tallybook::engine::reach::{self, Opening, Reach};
use tallybook_agent::protocol::{FRAME_LEN_MAX, Reply, Request, encode_frame};
use tallybook_events::codec;
use tallybook_events::ids::LogId;
use tallybook_events::name::HostName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::fault::{Fault, Moment};
use crate::host::AgentId;
use crate::world::World;

/// How often an agent gives a sign of life.
const BEAT: Duration = Duration::from_secs(5);
/// After this long an end notices that nothing comes through any more.
const STALLED: Duration = Duration::from_secs(120);

/// How a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Up,
    /// Nothing comes through.
    Silent,
    /// Both ends see that it is gone.
    Cut,
}

/// A line; it only ever gets worse.
pub(crate) struct Line(watch::Sender<Standing>);

impl Line {
    fn new() -> Arc<Self> {
        Arc::new(Line(watch::channel(Standing::Up).0))
    }

    pub(crate) fn set(&self, how: Standing) {
        self.0.send_if_modified(|standing| {
            let worse = how > *standing;
            *standing = (*standing).max(how);
            worse
        });
    }

    fn is_silent(&self) -> bool {
        *self.0.borrow() != Standing::Up
    }

    async fn cut(&self) {
        let mut standing = self.0.subscribe();
        let _kept_by_self = standing.wait_for(|it| *it == Standing::Cut).await;
    }
}

/// The way to the world's hosts.
pub(crate) struct Lines(pub(crate) Arc<World>);

impl Reach for Lines {
    fn open<'a>(&'a self, host: &'a HostName, log: LogId) -> Opening<'a> {
        Box::pin(async move {
            let world = &self.0;
            sleep(world.latency()).await;
            let lost = |why: &str| conversation::Error::Lost {
                host: host.clone(),
                why: why.to_owned(),
            };
            match world.pass(Moment::Opening, host) {
                Some(Fault::NoWay) => return Err(lost("there is no way to it").into()),
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(_) | None => {}
            }
            let line = Line::new();
            let (replies, said) = unbounded_channel();
            let agent = world.start_agent(host, Arc::clone(&line), replies);
            let agent = agent.ok_or_else(|| reach::Error::from(lost("it is switched off")))?;
            let (stdin, requests) = duplex(FRAME_LEN_MAX);
            let (answers, stdout) = duplex(FRAME_LEN_MAX);
            let end = End {
                world: Arc::clone(world),
                host: host.clone(),
                agent,
                line,
            };
            tokio::spawn(end.clone().carry_requests(requests));
            tokio::spawn(end.carry_replies(said, answers));
            let ended = Box::pin(async { "cut by the simulation".to_owned() });
            let mut conversation = Conversation::new(host, stdin, stdout, ended, SILENCE_MAX);
            conversation.hello(log).await?;
            Ok(conversation)
        })
    }
}

/// An agent at its line.
#[derive(Clone)]
struct End {
    world: Arc<World>,
    host: HostName,
    agent: AgentId,
    line: Arc<Line>,
}

impl End {
    async fn carry_requests(self, mut requests: DuplexStream) {
        loop {
            let request = tokio::select! {
                biased;
                () = self.line.cut() => None,
                request = read_request(&mut requests) => request,
            };
            let Some(request) = request else {
                sleep(self.world.latency()).await;
                if *self.line.0.borrow() == Standing::Silent {
                    sleep(STALLED).await;
                }
                return self.world.hang_up(&self.host, self.agent);
            };
            let moment = match request {
                Request::Run { .. } => Moment::RunUnderWay,
                _ => Moment::RequestUnderWay,
            };
            let about = format!("{} to {}", name(&request), self.host);
            let mut late = None;
            match self.world.pass(moment, about) {
                Some(Fault::Cut) => {
                    self.line.set(Standing::Cut);
                    continue;
                }
                Some(Fault::CutLate(time)) => {
                    self.line.set(Standing::Cut);
                    late = Some(time);
                }
                Some(Fault::Silence) => self.line.set(Standing::Silent),
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::Twice(time)) => {
                    tokio::spawn(self.clone().again(copy(&request), time));
                }
                Some(Fault::AgentsDie) => self.world.kill_agents(&self.host),
                Some(Fault::PowerOff(time)) => self.world.power_off(&self.host, time),
                Some(_) | None => {}
            }
            match late {
                Some(time) => sleep(time).await,
                None => sleep(self.world.latency()).await,
            }
            if late.is_some() || !self.line.is_silent() {
                self.world.deliver(&self.host, self.agent, &request);
            }
        }
    }

    /// The same batch arrives once more, at another agent. What that one says is lost.
    async fn again(self, run: Request, time: Duration) {
        sleep(time).await;
        let Request::Run { batch, .. } = &run else {
            return;
        };
        let (replies, _lost) = unbounded_channel();
        let Some(agent) = self.world.start_agent(&self.host, Line::new(), replies) else {
            return;
        };
        let hello = Request::Hello {
            protocol: tallybook_agent::protocol::PROTOCOL,
            log: batch.fence.log,
            host: self.host.clone(),
        };
        self.world.tell(format_args!("again: Run to {}", self.host));
        self.world.deliver(&self.host, agent, &hello);
        self.world.deliver(&self.host, agent, &run);
        sleep(STALLED).await;
        self.world.hang_up(&self.host, agent);
    }

    async fn carry_replies(self, mut said: UnboundedReceiver<Reply>, mut answers: DuplexStream) {
        loop {
            let reply = tokio::select! {
                biased;
                () = self.line.cut() => return,
                reply = said.recv() => match reply {
                    Some(reply) => reply,
                    // A host without power says nothing of it.
                    None if self.line.is_silent() => {
                        return self.wait_out(&answers).await;
                    }
                    None => return,
                },
                () = sleep(BEAT) => Reply::Alive,
            };
            if !matches!(reply, Reply::Alive) {
                let about = format!("{} from {}", name_of(&reply), self.host);
                match self.world.pass(Moment::ReplyUnderWay, about) {
                    Some(Fault::Cut) => self.line.set(Standing::Cut),
                    Some(Fault::Silence) => self.line.set(Standing::Silent),
                    Some(Fault::Delay(time)) => sleep(time).await,
                    Some(_) | None => {}
                }
                sleep(self.world.latency()).await;
            }
            if self.line.is_silent()
                || !self.world.is_alive(&self.host, self.agent) && matches!(reply, Reply::Alive)
            {
                continue;
            }
            let frame = encode_frame(&reply).unwrap();
            if answers.write_all(&frame).await.is_err() {
                return;
            }
        }
    }

    /// Keeps the line, until its other end gives it up.
    async fn wait_out(&self, _kept: &DuplexStream) {
        sleep(STALLED).await;
    }
}

async fn read_request(from: &mut DuplexStream) -> Option<Request> {
    let len = from.read_u32_le().await.ok()?;
    let mut body = vec![0; usize::try_from(len).unwrap()];
    from.read_exact(&mut body).await.ok()?;
    Some(codec::decode(&body).unwrap())
}

pub(crate) fn copy(request: &Request) -> Request {
    codec::decode(&codec::encode(request).unwrap()).unwrap()
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "Hello",
        Request::MakeJournal => "MakeJournal",
        Request::Secrets(_) => "Secrets",
        Request::Run { .. } => "Run",
        Request::Proof(_) => "Proof",
        Request::Probe(_) => "Probe",
        Request::Adopt(_) => "Adopt",
        Request::Receipts { .. } => "Receipts",
        Request::Operations => "Operations",
        Request::Forget { .. } => "Forget",
        Request::Send { .. } => "Send",
        Request::Peer(_) => "Peer",
        Request::PeerLost(_) => "PeerLost",
        Request::Session { .. } => "Session",
        Request::Input(_) => "Input",
        Request::InputEnd => "InputEnd",
        Request::Resize { .. } => "Resize",
        Request::Stop => "Stop",
    }
}

fn name_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::Hello { .. } => "Hello",
        Reply::Alive => "Alive",
        Reply::Journal(_) => "Journal",
        Reply::Prove(_) => "Prove",
        Reply::Admitted => "Admitted",
        Reply::Waiting(_) => "Waiting",
        Reply::Started(_) => "Started",
        Reply::Progress { .. } => "Progress",
        Reply::Finished(_) => "Finished",
        Reply::BatchEnded { .. } => "BatchEnded",
        Reply::Probed { .. } => "Probed",
        Reply::Adopted { .. } => "Adopted",
        Reply::NotAdopted { .. } => "NotAdopted",
        Reply::Receipts(_) => "Receipts",
        Reply::Operations(_) => "Operations",
        Reply::Forgotten(_) => "Forgotten",
        Reply::Peer(_) => "Peer",
        Reply::SendEnded => "SendEnded",
        Reply::Output { .. } => "Output",
        Reply::SessionEnded(_) => "SessionEnded",
        Reply::Refused(_) => "Refused",
    }
}
