//! The controller's way to hosts: SSH, straight or through jump hosts, or plain child processes on the controller
//! itself; and the agent, pushed once.
//!
//! Must never accept a host key on a guess, ask a person anything, or let data of a user's pass through a shell.
//!
//! ```text
//! Target ──ssh_config──▶ hops ──ssh (verify, auth)──▶ Session ──run / open(Command)──▶ Output / Stream
//!                                                        └──agent_push──▶ path of the agent
//! ```

pub mod agent_push;
mod auth;
pub mod command;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod known_hosts;
mod local;
mod session;
mod ssh;
pub mod ssh_config;
pub mod stream;
mod transport;
mod verify;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tallybook_events::name::HostName;
use tokio::sync::OwnedSemaphorePermit;

pub use agent_push::{AgentPath, HEAD_LEN, attach, push_agent};
pub use command::{Command, Word};
pub use error::Error;
pub use session::{Bounds, Output, Session};
pub use stream::{Exit, Process, Status, Stream};

use auth::Identity;
use ssh::{Connection, Hop};

/// The most jump hosts in a row.
pub const JUMPS_MAX: usize = 8;

/// A host as the inventory describes it. What is not set comes from the SSH configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: HostName,
    /// A host name, an address, or an alias of the SSH configuration.
    pub address: String,
    /// The port.
    pub port: Option<u16>,
    /// The user to log in as.
    pub user: Option<String>,
    /// Private keys; when any is given, those of the SSH configuration are not used.
    pub identity_files: Vec<PathBuf>,
    /// Jump hosts, the nearest to us first; without any, those of the SSH configuration.
    pub jumps: Vec<Jump>,
    /// Commands run through `sudo -n`.
    pub become_root: bool,
    /// The host is the controller itself: no SSH.
    pub local: bool,
}

/// A jump host. What is not set comes from the SSH configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// What messages call it.
    pub label: String,
    /// A host name, an address, or an alias of the SSH configuration.
    pub address: String,
    /// The port.
    pub port: Option<u16>,
    /// The user to log in as.
    pub user: Option<String>,
    /// Private keys; when any is given, those of the SSH configuration are not used.
    pub identity_files: Vec<PathBuf>,
}

impl Jump {
    /// As the SSH configuration writes it: `[user@]host[:port]`, with an IPv6 address in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let destination = Destination::parse(text)?;
        address_fault(destination.host).is_none().then(|| Jump {
            label: text.to_owned(),
            address: destination.host.to_owned(),
            port: destination.port,
            user: destination.user.map(str::to_owned),
            identity_files: Vec::new(),
        })
    }
}

/// How to reach hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The `ssh` program, asked for the SSH configuration.
    pub ssh_program: PathBuf,
    /// A configuration file instead of the operator's own, as `ssh -F`.
    pub ssh_config: Option<PathBuf>,
    /// Files of known hosts instead of those of the SSH configuration; the first takes accepted keys.
    pub known_hosts: Vec<PathBuf>,
    /// The operator's home directory.
    pub home: Option<PathBuf>,
    /// The socket of ssh-agent.
    pub agent_socket: Option<PathBuf>,
    /// For each of: the name, the connection, the handshake.
    pub connect_timeout: Duration,
    /// For authentication (an agent may ask its owner).
    pub auth_timeout: Duration,
    /// Silence after which the host is asked whether it is there.
    pub keepalive_interval: Duration,
    /// Questions in a row that may stay without an answer.
    pub keepalive_max: usize,
    /// Commands at once on a session; sshd's MaxSessions is 10 by default.
    pub sessions_max: usize,
    /// How long a command waits for its turn.
    pub channel_wait: Duration,
    /// How much a host may send ahead on a channel.
    pub window_bytes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ssh_program: PathBuf::from("ssh"),
            ssh_config: None,
            known_hosts: Vec::new(),
            home: None,
            agent_socket: None,
            connect_timeout: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(5),
            keepalive_max: 2,
            sessions_max: 8,
            channel_wait: Duration::from_secs(30),
            window_bytes: 16 * 1024 * 1024,
        }
    }
}

impl Settings {
    /// The defaults with what the environment says: `HOME` and `SSH_AUTH_SOCK`.
    #[must_use]
    pub fn with_environment(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let path = |name| {
            variable(name)
                .filter(|v| v != OsStr::new(""))
                .map(PathBuf::from)
        };
        Self {
            home: path("HOME"),
            agent_socket: path("SSH_AUTH_SOCK"),
            ..Self::default()
        }
    }

