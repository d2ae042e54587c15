//! A session: a command in a container, with or without a terminal, relayed to the controller and recorded.
//!
//! What is recorded is what the terminal showed, bounded and scrubbed, and what changed in the root file system;
//! never what was typed. The command runs inside the container only (`lxc-attach`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tallybook_events::event::SessionRecorded;
use tallybook_events::ids::Blob;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use crate::capture::{Capture, SESSION_HALF};
use crate::changes;
use crate::deadline;
use crate::layout::Layout;
use crate::line::{Incoming, Line};
use crate::mask::{self, Mask};
use crate::program::{self, PATH, is_not_now, nonblocking, signal_group};
use crate::protocol::{Reply, Request, SessionRequest};
use crate::queue::{Got, Put, Queue};
use crate::serve::{Site, now_unix_us};
use crate::step::{Program, fail, io_failure};

/// What was typed and not yet read by the command, in bytes.
const INPUT_MAX: usize = 256 * 1024;
/// How often the command's end and the line's are looked for.
const TICK: Duration = Duration::from_millis(20);
/// How often a thread that relays looks for the end.
const SLICE: Duration = Duration::from_millis(100);
/// How long output is still read after the command's end, when something it left behind keeps writing.
const LINGER: Duration = Duration::from_secs(2);
/// From the hangup to the kill, when the line is lost.
const KILL_AFTER: Duration = Duration::from_secs(10);
/// How long the container's root may take to say which shell it has.
const SHELL_TIME: Duration = Duration::from_secs(10);
/// What is shown, and recorded, where the changes are not.
const UNSEEN: &[u8] =
    b"tallybook: the container's file system did not answer in time: what changed in it is not recorded\r\n";
/// End of transmission: what a terminal takes for the end of input.
const EOT: u8 = 4;

/// Runs a command in a container and says what came of it.
pub(crate) fn session(
    site: &Site<'_>,
    line: &Line,
    request: SessionRequest,
) -> Result<(), StepFailure> {
    let (layout, mask) = (site.layout, site.secrets.mask());
    let root = root(layout, &request.container)?;
    let argv = if request.argv.is_empty() {
        login_shell(&root)
    } else {
        request.argv
    };
    let attach = attach_argv(layout, &request.container, &request.term, &argv);
    let before = changes::look(&root);
    let started_unix_us = now_unix_us();
    let mut ended = relay(line, mask, &attach, request.terminal)
        .map_err(|error| io_failure("run", "lxc-attach".as_ref(), &error))?;
    let ended_unix_us = now_unix_us();
    let after = before.as_ref().and_then(|_| changes::look(&root));
    let looks = before.as_ref().zip(after.as_ref());
    let (changes, changes_dropped) = match looks {
        Some((before, after)) => changes::between(before, after),
        None => {
            // Shown and therefore recorded: a record without changes does not mean that nothing changed.
            line.show(UNSEEN.to_vec(), true);
            ended.shown.push(UNSEEN);
            (Vec::new(), 0)
        }
    };
    let argv = argv.iter().map(|argument| mask.apply_text(argument));
    line.say(&Reply::SessionEnded(SessionRecorded {
        argv: argv.collect(),
        terminal: request.terminal.is_some(),
        started_unix_us,
        ended_unix_us,
        exit: ended.exit,
        dropped_bytes: ended.shown.dropped(),
        output: Blob(mask.clean(&ended.shown.into_bytes())),
        changes,
        changes_dropped,
    }));
    Ok(())
}

