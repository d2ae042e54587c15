//! Durable appends: ours beside a bare file with fdatasync and beside SQLite, in turn, with the same bytes.
//!
//! Nothing of ours counts before the store's databases have it too: the clock runs until the log is closed.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use tallybook::log::{Condition, Draft, Filter, Log, Open};
use tallybook_events::event::{
    OperationIntended, OperationPlanned, Resolution, StepStarted, StepSucceeded,
};
use tallybook_events::fact::Fact;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Blob, JournalId, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::record::Record;
use tallybook_events::step::StepDone;
use tallybook_events::subject::Subject;

use crate::Failure;
use crate::choices::Choices;
use crate::measure::{Figure, Results, Target, Unit};
use crate::sqlite::{Row, Sqlite};
use crate::world::planned;

/// How many append at once.
const AT_ONCE: usize = 64;
/// The payload of each event is about so long.
const PAYLOAD_LEN: usize = 400;

/// How appends are handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One event, one at a time.
    Alone,
    /// One event each by 64 tasks, each waiting for its own.
    AtOnce,
    /// 64 events in one append, one at a time.
    InOne,
}

impl Way {
    const fn tasks(self) -> usize {
        match self {
            Way::Alone | Way::InOne => 1,
            Way::AtOnce => AT_ONCE,
        }
    }

    const fn events(self) -> usize {
        match self {
            Way::Alone | Way::AtOnce => 1,
            Way::InOne => AT_ONCE,
        }
    }

    /// How many events one sync of a peer covers.
    const fn group(self) -> usize {
        match self {
            Way::Alone => 1,
            Way::AtOnce | Way::InOne => AT_ONCE,
        }
    }
}

/// An operation that is carried out: what one task appends, in order.
struct Script {
    appends: Vec<Vec<Draft>>,
    condition: Condition,
}

/// Begins an operation on a container of its own and writes down what is to be appended for it, untimed.
async fn script(
    log: &Log,
    number: usize,
    appends: usize,
    events: usize,
    choices: &mut Choices,
) -> Result<Script, Failure> {
    let host: HostName = format!("cn{:02}", number % 20 + 1).parse()?;
    let container: ContainerName = format!("web-{number}").parse()?;
    let subject = Subject::Container(host.clone(), container.clone());
    let id = OperationId::new(1_700_000_000_000, choices.bytes());
    // Each event is the start or the end of a step.
    let steps = (appends * events).div_ceil(2).next_multiple_of(events) as u32;
    let plan = OperationPlanned {
        steps: (0..steps)
            .map(|index| planned(&host, &subject, "container.start", index))
            .collect(),
    };
    let intended = OperationIntended {
        intent: Intent::ContainerStart {
            container: container.clone(),
            host: host.clone(),
        },
        inventory: Seq(1),
        claims: vec![subject.clone()],
    };
    let first = vec![
        Draft::new(subject.clone(), intended)?.operation(id, None),
        Draft::new(subject.clone(), plan)?.operation(id, None),
    ];
    let begun = log.append(first, Condition::none()).await?;
    let claim = ClaimRef {
        seq: begun[0].seq,
        hash: begun[0].hash,
    };
    let journal = JournalId::from_bytes(choices.bytes());
    let started = |index: u32| -> Result<Draft, Failure> {
        let kind = "container.provision_until".to_owned();
        let journal = Some(journal);
        let draft = Draft::new(subject.clone(), StepStarted { kind, journal })?;
        Ok(draft
            .operation(id, Some(claim))
            .step(StepIndex(index), Attempt(1)))
    };
    let mut succeeded = |index: u32| -> Result<Draft, Failure> {
        let done = StepDone {
            changed: true,
            // The starts are short; both together have twice the length that is wanted.
            output: Blob(choices.text(2 * PAYLOAD_LEN - 180)),
            facts: vec![Fact::ContainerStarted {
                host: host.clone(),
                container: container.clone(),
            }],
            captured: Vec::new(),
        };
        let event = StepSucceeded {
            resolution: Resolution::Reported,
            done,
        };
        let draft = Draft::new(subject.clone(), event)?;
        Ok(draft
            .operation(id, Some(claim))
            .step(StepIndex(index), Attempt(1)))
    };
    let mut drafts = Vec::new();
    // A chain of as many steps as an append has events is started whole, then ends whole.
    for chain in 0..steps / events as u32 {
        let indices = (chain * events as u32)..((chain + 1) * events as u32);
        drafts.push(
            indices
                .clone()
                .map(started)
                .collect::<Result<Vec<_>, _>>()?,
        );
        drafts.push(indices.map(&mut succeeded).collect::<Result<Vec<_>, _>>()?);
    }
    drafts.truncate(appends);
    Ok(Script {
        appends: drafts,
        condition: Condition::held(id, claim),
    })
}

