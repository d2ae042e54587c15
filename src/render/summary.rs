//! An event, a fact or an allocation in a few words, for tables. The words may change; programs read JSON.

use tallybook_events::allocation::{Allocation, Forward};
use tallybook_events::argv;
use tallybook_events::event::{ErasureCause, Event, SeqRange};
use tallybook_events::fact::{Fact, Origin};
use tallybook_events::ids::Seq;
use tallybook_events::step::{FailureClass, Reversal};
use tallybook_replay::entry::Entry;
use tallybook_replay::fleet::{HostStatus, OnHost};
use tallybook_replay::operation::{OperationStatus, StepStatus};

use super::{Cell, Column, Ink, Table, bytes, count};

/// What a rollback can do about a step, in a word.
pub const fn reversal(reversal: &Reversal) -> &'static str {
    match reversal {
        Reversal::Undo => "undo",
        Reversal::Keep { .. } => "keep",
        Reversal::Irreversible { .. } => "irreversible",
    }
}

/// An operation host by host.
pub fn hosts(rows: &[OnHost]) -> Table {
    let mut table = Table::new([
        Column::left("HOST"),
        Column::left("STATUS"),
        Column::right("OK"),
        Column::right("CHANGED"),
        Column::right("FAILED"),
        Column::right("NOT BEGUN"),
        Column::left("WHY"),
    ]);
    for row in rows {
        table.row([
            Cell::from(&row.host),
            Cell::inked(host_ink(row.status), row.status.label()),
            row.ok.into(),
            row.changed.into(),
            row.failed.into(),
            row.not_begun.into(),
            Cell::or_dash(row.why.as_ref()),
        ]);
    }
    table
}

const fn host_ink(status: HostStatus) -> Ink {
    match status {
        HostStatus::Ok | HostStatus::Changed => Ink::Good,
        HostStatus::Failed | HostStatus::Unreachable => Ink::Bad,
        HostStatus::InDoubt | HostStatus::Unfinished => Ink::Open,
        HostStatus::NotBegun => Ink::Plain,
    }
}

