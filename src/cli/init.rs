//! `tallybook init`: the first inventory, from the few things that nobody else can know.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use tallybook_events::name::HostName;

use super::{Context, Error, Exit};
use crate::cloud::inventory::Label;
use crate::cloud::key::PublicKey;
use crate::cloud::network::Subnet;
use crate::cloud::parse;
use crate::render::{Format, Output, count};

/// Write a first cloud.toml: asks for what it needs and is not told, where there is a terminal to ask at
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook init\n  tallybook init --local --host cn1=192.0.2.11 --host cn2 --user ops"
)]
pub(super) struct Args {
    /// What the cloud is called [default: the name of this machine]
    #[arg(long)]
    name: Option<Label>,
    /// A host to run containers on, reached by SSH; may be repeated
    #[arg(long = "host", value_name = "NAME[=ADDRESS]")]
    hosts: Vec<NewHost>,
    /// This machine runs containers too; NAME is what it is called here [default: its own name]
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true)]
    local: Option<Option<HostName>>,
    /// Who logs in to the hosts; anybody but root becomes root by sudo [default: root]
    #[arg(long)]
    user: Option<User>,
    /// A file with the public key that may log in to containers [default: the operator's own in ~/.ssh]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where container addresses come from [default: 10.5.0.0/16]
    #[arg(long)]
    subnet: Option<Subnet>,
}

/// A host that is to be in the inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NewHost {
    name: HostName,
    address: Option<String>,
}

impl FromStr for NewHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (name, Some(address)),
            None => (text, None),
        };
        let is_word = |text: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
            !text.is_empty() && text.chars().all(plain)
        };
        if address.is_some_and(|address| !is_word(&address)) {
            return Err("an address is a DNS name or an IP address".to_owned());
        }
        Ok(NewHost {
            name: HostName::new(name).map_err(|error| error.to_string())?,
            address: address.map(str::to_owned),
        })
    }
}

/// Hosts, apart by spaces or commas; there may be none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NewHosts(Vec<NewHost>);

impl FromStr for NewHosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split([' ', ',', '\t']).filter(|word| !word.is_empty());
        words
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(NewHosts)
    }
}

/// Who logs in to hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User(String);

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let good = !text.is_empty() && !text.starts_with('-') && text.chars().all(word);
        good.then(|| User(text.to_owned()))
            .ok_or("a user's name has letters, digits, '_', '-' and '.'")
    }
}

/// A question that is answered by yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Yes(bool);

impl FromStr for Yes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "y" | "yes" => Ok(Yes(true)),
            "n" | "no" => Ok(Yes(false)),
            _ => Err("answer y or n"),
        }
    }
}

/// All that the inventory is made of.
struct Answers {
    name: Label,
    /// What this machine is called, where it runs containers.
    local: Option<HostName>,
    hosts: Vec<NewHost>,
    user: User,
    key: Option<PublicKey>,
    subnet: Option<Subnet>,
}

/// What was written, as JSON.
#[derive(Debug, Serialize)]
struct Written<'a> {
    inventory: &'a Path,
    hosts: Vec<&'a str>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let path = context.new_inventory_path();
        if path.exists() {
            return Err(Error::InventoryExists(path));
        }
        let answers = self.answers(out.format())?;
        let text = answers.inventory();
        let inventory = parse(&path.display().to_string(), &text).map_err(|diagnostics| {
            let path = path.clone();
            Error::Inventory { path, diagnostics }
        })?;
        write_new(&path, &text)?;
        let hosts: Vec<&str> = inventory.hosts.keys().map(HostName::as_str).collect();
        if out.format() == Format::Json {
            let inventory = &path;
            out.json(&Written { inventory, hosts })?;
            return Ok(Exit::Ok);
        }
        out.line(format!(
            "{}: written, with {}",
            path.display(),
            count(hosts.len(), "host")
        ))?;
        out.line("next:")?;
        let named = match context.is_inventory_named() {
            true => format!(" --inventory {}", path.display()),
            false => String::new(),
        };
        for host in answers.hosts.iter().map(|host| &host.name) {
            out.line(format!(
                "  tallybook host trust {host}{named}    # its SSH host key, unless it is known"
            ))?;
        }
        let hosts = hosts.join(" ");
        out.line(format!("  tallybook host install {hosts}{named}"))?;
        out.line(format!("  tallybook host prepare {hosts}{named}"))?;
        Ok(Exit::Ok)
    }

    fn answers(self, format: Format) -> Result<Answers, Error> {
        let can_ask = std::io::stdin().is_terminal() && format == Format::Table;
        let here = rustix::system::uname();
        let here = here.nodename().to_string_lossy();
        let here = here.split('.').next().unwrap_or_default().to_owned();
        let told_hosts = self.local.is_some() || !self.hosts.is_empty();
        if !told_hosts && !can_ask {
            return Err(Error::NoHosts);
        }
        let name = match (self.name, can_ask) {
            (Some(name), _) => name,
            (None, true) => ask("What is this cloud called?", &here)?,
            (None, false) => Label::new(&here).ok_or(Error::NotGiven("--name"))?,
        };
        let local = match self.local {
            Some(Some(name)) => Some(name),
            Some(None) => Some(HostName::new(&here).map_err(|_| Error::NotGiven("--local=NAME"))?),
            None if told_hosts => None,
            None => match ask::<Yes>("Shall this machine run containers too? (y/n)", "n")? {
                Yes(true) => Some(ask("What is it called?", &here)?),
                Yes(false) => None,
            },
        };
        let mut hosts = self.hosts;
        while !told_hosts && hosts.is_empty() {
            let question = "Which other hosts? (NAME or NAME=ADDRESS, apart by spaces)";
            hosts = ask::<NewHosts>(question, "")?.0;
            if local.is_some() {
                break;
            }
        }
        let mut seen = BTreeSet::new();
        let named = hosts.iter().map(|host| &host.name);
        if let Some(twice) = local.iter().chain(named).find(|name| !seen.insert(*name)) {
            return Err(Error::GivenTwice(twice.clone()));
        }
        let user = match (self.user, can_ask && !hosts.is_empty()) {
            (Some(user), _) => user,
            (None, true) => ask("Who logs in there?", "root")?,
            (None, false) => User("root".to_owned()),
        };
        let key = match self.key {
            Some(path) => Some(read_key(&path)?),
            None => own_key(),
        };
        let subnet = match (self.subnet, can_ask) {
            (Some(subnet), _) => Some(subnet),
            (None, true) => Some(ask(
                "Where do container addresses come from?",
                "10.5.0.0/16",
            )?),
            (None, false) => None,
        };
        Ok(Answers {
            name,
            local,
            hosts,
            user,
            key,
            subnet,
        })
    }
}

