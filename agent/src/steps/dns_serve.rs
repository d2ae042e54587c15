//! `dns.serve`: the host's BIND answers for zones of the cloud, and for nothing that it was not told to.
//!
//! What is to be live is checked by BIND itself before anything changes, and asked for by queries afterwards. It never touches what the
//! host's own configuration of BIND says, and takes over no server that somebody else configured.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::step::{Seen, StepFailure};

use crate::dns::Service;
use crate::dns::answers::Serials;
use crate::dns::server::{self, Kept};
use crate::layout::Layout;
use crate::network::lock;
use crate::network::managed::{self, Replaced, TakenBack};
use crate::secret::SecretName;
use crate::step::{Context, Done, OutputOf, Step};
use crate::steps::host_packages::Installed;

/// Has the host's server answer as a service says.
#[derive(Debug, Serialize, Deserialize)]
pub struct DnsServe {
    /// What was installed for it: a server that was not there before runs only while it has a service.
    pub packages: OutputOf<Installed>,
    /// What it answers.
    pub service: Service,
    /// What the keys are made of by which the cloud's servers know each other.
    pub key: Option<SecretName>,
}

/// What a server answers with now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// What the step replaced.
    pub replaced: Replaced,
    /// The serials of the zones that the host is the primary of.
    pub serials: Serials,
}

impl DnsServe {
    /// Whether what is kept comes to the same answers, as of whenever it is.
    fn is_kept_as(&self, layout: &Layout, kept: &Kept) -> Result<bool, StepFailure> {
        let has_keys = kept.keys.is_some() == self.key.is_some();
        Ok(has_keys && server::says_same(layout, &kept.service, &self.service)?)
    }
}

fn done<T>(changed: bool, output: T) -> Done<T> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}

impl Step for DnsServe {
    const KIND: &'static str = "dns.serve";
    type Output = Served;

    fn summary(&self) -> String {
        let zones = self.service.zones.iter();
        let zones: Vec<&str> = zones.map(|zone| zone.name.as_str()).collect();
        match zones.as_slice() {
            [] => "answer for no DNS zone".to_owned(),
            [zone] => format!("answer for the DNS zone {zone}"),
            [first, .., last] if zones.len() > 6 => {
                format!("answer for {} DNS zones, {first} to {last}", zones.len())
            }
            zones => format!("answer for the DNS zones {}", zones.join(", ")),
        }
    }

