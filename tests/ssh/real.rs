//! Against OpenSSH's own server on a port of the loopback, as root: what a fake can't show.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Local, Stdio};
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, PrivateKey};
use tallybook::host::error::Obstacle;
use tallybook::host::{
    Command, Error, HEAD_LEN, Session, Status, Stream, attach, connect, known_hosts, push_agent,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{BOUNDS, World, local, new_key, offered, text};

const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd, stopped on drop.
struct Sshd {
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Sshd {
    fn start(world: &World, host_keys: &[&PrivateKey], more: &str) -> Self {
        assert!(
            Path::new(SSHD).exists(),
            "{SSHD} is missing: install the package openssh-server"
        );
        assert!(
            root(),
            "these tests run sshd and place files for root: run them as root"
        );
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let authorized = world.path("authorized_keys");
        std::fs::write(&authorized, world.key.public_key().to_openssh().unwrap()).unwrap();
        let mut config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nAuthorizedKeysFile {}\n{more}\n",
            authorized.display()
        );
        for (number, key) in host_keys.iter().enumerate() {
            let file = world.write_key(&format!("host{number}"), key);
            config += &format!("HostKey {}\n", file.display());
        }
        let file = world.path("sshd_config");
        std::fs::write(&file, config).unwrap();
        let child = Local::new(SSHD)
            .arg("-De")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(world.path("sshd.log")).unwrap())
            .spawn()
            .unwrap();
        let sshd = Self { child, port };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return sshd;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("sshd did not start: {}", text(&world.path("sshd.log")));
    }
}

fn trusted(more: &str) -> (World, Sshd) {
    let world = World::new();
    let key = new_key(Algorithm::Ed25519);
    let sshd = Sshd::start(&world, &[&key], more);
    world.trust(sshd.port, &key);
    (world, sshd)
}

#[tokio::test]
async fn commands_run_and_end_as_they_should() {
    let (world, sshd) = trusted("");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let command = Command::new("cat; echo 'quoted \"text\"' >&2; kill -KILL $$");
    let output = session
        .run("talking", &command, b"in\0put", BOUNDS)
        .await
        .unwrap();
    assert_eq!(output.stdout, b"in\0put");
    assert_eq!(output.stderr, b"quoted \"text\"\n");
    assert_eq!(output.status, Status::Signal("KILL".to_owned()));
}

