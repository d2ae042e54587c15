//! A host for the tests: a directory for its files, and a `Link` that acts as its programs would.
//!
//! It knows only the programs that the steps of this crate's network run; another one fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use tallybook_events::allocation::{Allocation, Forward, Protocol};
use tallybook_events::ids::{Attempt, Blob, LogId, OperationId, StepIndex};
use tallybook_events::name::HostName;
use tallybook_events::step::{Captured, FailureClass, Seen, StepFailure, StepKey};
use tempfile::TempDir;

use crate::layout::Layout;
use crate::set_aside;
use crate::step::{Context, Done, Ended, Link, Program, Step, fail};
use crate::steps::host_directories::HostDirectories;
use crate::steps::host_dnsmasq::HostDnsmasq;
use crate::steps::host_nftables::HostNftables;

/// What a container was handed out: the last byte of address and MAC, and pairs of TCP ports.
pub(crate) fn allocation(last: u8, ports: &[(u16, u16)]) -> Allocation {
    let forward = |&(host_port, container_port): &(u16, u16)| Forward {
        name: "some".to_owned(),
        protocol: Protocol::Tcp,
        host_port,
        container_port,
    };
    Allocation {
        address: [10, 5, 0, last].into(),
        mac: format!("00:16:3e:00:00:{last:02x}").parse().unwrap(),
        forwards: ports.iter().map(forward).collect(),
    }
}

pub(crate) struct Simulated {
    _root: TempDir,
    pub(crate) layout: Layout,
    pub(crate) host: HostName,
    pub(crate) outputs: BTreeMap<StepIndex, Blob>,
    pub(crate) link: SimulatedLink,
}

/// The host's programs and what they changed.
pub(crate) struct SimulatedLink {
    pub(crate) layout: Layout,
    /// Every program that ran.
    pub(crate) ran: Vec<String>,
    /// Programs that begin so end with status 1.
    pub(crate) refuse: Option<&'static str>,
    /// After this many programs the line is cut.
    pub(crate) cut_after: Option<usize>,
    pub(crate) addresses: BTreeMap<String, Vec<String>>,
    pub(crate) table: Option<String>,
    pub(crate) installed: BTreeSet<String>,
    pub(crate) available: BTreeSet<String>,
    pub(crate) available_after_update: BTreeSet<String>,
    /// What apt would do besides what it was asked for.
    pub(crate) harm: &'static str,
    pub(crate) active: BTreeSet<String>,
    pub(crate) enabled: BTreeSet<String>,
    read_units: BTreeMap<String, String>,
    /// A file of BIND's configuration that is not as its package has it.
    pub(crate) bind_changed: Option<&'static str>,
    /// What keys are made of.
    pub(crate) secret: &'static str,
    /// The generation that the DNS server read.
    pub(crate) served: Option<PathBuf>,
}

impl Simulated {
    /// A host on which the tool was never used.
    pub(crate) fn bare() -> Self {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::below(root.path());
        let link = SimulatedLink {
            layout: layout.clone(),
            ran: Vec::new(),
            refuse: None,
            cut_after: None,
            addresses: BTreeMap::new(),
            table: None,
            installed: BTreeSet::new(),
            available: BTreeSet::from(["lxc".to_owned()]),
            available_after_update: BTreeSet::new(),
            harm: "",
            active: BTreeSet::new(),
            enabled: BTreeSet::new(),
            read_units: BTreeMap::new(),
            bind_changed: None,
            secret: "a secret",
            served: None,
        };
        Simulated {
            _root: root,
            layout,
            host: HostName::new("h1").unwrap(),
            outputs: BTreeMap::new(),
            link,
        }
    }

