//! The documented example is what the documentation says it is.

use std::collections::BTreeSet;

use super::good;
use crate::cloud::inventory::{Action, Backing, Become, SecretSource, Source};
use crate::cloud::parse;

const DOCUMENT: &str = include_str!("../../../docs/CLOUD.md");

pub(super) fn example() -> &'static str {
    let (_, after) = DOCUMENT.split_once("```toml\n").expect("an example");
    after.split_once("```").expect("its end").0
}

#[test]
fn the_documented_zones_can_be_applied() {
    let inventory = good(example());
    let host = tallybook_replay::state::Host {
        installed: true,
        ..Default::default()
    };
    let hosts = inventory
        .hosts
        .keys()
        .map(|name| (name.clone(), host.clone()));
    let state = tallybook_replay::state::State {
        hosts: hosts.collect(),
        ..Default::default()
    };
    let steps = crate::plan::dns::apply(&inventory, &state).unwrap();
    let serving = steps.iter().filter(|step| step.kind == "dns.serve");
    let serving: Vec<&str> = serving.map(|step| step.host.as_str()).collect();
    assert_eq!(serving, ["cn1", "cn2"]);
}

#[test]
fn the_documented_example_means_what_its_comments_say() {
    let inventory = good(example());
    assert_eq!(inventory.name.as_deref(), Some("example"));
    let host = |name: &str| &inventory.hosts[&name.parse().unwrap()];
    let (cn1, cn2) = (host("cn1"), host("cn2"));
    assert_eq!(
        (
            cn1.user.as_deref().unwrap(),
            cn1.ssh_port(),
            cn1.become_root
        ),
        ("ops", 22, Become::Sudo)
    );
    assert_eq!(cn1.jump.as_ref().unwrap().as_str(), "gate");
    assert_eq!(host("gate").jump, None);
    assert_eq!(
        (
            cn2.user.as_deref().unwrap(),
            cn2.ssh_port(),
            cn2.become_root
        ),
        ("root", 2222, Become::None)
    );
    assert_eq!(cn1.network.bridge, "tbbr0");
    assert_eq!(cn1.network.dhcp_lease_s, 12 * 3600);
    assert_eq!(cn2.network.bridge, "br-tally");
    assert_eq!(cn2.network.dhcp_lease_s, 3600);
    assert_eq!(cn2.network.forward_ports.to_string(), "50000-50999");
    let ctl = host("ctl");
    assert!(ctl.local && ctl.jump.is_none());
    let groups: Vec<&str> = cn1.groups.iter().map(|group| group.as_str()).collect();
    assert_eq!(groups, ["compute", "everywhere"]);

    let container = |name: &str| &inventory.containers[&name.parse().unwrap()];
    let d = container("d.foo.net");
    let Source::Debian(debian) = &d.source else {
        panic!("{:?}", d.source);
    };
    assert_eq!(debian.release, "bookworm");
    assert_eq!(
        debian.packages,
        BTreeSet::from(["openssh-server".to_owned()])
    );
    let ports: Vec<_> = d
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.container, port.host))
        .collect();
    assert_eq!(
        ports,
        [
            ("web", 80, Some(8080)),
            ("udp-53", 53, None),
            ("ssh", 22, None)
        ]
    );
    assert_eq!(d.provision[0].timeout_s, 600);
    assert!(
        matches!(&d.provision[1].action, Action::Script(script) if script == "systemctl enable --now nginx\n")
    );
    let named: Vec<&str> = d.provision[2]
        .secrets
        .iter()
        .map(|it| it.as_str())
        .collect();
    assert_eq!(named, ["db_password"]);
    let lives = |name: &str| &inventory.secrets[&name.parse().unwrap()].source;
    let file = SecretSource::File("/etc/tallybook/secrets/db_password".to_owned());
    assert_eq!(lives("db_password"), &file);
    assert_eq!(
        inventory.dns.key.as_ref().map(|it| it.as_str()),
        Some("dns_key")
    );
    assert_eq!(
        lives("api_token"),
        &SecretSource::Env("SHOP_API_TOKEN".to_owned())
    );
    let shop = container("shop");
    assert_eq!(
        shop.source,
        Source::Template("makinastates".parse().unwrap())
    );
    assert_eq!((shop.backing, shop.autostart), (Backing::Overlay, false));
    assert!(shop.ports.is_empty());
    let template = &inventory.templates[&"makinastates".parse().unwrap()];
    assert_eq!(template.builder.as_ref().unwrap().as_str(), "builder");
    assert_eq!(template.retain, 3);
    // Lines are those of the file: each names its own table.
    let lines: Vec<&str> = example().lines().collect();
    assert_eq!(lines[cn1.line - 1], "[hosts.cn1]");
    assert_eq!(lines[d.line - 1], "[containers.\"d.foo.net\"]");
    assert_eq!(lines[template.line - 1], "[templates.makinastates]");
}

