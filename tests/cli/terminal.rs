//! What somebody at a terminal expects beside the commands: names that a shell completes, examples, manual pages, a pager, and a
//! first inventory.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::fixture::Fixture;

/// What is offered where a line has got so far, each with what is said of it, as fish asks for it.
pub(crate) fn offered(fixture: &Fixture, line: &[&str]) -> Vec<String> {
    let words = [&["--", "tallybook"], line].concat();
    let mut command = fixture.command(&words);
    command
        .env("TALLYBOOK_COMPLETE", "fish")
        .env("_CLAP_COMPLETE_INDEX", line.len().to_string());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{line:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.replace('\t', ": ")).collect()
}

#[test]
fn names_are_completed_as_the_log_and_the_inventory_have_them() {
    let fixture = Fixture::story();
    let container = ["builder: container on cn1, running"];
    assert_eq!(offered(&fixture, &["container", "stop", "b"]), container);
    // Two hosts have one of that name.
    assert_eq!(offered(&fixture, &["container", "stop", "w"]), [""; 0]);
    let whole = ["cn1/web: container on cn1, stopped"];
    assert_eq!(offered(&fixture, &["container", "stop", "cn1/w"]), whole);
    // Only what is not there can be made.
    assert_eq!(offered(&fixture, &["container", "create", "b"]), [""; 0]);
    let hosts = ["cn1: host, 192.0.2.11", "cn2: host, 192.0.2.12"];
    assert_eq!(offered(&fixture, &["host", "install", "cn"]), hosts);
    assert_eq!(
        offered(&fixture, &["container", "list", "--on", "cn"]),
        hosts
    );
    let template = ["base: template, generation 1"];
    assert_eq!(offered(&fixture, &["template", "show", ""])[0], template[0]);
    let limit = |begun| offered(&fixture, &["cloud", "show", "--limit", begun]);
    assert_eq!(limit("cn1,@c"), ["cn1,@compute: group of 2 hosts"]);
    assert_eq!(limit("cn1,co"), ["cn1,compute: group of 2 hosts"]);
    let kinds = offered(&fixture, &["log", "--kind", "step.s"]);
    assert!(kinds.contains(&"step.started".to_owned()), "{kinds:?}");
}

#[test]
fn operations_are_completed_with_what_they_do() {
    let fixture = Fixture::story();
    let all = offered(&fixture, &["op", "show", ""]);
    let open = offered(&fixture, &["op", "resume", ""]);
    let is_operation = |line: &&String| line.contains(": ") && !line.starts_with('-');
    let all: Vec<&String> = all.iter().filter(is_operation).collect();
    let open: Vec<&String> = open.iter().filter(is_operation).collect();
    assert!(
        all.len() > open.len() && !open.is_empty(),
        "{all:?}, {open:?}"
    );
    assert!(
        open.iter().all(|line| !line.contains(": succeeded:")),
        "{open:?}"
    );
    assert!(
        all.iter().any(|line| line.contains(": succeeded:")),
        "{all:?}"
    );
}

#[test]
fn what_can_not_be_looked_at_is_not_completed_and_nothing_is_said() {
    let fixture = Fixture::empty();
    // The inventory is there, the log is not, and none is made.
    let planned = ["builder: container for cn1"];
    assert_eq!(offered(&fixture, &["container", "create", "b"]), planned);
    let hosts = ["cn1: host, 192.0.2.11", "cn2: host, 192.0.2.12"];
    assert_eq!(offered(&fixture, &["host", "install", "cn"]), hosts);
    assert_eq!(offered(&fixture, &["op", "resume", "4"]), [""; 0]);
    assert!(!fixture.store().exists());
    std::fs::write(fixture.path().join("cloud.toml"), "[hosts").unwrap();
    assert_eq!(offered(&fixture, &["host", "install", "cn"]), [""; 0]);
    // As the line that is written says.
    let other = fixture.path().join("other.toml");
    std::fs::write(&other, "[hosts.far]\n").unwrap();
    let line = [
        "--inventory",
        other.to_str().unwrap(),
        "host",
        "install",
        "f",
    ];
    assert_eq!(offered(&fixture, &line), ["far: host, far"]);
}

