//! A staging directory: `rootfs/` and what lies beside it while an operation works on it.
//!
//! Its name holds the operation and the step that made it, so what is in it belongs to that operation. Files
//! beside `rootfs/` never leave it, but for those that a template consists of.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::durable;
use crate::step::{Context, failure};
use crate::tree::Root;

/// The tree.
pub const ROOTFS: &str = "rootfs";
/// The configuration for containers made from it.
pub const CONFIG: &str = "config";
/// LXC's configuration of the container it was copied from.
pub const CONFIG_SOURCE: &str = "config.source";
/// What identified that container inside its tree; see [`Identity`].
pub const IDENTITY: &str = "identity.source";
/// What is in it, as hashes.
pub const MANIFEST: &str = "manifest";

/// What identified a container inside its tree, read before anything was scrubbed, for the leak scan to look
/// for. It lies beside the tree only, and is never published or reported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Identity {
    /// Machine ids, of systemd and D-Bus.
    pub machine_ids: Vec<String>,
    /// The base64 blobs of its public SSH host keys.
    pub host_keys: Vec<String>,
    /// Host names.
    pub names: Vec<String>,
}

impl Identity {
    /// Reads it from a tree.
    pub fn of(root: &Root) -> Self {
        let read = |path: &str| {
            // What can't be read here is found by the scan's other rules, which do not depend on this.
            let bytes = root.read(Path::new(path), 4096).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        let mut machine_ids = vec![read("etc/machine-id"), read("var/lib/dbus/machine-id")];
        machine_ids.retain(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        machine_ids.dedup();
        let names = root.list(Path::new("etc/ssh")).unwrap_or_default();
        let host_keys = names
            .iter()
            .filter_map(|name| name.to_str())
            .filter(|name| name.starts_with("ssh_host_") && name.ends_with(".pub"))
            .map(|name| read(&format!("etc/ssh/{name}")))
            .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
            .filter(|blob| blob.len() >= 40)
            .collect();
        let mut names = vec![read("etc/hostname")];
        names.retain(|name| !name.is_empty() && name != "localhost");
        Identity {
            machine_ids,
            host_keys,
            names,
        }
    }
}

/// A staging directory that a step of the running operation filled.
pub struct Staged {
    /// The directory.
    pub dir: PathBuf,
    /// The tree in it.
    pub root: Root,
}

impl Staged {
    /// The one of a step.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(context: &Context<'_>, staged: StepIndex) -> Result<Self, StepFailure> {
        let dir = context.layout.staging(context.origin.0, staged);
        let path = dir.join(ROOTFS);
        let root = Root::open(&path).map_err(|error| StepFailure {
            hint: Some("roll the operation back, then run it again".to_owned()),
            ..error.failure(&dir)
        })?;
        Ok(Staged { dir, root })
    }

    /// A small file beside the tree; `None` when it is not there.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StepFailure> {
        read(&self.dir, name)
    }

    /// What a step left beside the tree; `None` when it left nothing.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StepFailure> {
        load(&self.dir, name)
    }
}

/// The longest file beside a tree.
const BESIDE_LEN_MAX: usize = 16 << 20;

/// A small file in a directory of ours; `None` when it, or the directory, is not there.
///
/// # Errors
/// When it can't be read.
pub fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, StepFailure> {
    let root = match Root::open(dir) {
        Err(error) if error.is_missing() => return Ok(None),
        other => other.map_err(|error| error.failure(dir))?,
    };
    root.read_optional(Path::new(name), BESIDE_LEN_MAX)
        .map_err(|error| error.failure(dir))
}

/// What was stored in a directory of ours.
///
/// # Errors
/// When it can't be read or understood.
pub fn load<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, StepFailure> {
    read(dir, name)?
        .map(|bytes| codec::decode(&bytes).map_err(|error| failure(FailureClass::Unknown, &error)))
        .transpose()
}

/// Writes a file into a directory of ours, durably and whole; for root alone to read.
///
/// # Errors
/// When it can't be written.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StepFailure> {
    Ok(durable::write(&dir.join(name), 0o600, bytes)?)
}

/// Stores something in a directory of ours.
///
/// # Errors
/// When it can't be written.
pub fn store<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), StepFailure> {
    let bytes = codec::encode(value).map_err(|error| failure(FailureClass::Unknown, &error))?;
    write(dir, name, &bytes)
}
