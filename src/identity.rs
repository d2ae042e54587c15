//! Who is typing, and which process writes: each claim with where it comes from.

use std::path::Path;

use tallybook_events::actor::{Actor, ActorClaim, ClaimSource};
use tallybook_events::header::Writer;
use tallybook_events::ids::BootId;

/// The longest value a claim may have; what is longer is cut.
const VALUE_LEN_MAX: usize = 256;
/// What the kernel gives as loginuid when nobody logged in.
const LOGINUID_UNSET: &str = "4294967295";

/// Who runs this process.
pub fn actor_here() -> Actor {
    let mut actor = of_process(rustix::process::getuid().as_raw(), "self");
    actor.0.extend(asserted());
    actor
}

/// Who is at the other end of a local socket: the kernel's word, and behind it what that end asserts.
pub fn actor_of_peer(uid: u32, pid: Option<i32>, asserted: Vec<ActorClaim>) -> Actor {
    let mut actor = match pid {
        Some(pid) => of_process(uid, &pid.to_string()),
        None => Actor(uid_claims(uid)),
    };
    actor.0.extend(
        asserted
            .into_iter()
            .take(16)
            .filter(|claim| ASSERTED.iter().any(|(_, name)| *name == claim.name))
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

fn of_process(uid: u32, pid: &str) -> Actor {
    let mut claims = uid_claims(uid);
    let loginuid = std::fs::read_to_string(Path::new("/proc").join(pid).join("loginuid"));
    if let Ok(text) = loginuid {
        let text = text.trim();
        if !text.is_empty() && text != LOGINUID_UNSET {
            claims.push(ActorClaim {
                name: "loginuid".to_owned(),
                value: text.to_owned(),
                source: ClaimSource::Kernel,
            });
            if let Some(user) = text.parse().ok().and_then(user_name) {
                claims.push(ActorClaim {
                    name: "login_user".to_owned(),
                    value: user,
                    source: ClaimSource::Derived,
                });
            }
        }
    }
    Actor(claims)
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
