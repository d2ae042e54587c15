//! What hosts say, and what is about to be recorded, without secrets that are declared: behind what agents do, which know
//! only what their host needs.
//!
//! Only text of others is changed: what programs printed, messages, reasons. What somebody asked for is not: where that
//! shows a secret it is refused before.

use tallybook_agent::mask::Mask;
use tallybook_agent::protocol::Reply;
use tallybook_events::event::{Event, SessionRecorded};
use tallybook_events::ids::Blob;
use tallybook_events::step::{Captured, Phase, Receipt, Seen, StepDone, StepFailure};

/// A reply as it may be shown and recorded. What a command in a container prints is for who works there, as it is.
pub(super) fn reply(mask: &Mask, said: Reply) -> Reply {
    if mask.is_empty() {
        return said;
    }
    match said {
        Reply::Progress {
            key,
            what,
            done,
            total,
        } => Reply::Progress {
            key,
            what: mask.apply_text(&what),
            done,
            total,
        },
        Reply::Finished(receipt) => Reply::Finished(self::receipt(mask, receipt)),
        Reply::Probed { key, seen } => Reply::Probed {
            key,
            seen: self::seen(mask, seen),
        },
        Reply::Adopted { key, done } => Reply::Adopted {
            key,
            done: self::done(mask, done),
        },
        Reply::NotAdopted { key, failure } => Reply::NotAdopted {
            key,
            failure: self::failure(mask, failure),
        },
        Reply::Receipts(mut report) => {
            let receipts = report.receipts.into_iter();
            report.receipts = receipts.map(|one| receipt(mask, one)).collect();
            Reply::Receipts(report)
        }
        Reply::SessionEnded(recorded) => Reply::SessionEnded(session(mask, recorded)),
        Reply::Refused(failure) => Reply::Refused(self::failure(mask, failure)),
        said @ (Reply::Hello { .. }
        | Reply::Alive
        | Reply::Operations(_)
        | Reply::Forgotten(_)
        | Reply::Journal(_)
        | Reply::Waiting(_)
        | Reply::Started(_)
        | Reply::BatchEnded { .. }
        | Reply::Peer(_)
        | Reply::SendEnded
        | Reply::Prove(_)
        | Reply::Admitted
        | Reply::Output { .. }) => said,
    }
}

/// An event as it may be recorded.
pub(super) fn event(mask: &Mask, event: Event) -> Event {
    if mask.is_empty() {
        return event;
    }
    let text = |text: &mut String| *text = mask.apply_text(text);
    match event {
        Event::OutputCaptured(mut it) => {
            it.captured = captured(mask, it.captured);
            it.into()
        }
        Event::SessionRecorded(it) => session(mask, it).into(),
        Event::StepSucceeded(mut it) => {
            it.done = done(mask, it.done);
            it.into()
        }
        Event::StepFailed(mut it) => {
            it.failure = failure(mask, it.failure);
            it.into()
        }
        Event::StepDoubted(mut it) => {
            text(&mut it.why);
            it.into()
        }
        Event::StepDrifted(mut it) => {
            text(&mut it.what);
            it.into()
        }
        Event::StepForced(mut it) => {
            text(&mut it.reason);
            it.into()
        }
        Event::StepAdopted(mut it) => {
            text(&mut it.reason);
            it.done = done(mask, it.done);
            it.into()
        }
        Event::StepUnstarted(mut it) => {
            text(&mut it.why);
            it.into()
        }
        Event::OperationInterrupted(mut it) => {
            text(&mut it.reason);
            it.into()
        }
        Event::OperationFailed(mut it) => {
            text(&mut it.reason);
            it.into()
        }
        Event::OperationStuck(mut it) => {
            text(&mut it.reason);
            it.into()
        }
        Event::OperationAbandoned(mut it) => {
            text(&mut it.reason);
            it.into()
        }
        Event::OperationLacked(mut it) => {
            for lack in &mut it.hosts {
                text(&mut lack.why);
            }
            it.into()
        }
        event @ (Event::LogCreated(_)
        | Event::InventoryRecorded(_)
        | Event::AllocationMade(_)
        | Event::AllocationReleased(_)
        | Event::OperationIntended(_)
        | Event::OperationPlanned(_)
        | Event::OperationResumed(_)
        | Event::OperationSucceeded(_)
        | Event::OperationRolledBack(_)
        | Event::OperationPaced(_)
        | Event::StepStarted(_)
        | Event::ErasureAnnounced(_)
        | Event::ErasureCompleted(_)
        | Event::SegmentsArchived(_)
        | Event::SegmentsRestored(_)
        | Event::LogRecovered(_)
        | Event::LogFenced(_)
        | Event::Unknown(_)) => event,
    }
}

