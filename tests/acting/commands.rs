//! Every acting command as its users see it, in both formats.

use crate::ground::Ground;

/// A story in which every acting command comes once.
const STORY: &[&[&str]] = &[
    &["host", "install", "cn1", "--dry-run"],
    &["host", "install", "cn1"],
    &["host", "install", "cn2"],
    &["host", "prepare", "cn1"],
    &["container", "create", "web", "--dry-run"],
    &["container", "create", "web"],
    &["container", "create", "web"],
    &["container", "stop", "web"],
    &["container", "start", "web"],
    &["container", "restart", "web"],
    &["container", "exec", "web", "--", "echo", "a b", ""],
    &["container", "copy", "web", "--to", "cn1", "--as", "db"],
    &["template", "snapshot", "base", "--from", "web"],
    &["template", "sync", "base", "--to", "cn2", "cn1", "cn2"],
    &["template", "sync", "base", "--to", "cn2", "cn1"],
    &[
        "template",
        "sync",
        "base",
        "--to",
        "cn2",
        "--generation",
        "5",
    ],
    &["container", "create", "new", "--from", "template:base@5"],
    &["container", "destroy", "db"],
];

#[test]
fn as_text() {
    insta::assert_snapshot!("text", told(&[]));
}

#[test]
fn as_json() {
    insta::assert_snapshot!("json", told(&["--format", "json"]));
}

fn told(format: &[&str]) -> String {
    let ground = Ground::new(2);
    let inventory = ground.inventory();
    let new =
        "[containers.new]\nhost = \"cn1\"\nmac = \"00:16:3e:00:00:05\"\nforward_ssh = false\n";
    ground.set_inventory(&format!("{inventory}\n{new}"));
    let mut told = String::new();
    let mut tell = |arguments: &[&str]| {
        let run = ground.run(&[format, arguments].concat());
        let text = format!("$ tallybook {}\n{run}\n", arguments.join(" "));
        told.push_str(&normal(&ground, text));
    };
    STORY.iter().for_each(|arguments| tell(arguments));
    // Failed, gone on with, taken back.
    ground.host(1).fail("container.start", "host");
    tell(&["container", "create", "new", "--keep-failed"]);
    let failed = ground.newest();
    tell(&["container", "create", "new"]);
    tell(&["op", "resume", &failed]);
    ground.host(1).mend("container.start");
    tell(&["op", "resume", &failed]);
    tell(&["op", "rollback", &failed, "--dry-run"]);
    tell(&["op", "rollback", &failed]);
    tell(&["op", "rollback", &failed]);
    ground.host(1).fail("container.start", "host");
    tell(&["container", "create", "new"]);
    let undo = ground.newest();
    tell(&["op", "rollback", &undo]);
    let exec = ground.document(&["op", "list", "--all"]);
    let exec = exec.as_array().unwrap().iter().find(|one| {
        one["intent"]
            .as_str()
            .unwrap()
            .starts_with("container exec")
    });
    let exec = exec.unwrap()["short"].as_str().unwrap().to_owned();
    tell(&["op", "rollback", &exec]);
    told
}

/// What a run showed, with all that differs from run to run replaced.
fn normal(ground: &Ground, mut text: String) -> String {
    for (number, host) in ground.hosts().iter().enumerate() {
        text = text.replace(&format!(":{}", host.port), &format!(":PORT{}", number + 1));
    }
    text = text.replace(&ground.path("").display().to_string(), "DIR/");
    let lines = text.lines().map(|line| {
        let mut words: Vec<String> = Vec::new();
        for word in line.split(' ') {
            let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let digits = core.bytes().all(|byte| byte.is_ascii_hexdigit());
            let decimals = core.split_once('.').is_some_and(|(whole, part)| {
                [whole, part]
                    .iter()
                    .all(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            });
            words.push(match core {
                _ if core.len() == 12 && digits => word.replace(core, "OPERATION"),
                _ if decimals => word.replace(core, "SECONDS"),
                _ => word.to_owned(),
            });
        }
        format!("{}\n", words.join(" "))
    });
    let text: String = lines.collect();
    replaced(&text)
}

/// Ids, times and addresses inside JSON.
fn replaced(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        out.push_str(&rest[..at]);
        let end = rest[at..].find(|c: char| !c.is_ascii_hexdigit() && c != '-');
        let word = &rest[at..end.map_or(rest.len(), |end| at + end)];
        let took = out.ends_with("\"duration_ms\":") || out.ends_with("\"duration_ms\": ");
        if uuid::Uuid::try_parse(word).is_ok() && word.contains('-') {
            out.push_str("ID");
        } else if took {
            out.push('0');
        } else {
            out.push_str(word);
        }
        rest = &rest[at + word.len()..];
    }
    out.push_str(rest);
    out
}
