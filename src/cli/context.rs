//! What every command needs: where the log and the inventory are, and the one open log of the process.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use super::argument::ContainerArgument;
use super::error::Error;
use super::resolve;
use crate::cloud::allocate::Key;
use crate::cloud::{Inventory, Limit, Selection, parse};
use crate::log::{self, JOURNAL, Log, Open};
use crate::render::Format;
use tallybook_replay::state::State;

/// An inventory as it was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What it says.
    pub inventory: Inventory,
}

/// Where the log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this store.
    Store(PathBuf),
    /// With the daemon whose sockets are in this directory.
    Daemon(PathBuf),
}

/// What every command needs.
pub struct Context {
    place: Place,
    inventory: Option<PathBuf>,
    format: Format,
    log: OnceCell<Log>,
}

impl Context {
    /// For a place, an inventory where one is named, and a format.
    pub fn new(place: Place, inventory: Option<PathBuf>, format: Format) -> Self {
        Context {
            place,
            inventory,
            format,
            log: OnceCell::new(),
        }
    }

    /// The store's directory.
    ///
    /// # Errors
    /// When only a daemon is to be asked.
    pub fn store(&self) -> Result<&Path, Error> {
        match &self.place {
            Place::Store(store) => Ok(store),
            Place::Daemon(sockets) => Err(Error::StoreNeeded(sockets.clone())),
        }
    }

    /// For whom results are written.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The log; opened once, and given up by [`Context::close`]. What had to be mended is warned of.
    ///
    /// # Errors
    /// When there is none and none may be made, or it can't be used.
    pub async fn open_log(&self, open: Open) -> Result<&Log, Error> {
        self.log
            .get_or_try_init(async || {
                let notice = |notice: String| tracing::warn!("{notice}");
                match &self.place {
                    Place::Store(store) => Log::open(store, open, notice).await,
                    Place::Daemon(sockets) => Log::open_at(sockets).await,
                }
            })
            .await
            .map_err(Error::from)
    }

    /// Whether there is a log.
    ///
    /// # Errors
    /// When the directory can't be read, or there was a log and its journal is gone.
    pub fn has_log(&self) -> Result<bool, Error> {
        match &self.place {
            Place::Store(store) => Ok(log::is_there(store)?),
            Place::Daemon(_) => Ok(true),
        }
    }

    /// The state of the log; of nothing where there is no log.
    ///
    /// # Errors
    /// When there is one and it can't be used.
    pub async fn state_or_empty(&self) -> Result<State, Error> {
        if !self.has_log()? {
            return Ok(State::default());
        }
        Ok(self.open_log(Open::Existing).await?.state().await?)
    }

    /// The journal's directory.
    ///
    /// # Errors
    /// When only a daemon is to be asked.
    pub fn journal(&self) -> Result<PathBuf, Error> {
        Ok(self.store()?.join(JOURNAL))
    }

    /// Gives the log up in good order, where it was opened.
    pub async fn close(self) {
        if let Some(log) = self.log.into_inner() {
            log.close().await;
        }
    }

    /// The inventory's file.
    ///
    /// # Errors
    /// When none is named and there is none in the usual places.
    pub fn inventory_path(&self) -> Result<PathBuf, Error> {
        if let Some(path) = &self.inventory {
            return Ok(path.clone());
        }
        let usual = INVENTORIES.map(PathBuf::from);
        match usual.iter().find(|path| path.exists()) {
            Some(path) => Ok(path.clone()),
            None => Err(Error::NoInventory(usual.to_vec())),
        }
    }

    /// Whether the inventory was named, so that it is found by nobody who does not name it.
    pub fn is_inventory_named(&self) -> bool {
        self.inventory.is_some()
    }

    /// Where a first inventory would be written.
    pub fn new_inventory_path(&self) -> PathBuf {
        let named = self.inventory.clone();
        named.unwrap_or_else(|| PathBuf::from(INVENTORIES[0]))
    }

    /// Reads the inventory.
    ///
    /// # Errors
    /// When there is none, or it is wrong: then with every mistake.
    pub fn load_inventory(&self) -> Result<Loaded, Error> {
        let (path, text) = self.read_inventory()?;
        match parse(&path.display().to_string(), &text) {
            Ok(inventory) => Ok(Loaded {
                path,
                text,
                inventory,
            }),
            Err(diagnostics) => Err(Error::Inventory { path, diagnostics }),
        }
    }

    /// The inventory's file and text, not looked into.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn read_inventory(&self) -> Result<(PathBuf, String), Error> {
        let path = self.inventory_path()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(source) => Err(Error::InventoryFile { path, source }),
        }
    }
}

/// Where an inventory is looked for, in order.
const INVENTORIES: [&str; 2] = ["cloud.toml", "/etc/tallybook/cloud.toml"];

/// The containers and hosts that a limit means; everything without one.
///
/// # Errors
/// When it is wrong, or names something unknown.
pub(super) fn select(inventory: &Inventory, limit: Option<&str>) -> Result<Selection, Error> {
    match limit {
        None => Ok(Selection::everything(inventory)),
        Some(text) => Limit::parse(text)
            .and_then(|limit| limit.select(inventory))
            .map_err(Error::Limit),
    }
}

/// The container that is meant, of those that are there.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn resolve_container(state: &State, argument: &ContainerArgument) -> Result<Key, Error> {
    resolve::container(state.containers.keys(), argument, "in the log")
}

/// The container that is meant, of those in the inventory.
///
/// # Errors
/// When there is none.
pub(super) fn resolve_planned(
    inventory: &Inventory,
    argument: &ContainerArgument,
) -> Result<Key, Error> {
    let keys: Vec<Key> = inventory
        .containers
        .iter()
        .map(|(name, container)| (container.host.clone(), name.clone()))
        .collect();
    resolve::container(&keys, argument, "in the inventory").map_err(|error| match error {
        Error::Unknown {
            what,
            name,
            place,
            nearest,
            hint: _,
        } => Error::Unknown {
            what,
            name,
            place,
            nearest,
            hint: Some("add it to the inventory first"),
        },
        other => other,
    })
}
