//! Declared secrets: read from where the inventory says that they live, when an operation is carried out.
//!
//! Values are held in memory, given to hosts that need them, and never written. What is known is taken out of all
//! that is recorded or shown.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tallybook_agent::mask::Mask;
use tallybook_agent::protocol::SecretsTold;
use tallybook_agent::scrub;
use tallybook_agent::secret::{self, Secret, SecretName, Secrets, Unfit, VALUE_LEN_MAX, Values};
use tallybook_agent::steps;
use tallybook_events::name::HostName;
use tallybook_events::step::{Action, PlannedStep};

use crate::cloud::inventory::{Inventory, SecretSource};

/// The most bytes of all secrets together: each is looked for in many forms.
const ALL_LEN_MAX: usize = 64 * 1024;

/// Where a secret should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// Nowhere: the inventory does not declare it.
    Undeclared,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => write!(f, "the file {}", path.display()),
            Place::Variable(name) => write!(f, "the variable {name}"),
            Place::Undeclared => f.write_str("the inventory"),
        }
    }
}

/// A secret that could not be read: its name and where it should be, never what it is.
#[derive(Debug, thiserror::Error)]
#[error("secret {name} can't be had from {place}")]
pub struct Error {
    /// Its name.
    pub name: SecretName,
    /// Where it should be.
    pub place: Place,
    /// Why not.
    #[source]
    pub why: Arc<Why>,
}

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a directory, a pipe, a device.
    #[error("it is no plain file")]
    NoFile,
    /// Others may read or write it.
    #[error("others than its owner may use the file: its mode is {0:04o}")]
    Open(u32),
    /// There is no such variable.
    #[error("it is not set")]
    Unset,
    /// The value can't be a secret.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// There are too many.
    #[error("all secrets together have more than {ALL_LEN_MAX} bytes")]
    TooMuch,
    /// The inventory lacks it.
    #[error("it is not declared there")]
    Undeclared,
}

impl Error {
    /// What to do next.
    pub fn hint(&self) -> String {
        match (&self.place, &*self.why) {
            (Place::File(path), Why::Open(_)) => {
                format!("close it to others: chmod 600 {}", path.display())
            }
            (Place::File(path), Why::Io(_) | Why::NoFile) => format!(
                "put the value into {}, for the user alone who runs tallybook",
                path.display()
            ),
            (Place::Variable(name), Why::Unset) => {
                format!("run tallybook with {name} in its environment")
            }
            (_, Why::Undeclared) => format!("declare it: [secrets.{}]", self.name),
            (_, Why::TooMuch) => "declare fewer, or shorter ones".to_owned(),
            (Place::File(_) | Place::Variable(_) | Place::Undeclared, _) => {
                "give it another value".to_owned()
            }
        }
    }
}

/// The secrets that an inventory declares, as far as they can be read.
#[derive(Debug, Default)]
pub struct Declared {
    known: Secrets,
    unread: BTreeMap<SecretName, (Place, Arc<Why>)>,
    /// Which of them the containers of a host name.
    hosts: BTreeMap<HostName, BTreeSet<SecretName>>,
}

impl Declared {
    /// Reads what can be read.
    pub fn read(inventory: &Inventory, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut values = Values::new();
        let mut unread = BTreeMap::new();
        let mut len = 0;
        for (name, declared) in &inventory.secrets {
            let (place, value) = match &declared.source {
                SecretSource::File(path) => (Place::File(path.into()), read_file(Path::new(path))),
                SecretSource::Env(named) => {
                    let value = variable(named).ok_or(Why::Unset);
                    let value = value.map(|value| Secret::new(value.into_vec()));
                    (Place::Variable(named.clone()), value)
                }
            };
            let value = value.and_then(|value| {
                secret::check(value.expose())?;
                len += value.expose().len();
                (len <= ALL_LEN_MAX).then_some(value).ok_or(Why::TooMuch)
            });
            match value {
                Ok(value) => drop(values.insert(name.clone(), value)),
                Err(why) => drop(unread.insert(name.clone(), (place, Arc::new(why)))),
            }
        }
        let mut hosts: BTreeMap<HostName, BTreeSet<SecretName>> = BTreeMap::new();
        for container in inventory.containers.values() {
            let names = container.provision.iter().flat_map(|entry| &entry.secrets);
            let host = hosts.entry(container.host.clone()).or_default();
            host.extend(names.cloned());
        }
        Declared {
            known: Secrets::new(values),
            unread,
            hosts,
        }
    }

