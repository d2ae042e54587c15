//! `tallybook why`: the events that made a host, a container or a template what it is, and who asked for each.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tallybook_events::event::{Event, StepAdopted, StepSucceeded};
use tallybook_events::fact::{Fact, Origin};
use tallybook_events::ids::{Generation, OperationId, Seq};
use tallybook_events::name::{HostName, TemplateName};
use tallybook_events::subject::Subject;
use tallybook_replay::entry::Entry;
use tallybook_replay::state::State;

use super::resolve::{self, Entity};
use super::{Context, EntityArgument, Error, Exit};
use crate::clock::rfc3339;
use crate::cloud::allocate::Key;
use crate::log::{Filter, Log, Open};
use crate::render::json::OperationView;
use crate::render::{Cell, Column, Format, Ink, Output, Table, Written, summary};

/// How far back a chain of origins is followed.
const DEPTH_MAX: usize = 8;
/// The sides of a container that begin and end it, and the one that may be older than it.
const MADE: &str = "made";
const GONE: &str = "gone";
const ALLOCATION: &str = "allocation";

/// Tell how a host, a container or a template came to be what it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook why shop\n  tallybook why template:web")]
pub(super) struct Args {
    /// A container, a host or a template
    #[arg(value_name = "CONTAINER|HOST|TEMPLATE")]
    name: EntityArgument,
}

/// One thing that is so, and the event that made it so.
#[derive(Debug, Clone, Serialize)]
struct Reason {
    seq: Seq,
    time: String,
    /// What is so, in words.
    what: String,
    /// The kind of the event.
    kind: String,
    /// The operation it belongs to.
    operation: Option<OperationId>,
    /// Who made it happen.
    actor: String,
    /// The order of facts within one event.
    #[serde(skip)]
    position: usize,
}

/// A thing with its reasons.
#[derive(Debug, Serialize)]
struct Chain {
    /// `container:cn1/web`, `template:base generation 2`, ….
    entity: String,
    reasons: Vec<Reason>,
}

/// The whole answer: what was asked for, then what that came from.
#[derive(Debug, Serialize)]
struct Why {
    chains: Vec<Chain>,
    /// The operations that the reasons name.
    operations: Vec<OperationView>,
    #[serde(skip)]
    asked: BTreeSet<OperationId>,
    inventories: Vec<Seq>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let log = context.open_log(Open::Existing).await?;
        let state = log.state().await?;
        let history = History::read(log).await?;
        let gone: Vec<Key> = history.containers(&state);
        let entity = resolve::entity(&state, &gone, &self.name)?;
        let mut why = history.explain(&state, &entity);
        for id in why.asked.iter().copied() {
            if let Some(known) = log.summary(id).await? {
                why.operations.push(OperationView::new(&id, &known));
            }
        }
        why.operations.sort_by_key(|operation| operation.first.seq);
        match out.format() {
            Format::Json => out.json(&why)?,
            Format::Table => show(&why, out)?,
        }
        Ok(Exit::Ok)
    }
}

/// What is asked about: a whole entity, or one generation of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Host(HostName),
    Container(Key),
    Template(TemplateName, Generation),
}

/// Everything in the log that makes something so.
struct History {
    /// Steps that succeeded and allocations, in order.
    entries: Vec<Entry>,
    intended: BTreeMap<OperationId, Entry>,
}

impl History {
    async fn read(log: &Log) -> Result<Self, Error> {
        let of_kind = |kind: &str| Filter {
            kind: Some(kind.to_owned()),
            ..Filter::default()
        };
        let mut entries = log.entries(&of_kind("step.succeeded")).await?;
        entries.extend(log.entries(&of_kind("step.adopted")).await?);
        entries.extend(log.entries(&of_kind("allocation")).await?);
        entries.sort_by_key(|entry| entry.header.seq);
        let intended = log.entries(&of_kind("operation.intended")).await?;
        let intended = intended.into_iter().filter_map(|entry| {
            let id = entry.header.operation?;
            Some((id, entry))
        });
        Ok(History {
            entries,
            intended: intended.collect(),
        })
    }

    /// Containers that were there once, or have an allocation and are not made yet.
    fn containers(&self, state: &State) -> Vec<Key> {
        let mut gone: Vec<Key> = state.allocations.keys().cloned().collect();
        for fact in self.entries.iter().flat_map(facts) {
            if let Fact::ContainerDestroyed { host, container } = fact {
                gone.push((host.clone(), container.clone()));
            }
        }
        gone.retain(|key| !state.containers.contains_key(key));
        gone.sort();
        gone.dedup();
        gone
    }

