//! Figures: what was measured of ours and of a peer in turn, how they compare, and whether the target is met.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Failure;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Events a second: more is better.
    EventsPerSecond,
    /// Appends a second: more is better.
    AppendsPerSecond,
    /// Seconds: less is better.
    Seconds,
    /// Milliseconds: less is better.
    Milliseconds,
    /// MiB: less is better.
    Mebibytes,
}

impl Unit {
    const fn is_rate(self) -> bool {
        match self {
            Unit::EventsPerSecond | Unit::AppendsPerSecond => true,
            Unit::Seconds | Unit::Milliseconds | Unit::Mebibytes => false,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Unit::EventsPerSecond | Unit::AppendsPerSecond if value >= 1e6 => {
                format!("{:.2} M/s", value / 1e6)
            }
            Unit::EventsPerSecond | Unit::AppendsPerSecond if value >= 1e4 => {
                format!("{:.0} k/s", value / 1e3)
            }
            Unit::EventsPerSecond | Unit::AppendsPerSecond => format!("{value:.0} /s"),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Mebibytes => format!("{value:.1} MiB"),
        }
    }
}

/// What a figure is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// At least so many times as good as the peer.
    Ratio(f64),
    /// At least this, of a rate; at most this, of a time.
    Value(f64),
}

/// One line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// In what.
    pub(crate) unit: Unit,
    /// Each measurement of ours.
    pub(crate) ours: Vec<f64>,
    /// The peer, and each measurement of it, made in turn with ours.
    pub(crate) peer: Option<(String, Vec<f64>)>,
    /// What is to be reached.
    pub(crate) target: Option<Target>,
}

/// The middle of some values, of which there is at least one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

fn range(values: &[f64], unit: Unit) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        1 => unit.show(median(values)),
        _ => format!(
            "{} ({} … {})",
            unit.show(median(values)),
            unit.show(least),
            unit.show(most)
        ),
    }
}

impl Figure {
    /// How many times as good as the peer: the middle of what each pair says.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        let pairs = self
            .ours
            .iter()
            .zip(peer)
            .map(|(ours, peer)| match self.unit.is_rate() {
                true => ours / peer,
                false => peer / ours,
            });
        Some(median(&pairs.collect::<Vec<_>>()))
    }

    /// Whether the target is reached; `None` where there is none.
    pub(crate) fn is_met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Ratio(least) => self.ratio()? >= least,
            Target::Value(value) if self.unit.is_rate() => median(&self.ours) >= value,
            Target::Value(value) => median(&self.ours) <= value,
        })
    }

    fn cells(&self) -> [String; 6] {
        let target = match self.target {
            None => "-".to_owned(),
            Some(Target::Ratio(least)) => format!("≥ {least} of it"),
            Some(Target::Value(value)) if self.unit.is_rate() => {
                format!("≥ {}", self.unit.show(value))
            }
            Some(Target::Value(value)) => format!("≤ {}", self.unit.show(value)),
        };
        let peer = self.peer.as_ref().map_or_else(
            || "-".to_owned(),
            |(name, values)| format!("{name}: {}", range(values, self.unit)),
        );
        [
            self.name.clone(),
            range(&self.ours, self.unit),
            peer,
            self.ratio()
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            target,
            match self.is_met() {
                None => "-",
                Some(true) => "met",
                Some(false) => "MISSED",
            }
            .to_owned(),
        ]
    }

    /// Says the figure now, and keeps it for the table.
    ///
    /// # Errors
    /// When it can't be kept.
    pub(crate) fn tell(&self, results: &mut Results) -> Result<(), Failure> {
        eprintln!("{}", self.cells().join(" | "));
        results.keep(self)
    }
}

/// Where figures are kept, one JSON document a line.
pub(crate) struct Results(Option<std::fs::File>);

impl Results {
    /// The file that `TALLYBOOK_BENCH_RESULTS` names, if it does.
    ///
    /// # Errors
    /// When it can't be opened.
    pub(crate) fn open() -> Result<Self, Failure> {
        let Some(path) = std::env::var_os("TALLYBOOK_BENCH_RESULTS") else {
            return Ok(Results(None));
        };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        Ok(Results(Some(file)))
    }

    fn keep(&mut self, figure: &Figure) -> Result<(), Failure> {
        use std::io::Write as _;
        if let Some(file) = &mut self.0 {
            writeln!(file, "{}", serde_json::to_string(figure)?)?;
        }
        Ok(())
    }
}

/// The table of figures that were kept.
///
/// # Errors
/// When a line is none.
pub(crate) fn table(kept: &str) -> Result<String, Failure> {
    let heads = ["FIGURE", "OURS", "PEER", "RATIO", "TARGET", ""].map(str::to_owned);
    let mut rows = vec![heads];
    for line in kept.lines() {
        rows.push(serde_json::from_str::<Figure>(line)?.cells());
    }
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell}{}  ", " ".repeat(width - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// How long something took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Took {
    /// By the clock on the wall.
    pub(crate) wall: Duration,
    /// On cores, all threads together: what else runs on the machine hardly changes it.
    pub(crate) cores: Duration,
}

impl std::ops::AddAssign for Took {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cores += other.cores;
    }
}

/// How long something takes.
///
/// # Errors
/// When it fails.
pub(crate) fn timed<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Took), Failure> {
    let (began, used) = (Instant::now(), cores_used());
    let done = run()?;
    let took = Took {
        wall: began.elapsed(),
        cores: cores_used().saturating_sub(used),
    };
    Ok((done, took))
}

/// What this process used of cores so far.
fn cores_used() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        used.tv_sec.unsigned_abs(),
        used.tv_nsec.unsigned_abs() as u32,
    )
}

/// Runs something, and all threads it starts, on the first so many cores of those that this process may use.
///
/// # Errors
/// When there are fewer, or it fails.
pub(crate) fn on_cores<T: Send>(
    cores: usize,
    run: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut wanted = rustix::thread::CpuSet::new();
    let usable = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let chosen: Vec<usize> = usable.take(cores).collect();
    if chosen.len() < cores {
        return Err(format!("this machine has no {cores} cores to use").into());
    }
    chosen.iter().for_each(|core| wanted.set(*core));
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            rustix::thread::sched_setaffinity(None, &wanted)?;
            run()
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
