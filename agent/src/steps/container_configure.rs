//! `container.configure`: LXC's `config`, and what tells a staged container from all others: name, machine id,
//! SSH host keys, the keys that may log in.
//!
//! The guest's tree is changed from outside and beneath its root only. Host keys are made outside the tree, by
//! the host's own `ssh-keygen`, and then put into it; an operator's own settings are never overwritten.

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_events::allocation::Mac;
use tallybook_events::fact::Origin;
use tallybook_events::ids::StepIndex;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::guest::Guest;
use crate::lxc_config::{self, Config, Init, in_network};
use crate::step::{Context, Done, OutputOf, Program, Step, fail, failure, io_failure};
use crate::steps::container_build::Built;
use crate::{durable, staging};

/// Written last: the identity, so that a probe can tell a configured container from a half configured one.
const IDENTITY: &str = "identity";
/// The host key types that are made: what sshd of Debian looks for.
const KEY_TYPES: [&str; 3] = ["ed25519", "ecdsa", "rsa"];
/// Where sshd looks for the keys that may log in as root, if it is not told otherwise.
const AUTHORIZED: [&str; 2] = ["root/.ssh/authorized_keys", "root/.ssh/authorized_keys2"];
/// The most keys that are named.
const NAMED_MAX: usize = 100;
/// The longest line of a public key that is taken.
const KEY_LEN_MAX: usize = 16 * 1024;

/// Configures a staged container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerConfigure {
    /// The container.
    pub container: ContainerName,
    /// The step that built it.
    pub staged: StepIndex,
    /// What that step reported.
    pub built: OutputOf<Built>,
    /// Its network card, unique in the cloud.
    pub mac: Mac,
    /// The address that the host's DHCP server has reserved for it.
    pub address: Ipv4Addr,
    /// The bridge it is plugged into.
    pub bridge: String,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// The domain of its fully qualified name, when its name has none.
    pub domain: Option<String>,
    /// Public keys that may log in as root, a line each.
    pub keys: Vec<String>,
}

/// What tells the container from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 32 hex digits.
    pub machine_id: String,
    /// SHA-256 fingerprints of its SSH host keys; none where it has no SSH server.
    pub host_keys: Vec<String>,
    /// The comment, or the fingerprint, of each key that may log in as root, whoever put it there.
    pub authorized: Vec<String>,
}

impl ContainerConfigure {
    fn check(&self) -> Result<(), StepFailure> {
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !plain(&self.bridge) || self.bridge.len() > 15 {
            return Err(fail(
                FailureClass::Unknown,
                format!("{:?} is not the name of a bridge", self.bridge),
            ));
        }
        if self.domain.as_deref().is_some_and(|domain| !plain(domain)) {
            return Err(fail(
                FailureClass::Unknown,
                format!("{:?} is not a domain", self.domain),
            ));
        }
        if !in_network(self.address, self.gateway, self.prefix) {
            return Err(fail(
                FailureClass::Host,
                format!(
                    "address {} of container {} is not in the network {}/{} of bridge {}",
                    self.address, self.container, self.gateway, self.prefix, self.bridge
                ),
            ));
        }
        Ok(())
    }

    fn write_config(
        &self,
        context: &Context<'_>,
        dir: &Path,
        guest: &Guest,
        lower: Option<&Path>,
    ) -> Result<(), StepFailure> {
        let operator = dir.join(lxc_config::OPERATOR);
        if fs::symlink_metadata(&operator).is_err() {
            let text = format!(
                "# Settings of your own for container {}, read by LXC after ours. Never overwritten.\n",
                self.container
            );
            durable::write(&operator, 0o644, text.as_bytes())?;
        }
        let config = Config {
            container: &self.container,
            lower,
            mac: self.mac,
            bridge: &self.bridge,
            autostart: self.autostart,
            init: Init::of(guest)?,
            operator: true,
        };
        let text = config.render(context.layout);
        Ok(durable::write(
            &dir.join(lxc_config::NAME),
            0o640,
            text.as_bytes(),
        )?)
    }

