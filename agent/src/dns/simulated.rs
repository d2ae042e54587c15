//! BIND on a simulated host, and the programs that only the DNS server's steps run.

use std::fs;

use tallybook_events::codec;
use tallybook_events::ids::{Blob, StepIndex};

use crate::network::simulated::{Simulated, SimulatedLink};
use crate::steps::host_packages::Installed;

impl Simulated {
    /// With BIND as its package installs it.
    pub(crate) fn with_bind() -> Self {
        let mut sim = Self::installed();
        sim.put(
            "etc/systemd/system/named.service",
            "[Service]\nExecStart=/usr/sbin/named -f $OPTIONS\n",
        );
        sim.put("var/cache/bind/managed-keys.bind", "");
        for set in [&mut sim.link.active, &mut sim.link.enabled] {
            set.insert("named.service".to_owned());
        }
        sim.tell_installed(&[]);
        sim
    }

    /// With these packages as what an earlier step installed.
    pub(crate) fn tell_installed(&mut self, packages: &[&str]) {
        let version = |name: &&str| ((*name).to_owned(), "1".to_owned());
        let installed = Installed {
            installed: packages.iter().map(version).collect(),
        };
        let output = Blob(codec::encode(&installed).unwrap());
        self.outputs.insert(StepIndex(0), output);
    }
}

impl SimulatedLink {
    pub(crate) fn of_dns(&self, argv: &[&str], stdin: &[u8]) -> (i32, String) {
        match argv[0] {
            "dpkg-query" => (0, " /etc/bind/named.conf.local 0123\n".to_owned()),
            "md5sum" => match self.bind_changed {
                Some(path) => (1, format!("{path}: FAILED\n")),
                None => (0, String::new()),
            },
            "date" => (0, "20261128 12 01\n".to_owned()),
            "named-checkconf" => (0, String::new()),
            "dig" => self.dig(stdin),
            "sh" => {
                fs::write(argv[4], self.secret).unwrap();
                (0, String::new())
            }
            other => panic!("{other} is run"),
        }
    }

    /// What the server answers for itself: the serials of the generation that it read.
    fn dig(&self, questions: &[u8]) -> (i32, String) {
        let mut said = String::new();
        for question in std::str::from_utf8(questions).unwrap().lines() {
            let words: Vec<&str> = question.split(' ').collect();
            let view = match words[2] {
                "127.0.0.1" => "inside",
                _ => "outside",
            };
            let zone = words[3].trim_end_matches('.');
            let Some(served) = &self.served else { continue };
            let file = fs::read_to_string(served.join(format!("{view}/{zone}.zone")));
            let Ok(file) = file else { continue };
            let soa = file.lines().nth(1).unwrap().replacen(" IN ", " 330 IN ", 1);
            said.push_str(&format!("{soa}\n"));
        }
        (0, said)
    }

    /// The server reads what is live.
    pub(crate) fn read_dns(&mut self) {
        self.served = fs::read_link(self.layout.dns_live())
            .ok()
            .map(|live| self.layout.dns().join(live));
    }
}
