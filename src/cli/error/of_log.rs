//! The log's errors: the exit code of each, and what to do next.
//!
//! What is not known gets no hint.

use tallybook_events::ids::OperationId;

use super::super::exit::Exit;
use super::io_exit;
use crate::log::Refusal;
use crate::log::retention::FailureClass;
use crate::{journal, log};

pub(super) fn log_exit(error: &log::Error) -> Exit {
    match error {
        log::Error::Missing(_) | log::Error::NoDaemon(_) => Exit::Missing,
        log::Error::Forbidden(_) => Exit::Permission,
        log::Error::Directory { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Exit::Missing,
            _ => io_exit(source),
        },
        log::Error::Journal(error) => match error {
            journal::Error::Missing(_) => Exit::Missing,
            journal::Error::Head { .. }
            | journal::Error::Damaged { .. }
            | journal::Error::Newer { .. }
            | journal::Error::Away { .. }
            | journal::Error::Absent { .. }
            | journal::Error::Unreached { .. } => Exit::Verification,
            journal::Error::Io { .. } | journal::Error::Unsynced { .. } if error.is_disk_full() => {
                Exit::DiskFull
            }
            journal::Error::Io { .. }
            | journal::Error::Unsynced { .. }
            | journal::Error::Stopped => Exit::Failed,
        },
        log::Error::Refused(refusal) => match refusal {
            Refusal::Claimed { .. }
            | Refusal::Changed { .. }
            | Refusal::ClaimLost(_)
            | Refusal::Fenced { .. }
            | Refusal::Needed { .. } => Exit::Locked,
            Refusal::Malformed(_) => Exit::Failed,
        },
        log::Error::NoHolder(_)
        | log::Error::InUse(_)
        | log::Error::Held(_)
        | log::Error::OtherProtocol { .. } => Exit::Locked,
        log::Error::Retention(failure) => match failure.class {
            FailureClass::Place => Exit::Usage,
            FailureClass::Missing => Exit::Missing,
            FailureClass::Damaged | FailureClass::Away | FailureClass::Newer => Exit::Verification,
            FailureClass::DiskFull => Exit::DiskFull,
            FailureClass::Other => Exit::Failed,
        },
        log::Error::TailLost { .. }
        | log::Error::Rewritten { .. }
        | log::Error::Undecidable(_)
        | log::Error::Fold { .. }
        | log::Error::Unknowable { .. }
        | log::Error::Operation { .. } => Exit::Verification,
        log::Error::NoReserve { .. } if error.is_disk_full() => Exit::DiskFull,
        log::Error::NoReserve { source, .. } => io_exit(source),
        log::Error::NotErasable { kind: None, .. } => Exit::Missing,
        log::Error::NotErasable { .. } => Exit::Usage,
        log::Error::NotWritten {
            disk_full: true, ..
        } => Exit::DiskFull,
        log::Error::NotWritten { .. } | log::Error::TooLarge(_) => Exit::Failed,
        log::Error::Store(_)
        | log::Error::Holder(_)
        | log::Error::Protocol(_)
        | log::Error::Payload { .. } => Exit::Failed,
    }
}

/// Something may have been done on hosts: the way on is to resume, never to begin again.
pub(super) fn left_hint(id: OperationId, error: &log::Error) -> String {
    let on = format!(
        "`tallybook op resume {}` finds out what was done, and goes on from there",
        id.short()
    );
    if error.is_disk_full() {
        return format!("free space where the store is, then {on}");
    }
    on
}

/// What to do with a log that a host has seen a newer line of.
pub(in crate::cli) const FENCED: &str = "act from the newest copy of this log; if that is lost, `tallybook log recover --reason TEXT` goes on with this one and shuts the other out";
const NEWER: &str = "use the program that wrote it, or a newer one";

