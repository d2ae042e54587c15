//! `--limit`: which hosts and containers a command is about.
//!
//! Never widens: a name nobody knows, a glob that matches nothing and a limit that leaves nothing are mistakes, and
//! nothing acts.

use std::collections::{BTreeMap, BTreeSet};

use globset::{Glob, GlobMatcher};
use serde::Serialize;
use tallybook_events::name::{ContainerName, HostName};

use super::diagnostic::{Diagnostic, Diagnostics, did_you_mean, quoted};
use super::inventory::{Inventory, Label};

/// The word that means every host and container; nothing can be called that.
pub(super) const EVERYTHING: &str = "all";

/// The name that diagnostics give to the text of a limit.
const FILE: &str = "--limit";

/// The most bytes a limit may have.
const BYTES_MAX: usize = 64 << 10;

/// A limit as given: names, groups and globs, some of them excluded.
#[derive(Debug, Clone)]
pub struct Limit {
    terms: Vec<Term>,
}

#[derive(Debug, Clone)]
struct Term {
    column: usize,
    excluded: bool,
    /// As given, without `!`.
    text: String,
    pattern: Pattern,
}

#[derive(Debug, Clone)]
enum Pattern {
    Everything,
    Name(String),
    Group(String),
    Glob(GlobMatcher),
}

/// The hosts and containers a command is about. A host brings its containers; a container doesn't bring its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Hosts.
    pub hosts: BTreeSet<HostName>,
    /// Containers.
    pub containers: BTreeSet<ContainerName>,
}

impl Selection {
    /// Every host and container.
    pub fn everything(inventory: &Inventory) -> Self {
        Self {
            hosts: inventory.hosts.keys().cloned().collect(),
            containers: inventory.containers.keys().cloned().collect(),
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.containers.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.hosts.extend(other.hosts);
        self.containers.extend(other.containers);
    }

    fn remove(&mut self, other: &Self) {
        self.hosts.retain(|host| !other.hosts.contains(host));
        self.containers
            .retain(|container| !other.containers.contains(container));
    }
}

impl Limit {
    /// Reads a limit: terms apart by commas or white space. A term is the name of a host, a group or a container, `@`
    /// and a group, a glob over hosts and containers, or `all`; `!` before it takes away instead. A limit that only
    /// takes away begins with everything; the order of terms does not matter.
    ///
    /// # Errors
    /// When it has no term, or a term that is no name and no glob.
    pub fn parse(text: &str) -> Result<Self, Diagnostics> {
        let mut found = Vec::new();
        let mut terms = Vec::new();
        if text.len() > BYTES_MAX {
            found.push(mistake(
                1,
                format!("the limit has more than {BYTES_MAX} bytes"),
                None,
            ));
        } else {
            for (column, word) in words(text) {
                match term(column, word) {
                    Ok(term) => terms.push(term),
                    Err(diagnostic) => found.push(diagnostic),
                }
            }
            if terms.is_empty() && found.is_empty() {
                let help = format!("name a host, a group or a container, or say {EVERYTHING:?}");
                found.push(mistake(1, "the limit is empty".to_owned(), Some(help)));
            }
        }
        Diagnostics::new(found).map_or(Ok(Self { terms }), Err)
    }

    /// The hosts and containers it means in an inventory.
    ///
    /// # Errors
    /// When a term means nothing there, or nothing is left in the end.
    pub fn select(&self, inventory: &Inventory) -> Result<Selection, Diagnostics> {
        let mut found = Vec::new();
        let on = containers_by_host(inventory);
        let (mut chosen, mut excluded) = (Selection::default(), Selection::default());
        if self.terms.iter().all(|term| term.excluded) {
            chosen = Selection::everything(inventory);
        }
        for term in &self.terms {
            match term.resolve(inventory, &on) {
                Ok(selection) if term.excluded => excluded.add(selection),
                Ok(selection) => chosen.add(selection),
                Err(diagnostic) => found.push(diagnostic),
            }
        }
        chosen.remove(&excluded);
        if chosen.is_empty() && found.is_empty() {
            found.push(mistake(1, "the limit leaves nothing".to_owned(), None));
        }
        Diagnostics::new(found).map_or(Ok(chosen), Err)
    }
}

type ByHost<'a> = BTreeMap<&'a HostName, Vec<&'a ContainerName>>;

fn containers_by_host(inventory: &Inventory) -> ByHost<'_> {
    let mut on = ByHost::new();
    for (name, container) in &inventory.containers {
        on.entry(&container.host).or_default().push(name);
    }
    on
}

