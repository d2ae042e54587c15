//! Random but legal histories: what a sound controller may write, sealed into records that hold together.
//!
//! The same choices give the same bytes; no clock and no randomness are used.

use std::collections::BTreeMap;

use tallybook_events::event::{
    AllocationMade, AllocationReleased, ErasureAnnounced, ErasureCause, ErasureCompleted, Event,
    InventoryRecorded, LogCreated, LogFenced, LogRecovered, Loss, OperationAbandoned,
    OperationFailed, OperationIntended, OperationInterrupted, OperationPlanned, OperationResumed,
    OperationRolledBack, OperationStuck, OperationSucceeded, OutputCaptured, Resolution,
    SegmentsArchived, SegmentsRestored, SessionRecorded, StepAdopted, StepDoubted, StepDrifted,
    StepFailed, StepForced, StepStarted, StepSucceeded, StepUnstarted, fixed,
};
use tallybook_events::header::{ClaimRef, Header};
use tallybook_events::ids::{Attempt, Blob, Epoch, EventId, Hash, OperationId, Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::record::Record;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;

use crate::samples;

/// The kinds that came later than the first program: the log's own upkeep, and some of operations.
const LATER: &[&str] = &[
    "erasure.announced",
    "erasure.completed",
    "segments.archived",
    "segments.restored",
    "log.recovered",
    "log.fenced",
    "operation.abandoned",
    "step.drifted",
    "step.forced",
    "step.adopted",
    "operation.paced",
    "operation.lacked",
];

/// A history being told.
#[derive(Clone)]
pub struct Story {
    /// Its records so far.
    pub records: Vec<Record>,
    links: BTreeMap<Subject, (Seq, Hash)>,
    choices: u64,
    operations: u32,
    epoch: Epoch,
    /// How many appends a write has, and how many are in the last one.
    write_appends: usize,
    appends: usize,
}

#[derive(Clone, Copy, Default)]
struct Place {
    operation: Option<OperationId>,
    claim: Option<ClaimRef>,
    step: Option<(u32, u32)>,
}

impl Story {
    /// Begins a history; the choices decide how it goes.
    pub fn new(choices: u64) -> Self {
        let mut story = Story {
            records: Vec::new(),
            links: BTreeMap::new(),
            choices: choices | 1,
            operations: 0,
            epoch: Epoch(1),
            write_appends: 1,
            appends: 0,
        };
        story.append(
            Place::default(),
            Subject::Cloud,
            vec![
                LogCreated {
                    tool_version: "0.1.0".to_owned(),
                }
                .into(),
                inventory(),
            ],
        );
        story
    }

    /// A history of at least so many events.
    pub fn of(choices: u64, events: usize) -> Self {
        let mut story = Story::new(choices);
        while story.records.len() < events {
            story.operate();
        }
        story
    }

    /// A history of at least so many events, with so many appends a write.
    pub fn in_writes(choices: u64, events: usize, appends: usize) -> Self {
        let mut story = Story::new(choices);
        story.write_appends = appends;
        while story.records.len() < events {
            story.operate();
        }
        story
    }

    /// Another history with the same beginning: at least so many more events, all in one write.
    #[must_use]
    pub fn branch(&self, choices: u64, events: usize) -> Self {
        let mut story = self.clone();
        story.choices = choices | 1;
        story.write_appends = usize::MAX;
        story.appends = 0;
        while story.records.len() < self.records.len() + events {
            story.operate();
        }
        story
    }

    /// A history in which every kind of event occurs.
    pub fn of_all_kinds() -> Self {
        Story::of_first_kinds()
            .kept_up()
            .shut_out()
            .given_up()
            .met_others()
            .paced()
    }

    /// A history in which every kind occurs that the first program knew.
    pub fn of_first_kinds() -> Self {
        let mut choices = 1;
        loop {
            let story = Story::of(choices, 40);
            let has = |kind: &str| {
                story
                    .records
                    .iter()
                    .any(|record| record.header.kind == kind)
            };
            let is_later = |kind: &str| LATER.contains(&kind);
            if tallybook_events::event::KINDS
                .iter()
                .all(|(kind, _)| has(kind) || is_later(kind))
            {
                return story;
            }
            choices += 2;
        }
    }

    /// The same history, and behind it what the log's own upkeep writes: output is erased, segments come and go, and
    /// the log is recovered without having lost anything.
    ///
    /// # Panics
    /// When nothing in it can be erased.
    #[must_use]
    pub fn kept_up(mut self) -> Self {
        let erasable = |record: &&Record| record.header.erasable && record.header.seq > Seq(2);
        let seq = self.records.iter().find(erasable).unwrap().header.seq;
        let announced = ErasureAnnounced {
            cause: ErasureCause::Redaction,
            reason: "it was not to be kept".to_owned(),
            events: vec![samples::range(seq.0, seq.0)],
        };
        self.upkeep(announced);
        let announced = self.records.last().unwrap().header.seq;
        self.records[seq.0 as usize - 1].erase();
        self.upkeep(ErasureCompleted {
            announced,
            payloads: 1,
        });
        self.upkeep(SegmentsArchived {
            directory: "/srv/archive".to_owned(),
            segments: vec![samples::range(1, 5)],
        });
        self.upkeep(SegmentsRestored {
            segments: vec![samples::range(1, 5)],
        });
        self.recover("a host refused it", Vec::new());
        self
    }

    /// The same history, and behind it a host that was shown what this log does not have, and what was done about it.
    #[must_use]
    pub fn shut_out(mut self) -> Self {
        self.upkeep(LogFenced {
            host: samples::host("cn1"),
            seen: samples::mark(),
        });
        self.recover("the other line is lost", Vec::new());
        self
    }

    /// The same history, and behind it an operation that has a pace, and could not have a host.
    #[must_use]
    pub fn paced(mut self) -> Self {
        let subject = Subject::Host(samples::host("cn1"));
        let (_, place, _) = self.begin(&subject, samples::intents()[0].clone());
        let its_own =
            |event: &Event| matches!(event, Event::OperationPaced(_) | Event::OperationLacked(_));
        let mut events: Vec<Event> = samples::events().into_iter().filter(its_own).collect();
        let reason = "a host was away".to_owned();
        events.push(OperationInterrupted { reason }.into());
        self.append(place, subject, events);
        self
    }

    /// The same history, and behind it an operation of which first the rollback is given up, and then it itself.
    #[must_use]
    pub fn given_up(mut self) -> Self {
        let subject = Subject::Container(samples::host("cn1"), samples::container("web"));
        let given_up = || OperationAbandoned {
            reason: "the host is scrapped".to_owned(),
        };
        let (id, place, _) = self.begin(&subject, samples::intents()[0].clone());
        let failed = OperationFailed {
            reason: "it could not go on".to_owned(),
        };
        self.append(place, subject.clone(), vec![failed.into()]);
        let (_, rollback, _) = self.begin(&subject, Intent::Rollback { operation: id });
        self.append(rollback, subject.clone(), vec![given_up().into()]);
        self.append(place, subject, vec![given_up().into()]);
        self
    }

    /// The same history, and behind it an operation of which one step met what others had made: it was forced in vain, then
    /// that was taken over; and all of it is taken back by a rollback of several.
    #[must_use]
    pub fn met_others(mut self) -> Self {
        let subject = Subject::Container(samples::host("cn2"), samples::container("web"));
        let to = self
            .records
            .last()
            .map_or(Seq::NONE, |last| last.header.seq);
        let (id, place, began) = self.begin(&subject, samples::intents()[0].clone());
        let steps = vec![samples::planned(0, &[])];
        self.append(
            place,
            subject.clone(),
            vec![OperationPlanned { steps }.into()],
        );
        let of_step = Place {
            step: Some((0, 1)),
            ..place
        };
        let reason = || "it is what was wanted".to_owned();
        let started = StepStarted {
            kind: "container.start".to_owned(),
            journal: None,
        };
        let drifted = StepDrifted {
            what: "another one is there".to_owned(),
        };
        let forced = StepForced { reason: reason() };
        self.append(of_step, subject.clone(), vec![started.into()]);
        self.append(of_step, subject.clone(), vec![drifted.into()]);
        self.append(of_step, subject.clone(), vec![forced.into()]);
        let done = tallybook_events::step::StepDone {
            changed: false,
            output: Blob(vec![0x80]),
            facts: vec![samples::facts()[1].clone()],
            captured: Vec::new(),
        };
        let adopted = StepAdopted {
            reason: reason(),
            done,
        };
        self.append(of_step, subject.clone(), vec![adopted.into()]);
        let own = |record: &&Record| record.header.operation == Some(id);
        let events = self.records[began..].iter().filter(own).count() as u64 + 1;
        self.append(place, subject, vec![OperationSucceeded { events }.into()]);
        self.take_back(to, vec![id], Vec::new());
        self
    }

    /// The log is recovered without what was lost of it, in a new epoch.
    pub fn recover(&mut self, reason: &str, losses: Vec<Loss>) {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.upkeep(LogRecovered {
            reason: reason.to_owned(),
            losses,
        });
    }

    /// Something that the log's own upkeep writes.
    pub fn upkeep(&mut self, event: impl Into<Event>) {
        self.append(Place::default(), Subject::Cloud, vec![event.into()]);
    }

    fn choose(&mut self, among: u64) -> u64 {
        // splitmix64: every seed gives a full-period sequence.
        self.choices = self.choices.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.choices;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % among
    }

    /// One append.
    fn append(&mut self, place: Place, subject: Subject, events: Vec<Event>) {
        let count = events.len();
        let next = Seq(self.records.len() as u64 + 1);
        let begun = self.records.last().map(|last| last.header.write);
        let goes_on = self.appends > 0 && self.appends < self.write_appends;
        let write = begun.filter(|_| goes_on).unwrap_or(next);
        self.appends = if goes_on { self.appends + 1 } else { 1 };
        for (position, event) in events.into_iter().enumerate() {
            let seq = self.records.len() as u64 + 1;
            let (kind, kind_version) = event.kind().unwrap();
            let (subject_previous_seq, subject_previous) = self
                .links
                .get(&subject)
                .copied()
                .unwrap_or((Seq::NONE, Hash::ZERO));
            let mut unique = [0; 10];
            unique[2..].copy_from_slice(&seq.to_be_bytes());
            let header = Header {
                log: samples::log(),
                epoch: self.epoch,
                seq: Seq(seq),
                previous: self.records.last().map_or(Hash::ZERO, |last| last.hash),
                subject: subject.clone(),
                subject_previous_seq,
                subject_previous,
                event: EventId::new(1_795_000_000_000, unique),
                kind: kind.into(),
                kind_version,
                time_unix_us: 1_795_000_000_000_000 + seq,
                actor: samples::actor().into(),
                writer: samples::writer().into(),
                claim: place.claim,
                operation: place.operation,
                step: place.step.map(|(step, _)| StepIndex(step)),
                attempt: Attempt(place.step.map_or(0, |(_, attempt)| attempt)),
                more: (count - position - 1) as u16,
                write,
                cause: place.claim.map_or(Seq::NONE, |claim| claim.seq),
                outcome: event.outcome(),
                erasable: fixed(kind, kind_version).unwrap().erasable,
                payload_len: 0,
                commitment: Hash::ZERO,
            };
            let payload = event.encode().unwrap();
            let record = Record::seal(header, [seq as u8 | 1; 32], payload).unwrap();
            self.links.insert(subject.clone(), (Seq(seq), record.hash));
            self.records.push(record);
        }
    }

    /// Something that a program printed.
    pub fn capture(&mut self, text: &[u8]) {
        let captured = tallybook_events::step::Captured {
            command: "cat".to_owned(),
            exit: Some(0),
            text: Blob(text.to_vec()),
            dropped_bytes: 0,
        };
        let output = OutputCaptured { captured };
        self.append(Place::default(), Subject::Cloud, vec![output.into()]);
    }

    /// One operation from its intent to some end.
    pub fn operate(&mut self) {
        let subject = Subject::Container(
            samples::host(["cn1", "cn2", "cn3"][self.choose(3) as usize]),
            samples::container(["web", "db"][self.choose(2) as usize]),
        );
        let mut intents = samples::intents();
        // Of those that there were when the stores that are kept in the repository were written: its draws must stay theirs.
        let is_newer = |intent: &Intent| matches!(intent, Intent::DnsApply { .. });
        intents.retain(|intent| !intent.is_rollback() && !is_newer(intent));
        let plain = self.choose(intents.len() as u64) as usize;
        let (id, place, began) = self.begin(&subject, intents[plain].clone());
        if self.choose(3) == 0 {
            let allocation = samples::events().into_iter().find_map(|event| match event {
                Event::AllocationMade(made) => Some(made.allocation),
                _ => None,
            });
            let allocation = allocation.unwrap();
            let made = AllocationMade {
                allocation: allocation.clone(),
            };
            self.append(place, subject.clone(), vec![made.into()]);
            if self.choose(2) == 0 {
                let released = AllocationReleased { allocation };
                self.append(place, subject.clone(), vec![released.into()]);
            }
        }
        let steps = self.choose(4) as u32;
        let plan: Vec<PlannedStep> = (0..steps)
            .map(|index| samples::planned(index, if index == 0 { &[] } else { &[0] }))
            .collect();
        self.append(
            place,
            subject.clone(),
            vec![OperationPlanned { steps: plan }.into()],
        );
        let whole = (0..steps).all(|step| self.step(place, &subject, step));
        let count = |story: &Story| {
            let of = |record: &&Record| record.header.operation == Some(id);
            story.records[began..].iter().filter(of).count() as u64
        };
        if whole {
            let events = count(self) + 1;
            self.append(place, subject, vec![OperationSucceeded { events }.into()]);
            return;
        }
        let reason = || "it could not go on".to_owned();
        let end: Event = match self.choose(3) {
            0 => OperationInterrupted { reason: reason() }.into(),
            1 => OperationFailed { reason: reason() }.into(),
            _ => OperationStuck { reason: reason() }.into(),
        };
        self.append(
            place,
            subject.clone(),
            vec![end, OperationResumed {}.into()],
        );
        let (by, rollback, _) = self.begin(&subject, Intent::Rollback { operation: id });
        let none = OperationPlanned { steps: Vec::new() };
        self.append(rollback, subject.clone(), vec![none.into()]);
        // Written under the claim of the operation that took it back.
        let taken_back = Place {
            operation: Some(id),
            ..rollback
        };
        self.append(
            taken_back,
            subject.clone(),
            vec![OperationRolledBack { by }.into()],
        );
        self.append(
            rollback,
            subject,
            vec![OperationSucceeded { events: 3 }.into()],
        );
    }

    /// Everything that was begun behind an event is taken back, as one operation: by these steps, each of which succeeds.
    pub fn take_back(&mut self, to: Seq, operations: Vec<OperationId>, steps: Vec<PlannedStep>) {
        let subject = Subject::Cloud;
        let count = steps.len() as u32;
        let taken_back = operations.clone();
        let (by, place, began) = self.begin(&subject, Intent::RollbackTo { to, operations });
        let planned = OperationPlanned { steps };
        self.append(place, subject.clone(), vec![planned.into()]);
        for step in 0..count {
            let place = Place {
                step: Some((step, 1)),
                ..place
            };
            let started = StepStarted {
                kind: "container.start".to_owned(),
                journal: None,
            };
            let done = StepSucceeded {
                resolution: Resolution::Reported,
                done: tallybook_events::step::StepDone {
                    changed: true,
                    output: Blob(vec![0x80]),
                    facts: Vec::new(),
                    captured: Vec::new(),
                },
            };
            self.append(place, subject.clone(), vec![started.into(), done.into()]);
        }
        for id in taken_back {
            let rolled_back = OperationRolledBack { by };
            let place = Place {
                operation: Some(id),
                ..place
            };
            self.append(place, subject.clone(), vec![rolled_back.into()]);
        }
        let own = |record: &&Record| record.header.operation == Some(by);
        let events = self.records[began..].iter().filter(own).count() as u64 + 1;
        self.append(place, subject, vec![OperationSucceeded { events }.into()]);
    }

    /// It is begun to take these back as one, and given up before any of it was done.
    pub fn give_up_taking_back(&mut self, to: Seq, operations: Vec<OperationId>) {
        let subject = Subject::Cloud;
        let (_, place, _) = self.begin(&subject, Intent::RollbackTo { to, operations });
        let planned = OperationPlanned { steps: Vec::new() };
        let given_up = OperationAbandoned {
            reason: "not after all".to_owned(),
        };
        self.append(place, subject, vec![planned.into(), given_up.into()]);
    }

    fn begin(&mut self, subject: &Subject, intent: Intent) -> (OperationId, Place, usize) {
        self.operations += 1;
        let id = match u8::try_from(self.operations) {
            Ok(number) => samples::operation(number),
            Err(_) => {
                let mut unique = [0xee; 10];
                unique[6..].copy_from_slice(&self.operations.to_be_bytes());
                OperationId::new(1_795_000_000_000, unique)
            }
        };
        let began = self.records.len();
        let place = Place {
            operation: Some(id),
            ..Place::default()
        };
        let intended = OperationIntended {
            intent,
            inventory: Seq(2),
            claims: vec![subject.clone()],
        };
        self.append(place, subject.clone(), vec![intended.into()]);
        let claim = ClaimRef {
            seq: Seq(self.records.len() as u64),
            hash: self.records[began].hash,
        };
        let place = Place {
            claim: Some(claim),
            ..place
        };
        (id, place, began)
    }

    /// Carries a step out; `false` when it did not end well.
    fn step(&mut self, place: Place, subject: &Subject, step: u32) -> bool {
        for attempt in 1..=2 {
            let place = Place {
                step: Some((step, attempt)),
                ..place
            };
            let started = StepStarted {
                kind: "container.start".to_owned(),
                journal: None,
            };
            self.append(place, subject.clone(), vec![started.into()]);
            if self.choose(4) == 0 {
                let doubted = StepDoubted {
                    why: "the line dropped".to_owned(),
                };
                self.append(place, subject.clone(), vec![doubted.into()]);
            }
            match self.choose(6) {
                0 => {
                    let unstarted = StepUnstarted {
                        why: "no receipt".to_owned(),
                    };
                    self.append(place, subject.clone(), vec![unstarted.into()]);
                }
                1 => {
                    let failed = StepFailed {
                        resolution: Resolution::Receipt,
                        failure: tallybook_events::step::StepFailure {
                            class: samples::FAILURE_CLASSES[self.choose(13) as usize],
                            message: "it failed".to_owned(),
                            hint: None,
                            captured: Vec::new(),
                        },
                    };
                    self.append(place, subject.clone(), vec![failed.into()]);
                }
                _ => {
                    let mut events = self.reported();
                    let facts = samples::facts();
                    let fact = self.choose(facts.len() as u64) as usize;
                    events.push(
                        StepSucceeded {
                            resolution: Resolution::Reported,
                            done: tallybook_events::step::StepDone {
                                changed: self.choose(2) == 0,
                                output: Blob(vec![0x80]),
                                facts: vec![facts[fact].clone()],
                                captured: Vec::new(),
                            },
                        }
                        .into(),
                    );
                    self.append(place, subject.clone(), events);
                    return true;
                }
            }
        }
        false
    }

    /// What a step may report besides its outcome.
    fn reported(&mut self) -> Vec<Event> {
        let choice = self.choose(4);
        let wanted = |event: &Event| match event {
            Event::OutputCaptured(OutputCaptured { .. }) => choice == 0,
            Event::SessionRecorded(SessionRecorded { .. }) => choice == 1,
            _ => false,
        };
        samples::events().into_iter().filter(wanted).collect()
    }
}

fn inventory() -> Event {
    InventoryRecorded {
        path: "cloud.toml".to_owned(),
        hash: Hash([0xab; 32]),
        text: Blob(b"[hosts.cn1]\n".to_vec()),
    }
    .into()
}
