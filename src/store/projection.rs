//! The projections: the folded state, an entity a key, in a small database of their own that opens at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_replay::state::{CODE_VERSION, Head, Key, State};

use super::{Error, guarded, open_database};
use crate::journal::Position;

const META: &[u8] = b"\0meta";

/// What the projections say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    code_version: u32,
    head: Head,
    next: Position,
}

/// What the database of projections holds.
#[derive(Debug)]
pub enum Stored {
    /// Nothing yet.
    Nothing,
    /// A state that another version of the code folded.
    OtherVersion(u32),
    /// A state.
    State {
        /// The state.
        state: Box<State>,
        /// Where the record after its head begins in the journal.
        next: Position,
    },
}

/// The part of [`Meta`] that every version of it has.
#[derive(Deserialize)]
struct MetaVersion {
    code_version: u32,
}

/// The database of projections.
pub struct Projection {
    path: PathBuf,
    database: sled::Db,
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
        })
    }

    /// The stored state.
    ///
    /// # Errors
    /// When sled refuses, or a value can't be read.
    pub fn load(&self) -> Result<Stored, Error> {
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
        for item in self.database.iter() {
            let (key, value) = guarded(&self.path, || item)?;
            let Some((class, key)) = key.split_first() else {
                continue;
            };
            match *class {
                b'l' => drop(state.links.insert(self.decode(key)?, self.decode(&value)?)),
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
                _ => {}
            }
        }
        Ok(Stored::State {
            state: Box::new(state),
            next: meta.next,
        })
    }

    /// Writes what changed, and the head, as one.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn save(
        &self,
        state: &State,
        touched: &BTreeSet<Key>,
        next: Position,
    ) -> Result<(), Error> {
        self.save_as(CODE_VERSION, state, touched, next)
    }

    fn save_as(
        &self,
        code_version: u32,
        state: &State,
        touched: &BTreeSet<Key>,
        next: Position,
    ) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for key in touched {
            match key {
                Key::Link(subject) => {
                    self.put(&mut batch, b'l', subject, state.links.get(subject))?;
                }
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
                Key::Operation(id) => self.put(&mut batch, b'o', id, state.operations.get(id))?,
                Key::Claim(subject) => {
                    self.put(&mut batch, b'm', subject, state.claims.get(subject))?;
                }
                Key::Inventory => {
                    self.put(&mut batch, b'i', &(), state.inventory.as_ref())?;
                }
            }
        }
        let meta = Meta {
            code_version,
            head: state.head,
            next,
        };
        batch.insert(META, self.encode(&meta)?);
        guarded(&self.path, || self.database.apply_batch(batch))
    }

    /// Replaces everything by a state folded afresh.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn replace(&self, state: &State, next: Position) -> Result<(), Error> {
        self.replace_as(CODE_VERSION, state, next)
    }

    /// Replaces everything by what another version of the code folded.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn replace_as(
        &self,
        code_version: u32,
        state: &State,
        next: Position,
    ) -> Result<(), Error> {
        guarded(&self.path, || self.database.clear())?;
        let mut all: BTreeSet<Key> = BTreeSet::new();
        all.extend(state.links.keys().cloned().map(Key::Link));
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
        if state.inventory.is_some() {
            all.insert(Key::Inventory);
        }
        self.save_as(code_version, state, &all, next)
    }

    /// Lets sled write what it holds back. Durability does not depend on it.
    ///
    /// # Errors
    /// When sled refuses.
    pub fn flush(&self) -> Result<(), Error> {
        guarded(&self.path, || self.database.flush()).map(|_| ())
    }

    fn put<K: Serialize, V: Serialize>(
        &self,
        batch: &mut sled::Batch,
        class: u8,
        key: &K,
        value: Option<&V>,
    ) -> Result<(), Error> {
        let mut stored = vec![class];
        stored.extend(self.encode(key)?);
        match value {
            Some(value) => batch.insert(stored, self.encode(value)?),
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
