//! The leak scan: what must not be in a tree that others will get.
//!
//! It looks at every name and every byte, knows nothing of what the scrub did or tried, and only says where
//! something was found and by which rule: never the secret itself.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aho_corasick::AhoCorasick;
use serde::{Deserialize, Serialize};

use super::Source;
use super::staged::Identity;
use crate::tree::walk::{Found, Walk};
use crate::tree::{Error, Kind, Root};

mod content;
mod names;

pub use content::Pattern;

/// The rules by name: what a finding names, and what `allow` takes.
pub const RULES: &[&str] = &[
    "address",
    "authorized-keys",
    "credentials",
    "history",
    "host-key",
    "mac",
    "machine-id",
    "name",
    "password-hash",
    "private-key",
    "seed",
];

/// Something that must not be published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Where, from the tree's root.
    pub path: String,
    /// By which rule.
    pub rule: String,
    /// What it is; never its value.
    pub what: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scanned {
    /// Entries.
    pub entries: u64,
    /// Content in bytes.
    pub size_bytes: u64,
    /// Findings that `allow` covers.
    pub allowed: Vec<Finding>,
    /// How many more of those there are.
    #[serde(default)]
    pub allowed_unnamed: u64,
    /// All others.
    pub findings: Vec<Finding>,
    /// How many more of those there are; none unless some are named.
    #[serde(default)]
    pub findings_unnamed: u64,
}

/// The most findings that are named, of those that are allowed and of the others. What is not named is counted:
/// all of the tree is looked at, whatever was found in it before.
const FINDINGS_MAX: usize = 500;

/// An exception that nobody could mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} allows nothing: write a rule ({}) or RULE:/PATH", RULES.join(", "))]
pub struct BadAllowance {
    /// As given.
    pub text: String,
}

/// Checks exceptions: a rule, or a rule and a path with all below it.
///
/// # Errors
/// When one names no rule, or a path that is not absolute.
pub fn check_allow(allow: &[String]) -> Result<(), BadAllowance> {
    let is_good = |text: &String| {
        let (rule, path) = text.split_once(':').unwrap_or((text, "/"));
        RULES.contains(&rule) && path.starts_with('/')
    };
    match allow.iter().find(|text| !is_good(text)) {
        None => Ok(()),
        Some(text) => Err(BadAllowance { text: text.clone() }),
    }
}

fn is_allowed(allow: &[String], finding: &Finding) -> bool {
    allow.iter().any(|text| match text.split_once(':') {
        None => *text == finding.rule,
        Some((rule, path)) => rule == finding.rule && Path::new(&finding.path).starts_with(path),
    })
}

/// What to look for.
pub struct Scan<'a> {
    patterns: Vec<Pattern>,
    matcher: AhoCorasick,
    allow: &'a [String],
    scanned: Scanned,
    /// The rules that have their finding in the entry or text that is looked at.
    seen: BTreeSet<&'static str>,
}

impl<'a> Scan<'a> {
    /// A scan for what the cloud knows of the source and what the source's own tree said of it.
    ///
    /// # Errors
    /// When there is too much to look for.
    pub fn new(
        source: &Source,
        identity: &Identity,
        allow: &'a [String],
    ) -> Result<Self, aho_corasick::BuildError> {
        let patterns = content::patterns(source, identity);
        let matcher = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(patterns.iter().map(|pattern| &pattern.text))?;
        Ok(Scan {
            patterns,
            matcher,
            allow,
            scanned: Scanned::default(),
            seen: BTreeSet::new(),
        })
    }

    /// Looks at a whole tree. `told` hears of every entry how much was read, and says whether to go on.
    ///
    /// # Errors
    /// When something can't be read: what was not looked at is not free of leaks.
    pub fn tree(
        &mut self,
        root: &Root,
        told: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), Error> {
        for found in Walk::new(root.as_fd())? {
            let found = found?;
            self.scanned.entries += 1;
            if self.scanned.entries.is_multiple_of(64)
                && !told(self.scanned.entries, self.scanned.size_bytes)
            {
                return Err(Error::Stopped);
            }
            self.entry(&found)?;
        }
        Ok(())
    }

    /// Looks at a text that lies beside the tree.
    ///
    /// # Errors
    /// Never in practice: nothing is read.
    pub fn text(&mut self, name: &str, text: &[u8]) -> Result<(), Error> {
        let hits = content::search(text, &self.matcher, &self.patterns, None)
            .map_err(|source| unread(Path::new(name), source))?;
        self.seen.clear();
        hits.into_iter()
            .for_each(|(rule, what)| self.found(name.to_owned(), rule, what));
        Ok(())
    }

    /// The end of the scan.
    pub fn finish(mut self) -> Scanned {
        self.scanned.findings.sort();
        self.scanned
    }

    fn entry(&mut self, found: &Found) -> Result<(), Error> {
        let path = &found.entry.path;
        let shown = format!("/{}", path.display());
        self.seen.clear();
        if let Some(name) = path.file_name() {
            for (rule, what) in
                content::in_name(name.as_bytes(), path, &self.matcher, &self.patterns)
            {
                self.found(shown.clone(), rule, what);
            }
        }
        if let Some(target) = &found.entry.target {
            for (rule, what) in content::in_name(target, path, &self.matcher, &self.patterns) {
                self.found(shown.clone(), rule, what);
            }
        }
        for (name, value) in &found.entry.xattrs {
            let named = content::in_name(name, path, &self.matcher, &self.patterns);
            let valued =
                content::search(value.as_slice(), &self.matcher, &self.patterns, Some(path))
                    .map_err(|source| unread(path, source))?;
            for (rule, what) in named.into_iter().chain(valued) {
                let shown_name = String::from_utf8_lossy(name);
                self.found(
                    shown.clone(),
                    rule,
                    format!("{what}, in its attribute {shown_name}"),
                );
            }
            self.scanned.size_bytes += value.len() as u64;
        }
        if found.entry.meta.kind != Kind::File || found.entry.meta.size == 0 {
            return Ok(());
        }
        for (rule, what) in names::by_path(path, found)? {
            self.found(shown.clone(), rule, what);
        }
        let mut file = found.open()?;
        let counted = Counted {
            inner: &mut file,
            read: &mut self.scanned.size_bytes,
        };
        let hits = content::search(counted, &self.matcher, &self.patterns, Some(path))
            .map_err(|source| unread(path, source))?;
        for (rule, what) in hits {
            self.found(shown.clone(), rule, what);
        }
        Ok(())
    }

    fn found(&mut self, path: String, rule: &'static str, what: String) {
        if !self.seen.insert(rule) {
            return;
        }
        let finding = Finding {
            path,
            rule: rule.to_owned(),
            what,
        };
        let (named, unnamed) = if is_allowed(self.allow, &finding) {
            (&mut self.scanned.allowed, &mut self.scanned.allowed_unnamed)
        } else {
            (
                &mut self.scanned.findings,
                &mut self.scanned.findings_unnamed,
            )
        };
        if named.len() < FINDINGS_MAX {
            named.push(finding);
        } else {
            *unnamed += 1;
        }
    }
}

fn unread(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    }
}

struct Counted<'a, R> {
    inner: R,
    read: &'a mut u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buffer)?;
        *self.read += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
