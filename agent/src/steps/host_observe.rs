//! `host.observe`: what a host is, and whether the tool can work there.
//!
//! It changes nothing, but for a file of a few bytes that it makes and removes to try a reflink.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{ioctl_ficlone, statvfs};
use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::layout::Layout;
use crate::step::{Context, Done, Program, Step, fail, io_failure};

/// Looks at a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostObserve {}

fn text(layout: &Layout, path: &str) -> String {
    fs::read_to_string(layout.root.join(path)).unwrap_or_default()
}

/// A value of `os-release`, os-release(5), without its quotes.
fn os_release(layout: &Layout, key: &str) -> Option<String> {
    let text = text(layout, "etc/os-release");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// What is missing for the tool to work here; empty when nothing is.
fn missing(layout: &Layout, root: bool, system: &str, machine: &str) -> Vec<String> {
    let mut missing = Vec::new();
    if !root {
        missing.push("root: the agent does not run as root".to_owned());
    }
    if system != "Linux" || !matches!(machine, "x86_64" | "aarch64") {
        missing.push(format!(
            "Linux on x86_64 or aarch64: this is {system} on {machine}"
        ));
    }
    let first = text(layout, "proc/1/comm");
    if first.trim_end() != "systemd" || !layout.root.join("run/systemd/system").is_dir() {
        missing.push(format!("systemd: process 1 is {:?}", first.trim_end()));
    }
    let program = |name: &str| {
        ["usr/bin", "bin"]
            .iter()
            .any(|dir| layout.root.join(dir).join(name).exists())
    };
    if !program("apt-get") || !program("dpkg-query") {
        let os =
            os_release(layout, "PRETTY_NAME").unwrap_or_else(|| "an unknown system".to_owned());
        missing.push(format!(
            "Debian, or a system made from it, with apt: this is {os}"
        ));
    }
    missing
}

/// The directory nearest to a path that is there.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|at| at.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// The type of the file system that holds a path, by the mount table, proc_pid_mountinfo(5).
pub(crate) fn filesystem(mountinfo: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), Some(kind)) = (front.split(' ').nth(4), back.split(' ').next()) else {
            continue;
        };
        // A later mount hides an earlier one on the same place.
        let depth = Path::new(point).components().count();
        if path.starts_with(point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

/// Removes what it names when it goes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Best effort: a few bytes under a name of the tool's, which the next try makes anew.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether files can share their content here.
fn reflink(directory: &Path) -> Result<bool, StepFailure> {
    let make = |name: &str| {
        let path = directory.join(name);
        let file = fs::remove_file(&path)
            .or_else(|e| {
                (e.kind() == std::io::ErrorKind::NotFound)
                    .then_some(())
                    .ok_or(e)
            })
            .and_then(|()| File::create_new(&path))
            .map_err(|e| io_failure("trying a reflink with", &path, &e))?;
        Ok::<_, StepFailure>((file, Removed(path)))
    };
    let (mut from, from_path) = make(".tallybook-reflink-from")?;
    let (to, _to_path) = make(".tallybook-reflink-to")?;
    from.write_all(&[b'x'; 8192])
        .map_err(|e| io_failure("writing", &from_path.0, &e))?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}

fn cgroup(layout: &Layout) -> &'static str {
    let at = layout.root.join("sys/fs/cgroup");
    if at.join("cgroup.controllers").exists() {
        "v2"
    } else if at.join("unified").exists() {
        "hybrid"
    } else {
        "v1"
    }
}

fn processors(cpuinfo: &str) -> usize {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count()
}

pub(crate) fn memory_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn lxc_version(context: &mut Context<'_>) -> Option<String> {
    let program = Program::new(["lxc-start", "--version"]).timeout(Duration::from_secs(10));
    let ended = context.link.run(&program).ok()?;
    let version = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    (ended.exit == Some(0) && !version.is_empty()).then_some(version)
}

