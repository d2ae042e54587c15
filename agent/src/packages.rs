//! The distribution's packages: their names, and apt and dpkg as a step drives them, unattended and with their failures told
//! apart.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, StepFailure};

use crate::layout::Layout;
use crate::step::{Context, Ended, Program, fail, io_failure};

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

impl Package {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

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

/// `apt-get` with these arguments, unattended.
pub(crate) fn apt(arguments: &[&str], packages: &[Package]) -> Program {
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
pub(crate) fn repair(context: &mut Context<'_>) -> Result<(), StepFailure> {
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
pub(crate) fn stamp(layout: &Layout) -> PathBuf {
    layout.state.join("packages-listed")
}

/// Whether the lists should be fetched before they are believed.
pub(crate) fn lists_are_old(layout: &Layout) -> bool {
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
pub(crate) fn update(context: &mut Context<'_>) -> Result<Option<String>, StepFailure> {
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
pub(crate) fn refuse_harm(
    context: &mut Context<'_>,
    said: &str,
    ended: &Ended,
) -> Result<(), StepFailure> {
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
pub(crate) fn blame_mirror(mut failure: StepFailure, unreached: Option<String>) -> StepFailure {
    if let Some(line) = unreached.filter(|_| failure.class == FailureClass::Missing) {
        failure.class = FailureClass::Host;
        failure.message = format!("{} ({line})", failure.message);
        failure.hint = Some(MIRROR_HINT.to_owned());
    }
    failure
}

/// Turns what apt or dpkg say into a failure of the right class.
pub(crate) fn judge(command: &str, ended: &Ended) -> Result<(), StepFailure> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