#[tokio::test]
async fn much_passes_both_ways_at_once() {
    let (world, sshd) = trusted("");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let sent: Vec<u8> = (0..64_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (session, sent) = (session.clone(), sent.clone());
        running.spawn(async move {
            let stream = session.open(&Command::new("cat")).await.unwrap();
            let Stream {
                mut stdin,
                mut stdout,
                process,
            } = stream;
            let hash = blake3::hash(&sent);
            let sending = tokio::spawn(async move {
                stdin.write_all(&sent).await.unwrap();
                stdin.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            stdout.read_to_end(&mut received).await.unwrap();
            sending.await.unwrap();
            assert!(process.wait().await.unwrap().status.success());
            assert_eq!(blake3::hash(&received), hash);
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn many_at_once_stay_within_max_sessions() {
    let (world, sshd) = trusted("MaxSessions 8");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let session = session.clone();
        running.spawn(async move {
            session
                .run("true", &Command::new("true"), b"", BOUNDS)
                .await
                .unwrap()
                .status
        });
    }
    while let Some(status) = running.join_next().await {
        assert!(status.unwrap().success());
    }
    // Commands that are given up see the end of their input, end, and make room.
    for _ in 0..20 {
        drop(session.open(&Command::new("cat")).await.unwrap());
    }
    let output = session
        .run("true", &Command::new("true"), b"", BOUNDS)
        .await
        .unwrap();
    assert!(output.status.success());
}

#[tokio::test]
async fn fewer_sessions_than_ours_are_named() {
    let (world, sshd) = trusted("MaxSessions 1");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let _held = session.open(&Command::new("cat")).await.unwrap();
    let error = session.open(&Command::new("cat")).await.unwrap_err();
    assert!(matches!(error, Error::ChannelRefused { .. }), "{error:?}");
}

#[tokio::test]
async fn an_alias_of_the_ssh_configuration_is_followed() {
    let (world, sshd) = trusted("");
    let config = format!(
        "Host store\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {}\n\
         Host far\n HostName 127.0.0.1\n Port {}\n User root\n ProxyJump store\n IdentityFile {}\n HostKeyAlias far.key\n",
        sshd.port,
        world.path("id").display(),
        sshd.port,
        world.path("id").display()
    );
    std::fs::write(world.path("config"), config).unwrap();
    let mut target = world.target("cn1", 1);
    (target.port, target.user, target.address) = (None, None, "store".to_owned());
    target.identity_files.clear();
    connect(&target, &world.settings).await.unwrap();

    target.address = "far".to_owned();
    let error = connect(&target, &world.settings).await.unwrap_err();
    let Error::KeyUnknown { offered, file, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(offered.lookup, "far.key");
    known_hosts::accept(&file, &offered).unwrap();
    let session = connect(&target, &world.settings).await.unwrap();
    let output = session
        .run("asking", &Command::new("echo $SSH_CONNECTION"), b"", BOUNDS)
        .await
        .unwrap();
    assert!(output.status.success());
}

#[tokio::test]
async fn keys_of_every_kind_are_accepted_from_files_and_from_the_agent() {
    let world = World::new();
    let kinds = [
        Algorithm::Rsa { hash: None },
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP384,
        },
    ];
    for kind in kinds {
        let host_key = new_key(kind.clone());
        let sshd = Sshd::start(&world, &[&host_key], "");
        world.trust(sshd.port, &host_key);
        let mine = new_key(kind);
        std::fs::write(
            world.path("authorized_keys"),
            mine.public_key().to_openssh().unwrap(),
        )
        .unwrap();
        let mut target = world.target("cn1", sshd.port);
        target.identity_files = vec![world.write_key("mine", &mine)];
        connect(&target, &world.settings).await.unwrap();

        let socket = world.path("agent");
        let mut agent = Local::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let added = Local::new("ssh-add")
            .arg("-q")
            .arg(world.path("mine"))
            .env("SSH_AUTH_SOCK", &socket)
            .status()
            .unwrap();
        assert!(added.success());
        let mut settings = world.settings.clone();
        settings.agent_socket = Some(socket.clone());
        target.identity_files = vec![world.path("nothing")];
        let result = connect(&target, &settings).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        let _ = std::fs::remove_file(&socket);
        result.unwrap();
    }
}

#[tokio::test]
async fn names_hashed_and_keys_printed_by_ssh_keygen_are_ours_too() {
    let (world, sshd) = trusted("");
    let file = world.path("known_hosts");
    let hashed = Local::new("ssh-keygen")
        .args(["-H", "-f"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(hashed.status.success());
    assert!(text(&file).starts_with("|1|"), "{}", text(&file));
    connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();

    let printed = Local::new("ssh-keygen")
        .arg("-lf")
        .arg(&file)
        .output()
        .unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let key = PrivateKey::read_openssh_file(world.path("host0")).unwrap();
    let ours = offered(sshd.port, &key).key.fingerprint();
    assert!(printed.contains(&ours), "{printed} {ours}");
}

/// A stand-in for the agent: it only has to be executable and answer `--version`.
fn stand_in(salt: &str) -> (Vec<u8>, blake3::Hash) {
    let mut bytes =
        b"#!/bin/sh\n[ \"$1\" = --version ] && exit 0\n[ \"$1\" = serve ] && exec cat\nexit 9\n#"
            .to_vec();
    bytes.extend_from_slice(salt.as_bytes());
    bytes.resize(1_500_000, b'x');
    let hash = blake3::hash(&bytes);
    (bytes, hash)
}

fn machine() -> String {
    rustix::system::uname()
        .machine()
        .to_str()
        .unwrap()
        .to_owned()
}

/// The agent's directories belong to the whole machine: one test at a time, with each its own content.
fn placed(hash: blake3::Hash) -> Vec<PathBuf> {
    tallybook::host::agent_push::DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(hash.to_hex().as_str()))
        .filter(|path| path.exists())
        .collect()
}

#[tokio::test]
async fn the_agent_is_sent_once_and_repaired_when_damaged() {
    let (world, sshd) = trusted("");
    let ssh = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let here = connect(&local(), &world.settings).await.unwrap();
    for (name, session) in [("ssh", ssh), ("local", here)] {
        let (bytes, hash) = stand_in(&format!("{name} {}", sshd.port));
        let path = push_agent(&session, &bytes, hash, &machine())
            .await
            .unwrap();
        assert!(path.pushed);
        assert_eq!(std::fs::read(path.to_string()).unwrap(), bytes);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(path.to_string()).unwrap().permissions(),
        );
        assert_eq!(mode & 0o7777, 0o700);
        assert!(
            !push_agent(&session, &bytes, hash, &machine())
                .await
                .unwrap()
                .pushed
        );

        assert_eq!(said(&session, &path.serve()).await, b"framed");
        // Who finds it there becomes it with one command, and who does not, nothing.
        assert_eq!(
            said(&session, &attach(hash, &bytes[..HEAD_LEN])).await,
            b"framed"
        );
        assert_eq!(said(&session, &attach(hash, b"another")).await, b"");
        let other = blake3::hash(b"another");
        assert_eq!(
            said(&session, &attach(other, &bytes[..HEAD_LEN])).await,
            b""
        );

        let mut damaged = bytes.clone();
        damaged[1_000_000] ^= 1;
        std::fs::write(path.to_string(), &damaged).unwrap();
        assert!(
            push_agent(&session, &bytes, hash, &machine())
                .await
                .unwrap()
                .pushed
        );
        assert_eq!(std::fs::read(path.to_string()).unwrap(), bytes);
        for file in placed(hash) {
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// What a command that is told `framed` prints before it ends well.
async fn said(session: &Session, command: &Command) -> Vec<u8> {
    let Stream {
        mut stdin,
        mut stdout,
        process,
    } = session.open(command).await.unwrap();
    // One that is not there reads nothing.
    let _gone = stdin.write_all(b"framed").await;
    drop(stdin);
    let mut answer = Vec::new();
    stdout.read_to_end(&mut answer).await.unwrap();
    assert!(process.wait().await.unwrap().status.success());
    answer
}

#[tokio::test]
async fn another_architecture_is_named_before_anything_is_sent() {
    let (world, sshd) = trusted("");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let (bytes, hash) = stand_in("arch");
    let error = push_agent(&session, &bytes, hash, "pdp11")
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("host cn1 is {}; this agent is pdp11", machine())
    );
    assert!(placed(hash).is_empty());
}

#[tokio::test]
async fn an_agent_that_does_not_run_is_not_placed() {
    let (world, sshd) = trusted("");
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let bytes = format!("#!/bin/sh\necho no such luck; exit 1 # {}\n", sshd.port).into_bytes();
    let hash = blake3::hash(&bytes);
    let error = push_agent(&session, &bytes, hash, &machine())
        .await
        .unwrap_err();
    let Error::AgentNowhere { tried, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        tried.iter().all(|refused| refused.detail == "no such luck"),
        "{tried:?}"
    );
    assert!(placed(hash).is_empty());
}

/// A session in a mount namespace of its own, where the agent's directories are what the test wants.
async fn with_mounts(
    options: [Option<&str>; 3],
) -> (Result<String, Error>, Vec<(String, Obstacle)>) {
    let world = World::new();
    let mut mounts = String::from("#!/bin/sh\nmount --make-rprivate /\n");
    for (directory, option) in tallybook::host::agent_push::DIRECTORIES.iter().zip(options) {
        if let Some(option) = option {
            mounts +=
                &format!("mkdir -p {directory}; mount -t tmpfs -o {option} tmpfs {directory}\n");
        }
    }
    mounts += "exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n";
    let script = world.path("mounts");
    std::fs::write(&script, mounts).unwrap();
    let key = new_key(Algorithm::Ed25519);
    let force = format!("ForceCommand unshare -m sh {}", script.display());
    let sshd = Sshd::start(&world, &[&key], &force);
    world.trust(sshd.port, &key);
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let (bytes, hash) = stand_in(&format!("{options:?} {}", sshd.port));
    let result = push_agent(&session, &bytes, hash, &machine()).await;
    for file in placed(hash) {
        std::fs::remove_file(file).unwrap();
    }
    let obstacles = match &result {
        Err(Error::AgentNowhere { tried, .. }) => tried
            .iter()
            .map(|refused| (refused.directory.clone(), refused.obstacle))
            .collect(),
        Err(_) | Ok(_) => Vec::new(),
    };
    (result.map(|path| path.to_string()), obstacles)
}

#[tokio::test]
async fn a_noexec_directory_is_passed_over() {
    let (path, _) = with_mounts([Some("noexec"), None, None]).await;
    let path = path.unwrap();
    assert!(path.starts_with("/run/tallybook/agent/"), "{path}");
}

#[tokio::test]
async fn a_directory_that_is_too_small_is_passed_over() {
    let (path, _) = with_mounts([Some("size=64k"), Some("ro"), None]).await;
    let path = path.unwrap();
    assert!(path.starts_with("/root/.cache/tallybook/"), "{path}");
}

#[tokio::test]
async fn when_no_directory_does_all_are_named() {
    let (result, obstacles) = with_mounts([Some("noexec"), Some("size=64k"), Some("ro")]).await;
    let kinds: Vec<_> = obstacles.iter().map(|(_, obstacle)| *obstacle).collect();
    assert_eq!(
        kinds,
        [Obstacle::NoExec, Obstacle::Full, Obstacle::ReadOnly],
        "{result:?}"
    );
    let message = result.unwrap_err().to_string();
    for part in [
        "/var/lib/tallybook/agent: mounted noexec",
        "/run/tallybook/agent: no space left",
        "/root/.cache/tallybook: read-only",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn without_sudo_there_is_no_way_to_root() {
    let (world, sshd) =
        trusted("ForceCommand env PATH=/nonexistent /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"");
    let mut target = world.target("cn1", sshd.port);
    target.become_root = true;
    let session = connect(&target, &world.settings).await.unwrap();
    let (bytes, hash) = stand_in("sudo");
    let error = push_agent(&session, &bytes, hash, &machine())
        .await
        .unwrap_err();
    let Error::NotRoot { detail, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(detail.contains("sudo"), "{detail}");
}

#[tokio::test]
async fn another_user_without_sudo_is_told_so() {
    let (world, sshd) = trusted(
        "ForceCommand setpriv --reuid=65534 --clear-groups /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"",
    );
    let session = connect(&world.target("cn1", sshd.port), &world.settings)
        .await
        .unwrap();
    let (bytes, hash) = stand_in("user");
    let error = push_agent(&session, &bytes, hash, &machine())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::NotRoot { detail, .. } if detail.contains("65534")),
        "{error:?}"
    );
}
