//! `[secrets.NAME]`: what a secret is called and where it lives. Never what it is.

use std::collections::BTreeMap;

use tallybook_agent::secret::SecretName;

use super::named_sections;
use crate::cloud::diagnostic::quoted;
use crate::cloud::inventory::{DeclaredSecret, SecretSource};
use crate::cloud::section::{At, Report, Section};

/// The most secrets of a cloud: all that are known are looked for in all that is printed.
const SECRETS_MAX: usize = 64;

/// Where secrets are kept elsewhere.
const LATER: [&str; 7] = [
    "command",
    "credential",
    "key",
    "mode",
    "owner",
    "path",
    "vault",
];

const VALUE: &str =
    "a value has no place here, it would be recorded: put it into a file and name that";

pub(super) fn read_all(root: &Section<'_>) -> BTreeMap<SecretName, DeclaredSecret> {
    let report = root.report();
    let mut secrets = BTreeMap::new();
    for (name, section) in named_sections::<SecretName>(root, "secrets", "secret") {
        let line = report.line(section.at);
        if secrets.len() == SECRETS_MAX {
            let message = format!("there are more than {SECRETS_MAX} secrets");
            report.error(section.at, message);
        }
        let source = read(section.value);
        secrets.extend(source.map(|source| (name, DeclaredSecret { line, source })));
    }
    secrets
}

fn read(section: Section<'_>) -> Option<SecretSource> {
    let report = section.report();
    if section.position("file").is_some() == section.position("env").is_some() {
        let message = format!("{} needs file or env, one of the two", section.what());
        report.error(section.at(), message);
    }
    let file = section.text("file");
    let file = file.and_then(|path| absolute(report, path));
    let env = section.text("env");
    let env = env.and_then(|variable| variable_name(report, variable));
    let elsewhere = ["content", "data", "password", "secret", "value"];
    section.finish(&LATER, &elsewhere.map(|key| (key, VALUE)));
    file.or(env)
}

fn absolute(report: &Report<'_>, path: At<&str>) -> Option<SecretSource> {
    let good = path.value.starts_with('/') && !path.value.chars().any(char::is_control);
    if !good {
        report.error(path.at, "file must be an absolute path on the controller");
    }
    good.then(|| SecretSource::File(path.value.to_owned()))
}

fn variable_name(report: &Report<'_>, variable: At<&str>) -> Option<SecretSource> {
    let starts = variable
        .value
        .starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = starts && variable.value.len() <= 255 && variable.value.chars().all(allowed);
    if !good {
        let message = format!(
            "env must name a variable of the controller's environment, not {}",
            quoted(variable.value)
        );
        report.error(variable.at, message);
    }
    good.then(|| SecretSource::Env(variable.value.to_owned()))
}
