//! A header's bytes, read in place: every field is checked, and no text is copied.
//!
//! Whoever walks a whole log looks at a few fields of each header; this is what they look at.

use std::sync::Arc;

use super::{ClaimRef, Error, FORMAT, Header, Outcome, STEP_NONE, Writer};
use crate::actor::{Actor, ActorClaim, ClaimSource};
use crate::event::fixed;
use crate::ids::{Attempt, BootId, Epoch, EventId, Hash, LogId, OperationId, Seq, StepIndex};
use crate::subject::{self, Subject};

/// A header over its stored bytes. The fields are those of [`Header`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of `Header` of that name")]
pub struct HeaderView<'a> {
    pub log: LogId,
    pub epoch: Epoch,
    pub seq: Seq,
    pub previous: Hash,
    /// The text of a subject: it parses.
    pub subject: &'a str,
    pub subject_previous_seq: Seq,
    pub subject_previous: Hash,
    pub event: EventId,
    pub kind: &'a str,
    pub kind_version: u16,
    pub time_unix_us: u64,
    /// The actor's claims as stored: they decode.
    actor: &'a [u8],
    pub controller: &'a str,
    pub boot: BootId,
    pub claim: Option<ClaimRef>,
    pub operation: Option<OperationId>,
    pub step: Option<StepIndex>,
    pub attempt: Attempt,
    pub more: u16,
    pub write: Seq,
    pub cause: Seq,
    pub outcome: Outcome,
    pub erasable: bool,
    pub payload_len: u32,
    pub commitment: Hash,
}

impl<'a> HeaderView<'a> {
    /// Reads a header in place; every byte must be accounted for.
    ///
    /// # Errors
    /// When the bytes are not exactly one header of a known format.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        HeaderView::decode_beside(bytes, &mut ActorSeen::default())
    }

    /// The same, where the actor of another header was read before.
    ///
    /// # Errors
    /// As [`HeaderView::decode`].
    pub fn decode_beside(bytes: &'a [u8], seen: &mut ActorSeen<'a>) -> Result<Self, Error> {
        let mut input = Input { bytes, at: 0 };
        let format = input.u16("format")?;
        if format != FORMAT {
            return Err(Error::Format(format));
        }
        let header = HeaderView {
            log: LogId::from_bytes(input.array("log")?),
            epoch: Epoch(input.u32("epoch")?),
            seq: Seq(input.u64("seq")?),
            previous: Hash(input.array("previous")?),
            subject: input.subject()?,
            subject_previous_seq: Seq(input.u64("subject_previous_seq")?),
            subject_previous: Hash(input.array("subject_previous")?),
            event: EventId::from_bytes(input.array("event")?),
            kind: input.text("kind")?,
            kind_version: input.u16("kind_version")?,
            time_unix_us: input.u64("time")?,
            actor: input.actor(seen)?,
            controller: input.text("writer controller")?,
            boot: BootId::from_bytes(input.array("writer boot")?),
            claim: input.claim()?,
            operation: match input.array("operation")? {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => None,
                id => Some(OperationId::from_bytes(id)),
            },
            step: match input.u32("step")? {
                STEP_NONE => None,
                step => Some(StepIndex(step)),
            },
            attempt: Attempt(input.u32("attempt")?),
            more: input.u16("more")?,
            write: Seq(input.u64("write")?),
            cause: Seq(input.u64("cause")?),
            outcome: input.outcome()?,
            erasable: input.bool("erasable")?,
            payload_len: input.u32("payload_len")?,
            commitment: Hash(input.array("commitment")?),
        };
        match bytes.len() - input.at {
            0 => Ok(header),
            extra => Err(Error::Trailing { extra }),
        }
    }

    /// The actor.
    ///
    /// # Errors
    /// Never for a view that was decoded; what decodes them says so.
    pub fn actor(&self) -> Result<Actor, Error> {
        let mut input = Input {
            bytes: self.actor,
            at: 0,
        };
        let mut claims = Vec::new();
        let [count] = input.array("actor")?;
        for _ in 0..count {
            let (name, value, source) = input.actor_claim()?;
            claims.push(ActorClaim {
                name: name.to_owned(),
                value: value.to_owned(),
                source,
            });
        }
        Ok(Actor(claims))
    }

    /// The subject.
    ///
    /// # Errors
    /// As [`HeaderView::actor`].
    pub fn subject(&self) -> Result<Subject, Error> {
        self.subject.parse().map_err(|_| Error::Value {
            field: "subject",
            at: 0,
        })
    }

    /// The header with texts of its own.
    ///
    /// # Errors
    /// As [`HeaderView::actor`].
    pub fn to_header(&self) -> Result<Header, Error> {
        self.to_header_beside(&mut Common::default())
    }

    /// The header with texts of its own, and with what it has in common with those that were read before.
    ///
    /// # Errors
    /// As [`HeaderView::actor`].
    pub fn to_header_beside(&self, common: &mut Common) -> Result<Header, Error> {
        let known = fixed(self.kind, self.kind_version);
        Ok(Header {
            log: self.log,
            epoch: self.epoch,
            seq: self.seq,
            previous: self.previous,
            subject: self.subject()?,
            subject_previous_seq: self.subject_previous_seq,
            subject_previous: self.subject_previous,
            event: self.event,
            kind: known.map_or_else(|| self.kind.to_owned().into(), |fixed| fixed.kind.into()),
            kind_version: self.kind_version,
            time_unix_us: self.time_unix_us,
            actor: common.actor(self)?,
            writer: common.writer(self),
            claim: self.claim,
            operation: self.operation,
            step: self.step,
            attempt: self.attempt,
            more: self.more,
            write: self.write,
            cause: self.cause,
            outcome: self.outcome,
            erasable: self.erasable,
            payload_len: self.payload_len,
            commitment: self.commitment,
        })
    }
}