    /// What takes them out of texts.
    pub const fn mask(&self) -> &Mask {
        self.known.mask()
    }

    /// Those that could not be read, and why.
    pub fn unread(&self) -> impl Iterator<Item = Error> {
        self.unread.iter().map(|(name, (place, why))| Error {
            name: name.clone(),
            place: place.clone(),
            why: Arc::clone(why),
        })
    }

    /// Which secrets each host is told: those that containers there name, and those that its steps need.
    pub fn needs<'a>(
        &self,
        steps: impl IntoIterator<Item = &'a PlannedStep>,
    ) -> BTreeMap<HostName, BTreeSet<SecretName>> {
        let mut needs = self.hosts.clone();
        for step in steps {
            let host = needs.entry(step.host.clone()).or_default();
            host.extend(named_by(step));
        }
        needs
    }

    /// These, for a host; those that could not be read are left out.
    pub fn told(&self, names: &BTreeSet<SecretName>) -> SecretsTold {
        let value = |name: &SecretName| {
            let value = self.known.get(name)?;
            Some((name.clone(), Secret::new(value.expose().clone())))
        };
        SecretsTold {
            values: names.iter().filter_map(value).collect(),
        }
    }

    /// The first secret that a step needs and that could not be read.
    ///
    /// # Errors
    /// When there is one.
    pub fn check(&self, step: &PlannedStep) -> Result<(), Error> {
        for name in named_by(step) {
            if self.known.get(&name).is_some() {
                continue;
            }
            let (place, why) = match self.unread.get(&name) {
                Some((place, why)) => (place.clone(), Arc::clone(why)),
                None => (Place::Undeclared, Arc::new(Why::Undeclared)),
            };
            return Err(Error { name, place, why });
        }
        Ok(())
    }
}

/// The secrets that a step needs: to be taken back it needs none.
fn named_by(step: &PlannedStep) -> Vec<SecretName> {
    let row = match step.action {
        Action::Forward => steps::find(&step.kind),
        Action::Undo { .. } => None,
    };
    // A step whose parameters can't be read is refused by its host.
    let names = row.and_then(|row| (row.secrets)(&step.params).ok());
    names.unwrap_or_default()
}

fn read_file(path: &Path) -> Result<Secret<Vec<u8>>, Why> {
    // A pipe would be waited for.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    check_file(&file)?;
    // One byte more than may be, and a line's end: what is longer is told as that.
    let most = VALUE_LEN_MAX + 3;
    let mut value = Vec::with_capacity(most);
    file.take(most as u64).read_to_end(&mut value)?;
    for end in [b'\n', b'\r'] {
        if value.last() == Some(&end) {
            value.pop();
        }
    }
    Ok(Secret::new(value))
}

fn check_file(file: &File) -> Result<(), Why> {
    let about = file.metadata()?;
    let mode = about.mode() & 0o7777;
    if !about.is_file() {
        return Err(Why::NoFile);
    }
    if mode & 0o077 != 0 {
        return Err(Why::Open(mode));
    }
    Ok(())
}

/// What is known to this process, for messages: they come from anywhere in it.
static SHOWN: RwLock<Vec<Arc<Declared>>> = RwLock::new(Vec::new());

/// From now on these are taken out of messages, besides those that somebody still has.
pub fn watch_over(declared: &Arc<Declared>) {
    let mut shown = SHOWN.write().unwrap_or_else(PoisonError::into_inner);
    shown.retain(|known| Arc::strong_count(known) > 1);
    shown.push(Arc::clone(declared));
}

/// The bytes without secrets that this process knows, and without what looks like one.
pub fn clean(bytes: &[u8]) -> Vec<u8> {
    let shown = SHOWN.read().unwrap_or_else(PoisonError::into_inner);
    let Some((first, others)) = shown.split_first() else {
        return scrub::scrub(bytes);
    };
    let others = others.iter();
    others.fold(first.mask().clean(bytes), |cleaned, declared| {
        declared.mask().clean(&cleaned)
    })
}

/// The text without secrets that this process knows, and without what looks like one.
pub fn clean_text(text: &str) -> String {
    String::from_utf8_lossy(&clean(text.as_bytes())).into_owned()
}

#[cfg(test)]
mod tests;
