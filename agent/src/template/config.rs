//! LXC's configuration of a container: what a template keeps of it, and where its root file system is.
//!
//! A template's configuration is made by a list of what may stay, not of what must go: a key nobody thought of
//! stays behind.

use std::path::PathBuf;

use super::scrub::{Change, Report};

/// The name of the operation that makes a configuration neutral, for `keep`.
pub const OPERATION: &str = "lxc-config";

/// Where the distribution keeps the configuration that comes with LXC.
const LXC_OWN: &str = "/usr/share/lxc/";

/// Keys that say what kind of container it is, and nothing of which one.
const KEPT: &[&str] = &[
    "lxc.arch",
    "lxc.personality",
    "lxc.cap.drop",
    "lxc.cap.keep",
    "lxc.tty.max",
    "lxc.pty.max",
    "lxc.tty.dir",
    "lxc.autodev",
    "lxc.mount.auto",
    "lxc.apparmor.profile",
    "lxc.apparmor.allow_nesting",
    "lxc.apparmor.allow_incomplete",
    "lxc.signal.halt",
    "lxc.signal.reboot",
    "lxc.signal.stop",
    "lxc.init.cmd",
];
/// The same for families of keys.
const KEPT_PREFIXES: &[&str] = &[
    "lxc.cgroup.devices.",
    "lxc.cgroup2.devices.",
    "lxc.prlimit.",
    "lxc.sysctl.",
];
/// Keys that stay where their value is a file of LXC's own.
const KEPT_FILES: &[&str] = &["lxc.include", "lxc.seccomp.profile"];

/// Keys and values of a configuration, in order; comments left out.
fn settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
}

fn is_kept(key: &str, value: &str) -> bool {
    KEPT.contains(&key)
        || KEPT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || (KEPT_FILES.contains(&key) && value.starts_with(LXC_OWN) && !value.contains(".."))
}

/// What a template keeps of a container's configuration, and a report that names the keys left out: keys only,
/// their values may be secret.
pub fn neutral(text: &str) -> (String, Report) {
    let mut kept = String::new();
    let mut report = Report {
        operation: OPERATION.to_owned(),
        count: 0,
        paths: Vec::new(),
    };
    for (key, value) in settings(text) {
        if is_kept(key, value) {
            kept.push_str(&format!("{key} = {value}\n"));
        } else {
            report.count += 1;
            if report.paths.len() < 100 {
                report.paths.push((Change::Removed, key.to_owned()));
            }
        }
    }
    (kept, report)
}

/// Where a root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A plain directory.
    Directory(PathBuf),
    /// Layers of an overlay, the uppermost first.
    Overlay(Vec<PathBuf>),
}

/// Why a container can't be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration does not say where it is.
    #[error("the container's configuration has no lxc.rootfs.path")]
    NoRootfs,
    /// It is on something else than directories.
    #[error("the container's root file system {0:?} is neither a directory nor an overlay")]
    Backing(String),
    /// Its ids are shifted: a copy would hold the host's numbers.
    #[error("the container is unprivileged (lxc.idmap): its files carry shifted ids")]
    IdMap,
}

/// Where the configuration says that the root file system is.
///
/// # Errors
/// When it is missing, or of a kind that can't be copied as files.
pub fn rootfs(text: &str) -> Result<Rootfs, Error> {
    if settings(text).any(|(key, _)| matches!(key, "lxc.idmap" | "lxc.id_map")) {
        return Err(Error::IdMap);
    }
    let value = settings(text)
        .filter(|(key, _)| matches!(*key, "lxc.rootfs.path" | "lxc.rootfs"))
        .last()
        .map(|(_, value)| value)
        .ok_or(Error::NoRootfs)?;
    let backing = || Error::Backing(value.to_owned());
    let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
    if let Some(path) = absolute(value).or_else(|| absolute(value.strip_prefix("dir:")?)) {
        return Ok(Rootfs::Directory(path));
    }
    let layers = value
        .strip_prefix("overlay:")
        .or_else(|| value.strip_prefix("overlayfs:"))
        .ok_or_else(backing)?;
    // LXC writes the lower layers first, the uppermost of them leftmost, and the upper one last.
    let mut layers: Vec<PathBuf> = layers
        .split(':')
        .map(absolute)
        .collect::<Option<_>>()
        .ok_or_else(backing)?;
    let upper = layers.pop().ok_or_else(backing)?;
    if layers.is_empty() {
        return Err(backing());
    }
    layers.insert(0, upper);
    Ok(Rootfs::Overlay(layers))
}

