//! Rules of the house that a program can check: which crate may depend on what, and what every file looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that the pure crates may be built from, at any distance, without build scripts' own needs.
const PURE: &[&str] = &[
    "arrayvec",
    "blake3",
    "cfg-if",
    "constant_time_eq",
    "cpufeatures",
    "num-traits",
    "proc-macro2",
    "quote",
    "rmp",
    "rmp-serde",
    "serde",
    "serde_bytes",
    "serde_core",
    "serde_derive",
    "syn",
    "tallybook-events",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
    "uuid",
];
const LINES_MAX: usize = 700;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a lock file says that the program depends on, and that its own tests do.
fn locked(file: &str) -> String {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let (_, package) = text.split_once("name = \"tallybook\"\n").unwrap();
    package.split("\n\n").next().unwrap().to_owned()
}

#[test]
fn other_workspaces_lock_what_the_program_depends_on() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let dependencies = dependencies.lines().take_while(|line| !line.is_empty());
    for name in dependencies.map(|line| line.split('.').next().unwrap()) {
        for file in ["Cargo.lock", "tests/fuzz/Cargo.lock", "benches/Cargo.lock"] {
            // A version follows where the lock has several.
            let is_locked = [format!("\"{name}\""), format!("\"{name} ")];
            let is_locked = is_locked.iter().any(|entry| locked(file).contains(entry));
            assert!(
                is_locked,
                "{file} lacks {name}: run `cargo metadata` beside it"
            );
        }
    }
}

/// The packages that a crate is built from, itself left out.
fn tree(package: &str, edges: &str, depth: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(["--package", package, "--edges", edges, "--depth", depth])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != package)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_pure_crates_are_built_from_nothing_that_acts() {
    let pure: BTreeSet<String> = PURE.iter().map(|name| (*name).to_owned()).collect();
    for package in ["tallybook-events", "tallybook-replay"] {
        let found = tree(package, "normal", "99");
        let strange: Vec<&String> = found.difference(&pure).collect();
        assert!(strange.is_empty(), "{package} is built from {strange:?}");
    }
    let direct = tree("tallybook-replay", "normal", "1");
    let allowed = ["serde", "tallybook-events", "thiserror"].map(str::to_owned);
    assert_eq!(
        direct,
        BTreeSet::from(allowed),
        "replay depends on the events alone"
    );
}

#[test]
fn the_agent_has_no_ssh_no_store_and_no_runtime() {
    let found = tree("tallybook-agent", "normal", "99");
    for banned in [
        "russh",
        "sled",
        "tokio",
        "tallybook",
        "tallybook-replay",
        "clap",
    ] {
        assert!(!found.contains(banned), "the agent is built from {banned}");
    }
    assert!(found.contains("tallybook-events"), "{found:?}");
}

/// What the pure crates are told not to call.
#[test]
fn the_pure_crates_have_their_bans() {
    let read = |name: &str| std::fs::read_to_string(root().join(name).join("clippy.toml")).unwrap();
    let bans = read("events");
    assert_eq!(bans, read("replay"));
    for banned in [
        "std::time::SystemTime::now",
        "std::fs::File",
        "std::process::Command",
        "std::env::var",
    ] {
        assert!(
            bans.contains(&format!("\"{banned}\"")),
            "{banned} is not banned"
        );
    }
}

