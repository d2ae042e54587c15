//! `tallybook verify`: every byte of the journal, and the store against it.
//!
//! A store is opened only when no record is damaged: opening one would act on what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tallybook_events::ids::{Hash, Seq};
use tallybook_events::record::{Record, commitment};

use super::history::{self, Until};
use super::{Context, Error, Exit, replay};
use crate::journal::Reader;
use crate::log::verify::{Checks, Finding, journal};
use crate::log::{self, Filter, KeptHead, Log, Open};
use crate::render::json::HeadView;
use crate::render::{Column, Format, Ink, Output, Table, Written, plain};
use crate::store::{BLOCK_EVENTS, Terms, entry_terms};

/// How many events are held in memory at once.
const STRETCH: u64 = BLOCK_EVENTS * 256;
/// How long to wait before a torn end is believed: another process may be writing.
const SETTLE: Duration = Duration::from_millis(100);

/// Check the whole journal, and the store against it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the store alone: no lock is needed
    #[arg(long)]
    journal_only: bool,
}

/// What a verification found, as JSON.
#[derive(Debug, Serialize)]
struct Verified {
    /// Nothing is wrong, and everything was checked that was asked for.
    ok: bool,
    head: HeadView,
    checks: Checks,
    /// Bytes behind the last whole append.
    torn_bytes: u64,
    /// Events of kinds that this program does not know.
    unknown: u64,
    /// Events whose payload was erased.
    erased: u64,
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
    /// Events read back through the index and held against the journal.
    events: u64,
    /// Terms looked up in the index, and how many events they led to.
    terms: u64,
    postings: u64,
    /// Whether the projections are what a fold of the journal gives.
    projections: bool,
    findings: Vec<Finding>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        if !context.has_log()? {
            return Err(log::Error::Missing(context.store().to_owned()).into());
        }
        // Before the journal: that may grow meanwhile.
        let kept = KeptHead::of(context.store())?;
        let (mut report, _) = journal(context.store())?;
        if report.torn_bytes > 0 {
            tokio::time::sleep(SETTLE).await;
            report = journal(context.store())?.0;
        }
        if report.findings.is_empty()
            && let Some(what) = kept.against(context.store(), &report.head)?
        {
            report.findings.push(Finding {
                seq: report.head.seq,
                place: context.store().join(log::HEAD).display().to_string(),
                what,
            });
        }
        let skipped = |why: &str| Store {
            why_not: Some(why.to_owned()),
            ..Store::default()
        };
        let store = if self.journal_only {
            skipped("it was not asked for")
        } else if !report.findings.is_empty() {
            skipped("the journal is damaged, and opening the store would act on it")
        } else {
            // A torn end is set aside by this, as by any other command. Whether events are gone with it is known to
            // the store alone.
            match context.open_log(Open::AsItIs).await {
                Ok(log) => check_store(context, log).await?,
                Err(error) if error.exit() == Exit::Verification => return Err(error),
                Err(error) => Store {
                    exit: Some(error.exit()),
                    ..skipped(&error.report().text().replace("error: ", ""))
                },
            }
        };
        let sound = report.findings.is_empty() && store.findings.is_empty();
        let exit = match (sound, store.exit) {
            (false, _) => Exit::Verification,
            (true, Some(exit)) => exit,
            (true, None) => Exit::Ok,
        };
        let verified = Verified {
            ok: exit == Exit::Ok,
            head: HeadView::from(&report.head),
            checks: report.checks,
            torn_bytes: report.torn_bytes,
            unknown: report.unknown,
            erased: report.erased,
            findings: report.findings,
            store,
        };
        match out.format() {
            Format::Json => out.json(&verified)?,
            Format::Table => show(&verified, out)?,
        }
        Ok(exit)
    }
}

async fn check_store(context: &Context, log: &Log) -> Result<Store, Error> {
    let mut store = Store {
        checked: true,
        ..Store::default()
    };
    let mut live = log.state().await?;
    let head = live.head.seq;
    let faults = log.faults().await?;
    for what in &faults {
        store.find(head, "the databases", what.clone());
    }
    if let Some(stored) = log.altered().await {
        live = stored;
    }
    let folded = history::fold(&context.journal(), Until::Seq(live.head.seq))?;
    let replayed = replay::compare(&folded, &live)?;
    store.projections = replayed.same;
    let names = replayed.differences.iter().map(|one| one.what.clone());
    for what in names.chain(replayed.internal) {
        store.findings.push(Finding {
            seq: live.head.seq,
            place: "the projections".to_owned(),
            what: format!("{what} is not what the journal gives"),
        });
    }
    if faults.is_empty() {
        check_index(context, log, head, &mut store).await?;
    }
    Ok(store)
}

