//! What a shell completes: commands and options as clap has them, and names as the log and the inventory have them now.
//!
//! An argument is completed by its type, so a new command need not say anything. Where an inventory has a mistake or a log is
//! not there, there are fewer names and no message: nobody asked for anything yet.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Duration;

use clap::FromArgMatches;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use tallybook_events::event::KINDS;
use tallybook_events::ids::OperationId;
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_replay::state::{OperationSummary, State};

use super::argument::{ContainerArgument, EntityArgument, OperationArgument};
use super::start::context;
use super::{Context, Options, container, messages};
use crate::cloud::Inventory;
use crate::cloud::dns::DomainName;
use crate::log::Open;

/// The variable by which a shell asks, and says which it is.
pub(super) const ASKED_BY: &str = "TALLYBOOK_COMPLETE";
/// Whoever presses a key waits no longer for the log, nor for its end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many operations are offered, the newest.
const OPERATIONS: usize = 100;

/// Names, each with a word about it.
type Names = BTreeMap<String, String>;
type Operations = BTreeMap<OperationId, OperationSummary>;

/// What kind of name an argument takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
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
    Zone,
}

/// Commands that are about operations that are not over.
const OPEN_ONLY: [&str; 6] = ["abandon", "adopt", "attach", "resume", "retry-undo", "stop"];

impl Naming {
    fn of(command: &str, argument: &clap::Arg) -> Option<Self> {
        let parsed = argument.get_value_parser().type_id();
        let is_parsed_to = |wanted: TypeId| parsed == wanted;
        if is_parsed_to(TypeId::of::<HostName>()) {
            Some(Naming::Host)
        } else if is_parsed_to(TypeId::of::<ContainerArgument>()) {
            Some(Naming::Container)
        } else if is_parsed_to(TypeId::of::<ContainerName>()) {
            // The new name of a copy is nobody's.
            (argument.get_id() == "name").then_some(Naming::Planned)
        } else if is_parsed_to(TypeId::of::<TemplateName>()) {
            Some(Naming::Template)
        } else if is_parsed_to(TypeId::of::<container::From>()) {
            Some(Naming::Source)
        } else if is_parsed_to(TypeId::of::<EntityArgument>()) {
            Some(Naming::Entity)
        } else if is_parsed_to(TypeId::of::<OperationArgument>()) {
            match OPEN_ONLY.contains(&command) {
                true => Some(Naming::OpenOperation),
                false => Some(Naming::Operation),
            }
        } else if is_parsed_to(TypeId::of::<DomainName>()) {
            Some(Naming::Zone)
        } else if argument.get_id() == "kind" {
            Some(Naming::Kind)
        } else if argument.get_id() == "limit" && is_parsed_to(TypeId::of::<String>()) {
            Some(Naming::Limit)
        } else {
            None
        }
    }

    /// What may stand where a word has begun so, in a line of these words.
    fn candidates(self, line: &[OsString], current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(current) = current.to_str() else {
            return Vec::new();
        };
        let known = match self {
            Naming::Kind => Known::default(),
            _ => Known::read(self, line).unwrap_or_default(),
        };
        // Of a limit, the last term is written.
        let (before, begun) = match self {
            Naming::Limit => {
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

/// The command line, with names for whoever completes it: `arguments` are all that this process was given.
pub(super) fn command(arguments: &[OsString]) -> clap::Command {
    let line = arguments.iter().skip_while(|word| *word != "--").skip(1);
    with_names(super::command(), &line.cloned().collect())
}

fn with_names(command: clap::Command, line: &Arc<[OsString]>) -> clap::Command {
    let of = command.get_name().to_owned();
    command
        .mut_args(|argument| match Naming::of(&of, &argument) {
            Some(naming) => {
                let line = Arc::clone(line);
                let names = move |current: &OsStr| naming.candidates(&line, current);
                argument.add(ArgValueCompleter::new(names))
            }
            None => argument,
        })
        .mut_subcommands(|sub| with_names(sub, line))
}

/// What there is to be named.
#[derive(Debug, Default)]
struct Known {
    state: State,
    inventory: Option<Inventory>,
    operations: Operations,
}

impl Known {
    /// Looks at what there is, where the line says that the log and the inventory are; `None` where it can't be understood.
    fn read(wanted: Naming, line: &[OsString]) -> Option<Self> {
        // It is not whole yet.
        let matches = super::command().ignore_errors(true);
        let matches = matches.try_get_matches_from(line).ok()?;
        let options = Options::from_arg_matches(&matches).ok()?;
        // What had to be mended is said even here.
        messages::watch(&options, false).ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().ok()?;
        let known = runtime.block_on(async {
            let context = context(options);
            let inventory = context.load_inventory().ok();
            let read = tokio::time::timeout(PATIENCE, read_log(&context, wanted));
            let (state, operations) = read.await.ok().flatten().unwrap_or_default();
            let _given_up = tokio::time::timeout(PATIENCE, context.close()).await;
            Known {
                state,
                inventory: inventory.map(|loaded| loaded.inventory),
                operations,
            }
        });
        runtime.shutdown_background();
        Some(known)
    }

    fn names(&self, wanted: Naming, begun: &str) -> Names {
        match wanted {
            Naming::Host => self.hosts(),
            Naming::Container => self.containers(begun),
            Naming::Planned => self.planned(),
            Naming::Template => self.templates(),
            Naming::Source => merged([self.containers(begun), self.templates()]),
            Naming::Entity => merged([
                self.planned(),
                self.containers(begun),
                self.hosts(),
                self.templates(),
            ]),
            Naming::Operation => self.operations(|_| true),
            Naming::OpenOperation => self.operations(OperationSummary::is_open),
            Naming::Kind => kinds(),
            Naming::Limit => merged([self.planned(), self.hosts(), self.groups(begun)]),
            Naming::Zone => self.zones(),
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

    fn zones(&self) -> Names {
        let zones = self.inventory.iter().flat_map(|it| &it.zones);
        let about = |alias: &Option<DomainName>| match alias {
            Some(alias) => format!("zone, alias of {alias}"),
            None => "zone".to_owned(),
        };
        zones
            .map(|(name, zone)| (name.to_string(), about(&zone.alias)))
            .collect()
    }

    /// With an `@` where one was written: some shells take that for the end of a word.
    fn groups(&self, begun: &str) -> Names {
        let groups = self.inventory.iter().flat_map(|it| &it.groups);
        let about = |count: usize| match count {
            1 => "group of 1 host".to_owned(),
            _ => format!("group of {count} hosts"),
        };
        let sign = if begun.starts_with('@') { "@" } else { "" };
        groups
            .map(|(name, group)| (format!("{sign}{name}"), about(group.hosts.len())))
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

/// The state of the log, and its newest operations where they are wanted. Nothing of it is mended that need not be, and no
/// database is made anew.
async fn read_log(context: &Context, wanted: Naming) -> Option<(State, Operations)> {
    let log = context.open_log(Open::AsItIs).await.ok()?;
    let operations = match wanted {
        Naming::Operation | Naming::OpenOperation => log.operations(Some(OPERATIONS)).await.ok()?,
        Naming::Host
        | Naming::Container
        | Naming::Planned
        | Naming::Template
        | Naming::Source
        | Naming::Entity
        | Naming::Kind
        | Naming::Limit
        | Naming::Zone => Operations::default(),
    };
    Some((log.state().await.ok()?, operations))
}
