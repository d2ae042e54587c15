//! What may be run on a host: a script that is part of this program, and words that no shell can read as anything
//! but words.
//!
//! Must never carry data of a user's: that travels on standard input.

use std::fmt;

/// Why a text is not a [`Word`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} can't be part of a command on a host: only a-z, 0-9, '/', '.', '_' and '-' are allowed, and no '-' in front"
)]
pub struct Error {
    /// The text as given.
    pub text: String,
}

/// A path, number or hash made only of `a-z 0-9 / . _ -`, not empty and not starting with `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word(String);

impl Word {
    /// Checks and takes a word.
    ///
    /// # Errors
    /// When it is empty, starts with `-` or holds another character.
    pub fn new(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"/._-".contains(&byte)
        };
        if text.is_empty() || text.starts_with('-') || !text.bytes().all(allowed) {
            return Err(Error {
                text: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<u64> for Word {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

/// A constant POSIX shell script with words as `$1`, `$2`, ….
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    script: &'static str,
    words: Vec<Word>,
}

impl Command {
    /// A script that is part of this program.
    pub const fn new(script: &'static str) -> Self {
        Self {
            script,
            words: Vec::new(),
        }
    }

    /// Adds the next positional parameter.
    #[must_use]
    pub fn word(mut self, word: Word) -> Self {
        self.words.push(word);
        self
    }

    /// The argument vector: `sh -c SCRIPT sh WORD…`, behind `sudo -n` when asked for.
    pub fn argv(&self, sudo: bool) -> Vec<&str> {
        let mut argv = if sudo {
            vec!["sudo", "-n", "--"]
        } else {
            Vec::new()
        };
        argv.extend(["sh", "-c", self.script, "sh"]);
        argv.extend(self.words.iter().map(Word::as_str));
        argv
    }

    /// The same as one line for a login shell of any kind; only the script, a constant, needs quoting.
    pub fn line(&self, sudo: bool) -> String {
        let quoted = format!("'{}'", self.script.replace('\'', r"'\''"));
        let mut line = String::from("exec");
        for argument in self.argv(sudo) {
            line.push(' ');
            // The words and the fixed arguments are made of harmless characters only.
            line.push_str(if argument == self.script {
                &quoted
            } else {
                argument
            });
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_nothing_a_shell_could_read() {
        for good in ["/var/lib/tallybook/agent/0a_b-c.d", "12", "a"] {
            assert_eq!(Word::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "-rf", "a b", "$x", "a;b", "a\n", "A", "~", "*", "a'b", "é", "\\",
        ] {
            assert!(Word::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_line_quotes_the_script_and_keeps_the_words() {
        let command = Command::new("echo 'it' \"$1\"").word(Word::from(7));
        assert_eq!(
            command.line(false),
            r#"exec sh -c 'echo '\''it'\'' "$1"' sh 7"#
        );
        assert!(command.line(true).starts_with("exec sudo -n -- sh -c "));
        assert_eq!(
            command.argv(false),
            ["sh", "-c", "echo 'it' \"$1\"", "sh", "7"]
        );
    }
}
