//! Who is refused, and what the operator is told.

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use tallybook::host::{Command, Error, Jump, connect, known_hosts};
use tokio::net::TcpListener;

use super::fake::Fake;
use super::world::{BOUNDS, World, new_key, offered, text};

#[tokio::test]
async fn an_unknown_key_is_shown_with_the_line_that_accepts_it() {
    let world = World::new();
    let fake = Fake::new(&world.key);
    let key = fake.key();
    let running = fake.run().await;
    let target = world.target("cn1", running.port);
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(error.is_identity() && !error.is_unreachable());
    let message = error.to_string();
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    assert!(message.contains(&fingerprint), "{message}");
    assert!(message.contains("known_hosts"), "{message}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("tallybook host trust cn1"), "{hint}");
    assert!(hint.contains(&offered(running.port, &key).line()), "{hint}");

    let Error::KeyUnknown { offered, file, .. } = error else {
        panic!("{error:?}");
    };
    known_hosts::accept(&file, &offered).unwrap();
    connect(&target, &world.settings).await.unwrap();
}

#[tokio::test]
async fn a_changed_key_names_both_and_the_line() {
    let world = World::new();
    let fake = Fake::new(&world.key);
    let (old, new) = (new_key(Algorithm::Ed25519), fake.key());
    let running = fake.run().await;
    world.trust(1, &old);
    world.trust(running.port, &old);
    let error = connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::KeyChanged { .. }), "{error:?}");
    let message = error.to_string();
    for key in [&old, &new] {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        assert!(message.contains(&fingerprint), "{message}");
    }
    assert!(message.contains("known_hosts:2"), "{message}");
}

#[tokio::test]
async fn a_key_of_another_type_is_changed() {
    let world = World::new();
    let mut fake = Fake::new(&world.key);
    fake.keys = vec![new_key(Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    })];
    let new = fake.key();
    let running = fake.run().await;
    world.trust(running.port, &new_key(Algorithm::Ed25519));
    let error = connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap_err();
    let Error::KeyChanged { offered, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        offered.key,
        known_hosts::wire_key(new.public_key()).unwrap()
    );
}

#[tokio::test]
async fn the_recorded_kind_is_asked_for_when_the_host_has_several() {
    let world = World::new();
    let mut fake = Fake::new(&world.key);
    let second = new_key(Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    });
    fake.keys.push(second.clone());
    let running = fake.run().await;
    world.trust(running.port, &second);
    connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let world = World::new();
    let fake = Fake::new(&world.key);
    let key = fake.key();
    let running = fake.run().await;
    world.trust(running.port, &key);
    let file = world.path("known_hosts");
    let line = offered(running.port, &key).line();
    std::fs::write(&file, format!("{}@revoked {line}\n", text(&file))).unwrap();
    let error = connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::KeyRevoked { .. }), "{error:?}");
}

