//! What reads the whole journal: the rebuild of the databases, verification, and the fold.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tallybook::journal::{self, Reader};
use tallybook::log::history;
use tallybook::log::verify::{Reach, Scope, journal_within};
use tallybook::log::{INDEX, JOURNAL, Log, Open, PROJECTION};
use tallybook_replay::state::State;

use crate::Failure;
use crate::make::Facts;
use crate::measure::{Figure, Results, Target, Took, Unit, on_cores, timed};
use crate::sqlite::{Row, Sqlite};

/// How many events a transaction has while SQLite is filled.
const LOAD_ROWS: usize = 10_000;

/// Opens the log, which builds its databases, and closes it. The first is how long the opening took.
fn open_and_close(store: &Path) -> Result<(Took, Took), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (opened, whole) = timed(|| {
        let (log, opened) = timed(|| {
            let told = |said| eprintln!("  {said}");
            Ok(runtime.block_on(Log::open(store, Open::Existing, told))?)
        })?;
        runtime.block_on(log.close());
        Ok(opened)
    })?;
    Ok((opened, whole))
}

/// The rebuild, beside SQLite's load of the same events without any sync.
///
/// # Errors
/// When the store can't be read or the databases not be built.
pub(crate) fn rebuild(store: &Path, rounds: usize) -> Result<(), Failure> {
    let mut results = Results::open()?;
    let events = Facts::read(store)?.events;
    let (mut opened, mut closed, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        for name in [INDEX, PROJECTION] {
            let path = store.join(name);
            if path.exists() {
                std::fs::remove_dir_all(path)?;
            }
        }
        rustix::fs::sync();
        let (opening, whole) = open_and_close(store)?;
        opened.push(opening);
        closed.push(whole);
        rustix::fs::sync();
        loaded.push(load_sqlite(store)?);
    }
    let wall = |took: &[Took]| took.iter().map(|took| took.wall.as_secs_f64()).collect();
    let cores = |took: &[Took]| took.iter().map(|took| took.cores.as_secs_f64()).collect();
    let what = format!("rebuild of {}", millions(events));
    let mut figure = |name: &str, ours: Vec<f64>, peer: Option<Vec<f64>>, target| {
        Figure {
            name: format!("{what}, {name}"),
            unit: Unit::Seconds,
            ours,
            peer: peer.map(|values| ("SQLite, loaded without sync".to_owned(), values)),
            target,
        }
        .tell(&mut results)
    };
    figure(
        "until closed",
        wall(&closed),
        Some(wall(&loaded)),
        Some(Target::Value(15.0)),
    )?;
    figure("until open", wall(&opened), None, None)?;
    figure("time on cores", cores(&closed), Some(cores(&loaded)), None)
}

/// Makes whole what the commands are measured on, as far as it is not there.
///
/// # Errors
/// When something can't be built.
pub(crate) fn prepare(store: &Path) -> Result<(), Failure> {
    let events = millions(Facts::read(store)?.events);
    // An opening tells when it built something.
    let (_, took) = open_and_close(store)?;
    eprintln!(
        "opening and closing the store of {events} events took {:.1} s",
        took.wall.as_secs_f64()
    );
    if !store.with_extension("sqlite").exists() {
        let took = load_sqlite(store)?.wall.as_secs_f64();
        eprintln!("loading {events} events into SQLite took {took:.1} s");
    }
    Ok(())
}

/// Fills the database that is beside the store: the peer of the commands.
fn load_sqlite(store: &Path) -> Result<Took, Failure> {
    // Under its name only once it is whole.
    let path = store.with_extension("sqlite");
    let part = store.with_extension("sqlite-part");
    let mut database = Sqlite::create(&part, false)?;
    let mut reader = Reader::from_start(&store.join(JOURNAL))?;
    let mut took = Took::default();
    loop {
        let mut rows = Vec::with_capacity(LOAD_ROWS);
        while rows.len() < LOAD_ROWS
            && let Some((_, record)) = reader.next()?
        {
            rows.push(Row::of(&record));
        }
        if rows.is_empty() {
            break;
        }
        took += timed(|| database.append(&rows))?.1;
    }
    let state = fold(store)?;
    took += timed(|| database.put_state(&state))?.1;
    took += timed(|| database.close())?.1;
    std::fs::rename(part, path)?;
    Ok(took)
}

/// How many events were verified, and the first thing that is wrong.
type Verified = (u64, Option<String>);

/// What is measured of one way to verify.
struct Mode {
    name: &'static str,
    /// Events a second that one core is to reach.
    least: f64,
    /// Verifies a store.
    run: fn(&Path, usize) -> Result<Verified, Failure>,
}

/// Every way to verify.
const MODES: &[Mode] = &[
    Mode {
        name: "quick",
        least: 1.5e6,
        run: |store, threads| verified(store, Reach::Tail, threads),
    },
    Mode {
        name: "chain",
        least: 1.5e6,
        run: |store, threads| verified(store, Reach::Chain, threads),
    },
    Mode {
        name: "full",
        least: 0.3e6,
        run: |store, threads| verified(store, Reach::Full, threads),
    },
];

