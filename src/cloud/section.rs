//! Reading typed values out of a parsed TOML table, noting every mistake with its place.
//!
//! A reader that finds a mistake notes it and yields `None`, so that the rest of the text is still checked. A string
//! that holds a private key is noted once, for the whole text, and yields `None` wherever it is read.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Diagnostics, did_you_mean, quoted};
use super::key::looks_private;

/// A value and the byte of the text it starts at.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// Collects mistakes, and knows where each byte is.
#[derive(Debug)]
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: Vec<usize>,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            file,
            text,
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
            found: RefCell::default(),
        }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    pub(super) fn error(&self, at: usize, message: impl Display) {
        self.error_with(at, message, None, Vec::new());
    }

    pub(super) fn error_help(&self, at: usize, message: impl Display, help: impl Display) {
        self.error_with(at, message, Some(help.to_string()), Vec::new());
    }

    /// Notes a mistake that another line has a part in.
    pub(super) fn error_related(&self, at: usize, message: impl Display, line: usize, note: &str) {
        self.error_with(at, message, None, vec![(line, note.to_owned())]);
    }

    pub(super) fn error_with(
        &self,
        at: usize,
        message: impl Display,
        help: Option<String>,
        related: Vec<(usize, String)>,
    ) {
        let line = self.line(at);
        let start = self.line_starts.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(start..at).unwrap_or_default();
        self.found.borrow_mut().push(Diagnostic {
            file: self.file.to_owned(),
            line,
            column: before.chars().count() + 1,
            message: message.to_string(),
            help,
            related,
        });
    }

    /// What was noted, in the order of the text.
    pub(super) fn finish(self) -> Option<Diagnostics> {
        Diagnostics::new(self.found.into_inner())
    }

    /// Notes every private key: in the text as it stands, comments too, and in what escapes in it spell.
    pub(super) fn refuse_private_keys(&self, root: &DeTable<'_>) {
        let lines = self.line_starts.iter().zip(self.text.split('\n'));
        for (start, _) in lines.filter(|(_, line)| looks_private(line)) {
            self.refuse_private_key(*start);
        }
        self.refuse_spelled_private_keys(root);
    }

    fn refuse_spelled_private_keys(&self, table: &DeTable<'_>) {
        for (key, value) in table {
            self.refuse_spelled_private_key(key.get_ref(), key.span());
            self.refuse_spelled_private_keys_in(value);
        }
    }

    fn refuse_spelled_private_keys_in(&self, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::String(text) => self.refuse_spelled_private_key(text, value.span()),
            DeValue::Array(items) => {
                for item in items {
                    self.refuse_spelled_private_keys_in(item);
                }
            }
            DeValue::Table(table) => self.refuse_spelled_private_keys(table),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {}
        }
    }

    fn refuse_spelled_private_key(&self, text: &str, span: Range<usize>) {
        let written = self.text.get(span.clone()).unwrap_or_default();
        if looks_private(text) && !looks_private(written) {
            self.refuse_private_key(span.start);
        }
    }

    fn refuse_private_key(&self, at: usize) {
        self.error_help(
            at,
            "A PRIVATE KEY IS IN THIS FILE: an inventory holds public keys only",
            "remove it here and from the file's history, and replace that key wherever it is trusted",
        );
    }
}

