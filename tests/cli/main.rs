//! The program as its users meet it: every command in both formats, its errors, its exit codes and its help.

mod dns;
mod erasure;
mod fixture;
mod long_log;
mod terminal;
mod upkeep;
mod verify;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use fixture::{Fixture, INVENTORY};
use tallybook::log::{Log, Open};
use tallybook_testkit::files::position;

fn snapshot(name: &str, fixture: &Fixture, commands: &[&[&str]]) {
    let transcripts: Vec<String> = commands
        .iter()
        .map(|arguments| fixture.transcript(arguments))
        .collect();
    insta::assert_snapshot!(name, transcripts.join("\n"));
}

#[test]
fn cloud_before_and_after_the_first_refresh() {
    let fixture = Fixture::empty();
    snapshot(
        "cloud",
        &fixture,
        &[
            &["cloud", "check"],
            &["cloud", "check", "--format", "json"],
            &["cloud", "show"],
            &["cloud", "show", "web"],
            &["cloud", "show", "cn2"],
            &["cloud", "show", "cn1/web", "--format", "json"],
            &["cloud", "refresh", "--dry-run"],
        ],
    );
    assert!(!fixture.store().exists(), "a dry run made a store");
    snapshot(
        "cloud_refresh",
        &fixture,
        &[
            &["cloud", "refresh", "--limit", "web"],
            &["cloud", "refresh", "--format", "json"],
            &["cloud", "refresh"],
            &["log", "--kind", "allocation"],
        ],
    );
    let moved = INVENTORY
        .replace(
            "[containers.web]\nhost = \"cn1\"",
            "[containers.web]\nhost = \"cn2\"",
        )
        .replace("8080", "8081")
        .replace("builder = \"builder\"", "")
        .replace(
            "[containers.builder]\nhost = \"cn1\"\nmac = \"00:16:3e:00:00:02\"",
            "",
        );
    std::fs::write(fixture.path().join("cloud.toml"), moved).unwrap();
    snapshot(
        "cloud_refresh_changed",
        &fixture,
        &[
            &["cloud", "show"],
            &["cloud", "refresh"],
            &["cloud", "refresh"],
            &["state"],
        ],
    );
}

#[test]
fn cloud_mistakes() {
    let fixture = Fixture::empty();
    let wrong = INVENTORY
        .replace("host = \"cn1\"", "host = \"cn9\"")
        .replace("subnet", "subnett");
    std::fs::write(fixture.path().join("wrong.toml"), wrong).unwrap();
    let shared = INVENTORY.replace("mac = \"00:16:3e:00:00:03\"", "address = \"10.5.0.1\"");
    std::fs::write(fixture.path().join("shared.toml"), shared).unwrap();
    snapshot(
        "cloud_mistakes",
        &fixture,
        &[
            &["cloud", "check", "--inventory", "wrong.toml"],
            &[
                "cloud",
                "check",
                "--inventory",
                "wrong.toml",
                "--format",
                "json",
            ],
            &["cloud", "refresh", "--inventory", "wrong.toml"],
            &[
                "cloud",
                "refresh",
                "--inventory",
                "wrong.toml",
                "--format",
                "json",
            ],
            &["cloud", "check", "--inventory", "shared.toml"],
            &["cloud", "check", "--inventory", "absent.toml"],
            &["cloud", "show", "wbe"],
            &["cloud", "show", "cn2/web"],
            &["cloud", "show", "--limit", "cn7,wbe"],
        ],
    );
    std::fs::remove_file(fixture.path().join("cloud.toml")).unwrap();
    snapshot("cloud_none", &fixture, &[&["cloud", "show"]]);
    assert!(
        !fixture.store().exists(),
        "a refused inventory made a store"
    );
}

/// Every command that reads.
const READING: [&[&str]; 14] = [
    &["log"],
    &["log", "-f"],
    &["show", "1"],
    &["state"],
    &["state", "--at", "1"],
    &["diff", "1", "2"],
    &["why", "web"],
    &["verify"],
    &["replay"],
    &["op", "list"],
    &["op", "show", "abcd"],
    &["container", "list"],
    &["template", "show", "base"],
    &["host", "list"],
];

#[test]
fn without_a_log_reading_says_so_and_makes_nothing() {
    let fixture = Fixture::empty();
    for arguments in READING {
        let run = fixture.run(arguments);
        assert_eq!(run.code, 9, "{arguments:?}");
        assert_eq!(run.stdout, "", "{arguments:?}");
        assert!(
            run.stderr.starts_with("error: there is no log in "),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("\n  hint: "), "{}", run.stderr);
    }
    assert!(!fixture.store().exists());
}

