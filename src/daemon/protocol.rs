//! What the daemon and its clients say to each other, once a line was asked for at a socket of the log.
//!
//! A client names operations and nothing else: what is done is what the log says of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::{OperationId, StepIndex};

use super::ending::Ending;
use crate::cli::Report;

/// The longest message of a client.
pub(super) const ASK_LEN_MAX: u32 = 4096;
/// How long either end may take to take a message.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client wants. The first message on a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Keep others from carrying these out from here on; the first is handed over with [`Then::Go`].
    Hold {
        /// The operation, which need not be in the log yet.
        operation: OperationId,
        /// The one that it takes back.
        besides: Option<OperationId>,
        /// What for.
        purpose: Purpose,
    },
    /// Tell how an operation goes on.
    Attach(OperationId),
    /// Let an operation end in good order.
    Stop(OperationId),
}

/// What an operation is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To be carried out once it is in the log.
    Run {
        /// Whether it is taken back when it fails, where its kind is.
        undo_failed: bool,
    },
    /// To be gone on with, once the log says that it was taken up.
    GoOn {
        /// Whether steps in doubt are started again that are started once only.
        once_again: bool,
    },
    /// For the client itself, as long as the line stands.
    Own,
}

/// What a client says then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Then {
    /// The log has it: carry it out.
    Go,
    /// Let it end in good order.
    Stop,
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Say {
    /// Nobody else carries them out.
    Held,
    /// No, and why.
    Refused(Report),
    /// The daemon does not carry this one out.
    Absent,
    /// It carries this one out, and this is how far it is.
    Taken(Picture),
    /// Something happened: a notice, as JSON.
    Told(String),
    /// So many notices were left out, because they were not read in time.
    Missed(u64),
    /// It was asked to stop.
    Stopping,
    /// It ended.
    Ended(Box<Ending>),
}

/// How far an operation is, for who joins late.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Picture {
    /// How many steps it has.
    pub steps: usize,
    /// How many of them ended.
    pub ended: usize,
    /// The notices of those that run, as JSON; or that it waits for its turn, or ends.
    pub running: BTreeMap<Option<StepIndex>, String>,
}

/// A door for the fuzz targets (`tests/fuzz`): what comes over a line of the daemon, decoded and encoded again. Nothing else may
/// use it.
#[doc(hidden)]
pub mod fuzzing {
    use tallybook_events::codec;

    use super::{Ask, Say, Then};

    /// The first message of a client, a later one, or one of the daemon.
    pub fn message(bytes: &[u8], which: u8) -> Option<Vec<u8>> {
        match which {
            0 => codec::encode(&codec::decode::<Ask>(bytes).ok()?).ok(),
            1 => codec::encode(&codec::decode::<Then>(bytes).ok()?).ok(),
            _ => codec::encode(&codec::decode::<Say>(bytes).ok()?).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tallybook_events::codec;

    use super::*;
    use crate::cli::Exit;
    use crate::daemon::ending::{Ran, Undone};
    use crate::engine::{Gone, Outcome};

    #[test]
    fn what_is_said_is_heard() {
        let id = OperationId::from_bytes([7; 16]);
        let gone = Gone {
            why: "cn1: away".to_owned(),
            hint: None,
            is_unreachable: true,
            is_identity: false,
        };
        let report = Report {
            error: "no".to_owned(),
            details: vec!["a".to_owned()],
            because: Vec::new(),
            hint: Some("b".to_owned()),
            exit: Exit::Permission,
            code: Exit::Permission.code(),
        };
        let outcome = Outcome::Unreachable([("cn1".parse().unwrap(), gone)].into());
        let ending = Ending {
            ran: Ran::Ended(outcome.clone()),
            undone: Some(Undone::By(id, outcome)),
            again: Some(Duration::from_secs(30)),
        };
        let running = [(None, "x".to_owned()), (Some(StepIndex(3)), "y".to_owned())];
        let picture = Picture {
            steps: 4,
            ended: 1,
            running: running.into(),
        };
        for say in [
            Say::Refused(report),
            Say::Taken(picture),
            Say::Ended(Box::new(ending)),
        ] {
            let bytes = codec::encode(&say).unwrap();
            assert_eq!(codec::decode::<Say>(&bytes).unwrap(), say);
        }
    }
}
