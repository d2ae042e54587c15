//! A tree with everything planted that a scrub takes out, and what must be left of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::template::leaks::{Finding, Scan};
use crate::template::staged::Identity;

/// Plants one of everything. The keys are made up: right in form, of no use.
pub(in crate::template) fn planted(dir: &Path) {
    let script = r#"
        mkdir -p etc/ssh etc/ssl/certs etc/ssl/private etc/iscsi etc/letsencrypt/live/x etc/wireguard etc/network \
            etc/systemd/network etc/netplan etc/salt/pki/minion etc/postfix var/lib/dbus var/lib/dhcp \
            var/lib/systemd var/log/journal/0123456789abcdef0123456789abcdef var/log/apt var/cache/debconf \
            var/cache/apt/archives/partial var/lib/apt/lists/partial var/backups var/mail var/spool/cron/crontabs \
            var/lib/postgresql/15/main var/lib/cloud/data tmp var/tmp run/lock usr/bin usr/share/doc/pkg \
            root/.ssh root/.gnupg/private-keys-v1.d home/ann/.ssh home/ann/.cache home/ann/.aws srv/bob/.ssh home2
        key='-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
-----END OPENSSH PRIVATE KEY-----'
        echo "$key" | tee etc/ssh/ssh_host_ed25519_key etc/ssl/private/ssl-cert-snakeoil.key root/.ssh/id_ed25519 \
            home/ann/.ssh/id_rsa etc/letsencrypt/live/x/privkey.pem etc/salt/pki/minion/minion.pem >/dev/null
        echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlantedPlantedPlantedPlantedPlantedPl root@web-1' | \
            tee etc/ssh/ssh_host_ed25519_key.pub root/.ssh/authorized_keys home/ann/.ssh/known_hosts \
            srv/bob/.ssh/authorized_keys >/dev/null
        echo keep > etc/ssh/sshd_config
        echo cert > etc/ssl/certs/ssl-cert-snakeoil.pem; ln -s ssl-cert-snakeoil.pem etc/ssl/certs/abcd1234.0
        echo 0123456789abcdef0123456789abcdef | tee etc/machine-id var/lib/dbus/machine-id >/dev/null
        echo seed > var/lib/systemd/random-seed; echo secret > var/lib/systemd/credential.secret
        echo 'lease { fixed-address 10.0.3.77; hardware ethernet 00:16:3e:0a:0b:0c; }' > var/lib/dhcp/dhclient.eth0.leases
        echo id > etc/hostid; echo InitiatorName=x > etc/iscsi/initiatorname.iscsi
        echo web-1 > etc/hostname; echo web-1.example.org > etc/mailname
        printf '127.0.0.1 localhost\n127.0.1.1 web-1\n10.0.3.77 web-1.example.org web-1\n10.0.3.1 gateway\n' > etc/hosts
        echo 'nameserver 10.0.3.1' > etc/resolv.conf
        printf 'auto eth0\niface eth0 inet static\n address 10.0.3.77\n' > etc/network/interfaces
        printf '[Match]\nMACAddress=00:16:3e:0a:0b:0c\n[Network]\nAddress=10.0.3.77/24\n' > etc/systemd/network/a.network
        echo 'myhostname = web-1.example.org' > etc/postfix/main.cf
        printf '[Interface]\nPrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n' > etc/wireguard/wg0.conf
        printf 'root:x:0:0:root:/root:/bin/bash\nann:x:1:1::/home/ann:/bin/sh\nbob:x:2:2::/home2/bob:/bin/sh\n' > etc/passwd
        ln -s ../srv/bob home2/bob
        printf 'root:$y$j9T$planted$hash:1:0:99999:7:::\nann:$6$planted$hash:1:0:99999:7:::\nbin:*:1:0:99999:7:::\n' > etc/shadow
        cp etc/shadow etc/shadow-; cp etc/shadow var/backups/shadow.bak; cp etc/passwd etc/passwd-
        printf 'Name: x\nValue: hunter2\n' > var/cache/debconf/passwords.dat
        echo 'ssh web-1' | tee root/.bash_history root/.histfile home/ann/.viminfo srv/bob/.psql_history >/dev/null
        echo x > root/.gnupg/private-keys-v1.d/a.key; echo x > home/ann/.aws/credentials; echo x > root/.netrc
        echo x > home/ann/.cache/c
        echo 'web-1 booted' | tee var/log/syslog var/log/syslog.1 var/log/apt/term.log var/log/wtmp >/dev/null
        gzip -c var/log/syslog > var/log/syslog.2.gz
        echo x > var/log/journal/0123456789abcdef0123456789abcdef/system.journal
        echo x > var/mail/root; echo x > var/spool/cron/crontabs/root; echo x > var/cache/apt/archives/a.deb
        echo x > var/cache/apt/pkgcache.bin; echo x > var/lib/apt/lists/l; echo x > var/lib/postgresql/15/main/PG_VERSION
        echo x > tmp/t; echo x > var/tmp/t; echo x > run/x.pid; echo x > var/lib/cloud/data/instance-id
        printf 'x-----BEGIN RSA PRIVATE KEY-----\0not a key' > usr/bin/program
        echo "$key" > usr/share/doc/pkg/sample.pem
        echo web-1 > usr/share/doc/pkg/words
    "#;
    let made = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .status();
    assert!(made.expect("sh").success());
}

