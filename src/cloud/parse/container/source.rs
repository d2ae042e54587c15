//! What a container is made from: a template, or from scratch.

use std::collections::BTreeSet;

use tallybook_events::name::TemplateName;

use super::super::Names;
use super::super::template::NONE;
use crate::cloud::diagnostic::{did_you_mean, quoted};
use crate::cloud::inventory::{Debian, Source, Variant};
use crate::cloud::section::Section;

const RELEASE_DEFAULT: &str = "trixie";

/// Debian's suites (its releases page, November 2026): to name a slip, not to refuse a suite made later.
const SUITES: [&str; 11] = [
    "bookworm",
    "bullseye",
    "buster",
    "duke",
    "experimental",
    "forky",
    "oldstable",
    "sid",
    "stable",
    "testing",
    "trixie",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distribution {
    Debian,
    Busybox,
}

/// What is said about making a container from scratch.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    distribution: Option<Distribution>,
    release: Option<String>,
    mirror: Option<String>,
    variant: Option<Variant>,
    packages: Option<BTreeSet<String>>,
}

impl Scratch {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let distributions = [
            ("debian", Distribution::Debian),
            ("busybox", Distribution::Busybox),
        ];
        let later = [
            "alpine", "arch", "centos", "devuan", "fedora", "rocky", "ubuntu",
        ];
        let variants = [("minbase", Variant::Minbase)];
        Self {
            distribution: section.choice("distribution", &distributions, &later),
            release: release(section),
            mirror: mirror(section),
            variant: section.choice("variant", &variants, &["standard", "buildd", "fakechroot"]),
            packages: packages(section),
        }
    }
}

/// What a container is made from; `None` when that can't be told.
pub(super) fn read(
    section: &Section<'_>,
    names: &Names<'_>,
    own: &Scratch,
    defaults: &Scratch,
) -> Option<Source> {
    const DEBIAN_ONLY: [&str; 4] = ["release", "mirror", "variant", "packages"];
    let report = section.report();
    let template = section.text("template");
    if let Some(template) = template.filter(|template| template.value != NONE) {
        for key in ["distribution"].into_iter().chain(DEBIAN_ONLY) {
            if let Some(at) = section.position(key) {
                let message = format!("{key} has no meaning for {}", section.what());
                report.error_help(at, message, "it is made from a template");
            }
        }
        if !names.templates.resolve(report, template) {
            return None;
        }
        return TemplateName::new(template.value).ok().map(Source::Template);
    }
    let distribution = own.distribution.or(defaults.distribution);
    if distribution == Some(Distribution::Busybox) {
        for key in DEBIAN_ONLY {
            if let Some(at) = section.position(key) {
                let message = format!("{key} has no meaning for {}", section.what());
                report.error_help(at, message, "it is made of busybox alone");
            }
        }
        return Some(Source::Busybox);
    }
    let text = |own: &Option<String>, general: &Option<String>, otherwise: &str| {
        let said = own.as_ref().or(general.as_ref());
        said.map_or_else(|| otherwise.to_owned(), Clone::clone)
    };
    let packages = own.packages.as_ref().or(defaults.packages.as_ref());
    Some(Source::Debian(Debian {
        release: text(&own.release, &defaults.release, RELEASE_DEFAULT),
        mirror: own.mirror.clone().or_else(|| defaults.mirror.clone()),
        variant: own.variant.or(defaults.variant).unwrap_or(Variant::Minbase),
        packages: packages.cloned().unwrap_or_default(),
    }))
}

fn release(section: &Section<'_>) -> Option<String> {
    let text = section.text("release")?;
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let first = text.value.starts_with(|c: char| c.is_ascii_lowercase());
    let shaped = first && text.value.len() <= 32 && text.value.chars().all(word);
    let slip = did_you_mean(text.value, SUITES);
    if !shaped || (slip.is_some() && !SUITES.contains(&text.value)) {
        let message = format!("release {} is not a Debian suite", quoted(text.value));
        section
            .report()
            .error_with(text.at, message, slip, Vec::new());
        return None;
    }
    Some(text.value.to_owned())
}

fn mirror(section: &Section<'_>) -> Option<String> {
    let text = section.text("mirror")?;
    let rest = ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| text.value.strip_prefix(scheme));
    let plain = text.value.bytes().all(|b| b.is_ascii_graphic());
    let host = rest.and_then(|rest| rest.split('/').next());
    let Some(host) = host.filter(|host| !host.is_empty() && plain) else {
        let message = "mirror must be an http:// or https:// address without spaces";
        section.report().error(text.at, message);
        return None;
    };
    // Whatever stands before the @ would be shown and recorded.
    if host.contains('@') {
        let help = "put it into the host's /etc/apt/auth.conf";
        let message = "mirror holds a user or a password";
        section.report().error_help(text.at, message, help);
        return None;
    }
    Some(text.value.to_owned())
}

/// Package names as Debian's policy has them (5.6.1), so that none can be read as an option or a path.
fn packages(section: &Section<'_>) -> Option<BTreeSet<String>> {
    let report = section.report();
    let mut packages = BTreeSet::new();
    for text in section.texts("packages")? {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let shaped = text.value.starts_with(first) && text.value.bytes().all(word);
        if shaped && text.value.len() >= 2 {
            packages.insert(text.value.to_owned());
        } else {
            let given = quoted(text.value);
            report.error(text.at, format_args!("{given} is not a package name"));
        }
    }
    Some(packages)
}
