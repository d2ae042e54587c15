//! The crash matrix: every operation, cut at every journal and host call, with the effect lost and with the effect
//! happened, resumed and rolled back; and cut once more at every such call of that recovery.
//!
//! The single cuts are tried all in every run. `SIMULATION_PAIRS=all` tries every pair, which takes hours; else one in so many,
//! which the operation's number decides.

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

fn cut(asked: Asked) {
    let whole = play(asked, &[], Recovery::Resume).moments;
    let all = std::env::var("SIMULATION_PAIRS").is_ok_and(|text| text == "all");
    let mut dice = Dice::new(asked as u64);
    let (mut singles, mut pairs) = (0, 0);
    for recovery in [Recovery::Resume, Recovery::RollBack] {
        for once in further(&whole, &[]) {
            singles += 1;
            let moments = play(asked, &once, recovery).moments;
            for twice in further(&moments, &once) {
                let one_in = if whole.len() <= SHORT {
                    SHORT_PAIRS_ONE_IN
                } else {
                    PAIRS_ONE_IN
                };
                if all || dice.once_in(one_in) {
                    pairs += 1;
                    play(asked, &twice, recovery);
                }
            }
        }
    }
    println!("{asked:?}: {singles} single cuts and {pairs} pairs");
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
