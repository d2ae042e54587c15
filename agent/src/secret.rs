//! Secrets: values that are used and never shown, their names, and all those that a process knows.
//!
//! Nothing here is written anywhere. The one form in which secrets leave a process is
//! [`crate::protocol::SecretsTold`], on the line to a host that needs them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::mask::Mask;

/// The least bytes of a secret: a shorter one can't be taken out of what programs print without taking words apart that
/// only happen to hold it.
pub const VALUE_LEN_MIN: usize = 6;
/// The most bytes of a secret.
pub const VALUE_LEN_MAX: usize = 8 * 1024;
/// The most bytes of a secret's name.
const NAME_LEN_MAX: usize = 64;

/// A value that nobody sees who does not ask for it by [`Secret::expose`]. It is overwritten when it is dropped.
///
/// It is not shown:
/// ```
/// use tallybook_agent::secret::Secret;
/// let secret = Secret::new("hunter2 and more".to_owned());
/// assert_eq!(format!("{secret:?}"), "Secret(…)");
/// assert_eq!(secret.expose(), "hunter2 and more");
/// ```
/// What is exposed can be encoded, and a secret can't:
/// ```
/// # use tallybook_agent::secret::Secret;
/// # let secret = Secret::new("hunter2 and more".to_owned());
/// tallybook_events::codec::encode(secret.expose()).unwrap();
/// ```
/// ```compile_fail
/// # use tallybook_agent::secret::Secret;
/// # let secret = Secret::new("hunter2 and more".to_owned());
/// tallybook_events::codec::encode(&secret).unwrap();
/// ```
/// Nor can anything that holds one, such as an event:
/// ```compile_fail
/// # use tallybook_agent::secret::Secret;
/// #[derive(serde::Serialize)]
/// struct Event {
///     password: Secret<String>,
/// }
/// ```
/// It has no form for people, and it can't be compared, which would take longer the more of a guess is right:
/// ```compile_fail
/// # use tallybook_agent::secret::Secret;
/// # let secret = Secret::new("hunter2 and more".to_owned());
/// println!("{secret}");
/// ```
/// ```compile_fail
/// # use tallybook_agent::secret::Secret;
/// # let secret = Secret::new("hunter2 and more".to_owned());
/// secret == Secret::new("hunter2 and more".to_owned());
/// ```
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes a value. What it was moved from is not overwritten.
    pub const fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What a secret is called: small letters, digits and `_`, a letter first, at most 64 bytes. In capitals it is the
/// variable that a provision command finds it in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// Why a text is not the name of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Its form.
    #[error(
        "a secret's name starts with a small letter and has only small letters, digits and '_', at most {NAME_LEN_MAX} in all"
    )]
    Form,
    /// A variable that means something to shells, to the dynamic linker or to LXC.
    #[error("no secret can be called {0:?}: the variable {variable} has a meaning of its own", variable = .0.to_ascii_uppercase())]
    Reserved(String),
}

impl SecretName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// When it has another form, or is the name of a variable with a meaning of its own.
    pub fn new(text: &str) -> Result<Self, NameError> {
        const RESERVED: [&str; 14] = [
            "bash_env",
            "container",
            "debian_frontend",
            "env",
            "gconv_path",
            "home",
            "ifs",
            "lang",
            "language",
            "path",
            "pwd",
            "shell",
            "term",
            "user",
        ];
        // The loader, locales, LXC itself, and exported functions of bash.
        const RESERVED_BEGINNINGS: [&str; 4] = ["bash_func_", "lc_", "ld_", "lxc_"];
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !starts || text.len() > NAME_LEN_MAX || !text.chars().all(allowed) {
            return Err(NameError::Form);
        }
        let begins = |beginning: &&str| text.starts_with(*beginning);
        if RESERVED.contains(&text) || RESERVED_BEGINNINGS.iter().any(begins) {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(SecretName(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The variable that a command finds it in.
    pub fn variable(&self) -> String {
        self.0.to_ascii_uppercase()
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for SecretName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        SecretName::new(text)
    }
}

impl TryFrom<String> for SecretName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        SecretName::new(&text)
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> String {
        name.0
    }
}

/// Why a value can't be a secret. Says nothing of it but its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is none.
    #[error("it is empty")]
    Empty,
    /// Too few bytes.
    #[error(
        "it has {0} bytes, and one of less than {VALUE_LEN_MIN} can't be taken out of what programs print without making that unreadable"
    )]
    Short(usize),
    /// Too many bytes.
    #[error("it has more than {VALUE_LEN_MAX} bytes")]
    Long,
    /// No variable can hold it.
    #[error("it holds a NUL byte, which no variable of an environment can")]
    Nul,
}

/// Whether a value can be a secret.
///
/// # Errors
/// Why it can't.
pub fn check(value: &[u8]) -> Result<(), Unfit> {
    match value.len() {
        0 => Err(Unfit::Empty),
        len if len < VALUE_LEN_MIN => Err(Unfit::Short(len)),
        len if len > VALUE_LEN_MAX => Err(Unfit::Long),
        _ if value.contains(&0) => Err(Unfit::Nul),
        _ => Ok(()),
    }
}

/// Values of secrets by their names.
pub type Values = BTreeMap<SecretName, Secret<Vec<u8>>>;

/// The secrets that a process knows, and what takes them out of texts.
#[derive(Debug, Default)]
pub struct Secrets {
    values: Values,
    mask: Mask,
}

impl Secrets {
    /// These.
    pub fn new(values: Values) -> Self {
        let mask = Mask::of(
            values
                .iter()
                .map(|(name, value)| (name, &value.expose()[..])),
        );
        Secrets { values, mask }
    }

    /// The value of one.
    pub fn get(&self, name: &SecretName) -> Option<&Secret<Vec<u8>>> {
        self.values.get(name)
    }

    /// What takes them out.
    pub const fn mask(&self) -> &Mask {
        &self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_variable_that_means_nothing_else() {
        let named = |text| SecretName::new(text).map(|name| name.variable());
        assert_eq!(named("db_password"), Ok("DB_PASSWORD".to_owned()));
        assert_eq!(named("x2"), Ok("X2".to_owned()));
        let long = "x".repeat(65);
        for text in ["", "Db", "2x", "_x", "a-b", "a.b", "a b", "ü", &long] {
            assert_eq!(named(text), Err(NameError::Form), "{text}");
        }
        for text in ["path", "ld_preload", "lc_all", "home", "bash_env", "ifs"] {
            assert!(matches!(named(text), Err(NameError::Reserved(_))), "{text}");
        }
        assert!(named("pathology").is_ok());
    }

    #[test]
    fn what_can_not_be_taken_out_is_no_secret() {
        assert_eq!(check(b""), Err(Unfit::Empty));
        assert_eq!(check(b"12345"), Err(Unfit::Short(5)));
        assert_eq!(check(b"123456"), Ok(()));
        assert_eq!(check(&vec![b'x'; VALUE_LEN_MAX]), Ok(()));
        assert_eq!(check(&vec![b'x'; VALUE_LEN_MAX + 1]), Err(Unfit::Long));
        assert_eq!(check(b"1234567\08"), Err(Unfit::Nul));
    }

    #[test]
    fn what_holds_secrets_shows_none() {
        let name = SecretName::new("pw").unwrap();
        let value = Secret::new(b"hunter2".to_vec());
        let secrets = Secrets::new(BTreeMap::from([(name, value)]));
        let shown = format!("{secrets:?}");
        assert!(
            shown.contains("pw") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert!(!shown.contains("104, 117"), "{shown}");
    }
}