    /// With the tool's directories, and what a Debian host has.
    pub(crate) fn installed() -> Self {
        let mut sim = Self::bare();
        sim.forward(200, &HostDirectories {}).unwrap();
        for (path, text) in [
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/1/comm", "systemd\n"),
            ("proc/cpuinfo", "processor : 0\nprocessor : 1\n"),
            ("proc/meminfo", "MemTotal:       2000 kB\n"),
            ("proc/filesystems", "nodev\toverlay\n\text4\n"),
            ("run/systemd/system/x", ""),
            ("usr/bin/apt-get", ""),
            ("usr/bin/dpkg-query", ""),
            (
                "etc/os-release",
                "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
            ),
            ("etc/systemd/system/of-another.service", ""),
        ] {
            sim.put(path, text);
        }
        sim
    }

    /// With dnsmasq and the table, for 10.5.0.1/16 on `tb0`.
    pub(crate) fn prepared() -> Self {
        let mut sim = Self::installed();
        let dnsmasq = HostDnsmasq {
            bridge: "tb0".parse().unwrap(),
            gateway: "10.5.0.1/16".parse().unwrap(),
            domain: None,
            lease_s: 3600,
            dns: Vec::new(),
        };
        let nftables = HostNftables {
            bridge: dnsmasq.bridge.clone(),
            gateway: dnsmasq.gateway,
            forward_address: None,
        };
        sim.forward(201, &dnsmasq).unwrap();
        sim.forward(202, &nftables).unwrap();
        sim
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.layout.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Has something of the host listen: local, remote and state as in `/proc/net`.
    pub(crate) fn listen(&mut self, table: &str, socket: &str) {
        let text = format!("header\n 0: {socket} 0:0 0:0 0 0 0 4711\n");
        self.put(&format!("proc/self/net/{table}"), &text);
    }

    pub(crate) fn with<T>(&mut self, operation: u8, act: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let origin = (OperationId::from_bytes([operation; 16]), StepIndex(1));
        act(&mut Context {
            host: &self.host,
            layout: &self.layout,
            key: StepKey {
                log: LogId::from_bytes([1; 16]),
                operation: origin.0,
                step: origin.1,
                attempt: Attempt(1),
            },
            origin,
            outputs: &self.outputs,
            link: &mut self.link,
        })
    }

    pub(crate) fn forward<S: Step>(
        &mut self,
        operation: u8,
        step: &S,
    ) -> Result<Done<S::Output>, StepFailure> {
        self.with(operation, |context| step.forward(context))
    }

    pub(crate) fn undo<S: Step>(
        &mut self,
        operation: u8,
        step: &S,
        output: Option<S::Output>,
    ) -> Result<Done<()>, StepFailure> {
        self.with(operation, |context| step.undo(context, output))
    }

    pub(crate) fn probe<S: Step>(&mut self, operation: u8, step: &S) -> Seen {
        self.with(operation, |context| step.probe(context)).unwrap()
    }

    /// What a step must be: absent, made, made no more, seen, not another's to undo, undone, undone no more.
    pub(crate) fn makes_once_and_takes_back<S: Step>(&mut self, step: &S) {
        let kind = S::KIND;
        assert!(
            matches!(self.probe(1, step), Seen::Absent),
            "{kind} at first"
        );
        let done = self.forward(1, step).unwrap();
        assert!(done.changed, "{kind} forward");
        assert!(!self.forward(1, step).unwrap().changed, "{kind} again");
        assert!(
            !self.forward(2, step).unwrap().changed,
            "{kind} by another operation"
        );
        let Seen::Done(_) = self.probe(1, step) else {
            panic!("{kind} is not seen");
        };
        assert!(
            !self.undo(2, step, None).unwrap().changed,
            "{kind} undone by another"
        );
        assert!(
            self.undo(1, step, Some(done.output)).unwrap().changed,
            "{kind} undo"
        );
        assert!(
            matches!(self.probe(1, step), Seen::Absent),
            "{kind} after undo"
        );
        assert!(
            !self.undo(1, step, None).unwrap().changed,
            "{kind} undone again"
        );
    }

    /// What a step must do about somebody else's file in a place of its own: leave it; where that is wanted, set it aside and
    /// act; and put it back when it is undone.
    pub(crate) fn sets_aside<S: Step>(
        fresh: fn() -> Simulated,
        step: &S,
        place: fn(&Layout) -> PathBuf,
    ) {
        const TEXT: &str = "of somebody else\n";
        let kind = S::KIND;
        let mut sim = fresh();
        let path = place(&sim.layout);
        let before = fs::read_to_string(&path).ok();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, TEXT).unwrap();
        let Err(refused) = sim.forward(1, step) else {
            panic!("{kind} overwrote {}", path.display());
        };
        assert_eq!(refused.class, FailureClass::Exists, "{kind}: {refused:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT, "{kind}");
        let found = sim.with(1, |context| step.in_the_way(context)).unwrap();
        assert_eq!(found, std::slice::from_ref(&path), "{kind}");
        let told = sim
            .with(1, |context| set_aside::clear(context, &found))
            .unwrap();
        assert_eq!(told.len(), 1, "{kind}");
        assert!(!path.exists(), "{kind}");
        let done = sim.forward(1, step).unwrap();
        let again = sim.with(1, |context| step.in_the_way(context)).unwrap();
        assert_eq!(
            again,
            [] as [PathBuf; 0],
            "{kind}: what is its own is not set aside"
        );
        assert!(matches!(sim.probe(1, step), Seen::Done(_)), "{kind}");
        sim.undo(1, step, Some(done.output)).unwrap();
        let still = fs::read_to_string(&path).ok();
        // What the undo left in the place, because others need it, stays.
        let told = sim.with(1, set_aside::put_back).unwrap();
        assert_eq!(told.len(), 1, "{kind}");
        match still {
            None => assert_eq!(fs::read_to_string(&path).unwrap(), TEXT, "{kind}"),
            Some(still) => {
                assert!(before.is_some(), "{kind} left {}", path.display());
                assert_eq!(fs::read_to_string(&path).unwrap(), still, "{kind}");
            }
        }
        let told = sim.with(1, set_aside::put_back).unwrap();
        assert_eq!(told.len(), usize::from(before.is_some()), "{kind}");
    }

    /// Has a step replace what another operation's wrote, and cuts its undo before each of its programs, and right after
    /// the file was restored: a repeat brings all back.
    pub(crate) fn restores_wherever_cut<S: Step>(
        fresh: fn() -> Simulated,
        first: &S,
        second: &S,
        back: &dyn Fn(&Simulated),
    ) {
        for cuts in 0.. {
            let mut sim = fresh();
            sim.forward(1, first).unwrap();
            sim.forward(2, second).unwrap();
            let cut = sim.cut(cuts, |sim| sim.undo(2, second, None).map(|_| ()));
            sim.undo(2, second, None).unwrap();
            let seen = sim.probe(1, first);
            assert!(
                matches!(seen, Seen::Done(_)),
                "{} restored at {cuts}: {seen:?}",
                S::KIND
            );
            back(&sim);
            assert!(
                !sim.undo(2, second, None).unwrap().changed,
                "{} restored again at {cuts}",
                S::KIND
            );
            if !cut {
                assert!(cuts > 0, "{} runs no program", S::KIND);
                break;
            }
        }
    }

    /// Cuts the step before each of its programs, on the way there and back; then completes it, or takes it back
    /// without knowing how it ended.
    pub(crate) fn survives_cuts<S: Step>(&mut self, fresh: fn() -> Simulated, step: &S) {
        let mut cuts = 0;
        loop {
            let mut sim = fresh();
            if !sim.cut(cuts, |sim| sim.forward(1, step).map(|_| ())) {
                break;
            }
            sim.forward(1, step).unwrap();
            assert!(
                matches!(sim.probe(1, step), Seen::Done(_)),
                "{} completed at {cuts}",
                S::KIND
            );
            let mut sim = fresh();
            sim.cut(cuts, |sim| sim.forward(1, step).map(|_| ()));
            sim.undo(1, step, None).unwrap();
            let seen = sim.probe(1, step);
            assert!(
                matches!(seen, Seen::Absent),
                "{} taken back at {cuts}: {seen:?}",
                S::KIND
            );
            cuts += 1;
        }
        assert!(cuts > 0, "{} runs no program", S::KIND);
        for cuts in 0.. {
            let mut sim = fresh();
            sim.forward(1, step).unwrap();
            let cut = sim.cut(cuts, |sim| sim.undo(1, step, None).map(|_| ()));
            sim.undo(1, step, None).unwrap();
            let seen = sim.probe(1, step);
            assert!(
                matches!(seen, Seen::Absent),
                "{} undone at {cuts}: {seen:?}",
                S::KIND
            );
            if !cut {
                break;
            }
        }
    }

    fn cut(
        &mut self,
        after: usize,
        act: impl FnOnce(&mut Self) -> Result<(), StepFailure>,
    ) -> bool {
        self.link.cut_after = Some(self.link.ran.len() + after);
        let outcome = act(self);
        self.link.cut_after = None;
        outcome.is_err()
    }
}

impl SimulatedLink {
    /// How many programs that begin so ran.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.ran.iter().filter(|ran| ran.starts_with(start)).count()
    }