/// Every key the code reads, found in the code itself, so that a new one can't be left out of the documentation.
#[test]
fn the_example_shows_every_key_the_code_reads() {
    const CODE: [&str; 9] = [
        include_str!("../parse/mod.rs"),
        include_str!("../parse/dns.rs"),
        include_str!("../parse/network.rs"),
        include_str!("../parse/host.rs"),
        include_str!("../parse/group.rs"),
        include_str!("../parse/secret.rs"),
        include_str!("../parse/container.rs"),
        include_str!("../parse/container/source.rs"),
        include_str!("../parse/container/provision.rs"),
    ];
    const TEMPLATE: &str = include_str!("../parse/template.rs");
    const READERS: [&str; 12] = [
        ".text(",
        ".texts(",
        ".boolean(",
        ".number(",
        ".port(",
        ".parsed(",
        ".parsed::<Subnet>(",
        ".parsed::<Ipv4Addr>(",
        ".choice(",
        ".array(",
        "_reference(section,",
        "_references(section,",
    ];
    let mut keys = BTreeSet::new();
    for code in CODE.into_iter().chain([TEMPLATE]) {
        let code: String = code
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '&')
            .collect();
        for reader in READERS {
            let call = format!("{reader}\"");
            let calls = code.split(&call).skip(1);
            keys.extend(
                calls
                    .filter_map(|call| call.split('"').next())
                    .map(str::to_owned),
            );
        }
    }
    assert!(
        keys.len() > 40,
        "the readers are called otherwise now: {keys:?}"
    );
    for key in keys {
        assert!(
            example().contains(&format!("{key} = ")),
            "{key} isn't shown"
        );
    }
}

#[test]
fn an_empty_inventory_has_the_documented_defaults() {
    let inventory = good("");
    assert_eq!(inventory.network.subnet.to_string(), "10.5.0.0/16");
    assert_eq!(inventory.network.gateway.to_string(), "10.5.0.1");
    let inventory = good("[hosts.h]\n[containers.c]\nhost = 'h'");
    let host = &inventory.hosts[&"h".parse().unwrap()];
    assert_eq!(
        (host.address.as_str(), &host.user, host.port),
        ("h", &None, None)
    );
    assert_eq!(host.network.forward_ports.to_string(), "40000-60000");
    let container = &inventory.containers[&"c".parse().unwrap()];
    assert!(container.autostart && container.ports.is_empty());
    let Source::Debian(debian) = &container.source else {
        panic!("{:?}", container.source);
    };
    assert_eq!(debian.release, "trixie");
}

#[test]
fn serializes_for_machines() {
    let json = serde_json::to_value(good(example())).unwrap();
    assert_eq!(json["network"]["subnet"], "10.5.0.0/16");
    assert_eq!(json["hosts"]["cn1"]["become"], "sudo");
    assert_eq!(json["containers"]["d.foo.net"]["mac"], "00:16:3e:00:00:20");
    assert_eq!(
        json["containers"]["shop"]["source"]["template"],
        "makinastates"
    );
}

#[test]
fn a_private_key_is_refused_and_never_repeated() {
    let begin = "-----BEGIN OPENSSH PRIVATE KEY-----";
    let texts = [
        format!("[keys]\na = \"\"\"{begin}\nSECRETSECRET\n\"\"\""),
        format!("[keys]\n# {begin}\n# SECRETSECRET\n"),
        format!("[hosts.h]\nuser = \"{begin} SECRETSECRET\""),
        format!("[hosts.\"{begin} SECRETSECRET\"]\nuser = 1"),
        format!(
            "[containers.c]\nhost = \"h\"\nprovision = [{{ script = \"{begin}SECRETSECRET\" }}]\n[hosts.h]"
        ),
        format!("broken = = \"{begin} SECRETSECRET\""),
        "[keys]\na = \"b3BlbnNzaC1rZXktdjEAAAAASECRETSECRET\"".to_owned(),
        "[keys]\na = \"-----BEGIN RSA PRIVATE\\u0020KEY-----SECRETSECRET\"".to_owned(),
    ];
    for text in texts {
        let shown = parse("cloud.toml", &text).expect_err(&text).to_string();
        assert!(
            shown.contains("A PRIVATE KEY IS IN THIS FILE"),
            "{text}\n{shown}"
        );
        assert!(!shown.contains("SECRET"), "{text}\n{shown}");
    }
}
