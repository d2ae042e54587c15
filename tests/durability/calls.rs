//! The system calls of a driver, as strace tells them. It knows strace's spelling and nothing of what a call means.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One system call that came back.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Which thread made it.
    pub(crate) thread: String,
    /// The line at which it began, and the one at which it came back: other threads' calls may lie between.
    pub(crate) begun: usize,
    pub(crate) ended: usize,
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    /// What it returned, with the path of a descriptor cut off.
    pub(crate) result: i64,
    /// Whether strace let it fail; then it was not carried out.
    pub(crate) injected: bool,
    /// How many calls of this name the same thread had made before, this one included: strace counts so.
    pub(crate) number: usize,
}

/// A driver's life.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) calls: Vec<Call>,
    /// What it printed, for people.
    pub(crate) printed: String,
    pub(crate) succeeded: bool,
}

/// Everything that names a file or uses a descriptor: what is not understood must not go unseen.
const TRACED: &str = "trace=%file,%desc,sync";
/// No write of a driver is longer.
const STRING_MAX: &str = "8388608";
/// Tells a driver that it is one: what to drive, and the directory to do it in.
const DRIVEN: &str = "TALLYBOOK_DURABILITY_DRIVEN";
/// More calls of one name than any thread but the driver's makes.
const OTHERS_CALLS_MAX: usize = 200;

/// Runs one of this program's tests under strace. `inject` is what strace is to let fail.
pub(crate) fn trace(driver: &str, root: &Path, inject: Option<&str>) -> Traced {
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "--seccomp-bpf", "-y", "-xx", "-s", STRING_MAX])
        .args(["-e", TRACED, "-o"])
        .arg(told.path());
    if let Some(inject) = inject {
        strace.args(["-e", &format!("inject={inject}")]);
    }
    let output = strace
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", driver, "--nocapture", "--test-threads=1"])
        .env(DRIVEN, root)
        .output()
        .expect("strace can't be run: apt-get install strace");
    let text = std::fs::read_to_string(told.path()).unwrap();
    let printed = [output.stdout, output.stderr].concat();
    Traced {
        calls: parse(&text),
        printed: String::from_utf8_lossy(&printed).into_owned(),
        succeeded: output.status.success(),
    }
}

fn parse(text: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open: Vec<(&str, usize, String)> = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    for (line_number, line) in text.lines().enumerate() {
        let (pid, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        let (begun, whole) = if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            open.push((pid, line_number, begun.to_owned()));
            continue;
        } else if rest.starts_with("<... ") {
            let at = open.iter().position(|open| open.0 == pid).unwrap();
            let (_, begun, first) = open.remove(at);
            let second = rest.split_once(" resumed>").unwrap().1;
            (begun, first + second)
        } else {
            (line_number, rest.to_owned())
        };
        let name = whole.split('(').next().unwrap_or_default().to_owned();
        let number: &mut usize = counts.entry((pid, name.clone())).or_default();
        *number += 1;
        // A call that never came back did nothing that anybody could have been told of.
        let Some((args, result)) = split_result(&whole[name.len()..]) else {
            continue;
        };
        calls.push(Call {
            thread: pid.to_owned(),
            begun,
            ended: line_number,
            name,
            args: split_args(args),
            result,
            injected: whole.ends_with("(INJECTED)"),
            number: *number,
        });
    }
    // A descriptor is free for another thread as soon as its close began.
    calls.sort_by_key(|call| match call.name.as_str() {
        "close" => call.begun,
        _ => call.ended,
    });
    calls
}

/// `(args) = result …` in two.
fn split_result(text: &str) -> Option<(&str, i64)> {
    let at = text.rfind(" = ")?;
    let args = text[..at].trim_end().strip_prefix('(')?.strip_suffix(')')?;
    let result = text[at + 3..].split([' ', '<']).next()?;
    let result = match result.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok()?,
        None => result.parse().ok()?,
    };
    Some((args, result))
}

/// The arguments: apart by commas that stand in no bracket. Strings hold nothing but hexadecimal escapes.
fn split_args(text: &str) -> Vec<String> {
    let mut args = vec![String::new()];
    let mut depth = 0;
    for byte in text.chars() {
        match byte {
            '[' | '{' | '(' => depth += 1,
            ']' | '}' | ')' => depth -= 1,
            ',' if depth == 0 => {
                args.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(arg) = args.last_mut() {
            arg.push(byte);
        }
    }
    args.into_iter().map(|arg| arg.trim().to_owned()).collect()
}

/// The bytes of a string as `-xx` prints it.
pub(crate) fn bytes(arg: &str) -> Vec<u8> {
    let quoted = arg.strip_prefix('"').and_then(|arg| arg.strip_suffix('"'));
    unescape(quoted.unwrap_or_else(|| panic!("{arg} is no whole string")))
}

/// The path that `-y` prints behind a descriptor, and the descriptor.
pub(crate) fn descriptor(arg: &str) -> (Option<i64>, Option<Vec<u8>>) {
    let (number, path) = arg.split_once('<').unwrap_or((arg, ""));
    let path = path.strip_suffix('>').map(unescape);
    (number.parse().ok(), path)
}

fn unescape(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits
        .map(|digits| u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{digits:?}")))
        .collect()
}

/// The directory that a driver is to act in; `None` where it is run as a test like others, and does nothing.
///
/// strace counts the calls of each thread by itself, and lets the same number fail in each: so this one makes more of
/// them first than the test runner's, or a thread that the code under test begins, ever will.
pub(crate) fn driven() -> Option<PathBuf> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    let root = std::env::var_os(DRIVEN)?;
    for _ in 0..OTHERS_CALLS_MAX {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat2(
            CWD,
            "/dev/null",
            flags,
            Mode::empty(),
            ResolveFlags::empty(),
        )
        .unwrap();
        let mut null = File::options().write(true).open("/dev/null").unwrap();
        null.write_all(b"-").unwrap();
        null.write_all_at(b"-", 0).unwrap();
        // A device has no length, which is said, and counted.
        null.set_len(0).unwrap_err();
    }
    Some(PathBuf::from(root))
}

/// Says something to whoever traces: what was begun before it is, what is durable once it is said to be.
pub(crate) fn say(word: &str, number: u64) {
    let line = format!("{word} {number}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
