//! A container's `config`: written whole by us, with an operator's own settings in a file that is never
//! overwritten; and read, as far as it says what else on the host a container needs.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tallybook_events::allocation::Mac;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::guest::{Guest, ROOTFS, UPPER};
use crate::layout::Layout;
use crate::step::{fail, io_failure};

/// LXC's file in a container's directory.
pub const NAME: &str = "config";
/// The operator's own settings beside it.
pub const OPERATOR: &str = "operator.conf";

/// What runs as a container's first process, as far as LXC must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// systemd: LXC finds its signals by itself.
    Systemd,
    /// busybox: halts on `SIGUSR1`, reboots on `SIGTERM`.
    Busybox,
    /// Something else, assumed to know LXC's own `SIGPWR`.
    Other,
}

impl Init {
    /// What a tree would start.
    ///
    /// # Errors
    /// When it can't be looked at.
    pub fn of(guest: &Guest) -> Result<Self, StepFailure> {
        if guest
            .readlink("sbin/init")
            .is_some_and(|target| target.ends_with("busybox"))
        {
            return Ok(Init::Busybox);
        }
        for path in ["usr/lib/systemd/systemd", "lib/systemd/systemd"] {
            // Where /lib is a symlink, looking through it fails, and the first path has answered already.
            if guest.exists(path).unwrap_or(false) {
                return Ok(Init::Systemd);
            }
        }
        Ok(Init::Other)
    }
}

/// What a container's `config` says.
#[derive(Debug)]
pub struct Config<'a> {
    /// Its name.
    pub container: &'a ContainerName,
    /// The layer below its root file system, if it is an overlay.
    pub lower: Option<&'a Path>,
    /// Its network card.
    pub mac: Mac,
    /// The bridge it is plugged into.
    pub bridge: &'a str,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// What it starts.
    pub init: Init,
    /// Whether the operator has a file of settings.
    pub operator: bool,
}

impl Config<'_> {
    /// The file's text. Every path in it is the final one.
    pub fn render(&self, layout: &Layout) -> String {
        let home = layout.container(self.container);
        let host = &layout.root;
        let mut text = format!(
            "# Written by tallybook; changes are overwritten. Your own settings belong into {OPERATOR}.\n"
        );
        let mut line = |key: &str, value: &str| {
            text.push_str(&format!("{key} = {value}\n"));
        };
        if let Some(common) = common_config(host, self.init) {
            line("lxc.include", &common.display().to_string());
        }
        match self.lower {
            None => line(
                "lxc.rootfs.path",
                &format!("dir:{}", home.join(ROOTFS).display()),
            ),
            Some(lower) => line(
                "lxc.rootfs.path",
                &format!("overlay:{}:{}", lower.display(), home.join(UPPER).display()),
            ),
        }
        line("lxc.uts.name", self.container.as_str());
        line("lxc.net.0.type", "veth");
        line("lxc.net.0.link", self.bridge);
        line("lxc.net.0.flags", "up");
        line("lxc.net.0.name", "eth0");
        line("lxc.net.0.hwaddr", &self.mac.to_string());
        line("lxc.start.auto", if self.autostart { "1" } else { "0" });
        // No getty would answer on them; `lxc-attach` needs none.
        line("lxc.tty.max", "0");
        match self.init {
            Init::Busybox => {
                line("lxc.signal.halt", "SIGUSR1");
                line("lxc.signal.reboot", "SIGTERM");
            }
            Init::Systemd | Init::Other => {}
        }
        if has_apparmor(host) {
            line("lxc.apparmor.profile", "generated");
            line("lxc.apparmor.allow_nesting", "1");
        }
        if self.operator {
            line("lxc.include", &home.join(OPERATOR).display().to_string());
        }
        text
    }
}

/// LXC's defaults for such a guest, where the host has them.
fn common_config(host: &Path, init: Init) -> Option<PathBuf> {
    let names: &[&str] = match init {
        Init::Systemd => &["debian.common.conf", "common.conf"],
        Init::Busybox | Init::Other => &["common.conf"],
    };
    names
        .iter()
        .map(|name| host.join("usr/share/lxc/config").join(name))
        .find(|path| path.is_file())
}

/// Whether the kernel confines by AppArmor and the host can load a profile.
fn has_apparmor(host: &Path) -> bool {
    let enabled = fs::read_to_string(host.join("sys/module/apparmor/parameters/enabled"));
    enabled.is_ok_and(|text| text.trim() == "Y")
        && ["sbin", "usr/sbin"]
            .iter()
            .any(|dir| host.join(dir).join("apparmor_parser").exists())
}

/// The values of a key, in the order of the file.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
        .collect()
}

/// Whether a container starts with its host, by its `config`.
pub fn starts_with_host(text: &str) -> bool {
    values(text, "lxc.start.auto").last() == Some(&"1")
}

