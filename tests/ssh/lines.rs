//! Commands over a line: their input and output, many at once, much at once, and a line that breaks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tallybook::host::{Bounds, Command, Error, Session, Settings, Status, Stream, Word, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{Fake, Wire, wire};
use super::world::{BOUNDS, World, local};

struct Lab {
    world: World,
    port: u16,
    opened: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Lab {
    async fn new(shape: impl FnOnce(&mut Fake)) -> Self {
        let world = World::new();
        let mut fake = Fake::new(&world.key);
        shape(&mut fake);
        let key = fake.key();
        let running = fake.run().await;
        world.trust(running.port, &key);
        // The wire of the tests below has another port and the same key.
        let (port, opened) = (running.port, running.opened);
        let file = world.path("known_hosts");
        let any =
            super::world::text(&file).replace(&format!("[127.0.0.1]:{port}"), "[127.0.0.1]:*");
        std::fs::write(file, any).unwrap();
        Self {
            world,
            port,
            opened,
        }
    }

    async fn session(&self, port: u16) -> Session {
        connect(&self.world.target("cn1", port), &self.world.settings)
            .await
            .unwrap()
    }
}

async fn plain() -> (Lab, Session) {
    let lab = Lab::new(|_| {}).await;
    let session = lab.session(lab.port).await;
    (lab, session)
}

async fn both() -> Vec<(Option<Lab>, Session)> {
    let (lab, ssh) = plain().await;
    let here = connect(&local(), &lab.world.settings).await.unwrap();
    vec![(Some(lab), ssh), (None, here)]
}

#[tokio::test]
async fn a_command_gets_its_input_and_its_words() {
    for (_lab, session) in both().await {
        let command = Command::new("cat; printf '%s|' \"$@\"; echo 'oh dear' >&2; exit 3")
            .word(Word::new("/a/b").unwrap())
            .word(Word::from(7));
        let output = session
            .run("talking", &command, b"in\0put", BOUNDS)
            .await
            .unwrap();
        assert_eq!(output.stdout, b"in\0put/a/b|7|");
        assert_eq!(output.stderr, b"oh dear\n");
        assert_eq!(output.status, Status::Code(3));
        let error = output.success("cn1", "talking").unwrap_err();
        assert_eq!(
            error.to_string(),
            "host cn1: talking failed (exit code 3): oh dear"
        );
    }
}

#[tokio::test]
async fn output_is_bounded_and_a_command_that_ignores_its_input_is_fine() {
    for (_lab, session) in both().await {
        let command = Command::new("head -c 3000000 /dev/zero; head -c 100000 /dev/zero >&2");
        let bounds = Bounds {
            stdout_bytes_max: 1000,
            ..BOUNDS
        };
        let output = session
            .run("pouring", &command, &vec![1; 2_000_000], bounds)
            .await
            .unwrap();
        assert_eq!((output.stdout.len(), output.stdout_cut), (1000, true));
        assert_eq!(output.stderr.len(), 64 * 1024);
        assert!(output.status.success());
    }
}

#[tokio::test]
async fn a_command_that_does_not_end_is_given_up() {
    for (_lab, session) in both().await {
        let bounds = Bounds {
            timeout: Duration::from_millis(300),
            ..BOUNDS
        };
        let begun = Instant::now();
        let error = session
            .run("sleeping", &Command::new("sleep 60"), b"", bounds)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::CommandTimeout { .. }), "{error:?}");
        assert!(!error.is_unreachable());
        assert!(begun.elapsed() < Duration::from_secs(5));
        // the session is still good
        let output = session
            .run("true", &Command::new("true"), b"", BOUNDS)
            .await
            .unwrap();
        assert!(output.status.success());
    }
}

