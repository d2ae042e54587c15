//! What is run inside a container once it has an address.
//!
//! Arguments stay apart from each other: nothing here joins them into a line that a shell would read.

use std::collections::BTreeSet;

use tallybook_agent::secret::SecretName;
use toml::Spanned;
use toml::de::DeValue;

use super::super::Names;
use crate::cloud::inventory::{Action, Provision};
use crate::cloud::section::{Report, Section, table_of};

const TIMEOUT_S_DEFAULT: u32 = 30 * 60;
const TIMEOUT_S_MAX: u32 = 24 * 3600;

/// The most bytes of a script, which travels whole in one message.
const SCRIPT_BYTES_MAX: usize = 256 << 10;

const LATER: [&str; 7] = [
    "chdir",
    "copy",
    "environment",
    "only_if",
    "retry",
    "unless",
    "user",
];

pub(super) fn read_all(container: &Section<'_>, names: &Names<'_>) -> Vec<Provision> {
    let what = format!("a provision step of {}", container.what());
    let report = container.report();
    let items = container.array("provision").unwrap_or_default();
    let step = |item| read(report, names, &what, item);
    items.iter().filter_map(step).collect()
}

fn read(
    report: &Report<'_>,
    names: &Names<'_>,
    what: &str,
    item: &Spanned<DeValue<'_>>,
) -> Option<Provision> {
    let table = table_of(report, "each of provision", item)?;
    let section = Section::new(report, what.to_owned(), table);
    let action = action(&section);
    let creates = section.text("creates").filter(|path| {
        let good = path.value.starts_with('/') && !path.value.chars().any(char::is_control);
        if !good {
            report.error(
                path.at,
                "creates must be an absolute path inside the container",
            );
        }
        good
    });
    let secrets = secrets(&section, names);
    let timeout = section.number("timeout_s", 1, TIMEOUT_S_MAX);
    let line = report.line(section.at());
    let elsewhere = [
        ("command", "use run = [\"program\", \"argument\"]"),
        ("shell", "use script = \"\"\"…\"\"\""),
    ];
    section.finish(&LATER, &elsewhere);
    Some(Provision {
        line,
        action: action?,
        creates: creates.map(|path| path.value.to_owned()),
        secrets,
        timeout_s: timeout.map_or(TIMEOUT_S_DEFAULT, |timeout| timeout.value),
    })
}

/// Those that are declared. A name that can't be one is noted where it is declared.
fn secrets(section: &Section<'_>, names: &Names<'_>) -> BTreeSet<SecretName> {
    let named = section.texts("secrets").unwrap_or_default().into_iter();
    let known = named.filter(|name| names.secrets.resolve(section.report(), *name));
    known
        .filter_map(|name| SecretName::new(name.value).ok())
        .collect()
}

fn action(section: &Section<'_>) -> Option<Action> {
    let report = section.report();
    let (has_run, has_script) = (section.position("run"), section.position("script"));
    if has_run.is_some() == has_script.is_some() {
        let message = format!("{} needs run or script, one of the two", section.what());
        report.error(section.at(), message);
    }
    let argv = section.texts("run");
    let script = section.text("script");
    if let (Some(argv), Some(at)) = (argv, has_run) {
        if argv.first().is_none_or(|program| program.value.is_empty()) {
            report.error_help(
                at,
                "run names no program",
                "write run = [\"program\", \"argument\"]",
            );
            return None;
        }
        for argument in argv.iter().filter(|argument| argument.value.contains('\0')) {
            report.error(argument.at, "an argument can't hold a NUL character");
        }
        return Some(Action::Run(
            argv.iter()
                .map(|argument| argument.value.to_owned())
                .collect(),
        ));
    }
    let script = script?;
    let wrong = if script.value.trim().is_empty() {
        Some("script is empty".to_owned())
    } else if script.value.len() > SCRIPT_BYTES_MAX {
        Some(format!(
            "script has more than {} KiB",
            SCRIPT_BYTES_MAX >> 10
        ))
    } else if script.value.contains('\0') {
        Some("script holds a NUL character".to_owned())
    } else {
        None
    };
    if let Some(wrong) = wrong {
        report.error(script.at, wrong);
        return None;
    }
    Some(Action::Script(script.value.to_owned()))
}