#[test]
fn reading_a_log() {
    let fixture = Fixture::story();
    snapshot(
        "log",
        &fixture,
        &[
            &["log"],
            &["log", "-n", "2", "--format", "json"],
            &["log", "--operation", "2222", "--kind", "step"],
            &[
                "log",
                "--container",
                "builder",
                "--from",
                "20",
                "--to",
                "22",
            ],
            &[
                "log",
                "--container",
                "cn1/web",
                "--kind",
                "operation.failed",
            ],
            &["log", "--template", "base", "--since", "1h"],
            &["log", "--until", "2020-01-01"],
            &["log", "--host", "cn9"],
            &["log", "--container", "wbe"],
            &["log", "--container", "cn2/web"],
            &["log", "--template", "bas"],
            &["log", "--kind", "step.sarted"],
            &["log", "--operation", "ffff"],
        ],
    );
}

#[test]
fn showing_an_event() {
    let fixture = Fixture::story();
    snapshot(
        "show",
        &fixture,
        &[
            &["show", "2"],
            &["show", "3", "--format", "json"],
            &["show", "6", "--format", "json"],
            &["show", "8"],
            &["show", "15"],
            &["show", "40"],
            &["show", "1000"],
        ],
    );
}

#[test]
fn showing_a_state() {
    let fixture = Fixture::story();
    snapshot(
        "state",
        &fixture,
        &[
            &["state"],
            &["state", "--format", "json"],
            &["state", "--at", "4"],
            &["state", "cn1/web", "--format", "json"],
            &["state", "template:base"],
            &["state", "web"],
            &["state", "nothing"],
            &["state", "--at", "1000"],
            &["state", "--at", "2020-01-01"],
            &["diff", "4", "12"],
            &["diff", "1", "4", "--format", "json"],
            &["diff", "4", "4"],
        ],
    );
}

#[test]
fn telling_why() {
    let fixture = Fixture::story();
    snapshot(
        "why",
        &fixture,
        &[
            &["why", "cn1/web"],
            &["why", "cn1/web", "--format", "json"],
            &["why", "cn1"],
            &["why", "base"],
            &["why", "web"],
            &["why", "bulider"],
        ],
    );
}

#[test]
fn listing_and_showing() {
    let fixture = Fixture::story();
    snapshot(
        "entities",
        &fixture,
        &[
            &["container", "list"],
            &["container", "list", "--on", "cn1", "--format", "json"],
            &["container", "list", "--on", "cn2"],
            &["container", "show", "builder"],
            &["container", "show", "cn1/web", "--format", "json"],
            &["container", "show", "web"],
            &["container", "show", "bilder"],
            &["container", "show", "cn9/builder"],
            &["container", "show", "a b"],
            &["template", "list"],
            &["template", "list", "--format", "json"],
            &["template", "show", "base"],
            &["template", "show", "base", "--format", "json"],
            &["template", "show", "bsae"],
            &["host", "list"],
            &["host", "list", "--format", "json"],
            &["host", "show", "cn1"],
            &["host", "show", "cn1", "--format", "json"],
            &["host", "show", "cn3"],
        ],
    );
}

#[test]
fn operations() {
    let fixture = Fixture::story();
    snapshot(
        "op",
        &fixture,
        &[
            &["op", "list"],
            &["op", "list", "--unfinished", "--format", "json"],
            &["op", "show", "2222", "--output"],
            &["op", "show", "222222222222", "--format", "json"],
            &["op", "show", "5555"],
            &["op", "show", "2223"],
            &["op", "show", "xyz"],
            &["op", "list", "--all", "--unfinished"],
        ],
    );
}

#[test]
fn verifying_and_replaying() {
    let fixture = Fixture::story();
    snapshot(
        "verify",
        &fixture,
        &[
            &["verify"],
            &["verify", "--format", "json"],
            &["verify", "--journal-only"],
            &["replay"],
            &["replay", "--format", "json"],
        ],
    );
}

#[test]
fn damage_is_named_and_nothing_is_mended() {
    let fixture = Fixture::story();
    let journal = fixture.store().join("journal");
    let segment = std::fs::read_dir(&journal)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = position(&bytes, b"10.5.0.0/24\"").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 4);
    assert!(run.stdout.contains("event 2 ("), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("the store was not checked: the journal is damaged")
    );
    assert!(
        run.stdout.ends_with("verify: 1 finding\n"),
        "{}",
        run.stdout
    );
    let run = fixture.run(&["verify", "--format", "json"]);
    let verified: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run.code, 4);
    assert_eq!(verified["ok"], false);
    assert_eq!(verified["findings"][0]["seq"], 2);
    assert_eq!(std::fs::read(&segment).unwrap(), bytes);
}