/// How long ours took: until everything was acknowledged, and until everything was in the databases.
struct Took {
    acknowledged: Duration,
    whole: Duration,
    records: Vec<Record>,
}

async fn carry_out(log: &Log, script: Script) -> Result<(), tallybook::log::Error> {
    for drafts in script.appends {
        log.append(drafts, script.condition.clone()).await?;
    }
    Ok(())
}

async fn ours(store: &Path, way: Way, appends: usize, seed: u64) -> Result<Took, Failure> {
    let log = Log::open(store, Open::Create, |_| ()).await?;
    let mut choices = Choices::new(seed);
    let mut scripts = Vec::new();
    for number in 0..way.tasks() {
        let number = number + (seed as usize % 1000) * AT_ONCE;
        scripts.push(script(&log, number, appends, way.events(), &mut choices).await?);
    }
    let before = log.head().await?.seq;
    let began = Instant::now();
    let mut tasks = Vec::new();
    if scripts.len() == 1 {
        // As in a command, which waits in its first thread.
        for script in scripts.drain(..) {
            carry_out(&log, script).await?;
        }
    }
    for script in scripts {
        let log = log.clone();
        tasks.push(tokio::spawn(async move { carry_out(&log, script).await }));
    }
    for task in tasks {
        task.await??;
    }
    let acknowledged = began.elapsed();
    log.close().await;
    let whole = began.elapsed();
    // What was appended, for the peers to write: the same bytes.
    let log = Log::open(store, Open::Existing, |_| ()).await?;
    let filter = Filter {
        from: Some(before.next()),
        ..Filter::default()
    };
    let records = log.records(&filter).await?;
    log.close().await;
    let wanted = way.tasks() * appends * way.events();
    if records.len() != wanted {
        return Err(format!("{} events were appended, not {wanted}", records.len()).into());
    }
    Ok(Took {
        acknowledged,
        whole,
        records,
    })
}

/// A file that the frames are written to, `group` events a sync. Laid out before (`is_laid_out`), or grown by each write.
fn bare(
    path: &Path,
    records: &[Record],
    group: usize,
    is_laid_out: bool,
) -> Result<Duration, Failure> {
    let mut writes = Vec::new();
    for records in records.chunks(group) {
        let mut bytes = Vec::new();
        records
            .iter()
            .for_each(|record| record.write_frame(&mut bytes));
        writes.push(bytes);
    }
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)?;
    if is_laid_out {
        let len: usize = writes.iter().map(Vec::len).sum();
        file.write_all(&vec![0; len])?;
    }
    file.sync_all()?;
    File::open(path.parent().ok_or("no directory")?)?.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let began = Instant::now();
    for bytes in writes {
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    Ok(began.elapsed())
}

fn sqlite(path: &Path, records: &[Record], group: usize) -> Result<Duration, Failure> {
    let mut database = Sqlite::create(path, true)?;
    let transactions: Vec<Vec<Row>> = records
        .chunks(group)
        .map(|records| records.iter().map(Row::of).collect())
        .collect();
    let began = Instant::now();
    for rows in &transactions {
        database.append(rows)?;
    }
    let took = began.elapsed();
    database.close()?;
    Ok(took)
}

