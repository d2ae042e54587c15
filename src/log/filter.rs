//! Which events a reader wants: terms that the index answers, and bounds that are checked on each.

use serde::{Deserialize, Serialize};
use tallybook_events::header::Header;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::subject::Subject;

use crate::store::{Terms, has_terms, operation_term};

/// A choice of events. Everything that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// About this host or a container of it.
    pub host: Option<HostName>,
    /// About a container of this name.
    pub container: Option<ContainerName>,
    /// About this template.
    pub template: Option<TemplateName>,
    /// About exactly this.
    pub subject: Option<Subject>,
    /// Of this operation.
    pub operation: Option<OperationId>,
    /// Of this kind (`step.started`) or of kinds that begin so (`step`).
    pub kind: Option<String>,
    /// Made to happen by this actor, by its label.
    pub actor: Option<String>,
    /// Not before this position.
    pub from: Option<Seq>,
    /// Not behind this position.
    pub to: Option<Seq>,
    /// Not before this time, in microseconds since 1970.
    pub since_unix_us: Option<u64>,
    /// Not after this time, in microseconds since 1970.
    pub until_unix_us: Option<u64>,
    /// At most so many of those.
    pub limit: Option<Limit>,
}

/// How many events, and from which end of the log on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// The newest ones.
    Newest(usize),
    /// The oldest ones.
    Oldest(usize),
}

impl Filter {
    /// The events of an operation.
    pub fn of_operation(id: OperationId) -> Self {
        Filter {
            operation: Some(id),
            ..Filter::default()
        }
    }

    /// One event.
    pub fn at(seq: Seq) -> Self {
        Filter {
            from: Some(seq),
            to: Some(seq),
            ..Filter::default()
        }
    }

    /// The terms that must all be on an event.
    pub(crate) fn terms(&self) -> Terms {
        let mut terms = Terms::new();
        let mut of_operation = None;
        let mut add = |class: u8, value: &[u8]| {
            let mut term = vec![class];
            term.extend_from_slice(value);
            terms.insert(term);
        };
        if let Some(host) = &self.host {
            add(b'h', host.as_str().as_bytes());
        }
        if let Some(container) = &self.container {
            add(b'c', container.as_str().as_bytes());
        }
        if let Some(template) = &self.template {
            add(b't', template.as_str().as_bytes());
        }
        if let Some(subject) = &self.subject {
            add(b's', subject.to_string().as_bytes());
        }
        if let Some(operation) = &self.operation {
            of_operation = Some(operation_term(operation));
        }
        if let Some(kind) = &self.kind {
            add(b'k', kind.as_bytes());
        }
        if let Some(actor) = &self.actor {
            add(b'a', actor.as_bytes());
        }
        terms.extend(of_operation);
        terms
    }

    /// Whether an event is wanted.
    pub fn takes(&self, header: &Header) -> bool {
        self.within(header) && has_terms(header, self.terms())
    }

    /// Whether an event is within the bounds.
    pub(crate) fn within(&self, header: &Header) -> bool {
        self.from.is_none_or(|from| header.seq >= from)
            && self.to.is_none_or(|to| header.seq <= to)
            && self
                .since_unix_us
                .is_none_or(|since| header.time_unix_us >= since)
            && self
                .until_unix_us
                .is_none_or(|until| header.time_unix_us <= until)
    }
}