/// Values that identify the container: names, addresses and MACs, for the leak scan.
pub fn identifying(text: &str) -> Vec<String> {
    let is_identifying = |key: &str| {
        matches!(key, "lxc.uts.name" | "lxc.utsname")
            || ((key.starts_with("lxc.net.") || key.starts_with("lxc.network."))
                && [
                    ".hwaddr",
                    ".veth.pair",
                    "ipv4.address",
                    "ipv6.address",
                    ".ipv4",
                    ".ipv6",
                ]
                .iter()
                .any(|end| key.ends_with(end)))
    };
    settings(text)
        .filter(|(key, value)| is_identifying(key) && !value.is_empty())
        .map(|(_, value)| value.split(['/', ' ']).next().unwrap_or(value).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "# Template used: debian\nlxc.include = /usr/share/lxc/config/debian.common.conf\n\
        lxc.include = /root/private.conf\nlxc.arch = amd64\nlxc.net.0.type = veth\n\
        lxc.net.0.hwaddr = 00:16:3e:aa:bb:cc\nlxc.net.0.ipv4.address = 10.0.3.7/24\n\
        lxc.net.0.veth.pair = vweb1\nlxc.uts.name = web1\nlxc.start.auto = 1\n\
        lxc.rootfs.path = dir:/var/lib/lxc/web1/rootfs\nlxc.mount.entry = /srv srv none bind 0 0\n\
        lxc.hook.start = /root/hook\nlxc.environment = TOKEN=secret\nlxc.future.key = x\n\
        lxc.cgroup2.devices.allow = c 1:3 rwm\n";

    #[test]
    fn a_template_keeps_what_kind_of_container_it_is_and_not_which() {
        let (kept, report) = neutral(CONFIG);
        assert_eq!(
            kept,
            "lxc.include = /usr/share/lxc/config/debian.common.conf\nlxc.arch = amd64\n\
             lxc.cgroup2.devices.allow = c 1:3 rwm\n"
        );
        assert_eq!(report.count, 12);
        assert!(!format!("{report:?}").contains("secret"));
        assert_eq!(
            identifying(CONFIG),
            ["00:16:3e:aa:bb:cc", "10.0.3.7", "vweb1", "web1"]
        );
    }

    #[test]
    fn the_root_file_system_is_found_in_every_form_lxc_writes() {
        let path = |text: &str| rootfs(&format!("lxc.rootfs.path = {text}\n"));
        assert_eq!(path("/a"), Ok(Rootfs::Directory("/a".into())));
        assert_eq!(path("dir:/a"), Ok(Rootfs::Directory("/a".into())));
        let layers =
            |paths: &[&str]| Ok(Rootfs::Overlay(paths.iter().map(PathBuf::from).collect()));
        assert_eq!(path("overlay:/low:/up"), layers(&["/up", "/low"]));
        assert_eq!(
            path("overlayfs:/l1:/l2:/up"),
            layers(&["/up", "/l1", "/l2"])
        );
        assert!(matches!(path("btrfs:/a"), Err(Error::Backing(_))));
        assert!(matches!(
            path("overlay:relative:/up"),
            Err(Error::Backing(_))
        ));
        assert!(matches!(path("overlay:/up"), Err(Error::Backing(_))));
        assert_eq!(rootfs("lxc.arch = x\n"), Err(Error::NoRootfs));
        assert_eq!(
            rootfs("lxc.idmap = u 0 100000 65536\nlxc.rootfs.path = /a\n"),
            Err(Error::IdMap)
        );
    }
}