    fn net(&self, name: &str) -> PathBuf {
        self.layout.root.join("sys/class/net").join(name)
    }

    pub(crate) fn add_bridge(&mut self, name: &str, addresses: &[&str], ports: &[&str]) {
        fs::create_dir_all(self.net(name).join("bridge")).unwrap();
        fs::create_dir_all(self.net(name).join("brif")).unwrap();
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        self.addresses.insert(name.to_owned(), addresses);
        for port in ports {
            self.attach(name, port);
        }
    }

    pub(crate) fn attach(&mut self, bridge: &str, port: &str) {
        fs::write(self.net(bridge).join("brif").join(port), "").unwrap();
    }

    pub(crate) fn detach(&mut self, bridge: &str, port: &str) {
        fs::remove_file(self.net(bridge).join("brif").join(port)).unwrap();
    }

    pub(crate) fn delete(&mut self, bridge: &str) {
        fs::remove_dir_all(self.net(bridge)).unwrap();
        self.addresses.remove(bridge);
    }

    fn dhcp_release(&mut self, address: &str, mac: &str) -> (i32, String) {
        let path = self.layout.leases();
        let leases = fs::read_to_string(&path).unwrap();
        let of_it = format!(" {mac} {address} ");
        let rest = leases.lines().filter(|line| !line.contains(&of_it));
        fs::write(
            path,
            rest.map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
        (0, String::new())
    }

    /// The unit's file, and its drop-in.
    fn unit_text(&self, unit: &str) -> String {
        let path = self.layout.unit(unit);
        let drop_in = path.with_file_name(format!("{unit}.d/tallybook.conf"));
        let texts = [path, drop_in].map(|path| fs::read_to_string(path).unwrap_or_default());
        texts.concat()
    }

    fn ip(&mut self, argv: &[&str]) -> (i32, String) {
        match argv {
            ["-json", "-family", "inet", "address", "show"] => {
                let list: Vec<serde_json::Value> = self
                    .addresses
                    .iter()
                    .map(|(name, all)| {
                        let info: Vec<serde_json::Value> = all
                            .iter()
                            .map(|text| {
                                let (at, prefix) = text.split_once('/').unwrap();
                                let prefix: u8 = prefix.parse().unwrap();
                                serde_json::json!({"local": at, "prefixlen": prefix})
                            })
                            .collect();
                        serde_json::json!({"ifname": name, "addr_info": info})
                    })
                    .chain([serde_json::json!({})])
                    .collect();
                (0, serde_json::to_string(&list).unwrap())
            }
            ["link", "add", "name", name, ..] => {
                if self.net(name).exists() {
                    return (2, String::new());
                }
                self.add_bridge(name, &[], &[]);
                (0, String::new())
            }
            ["address", "replace", address, "broadcast", "+", "dev", name] => {
                let all = self.addresses.get_mut(*name).unwrap();
                if !all.iter().any(|a| a == address) {
                    all.push((*address).to_owned());
                }
                (0, String::new())
            }
            ["address", "delete", address, "dev", name] => {
                self.addresses
                    .get_mut(*name)
                    .unwrap()
                    .retain(|a| a != address);
                (0, String::new())
            }
            ["link", "set", ..] => (0, String::new()),
            ["link", "delete", "dev", name, "type", "bridge"] => {
                self.delete(name);
                (0, String::new())
            }
            other => panic!("ip {other:?}"),
        }
    }

    fn start(&mut self, unit: &str) {
        let text = self
            .read_units
            .get(unit)
            .cloned()
            .unwrap_or_else(|| self.unit_text(unit));
        assert!(!text.is_empty(), "{unit} is started and not there");
        let proc = self.layout.root.join("proc/42");
        fs::create_dir_all(&proc).unwrap();
        fs::write(proc.join("environ"), "A=b\0").unwrap();
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("ExecStart=") {
                let argv: Vec<&str> = line.trim_start_matches('-').split(' ').collect();
                match argv[0] {
                    "/sbin/ip" => {
                        self.ip(&argv[1..]);
                    }
                    "/usr/sbin/nft" => self.load(&fs::read_to_string(argv[2]).unwrap()),
                    "/usr/sbin/dnsmasq" => {}
                    "/usr/sbin/named" => match argv.get(2) {
                        Some(&"-c") => self.read_dns(),
                        Some(_) | None => self.served = None,
                    },
                    "" => {}
                    other => panic!("{unit} runs {other}"),
                }
            }
            if let Some(assignment) = line.strip_prefix("Environment=") {
                fs::write(proc.join("environ"), format!("A=b\0{assignment}\0")).unwrap();
            }
        }
        self.active.insert(unit.to_owned());
    }