fn sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = ["src", "events", "replay", "agent", "tests"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What cargo-fuzz builds.
                if path != root().join("tests/fuzz/target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

/// What stands between backticks and begins with the program's name.
fn commands_named(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let named = quoted.filter(|quoted| quoted.starts_with("tallybook ") && !quoted.contains('\n'));
    named.map(str::to_owned).collect()
}

/// Why a command that is named is none, if so. Placeholders end what can be told.
fn fault_of(named: &str) -> Option<String> {
    let mut command = tallybook::cli::command();
    command.build();
    let global: BTreeSet<String> = ["help", "version"].map(str::to_owned).into();
    let mut words = named.split_whitespace().skip(1).peekable();
    while let Some(word) = words.peek() {
        let is_word = word.chars().all(|c| c.is_ascii_lowercase());
        if !is_word || !command.has_subcommands() {
            break;
        }
        let Some(next) = command.find_subcommand(word) else {
            return Some(format!("{named:?}: there is no {word}"));
        };
        command = next.clone();
        words.next();
    }
    let options: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .chain(global)
        .collect();
    words
        .filter_map(|word| word.trim_start_matches('[').strip_prefix("--"))
        .map(|word| word.split(['=', ']']).next().unwrap_or_default())
        .find(|word| !word.is_empty() && !options.contains(*word))
        .map(|word| format!("{named:?}: it has no --{word}"))
}

#[test]
fn commands_that_are_named_exist() {
    let mut texts = sources();
    texts.retain(|path, _| path.starts_with("src") || path.starts_with("agent/src"));
    for document in [
        "README.md",
        "docs/OPERATIONS.md",
        "docs/SECURITY.md",
        "docs/CLOUD.md",
    ] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        texts.insert(PathBuf::from(document), text);
    }
    let mut faults = Vec::new();
    let mut seen = 0;
    for (path, text) in &texts {
        // Backticks pair within a line: code fences and comments have others.
        for line in text.lines() {
            for named in commands_named(line) {
                seen += 1;
                faults.extend(fault_of(&named).map(|fault| format!("{}: {fault}", path.display())));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(seen > 40, "only {seen} commands are named");
}

/// What the unit file starts is there, and it is waited for as long as the daemon may take to end.
#[test]
fn the_unit_file_starts_what_there_is() {
    let text = std::fs::read_to_string(root().join("docs/systemd/tallybook.service")).unwrap();
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(key, _)| *key == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.to_owned()
    };
    let command = value("ExecStart");
    let matches = tallybook::cli::command().try_get_matches_from(command.split_whitespace());
    let matches = matches.unwrap_or_else(|error| panic!("{error}"));
    let (name, daemon) = matches.subcommand().unwrap();
    assert_eq!(name, "daemon");
    let drains = daemon
        .get_one::<std::time::Duration>("drain_timeout")
        .unwrap();
    let waits: u64 = value("TimeoutStopSec").parse().unwrap();
    assert!(waits > drains.as_secs(), "{waits} s are not enough");
    // Where the sockets and the log are is what the service may change.
    assert!(command.contains(&format!("/run/{} ", value("RuntimeDirectory"))));
    assert!(command.contains(&format!("/var/lib/{}/store ", value("StateDirectory"))));
}

/// A fuzz target that is not built, not run, not tested or not described is none.
#[test]
fn every_fuzz_target_is_run() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let files = std::fs::read_dir(root().join("tests/fuzz/fuzz_targets")).unwrap();
    let files: BTreeSet<String> = files
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let between = |text: &str, before: &str, after: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(before));
        let names = lines.filter_map(|rest| rest.split_once(after));
        names.map(|(name, _)| name.to_owned()).collect()
    };
    let manifest = read("tests/fuzz/Cargo.toml");
    let (_, bins) = manifest.split_once("[[bin]]").unwrap();
    let run = between(bins, "name = \"", "\"");
    assert_eq!(
        run, files,
        "scripts/fuzz.sh runs what tests/fuzz/Cargo.toml names"
    );
    let described = between(&read("tests/fuzz/README.md"), "| `", "`");
    assert_eq!(
        described, files,
        "tests/fuzz/README.md describes every target"
    );
    let mut bodies = between(&read("tests/decoders/src/lib.rs"), "    (\"", "\"");
    bodies.insert("selftest".to_owned());
    assert_eq!(bodies, files, "tests/decoders has a body for every target");
}

#[test]
fn every_file_is_tidy() {
    // Put together here, so that this file does not hold what it looks for.
    let banned = [
        ["#[", "allow("].concat(),
        ["#![", "allow("].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
    ];
    let mut untidy = Vec::new();
    for (path, text) in sources() {
        let path = path.display();
        if !text.starts_with("//!") {
            untidy.push(format!("{path} does not begin with what it is for"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            untidy.push(format!(
                "{path} has {lines} lines; {LINES_MAX} are the most"
            ));
        }
        for (number, line) in text.lines().enumerate() {
            for banned in banned
                .iter()
                .filter(|banned| line.contains(banned.as_str()))
            {
                untidy.push(format!("{path}:{}: {banned}", number + 1));
            }
        }
    }
    assert!(untidy.is_empty(), "{}", untidy.join("\n"));
}
