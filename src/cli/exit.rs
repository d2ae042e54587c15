//! Exit codes: what a script may rely on. `docs/EXIT_CODES.md` says the same in a table; a test holds them together.
//!
//! A code, once given, never means anything else.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exit {
    /// It did what was asked.
    Ok,
    /// It failed. Where an operation failed, what it did was taken back or is held by it: `op show` tells.
    Failed,
    /// The command line or the inventory is wrong. Nothing was done.
    Usage,
    /// It failed on some hosts and succeeded on others.
    SomeHosts,
    /// Something is not what its hash, its history or its source says.
    Verification,
    /// Another operation, or another process, has it.
    Locked,
    /// A host can't be reached.
    Unreachable,
    /// A host's key is unknown or has changed, or a host refused to let us in.
    Identity,
    /// Something of that name is there already.
    Exists,
    /// There is no such container, host, template, operation, event or log.
    Missing,
    /// A disk is full, here or on a host.
    DiskFull,
    /// Somebody else changed on a host what the log says is there.
    Drift,
    /// Whoever asks may not have that done.
    Permission,
    /// It was interrupted; `op resume` goes on where it stopped.
    Interrupted,
    /// `container exec` and `container shell` end as the command in the container did.
    Command(u8),
}

impl Exit {
    /// Every code of our own, in order.
    pub const ALL: [Exit; 14] = [
        Exit::Ok,
        Exit::Failed,
        Exit::Usage,
        Exit::SomeHosts,
        Exit::Verification,
        Exit::Locked,
        Exit::Unreachable,
        Exit::Identity,
        Exit::Exists,
        Exit::Missing,
        Exit::DiskFull,
        Exit::Drift,
        Exit::Permission,
        Exit::Interrupted,
    ];

    /// As a command in a container ended: with its status, or 1 where a signal ended it.
    pub fn of_command(status: Option<i32>) -> Self {
        match status.and_then(|status| u8::try_from(status).ok()) {
            Some(0) => Exit::Ok,
            Some(status) => Exit::Command(status),
            None => Exit::Failed,
        }
    }

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::SomeHosts => 3,
            Exit::Verification => 4,
            Exit::Locked => 5,
            Exit::Unreachable => 6,
            Exit::Identity => 7,
            Exit::Exists => 8,
            Exit::Missing => 9,
            Exit::DiskFull => 10,
            Exit::Drift => 11,
            Exit::Permission => 12,
            Exit::Interrupted => 75,
            Exit::Command(code) => code,
        }
    }

    /// Its name in JSON and in the documentation.
    pub const fn label(self) -> &'static str {
        match self {
            Exit::Ok => "ok",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::SomeHosts => "some_hosts",
            Exit::Verification => "verification",
            Exit::Locked => "locked",
            Exit::Unreachable => "unreachable",
            Exit::Identity => "identity",
            Exit::Exists => "exists",
            Exit::Missing => "missing",
            Exit::DiskFull => "disk_full",
            Exit::Drift => "drift",
            Exit::Permission => "permission",
            Exit::Interrupted => "interrupted",
            Exit::Command(_) => "command",
        }
    }
}

impl Serialize for Exit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl<'de> Deserialize<'de> for Exit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let label = String::deserialize(deserializer)?;
        let known = Exit::ALL.into_iter().find(|exit| exit.label() == label);
        known.ok_or_else(|| D::Error::custom(format!("there is no exit code {label:?}")))
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}
