//! Base systems: what a container from scratch starts from, made once a host and kept in the cache.
//!
//! What is fetched is checked against the host's keyring. Nothing here runs a program of a guest: `debootstrap`
//! alone enters the new tree, before any guest ever ran in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Origin;

use crate::layout::Layout;

pub mod apt;
pub mod busybox;
pub mod debian;

/// Raised when what is made of the same parameters changes, so that no stale cache is used.
const RECIPE: u32 = 1;

/// A text that is not what a base system's parameter must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct Error {
    what: &'static str,
    text: String,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                let check: fn(&str) -> bool = $check;
                if !text.is_empty() && text.len() <= 200 && check(&text) {
                    Ok(Self(text))
                } else {
                    Err(Error { what: $what, text })
                }
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

checked_text!(
    /// A release's code name, for example `bookworm`.
    Release,
    "the code name of a release (small letters, digits, '-')",
    |text| text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
);
checked_text!(
    /// A package's name.
    Package,
    "a package name (small letters, digits, '+', '-', '.')",
    |text| text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
);
checked_text!(
    /// Where packages come from.
    Mirror,
    "a mirror's address (http://, https:// or file:///, without a user name)",
    |text| ["http://", "https://", "file:///"].iter().any(|scheme| text.starts_with(scheme))
        && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '[' | ']' | '@'))
);

/// A distribution to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// Debian's smallest system (`minbase`) with an init, a network and an SSH server.
    Debian {
        /// The release.
        release: Release,
        /// The mirror; none means the host's own.
        mirror: Option<Mirror>,
        /// Packages beside those it always has.
        packages: Vec<Package>,
    },
    /// The host's static busybox and nothing else: starts at once, for trials and tests.
    Busybox,
}

impl Base {
    /// The name of its directory in the cache: what it is, for which machine, and a hash of the rest.
    pub fn key(&self) -> String {
        let arch = arch();
        match self {
            Base::Debian {
                release,
                mirror,
                packages,
            } => {
                let mut names: Vec<&str> = packages.iter().map(Package::as_str).collect();
                names.sort_unstable();
                names.dedup();
                let of = format!(
                    "{RECIPE}\n{}\n{}",
                    mirror.as_ref().map_or("", Mirror::as_str),
                    names.join(" ")
                );
                let hash = blake3::hash(of.as_bytes()).to_hex();
                format!("debian-{}-{arch}-{}", release.as_str(), &hash[..12])
            }
            Base::Busybox => format!("busybox-{arch}-{RECIPE}"),
        }
    }

    /// Its directory in the cache: holds `rootfs/` and the mark of who made it.
    pub fn cached(&self, layout: &Layout) -> PathBuf {
        layout.cache().join(self.key())
    }

    /// What a container made from it says it was made from.
    pub fn origin(&self) -> Origin {
        match self {
            Base::Debian { release, .. } => Origin::Scratch {
                distribution: "debian".to_owned(),
                release: release.as_str().to_owned(),
            },
            Base::Busybox => Origin::Scratch {
                distribution: "busybox".to_owned(),
                release: String::new(),
            },
        }
    }

    /// For people.
    pub fn title(&self) -> String {
        match self {
            Base::Debian { release, .. } => format!("Debian {}", release.as_str()),
            Base::Busybox => "busybox".to_owned(),
        }
    }
}

/// The machine's architecture by Debian's name.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(mirror: Option<&str>, packages: &[&str]) -> Base {
        Base::Debian {
            release: Release::try_from("bookworm".to_owned()).unwrap(),
            mirror: mirror.map(|m| Mirror::try_from(m.to_owned()).unwrap()),
            packages: packages
                .iter()
                .map(|p| Package::try_from((*p).to_owned()).unwrap())
                .collect(),
        }
    }

    #[test]
    fn the_key_tells_apart_what_differs_and_nothing_else() {
        let key = debian(None, &["git", "vim"]).key();
        assert!(
            key.starts_with(&format!("debian-bookworm-{}-", arch())),
            "{key}"
        );
        assert_eq!(key, debian(None, &["vim", "git", "git"]).key());
        assert_ne!(key, debian(None, &["git"]).key());
        assert_ne!(
            key,
            debian(Some("http://mirror.test/debian"), &["git", "vim"]).key()
        );
    }

    #[test]
    fn nothing_passes_for_an_option_or_a_path() {
        for bad in ["", "--foreign", "../x", "a b", "Bookworm", "a\n"] {
            assert!(Release::try_from(bad.to_owned()).is_err(), "{bad:?}");
            assert!(Package::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for bad in [
            "ftp://x",
            "-http://x",
            "http://x y",
            "http://u:p@x/",
            "http://x\ndeb y",
        ] {
            assert!(Mirror::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Mirror::try_from("https://deb.debian.org/debian".to_owned()).is_ok());
    }
}