/// Where a container's root file system comes from, by its `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory.
    Dir(PathBuf),
    /// An overlay: the layers below, and the upper one.
    Overlay(Vec<PathBuf>, PathBuf),
    /// Anything else LXC knows, as written.
    Other(String),
}

/// What a `config` says of the root file system; `None` when it says nothing.
pub fn rootfs_of(text: &str) -> Option<Rootfs> {
    let value = *values(text, "lxc.rootfs.path")
        .last()
        .or(values(text, "lxc.rootfs").last())?;
    if let Some(layers) = value
        .strip_prefix("overlay:")
        .or(value.strip_prefix("overlayfs:"))
    {
        let mut parts: Vec<PathBuf> = layers.split(':').map(PathBuf::from).collect();
        let upper = parts.pop()?;
        return Some(Rootfs::Overlay(parts, upper));
    }
    let path = value.strip_prefix("dir:").unwrap_or(value);
    Some(if path.starts_with('/') && !path.starts_with("/dev/") {
        Rootfs::Dir(PathBuf::from(path))
    } else {
        Rootfs::Other(value.to_owned())
    })
}

/// A container's `config`; `None` when it has none.
///
/// # Errors
/// When it is there and can't be read.
pub fn read(dir: &Path) -> Result<Option<String>, StepFailure> {
    let path = dir.join(NAME);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_failure("reading", &path, &e)),
    }
}

/// The same, with what it includes in its place, as LXC reads it: a key in an included file counts as much.
///
/// # Errors
/// When one is there and can't be read, or they include each other without end.
pub fn read_whole(dir: &Path) -> Result<Option<String>, StepFailure> {
    read(dir)?.map(|text| whole(&text)).transpose()
}

/// A configuration's text with what it includes in its place.
///
/// # Errors
/// As [`read_whole`].
pub fn whole(text: &str) -> Result<String, StepFailure> {
    let mut whole = String::new();
    include(text, 0, &mut whole)?;
    Ok(whole)
}

/// How deep files may include others, and how long it all may be.
const INCLUDES_MAX: u32 = 16;
const WHOLE_LEN_MAX: usize = 4 << 20;

fn include(text: &str, depth: u32, whole: &mut String) -> Result<(), StepFailure> {
    for line in text.lines() {
        let setting = line
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()));
        let Some(("lxc.include", path)) = setting else {
            whole.push_str(line);
            whole.push('\n');
            continue;
        };
        if depth >= INCLUDES_MAX || whole.len() > WHOLE_LEN_MAX {
            return Err(fail(
                FailureClass::Host,
                format!("LXC configurations include each other without end, at last {path}"),
            ));
        }
        for path in included(Path::new(path))? {
            match fs::read(&path) {
                Ok(bytes) => include(&String::from_utf8_lossy(&bytes), depth + 1, whole)?,
                // LXC would not start it; what is not there says nothing.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_failure("reading", &path, &e)),
            }
        }
    }
    Ok(())
}

/// The files that an include names: one, or all of a directory that end in `.conf`, lxc.container.conf(5).
fn included(path: &Path) -> Result<Vec<PathBuf>, StepFailure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(|e| io_failure("listing", path, &e))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "conf"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// The layer below a container that is an overlay.
///
/// # Errors
/// When its `config` can't be read.
pub fn lower_of(dir: &Path) -> Result<Option<PathBuf>, StepFailure> {
    let text = read_whole(dir)?.unwrap_or_default();
    Ok(match rootfs_of(&text) {
        Some(Rootfs::Overlay(mut lowers, _)) => lowers.pop(),
        Some(Rootfs::Dir(_) | Rootfs::Other(_)) | None => None,
    })
}