    fn systemctl(&mut self, argv: &[&str]) -> (i32, String) {
        let mut said = String::new();
        match argv {
            ["show", _, unit] => {
                let there = self.layout.unit(unit).exists();
                let text = self.unit_text(unit);
                let read = self.read_units.entry((*unit).to_owned());
                let stale = *read.or_insert_with(|| text.clone()) != text;
                let active = if self.active.contains(*unit) {
                    "active"
                } else {
                    "inactive"
                };
                let enabled = match (there, self.enabled.contains(*unit)) {
                    (true, true) => "enabled",
                    (true, false) => "disabled",
                    (false, _) => "",
                };
                said = format!(
                    "MainPID=42\nActiveState={active}\nUnitFileState={enabled}\nNeedDaemonReload={}\n",
                    if stale { "yes" } else { "no" }
                );
            }
            ["daemon-reload"] => self.read_units.clear(),
            ["--quiet", "enable", unit] => {
                self.enabled.insert((*unit).to_owned());
            }
            ["--quiet", "disable", "--now", unit] => {
                self.enabled.remove(*unit);
                self.active.remove(*unit);
            }
            ["--quiet", "disable", unit] => {
                self.enabled.remove(*unit);
            }
            ["stop", unit] => {
                self.active.remove(*unit);
            }
            ["start" | "restart", unit] => self.start(unit),
            ["reload", "named.service"] => self.read_dns(),
            ["kill", "--signal=HUP", "--kill-who=main", unit] => {
                assert!(self.active.contains(*unit))
            }
            other => panic!("systemctl {other:?}"),
        }
        (0, said)
    }