#[tokio::test]
async fn a_local_command_ends_with_all_it_started_when_told_to() {
    let here = connect(&local(), &Settings::default()).await.unwrap();
    let command = Command::new("sleep 61 & echo $!; wait");
    let Stream {
        mut stdout,
        process,
        ..
    } = here.open(&command).await.unwrap();
    let mut buffer = [0; 32];
    let length = stdout.read(&mut buffer).await.unwrap();
    let started: i32 = std::str::from_utf8(&buffer[..length])
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    process.terminate();
    let exit = process.wait().await.unwrap();
    assert_eq!(exit.status, Status::Signal("TERM".to_owned()));
    let started = rustix::process::Pid::from_raw(started).unwrap();
    for _ in 0..100 {
        // Without an init process to reap it, a killed orphan stays as a zombie.
        let path = format!("/proc/{}/stat", started.as_raw_nonzero());
        match std::fs::read_to_string(path) {
            Ok(stat) if !stat.contains(") Z ") => {}
            Ok(_) | Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("what the command started still runs");
}

#[tokio::test]
async fn an_open_command_is_a_conversation() {
    for (_lab, session) in both().await {
        let stream = session
            .open(&Command::new("while read -r l; do echo \"<$l>\"; done"))
            .await
            .unwrap();
        let Stream {
            mut stdin,
            mut stdout,
            process,
        } = stream;
        for word in ["one", "two"] {
            stdin
                .write_all(format!("{word}\n").as_bytes())
                .await
                .unwrap();
            let mut answer = vec![0; word.len() + 3];
            stdout.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, format!("<{word}>\n").as_bytes());
        }
        drop(stdin);
        assert_eq!(stdout.read(&mut [0]).await.unwrap(), 0);
        assert!(process.wait().await.unwrap().status.success());
    }
}

/// One way at a time: two russh ends that both send without reading block each other (sshd always reads).
#[tokio::test]
async fn much_passes_unharmed() {
    let (_lab, session) = plain().await;
    let sent: Vec<u8> = (0..48_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let output = session
        .run("hashing", &Command::new("b2sum"), &sent, BOUNDS)
        .await
        .unwrap();
    let here = connect(&local(), &Settings::default()).await.unwrap();
    let expected = here
        .run("hashing", &Command::new("b2sum"), &sent, BOUNDS)
        .await
        .unwrap();
    assert_eq!(output.stdout, expected.stdout);

    let bounds = Bounds {
        stdout_bytes_max: usize::MAX,
        ..BOUNDS
    };
    let count = Command::new("seq 1 6000000");
    let output = session.run("counting", &count, b"", bounds).await.unwrap();
    let expected = here.run("counting", &count, b"", bounds).await.unwrap();
    assert!(expected.stdout.len() > 40_000_000);
    assert_eq!(blake3::hash(&output.stdout), blake3::hash(&expected.stdout));
}

#[tokio::test]
async fn a_command_that_ends_while_it_is_fed_breaks_the_pipe() {
    for (_lab, session) in both().await {
        let stream = session.open(&Command::new("exit 0")).await.unwrap();
        let Stream {
            mut stdin,
            stdout,
            process,
        } = stream;
        let chunk = vec![0; 1024 * 1024];
        let feeding = async {
            for _ in 0..100 {
                if stdin.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            panic!("100 MiB went into a command that had ended");
        };
        tokio::time::timeout(Duration::from_secs(20), feeding)
            .await
            .unwrap();
        drop(stdout);
        assert!(process.wait().await.unwrap().status.success());
    }
}

#[tokio::test]
async fn many_at_once_wait_for_their_turn() {
    let lab = Lab::new(|fake| fake.sessions_max = 8).await;
    let session = lab.session(lab.port).await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..40_u64 {
        let session = session.clone();
        running.spawn(async move {
            let command = Command::new("sleep 0.05; echo \"$1\"").word(Word::from(number));
            let output = session
                .run("counting", &command, b"", BOUNDS)
                .await
                .unwrap();
            assert_eq!(output.stdout, format!("{number}\n").as_bytes());
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    assert_eq!(lab.opened.load(Ordering::SeqCst), 40);
}

#[tokio::test]
async fn too_many_at_once_is_said_after_a_while() {
    let mut lab = Lab::new(|_| {}).await;
    lab.world.settings.sessions_max = 2;
    lab.world.settings.channel_wait = Duration::from_millis(200);
    let session = lab.session(lab.port).await;
    let hold = Command::new("cat");
    let (one, _two) = (
        session.open(&hold).await.unwrap(),
        session.open(&hold).await.unwrap(),
    );
    let error = session.open(&hold).await.unwrap_err();
    assert!(
        matches!(error, Error::ChannelLimit { max: 2, .. }),
        "{error:?}"
    );
    // giving one up makes room
    drop(one);
    session.open(&hold).await.unwrap();
}

#[tokio::test]
async fn a_host_with_fewer_sessions_than_ours_is_named() {
    let lab = Lab::new(|fake| fake.sessions_max = 1).await;
    let session = lab.session(lab.port).await;
    let _held = session.open(&Command::new("cat")).await.unwrap();
    let error = session.open(&Command::new("cat")).await.unwrap_err();
    assert!(matches!(error, Error::ChannelRefused { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("MaxSessions"));
}

#[tokio::test]
async fn a_cut_line_ends_what_runs_on_it() {
    let lab = Lab::new(|_| {}).await;
    let (port, state) = wire(lab.port).await;
    let session = lab.session(port).await;
    let stream = session.open(&Command::new("echo here; cat")).await.unwrap();
    let Stream {
        stdin: _stdin,
        mut stdout,
        process,
    } = stream;
    stdout.read_exact(&mut [0; 5]).await.unwrap();
    state.send(Wire::Cut).unwrap();
    assert_eq!(stdout.read(&mut [0]).await.unwrap(), 0);
    let error = process.wait().await.unwrap_err();
    assert!(matches!(error, Error::LineLost { .. }), "{error:?}");
    assert!(error.is_unreachable());
    let error = session.open(&Command::new("true")).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(session.is_closed());
}

#[tokio::test]
async fn a_silent_line_is_noticed_in_time_idle_or_busy() {
    for busy in [false, true] {
        let mut lab = Lab::new(|_| {}).await;
        lab.world.settings.keepalive_interval = Duration::from_millis(300);
        let limit = lab.world.settings.line_dead_after();
        let (port, state) = wire(lab.port).await;
        let session = lab.session(port).await;
        let stream = session
            .open(&Command::new("echo here; cat > /dev/null"))
            .await
            .unwrap();
        let Stream {
            mut stdin,
            mut stdout,
            process,
        } = stream;
        stdout.read_exact(&mut [0; 5]).await.unwrap();
        state.send(Wire::Silent).unwrap();
        let begun = Instant::now();
        let feeding = tokio::spawn(async move {
            let chunk = vec![0; 1024 * 1024];
            while busy && stdin.write_all(&chunk).await.is_ok() {}
            stdin
        });
        let ending = tokio::time::timeout(limit * 4, process.wait()).await;
        let error = ending.expect("a dead line was not noticed").unwrap_err();
        assert!(matches!(error, Error::LineLost { .. }), "{error:?}");
        assert!(begun.elapsed() < limit * 3, "{busy} {:?}", begun.elapsed());
        feeding.await.unwrap();
    }
}

#[tokio::test]
async fn a_quiet_line_lives_on() {
    let mut lab = Lab::new(|_| {}).await;
    lab.world.settings.keepalive_interval = Duration::from_millis(100);
    let session = lab.session(lab.port).await;
    let output = session
        .run("sleeping", &Command::new("sleep 2; echo up"), b"", BOUNDS)
        .await
        .unwrap();
    assert_eq!(output.stdout, b"up\n");
}

#[tokio::test]
async fn a_closed_session_says_so() {
    let (_lab, session) = plain().await;
    let held = session.open(&Command::new("cat")).await.unwrap();
    session.close().await;
    let error = held.process.wait().await.unwrap_err();
    assert!(matches!(error, Error::LineLost { .. }), "{error:?}");
}