    fn name_it(&self, guest: &Guest) -> Result<(), StepFailure> {
        let name = self.container.as_str();
        guest.write("etc/hostname", 0o644, format!("{name}\n").as_bytes())?;
        let old = guest.read("etc/hosts")?.unwrap_or_default();
        let text = hosts(&String::from_utf8_lossy(&old), name, self.domain.as_deref());
        guest.write("etc/hosts", 0o644, text.as_bytes())
    }

    /// Lets the inventory's keys log in as root; those of another container, which this one was made from, no more.
    fn authorize(
        &self,
        context: &mut Context<'_>,
        guest: &Guest,
        origin: &Origin,
    ) -> Result<Vec<String>, StepFailure> {
        for key in &self.keys {
            key_name(context, key)?;
        }
        // A container that moves to another host and keeps its name keeps who may enter it.
        let is_anothers = match origin {
            Origin::Container { container, .. } => *container != self.container,
            Origin::Scratch { .. } | Origin::Template { .. } => false,
        };
        if is_anothers {
            for path in AUTHORIZED {
                guest.remove(path)?;
            }
        }
        if !self.keys.is_empty() {
            guest.directory("root/.ssh", 0o700)?;
            let path = AUTHORIZED[0];
            let old = guest.read(path)?.unwrap_or_default();
            guest.write(path, 0o600, &with_keys(&old, &self.keys))?;
        }
        authorized(context, guest)
    }
}

/// `/etc/hosts` with the container's own name and without another machine's.
pub(crate) fn hosts(old: &str, name: &str, domain: Option<&str>) -> String {
    let names = match (name.split_once('.'), domain) {
        (Some((short, _)), _) => format!("{name} {short}"),
        (None, Some(domain)) => format!("{name}.{domain} {name}"),
        (None, None) => name.to_owned(),
    };
    let mut text = String::new();
    if !old
        .lines()
        .any(|line| line.split_whitespace().next() == Some("127.0.0.1"))
    {
        text.push_str("127.0.0.1 localhost\n");
    }
    for line in old.lines() {
        if line.split_whitespace().next() != Some("127.0.1.1") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str(&format!("127.0.1.1 {names}\n"));
    text
}

/// Type and content of a public key within its line: what makes two lines the same key.
pub(crate) fn key_of(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).find_map(|pair| match pair {
        [kind, content]
            if ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"]
                .iter()
                .any(|prefix| kind.starts_with(prefix))
                && content.len() >= 16
                && content
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')) =>
        {
            Some((*kind, *content))
        }
        _ => None,
    })
}

/// The lines there were, and those keys that were not among them.
pub(crate) fn with_keys(old: &[u8], keys: &[String]) -> Vec<u8> {
    let mut text = old.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for key in keys {
        let now = String::from_utf8_lossy(&text).into_owned();
        let there = now
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .any(|line| key_of(line).is_some() && key_of(line) == key_of(key));
        if !there {
            text.extend_from_slice(key.trim().as_bytes());
            text.push(b'\n');
        }
    }
    text
}

/// What may log in as root: all of it, also what a template or the base brought.
fn authorized(context: &mut Context<'_>, guest: &Guest) -> Result<Vec<String>, StepFailure> {
    let mut names = Vec::new();
    for path in AUTHORIZED {
        // A container may keep its keys behind a symlink of its own, which is not followed here.
        let Ok(text) = guest.read(path) else {
            names.push(format!("whatever /{path} leads to"));
            continue;
        };
        let text = text.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#') && key_of(line).is_some())
            .collect();
        for line in lines.iter().take(NAMED_MAX) {
            names.push(key_name(context, line).unwrap_or_else(|_| "a key without a name".into()));
        }
        if let Some(more) = lines.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
            names.push(format!("{more} more in /{path}"));
        }
    }
    Ok(names)
}

