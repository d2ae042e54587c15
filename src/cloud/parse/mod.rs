//! From the text of `cloud.toml` to an [`Inventory`], or to everything that is wrong with it.
//!
//! Names are gathered first, so that a reference is checked where it is read and its mistake carries its own place.
//! A syntax mistake ends the reading early: what follows it can't be trusted to mean what it seems to.

mod container;
mod dns;
mod group;
mod host;
mod network;
mod secret;
mod template;

use std::collections::{BTreeMap, BTreeSet};

use tallybook_agent::secret::SecretName;
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostics, did_you_mean, quoted};
use super::dns::DomainName;
use super::inventory::{Inventory, Label};
use super::key::{PublicKey, looks_private};
use super::limit::EVERYTHING;
use super::section::{At, Report, Section, table_of, text_of};

/// The largest text that is read. Ten thousand containers with a screenful of provisioning each fit.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// Tables that an operator coming from elsewhere may expect.
const LATER: [&str; 4] = ["certificates", "proxy", "storage", "volumes"];

/// Reads an inventory. `file_name` is only repeated in messages.
///
/// # Errors
/// Everything that is wrong, with the place of each, in the order of the text.
pub fn parse(file_name: &str, text: &str) -> Result<Inventory, Diagnostics> {
    let report = Report::new(file_name, text);
    let inventory = if text.len() > TEXT_BYTES_MAX {
        let message = format_args!("the inventory has more than {} MiB", TEXT_BYTES_MAX >> 20);
        report.error(0, message);
        None
    } else {
        parse_toml(&report, text).map(|root| read(file_name, &report, &root))
    };
    match (report.finish(), inventory) {
        (None, Some(inventory)) => Ok(inventory),
        (Some(diagnostics), _) => Err(diagnostics),
        (None, None) => unreachable!("a text that can't be read has a diagnostic"),
    }
}

fn parse_toml<'t>(report: &Report<'t>, text: &'t str) -> Option<DeTable<'t>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut lines = BTreeSet::new();
    for error in &errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        // What one mistake does to the rest of its line isn't another mistake.
        if lines.insert(report.line(at)) {
            report.error(at, format_args!("syntax: {}", error.message()));
        }
    }
    let root = root.into_inner();
    // Also when the syntax is wrong: a private key must be noticed before the file goes anywhere.
    report.refuse_private_keys(&root);
    errors.is_empty().then_some(root)
}

/// The names of one kind of thing, and where each is defined.
struct Known<'a> {
    what: &'static str,
    names: BTreeMap<&'a str, usize>,
}

impl<'a> Known<'a> {
    fn gather(root: &'a DeTable<'a>, table: &str, what: &'static str) -> Self {
        let entries = root.get(table).and_then(|value| value.get_ref().as_table());
        let names = entries.into_iter().flatten();
        let names = names.map(|(key, _)| (key.get_ref().as_ref(), key.span().start));
        Self {
            what,
            names: names.collect(),
        }
    }

    /// Whether there is such a thing; notes a mistake when there is none.
    fn resolve(&self, report: &Report<'_>, name: At<&str>) -> bool {
        let known = self.names.contains_key(name.value);
        if !known {
            let message = format!("unknown {} {}", self.what, quoted(name.value));
            let help = did_you_mean(name.value, self.names.keys().copied());
            report.error_with(name.at, message, help, Vec::new());
        }
        known
    }
}

/// Every name that something may refer to.
struct Names<'a> {
    hosts: Known<'a>,
    groups: Known<'a>,
    keys: Known<'a>,
    secrets: Known<'a>,
    containers: Known<'a>,
    templates: Known<'a>,
}

