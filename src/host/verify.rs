//! The client side of one SSH connection: asks our verifier about the host's key, and remembers why the line
//! ended.
//!
//! Must never let a key through that [`KnownHosts`] did not call trusted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::client::{DisconnectReason, Handler};
use russh::keys::PublicKeyOrCertificate;

use super::error::Error;
use super::known_hosts::{KnownHosts, Offered, Verdict, wire_key};

/// Why a line ended, once it has.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending(Arc<Mutex<Option<String>>>);

impl Ending {
    fn set(&self, why: String) {
        let mut ending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ending.get_or_insert(why);
    }

    /// The reason, or that there was none.
    pub(super) fn why(&self) -> String {
        let ending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ending
            .clone()
            .unwrap_or_else(|| "the connection was closed".to_owned())
    }
}

/// What ends a connection from our side.
#[derive(Debug)]
pub(super) enum Ended {
    /// The protocol or the network.
    Ssh(russh::Error),
    /// Our own refusal of the host.
    Refused(Box<Error>),
}

impl From<russh::Error> for Ended {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

/// Checks the key of one host.
pub(super) struct Verifier {
    pub(super) host: String,
    pub(super) lookup: String,
    /// The name a certificate must be for.
    pub(super) principal: String,
    pub(super) known: Arc<KnownHosts>,
    /// Where an accepted key would be recorded.
    pub(super) file: PathBuf,
    pub(super) ending: Ending,
}

impl Verifier {
    fn judge(&self, shown: &PublicKeyOrCertificate) -> Result<(), Error> {
        let host = self.host.clone();
        let key = match wire_key(&shown.public_key()) {
            Ok(key) => key,
            Err(source) => {
                let why = format!("its key can't be encoded: {source}");
                return Err(Error::CertificateRefused { host, why });
            }
        };
        let offered = Box::new(Offered {
            lookup: self.lookup.clone(),
            key,
        });
        let verdict = match shown.certificate() {
            None => self.known.judge(&offered),
            Some(certificate) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |age| age.as_secs());
                self.known
                    .judge_certificate(&self.lookup, &self.principal, certificate, now)
            }
        };
        Err(match verdict {
            Verdict::Trusted(place) => {
                tracing::debug!(host, %place, "host key trusted");
                return Ok(());
            }
            Verdict::Unknown { authority } => Error::KeyUnknown {
                host,
                offered,
                file: self.file.clone(),
                authority,
            },
            Verdict::Changed(recorded) => Error::KeyChanged {
                host,
                offered,
                recorded,
            },
            Verdict::Revoked(place) => Error::KeyRevoked { host, place },
            Verdict::Malformed(place, why) => Error::KnownHostsMalformed { host, place, why },
            Verdict::CertificateRefused(why) => Error::CertificateRefused { host, why },
        })
    }
}

impl Handler for Verifier {
    type Error = Ended;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Ended> {
        match self.judge(shown) {
            Ok(()) => Ok(true),
            Err(error) => Err(Ended::Refused(Box::new(error))),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Ended>) -> Result<(), Ended> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.ending
                    .set(format!("the host ended it: {}", info.message));
                Ok(())
            }
            DisconnectReason::Error(ended) => {
                self.ending.set(match &ended {
                    Ended::Ssh(russh::Error::KeepaliveTimeout) => {
                        "the host no longer answers".to_owned()
                    }
                    Ended::Ssh(russh::Error::HUP | russh::Error::Disconnect) => {
                        "the connection was closed".to_owned()
                    }
                    Ended::Ssh(error) => error.to_string(),
                    Ended::Refused(error) => error.to_string(),
                });
                Err(ended)
            }
        }
    }
}
