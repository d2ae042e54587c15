//! What the operator's own SSH configuration says about a destination, as `ssh -G` resolves it.
//!
//! Must never read the configuration files itself: `ssh` is the one that knows its own rules. Without `ssh`
//! installed, the defaults of OpenSSH are used, and a debug message says so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::Settings;
use super::error::Error;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known about a destination before the inventory has its say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// The name or address to connect to.
    pub host: String,
    /// The port.
    pub port: Option<u16>,
    /// The user.
    pub user: Option<String>,
    /// Private keys, in order.
    pub identity_files: Vec<PathBuf>,
    /// Only keys that belong to `identity_files`, even from the agent.
    pub identities_only: bool,
    /// The agent's socket; `None` when the configuration says there is none.
    pub agent: Option<PathBuf>,
    /// Jump hosts as given: `[user@]host[:port]`, nearest first.
    pub jumps: Vec<String>,
    /// The name to look host keys up under.
    pub host_key_alias: Option<String>,
    /// Files with host keys, the operator's own first.
    pub known_hosts: Vec<PathBuf>,
}

/// Asks `ssh -G` about a destination; `user` and `port` are what is already decided.
///
/// # Errors
/// When `ssh` fails, or the configuration asks for something that is not supported.
pub async fn resolve(
    host: &str,
    user: Option<&str>,
    port: Option<u16>,
    settings: &Settings,
) -> Result<Resolved, Error> {
    let failed = |why: String| Error::Config {
        host: host.to_owned(),
        why,
    };
    let mut arguments: Vec<OsString> = vec!["-G".into()];
    if let Some(file) = &settings.ssh_config {
        arguments.extend(["-F".into(), file.into()]);
    }
    if let Some(user) = user {
        arguments.extend(["-l".into(), user.into()]);
    }
    if let Some(port) = port {
        arguments.extend(["-p".into(), port.to_string().into()]);
    }
    arguments.extend(["--".into(), host.into()]);
    let running = tokio::process::Command::new(&settings.ssh_program)
        .args(&arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(RESOLVE_TIMEOUT, running).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            if settings.ssh_config.is_some() {
                return Err(failed(
                    "an SSH configuration file was named, and `ssh`, which reads it, is not installed".to_owned(),
                ));
            }
            tracing::debug!(
                host,
                "`ssh` is not installed: its configuration is not read, defaults are used"
            );
            return Ok(defaults(host, user, port, settings));
        }
        Ok(Err(error)) => return Err(failed(format!("`ssh -G` could not be started: {error}"))),
        Err(_elapsed) => {
            return Err(failed(format!(
                "`ssh -G` did not end within {}",
                humantime::format_duration(RESOLVE_TIMEOUT)
            )));
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(said.trim().to_owned()));
    }
    parse(host, &String::from_utf8_lossy(&output.stdout), settings).map_err(failed)
}

fn defaults(host: &str, user: Option<&str>, port: Option<u16>, settings: &Settings) -> Resolved {
    let own = |name: &str| {
        settings
            .home
            .as_ref()
            .map(|home| home.join(".ssh").join(name))
    };
    let global = [
        Some(PathBuf::from("/etc/ssh/ssh_known_hosts")),
        Some(PathBuf::from("/etc/ssh/ssh_known_hosts2")),
    ];
    Resolved {
        host: host.to_owned(),
        port,
        user: user.map(str::to_owned),
        identity_files: ["id_ed25519", "id_ecdsa", "id_rsa"]
            .into_iter()
            .filter_map(own)
            .collect(),
        identities_only: false,
        agent: settings.agent_socket.clone(),
        jumps: Vec::new(),
        host_key_alias: None,
        known_hosts: [own("known_hosts"), own("known_hosts2")]
            .into_iter()
            .chain(global)
            .flatten()
            .collect(),
    }
}

/// Reads the output of `ssh -G`: a keyword in lower case and its value, a line each.
pub(super) fn parse(asked: &str, text: &str, settings: &Settings) -> Result<Resolved, String> {
    let mut resolved = Resolved {
        host: asked.to_owned(),
        agent: settings.agent_socket.clone(),
        ..Resolved::default()
    };
    let (mut own, mut global) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = value.trim();
        match keyword {
            "hostname" => value.clone_into(&mut resolved.host),
            "port" => {
                let port = value.parse().map_err(|_| format!("port {value:?}"))?;
                resolved.port = Some(port);
            }
            "user" => resolved.user = Some(value.to_owned()),
            "identityfile" if value != "none" => {
                resolved.identity_files.push(expand(value, settings));
            }
            "identitiesonly" => resolved.identities_only = value == "yes",
            "identityagent" => resolved.agent = agent(value, settings),
            "hostkeyalias" => resolved.host_key_alias = Some(value.to_owned()),
            "proxyjump" if value != "none" => {
                resolved.jumps = value.split(',').map(str::to_owned).collect();
            }
            "proxycommand" if value != "none" => {
                return Err(format!(
                    "ProxyCommand ({value}) is not supported; use ProxyJump, or `jump` in cloud.toml"
                ));
            }
            "revokedhostkeys" if value != "none" => {
                return Err(format!(
                    "RevokedHostKeys ({value}) is not supported; use @revoked lines in a known_hosts file"
                ));
            }
            "userknownhostsfile" => own = files(value, settings),
            "globalknownhostsfile" => global = files(value, settings),
            _ => {}
        }
    }
    resolved.known_hosts = own.into_iter().chain(global).collect();
    Ok(resolved)
}