/// Reads the journal a stretch at a time, and asks the index for the same events: all of them, and those of each
/// term that any of them has.
async fn check_index(
    context: &Context,
    log: &Log,
    head: Seq,
    store: &mut Store,
) -> Result<(), Error> {
    let mut reader = Reader::from_start(&context.journal()).map_err(log::Error::from)?;
    let mut from = Seq(1);
    while from <= head {
        let to = Seq(from.0 + STRETCH - 1).min(head);
        let mut hashes: BTreeMap<Seq, (Hash, Hash)> = BTreeMap::new();
        let mut terms: BTreeMap<Vec<u8>, BTreeSet<Seq>> = BTreeMap::new();
        while hashes.len() as u64 <= to.0 - from.0 {
            let Some((_, record)) = reader.next().map_err(log::Error::from)? else {
                break;
            };
            hashes.insert(record.header.seq, (record.hash, body(&record)));
            for term in entry_terms(&record.header) {
                terms.entry(term).or_default().insert(record.header.seq);
            }
        }
        let within = Filter {
            from: Some(from),
            to: Some(to),
            ..Filter::default()
        };
        let records = match log.indexed(&within).await? {
            Ok(records) => records,
            Err(error) => {
                store.find(from, "the index", format!("it can't be read: {error}"));
                return Ok(());
            }
        };
        let mut unseen = hashes;
        for record in &records {
            store.events += 1;
            let seq = record.header.seq;
            if unseen.remove(&seq) != Some((record.hash, body(record))) {
                store.find(
                    seq,
                    "the index",
                    "it is not the event of the journal".to_owned(),
                );
            }
        }
        for seq in unseen.into_keys() {
            store.find(seq, "the index", "it is missing there".to_owned());
        }
        for (term, wanted) in terms {
            check_term(log, &within, &term, &wanted, store).await?;
        }
        from = to.next();
    }
    Ok(())
}

/// What tells salt and payload of two copies apart, also after a redaction.
fn body(record: &Record) -> Hash {
    commitment(&record.salt, &record.payload)
}

async fn check_term(
    log: &Log,
    within: &Filter,
    term: &[u8],
    wanted: &BTreeSet<Seq>,
    store: &mut Store,
) -> Result<(), Error> {
    let Some(filter) = filter_of(within, term) else {
        return Ok(());
    };
    let shown = String::from_utf8_lossy(term.get(1..).unwrap_or_default()).into_owned();
    let records = match log.indexed(&filter).await? {
        Ok(records) => records,
        Err(error) => {
            let from = within.from.unwrap_or(Seq(1));
            store.find(
                from,
                "the index",
                format!("{shown:?} can't be looked up: {error}"),
            );
            return Ok(());
        }
    };
    let found: BTreeSet<Seq> = records.iter().map(|record| record.header.seq).collect();
    store.terms += 1;
    store.postings += wanted.len() as u64;
    for seq in wanted.difference(&found) {
        store.find(*seq, "the index", format!("it can't be found by {shown:?}"));
    }
    for seq in found.difference(wanted) {
        store.find(
            *seq,
            "the index",
            format!("it is found by {shown:?}, which it does not have"),
        );
    }
    Ok(())
}

/// The filter that asks for exactly this term.
fn filter_of(within: &Filter, term: &[u8]) -> Option<Filter> {
    let (class, value) = term.split_first()?;
    let mut filter = within.clone();
    let text = std::str::from_utf8(value).ok();
    match class {
        b's' => filter.subject = Some(text?.parse().ok()?),
        b'h' => filter.host = Some(text?.parse().ok()?),
        b'c' => filter.container = Some(text?.parse().ok()?),
        b't' => filter.template = Some(text?.parse().ok()?),
        b'o' => {
            let id = value.try_into().ok()?;
            filter.operation = Some(tallybook_events::ids::OperationId::from_bytes(id));
        }
        b'k' => filter.kind = Some(text?.to_owned()),
        b'a' => filter.actor = Some(text?.to_owned()),
        _ => return None,
    }
    debug_assert_eq!(filter.terms(), Terms::from([term.to_vec()]));
    Some(filter)
}

impl Store {
    fn find(&mut self, seq: Seq, place: &str, what: String) {
        self.findings.push(Finding {
            seq,
            place: place.to_owned(),
            what,
        });
    }
}

fn show(verified: &Verified, out: &mut Output) -> Written {
    let checks = &verified.checks;
    let mut table = Table::new([Column::left("CHECKED"), Column::right("TIMES")]);
    let mut row = |what: &str, times: u64| table.row([what.into(), times.into()]);
    row("heads of segments", checks.segments);
    row("records with the hash behind them", checks.records);
    row("links to the event before", checks.chain);
    row(
        "links to the event before of the same subject",
        checks.subjects,
    );
    row("payloads against their commitment", checks.commitments);
    row("payloads decoded and encoded again", checks.payloads);
    row("headers against what their kind fixes", checks.kinds);
    row("claims against the event that made them", checks.claims);
    row(
        "events against what their operation allows",
        checks.operations,
    );
    row(
        "operations that say how many events they have",
        checks.complete,
    );
    let store = &verified.store;
    if store.checked {
        row("events of the index against the journal", store.events);
        row("terms looked up in the index", store.terms);
        row("events found by these terms", store.postings);
        row("projections against a fold of the journal", 1);
    }
    out.table(&table)?;
    let head = &verified.head;
    out.line(format!(
        "the journal ends at event {} {}",
        head.seq, head.hash
    ))?;
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
    if let Some(why) = &store.why_not {
        out.line(format!("the store was not checked: {}", plain(why)))?;
    }
    let findings = verified.findings.iter().chain(&store.findings);
    for finding in findings.clone() {
        let place = plain(&finding.place);
        let line = format!("event {} ({place}): {}", finding.seq, plain(&finding.what));
        out.inked(Ink::Bad, &line)?;
    }
    if !store.findings.is_empty() {
        out.line("  hint: the journal is whole; remove the store's `index` and `projection`, and the next command builds them again")?;
    }
    let found = !verified.findings.is_empty() || !store.findings.is_empty();
    match (verified.ok, found) {
        (true, _) => out.inked(
            Ink::Good,
            &format!("verify: ok at event {} {}", head.seq, head.hash),
        ),
        (false, false) => out.inked(Ink::Bad, "verify: not everything was checked"),
        (false, true) => {
            let number = crate::render::count(findings.count(), "finding");
            out.inked(Ink::Bad, &format!("verify: {number}"))
        }
    }
}
