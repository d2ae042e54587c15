//! All hosts, what goes wrong, and what came of it: everything but the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tallybook::log;
use tallybook::log::gate::{Call, Gate, Side};
use tallybook_agent::protocol::{Reply, Request};
use tallybook_agent::step::fail;
use tallybook_events::ids::{LogId, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{FailureClass, PlannedStep, Reversal};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::agent::{Answer, Deed};
use crate::dice::Dice;
use crate::fault::{Fault, Misfortune, Moment};
use crate::host::{AgentId, Effect, Host, Origin, Plans, hole};
use crate::line::{Line, Standing};

/// What a store sets aside. Of another length, the store makes it anew, and each run takes more time and memory.
const STORE_RESERVE_LEN: u64 = 16 * 1024 * 1024;

/// The world as it is.
pub(crate) struct State {
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) plans: Plans,
    misfortune: Misfortune,
    /// What decides all that is not a fault: how long things take.
    pub(crate) dice: Dice,
    /// Every moment that was passed so far.
    pub(crate) moments: Vec<Moment>,
    /// How often each operation was looked at.
    rounds: BTreeMap<OperationId, u32>,
    is_calm: bool,
    /// Acts out of their order.
    pub(crate) disorder: Vec<String>,
    /// What somebody else put there or took away.
    pub(crate) meddled: BTreeMap<Origin, Meddling>,
    /// What somebody else took away and no step has made anew, whatever is there now.
    taken_away: BTreeSet<Origin>,
    /// What a reader needs to follow what happened.
    pub(crate) story: String,
}

/// What somebody else did to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meddling {
    /// Put it there, and it must stay.
    Put,
    /// Put it there, and took it away again.
    Gone,
    /// Took away what a step made.
    Removed,
}

impl State {
    /// What is about to act: all that it depends on must be there, and where it is undone, nothing of ours that depends on it.
    fn look_at_order(&mut self, host: &HostName, id: AgentId) {
        let Some(asked) = self.hosts[host].asked(id) else {
            return;
        };
        let (operation, index) = asked.origin;
        let step = &self.plans[&asked.origin];
        let there = |index: StepIndex| {
            let origin = (operation, index);
            let on = &self.hosts[&self.plans[&origin].host];
            on.things.get(&origin).copied()
        };
        let wrong: Vec<String> = match asked.deed {
            Deed::Probe => return,
            Deed::Forward | Deed::Arrived => {
                let missing = |before: &&StepIndex| {
                    let is_taken = self.taken_away.contains(&(operation, **before));
                    !is_taken && there(**before) != Some(Effect::Whole)
                };
                let missing = step.after.iter().filter(missing);
                let told = |before| format!("{} acts without step {before}", step.summary);
                missing.map(told).collect()
            }
            Deed::Undo => {
                let mut left = Vec::new();
                let mut open = vec![index];
                while let Some(before) = open.pop() {
                    let in_operation = self.plans.range((operation, StepIndex(0))..);
                    let in_operation = in_operation.take_while(|((of, _), _)| *of == operation);
                    for ((_, other), plan) in in_operation {
                        if !plan.after.contains(&before) {
                            continue;
                        }
                        if !matches!(plan.reversal, Reversal::Undo) {
                            // It stays; what was built on it was built on this as well.
                            open.push(*other);
                        } else if matches!(there(*other), Some(Effect::Whole | Effect::Half)) {
                            left.push(format!(
                                "{} is undone before {}",
                                step.summary, plan.summary
                            ));
                        }
                    }
                }
                left
            }
        };
        self.disorder.extend(wrong);
    }
}

/// The world.
pub(crate) struct World {
    state: Mutex<State>,
    /// How often the controller was killed.
    pub(crate) deaths: watch::Sender<u32>,
    began: Instant,
}

impl World {
    pub(crate) fn new(
        place: &Path,
        hosts: &[&str],
        seed: u64,
        misfortune: Misfortune,
    ) -> Arc<Self> {
        let hosts = hosts
            .iter()
            .map(|name| (HostName::new(name).unwrap(), Host::new(place)));
        Arc::new(World {
            state: Mutex::new(State {
                hosts: hosts.collect(),
                plans: BTreeMap::new(),
                misfortune,
                dice: Dice::new(seed),
                moments: Vec::new(),
                rounds: BTreeMap::new(),
                is_calm: false,
                disorder: Vec::new(),
                meddled: BTreeMap::new(),
                taken_away: BTreeSet::new(),
                story: String::new(),
            }),
            deaths: watch::channel(0).0,
            began: Instant::now(),
        })
    }

