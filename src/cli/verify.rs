//! `tallybook verify`: every byte of the journal, and the store against it.
//!
//! A store is opened only when no record is damaged: opening one would act on what is there.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde::Serialize;
use tallybook_events::ids::Seq;

use super::argument::seq;
use super::history::{self, Until};
use super::{Context, Error, Exit, replay};
use crate::journal::Progress;
use crate::log::verify::{Checks, Class, Finding, Reach, Report, Scope, settled};
use crate::log::{self, KeptHead, Log, Open};
use crate::render::json::HeadView;
use crate::render::{Column, Format, Ink, Output, Table, Written, plain};

/// How often progress is told, where it is shown.
const PROGRESS: Duration = Duration::from_millis(500);

/// Check the whole journal, and the store against it
///
/// Without an option, everything: every frame, header, link, commitment and payload of the journal, also of segments
/// in the archive; what may follow what; the index against the journal, and the projections against a fold of it. Other
/// commands can run meanwhile; what they append is not looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook verify")]
pub(super) struct Args {
    /// Only the last segment, and that the databases end where the journal does
    #[arg(long, conflicts_with_all = ["chain", "to"])]
    quick: bool,
    /// Only frames, headers and the chain of hashes; no payload, and not the store
    #[arg(long)]
    chain: bool,
    /// Only up to this event, and not the store
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    to: Option<Seq>,
    /// Leave the store alone: no lock is needed
    #[arg(long)]
    journal_only: bool,
    /// How many threads read [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
}

/// What a verification found, as JSON.
#[derive(Debug, Serialize)]
struct Verified {
    /// Nothing is wrong, and everything was checked that was asked for.
    ok: bool,
    reach: Reach,
    head: HeadView,
    checks: Checks,
    /// Bytes behind the last whole append.
    torn_bytes: u64,
    /// Events of kinds that this program does not know.
    unknown: u64,
    /// Events whose payload was erased, as announced.
    erased: u64,
    /// Payloads that are being erased.
    unfinished: u64,
    /// Events that a recovery went on without.
    lost: u64,
    /// Events that can't be judged because of that.
    unjudged: u64,
    findings: Vec<Finding>,
    store: Store,
}

/// What became of the store's part.
#[derive(Debug, Default, Serialize)]
struct Store {
    checked: bool,
    /// Why it was not.
    why_not: Option<String>,
    /// How the command ends because of that.
    #[serde(skip)]
    exit: Option<Exit>,
    /// Events of the index, byte for byte against the journal.
    events: u64,
    /// Terms looked up in the index, and how many events they led to.
    terms: u64,
    postings: u64,
    /// Whether the projections are what a fold of the journal gives.
    projections: bool,
    /// Whether they end where the journal does, where only that was looked at.
    heads: bool,
    findings: Vec<Finding>,
    findings_dropped: u64,
}

