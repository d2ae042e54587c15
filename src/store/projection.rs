//! The projections: the folded state, an entity a key, in a small database of their own that opens at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::Hash;
use tallybook_replay::state::{CODE_VERSION, Head, Key, State};

use super::{Error, guarded, next, open_database};
use crate::journal::Position;

const META: &[u8] = b"\0meta";

/// What the projections say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    code_version: u32,
    head: Head,
    ends: Ends,
    /// Over the rest of this and every entity: an entity that is lost or changed shows.
    digest: Hash,
}

/// Where in the journal the newest event is that a state has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// Where it begins.
    pub at: Position,
    /// Where the one behind it will.
    pub next: Position,
}

/// What the database of projections holds.
#[derive(Debug)]
pub enum Stored {
    /// Nothing yet.
    Nothing,
    /// A state that another version of the code folded.
    OtherVersion(u32),
    /// A state that is not what was written: something of it was lost or changed.
    Altered(Box<State>),
    /// A state.
    State {
        /// The state.
        state: Box<State>,
        /// Where its head is in the journal.
        ends: Ends,
    },
}

/// The part of [`Meta`] that every version of it has.
#[derive(Deserialize)]
struct MetaVersion {
    code_version: u32,
}

/// What all versions so far have of [`Meta`] besides.
#[derive(Deserialize)]
struct MetaHead {
    head: Head,
}

/// The database of projections.
pub struct Projection {
    path: PathBuf,
    database: sled::Db,
    /// All entities, each hashed with its key, in any order.
    entities: Entities,
}

/// What one write changes, ready to be written. The state may go on meanwhile.
pub struct Staged {
    path: PathBuf,
    database: sled::Db,
    batch: sled::Batch,
}

impl Staged {
    /// Writes it. What was made ready first must be written first.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn write(self) -> Result<(), Error> {
        guarded(&self.path, || self.database.apply_batch(self.batch))
    }
}

/// The hash of each entity with its key, and all of them exclusive-or'ed: one is put in or taken out without reading the
/// others. It shows loss and damage; whoever means to deceive writes the digest anew.
#[derive(Clone, Default)]
struct Entities {
    each: BTreeMap<Vec<u8>, [u8; 32]>,
    all: [u8; 32],
}

impl Entities {
    /// Puts an entity in the place of what its key had; takes it out where there is no value.
    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let before = match value {
            Some(value) => {
                let mut hasher =
                    blake3::Hasher::new_derive_key("tallybook 2026-11 projected entity");
                hasher.update(&(key.len() as u64).to_le_bytes());
                hasher.update(key).update(value);
                let hash = *hasher.finalize().as_bytes();
                self.turn(&hash);
                self.each.insert(key.to_vec(), hash)
            }
            None => self.each.remove(key),
        };
        if let Some(before) = before {
            self.turn(&before);
        }
    }

    fn turn(&mut self, hash: &[u8; 32]) {
        for (byte, turned) in self.all.iter_mut().zip(hash) {
            *byte ^= turned;
        }
    }
}

