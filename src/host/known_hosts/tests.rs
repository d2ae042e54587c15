//! Known hosts: lines, matches, changes, revocations and certificates.

use russh::keys::PrivateKey;
use russh::keys::ssh_key::certificate::Builder;

use super::*;

fn private(kind: Algorithm) -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), kind).unwrap()
}

fn key(private: &PrivateKey) -> Key {
    wire_key(private.public_key()).unwrap()
}

fn ed25519() -> Key {
    key(&private(Algorithm::Ed25519))
}

fn ecdsa() -> Key {
    key(&private(Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    }))
}

fn line(hosts: &str, key: &Key) -> String {
    format!("{hosts} {} {}\n", key.kind, key.base64())
}

fn known(text: &str) -> KnownHosts {
    let mut known = KnownHosts::default();
    known.add(Path::new("kh"), text.as_bytes());
    known
}

fn offered(lookup: &str, key: &Key) -> Offered {
    Offered {
        lookup: lookup.to_owned(),
        key: key.clone(),
    }
}

fn place(line: usize) -> Place {
    Place {
        file: "kh".into(),
        line,
    }
}

#[test]
fn a_recorded_key_is_trusted_at_its_line() {
    let mine = ed25519();
    let known = known(&format!(
        "# c\n\n{}{}",
        line("other", &ed25519()),
        line("cn1", &mine)
    ));
    assert_eq!(
        known.judge(&offered("cn1", &mine)),
        Verdict::Trusted(place(4))
    );
}

#[test]
fn several_keys_of_a_host_are_all_good() {
    let (a, b) = (ed25519(), ecdsa());
    let known = known(&(line("cn1", &a) + &line("cn1,cn2", &b)));
    assert_eq!(known.judge(&offered("cn1", &a)), Verdict::Trusted(place(1)));
    assert_eq!(known.judge(&offered("cn1", &b)), Verdict::Trusted(place(2)));
}

#[test]
fn nothing_on_record_is_unknown() {
    let known = known(&line("cn1", &ed25519()));
    for lookup in ["cn2", "[cn1]:2222"] {
        let verdict = known.judge(&offered(lookup, &ed25519()));
        assert_eq!(verdict, Verdict::Unknown { authority: None }, "{lookup}");
    }
}

#[test]
fn a_key_of_another_type_is_changed_not_unknown() {
    let old = ed25519();
    let known = known(&line("cn1", &old));
    for new in [ed25519(), ecdsa()] {
        let recorded = Recorded {
            place: place(1),
            key: old.clone(),
        };
        assert_eq!(
            known.judge(&offered("cn1", &new)),
            Verdict::Changed(vec![recorded])
        );
    }
}

#[test]
fn a_recorded_type_that_we_cannot_use_still_makes_the_host_known() {
    let blob = [&[0, 0, 0, 7][..], b"ssh-dss", &[0, 0, 0, 1, 1]].concat();
    let dsa = Key {
        kind: "ssh-dss".to_owned(),
        blob,
    };
    let known = known(&line("cn1", &dsa));
    assert!(matches!(
        known.judge(&offered("cn1", &ed25519())),
        Verdict::Changed(_)
    ));
}

#[test]
fn a_revoked_key_is_refused_wherever_the_line_stands() {
    let mine = ed25519();
    let good = line("cn1", &mine);
    let revoked = format!("@revoked {}", line("*", &mine));
    for (text, at) in [
        (format!("{good}{revoked}"), 2),
        (format!("{revoked}{good}"), 1),
    ] {
        assert_eq!(
            known(&text).judge(&offered("cn1", &mine)),
            Verdict::Revoked(place(at))
        );
    }
    let other = format!("@revoked {}{good}", line("*", &ed25519()));
    assert_eq!(
        known(&other).judge(&offered("cn1", &mine)),
        Verdict::Trusted(place(2))
    );
}

#[test]
fn a_bad_line_refuses_whom_it_may_concern_and_nobody_else() {
    let mine = ed25519();
    let text = format!(
        "cn1 ssh-ed25519 AAA\n{}{}",
        line("cn1", &mine),
        line("cn2", &mine)
    );
    let known = known(&text);
    assert!(
        matches!(known.judge(&offered("cn1", &mine)), Verdict::Malformed(at, _) if at == place(1))
    );
    assert_eq!(
        known.judge(&offered("cn2", &mine)),
        Verdict::Trusted(place(3))
    );
}

#[test]
fn a_bad_line_of_unclear_scope_refuses_everyone() {
    let mine = ed25519();
    let known = known(&format!("@rewoked * x y\n{}", line("cn1", &mine)));
    assert!(matches!(
        known.judge(&offered("cn1", &mine)),
        Verdict::Malformed(..)
    ));
}

#[test]
fn only_recorded_kinds_are_offered() {
    let text = line("cn1", &ecdsa()) + &line("cn2", &ed25519()) + &line("cn1", &ed25519());
    let algorithms = known(&text).algorithms("cn1");
    let ecdsa = Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    };
    assert_eq!(algorithms.plain, [ecdsa, Algorithm::Ed25519]);
    assert!(algorithms.restricted && algorithms.certificates.is_empty());
    let unknown = known(&text).algorithms("cn9");
    assert_eq!(unknown.plain, every_algorithm());
    assert!(!unknown.restricted);
    let rsa_sha1 = Algorithm::Rsa { hash: None };
    assert!(!unknown.plain.contains(&rsa_sha1));
}

