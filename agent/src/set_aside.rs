//! What somebody else has in a step's place, moved beside it where an operator wants that, and put back by the step's undo.
//!
//! It deletes nothing and replaces nothing. Where it went is on the disk before it goes there.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::codec;
use tallybook_events::ids::Blob;
use tallybook_events::step::{Captured, FailureClass, StepFailure};

use crate::layout::Layout;
use crate::mark::Origin;
use crate::step::{Context, Program, fail, failure, io_failure};
use crate::{durable, staging};

/// How many things in one place a step sets aside: somebody puts another one there each time.
const ASIDE_MAX: u32 = 16;

/// One thing that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Aside {
    /// Where it was.
    from: PathBuf,
    /// Where it is.
    to: PathBuf,
}

fn directory(layout: &Layout) -> PathBuf {
    layout.state.join("set-aside")
}

fn record(layout: &Layout, (operation, step): Origin) -> PathBuf {
    directory(layout).join(format!("{operation}-{step}"))
}

fn recorded(path: &Path) -> Result<Vec<Aside>, StepFailure> {
    match fs::read(path) {
        Ok(bytes) => {
            codec::decode(&bytes).map_err(|error| failure(FailureClass::Verification, &error))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_failure("reading", path, &error)),
    }
}

fn is_there(path: &Path) -> Result<bool, StepFailure> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_failure("looking at", path, &error)),
    }
}

/// The name that a thing gets: hidden, so that LXC, dnsmasq, systemd and the tool itself pass over it; and of the step, so that
/// it is found again.
fn beside(path: &Path, (operation, step): Origin) -> Result<PathBuf, StepFailure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for number in 1..=ASIDE_MAX {
        let to = path.with_file_name(format!(".{name}.set-aside-{operation}-{step}-{number}"));
        if !is_there(&to)? {
            return Ok(to);
        }
    }
    let message = format!("{} was set aside {ASIDE_MAX} times already", path.display());
    Err(fail(FailureClass::Exists, message))
}

/// Moves things out of the way of the context's step; what is told of each.
///
/// # Errors
/// When one can't be moved, or where it goes can't be recorded: then it is where it was.
pub fn clear(context: &mut Context<'_>, paths: &[PathBuf]) -> Result<Vec<Captured>, StepFailure> {
    let mut moved = Vec::new();
    if paths.is_empty() {
        return Ok(moved);
    }
    durable::create_dirs(&directory(context.layout))?;
    let record = record(context.layout, context.origin);
    let mut known = recorded(&record)?;
    for from in paths {
        if !is_there(from)? {
            continue;
        }
        let aside = Aside {
            from: from.clone(),
            to: beside(from, context.origin)?,
        };
        known.push(aside.clone());
        let bytes =
            codec::encode(&known).map_err(|error| failure(FailureClass::Unknown, &error))?;
        // Crash boundary: what is recorded and was not moved is where it was, and is passed over when all is put back.
        durable::write(&record, 0o600, &bytes)?;
        durable::rename_new(&aside.from, &aside.to)?;
        let text = format!(
            "{} is set aside as {}",
            aside.from.display(),
            aside.to.display()
        );
        moved.push(told(context, text));
    }
    Ok(moved)
}

/// Puts back what the context's step set aside, the last first; what is told of each. What has something else in its place
/// by now stays where it is, and that is told.
///
/// # Errors
/// When one can't be moved.
pub fn put_back(context: &mut Context<'_>) -> Result<Vec<Captured>, StepFailure> {
    let record = record(context.layout, context.origin);
    let mut all = Vec::new();
    let mut stays = false;
    let mut is_unit = false;
    for Aside { from, to } in recorded(&record)?.into_iter().rev() {
        if !is_there(&to)? {
            continue;
        }
        if is_there(&from)? {
            stays = true;
            let text = format!(
                "{} stays set aside as {}: something else is in its place",
                from.display(),
                to.display()
            );
            all.push(told(context, text));
            continue;
        }
        durable::rename_new(&to, &from)?;
        is_unit |= from.starts_with(&context.layout.units);
        let text = format!("{} is back", from.display());
        all.push(told(context, text));
    }
    if is_unit {
        context.run(&Program::new(["systemctl", "daemon-reload"]))?;
    }
    // Crash boundary: what is back is passed over by a repeat. What stays is found by its record.
    if !stays && durable::remove(&record)? {
        let directory = directory(context.layout);
        if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none()) {
            staging::remove_dir(&directory)?;
        }
    }
    Ok(all)
}

