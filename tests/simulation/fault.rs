//! The fault model: at which moments something can go wrong, and what.
//!
//! | moment | what can happen |
//! |---|---|
//! | an append, before anything is written | the controller is killed; its disk is full |
//! | an append, durable and not told | the controller is killed |
//! | a line is opened | the host can't be reached; it takes long |
//! | a request is under way | lost with the line; lost in silence; late; late although the line is gone; twice; the controller, the agents or the host die |
//! | a step is about to act | the agents or the host die, before it did anything or half way; it fails; the line is lost; the controller is killed |
//! | a step acted, and nothing else knows | the same, with its effect |
//! | a reply is under way | lost with the line; lost in silence; late; the controller is killed |
//!
//! Besides, a third party may put something of its own where a step is to act, or remove what one made.

use std::time::Duration;

use crate::dice::Dice;

/// Where something can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    /// Nothing of an append is written.
    Appending,
    /// An append is durable; who made it was not told.
    Appended,
    /// A line to a host is to be opened.
    Opening,
    /// A batch is under way to its host.
    RunUnderWay,
    /// Another request is under way to a host.
    RequestUnderWay,
    /// The receipt says that a step is started; it did nothing.
    Begun,
    /// A step acted; no receipt says how it ended.
    Acted,
    /// A reply is under way to the controller.
    ReplyUnderWay,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The controller's process is killed. Its hosts go on.
    ControllerDies,
    /// The controller's disk is full: nothing is written.
    DiskFull,
    /// The host can't be reached this time.
    NoWay,
    /// Both ends see that the line is gone; what was under way is lost.
    Cut,
    /// The controller sees that the line is gone; what was under way arrives later all the same.
    CutLate(Duration),
    /// Nothing comes through any more, and neither end sees why.
    Silence,
    /// It takes so long.
    Delay(Duration),
    /// A batch arrives a second time, by another agent, so much later.
    Twice(Duration),
    /// Every agent on the host is killed.
    AgentsDie,
    /// The same, in the middle of the effect.
    AgentsDieHalfWay,
    /// The host loses power, and is back so much later. The line falls silent.
    PowerOff(Duration),
    /// The step fails, without having done anything.
    StepFails,
}

const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(200);

impl Moment {
    /// What can go wrong there.
    pub(crate) fn faults(self) -> &'static [Fault] {
        use Fault::{
            AgentsDie, AgentsDieHalfWay, ControllerDies, Cut, CutLate, Delay, DiskFull, NoWay,
            PowerOff, Silence, StepFails, Twice,
        };
        match self {
            Moment::Appending => &[ControllerDies, DiskFull],
            Moment::Appended => &[ControllerDies],
            Moment::Opening => &[NoWay, Delay(LONG)],
            Moment::RunUnderWay => &[
                ControllerDies,
                Cut,
                CutLate(SHORT),
                CutLate(LONG),
                Silence,
                Delay(SHORT),
                Delay(LONG),
                Twice(SHORT),
                Twice(LONG),
                AgentsDie,
                PowerOff(SHORT),
            ],
            Moment::RequestUnderWay => &[
                ControllerDies,
                Cut,
                CutLate(LONG),
                Silence,
                Delay(LONG),
                AgentsDie,
                PowerOff(SHORT),
                PowerOff(LONG),
            ],
            Moment::Begun => &[
                ControllerDies,
                Cut,
                Silence,
                AgentsDie,
                AgentsDieHalfWay,
                PowerOff(SHORT),
                PowerOff(LONG),
                StepFails,
            ],
            Moment::Acted => &[
                ControllerDies,
                Cut,
                Silence,
                AgentsDie,
                PowerOff(SHORT),
                PowerOff(LONG),
            ],
            Moment::ReplyUnderWay => &[ControllerDies, Cut, Silence, Delay(SHORT), Delay(LONG)],
        }
    }
}

/// Decides what goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Misfortune {
    /// Nothing.
    None,
    /// At these moments, counted from 0, and nowhere else.
    At(Vec<(usize, Fault)>),
    /// Wherever the dice say so: once in so many moments.
    Drawn {
        /// What they are thrown with.
        dice: Dice,
        /// How rare it is.
        once_in: usize,
    },
}

impl Misfortune {
    pub(crate) fn at(&mut self, count: usize, moment: Moment) -> Option<Fault> {
        match self {
            Misfortune::None => None,
            Misfortune::At(faults) => {
                let found = faults.iter().find(|(at, _)| *at == count);
                found.map(|(_, fault)| *fault)
            }
            Misfortune::Drawn { dice, once_in } => {
                dice.once_in(*once_in).then(|| *dice.pick(moment.faults()))
            }
        }
    }
}