impl Names<'_> {
    /// A limit names hosts, groups and containers alike, so that a name must mean one of them.
    fn refuse_shared(&self, report: &Report<'_>) {
        let kinds = [&self.hosts, &self.groups, &self.containers];
        for (index, kind) in kinds.into_iter().enumerate() {
            for (name, at) in &kind.names {
                if *name == EVERYTHING {
                    let message = format!("no {} can be called {name:?}", kind.what);
                    report.error_help(*at, message, "a limit means every host by it");
                }
                for other in kinds.into_iter().skip(index + 1) {
                    let Some(other_at) = other.names.get(name) else {
                        continue;
                    };
                    let message =
                        format!("{} is a {} and a {}", quoted(name), kind.what, other.what);
                    let line = report.line(*other_at);
                    report.error_related(*at, message, line, "the other one");
                }
            }
        }
    }
}

fn read(file_name: &str, report: &Report<'_>, table: &DeTable<'_>) -> Inventory {
    let names = Names {
        hosts: Known::gather(table, "hosts", "host"),
        groups: Known::gather(table, "groups", "group"),
        keys: Known::gather(table, "keys", "key holder"),
        secrets: Known::gather(table, "secrets", "secret"),
        containers: Known::gather(table, "containers", "container"),
        templates: Known::gather(table, "templates", "template"),
    };
    names.refuse_shared(report);
    let root = At {
        value: table,
        at: 0,
    };
    let root = Section::new(report, "the inventory".to_owned(), root);
    let defaults = root.section("defaults", "[defaults]");
    let (network, network_settings) = network::read(root.section("network", "[network]"), report);
    let host_defaults = host::defaults(defaults.as_ref(), &names, network_settings);
    let container_defaults = container::defaults(defaults.as_ref(), &names);
    if let Some(defaults) = defaults {
        defaults.finish(&[], &[]);
    }
    let (hosts, memberships) = host::read_all(&root, &names, &host_defaults);
    let (groups, hosts) = group::read_all(&root, &names, memberships, hosts);
    let containers = container::read_all(&root, &names, &container_defaults, &network, &hosts);
    let templates = template::read_all(&root, &names);
    let keys = keys(&root);
    let secrets = secret::read_all(&root);
    let (dns, zones) = dns::read_all(&root, &names);
    let (name, controller) = cloud(&root, &names, &hosts);
    root.finish(&LATER, &[]);
    Inventory {
        file: file_name.to_owned(),
        name,
        controller,
        network,
        hosts,
        groups,
        keys,
        secrets,
        containers,
        templates,
        dns,
        zones,
    }
}

fn cloud(
    root: &Section<'_>,
    names: &Names<'_>,
    hosts: &BTreeMap<HostName, super::inventory::Host>,
) -> (Option<String>, Option<HostName>) {
    let Some(cloud) = root.section("cloud", "[cloud]") else {
        return (None, None);
    };
    let report = cloud.report();
    let name = cloud.text("name");
    let name = name.and_then(|name| label(report, "cloud name", name));
    let controller = host_reference(&cloud, "controller", names);
    let local = hosts.iter().find(|(_, host)| host.local);
    if let (Some(controller), Some((local, host))) = (&controller, local)
        && controller.value != *local
    {
        let message = format!("the controller is {:?}", controller.value.as_str());
        let message = format!("{message}, but host {:?} is local", local.as_str());
        report.error_related(controller.at, message, host.line, "local here");
    }
    cloud.finish(&[], &[]);
    let name = name.map(|name| name.to_string());
    (name, controller.map(|controller| controller.value))
}

fn keys(root: &Section<'_>) -> BTreeMap<Label, Vec<PublicKey>> {
    let mut keys = BTreeMap::new();
    let Some(section) = root.section("keys", "[keys]") else {
        return keys;
    };
    let report = section.report();
    for (holder, value) in section.entries() {
        let what = format!("key {}", quoted(holder.value));
        let values = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            DeValue::String(_) => vec![value],
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => {
                let message = format!("{what} must be a public key, or an array of them");
                report.error(value.span().start, message);
                continue;
            }
        };
        let mut public = Vec::with_capacity(values.len());
        for text in values
            .iter()
            .filter_map(|value| text_of(report, &what, value))
        {
            match PublicKey::new(text.value) {
                Ok(key) => public.push(key),
                Err(error) => report.error_help(
                    text.at,
                    format!("{what}: {error}"),
                    "paste a line of an id_*.pub file, without options",
                ),
            }
        }
        if values.is_empty() {
            report.error(value.span().start, format!("{what} is empty"));
        }
        if let Some(holder) = label(report, "key holder", holder) {
            keys.insert(holder, public);
        }
    }
    keys
}

