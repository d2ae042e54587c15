//! Where things are on a host. One place names every path, so that undo and the tests can name them too.

use std::path::{Path, PathBuf};

use tallybook_events::ids::{Generation, LogId, OperationId, StepIndex};
use tallybook_events::name::{ContainerName, TemplateName};

/// The directories that everything else is below. Tests point them into a temporary directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The host's own root, for what others own and steps look at: `proc`, `sys`, `etc/os-release`. Normally `/`.
    pub root: PathBuf,
    /// LXC's own path: a directory a container. Normally `/var/lib/lxc`.
    pub lxc: PathBuf,
    /// The tool's state. Normally `/var/lib/tallybook`.
    pub state: PathBuf,
    /// The tool's configuration. Normally `/etc/tallybook`.
    pub etc: PathBuf,
    /// Where units of systemd go. Normally `/etc/systemd/system`.
    pub units: PathBuf,
}

/// The tool's own directory on LXC's file system.
pub(crate) const OWN: &str = ".tallybook";

impl Default for Layout {
    fn default() -> Self {
        Layout {
            root: PathBuf::from("/"),
            lxc: PathBuf::from("/var/lib/lxc"),
            state: PathBuf::from("/var/lib/tallybook"),
            etc: PathBuf::from("/etc/tallybook"),
            units: PathBuf::from("/etc/systemd/system"),
        }
    }
}

impl Layout {
    /// The same layout below another root, for tests.
    pub fn below(root: &Path) -> Self {
        Layout {
            root: root.to_owned(),
            lxc: root.join("var/lib/lxc"),
            state: root.join("var/lib/tallybook"),
            etc: root.join("etc/tallybook"),
            units: root.join("etc/systemd/system"),
        }
    }

    /// A container's directory.
    pub fn container(&self, name: &ContainerName) -> PathBuf {
        self.lxc.join(name.as_str())
    }

    /// What the tool keeps on LXC's own file system, so that a rename publishes and extents can be shared.
    /// `lxc-ls` does not list it, since it holds no `config`.
    pub fn own(&self) -> PathBuf {
        self.lxc.join(OWN)
    }

    /// Where one step of one operation builds what it later renames into place.
    pub fn staging(&self, operation: OperationId, step: StepIndex) -> PathBuf {
        self.own()
            .join("staging")
            .join(format!("{operation}-{step}"))
    }

    /// Bootstrapped base systems, shared by later creates.
    pub fn cache(&self) -> PathBuf {
        self.own().join("cache")
    }

    /// All generations of a template.
    pub fn template(&self, name: &TemplateName) -> PathBuf {
        self.own().join("templates").join(name.as_str())
    }

    /// One generation of a template: holds `rootfs/`, `manifest` and `config`.
    pub fn generation(&self, name: &TemplateName, generation: Generation) -> PathBuf {
        self.template(name).join(generation.to_string())
    }

    /// The receipts of one log.
    pub fn receipts(&self, log: LogId) -> PathBuf {
        self.state.join("receipts").join(log.to_string())
    }

    /// Settings of the kernel that the tool makes at boot.
    pub fn sysctl(&self) -> PathBuf {
        self.root.join("etc/sysctl.d/60-tallybook.conf")
    }

    /// Lock files.
    pub fn locks(&self) -> PathBuf {
        self.state.join("locks")
    }
}
