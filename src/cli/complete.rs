//! What a shell completes: commands and options as clap has them, and names as the log and the inventory have them now.
//!
//! An argument is completed by its type, so a new command need not say anything. Whatever stands in the way, an inventory
//! with a mistake or a log that is not there, there are fewer names and no message: nobody asked for anything yet.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::FromArgMatches;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use tallybook_events::event::KINDS;
use tallybook_events::ids::OperationId;
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_replay::state::{OperationSummary, State};

use super::Options;
use super::argument::{ContainerArgument, EntityArgument, OperationArgument};
use super::container::From;
use super::start::context;
use crate::cloud::Inventory;
use crate::log::Open;

/// The variable by which a shell asks, and says which it is.
pub(super) const ASKED_BY: &str = "TALLYBOOK_COMPLETE";
/// Whoever presses a key waits no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many operations are offered, the newest.
const OPERATIONS: usize = 100;

/// Names, each with a word about it.
type Names = BTreeMap<String, String>;

/// What kind of name an argument takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Host,
    Container,
    /// One that is yet to be made.
    Planned,
    Template,
    /// What a container is made from.
    Source,
    Entity,
    Operation,
    /// One that is not over.
    OpenOperation,
    Kind,
    Limit,
}

/// Commands that are about operations that are not over.
const OF_OPEN: [&str; 6] = ["abandon", "adopt", "attach", "resume", "retry-undo", "stop"];

impl Sort {
    fn of(command: &str, argument: &clap::Arg) -> Option<Self> {
        let parsed = argument.get_value_parser().type_id();
        let is = |sort: TypeId| parsed == sort;
        if is(TypeId::of::<HostName>()) {
            Some(Sort::Host)
        } else if is(TypeId::of::<ContainerArgument>()) {
            Some(Sort::Container)
        } else if is(TypeId::of::<ContainerName>()) {
            // The new name of a copy is nobody's.
            (argument.get_id() == "name").then_some(Sort::Planned)
        } else if is(TypeId::of::<TemplateName>()) {
            Some(Sort::Template)
        } else if is(TypeId::of::<From>()) {
            Some(Sort::Source)
        } else if is(TypeId::of::<EntityArgument>()) {
            Some(Sort::Entity)
        } else if is(TypeId::of::<OperationArgument>()) {
            match OF_OPEN.contains(&command) {
                true => Some(Sort::OpenOperation),
                false => Some(Sort::Operation),
            }
        } else if argument.get_id() == "kind" {
            Some(Sort::Kind)
        } else if argument.get_id() == "limit" && is(TypeId::of::<String>()) {
            Some(Sort::Limit)
        } else {
            None
        }
    }

    /// What may stand where a word has begun so.
    fn candidates(self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(current) = current.to_str() else {
            return Vec::new();
        };
        let known = match self {
            Sort::Kind => Known::default(),
            _ => look().unwrap_or_default(),
        };
        // Of a limit, the last term is written.
        let (before, begun) = match self {
            Sort::Limit => {
                let split = |c: char| c == ',' || c == '!' || c.is_whitespace();
                current.split_at(current.rfind(split).map_or(0, |at| at + 1))
            }
            _ => ("", current),
        };
        let names = known.names(self, begun);
        let names = names
            .into_iter()
            .filter(|(name, _)| name.starts_with(begun));
        names
            .map(|(name, about)| {
                let about = (!about.is_empty()).then(|| about.into());
                CompletionCandidate::new(format!("{before}{name}")).help(about)
            })
            .collect()
    }
}

/// The command line, with names for whoever completes it.
pub(super) fn command() -> clap::Command {
    with_names(super::command())
}

fn with_names(command: clap::Command) -> clap::Command {
    let of = command.get_name().to_owned();
    command
        .mut_args(|argument| match Sort::of(&of, &argument) {
            Some(sort) => {
                let names = move |current: &OsStr| sort.candidates(current);
                argument.add(ArgValueCompleter::new(names))
            }
            None => argument,
        })
        .mut_subcommands(with_names)
}

/// What there is to be named.
#[derive(Debug, Default)]
struct Known {
    state: State,
    inventory: Option<Inventory>,
    operations: BTreeMap<OperationId, OperationSummary>,
}

impl Known {
    fn names(&self, sort: Sort, begun: &str) -> Names {
        match sort {
            Sort::Host => self.hosts(),
            Sort::Container => self.containers(begun),
            Sort::Planned => self.planned(),
            Sort::Template => self.templates(),
            Sort::Source => merged([self.containers(begun), self.templates()]),
            Sort::Entity => merged([
                self.planned(),
                self.containers(begun),
                self.hosts(),
                self.templates(),
            ]),
            Sort::Operation => self.operations(|_| true),
            Sort::OpenOperation => self.operations(OperationSummary::is_open),
            Sort::Kind => kinds(),
            Sort::Limit => merged([self.planned(), self.hosts(), self.groups()]),
        }
    }

