//! Commands that read, as an operator runs them: whole processes, beside `sqlite3` with the same question and beside a process that
//! does nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Failure;
use crate::make::Facts;
use crate::measure::{Figure, Results, Target, Unit};
use crate::read::millions;

/// How often each command is run a round.
const RUNS: usize = 7;

/// Measures each command on a store.
///
/// # Errors
/// When one fails.
pub(crate) fn run(store: &Path, program: &Path, rounds: usize) -> Result<(), Failure> {
    let mut results = Results::open()?;
    let facts = Facts::read(store)?;
    let database = store.with_extension("sqlite");
    let Facts {
        container,
        seq,
        operation,
        ..
    } = &facts;
    let seq = seq.to_string();
    let id = operation.replace('-', "");
    let events = "SELECT seq, subject, kind, hex(operation), header, payload FROM events";
    let asked: [(&str, Vec<&str>, String); 6] = [
        (
            "container list",
            vec!["container", "list"],
            "SELECT * FROM containers ORDER BY host, container".to_owned(),
        ),
        (
            "log --container X -n 20",
            vec!["log", "--container", container, "-n", "20"],
            format!("{events} WHERE container = '{container}' ORDER BY seq DESC LIMIT 20"),
        ),
        (
            "log --container X",
            vec!["log", "--container", container],
            format!("{events} WHERE container = '{container}' ORDER BY seq"),
        ),
        ("show SEQ", vec!["show", &seq], format!("{events} WHERE seq = {seq}")),
        (
            "op show ID",
            vec!["op", "show", operation],
            format!("{events} WHERE operation = x'{id}' ORDER BY seq"),
        ),
        (
            "op list",
            vec!["op", "list"],
            "SELECT hex(id), intent, status, first, last, actor FROM operations ORDER BY first DESC LIMIT 50".to_owned(),
        ),
    ];
    let limit = if facts.events < 2_000_000 {
        50.0
    } else {
        150.0
    };
    for (name, arguments, question) in asked {
        let ours = || {
            let mut command = Command::new(program);
            command.arg("--store").arg(store).args(&arguments);
            command
        };
        let peer = || {
            let mut command = Command::new("sqlite3");
            command.arg("-readonly").arg(&database).arg(&question);
            command
        };
        // Both are warm, and both have an answer.
        let lines = once(ours())?.1;
        let theirs = if database.exists() {
            once(peer())?.1
        } else {
            0
        };
        eprintln!("{name}: {lines} bytes; sqlite3 {theirs} bytes");
        let (mut took, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..rounds * RUNS {
            took.push(once(ours())?.0);
            if database.exists() {
                peers.push(once(peer())?.0);
            }
        }
        Figure {
            name: format!("{name}, {}", millions(facts.events)),
            unit: Unit::Milliseconds,
            ours: took,
            peer: (!peers.is_empty()).then(|| ("sqlite3".to_owned(), peers)),
            target: Some(Target::Value(limit)),
        }
        .tell(&mut results)?;
    }
    let mut nothing = Vec::new();
    for _ in 0..rounds * RUNS {
        nothing.push(once(Command::new("true"))?.0);
    }
    Figure {
        name: "a process that does nothing".to_owned(),
        unit: Unit::Milliseconds,
        ours: nothing,
        peer: None,
        target: None,
    }
    .tell(&mut results)
}

/// Runs a command to its end: how many milliseconds it took, and how much it printed.
fn once(mut command: Command) -> Result<(f64, usize), Failure> {
    command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let began = Instant::now();
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    match output.status.success() {
        true => Ok((took, output.stdout.len())),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}
