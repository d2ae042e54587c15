//! What every scene stands on: hosts, an inventory of them, an operator's home, and the program with an agent beside it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use serde_json::Value;
use tallybook::host::known_hosts::{Offered, lookup_name, wire_key};

use crate::sshd::{Host, new_key};

/// How a run of the program ended.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Standard output as JSON, an object a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        self.stdout.lines().map(read).collect()
    }

    /// The last line of standard output, as JSON.
    pub(crate) fn end(&self) -> Value {
        self.lines().pop().unwrap_or_else(|| panic!("{self}"))
    }

    /// Fails unless it ended with this code.
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Fails unless this was said, wherever.
    pub(crate) fn says(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "{text:?} is not in\n{self}");
        self
    }

    /// Fails if this was said.
    pub(crate) fn says_nothing_of(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(!said, "{text:?} is in\n{self}");
        self
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}--- standard error\n{}--- exit {}\n",
            self.stdout, self.stderr, self.code
        )
    }
}

/// Hosts `cn1`, `cn2`, …, and all that is needed to act on them.
pub(crate) struct Ground {
    directory: tempfile::TempDir,
    /// Keeps the hosts alive.
    _runtime: tokio::runtime::Runtime,
    /// The operator's key.
    pub(crate) key: PrivateKey,
    hosts: Vec<Host>,
}

const CONTAINERS: &str = r#"
[network]
subnet = "10.5.0.0/24"

[containers.web]
host = "cn1"
mac = "00:16:3e:00:00:03"
forward_ssh = false

[containers.db]
host = "cn1"
mac = "00:16:3e:00:00:04"
forward_ssh = false

[templates.base]
"#;

impl Ground {
    /// This many hosts, all trusted.
    pub(crate) fn new(hosts: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let key = new_key();
        let hosts = (1..=hosts).map(|number| {
            let place = directory.path().join(format!("cn{number}"));
            runtime.block_on(Host::new(&place, &key))
        });
        let hosts = hosts.collect();
        let ground = Ground {
            directory,
            _runtime: runtime,
            key,
            hosts,
        };
        std::fs::create_dir_all(ground.path("home/.ssh")).unwrap();
        std::fs::create_dir_all(ground.path("bin")).unwrap();
        ground.write_key("home/.ssh/id_ed25519", &ground.key);
        // The agent is looked for beside the program; no host ever gets this one.
        let program = Path::new(env!("CARGO_BIN_EXE_tallybook"));
        if std::fs::hard_link(program, ground.path("bin/tallybook")).is_err() {
            std::fs::copy(program, ground.path("bin/tallybook")).unwrap();
        }
        std::fs::write(ground.path("bin/tallybook-agent"), "an agent").unwrap();
        for host in &ground.hosts {
            ground.trust(host);
        }
        let about = ground.hosts.iter().zip(1..).map(|(host, number)| {
            let port = host.port;
            format!("[hosts.cn{number}]\naddress = \"127.0.0.1\"\nport = {port}\nuser = \"root\"\n")
        });
        let about: String = about.collect();
        ground.set_inventory(&format!("{about}{CONTAINERS}"));
        ground
    }

    /// The same, prepared for containers.
    pub(crate) fn prepared(hosts: usize) -> Self {
        let ground = Ground::new(hosts);
        let names: Vec<String> = (1..=hosts).map(|number| format!("cn{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        ground
            .run(&[&["host", "install"], &names[..]].concat())
            .ends(0);
        ground
            .run(&[&["host", "prepare"], &names[..]].concat())
            .ends(0);
        ground
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The host of this number, from 1.
    pub(crate) fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    pub(crate) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub(crate) fn inventory(&self) -> String {
        std::fs::read_to_string(self.path("cloud.toml")).unwrap()
    }

    pub(crate) fn set_inventory(&self, text: &str) {
        std::fs::write(self.path("cloud.toml"), text).unwrap();
    }

    pub(crate) fn write_key(&self, name: &str, key: &PrivateKey) {
        let path = self.path(name);
        std::fs::write(&path, key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    /// Records the key that a host shows now.
    pub(crate) fn trust(&self, host: &Host) {
        let offered = Offered {
            lookup: lookup_name("127.0.0.1", host.port, None),
            key: wire_key(host.key().public_key()).unwrap(),
        };
        let file = self.path("home/.ssh/known_hosts");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!("{text}{}\n", offered.line())).unwrap();
    }

    /// Forgets every host's key.
    pub(crate) fn trust_nobody(&self) {
        std::fs::write(self.path("home/.ssh/known_hosts"), "").unwrap();
    }

    /// The program with these arguments, away from the environment and the SSH configuration of whoever runs the tests.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/tallybook"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("TALLYBOOK_STORE", self.path("store"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        let mut command = self.command(arguments);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::ended(piped.spawn().unwrap())
    }

    /// How a program that was started ended.
    pub(crate) fn ended(child: Child) -> Run {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        // This program was not built with an agent.
        let mut lines: Vec<&str> = said.lines().collect();
        lines.retain(|line| !line.contains("built without its agent's hash"));
        let stderr = lines.iter().map(|line| format!("{line}\n")).collect();
        Run {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr,
        }
    }

    /// The same, with its results as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Run {
        self.run(&[&["--format", "json"], arguments].concat())
    }

    /// A JSON document that the program writes.
    pub(crate) fn document(&self, arguments: &[&str]) -> Value {
        let run = self.json(arguments).ends(0);
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// Everything that is allocated, as `HOST/NAME`.
    pub(crate) fn allocated(&self) -> Vec<String> {
        let state = self.document(&["state"]);
        let named = |one: &Value| {
            format!(
                "{}/{}",
                one["host"].as_str().unwrap(),
                one["container"].as_str().unwrap()
            )
        };
        state["allocations"]
            .as_array()
            .unwrap()
            .iter()
            .map(named)
            .collect()
    }

    /// The short id of the newest operation.
    pub(crate) fn newest(&self) -> String {
        let list = self.document(&["op", "list", "--all"]);
        let last = list.as_array().unwrap().last().unwrap().clone();
        last["short"].as_str().unwrap().to_owned()
    }

    /// Where an operation stands.
    pub(crate) fn status(&self, id: &str) -> String {
        let shown = self.document(&["op", "show", id]);
        shown["status"].as_str().unwrap().to_owned()
    }
}
