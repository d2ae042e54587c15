//! Plans: from what was asked, the inventory and the state to the steps that do it. Decides, never acts.
//!
//! A step is described by the agent's own code, so that a plan and what is carried out can't differ.

pub mod container;
pub mod dns;
pub mod host;
pub mod template;

use std::collections::BTreeMap;

use tallybook_agent::step::{Step, params};
use tallybook_events::codec;
use tallybook_events::ids::StepIndex;
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::{Action, Peer, PlannedStep};
use tallybook_events::subject::Subject;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The inventory has no such host.
    #[error("the inventory has no host {0}")]
    HostUnknown(HostName),
    /// The inventory has no such container on that host.
    #[error("the inventory has no container {container} on {host}")]
    ContainerUnknown {
        /// The host.
        host: HostName,
        /// The container.
        container: ContainerName,
    },
    /// The container is there already.
    #[error("container {container} is already on {host}")]
    ContainerExists {
        /// The host.
        host: HostName,
        /// The container.
        container: ContainerName,
    },
    /// The log knows no such container there.
    #[error("there is no container {container} on {host}")]
    ContainerMissing {
        /// The host.
        host: HostName,
        /// The container.
        container: ContainerName,
    },
    /// The container has no address and ports.
    #[error("container {host}/{container} was given no address")]
    NotAllocated {
        /// The host.
        host: HostName,
        /// The container.
        container: ContainerName,
    },
    /// The host lacks what the tool needs.
    #[error("host {0} is not installed")]
    NotInstalled(HostName),
    /// The host can't run containers yet.
    #[error("host {0} is not prepared for containers")]
    NotPrepared(HostName),
    /// There is no such template, or no such generation of it, there.
    #[error("there is no template {template}{} on {host}", generation.map_or_else(String::new, |generation| format!(" generation {generation}")))]
    TemplateMissing {
        /// The template.
        template: TemplateName,
        /// The generation that was asked for.
        generation: Option<tallybook_events::ids::Generation>,
        /// The host.
        host: HostName,
    },
    /// No host has the template, or that generation of it.
    #[error("no host has template {template}{}", generation.map_or_else(String::new, |generation| format!(" generation {generation}")))]
    TemplateNowhere {
        /// The template.
        template: TemplateName,
        /// The generation that was asked for.
        generation: Option<tallybook_events::ids::Generation>,
    },
    /// A value of the inventory is none that a host understands.
    #[error("{what} {value:?} can't be used")]
    Value {
        /// What it is.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A server of zones can't be asked by the others.
    #[error("host {0} has no IP address by which other DNS servers could reach it")]
    NoAddress(HostName),
    /// A server has its name in its own zone, and nobody could find it.
    #[error("{server} is a server of the DNS zone {zone} and has no address, seen from {view}")]
    NoServerAddress {
        /// The zone.
        zone: tallybook_agent::dns::DomainName,
        /// From where.
        view: &'static str,
        /// The server's name.
        server: tallybook_agent::dns::DomainName,
    },
    /// There is nothing to answer for.
    #[error("the inventory has no DNS zone")]
    NoZones,
    /// A record can't be in a zone's file.
    #[error("a DNS zone can't be written")]
    Record(#[from] tallybook_agent::dns::Error),
    /// A step can't be encoded.
    #[error("a step can't be planned")]
    Encode(#[from] codec::Error),
}

impl Error {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::HostUnknown(host) => Some(format!("add [hosts.{host}] to cloud.toml")),
            Error::ContainerUnknown { host, container } => Some(format!(
                "add [containers.\"{container}\"] with host = \"{host}\" to cloud.toml"
            )),
            Error::ContainerExists { host, container } => Some(format!(
                "look at it with `tallybook container show {host}/{container}`"
            )),
            Error::ContainerMissing { .. } => Some("see `tallybook container list`".to_owned()),
            Error::NotAllocated { .. } => Some("run `tallybook cloud refresh`".to_owned()),
            Error::NotInstalled(host) => Some(format!("run `tallybook host install {host}`")),
            Error::NotPrepared(host) => Some(format!("run `tallybook host prepare {host}`")),
            Error::TemplateMissing { template, host, .. } => Some(format!(
                "bring it there with `tallybook template sync {template} --to {host}`"
            )),
            Error::TemplateNowhere {
                template,
                generation: None,
            } => Some(format!(
                "make one with `tallybook template snapshot {template} --from CONTAINER`"
            )),
            Error::TemplateNowhere { template, .. } => Some(format!(
                "`tallybook template show {template}` shows its generations"
            )),
            Error::NoAddress(host) => Some(format!(
                "give an IP address as `address` of [hosts.{host}], or one as `public`"
            )),
            Error::NoServerAddress { server, view, .. } => Some(format!(
                "give {server} a record of type A or AAAA that is seen from {view}, or name a server elsewhere"
            )),
            Error::NoZones => Some("add [zones.\"example.net\"] to cloud.toml".to_owned()),
            Error::Value { .. } | Error::Record(_) | Error::Encode(_) => None,
        }
    }
}

