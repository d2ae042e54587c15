//! Colours of a terminal: what a thing means, never which colour it is.
//!
//! Nothing is said by colour alone.

use std::io::IsTerminal;

use clap::ValueEnum;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether to use colours on a stream. `no_color` is whether NO_COLOR (<https://no-color.org>) is set and not empty.
    pub fn on(self, stream: &impl IsTerminal, no_color: bool) -> bool {
        match self {
            Color::Auto => !no_color && stream.is_terminal(),
            Color::Always => true,
            Color::Never => false,
        }
    }
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ink {
    /// Nothing special.
    #[default]
    Plain,
    /// A heading.
    Head,
    /// It is well.
    Good,
    /// It failed, or is wrong.
    Bad,
    /// It is open: in doubt, unfinished, to be decided.
    Open,
    /// Of less interest.
    Faint,
}

impl Ink {
    /// The control sequence that begins it (ECMA-48, SGR); empty for plain text.
    const fn sequence(self) -> &'static str {
        match self {
            Ink::Plain => "",
            Ink::Head => "\u{1b}[1m",
            Ink::Good => "\u{1b}[32m",
            Ink::Bad => "\u{1b}[31m",
            Ink::Open => "\u{1b}[33m",
            Ink::Faint => "\u{1b}[2m",
        }
    }

    /// The text in this ink, where there are colours.
    pub fn paint(self, text: &str, colored: bool) -> String {
        match self.sequence() {
            sequence if colored && !sequence.is_empty() && !text.is_empty() => {
                format!("{sequence}{text}\u{1b}[0m")
            }
            _ => text.to_owned(),
        }
    }
}