pub(super) fn log_hint(error: &log::Error) -> Option<String> {
    Some(match error {
        log::Error::Missing(_) | log::Error::Journal(journal::Error::Missing(_)) => {
            "`tallybook cloud refresh` begins one; --store or TALLYBOOK_STORE names another place"
                .to_owned()
        }
        log::Error::Directory { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            "run it as the user who owns the store, or name another one with --store".to_owned()
        }
        log::Error::Refused(
            Refusal::Claimed { holder, .. }
            | Refusal::Needed {
                operation: holder, ..
            },
        ) => format!(
            "`tallybook op show {0}` shows how it stands",
            holder.short()
        ),
        log::Error::Refused(Refusal::Changed { .. }) => "try again".to_owned(),
        log::Error::Refused(Refusal::Fenced { .. }) => FENCED.to_owned(),
        log::Error::Forbidden(_) => {
            "who may read and who may act is said where the daemon is started; `id` shows your groups"
                .to_owned()
        }
        log::Error::NoDaemon(_) => {
            "see whether it runs; --daemon or TALLYBOOK_DAEMON names another directory".to_owned()
        }
        log::Error::NoHolder(_) | log::Error::InUse(_) | log::Error::Held(_) => {
            "find out which process holds the store, and whether it hangs".to_owned()
        }
        log::Error::OtherProtocol { .. } | log::Error::Protocol(_) => {
            "wait until that process has ended, or use the same version".to_owned()
        }
        log::Error::TailLost { .. } | log::Error::Rewritten { .. } => {
            "bring the newest copy of this log back; if there is none, `tallybook log recover` shows what is lost and goes on without it".to_owned()
        }
        log::Error::Operation { id, .. } => format!(
            "`tallybook verify` says what is wrong; where a recovery lost events of it, `tallybook log --operation {}` lists what is left",
            id.short()
        ),
        log::Error::Fold { .. } | log::Error::Unknowable { .. } => "`tallybook verify` says what is wrong".to_owned(),
        log::Error::Journal(error) | log::Error::Undecidable(error) if error.is_newer() => {
            NEWER.to_owned()
        }
        log::Error::Undecidable(_) => {
            "where the archive is gone for good, --archive-lost goes on without what is in it".to_owned()
        }
        log::Error::Journal(journal::Error::Head { .. } | journal::Error::Damaged { .. } | journal::Error::Newer { .. }) => {
            "`tallybook verify` lists all damage; bring a good copy back, or see `tallybook log recover --help`".to_owned()
        }
        log::Error::Journal(journal::Error::Absent { .. } | journal::Error::Away { .. }) => {
            "mount the archive, or bring the file back from a copy; `tallybook verify` lists all that is missing".to_owned()
        }
        log::Error::Journal(journal::Error::Unreached { .. }) => {
            "all others are erased; it was announced, so the next command that opens the store tries again".to_owned()
        }
        log::Error::Retention(failure) => match failure.class {
            FailureClass::Place => return None,
            FailureClass::Missing => {
                "`tallybook log restore --all --dry-run` shows what is there".to_owned()
            }
            FailureClass::Damaged => {
                "`tallybook verify` lists all damage; bring that file back from a copy".to_owned()
            }
            FailureClass::Away => {
                "`tallybook verify` lists all that is missing; where it is gone for good, see `tallybook log recover --help`".to_owned()
            }
            FailureClass::Newer => NEWER.to_owned(),
            FailureClass::DiskFull => {
                "free space there, then try again; no segment is lost".to_owned()
            }
            FailureClass::Other => "try again; no segment is lost".to_owned(),
        },
        log::Error::NotWritten { in_doubt: true, .. }
        | log::Error::Journal(journal::Error::Unsynced { .. }) => {
            "whether it was recorded is known once the log is opened again: `tallybook log` and `tallybook op list \
             --unfinished` show it"
                .to_owned()
        }
        log::Error::NotWritten {
            disk_full: true, ..
        } => "free space where the store is, then try again; nothing was done".to_owned(),
        log::Error::NoReserve { .. } => {
            "free space where the store is, then try again; what runs can still be recorded and taken back".to_owned()
        }
        log::Error::NotErasable { kind: Some(_), .. } => {
            "output.captured, session.recorded and inventory.recorded can be erased".to_owned()
        }
        log::Error::NotErasable { kind: None, .. } => return None,
        log::Error::Journal(error) if error.is_disk_full() => {
            "free space where the store is; `tallybook op list --unfinished` then shows what can be resumed"
                .to_owned()
        }
        log::Error::NotWritten { .. }
        | log::Error::TooLarge(_)
        | log::Error::Directory { .. }
        | log::Error::Journal(journal::Error::Io { .. } | journal::Error::Stopped)
        | log::Error::Store(_)
        | log::Error::Refused(Refusal::ClaimLost(_) | Refusal::Malformed(_))
        | log::Error::Holder(_)
        | log::Error::Payload { .. } => return None,
    })
}