/// The other containers whose root file system lies on something in this container's directory, by their
/// `config` and by LXC's own list of its snapshot clones.
///
/// # Errors
/// When a `config` can't be read.
pub fn dependents(layout: &Layout, container: &ContainerName) -> Result<Vec<String>, StepFailure> {
    let home = layout.container(container);
    let mut found = Vec::new();
    let entries = fs::read_dir(&layout.lxc).map_err(|e| io_failure("listing", &layout.lxc, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| io_failure("listing", &layout.lxc, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == container.as_str() || name.starts_with('.') || !entry.path().is_dir() {
            continue;
        }
        let text = read_whole(&entry.path())?.unwrap_or_default();
        let depends = match rootfs_of(&text) {
            Some(Rootfs::Dir(path)) => path.starts_with(&home),
            Some(Rootfs::Overlay(lowers, _)) => lowers.iter().any(|lower| lower.starts_with(&home)),
            Some(Rootfs::Other(value)) => value.contains(&format!("{}/", home.display())),
            None => false,
        };
        if depends {
            found.push(name);
        }
    }
    // LXC's list: pairs of lines, an LXC path and a name.
    let clones = fs::read_to_string(home.join("lxc_snapshots")).unwrap_or_default();
    let lines: Vec<&str> = clones.lines().map(str::trim).collect();
    for pair in lines.chunks(2) {
        if let [path, name] = pair
            && Path::new(path).join(name).join(NAME).exists()
            && !found.iter().any(|known| known == name)
        {
            found.push((*name).to_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an address lies in the network that the gateway's address and prefix length name.
pub fn in_network(address: Ipv4Addr, gateway: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    address != gateway && u32::from(address) & mask == u32::from(gateway) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_included_counts_as_if_it_stood_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(dir.path().join("more")).unwrap();
        fs::write(path("more/b.conf"), "lxc.rootfs.path = dir:/elsewhere\n").unwrap();
        fs::write(path("more/b.txt"), "lxc.rootfs.path = dir:/nowhere\n").unwrap();
        fs::write(path("a"), format!("lxc.include = {}\n", path("more"))).unwrap();
        let text = format!(
            "lxc.rootfs.path = dir:/here\nlxc.include={}\nlxc.include = {}\n# lxc.include = x\n",
            path("a"),
            path("missing")
        );
        fs::write(path(NAME), &text).unwrap();
        let whole = read_whole(dir.path()).unwrap().unwrap();
        assert_eq!(rootfs_of(&whole), Some(Rootfs::Dir("/elsewhere".into())));
        fs::write(path("a"), format!("lxc.include = {}\n", path("a"))).unwrap();
        let failure = read_whole(dir.path()).unwrap_err();
        assert!(
            failure.message.contains("without end"),
            "{}",
            failure.message
        );
    }

    fn config(name: &ContainerName) -> Config<'_> {
        Config {
            container: name,
            lower: None,
            mac: Mac([0, 0x16, 0x3e, 1, 2, 3]),
            bridge: "tally0",
            autostart: true,
            init: Init::Systemd,
            operator: false,
        }
    }

    #[test]
    fn the_config_names_final_paths_and_only_what_the_host_has() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        let name = ContainerName::new("web").unwrap();
        let text = config(&name).render(&layout);
        let rootfs = layout.container(&name).join("rootfs");
        assert_eq!(rootfs_of(&text), Some(Rootfs::Dir(rootfs)));
        assert_eq!(values(&text, "lxc.net.0.hwaddr"), ["00:16:3e:01:02:03"]);
        assert!(values(&text, "lxc.include").is_empty(), "{text}");
        assert!(!text.contains("apparmor"), "{text}");

        let share = dir.path().join("usr/share/lxc/config");
        fs::create_dir_all(&share).unwrap();
        fs::write(share.join("common.conf"), "").unwrap();
        let parameters = dir.path().join("sys/module/apparmor/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("enabled"), "Y\n").unwrap();
        fs::create_dir_all(dir.path().join("usr/sbin")).unwrap();
        fs::write(dir.path().join("usr/sbin/apparmor_parser"), "").unwrap();
        let lower = dir.path().join("lower");
        let overlay = Config {
            lower: Some(&lower),
            operator: true,
            ..config(&name)
        };
        let text = overlay.render(&layout);
        assert_eq!(values(&text, "lxc.include").len(), 2);
        assert!(
            text.ends_with("/web/operator.conf\n"),
            "the operator has the last word: {text}"
        );
        assert_eq!(values(&text, "lxc.apparmor.profile"), ["generated"]);
        assert_eq!(
            rootfs_of(&text),
            Some(Rootfs::Overlay(
                vec![lower],
                layout.container(&name).join(UPPER)
            ))
        );
    }

    #[test]
    fn whoever_lies_on_a_container_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        let base = ContainerName::new("base").unwrap();
        let home = layout.container(&base);
        let write = |name: &str, rootfs: &str| {
            let dir = layout.lxc.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(NAME), format!("lxc.rootfs.path = {rootfs}\n")).unwrap();
        };
        write("base", &format!("dir:{}/rootfs", home.display()));
        write("base2", &format!("dir:{}2/rootfs", home.display()));
        write(
            "lies",
            &format!("overlay:{}/rootfs:/x/delta", home.display()),
        );
        write("loop", &format!("loop:{}/disk", home.display()));
        assert_eq!(dependents(&layout, &base).unwrap(), ["lies", "loop"]);
        write("clone", "zfs:x/y");
        fs::write(
            home.join("lxc_snapshots"),
            format!("{0}\nclone\n{0}\ngone\n", layout.lxc.display()),
        )
        .unwrap();
        assert_eq!(
            dependents(&layout, &base).unwrap(),
            ["clone", "lies", "loop"]
        );
    }

    #[test]
    fn networks() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert!(in_network(ip("10.5.0.9"), ip("10.5.0.1"), 24));
        assert!(!in_network(ip("10.5.1.9"), ip("10.5.0.1"), 24));
        assert!(in_network(ip("10.5.1.9"), ip("10.5.0.1"), 16));
        assert!(in_network(ip("9.9.9.9"), ip("10.5.0.1"), 0));
        assert!(!in_network(ip("10.5.0.1"), ip("10.5.0.1"), 24));
    }
}