/// The running container's root directory, as its own init sees it. Stays valid when the container stops.
fn root(layout: &Layout, container: &ContainerName) -> Result<OwnedFd, StepFailure> {
    let dir = layout.container(container);
    if !dir.is_dir() {
        let message = format!(
            "there is no container {container}: {} is missing",
            dir.display()
        );
        return Err(fail(FailureClass::Missing, message));
    }
    let lxc = layout.lxc.to_string_lossy();
    let ask = Program::new(["lxc-info", "-n", container.as_str(), "-P", &lxc, "-p", "-H"])
        .timeout(Duration::from_secs(30));
    let told = program::run(&ask)?.result?;
    let text = String::from_utf8_lossy(&told.stdout);
    let Some(pid) = text.trim().parse::<u32>().ok().filter(|pid| *pid > 0) else {
        return Err(StepFailure {
            hint: Some(format!(
                "start it first: `tallybook container start {container}`"
            )),
            ..fail(
                FailureClass::Host,
                format!("container {container} is not running"),
            )
        });
    };
    let path = format!("/proc/{pid}/root");
    let open = rustix::fs::open(
        path.as_str(),
        // To look at only: opening it would ask the file system, which may be one that the container serves itself.
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    open.map_err(|error| io_failure("open", path.as_ref(), &error.into()))
}

/// Links are followed within the container, whatever they say, and mounts for as long as they answer.
fn login_shell(root: &OwnedFd) -> Vec<String> {
    let bash = "/bin/bash";
    let root = root.try_clone();
    let is_there = move || {
        let how = OFlags::PATH | OFlags::CLOEXEC;
        root.is_ok_and(|root| {
            openat2(root, bash, how, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
        })
    };
    let shell = if deadline::answer(SHELL_TIME, is_there) == Some(true) {
        bash
    } else {
        "/bin/sh"
    };
    vec![shell.to_owned(), "-l".to_owned()]
}

fn attach_argv(
    layout: &Layout,
    container: &ContainerName,
    term: &str,
    argv: &[String],
) -> Vec<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let is_term = !term.is_empty() && term.len() <= 64 && term.chars().all(allowed);
    let term = if is_term { term } else { "dumb" };
    let lxc = layout.lxc.to_string_lossy();
    let mut attach: Vec<String> = [
        "lxc-attach",
        "-n",
        container.as_str(),
        "-P",
        &lxc,
        "--clear-env",
    ]
    .map(str::to_owned)
    .into();
    for variable in [
        format!("TERM={term}"),
        format!("PATH={PATH}"),
        "HOME=/root".to_owned(),
        "USER=root".to_owned(),
        "container=lxc".to_owned(),
    ] {
        attach.extend(["-v".to_owned(), variable]);
    }
    attach.push("--".to_owned());
    attach.extend_from_slice(argv);
    attach
}

/// How a relayed command ended.
struct Ended {
    exit: Option<i32>,
    shown: Capture,
}

/// The ends of the command's streams that stay here.
struct Ends {
    child: Child,
    /// The terminal, for its size.
    terminal: Option<File>,
    input: File,
    outputs: Vec<(File, bool)>,
}

fn relay(
    line: &Line,
    mask: &Mask,
    argv: &[String],
    terminal: Option<(u16, u16)>,
) -> io::Result<Ended> {
    let Ends {
        mut child,
        terminal,
        input,
        outputs,
    } = match terminal {
        Some(size) => with_terminal(argv, size)?,
        None => with_pipes(argv)?,
    };
    let shown = Mutex::new(Capture::new(SESSION_HALF, SESSION_HALF));
    let typed = Queue::new(INPUT_MAX);
    let ended_at = OnceLock::new();
    let exit = thread::scope(|scope| {
        for (output, is_stderr) in outputs {
            let (shown, ended_at) = (&shown, &ended_at);
            scope.spawn(move || {
                let mut masked = mask::Stream::new(mask);
                show(line, output, is_stderr, (shown, &mut masked), ended_at);
                record(shown, &masked.finish());
            });
        }
        let at_end = terminal.is_some().then_some(EOT);
        let (typed, ended_at) = (&typed, &ended_at);
        scope.spawn(move || feed(input, at_end, typed, ended_at));
        let exit = attend(line, &mut child, terminal.as_ref(), typed);
        // Whatever happened: the threads must see the end, or the scope never ends.
        ended_at.get_or_init(Instant::now);
        typed.discard();
        exit
    })?;
    Ok(Ended {
        exit,
        shown: shown.into_inner().unwrap_or_else(PoisonError::into_inner),
    })
}

/// A child of its own session whose controlling terminal is a new one: `setsid --ctty` makes it so.
fn with_terminal(argv: &[String], (columns, rows): (u16, u16)) -> io::Result<Ends> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let how = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = File::from(rustix::fs::open(name.as_c_str(), how, Mode::empty())?);
    resize(&master, columns, rows);
    // Echo, line ends and special characters are the business of the terminal inside the container.
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).args(argv);
    let child = clean(&mut command)
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()?;
    // The command keeps copies of the slave otherwise, and the end of the output would never come.
    drop(command);
    let master = nonblocking(master)?;
    Ok(Ends {
        child,
        input: master.try_clone()?,
        outputs: vec![(master.try_clone()?, false)],
        terminal: Some(master),
    })
}