fn properties(context: &mut Context<'_>) -> Result<BTreeMap<String, String>, StepFailure> {
    let layout = context.layout;
    let uname = rustix::system::uname();
    let at = nearest(&layout.lxc);
    let space = statvfs(&at).map_err(|e| io_failure("measuring", &at, &e.into()))?;
    let mut found = BTreeMap::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            found.insert(key.to_owned(), value);
        }
    };
    put("os", os_release(layout, "PRETTY_NAME"));
    put(
        "kernel",
        Some(uname.release().to_string_lossy().into_owned()),
    );
    put("arch", Some(uname.machine().to_string_lossy().into_owned()));
    put(
        "cpus",
        Some(processors(&text(layout, "proc/cpuinfo")).to_string()),
    );
    put(
        "memory_bytes",
        memory_bytes(&text(layout, "proc/meminfo")).map(|b| b.to_string()),
    );
    put(
        "disk_free_bytes",
        Some(space.f_bavail.saturating_mul(space.f_frsize).to_string()),
    );
    put(
        "filesystem",
        filesystem(&text(layout, "proc/self/mountinfo"), &at),
    );
    put("reflink", Some(reflink(&at)?.to_string()));
    let known = text(layout, "proc/filesystems");
    let overlay = known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    put("overlay", Some(overlay.to_string()));
    put("systemd", Some("true".to_owned()));
    put("cgroup", Some(cgroup(layout).to_owned()));
    put("lxc", lxc_version(context));
    Ok(found)
}

impl Step for HostObserve {
    const KIND: &'static str = "host.observe";
    type Output = ();

    fn summary(&self) -> String {
        "look at the host".to_owned()
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "looking changes nothing".to_owned(),
        }
    }

    /// Always absent: what was seen before says nothing of now.
    fn probe(&self, _: &mut Context<'_>) -> Result<Seen, StepFailure> {
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<()>, StepFailure> {
        let uname = rustix::system::uname();
        let missing = missing(
            context.layout,
            rustix::process::geteuid().is_root(),
            &uname.sysname().to_string_lossy(),
            &uname.machine().to_string_lossy(),
        );
        if !missing.is_empty() {
            let mut failure = fail(
                FailureClass::Host,
                format!("{} lacks {}", context.host, missing.join("; ")),
            );
            failure.hint =
                Some("use a Debian host with systemd, and log in to it as root".to_owned());
            return Err(failure);
        }
        Ok(Done {
            changed: false,
            output: (),
            facts: vec![Fact::HostObserved {
                host: context.host.clone(),
                properties: properties(context)?,
            }],
        })
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<()>) -> Result<Done<()>, StepFailure> {
        Ok(Done {
            changed: false,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::Simulated;

    #[test]
    fn says_all_that_is_missing() {
        let sim = Simulated::bare();
        let all = missing(&sim.layout, false, "Linux", "riscv64").join("\n");
        for what in ["root:", "riscv64", "systemd:", "with apt"] {
            assert!(all.contains(what), "{what} is not in {all}");
        }
        let sim = Simulated::installed();
        assert!(missing(&sim.layout, true, "Linux", "aarch64").is_empty());
    }

    #[test]
    fn observes_and_leaves_nothing_behind() {
        let mut sim = Simulated::installed();
        fs::create_dir_all(sim.layout.lxc.parent().unwrap()).unwrap();
        let mut context_properties = BTreeMap::new();
        sim.with(1, |context| {
            context_properties = properties(context).unwrap()
        });
        for key in [
            "kernel",
            "arch",
            "disk_free_bytes",
            "reflink",
            "lxc",
            "cgroup",
        ] {
            assert!(context_properties.contains_key(key), "{key} is missing");
        }
        assert_eq!(context_properties["os"], "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(context_properties["memory_bytes"], "2048000");
        assert_eq!(context_properties["cpus"], "2");
        assert_eq!(context_properties["overlay"], "true");
        let left = fs::read_dir(sim.layout.lxc.parent().unwrap())
            .unwrap()
            .flatten();
        assert!(
            left.into_iter()
                .all(|e| !e.file_name().to_string_lossy().contains("reflink"))
        );
    }

    #[test]
    fn finds_the_mount_that_holds_a_path() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /var rw shared:1 - xfs /dev/b rw\n\
                     3 2 8:3 / /var/lib/lxc rw - btrfs /dev/c rw\nnonsense\n4 1 8:4 / /va rw - zfs x rw\n";
        let at = |path: &str| filesystem(table, Path::new(path)).unwrap();
        assert_eq!(at("/var/lib/lxc"), "btrfs");
        assert_eq!(at("/var/lib"), "xfs");
        assert_eq!(at("/srv"), "ext4");
        assert_eq!(filesystem("", Path::new("/")), None);
    }
}