fn receipt(mask: &Mask, receipt: Receipt) -> Receipt {
    let phase = match receipt.phase {
        Phase::Started => Phase::Started,
        Phase::Succeeded(it) => Phase::Succeeded(done(mask, it)),
        Phase::Failed(it) => Phase::Failed(failure(mask, it)),
        Phase::GivenUp => Phase::GivenUp,
    };
    Receipt { phase, ..receipt }
}

fn seen(mask: &Mask, seen: Seen) -> Seen {
    let text = |text: String| mask.apply_text(&text);
    match seen {
        Seen::Done(it) => Seen::Done(done(mask, it)),
        Seen::Absent => Seen::Absent,
        Seen::Partial { what } => Seen::Partial { what: text(what) },
        Seen::Conflict { what } => Seen::Conflict { what: text(what) },
        Seen::Unknown { why } => Seen::Unknown { why: text(why) },
    }
}

/// Output and facts are what later steps and undos need, as they are.
fn done(mask: &Mask, done: StepDone) -> StepDone {
    let all = done.captured.into_iter();
    StepDone {
        captured: all.map(|one| captured(mask, one)).collect(),
        ..done
    }
}

fn failure(mask: &Mask, failure: StepFailure) -> StepFailure {
    let all = failure.captured.into_iter();
    StepFailure {
        class: failure.class,
        message: mask.apply_text(&failure.message),
        hint: failure.hint.map(|hint| mask.apply_text(&hint)),
        captured: all.map(|one| captured(mask, one)).collect(),
    }
}

fn captured(mask: &Mask, captured: Captured) -> Captured {
    let text = mask.apply_bounded(&captured.text.0, captured.dropped_bytes);
    Captured {
        command: mask.apply_text(&captured.command),
        text: Blob(text),
        ..captured
    }
}

fn session(mask: &Mask, recorded: SessionRecorded) -> SessionRecorded {
    let output = mask.apply_bounded(&recorded.output.0, recorded.dropped_bytes);
    let argv = recorded.argv.iter();
    let mut changes = recorded.changes;
    for change in &mut changes {
        change.path = Blob(mask.apply(&change.path.0));
    }
    SessionRecorded {
        argv: argv.map(|argument| mask.apply_text(argument)).collect(),
        output: Blob(output),
        changes,
        ..recorded
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tallybook_agent::secret::{Secret, SecretName, Secrets};
    use tallybook_events::event::{OutputCaptured, Resolution, StepFailed};
    use tallybook_events::step::FailureClass;

    use super::*;

    #[test]
    fn what_a_host_told_without_knowing_it_for_a_secret_is_not_recorded() {
        let name = SecretName::new("pw").unwrap();
        let value = Secret::new(b"correct horse".to_vec());
        let secrets = Secrets::new(BTreeMap::from([(name, value)]));
        let captured = Captured {
            command: "echo 'correct horse'".to_owned(),
            exit: Some(0),
            text: Blob(b"x correct h\n[9 bytes dropped]\nct horse y".to_vec()),
            dropped_bytes: 9,
        };
        let failed = StepFailed {
            resolution: Resolution::Reported,
            failure: StepFailure {
                class: FailureClass::Command,
                message: "said correct horse".to_owned(),
                hint: Some("not correct horse".to_owned()),
                captured: vec![captured.clone()],
            },
        };
        for said in [OutputCaptured { captured }.into(), Event::from(failed)] {
            let payload = event(secrets.mask(), said).encode().unwrap();
            let text = String::from_utf8_lossy(&payload).into_owned();
            assert!(
                text.contains("[secret pw]\n[9 bytes dropped]\n[secret pw] y"),
                "{text}"
            );
            assert!(
                !text.contains("correct") && !text.contains("horse"),
                "{text}"
            );
        }
    }
}
