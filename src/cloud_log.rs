//! Where the inventory meets the log: the text is recorded, and what containers are given is allocated for life.
//!
//! The log decides every race: an allocation is appended only if nothing it was computed from has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tallybook_events::event::{AllocationMade, AllocationReleased, Event, InventoryRecorded};
use tallybook_events::ids::{Blob, Hash, Seq};
use tallybook_events::subject::Subject;
use tallybook_events::{event, record};
use tallybook_replay::state::State;

use crate::cloud::allocate::{self, Entry, Key};
use crate::cloud::{self, Allocation, Inventory, Selection, compile};
use crate::log::{self, Condition, Draft, Filter, Log, Refusal};

/// How often an append is tried anew after somebody else's came first.
const ATTEMPTS_MAX: u32 = 20;
/// How long to wait before that, times the number of the attempt.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Why an inventory could not be recorded, or nothing allocated from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// Two containers would share something, or nothing is left.
    #[error(transparent)]
    Compile(#[from] allocate::Error),
    /// An event has no encoding.
    #[error("can't write an event")]
    Event(#[from] event::Error),
    /// The inventory's text does not fit in an event.
    #[error("{} has {len} bytes; at most {max} can be recorded", path.display(), max = record::PAYLOAD_LEN_MAX / 2)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Somebody recorded another inventory after the one that allocations were to be made from.
    #[error("another inventory was recorded at event {newest}, after the one at event {used}")]
    InventoryReplaced {
        /// The inventory that was to be used.
        used: Seq,
        /// The newest one.
        newest: Seq,
    },
    /// Others kept changing what the allocations depend on.
    #[error("others kept changing the cloud; gave up after {ATTEMPTS_MAX} attempts")]
    Contended(#[source] Refusal),
}

/// What `allocate` found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Every selected container: what it has now, and how that compares with before.
    pub entries: BTreeMap<Key, Entry>,
    /// What was released.
    pub released: BTreeMap<Key, Allocation>,
    /// Recorded for containers that the inventory doesn't have there, and kept, because the container is still there or
    /// an operation holds it.
    pub held: BTreeSet<Key>,
}

impl Outcome {
    /// What the selected containers have now.
    pub fn allocations(&self) -> BTreeMap<Key, Allocation> {
        self.entries
            .iter()
            .map(|(key, entry)| (key.clone(), entry.allocation.clone()))
            .collect()
    }
}

/// The hash under which an inventory's text is recorded.
pub fn text_hash(text: &str) -> Hash {
    blake3::hash(text.as_bytes()).into()
}

/// Records an inventory, unless its text is the newest one recorded. Returns the event that holds it.
///
/// # Errors
/// When the log can't be written, or others kept coming first.
pub async fn record_inventory(log: &Log, path: &Path, text: &str) -> Result<Seq, Error> {
    if text.len() > record::PAYLOAD_LEN_MAX / 2 {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            len: text.len(),
        });
    }
    let hash = text_hash(text);
    let mut attempt = 0;
    loop {
        let state = log.state().await?;
        if let Some((seq, newest)) = state.inventory
            && newest == hash
        {
            return Ok(seq);
        }
        let recorded = InventoryRecorded {
            path: path.display().to_string(),
            hash,
            text: Blob(text.as_bytes().to_vec()),
        };
        let draft = Draft::new(Subject::Cloud, recorded)?;
        let condition = Condition {
            unchanged: Some((vec![Subject::Cloud], state.head.seq)),
            ..Condition::default()
        };
        match log.append(vec![draft], condition).await {
            Ok(appended) => return Ok(appended.first().map_or(Seq::NONE, |first| first.seq)),
            Err(error) => again(error, &mut attempt).await?,
        }
    }
}

