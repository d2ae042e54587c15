//! What can go wrong on the way to a host, as an operator meets it.
//!
//! Must never hide where the trouble is: every case names the host, and those about files name file and line.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::known_hosts::{self, Offered, Place, Recorded};

/// One way of proving who we are, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The agent's key or the file.
    pub what: String,
    /// Why it did not do.
    pub why: String,
}

/// One directory for the agent, and why it did not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The directory.
    pub directory: String,
    /// The kind of trouble.
    pub obstacle: Obstacle,
    /// What the host said.
    pub detail: String,
}

/// Why the agent can't live in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Files there can't be executed.
    NoExec,
    /// No space or no quota left.
    Full,
    /// A read-only file system.
    ReadOnly,
    /// Not permitted.
    Permission,
    /// What arrived is not what was sent.
    Damaged,
    /// Something else; the detail says what.
    Other,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoExec => "mounted noexec",
            Self::Full => "no space left",
            Self::ReadOnly => "read-only",
            Self::Permission => "not permitted",
            Self::Damaged => "damaged on the way",
            Self::Other => "failed",
        })
    }
}

/// Why a host can't be reached or used.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the fields are named for what they hold; the variants are documented"
)]
pub enum Error {
    /// The address or jump destination can't be meant.
    #[error("host {host}: {text:?} is not an address: {why}")]
    Address {
        host: String,
        text: String,
        why: &'static str,
    },
    /// The SSH configuration could not be resolved.
    #[error("host {host}: the SSH configuration could not be resolved: {why}")]
    Config { host: String, why: String },
    /// The name has no address.
    #[error("host {host}: the name {address} does not resolve")]
    Resolve {
        host: String,
        address: String,
        source: io::Error,
    },
    /// Nothing listens on the port.
    #[error("host {host}: {address} refused the connection")]
    ConnectionRefused {
        host: String,
        address: String,
        source: io::Error,
    },
    /// The network does not lead there.
    #[error("host {host}: {address} can't be reached")]
    Unreachable {
        host: String,
        address: String,
        source: io::Error,
    },
    /// No answer in time.
    #[error("host {host}: no answer within {} while {doing}", humantime::format_duration(*after))]
    Timeout {
        host: String,
        doing: &'static str,
        after: Duration,
    },
    /// The other side ended the connection before it was set up, or does not speak SSH as we do.
    #[error("host {host}: {address} did not complete the SSH handshake")]
    Handshake {
        host: String,
        address: String,
        source: Box<russh::Error>,
    },
    /// The jump host could not be used.
    #[error("host {host}: its jump host {jump} could not be used")]
    Jump {
        host: String,
        jump: String,
        source: Box<Error>,
    },
    /// The jump host does not connect us on.
    #[error("host {host}: jump host {jump} does not connect to {address}: {why}")]
    JumpRefused {
        host: String,
        jump: String,
        address: String,
        why: String,
    },
    /// More jump hosts than we follow.
    #[error("host {host}: more than {max} jump hosts in a row")]
    JumpsTooMany { host: String, max: usize },
    /// The host's key is not on record.
    #[error(
        "host {host}: its {} key {} is not on record in {}{}", offered.key.kind, offered.key.fingerprint(), file.display(),
        authority.as_ref().map(|place| format!(" ({place} names an authority, but the host showed no certificate)")).unwrap_or_default()
    )]
    KeyUnknown {
        host: String,
        offered: Box<Offered>,
        file: PathBuf,
        authority: Option<Place>,
    },
    /// The host shows another key than the one on record.
    #[error("host {host}: its key has CHANGED: it shows {} {}, on record is {}", offered.key.kind, offered.key.fingerprint(), list(recorded))]
    KeyChanged {
        host: String,
        offered: Box<Offered>,
        recorded: Vec<Recorded>,
    },
    /// The host shows a revoked key.
    #[error("host {host}: its key is revoked by {place}")]
    KeyRevoked { host: String, place: Place },
    /// The host shows a certificate that can't be accepted.
    #[error("host {host}: its certificate can't be accepted: {why}")]
    CertificateRefused { host: String, why: String },
    /// A known_hosts line that may concern the host can't be understood.
    #[error("host {host}: {place} may concern it and can't be understood: {why}")]
    KnownHostsMalformed {
        host: String,
        place: Place,
        why: String,
    },
    /// A known_hosts file can't be used.
    #[error("host {host}: its key can't be checked")]
    KnownHosts {
        host: String,
        source: known_hosts::Error,
    },
    /// The host does not let us in.
    #[error("host {host}: user {user} is not let in{}", attempts(tried))]
    AuthRefused {
        host: String,
        user: String,
        tried: Vec<Tried>,
        disconnected: bool,
    },
    /// Too many commands at once, by our own bound.
    #[error("host {host}: {max} commands are already running on its session, none ended within {}", humantime::format_duration(*waited))]
    ChannelLimit {
        host: String,
        max: usize,
        waited: Duration,
    },
    /// The host refuses another command.
    #[error("host {host}: it refuses to start another command on this session")]
    ChannelRefused {
        host: String,
        source: Box<russh::Error>,
    },
    /// The connection broke.
    #[error("host {host}: the line was lost: {why}")]
    LineLost { host: String, why: String },
    /// A process of this machine could not be started.
    #[error("host {host}: a local process could not be started or waited for")]
    Local { host: String, source: io::Error },
    /// A command took too long.
    #[error("host {host}: {what} did not end within {}", humantime::format_duration(*after))]
    CommandTimeout {
        host: String,
        what: &'static str,
        after: Duration,
    },
    /// A command failed.
    #[error("host {host}: {what} failed ({status}){}", said(stderr))]
    CommandFailed {
        host: String,
        what: &'static str,
        status: String,
        stderr: String,
    },
    /// Not root there, and no way to become root.
    #[error("host {host}: not root there, and can't become root{}", said(detail))]
    NotRoot { host: String, detail: String },
    /// The agent is built for another machine.
    #[error("host {host} is {theirs}; this agent is {ours}")]
    Architecture {
        host: String,
        theirs: String,
        ours: String,
    },
    /// No directory takes the agent.
    #[error("host {host}: the agent can't be placed: {}", places(tried))]
    AgentNowhere { host: String, tried: Vec<Refused> },
}

