//! `tallybook host trust`: takes a host's key into the known hosts, once somebody has compared its fingerprint.

use tallybook_events::name::HostName;

use super::super::{Context, Error, Exit, act};
use crate::host::{self, connect, known_hosts};
use crate::render::Output;

/// Show the key of a host that is not known yet, and with --fingerprint take it into the known hosts
///
/// Compare the fingerprint with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on the host itself.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The host
    host: HostName,
    /// The fingerprint that was compared, as `SHA256:…`; without it nothing is written
    #[arg(long, value_name = "SHA256:…")]
    fingerprint: Option<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let settings = act::settings();
        let target = act::target(&loaded.inventory, &self.host, &settings)?;
        let unknown = match connect(&target, &settings).await {
            Ok(session) => {
                session.close().await;
                out.line(format!("the key of {} is known already", self.host))?;
                return Ok(Exit::Ok);
            }
            Err(host::Error::KeyUnknown { offered, file, .. }) => (offered, file),
            // It got past the key: whatever else stands in the way is not about trust.
            Err(error) if !error.is_identity() && !error.is_unreachable() => {
                out.line(format!("the key of {} is known already", self.host))?;
                return Ok(Exit::Ok);
            }
            Err(error) => return Err(Error::Reach(error.into())),
        };
        let (offered, file) = unknown;
        let fingerprint = offered.key.fingerprint().to_string();
        match &self.fingerprint {
            Some(given) if *given == fingerprint => {
                known_hosts::accept(&file, &offered).map_err(|source| {
                    let host = self.host.to_string();
                    Error::Reach(host::Error::KnownHosts { host, source }.into())
                })?;
                out.line(format!(
                    "{}: {fingerprint} is in {} now",
                    self.host,
                    file.display()
                ))?;
                Ok(Exit::Ok)
            }
            Some(given) => {
                out.line(format!(
                    "{} shows {fingerprint}, not {given}: nothing was written",
                    self.host
                ))?;
                Ok(Exit::Identity)
            }
            None => {
                out.line(format!(
                    "{} shows a key that {} does not know:\n  {fingerprint}\ncompare it on the host, then:\n  tallybook host trust {} --fingerprint {fingerprint}",
                    self.host,
                    file.display(),
                    self.host
                ))?;
                Ok(Exit::Identity)
            }
        }
    }
}