/// What was measured of one way: appends a second, of each side in each round.
#[derive(Default)]
struct Rates {
    acknowledged: Vec<f64>,
    whole: Vec<f64>,
    grown: Vec<f64>,
    laid_out: Vec<f64>,
    database: Vec<f64>,
}

impl Rates {
    /// One round: each side in turn, with nothing left to be written by the one before.
    fn measure(&mut self, scratch: &Path, way: Way, took: &Took) -> Result<(), Failure> {
        let records = &took.records;
        let count = (records.len() / way.events()) as f64;
        let rate = |took: Duration| count / took.as_secs_f64();
        self.acknowledged.push(rate(took.acknowledged));
        self.whole.push(rate(took.whole));
        let (file, base) = (scratch.join("bare"), scratch.join("sqlite"));
        rustix::fs::sync();
        self.grown
            .push(rate(bare(&file, records, way.group(), false)?));
        rustix::fs::sync();
        self.laid_out
            .push(rate(bare(&file, records, way.group(), true)?));
        rustix::fs::sync();
        self.database
            .push(rate(sqlite(&base, records, way.group())?));
        Ok(())
    }

    fn tell(&self, name: &str, way: Way, results: &mut Results) -> Result<(), Failure> {
        let least = match way {
            Way::Alone => Some(Target::Ratio(0.9)),
            Way::AtOnce => Some(Target::Ratio(0.6)),
            Way::InOne => None,
        };
        let ahead = (way == Way::AtOnce).then_some(Target::Ratio(1.0));
        let (whole, acknowledged) = (
            ("in the databases", &self.whole),
            ("acknowledged", &self.acknowledged),
        );
        for ((until, ours), peer, values, target) in [
            (whole, "bare file", &self.grown, least),
            (whole, "SQLite", &self.database, ahead),
            (acknowledged, "bare file", &self.grown, None),
            (whole, "bare file, laid out", &self.laid_out, None),
        ] {
            Figure {
                name: format!("append, {name}, until {until}"),
                unit: Unit::AppendsPerSecond,
                ours: ours.clone(),
                peer: Some((peer.to_owned(), values.clone())),
                target,
            }
            .tell(results)?;
        }
        Ok(())
    }
}

/// Measures all three ways.
///
/// # Errors
/// When something can't be written.
pub(crate) fn run(dir: &Path, rounds: usize, alone: usize, each: usize) -> Result<(), Failure> {
    if std::env::var("LD_PRELOAD").is_ok_and(|preloaded| preloaded.contains("eatmydata")) {
        return Err(
            "LD_PRELOAD has eatmydata: then nothing is durable, and nothing is measured".into(),
        );
    }
    let mut results = Results::open()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let scratch = dir.join("append");
    let _absent = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)?;
    let ways = [
        (Way::Alone, alone, "alone"),
        (Way::AtOnce, each, "64 at once"),
        (Way::InOne, alone.div_ceil(4), "64 in one"),
    ];
    for (way, appends, name) in ways {
        let store = scratch.join(format!("store-{way:?}"));
        let mut rates = Rates::default();
        for round in 0..rounds {
            rustix::fs::sync();
            let took = runtime.block_on(ours(&store, way, appends, round as u64 + 1))?;
            rates.measure(&scratch, way, &took)?;
            if round == 0 {
                let count = took.records.len();
                let payload: usize = took.records.iter().map(|record| record.payload.len()).sum();
                let frame: usize = took.records.iter().map(Record::frame_len).sum();
                eprintln!(
                    "append, {name}: {count} events a round, payloads of {} bytes, frames of {}",
                    payload / count,
                    frame / count
                );
            }
        }
        rates.tell(name, way, &mut results)?;
    }
    std::fs::remove_dir_all(&scratch)?;
    Ok(())
}