impl Answers {
    /// The text of the inventory, with a word about each part and what else could be there.
    fn inventory(&self) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        line(
            "# What is wanted of this cloud. docs/CLOUD.md has every key; `tallybook cloud check` checks this file.",
        );
        line("");
        line("[cloud]");
        line(&format!("name = \"{}\"", self.name));
        if let Some(local) = &self.local {
            line(&format!("controller = \"{local}\""));
        }
        line("");
        line("# What every host has unless it says otherwise.");
        line("[defaults.host]");
        line(&format!("user = \"{}\"", self.user.0));
        let becomes = match self.user.0.as_str() {
            "root" => "none",
            _ => "sudo",
        };
        line(&format!(
            "become = \"{becomes}\"  # how that user becomes root: \"none\" or \"sudo\""
        ));
        line("");
        line(
            "# The network of the containers, one for the whole cloud: an address is never used twice.",
        );
        line("[network]");
        match &self.subnet {
            Some(subnet) => line(&format!("subnet = \"{subnet}\"")),
            None => line("# subnet = \"10.5.0.0/16\""),
        }
        line("# domain = \"example.net\"          # DNS domain of the containers");
        line("# forward_ports = \"40000-60000\"   # host ports that forwards are allocated from");
        line("");
        if let Some(local) = &self.local {
            line(&format!("[hosts.{}]", quoted(local)));
            line("local = true  # the machine that tallybook runs on, reached without SSH");
            line("");
        }
        for host in &self.hosts {
            line(&format!("[hosts.{}]", quoted(&host.name)));
            if let Some(address) = &host.address {
                line(&format!("address = \"{address}\""));
            }
            line("");
        }
        line("# What every container has unless it says otherwise.");
        line("[defaults.container]");
        line("# release = \"trixie\"              # Debian's suite");
        if let Some(key) = &self.key {
            line("keys = [\"operator\"]              # whose public keys may log in");
            line("");
            line("[keys]");
            line(&format!("operator = {}", text_of(&key.to_string())));
        }
        line("");
        line(
            "# A container: without the # before each line, `tallybook container create web` makes it.",
        );
        let first = self
            .local
            .as_ref()
            .or(self.hosts.first().map(|host| &host.name));
        for example in example(first) {
            line(&format!("# {example}"));
        }
        text
    }
}

/// A container as it would be written.
fn example(host: Option<&HostName>) -> [String; 4] {
    let host = host.map(ToString::to_string).unwrap_or_default();
    [
        "[containers.web]".to_owned(),
        format!("host = \"{host}\""),
        "packages = [\"nginx-light\"]".to_owned(),
        "ports = [{ name = \"http\", container = 80, host = 8080 }]".to_owned(),
    ]
}

