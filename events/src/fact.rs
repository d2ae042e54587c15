//! Facts: what became true on a host. Cloud state is folded from these and from nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, Hash};
use crate::name::{ContainerName, HostName, TemplateName};

/// What a container's root file system was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A distribution, bootstrapped on the host.
    Scratch {
        /// `debian` or `busybox`.
        distribution: String,
        /// The release, for example `bookworm`; empty where there is none.
        release: String,
    },
    /// A generation of a template.
    Template {
        /// The template.
        template: TemplateName,
        /// Its generation.
        generation: Generation,
        /// The hash of its manifest.
        manifest: Hash,
    },
    /// Another container.
    Container {
        /// The host it was on.
        host: HostName,
        /// Its name there.
        container: ContainerName,
    },
}

/// How a container's root file system shares storage with what it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// A plain copy.
    Dir,
    /// A copy that shares extents (`FICLONE`).
    Reflink,
    /// An overlay mount over the template.
    Overlay,
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Backing::Dir => "dir",
            Backing::Reflink => "reflink",
            Backing::Overlay => "overlay",
        })
    }
}

/// Something that became true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A host was looked at.
    HostObserved {
        /// The host.
        host: HostName,
        /// `os`, `kernel`, `arch`, `cpus`, `memory_bytes`, `disk_free_bytes`, `filesystem`, `systemd`, ….
        properties: BTreeMap<String, String>,
    },
    /// A host has what the tool itself needs.
    HostInstalled {
        /// The host.
        host: HostName,
    },
    /// What `host install` made was taken away again.
    HostUninstalled {
        /// The host.
        host: HostName,
    },
    /// A host can run containers.
    HostPrepared {
        /// The host.
        host: HostName,
        /// The bridge containers are attached to.
        bridge: String,
        /// The bridge's own address with its prefix length.
        gateway: String,
    },
    /// A host was given back.
    HostUnprepared {
        /// The host.
        host: HostName,
    },
    /// A container is whole and named.
    ContainerCreated {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
        /// What it was made from.
        origin: Origin,
        /// How it is stored.
        backing: Backing,
    },
    /// What tells a container from all others.
    ContainerIdentified {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
        /// `/etc/machine-id`; empty where it is made at first boot.
        machine_id: String,
        /// SHA-256 fingerprints of its SSH host keys.
        host_keys: Vec<String>,
    },
    /// A container runs.
    ContainerStarted {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
    },
    /// A container has an address and answers for it.
    ContainerAddressed {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
        /// The address.
        address: String,
    },
    /// A container does not run.
    ContainerStopped {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
    },
    /// Nothing of a container is left.
    ContainerDestroyed {
        /// Its host.
        host: HostName,
        /// Its name.
        container: ContainerName,
    },
    /// Public keys may log in.
    KeysAuthorized {
        /// The container's host.
        host: HostName,
        /// The container.
        container: ContainerName,
        /// The comment, or the fingerprint, of each key.
        keys: Vec<String>,
    },
    /// A provisioning command ran.
    Provisioned {
        /// The container's host.
        host: HostName,
        /// The container.
        container: ContainerName,
        /// Which entry of the inventory's list, from 0.
        entry: u32,
    },
    /// A generation of a template is whole on a host.
    TemplatePresent {
        /// The host.
        host: HostName,
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
        /// The hash of its manifest: its identity.
        manifest: Hash,
        /// Number of entries.
        entries: u64,
        /// Content in bytes.
        size_bytes: u64,
    },
    /// A generation of a template is gone from a host.
    TemplateAbsent {
        /// The host.
        host: HostName,
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
    },
}