    fn hosts(&self) -> Names {
        let known = self.state.hosts.keys();
        let mut names: Names = known
            .map(|host| (host.to_string(), "host".to_owned()))
            .collect();
        let planned = self.inventory.iter().flat_map(|it| &it.hosts);
        names.extend(planned.map(|(host, it)| (host.to_string(), format!("host, {}", it.address))));
        names
    }

    /// With its host where that was begun to be written, or where it takes one to tell two apart.
    fn containers(&self, begun: &str) -> Names {
        let known = &self.state.containers;
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<&ContainerName> = known
            .keys()
            .filter(|(_, name)| !seen.insert(name))
            .map(|(_, name)| name)
            .collect();
        let named = known.iter().map(|((host, name), container)| {
            let is_whole = begun.contains('/') || twice.contains(name);
            let shown = match is_whole {
                true => format!("{host}/{name}"),
                false => name.to_string(),
            };
            let is = if container.running {
                "running"
            } else {
                "stopped"
            };
            (shown, format!("container on {host}, {is}"))
        });
        named.collect()
    }

    /// Containers of the inventory that are not there.
    fn planned(&self) -> Names {
        let planned = self.inventory.iter().flat_map(|it| &it.containers);
        let new = planned.filter(|(name, it)| {
            let key = (it.host.clone(), (*name).clone());
            !self.state.containers.contains_key(&key)
        });
        new.map(|(name, it)| (name.to_string(), format!("container for {}", it.host)))
            .collect()
    }

    fn templates(&self) -> Names {
        let planned = self.inventory.iter().flat_map(|it| it.templates.keys());
        let there = self.state.templates.keys().map(|(name, _)| name);
        planned
            .chain(there)
            .map(|name| {
                let newest = self.state.newest_generation(name, None);
                let about = match newest {
                    Some((generation, _)) => format!("template, generation {generation}"),
                    None => "template, not made yet".to_owned(),
                };
                (name.to_string(), about)
            })
            .collect()
    }

    fn groups(&self) -> Names {
        let groups = self.inventory.iter().flat_map(|it| &it.groups);
        let about = |count: usize| match count {
            1 => "group of 1 host".to_owned(),
            _ => format!("group of {count} hosts"),
        };
        groups
            .map(|(name, group)| (format!("@{name}"), about(group.hosts.len())))
            .collect()
    }

    fn operations(&self, wanted: impl Fn(&OperationSummary) -> bool) -> Names {
        let wanted = self.operations.iter().filter(|(_, it)| wanted(it));
        wanted
            .map(|(id, it)| {
                let status = it.status.label();
                (id.short(), format!("{status}: {}", it.intent.summary()))
            })
            .collect()
    }
}

/// A name that is several things is said to be the last of them.
fn merged<const N: usize>(names: [Names; N]) -> Names {
    names.into_iter().flatten().collect()
}

/// The kinds of events, and their nouns.
fn kinds() -> Names {
    let kinds = KINDS.iter().map(|(kind, _)| *kind);
    let nouns = kinds.clone().filter_map(|kind| kind.split('.').next());
    kinds
        .chain(nouns)
        .map(|kind| (kind.to_owned(), String::new()))
        .collect()
}

/// Looks at what there is, where the command line that is being written says; `None` where that can't be.
fn look() -> Option<Known> {
    let words: Vec<OsString> = std::env::args_os()
        .skip_while(|word| word != "--")
        .skip(1)
        .collect();
    // It is not whole yet.
    let matches = super::command()
        .ignore_errors(true)
        .try_get_matches_from(words)
        .ok()?;
    let options = Options::from_arg_matches(&matches).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let seen = runtime.block_on(async {
        let context = context(options);
        let inventory = context.load_inventory().ok().map(|loaded| loaded.inventory);
        let read = async {
            let log = context.open_log(Open::Existing).await.ok()?;
            let operations = log.operations(Some(OPERATIONS)).await.ok()?;
            Some((log.state().await.ok()?, operations))
        };
        let read = tokio::time::timeout(PATIENCE, read).await.ok().flatten();
        context.close().await;
        let (state, operations) = read.unwrap_or_default();
        Known {
            state,
            inventory,
            operations,
        }
    });
    // Whoever presses a key does not wait for what was given up.
    runtime.shutdown_background();
    Some(seen)
}
