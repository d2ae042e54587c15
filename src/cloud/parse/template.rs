//! `[templates.NAME]`.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_events::name::{ContainerName, TemplateName};

use super::{Names, label, named_sections};
use crate::cloud::inventory::Template;
use crate::cloud::section::Section;

/// The word that means no template where a template is named.
pub(super) const NONE: &str = "none";

const RETAIN_DEFAULT: u32 = 3;
const RETAIN_MAX: u32 = 1000;

const LATER: [&str; 5] = ["hosts", "schedule", "sign", "sync", "witness"];

pub(super) fn read_all(root: &Section<'_>, names: &Names<'_>) -> BTreeMap<TemplateName, Template> {
    let report = root.report();
    let mut templates = BTreeMap::new();
    for (name, section) in named_sections::<TemplateName>(root, "templates", "template") {
        if name.as_str() == NONE {
            let message = "no template can be called \"none\"";
            report.error_help(
                section.at,
                message,
                "a container means by it that it has no template",
            );
        }
        let line = report.line(section.at);
        let template = read(section.value, line, names);
        templates.insert(name, template);
    }
    templates
}

fn read(section: Section<'_>, line: usize, names: &Names<'_>) -> Template {
    let report = section.report();
    let builder = section.text("builder");
    let builder = builder.filter(|builder| names.containers.resolve(report, *builder));
    let mut scrub_keep = BTreeSet::new();
    let inside = format!("scrub of {}", section.what());
    if let Some(scrub) = section.section("scrub", &inside) {
        for operation in scrub.texts("keep").unwrap_or_default() {
            scrub_keep.extend(label(report, "scrub operation", operation));
        }
        scrub.finish(&["add", "only", "remove"], &[]);
    }
    let retain = section.number("retain", 1, RETAIN_MAX);
    let template = Template {
        line,
        builder: builder.and_then(|builder| ContainerName::new(builder.value).ok()),
        scrub_keep,
        retain: retain.map_or(RETAIN_DEFAULT, |retain| retain.value),
    };
    section.finish(&LATER, &[]);
    template
}
