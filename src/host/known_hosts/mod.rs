//! Our own verifier of host keys: reads known_hosts files, judges what a host offers, and records a key that an
//! operator accepted.
//!
//! Must never accept on a guess. A key of another type on a host that has a key recorded is *changed*; a line
//! that can't be read and may concern the host refuses it; a file that exists but can't be read refuses everyone.
//! Certificates are accepted only from an `@cert-authority` recorded for the host, as host certificates, in
//! their period, for exactly this name (wildcards in principals are not honoured) and without critical options.

mod line;

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, EcdsaCurve, HashAlg, PublicKey};

pub use line::{Entry, Key, Marker, Problem};

/// A place in a known_hosts file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What went wrong with the files themselves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file exists and can't be read.
    #[error("can't read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The accepted key could not be written.
    #[error("can't add the key to {file}")]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host already has something in the file that contradicts the key.
    #[error("{file} already holds something else about {lookup}: {verdict}")]
    Contradicts {
        /// The file.
        file: PathBuf,
        /// The name as it stands in the file.
        lookup: String,
        /// What the file says.
        verdict: String,
    },
}

/// A plain key that a host offered, with the name it is looked up under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The name in the file: `host`, `[host]:port` or the alias from the SSH configuration.
    pub lookup: String,
    /// The key.
    pub key: Key,
}

impl Offered {
    /// The line that accepts this key, without the line feed.
    pub fn line(&self) -> String {
        format!("{} {} {}", self.lookup, self.key.kind, self.key.base64())
    }
}

/// A key that is on record for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Where.
    pub place: Place,
    /// The key.
    pub key: Key,
}

/// What the files say about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is on record.
    Trusted(Place),
    /// Nothing is on record for the host, except perhaps an authority for certificates.
    Unknown {
        /// The first authority on record for the host.
        authority: Option<Place>,
    },
    /// Other keys are on record.
    Changed(Vec<Recorded>),
    /// It is on record as revoked.
    Revoked(Place),
    /// A line that may concern the host can't be understood.
    Malformed(Place, String),
    /// A certificate was offered and can't be accepted.
    CertificateRefused(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(place) => write!(f, "trusted by {place}"),
            Self::Unknown { .. } => f.write_str("not on record"),
            Self::Changed(recorded) => {
                f.write_str("other keys are on record")?;
                for Recorded { place, key } in recorded {
                    write!(f, "; {place} {} {}", key.kind, key.fingerprint())?;
                }
                Ok(())
            }
            Self::Revoked(place) => write!(f, "revoked by {place}"),
            Self::Malformed(place, why) => write!(f, "{place} can't be understood: {why}"),
            Self::CertificateRefused(why) => f.write_str(why),
        }
    }
}

/// The name a host's key is looked up under.
pub fn lookup_name(host: &str, port: u16, alias: Option<&str>) -> String {
    match (alias, port) {
        (Some(alias), _) => alias.to_ascii_lowercase(),
        (None, 22) => host.to_ascii_lowercase(),
        (None, port) => format!("[{}]:{port}", host.to_ascii_lowercase()),
    }
}

/// The files of one connection, read once.
#[derive(Debug, Default)]
pub struct KnownHosts {
    entries: Vec<(Place, Entry)>,
    problems: Vec<(Place, Problem)>,
}

