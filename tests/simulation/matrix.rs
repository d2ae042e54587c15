//! The crash matrix: every operation, cut at every journal and host call, with the effect lost and with the effect
//! happened, resumed and rolled back; and cut once more at every such call of that recovery.
//!
//! The single cuts are tried all in every run. `SIMULATION_PAIRS=K/N` tries the K-th of N parts of all pairs, and `1/1` all of
//! them, which takes hours; else one in so many is tried, which the operation's number decides.

use std::time::Duration;

use crate::controller::Recovery;
use crate::dice::Dice;
use crate::fault::{Fault, Misfortune, Moment};
use crate::operations::{ALL, Asked};
use crate::stage::{Scene, Verdict};

/// Of the pairs of cuts of a long operation, one in so many is tried where not all are wanted.
const PAIRS_ONE_IN: usize = 400;
/// The same of a short operation.
const SHORT_PAIRS_ONE_IN: usize = 10;
/// An operation with so many moments is short.
const SHORT: usize = 40;
/// How long a host is without power.
const POWERLESS: Duration = Duration::from_secs(30);

/// What a crash can do to a call: the controller, the agent, the host or the line is gone.
fn cuts(moment: Moment) -> &'static [Fault] {
    match moment {
        Moment::Appending | Moment::Appended => &[Fault::ControllerDies],
        Moment::Opening => &[Fault::NoWay],
        Moment::RunUnderWay => &[
            Fault::ControllerDies,
            Fault::Cut,
            Fault::CutLate(POWERLESS),
            Fault::AgentsDie,
        ],
        Moment::RequestUnderWay | Moment::ReplyUnderWay => &[Fault::Cut],
        Moment::Begun => &[
            Fault::ControllerDies,
            Fault::AgentsDie,
            Fault::AgentsDieHalfWay,
            Fault::PowerOff(POWERLESS),
            Fault::Cut,
            Fault::Silence,
        ],
        Moment::Acted => &[Fault::AgentsDie, Fault::PowerOff(POWERLESS), Fault::Cut],
    }
}

fn play(asked: Asked, faults: &[(usize, Fault)], recovery: Recovery) -> Verdict {
    let scene = Scene {
        seed: 1,
        asked: vec![asked],
        misfortune: Misfortune::At(faults.to_vec()),
        recovery,
        meddled: false,
        stopped: false,
    };
    let verdict = scene.play();
    assert!(
        verdict.wrong.is_empty(),
        "{}\n{asked:?} with {faults:?}, {recovery:?}: {:#?}",
        verdict.story,
        verdict.wrong
    );
    verdict
}

/// Every way to cut a run once, behind what was cut in it before.
fn further(moments: &[Moment], before: &[(usize, Fault)]) -> Vec<Vec<(usize, Fault)>> {
    let from = before.last().map_or(0, |(at, _)| at + 1);
    let ways = moments.iter().enumerate().skip(from);
    let ways = ways.flat_map(|(at, moment)| cuts(*moment).iter().map(move |fault| (at, *fault)));
    ways.map(|way| [before, &[way]].concat()).collect()
}

/// Which pairs of cuts are tried.
enum Pairs {
    /// One in so many.
    Drawn(Dice, usize),
    /// One part of so many, after so many pairs.
    Part { part: usize, of: usize, seen: usize },
}

impl Pairs {
    /// Those that the environment asks for.
    fn asked(asked: Asked, moments: usize) -> Self {
        let Ok(text) = std::env::var("SIMULATION_PAIRS") else {
            let one_in = match moments <= SHORT {
                true => SHORT_PAIRS_ONE_IN,
                false => PAIRS_ONE_IN,
            };
            return Pairs::Drawn(Dice::new(asked as u64), one_in);
        };
        let part = text.split_once('/').and_then(|(part, of)| {
            let (part, of) = (part.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&part).then_some((part, of))
        });
        let (part, of) = part.unwrap_or_else(|| panic!("SIMULATION_PAIRS={text} is not K/N"));
        Pairs::Part { part, of, seen: 0 }
    }

    /// Whether the next pair is one of them.
    fn wants_next(&mut self) -> bool {
        match self {
            Pairs::Drawn(dice, one_in) => dice.once_in(*one_in),
            Pairs::Part { part, of, seen } => {
                *seen += 1;
                *seen % *of == *part % *of
            }
        }
    }
}

fn cut(asked: Asked) {
    let whole = play(asked, &[], Recovery::Resume).moments;
    let mut wanted = Pairs::asked(asked, whole.len());
    let (mut singles, mut pairs, mut all) = (0, 0, 0);
    for recovery in [Recovery::Resume, Recovery::RollBack] {
        for once in further(&whole, &[]) {
            singles += 1;
            let moments = play(asked, &once, recovery).moments;
            for twice in further(&moments, &once) {
                all += 1;
                if wanted.wants_next() {
                    pairs += 1;
                    play(asked, &twice, recovery);
                }
            }
        }
    }
    println!("{asked:?}: {singles} single cuts, and {pairs} of {all} pairs");
    assert!(singles > 0 && pairs > 0);
}

macro_rules! operations {
    ($($name:ident: $asked:ident,)*) => {
        $(#[test]
        fn $name() {
            cut(Asked::$asked);
        })*

        #[test]
        fn every_operation_is_cut() {
            assert_eq!([$(Asked::$asked),*], ALL);
        }
    };
}

operations! {
    install: Install,
    prepare: Prepare,
    dns: Dns,
    create_from_scratch: CreateFromScratch,
    create_from_template: CreateFromTemplate,
    create_from_container: CreateFromContainer,
    start: Start,
    stop: Stop,
    restart: Restart,
    destroy: Destroy,
    copy_beside: CopyBeside,
    copy_away: CopyAway,
    snapshot: Snapshot,
    sync: Sync,
}