    fn secrets(&self) -> Vec<SecretName> {
        self.key.iter().cloned().collect()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let layout = context.layout;
        let path = layout.dns_service();
        for path in [&path, &layout.dns_unit()] {
            if managed::read(path)? == managed::Found::Foreign {
                let what = format!("{} was not written by tallybook", path.display());
                return Ok(Seen::Conflict { what });
            }
        }
        let Some(kept) = server::kept(layout)? else {
            return Ok(Seen::Absent);
        };
        if self.is_kept_as(layout, &kept)?
            && let Some(serials) = server::is_followed(context, &kept)?
        {
            let replaced = managed::replaced(&path, context.origin)?;
            return done(false, Served { replaced, serials }).seen();
        }
        Ok(Seen::Partial {
            what: format!(
                "{} is there, and the server's files or its unit are not as they must be",
                path.display()
            ),
        })
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Served>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.dns_service();
        let there = server::kept(context.layout)?;
        let before = match &there {
            Some(there) => there.before,
            None => {
                let packages = context.output(&self.packages)?;
                if packages.installed.contains_key("bind9") {
                    // Its package started it, for all who ask and on every address.
                    server::switch_off(context)?;
                }
                server::refuse_others(context, &self.service)?;
                server::look(context)?
            }
        };
        let mut changed = server::make_directories(context.layout)?;
        let had = there.as_ref().and_then(|there| there.keys.as_deref());
        let keys = self.key.as_ref();
        let keys = keys.map(|key| server::write_keys(context, key, had));
        let kept = Kept {
            service: self.service.clone(),
            keys: keys.transpose()?,
            before,
        };
        // What says the same stays as of when it was.
        let same = there.filter(|there| there.keys == kept.keys);
        let kept = match same {
            Some(there) if self.is_kept_as(context.layout, &there)? => there,
            Some(_) | None => kept,
        };
        let generation = server::stage(context, &kept)?;
        // Crash boundary: nothing reads what is staged, and a repeat stages it anew.
        let (written, replaced) = managed::write(&path, context.origin, &server::text(&kept)?)?;
        changed |= server::go_live(context, &generation)?;
        Ok(done(
            changed || written,
            Served {
                replaced,
                serials: generation.serials,
            },
        ))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let layout = context.layout;
        managed::of_others([layout.dns_service(), layout.dns_unit()])
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Served>,
    ) -> Result<Done<()>, StepFailure> {
        let _lock = lock(context.layout)?;
        let path = context.layout.dns_service();
        let Some(kept) = server::kept(context.layout)? else {
            // Nothing was written but what is nobody's without it; or somebody else removed it.
            server::retire_orphan(context)?;
            server::remove_keys(context)?;
            server::remove_rest(context.layout)?;
            return Ok(done(false, ()));
        };
        if !managed::is_made_by(&path, context.origin)? {
            // What it had replaced may be back, and an undo before this one cut there.
            let followed = server::follow(context, &kept)?;
            remove_own_keys(context, &kept)?;
            return Ok(done(followed, ()));
        }
        let replaced = output.as_ref().map(|output| &output.replaced);
        if managed::previous(&path, replaced)?.is_none() {
            // Crash boundary: the service goes last, since its mark shows the rest to be ours to remove.
            server::retire(context, kept.before)?;
        }
        match managed::take_back(&path, context.origin, replaced)? {
            TakenBack::Restored => {
                // Crash boundary: a repeat finds the service from before, and lets the server follow it.
                if let Some(kept) = server::kept(context.layout)? {
                    server::follow(context, &kept)?;
                    remove_own_keys(context, &kept)?;
                }
            }
            TakenBack::Removed | TakenBack::Nothing => {
                server::remove_keys(context)?;
                server::remove_rest(context.layout)?;
            }
        }
        Ok(done(true, ()))
    }
}

