//! `host.forwarding`: the kernel passes packets on between the bridge and the world, now and after a boot.
//!
//! Undo leaves the running kernel as it is where anything else of the host could need it.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::layout::Layout;
use crate::network::managed::{self, Replaced, TakenBack};
use crate::network::refuse_reserved;
use crate::step::{Context, Done, Step, fail, io_failure};

const BODY: &str = "# Containers reach the world, and the world their forwarded ports, through this host.\n\
net.ipv4.ip_forward = 1\n";

/// Switches IPv4 forwarding on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostForwarding {}

/// What undo needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// Whether the kernel did it before.
    pub was_on: bool,
    /// The setting's file.
    pub file: Replaced,
}

fn live(layout: &Layout) -> PathBuf {
    layout.root.join("proc/sys/net/ipv4/ip_forward")
}

fn is_on(layout: &Layout) -> Result<bool, StepFailure> {
    let path = live(layout);
    let text = fs::read_to_string(&path).map_err(|e| io_failure("reading", &path, &e))?;
    Ok(text.trim() != "0")
}

fn switch(layout: &Layout, value: &str) -> Result<(), StepFailure> {
    let path = live(layout);
    fs::write(&path, value).map_err(|e| io_failure("writing", &path, &e))
}

/// Whether something else of this host may rely on it: a bridge (ours is gone by then), or a setting at boot.
fn needed_by_others(layout: &Layout) -> bool {
    let has_bridge = fs::read_dir(layout.root.join("sys/class/net"))
        .is_ok_and(|entries| entries.flatten().any(|e| e.path().join("bridge").is_dir()));
    let sets_it = |path: PathBuf| {
        fs::read_to_string(path).is_ok_and(|text| {
            text.lines().any(|line| {
                let line = line.trim_start();
                !line.starts_with(['#', ';']) && line.contains("ip_forward")
            })
        })
    };
    let etc = layout.root.join("etc");
    has_bridge
        || sets_it(etc.join("sysctl.conf"))
        || fs::read_dir(etc.join("sysctl.d")).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|e| e.path() != layout.sysctl() && sets_it(e.path()))
        })
}

impl Step for HostForwarding {
    const KIND: &'static str = "host.forwarding";
    type Output = Switched;