    fn explain(&self, state: &State, entity: &Entity) -> Why {
        let mut next = Some(match entity {
            Entity::Host(host) => About::Host(host.clone()),
            Entity::Container(key) => About::Container(key.clone()),
            Entity::Template(template) => {
                let newest = state.newest_generation(template, None);
                let generation = newest.map_or(Generation(0), |(generation, _)| generation);
                About::Template(template.clone(), generation)
            }
        });
        let mut chains = Vec::new();
        let mut seen: Vec<About> = Vec::new();
        let mut before = Seq(u64::MAX);
        while let Some(about) = next.take() {
            if seen.contains(&about) || seen.len() >= DEPTH_MAX {
                break;
            }
            let (chain, origin) = self.chain(&about, before);
            if let Some((seq, origin)) = origin {
                next = Some(origin);
                before = seq;
            }
            seen.push(about);
            chains.push(chain);
        }
        let reasons = || chains.iter().flat_map(|chain: &Chain| &chain.reasons);
        let asked: BTreeSet<OperationId> =
            reasons().filter_map(|reason| reason.operation).collect();
        let mut inventories: Vec<Seq> = self
            .intended
            .iter()
            .filter(|(id, _)| reasons().any(|reason| reason.operation == Some(**id)))
            .filter_map(|(_, entry)| match &entry.event {
                Event::OperationIntended(intended) => Some(intended.inventory),
                _ => None,
            })
            .filter(|seq| *seq != Seq::NONE)
            .collect();
        inventories.sort();
        inventories.dedup();
        Why {
            chains,
            operations: Vec::new(),
            asked,
            inventories,
        }
    }

    /// What holds of a thing just before an event, and what it was made from.
    fn chain(&self, about: &About, before: Seq) -> (Chain, Option<(Seq, About)>) {
        let mut holding: BTreeMap<String, Reason> = BTreeMap::new();
        let mut origin = None;
        let earlier = self
            .entries
            .iter()
            .filter(|entry| entry.header.seq < before);
        for entry in earlier {
            if let Some(allocated) = allocation(about, entry) {
                holding.insert(ALLOCATION.to_owned(), reason(entry, 0, allocated));
            }
            for (position, fact) in facts(entry).iter().enumerate() {
                let Some(aspect) = aspect(about, fact) else {
                    continue;
                };
                if aspect == MADE || aspect == GONE {
                    // What was so of an earlier one of this name is over; what it was given may be older than it.
                    holding.retain(|aspect, _| aspect == ALLOCATION);
                    origin = None;
                }
                // A generation of a template was made where it was first; it is the same on every host after.
                origin = origin.or_else(|| self.origin(fact, entry));
                holding.insert(aspect, reason(entry, position, summary::fact(fact)));
            }
        }
        let mut reasons: Vec<Reason> = holding.into_values().collect();
        reasons.sort_by_key(|reason| (reason.seq, reason.position));
        let entity = match about {
            About::Host(host) => format!("host:{host}"),
            About::Container((host, container)) => format!("container:{host}/{container}"),
            About::Template(template, generation) => {
                format!("template:{template} generation {generation}")
            }
        };
        (Chain { entity, reasons }, origin)
    }