#[test]
fn names_are_looked_up_as_ssh_does() {
    assert_eq!(lookup_name("CN1", 22, None), "cn1");
    assert_eq!(lookup_name("cn1", 2222, None), "[cn1]:2222");
    assert_eq!(lookup_name("cn1", 2222, Some("Alias")), "alias");
}

struct Authority {
    ca: PrivateKey,
    host: PrivateKey,
}

impl Authority {
    fn new() -> Self {
        let (ca, host) = (private(Algorithm::Ed25519), private(Algorithm::Ed25519));
        Self { ca, host }
    }

    fn sign(&self, kind: CertType, principal: &str, critical: bool) -> Certificate {
        let public = self.host.public_key().clone();
        let rng = &mut russh::keys::key::safe_rng();
        let mut builder = Builder::new_with_random_nonce(rng, public, 1000, 2000).unwrap();
        builder.cert_type(kind).unwrap();
        builder.valid_principal(principal).unwrap();
        if critical {
            builder.critical_option("force-moon", "full").unwrap();
        }
        builder.sign(&self.ca).unwrap()
    }

    fn known(&self, hosts: &str) -> KnownHosts {
        known(&format!("@cert-authority {}", line(hosts, &key(&self.ca))))
    }
}

#[test]
fn a_host_certificate_of_a_recorded_authority_is_trusted() {
    let authority = Authority::new();
    let known = authority.known("*.x");
    let good = authority.sign(CertType::Host, "cn1.x", false);
    let judge = |certificate: &Certificate, now| {
        known.judge_certificate("cn1.x", "cn1.x", certificate, now)
    };
    assert_eq!(judge(&good, 1500), Verdict::Trusted(place(1)));
    let refused = |verdict: Verdict, word: &str| {
        let Verdict::CertificateRefused(why) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(why.contains(word), "{why}");
    };
    refused(judge(&good, 999), "period");
    refused(judge(&good, 2000), "period");
    refused(
        judge(&authority.sign(CertType::User, "cn1.x", false), 1500),
        "user certificate",
    );
    refused(
        judge(&authority.sign(CertType::Host, "cn2.x", false), 1500),
        "cn2.x",
    );
    refused(
        judge(&authority.sign(CertType::Host, "*.x", false), 1500),
        "not for",
    );
    refused(
        judge(&authority.sign(CertType::Host, "cn1.x", true), 1500),
        "force-moon",
    );
    refused(
        judge(&Authority::new().sign(CertType::Host, "cn1.x", false), 1500),
        "no @cert-authority",
    );
    refused(
        known.judge_certificate("cn1.y", "cn1.y", &good, 1500),
        "no @cert-authority",
    );
}

#[test]
fn a_revoked_authority_or_subject_ends_a_certificate() {
    let authority = Authority::new();
    let certificate = authority.sign(CertType::Host, "cn1.x", false);
    for revoked in [&authority.ca, &authority.host] {
        let mut known = authority.known("*.x");
        let text = format!("@revoked {}", line("*", &key(revoked)));
        known.add(Path::new("r"), text.as_bytes());
        let verdict = known.judge_certificate("cn1.x", "cn1.x", &certificate, 1500);
        assert!(matches!(verdict, Verdict::Revoked(_)), "{verdict:?}");
    }
}

#[test]
fn an_authority_does_not_vouch_for_a_plain_key() {
    let authority = Authority::new();
    let known = authority.known("*.x");
    let at = Some(place(1));
    assert_eq!(
        known.judge(&offered("cn1.x", &key(&authority.ca))),
        Verdict::Unknown { authority: at }
    );
    assert!(!known.algorithms("cn1.x").certificates.is_empty());
    assert!(known.algorithms("cn1.y").certificates.is_empty());
}

#[test]
fn an_accepted_key_is_trusted_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("new/known_hosts");
    let (one, two) = (offered("cn1", &ed25519()), offered("[cn1]:2222", &ecdsa()));
    accept(&file, &one).unwrap();
    accept(&file, &one).unwrap();
    // a file that someone left without a line feed at its end
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.trim_end()).unwrap();
    accept(&file, &two).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, format!("{}\n{}\n", one.line(), two.line()));
    let known = KnownHosts::load(&[file]).unwrap();
    assert!(matches!(known.judge(&one), Verdict::Trusted(_)));
    assert!(matches!(known.judge(&two), Verdict::Trusted(_)));
}

#[test]
fn accepting_never_overrules_what_is_on_record() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    let mine = ed25519();
    for text in [
        line("cn1", &ed25519()),
        format!("@revoked {}", line("cn1", &mine)),
        "cn1 broken\n".to_owned(),
    ] {
        std::fs::write(&file, &text).unwrap();
        let error = accept(&file, &offered("cn1", &mine)).unwrap_err();
        assert!(matches!(error, Error::Contradicts { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn a_missing_file_is_empty_and_an_unreadable_one_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    assert!(KnownHosts::load(&[missing]).is_ok());
    let error = KnownHosts::load(&[directory.path().to_owned()]).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error:?}");
}

proptest::proptest! {
    /// Whatever is in the file, a key that no line holds is never trusted.
    #[test]
    fn noise_never_makes_a_key_trusted(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let mut known = KnownHosts::default();
        known.add(Path::new("kh"), &noise);
        let verdict = known.judge(&offered("cn1", &ed25519()));
        proptest::prop_assert!(!matches!(verdict, Verdict::Trusted(_)));
    }
}