fn told(context: &mut Context<'_>, text: String) -> Captured {
    context.link.progress(&text, 0, 0);
    Captured {
        command: "set aside".to_owned(),
        exit: Some(0),
        text: Blob(format!("{text}\n").into_bytes()),
        dropped_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::simulated::{Simulated, allocation};
    use crate::network::{BRIDGE_UNIT, DNSMASQ_UNIT, NFTABLES_UNIT};
    use crate::step::Step;
    use crate::steps::dhcp_release::DhcpRelease;
    use crate::steps::dhcp_reserve::DhcpReserve;
    use crate::steps::forward_close::ForwardClose;
    use crate::steps::forward_open::ForwardOpen;
    use crate::steps::host_bridge::HostBridge;
    use crate::steps::host_directories::HostDirectories;
    use crate::steps::host_dnsmasq::HostDnsmasq;
    use crate::steps::host_forwarding::HostForwarding;
    use crate::steps::host_nftables::HostNftables;

    fn bridge() -> HostBridge {
        HostBridge {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
        }
    }

    #[test]
    fn every_kind_that_writes_files_sets_those_of_others_aside() {
        let (name, gateway) = (bridge().bridge, bridge().gateway);
        let web = || "web1".parse().unwrap();
        Simulated::sets_aside(Simulated::installed, &HostForwarding {}, Layout::sysctl);
        Simulated::sets_aside(Simulated::installed, &bridge(), |it| it.unit(BRIDGE_UNIT));
        let dnsmasq = HostDnsmasq {
            bridge: name.clone(),
            gateway,
            domain: None,
            lease_s: 3600,
            dns: Vec::new(),
        };
        Simulated::sets_aside(Simulated::installed, &dnsmasq, Layout::dnsmasq);
        Simulated::sets_aside(Simulated::installed, &dnsmasq, |it| it.unit(DNSMASQ_UNIT));
        let nftables = HostNftables {
            bridge: name,
            gateway,
            forward_address: None,
        };
        Simulated::sets_aside(Simulated::installed, &nftables, Layout::nat);
        Simulated::sets_aside(Simulated::installed, &nftables, Layout::ruleset);
        Simulated::sets_aside(Simulated::installed, &nftables, |it| it.unit(NFTABLES_UNIT));
        let reserve = DhcpReserve {
            container: web(),
            allocation: allocation(2, &[]),
        };
        Simulated::sets_aside(Simulated::prepared, &reserve, |it| {
            it.reservation(&"web1".parse().unwrap())
        });
        Simulated::sets_aside(Simulated::prepared, &reserve, |it| {
            it.name(&"web1".parse().unwrap())
        });
        let open = ForwardOpen {
            container: web(),
            allocation: allocation(2, &[(40001, 22)]),
        };
        Simulated::sets_aside(Simulated::prepared, &open, |it| {
            it.forward(&"web1".parse().unwrap())
        });
        Simulated::sets_aside(Simulated::bare, &HostDirectories {}, Layout::reservations);
        Simulated::sets_aside(Simulated::bare, &HostDirectories {}, |it| {
            it.state.join("installed")
        });
    }

    /// What takes something away finds a file of others in the place of the tool's.
    #[test]
    fn what_takes_its_own_away_sets_aside_what_others_put_there() {
        let container: tallybook_events::name::ContainerName = "web1".parse().unwrap();
        let allocation = allocation(2, &[(40001, 22)]);
        let mut sim = Simulated::prepared();
        let release = DhcpRelease {
            container: container.clone(),
            allocation: allocation.clone(),
        };
        let path = sim.layout.reservation(&container);
        fs::write(&path, "of others\n").unwrap();
        sim.forward(1, &release).unwrap_err();
        let found = sim.with(1, |context| release.in_the_way(context)).unwrap();
        sim.with(1, |context| clear(context, &found)).unwrap();
        sim.forward(1, &release).unwrap();
        sim.undo(1, &release, None).unwrap();
        sim.with(1, put_back).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "of others\n");
        fs::remove_file(&path).unwrap();
        let close = ForwardClose {
            container: container.clone(),
            allocation,
        };
        let path = sim.layout.forward(&container);
        fs::write(&path, "of others\n").unwrap();
        sim.forward(2, &close).unwrap_err();
        let found = sim.with(2, |context| close.in_the_way(context)).unwrap();
        assert_eq!(found, std::slice::from_ref(&path));
        sim.with(2, |context| clear(context, &found)).unwrap();
        sim.forward(2, &close).unwrap();
        sim.undo(2, &close, None).unwrap();
        sim.with(2, put_back).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "of others\n");
    }

    #[test]
    fn a_unit_that_is_put_back_is_read_again() {
        let mut sim = Simulated::installed();
        let path = sim.layout.unit(BRIDGE_UNIT);
        fs::write(&path, "[Unit]\n").unwrap();
        sim.with(1, |context| clear(context, std::slice::from_ref(&path)))
            .unwrap();
        let reloads = sim.link.count("systemctl daemon-reload");
        sim.with(1, put_back).unwrap();
        assert_eq!(sim.link.count("systemctl daemon-reload"), reloads + 1);
        assert!(path.exists());
    }

    /// Cut between the record and the move, or set aside twice: nothing is lost, and the last is put back first.
    #[test]
    fn what_is_recorded_and_not_moved_is_where_it_was() {
        let mut sim = Simulated::installed();
        let path = sim.layout.sysctl();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in ["first", "second"] {
            fs::write(&path, text).unwrap();
            sim.with(1, |context| clear(context, std::slice::from_ref(&path)))
                .unwrap();
        }
        sim.with(1, |context| {
            let record = record(context.layout, context.origin);
            let mut all = recorded(&record).unwrap();
            assert_eq!(all.len(), 2);
            all.push(Aside {
                from: path.clone(),
                to: beside(&path, context.origin).unwrap(),
            });
            fs::write(&record, codec::encode(&all).unwrap()).unwrap();
        });
        let told = sim.with(1, put_back).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(
            told.len(),
            2,
            "one is back, and one stays for the other is in its place"
        );
        fs::remove_file(&path).unwrap();
        sim.with(1, put_back).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert!(!directory(&sim.layout).exists());
    }

    #[test]
    fn what_another_step_set_aside_is_not_this_one_s_to_put_back() {
        let mut sim = Simulated::installed();
        let path = sim.layout.sysctl();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "of others").unwrap();
        sim.with(1, |context| clear(context, std::slice::from_ref(&path)))
            .unwrap();
        assert_eq!(sim.with(2, put_back).unwrap(), []);
        assert!(!path.exists());
    }
}
