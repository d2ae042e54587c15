//! Names to things: what an operator wrote, held against what there is. Never guesses; a near miss is a hint.

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::name::{HostName, TemplateName};
use tallybook_replay::state::State;

use super::argument::{ContainerArgument, EntityArgument, OperationArgument};
use super::error::Error;
use crate::cloud::allocate::Key;
use crate::log::Log;
use crate::render::json::{self, HostView};

/// The known name nearest to the given one, when it is near enough to be a slip.
pub(super) fn nearest<T: AsRef<str>>(
    given: &str,
    known: impl IntoIterator<Item = T>,
) -> Option<String> {
    let distance_max = (given.chars().count() / 3).max(1);
    let plain = given.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            let distance = strsim::damerau_levenshtein(&plain, &name.as_ref().to_lowercase());
            (distance, name.as_ref().to_owned())
        })
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, name)| name)
}

/// The container that is meant, of those known.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn container<'a>(
    known: impl IntoIterator<Item = &'a Key>,
    argument: &ContainerArgument,
    place: &str,
) -> Result<Key, Error> {
    let known: Vec<&Key> = known.into_iter().collect();
    let mut found: Vec<&Key> = known
        .iter()
        .copied()
        .filter(|(host, name)| {
            *name == argument.name && argument.host.as_ref().is_none_or(|wanted| wanted == host)
        })
        .collect();
    found.dedup();
    match found.as_slice() {
        [key] => Ok((*key).clone()),
        [] => {
            let same_name = known.iter().find(|(_, name)| *name == argument.name);
            let near = match (same_name, &argument.host) {
                (Some((host, name)), _) => Some(format!("{host}/{name}")),
                (None, Some(_)) => nearest(
                    &argument.to_string(),
                    known.iter().map(|(host, name)| format!("{host}/{name}")),
                ),
                (None, None) => nearest(
                    argument.name.as_str(),
                    known.iter().map(|(_, name)| name.as_str()),
                ),
            };
            Err(Error::Unknown {
                what: "container",
                name: argument.to_string(),
                place: Some(place.to_owned()),
                nearest: near,
                hint: Some("`tallybook container list` shows all"),
            })
        }
        several => Err(Error::Ambiguous {
            name: argument.to_string(),
            candidates: several
                .iter()
                .map(|(host, name)| format!("{host}/{name}"))
                .collect(),
        }),
    }
}

/// The operation that is meant.
///
/// # Errors
/// When there is none, or more than one.
pub(super) async fn operation(
    log: &Log,
    argument: &OperationArgument,
) -> Result<OperationId, Error> {
    /// Among how many of the newest a slip is looked for.
    const NEAR: usize = 200;
    let found: Vec<OperationId> = match argument {
        OperationArgument::Id(id) => log.summary(*id).await?.map(|_| *id).into_iter().collect(),
        OperationArgument::Short(start) => log.operations_like(start).await?.into_iter().collect(),
    };
    match found.as_slice() {
        [id] => Ok(*id),
        [] => {
            let known = log.operations(Some(NEAR)).await?;
            Err(Error::Unknown {
                what: "operation",
                name: argument.to_string(),
                place: Some("in the log".to_owned()),
                nearest: nearest(&argument.to_string(), known.keys().map(OperationId::short)),
                hint: Some("`tallybook op list --all` shows all"),
            })
        }
        several => Err(Error::Ambiguous {
            name: argument.to_string(),
            candidates: several.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// A host that the log knows.
///
/// # Errors
/// When it knows none of that name.
pub(super) fn host(state: &State, name: &HostName) -> Result<HostView, Error> {
    let mut hosts = json::hosts(state).into_iter();
    hosts
        .find(|host| host.name == *name)
        .ok_or_else(|| Error::Unknown {
            what: "host",
            name: name.to_string(),
            place: Some("in the log".to_owned()),
            nearest: nearest(name.as_str(), state.hosts.keys().map(HostName::as_str)),
            hint: Some(
                "`tallybook host list` shows all; `tallybook cloud show` those of the inventory",
            ),
        })
}

/// A template that the log knows.
///
/// # Errors
/// When it knows none of that name.
pub(super) fn template(state: &State, name: &TemplateName) -> Result<(), Error> {
    if state.newest_generation(name, None).is_some() {
        return Ok(());
    }
    Err(Error::Unknown {
        what: "template",
        name: name.to_string(),
        place: Some("in the log".to_owned()),
        nearest: nearest(
            name.as_str(),
            state.templates.keys().map(|(name, _)| name.as_str()),
        ),
        hint: Some("`tallybook template list` shows all"),
    })
}

/// A host, a container or a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entity {
    /// A host.
    Host(HostName),
    /// A container.
    Container(Key),
    /// A template, all its generations.
    Template(TemplateName),
}

impl std::fmt::Display for Entity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entity::Host(host) => write!(f, "host:{host}"),
            Entity::Container((host, container)) => write!(f, "container:{host}/{container}"),
            Entity::Template(template) => write!(f, "template:{template}"),
        }
    }
}

/// The host, container or template that is meant; `also` are containers that are not in the state any more.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn entity(
    state: &State,
    also: &[Key],
    argument: &EntityArgument,
) -> Result<Entity, Error> {
    let mut found = Vec::new();
    if let Some(host) = &argument.host
        && state.hosts.contains_key(host)
    {
        found.push(Entity::Host(host.clone()));
    }
    let containers = || state.containers.keys().chain(also);
    if let Some(wanted) = &argument.container {
        match container(containers(), wanted, "in the log") {
            Ok(key) => found.push(Entity::Container(key)),
            Err(Error::Ambiguous { .. }) => found.extend(
                containers()
                    .filter(|(_, name)| *name == wanted.name)
                    .map(|key| Entity::Container(key.clone())),
            ),
            Err(_) => {}
        }
    }
    if let Some(template) = &argument.template
        && state.newest_generation(template, None).is_some()
    {
        found.push(Entity::Template(template.clone()));
    }
    found.dedup();
    if found.len() > 1 {
        return Err(Error::Ambiguous {
            name: argument.text.clone(),
            candidates: found.iter().map(ToString::to_string).collect(),
        });
    }
    found.pop().ok_or_else(|| {
        let hosts = state.hosts.keys().map(|host| host.to_string());
        let templates = state.templates.keys().map(|(name, _)| name.to_string());
        let names = containers().map(|(_, name)| name.to_string());
        let whole = containers().map(|(host, name)| format!("{host}/{name}"));
        Error::Unknown {
            what: "host, container or template",
            name: argument.text.clone(),
            place: Some("in the log".to_owned()),
            nearest: nearest(
                &argument.text,
                hosts.chain(templates).chain(names).chain(whole),
            ),
            hint: Some("`tallybook state` shows all"),
        }
    })
}

/// An event that is there.
///
/// # Errors
/// When the log ends before it.
pub(super) const fn event(state: &State, seq: Seq) -> Result<Seq, Error> {
    if seq.0 <= state.head.seq.0 {
        Ok(seq)
    } else {
        Err(Error::NoEvent {
            seq,
            head: state.head.seq,
        })
    }
}