    /// As `nft` does it: comments are not kept.
    fn load(&mut self, ruleset: &str) {
        let lines = ruleset.lines().filter(|line| !line.starts_with('#'));
        self.table = Some(lines.map(|line| format!("{line}\n")).collect());
    }

    fn nft(&mut self, argv: &[&str], stdin: &[u8]) -> (i32, String) {
        match argv {
            ["--check", "--file", "-"] => (0, String::new()),
            ["--file", "-"] => {
                self.load(std::str::from_utf8(stdin).unwrap());
                (0, String::new())
            }
            ["--terse", "list", "table", "ip", "tallybook"]
            | ["list", "table", "ip", "tallybook"] => self
                .table
                .clone()
                .map_or((1, String::new()), |table| (0, table)),
            ["delete", "table", "ip", "tallybook"] => {
                assert!(self.table.take().is_some());
                (0, String::new())
            }
            other => panic!("nft {other:?}"),
        }
    }

    fn apt(&mut self, argv: &[&str]) -> (i32, String) {
        if argv.contains(&"update") {
            self.available.append(&mut self.available_after_update);
            return (0, String::new());
        }
        let at = argv.iter().position(|a| *a == "install").unwrap();
        for package in &argv[at + 1..] {
            if !self.available.contains(*package) {
                return (100, format!("E: Unable to locate package {package}"));
            }
            if !argv.contains(&"--simulate") {
                self.installed.insert((*package).to_owned());
            }
        }
        if argv.contains(&"--simulate") {
            let lines = argv[at + 1..].iter();
            let lines: String = lines
                .map(|p| format!("Inst {p} (1.0-1 Debian)\n"))
                .collect();
            return (0, format!("{}{lines}", self.harm));
        }
        assert!(argv.contains(&"--no-remove"), "{argv:?}");
        (0, String::new())
    }
}