impl Term {
    fn resolve(&self, inventory: &Inventory, on: &ByHost<'_>) -> Result<Selection, Diagnostic> {
        let mut selection = Selection::default();
        let add_host = |selection: &mut Selection, host: &HostName| {
            let behind = on.get(host).into_iter().flatten();
            selection
                .containers
                .extend(behind.map(|name| (*name).clone()));
            selection.hosts.insert(host.clone());
        };
        let group = |name: &str| Label::new(name).and_then(|name| inventory.groups.get(&name));
        match &self.pattern {
            Pattern::Everything => return Ok(Selection::everything(inventory)),
            Pattern::Group(name) => {
                let Some(group) = group(name) else {
                    let known = inventory.groups.keys().map(Label::as_str);
                    return Err(self.unknown("group", name, known));
                };
                group
                    .hosts
                    .iter()
                    .for_each(|host| add_host(&mut selection, host));
            }
            Pattern::Name(name) => {
                let host = HostName::new(name).ok();
                let container = ContainerName::new(name).ok();
                if let Some(host) = host.filter(|host| inventory.hosts.contains_key(host)) {
                    add_host(&mut selection, &host);
                } else if let Some(group) = group(name) {
                    group
                        .hosts
                        .iter()
                        .for_each(|host| add_host(&mut selection, host));
                } else if let Some(name) =
                    container.filter(|name| inventory.containers.contains_key(name))
                {
                    selection.containers.insert(name);
                } else {
                    let hosts = inventory.hosts.keys().map(HostName::as_str);
                    let groups = inventory.groups.keys().map(Label::as_str);
                    let containers = inventory.containers.keys().map(ContainerName::as_str);
                    let known = hosts.chain(groups).chain(containers);
                    return Err(self.unknown("host, group or container", name, known));
                }
            }
            Pattern::Glob(glob) => {
                let hosts = inventory.hosts.keys();
                for host in hosts.filter(|host| glob.is_match(host.as_str())) {
                    add_host(&mut selection, host);
                }
                let containers = inventory.containers.keys();
                let matched = containers.filter(|name| glob.is_match(name.as_str()));
                selection.containers.extend(matched.cloned());
                if selection.is_empty() {
                    let message =
                        format!("{} matches no host and no container", quoted(&self.text));
                    return Err(mistake(self.column, message, None));
                }
            }
        }
        Ok(selection)
    }

    fn unknown<'a>(
        &self,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'a str>,
    ) -> Diagnostic {
        let message = format!("unknown {what} {}", quoted(name));
        mistake(self.column, message, did_you_mean(name, known))
    }
}

fn mistake(column: usize, message: String, help: Option<String>) -> Diagnostic {
    Diagnostic {
        file: FILE.to_owned(),
        line: 1,
        column,
        message,
        help,
        related: Vec::new(),
    }
}

/// Words and their columns. A comma inside `{…}` or `[…]` belongs to a glob.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut start: Option<(usize, usize)> = None;
    let mut depth = 0_usize;
    for (index, (at, c)) in text.char_indices().enumerate() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c.is_whitespace() || (c == ',' && depth == 0) {
            if let Some((column, from)) = start.take() {
                words.push((column, text.get(from..at).unwrap_or_default()));
            }
            depth = 0;
        } else if start.is_none() {
            start = Some((index + 1, at));
        }
    }
    if let Some((column, from)) = start {
        words.push((column, text.get(from..).unwrap_or_default()));
    }
    words
}

fn term(column: usize, word: &str) -> Result<Term, Diagnostic> {
    let text = word.strip_prefix('!');
    let (excluded, text) = (text.is_some(), text.unwrap_or(word));
    let pattern = if text == EVERYTHING {
        Pattern::Everything
    } else if let Some(group) = text.strip_prefix('@') {
        Pattern::Group(group.to_owned())
    } else if is_glob(text) {
        let glob = matcher(text);
        Pattern::Glob(glob.map_err(|reason| mistake(column, reason, None))?)
    } else if text.is_empty() {
        let message = "\"!\" stands before nothing".to_owned();
        return Err(mistake(
            column,
            message,
            Some("write it next to a name".to_owned()),
        ));
    } else {
        Pattern::Name(text.to_owned())
    };
    Ok(Term {
        column,
        excluded,
        text: text.to_owned(),
        pattern,
    })
}

/// Whether a text has a character that only a glob may have.
pub(super) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// Compiles a glob; its mistake is a message.
pub(super) fn matcher(text: &str) -> Result<GlobMatcher, String> {
    let glob = Glob::new(text)
        .map_err(|error| format!("{} is not a glob: {}", quoted(text), error.kind()))?;
    Ok(glob.compile_matcher())
}