    /// After how much silence a line counts as lost.
    pub fn line_dead_after(&self) -> Duration {
        let questions = u32::try_from(self.keepalive_max).unwrap_or(u32::MAX);
        self.keepalive_interval
            .saturating_mul(questions.saturating_add(1))
    }
}

/// Opens a session with a host.
///
/// # Errors
/// Whatever stands in the way: see [`Error`].
pub async fn connect(target: &Target, settings: &Settings) -> Result<Session, Error> {
    connect_keeping(target, settings, None).await
}

/// The same, with the right to have a line, which is given back when this one is closed.
///
/// # Errors
/// As [`connect`].
pub async fn connect_keeping(
    target: &Target,
    settings: &Settings,
    right: Option<OwnedSemaphorePermit>,
) -> Result<Session, Error> {
    let host = target.name.to_string();
    if target.local {
        return Ok(Session::local(host, target.become_root));
    }
    let mut via: Option<Arc<Connection>> = None;
    let mut hops = hops(target, settings).await?;
    // All behind the first hop goes through its line.
    if let Some(first) = hops.front_mut() {
        first.keep = right.map(Arc::new);
    }
    let Some(last) = hops.pop_back() else {
        unreachable!("hops() ends with the host itself");
    };
    for hop in hops {
        let connection = ssh::establish(&hop, via.take(), settings)
            .await
            .map_err(|source| Error::Jump {
                host: host.clone(),
                jump: hop.label.clone(),
                source: Box::new(source),
            })?;
        via = Some(Arc::new(connection));
    }
    let connection = ssh::establish(&last, via, settings).await?;
    Ok(Session::ssh(host, target.become_root, connection))
}

/// The machines on the way to a host, nearest to us first, the host itself last.
async fn hops(target: &Target, settings: &Settings) -> Result<VecDeque<Hop>, Error> {
    let host = target.name.as_str();
    check_address(host, &target.address)?;
    let resolved = ssh_config::resolve(
        &target.address,
        target.user.as_deref(),
        target.port,
        settings,
    )
    .await
    .map_err(|error| renamed(error, host))?;
    let mut pending = if target.jumps.is_empty() {
        configured(host, &resolved.jumps)?
    } else {
        target.jumps.clone()
    };
    let said = Said {
        user: target.user.as_deref(),
        port: target.port,
        identity_files: &target.identity_files,
    };
    let mut hops = VecDeque::from([hop(host, &resolved, said, settings)]);
    while !pending.is_empty() {
        let mut before = Vec::new();
        for jump in pending.iter().rev() {
            if hops.len() > JUMPS_MAX {
                return Err(Error::JumpsTooMany {
                    host: host.to_owned(),
                    max: JUMPS_MAX,
                });
            }
            let (hop, resolved) = jump_hop(host, jump, settings).await?;
            hops.push_front(hop);
            // Only the nearest jump host may itself need one; a jump to itself is what `Host *` makes of it.
            before = configured(host, &resolved.jumps)?;
            before.retain(|again| !is_same(again, jump));
        }
        pending = before;
    }
    Ok(hops)
}

/// The jump hosts that the SSH configuration names.
fn configured(host: &str, jumps: &[String]) -> Result<Vec<Jump>, Error> {
    let read = |text: &String| {
        Jump::parse(text).ok_or_else(|| Error::Address {
            host: host.to_owned(),
            text: text.clone(),
            why: "a jump host is written [user@]host[:port]",
        })
    };
    jumps.iter().map(read).collect()
}

/// Whether both lead to the same place, whatever they are called.
fn is_same(one: &Jump, other: &Jump) -> bool {
    (&one.address, one.port, &one.user) == (&other.address, other.port, &other.user)
}

async fn jump_hop(
    host: &str,
    jump: &Jump,
    settings: &Settings,
) -> Result<(Hop, ssh_config::Resolved), Error> {
    check_address(host, &jump.address)?;
    let user = jump.user.as_deref();
    let resolved = ssh_config::resolve(&jump.address, user, jump.port, settings)
        .await
        .map_err(|error| renamed(error, host))?;
    let said = Said {
        user,
        port: jump.port,
        identity_files: &jump.identity_files,
    };
    Ok((hop(&jump.label, &resolved, said, settings), resolved))
}

/// What was said about a hop outside the SSH configuration.
struct Said<'a> {
    user: Option<&'a str>,
    port: Option<u16>,
    identity_files: &'a [PathBuf],
}

