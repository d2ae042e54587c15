//! `host.packages`: the distribution's packages that a host needs.
//!
//! It installs what is missing; what is there is upgraded only where a missing package depends on a newer one, which is told. It
//! never removes anything or replaces a changed configuration file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, Reversal, Seen, StepFailure};

use crate::packages::{
    Package, apt, blame_mirror, judge, lists_are_old, refuse_harm, repair, update,
};
use crate::step::{Context, Done, Program, Step, fail};

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
    match package.as_str() {
        "busybox" => Some("busybox-static"),
        "busybox-static" => Some("busybox"),
        _ => None,
    }
}

impl HostPackages {
    fn missing(&self, present: &BTreeMap<String, String>) -> Vec<Package> {
        let mut missing: Vec<Package> = self
            .packages
            .iter()
            .filter(|package| {
                !present.contains_key(package.as_str())
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
    let names: Vec<&str> = packages.iter().map(|package| package.as_str()).collect();
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
    use std::fs;

    use super::*;
    use crate::network::simulated::Simulated;

    fn step(packages: &[&str]) -> HostPackages {
        HostPackages {
            packages: packages.iter().map(|p| p.parse().unwrap()).collect(),
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
}
