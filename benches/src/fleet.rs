//! Twenty trivial steps on many hosts, ours beside Ansible's: the same sshd processes, in turn, in one run.

mod hosts;
mod memory;
mod ours;
mod playbook;

use std::path::{Path, PathBuf};

use crate::Failure;
use crate::measure::{Figure, Results, Target, Unit};

use hosts::Hosts;
pub(crate) use ours::carry_out;

/// How many steps each host gets.
const STEPS: u32 = 20;

/// How one side did.
pub(crate) struct Did {
    /// From the start of its process to the end, in seconds.
    pub(crate) seconds: f64,
    /// The most memory that it had, in MiB.
    pub(crate) mebibytes: f64,
}

/// What is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many hosts there are, one measurement after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    hosts: Vec<usize>,
    /// The agent, as `scripts/build.sh` makes it
    #[arg(long)]
    agent: PathBuf,
    /// `ansible-playbook`
    #[arg(long)]
    ansible: PathBuf,
    /// Leave Ansible out: for a profile
    #[arg(long)]
    alone: bool,
}

/// What one side left under way, in the file system or as processes that end, is not charged to the other.
fn settle() {
    rustix::fs::sync();
    std::thread::sleep(std::time::Duration::from_secs(1));
}

/// Measures both on each number of hosts. Fewer rounds where there are more hosts: `rounds` up to ten, three to fifty, else one.
///
/// # Errors
/// When a host can't be made, or one side fails.
pub(crate) fn run(directory: &Path, rounds: usize, args: &Args) -> Result<(), Failure> {
    let mut results = Results::open()?;
    let directory = std::path::absolute(directory.join("fleet"))?;
    let most = args.hosts.iter().copied().max().unwrap_or(1);
    let hosts = Hosts::start(&directory, most, &args.agent)?;
    let mut peaks: Vec<(usize, Vec<f64>, Vec<f64>)> = Vec::new();
    for &count in &args.hosts {
        let rounds = match count {
            0..10 => rounds,
            10..50 => rounds.min(3),
            _ => 1,
        };
        // The agent is sent, and both sides' caches are warm.
        ours::run(&hosts, count)?;
        if !args.alone {
            playbook::run(&hosts, count.min(10), &args.ansible)?;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            settle();
            ours.push(ours::run(&hosts, count)?);
            if !args.alone {
                settle();
                theirs.push(playbook::run(&hosts, count, &args.ansible)?);
            }
        }
        let seconds = |all: &[Did]| all.iter().map(|did| did.seconds).collect::<Vec<_>>();
        let mebibytes = |all: &[Did]| all.iter().map(|did| did.mebibytes).collect::<Vec<_>>();
        let peer = |values: Vec<f64>| {
            let name = "ansible-playbook".to_owned();
            (!values.is_empty()).then_some((name, values))
        };
        let on = format!("{STEPS} steps on {count} hosts");
        let target = (count == 1 || count >= 100).then_some(Target::Ratio(50.0));
        Figure {
            name: on.clone(),
            unit: Unit::Seconds,
            ours: seconds(&ours),
            peer: peer(seconds(&theirs)),
            target,
        }
        .tell(&mut results)?;
        Figure {
            name: format!("{on}: peak memory"),
            unit: Unit::Mebibytes,
            ours: mebibytes(&ours),
            peer: peer(mebibytes(&theirs)),
            target: None,
        }
        .tell(&mut results)?;
        peaks.push((count, mebibytes(&ours), mebibytes(&theirs)));
    }
    let (Some(least), Some(most)) = (peaks.first(), peaks.last()) else {
        return Ok(());
    };
    if most.0 > least.0 {
        let a_host = |of: fn(&(usize, Vec<f64>, Vec<f64>)) -> &Vec<f64>| {
            let middle = |at| crate::measure::median(of(at));
            (middle(most) - middle(least)) / (most.0 - least.0) as f64
        };
        let theirs = a_host(|it| &it.2);
        Figure {
            name: format!("memory a host, from {} to {}", least.0, most.0),
            unit: Unit::Mebibytes,
            ours: vec![a_host(|it| &it.1)],
            peer: theirs
                .is_finite()
                .then(|| ("ansible-playbook".to_owned(), vec![theirs])),
            target: Some(Target::Value(2.0)),
        }
        .tell(&mut results)?;
    }
    Ok(())
}