/// A key's comment, else its fingerprint.
fn key_name(context: &mut Context<'_>, line: &str) -> Result<String, StepFailure> {
    let refused = || {
        let start: String = line.chars().take(40).collect();
        fail(
            FailureClass::Unknown,
            format!("{start:?} is not a public key"),
        )
    };
    if line.len() > KEY_LEN_MAX || line.trim().chars().any(char::is_control) {
        return Err(refused());
    }
    let (_, content) = key_of(line).ok_or_else(refused)?;
    let comment = line
        .split_once(content)
        .map(|(_, comment)| comment.trim())
        .unwrap_or_default();
    if !comment.is_empty() {
        return Ok(comment.to_owned());
    }
    let ask = Program::new(["ssh-keygen", "-l", "-f", "-"]).stdin(format!("{}\n", line.trim()));
    let ended = context.run(&ask)?;
    fingerprint(&ended.stdout).ok_or_else(refused)
}

/// The fingerprint in what `ssh-keygen -l` prints.
pub(crate) fn fingerprint(printed: &[u8]) -> Option<String> {
    String::from_utf8_lossy(printed)
        .split_whitespace()
        .find(|word| word.starts_with("SHA256:"))
        .map(str::to_owned)
}

/// A new machine id: 128 random bits (machine-id(5)), as version 4 of a UUID has them.
fn new_machine_id() -> Result<String, StepFailure> {
    let mut bytes = [0_u8; 16];
    let source = Path::new("/dev/urandom");
    File::open(source)
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|e| io_failure("reading", source, &e))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn give_machine_id(guest: &Guest) -> Result<String, StepFailure> {
    let id = new_machine_id()?;
    guest.write("etc/machine-id", 0o444, format!("{id}\n").as_bytes())?;
    if guest.exists("var/lib/dbus")? {
        guest.symlink("/etc/machine-id", "var/lib/dbus/machine-id")?;
    }
    Ok(id)
}

/// New host keys for a guest that has an SSH server, in the place of all old ones; their fingerprints.
fn give_host_keys(
    context: &mut Context<'_>,
    guest: &Guest,
    dir: &Path,
    name: &str,
) -> Result<Vec<String>, StepFailure> {
    if !guest.exists("etc/ssh")? {
        return Ok(Vec::new());
    }
    for old in guest.list("etc/ssh")? {
        if old.starts_with("ssh_host_") && old.contains("_key") {
            guest.remove(&format!("etc/ssh/{old}"))?;
        }
    }
    // Private keys lie here until they are in the tree; removed before this step ends, and by undo.
    let made = dir.join("host-keys");
    staging::remove_dir(&made)?;
    fs::create_dir(&made).map_err(|e| io_failure("making directory", &made, &e))?;
    rustix::fs::chmod(&made, rustix::fs::Mode::RWXU)
        .map_err(|e| io_failure("protecting", &made, &e.into()))?;
    let mut fingerprints = Vec::new();
    for kind in KEY_TYPES {
        let file = format!("ssh_host_{kind}_key");
        let path = made.join(&file);
        let make = Program::new([
            "ssh-keygen",
            "-q",
            "-t",
            kind,
            "-N",
            "",
            "-C",
            &format!("root@{name}"),
            "-f",
            &path.display().to_string(),
        ]);
        context.run(&make.timeout(Duration::from_secs(120)))?;
        let public = format!("{file}.pub");
        for (file, mode) in [(&file, 0o600), (&public, 0o644)] {
            let path = made.join(file);
            let bytes = fs::read(&path).map_err(|e| io_failure("reading", &path, &e))?;
            guest.write(&format!("etc/ssh/{file}"), mode, &bytes)?;
        }
        let path = made.join(&public).display().to_string();
        let ended = context.run(&Program::new(["ssh-keygen", "-l", "-f", &path]))?;
        fingerprints.extend(fingerprint(&ended.stdout));
    }
    staging::remove_dir(&made)?;
    Ok(fingerprints)
}

fn configured(dir: &Path) -> Option<Identity> {
    serde_json::from_slice(&fs::read(dir.join(IDENTITY)).ok()?).ok()
}

impl Step for ContainerConfigure {
    const KIND: &'static str = "container.configure";
    type Output = Identity;

