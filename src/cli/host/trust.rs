//! `tallybook host trust`: takes a host's key into the known hosts, once somebody has compared its fingerprint.

use std::path::PathBuf;

use serde::Serialize;
use tallybook_events::name::HostName;

use super::super::{Context, Error, Exit, act};
use crate::host::known_hosts::Offered;
use crate::host::{self, connect, known_hosts};
use crate::render::{Format, Output};

/// Show the key of a host that is not known yet, and with --fingerprint take it into the known hosts
///
/// Compare the fingerprint with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on the host itself.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook host trust cn1\n  tallybook host trust cn1 --fingerprint SHA256:jWk3cVnLEQ6lpqPqzvR7E7k1zYtF1zJb0l1bq4kZ9uA"
)]
pub(super) struct Args {
    /// The host
    host: HostName,
    /// The fingerprint that was compared, as `SHA256:…`; without it nothing is written
    #[arg(long, value_name = "SHA256:…")]
    fingerprint: Option<String>,
}

/// What became of it, as JSON and in words.
#[derive(Debug, Serialize)]
struct Trusted {
    host: HostName,
    /// Whose key it is: the host's, or that of a jump host on the way there.
    of: String,
    /// `known`, `unknown`, `accepted`, `another` or `local`.
    key: &'static str,
    fingerprint: Option<String>,
    /// The file of known hosts.
    file: Option<PathBuf>,
    exit: Exit,
    code: u8,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let settings = act::settings();
        let target = act::target(&loaded.inventory, &self.host, &settings)?;
        if target.local {
            let trusted = self.found(self.host.as_str(), "local", Exit::Ok);
            return told(
                out,
                &trusted,
                &format!("{} is this machine: it has no key", self.host),
            );
        }
        let mut given = self.fingerprint.as_deref();
        // The hosts on the way are taken one by one, the nearest first.
        loop {
            let stranger = match connect(&target, &settings).await {
                Ok(session) => {
                    session.close().await;
                    return self.known(out, None);
                }
                // The host proved itself before it refused us: nothing else comes behind its key.
                Err(error @ host::Error::AuthRefused { .. }) => {
                    return self.known(out, Some(&error));
                }
                Err(error) => Stranger::of(error).map_err(|error| Error::Reach((*error).into()))?,
            };
            let fingerprint = stranger.offered.key.fingerprint().to_string();
            let trusted = |key, exit| Trusted {
                fingerprint: Some(fingerprint.clone()),
                file: Some(stranger.file.clone()),
                ..self.found(&stranger.name, key, exit)
            };
            let (name, file) = (&stranger.name, stranger.file.display());
            match given.take() {
                Some(given) if given == fingerprint => {
                    known_hosts::accept(&stranger.file, &stranger.offered).map_err(|source| {
                        let host = name.clone();
                        Error::Reach(host::Error::KnownHosts { host, source }.into())
                    })?;
                    let text = format!("{name}: {fingerprint} is in {file} now");
                    let accepted = told(out, &trusted("accepted", Exit::Ok), &text)?;
                    if stranger.name == self.host.as_str() {
                        return Ok(accepted);
                    }
                }
                Some(given) => {
                    let text =
                        format!("{name} shows {fingerprint}, not {given}: nothing was written");
                    return told(out, &trusted("another", Exit::Identity), &text);
                }
                None => {
                    let text = format!(
                        "{name} shows a key that {file} does not know:\n  {fingerprint}\ncompare it on the host, then:\n  tallybook host trust {} --fingerprint {fingerprint}",
                        self.host
                    );
                    return told(out, &trusted("unknown", Exit::Identity), &text);
                }
            }
        }
    }

    fn found(&self, of: &str, key: &'static str, exit: Exit) -> Trusted {
        Trusted {
            host: self.host.clone(),
            of: of.to_owned(),
            key,
            fingerprint: None,
            file: None,
            exit,
            code: exit.code(),
        }
    }

    fn known(&self, out: &mut Output, besides: Option<&host::Error>) -> Result<Exit, Error> {
        let mut text = format!("the key of {} is known already", self.host);
        if let Some(error) = besides {
            text.push_str(&format!("; another thing stands in the way:\n{error}"));
        }
        let trusted = self.found(self.host.as_str(), "known", Exit::Ok);
        told(out, &trusted, &text)
    }
}

/// Somebody on the way whose key is not known.
struct Stranger {
    name: String,
    offered: Box<Offered>,
    file: PathBuf,
}

impl Stranger {
    /// Of an error, when it is that; else the error: nothing is known of the key then.
    fn of(error: host::Error) -> Result<Self, Box<host::Error>> {
        match error {
            host::Error::KeyUnknown {
                host,
                offered,
                file,
                ..
            } => Ok(Stranger {
                name: host,
                offered,
                file,
            }),
            host::Error::Jump { host, jump, source } => Stranger::of(*source)
                .map_err(|source| Box::new(host::Error::Jump { host, jump, source })),
            other => Err(Box::new(other)),
        }
    }
}

fn told(out: &mut Output, trusted: &Trusted, text: &str) -> Result<Exit, Error> {
    match out.format() {
        Format::Json => out.json_line(trusted)?,
        Format::Table => out.line(text)?,
    }
    Ok(trusted.exit)
}