impl Args {
    fn scope(&self) -> Scope {
        let usual = Scope::default();
        Scope {
            reach: match (self.quick, self.chain) {
                (true, _) => Reach::Tail,
                (false, true) => Reach::Chain,
                (false, false) => Reach::Full,
            },
            to: self.to,
            threads: self.threads.map_or(usual.threads, usize::from),
        }
    }

    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        if !context.has_log()? {
            return Err(log::Error::Missing(context.store()?.to_owned()).into());
        }
        let scope = self.scope();
        let (kept, mut report) = journal(context, scope)?;
        if report.findings.is_empty()
            && self.to.is_none()
            && let Some(what) = kept.against(context.store()?, &report.head)?
        {
            report.findings.push(Finding {
                seq: report.head.seq,
                place: context.store()?.join(log::HEAD).display().to_string(),
                class: Class::End,
                what,
            });
        }
        let store = self.store(context, &report).await?;
        let sound = report.findings.is_empty() && store.findings.is_empty();
        let exit = match (sound, store.exit) {
            (false, _) => Exit::Verification,
            (true, Some(exit)) => exit,
            (true, None) => Exit::Ok,
        };
        let verified = Verified {
            ok: exit == Exit::Ok,
            reach: report.reach,
            head: HeadView::from(&report.head),
            checks: report.checks,
            torn_bytes: report.torn_bytes,
            unknown: report.unknown,
            erased: report.erased,
            unfinished: report.unfinished,
            lost: report.lost,
            unjudged: report.unjudged,
            findings: report.findings,
            store,
        };
        match out.format() {
            Format::Json => out.json(&verified)?,
            Format::Table => show(&verified, out)?,
        }
        Ok(exit)
    }

    async fn store(&self, context: &Context, report: &Report) -> Result<Store, Error> {
        let skipped = |why: &str| Store {
            why_not: Some(why.to_owned()),
            ..Store::default()
        };
        if self.journal_only || self.chain || self.to.is_some() {
            return Ok(skipped("it was not asked for"));
        }
        if !report.findings.is_empty() {
            return Ok(skipped(
                "the journal is damaged, and opening the store would act on it",
            ));
        }
        // A torn end is set aside by this, as by any other command. Whether events are gone with it is known to
        // the store alone.
        let checked = match context.open_log(Open::AsItIs).await {
            Ok(log) if self.quick => check_heads(log, report).await,
            Ok(log) => check_store(context, log).await,
            Err(error) if error.exit() == Exit::Verification => Err(error),
            Err(error) => Ok(Store {
                exit: Some(error.exit()),
                ..skipped(&error.report().text().replace("error: ", ""))
            }),
        };
        match checked {
            // What is half overwritten can neither be read nor folded.
            Err(error) if error.exit() == Exit::Verification && report.unfinished > 0 => {
                Ok(Store {
                    exit: Some(Exit::Failed),
                    ..skipped(
                        "payloads are being erased, and some are half overwritten; any other command goes on with that first",
                    )
                })
            }
            other => other,
        }
    }
}

/// Reads the journal; tells how far it is where somebody watches.
fn journal(context: &Context, scope: Scope) -> Result<(KeptHead, Report), Error> {
    let watched = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    let mut was_told = false;
    let progress = |progress: Progress| {
        if watched && told.elapsed() > PROGRESS && progress.segments < progress.of {
            told = Instant::now();
            was_told = true;
            let Progress { segments, of, seq } = progress;
            eprint!("\rverified up to event {seq}: {segments} of {of} segments ");
        }
    };
    let looked = settled(context.store()?, scope, progress)?;
    if was_told {
        eprint!("\r\x1b[K");
    }
    Ok(looked)
}

/// Whether the databases end where the journal does.
async fn check_heads(log: &Log, report: &Report) -> Result<Store, Error> {
    let mut store = Store {
        checked: true,
        heads: true,
        ..Store::default()
    };
    store.faults(log).await?;
    let head = match log.altered().await {
        Some(stored) => stored.head,
        None => log.head().await?,
    };
    // Others may have appended meanwhile.
    if head.seq < report.head.seq || (head.seq == report.head.seq && head.hash != report.head.hash)
    {
        store.find(
            head.seq,
            "the projections",
            Class::Projection,
            format!(
                "they end at event {}, the journal at {}",
                head.seq, report.head.seq
            ),
        );
    }
    Ok(store)
}

async fn check_store(context: &Context, log: &Log) -> Result<Store, Error> {
    let mut store = Store {
        checked: true,
        ..Store::default()
    };
    let mut live = log.state().await?;
    let head = live.head.seq;
    let is_usable = store.faults(log).await?;
    if let Some(stored) = log.altered().await {
        live = stored;
    }
    let mut folded = history::fold(&context.journal()?, Until::Seq(live.head.seq))?;
    folded.forget_past();
    let replayed = replay::compare(&folded, &live)?;
    store.projections = replayed.same;
    let names = replayed.differences.iter().map(|one| one.what.clone());
    for what in names.chain(replayed.internal) {
        store.find(
            live.head.seq,
            "the projections",
            Class::Projection,
            format!("{what} is not what the journal gives"),
        );
    }
    if is_usable {
        let report = log.check_index(head).await?;
        store.events = report.events;
        store.terms = report.terms;
        store.postings = report.postings;
        store.findings.extend(report.findings);
        store.findings_dropped = report.findings_dropped;
    }
    Ok(store)
}

impl Store {
    fn find(&mut self, seq: Seq, place: &str, class: Class, what: String) {
        self.findings.push(Finding {
            seq,
            place: place.to_owned(),
            class,
            what,
        });
    }

    /// Takes in what is wrong with the databases by themselves. Whether they can be used.
    async fn faults(&mut self, log: &Log) -> Result<bool, Error> {
        let faults = log.faults().await?;
        let head = log.head().await?.seq;
        for what in &faults {
            self.find(head, "the databases", Class::Index, what.clone());
        }
        Ok(faults.is_empty())
    }
}

