//! Who did it: a list of claims, each with where it comes from. Nothing here decides whom to believe.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a claim about an actor comes from, and so how far it can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimSource {
    /// The kernel said so: process credentials, `/proc/self/loginuid`, peer credentials of a socket.
    Kernel,
    /// The environment said so: `SUDO_UID`, `SSH_CONNECTION`. Whoever runs the command can set it.
    Asserted,
    /// Looked up by us from another claim: the user name of a uid.
    Derived,
}

impl ClaimSource {
    pub(crate) const fn code(self) -> u8 {
        match self {
            ClaimSource::Kernel => 1,
            ClaimSource::Asserted => 2,
            ClaimSource::Derived => 3,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(ClaimSource::Kernel),
            2 => Some(ClaimSource::Asserted),
            3 => Some(ClaimSource::Derived),
            _ => None,
        }
    }
}

/// One thing said about the actor, for example `uid` = `0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ActorClaim {
    /// `uid`, `gid`, `pid`, `user`, `loginuid`, `login_user`, `sudo_uid`, `sudo_user`, `ssh_connection`, `tty`.
    pub name: String,
    /// The value as text.
    pub value: String,
    /// Where it comes from.
    pub source: ClaimSource,
}

/// Everything known about who made an event happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actor(pub Vec<ActorClaim>);

impl Actor {
    /// The value of the first claim of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|claim| claim.name == name)
            .map(|claim| claim.value.as_str())
    }

    /// One word for tables and for `log --actor`: who typed it. Behind sudo that is the login user where the
    /// kernel knows it, else who sudo says it was, marked `?` because only the environment says so; of root alone, who
    /// may say anything: another user is not shown as whom they claim to be.
    pub fn label(&self) -> String {
        if let Some(user) = self.get("login_user") {
            return user.to_owned();
        }
        let is_root = self.get("uid") == Some("0");
        if let Some(user) = self.get("sudo_user").filter(|_| is_root) {
            return format!("{user}?");
        }
        match (self.get("user"), self.get("uid")) {
            (Some(user), _) => user.to_owned(),
            (None, Some(uid)) => format!("uid {uid}"),
            (None, None) => "unknown".to_owned(),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.label())
    }
}
