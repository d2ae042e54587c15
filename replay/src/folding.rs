//! What a fold takes of an event, read from its stored bytes: made in any thread, folded in order by one.

use tallybook_events::actor::Actor;
use tallybook_events::event::{self, Event};
use tallybook_events::header::{self, HeaderView};
use tallybook_events::ids::{Epoch, Hash, LogId, OperationId, Seq};
use tallybook_events::record::{Body, Frame, SALT_ERASED};
use tallybook_events::subject::Subject;

use crate::operation::OperationStatus;
use crate::state::INVENTORY_RECORDED;

/// What a fold takes of an event, read from its bytes. What no state depends on is not decoded.
#[derive(Debug, Clone)]
pub struct Folding {
    pub(crate) log: LogId,
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
    pub(crate) hash: Hash,
    pub(crate) time_unix_us: u64,
    pub(crate) operation: Option<OperationId>,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// It is enough that it happened.
    Passed(Option<OperationStatus>),
    /// Of a kind that is not known here.
    Unknown,
    /// Its payload is erased.
    Erased { is_inventory: bool },
    Happened {
        event: Box<Event>,
        subject: Option<Subject>,
        actor: Option<Actor>,
    },
}

/// An event that can't be folded.
#[derive(Debug, thiserror::Error)]
pub enum NotFolded {
    /// Its payload is not the one that its header commits to.
    #[error("its payload is not the one that its header commits to")]
    Changed,
    /// Its payload is not what its kind and version say.
    #[error(transparent)]
    Payload(#[from] event::Error),
    /// Its header can't be read.
    #[error(transparent)]
    Header(#[from] header::Error),
}

impl Folding {
    /// Takes of an event what a fold needs. Its payload is held against the commitment where it counts.
    ///
    /// # Errors
    /// When a payload that counts is another, or not what its kind and version say.
    pub fn of(frame: &Frame<'_>, header: &HeaderView<'_>) -> Result<Self, NotFolded> {
        let is_known = event::fixed(header.kind, header.kind_version).is_some();
        let is_erased = header.erasable && *frame.salt == SALT_ERASED;
        let what = if !is_known {
            What::Unknown
        } else if is_erased {
            What::Erased {
                is_inventory: header.kind == INVENTORY_RECORDED,
            }
        } else if is_looked_into(header.kind) {
            if frame.body(header) == Body::Changed {
                return Err(NotFolded::Changed);
            }
            let event = Event::decode(header.kind, header.kind_version, frame.payload)?;
            What::Happened {
                subject: match header.kind.starts_with("allocation.") {
                    true => Some(header.subject()?),
                    false => None,
                },
                actor: match matches!(event, Event::OperationIntended(_)) {
                    true => Some(header.actor()?),
                    false => None,
                },
                event: Box::new(event),
            }
        } else {
            What::Passed(status_by_kind(header.kind))
        };
        Ok(Folding {
            log: header.log,
            epoch: header.epoch,
            seq: header.seq,
            hash: frame.hash,
            time_unix_us: header.time_unix_us,
            operation: header.operation,
            what,
        })
    }

    /// When it happened, in microseconds since 1970 by the controller's clock.
    pub const fn time_unix_us(&self) -> u64 {
        self.time_unix_us
    }
}

/// Whether a fold looks into the payloads of a kind. For the others it is enough that they happened.
fn is_looked_into(kind: &str) -> bool {
    match kind.split_once('.') {
        Some(("operation", verb)) => !matches!(
            verb,
            "planned" | "resumed" | "succeeded" | "paced" | "lacked"
        ),
        Some(("step", verb)) => matches!(verb, "succeeded" | "adopted"),
        Some(("output" | "session" | "segments", _)) => false,
        Some(_) | None => true,
    }
}

/// The status of an operation by an event that is not looked into.
fn status_by_kind(kind: &str) -> Option<OperationStatus> {
    match kind {
        "operation.planned" | "operation.resumed" => Some(OperationStatus::Running),
        "operation.succeeded" => Some(OperationStatus::Succeeded),
        _ => None,
    }
}