/// What an event says, in a line. The caller makes it safe to show.
pub fn event(entry: &Entry) -> String {
    match &entry.event {
        Event::LogCreated(created) => format!("by tallybook {}", created.tool_version),
        Event::InventoryRecorded(recorded) => format!(
            "{} ({}, {})",
            recorded.path,
            bytes(recorded.text.0.len() as u64),
            recorded.hash.short()
        ),
        Event::AllocationMade(made) => allocation(&made.allocation),
        Event::AllocationReleased(released) => allocation(&released.allocation),
        Event::OperationIntended(intended) => intended.intent.summary(),
        Event::OperationPlanned(planned) => count(planned.steps.len(), "step"),
        Event::OperationResumed(_) => "taken up again".to_owned(),
        Event::OperationInterrupted(interrupted) => interrupted.reason.clone(),
        Event::OperationSucceeded(succeeded) => format!("{} events", succeeded.events),
        Event::OperationFailed(failed) => failed.reason.clone(),
        Event::OperationRolledBack(rolled_back) => format!("by {}", rolled_back.by.short()),
        Event::OperationStuck(stuck) => stuck.reason.clone(),
        Event::OperationAbandoned(abandoned) => abandoned.reason.clone(),
        Event::OperationPaced(paced) => paced.pace.to_string(),
        Event::OperationLacked(lacked) => {
            let hosts: Vec<String> = lacked
                .hosts
                .iter()
                .map(|lack| format!("{}: {}", lack.host, lack.why))
                .collect();
            hosts.join("; ")
        }
        Event::StepStarted(started) => step(entry, &started.kind),
        Event::StepSucceeded(succeeded) => {
            let facts: Vec<String> = succeeded.done.facts.iter().map(fact).collect();
            let said = match (facts.is_empty(), succeeded.done.changed) {
                (false, _) => facts.join("; "),
                (true, true) => "changed".to_owned(),
                (true, false) => "nothing to change".to_owned(),
            };
            step(entry, &said)
        }
        Event::StepFailed(failed) => step(
            entry,
            &format!(
                "{}: {}",
                class(failed.failure.class),
                failed.failure.message
            ),
        ),
        Event::StepDoubted(doubted) => step(entry, &doubted.why),
        Event::StepDrifted(drifted) => step(entry, &format!("drift: {}", drifted.what)),
        Event::StepForced(forced) => step(
            entry,
            &format!("what is in the way is set aside: {}", forced.reason),
        ),
        Event::StepAdopted(adopted) => step(
            entry,
            &format!("what is there is taken over: {}", adopted.reason),
        ),
        Event::StepUnstarted(unstarted) => step(entry, &unstarted.why),
        Event::OutputCaptured(output) => step(
            entry,
            &format!(
                "{} of {}",
                bytes(output.captured.text.0.len() as u64),
                output.captured.command
            ),
        ),
        Event::SessionRecorded(session) => format!(
            "{} ({})",
            argv::text(&session.argv),
            session.exit.map_or_else(
                || "no exit status".to_owned(),
                |exit| format!("exit {exit}")
            )
        ),
        Event::ErasureAnnounced(announced) => format!(
            "{} of {}: {}",
            match announced.cause {
                ErasureCause::Redaction => "redaction",
                ErasureCause::Retention => "expiry",
            },
            ranges(&announced.events),
            announced.reason
        ),
        Event::ErasureCompleted(completed) => format!(
            "{} erased, as event {} announced",
            count(
                usize::try_from(completed.payloads).unwrap_or(usize::MAX),
                "payload"
            ),
            completed.announced
        ),
        Event::SegmentsArchived(archived) => {
            format!("{} to {}", ranges(&archived.segments), archived.directory)
        }
        Event::SegmentsRestored(restored) => ranges(&restored.segments),
        Event::LogRecovered(recovered) => {
            let lost: Vec<SeqRange> = recovered.losses.iter().map(|loss| loss.events).collect();
            match lost.is_empty() {
                true => format!("nothing lost: {}", recovered.reason),
                false => format!("without {}: {}", ranges(&lost), recovered.reason),
            }
        }
        Event::LogFenced(fenced) => format!(
            "{} was shown event {} of epoch {}, which is not in this log",
            fenced.host, fenced.seen.seq, fenced.seen.epoch
        ),
        Event::Unknown(_) if entry.is_erased => "(redacted)".to_owned(),
        Event::Unknown(payload) => format!(
            "(version {} of this kind is not known here; {})",
            entry.header.kind_version,
            bytes(payload.0.len() as u64)
        ),
    }
}

/// Events in runs: `events 3, 7-9`; those of many runs by their number.
pub fn ranges(ranges: &[SeqRange]) -> String {
    const SHOWN_MAX: usize = 8;
    let counts = ranges.iter().map(SeqRange::count);
    let total = counts.fold(0, u64::saturating_add);
    let shown: Vec<String> = ranges
        .iter()
        .take(SHOWN_MAX)
        .map(|range| match range.count() {
            1 => range.first.to_string(),
            _ => format!("{}-{}", range.first, range.last),
        })
        .collect();
    let noun = if total == 1 { "event" } else { "events" };
    match ranges.len() > SHOWN_MAX {
        true => format!(
            "{total} events between {} and {}",
            ranges.first().map_or(Seq::NONE, |range| range.first),
            ranges.last().map_or(Seq::NONE, |range| range.last)
        ),
        false => format!("{noun} {}", shown.join(", ")),
    }
}

fn step(entry: &Entry, said: &str) -> String {
    match entry.header.step {
        Some(index) if entry.header.attempt.0 > 1 => {
            format!("step {index}, start {}: {said}", entry.header.attempt)
        }
        Some(index) => format!("step {index}: {said}"),
        None => said.to_owned(),
    }
}

/// An allocation: `10.5.0.9 00:16:3e:00:00:01 ssh 40000→22/tcp`.
pub fn allocation(allocation: &Allocation) -> String {
    let mut text = format!("{} {}", allocation.address, allocation.mac);
    let forwards = forwards(&allocation.forwards);
    if !forwards.is_empty() {
        text.push(' ');
        text.push_str(&forwards);
    }
    text
}

/// Ports in a list: `ssh 40000→22/tcp, web 8080→80/tcp`.
pub fn forwards(forwards: &[Forward]) -> String {
    let forwards: Vec<String> = forwards.iter().map(forward).collect();
    forwards.join(", ")
}

