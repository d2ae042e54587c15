//! `[groups.NAME]`: hosts by name, by glob, through other groups, and by what hosts say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use tallybook_events::name::HostName;

use super::host::Memberships;
use super::{Names, label};
use crate::cloud::diagnostic::{did_you_mean, quoted};
use crate::cloud::inventory::{Group, Host, Label};
use crate::cloud::limit::{is_glob, matcher};
use crate::cloud::section::{At, Report, Section, table_of};

/// A group before the groups inside it are known.
struct Draft {
    line: usize,
    hosts: BTreeSet<HostName>,
    groups: Vec<At<Label>>,
}

/// Reads every group, and tells each host the groups it is in.
pub(super) fn read_all(
    root: &Section<'_>,
    names: &Names<'_>,
    memberships: Memberships,
    mut hosts: BTreeMap<HostName, Host>,
) -> (BTreeMap<Label, Group>, BTreeMap<HostName, Host>) {
    let mut drafts = BTreeMap::new();
    let report = root.report();
    let all = root.section("groups", "[groups]");
    for (key, value) in all.iter().flat_map(Section::entries) {
        let what = format!("group {}", quoted(key.value));
        let Some(table) = table_of(report, &what, value) else {
            continue;
        };
        let section = Section::new(report, what, table);
        let mut draft = Draft {
            line: report.line(key.at),
            hosts: BTreeSet::new(),
            groups: Vec::new(),
        };
        for member in section.texts("members").unwrap_or_default() {
            add_member(report, names, member, &mut draft);
        }
        section.finish(&["children", "exclude", "vars"], &[]);
        if let Some(name) = label(report, "group", key) {
            drafts.insert(name, draft);
        }
    }
    for (host, groups) in memberships {
        for group in groups {
            if let Some(draft) = drafts.get_mut(&group.value) {
                draft.hosts.insert(host.clone());
            }
        }
    }
    let groups = flatten(report, drafts);
    for (name, group) in &groups {
        for host in &group.hosts {
            if let Some(host) = hosts.get_mut(host) {
                host.groups.insert(name.clone());
            }
        }
    }
    (groups, hosts)
}

fn add_member(report: &Report<'_>, names: &Names<'_>, member: At<&str>, draft: &mut Draft) {
    let At { value: text, at } = member;
    let known = |name: &str| HostName::new(name).ok();
    if let Some(group) = text.strip_prefix('@') {
        let group = At { value: group, at };
        if names.groups.resolve(report, group) {
            let label = Label::new(group.value).map(|value| At { value, at });
            draft.groups.extend(label);
        }
    } else if names.hosts.names.contains_key(text) {
        draft.hosts.extend(known(text));
    } else if names.groups.names.contains_key(text) {
        let label = Label::new(text).map(|value| At { value, at });
        draft.groups.extend(label);
    } else if is_glob(text) {
        match matcher(text) {
            Ok(glob) => {
                let before = draft.hosts.len();
                let matched = names.hosts.names.keys().filter(|name| glob.is_match(name));
                let matched: Vec<HostName> = matched.filter_map(|name| known(name)).collect();
                let none = matched.is_empty();
                draft.hosts.extend(matched);
                if none && draft.hosts.len() == before {
                    report.error(at, format_args!("{} matches no host", quoted(text)));
                }
            }
            Err(reason) => report.error(at, reason),
        }
    } else {
        let message = format!("unknown host or group {}", quoted(text));
        let all = names.hosts.names.keys().chain(names.groups.names.keys());
        report.error_with(at, message, did_you_mean(text, all.copied()), Vec::new());
    }
}

/// Puts the hosts of inner groups into outer ones, innermost first; a group that waits for itself is in a circle.
fn flatten(report: &Report<'_>, mut drafts: BTreeMap<Label, Draft>) -> BTreeMap<Label, Group> {
    // A group that is defined but has no valid name is noted already, and nothing waits for it.
    let names: BTreeSet<Label> = drafts.keys().cloned().collect();
    for draft in drafts.values_mut() {
        draft.groups.retain(|group| names.contains(&group.value));
    }
    let mut done: BTreeMap<Label, Group> = BTreeMap::new();
    loop {
        let ready = |draft: &Draft| {
            draft
                .groups
                .iter()
                .all(|group| done.contains_key(&group.value))
        };
        let next: Vec<Label> = drafts
            .iter()
            .filter(|(_, draft)| ready(draft))
            .map(|(name, _)| name.clone())
            .collect();
        if next.is_empty() {
            break;
        }
        for name in next {
            let Some(draft) = drafts.remove(&name) else {
                continue;
            };
            let inner = draft
                .groups
                .iter()
                .filter_map(|group| done.get(&group.value));
            let inner: Vec<HostName> = inner.flat_map(|group| group.hosts.clone()).collect();
            let mut hosts = draft.hosts;
            hosts.extend(inner);
            let line = draft.line;
            done.insert(name, Group { line, hosts });
        }
    }
    refuse_circles(report, &drafts);
    done
}

/// Every group left over is in a circle or leads into one: follow each until it repeats.
fn refuse_circles(report: &Report<'_>, left: &BTreeMap<Label, Draft>) {
    let mut settled: BTreeSet<&Label> = BTreeSet::new();
    for start in left.keys() {
        let mut path: Vec<&Label> = vec![start];
        while let Some(draft) = path.last().and_then(|last| left.get(*last)) {
            let waits_for = draft
                .groups
                .iter()
                .find(|group| left.contains_key(&group.value));
            let Some(next) = waits_for.filter(|next| !settled.contains(&next.value)) else {
                break;
            };
            if let Some(from) = path.iter().position(|name| **name == next.value) {
                let round = path.iter().skip(from).copied().chain([&next.value]);
                let round: Vec<&str> = round.map(Label::as_str).collect();
                let message = format_args!("groups contain each other: {}", round.join(" → "));
                report.error(next.at, message);
                break;
            }
            path.push(&next.value);
        }
        settled.extend(path);
    }
}