impl Link for SimulatedLink {
    fn run(&mut self, program: &Program) -> Result<Ended, StepFailure> {
        if self.cut_after.is_some_and(|cut| self.ran.len() >= cut) {
            return Err(fail(FailureClass::Timeout, "cut"));
        }
        let argv: Vec<&str> = program.argv.iter().map(String::as_str).collect();
        let line = argv.join(" ");
        self.ran.push(line.clone());
        let (exit, said) = if self.refuse.is_some_and(|refuse| line.starts_with(refuse)) {
            (1, "refused".to_owned())
        } else {
            match argv[0] {
                "ip" => self.ip(&argv[1..]),
                "systemctl" => self.systemctl(&argv[1..]),
                "nft" => self.nft(&argv[1..], &program.stdin),
                "apt-get" => self.apt(&argv[1..]),
                "dnsmasq" | "dpkg" | "journalctl" => (0, String::new()),
                "dhcp_release" => self.dhcp_release(argv[2], argv[3]),
                "lxc-start" => (0, "5.0.2\n".to_owned()),
                "md5sum" | "date" | "named-checkconf" | "dig" | "sh" => {
                    self.of_dns(&argv, &program.stdin)
                }
                "dpkg-query" if argv[2].contains("Conffiles") => self.of_dns(&argv, &program.stdin),
                "dpkg-query" => {
                    let known = argv[3..].iter().filter(|p| self.installed.contains(**p));
                    (0, known.map(|p| format!("{p} installed 1.0-1\n")).collect())
                }
                other => panic!("{other} is run"),
            }
        };
        let (stdout, stderr) = if exit == 0 || argv[0] == "md5sum" {
            (said, String::new())
        } else {
            (String::new(), said)
        };
        Ok(Ended {
            exit: Some(exit),
            stdout: stdout.into_bytes(),
            stderr: stderr.into_bytes(),
        })
    }

    fn progress(&mut self, _: &str, _: u64, _: u64) {}

    fn stop_requested(&mut self) -> bool {
        false
    }

    fn send_peer(&mut self, _: Vec<u8>) -> Result<(), StepFailure> {
        Err(fail(FailureClass::Peer, "there is no other end"))
    }

    fn receive_peer(&mut self) -> Result<Vec<u8>, StepFailure> {
        Err(fail(FailureClass::Peer, "there is no other end"))
    }

    fn watch_frozen(
        &mut self,
        _: &crate::step::FrozenWatch,
    ) -> Result<Box<dyn std::any::Any>, StepFailure> {
        Err(fail(FailureClass::Other, "nothing is frozen here"))
    }

    fn take_captured(&mut self) -> Vec<Captured> {
        Vec::new()
    }
}
