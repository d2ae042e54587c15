//! Proving who we are: the keys of ssh-agent first, then key files.
//!
//! Must never prompt, and never send a password. Every key that did not do is remembered with the reason, so that
//! a refusal can be understood from its message alone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::UnixStream;

use super::error::{Error, Tried};
use super::verify::Verifier;

/// As whom, and with what.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) files: Vec<PathBuf>,
    pub(super) files_only: bool,
    pub(super) agent: Option<PathBuf>,
}

/// A key of RSA kind must be used with a hash the host takes.
enum Hash {
    Use(Option<HashAlg>),
    OnlySha1,
}

struct Attempt<'a> {
    handle: &'a mut Handle<Verifier>,
    user: &'a str,
    tried: Vec<Tried>,
}

impl Attempt<'_> {
    fn note(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let (what, why) = (what.into(), why.into());
        self.tried.push(Tried { what, why });
    }

    /// Notes the outcome; true when we are in.
    fn outcome(&mut self, what: String, result: AuthResult) -> bool {
        match result {
            AuthResult::Success => {
                tracing::debug!(user = self.user, key = what, "let in");
                true
            }
            AuthResult::Failure {
                partial_success: true,
                remaining_methods,
            } => {
                self.note(
                    what,
                    format!("accepted, but the host also wants {remaining_methods:?}"),
                );
                false
            }
            AuthResult::Failure { .. } if self.handle.is_closed() => {
                self.note(what, "the host ended the connection");
                false
            }
            AuthResult::Failure { .. } => {
                self.note(what, "not accepted");
                false
            }
        }
    }

    async fn hash_for(&mut self, key: &PublicKey) -> Hash {
        if !key.algorithm().is_rsa() {
            return Hash::Use(None);
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(Some(hash))) => Hash::Use(Some(hash)),
            Ok(Some(None)) => Hash::OnlySha1,
            // The host did not say: every sshd since 2018 takes this one.
            Ok(None) | Err(_) => Hash::Use(Some(HashAlg::Sha512)),
        }
    }

    async fn agent_key(
        &mut self,
        agent: &mut AgentClient<UnixStream>,
        identity: AgentIdentity,
    ) -> bool {
        let key = identity.public_key().into_owned();
        let what = format!(
            "agent key {} {} {}",
            key.algorithm().as_str(),
            key.fingerprint(HashAlg::Sha256),
            identity.comment()
        );
        let Hash::Use(hash) = self.hash_for(&key).await else {
            self.note(what, "the host takes RSA keys with SHA-1 only");
            return false;
        };
        let result = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                self.handle
                    .authenticate_publickey_with(self.user, key, hash, agent)
                    .await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                self.handle
                    .authenticate_certificate_with(self.user, certificate, hash, agent)
                    .await
            }
        };
        match result {
            Ok(result) => self.outcome(what, result),
            Err(error) => {
                self.note(what, format!("the agent did not sign: {error}"));
                false
            }
        }
    }

    async fn agent(&mut self, socket: &Path, files: &[PathBuf], files_only: bool) -> bool {
        let what = format!("agent {}", socket.display());
        let mut agent = match AgentClient::connect_uds(socket).await {
            Ok(agent) => agent,
            Err(error) => {
                self.note(what, format!("can't be reached: {error}"));
                return false;
            }
        };
        if let Some(binding) = self.handle.agent_session_binding()
            && let Err(error) = agent.bind_session(binding, false).await
        {
            tracing::debug!(%error, "the agent does not bind sessions");
        }
        let identities = match agent.request_identities().await {
            Ok(identities) => identities,
            Err(error) => {
                self.note(what, format!("does not list its keys: {error}"));
                return false;
            }
        };
        if identities.is_empty() {
            self.note(what, "holds no keys");
        }
        let wanted: Vec<PublicKey> = files.iter().filter_map(|file| public_half(file)).collect();
        let is_wanted = |identity: &AgentIdentity| {
            let key = identity.public_key();
            wanted.iter().any(|want| want.key_data() == key.key_data())
        };
        let (first, rest): (Vec<_>, Vec<_>) = identities.into_iter().partition(is_wanted);
        let rest = if files_only { Vec::new() } else { rest };
        for identity in first.into_iter().chain(rest) {
            if self.agent_key(&mut agent, identity).await {
                return true;
            }
            if self.handle.is_closed() {
                break;
            }
        }
        false
    }

    async fn file(&mut self, file: &Path) -> bool {
        let what = format!("key file {}", file.display());
        let key = match load(file) {
            Ok(Some(key)) => Arc::new(key),
            Ok(None) => {
                self.note(what, "does not exist");
                return false;
            }
            Err(why) => {
                self.note(what, why);
                return false;
            }
        };
        if let Some(certificate) = beside(file, "-cert.pub") {
            match russh::keys::load_openssh_certificate(&certificate) {
                Ok(loaded) => {
                    let what = format!("certificate {}", certificate.display());
                    let result = self
                        .handle
                        .authenticate_openssh_cert(self.user, key.clone(), loaded)
                        .await;
                    if self.done(what, result) {
                        return true;
                    }
                }
                Err(error) => self.note(certificate.display().to_string(), error.to_string()),
            }
        }
        let Hash::Use(hash) = self.hash_for(key.public_key()).await else {
            self.note(what, "the host takes RSA keys with SHA-1 only");
            return false;
        };
        let key = PrivateKeyWithHashAlg::new(key, hash);
        let result = self.handle.authenticate_publickey(self.user, key).await;
        self.done(what, result)
    }

    fn done(&mut self, what: String, result: Result<AuthResult, russh::Error>) -> bool {
        match result {
            Ok(result) => self.outcome(what, result),
            Err(error) => {
                self.note(what, error.to_string());
                false
            }
        }
    }
}