/// The one segment of a store's journal.
fn segment(fixture: &Fixture) -> std::path::PathBuf {
    let journal = fixture.store().join("journal");
    let mut entries = std::fs::read_dir(&journal).unwrap();
    entries.next().unwrap().unwrap().path()
}

#[test]
fn a_torn_end_is_set_aside_and_told() {
    let fixture = Fixture::story();
    let segment = segment(&fixture);
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, [&whole[..], b"TBR1"].concat()).unwrap();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    assert!(
        run.stdout
            .contains("4 bytes of an append that is not whole")
    );
    assert_eq!(std::fs::read(&segment).unwrap(), whole);
}

#[test]
fn a_journal_that_lost_its_end_is_not_ok() {
    let fixture = Fixture::story();
    // The databases know how far it went.
    assert_eq!(fixture.run(&["verify"]).code, 0);
    let segment = segment(&fixture);
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &whole[..whole.len() - 3000]).unwrap();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 4, "{}{}", run.stdout, run.stderr);
    assert!(
        run.stdout.contains("was recorded here before"),
        "{}",
        run.stdout
    );
}

#[test]
fn projections_that_lie_are_found() {
    let fixture = Fixture::story();
    let lie = |fixture: &Fixture| {
        let database = sled::open(fixture.store().join("projection")).unwrap();
        let key = database
            .iter()
            .keys()
            .map(Result::unwrap)
            .find(|key| key.first() == Some(&b'c'))
            .unwrap();
        database.remove(key).unwrap();
        database.flush().unwrap();
    };
    lie(&fixture);
    let run = fixture.run(&["replay"]);
    assert_eq!(run.code, 4);
    assert!(run.stdout.contains("container cn1/web"), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("replay: the live state is not what the events say")
    );
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 4);
    assert!(
        run.stdout
            .contains("container cn1/web is not what the journal gives"),
        "{}",
        run.stdout
    );
}