impl KnownHosts {
    /// Reads the files in order; one that doesn't exist is empty.
    ///
    /// # Errors
    /// When a file exists and can't be read.
    pub fn load(files: &[PathBuf]) -> Result<Self, Error> {
        let mut known = Self::default();
        for file in files {
            match std::fs::read(file) {
                Ok(bytes) => known.add(file, &bytes),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let file = file.clone();
                    return Err(Error::Read { file, source });
                }
            }
        }
        Ok(known)
    }

    /// Takes a file's content.
    pub fn add(&mut self, file: &Path, bytes: &[u8]) {
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let place = Place {
                file: file.to_owned(),
                line: index + 1,
            };
            // A name or key that isn't UTF-8 turns into a replacement character, and so into a problem or into
            // a comment: both are safe.
            match line::parse(&String::from_utf8_lossy(text)) {
                Ok(Some(entry)) => self.entries.push((place, entry)),
                Ok(None) => {}
                Err(problem) => {
                    tracing::warn!(%place, why = problem.why, "a known_hosts line can't be understood");
                    self.problems.push((place, problem));
                }
            }
        }
    }

    fn about(&self, lookup: &str, marker: Marker) -> impl Iterator<Item = &(Place, Entry)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.marker == marker && entry.is_about(lookup))
    }

    /// What stands against a key before anything may speak for it.
    fn objection(&self, lookup: &str, keys: &[&Key]) -> Option<Verdict> {
        let revoked = self
            .about(lookup, Marker::Revoked)
            .find(|(_, entry)| keys.contains(&&entry.key));
        if let Some((place, _)) = revoked {
            return Some(Verdict::Revoked(place.clone()));
        }
        self.problems
            .iter()
            .find(|(_, problem)| problem.may_be_about(lookup))
            .map(|(place, problem)| Verdict::Malformed(place.clone(), problem.why.clone()))
    }

    /// Judges a plain key.
    pub fn judge(&self, offered: &Offered) -> Verdict {
        let lookup = offered.lookup.as_str();
        if let Some(objection) = self.objection(lookup, &[&offered.key]) {
            return objection;
        }
        let mut others = Vec::new();
        for (place, entry) in self.about(lookup, Marker::Host) {
            if entry.key == offered.key {
                return Verdict::Trusted(place.clone());
            }
            others.push(Recorded {
                place: place.clone(),
                key: entry.key.clone(),
            });
        }
        if others.is_empty() {
            let authority = self.about(lookup, Marker::Authority).next();
            return Verdict::Unknown {
                authority: authority.map(|(place, _)| place.clone()),
            };
        }
        Verdict::Changed(others)
    }

    /// Judges a host certificate for the bare host name (or alias), at a time in seconds since 1970.
    pub fn judge_certificate(
        &self,
        lookup: &str,
        principal: &str,
        certificate: &Certificate,
        now: u64,
    ) -> Verdict {
        let refused = |why: String| Verdict::CertificateRefused(why);
        let (Ok(signer), Ok(subject)) = (
            wire_key(&PublicKey::new(certificate.signature_key().clone(), "")),
            wire_key(&PublicKey::new(certificate.public_key().clone(), "")),
        ) else {
            return refused("the certificate's keys can't be encoded".to_owned());
        };
        if let Some(objection) = self.objection(lookup, &[&signer, &subject]) {
            return objection;
        }
        let authority = self
            .about(lookup, Marker::Authority)
            .find(|(_, entry)| entry.key == signer);
        let Some((place, _)) = authority else {
            return refused(format!(
                "it is signed by {} {}, which no @cert-authority line for {lookup} names",
                signer.kind,
                signer.fingerprint()
            ));
        };
        if certificate.cert_type() != CertType::Host {
            return refused("it is a user certificate, not a host certificate".to_owned());
        }
        let fingerprint = certificate.signature_key().fingerprint(HashAlg::Sha256);
        if certificate.validate_at(now, [&fingerprint]).is_err() {
            return refused(format!(
                "its signature or its period does not hold (valid from {} until {}, now {now}, in seconds since 1970)",
                certificate.valid_after(),
                certificate.valid_before()
            ));
        }
        let principals = certificate.valid_principals();
        if !principals
            .iter()
            .any(|name| name.eq_ignore_ascii_case(principal))
        {
            return refused(format!("it is for {principals:?}, not for {principal:?}"));
        }
        if let Some((option, _)) = certificate.critical_options().iter().next() {
            return refused(format!("it carries the unknown critical option {option:?}"));
        }
        Verdict::Trusted(place.clone())
    }

    /// The host key algorithms to offer to a host: those of its recorded keys, or all when none is recorded;
    /// and those of certificates when an authority is recorded for it.
    pub fn algorithms(&self, lookup: &str) -> Algorithms {
        let mut plain = Vec::new();
        for (_, entry) in self.about(lookup, Marker::Host) {
            for algorithm in algorithms_of(&entry.key.kind) {
                if !plain.contains(&algorithm) {
                    plain.push(algorithm);
                }
            }
        }
        let restricted = !plain.is_empty();
        let authority = self.about(lookup, Marker::Authority).next().is_some();
        Algorithms {
            plain: if restricted { plain } else { every_algorithm() },
            certificates: if authority {
                every_algorithm()
            } else {
                Vec::new()
            },
            restricted,
        }
    }
}