/// What an allocation would be, and what would be released, at one point of the log. Changes nothing.
///
/// # Errors
/// When two containers would share something, or nothing is left.
pub fn plan(
    state: &State,
    inventory: &Inventory,
    selection: &Selection,
) -> Result<Outcome, allocate::Error> {
    // Before its first event a log has no id to derive MAC addresses from: callers that show them look at the head.
    let seed = state
        .head
        .log
        .unwrap_or(tallybook_events::ids::LogId::from_bytes([0; 16]));
    let present = state.containers.keys().cloned().collect();
    let compiled = compile(inventory, &state.allocations, &present, selection, &seed)?;
    let mut outcome = Outcome {
        entries: compiled.entries,
        ..Outcome::default()
    };
    let everything = *selection == Selection::everything(inventory);
    for key in compiled.orphans {
        let (host, container) = &key;
        let meant = everything
            || selection.hosts.contains(host)
            || selection.containers.contains(container);
        let subject = Subject::Container(host.clone(), container.clone());
        let in_use = state.containers.contains_key(&key) || state.claims.contains_key(&subject);
        match state.allocations.get(&key) {
            Some(allocation) if meant && !in_use => {
                outcome.released.insert(key, allocation.clone());
            }
            Some(_) | None => {
                outcome.held.insert(key);
            }
        }
    }
    Ok(outcome)
}

/// An allocation that is worked out and not yet in the log.
#[derive(Debug)]
pub struct Made {
    /// What it gives and releases.
    pub outcome: Outcome,
    /// Its events.
    pub drafts: Vec<Draft>,
    /// What must hold for them to be appended.
    pub condition: Condition,
}

/// Works out an allocation at one point of the log: [`allocate()`] appends it by itself, an operation with its plan.
///
/// # Errors
/// [`Error::InventoryReplaced`] when another inventory is the newest one there; else as [`plan`].
pub fn make(
    state: &State,
    inventory: &Inventory,
    selection: &Selection,
    inventory_seq: Seq,
) -> Result<Made, Error> {
    let newest = state.inventory.map_or(Seq::NONE, |(seq, _)| seq);
    if newest != inventory_seq {
        return Err(Error::InventoryReplaced {
            used: inventory_seq,
            newest,
        });
    }
    let outcome = plan(state, inventory, selection)?;
    let drafts = drafts(&outcome, inventory_seq)?;
    let mut condition = Condition::none();
    if !drafts.is_empty() {
        condition.unchanged = Some((depends_on(state, inventory, &outcome), state.head.seq));
        let released = outcome.released.keys().map(subject).collect();
        condition.unclaimed = Some((released, Vec::new()));
    }
    Ok(Made {
        outcome,
        drafts,
        condition,
    })
}

/// What a container was given that is not there and that the newest inventory does not list: nobody will come for it.
///
/// # Errors
/// When the log can't be read.
pub async fn left_over(log: &Log, key: &Key) -> Result<Option<Allocation>, log::Error> {
    let state = log.state().await?;
    let Some(allocation) = state.allocations.get(key) else {
        return Ok(None);
    };
    if state.containers.contains_key(key) {
        return Ok(None);
    }
    let Some((seq, _)) = state.inventory else {
        return Ok(None);
    };
    let entries = log.entries(&Filter::at(seq)).await?;
    let listed = entries.iter().any(|entry| {
        let Event::InventoryRecorded(recorded) = &entry.event else {
            return false;
        };
        let (host, container) = key;
        // One that can't be read lists everything, for all that is known.
        let parsed = cloud::parse(&recorded.path, &recorded.text.to_string());
        parsed.map_or(true, |inventory| {
            let listed = inventory.containers.get(container);
            listed.is_some_and(|listed| listed.host == *host)
        })
    });
    Ok((!listed).then(|| allocation.clone()))
}

