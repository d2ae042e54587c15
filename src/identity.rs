//! Who is typing, and which process writes: each claim with where it comes from.

use std::sync::{Arc, LazyLock};

use tallybook_events::actor::{Actor, ActorClaim, ClaimSource};
use tallybook_events::header::Writer;
use tallybook_events::ids::BootId;

/// The longest value a claim may have; what is longer is cut.
const VALUE_LEN_MAX: usize = 256;
/// The claim of who logged in.
const LOGINUID: &str = "loginuid";
/// What the kernel gives as loginuid when nobody logged in.
const LOGINUID_UNSET: &str = "4294967295";

/// Who runs this process. That does not change while it runs.
pub fn actor_here() -> Arc<Actor> {
    static HERE: LazyLock<Arc<Actor>> = LazyLock::new(|| Arc::new(ask_actor()));
    Arc::clone(&HERE)
}

fn ask_actor() -> Actor {
    let mut claims = uid_claims(rustix::process::getuid().as_raw());
    if let Some(value) = loginuid() {
        let user = value.parse().ok().and_then(user_name);
        claims.push(ActorClaim {
            name: LOGINUID.to_owned(),
            value,
            source: ClaimSource::Kernel,
        });
        claims.extend(user.map(|value| ActorClaim {
            name: "login_user".to_owned(),
            value,
            source: ClaimSource::Derived,
        }));
    }
    claims.extend(asserted());
    Actor(claims)
}

/// Whom the kernel says to be at the other end of a local socket: who made the connection, as it was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process, where that can be told.
    pub pid: Option<i32>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match user_name(self.uid) {
            Some(name) => write!(f, "{name} (uid {})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// Who is at the other end of a local socket: the kernel's word, and behind it what that end asserts.
///
/// The kernel's word is what it kept when the connection was made. What `/proc` says of a pid is said of whoever has that
/// pid by now, and the process that connected may be gone: so who logged in is asserted.
pub fn actor_of_peer(peer: Peer, asserted: Vec<ActorClaim>) -> Actor {
    let mut actor = Actor(uid_claims(peer.uid));
    let pid = peer.pid.map(|pid| ("pid", pid.to_string()));
    let besides = std::iter::once(("gid", peer.gid.to_string())).chain(pid);
    actor.0.extend(besides.map(|(name, value)| ActorClaim {
        name: name.to_owned(),
        value,
        source: ClaimSource::Kernel,
    }));
    actor.0.extend(
        asserted
            .into_iter()
            .take(16)
            .filter(|claim| {
                claim.name == LOGINUID || ASSERTED.iter().any(|(_, name)| *name == claim.name)
            })
            .map(|claim| ActorClaim {
                value: bounded(&claim.value),
                source: ClaimSource::Asserted,
                name: claim.name,
            }),
    );
    actor
}

/// The environment's variables that are kept, and the names of their claims.
const ASSERTED: &[(&str, &str)] = &[
    ("SUDO_UID", "sudo_uid"),
    ("SUDO_USER", "sudo_user"),
    ("SSH_CONNECTION", "ssh_connection"),
    ("SSH_TTY", "tty"),
];

/// What the environment asserts.
pub fn asserted() -> Vec<ActorClaim> {
    ASSERTED
        .iter()
        .filter_map(|(variable, name)| {
            let value = std::env::var(variable)
                .ok()
                .filter(|value| !value.is_empty())?;
            Some(ActorClaim {
                name: (*name).to_owned(),
                value: bounded(&value),
                source: ClaimSource::Asserted,
            })
        })
        .collect()
}

/// What this process tells a holder of itself: all of it is asserted there.
pub fn asserted_to_holder() -> Vec<ActorClaim> {
    let loginuid = loginuid().map(|value| ActorClaim {
        name: LOGINUID.to_owned(),
        value,
        source: ClaimSource::Asserted,
    });
    loginuid.into_iter().chain(asserted()).collect()
}

/// Who logged in, and by whatever ways became this process.
fn loginuid() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    let text = text.trim();
    (!text.is_empty() && text != LOGINUID_UNSET).then(|| text.to_owned())
}

fn uid_claims(uid: u32) -> Vec<ActorClaim> {
    let mut claims = vec![ActorClaim {
        name: "uid".to_owned(),
        value: uid.to_string(),
        source: ClaimSource::Kernel,
    }];
    if let Some(user) = user_name(uid) {
        claims.push(ActorClaim {
            name: "user".to_owned(),
            value: user,
            source: ClaimSource::Derived,
        });
    }
    claims
}

/// The name of a uid in `/etc/passwd`.
fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| bounded(name))
    })
}

fn bounded(value: &str) -> String {
    value.chars().take(VALUE_LEN_MAX).collect()
}

/// This process as a writer: the controller's host name and its boot.
pub fn writer() -> Writer {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    Writer {
        controller: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .chars()
            .take(VALUE_LEN_MAX)
            .collect(),
        boot: boot.unwrap_or(BootId::from_bytes([0; 16])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_peer_nothing_that_it_says_is_the_kernels_word() {
        let said = |name: &str| ActorClaim {
            name: name.to_owned(),
            value: "1000".to_owned(),
            source: ClaimSource::Kernel,
        };
        let peer = Peer {
            uid: 0,
            gid: 7,
            pid: Some(42),
        };
        let claims = ["uid", "gid", "pid", LOGINUID, "sudo_uid"];
        let actor = actor_of_peer(peer, claims.map(said).to_vec());
        let of = |source: ClaimSource| -> Vec<&str> {
            let claims = actor.0.iter().filter(|claim| claim.source == source);
            claims.map(|claim| claim.name.as_str()).collect()
        };
        assert_eq!(of(ClaimSource::Kernel), ["uid", "gid", "pid"]);
        assert_eq!(of(ClaimSource::Asserted), [LOGINUID, "sudo_uid"]);
        assert_eq!(actor.0[0].value, "0");
    }
}