fn with_pipes(argv: &[String]) -> io::Result<Ends> {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).process_group(0);
    let mut child = clean(&mut command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let taken = || io::Error::other("a stream of the command is missing");
    let stdin = child.stdin.take().ok_or_else(taken)?;
    let stdout = child.stdout.take().ok_or_else(taken)?;
    let stderr = child.stderr.take().ok_or_else(taken)?;
    Ok(Ends {
        child,
        terminal: None,
        input: nonblocking(stdin.into())?,
        outputs: vec![
            (nonblocking(stdout.into())?, false),
            (nonblocking(stderr.into())?, true),
        ],
    })
}

fn clean(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root")
        .current_dir("/")
}

fn resize(terminal: impl AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // A terminal of the wrong size is still a terminal.
    let _ = tcsetwinsize(terminal, size);
}

/// Passes on what is typed until the command ends. `None` when a signal or a lost line ended it.
fn attend(
    line: &Line,
    child: &mut Child,
    terminal: Option<&File>,
    typed: &Queue<Vec<u8>>,
) -> io::Result<Option<i32>> {
    let mut hung_up: Option<Instant> = None;
    let mut waiting: Option<Vec<u8>> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(exit_of(status, hung_up.is_some()));
        }
        if hung_up.is_none() && (line.is_gone() || line.is_stopped()) {
            signal_group(child.id(), Signal::HUP);
            hung_up = Some(Instant::now());
        }
        if hung_up.is_some_and(|at| at.elapsed() >= KILL_AFTER) {
            signal_group(child.id(), Signal::KILL);
        }
        if let Some(bytes) = waiting.take() {
            // Full: nothing more is taken from the line until the command reads, but its end is still seen.
            if typed.put(bytes.len(), bytes.clone(), TICK) == Put::Full {
                waiting = Some(bytes);
            }
            continue;
        }
        match line.next(TICK) {
            Got::Item(Incoming::Request(Request::Input(bytes))) => waiting = Some(bytes.0),
            Got::Item(Incoming::Request(Request::InputEnd)) => typed.close(),
            Got::Item(Incoming::Request(Request::Resize { columns, rows })) => {
                if let Some(terminal) = terminal {
                    resize(terminal, columns, rows);
                }
            }
            // Nothing else has a meaning during a session; what can't be understood ends the line.
            Got::Item(Incoming::Request(_) | Incoming::Broken(_)) | Got::Nothing => {}
            Got::Closed => thread::sleep(TICK),
        }
    }
}

fn exit_of(status: ExitStatus, hung_up: bool) -> Option<i32> {
    status.code().filter(|_| !hung_up)
}

fn record(shown: &Mutex<Capture>, bytes: &[u8]) {
    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    shown.push(bytes);
}