/// The bytes of an actor that decode: most headers have that of the one before. They say themselves where they end, so the
/// same bytes are the same actor.
#[derive(Debug, Clone, Copy, Default)]
pub struct ActorSeen<'a>(&'a [u8]);

/// What headers that are read one after the other have in common: most are of one actor and one process.
#[derive(Debug, Default)]
pub struct Common {
    actor: Option<(Vec<u8>, Arc<Actor>)>,
    writer: Option<Arc<Writer>>,
}

impl Common {
    fn actor(&mut self, header: &HeaderView<'_>) -> Result<Arc<Actor>, Error> {
        if let Some((bytes, actor)) = &self.actor
            && bytes == header.actor
        {
            return Ok(Arc::clone(actor));
        }
        let actor = Arc::new(header.actor()?);
        self.actor = Some((header.actor.to_owned(), Arc::clone(&actor)));
        Ok(actor)
    }

    fn writer(&mut self, header: &HeaderView<'_>) -> Arc<Writer> {
        let is_same = |writer: &&Arc<Writer>| {
            writer.controller == header.controller && writer.boot == header.boot
        };
        if let Some(writer) = self.writer.as_ref().filter(is_same) {
            return Arc::clone(writer);
        }
        let writer = Arc::new(Writer {
            controller: header.controller.to_owned(),
            boot: header.boot,
        });
        self.writer = Some(Arc::clone(&writer));
        writer
    }
}

/// The bytes still to be read, and how far we are.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(len);
        let Some(part) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(Error::Short { field, at: self.at });
        };
        self.at += len;
        Ok(part)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, Error> {
        let at = self.at;
        match self.array(field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(Error::Value { field, at }),
        }
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, Error> {
        let at = self.at;
        let len = usize::from(self.u16(field)?);
        let bytes = self.take(field, len)?;
        std::str::from_utf8(bytes).map_err(|_| Error::Value { field, at })
    }

    fn subject(&mut self) -> Result<&'a str, Error> {
        let at = self.at;
        let text = self.text("subject")?;
        match subject::is_subject(text) {
            true => Ok(text),
            false => Err(Error::Value {
                field: "subject",
                at,
            }),
        }
    }

    fn actor(&mut self, seen: &mut ActorSeen<'a>) -> Result<&'a [u8], Error> {
        let start = self.at;
        let rest = self.bytes.get(start..).unwrap_or_default();
        if !seen.0.is_empty() && rest.starts_with(seen.0) {
            self.at += seen.0.len();
            return Ok(seen.0);
        }
        let [count] = self.array("actor")?;
        for _ in 0..count {
            self.actor_claim()?;
        }
        seen.0 = self.bytes.get(start..self.at).unwrap_or_default();
        Ok(seen.0)
    }

    fn actor_claim(&mut self) -> Result<(&'a str, &'a str, ClaimSource), Error> {
        let name = self.text("actor claim")?;
        let value = self.text("actor claim")?;
        let at = self.at;
        let [code] = self.array("actor claim source")?;
        let source = ClaimSource::from_code(code).ok_or(Error::Value {
            field: "actor claim source",
            at,
        })?;
        Ok((name, value, source))
    }

    fn claim(&mut self) -> Result<Option<ClaimRef>, Error> {
        let at = self.at;
        let seq = Seq(self.u64("claim")?);
        let hash = Hash(self.array("claim")?);
        match (seq, hash) {
            (Seq::NONE, Hash::ZERO) => Ok(None),
            (Seq::NONE, _) => Err(Error::Value { field: "claim", at }),
            (seq, hash) => Ok(Some(ClaimRef { seq, hash })),
        }
    }

    fn outcome(&mut self) -> Result<Outcome, Error> {
        let at = self.at;
        let [code] = self.array("outcome")?;
        Outcome::from_code(code).ok_or(Error::Value {
            field: "outcome",
            at,
        })
    }
}