#[test]
fn an_index_that_lies_is_found() {
    let fixture = Fixture::empty();
    // More than a block of 1024 events, so that some are sealed into the index.
    fixture.seal();
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    {
        let database = sled::open(fixture.store().join("index")).unwrap();
        let postings = database.open_tree("postings").unwrap();
        let has = |key: &sled::IVec, term: &[u8]| key[2..].starts_with(term);
        let keys: Vec<sled::IVec> = postings.iter().keys().map(Result::unwrap).collect();
        let hidden = keys.iter().find(|key| has(key, b"cweb")).unwrap();
        postings.remove(hidden).unwrap();
        let wrong = keys.iter().find(|key| has(key, b"cbuilder")).unwrap();
        postings.insert(wrong, &[0, 0, 1, 0]).unwrap();
        database.flush().unwrap();
    }
    let run = fixture.run(&["verify"]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    for found in [
        "(the index): it can't be found by \"web\"",
        "(the index): it can't be found by \"builder\"",
        "event 1 (the index): 2 events are found by terms that they do not have",
        "verify: 3 findings",
    ] {
        assert!(run.stdout.contains(found), "{found}\n{}", run.stdout);
    }
}

#[test]
fn a_holder_answers_for_the_store() {
    let fixture = Fixture::story();
    let alone = fixture.run(&["log", "--format", "json"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = runtime
        .block_on(Log::open(&fixture.store(), Open::Existing, |_| ()))
        .unwrap();
    assert!(runtime.block_on(log.is_holder()));
    let through = fixture.run(&["log", "--format", "json"]);
    assert_eq!(through.stdout, alone.stdout);
    let verified = fixture.run(&["verify"]);
    assert_eq!(verified.code, 0, "{}", verified.stdout);
    assert!(verified.stdout.contains("terms looked up in the index"));
    let last = verified.stdout.lines().last().unwrap();
    assert!(last.starts_with("verify: ok at event "), "{last}");
    runtime.block_on(log.close());
}

#[test]
fn following_shows_what_comes() {
    let fixture = Fixture::empty();
    assert_eq!(
        fixture
            .run(&["cloud", "refresh", "--limit", "builder"])
            .code,
        0
    );
    let mut follower = fixture
        .command(&["log", "-f", "--kind", "allocation", "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["subject"], "container:cn1/builder");
    assert_eq!(fixture.run(&["cloud", "refresh"]).code, 0);
    assert_eq!(next()["subject"], "container:cn1/web");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let fixture = Fixture::story();
    let mut child = fixture
        .command(&["show", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(said, "");
}

#[test]
fn a_full_disk_has_its_own_code() {
    let fixture = Fixture::story();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = fixture.command(&["state"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(10));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("error: can't write to standard output\n  because: "),
        "{said}"
    );
}

#[test]
fn colours_when_asked_for() {
    let fixture = Fixture::story();
    let colored = fixture.run(&["host", "list", "--color", "always"]);
    assert!(colored.stdout.contains("\u{1b}[32mprepared\u{1b}[0m"));
    let plain = fixture.run(&["host", "list"]);
    assert!(!plain.stdout.contains('\u{1b}'));
    let error = fixture.run(&["host", "show", "x", "--color", "always"]);
    assert!(
        error
            .stderr
            .starts_with("\u{1b}[31merror: \u{1b}[0mthere is no host")
    );
}

#[test]
fn the_command_line_itself() {
    let fixture = Fixture::empty();
    snapshot(
        "usage",
        &fixture,
        &[
            &["nonsense"],
            &["sho", "1"],
            &["show", "0"],
            &["show", "1", "--format", "yaml"],
            &["op", "show", "zz", "--format", "json"],
            &["log", "--since", "yesterday"],
            &["state", "--at", "soon"],
            &["cloud", "show", "web", "--limit", "web"],
        ],
    );
}

#[test]
fn help() {
    let fixture = Fixture::empty();
    let commands: [&[&str]; 22] = [
        &["--help"],
        &["cloud", "--help"],
        &["cloud", "check", "-h"],
        &["cloud", "show", "-h"],
        &["cloud", "refresh", "--help"],
        &["host", "--help"],
        &["host", "list", "-h"],
        &["host", "show", "-h"],
        &["container", "--help"],
        &["container", "list", "-h"],
        &["container", "show", "-h"],
        &["template", "list", "-h"],
        &["template", "show", "-h"],
        &["op", "list", "-h"],
        &["op", "show", "-h"],
        &["log", "--help"],
        &["show", "-h"],
        &["state", "-h"],
        &["diff", "-h"],
        &["why", "-h"],
        &["verify", "-h"],
        &["replay", "-h"],
    ];
    let mut shown = String::new();
    for arguments in commands {
        let help = fixture.transcript(arguments);
        // What every command takes is shown once.
        let own = match help.split_once("Options of every command:") {
            Some((own, _)) if arguments.len() > 1 => own,
            Some(_) | None => &help,
        };
        shown.push_str(own);
    }
    insta::assert_snapshot!("help", shown);
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let document = include_str!("../../docs/EXIT_CODES.md");
    let documented: Vec<(u8, String)> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let code = cells.next()?.parse().ok()?;
            Some((code, cells.next()?.trim_matches('`').to_owned()))
        })
        .collect();
    let known: Vec<(u8, String)> = tallybook::cli::Exit::ALL
        .iter()
        .map(|exit| (exit.code(), exit.label().to_owned()))
        .collect();
    assert_eq!(documented, known);
}

/// Collects the names of all fields, except of what is shown as stored.
fn fields(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
    const AS_STORED: [&str; 5] = ["header", "payload", "properties", "params", "output"];
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                found.insert(name.clone());
                if !AS_STORED.contains(&name.as_str()) {
                    fields(value, found);
                }
            }
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| fields(value, found));
        }
        _ => {}
    }
}

#[test]
fn every_field_of_the_json_output_is_documented() {
    let fixture = Fixture::story();
    let commands: [&[&str]; 17] = [
        &["log", "-n", "1"],
        &["show", "1"],
        &["state"],
        &["diff", "1", "30"],
        &["why", "cn1/web"],
        &["verify"],
        &["replay"],
        &["op", "list"],
        &["op", "show", "2222"],
        &["host", "list"],
        &["host", "show", "cn1"],
        &["container", "show", "cn1/web"],
        &["template", "show", "base"],
        &["cloud", "check"],
        &["cloud", "show"],
        &["cloud", "refresh", "--dry-run"],
        &["host", "show", "cn9"],
    ];
    let mut found = std::collections::BTreeSet::new();
    for arguments in commands {
        let run = fixture.run(&[arguments, &["--format", "json"]].concat());
        let text = if run.code == 0 {
            run.stdout
        } else {
            run.stderr
        };
        fields(&serde_json::from_str(&text).unwrap(), &mut found);
    }
    let document = include_str!("../../docs/JSON.md");
    let words: std::collections::BTreeSet<&str> = document
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let missing: Vec<_> = found
        .iter()
        .filter(|name| !words.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in docs/JSON.md: {missing:?}");
    assert!(found.len() > 80, "only {} fields were seen", found.len());
}
