//! `host.packages`: the distribution's packages that a host needs.
//!
//! It installs what is missing; what is there is upgraded only where a missing package depends on a newer one, which is told. It
//! never removes anything or replaces a changed configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::layout::Layout;
use crate::step::{Context, Done, Ended, Program, Step, fail, io_failure};

/// How old lists of packages may be.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const MIRROR_HINT: &str =
    "a package mirror can't be reached from the host: check its network and name servers";
const APT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A text that names no package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a Debian package")]
pub struct Error(pub String);

/// The name of a Debian package, as Debian's policy has it (5.6.1): never an option, a version or a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Package(String);

impl FromStr for Package {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        // A `+` or `-` at the end would tell apt to install or to remove.
        let good = (2..=128).contains(&text.len())
            && text.bytes().next().is_some_and(first)
            && text
                .bytes()
                .all(|b| first(b) || matches!(b, b'+' | b'-' | b'.'))
            && !text.ends_with('-');
        good.then(|| Package(text.to_owned()))
            .ok_or_else(|| Error(text.to_owned()))
    }
}

impl TryFrom<String> for Package {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Package> for String {
    fn from(package: Package) -> String {
        package.0
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Installs packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPackages {
    /// Which.
    pub packages: Vec<Package>,
}

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The packages asked for that were missing, with the version that is there now.
    pub installed: BTreeMap<String, String>,
}

/// The installed packages among these, with their versions.
fn present(
    context: &mut Context<'_>,
    packages: &[Package],
) -> Result<BTreeMap<String, String>, StepFailure> {
    let mut argv = vec![
        "dpkg-query".to_owned(),
        "--show".to_owned(),
        "--showformat=${Package} ${db:Status-Status} ${Version}\\n".to_owned(),
    ];
    argv.extend(packages.iter().map(ToString::to_string));
    argv.extend(packages.iter().filter_map(instead).map(str::to_owned));
    // Status 1 says that some are unknown to dpkg, which is no error here.
    let ended = context.link.run(&Program::new(argv))?;
    let text = String::from_utf8_lossy(&ended.stdout);
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (name, status, version) = (fields.next()?, fields.next()?, fields.next()?);
            (status == "installed").then(|| (name.to_owned(), version.to_owned()))
        })
        .collect())
}

/// A package that does as well, and that can't be installed beside it.
fn instead(package: &Package) -> Option<&'static str> {
    match package.0.as_str() {
        "busybox" => Some("busybox-static"),
        "busybox-static" => Some("busybox"),
        _ => None,
    }
}

fn apt(arguments: &[&str], packages: &[Package]) -> Program {
    let mut argv: Vec<String> = ["apt-get", "--yes", "--quiet", "--no-install-recommends"]
        .map(str::to_owned)
        .to_vec();
    for option in [
        "Dpkg::Options::=--force-confdef",
        "Dpkg::Options::=--force-confold",
        "DPkg::Lock::Timeout=120",
        "Acquire::http::Timeout=30",
        "Acquire::https::Timeout=30",
        "Acquire::Retries=3",
    ] {
        argv.extend(["--option".to_owned(), option.to_owned()]);
    }
    argv.extend(arguments.iter().map(|s| (*s).to_owned()));
    argv.extend(packages.iter().map(ToString::to_string));
    unattended(Program::new(argv))
}

fn unattended(program: Program) -> Program {
    program
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("NEEDRESTART_SUSPEND", "1")
        .timeout(APT_TIMEOUT)
        .lasting()
}

/// Completes what an interrupted dpkg left, where it left anything: apt refuses to work until then.
fn repair(context: &mut Context<'_>) -> Result<(), StepFailure> {
    let updates = context.layout.root.join("var/lib/dpkg/updates");
    let journal = fs::read_dir(updates).is_ok_and(|mut entries| entries.next().is_some());
    let audit = context.link.run(&Program::new(["dpkg", "--audit"]))?;
    if journal || !audit.stdout.trim_ascii().is_empty() {
        context
            .link
            .progress("completing an interrupted dpkg", 0, 0);
        let configure = Program::new([
            "dpkg",
            "--force-confdef",
            "--force-confold",
            "--configure",
            "-a",
        ]);
        let ended = context.link.run(&unattended(configure))?;
        judge("dpkg --configure -a", &ended)?;
    }
    Ok(())
}

/// When we last had the lists fetched.
pub(super) fn stamp(layout: &Layout) -> PathBuf {
    layout.state.join("packages-listed")
}