impl Projection {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// When sled refuses or is damaged.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Projection {
            path: path.to_owned(),
            database: open_database(path)?,
            entities: Entities::default(),
        })
    }

    /// How far it says that the journal went, whichever version wrote it and whether or not the rest can be read.
    ///
    /// # Errors
    /// When sled refuses, or it can't be told.
    pub fn head(&self) -> Result<Option<Head>, Error> {
        match guarded(&self.path, || self.database.get(META))? {
            Some(bytes) => Ok(Some(self.decode::<MetaHead>(&bytes)?.head)),
            None => Ok(None),
        }
    }

    /// The stored state.
    ///
    /// # Errors
    /// When sled refuses, or a value can't be read.
    pub fn load(&mut self) -> Result<Stored, Error> {
        let Some(bytes) = guarded(&self.path, || self.database.get(META))? else {
            return Ok(Stored::Nothing);
        };
        let MetaVersion { code_version } = self.decode(&bytes)?;
        if code_version != CODE_VERSION {
            return Ok(Stored::OtherVersion(code_version));
        }
        let meta: Meta = self.decode(&bytes)?;
        let mut state = State {
            head: meta.head,
            ..State::default()
        };
        let mut entities = Entities::default();
        let mut items = self.database.iter();
        while let Some(item) = next(&self.path, &mut items) {
            let (key, value) = item?;
            if key.as_ref() != META {
                entities.set(&key, Some(&value));
            }
            let Some((class, key)) = key.split_first() else {
                continue;
            };
            match *class {
                b'h' => drop(state.hosts.insert(self.decode(key)?, self.decode(&value)?)),
                b'c' => drop(
                    state
                        .containers
                        .insert(self.decode(key)?, self.decode(&value)?),
                ),
                b't' => drop(
                    state
                        .templates
                        .insert(self.decode(key)?, self.decode(&value)?),
                ),
                b'a' => drop(
                    state
                        .allocations
                        .insert(self.decode(key)?, self.decode(&value)?),
                ),
                b'o' => drop(
                    state
                        .operations
                        .insert(self.decode(key)?, self.decode(&value)?),
                ),
                b'm' => drop(state.claims.insert(self.decode(key)?, self.decode(&value)?)),
                b'i' => state.inventory = Some(self.decode(&value)?),
                b'e' => drop(
                    state
                        .erasures
                        .insert(self.decode(key)?, self.decode(&value)?),
                ),
                b'f' => state.fenced = Some(self.decode(&value)?),
                _ => {}
            }
        }
        let state = Box::new(state);
        if self.digest(entities.all, meta.code_version, &meta.head, meta.ends)? != meta.digest {
            return Ok(Stored::Altered(state));
        }
        self.entities = entities;
        Ok(Stored::State {
            state,
            ends: meta.ends,
        })
    }

    fn digest(
        &self,
        entities: [u8; 32],
        code_version: u32,
        head: &Head,
        ends: Ends,
    ) -> Result<Hash, Error> {
        let mut hasher = blake3::Hasher::new_derive_key("tallybook 2026-11 projected state");
        hasher.update(&entities);
        hasher.update(&self.encode(&(code_version, head, ends))?);
        Ok(Hash(*hasher.finalize().as_bytes()))
    }

    /// Writes what changed, and the head, as one.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn save(
        &mut self,
        state: &State,
        touched: &BTreeSet<Key>,
        ends: Ends,
    ) -> Result<(), Error> {
        self.stage(CODE_VERSION, state, touched, ends)?.write()
    }

    /// Makes ready to write what changed, and the head.
    ///
    /// # Errors
    /// When something has no encoding.
    pub fn stage(
        &mut self,
        code_version: u32,
        state: &State,
        touched: &BTreeSet<Key>,
        ends: Ends,
    ) -> Result<Staged, Error> {
        let mut batch = sled::Batch::default();
        for key in touched {
            match key {
                Key::Host(host) => self.put(&mut batch, b'h', host, state.hosts.get(host))?,
                Key::Container(host, container) => {
                    let key = (host.clone(), container.clone());
                    self.put(&mut batch, b'c', &key, state.containers.get(&key))?;
                }
                Key::Template(template, generation) => {
                    let key = (template.clone(), *generation);
                    self.put(&mut batch, b't', &key, state.templates.get(&key))?;
                }
                Key::Allocation(host, container) => {
                    let key = (host.clone(), container.clone());
                    self.put(&mut batch, b'a', &key, state.allocations.get(&key))?;
                }
                // What is over is found by its events.
                Key::Operation(id) => {
                    let open = state.operations.get(id).filter(|known| known.is_open());
                    self.put(&mut batch, b'o', id, open)?;
                }
                Key::Claim(subject) => {
                    self.put(&mut batch, b'm', subject, state.claims.get(subject))?;
                }
                Key::Inventory => {
                    self.put(&mut batch, b'i', &(), state.inventory.as_ref())?;
                }
                Key::Erasure(seq) => self.put(&mut batch, b'e', seq, state.erasures.get(seq))?,
                Key::Fenced => self.put(&mut batch, b'f', &(), state.fenced.as_ref())?,
            }
        }
        let meta = Meta {
            code_version,
            head: state.head,
            ends,
            digest: self.digest(self.entities.all, code_version, &state.head, ends)?,
        };
        batch.insert(META, self.encode(&meta)?);
        Ok(Staged {
            path: self.path.clone(),
            database: self.database.clone(),
            batch,
        })
    }

    /// Replaces everything by a state folded afresh.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn replace(&mut self, state: &State, ends: Ends) -> Result<(), Error> {
        self.replace_as(CODE_VERSION, state, ends)
    }

    /// Replaces everything by what another version of the code folded.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn replace_as(
        &mut self,
        code_version: u32,
        state: &State,
        ends: Ends,
    ) -> Result<(), Error> {
        guarded(&self.path, || self.database.clear())?;
        self.entities = Entities::default();
        let mut all: BTreeSet<Key> = BTreeSet::new();
        all.extend(state.hosts.keys().cloned().map(Key::Host));
        all.extend(
            state
                .containers
                .keys()
                .cloned()
                .map(|(host, container)| Key::Container(host, container)),
        );
        all.extend(
            state
                .templates
                .keys()
                .cloned()
                .map(|(template, generation)| Key::Template(template, generation)),
        );
        all.extend(
            state
                .allocations
                .keys()
                .cloned()
                .map(|(host, container)| Key::Allocation(host, container)),
        );
        all.extend(state.operations.keys().copied().map(Key::Operation));
        all.extend(state.claims.keys().cloned().map(Key::Claim));
        all.extend(state.erasures.keys().copied().map(Key::Erasure));
        if state.inventory.is_some() {
            all.insert(Key::Inventory);
        }
        if state.fenced.is_some() {
            all.insert(Key::Fenced);
        }
        self.stage(code_version, state, &all, ends)?.write()
    }

    /// Lets sled write what it holds back. Durability does not depend on it.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn flush(&self) -> Result<(), Error> {
        guarded(&self.path, || self.database.flush()).map(|_| ())
    }

    fn put<K: Serialize, V: Serialize>(
        &mut self,
        batch: &mut sled::Batch,
        class: u8,
        key: &K,
        value: Option<&V>,
    ) -> Result<(), Error> {
        let mut stored = vec![class];
        stored.extend(self.encode(key)?);
        let value = value.map(|value| self.encode(value)).transpose()?;
        self.entities.set(&stored, value.as_deref());
        match value {
            Some(value) => batch.insert(stored, value),
            None => batch.remove(stored),
        }
        Ok(())
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, Error> {
        codec::encode(value).map_err(|source| Error::Value {
            path: self.path.clone(),
            source,
        })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Error> {
        codec::decode(bytes).map_err(|source| Error::Value {
            path: self.path.clone(),
            source,
        })
    }
}

/// For the fuzz targets: what [`Projection::load`] decodes, encoded again.
pub(super) fn reread(class: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    use tallybook_events::ids::OperationId;
    use tallybook_events::subject::Subject;
    use tallybook_replay::state;

    fn again<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<Vec<u8>> {
        codec::encode(&codec::decode::<T>(bytes).ok()?).ok()
    }
    match class {
        0 => {
            let meta: Meta = codec::decode(bytes).ok()?;
            let head: MetaHead = codec::decode(bytes).ok()?;
            let version: MetaVersion = codec::decode(bytes).ok()?;
            let is_same = meta.head == head.head && meta.code_version == version.code_version;
            assert!(is_same, "its part says what the whole does not");
            codec::encode(&meta).ok()
        }
        b'h' => again::<state::Host>(bytes),
        b'c' => again::<state::Container>(bytes),
        b't' => again::<state::TemplateGeneration>(bytes),
        b'a' => again::<tallybook_events::allocation::Allocation>(bytes),
        b'o' => again::<state::OperationSummary>(bytes),
        b'm' => again::<OperationId>(bytes),
        b'i' => again::<(tallybook_events::ids::Seq, Hash)>(bytes),
        b'e' => again::<Vec<tallybook_events::event::SeqRange>>(bytes),
        b'f' => again::<(
            tallybook_events::name::HostName,
            tallybook_events::step::Mark,
        )>(bytes),
        // Keys.
        b'S' => again::<Subject>(bytes),
        _ => None,
    }
}
