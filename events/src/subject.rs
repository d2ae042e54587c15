//! What an event is about. Every event has exactly one subject and links to the previous one of the same subject.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{ContainerName, HostName, TemplateName};

/// A text that names no subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The part before `:` is none of ours.
    #[error("{0:?} is not a subject; expected cloud, host:H, container:H/C or template:T")]
    Unknown(String),
    /// The part after `:` is not a name.
    #[error("in subject {text:?}")]
    Name {
        /// The text as given.
        text: String,
        /// What is wrong with the name.
        source: crate::name::Error,
    },
}

/// The thing an event is about.
///
/// Stored as text: `cloud`, `host:cn1`, `container:cn1/web`, `template:base`. A container is one of its host's:
/// the same name on two hosts is two subjects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Subject {
    /// The cloud as a whole: inventory, allocations, the log itself.
    Cloud,
    /// A host.
    Host(HostName),
    /// A container on its host.
    Container(HostName, ContainerName),
    /// A template, with all its generations, wherever they are.
    Template(TemplateName),
}

impl Subject {
    /// The host this subject lives on, when it lives on one.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Subject::Host(host) | Subject::Container(host, _) => Some(host),
            Subject::Cloud | Subject::Template(_) => None,
        }
    }

    /// The container, when the subject is one.
    pub fn container(&self) -> Option<&ContainerName> {
        match self {
            Subject::Container(_, container) => Some(container),
            Subject::Cloud | Subject::Host(_) | Subject::Template(_) => None,
        }
    }

    /// The template, when the subject is one.
    pub fn template(&self) -> Option<&TemplateName> {
        match self {
            Subject::Template(template) => Some(template),
            Subject::Cloud | Subject::Host(_) | Subject::Container(..) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Cloud => f.pad("cloud"),
            Subject::Host(host) => f.pad(&format!("host:{host}")),
            Subject::Container(host, container) => f.pad(&format!("container:{host}/{container}")),
            Subject::Template(template) => f.pad(&format!("template:{template}")),
        }
    }
}

impl FromStr for Subject {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let name_error = |source| Error::Name {
            text: text.to_owned(),
            source,
        };
        if text == "cloud" {
            return Ok(Subject::Cloud);
        }
        match text.split_once(':') {
            Some(("host", host)) => HostName::new(host).map(Subject::Host).map_err(name_error),
            Some(("container", rest)) => {
                let (host, container) = rest
                    .split_once('/')
                    .ok_or_else(|| Error::Unknown(text.to_owned()))?;
                Ok(Subject::Container(
                    HostName::new(host).map_err(name_error)?,
                    ContainerName::new(container).map_err(name_error)?,
                ))
            }
            Some(("template", template)) => TemplateName::new(template)
                .map(Subject::Template)
                .map_err(name_error),
            _ => Err(Error::Unknown(text.to_owned())),
        }
    }
}

/// Whether a text is a subject: whether it would parse, without making one.
pub fn is_subject(text: &str) -> bool {
    match text.split_once(':') {
        None => text == "cloud",
        Some(("host", host)) => HostName::is_name(host),
        Some(("container", rest)) => rest.split_once('/').is_some_and(|(host, container)| {
            HostName::is_name(host) && ContainerName::is_name(container)
        }),
        Some(("template", template)) => TemplateName::is_name(template),
        Some(_) => false,
    }
}

impl TryFrom<String> for Subject {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> String {
        subject.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            "cloud",
            "host:cn1",
            "container:cn1/d.foo.net",
            "template:base",
        ] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
            assert!(is_subject(text));
        }
        for bad in [
            "",
            "clouds",
            "host:",
            "host:a/b",
            "container:a",
            "container:a/b/c",
            "x:y",
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad:?} was taken");
            assert!(!is_subject(bad), "{bad:?} was taken");
        }
    }
}
