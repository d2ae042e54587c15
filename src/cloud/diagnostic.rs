//! What is wrong with a text an operator wrote, and where.
//!
//! A diagnostic never holds a secret: what it quotes is clipped, and text that looks like a private key is never quoted.

use std::fmt;

use serde::Serialize;

use super::key::looks_private;

/// The most characters of an operator's text that a message repeats.
const QUOTED_CHARS_MAX: usize = 60;

/// One mistake, its place, and what may be meant instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file as the operator named it, or the option the text came from.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it, for example `did you mean "cn1"?`.
    pub help: Option<String>,
    /// Other lines of the same file that matter, and why.
    pub related: Vec<(usize, String)>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
            help,
            related,
        } = self;
        write!(f, "{file}:{line}:{column}: {message}")?;
        if let Some(help) = help {
            write!(f, "; {help}")?;
        }
        for (line, note) in related {
            write!(f, "\n  {file}:{line}: {note}")?;
        }
        Ok(())
    }
}

/// Every mistake found, in the order of the text; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Puts mistakes in order; `None` when there is none.
    pub(super) fn new(mut found: Vec<Diagnostic>) -> Option<Self> {
        found.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
        found.dedup();
        (!found.is_empty()).then_some(Self(found))
    }

    /// The mistakes, in the order of the text.
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The text in quotes, escaped and clipped; a private key is withheld.
pub(super) fn quoted(text: &str) -> String {
    if looks_private(text) {
        return "(withheld: a private key)".to_owned();
    }
    let clipped: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    let more = if clipped.len() < text.len() {
        "…"
    } else {
        ""
    };
    format!("{clipped:?}{more}")
}

/// `did you mean "…"?` for the known name nearest to `given`, if one is near enough to be a slip.
pub(super) fn did_you_mean<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    // Longer texts aren't slips of a name, and the distance costs the product of both lengths.
    const GIVEN_BYTES_MAX: usize = 256;
    if given.len() > GIVEN_BYTES_MAX {
        return None;
    }
    let distance_max = (given.chars().count() / 3).max(1);
    let plain = given.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&plain, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, name)| format!("did you mean {name:?}?"))
}
