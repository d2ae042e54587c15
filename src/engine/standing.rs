//! What this log shows to a host before it acts there, and what it makes of what that host was shown before.
//!
//! A host that was shown an event which this log does not have has seen a newer line of its history: of this one, nothing
//! more may be done anywhere. See the agent's `fence`.

use tallybook_agent::protocol::Shown;
use tallybook_events::ids::{Blob, Epoch, Seq};
use tallybook_events::name::HostName;
use tallybook_events::step::Mark;
use tallybook_replay::state::Head;

use super::conversation;
use crate::causes;
use crate::log::{self, Filter, Log};

/// A host may be ahead by so many epochs: each takes a recovery. More is no word to go by.
const EPOCHS_AHEAD_MAX: u32 = 1000;

/// Why what a host was shown can't be shown to it again.
#[derive(Debug)]
pub(super) enum Unproven {
    /// This log does not have it.
    Lacking(Mark),
    /// It can't be so.
    Unlikely(conversation::Error),
    /// The log can't be read.
    Log(log::Error),
}

impl Unproven {
    /// For people.
    pub(super) fn text(&self, host: &HostName) -> String {
        match self {
            Unproven::Lacking(seen) => super::lacking(host, *seen),
            Unproven::Unlikely(error) => causes::in_line(error),
            Unproven::Log(error) => causes::in_line(error),
        }
    }
}

impl From<log::Error> for Unproven {
    fn from(error: log::Error) -> Self {
        Unproven::Log(error)
    }
}

/// The header of an event that a host was shown; `None` where it need not be shown, because a recovery came behind it.
///
/// # Errors
/// When this log does not have it.
pub(super) async fn prove(
    log: &Log,
    host: &HostName,
    seen: Mark,
) -> Result<Option<Blob>, Unproven> {
    let Head { epoch, seq, .. } = log.head().await?;
    if seen.seq <= seq {
        let found = match log.records(&Filter::at(seen.seq)).await {
            // What stands there need not be shown.
            Err(_) if seen.epoch < epoch => Vec::new(),
            found => found?,
        };
        if let Some(record) = found.first().filter(|record| record.hash == seen.hash) {
            return Ok(Some(Blob(record.header_bytes().to_vec())));
        }
    }
    if seen.epoch < epoch {
        return Ok(None);
    }
    if seen.epoch.0 > epoch.0.saturating_add(EPOCHS_AHEAD_MAX) {
        let what = format!(
            "says that it was shown epoch {} of this log, which is in epoch {epoch}",
            seen.epoch
        );
        return Err(Unproven::Unlikely(conversation::Error::Unexpected {
            host: host.clone(),
            what,
        }));
    }
    Err(Unproven::Lacking(seen))
}

/// What is shown of the log, and the epoch under which it acts: its event at a position, which is durable, and the proof that
/// a host needs.
///
/// # Errors
/// When the log can't be read.
pub(super) async fn shown(
    log: &Log,
    newest: Seq,
    proof: Option<Blob>,
) -> Result<(Shown, Epoch), log::Error> {
    let found = log.records(&Filter::at(newest)).await?;
    // An event that was just written is there; a host refuses what is none.
    let (header, epoch) = match found.first() {
        Some(record) => (record.header_bytes().to_vec(), record.header.epoch),
        None => (Vec::new(), Epoch(0)),
    };
    let newest = Blob(header);
    Ok((Shown { newest, proof }, epoch))
}