fn show(verified: &Verified, out: &mut Output) -> Written {
    out.table(&counts(verified))?;
    let head = &verified.head;
    out.line(format!(
        "the journal ends at event {} {}",
        head.seq, head.hash
    ))?;
    remarks(verified, out)?;
    let store = &verified.store;
    let findings = verified.findings.iter().chain(&store.findings);
    let mut classes: BTreeSet<Class> = BTreeSet::new();
    for finding in findings.clone() {
        let place = plain(&finding.place);
        let line = format!("event {} ({place}): {}", finding.seq, plain(&finding.what));
        out.inked(Ink::Bad, &line)?;
        classes.insert(finding.class);
    }
    if store.findings_dropped > 0 {
        out.line(format!("and {} more", store.findings_dropped))?;
    }
    for class in classes {
        out.line(format!("  {}", class.means()))?;
        out.line(format!("  hint: {}", class.advice()))?;
    }
    let found = !verified.findings.is_empty() || !store.findings.is_empty();
    let all = match (verified.reach, &store.checked) {
        (Reach::Full, true) => "",
        (Reach::Full, false) => " (the journal alone)",
        (Reach::Tail, _) => " (its last segment alone)",
        (Reach::Chain, _) => " (its chain alone)",
    };
    match (verified.ok, found) {
        (true, _) => out.inked(
            Ink::Good,
            &format!("verify: ok at event {} {}{all}", head.seq, head.hash),
        ),
        (false, false) => out.inked(Ink::Bad, "verify: not everything was checked"),
        (false, true) => {
            let number = crate::render::count(findings.count(), "finding");
            out.inked(Ink::Bad, &format!("verify: {number}"))
        }
    }
}

/// How often which check was made.
fn counts(verified: &Verified) -> Table {
    let checks = &verified.checks;
    let mut table = Table::new([Column::left("CHECKED"), Column::right("TIMES")]);
    let mut row = |what: &str, times: u64| table.row([what.into(), times.into()]);
    row("heads of segments", checks.segments);
    row("records with the hash behind them", checks.records);
    row("links to the event before", checks.chain);
    row("epochs", checks.epochs);
    if verified.reach != Reach::Chain {
        row("payloads against their commitment", checks.commitments);
        row("payloads decoded and encoded again", checks.payloads);
        row("headers against what their kind fixes", checks.kinds);
    }
    if verified.reach == Reach::Full {
        row(
            "links to the event before of the same subject",
            checks.subjects,
        );
        row("claims against the event that made them", checks.claims);
        row(
            "events against what their operation allows",
            checks.operations,
        );
        row(
            "operations that say how many events they have",
            checks.complete,
        );
        row("erasures against what announced them", checks.erasures);
        row("gaps against the recovery that left them", checks.gaps);
    }
    let store = &verified.store;
    if store.heads {
        row("heads of the databases", 1);
    } else if store.checked {
        row("events of the index against the journal", store.events);
        row("terms looked up in the index", store.terms);
        row("events found by these terms", store.postings);
        row("projections against a fold of the journal", 1);
    }
    table
}

/// What is no finding, and to be known all the same.
fn remarks(verified: &Verified, out: &mut Output) -> Written {
    if verified.torn_bytes > 0 {
        out.line(format!(
            "behind it are {} bytes of an append that is not whole",
            verified.torn_bytes
        ))?;
    }
    if verified.unknown > 0 {
        out.line(format!(
            "{} payloads are of kinds that this program does not know: checked, not understood",
            verified.unknown
        ))?;
    }
    if verified.erased > 0 {
        out.line(format!(
            "{} payloads were erased: what they were can't be told",
            verified.erased
        ))?;
    }
    if verified.unfinished > 0 {
        out.line(format!(
            "{} payloads are being erased: the next command goes on with that",
            verified.unfinished
        ))?;
    }
    if verified.lost > 0 {
        out.line(format!(
            "{} events are lost, as a recovery says; {} events of operations that they may be missing from can't be judged",
            verified.lost, verified.unjudged
        ))?;
    }
    if let Some(why) = &verified.store.why_not {
        out.line(format!("the store was not checked: {}", plain(why)))?;
    }
    Ok(())
}