/// One table being read: which keys it may have, and what it is called in messages.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    table: &'a DeTable<'a>,
    /// For example `host "cn1"`.
    what: String,
    at: usize,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub(super) fn new(report: &'a Report<'a>, what: String, table: At<&'a DeTable<'a>>) -> Self {
        Self {
            report,
            table: table.value,
            what,
            at: table.at,
            known: RefCell::default(),
        }
    }

    pub(super) fn report(&self) -> &'a Report<'a> {
        self.report
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Where the table starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The value of a key, of any type; makes the key a known one.
    pub(super) fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    /// Where a key's value starts, without making the key a known one.
    pub(super) fn position(&self, key: &str) -> Option<usize> {
        self.table.get(key).map(|value| value.span().start)
    }

    pub(super) fn text(&self, key: &'static str) -> Option<At<&'a str>> {
        text_of(self.report, key, self.value(key)?)
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if let DeValue::Boolean(boolean) = value.get_ref() {
            return Some(*boolean);
        }
        wrong_type(self.report, key, "true or false", value);
        None
    }

    /// A whole number within bounds, both included.
    pub(super) fn number(&self, key: &'static str, min: u32, max: u32) -> Option<At<u32>> {
        let value = self.value(key)?;
        let at = value.span().start;
        let DeValue::Integer(integer) = value.get_ref() else {
            wrong_type(self.report, key, "a whole number", value);
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.report
                .error(at, format_args!("{key} must be from {min} to {max}"));
        }
        number.map(|value| At { value, at })
    }

    pub(super) fn port(&self, key: &'static str) -> Option<At<u16>> {
        let number = self.number(key, 1, u32::from(u16::MAX))?;
        let value = u16::try_from(number.value).ok()?;
        Some(At {
            value,
            at: number.at,
        })
    }

    /// A string that its type's own parser takes.
    pub(super) fn parsed<T: std::str::FromStr<Err: Display>>(
        &self,
        key: &'static str,
    ) -> Option<At<T>> {
        let text = self.text(key)?;
        match text.value.parse() {
            Ok(value) => Some(At { value, at: text.at }),
            Err(error) => {
                self.report.error(text.at, format_args!("{key}: {error}"));
                None
            }
        }
    }

    /// One of a few words. Words that may come later are refused by name.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&'static str, T)],
        later: &[&str],
    ) -> Option<T> {
        let text = self.text(key)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.value) {
            return Some(*value);
        }
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let given = quoted(text.value);
        if later.contains(&text.value) {
            let message = format_args!("{key} = {given} is not supported yet");
            self.report
                .error_help(text.at, message, format_args!("use {}", words.join(" or ")));
            return None;
        }
        let message = format!("{key} must be {}, not {given}", words.join(" or "));
        let help = did_you_mean(text.value, choices.iter().map(|(word, _)| *word));
        self.report.error_with(text.at, message, help, Vec::new());
        None
    }

    /// The strings of an array.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<At<&'a str>>> {
        let items = self.array(key)?;
        let each = format!("each of {key}");
        let item = |item| text_of(self.report, &each, item);
        Some(items.iter().filter_map(item).collect())
    }

    pub(super) fn array(&self, key: &'static str) -> Option<&'a [Spanned<DeValue<'a>>]> {
        let value = self.value(key)?;
        if let DeValue::Array(items) = value.get_ref() {
            return Some(items);
        }
        wrong_type(self.report, key, "an array", value);
        None
    }

    /// A table inside this one.
    pub(super) fn section(&self, key: &'static str, what: &str) -> Option<Section<'a>> {
        let value = self.value(key)?;
        let table = table_of(self.report, key, value)?;
        Some(Section::new(self.report, what.to_owned(), table))
    }

    /// Every key and value of a table whose keys are names, in the order of the text.
    pub(super) fn entries(&self) -> Vec<(At<&'a str>, &'a Spanned<DeValue<'a>>)> {
        let entry = |(key, value): (&'a Spanned<_>, _)| {
            let text: &'a std::borrow::Cow<'a, str> = key.get_ref();
            let key = At {
                value: text.as_ref(),
                at: key.span().start,
            };
            (key, value)
        };
        let mut entries: Vec<_> = self.table.iter().map(entry).collect();
        entries.retain(|(key, _)| !looks_private(key.value));
        entries.sort_by_key(|(key, _)| key.at);
        entries
    }

    /// Notes every key nobody asked for. `later` are words for things an operator may expect and this version lacks;
    /// `elsewhere` are keys that belong in another table, with where.
    pub(super) fn finish(self, later: &[&str], elsewhere: &[(&str, &str)]) {
        let known = self.known.borrow();
        for (key, _) in self.entries() {
            if known.contains(&key.value) {
                continue;
            }
            let name = quoted(key.value);
            if later.contains(&key.value) {
                let message = format!("{name} in {} is not supported yet", self.what);
                self.report
                    .error_help(key.at, message, "remove it: nothing would act on it");
            } else if let Some((_, help)) = elsewhere.iter().find(|(word, _)| *word == key.value) {
                let message = format!("{name} can't be set in {}", self.what);
                self.report.error_help(key.at, message, help);
            } else {
                let message = format!("unknown key {name} in {}", self.what);
                let help = did_you_mean(key.value, known.iter().copied());
                self.report.error_with(key.at, message, help, Vec::new());
            }
        }
    }
}

pub(super) fn table_of<'a>(
    report: &Report<'_>,
    key: &str,
    value: &'a Spanned<DeValue<'a>>,
) -> Option<At<&'a DeTable<'a>>> {
    if let DeValue::Table(table) = value.get_ref() {
        return Some(At {
            value: table,
            at: value.span().start,
        });
    }
    wrong_type(report, key, "a table", value);
    None
}

pub(super) fn text_of<'a>(
    report: &Report<'_>,
    key: &str,
    value: &'a Spanned<DeValue<'a>>,
) -> Option<At<&'a str>> {
    let DeValue::String(text) = value.get_ref() else {
        wrong_type(report, key, "a string", value);
        return None;
    };
    let at = value.span().start;
    let text: &'a str = text.as_ref();
    (!looks_private(text)).then_some(At { value: text, at })
}

fn wrong_type(report: &Report<'_>, key: &str, wanted: &str, value: &Spanned<DeValue<'_>>) {
    let given = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    let message = format!("{key} must be {wanted}, not {given}");
    report.error(value.span().start, message);
}