/// Authenticates; on refusal the error lists every key that was tried.
pub(super) async fn authenticate(
    handle: &mut Handle<Verifier>,
    host: &str,
    identity: &Identity,
) -> Result<(), Error> {
    let mut attempt = Attempt {
        handle,
        user: &identity.user,
        tried: Vec::new(),
    };
    match &identity.agent {
        Some(socket) => {
            if attempt
                .agent(socket, &identity.files, identity.files_only)
                .await
            {
                return Ok(());
            }
        }
        None => attempt.note(
            "agent",
            "SSH_AUTH_SOCK is not set, or the configuration says none",
        ),
    }
    for file in &identity.files {
        if attempt.handle.is_closed() {
            break;
        }
        if attempt.file(file).await {
            return Ok(());
        }
    }
    let disconnected = attempt.handle.is_closed();
    Err(Error::AuthRefused {
        host: host.to_owned(),
        user: identity.user.clone(),
        tried: attempt.tried,
        disconnected,
    })
}

/// `FILE` with something added to its name, when that exists.
fn beside(file: &Path, suffix: &str) -> Option<PathBuf> {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    let path = PathBuf::from(name);
    path.exists().then_some(path)
}

/// The public key of a private key file: from `FILE.pub`, or from the file itself (OpenSSH's own format holds it
/// in the clear even under a passphrase).
fn public_half(file: &Path) -> Option<PublicKey> {
    if let Some(public) = beside(file, ".pub") {
        return russh::keys::load_public_key(public).ok();
    }
    let key = PrivateKey::from_openssh(fs::read(file).ok()?).ok()?;
    Some(key.public_key().clone())
}

fn load(file: &Path) -> Result<Option<PrivateKey>, String> {
    let mode = match fs::metadata(file) {
        Ok(metadata) => metadata.mode(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("can't be read: {error}")),
    };
    if mode & 0o077 != 0 {
        return Err(format!(
            "others may read it (mode {:04o}), so it is not used: chmod 600 {}",
            mode & 0o7777,
            file.display()
        ));
    }
    match russh::keys::load_secret_key(file, None) {
        Ok(key) if key.is_encrypted() => Err(locked(file)),
        Ok(key) => Ok(Some(key)),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(locked(file)),
        Err(error) => Err(format!("can't be used: {error}")),
    }
}

fn locked(file: &Path) -> String {
    format!(
        "is protected by a passphrase: load it into the agent with `ssh-add {}`",
        file.display()
    )
}