#[test]
fn bash_completes_by_what_completions_writes() {
    let fixture = Fixture::story();
    let script = fixture.run(&["completions", "bash"]);
    assert_eq!((script.code, script.stderr.as_str()), (0, ""));
    let directory = std::path::Path::new(env!("CARGO_BIN_EXE_tallybook"));
    let directory = directory.parent().unwrap().display();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
    for (line, last, before, offered) in [
        ("container stop b", "b", "stop", "builder"),
        (
            "cloud show --limit cn1,co",
            "cn1,co",
            "--limit",
            "cn1,compute",
        ),
    ] {
        let asked = format!(
            "COMP_WORDS=(tallybook {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_TYPE=9
            function=$(complete -p tallybook | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
            $function tallybook {last} {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash")
            .args(["--norc", "-c", &format!("{}\n{asked}", script.stdout)])
            .current_dir(fixture.path())
            .env_clear()
            .env("TALLYBOOK_STORE", fixture.store())
            .env("PATH", &path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.trim(), offered, "{line}: {wrong}");
    }
}

/// The words of a line as a shell would take them, up to where its output goes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            '>' | '|' if !is_quoted => break,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_has_examples_that_can_be_typed() {
    fn look(command: &clap::Command, path: &[&str], count: &mut usize) {
        let named = command.get_subcommands();
        let named: Vec<_> = named.filter(|it| it.get_name() != "help").collect();
        for sub in &named {
            look(sub, &[path, &[sub.get_name()]].concat(), count);
        }
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let Some((_, examples)) = help.split_once("Examples:\n") else {
            // Only what has commands of its own needs none.
            assert!(!named.is_empty(), "{path:?} has no example");
            return;
        };
        for line in examples.lines() {
            let words = words(line.trim());
            let begins = path
                .iter()
                .zip(&words[1..])
                .all(|(one, other)| one == other);
            assert!(words[0] == "tallybook" && begins, "{path:?}: {line}");
            let parsed = tallybook::cli::command().try_get_matches_from(&words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            *count += 1;
        }
    }
    let mut count = 0;
    look(&tallybook::cli::command(), &[], &mut count);
    assert!(count > 40, "only {count} examples");
}

#[test]
fn every_command_has_a_manual_page() {
    fn pages(command: &clap::Command, name: &str, into: &mut Vec<String>) {
        into.push(format!("{name}.1"));
        for sub in command
            .get_subcommands()
            .filter(|it| it.get_name() != "help")
        {
            pages(sub, &format!("{name}-{}", sub.get_name()), into);
        }
    }
    let fixture = Fixture::empty();
    let page = fixture.run(&["man"]);
    assert!(page.stdout.contains(".TH tallybook 1"), "{}", page.stdout);
    let into = fixture.path().join("man");
    std::fs::create_dir(&into).unwrap();
    let into = into.to_str().unwrap();
    assert_eq!(fixture.run(&["man", "--into", into]).code, 0);
    let mut expected = Vec::new();
    pages(&tallybook::cli::command(), "tallybook", &mut expected);
    let written = std::fs::read_dir(into).unwrap();
    let mut written: Vec<String> = written
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    let page = std::fs::read_to_string(format!("{into}/tallybook-container-create.1")).unwrap();
    assert!(page.contains("tallybook container create shop"), "{page}");
    let impossible = fixture.run(&["man", "--into", "cloud.toml/man"]);
    let wrong = &impossible.stderr;
    assert_eq!(impossible.code, 1, "{wrong}");
    assert!(wrong.contains("can't write cloud.toml/man"), "{wrong}");
}

/// Runs a command line at a terminal of its own, with what is typed there, and returns what it showed and its exit code.
fn at_terminal(
    fixture: &Fixture,
    line: &str,
    environment: &[(&str, &str)],
    typed: &str,
) -> (String, i32) {
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .current_dir(fixture.path())
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .env("HOME", fixture.path())
        .env("TALLYBOOK_STORE", fixture.store())
        .env("TB", env!("CARGO_BIN_EXE_tallybook"))
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(typed.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    (text, output.status.code().unwrap())
}

#[test]
fn what_is_read_at_a_terminal_goes_through_the_pager() {
    let fixture = Fixture::story();
    let pager = ("PAGER", "sed s/^/paged:/");
    let (paged, code) = at_terminal(&fixture, "$TB op list", &[pager], "");
    assert_eq!(code, 0);
    assert!(
        paged.lines().all(|line| line.starts_with("paged:")),
        "{paged}"
    );
    assert!(paged.contains("OPERATION"), "{paged}");
    let own = ("TALLYBOOK_PAGER", "cat");
    for (line, environment) in [
        ("$TB op list", &[pager, own][..]),
        ("$TB op list --no-pager", &[pager]),
        ("$TB op list --format json", &[pager]),
        ("$TB op list | cat", &[pager]),
        ("$TB op list", &[("PAGER", "")]),
    ] {
        let (text, code) = at_terminal(&fixture, line, environment, "");
        assert!(code == 0 && !text.contains("paged:"), "{line}: {text}");
        assert!(text.contains("2222"), "{line}: {text}");
    }
    // An error is no result, and keeps its code.
    let (text, code) = at_terminal(&fixture, "$TB op show 9999", &[pager], "");
    let shown = !text.contains("paged:") && text.contains("error: ");
    assert!(code == 9 && shown, "{code}: {text}");
    // A pager that ends before all was shown is no error.
    let quits = ("PAGER", "true");
    assert_eq!(at_terminal(&fixture, "$TB log", &[quits], "").1, 0);
}

#[test]
fn nothing_is_lost_with_a_pager_that_is_not_there_or_can_do_nothing() {
    let fixture = Fixture::story();
    for environment in [
        &[("PAGER", "no-such-pager")][..],
        // `less` would ask whether it shall go on.
        &[("TERM", "dumb")],
        &[("TERM", "")],
    ] {
        let (text, code) = at_terminal(&fixture, "$TB op list", environment, "");
        assert!(
            code == 0 && text.contains("2222"),
            "{environment:?}: {text}"
        );
    }
}

#[test]
fn an_interrupt_is_the_pagers_while_somebody_reads() {
    let fixture = Fixture::story();
    // To all who are at the terminal, as the terminal does it.
    let pager = (
        "PAGER",
        "trap '' INT; kill -INT 0; sleep 0.3; sed s/^/paged:/",
    );
    let (text, code) = at_terminal(&fixture, "exec $TB op list", &[pager], "");
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("paged:") && text.contains("OPERATION"),
        "{text}"
    );
}

#[test]
fn a_first_inventory_is_written_from_what_is_given() {
    let fixture = Fixture::empty();
    let there = fixture.run(&["init", "--local"]);
    assert_eq!(there.code, 8, "{}", there.stderr);
    std::fs::remove_file(fixture.path().join("cloud.toml")).unwrap();
    let nobody = fixture.run(&["init"]);
    assert_eq!(nobody.code, 2, "{}", nobody.stderr);
    assert!(
        nobody.stderr.contains("an inventory needs a host"),
        "{}",
        nobody.stderr
    );
    let arguments = [
        "init",
        "--name",
        "example",
        "--host",
        "cn1=192.0.2.11",
        "--host",
        "cn2",
        "--user",
        "ops",
    ];
    let wrong = fixture.run(&[&arguments[..], &["--key", "nowhere.pub"]].concat());
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    let wrong = fixture.run(&[&arguments[..], &["--host", "a b"]].concat());
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    assert!(!fixture.path().join("cloud.toml").exists());
    let key =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice";
    std::fs::create_dir(fixture.path().join(".ssh")).unwrap();
    std::fs::write(
        fixture.path().join(".ssh/id_ed25519.pub"),
        format!("{key}\n"),
    )
    .unwrap();
    let written = fixture.run(&arguments);
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert!(
        written.stdout.contains("tallybook host install cn1 cn2"),
        "{}",
        written.stdout
    );
    let text = std::fs::read_to_string(fixture.path().join("cloud.toml")).unwrap();
    for part in [
        key,
        "address = \"192.0.2.11\"",
        "user = \"ops\"",
        "become = \"sudo\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let checked = fixture.run(&["cloud", "check"]);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
}

#[test]
fn at_a_terminal_a_first_inventory_is_asked_for() {
    let fixture = Fixture::empty();
    std::fs::remove_file(fixture.path().join("cloud.toml")).unwrap();
    // What can't be used is asked for again; nothing is what was proposed.
    let typed = "my cloud\nexample\nn\ncn1=192.0.2.11 cn2\n\n10.9.0.0/40\n10.9.0.0/16\n";
    let (text, code) = at_terminal(&fixture, "$TB init", &[], typed);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("must start with a letter"), "{text}");
    let inventory = std::fs::read_to_string(fixture.path().join("cloud.toml")).unwrap();
    for part in [
        "name = \"example\"",
        "[hosts.cn2]",
        "user = \"root\"",
        "subnet = \"10.9.0.0/16\"",
    ] {
        assert!(inventory.contains(part), "{part}: {inventory}");
    }
    // Whoever leaves in the middle has written nothing.
    std::fs::remove_file(fixture.path().join("cloud.toml")).unwrap();
    let (text, code) = at_terminal(&fixture, "$TB init", &[], "example\nn\n");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("a question was not answered"), "{text}");
    let left = std::fs::read_dir(fixture.path()).unwrap().count();
    assert_eq!(left, 0, "something was left");
}