    /// Has the room that is set aside for this log take none, anywhere.
    pub(crate) fn set_nothing_aside(&self, log: LogId, store: &Path) {
        hole(&store.join("reserve"), STORE_RESERVE_LEN);
        let mut state = self.state();
        let hosts = state.hosts.values_mut();
        hosts.for_each(|host| host.set_nothing_aside(log));
    }

    /// # Panics
    /// When what changes it has panicked in a task of its own, so that whoever plays hears of it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a part of the world has panicked")
    }

    /// As it is, whoever has panicked.
    pub(crate) fn state_left(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&self, what: impl std::fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        writeln!(self.state().story, "{at:10.3} {what}").unwrap();
    }

    /// From here on nothing goes wrong, and what others put in the way is taken away again.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        let State {
            hosts,
            meddled,
            plans,
            ..
        } = &mut *state;
        for (origin, meddling) in meddled {
            let there = hosts.get_mut(&plans[origin].host).unwrap();
            if *meddling == Meddling::Put {
                assert_eq!(there.things.remove(origin), Some(Effect::Foreign));
                *meddling = Meddling::Gone;
            }
        }
        for host in hosts.values_mut() {
            host.down_until = None;
        }
        state.misfortune = Misfortune::None;
        state.is_calm = true;
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.state().is_calm
    }

    /// Somebody looks at an operation: how often that was done before.
    pub(crate) fn round(&self, id: OperationId) -> u32 {
        let mut state = self.state();
        let rounds = state.rounds.entry(id).or_default();
        *rounds += 1;
        *rounds - 1
    }

    pub(crate) fn fresh_id(&self) -> OperationId {
        OperationId::from_bytes(self.state().dice.bytes())
    }

    pub(crate) fn know(&self, operation: OperationId, steps: &[PlannedStep]) {
        let plans = steps
            .iter()
            .map(|step| ((operation, step.index), step.clone()));
        self.state().plans.extend(plans);
    }

    /// Passes a moment: what goes wrong there.
    pub(crate) fn pass(&self, moment: Moment, about: impl std::fmt::Display) -> Option<Fault> {
        let fault = {
            let mut state = self.state();
            let count = state.moments.len();
            state.moments.push(moment);
            state.misfortune.at(count, moment)
        };
        match fault {
            Some(fault) => self.tell(format_args!("{moment:?} {about}: {fault:?}")),
            None => self.tell(format_args!("{moment:?} {about}")),
        }
        if fault == Some(Fault::ControllerDies) {
            self.deaths.send_modify(|deaths| *deaths += 1);
        }
        fault
    }

    /// How long something takes that is under way.
    pub(crate) fn latency(&self) -> Duration {
        self.state().dice.between_ms(1, 40)
    }

    /// Has the log's calls pass their moments.
    pub(crate) fn gate(self: &Arc<Self>) -> Gate {
        let world = Arc::clone(self);
        Arc::new(move |call, side| {
            let world = Arc::clone(&world);
            Box::pin(async move {
                let moment = match (call, side) {
                    (Call::Read, _) => return Ok(()),
                    (Call::Append, Side::Before) => Moment::Appending,
                    (Call::Append, Side::After) => Moment::Appended,
                };
                match world.pass(moment, "") {
                    Some(Fault::ControllerDies) => std::future::pending().await,
                    Some(Fault::DiskFull) => Err(log::Error::NotWritten {
                        what: "no space left".to_owned(),
                        disk_full: true,
                        in_doubt: false,
                    }),
                    Some(_) | None => Ok(()),
                }
            })
        })
    }

    /// Starts an agent on a host; `None` where the host is down.
    pub(crate) fn start_agent(
        &self,
        host: &HostName,
        line: Arc<Line>,
        replies: UnboundedSender<Reply>,
    ) -> Option<AgentId> {
        let mut state = self.state();
        let host = state.hosts.get_mut(host)?;
        (!host.is_down()).then(|| host.start_agent(line, replies))
    }

    pub(crate) fn is_alive(&self, host: &HostName, id: AgentId) -> bool {
        self.state().hosts[host].is_alive(id)
    }

    /// A request arrives at an agent.
    pub(crate) fn deliver(self: &Arc<Self>, host: &HostName, id: AgentId, request: &Request) {
        self.change(host, |there, plans| there.deliver(id, request, plans));
    }

    /// An agent sees that its line is gone.
    pub(crate) fn hang_up(self: &Arc<Self>, host: &HostName, id: AgentId) {
        self.change(host, |there, plans| there.hang_up(id, plans));
    }

    /// Every agent on a host is killed.
    pub(crate) fn kill_agents(self: &Arc<Self>, host: &HostName) {
        self.change(host, |there, _| there.kill_agents());
    }

    /// A host loses power for some time.
    pub(crate) fn power_off(self: &Arc<Self>, host: &HostName, time: Duration) {
        self.change(host, |there, _| {
            // Nobody is left to say that the lines are gone.
            there.lose_lines(Standing::Silent);
            there.kill_agents();
            there.down_until = Some(Instant::now() + time);
        });
    }

    /// Changes a host, and has the steps that this let begin go on by themselves.
    fn change(self: &Arc<Self>, host: &HostName, change: impl FnOnce(&mut Host, &Plans)) {
        let begun = {
            let mut state = self.state();
            let State {
                hosts,
                plans,
                taken_away,
                ..
            } = &mut *state;
            let there = hosts.get_mut(host).unwrap();
            change(there, plans);
            taken_away.retain(|origin| there.things.get(origin) != Some(&Effect::Whole));
            there.take_begun()
        };
        for id in begun {
            tokio::spawn(Arc::clone(self).step(host.clone(), id));
        }
    }

    /// A step, from when it asks what to do until it is told.
    async fn step(self: Arc<Self>, host: HostName, id: AgentId) {
        let Some(step) = self.asked(&host, id) else {
            return;
        };
        let took = self.state().dice.between_ms(1, 2000);
        let about = format!("{} on {host}", step.summary);
        self.state().look_at_order(&host, id);
        let fault = self.pass(Moment::Begun, &about);
        match fault {
            Some(Fault::AgentsDie) => return self.kill_agents(&host),
            Some(Fault::PowerOff(time)) => return self.power_off(&host, time),
            Some(Fault::AgentsDieHalfWay) => {
                sleep(took / 2).await;
                self.change(&host, |there, _| {
                    if let Some(asked) = there.asked(id) {
                        there.act_half_way(asked);
                    }
                    there.kill_agents();
                });
                return;
            }
            Some(Fault::StepFails) => {
                sleep(took / 2).await;
                let failed = Err(fail(FailureClass::Host, "the host is not as it must be"));
                self.change(&host, |there, plans| {
                    if there.asked(id).is_some() {
                        there.answer(id, Answer::Done(failed), plans);
                    }
                });
                return;
            }
            Some(Fault::Cut) => self.lose_line(&host, id, Standing::Cut),
            Some(Fault::Silence) => self.lose_line(&host, id, Standing::Silent),
            Some(_) | None => {}
        }
        sleep(took).await;
        if self.asked(&host, id).is_none() {
            // Killed meanwhile.
            return;
        }
        self.state().look_at_order(&host, id);
        let mut acted = None;
        self.change(&host, |there, plans| {
            let asked = there.asked(id);
            acted = asked.map(|asked| (asked, there.act(asked, &plans[&asked.origin])));
        });
        let Some((asked, answer)) = acted else { return };
        if asked.deed == Deed::Undo {
            self.state().taken_away.remove(&asked.origin);
        }
        if !matches!(answer, Answer::Receive) {
            match self.pass(Moment::Acted, &about) {
                Some(Fault::AgentsDie) => return self.kill_agents(&host),
                Some(Fault::PowerOff(time)) => return self.power_off(&host, time),
                Some(Fault::Cut) => self.lose_line(&host, id, Standing::Cut),
                Some(Fault::Silence) => self.lose_line(&host, id, Standing::Silent),
                Some(_) | None => {}
            }
        }
        self.change(&host, |there, plans| there.answer(id, answer, plans));
    }

    /// The step that an agent asks about.
    fn asked(&self, host: &HostName, id: AgentId) -> Option<PlannedStep> {
        let state = self.state();
        let asked = state.hosts[host].asked(id)?;
        Some(state.plans[&asked.origin].clone())
    }

    fn lose_line(&self, host: &HostName, id: AgentId, how: Standing) {
        self.state().hosts[host].lose_line(id, how);
    }

    /// Somebody else puts something where a step of ours acts, or takes away what it made.
    pub(crate) fn meddle(&self, origin: Origin) {
        let mut state = self.state();
        let State {
            hosts,
            plans,
            meddled,
            taken_away,
            ..
        } = &mut *state;
        let Some(step) = plans.get(&origin) else {
            return;
        };
        let there = hosts.get_mut(&step.host).unwrap();
        match there.things.get(&origin) {
            None => {
                there.things.insert(origin, Effect::Foreign);
                meddled.insert(origin, Meddling::Put);
            }
            Some(Effect::Whole) => {
                there.things.remove(&origin);
                meddled.insert(origin, Meddling::Removed);
                taken_away.insert(origin);
            }
            Some(Effect::Half | Effect::Foreign) => {}
        }
    }
}