/// A text as TOML has it. Nothing that is written here has control characters.
fn text_of(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A key of a TOML table.
fn quoted(name: &HostName) -> String {
    match name.as_str().contains('.') {
        true => format!("\"{name}\""),
        false => name.to_string(),
    }
}

/// Asks until the answer can be used; nothing is what is proposed.
fn ask<T: FromStr<Err: std::fmt::Display>>(question: &str, proposed: &str) -> Result<T, Error> {
    let unasked = |_| Error::Unanswered;
    let mut asked = std::io::stderr();
    loop {
        let shown = match proposed {
            "" => format!("{question} "),
            _ => format!("{question} [{proposed}] "),
        };
        write!(asked, "{shown}")
            .and_then(|()| asked.flush())
            .map_err(unasked)?;
        let mut answer = String::new();
        let read = std::io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(unasked)?;
        if read == 0 {
            return Err(Error::Unanswered);
        }
        let answer = match answer.trim() {
            "" => proposed,
            answer => answer,
        };
        match answer.parse() {
            Ok(answer) => return Ok(answer),
            Err(error) => writeln!(asked, "  {error}").map_err(unasked)?,
        }
    }
}

fn read_key(path: &Path) -> Result<PublicKey, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let key = text.and_then(|text| PublicKey::new(&text).map_err(|error| error.to_string()));
    key.map_err(|why| Error::PublicKey {
        path: path.to_owned(),
        why,
    })
}

/// The operator's own public key, where there is one in the usual place.
fn own_key() -> Option<PublicKey> {
    let home = std::env::home_dir()?;
    let kinds = ["ed25519", "ed25519_sk", "ecdsa", "ecdsa_sk", "rsa"];
    let mut paths = kinds
        .into_iter()
        .map(|kind| home.join(format!(".ssh/id_{kind}.pub")));
    paths.find_map(|path| read_key(&path).ok())
}

/// Writes a file that was not there, whole or not at all.
fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let half = directory.join(format!(".{name}.{}", std::process::id()));
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    // One that a dead process left; anything else in its place, such as a link, is never written through.
    let _there_was_none = std::fs::remove_file(&half);
    let written = File::create_new(&half).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    // Crash boundary: it has its name when all of it is on the disk. Replaces nothing.
    let named = written.map(|()| std::fs::hard_link(&half, path));
    // What is left of it is in nobody's way.
    let _gone = std::fs::remove_file(&half);
    match named.map_err(failed)? {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::InventoryExists(path.to_owned()));
        }
        other => other.map_err(failed)?,
    }
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(local: bool, hosts: &[&str]) -> Answers {
        Answers {
            name: Label::new("example").unwrap(),
            local: local.then(|| HostName::new("ctl").unwrap()),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            user: User("ops".to_owned()),
            key: None,
            subnet: Some("10.9.0.0/16".parse().unwrap()),
        }
    }

    #[test]
    fn what_is_written_is_an_inventory() {
        for (local, hosts) in [
            (true, &[][..]),
            (false, &["cn1"]),
            (true, &["cn1=192.0.2.11", "cn2.example.net=2001:db8::2"]),
        ] {
            let text = answers(local, hosts).inventory();
            let inventory = parse("cloud.toml", &text).unwrap();
            assert_eq!(inventory.hosts.len(), hosts.len() + usize::from(local));
            assert!(inventory.containers.is_empty());
        }
    }

    #[test]
    fn what_is_commented_out_may_be_commented_in() {
        let answers = answers(true, &["cn1"]);
        let is_example = |line: &&str| {
            let line = line.strip_prefix("# ").unwrap_or_default();
            line.starts_with('[')
                || line
                    .split_once(" = ")
                    .is_some_and(|(key, _)| !key.contains(' '))
        };
        let text = answers.inventory();
        let commented = text.lines().filter(is_example).count();
        assert_eq!(commented, 7, "{text}");
        let lines = text.lines().map(|line| match is_example(&line) {
            true => line.trim_start_matches("# "),
            false => line,
        });
        let whole: Vec<&str> = lines.collect();
        let inventory = parse("cloud.toml", &whole.join("\n")).unwrap();
        assert_eq!(inventory.containers.len(), 1);
    }

    #[test]
    fn what_somebody_wrote_behind_a_key_is_taken_as_it_is() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
        let key = PublicKey::new(&format!("{key} CORP\\alice \"at work\"")).unwrap();
        let answers = Answers {
            key: Some(key.clone()),
            ..answers(true, &[])
        };
        let inventory = parse("cloud.toml", &answers.inventory()).unwrap();
        assert_eq!(inventory.keys[&Label::new("operator").unwrap()], [key]);
    }

    #[test]
    fn hosts_are_names_with_or_without_an_address() {
        let hosts: NewHosts = "cn1, cn2=192.0.2.2".parse().unwrap();
        assert_eq!(hosts.0.len(), 2);
        assert_eq!(hosts.0[1].address.as_deref(), Some("192.0.2.2"));
        for bad in ["=", "cn1=", "cn1=\"", "-x", "a b/c"] {
            assert!(bad.parse::<NewHosts>().is_err(), "{bad:?} was taken");
        }
    }
}
