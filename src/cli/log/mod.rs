//! `tallybook log`: events, a line each; and beneath it what keeps the log itself in order.

mod archive;
mod expire;
mod recover;
mod restore;

use tallybook_events::event::KINDS;
use tallybook_events::ids::Seq;
use tallybook_events::name::{HostName, TemplateName};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::state::State;

use super::argument::seq;
use super::{ContainerArgument, Context, Error, Exit, OperationArgument, commands, resolve};
use crate::clock;
use crate::log::{Filter, Limit, Log, Open};
use crate::render::json::LogLine;
use crate::render::time::Time;
use crate::render::{Cell, Column, Format, Ink, Output, Table};
use tallybook_events::header::Outcome;

/// How many events are read at once when all are wanted.
const CHUNK: usize = 4096;

/// List events, one a line; every condition given must hold
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook log --container shop --since 1day\n  tallybook log --kind step.failed\n  tallybook log --follow"
)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    upkeep: Option<Upkeep>,
    /// About this host or a container on it
    #[arg(long)]
    host: Option<HostName>,
    /// About this container: NAME, or HOST/NAME
    #[arg(long)]
    container: Option<ContainerArgument>,
    /// About this template
    #[arg(long)]
    template: Option<TemplateName>,
    /// Of this operation: its short id, or how that begins
    #[arg(long)]
    operation: Option<OperationArgument>,
    /// Of this kind, such as step.failed, or of all kinds of a noun, such as step
    #[arg(long)]
    kind: Option<String>,
    /// Made to happen by this user, as the log shows it
    #[arg(long)]
    actor: Option<String>,
    /// Not before this time: 2026-11-22, 2026-11-22T10:00:00Z, or how long ago (2h, 3days)
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
    /// Not before this event
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    from: Option<Seq>,
    /// Not after this event
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    to: Option<Seq>,
    /// Only the newest of them, so many
    #[arg(short = 'n', long = "newest", value_name = "N")]
    newest: Option<usize>,
    /// Go on with new events as they come, until interrupted
    #[arg(short, long, conflicts_with_all = ["to", "until"])]
    follow: bool,
}

commands! {
    Archive(archive::Args),
    Expire(expire::Args),
    Recover(recover::Args),
    Restore(restore::Args),
}
use Command as Upkeep;

impl Args {
    pub(super) async fn run(mut self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        if let Some(upkeep) = self.upkeep.take() {
            return upkeep.run(context, out).await;
        }
        if !self.follow {
            out.page();
        }
        let log = context.open_log(Open::Existing).await?;
        let state = log.state().await?;
        let filter = self.filter(log).await?;
        let mut printer = Printer::default();
        let found = print_past(log, &filter, &state, &mut printer, out).await?;
        if found == 0 && !self.follow {
            self.explain(log, &state).await?;
        }
        if self.follow {
            follow(log, filter, state.head.seq, &mut printer, out).await?;
        }
        Ok(Exit::Ok)
    }

    async fn filter(&self, log: &Log) -> Result<Filter, Error> {
        let now = clock::now_unix_us();
        let (container, subject) = match &self.container {
            Some(ContainerArgument {
                host: Some(host),
                name,
            }) => (None, Some(Subject::Container(host.clone(), name.clone()))),
            Some(ContainerArgument { host: None, name }) => (Some(name.clone()), None),
            None => (None, None),
        };
        let operation = match &self.operation {
            Some(argument) => Some(resolve::operation(log, argument).await?),
            None => None,
        };
        Ok(Filter {
            host: self.host.clone(),
            container,
            template: self.template.clone(),
            subject,
            operation,
            kind: self.kind.clone(),
            actor: self.actor.clone(),
            from: self.from,
            to: self.to,
            since_unix_us: self.since.map(|time| time.unix_us(now)),
            until_unix_us: self.until.map(|time| time.unix_us(now)),
            limit: self.newest.map(Limit::Newest),
        })
    }