/// Removes the keys that this step wrote, unless the service has them.
fn remove_own_keys(context: &Context<'_>, kept: &Kept) -> Result<(), StepFailure> {
    let (operation, step) = context.origin;
    match kept.keys.as_deref() == Some(&format!("{operation}-{step}")) {
        true => Ok(()),
        false => server::remove_keys(context),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tallybook_events::ids::{Epoch, Seq, StepIndex};
    use tallybook_events::step::FailureClass;

    use super::*;
    use crate::dns::{AsOf, Entry, Record, Role, Soa, View, Zone};
    use crate::network::simulated::Simulated;

    fn record(zone: &str, name: &str, value: &str) -> Entry {
        let record = Record {
            zone: zone.parse().unwrap(),
            view: View::Inside,
            name: format!("{name}.{zone}").parse().unwrap(),
            ttl_s: None,
            kind: "A".parse().unwrap(),
            value: value.parse().unwrap(),
        };
        Entry {
            record,
            container: None,
        }
    }

    fn zone(name: &str) -> Zone {
        let soa = Soa {
            server: format!("ns.{name}").parse().unwrap(),
            contact: format!("hostmaster.{name}").parse().unwrap(),
            ttl_s: 330,
            refresh_s: 300,
            retry_s: 300,
            expire_s: 3_000_000,
            minimum_s: 299,
        };
        Zone {
            name: name.parse().unwrap(),
            role: Role::Primary {
                soa,
                secondaries: Vec::new(),
                others: Vec::new(),
            },
        }
    }

    fn step(seq: u64, records: Vec<Entry>) -> DnsServe {
        DnsServe {
            packages: OutputOf::step(StepIndex(0)),
            service: Service {
                as_of: AsOf {
                    epoch: Epoch(1),
                    seq: Seq(seq),
                },
                inside: Vec::new(),
                not_at: Vec::new(),
                forwarders: Vec::new(),
                zones: vec![zone("example.net"), zone("example.org")],
                records,
            },
            key: Some("dns".parse().unwrap()),
        }
    }

    fn first() -> DnsServe {
        step(1, vec![record("example.net", "www", "192.0.2.1")])
    }

    fn second() -> DnsServe {
        step(2, vec![record("example.net", "www", "192.0.2.2")])
    }

    fn serials(served: &Served, zone: &str) -> Vec<u32> {
        let of = &served.serials[&zone.parse().unwrap()];
        of.values().copied().collect()
    }

    /// Everything below the directories that the step writes to.
    fn left(sim: &Simulated) -> Vec<PathBuf> {
        fn walk(path: PathBuf, all: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                all.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    walk(entry.path(), all);
                }
            }
        }
        let mut all = Vec::new();
        walk(sim.layout.root.join("etc/bind"), &mut all);
        walk(sim.layout.units.join("named.service.d"), &mut all);
        all
    }

    #[test]
    fn serves_once_and_gives_the_server_back() {
        let mut sim = Simulated::with_bind();
        sim.makes_once_and_takes_back(&first());
        assert_eq!(left(&sim), [] as [PathBuf; 0]);
        assert_eq!(sim.link.served, None, "it reads its own configuration");
        sim.survives_cuts(Simulated::with_bind, &first());
    }

    #[test]
    fn a_server_that_was_installed_for_it_is_off_without_it() {
        let mut sim = Simulated::with_bind();
        sim.tell_installed(&["bind9"]);
        sim.link.refuse = Some("named-checkconf");
        sim.forward(1, &first()).unwrap_err();
        let is_off = |sim: &mut Simulated| {
            let before = sim.with(1, server::look).unwrap();
            assert!(!before.active && !before.enabled, "{before:?}");
        };
        is_off(&mut sim);
        sim.link.refuse = None;
        let done = sim.forward(1, &first()).unwrap();
        assert!(matches!(sim.probe(1, &first()), Seen::Done(_)));
        sim.undo(1, &first(), Some(done.output)).unwrap();
        is_off(&mut sim);
    }

    #[test]
    fn a_server_that_was_off_is_off_again() {
        let mut sim = Simulated::with_bind();
        for argv in [
            &["stop", "named.service"][..],
            &["--quiet", "disable", "named.service"],
        ] {
            let argv = ["systemctl"]
                .iter()
                .chain(argv)
                .map(|word| (*word).to_owned());
            let program = crate::step::Program::new(argv);
            sim.with(1, |context| context.run(&program)).unwrap();
        }
        let done = sim.forward(1, &first()).unwrap();
        sim.undo(1, &first(), Some(done.output)).unwrap();
        let before = sim.with(1, server::look).unwrap();
        assert!(!before.active && !before.enabled, "{before:?}");
    }

    #[test]
    fn what_it_replaced_comes_back_wherever_the_undo_is_cut() {
        Simulated::restores_wherever_cut(Simulated::with_bind, &first(), &second(), &|_| {});
    }

    #[test]
    fn serials_rise_where_something_changed_and_also_when_that_is_taken_back() {
        let mut sim = Simulated::with_bind();
        let one = sim.forward(1, &first()).unwrap().output;
        assert_eq!(serials(&one, "example.net"), [2_026_112_850, 2_026_112_850]);
        let later = step(9, first().service.records);
        let again = sim.forward(2, &later).unwrap();
        assert!(!again.changed);
        assert_eq!(again.output.serials, one.serials);
        let two = sim.forward(3, &second()).unwrap().output;
        assert_eq!(serials(&two, "example.net"), [2_026_112_851, 2_026_112_850]);
        assert_eq!(serials(&two, "example.org"), serials(&one, "example.org"));
        sim.undo(3, &second(), Some(two)).unwrap();
        let Seen::Done(_) = sim.probe(1, &first()) else {
            panic!("the first is not back");
        };
        let served = sim.link.served.clone().unwrap();
        let file = fs::read_to_string(served.join("inside/example.net.zone")).unwrap();
        assert_eq!(
            crate::dns::files::serial(&file),
            Some(2_026_112_852),
            "{file}"
        );
        assert!(file.contains("192.0.2.1"), "{file}");
        assert_eq!(sim.link.count("systemctl restart"), 1);
    }

    #[test]
    fn the_same_secret_keeps_its_file_and_another_one_comes_and_goes() {
        let mut sim = Simulated::with_bind();
        sim.forward(1, &first()).unwrap();
        sim.forward(2, &second()).unwrap();
        let keys = sim.layout.dns().join("keys");
        assert_eq!(managed::list(&keys).unwrap().len(), 1);
        sim.link.secret = "another secret";
        let done = sim.forward(3, &second()).unwrap();
        assert!(done.changed);
        assert_eq!(managed::list(&keys).unwrap().len(), 2);
        sim.undo(3, &second(), Some(done.output)).unwrap();
        assert_eq!(managed::list(&keys).unwrap().len(), 1);
        assert!(matches!(sim.probe(2, &second()), Seen::Done(_)));
    }

    #[test]
    fn what_bind_would_not_take_changes_nothing() {
        let mut sim = Simulated::with_bind();
        sim.forward(1, &first()).unwrap();
        let before = left(&sim);
        sim.link.refuse = Some("named-checkconf");
        let failure = sim.forward(2, &second()).unwrap_err();
        assert_eq!(failure.class, FailureClass::Verification);
        assert!(failure.message.contains("refused"), "{failure:?}");
        sim.link.refuse = None;
        assert!(matches!(sim.probe(1, &first()), Seen::Done(_)));
        assert_eq!(left(&sim), before);
        // One that was cut while it was written goes with the next that is live, or with the undo.
        let cut = sim.layout.dns().join("generations/7/inside");
        fs::create_dir_all(&cut).unwrap();
        assert!(!sim.undo(2, &second(), None).unwrap().changed);
        assert_eq!(left(&sim), before);
        assert!(!sim.undo(2, &second(), None).unwrap().changed);
    }

    #[test]
    fn a_server_of_others_is_left_to_them() {
        let mut sim = Simulated::with_bind();
        sim.link.bind_changed = Some("/etc/bind/named.conf.local");
        let failure = sim.forward(1, &first()).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(failure.message.contains("named.conf.local"), "{failure:?}");

        let mut sim = Simulated::with_bind();
        sim.listen("udp", "00000000:0035 00000000:0000 07");
        let failure = sim.forward(1, &first()).unwrap_err();
        assert_eq!(failure.class, FailureClass::Exists);
        assert!(failure.message.contains("udp port 53"), "{failure:?}");
        assert_eq!(left(&sim), [] as [PathBuf; 0]);

        Simulated::sets_aside(Simulated::with_bind, &first(), Layout::dns_unit);
    }

    #[test]
    fn a_service_that_somebody_removed_leaves_no_server_behind_that_reads_it() {
        let mut sim = Simulated::with_bind();
        let done = sim.forward(1, &first()).unwrap();
        fs::remove_file(sim.layout.dns_service()).unwrap();
        sim.undo(1, &first(), Some(done.output)).unwrap();
        assert_eq!(left(&sim), [] as [PathBuf; 0]);
        assert_eq!(sim.link.served, None, "it reads its own configuration");
    }

    #[test]
    fn drift_is_seen() {
        let mut sim = Simulated::with_bind();
        sim.forward(1, &first()).unwrap();
        let served = sim.link.served.clone().unwrap();
        let path = served.join("inside/example.net.zone");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("192.0.2.1", "192.0.2.9")).unwrap();
        assert!(matches!(sim.probe(1, &first()), Seen::Partial { .. }));
        assert!(sim.forward(1, &first()).unwrap().changed);
        assert!(matches!(sim.probe(1, &first()), Seen::Done(_)));
    }
}
