//! What every test needs: a directory of its own with keys and known_hosts, settings that read nothing of the
//! machine's, and targets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use tallybook::host::known_hosts::{Offered, lookup_name, wire_key};
use tallybook::host::{Bounds, Settings, Target};
use tallybook_events::name::HostName;

pub(crate) const BOUNDS: Bounds = Bounds {
    timeout: Duration::from_secs(20),
    stdout_bytes_max: 1024 * 1024,
};

pub(crate) fn new_key(kind: Algorithm) -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), kind).unwrap()
}

pub(crate) struct World {
    directory: tempfile::TempDir,
    /// The operator's key.
    pub(crate) key: PrivateKey,
    pub(crate) settings: Settings,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("config"), "").unwrap();
        let key = new_key(Algorithm::Ed25519);
        let settings = Settings {
            ssh_config: Some(at("config")),
            known_hosts: vec![at("known_hosts")],
            home: Some(directory.path().to_owned()),
            connect_timeout: Duration::from_secs(5),
            ..Settings::default()
        };
        let world = Self {
            directory,
            key,
            settings,
        };
        world.write_key("id", &world.key);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write_key(&self, name: &str, key: &PrivateKey) -> PathBuf {
        let path = self.path(name);
        let text = key.to_openssh(LineEnding::LF).unwrap();
        std::fs::write(&path, text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// Records a host's key for 127.0.0.1 at a port.
    pub(crate) fn trust(&self, port: u16, key: &PrivateKey) {
        let offered = offered(port, key);
        let file = self.path("known_hosts");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!("{text}{}\n", offered.line())).unwrap();
    }

    pub(crate) fn target(&self, name: &str, port: u16) -> Target {
        Target {
            name: HostName::new(name).unwrap(),
            address: "127.0.0.1".to_owned(),
            port: Some(port),
            user: Some("root".to_owned()),
            identity_files: vec![self.path("id")],
            jumps: Vec::new(),
            become_root: false,
            local: false,
        }
    }
}

pub(crate) fn offered(port: u16, key: &PrivateKey) -> Offered {
    Offered {
        lookup: lookup_name("127.0.0.1", port, None),
        key: wire_key(key.public_key()).unwrap(),
    }
}

/// A local target.
pub(crate) fn local() -> Target {
    Target {
        name: HostName::new("here").unwrap(),
        address: "here".to_owned(),
        port: None,
        user: None,
        identity_files: Vec::new(),
        jumps: Vec::new(),
        become_root: false,
        local: true,
    }
}

pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