/// What to offer a host in the key exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Algorithms {
    /// For plain keys.
    pub plain: Vec<Algorithm>,
    /// For certificates.
    pub certificates: Vec<Algorithm>,
    /// Whether `plain` was cut down to what is on record.
    pub restricted: bool,
}

/// Every host key algorithm we accept; RSA with SHA-1 is not among them.
pub fn every_algorithm() -> Vec<Algorithm> {
    [
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "ssh-rsa",
    ]
    .into_iter()
    .flat_map(algorithms_of)
    .collect()
}

fn algorithms_of(kind: &str) -> Vec<Algorithm> {
    let ecdsa = |curve| vec![Algorithm::Ecdsa { curve }];
    match kind {
        "ssh-ed25519" => vec![Algorithm::Ed25519],
        "ecdsa-sha2-nistp256" => ecdsa(EcdsaCurve::NistP256),
        "ecdsa-sha2-nistp384" => ecdsa(EcdsaCurve::NistP384),
        "ecdsa-sha2-nistp521" => ecdsa(EcdsaCurve::NistP521),
        "ssh-rsa" => [HashAlg::Sha512, HashAlg::Sha256]
            .map(|hash| Algorithm::Rsa { hash: Some(hash) })
            .to_vec(),
        _ => Vec::new(),
    }
}

/// A key of the SSH library in the form in which keys are compared here.
///
/// # Errors
/// When the library can't encode it.
pub fn wire_key(key: &PublicKey) -> Result<Key, russh::keys::ssh_key::Error> {
    let base64 = key.to_openssh()?;
    let mut fields = base64.split(' ');
    let (kind, base64) = (fields.next(), fields.next());
    Key::parse(kind.unwrap_or_default(), base64.unwrap_or_default())
        .map_err(|_| russh::keys::ssh_key::Error::FormatEncoding)
}

/// Adds a key to a known_hosts file, durably: one line in one write, then fsync of the file and its directory.
/// Nothing is written when the key is already trusted there.
///
/// # Errors
/// When the file says something else about the host, or can't be read or written.
pub fn accept(file: &Path, offered: &Offered) -> Result<(), Error> {
    let known = KnownHosts::load(&[file.to_owned()])?;
    match known.judge(offered) {
        Verdict::Trusted(_) => return Ok(()),
        Verdict::Unknown { .. } => {}
        verdict @ (Verdict::Changed(_)
        | Verdict::Revoked(_)
        | Verdict::Malformed(..)
        | Verdict::CertificateRefused(_)) => {
            return Err(Error::Contradicts {
                file: file.to_owned(),
                lookup: offered.lookup.clone(),
                verdict: verdict.to_string(),
            });
        }
    }
    append(file, &offered.line()).map_err(|source| Error::Write {
        file: file.to_owned(),
        source,
    })
}

fn append(file: &Path, line: &str) -> io::Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    if !directory.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let mut opened = std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)?;
    // Two controllers may accept at once: the lock keeps the look at the last byte and the write together.
    opened.lock()?;
    let mut text = String::with_capacity(line.len() + 2);
    if opened.seek(SeekFrom::End(0))? > 0 {
        opened.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        opened.read_exact(&mut last)?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    text.push('\n');
    opened.write_all(text.as_bytes())?;
    opened.sync_all()?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