/// Gives the selected containers what the inventory says, and releases what belongs to containers that are neither
/// in the inventory nor on their host. `inventory_seq` is the event that recorded this inventory.
///
/// # Errors
/// [`Error::InventoryReplaced`] when another inventory was recorded since: record this one again, then try again, as
/// [`refresh`] does.
pub async fn allocate(
    log: &Log,
    inventory: &Inventory,
    selection: &Selection,
    inventory_seq: Seq,
) -> Result<Outcome, Error> {
    let mut attempt = 0;
    loop {
        let state = log.state().await?;
        let made = make(&state, inventory, selection, inventory_seq)?;
        if made.drafts.is_empty() {
            return Ok(made.outcome);
        }
        match log.append(made.drafts, made.condition).await {
            Ok(_) => return Ok(made.outcome),
            Err(error) => again(error, &mut attempt).await?,
        }
    }
}

/// Records an inventory and allocates from it. Returns the event that holds it, and what came of it.
///
/// # Errors
/// When the log can't be written, two containers would share something, or others kept coming first.
pub async fn refresh(
    log: &Log,
    path: &Path,
    text: &str,
    inventory: &Inventory,
    selection: &Selection,
) -> Result<(Seq, Outcome), Error> {
    let mut attempt = 0;
    loop {
        let seq = record_inventory(log, path, text).await?;
        match allocate(log, inventory, selection, seq).await {
            Ok(outcome) => return Ok((seq, outcome)),
            Err(error @ Error::InventoryReplaced { .. }) => {
                attempt += 1;
                if attempt >= ATTEMPTS_MAX {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn subject((host, container): &Key) -> Subject {
    Subject::Container(host.clone(), container.clone())
}

fn drafts(outcome: &Outcome, inventory: Seq) -> Result<Vec<Draft>, Error> {
    let mut drafts = Vec::new();
    // Released first: what moves is never held twice for longer than within this one append.
    for (key, allocation) in &outcome.released {
        let allocation = allocation.clone();
        drafts.push(Draft::new(subject(key), AllocationReleased { allocation })?);
    }
    for (key, entry) in &outcome.entries {
        if entry.status != allocate::Status::Unchanged {
            let allocation = entry.allocation.clone();
            drafts.push(Draft::new(subject(key), AllocationMade { allocation })?);
        }
    }
    for draft in &mut drafts {
        draft.cause = inventory;
    }
    Ok(drafts)
}

/// The subjects whose change would make what was computed wrong: the cloud, for another inventory; and every
/// container that anyone with this inventory might be allocating for right now, selected here or not. Containers
/// that have what the inventory says are left out: nobody allocates for them, and their everyday events would
/// stand in the way.
fn depends_on(state: &State, inventory: &Inventory, outcome: &Outcome) -> Vec<Subject> {
    let mut subjects = BTreeSet::from([Subject::Cloud]);
    subjects.extend(outcome.released.keys().map(subject));
    let is_open = |entry: &Entry| entry.status != allocate::Status::Unchanged;
    let entries = outcome.entries.iter();
    subjects.extend(
        entries
            .filter(|(_, entry)| is_open(entry))
            .map(|(key, _)| subject(key)),
    );
    match plan(state, inventory, &Selection::everything(inventory)) {
        Ok(whole) => {
            let entries = whole.entries.iter();
            subjects.extend(
                entries
                    .filter(|(_, entry)| is_open(entry))
                    .map(|(key, _)| subject(key)),
            );
        }
        // The rest of the inventory can't be compiled: then any of it may be about to change.
        Err(_) => {
            let containers = inventory.containers.iter();
            subjects.extend(
                containers
                    .map(|(name, container)| subject(&(container.host.clone(), name.clone()))),
            );
            subjects.extend(state.allocations.keys().map(subject));
        }
    }
    subjects.into_iter().collect()
}

/// Waits before the next attempt when somebody else came first; else hands the error on.
async fn again(error: log::Error, attempt: &mut u32) -> Result<(), Error> {
    let log::Error::Refused(refusal @ Refusal::Changed { .. }) = error else {
        return Err(error.into());
    };
    *attempt += 1;
    if *attempt >= ATTEMPTS_MAX {
        return Err(Error::Contended(refusal));
    }
    tokio::time::sleep(RETRY_DELAY * *attempt).await;
    Ok(())
}