    /// What the thing that a fact made was made from, as of that event.
    fn origin(&self, fact: &Fact, entry: &Entry) -> Option<(Seq, About)> {
        let seq = entry.header.seq;
        match fact {
            Fact::ContainerCreated { origin, .. } => match origin {
                Origin::Scratch { .. } => None,
                Origin::Template {
                    template,
                    generation,
                    manifest: _,
                } => Some((seq, About::Template(template.clone(), *generation))),
                Origin::Container { host, container } => {
                    let key = (host.clone(), container.clone());
                    Some((seq, About::Container(key)))
                }
            },
            Fact::TemplatePresent { .. } => {
                let intended = self.intended.get(&entry.header.operation?)?;
                match &intended.event {
                    Event::OperationIntended(intended) => match &intended.intent {
                        tallybook_events::intent::Intent::TemplateSnapshot {
                            container,
                            host,
                            ..
                        } => Some((seq, About::Container((host.clone(), container.clone())))),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

fn facts(entry: &Entry) -> &[Fact] {
    match &entry.event {
        Event::StepSucceeded(StepSucceeded { done, .. })
        | Event::StepAdopted(StepAdopted { done, .. }) => &done.facts,
        _ => &[],
    }
}

fn allocation(about: &About, entry: &Entry) -> Option<String> {
    let About::Container((host, container)) = about else {
        return None;
    };
    if entry.header.subject != Subject::Container(host.clone(), container.clone()) {
        return None;
    }
    match &entry.event {
        Event::AllocationMade(made) => Some(format!(
            "{container} has {}",
            summary::allocation(&made.allocation)
        )),
        Event::AllocationReleased(released) => Some(format!(
            "{container} has no {} any more",
            summary::allocation(&released.allocation)
        )),
        _ => None,
    }
}

/// Which side of a thing a fact is about: the newest fact of each side is what holds. `None` when it is about
/// something else.
fn aspect(about: &About, fact: &Fact) -> Option<String> {
    let (aspect, mine) = match fact {
        Fact::HostObserved { host, .. } => ("observed", is_host(about, host)),
        Fact::HostInstalled { host } | Fact::HostUninstalled { host } => {
            ("installed", is_host(about, host))
        }
        Fact::HostPrepared { host, .. } | Fact::HostUnprepared { host } => {
            ("prepared", is_host(about, host))
        }
        Fact::ContainerCreated {
            host, container, ..
        } => (MADE, is_container(about, host, container)),
        Fact::ContainerDestroyed { host, container } => {
            (GONE, is_container(about, host, container))
        }
        Fact::ContainerIdentified {
            host, container, ..
        } => ("identity", is_container(about, host, container)),
        Fact::ContainerStarted { host, container } | Fact::ContainerStopped { host, container } => {
            ("running", is_container(about, host, container))
        }
        Fact::ContainerAddressed {
            host, container, ..
        } => ("address", is_container(about, host, container)),
        Fact::KeysAuthorized {
            host, container, ..
        } => ("keys", is_container(about, host, container)),
        Fact::Provisioned {
            host, container, ..
        } => ("provisioned", is_container(about, host, container)),
        Fact::TemplatePresent {
            host,
            template,
            generation,
            ..
        }
        | Fact::TemplateAbsent {
            host,
            template,
            generation,
        } => {
            let mine = is_generation(about, template, *generation);
            return mine.then(|| format!("on {host}"));
        }
    };
    mine.then(|| aspect.to_owned())
}

fn is_host(about: &About, host: &HostName) -> bool {
    matches!(about, About::Host(wanted) if wanted == host)
}

fn is_container(
    about: &About,
    host: &HostName,
    container: &tallybook_events::name::ContainerName,
) -> bool {
    matches!(about, About::Container((on, name)) if on == host && name == container)
}

fn is_generation(about: &About, template: &TemplateName, generation: Generation) -> bool {
    matches!(about, About::Template(name, wanted)
        if name == template && *wanted == generation)
}

fn reason(entry: &Entry, position: usize, what: String) -> Reason {
    let header = &entry.header;
    Reason {
        seq: header.seq,
        time: rfc3339(header.time_unix_us),
        what,
        kind: header.kind.to_string(),
        operation: header.operation,
        actor: header.actor.label(),
        position,
    }
}

fn show(why: &Why, out: &mut Output) -> Written {
    for (position, chain) in why.chains.iter().enumerate() {
        if position > 0 {
            out.line("")?;
        }
        let from = if position > 0 { "which came from " } else { "" };
        out.inked(Ink::Head, &format!("{from}{}", chain.entity))?;
        let mut table = Table::new([
            Column::right("SEQ"),
            Column::left("TIME"),
            Column::left("WHAT IS SO"),
            Column::left("OPERATION"),
            Column::left("BY"),
        ]);
        for reason in &chain.reasons {
            table.row([
                reason.seq.into(),
                Cell::inked(Ink::Faint, &reason.time),
                Cell::from(&reason.what),
                Cell::or_dash(reason.operation.map(|id| id.short())),
                Cell::from(&reason.actor),
            ]);
        }
        out.table(&table)?;
    }
    if why.operations.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new([
        Column::left("OPERATION"),
        Column::left("ASKED"),
        Column::left("BY"),
        Column::left("INTENT"),
        Column::left("STATUS"),
    ]);
    for operation in &why.operations {
        table.row([
            Cell::from(&operation.short),
            Cell::from(&operation.first.time),
            Cell::from(&operation.by),
            Cell::from(&operation.intent),
            Cell::inked(
                summary::operation_ink(operation.status),
                operation.status.label(),
            ),
        ]);
    }
    out.table(&table)
}