fn files(value: &str, settings: &Settings) -> Vec<PathBuf> {
    value
        .split(' ')
        .filter(|file| !file.is_empty() && *file != "none")
        .map(|file| expand(file.trim_matches('"'), settings))
        .collect()
}

fn agent(value: &str, settings: &Settings) -> Option<PathBuf> {
    match value {
        "none" => None,
        "SSH_AUTH_SOCK" | "$SSH_AUTH_SOCK" => settings.agent_socket.clone(),
        path => Some(expand(path, settings)),
    }
}

/// `~/` and `%d` are the home directory; `ssh -G` has expanded the rest where it matters.
fn expand(text: &str, settings: &Settings) -> PathBuf {
    let Some(home) = &settings.home else {
        return PathBuf::from(text);
    };
    match text.strip_prefix("~/").or_else(|| text.strip_prefix("%d/")) {
        Some(rest) => home.join(rest),
        None => Path::new(text).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            home: Some(PathBuf::from("/home/op")),
            agent_socket: Some(PathBuf::from("/run/agent")),
            ..Settings::default()
        }
    }

    #[test]
    fn the_output_of_ssh_is_read() {
        let text = "host cn1\nuser adm\nhostname 192.0.2.7\nport 2222\nidentityfile ~/.ssh/a\nidentityfile /k/b\n\
                    identitiesonly yes\nidentityagent none\nproxyjump u@j1:22,j2\nhostkeyalias cn1.x\n\
                    userknownhostsfile ~/.ssh/kh /x/kh2\nglobalknownhostsfile /etc/ssh/ssh_known_hosts\nunknown thing\n";
        let resolved = parse("cn1", text, &settings()).unwrap();
        let expected = Resolved {
            host: "192.0.2.7".to_owned(),
            port: Some(2222),
            user: Some("adm".to_owned()),
            identity_files: vec!["/home/op/.ssh/a".into(), "/k/b".into()],
            identities_only: true,
            agent: None,
            jumps: vec!["u@j1:22".to_owned(), "j2".to_owned()],
            host_key_alias: Some("cn1.x".to_owned()),
            known_hosts: vec![
                "/home/op/.ssh/kh".into(),
                "/x/kh2".into(),
                "/etc/ssh/ssh_known_hosts".into(),
            ],
        };
        assert_eq!(resolved, expected);
    }

    #[test]
    fn none_is_nothing_and_the_agent_defaults_to_the_environment() {
        let resolved = parse(
            "a",
            "proxyjump none\nidentityfile none\nuserknownhostsfile none\n",
            &settings(),
        );
        let resolved = resolved.unwrap();
        assert!(resolved.jumps.is_empty());
        assert!(resolved.identity_files.is_empty());
        assert!(resolved.known_hosts.is_empty());
        assert_eq!(resolved.agent, Some(PathBuf::from("/run/agent")));
    }

    #[test]
    fn what_is_not_supported_is_said() {
        for (text, word) in [
            ("proxycommand nc %h %p\n", "ProxyCommand"),
            ("revokedhostkeys /etc/ssh/revoked\n", "RevokedHostKeys"),
        ] {
            let why = parse("a", text, &settings()).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[tokio::test]
    async fn without_ssh_the_defaults_hold() {
        let settings = Settings {
            ssh_program: PathBuf::from("/nonexistent/ssh"),
            ..settings()
        };
        let resolved = resolve("cn1", Some("root"), Some(7), &settings)
            .await
            .unwrap();
        assert_eq!((resolved.host.as_str(), resolved.port), ("cn1", Some(7)));
        assert_eq!(
            resolved.known_hosts[0],
            Path::new("/home/op/.ssh/known_hosts")
        );
        let named = Settings {
            ssh_config: Some(PathBuf::from("/x")),
            ..settings
        };
        let error = resolve("cn1", None, None, &named).await.unwrap_err();
        assert!(error.to_string().contains("not installed"), "{error}");
    }
}