#[tokio::test]
async fn a_host_certificate_of_a_recorded_authority_is_enough() {
    let world = World::new();
    let mut fake = Fake::new(&world.key);
    let authority = new_key(Algorithm::Ed25519);
    let public = fake.key().public_key().clone();
    let rng = &mut russh::keys::key::safe_rng();
    let mut builder = Builder::new_with_random_nonce(rng, public, 0, u64::MAX).unwrap();
    builder.cert_type(CertType::Host).unwrap();
    builder.valid_principal("127.0.0.1").unwrap();
    fake.certificates = vec![builder.sign(&authority).unwrap()];
    let running = fake.run().await;
    let line = offered(running.port, &authority).line();
    std::fs::write(
        world.path("known_hosts"),
        format!("@cert-authority {line}\n"),
    )
    .unwrap();
    connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap();

    let other = offered(running.port, &new_key(Algorithm::Ed25519)).line();
    std::fs::write(
        world.path("known_hosts"),
        format!("@cert-authority {other}\n"),
    )
    .unwrap();
    let error = connect(&world.target("cn1", running.port), &world.settings)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::CertificateRefused { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_refused_login_lists_what_was_tried() {
    let world = World::new();
    let fake = Fake::new(&new_key(Algorithm::Ed25519));
    let key = fake.key();
    let running = fake.run().await;
    world.trust(running.port, &key);
    let locked = world
        .key
        .encrypt(&mut russh::keys::key::safe_rng(), "secret")
        .unwrap();
    let locked = world.write_key("locked", &locked);
    let open = world.write_key("open", &world.key);
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut target = world.target("cn1", running.port);
    target
        .identity_files
        .extend([locked, open, world.path("missing")]);
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(matches!(error, Error::AuthRefused { .. }), "{error:?}");
    assert!(error.is_identity(), "the exit code for it is 7");
    assert!(!error.is_unreachable());
    let message = error.to_string();
    for part in [
        "user root",
        "SSH_AUTH_SOCK",
        "id: not accepted",
        "locked: is protected by a passphrase",
        "open: others may read it (mode 0644)",
        "missing: does not exist",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn a_host_that_ends_the_connection_after_too_many_keys_is_named_as_such() {
    let world = World::new();
    let fake = Fake::new(&new_key(Algorithm::Ed25519));
    let key = fake.key();
    let running = fake.run().await;
    world.trust(running.port, &key);
    let mut target = world.target("cn1", running.port);
    for number in 0..6 {
        let file = world.write_key(&format!("k{number}"), &new_key(Algorithm::Ed25519));
        target.identity_files.push(file);
    }
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::AuthRefused {
                disconnected: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("MaxAuthTries"));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let world = World::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let error = connect(&world.target("cn1", port), &world.settings)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::ConnectionRefused { .. }),
        "{error:?}"
    );
    assert!(error.is_unreachable());

    let mut target = world.target("cn1", 22);
    target.address = "no-such-host.invalid".to_owned();
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error:?}");
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn a_listener_that_says_nothing_times_out_and_one_that_hangs_up_is_unreachable() {
    let mut world = World::new();
    world.settings.connect_timeout = std::time::Duration::from_millis(300);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = connect(&world.target("cn1", port), &world.settings)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(error.is_unreachable());

    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = rude.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = rude.accept().await {
            drop(socket);
        }
    });
    let error = connect(&world.target("cn1", port), &world.settings)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn a_jump_host_is_verified_too_and_leads_on() {
    let world = World::new();
    let (near, far) = (Fake::new(&world.key), Fake::new(&world.key));
    let (near_key, far_key) = (near.key(), far.key());
    let (near, far) = (near.run().await, far.run().await);
    // The jump host takes its key from the configuration, as aliases do.
    let config = format!(
        "Host bastion\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {}\n",
        near.port,
        world.path("id").display()
    );
    std::fs::write(world.path("config"), config).unwrap();
    let mut target = world.target("cn1", far.port);
    target.jumps = jumps("bastion");

    let error = connect(&target, &world.settings).await.unwrap_err();
    let Error::Jump { jump, source, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(jump, "bastion");
    assert!(matches!(**source, Error::KeyUnknown { .. }), "{source:?}");
    assert!(error.is_identity());

    world.trust(near.port, &near_key);
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(matches!(error, Error::KeyUnknown { .. }), "{error:?}");

    world.trust(far.port, &far_key);
    let session = connect(&target, &world.settings).await.unwrap();
    let output = session
        .run("cat", &Command::new("cat"), b"through", BOUNDS)
        .await
        .unwrap();
    assert_eq!(output.stdout, b"through");

    target.jumps = jumps("bastion,bastion,bastion");
    connect(&target, &world.settings).await.unwrap();
    target.jumps = jumps(&["bastion"; 9].join(","));
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(matches!(error, Error::JumpsTooMany { .. }), "{error:?}");
}

#[tokio::test]
async fn a_jump_host_that_leads_nowhere_is_named() {
    let world = World::new();
    let mut near = Fake::new(&world.key);
    near.forwards = false;
    let key = near.key();
    let near = near.run().await;
    world.trust(near.port, &key);
    let config = format!("Host *\n IdentityFile {}\n", world.path("id").display());
    std::fs::write(world.path("config"), config).unwrap();
    let mut target = world.target("cn1", 9);
    target.jumps = jumps(&format!("root@127.0.0.1:{}", near.port));
    let error = connect(&target, &world.settings).await.unwrap_err();
    assert!(matches!(error, Error::JumpRefused { .. }), "{error:?}");
    assert!(error.to_string().contains("forbids forwarding"), "{error}");
}

/// Jump hosts as the SSH configuration writes them.
fn jumps(text: &str) -> Vec<Jump> {
    let jumps = text.split(',').map(Jump::parse);
    jumps.collect::<Option<_>>().unwrap()
}