/// Relays and records one output stream to its end. Who works there sees it as it comes; it is recorded without secrets.
fn show(
    line: &Line,
    mut output: File,
    is_stderr: bool,
    (shown, masked): (&Mutex<Capture>, &mut mask::Stream<'_>),
    ended_at: &OnceLock<Instant>,
) {
    let mut buffer = [0; 32 * 1024];
    loop {
        let ended = ended_at.get();
        if ended.is_some_and(|at| at.elapsed() >= LINGER) {
            return;
        }
        if !is_ready(&output, PollFlags::IN) {
            if ended.is_some() {
                return;
            }
            continue;
        }
        match output.read(&mut buffer) {
            // A terminal whose other end is closed answers EIO.
            Ok(0) => return,
            Ok(count) => {
                let bytes = &buffer[..count];
                record(shown, &masked.push(bytes));
                line.show(bytes.to_vec(), is_stderr);
            }
            Err(error) if is_not_now(&error) => {}
            Err(_) => return,
        }
    }
}

/// Writes what is typed; at its end closes the stream, or tells the terminal.
fn feed(mut input: File, at_end: Option<u8>, typed: &Queue<Vec<u8>>, ended_at: &OnceLock<Instant>) {
    loop {
        let bytes = match typed.get(SLICE) {
            Got::Item(bytes) => bytes,
            Got::Nothing => continue,
            Got::Closed => break,
        };
        if !write_all(&mut input, &bytes, ended_at) {
            // Nobody reads it any more: what is typed from now on is dropped.
            typed.discard();
            return;
        }
    }
    if let Some(byte) = at_end {
        write_all(&mut input, &[byte], ended_at);
    }
}

fn write_all(to: &mut File, mut bytes: &[u8], ended_at: &OnceLock<Instant>) -> bool {
    while !bytes.is_empty() {
        if ended_at.get().is_some() {
            return false;
        }
        if !is_ready(to, PollFlags::OUT) {
            continue;
        }
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_not_now(&error) => {}
            Err(_) => return false,
        }
    }
    true
}