/// A name checked by its type; its mistake is noted at its place.
trait Name: Sized {
    fn checked(text: &str) -> Result<Self, String>;
}

macro_rules! checked_name {
    ($($name:ident),+) => {$(
        impl Name for $name {
            fn checked(text: &str) -> Result<Self, String> {
                Self::new(text).map_err(|error| error.to_string())
            }
        }
    )+};
}

checked_name!(HostName, ContainerName, SecretName, TemplateName);

fn name<N: Name>(report: &Report<'_>, text: At<&str>) -> Option<N> {
    if looks_private(text.value) {
        return None;
    }
    let named = N::checked(text.value);
    named.map_err(|error| report.error(text.at, error)).ok()
}

fn label(report: &Report<'_>, what: &str, text: At<&str>) -> Option<Label> {
    let label: Result<Label, _> = text.value.parse();
    let noted = label.map_err(|error| {
        let given = quoted(text.value);
        report.error(text.at, format_args!("{what} {given} {error}"));
    });
    noted.ok()
}

/// The labels of an array that all refer to something known.
fn label_references(
    section: &Section<'_>,
    key: &'static str,
    known: &Known<'_>,
) -> Option<Vec<At<Label>>> {
    let report = section.report();
    let texts = section.texts(key)?.into_iter();
    let labels = texts
        .filter(|text| known.resolve(report, *text))
        .filter_map(|text| Label::new(text.value).map(|value| At { value, at: text.at }));
    Some(labels.collect())
}

/// The DNS names that lead to a thing, each once.
fn domains(section: &Section<'_>) -> Vec<At<DomainName>> {
    let report = section.report();
    let mut domains: Vec<At<DomainName>> = Vec::new();
    for text in section.texts("domains").unwrap_or_default() {
        match DomainName::new(text.value) {
            Ok(value) if domains.iter().any(|other| other.value == value) => {
                report.error(text.at, format_args!("domain {value} is named twice"));
            }
            Ok(value) => domains.push(At { value, at: text.at }),
            Err(error) => report.error(text.at, format_args!("domain {error}")),
        }
    }
    domains
}

fn host_reference(
    section: &Section<'_>,
    key: &'static str,
    names: &Names<'_>,
) -> Option<At<HostName>> {
    let text = section.text(key)?;
    if !names.hosts.resolve(section.report(), text) {
        return None;
    }
    // A name that is no host name is noted where the host is defined.
    let value = HostName::new(text.value).ok()?;
    Some(At { value, at: text.at })
}

/// The sections of a table of named things, with the checked name of each, in the order of the text.
fn named_sections<'a, N: Name>(
    root: &Section<'a>,
    key: &'static str,
    what: &str,
) -> Vec<(N, At<Section<'a>>)> {
    let Some(all) = root.section(key, key) else {
        return Vec::new();
    };
    let report = root.report();
    let named = |(key, value): (At<&'a str>, &'a Spanned<DeValue<'a>>)| {
        let what = format!("{what} {}", quoted(key.value));
        let table = table_of(report, &what, value)?;
        let section = Section::new(report, what, table);
        // Nothing can refer to a thing without a name: what is inside is checked once it has one.
        let value = name(report, key)?;
        Some((
            value,
            At {
                value: section,
                at: key.at,
            },
        ))
    };
    all.entries().into_iter().filter_map(named).collect()
}
