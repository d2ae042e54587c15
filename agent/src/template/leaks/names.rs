//! Files whose very place or form says that they must not be published, whatever identifies the source.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::tree::Error;
use crate::tree::walk::Found;

type Hit = (&'static str, String);

/// The longest file that is judged by its lines.
const LINES_LEN_MAX: u64 = 8 << 20;

/// What a file that is not empty is by its path.
pub(super) fn by_path(path: &Path, found: &Found) -> Result<Vec<Hit>, Error> {
    let mut hits = Vec::new();
    let mut hit = |rule, what: &str| hits.push((rule, what.to_owned()));
    let name = path.file_name().unwrap_or_default().as_bytes();
    let shown = path.to_string_lossy();
    if path.starts_with("etc/ssh") && name.starts_with(b"ssh_host_") {
        hit("host-key", "an SSH host key");
    }
    if path.starts_with("etc/dropbear") && name.ends_with(b"_host_key") {
        hit("host-key", "an SSH host key");
    }
    if matches!(&*shown, "etc/machine-id" | "var/lib/dbus/machine-id") {
        hit("machine-id", "a machine id");
    }
    if is_history(path, name) {
        hit("history", "a history of what was typed");
    }
    if is_credential(path) {
        hit("credentials", "stored credentials");
    }
    if is_seed(path, name) {
        hit("seed", "a seed, or an id that a machine keeps");
    }
    if name.starts_with(b"authorized_keys") && has_line(found, |line| !line.starts_with(b"#"))? {
        hit("authorized-keys", "keys that may log in");
    }
    if is_account_file(path) && has_line(found, holds_hash)? {
        hit("password-hash", "the hash of a password");
    }
    if path.starts_with("var/cache/debconf")
        && name.starts_with(b"passwords.dat")
        && has_line(found, |line| line.starts_with(b"Value:") && line.len() > 7)?
    {
        hit("credentials", "a password that a package asked for");
    }
    Ok(hits)
}

fn is_history(path: &Path, name: &[u8]) -> bool {
    let is_named_so = name.starts_with(b".")
        && (name.ends_with(b"history")
            || name.ends_with(b"_hist")
            || name == b".histfile"
            || name == b".viminfo"
            || name == b".lesshst");
    is_named_so || path.ends_with("fish/fish_history")
}

fn is_credential(path: &Path) -> bool {
    [
        ".netrc",
        ".pgpass",
        ".my.cnf",
        ".git-credentials",
        ".aws/credentials",
        ".docker/config.json",
        ".kube/config",
        ".vault-token",
        ".config/gh/hosts.yml",
        "gcloud/credentials.db",
        "etc/krb5.keytab",
        "etc/docker/key.json",
        "etc/salt/pki/minion/minion.pem",
    ]
    .iter()
    .any(|end| path.ends_with(end))
        || path
            .components()
            .any(|part| part.as_os_str() == "private-keys-v1.d")
}

fn is_seed(path: &Path, name: &[u8]) -> bool {
    [
        "var/lib/systemd/random-seed",
        "var/lib/urandom/random-seed",
        "var/lib/systemd/credential.secret",
        "etc/hostid",
    ]
    .iter()
    .any(|file| path == Path::new(file))
        || (["var/lib/dhcp", "var/lib/NetworkManager", "var/lib/dhcpcd"]
            .iter()
            .any(|dir| path.starts_with(dir))
            && (name.ends_with(b".leases")
                || name.ends_with(b".lease")
                || name == b"secret_key"
                || name == b"duid"))
}

fn is_account_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (path.starts_with("etc") || path.starts_with("var/backups"))
        && ["shadow", "gshadow", "passwd", "group"]
            .iter()
            .any(|start| {
                name.strip_prefix(start)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.', '~']))
            })
}

/// Whether the second field of an account's line is a hash, of crypt(3) in any of its forms.
fn holds_hash(line: &[u8]) -> bool {
    let mut fields = line.split(|byte| *byte == b':');
    let (Some(_), Some(password), Some(_)) = (fields.next(), fields.next(), fields.next()) else {
        return false;
    };
    let hash = password
        .iter()
        .position(|byte| *byte != b'!')
        .map_or(&[][..], |at| &password[at..]);
    hash.starts_with(b"$") || hash.starts_with(b"_") || hash.len() >= 13
}

fn has_line(found: &Found, is_it: fn(&[u8]) -> bool) -> Result<bool, Error> {
    let mut text = Vec::new();
    found
        .open()?
        .take(LINES_LEN_MAX)
        .read_to_end(&mut text)
        .map_err(|source| super::unread(&found.entry.path, source))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .any(|line| !line.is_empty() && is_it(line)))
}