    /// Nothing was found: an error when a name was given that the log has never seen.
    async fn explain(&self, log: &Log, state: &State) -> Result<(), Error> {
        let unknown = |what, name: String, nearest| {
            Err(Error::Unknown {
                what,
                name,
                place: Some("in the log".to_owned()),
                nearest,
                hint: None,
            })
        };
        let containers = || state.containers.keys().chain(state.allocations.keys());
        if let Some(host) = &self.host
            && !was_seen(log, |filter| filter.host = Some(host.clone())).await?
        {
            let hosts = state.hosts.keys().chain(containers().map(|(host, _)| host));
            let nearest = resolve::nearest(host.as_str(), hosts.map(HostName::as_str));
            return unknown("host", host.to_string(), nearest);
        }
        if let Some(ContainerArgument { host, name }) = &self.container {
            let seen = was_seen(log, |filter| match host {
                Some(host) => {
                    let subject = Subject::Container(host.clone(), name.clone());
                    filter.subject = Some(subject);
                }
                None => filter.container = Some(name.clone()),
            });
            let argument = ContainerArgument {
                host: host.clone(),
                name: name.clone(),
            };
            if !seen.await?
                && let Err(error @ Error::Unknown { .. }) =
                    resolve::container(containers(), &argument, "in the log")
            {
                return Err(error);
            }
        }
        if let Some(template) = &self.template
            && !was_seen(log, |filter| filter.template = Some(template.clone())).await?
        {
            let known = state.templates.keys().map(|(name, _)| name.as_str());
            let nearest = resolve::nearest(template.as_str(), known);
            return unknown("template", template.to_string(), nearest);
        }
        if let Some(kind) = &self.kind {
            let nouns = KINDS.iter().filter_map(|(kind, _)| kind.split_once('.'));
            let nouns = nouns.map(|(noun, _)| noun);
            let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).chain(nouns).collect();
            if !known.contains(&kind.as_str()) {
                return unknown("kind of event", kind.clone(), resolve::nearest(kind, known));
            }
        }
        Ok(())
    }
}

/// Whether the log has an event of this.
async fn was_seen(log: &Log, of: impl FnOnce(&mut Filter)) -> Result<bool, Error> {
    let mut filter = Filter {
        limit: Some(Limit::Newest(1)),
        ..Filter::default()
    };
    of(&mut filter);
    Ok(!log.records(&filter).await?.is_empty())
}

/// Prints what is there. Without a bound on their number, so many at a time.
async fn print_past(
    log: &Log,
    filter: &Filter,
    state: &State,
    printer: &mut Printer,
    out: &mut Output,
) -> Result<usize, Error> {
    let end = filter.to.unwrap_or(state.head.seq).min(state.head.seq);
    if filter.limit.is_some() {
        let bounded = Filter {
            to: Some(end),
            ..filter.clone()
        };
        let entries = log.entries(&bounded).await?;
        printer.print(&entries, out)?;
        return Ok(entries.len());
    }
    let mut from = filter.from.unwrap_or(Seq(1));
    let mut found = 0;
    while from <= end && !out.is_closed() {
        let chunk = Filter {
            from: Some(from),
            to: Some(end),
            limit: Some(Limit::Oldest(CHUNK)),
            ..filter.clone()
        };
        let entries = log.entries(&chunk).await?;
        found += entries.len();
        printer.print(&entries, out)?;
        match entries.last().filter(|_| entries.len() == CHUNK) {
            Some(last) => from = last.header.seq.next(),
            None => break,
        }
    }
    Ok(found)
}

async fn follow(
    log: &Log,
    mut filter: Filter,
    mut seen: Seq,
    printer: &mut Printer,
    out: &mut Output,
) -> Result<(), Error> {
    filter.limit = None;
    while !out.is_closed() {
        out.flush()?;
        tokio::select! {
            waited = log.wait_beyond(seen) => waited?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let head = log.head().await?.seq;
        filter.from = Some(filter.from.unwrap_or(Seq(1)).max(seen.next()));
        filter.to = Some(head);
        let entries = log.entries(&filter).await?;
        printer.print(&entries, out)?;
        seen = head;
    }
    Ok(())
}

/// Prints lines; the heading once.
#[derive(Default)]
struct Printer {
    headed: bool,
}

impl Printer {
    fn print(&mut self, entries: &[Entry], out: &mut Output) -> Result<(), Error> {
        if out.format() == Format::Json {
            for entry in entries {
                out.json_line(&LogLine::from(entry))?;
            }
            return Ok(());
        }
        let mut table = Table::new(COLUMNS);
        if self.headed {
            table = table.headless();
        }
        self.headed |= !entries.is_empty();
        for entry in entries {
            let line = LogLine::from(entry);
            let operation = entry.header.operation.map(|id| id.short());
            let ink = match entry.header.outcome {
                Outcome::None => Ink::Plain,
                Outcome::Succeeded => Ink::Good,
                Outcome::Failed => Ink::Bad,
                Outcome::InDoubt => Ink::Open,
            };
            table.row([
                line.seq.into(),
                Cell::inked(Ink::Faint, line.time),
                line.subject.into(),
                Cell::inked(ink, line.kind),
                line.actor.into(),
                Cell::or_dash(operation),
                line.summary.into(),
            ]);
        }
        out.table(&table)?;
        Ok(())
    }
}

const COLUMNS: [Column; 7] = [
    Column::right("SEQ").at_least(5),
    Column::left("TIME").at_least(20),
    Column::left("SUBJECT").at_least(12),
    Column::left("KIND").at_least(21),
    Column::left("ACTOR").at_least(5),
    Column::left("OPERATION").at_least(12),
    Column::left("WHAT"),
];
