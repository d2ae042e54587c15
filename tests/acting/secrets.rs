//! Declared secrets from the inventory to a provision script that prints them in every way: nothing of them is in what
//! is recorded, kept on hosts or shown.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tallybook_testkit::files::position;

use crate::ground::{Ground, Run};

const VALUE: &str = "Tr0ub4dor&3 'n' \"co/ko\"";

/// What a script prints that gives all away, to both streams, in pieces, and more than is kept of it.
const LEAKS: &str = r#"
printf '%s\n' "$DB_PASSWORD" | cmp - "SECRET_FILE" && echo it is the one
echo "plain $DB_PASSWORD"
echo "complaint $DB_PASSWORD" >&2
echo "password=$DB_PASSWORD token: $DB_PASSWORD"
printf '%s' "$DB_PASSWORD" | base64
printf 'x%s' "$DB_PASSWORD" | base64
printf 'xy%s' "$DB_PASSWORD" | base64
printf '%s' "$DB_PASSWORD" | od -An -v -tx1 | tr -d ' \n'
echo "https://u:$(printf '%s' "$DB_PASSWORD" | sed "s/&/%26/; s/ /%20/g; s/'/%27/g; s/\"/%22/g; s,/,%2F,")@host/"
echo "{\"value\":\"$(printf '%s' "$DB_PASSWORD" | sed 's/&/\\u0026/; s/"/\\"/g; s,/,\\/,')\"}"
( set -x; : "$DB_PASSWORD" )
printf '%s' "${DB_PASSWORD%?????????}"; sleep 0.1; echo "between" >&2; sleep 0.1; echo "${DB_PASSWORD#??????????????}"
i=0; while [ $i -lt 4000 ]; do printf '%s%s' "$i" "$DB_PASSWORD"; i=$((i+1)); done
env
printf 'and %s' "${DB_PASSWORD%???}"
"#;

struct Scene {
    ground: Ground,
    file: PathBuf,
}

impl Scene {
    /// A container whose provisioning is this script, with the secret.
    fn new(script: &str) -> Self {
        let ground = Ground::prepared(1);
        std::fs::create_dir(ground.path("private")).unwrap();
        let file = ground.path("private/db_password");
        let scene = Scene { ground, file };
        scene.write(&format!("{VALUE}\n"), 0o600);
        let file = scene.file.display();
        let script = script.replace("SECRET_FILE", &file.to_string());
        let provision =
            format!("provision = [{{ script = '''{script}''', secrets = [\"db_password\"] }}]\n");
        let inventory = scene.ground.inventory().replace(
            "[containers.web]\n",
            &format!("[secrets.db_password]\nfile = \"{file}\"\n[containers.web]\n{provision}"),
        );
        scene.ground.set_inventory(&inventory);
        scene
    }