    fn summary(&self) -> String {
        "let the kernel pass IPv4 packets on".to_owned()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let path = context.layout.sysctl();
        let on = is_on(context.layout)?;
        match managed::read(&path)? {
            managed::Found::Foreign => Ok(Seen::Conflict {
                what: format!("{} was not written by tallybook", path.display()),
            }),
            managed::Found::Ours { body, .. } if on && body == BODY => Done {
                changed: false,
                // What was before is no longer to be seen; undo then leaves the kernel as it is.
                output: Switched {
                    was_on: true,
                    file: managed::replaced(&path, context.origin)?,
                },
                facts: Vec::new(),
            }
            .seen(),
            managed::Found::Ours { .. } => Ok(Seen::Partial {
                what: "the setting is not in effect, or an older one".to_owned(),
            }),
            managed::Found::Absent => Ok(Seen::Absent),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Switched>, StepFailure> {
        let was_on = is_on(context.layout)?;
        let path = context.layout.sysctl();
        let directory = path.parent().unwrap_or(&context.layout.root);
        fs::create_dir_all(directory).map_err(|e| io_failure("making", directory, &e))?;
        let (written, file) = managed::write(&path, context.origin, BODY)?;
        if !was_on {
            switch(context.layout, "1\n")?;
        }
        Ok(Done {
            changed: written || !was_on,
            output: Switched { was_on, file },
            facts: Vec::new(),
        })
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        managed::of_others([context.layout.sysctl()])
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Switched>, StepFailure> {
        let path = context.layout.sysctl();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let sets_it = text.lines().any(|line| {
            let set = line.split_once('=');
            set.is_some_and(|(name, value)| {
                name.trim() == "net.ipv4.ip_forward" && value.trim() == "1"
            })
        });
        if sets_it && is_on(context.layout)? {
            return Ok(Done {
                changed: false,
                output: Switched {
                    was_on: true,
                    file: Replaced { previous: None },
                },
                facts: Vec::new(),
            });
        }
        let message = format!(
            "packets are not passed on, or {} does not switch that on at boot",
            path.display()
        );
        Err(fail(FailureClass::Exists, message))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Switched>,
    ) -> Result<Done<()>, StepFailure> {
        let path = context.layout.sysctl();
        let ours = managed::is_made_by(&path, context.origin)?;
        let was_off = output.as_ref().is_some_and(|output| !output.was_on);
        let goes = managed::previous(&path, output.as_ref().map(|o| &o.file))?.is_none();
        if ours && goes {
            // It knows no bridge: whoever has an address or a port needs it.
            refuse_reserved(context.layout)?;
        }
        let mut changed = false;
        // Crash boundary: the kernel first, since the file is what shows that it is ours to switch.
        if ours && goes && was_off && !needed_by_others(context.layout) && is_on(context.layout)? {
            switch(context.layout, "0\n")?;
            changed = true;
        }
        let taken = managed::take_back(&path, context.origin, output.as_ref().map(|o| &o.file))?;
        Ok(Done {
            changed: changed || taken != TakenBack::Nothing,
            output: (),
            facts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tallybook_events::step::FailureClass;

    use super::*;
    use crate::network::simulated::Simulated;

    fn value(sim: &Simulated) -> String {
        fs::read_to_string(live(&sim.layout)).unwrap()
    }

    #[test]
    fn switches_on_and_back() {
        let mut sim = Simulated::installed();
        let done = sim.forward(1, &HostForwarding {}).unwrap();
        assert!(done.changed && !done.output.was_on);
        assert_eq!(value(&sim), "1\n");
        assert!(!sim.forward(1, &HostForwarding {}).unwrap().changed);
        assert!(matches!(sim.probe(1, &HostForwarding {}), Seen::Done(_)));
        assert!(!sim.undo(2, &HostForwarding {}, None).unwrap().changed);
        assert!(
            sim.undo(1, &HostForwarding {}, Some(done.output.clone()))
                .unwrap()
                .changed
        );
        assert_eq!(value(&sim), "0\n");
        assert!(!sim.layout.sysctl().exists());
        assert!(
            !sim.undo(1, &HostForwarding {}, Some(done.output))
                .unwrap()
                .changed
        );
    }

    #[test]
    fn leaves_it_on_where_it_was_on_or_others_need_it() {
        let mut sim = Simulated::installed();
        let done = sim.forward(1, &HostForwarding {}).unwrap();
        fs::create_dir_all(sim.layout.root.join("sys/class/net/docker0/bridge")).unwrap();
        sim.undo(1, &HostForwarding {}, Some(done.output)).unwrap();
        assert_eq!(value(&sim), "1\n");

        let done = sim.forward(2, &HostForwarding {}).unwrap();
        assert!(done.output.was_on);
        fs::remove_dir_all(sim.layout.root.join("sys/class/net/docker0")).unwrap();
        sim.undo(2, &HostForwarding {}, Some(done.output)).unwrap();
        assert_eq!(value(&sim), "1\n");

        sim.forward(3, &HostForwarding {}).unwrap();
        sim.undo(3, &HostForwarding {}, None).unwrap();
        assert_eq!(value(&sim), "1\n");
    }

    #[test]
    fn a_file_of_another_is_left() {
        let mut sim = Simulated::installed();
        fs::create_dir_all(sim.layout.sysctl().parent().unwrap()).unwrap();
        fs::write(sim.layout.sysctl(), "mine\n").unwrap();
        let failure = sim.forward(1, &HostForwarding {}).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert_eq!(value(&sim), "0\n");
    }

    #[test]
    fn what_somebody_else_switched_on_for_good_is_taken_over() {
        let mut sim = Simulated::installed();
        let path = sim.layout.sysctl();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let adopt = |sim: &mut Simulated| sim.with(1, |context| HostForwarding {}.adopt(context));
        fs::write(&path, "net.ipv4.ip_forward=1\n").unwrap();
        adopt(&mut sim).expect_err("the kernel does not do it");
        switch(&sim.layout, "1\n").unwrap();
        let done = adopt(&mut sim).unwrap();
        assert!(!done.changed && done.output.was_on);
        fs::write(&path, "# net.ipv4.ip_forward=1\n").unwrap();
        adopt(&mut sim).expect_err("it is off at the next boot");
        fs::write(&path, "net.ipv4.ip_forward = 1\n").unwrap();
        // Nothing of it is the step's to take back.
        assert!(
            !sim.undo(1, &HostForwarding {}, Some(done.output))
                .unwrap()
                .changed
        );
        assert!(path.exists() && is_on(&sim.layout).unwrap());
    }
}