/// What was said wins over what the SSH configuration says.
fn hop(label: &str, resolved: &ssh_config::Resolved, said: Said<'_>, settings: &Settings) -> Hop {
    let port = said.port.or(resolved.port).unwrap_or(22);
    let user = said.user.or(resolved.user.as_deref()).unwrap_or("root");
    let alias = resolved.host_key_alias.as_deref();
    Hop {
        label: label.to_owned(),
        address: resolved.host.clone(),
        port,
        identity: Identity {
            user: user.to_owned(),
            files: if said.identity_files.is_empty() {
                resolved.identity_files.clone()
            } else {
                said.identity_files.to_vec()
            },
            files_only: resolved.identities_only,
            agent: resolved.agent.clone(),
        },
        lookup: known_hosts::lookup_name(&resolved.host, port, alias),
        principal: alias.unwrap_or(&resolved.host).to_owned(),
        known_hosts: if settings.known_hosts.is_empty() {
            resolved.known_hosts.clone()
        } else {
            settings.known_hosts.clone()
        },
        keep: None,
    }
}

fn renamed(error: Error, name: &str) -> Error {
    match error {
        Error::Config { host, why } if host != name => Error::Config {
            host: name.to_owned(),
            why: format!("{host}: {why}"),
        },
        other => other,
    }
}

fn check_address(host: &str, address: &str) -> Result<(), Error> {
    match address_fault(address) {
        None => Ok(()),
        Some(why) => Err(Error::Address {
            host: host.to_owned(),
            text: address.to_owned(),
            why,
        }),
    }
}

fn address_fault(address: &str) -> Option<&'static str> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-:%".contains(c);
    if address.is_empty() {
        Some("it is empty")
    } else if address.starts_with('-') {
        Some("it starts with '-'")
    } else if !address.chars().all(harmless) {
        Some("only letters, digits, '.', '-', '_', ':' and '%' are allowed")
    } else {
        None
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Destination<'a> {
    user: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Destination<'a> {
    /// `[user@]host[:port]`, with an IPv6 address in brackets.
    fn parse(text: &'a str) -> Option<Self> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        if user.is_some_and(|user| user.is_empty() || user.starts_with('-')) {
            return None;
        }
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (host, after) = bracketed.split_once(']')?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':')?.parse().ok()?),
            };
            return Some(Self { user, host, port });
        }
        match rest.split_once(':') {
            None => Some(Self {
                user,
                host: rest,
                port: None,
            }),
            // More than one colon without brackets is an IPv6 address.
            Some((_, after)) if after.contains(':') => Some(Self {
                user,
                host: rest,
                port: None,
            }),
            Some((host, port)) => Some(Self {
                user,
                host,
                port: Some(port.parse().ok()?),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_destination_is_taken_apart() {
        let parse = |text| Destination::parse(text).map(|d| (d.user, d.host, d.port));
        assert_eq!(parse("j1"), Some((None, "j1", None)));
        assert_eq!(parse("u@j1:2222"), Some((Some("u"), "j1", Some(2222))));
        assert_eq!(parse("[::1]:2222"), Some((None, "::1", Some(2222))));
        assert_eq!(parse("u@[::1]"), Some((Some("u"), "::1", None)));
        assert_eq!(parse("fe80::1"), Some((None, "fe80::1", None)));
        for bad in ["j1:", "j1:x", "j1:99999", "[::1", "[::1]22", "@j1", "-x@j1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_address_can_be_no_option_and_no_shell_text() {
        for good in [
            "cn1",
            "cn1.example.org",
            "192.0.2.1",
            "fe80::1%eth0",
            "my_alias",
        ] {
            assert_eq!(address_fault(good), None, "{good}");
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a;b", "u@h", "a\n", "ü"] {
            assert!(address_fault(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_dead_line_is_noticed_within_the_promised_time() {
        assert_eq!(
            Settings::default().line_dead_after(),
            Duration::from_secs(15)
        );
    }

    #[test]
    fn the_environment_is_read_and_empty_means_unset() {
        let settings = Settings::with_environment(|name| match name {
            "HOME" => Some("/home/op".into()),
            "SSH_AUTH_SOCK" => Some("".into()),
            _ => None,
        });
        assert_eq!(settings.home, Some(PathBuf::from("/home/op")));
        assert_eq!(settings.agent_socket, None);
    }
}