    fn write(&self, text: &str, mode: u32) {
        std::fs::write(&self.file, text).unwrap();
        std::fs::set_permissions(&self.file, PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Fails where something of the secret is in the store, on the host, or in what was shown.
    fn shows_nothing(&self, runs: &[Run]) {
        for run in runs {
            assert_clean(&run.to_string(), format!("{run}").as_bytes());
        }
        let mut files = 0;
        for place in ["store", "cn1"] {
            for file in files_below(&self.ground.path(place)) {
                let bytes = std::fs::read(&file).unwrap();
                assert_clean(&file.display().to_string(), &bytes);
                files += 1;
            }
        }
        assert!(files > 4, "only {files} files were looked into");
    }
}

/// Parts of the value, and of what programs make of it, that must be nowhere.
fn assert_clean(place: &str, bytes: &[u8]) {
    let base64 = [
        "VHIwdWI0ZG9yJjMgJ24nICJjby9rbyI",
        "RyMHViNGRvciYzICduJyAiY28va28i",
        "UcjB1YjRkb3ImMyAnbicgImNvL2tvI",
    ];
    let mut parts: Vec<&[u8]> = VALUE.as_bytes().windows(6).collect();
    for encoded in base64 {
        parts.extend(encoded.as_bytes().windows(9));
    }
    parts.extend([&b"5472307562"[..], b"Tr0ub4dor", b"b4dor%263", b"co%2Fko"]);
    for part in parts {
        let Some(at) = position(bytes, part) else {
            continue;
        };
        let around = &bytes[at.saturating_sub(60)..(at + 60).min(bytes.len())];
        panic!(
            "{:?} is in {place} at {at}: {:?}",
            String::from_utf8_lossy(part),
            String::from_utf8_lossy(around)
        );
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let about = std::fs::symlink_metadata(&path).unwrap();
        if about.is_dir() {
            found.extend(files_below(&path));
        } else if about.is_file() {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_script_that_prints_its_secret_leaves_nothing_of_it_anywhere() {
    let scene = Scene::new(LEAKS);
    let ground = &scene.ground;
    let planned = ground
        .run(&["container", "create", "web", "--dry-run"])
        .ends(0);
    let planned = planned.says("(with secret db_password)");
    let create = ground.run(&["-vv", "container", "create", "web"]).ends(0);
    let shown = ground
        .run(&["op", "show", &ground.newest(), "--output"])
        .ends(0)
        .says("it is the one")
        .says("plain [secret db_password]")
        .says("complaint [secret db_password]")
        .says("password=[secret db_password] token: [secret db_password]")
        .says("\n  between\n")
        .says("https://u:[secret db_password]@host/")
        .says("DB_PASSWORD=[secret db_password]")
        .says("bytes dropped]");
    let log = ground.json(&["log"]).ends(0);
    ground.run(&["verify"]).ends(0);
    scene.shows_nothing(&[planned, create, shown, log]);
}

#[test]
fn a_script_that_dies_of_its_secret_leaves_nothing_of_it_either() {
    let script = "echo \"refused: $DB_PASSWORD\" >&2; printf 'for %s' \"$DB_PASSWORD\" >&2; exit 3";
    let scene = Scene::new(script);
    let ground = &scene.ground;
    let arguments = [
        "-vv",
        "--log-format",
        "json",
        "container",
        "create",
        "web",
        "--keep-failed",
    ];
    let create = ground.json(&arguments).ends(1);
    let create = create.says("refused: [secret db_password] | for [secret db_password]");
    let id = ground.newest();
    let shown = ground.json(&["op", "show", &id, "--output"]).ends(0);
    let shown = shown.says("[secret db_password]");
    let back = ground.run(&["op", "rollback", &id]).ends(0);
    scene.shows_nothing(&[create, shown, back]);
}

#[test]
fn one_that_can_not_be_read_stops_what_needs_it_before_anything() {
    let scene = Scene::new("true");
    let ground = &scene.ground;
    let path = scene.file.display().to_string();
    let notes = ground.host(1).notes();
    let before = ground.newest();
    scene.write(VALUE, 0o640);
    ground
        .run(&["container", "create", "web"])
        .ends(1)
        .says(&format!(
            "secret db_password can't be had from the file {path}"
        ))
        .says("its mode is 0640")
        .says(&format!("chmod 600 {path}"));
    std::fs::remove_file(&scene.file).unwrap();
    ground
        .run(&["container", "create", "web"])
        .ends(1)
        .says("No such file");
    scene.write("12345\n", 0o600);
    let short = ground.run(&["container", "create", "web"]).ends(1);
    short.says("it has 5 bytes").says_nothing_of("12345");
    assert_eq!(ground.newest(), before, "nothing was begun");
    assert_eq!(ground.host(1).notes(), notes);
    // What needs none goes on.
    ground.run(&["container", "create", "db"]).ends(0);
}

#[test]
fn a_resumed_one_reads_its_secret_anew_and_begins_nothing_without() {
    let scene =
        Scene::new("test -e SECRET_FILE.ready || { echo \"no $DB_PASSWORD\" >&2; exit 1; }");
    let ground = &scene.ground;
    ground
        .run(&["container", "create", "web", "--keep-failed"])
        .ends(1);
    let id = ground.newest();
    let notes = ground.host(1).notes();
    std::fs::remove_file(&scene.file).unwrap();
    let refused = ground.run(&["op", "resume", &id]).ends(1);
    let path = scene.file.display().to_string();
    let refused = refused.says("secret db_password can't be had").says(&path);
    assert_eq!(ground.host(1).notes(), notes, "nothing was begun");
    scene.write(VALUE, 0o600);
    std::fs::write(format!("{path}.ready"), "").unwrap();
    let resumed = ground.run(&["op", "resume", &id]).ends(0);
    scene.shows_nothing(&[refused, resumed]);
}

#[test]
fn one_that_would_be_recorded_by_who_asks_is_refused() {
    let scene = Scene::new("true");
    let ground = &scene.ground;
    ground.run(&["container", "create", "web"]).ends(0);
    let before = ground.newest();
    let exec = ground
        .run(&["container", "exec", "web", "--", "login", "-p", VALUE])
        .ends(2);
    let exec = exec.says("the value of secret db_password");
    let inventory = ground.inventory();
    ground.set_inventory(&format!("{inventory}\n# {VALUE}\n"));
    let lines = inventory.lines().count() + 2;
    let create = ground.run(&["container", "create", "db"]).ends(2);
    let create = create.says(&format!(
        "cloud.toml:{lines}: the value of secret db_password"
    ));
    assert_eq!(ground.newest(), before);
    scene.shows_nothing(&[exec, create]);
}
