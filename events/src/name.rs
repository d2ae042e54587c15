//! Names of hosts, containers and templates, checked once where they enter.
//!
//! A name that passed is safe as a file name, a DNS label sequence, an LXC name and an nftables comment.
//! It never holds `/`, white space, a quote, a shell metacharacter or a leading dot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was given.
    #[error("a {what} name can't be empty")]
    Empty {
        /// `host`, `container` or `template`.
        what: &'static str,
    },
    /// Longer than a file name or a DNS name allows.
    #[error("{what} name {start:?}… has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// `host`, `container` or `template`.
        what: &'static str,
        /// Its first characters.
        start: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error(
        "{what} name {text:?}: {character:?} at byte {at} is not allowed; use letters, digits, '-', '_' and '.'"
    )]
    Character {
        /// `host`, `container` or `template`.
        what: &'static str,
        /// The text as given.
        text: String,
        /// The offending character.
        character: char,
        /// Its position in bytes.
        at: usize,
    },
    /// Starts or ends with something other than a letter or a digit, or has two dots in a row.
    #[error(
        "{what} name {text:?} must start and end with a letter or a digit and have no empty part between dots"
    )]
    Shape {
        /// `host`, `container` or `template`.
        what: &'static str,
        /// The text as given.
        text: String,
    },
}

/// Whether a text is a name of at most so many bytes.
fn is_name(max: usize, text: &str) -> bool {
    let bytes = text.as_bytes();
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= max
        && bytes.iter().all(allowed)
        && edge(bytes.first())
        && edge(bytes.last())
        && !bytes.windows(2).any(|pair| pair == b"..")
}

/// Takes a name, or says what is wrong with it.
fn check(what: &'static str, max: usize, text: &str) -> Result<(), Error> {
    if is_name(max, text) {
        return Ok(());
    }
    if text.is_empty() {
        return Err(Error::Empty { what });
    }
    if text.len() > max {
        return Err(Error::TooLong {
            what,
            start: text.chars().take(16).collect(),
            len: text.len(),
            max,
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some((at, character)) = text.char_indices().find(|(_, c)| !allowed(*c)) {
        return Err(Error::Character {
            what,
            text: text.to_owned(),
            character,
            at,
        });
    }
    Err(Error::Shape {
        what,
        text: text.to_owned(),
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The most bytes such a name may have.
            pub const LEN_MAX: usize = $max;

            /// Checks and takes a name.
            ///
            /// # Errors
            /// When it is empty, too long, or holds a character outside letters, digits, `-`, `_`, `.`.
            pub fn new(text: &str) -> Result<Self, Error> {
                check($what, $max, text)?;
                Ok(Self(text.to_owned()))
            }

            /// Whether a text is such a name.
            pub fn is_name(text: &str) -> bool {
                is_name($max, text)
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                check($what, $max, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name!(
    /// A host as the inventory names it.
    HostName,
    "host",
    253
);
name!(
    /// A container: its LXC name, and the name it answers to on its bridge.
    /// At most 64 bytes, the kernel's limit of a host name (`HOST_NAME_MAX`, uname(2)).
    ContainerName,
    "container",
    64
);
name!(
    /// A template.
    TemplateName,
    "template",
    64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_field_uses() {
        for good in ["a", "web1", "d.foo.net", "lxcmakinastates", "A-1_b.c"] {
            assert_eq!(ContainerName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn refuses_what_could_escape() {
        for bad in [
            "", ".", "..", "a/b", "../x", "a b", "a;b", "$(id)", "-x", ".x", "x.", "a..b", "a\n",
            "ä", "a'b", "a\"b", "a\\b", "a*", "a\0",
        ] {
            assert!(ContainerName::new(bad).is_err(), "{bad:?} was taken");
            assert!(HostName::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(ContainerName::new(&"a".repeat(64)).is_ok());
        assert!(ContainerName::new(&"a".repeat(65)).is_err());
        assert!(HostName::new(&"a".repeat(300)).is_err());
    }
}