fn verified(store: &Path, reach: Reach, threads: usize) -> Result<Verified, Failure> {
    let scope = Scope {
        reach,
        to: None,
        threads,
    };
    let (report, _) = journal_within(store, scope, |_| {})?;
    let wrong = report.findings.first().map(|found| format!("{found:?}"));
    Ok((report.head.seq.0, wrong))
}

/// Verification of the whole journal, beside hashing its bytes.
///
/// # Errors
/// When the store can't be read, or does not verify.
pub(crate) fn verify(store: &Path, rounds: usize) -> Result<(), Failure> {
    let mut results = Results::open()?;
    let events = Facts::read(store)?.events;
    // Both read from memory.
    hash(store, 1)?;
    for mode in MODES {
        for cores in [1, 2] {
            let (mut ours, mut hashed) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let ((read, wrong), took) = on_cores(cores, || timed(|| (mode.run)(store, cores)))?;
                if wrong.is_some() || read != events {
                    return Err(format!("{} does not verify: {wrong:?}", store.display()).into());
                }
                ours.push(took);
                hashed.push(on_cores(cores, || hash(store, cores))?);
            }
            let name = format!("verify, {}", mode.name);
            let target = Some(Target::Value(mode.least * cores as f64));
            if cores == 1 {
                rates(
                    &format!("{name}, a second on a core"),
                    events,
                    &ours,
                    &hashed,
                    |took| took.cores,
                    target,
                )
                .tell(&mut results)?;
            }
            let many = if cores == 1 { "core" } else { "cores" };
            rates(
                &format!("{name}, {cores} {many}"),
                events,
                &ours,
                &hashed,
                |took| took.wall,
                target,
            )
            .tell(&mut results)?;
        }
    }
    Ok(())
}

/// Events a second of some time, beside hashing the same bytes.
fn rates(
    name: &str,
    events: u64,
    ours: &[Took],
    hashed: &[Took],
    time: fn(&Took) -> Duration,
    target: Option<Target>,
) -> Figure {
    let rate = |took: &Took| events as f64 / time(took).as_secs_f64();
    Figure {
        name: name.to_owned(),
        unit: Unit::EventsPerSecond,
        ours: ours.iter().map(rate).collect(),
        peer: Some((
            "BLAKE3 of the bytes".to_owned(),
            hashed.iter().map(rate).collect(),
        )),
        target,
    }
}

/// Reads every segment and hashes it, with so many threads.
fn hash(store: &Path, threads: usize) -> Result<Took, Failure> {
    let directory = store.join(JOURNAL);
    let segments: Vec<PathBuf> = journal::segments(&directory)?
        .into_iter()
        .map(|first| journal::segment_path(&directory, first))
        .collect();
    let queue = Mutex::new(segments);
    let work = || -> Result<(), Failure> {
        let mut bytes = vec![0; 1 << 20];
        loop {
            let next = queue.lock().map_err(|_| "another thread failed")?.pop();
            let Some(path) = next else { return Ok(()) };
            let mut file = File::open(path)?;
            let mut hasher = blake3::Hasher::new();
            loop {
                let len = file.read(&mut bytes)?;
                if len == 0 {
                    break;
                }
                hasher.update(&bytes[..len]);
            }
            std::hint::black_box(hasher.finalize());
        }
    };
    let ((), took) = timed(|| {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in running {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(())
        })
    })?;
    Ok(took)
}

/// The state, folded from the journal as `tallybook replay` folds it.
fn fold(store: &Path) -> Result<State, Failure> {
    let folded = history::fold(&store.join(JOURNAL), history::Until::Newest)?;
    Ok(folded.state)
}

/// The fold, beside hashing the same bytes.
///
/// # Errors
/// When the store can't be read.
pub(crate) fn replay(store: &Path, rounds: usize) -> Result<(), Failure> {
    let mut results = Results::open()?;
    let facts = Facts::read(store)?;
    let (mut ours, mut hashed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (state, took) = timed(|| fold(store))?;
        if state.head.seq.0 != facts.events {
            return Err("the fold does not reach the end".into());
        }
        ours.push(took);
        hashed.push(hash(store, 1)?);
    }
    let (events, target) = (facts.events, Some(Target::Value(1e6)));
    rates("replay", events, &ours, &hashed, |took| took.wall, target).tell(&mut results)?;
    rates(
        "replay, a second on a core",
        events,
        &ours,
        &hashed,
        |took| took.cores,
        None,
    )
    .tell(&mut results)
}

/// A number of events as tables show it.
pub(crate) fn millions(events: u64) -> String {
    match events {
        0..500_000 => format!("{} k", (events + 500) / 1000),
        _ => format!("{} M", (events + 500_000) / 1_000_000),
    }
}