    fn summary(&self) -> String {
        format!(
            "configure {}: {} on {}, new identity",
            self.container, self.address, self.bridge
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let staged = context.layout.staging(context.origin.0, self.staged);
        let published = context.layout.container(&self.container);
        for dir in [&staged, &published] {
            let ours = crate::mark::read(dir)? == Some((context.origin.0, self.staged));
            if let Some(output) = configured(dir).filter(|_| ours) {
                return Done {
                    changed: true,
                    output,
                    facts: Vec::new(),
                }
                .seen();
            }
        }
        if staged.join(lxc_config::NAME).exists() {
            return Ok(Seen::Partial {
                what: "a configuration that was begun".to_owned(),
            });
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Identity>, StepFailure> {
        self.check()?;
        let built = context.output(&self.built)?;
        let dir = context.layout.staging(context.origin.0, self.staged);
        if let Some(output) = configured(&dir) {
            return Ok(Done {
                changed: false,
                output,
                facts: Vec::new(),
            });
        }
        let guest = Guest::open(&dir, built.lower.as_deref())?;
        self.write_config(context, &dir, &guest, built.lower.as_deref())?;
        self.name_it(&guest)?;
        let machine_id = give_machine_id(&guest)?;
        context.link.progress("making host keys", 0, 0);
        let host_keys = give_host_keys(context, &guest, &dir, self.container.as_str())?;
        let authorized = self.authorize(context, &guest, &built.origin)?;
        let output = Identity {
            machine_id,
            host_keys,
            authorized,
        };
        durable::sync_file_system(&dir)?;
        let text = serde_json::to_vec(&output).map_err(|e| failure(FailureClass::Unknown, &e))?;
        durable::write(&dir.join(IDENTITY), 0o644, &text)?;
        Ok(Done {
            changed: true,
            output,
            facts: Vec::new(),
        })
    }

    /// The tree with all that was written to it goes with the build's undo; what is taken back here makes a
    /// repeated configure start afresh.
    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Identity>,
    ) -> Result<Done<()>, StepFailure> {
        let dir = context.layout.staging(context.origin.0, self.staged);
        let mut changed = staging::remove_dir(&dir.join("host-keys"))?;
        for file in [IDENTITY, lxc_config::NAME] {
            if dir.exists() {
                changed |= durable::remove(&dir.join(file))?;
            }
        }
        Ok(Done {
            changed,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIabcdefghijklmnop";

    #[test]
    fn a_key_is_added_once_whatever_its_comment() {
        let keys = [format!("{KEY} me@here")];
        let once = with_keys(b"# mine\nssh-rsa AAAAB3NzaC1yc2EAAAADAQAB old", &keys);
        let text = String::from_utf8(once.clone()).unwrap();
        assert!(text.starts_with("# mine\nssh-rsa AAAAB3NzaC1yc2EAAAADAQAB old\nssh-ed25519 "));
        assert_eq!(
            with_keys(&once, &[format!("from=\"10.0.0.0/8\" {KEY} other")]),
            once
        );
        let commented = with_keys(format!("#{KEY}\n").as_bytes(), &keys);
        assert_eq!(String::from_utf8(commented).unwrap().lines().count(), 2);
        assert_eq!(key_of("hello world"), None);
    }

    #[test]
    fn hosts_names_this_machine_once_and_no_other() {
        let text = hosts(
            "127.0.0.1 localhost\n127.0.1.1 old.test old\n::1 ip6-localhost\n",
            "web",
            Some("a.test"),
        );
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 ip6-localhost\n127.0.1.1 web.a.test web\n"
        );
        assert_eq!(hosts(&text, "web", Some("a.test")), text);
        assert_eq!(
            hosts("", "d.foo.net", None),
            "127.0.0.1 localhost\n127.0.1.1 d.foo.net d\n"
        );
    }

    #[test]
    fn machine_ids_differ_and_have_their_shape() {
        let (a, b) = (new_machine_id().unwrap(), new_machine_id().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 32);
        assert!(a.bytes().all(|c| c.is_ascii_hexdigit()));
    }
}
