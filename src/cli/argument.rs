//! What names things on the command line, checked where it enters.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::name::{self, ContainerName, HostName, TemplateName};

use crate::render::time::{self, Time};

/// A container: `NAME`, or `HOST/NAME` where two hosts have one of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerArgument {
    /// Its host, when given.
    pub host: Option<HostName>,
    /// Its name.
    pub name: ContainerName,
}

impl FromStr for ContainerArgument {
    type Err = name::Error;

    fn from_str(text: &str) -> Result<Self, name::Error> {
        Ok(match text.split_once('/') {
            Some((host, name)) => ContainerArgument {
                host: Some(host.parse()?),
                name: name.parse()?,
            },
            None => ContainerArgument {
                host: None,
                name: text.parse()?,
            },
        })
    }
}

impl fmt::Display for ContainerArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}/{}", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// A text that names no operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an operation's id, as `tallybook op list` shows it, or at least its first 4 digits"
)]
pub struct OperationError;

/// An operation: its id, its short id, or how that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationArgument {
    /// Its whole id.
    Id(OperationId),
    /// How its short id begins.
    Short(String),
}

impl FromStr for OperationArgument {
    type Err = OperationError;

    fn from_str(text: &str) -> Result<Self, OperationError> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits && (4..=12).contains(&text.len()) {
            return Ok(OperationArgument::Short(text.to_ascii_lowercase()));
        }
        text.parse()
            .map(OperationArgument::Id)
            .map_err(|_| OperationError)
    }
}

impl fmt::Display for OperationArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OperationArgument::Id(id) => id.fmt(f),
            OperationArgument::Short(short) => short.fmt(f),
        }
    }
}

/// A host, a container or a template: its name, or with `host:`, `container:` or `template:` before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityArgument {
    /// As given.
    pub text: String,
    /// The host it may be.
    pub host: Option<HostName>,
    /// The container it may be.
    pub container: Option<ContainerArgument>,
    /// The template it may be.
    pub template: Option<TemplateName>,
}

impl FromStr for EntityArgument {
    type Err = name::Error;

    fn from_str(text: &str) -> Result<Self, name::Error> {
        let mut entity = EntityArgument {
            text: text.to_owned(),
            host: None,
            container: None,
            template: None,
        };
        match text.split_once(':') {
            Some(("host", name)) => entity.host = Some(name.parse()?),
            Some(("container", name)) => entity.container = Some(name.parse()?),
            Some(("template", name)) => entity.template = Some(name.parse()?),
            Some(_) | None => {
                // A host's name may be longer than the others, and only a container's may hold a slash.
                entity.host = text.parse().ok();
                entity.template = text.parse().ok();
                entity.container = match text.parse() {
                    Ok(container) => Some(container),
                    Err(error) if entity.host.is_none() => return Err(error),
                    Err(_) => None,
                };
            }
        }
        Ok(entity)
    }
}

/// A text that names no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the number of an event, from 1, as `tallybook log` shows it")]
pub(super) struct SeqError;

/// Reads the position of an event.
///
/// # Errors
/// When it is no number, or 0.
pub(super) fn seq(text: &str) -> Result<Seq, SeqError> {
    match text.strip_prefix('#').unwrap_or(text).parse() {
        Ok(number) if number > 0 => Ok(Seq(number)),
        Ok(_) | Err(_) => Err(SeqError),
    }
}

/// A text that is neither the number of an event nor a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the number of an event; or {source}", source = .0.to_string().trim_start_matches("expected "))]
pub(super) struct PointError(time::Error);

/// A point of the log: after an event, or at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// After this event.
    Seq(Seq),
    /// At this time.
    Time(Time),
}

impl FromStr for Point {
    type Err = PointError;

    fn from_str(text: &str) -> Result<Self, PointError> {
        match seq(text) {
            Ok(seq) => Ok(Point::Seq(seq)),
            Err(_) => text.parse().map(Point::Time).map_err(PointError),
        }
    }
}

/// The hosts, each once, in the order given.
pub(super) fn distinct(hosts: Vec<HostName>) -> Vec<HostName> {
    let mut seen = BTreeSet::new();
    hosts
        .into_iter()
        .filter(|host| seen.insert(host.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_with_or_without_their_host() {
        let web: ContainerArgument = "cn1/web".parse().unwrap();
        assert_eq!(web.host.as_ref().unwrap().as_str(), "cn1");
        assert_eq!(web.to_string(), "cn1/web");
        assert_eq!("web".parse::<ContainerArgument>().unwrap().host, None);
        for bad in ["", "/", "a/", "/a", "a/b/c", "a b"] {
            assert!(
                bad.parse::<ContainerArgument>().is_err(),
                "{bad:?} was taken"
            );
        }
    }

    #[test]
    fn operations_are_named_by_any_id() {
        let whole = "01990000-0000-7000-8000-0123456789ab";
        assert!(matches!(
            whole.parse(),
            Ok(OperationArgument::Id(id)) if id.to_string() == whole
        ));
        assert_eq!(
            "0123ABCD".parse(),
            Ok(OperationArgument::Short("0123abcd".to_owned()))
        );
        for bad in ["", "abc", "wxyz", "0123456789abc"] {
            assert!(
                bad.parse::<OperationArgument>().is_err(),
                "{bad:?} was taken"
            );
        }
    }

    #[test]
    fn points_are_events_or_times() {
        assert_eq!("7".parse(), Ok(Point::Seq(Seq(7))));
        assert_eq!("#7".parse(), Ok(Point::Seq(Seq(7))));
        assert!(matches!("2026-11-22".parse(), Ok(Point::Time(_))));
        assert!("0".parse::<Point>().is_err());
        assert!("soon".parse::<Point>().is_err());
    }

    #[test]
    fn an_entity_may_be_several_things_until_it_is_looked_up() {
        let entity: EntityArgument = "web".parse().unwrap();
        assert!(entity.host.is_some() && entity.container.is_some() && entity.template.is_some());
        let entity: EntityArgument = "cn1/web".parse().unwrap();
        assert!(entity.host.is_none() && entity.container.is_some() && entity.template.is_none());
        let entity: EntityArgument = "template:web".parse().unwrap();
        assert!(entity.host.is_none() && entity.container.is_none() && entity.template.is_some());
        assert!("a b".parse::<EntityArgument>().is_err());
    }
}