/// A plan being made.
#[derive(Debug, Default)]
pub struct Plan {
    steps: Vec<PlannedStep>,
    last: BTreeMap<HostName, StepIndex>,
}

impl Plan {
    /// The index that the next step will have.
    pub fn next_index(&self) -> StepIndex {
        StepIndex(u32::try_from(self.steps.len()).unwrap_or(u32::MAX))
    }

    /// Adds a step behind the last one of its host.
    ///
    /// # Errors
    /// When its parameters have no encoding.
    pub fn then<S: Step>(
        &mut self,
        host: &HostName,
        subject: &Subject,
        step: &S,
    ) -> Result<StepIndex, Error> {
        let after = self.last.get(host).copied().into_iter().collect();
        self.add(host, subject, step, after, None)
    }

    /// Adds a step behind the last one of its host and behind another, as the receiving end of a transfer.
    ///
    /// # Errors
    /// When its parameters have no encoding.
    pub fn receive<S: Step>(
        &mut self,
        host: &HostName,
        subject: &Subject,
        step: &S,
        peer: Peer,
        behind: Option<StepIndex>,
    ) -> Result<StepIndex, Error> {
        let after = self.last.get(host).copied().into_iter().chain(behind);
        let after = after.collect();
        self.add(host, subject, step, after, Some(peer))
    }

    /// Adds a step behind the last one of its host and behind another host's.
    ///
    /// # Errors
    /// When its parameters have no encoding.
    pub fn behind<S: Step>(
        &mut self,
        host: &HostName,
        subject: &Subject,
        step: &S,
        other: StepIndex,
    ) -> Result<StepIndex, Error> {
        let after = self.last.get(host).copied().into_iter().chain([other]);
        let after = after.collect();
        self.add(host, subject, step, after, None)
    }

    fn add<S: Step>(
        &mut self,
        host: &HostName,
        subject: &Subject,
        step: &S,
        after: Vec<StepIndex>,
        peer: Option<Peer>,
    ) -> Result<StepIndex, Error> {
        let index = self.next_index();
        self.steps.push(PlannedStep {
            index,
            host: host.clone(),
            subject: subject.clone(),
            kind: S::KIND.to_owned(),
            params: params(step)?,
            summary: step.summary(),
            action: Action::Forward,
            reversal: step.reversal(),
            once: S::ONCE,
            after,
            peer,
        });
        self.last.insert(host.clone(), index);
        Ok(index)
    }

    /// The steps.
    pub fn finish(self) -> Vec<PlannedStep> {
        self.steps
    }
}

/// A value of the inventory as the agent's own type.
fn value<T: TryFrom<String>>(what: &'static str, text: &str) -> Result<T, Error> {
    T::try_from(text.to_owned()).map_err(|_| Error::Value {
        what,
        value: text.to_owned(),
    })
}