pub(in crate::template) fn source() -> Source {
    Source {
        names: vec!["web-1".to_owned(), "web-1.example.org".to_owned()],
        addresses: vec!["10.0.3.77".parse().expect("address")],
        macs: vec!["00:16:3e:0a:0b:0c".parse().expect("mac")],
    }
}

fn scanned(root: &Root, identity: &Identity, allow: &[String]) -> Vec<Finding> {
    let mut scan = Scan::new(&source(), identity, allow).expect("scan");
    scan.tree(root, &mut |_, _| true).expect("tree");
    scan.finish().findings
}

#[test]
fn everything_planted_is_taken_out_and_the_scan_agrees() {
    let temp = tempfile::tempdir().expect("tempdir");
    planted(temp.path());
    let root = Root::open(temp.path()).expect("open");
    let identity = Identity::of(&root);
    assert_eq!(identity.machine_ids.len(), 1);
    assert_eq!(identity.host_keys.len(), 1);
    let before = scanned(&root, &identity, &[]);
    for rule in crate::template::leaks::RULES {
        assert!(
            before.iter().any(|finding| finding.rule == *rule),
            "{rule} finds nothing in {before:#?}"
        );
    }
    let reports = scrub(&root, &source(), &BTreeSet::new(), &mut |_| {}).expect("scrub");
    assert_eq!(scanned(&root, &identity, &[]), []);
    let read = |path: &str| {
        fs::read_to_string(temp.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    assert_eq!(read("etc/machine-id"), "");
    assert_eq!(
        fs::read_link(temp.path().join("var/lib/dbus/machine-id")).expect("link"),
        Path::new("/etc/machine-id")
    );
    assert_eq!(read("etc/hostname"), "localhost\n");
    assert_eq!(read("etc/hosts"), "127.0.0.1 localhost\n10.0.3.1 gateway\n");
    assert_eq!(read("etc/postfix/main.cf"), "myhostname = localhost\n");
    assert!(read("etc/network/interfaces").contains("inet dhcp"));
    assert_eq!(read("var/log/apt/term.log"), "");
    assert!(read("etc/shadow").starts_with("root:*:1:"));
    assert_eq!(read("etc/ssh/sshd_config"), "keep\n");
    assert_eq!(
        read("var/lib/postgresql/15/main/PG_VERSION"),
        "x\n",
        "a database was touched"
    );
    for gone in [
        "etc/shadow-",
        "var/log/syslog.1",
        "var/log/syslog.2.gz",
        "tmp/t",
        "root/.ssh/id_ed25519",
        "srv/bob/.ssh/authorized_keys",
        "srv/bob/.psql_history",
        "root/.histfile",
        "home/ann/.cache",
        "run/x.pid",
        "var/cache/apt/pkgcache.bin",
        "etc/ssl/certs/abcd1234.0",
        "etc/letsencrypt/live/x",
    ] {
        assert!(
            fs::symlink_metadata(temp.path().join(gone)).is_err(),
            "{gone} is left"
        );
    }
    for kept in [
        "run/lock",
        "tmp",
        "var/tmp",
        "var/cache/apt/archives/partial",
        "usr/share/doc/pkg/sample.pem",
    ] {
        assert!(temp.path().join(kept).exists(), "{kept} is gone");
    }
    let databases = reports
        .iter()
        .find(|report| report.operation == "databases")
        .expect("reported");
    assert_eq!(
        databases.paths,
        [(Change::Noticed, "/var/lib/postgresql".to_owned())]
    );
    let again = scrub(&root, &source(), &BTreeSet::new(), &mut |_| {}).expect("again");
    assert_eq!(again.len(), 1, "a second scrub found more: {again:?}");
}

#[test]
fn each_rule_catches_what_is_left_when_its_operation_is_left_out() {
    for (keep, rule, path) in [
        ("ssh-host-keys", "host-key", "/etc/ssh/ssh_host_ed25519_key"),
        (
            "ssh-host-keys",
            "private-key",
            "/etc/ssh/ssh_host_ed25519_key",
        ),
        ("machine-id", "machine-id", "/etc/machine-id"),
        (
            "journal",
            "machine-id",
            "/var/log/journal/0123456789abcdef0123456789abcdef",
        ),
        ("random-seed", "seed", "/var/lib/systemd/random-seed"),
        ("dhcp-leases", "seed", "/var/lib/dhcp/dhclient.eth0.leases"),
        (
            "dhcp-leases",
            "address",
            "/var/lib/dhcp/dhclient.eth0.leases",
        ),
        ("dhcp-leases", "mac", "/var/lib/dhcp/dhclient.eth0.leases"),
        ("storage-names", "seed", "/etc/hostid"),
        (
            "snakeoil-certificate",
            "private-key",
            "/etc/ssl/private/ssl-cert-snakeoil.key",
        ),
        ("ssh-user-files", "private-key", "/root/.ssh/id_ed25519"),
        ("ssh-user-files", "host-key", "/home/ann/.ssh/known_hosts"),
        (
            "authorized-keys",
            "authorized-keys",
            "/srv/bob/.ssh/authorized_keys",
        ),
        ("histories", "history", "/root/.bash_history"),
        ("credentials", "credentials", "/root/.netrc"),
        (
            "acme-accounts",
            "private-key",
            "/etc/letsencrypt/live/x/privkey.pem",
        ),
        ("wireguard", "private-key", "/etc/wireguard/wg0.conf"),
        ("account-backups", "password-hash", "/etc/shadow-"),
        (
            "account-backups",
            "password-hash",
            "/var/backups/shadow.bak",
        ),
        (
            "debconf-passwords",
            "credentials",
            "/var/cache/debconf/passwords.dat",
        ),
        ("root-password", "password-hash", "/etc/shadow"),
        ("user-passwords", "password-hash", "/etc/shadow"),
        ("hostname", "name", "/etc/hostname"),
        ("hosts", "name", "/etc/hosts"),
        ("interfaces", "address", "/etc/network/interfaces"),
        ("interfaces", "mac", "/etc/systemd/network/a.network"),
        ("mail-name", "name", "/etc/postfix/main.cf"),
        (
            "configuration-management",
            "private-key",
            "/etc/salt/pki/minion/minion.pem",
        ),
        ("logs", "name", "/var/log/syslog"),
    ] {
        let temp = tempfile::tempdir().expect("tempdir");
        planted(temp.path());
        let root = Root::open(temp.path()).expect("open");
        let identity = Identity::of(&root);
        scrub(&root, &source(), &BTreeSet::from([keep]), &mut |_| {}).expect("scrub");
        let findings = scanned(&root, &identity, &[]);
        let found = findings
            .iter()
            .find(|finding| finding.rule == rule && finding.path == path);
        assert!(
            found.is_some(),
            "without {keep}, {rule} does not find {path} but {findings:#?}"
        );
        let allow = [format!("{rule}:{path}")];
        let left = scanned(&root, &identity, &allow);
        assert_eq!(left.len(), findings.len() - 1, "{allow:?}");
    }
}

#[test]
fn unknown_operations_are_refused_and_names_are_unique() {
    let error = check_keep(&["histories".to_owned(), "nonsense".to_owned()]).expect_err("unknown");
    assert_eq!(error.unknown, ["nonsense"]);
    let names = names();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

#[test]
fn a_hostile_tree_cant_turn_the_scrub_on_the_host() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (tree, host) = (temp.path().join("tree"), temp.path().join("host"));
    fs::create_dir_all(&host).expect("mkdir");
    fs::write(host.join("ssh_host_key"), "precious").expect("write");
    fs::write(host.join("machine-id"), "precious").expect("write");
    for dir in ["etc", "var/log", "var/lib", "root", "home"] {
        fs::create_dir_all(tree.join(dir)).expect("mkdir");
    }
    let link =
        |to: &Path, at: &str| std::os::unix::fs::symlink(to, tree.join(at)).expect("symlink");
    link(&host, "etc/ssh");
    link(&host, "tmp");
    link(&host, "var/log/journal");
    link(&host.join("machine-id"), "etc/machine-id");
    link(&host.join("ssh_host_key"), "var/log/evil.log");
    link(
        Path::new("../../../../../../../../../../../../.."),
        "root/.ssh",
    );
    link(Path::new("/etc"), "root/.gnupg");
    link(Path::new("loop"), "loop");
    let climb = "../".repeat(20);
    fs::write(
        tree.join("etc/passwd"),
        format!(
            "a:x:0:0::/{climb}{}:/bin/sh\nb:x:0:0::/loop/x:/bin/sh\nc:x:0:0::/\0:x\n",
            host.display()
        ),
    )
    .expect("write");
    let root = Root::open(&tree).expect("open");
    scrub(&root, &source(), &BTreeSet::new(), &mut |_| {}).expect("scrub");
    for name in ["ssh_host_key", "machine-id"] {
        assert_eq!(
            fs::read_to_string(host.join(name)).expect("read"),
            "precious"
        );
    }
    assert_eq!(fs::read_dir(&host).expect("list").count(), 2);
    assert_eq!(
        fs::read_to_string(tree.join("etc/machine-id")).expect("read"),
        ""
    );
    assert!(
        fs::symlink_metadata(tree.join("etc/machine-id"))
            .expect("stat")
            .is_file()
    );
}