fn list(recorded: &[Recorded]) -> String {
    let mut text = String::new();
    for Recorded { place, key } in recorded {
        let gap = if text.is_empty() { "" } else { ", " };
        text += &format!("{gap}{} {} ({place})", key.kind, key.fingerprint());
    }
    text
}

fn attempts(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return ": there was no key to try".to_owned();
    }
    let mut text = String::from("; tried");
    for Tried { what, why } in tried {
        text += &format!("\n  {what}: {why}");
    }
    text
}

fn places(tried: &[Refused]) -> String {
    let mut text = String::new();
    for refused in tried {
        text += &format!(
            "\n  {}: {}{}",
            refused.directory,
            refused.obstacle,
            said(&refused.detail)
        );
    }
    text
}

fn said(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

fn trust_hint(host: &str, offered: &Offered, file: &Path) -> String {
    format!(
        "compare the fingerprint with `ssh-keygen -lf` on its console; to accept it: `tallybook host trust {host}`, \
         or append this line to {}:\n{}",
        file.display(),
        offered.line()
    )
}

impl Error {
    /// Whether the host could not be reached at all, or the line to it broke: to try again later may help, and
    /// nothing is known about what a command in flight did.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::ConnectionRefused { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Handshake { .. }
            | Self::JumpRefused { .. }
            | Self::LineLost { .. } => true,
            Self::Jump { source, .. } => source.is_unreachable(),
            Self::Address { .. }
            | Self::Config { .. }
            | Self::JumpsTooMany { .. }
            | Self::KeyUnknown { .. }
            | Self::KeyChanged { .. }
            | Self::KeyRevoked { .. }
            | Self::CertificateRefused { .. }
            | Self::KnownHostsMalformed { .. }
            | Self::KnownHosts { .. }
            | Self::AuthRefused { .. }
            | Self::ChannelLimit { .. }
            | Self::ChannelRefused { .. }
            | Self::Local { .. }
            | Self::CommandTimeout { .. }
            | Self::CommandFailed { .. }
            | Self::NotRoot { .. }
            | Self::Architecture { .. }
            | Self::AgentNowhere { .. } => false,
        }
    }

    /// Whether the host's identity or ours is in question: never to be retried without an operator.
    pub fn is_identity(&self) -> bool {
        if let Self::Jump { source, .. } = self {
            return source.is_identity();
        }
        matches!(
            self,
            Self::KeyUnknown { .. }
                | Self::KeyChanged { .. }
                | Self::KeyRevoked { .. }
                | Self::CertificateRefused { .. }
                | Self::KnownHostsMalformed { .. }
                | Self::KnownHosts { .. }
                | Self::AuthRefused { .. }
        )
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            // A jump host need not be in the inventory; the host behind it is, and `host trust` goes the same way.
            Self::Jump { host, source, .. } => match &**source {
                Self::KeyUnknown { offered, file, .. } => trust_hint(host, offered, file),
                other => return other.hint(),
            },
            Self::Resolve { .. } | Self::Address { .. } => {
                "check the address in cloud.toml or HostName in the SSH configuration".to_owned()
            }
            Self::ConnectionRefused { .. } => {
                "check that sshd runs there, and the port".to_owned()
            }
            Self::KeyUnknown { host, offered, file, .. } => trust_hint(host, offered, file),
            Self::KeyChanged { offered, recorded, .. } => {
                let mut text = String::from(
                    "either the host was reinstalled or someone is in between: find out which before anything else; \
                     if the new key is right, remove the old line",
                );
                for Recorded { place, .. } in recorded {
                    text += &format!(" {place}");
                }
                text += &format!(" and accept the new one:\n{}", offered.line());
                text
            }
            Self::KeyRevoked { .. } => {
                "give the host a new host key; a revoked one is never accepted".to_owned()
            }
            Self::CertificateRefused { .. } => {
                "sign the host's key anew with the recorded authority, for this name".to_owned()
            }
            Self::KnownHostsMalformed { place, .. } => format!("correct or remove {place}"),
            Self::AuthRefused { user, disconnected, .. } => {
                let mut text = format!(
                    "put a public key of yours into the authorized_keys of {user}, or load its key: `ssh-add FILE`"
                );
                if *disconnected {
                    text += "; the host ended the connection (MaxAuthTries?): name the right key with `identity` in cloud.toml, or with IdentityFile and IdentitiesOnly in the SSH configuration";
                }
                text
            }
            Self::ChannelRefused { .. } => {
                "sshd's MaxSessions there is probably below 8: raise it, then try again".to_owned()
            }
            Self::NotRoot { .. } => {
                "log in as root, or let the user run `sudo -n` without a password and set become = \"sudo\" for the host in cloud.toml".to_owned()
            }
            Self::Architecture { theirs, .. } => {
                format!("build or install the agent for {theirs} beside tallybook")
            }
            Self::AgentNowhere { .. } => {
                "make one of these directories writable and executable, and free some megabytes".to_owned()
            }
            Self::JumpRefused { .. } => {
                "check AllowTcpForwarding and PermitOpen on the jump host, and the address as seen from there".to_owned()
            }
            Self::Unreachable { host, .. } | Self::Timeout { host, .. } => {
                format!("find out whether {host} is up and the network to it whole, then try again")
            }
            Self::Config { .. }
            | Self::Handshake { .. }
            | Self::JumpsTooMany { .. }
            | Self::KnownHosts { .. }
            | Self::ChannelLimit { .. }
            | Self::LineLost { .. }
            | Self::Local { .. }
            | Self::CommandTimeout { .. }
            | Self::CommandFailed { .. } => return None,
        })
    }
}