fn lists_are_old(layout: &Layout) -> bool {
    let lists = layout.root.join("var/lib/apt/lists");
    let fresh = |path: PathBuf| {
        let changed = fs::metadata(path).and_then(|meta| meta.modified());
        changed.is_ok_and(|at| {
            // A time ahead of the clock counts as old: asking once more does no harm.
            SystemTime::now()
                .duration_since(at)
                .is_ok_and(|age| age < LISTS_AGE_MAX)
        })
    };
    let any = fs::read_dir(&lists).is_ok_and(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .into_iter()
            .any(|name| name.to_string_lossy().ends_with("_Packages"))
    });
    // The lists' own times are the mirror's, not ours.
    !(any && (fresh(stamp(layout)) || fresh(lists)))
}

/// Fetches the lists; says what apt could not reach, which it takes for no error.
fn update(context: &mut Context<'_>) -> Result<Option<String>, StepFailure> {
    context.link.progress("fetching lists of packages", 0, 0);
    let ended = context.link.run(&apt(&["update"], &[]))?;
    judge("apt-get update", &ended)?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if let Some(line) = said.lines().find(|line| line.contains("Failed to fetch")) {
        return Ok(Some(line.trim().to_owned()));
    }
    let path = stamp(context.layout);
    fs::create_dir_all(&context.layout.state)
        .and_then(|()| fs::write(&path, ""))
        .map_err(|e| io_failure("writing", &path, &e))?;
    Ok(None)
}

/// Refuses where apt would remove anything to install these, and tells what it would upgrade; it was asked, and did nothing.
fn refuse_harm(context: &mut Context<'_>, said: &str, ended: &Ended) -> Result<(), StepFailure> {
    let text = String::from_utf8_lossy(&ended.stdout);
    let (mut removed, mut upgraded) = (Vec::new(), Vec::new());
    for line in text.lines() {
        // `Remv NAME [OLD]`, `Inst NAME [OLD] (NEW ...)`, and without the old version where there is none.
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("Remv"), Some(name), _) => removed.push(name),
            (Some("Inst"), Some(name), Some(old)) if old.starts_with('[') => upgraded.push(name),
            _ => {}
        }
    }
    upgraded.sort_unstable();
    removed.sort_unstable();
    if !removed.is_empty() {
        return Err(StepFailure {
            hint: Some("do that yourself first, if you want it".to_owned()),
            ..fail(
                FailureClass::Host,
                format!("{said} would also remove {}", removed.join(", ")),
            )
        });
    }
    if !upgraded.is_empty() {
        let what = format!("what is missing needs newer {}", upgraded.join(", "));
        context.link.progress(&what, 0, 0);
    }
    Ok(())
}

/// A package that is unknown where lists could not be fetched: the mirror is at fault, and not the name.
fn blame_mirror(mut failure: StepFailure, unreached: Option<String>) -> StepFailure {
    if let Some(line) = unreached.filter(|_| failure.class == FailureClass::Missing) {
        failure.class = FailureClass::Host;
        failure.message = format!("{} ({line})", failure.message);
        failure.hint = Some(MIRROR_HINT.to_owned());
    }
    failure
}

/// Turns what apt or dpkg say into a failure of the right class.
fn judge(command: &str, ended: &Ended) -> Result<(), StepFailure> {
    if ended.exit == Some(0) {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&ended.stderr);
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let has = |what: &[&str]| {
        what.iter()
            .any(|w| stderr.contains(w) || stdout.contains(w))
    };
    let (class, hint) = if has(&["Unable to locate package", "has no installation candidate"]) {
        (
            FailureClass::Missing,
            "this host's package sources do not have it: check /etc/apt/sources.list",
        )
    } else if has(&["No space left on device", "have enough free space"]) {
        (
            FailureClass::DiskFull,
            "free space on the host: apt-get clean, journalctl --vacuum-size=100M",
        )
    } else if has(&["Could not get lock", "is locked by another process"]) {
        (
            FailureClass::Timeout,
            "another package manager runs on the host; try again when it is done",
        )
    } else if has(&[
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Unable to connect",
        "Connection timed out",
        "Failed to fetch",
        "Connection failed",
    ]) {
        (FailureClass::Host, MIRROR_HINT)
    } else {
        (
            FailureClass::Command,
            "run it on the host to see all it says",
        )
    };
    let errors: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("E:") || line.contains("error"))
        .take(4)
        .collect();
    let said = if errors.is_empty() {
        stderr
            .lines()
            .last()
            .unwrap_or("it said nothing")
            .to_owned()
    } else {
        errors.join(" | ")
    };
    let mut failure = fail(class, format!("{command} failed: {said}"));
    failure.hint = Some(hint.to_owned());
    Err(failure)
}

