//! What a limit selects, and what it refuses.

use super::good;
use crate::cloud::limit::{Limit, Selection};

const CLOUD: &str = r#"
[hosts.cn1]
groups = ["compute"]
[hosts.cn2]
groups = ["compute"]
[hosts.ctl]
local = true
[groups]
compute = {}
outer = { members = ["@compute", "ctl"] }
empty = {}
[containers]
"a.foo.net" = { host = "cn1" }
"b.foo.net" = { host = "cn2" }
"c.bar.net" = { host = "ctl" }
"#;

fn shown(limit: &str) -> String {
    let selected = Limit::parse(limit).and_then(|limit| limit.select(&good(CLOUD)));
    match selected {
        Ok(Selection { hosts, containers }) => {
            let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
            let containers: Vec<&str> = containers.iter().map(|name| name.as_str()).collect();
            format!("{} | {}", hosts.join(" "), containers.join(" "))
        }
        Err(diagnostics) => diagnostics.to_string(),
    }
}

#[test]
fn limits_mean_what_the_documentation_says() {
    let cases = [
        ("cn1", "cn1 | a.foo.net"),
        ("a.foo.net", " | a.foo.net"),
        ("compute", "cn1 cn2 | a.foo.net b.foo.net"),
        ("@compute", "cn1 cn2 | a.foo.net b.foo.net"),
        ("@outer", "cn1 cn2 ctl | a.foo.net b.foo.net c.bar.net"),
        ("all", "cn1 cn2 ctl | a.foo.net b.foo.net c.bar.net"),
        ("*", "cn1 cn2 ctl | a.foo.net b.foo.net c.bar.net"),
        ("cn*", "cn1 cn2 | a.foo.net b.foo.net"),
        ("*.foo.net", " | a.foo.net b.foo.net"),
        ("{a,c}.*", " | a.foo.net c.bar.net"),
        ("cn[12],!cn2", "cn1 | a.foo.net"),
        ("!cn2 cn[12]", "cn1 | a.foo.net"),
        ("!ctl", "cn1 cn2 | a.foo.net b.foo.net"),
        ("cn1 ,, !a.foo.net", "cn1 | "),
        ("all,!@compute", "ctl | c.bar.net"),
        (
            "cn9",
            "--limit:1:1: unknown host, group or container \"cn9\"; did you mean \"cn1\"?",
        ),
        (
            "cn1, d.foo.net",
            "--limit:1:6: unknown host, group or container \"d.foo.net\"; did you mean \"a.foo.net\"?",
        ),
        (
            "!cn9",
            "--limit:1:1: unknown host, group or container \"cn9\"; did you mean \"cn1\"?",
        ),
        ("@cn1", "--limit:1:1: unknown group \"cn1\""),
        (
            "zz*",
            "--limit:1:1: \"zz*\" matches no host and no container",
        ),
        (
            "all,!zz*",
            "--limit:1:5: \"zz*\" matches no host and no container",
        ),
        ("cn1,!cn1", "--limit:1:1: the limit leaves nothing"),
        ("@empty", "--limit:1:1: the limit leaves nothing"),
        (
            "",
            "--limit:1:1: the limit is empty; name a host, a group or a container, or say \"all\"",
        ),
        (
            " , ",
            "--limit:1:1: the limit is empty; name a host, a group or a container, or say \"all\"",
        ),
        (
            "cn1 !",
            "--limit:1:5: \"!\" stands before nothing; write it next to a name",
        ),
        (
            "cn[1",
            "--limit:1:1: \"cn[1\" is not a glob: unclosed character class; missing ']'",
        ),
        (
            "xx, yyyyy",
            "--limit:1:1: unknown host, group or container \"xx\"\n--limit:1:5: unknown host, group or container \"yyyyy\"",
        ),
    ];
    for (limit, expected) in cases {
        assert_eq!(shown(limit), expected, "--limit {limit:?}");
    }
}