fn is_ready(file: &File, what: PollFlags) -> bool {
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(SLICE.subsec_nanos()),
    };
    let mut polled = [PollFd::new(file, what)];
    poll(&mut polled, Some(&wait)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{read_frame, write_frame};

    /// Relays a command of this machine, as if it ran in a container.
    struct Played {
        ended: Ended,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    }

    fn play(
        argv: &[&str],
        terminal: Option<(u16, u16)>,
        said: &[Request],
        hang_up: bool,
    ) -> Played {
        let (from_controller, mut to_agent) = io::pipe().unwrap();
        let (mut from_agent, to_controller) = io::pipe().unwrap();
        let line = Line::open(from_controller, to_controller);
        for request in said {
            write_frame(&mut to_agent, request).unwrap();
        }
        let kept = (!hang_up).then_some(to_agent);
        let hearing = thread::spawn(move || {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Ok(Some(reply)) = read_frame::<Reply>(&mut from_agent) {
                if reply == Reply::Alive {
                    continue;
                }
                let Reply::Output {
                    bytes,
                    stderr: is_stderr,
                } = reply
                else {
                    panic!("{reply:?}")
                };
                if is_stderr {
                    stderr.extend(bytes.0);
                } else {
                    stdout.extend(bytes.0);
                }
            }
            (stdout, stderr)
        });
        let argv: Vec<String> = argv.iter().map(|it| (*it).to_owned()).collect();
        let ended = relay(&line, &Mask::default(), &argv, terminal).unwrap();
        line.finish();
        drop(kept);
        let (stdout, stderr) = hearing.join().unwrap();
        Played {
            ended,
            stdout,
            stderr,
        }
    }

    fn input(text: &str) -> Request {
        Request::Input(Blob(text.as_bytes().to_vec()))
    }

    #[test]
    fn without_a_terminal_streams_are_apart_and_the_exit_is_told() {
        let script = "cat; echo wrong >&2; exit 3";
        let said = [input("one\n"), input("two\n"), Request::InputEnd];
        let played = play(&["sh", "-c", script], None, &said, false);
        assert_eq!(played.ended.exit, Some(3));
        assert_eq!(played.stdout, b"one\ntwo\n");
        assert_eq!(played.stderr, b"wrong\n");
        // Two pipes have no order between them.
        let shown = String::from_utf8(played.ended.shown.into_bytes()).unwrap();
        let mut lines: Vec<&str> = shown.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "two", "wrong"]);
    }

    #[test]
    fn with_a_terminal_it_is_the_controlling_one_and_has_the_size() {
        let script = "test -t 0 && test -t 2 && stty size </dev/tty && head -c 7";
        let said = [input("typed\r"), Request::InputEnd];
        let played = play(&["sh", "-c", script], Some((97, 31)), &said, false);
        let text = String::from_utf8(played.stdout).unwrap();
        assert_eq!(played.ended.exit, Some(0), "{text}");
        // Nothing is echoed or translated here: the container's own terminal does that, and reads the EOT.
        assert_eq!(text, "31 97\ntyped\r\x04");
        assert_eq!(played.ended.shown.into_bytes(), text.as_bytes());
    }

    #[test]
    fn a_resize_reaches_the_command() {
        // Before the trap is set, the size itself tells; from then on, the signal.
        let look = "look() { test \"$(stty size)\" = '50 120' && exit 7; }";
        let script = format!("{look}; trap look WINCH; look; while :; do sleep 0.05; done");
        let said = [Request::Resize {
            columns: 120,
            rows: 50,
        }];
        let played = play(&["sh", "-c", &script], Some((80, 24)), &said, false);
        assert_eq!(played.ended.exit, Some(7));
    }

    #[test]
    fn a_lost_line_hangs_up_and_leaves_nothing_running() {
        for terminal in [None, Some((80, 24))] {
            let begun = Instant::now();
            let played = play(&["sleep", "1000"], terminal, &[], true);
            assert_eq!(played.ended.exit, None);
            assert!(begun.elapsed() < KILL_AFTER, "the hangup is enough");
        }
    }

    #[test]
    fn a_flood_is_relayed_whole_and_recorded_within_its_bound() {
        let played = play(&["head", "-c", "1000000", "/dev/zero"], None, &[], false);
        assert_eq!(played.stdout.len(), 1_000_000);
        let dropped = 1_000_000 - 2 * SESSION_HALF as u64;
        assert_eq!(played.ended.shown.dropped(), dropped);
    }

    #[test]
    fn input_that_nobody_reads_does_not_hide_the_end() {
        let much: Vec<Request> = (0..40).map(|_| input(&"x".repeat(64 * 1024))).collect();
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let (from_controller, mut to_agent) = io::pipe().unwrap();
            let (_from_agent, to_controller) = io::pipe().unwrap();
            let line = Line::open(from_controller, to_controller);
            thread::spawn(move || {
                for request in &much {
                    if write_frame(&mut to_agent, request).is_err() {
                        return;
                    }
                }
                thread::sleep(Duration::from_secs(60));
            });
            let argv = ["sleep".to_owned(), "0.5".to_owned()];
            sender
                .send(relay(&line, &Mask::default(), &argv, None).unwrap().exit)
                .unwrap();
        });
        let exit = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(exit, Some(0));
    }

    #[test]
    fn the_container_gets_the_argv_as_it_is_and_a_tame_environment() {
        let layout = Layout::default();
        let name: ContainerName = "web1".parse().unwrap();
        let argv = ["echo".to_owned(), "$(reboot); '".to_owned()];
        let attach = attach_argv(&layout, &name, "xterm\nX=1", &argv);
        assert!(attach.contains(&"TERM=dumb".to_owned()));
        assert!(attach.ends_with(&["--".to_owned(), argv[0].clone(), argv[1].clone()]));
        let attach = attach_argv(&layout, &name, "xterm-256color", &argv);
        assert!(attach.contains(&"TERM=xterm-256color".to_owned()));
    }

    #[test]
    fn the_login_shell_is_looked_for_inside_the_root() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin", temp.path().join("bin")).unwrap();
        let root: OwnedFd = File::open(temp.path()).unwrap().into();
        assert_eq!(login_shell(&root), ["/bin/sh", "-l"], "not the host's bash");
        std::fs::remove_file(temp.path().join("bin")).unwrap();
        std::fs::create_dir_all(temp.path().join("usr/bin")).unwrap();
        std::fs::write(temp.path().join("usr/bin/bash"), "").unwrap();
        std::os::unix::fs::symlink("/usr/bin", temp.path().join("bin")).unwrap();
        assert_eq!(login_shell(&root), ["/bin/bash", "-l"]);
    }
}