impl HostPackages {
    fn missing(&self, present: &BTreeMap<String, String>) -> Vec<Package> {
        let mut missing: Vec<Package> = self
            .packages
            .iter()
            .filter(|package| {
                !present.contains_key(&package.0)
                    && !instead(package).is_some_and(|other| present.contains_key(other))
            })
            .cloned()
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

fn names(packages: &[Package]) -> String {
    let names: Vec<&str> = packages.iter().map(|package| package.0.as_str()).collect();
    names.join(", ")
}

fn done(installed: BTreeMap<String, String>) -> Done<Installed> {
    Done {
        changed: !installed.is_empty(),
        output: Installed { installed },
        facts: Vec::new(),
    }
}

impl Step for HostPackages {
    const KIND: &'static str = "host.packages";
    type Output = Installed;

    fn summary(&self) -> String {
        format!("install what is missing of {}", names(&self.packages))
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "packages stay installed: others may need them by now".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let present = present(context, &self.packages)?;
        let missing = self.missing(&present);
        if missing.is_empty() {
            return done(BTreeMap::new()).seen();
        }
        if missing.len() == self.packages.len() {
            return Ok(Seen::Absent);
        }
        Ok(Seen::Partial {
            what: format!("{} missing", names(&missing)),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Installed>, StepFailure> {
        let missing = self.missing(&present(context, &self.packages)?);
        if missing.is_empty() {
            return Ok(done(BTreeMap::new()));
        }
        repair(context)?;
        let mut updated = lists_are_old(context.layout);
        let mut unreached = None;
        if updated {
            unreached = update(context)?;
        }
        let said = format!("apt-get install {}", names(&missing));
        loop {
            context.link.progress(&said, 0, 0);
            let asked = context
                .link
                .run(&apt(&["--simulate", "install"], &missing))?;
            let mut outcome = judge(&said, &asked);
            if outcome.is_ok() {
                refuse_harm(context, &said, &asked)?;
                let ended = context
                    .link
                    .run(&apt(&["--no-remove", "install"], &missing))?;
                outcome = judge(&said, &ended);
            }
            match outcome {
                Ok(()) => break,
                // Lists of before the mirror's last change name files that are gone from it.
                Err(failure)
                    if !updated
                        && matches!(failure.class, FailureClass::Missing | FailureClass::Host) =>
                {
                    unreached = update(context)?;
                    updated = true;
                }
                Err(failure) => return Err(blame_mirror(failure, unreached)),
            }
        }
        let installed = present(context, &missing)?;
        let still: Vec<Package> = self.missing(&installed);
        let still: Vec<Package> = still.into_iter().filter(|p| missing.contains(p)).collect();
        if !still.is_empty() {
            return Err(fail(
                FailureClass::Host,
                format!(
                    "{said} ended well, yet dpkg says that {} is not installed",
                    names(&still)
                ),
            ));
        }
        Ok(done(installed))
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<Installed>) -> Result<Done<()>, StepFailure> {
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

    fn step(packages: &[&str]) -> HostPackages {
        HostPackages {
            packages: packages.iter().map(|p| p.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_package_name_is_never_an_instruction_to_apt() {
        for bad in [
            "",
            "a",
            "-y",
            "--reinstall",
            "lxc-",
            "lxc=1",
            "lxc/sid",
            "lxc*",
            "Lxc",
            "./x.deb",
            "a b",
        ] {
            assert!(bad.parse::<Package>().is_err(), "{bad:?} was taken");
        }
        for good in [
            "lxc",
            "dnsmasq-base",
            "libstdc++6",
            "g++",
            "0ad",
            "python3.11",
        ] {
            assert!(good.parse::<Package>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn installs_only_what_is_missing_and_only_once() {
        let mut sim = Simulated::installed();
        sim.link.installed.insert("nftables".to_owned());
        let step = step(&["lxc", "nftables"]);
        assert!(matches!(sim.probe(1, &step), Seen::Partial { .. }));
        let done = sim.forward(1, &step).unwrap();
        assert_eq!(done.output.installed.keys().collect::<Vec<_>>(), ["lxc"]);
        assert_eq!(sim.link.count("apt-get"), 3, "update, look, install");
        assert!(
            sim.link
                .ran
                .iter()
                .any(|r| r.starts_with("apt-get") && r.ends_with("install lxc"))
        );
        let ran = sim.link.ran.len();
        assert!(!sim.forward(1, &step).unwrap().changed);
        assert_eq!(sim.link.ran.len(), ran + 1, "only dpkg-query");
        assert!(!sim.undo(1, &step, None).unwrap().changed);
        assert!(sim.link.installed.contains("lxc"));
    }

    #[test]
    fn fetches_lists_when_they_are_old_or_a_package_is_unknown() {
        let mut sim = Simulated::installed();
        let lists = sim.layout.root.join("var/lib/apt/lists");
        fs::create_dir_all(&lists).unwrap();
        fs::write(lists.join("mirror_Packages"), "").unwrap();
        sim.forward(1, &step(&["lxc"])).unwrap();
        assert_eq!(sim.link.count("apt-get"), 2, "the lists are new");
        sim.link.available_after_update.insert("newer".to_owned());
        sim.forward(1, &step(&["newer"])).unwrap();
        assert_eq!(
            sim.link.count("apt-get"),
            6,
            "look, update, look again, install"
        );
        let failure = sim.forward(1, &step(&["nowhere"])).unwrap_err();
        assert_eq!(failure.class, FailureClass::Missing);
        assert!(failure.message.contains("Unable to locate package nowhere"));
    }

    #[test]
    fn nothing_is_removed_for_it_and_only_dependencies_are_upgraded() {
        let mut sim = Simulated::installed();
        sim.link.harm = "Remv busybox [1:1.35.0-4] []\nInst libc6 [2.36-9] (2.36-10 Debian)\n";
        let failure = sim.forward(1, &step(&["lxc"])).unwrap_err();
        assert_eq!(failure.class, FailureClass::Host);
        let said = "would also remove busybox";
        assert!(failure.message.ends_with(said), "{}", failure.message);
        assert!(!sim.link.installed.contains("lxc"));
        sim.link.harm = "Inst libc6 [2.36-9] (2.36-10 Debian)\n";
        assert!(sim.forward(1, &step(&["lxc"])).unwrap().changed);
    }

    #[test]
    fn either_busybox_does() {
        let mut sim = Simulated::installed();
        sim.link.installed.insert("busybox".to_owned());
        let step = step(&["busybox-static"]);
        assert!(matches!(sim.probe(1, &step), Seen::Done(_)));
        assert!(!sim.forward(1, &step).unwrap().changed);
    }

    #[test]
    fn an_unreachable_mirror_is_blamed_and_not_the_name() {
        let missing = || fail(FailureClass::Missing, "E: Unable to locate package lxc");
        let line = "W: Failed to fetch http://m/InRelease  Could not connect to m:80";
        let failure = blame_mirror(missing(), Some(line.to_owned()));
        assert_eq!(failure.class, FailureClass::Host);
        assert!(
            failure.message.contains("Could not connect"),
            "{}",
            failure.message
        );
        assert_eq!(blame_mirror(missing(), None).class, FailureClass::Missing);
    }

    #[test]
    fn completes_an_interrupted_dpkg_first() {
        let mut sim = Simulated::installed();
        let updates = sim.layout.root.join("var/lib/dpkg/updates");
        fs::create_dir_all(&updates).unwrap();
        fs::write(updates.join("0001"), "").unwrap();
        sim.forward(1, &step(&["lxc"])).unwrap();
        assert_eq!(
            sim.link
                .count("dpkg --force-confdef --force-confold --configure -a"),
            1
        );
    }

    #[test]
    fn tells_failures_apart() {
        let ended = |stderr: &str| Ended {
            exit: Some(100),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        };
        for (stderr, class) in [
            ("E: Unable to locate package x", FailureClass::Missing),
            (
                "E: You don't have enough free space in /var/cache/apt/archives/.",
                FailureClass::DiskFull,
            ),
            (
                "dpkg: error: cannot copy: No space left on device",
                FailureClass::DiskFull,
            ),
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend.",
                FailureClass::Timeout,
            ),
            (
                "E: Failed to fetch http://m/x.deb  Temporary failure resolving 'm'",
                FailureClass::Host,
            ),
            (
                "E: Sub-process /usr/bin/dpkg returned an error code (1)",
                FailureClass::Command,
            ),
        ] {
            let failure = judge("apt-get", &ended(stderr)).unwrap_err();
            assert_eq!(failure.class, class, "{stderr}");
            assert!(failure.hint.is_some());
        }
    }
}