/// A port: `ssh 40000→22/tcp`.
pub fn forward(forward: &Forward) -> String {
    format!(
        "{} {}→{}/{}",
        forward.name, forward.host_port, forward.container_port, forward.protocol
    )
}

/// What something was made from: `template base 3`.
pub fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Scratch {
            distribution,
            release,
        } if release.is_empty() => distribution.clone(),
        Origin::Scratch {
            distribution,
            release,
        } => format!("{distribution} {release}"),
        Origin::Template {
            template,
            generation,
            manifest: _,
        } => format!("template {template} {generation}"),
        Origin::Container { host, container } => format!("container {host}/{container}"),
    }
}

/// A fact in a few words, without the host or the container it is about where that can be told from the place.
pub fn fact(fact: &Fact) -> String {
    match fact {
        Fact::HostObserved { host, properties } => {
            let of = |name: &str| properties.get(name).map_or("?", String::as_str);
            format!("host {host} runs {}, Linux {}", of("os"), of("kernel"))
        }
        Fact::HostInstalled { host } => format!("host {host} is installed"),
        Fact::HostUninstalled { host } => format!("host {host} is not installed any more"),
        Fact::HostPrepared {
            host,
            bridge,
            gateway,
        } => format!("host {host} is prepared: bridge {bridge} {gateway}"),
        Fact::HostUnprepared { host } => format!("host {host} is not prepared any more"),
        Fact::ContainerCreated {
            container,
            origin: from,
            backing,
            ..
        } => format!("{container} created from {} ({backing})", origin(from)),
        Fact::ContainerIdentified {
            container,
            host_keys,
            ..
        } => format!(
            "{container} has its own identity and {}",
            count(host_keys.len(), "host key")
        ),
        Fact::ContainerStarted { container, .. } => format!("{container} started"),
        Fact::ContainerAddressed {
            container, address, ..
        } => format!("{container} answers at {address}"),
        Fact::ContainerStopped { container, .. } => format!("{container} stopped"),
        Fact::ContainerDestroyed { container, .. } => format!("{container} destroyed"),
        Fact::KeysAuthorized {
            container, keys, ..
        } => format!("{container} lets {} in", count(keys.len(), "key")),
        Fact::Provisioned {
            container, entry, ..
        } => format!("{container} ran entry {entry} of its provisioning"),
        Fact::TemplatePresent {
            host,
            template,
            generation,
            size_bytes,
            ..
        } => format!(
            "template {template} {generation} is on {host} ({})",
            bytes(*size_bytes)
        ),
        Fact::TemplateAbsent {
            host,
            template,
            generation,
        } => format!("template {template} {generation} is gone from {host}"),
    }
}

/// A class of failure in words.
pub const fn class(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Exists => "in the way",
        FailureClass::Missing => "missing",
        FailureClass::DiskFull => "disk full",
        FailureClass::Permission => "not allowed",
        FailureClass::Verification => "not what it must be",
        FailureClass::Command => "command failed",
        FailureClass::Timeout => "took too long",
        FailureClass::Host => "host not as it must be",
        FailureClass::Peer => "the other end failed",
        FailureClass::Interrupted => "interrupted",
        FailureClass::Fenced => "fenced",
        FailureClass::Unknown => "not understood",
        FailureClass::Other => "failed",
    }
}

/// The ink of an operation's status.
pub const fn operation_ink(status: OperationStatus) -> Ink {
    match status {
        OperationStatus::Succeeded => Ink::Good,
        OperationStatus::Failed | OperationStatus::Stuck => Ink::Bad,
        OperationStatus::Intended
        | OperationStatus::Running
        | OperationStatus::Interrupted
        | OperationStatus::RollingBack => Ink::Open,
        OperationStatus::RolledBack | OperationStatus::Abandoned => Ink::Faint,
    }
}

/// The ink of a step's status.
pub const fn step_ink(status: &StepStatus) -> Ink {
    match status {
        StepStatus::Pending => Ink::Faint,
        StepStatus::Started | StepStatus::Doubted { .. } => Ink::Open,
        StepStatus::Succeeded { .. } => Ink::Good,
        StepStatus::Failed(_) | StepStatus::Drifted { .. } => Ink::Bad,
    }
}
