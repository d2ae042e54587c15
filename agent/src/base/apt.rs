//! The host's own apt sources, read so that a guest gets its packages from the same place. Only the
//! distribution's own archives are handed on, never a third party's, and nothing that holds a password.

use std::fs;
use std::path::{Path, PathBuf};

/// One archive: an address, a suite and its components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The archive's address.
    pub uri: String,
    /// For example `bookworm-updates`.
    pub suite: String,
    /// For example `main`.
    pub components: Vec<String>,
    /// The keyring file that signs it, where one is named.
    pub signed_by: Option<PathBuf>,
}

impl Source {
    /// As a line of a `sources.list`.
    pub fn line(&self) -> String {
        let signed = self
            .signed_by
            .as_ref()
            .map(|keyring| format!("[signed-by={}] ", keyring.display()))
            .unwrap_or_default();
        format!(
            "deb {signed}{} {} {}\n",
            self.uri,
            self.suite,
            self.components.join(" ")
        )
    }
}

/// What follows a release's name in the suites that belong to it.
const SUITES_OF_RELEASE: [&str; 5] = ["", "-updates", "-security", "/updates", "-proposed-updates"];
/// The components of the distribution itself.
const COMPONENTS: [&str; 4] = ["main", "contrib", "non-free", "non-free-firmware"];

/// The host's sources of a release, in the order of its files. What can't be read or understood is passed over:
/// the caller falls back to the distribution's public mirror.
pub fn sources_of(etc_apt: &Path, release: &str) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    let mut more: Vec<PathBuf> = fs::read_dir(etc_apt.join("sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    more.sort();
    files.append(&mut more);
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(one_line)),
            Some("sources") => found.extend(stanzas(&text)),
            _ => {}
        }
    }
    let mut kept: Vec<Source> = Vec::new();
    for source in found {
        if belongs(&source, release) && !kept.contains(&source) {
            kept.push(source);
        }
    }
    kept
}

fn belongs(source: &Source, release: &str) -> bool {
    let web = source.uri.starts_with("http://") || source.uri.starts_with("https://");
    let plain = source
        .uri
        .chars()
        .all(|c| c.is_ascii_graphic() && !matches!(c, '@' | '[' | ']'));
    let suite = source
        .suite
        .strip_prefix(release)
        .is_some_and(|rest| SUITES_OF_RELEASE.contains(&rest));
    let own = !source.components.is_empty()
        && source
            .components
            .iter()
            .all(|component| COMPONENTS.contains(&component.as_str()));
    web && plain && suite && own
}

/// `deb [signed-by=…] URI SUITE COMPONENT…`
pub(crate) fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let mut rest = line.strip_prefix("deb ")?.trim_start();
    let mut signed_by = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (options, after) = after.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .and_then(keyring);
        rest = after.trim_start();
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        signed_by,
    })
}

fn keyring(text: &str) -> Option<PathBuf> {
    (text.starts_with('/') && !text.contains(char::is_whitespace)).then(|| PathBuf::from(text))
}

/// The stanzas of a deb822 file.
pub(crate) fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain(std::iter::once("")) {
        if line.starts_with('#') {
        } else if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| {
        fields
            .iter()
            .find(|(field, _)| field == name)
            .map_or("", |(_, value)| value.as_str())
    };
    let words = |name: &str| {
        field(name)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if field("enabled").eq_ignore_ascii_case("no") || !words("types").contains(&"deb".to_owned()) {
        return Vec::new();
    }
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source {
                uri: uri.clone(),
                suite,
                components: words("components"),
                signed_by: keyring(field("signed-by")),
            });
        }
    }
    sources
}

/// Those lines of `apt-config dump` that a guest needs to reach the same archives: proxies, time limits,
/// retries and checks. Not what names a program or this machine itself, or holds a password.
pub fn transport_settings(dump: &str) -> String {
    let wanted = [
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Check-",
        "Acquire::Retries",
        "Acquire::ForceIPv",
    ];
    let unwanted = [
        "auto-detect",
        "autodetect",
        "@",
        "//localhost",
        "//127.",
        "//[::1]",
    ];
    let mut text = String::new();
    for line in dump.lines() {
        let lower = line.to_ascii_lowercase();
        let plain =
            line.ends_with("\";") && line.matches('"').count() == 2 && !line.ends_with("\"\";");
        if plain
            && wanted.iter().any(|prefix| line.starts_with(prefix))
            && !unwanted.iter().any(|part| lower.contains(part))
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_third_parties_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let list_d = dir.path().join("sources.list.d");
        fs::create_dir(&list_d).unwrap();
        fs::write(
            dir.path().join("sources.list"),
            "# deb http://old.test/ bookworm main\n\
             deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://one.test/debian bookworm main contrib # ours\n\
             deb-src http://one.test/debian bookworm main\n\
             deb http://user:secret@two.test/debian bookworm main\n\
             deb http://docker.test/debian bookworm stable\n",
        )
        .unwrap();
        fs::write(
            list_d.join("debian.sources"),
            "Types: deb deb-src\nURIs: http://three.test/debian\nSuites: bookworm\n bookworm-updates\n\
             Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
             Types: deb\nEnabled: no\nURIs: http://off.test\nSuites: bookworm\nComponents: main\n\n\
             Types: deb\nURIs: http://pg.test\nSuites: bookworm-pgdg\nComponents: main\n\n\
             Types: deb\n# why\nURIs: http://three.test/security\nSuites: bookworm-security trixie\nComponents: main\n",
        )
        .unwrap();
        fs::write(
            list_d.join("x.sources.save"),
            "Types: deb\nURIs: http://saved.test\nSuites: bookworm\nComponents: main\n",
        )
        .unwrap();
        let lines: Vec<String> = sources_of(dir.path(), "bookworm")
            .iter()
            .map(Source::line)
            .collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://one.test/debian bookworm main contrib\n",
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://three.test/debian bookworm main\n",
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://three.test/debian bookworm-updates main\n",
                "deb http://three.test/security bookworm-security main\n",
            ]
        );
        assert!(sources_of(&dir.path().join("none"), "bookworm").is_empty());
    }

    #[test]
    fn only_harmless_settings_of_the_transport_are_handed_on() {
        let dump = "APT::Architecture \"amd64\";\n\
            Acquire::http \"\";\n\
            Acquire::http::Proxy \"http://proxy.test:3128\";\n\
            Acquire::https::Proxy \"http://me:secret@proxy.test:3128\";\n\
            Acquire::http::Proxy-Auto-Detect \"/usr/bin/find-proxy\";\n\
            Acquire::http::Timeout \"20\";\n\
            Acquire::Retries \"3\";\n\
            Acquire::https::Proxy::a.test \"http://127.0.0.1:3142\";\n\
            Acquire::Check-Date \"false\";\n\
            DPkg::Post-Invoke:: \"rm -rf /\";\n";
        assert_eq!(
            transport_settings(dump),
            "Acquire::http::Proxy \"http://proxy.test:3128\";\n\
             Acquire::http::Timeout \"20\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::Check-Date \"false\";\n"
        );
    }
}
